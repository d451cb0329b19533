"""A folder of LLaVA -> a pipeline (`load_llava`), and the writers of both layouts.

A conversion does not go through a model: tensors go from file to file one shard at a time, each in its own dtype, so
that what comes back is what was there, bit for bit.
"""

import copy
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import LlavaProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from hybridgen.bridges.folders import write_hybridgen
from hybridgen.bridges.llava.checkpoint import LlavaCheckpoint, open_llava
from hybridgen.bridges.llava.configs import build, expected_shapes
from hybridgen.bridges.llava.prompts import image_token, own_template
from hybridgen.bridges.llava.report import check_weights
from hybridgen.bridges.llava.tensor_names import to_transformers
from hybridgen.bridges.weights import save_weights
from hybridgen.configuration_understanding import prefix_tokens
from hybridgen.modeling_hybridgen import HybridGenForConditionalGeneration
from hybridgen.pipeline_hybridgen import HybridGenPipeline
from hybridgen.processing_hybridgen import HybridGenProcessor


def load_llava(folder: str | Path, dtype: torch.dtype | None = None) -> HybridGenPipeline:
    """The pipeline of a LLaVA checkpoint of either layout, which answers questions about pictures.

    Args:
        dtype: of all weights; None = the one that the config says. `convert` keeps each tensor's own.

    Raises:
        ValueError: in one sentence, what the folder is or lacks.
    """
    opened = open_llava(folder)
    check_weights(opened)
    weights = {name: tensor.read() for name, tensor in opened.tensors.items()}
    model = HybridGenForConditionalGeneration.from_pretrained(
        None, config=copy.deepcopy(opened.hybrid), state_dict=weights, dtype=dtype or opened.said_dtype
    )
    model.generation_config = copy.deepcopy(opened.generation_config)
    return HybridGenPipeline(model, build_processor(opened))


def build_processor(opened: LlavaCheckpoint) -> HybridGenProcessor:
    """Our processor with LLaVA's token of images, which nothing frames; its tokenizer stays as it is."""
    tokenizer, name = copy.deepcopy(opened.tokenizer), image_token(opened.tokenizer)
    return HybridGenProcessor(
        opened.images,
        tokenizer,
        chat_template=opened.template,
        num_image_tokens=opened.hybrid.image_tokens,
        begin_image_token=None,
        end_image_token=None,
        image_token=name,
        diffusion_token=name,
        vq_token=name,
    )


# --------------------------------------------------------------------------------------------------- conversions


def check_conversion(opened: LlavaCheckpoint, to: str) -> None:
    """Raises ValueError when a checkpoint cannot be written in that layout."""
    check_weights(opened)
    build_processor(opened)


def _write_hybridgen(opened: LlavaCheckpoint, folder: Path, max_shard_size: int | str) -> None:
    model = build(opened.hybrid)
    model.generation_config = copy.deepcopy(opened.generation_config)
    pipeline = HybridGenPipeline(model, build_processor(opened))
    write_hybridgen(pipeline, folder, {"model": opened.tensors}, {"model": opened.said_dtype}, max_shard_size)


def _write_transformers(opened: LlavaCheckpoint, folder: Path, max_shard_size: int | str) -> None:
    """As `LlavaForConditionalGeneration` and `LlavaProcessor` save themselves."""
    config, images, side = copy.deepcopy(opened.config), opened.images, opened.images.image_size
    config.dtype, config.architectures = opened.said_dtype, ["LlavaForConditionalGeneration"]
    config.save_pretrained(folder)
    opened.generation_config.save_pretrained(folder)
    processor = LlavaProcessor(
        CLIPImageProcessorPil(
            size={"shortest_edge": side},
            crop_size={"height": side, "width": side},
            image_mean=images.image_mean,
            image_std=images.image_std,
        ),
        copy.deepcopy(opened.tokenizer),
        patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        chat_template=own_template(opened.template, opened.tokenizer),
        image_token=image_token(opened.tokenizer),
        num_additional_image_tokens=prefix_tokens(config.vision_config),
    )
    processor.save_pretrained(folder)
    names = to_transformers(list(expected_shapes(opened.hybrid)))
    save_weights(folder, {theirs: opened.tensors[ours] for ours, theirs in names.items()}, max_shard_size)


WRITERS: dict[str, Callable[[LlavaCheckpoint, Path, int | str], None]] = {
    "hybridgen": _write_hybridgen,
    "llava-hf": _write_transformers,
}
