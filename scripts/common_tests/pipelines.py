"""diffusers' PipelineTesterMixin, against `HybridGenPipeline` by either path that draws. See ../run_common_tests.py.

diffusers has two of that name: the older in `test_pipelines_common`, and since 0.40 another in `testing_utils`.
"""

import unittest

import torch
from diffusers import AutoencoderKL
from tests.pipelines.pipeline_params import TEXT_TO_IMAGE_BATCH_PARAMS
from tests.pipelines.test_pipelines_common import PipelineTesterMixin
from tests.pipelines.testing_utils import BasePipelineTesterConfig
from tests.pipelines.testing_utils import PipelineTesterMixin as NewPipelineTesterMixin
from transformers.models.janus import JanusVQVAE, JanusVQVAEConfig

from hybridgen import HybridGenConfig, HybridGenForConditionalGeneration, HybridGenPipeline, HybridGenProcessor
from hybridgen.processing_hybridgen import build_tokenizer, image_token_ids

TEXTS = ["A painting of a squirrel eating a burger", "a red circle", "very long"]


def components() -> dict:
    """A tiny model of both paths: 16x16 pixels as 8x8 latents of a VAE, or as 4x4 codes."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer(TEXTS, 400)
    text = {
        "model_type": "qwen3", "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
        "max_position_embeddings": 1024,
    }  # fmt: skip
    config = HybridGenConfig(
        text_config=text,
        diffusion_config={"in_channels": 4, "patch_size": 2, "sample_size": 8, "frequency_embedding_size": 32},
        vq_config={"num_embeddings": 50, "embed_dim": 8, "sample_size": 4},
        **image_token_ids(tokenizer) | {"image_token_id": None},
    )
    model = HybridGenForConditionalGeneration(config).eval()
    for parameter in model.model.final_layer.parameters():  # otherwise it starts at zero
        torch.nn.init.normal_(parameter, std=0.1)
    vae = AutoencoderKL(
        block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    ).eval()  # fmt: skip
    vq = JanusVQVAEConfig(
        embed_dim=8, num_embeddings=50, latent_channels=32, base_channels=32, channel_multiplier=[1, 1, 1],
        num_res_blocks=1, num_patches=4,
    )  # fmt: skip
    vq_model = JanusVQVAE(vq).eval()
    processor = HybridGenProcessor.for_config(config, tokenizer, vae_factor=2, vq_factor=4)
    scheduler = HybridGenPipeline(model, processor).scheduler
    return {"model": model, "processor": processor, "scheduler": scheduler, "vae": vae, "vq_model": vq_model}


class Diffusion(PipelineTesterMixin, unittest.TestCase):
    pipeline_class = HybridGenPipeline
    # the common set without the embeddings of a text encoder: the backbone reads the prompt itself
    params = frozenset({"prompt", "height", "width", "guidance_scale", "negative_prompt"})
    batch_params = TEXT_TO_IMAGE_BATCH_PARAMS
    path = "diffusion"

    def get_dummy_components(self):
        return components()

    def get_dummy_inputs(self, device, seed=0):
        return {
            "prompt": "A painting of a squirrel eating a burger",
            "generator": torch.Generator(device).manual_seed(seed),
            "num_inference_steps": 2,
            "guidance_scale": 6.0,
            "output_type": "np",
            "path": self.path,
        }


class VQ(Diffusion):
    path = "vq"


class Pixels(Diffusion):
    """Without any optional component: diffusion on pixels."""

    def get_dummy_components(self):
        tiny = components()
        config = tiny["model"].config.to_dict()
        config |= {"vq_config": None, "diffusion_config": {**config["diffusion_config"], "in_channels": 3}}
        torch.manual_seed(0)
        model = HybridGenForConditionalGeneration(HybridGenConfig(**config)).eval()
        processor = HybridGenProcessor.for_config(model.config, tiny["processor"].tokenizer)
        return tiny | {"model": model, "processor": processor, "vae": None, "vq_model": None}


class TestDiffusion(BasePipelineTesterConfig, NewPipelineTesterMixin):
    pipeline_class = HybridGenPipeline
    required_input_params_in_call_signature = Diffusion.params
    batch_input_params = TEXT_TO_IMAGE_BATCH_PARAMS
    output_shape = (3, 16, 16)
    path = "diffusion"
    get_dummy_components = Diffusion.get_dummy_components

    def get_dummy_inputs(self):
        inputs = {"prompt": TEXTS[0], "generator": self.get_generator(0), "num_inference_steps": 2}
        return {**inputs, "guidance_scale": 6.0, "output_type": "pt", "path": self.path}


class TestVQ(TestDiffusion):
    path = "vq"


class TestPixels(TestDiffusion):
    output_shape = (3, 8, 8)
    get_dummy_components = Pixels.get_dummy_components
