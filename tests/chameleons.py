"""Tiny random Chameleons as transformers' own code builds and saves them, which tests share. Not a test itself."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    ChameleonConfig,
    ChameleonForConditionalGeneration,
    ChameleonProcessor,
    ChameleonVQVAE,
    PreTrainedTokenizerFast,
)
from transformers.models.chameleon.image_processing_pil_chameleon import ChameleonImageProcessorPil

from hybridgen.codecs.chameleon_vq import ChameleonVQ, ChameleonVQConfig

BOS, PAD, EOS, UNK, SEPARATOR = "<s>", "<pad>", "</s>", "<unk>", "<reserved08706>"
IMAGE, BEGIN, END = "<image>", "<racm3:break>", "<eoss>"
CODES, TEXTS = 40, ["a red circle on a blue ground", "what colour is it?", "You are a helpful assistant."]

VARIANTS = {  # 7B; 34B (norms behind, grouped queries); codes that stand in no order, tied, more levels with attention
    "7b": {"text": {}, "vq": {"channel_multiplier": [1, 1]}, "resolution": 8},
    "34b": {
        "text": {"swin_norm": True, "num_key_value_heads": 2, "num_hidden_layers": 3, "model_parallel_size": 4},
        "vq": {"channel_multiplier": [1, 2, 2], "num_res_blocks": 2, "attn_resolutions": [8]}, "resolution": 16,
    },
    "scattered": {
        "text": {"tie_word_embeddings": True, "num_key_value_heads": 1, "rms_norm_eps": 1e-6},
        "vq": {"channel_multiplier": [2, 1], "attn_type": "none"}, "resolution": 12,
    },
}  # fmt: skip


def code_name(code: int) -> str:
    return f"IMGIMG{''.join(chr(ord('A') + int(digit)) for digit in str(code))}Z"


def tiny_tokenizer(variant: str = "7b") -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with Chameleon's tokens, those of codes among them, in the order of codes or in none."""
    order = [7 * code % CODES for code in range(CODES)] if variant == "scattered" else range(CODES)
    special = [BOS, PAD, EOS, UNK, *map(code_name, order), END, BEGIN, SEPARATOR, IMAGE]
    backend = Tokenizer(models.BPE(unk_token=UNK))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=360, special_tokens=special, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )  # fmt: skip
    backend.train_from_iterator(TEXTS, trainer)
    backend.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=BOS, eos_token=EOS, pad_token=PAD, unk_token=UNK, sep_token=SEPARATOR,
        padding_side="left",
    )  # fmt: skip


def tiny_chameleon(variant: str = "7b", seed: int = 0) -> ChameleonForConditionalGeneration:
    """Random weights, no norm left at one or zero, codes far enough apart to be no matter of rounding."""
    torch.manual_seed(seed)
    chosen, tokenizer = VARIANTS[variant], tiny_tokenizer(variant)
    text = {"vocab_size": 400, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 512}
    text |= {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    vq = {"embed_dim": 8, "num_embeddings": CODES, "latent_channels": 32, "base_channels": 32, "num_res_blocks": 1}
    vq |= {"resolution": chosen["resolution"], **chosen["vq"]}
    config = ChameleonConfig(
        **{**text, "initializer_range": 0.2, **chosen["text"]}, vq_config=vq, vocabulary_map=tokenizer.get_vocab()
    )
    model = ChameleonForConditionalGeneration(config).eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim < 3 and "norm" in name:  # of each head its own
            parameter.data += 0.3 * torch.randn_like(parameter)
    _spread_codes(model.model.vqmodel)
    for name in ("bos", "eos", "pad"):
        setattr(model.generation_config, f"{name}_token_id", getattr(tokenizer, f"{name}_token_id"))
    return model


@torch.no_grad()
def _spread_codes(vq: ChameleonVQVAE) -> None:
    """Latents of random pictures and codes of the same size, so that many codes are met."""
    for parameter in vq.encoder.parameters():
        if parameter.ndim == 4:
            parameter.mul_(8)
    latents = vq.quant_conv(vq.encoder(torch.rand(8, 3, vq.config.resolution, vq.config.resolution) * 2 - 1))
    mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    vq.quant_conv.weight.div_(deviation[:, None, None, None])
    vq.quant_conv.bias.sub_(mean).div_(deviation)
    torch.nn.init.normal_(vq.quantize.embedding.weight)


def tiny_decoder(variant: str = "7b") -> dict[str, torch.Tensor]:
    """Weights of the VQ tokenizer's decoder by the names of taming-transformers, as Meta's file has them."""
    torch.manual_seed(1)
    config = tiny_chameleon(variant).config.vq_config
    vq = ChameleonVQ(ChameleonVQConfig(**{**config.to_dict(), "model_type": None, "has_decoder": True}))
    levels = len(config.channel_multiplier)
    weights = {f"decoder.{name}": tensor for name, tensor in vq.decoder.state_dict().items()}
    for level in range(levels):
        weights = {
            name.replace(f"decoder.up.{level}.", f"decoder.up.x{levels - 1 - level}."): tensor
            for name, tensor in weights.items()
        }
    return {name.replace(".up.x", ".up."): tensor.clone() for name, tensor in weights.items()}


def tiny_processor(variant: str = "7b") -> ChameleonProcessor:
    side, levels = VARIANTS[variant]["resolution"], len(VARIANTS[variant]["vq"]["channel_multiplier"])
    images = ChameleonImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    return ChameleonProcessor(images, tiny_tokenizer(variant), image_seq_length=(side // 2 ** (levels - 1)) ** 2)


def save_transformers(folder: Path, variant: str = "7b", dtype: torch.dtype = torch.float32, **kwargs) -> Path:
    """A folder as `facebook/chameleon-7b` is one; returns it."""
    tiny_chameleon(variant).to(dtype).save_pretrained(folder, **kwargs)
    tiny_processor(variant).save_pretrained(folder)
    return folder
