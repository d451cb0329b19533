"""A folder of Chameleon -> a pipeline (`load_chameleon`), and the writers of both layouts.

A conversion does not go through a model: tensors go from file to file one shard at a time, each in its own dtype, so
that what comes back is what was there, bit for bit.
"""

import copy
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import ChameleonProcessor
from transformers.models.chameleon.image_processing_pil_chameleon import ChameleonImageProcessorPil

from hybridgen.bridges.chameleon.checkpoint import NO_PATH, ChameleonCheckpoint, open_chameleon
from hybridgen.bridges.chameleon.configs import expected_shapes, hybrid_config, vq_config
from hybridgen.bridges.chameleon.prompts import chat_template, token_names
from hybridgen.bridges.chameleon.report import SAMPLING, check_weights
from hybridgen.bridges.chameleon.tensor_names import split
from hybridgen.bridges.folders import write_hybridgen
from hybridgen.bridges.weights import StoredTensor, save_weights
from hybridgen.codecs.chameleon_vq import ChameleonVQ
from hybridgen.codecs.frozen import vq_downsample_factor
from hybridgen.configuration_hybridgen import HybridGenConfig
from hybridgen.image_processing_hybridgen import FRAMINGS, HybridGenImageProcessor
from hybridgen.modeling_hybridgen import HybridGenForConditionalGeneration
from hybridgen.pipeline_hybridgen import HybridGenPipeline
from hybridgen.processing_hybridgen import HybridGenProcessor


def load_chameleon(
    folder: str | Path, vq_decoder: str | Path | None = None, dtype: torch.dtype | None = None
) -> HybridGenPipeline:
    """The pipeline of a Chameleon checkpoint of either layout: model, processor, VQ tokenizer.

    Args:
        vq_decoder: a file with the weights of the VQ tokenizer's decoder, where the folder has none (`open_chameleon`).
        dtype: of all weights; None = the one that most have on disk. `convert` keeps each tensor's own.

    Raises:
        ValueError: in one sentence, what the folder is or lacks.
    """
    opened = open_chameleon(folder, vq_decoder)
    check_weights(opened)
    dtype = dtype or opened.said_dtype()

    def load(model_class, config, tensors: dict[str, StoredTensor]):
        weights = {name: tensor.read() for name, tensor in tensors.items()}
        return model_class.from_pretrained(None, config=config, state_dict=weights, dtype=dtype)

    model_tensors, vq_tensors = _split(opened)
    model = load(HybridGenForConditionalGeneration, hybrid_config_of(opened), model_tensors)
    vq_model = load(ChameleonVQ, vq_config(opened.config, opened.has_decoder), vq_tensors)
    model.generation_config = copy.deepcopy(opened.generation_config)
    return HybridGenPipeline(
        model, build_processor(opened), vq_model=vq_model.eval().requires_grad_(False), sampling_defaults=SAMPLING
    )


def hybrid_config_of(opened: ChameleonCheckpoint) -> HybridGenConfig:
    """Our config of a checkpoint. Raises ValueError for sizes that do not fit one another."""
    names = {"image": "vq_token_id", "begin": "begin_image_token_id", "end": "end_image_token_id"}
    ids = {names[kind]: token_id for kind, (_, token_id) in opened.token_ids.items() if kind in names}
    return hybrid_config(opened.config, ids, opened.side)


def build_processor(opened: ChameleonCheckpoint) -> HybridGenProcessor:
    """Our processor with Chameleon's tokens; its tokenizer stays as it is, as its own token stands for pictures."""
    tokenizer, names = copy.deepcopy(opened.tokenizer), token_names(opened.tokenizer)
    return HybridGenProcessor(
        HybridGenImageProcessor(opened.side, framing=opened.framing),
        tokenizer,
        chat_template=opened.template or chat_template(tokenizer),
        vq_token_size=vq_downsample_factor(opened.config.vq_config.to_dict()),
        default_size=(opened.side, opened.side),
        begin_image_token=names["begin"],
        end_image_token=names["end"],
        image_token=names["image"],
        diffusion_token=names["image"],
        vq_token=names["image"],
    )


def _split(opened: ChameleonCheckpoint) -> tuple[dict[str, StoredTensor], dict[str, StoredTensor]]:
    return split(opened.tensors, len(opened.config.vq_config.channel_multiplier))


# --------------------------------------------------------------------------------------------------- conversions


def check_conversion(opened: ChameleonCheckpoint, to: str) -> None:
    """Raises ValueError when a checkpoint cannot be written in that layout."""
    if to == opened.layout == "hybridgen" and NO_PATH in opened.dropped.values():
        raise ValueError(f"{opened.folder} is in hybridgen's layout already, and no Chameleon; copy it as it is")
    check_weights(opened)
    hybrid_config_of(opened)
    build_processor(opened)


def _write_hybridgen(opened: ChameleonCheckpoint, folder: Path, max_shard_size: int | str) -> None:
    with torch.device("meta"):
        model = HybridGenForConditionalGeneration(hybrid_config_of(opened))
        vq_model = ChameleonVQ(vq_config(opened.config, opened.has_decoder))
    model.generation_config = copy.deepcopy(opened.generation_config)
    pipeline = HybridGenPipeline(model, build_processor(opened), vq_model=vq_model, sampling_defaults=SAMPLING)
    weights = dict(zip(("model", "vq_model"), _split(opened), strict=True))
    dtypes = {"model": opened.said_dtype(), "vq_model": opened.said_dtype("vq_config")}
    write_hybridgen(pipeline, folder, weights, dtypes, max_shard_size)


def _write_transformers(opened: ChameleonCheckpoint, folder: Path, max_shard_size: int | str) -> None:
    """As `ChameleonForConditionalGeneration` and `ChameleonProcessor` save themselves."""
    config, side = copy.deepcopy(opened.config), opened.side
    config.dtype, config.architectures = opened.said_dtype(), ["ChameleonForConditionalGeneration"]
    config.save_pretrained(folder)
    opened.generation_config.save_pretrained(folder)
    images = ChameleonImageProcessorPil(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}, **_rescaling(opened.framing)
    )
    tokenizer = copy.deepcopy(opened.tokenizer)
    if opened.template not in (None, chat_template(tokenizer)):
        tokenizer.chat_template = opened.template
    length = (side // vq_downsample_factor(config.vq_config.to_dict())) ** 2
    ChameleonProcessor(images, tokenizer, length, token_names(tokenizer)["image"]).save_pretrained(folder)
    shapes = expected_shapes(config, opened.has_decoder)
    save_weights(folder, {name: opened.tensors[name] for name in shapes}, max_shard_size)


def _rescaling(framing: str) -> dict:
    """The settings by which transformers' image processor makes values as we do."""
    resample, _, factor = FRAMINGS[framing]
    return {"resample": resample, "rescale_factor": 1 / 127.5 if factor is None else factor}


WRITERS: dict[str, Callable[[ChameleonCheckpoint, Path, int | str], None]] = {
    "hybridgen": _write_hybridgen,
    "chameleon-hf": _write_transformers,
}
