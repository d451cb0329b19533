"""A tiny pipeline for the dolls dataset: 32x32 pictures, a tokenizer that knows its words, random weights. Not a test
itself."""

import torch

from hybridgen.data.synthetic import dolls
from hybridgen.pipeline_hybridgen import HybridGenPipeline
from hybridgen.processing_hybridgen import HybridGenProcessor, build_tokenizer, image_token_ids
from tests.models import text_config, tiny_config, tiny_model
from tests.pipelines import tiny_vq_model

SIDE, PATCH, VQ_FACTOR = 32, 8, 4


def tiny_dolls_pipeline(seed: int = 0) -> HybridGenPipeline:
    """All paths: 16 patches of 8x8 pixels, 64 codes of 4x4, 4 tokens to understand; 0.4 M parameters, most the
    codec's."""
    source = dolls.Dolls("train", "draw", 0)
    tokenizer = build_tokenizer((dolls.caption(source.spec(i)) for i in range(300)), 400)
    text = text_config(
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        max_position_embeddings=512,
    )
    vision = {
        "model_type": "siglip_vision_model", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "image_size": SIDE, "patch_size": 16, "vision_use_head": False,
    }  # fmt: skip
    config = tiny_config(
        text_config=text,
        vision_config=vision,
        diffusion_config={"patch_size": PATCH, "sample_size": SIDE, "frequency_embedding_size": 32},
        vq_config={"num_embeddings": 50, "embed_dim": 8, "sample_size": SIDE // VQ_FACTOR},
        **image_token_ids(tokenizer),
    )
    processor = HybridGenProcessor.for_config(config, tokenizer, vq_factor=VQ_FACTOR)
    with torch.random.fork_rng():
        return HybridGenPipeline(tiny_model(config, seed), processor, vq_model=tiny_vq_model())
