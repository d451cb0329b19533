"""Nodes of ComfyUI: load a checkpoint, draw by either path, ask about pictures.

ComfyUI calls a node's FUNCTION with its inputs by name, in `torch.inference_mode()`, and keeps what it returned for as
long as the inputs and IS_CHANGED stay the same. Its pictures (IMAGE) are float tensors [B, H, W, C] in 0 to 1.
"""

import torch
from PIL import Image
from torch import Tensor

from hybridgen.bridges.adapters import open_pipeline
from hybridgen.checkpoints.hashes import weights_state
from hybridgen.core.devices import best_device
from hybridgen.pipeline_hybridgen import HybridGenPipeline

OFFLOADS = {
    "none": lambda pipe: pipe.to(best_device()),
    "model": lambda pipe: pipe.enable_model_cpu_offload(),
    "layers": lambda pipe: pipe.enable_sequential_cpu_offload(),
}
LARGEST_SEED = (1 << 64) - 1


class LoadHybridGen:
    """A checkpoint, or an adapter with the checkpoint that it was trained on."""

    CATEGORY, FUNCTION = "hybridgen", "load"
    RETURN_TYPES, RETURN_NAMES = ("HYBRIDGEN",), ("pipeline",)

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {
            "required": {
                "checkpoint": ("STRING", {"default": "hybridgen/small", "tooltip": "a folder, or hybridgen/small"}),
                "dtype": (["float32", "bfloat16"], {"tooltip": "bfloat16 takes half the memory"}),
                "offload": ([*OFFLOADS], {"tooltip": "what waits on the CPU: nothing, whole components, or layers"}),
            }
        }

    @classmethod
    def IS_CHANGED(cls, checkpoint: str, dtype: str, offload: str) -> str:
        """Another value where files of the folder were written since."""
        return str(weights_state(checkpoint))

    def load(self, checkpoint: str, dtype: str, offload: str) -> tuple[HybridGenPipeline]:
        with torch.inference_mode(False):  # weights of inference mode could be used there alone
            pipe = open_pipeline(checkpoint).to(dtype=getattr(torch, dtype))
            OFFLOADS[offload](pipe)
        pipe.set_progress_bar_config(disable=True)
        return (pipe,)


class DrawHybridGen:
    """Pictures from a prompt; picture i of a batch is that of seed + i alone."""

    CATEGORY, FUNCTION = "hybridgen", "draw"
    RETURN_TYPES, RETURN_NAMES = ("IMAGE",), ("images",)

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        own = "0 = as the checkpoint has it"
        return {
            "required": {
                "pipeline": ("HYBRIDGEN",),
                "prompt": ("STRING", {"multiline": True, "default": ""}),
                "path": (["diffusion", "vq"], {"tooltip": "denoising, or code by code"}),
                "seed": ("INT", {"default": 0, "min": 0, "max": LARGEST_SEED, "control_after_generate": True}),
                "steps": ("INT", {"default": 30, "min": 1, "max": 1000, "tooltip": "of diffusion"}),
                "guidance": ("FLOAT", {"default": 3.0, "min": 0.0, "max": 100.0, "step": 0.1}),
                "width": ("INT", {"default": 0, "min": 0, "max": 4096, "tooltip": own}),
                "height": ("INT", {"default": 0, "min": 0, "max": 4096, "tooltip": own}),
                "batch_size": ("INT", {"default": 1, "min": 1, "max": 64}),
            },
            "optional": {
                "negative": ("STRING", {"multiline": True, "default": "", "tooltip": "what guidance leads away from"}),
                "image": ("IMAGE", {"tooltip": "a picture before the prompt, for models that were trained so"}),
                "temperature": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 10.0, "step": 0.05, "tooltip": "of vq"}),
            },
        }

    def draw(
        self, pipeline: HybridGenPipeline, prompt: str, path: str, seed: int, steps: int, guidance: float, width: int,
        height: int, batch_size: int, negative: str = "", image: Tensor | None = None, temperature: float = 1.0,
    ) -> tuple[Tensor]:  # fmt: skip
        before = {} if image is None else {"image": one_picture(image)}
        drawn = pipeline(
            prompt, path=path, seed=[(seed + number) % (LARGEST_SEED + 1) for number in range(batch_size)],
            num_inference_steps=steps, guidance_scale=guidance, width=width or None, height=height or None,
            num_images_per_prompt=batch_size, negative_prompt=negative or None, temperature=temperature,
            output_type="np", callback_on_step_end=shows_progress(), **before,
        )  # fmt: skip
        return (torch.from_numpy(drawn.images).float(),)


