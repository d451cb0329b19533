"""Tiny pipelines with random weights and all their parts, that several tests share. Not a test itself."""

import torch
from diffusers import AutoencoderKL
from transformers.models.janus import JanusVQVAE, JanusVQVAEConfig

from hybridgen.pipeline_hybridgen import HybridGenPipeline
from hybridgen.processing_hybridgen import HybridGenProcessor, build_tokenizer, image_token_ids
from tests.models import text_config, tiny_config, tiny_model

WORDS = ["a red circle on a blue square", "what color is the circle? red", "is there a square? yes, no", "draw "]
SIDE = 16


def tiny_vq_model() -> JanusVQVAE:
    """50 codes, one for 4x4 pixels."""
    torch.manual_seed(1)
    config = JanusVQVAEConfig(
        embed_dim=8, num_embeddings=50, latent_channels=32, base_channels=32, channel_multiplier=[1, 1, 1],
        num_res_blocks=1, num_patches=4,
    )  # fmt: skip
    model = JanusVQVAE(config).eval()
    torch.nn.init.normal_(model.quantize.embedding.weight)
    return model


def tiny_vae() -> AutoencoderKL:
    """Latents of 4 channels, one for 2x2 pixels."""
    torch.manual_seed(2)
    return AutoencoderKL(
        block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4, scaling_factor=0.5, shift_factor=0.25,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    ).eval()  # fmt: skip


def tiny_pipeline(vae: AutoencoderKL | None = None, backbone: str = "qwen3", **changes) -> HybridGenPipeline:
    """16x16 pictures: by diffusion 4x4 pixels a token (2x2 latents with a VAE), by vq 16 codes; 4 tokens to
    understand."""
    tokenizer = build_tokenizer(WORDS, 320)
    text = text_config(
        backbone,
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    diffusion = {"patch_size": 4, "sample_size": 16, "frequency_embedding_size": 32}
    if vae is not None:
        diffusion |= {"patch_size": 2, "sample_size": 8, "in_channels": 4}
    settings = {"text_config": text, "diffusion_config": diffusion, **image_token_ids(tokenizer), **changes}
    config = tiny_config(backbone, **settings)
    model = tiny_model(config)
    if (
        config.vq_config is not None and config.vq_config.code_tokens is None
    ):  # code logits far enough apart that codes are no matter of rounding
        for parameter in model.model.generation_head.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    vq_model = tiny_vq_model() if config.vq_config is not None else None
    processor = HybridGenProcessor.for_config(
        config, tokenizer, vae_factor=1 if vae is None else 2, vq_factor=None if vq_model is None else 4
    )
    pipeline = HybridGenPipeline(model, processor, vae=vae, vq_model=vq_model)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
