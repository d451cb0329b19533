"""Tiny real models and layouts that several tests share. Not a test itself."""

import torch

from hybridgen import HybridGenConfig, HybridGenForConditionalGeneration
from hybridgen.core.layout import SequenceLayout, SpecialTokens, pack

PAD, IMAGE, DIFFUSION, VQ, BEGIN, END = 0, 90, 91, 92, 93, 94
TOKENS = SpecialTokens(begin_image=BEGIN, end_image=END, pad=PAD, understanding=IMAGE, diffusion=DIFFUSION, vq=VQ)

BACKBONES = {
    "qwen3": {"model_type": "qwen3", "num_key_value_heads": 2, "head_dim": 8},
    "llama": {"model_type": "llama", "num_key_value_heads": 4},
    "qwen3_moe": {
        "model_type": "qwen3_moe", "num_key_value_heads": 2, "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2,
        "moe_intermediate_size": 32, "decoder_sparse_step": 1,
    },
    "llama4_text": {
        "model_type": "llama4_text", "num_key_value_heads": 2, "head_dim": 8, "num_local_experts": 2,
        "intermediate_size_mlp": 64, "attention_chunk_size": 256, "num_hidden_layers": 4,
    },
}  # fmt: skip

WINDOWED = {  # whose layers see a part of a text, shorter than the tests' texts and pictures
    "mistral": {"model_type": "mistral", "num_key_value_heads": 2, "sliding_window": 6},
    "qwen3 of two kinds": {
        **BACKBONES["qwen3"], "use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1,
    },
    "llama4 in chunks": {**BACKBONES["llama4_text"], "attention_chunk_size": 7, "floor_scale": 4},
}  # fmt: skip

MODEL_CONTENT = {  # what a config file says under `model`: as `tiny_config`, with a tokenizer to train and dropout
    "tokenizer": {"vocab_size": 400, "samples": 40},
    "text_config": {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "attention_dropout": 0.1,
    },
    "vision_config": {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "image_size": 16, "patch_size": 8, "vision_use_head": False,
    },
    "diffusion_config": {"patch_size": 4, "sample_size": 16, "frequency_embedding_size": 32},
    "vq_config": {"num_embeddings": 50, "embed_dim": 8, "sample_size": 4},
}  # fmt: skip


def text_config(backbone: str = "qwen3", **changes) -> dict:
    return {
        "vocab_size": 100, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "max_position_embeddings": 512, "pad_token_id": PAD, "bos_token_id": 1, "eos_token_id": 2,
        **(BACKBONES | WINDOWED)[backbone], **changes,
    }  # fmt: skip


def tiny_config(backbone: str = "qwen3", **changes) -> HybridGenConfig:
    """All three paths: 16x16 pixels as 4x4 patches of 4, 16 codes of 50, 4 understanding tokens."""
    settings = {
        "text_config": text_config(backbone),
        "vision_config": {
            "model_type": "siglip_vision_model", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
            "num_attention_heads": 2, "image_size": 16, "patch_size": 8, "vision_use_head": False,
        },
        "diffusion_config": {"patch_size": 4, "sample_size": 16, "frequency_embedding_size": 32},
        "vq_config": {"num_embeddings": 50, "embed_dim": 8, "sample_size": 4},
        "image_token_id": IMAGE, "diffusion_token_id": DIFFUSION, "vq_token_id": VQ,
        "begin_image_token_id": BEGIN, "end_image_token_id": END,
    }  # fmt: skip
    return HybridGenConfig(**{**settings, **changes})


def tiny_model(config: HybridGenConfig | None = None, seed: int = 0) -> HybridGenForConditionalGeneration:
    """Random weights everywhere, the zero-initialised head too, so that no test passes for want of a signal."""
    torch.manual_seed(seed)
    model = HybridGenForConditionalGeneration(config or tiny_config()).eval()
    for name, parameter in model.named_parameters():
        if "final_layer" in name:
            torch.nn.init.normal_(parameter, std=0.1)
        if ".own." in name:  # which starts as a copy
            parameter.data += 0.1 * torch.randn(parameter.shape)
    return model


def batch_of(rows: list[list[SequenceLayout]], length: int) -> dict[str, torch.Tensor]:
    """Packed rows as the tensors (B, N) that `forward` takes, labels too."""
    packed = [pack(documents, length, PAD).tensors() for documents in rows]
    return {name: torch.stack([row[name] for row in packed]) for name in packed[0]}


def inputs_of(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The batch without its targets."""
    return {name: value for name, value in batch.items() if name not in ("labels", "code_labels")}