class AskHybridGen:
    """Answers to a question about pictures: one for each of a batch."""

    CATEGORY, FUNCTION = "hybridgen", "ask"
    RETURN_TYPES, RETURN_NAMES, OUTPUT_IS_LIST = ("STRING",), ("answers",), (True,)

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        likeliest = "0 = the likeliest words, whatever the seed"
        return {
            "required": {
                "pipeline": ("HYBRIDGEN",),
                "images": ("IMAGE",),
                "question": ("STRING", {"multiline": True, "default": ""}),
                "path": (["understanding", "diffusion", "vq"], {"tooltip": "by which the pictures are read"}),
                "max_new_tokens": ("INT", {"default": 128, "min": 1, "max": 8192}),
                "temperature": ("FLOAT", {"default": 0.0, "min": 0.0, "max": 10.0, "step": 0.05, "tooltip": likeliest}),
                "seed": ("INT", {"default": 0, "min": 0, "max": LARGEST_SEED, "control_after_generate": True}),
            }
        }

    def ask(
        self, pipeline: HybridGenPipeline, images: Tensor, question: str, path: str, max_new_tokens: int,
        temperature: float, seed: int,
    ) -> tuple[list[str]]:  # fmt: skip
        seen = pictures(images)
        seeds = [(seed + number) % (LARGEST_SEED + 1) for number in range(len(seen))]
        answers = pipeline.answer(
            seen, question, path=path, max_new_tokens=max_new_tokens, temperature=temperature, seed=seeds
        )
        return ([str(answer) for answer in answers],)


def pictures(images: Tensor) -> list[Image.Image]:
    """IMAGE (B, H, W, C) in 0 to 1, of 1, 3 or 4 channels -> pictures."""
    levels = (images.detach().cpu().float().clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    return [Image.fromarray(one[..., 0] if one.shape[-1] == 1 else one) for one in levels]


def one_picture(images: Tensor) -> Image.Image:
    """Raises ValueError where there are several."""
    if len(images) != 1:
        raise ValueError(f"image has {len(images)} pictures; a prompt takes one before it, so give a batch of one")
    return pictures(images)[0]


def shows_progress():
    """What the pipeline calls after each step: ComfyUI's bar advances, and its cancel button ends the drawing. None
    where there is no ComfyUI."""
    try:
        from comfy.model_management import throw_exception_if_processing_interrupted
        from comfy.utils import ProgressBar
    except ImportError:
        return None
    bar = None

    def after_step(pipe: HybridGenPipeline, step: int, timestep, given: dict) -> dict:
        nonlocal bar
        throw_exception_if_processing_interrupted()
        if bar is None:
            bar = ProgressBar(pipe.num_timesteps)
        bar.update_absolute(step + 1, pipe.num_timesteps)
        return given

    return after_step


NODE_CLASS_MAPPINGS = {"HybridGenLoad": LoadHybridGen, "HybridGenDraw": DrawHybridGen, "HybridGenAsk": AskHybridGen}
NODE_DISPLAY_NAME_MAPPINGS = {
    "HybridGenLoad": "Load hybridgen checkpoint",
    "HybridGenDraw": "Draw (hybridgen)",
    "HybridGenAsk": "Ask about pictures (hybridgen)",
}
