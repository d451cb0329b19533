"""A folder of Janus -> a pipeline (`load_janus`), and any of the three layouts -> any other (`convert`).

A conversion does not go through a model: tensors go from file to file one shard at a time, each in its own dtype, so
that what comes back is what was there, bit for bit.
"""

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from transformers import JanusProcessor, JanusVQVAE
from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil

from hybridgen.bridges.folders import begins_texts, write_hybridgen
from hybridgen.bridges.janus.checkpoint import GUIDANCE, NO_PATH, SAMPLING, JanusCheckpoint, open_janus
from hybridgen.bridges.janus.configs import config_to_official, expected_shapes, hybrid_config
from hybridgen.bridges.janus.prompts import chat_template, official_settings, transformers_template
from hybridgen.bridges.janus.report import check_weights
from hybridgen.bridges.janus.tensor_names import VQ_PREFIX, to_official
from hybridgen.bridges.layouts import SHARD_SIZE
from hybridgen.bridges.weight_names import EMBEDDINGS, HEAD
from hybridgen.bridges.weights import StoredTensor, save_weights
from hybridgen.checkpoints.loading import new_folder
from hybridgen.codecs.frozen import vq_downsample_factor
from hybridgen.core.files import write_json
from hybridgen.modeling_hybridgen import HybridGenForConditionalGeneration
from hybridgen.pipeline_hybridgen import HybridGenPipeline
from hybridgen.processing_hybridgen import HybridGenProcessor
from hybridgen.tokenization_hybridgen import add_image_tokens, image_token_ids

# ----------------------------------------------------------------------------------------------------- a pipeline


def load_janus(folder: str | Path, style: str | None = None, dtype: torch.dtype | None = None) -> HybridGenPipeline:
    """The pipeline of a Janus checkpoint of any layout: model, processor with the prompts of its generation, VQ
    tokenizer.

    Args:
        style: of the prompts, `janus` (1.3B) or `janus-pro`; None = found by `prompts.find_style`.
        dtype: of all weights; None = the one that most have on disk. `convert` keeps each tensor's own.

    Raises:
        ValueError: in one sentence, what the folder is or lacks.
    """
    janus = open_janus(folder, style)
    check_weights(janus)
    processor = build_processor(janus)
    config = hybrid_config(janus.config, image_token_ids(processor.tokenizer))
    model_tensors, vq_tensors = _split(janus.tensors)
    dtype = dtype or janus.dtype

    def load(model_class, config, tensors: dict[str, StoredTensor]):
        weights = {name: tensor.read() for name, tensor in tensors.items()}
        return model_class.from_pretrained(None, config=config, state_dict=weights, dtype=dtype)

    model = load(HybridGenForConditionalGeneration, config, model_tensors)
    vq_model = load(JanusVQVAE, janus.config.vq_config, vq_tensors).eval().requires_grad_(False)
    model.generation_config = copy.deepcopy(janus.generation_config)
    return HybridGenPipeline(model, processor, vq_model=vq_model, sampling_defaults=SAMPLING)


def build_processor(janus: JanusCheckpoint) -> HybridGenProcessor:
    """Our processor with Janus' tokens, prompts and image settings; the tokens that only hybridgen has are added."""
    tokenizer, vision = copy.deepcopy(janus.tokenizer), janus.config.vision_config
    template = chat_template(janus.style, begins_texts(tokenizer))
    add_image_tokens(tokenizer)
    names = {kind: name for kind, (name, _) in janus.token_ids.items()}
    factor = vq_downsample_factor(janus.config.vq_config.to_dict())
    side = vision.image_size // vision.patch_size * factor
    return HybridGenProcessor(
        janus.image_processor,
        tokenizer,
        chat_template=template,
        num_image_tokens=vision.num_image_tokens,
        vq_token_size=factor,
        default_size=(side, side),
        begin_image_token=names["begin"],
        end_image_token=names["end"],
        image_token=names["image"],
        unconditional="janus-official",
    )


def _split(tensors: dict[str, StoredTensor]) -> tuple[dict[str, StoredTensor], dict[str, StoredTensor]]:
    """The model's tensors, and those of its VQ tokenizer under their own names."""
    model = {name: tensor for name, tensor in tensors.items() if not name.startswith(VQ_PREFIX)}
    vq = {name.removeprefix(VQ_PREFIX): tensor for name, tensor in tensors.items() if name not in model}
    return model, vq


# --------------------------------------------------------------------------------------------------- conversions


