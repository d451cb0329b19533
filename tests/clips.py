"""A CLIP of random weights for tests. Not a test itself."""

from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

from hybridgen.tokenization_hybridgen import build_tokenizer


def save_clip(folder: Path) -> Path:
    """It with a tokenizer and a processor, as transformers saves it; it reads 8 tokens of a caption."""
    layers = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    tokenizer = build_tokenizer(["a red square on a blue ground"] * 4, 300)
    text = {
        **layers,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 8,
        "eos_token_id": tokenizer.eos_token_id,
    }
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config=text, vision_config={**layers, "image_size": 16, "patch_size": 8}, projection_dim=12
    )
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder
