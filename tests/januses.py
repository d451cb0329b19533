"""Tiny random Januses as transformers' own code builds and saves them, that several tests share. Not a test itself."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import JanusConfig, JanusForConditionalGeneration, JanusProcessor, PreTrainedTokenizerFast
from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil

from hybridgen.bridges.janus.prompts import transformers_template

BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
ROLES = ["<|User|>", "<|Assistant|>"]
IMAGE_TOKENS = {"image_token": "<image_placeholder>", "boi_token": "<begin_of_image>", "eoi_token": "<end_of_image>"}
TEXTS = ["a red circle on a blue ground", "what colour is it?", "You are a helpful assistant.", "User: Assistant:"]

# head counts, grouped-query attention, image sizes, tokenizer's depth, tied and untied heads
VARIANTS = {
    "plain": {
        "text": {"num_attention_heads": 4, "num_key_value_heads": 4}, "vision": {"image_size": 32, "patch_size": 8},
        "vq": {"channel_multiplier": [1, 1]}, "tied": False,
    },
    "grouped": {
        "text": {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 3},
        "vision": {"image_size": 48, "patch_size": 16, "hidden_size": 24, "num_attention_heads": 3},
        "vq": {"channel_multiplier": [1, 2, 2], "num_res_blocks": 2}, "tied": False,
    },
    "tied": {
        "text": {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8},
        "vision": {"image_size": 16, "patch_size": 4, "num_attention_heads": 1, "depth": 3},
        "vq": {"channel_multiplier": [1, 1, 1], "num_embeddings": 64, "num_hidden_layers": 3}, "tied": True,
    },
}  # fmt: skip


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with Janus' special tokens, which begins every text as DeepSeek's does."""
    special = [BOS, EOS, PAD, *IMAGE_TOKENS.values(), *ROLES]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(TEXTS, trainer)
    backend.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=BOS, eos_token=EOS, pad_token=PAD, padding_side="left",
        model_specific_special_tokens=IMAGE_TOKENS,
    )  # fmt: skip


def tiny_janus(variant: str = "plain", seed: int = 0) -> JanusForConditionalGeneration:
    """Random weights, those of generation far enough apart that codes are no matter of rounding."""
    torch.manual_seed(seed)
    chosen, tokenizer = VARIANTS[variant], tiny_tokenizer()
    vision = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "projection_dim": 32}
    vision |= {"mlp_ratio": 2.0, **chosen["vision"]}
    side = vision["image_size"] // vision["patch_size"]
    text = {"vocab_size": 352, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    text |= {"max_position_embeddings": 512, "initializer_range": 0.2, "tie_word_embeddings": chosen["tied"]}
    text |= {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    vq = {"embed_dim": 8, "num_embeddings": 40, "latent_channels": 32, "base_channels": 32, "num_res_blocks": 1}
    vq |= {"projection_dim": 32, "image_token_embed_dim": 32, **chosen["vq"]}
    config = JanusConfig(
        text_config={"model_type": "llama", **text, **chosen["text"]},
        vision_config={**vision, "num_image_tokens": side * side},
        vq_config=vq,
        image_token_id=tokenizer.convert_tokens_to_ids("<image_placeholder>"),
        tie_word_embeddings=chosen["tied"],
    )
    model = JanusForConditionalGeneration(config).eval()
    for part in (model.model.generation_head, model.model.generation_aligner):
        for parameter in part.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    torch.nn.init.normal_(model.model.generation_embeddings.weight)
    torch.nn.init.normal_(model.model.vqmodel.quantize.embedding.weight)
    generation = model.generation_config
    generation.pad_token_id, generation.bos_token_id = tokenizer.pad_token_id, tokenizer.bos_token_id
    generation.eos_token_id = tokenizer.eos_token_id
    generation.generation_kwargs = {"boi_token_id": tokenizer.convert_tokens_to_ids("<begin_of_image>")}
    return model


def tiny_processor(model: JanusForConditionalGeneration) -> JanusProcessor:
    vision = model.config.vision_config
    images = JanusImageProcessorPil(
        size={"height": vision.image_size, "width": vision.image_size}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    return JanusProcessor(
        images, tiny_tokenizer(), chat_template=transformers_template("janus-pro"), use_default_system_prompt=True,
        num_image_tokens=vision.num_image_tokens,
    )  # fmt: skip


def save_transformers(folder: Path, variant: str = "plain", dtype: torch.dtype = torch.float32, **kwargs) -> Path:
    """A folder as `deepseek-community/Janus-Pro-1B` is one; returns it."""
    model = tiny_janus(variant)
    model.to(dtype).save_pretrained(folder, **kwargs)
    tiny_processor(model).save_pretrained(folder)
    return folder