def convert(
    source: str | Path,
    destination: str | Path,
    to: str = "hybridgen",
    style: str | None = None,
    max_shard_size: int | str = SHARD_SIZE,
) -> JanusCheckpoint:
    """Write a checkpoint of any layout in another.

    Args:
        destination: a folder that is not there yet, or empty. It appears when all is written.
        to: `hybridgen`, `janus-hf` or `janus-official`.
        style: of the prompts, `janus` (1.3B) or `janus-pro`; None = found by `prompts.find_style`.
        max_shard_size: of a file of weights, in bytes or as "5GB"; how the source was cut does not matter.

    Returns:
        the source's description; `report.lost` lists what the new layout cannot carry.

    Raises:
        ValueError: what is wrong, in one sentence; nothing is written then.
    """
    if to not in WRITERS:
        raise ValueError(f"there is no layout {to!r}; choose among {', '.join(WRITERS)}")
    with new_folder(destination) as unfinished:
        janus = open_janus(source, style)
        check_conversion(janus, to)
        WRITERS[to](janus, unfinished, max_shard_size)
    return janus


def check_conversion(janus: JanusCheckpoint, to: str) -> None:
    """Raises ValueError when a checkpoint cannot be written in that layout."""
    # a hybridgen checkpoint with a diffusion path: `open_janus` drops that path's weights, so a rewrite would lose them
    if to == janus.layout == "hybridgen" and NO_PATH in janus.dropped.values():
        raise ValueError(f"{janus.folder} is in hybridgen's layout already, and no Janus; copy it as it is")
    check_weights(janus)
    hybrid_config(janus.config, {})  # raises for sizes that do not fit one another
    if to == "janus-official":
        config_to_official(janus.config, janus.said_dtype())


def _write_hybridgen(janus: JanusCheckpoint, folder: Path, max_shard_size: int | str) -> None:
    """As `HybridGenPipeline.save_pretrained` writes it; the modules here are on the meta device, without weights."""
    processor = build_processor(janus)
    with torch.device("meta"):
        model = HybridGenForConditionalGeneration(hybrid_config(janus.config, image_token_ids(processor.tokenizer)))
        vq_model = JanusVQVAE(copy.deepcopy(janus.config.vq_config))
    model.generation_config = copy.deepcopy(janus.generation_config)
    pipeline = HybridGenPipeline(model, processor, vq_model=vq_model, sampling_defaults=SAMPLING)
    weights = dict(zip(("model", "vq_model"), _split(janus.tensors), strict=True))
    dtypes = {"model": janus.said_dtype(), "vq_model": janus.said_dtype("vq_config")}
    write_hybridgen(pipeline, folder, weights, dtypes, max_shard_size)


def _write_transformers(janus: JanusCheckpoint, folder: Path, max_shard_size: int | str) -> None:
    """As `JanusForConditionalGeneration` and `JanusProcessor` save themselves."""
    config, vision, images = copy.deepcopy(janus.config), janus.config.vision_config, janus.image_processor
    config.dtype, config.architectures = janus.said_dtype(), ["JanusForConditionalGeneration"]
    config.save_pretrained(folder)
    ids = {kind: token_id for kind, (_, token_id) in janus.token_ids.items()}
    generation = copy.deepcopy(janus.generation_config)
    generation.guidance_scale, generation.generation_kwargs = GUIDANCE, {"boi_token_id": ids["begin"]}
    generation.save_pretrained(folder)
    JanusProcessor(
        JanusImageProcessorPil(
            size={"height": images.image_size, "width": images.image_size},
            image_mean=images.image_mean,
            image_std=images.image_std,
            min_size=images.min_size,
        ),
        janus.tokenizer,
        chat_template=transformers_template(janus.style),
        use_default_system_prompt=True,
        num_image_tokens=vision.num_image_tokens,
    ).save_pretrained(folder)
    save_weights(folder, {name: janus.tensors[name] for name in expected_shapes(config)}, max_shard_size)


_write_json = partial(write_json, indent=2, sort_keys=True)


def _write_official(janus: JanusCheckpoint, folder: Path, max_shard_size: int | str) -> None:
    """As DeepSeek's `MultiModalityCausalLM` and `VLChatProcessor` read it. There a tied head is in the file, too."""
    tensors, vision = dict(janus.tensors), janus.config.vision_config
    if janus.config.tie_word_embeddings:
        embeddings = tensors[EMBEDDINGS]
        tensors[HEAD] = embeddings._replace(read=lambda: embeddings.read().clone())
    _write_json(folder / "config.json", config_to_official(janus.config, janus.said_dtype()))
    settings = official_settings(janus.style, janus.tokenizer, janus.image_processor, vision.num_image_tokens)
    for name, content in settings.items():
        _write_json(folder / name, content)
    janus.tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    save_weights(folder, to_official(tensors), max_shard_size)


WRITERS: dict[str, Callable[[JanusCheckpoint, Path, int | str], None]] = {
    "hybridgen": _write_hybridgen,
    "janus-hf": _write_transformers,
    "janus-official": _write_official,
}
