"""Janus in and out: DeepSeek's checkpoints and transformers' <-> ours (Janus-1.3B, Janus-Pro-1B and -7B).

`load_janus` makes a pipeline of a folder in either layout, `convert` writes any of the three layouts from any. Weights
go through `weights`, their names through `names`, sizes through `configs`, tokenizer and prompts through `prompts`.
The fact a newcomer gets wrong: a config does not say whether text embeddings and head are tied. transformers' Janus
says yes by default and DeepSeek's no, so the weights decide: tied, unless a head that differs is there.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import JanusConfig, JanusVQVAE, PreTrainedTokenizerFast
from transformers.models.janus.configuration_janus import JanusVQVAEConfig

from hybridgen.bridges.configs import config_from_official, expected_shapes, hybrid_config, janus_config
from hybridgen.bridges.names import VQ_PREFIX, from_official, is_dropped
from hybridgen.bridges.prompts import (
    begins_texts,
    chat_template,
    find_style,
    open_image_processor,
    open_tokenizer,
    template_of,
)
from hybridgen.bridges.weights import Stored, common_dtype, open_weights, read_json
from hybridgen.checkpoints import INDEX, PIPELINE, check_checkpoint
from hybridgen.codecs import vq_factor
from hybridgen.configuration_hybridgen import HybridGenConfig
from hybridgen.image_processing_hybridgen import HybridGenImageProcessor
from hybridgen.modeling_hybridgen import HybridGenForConditionalGeneration
from hybridgen.pipeline_hybridgen import HybridGenPipeline
from hybridgen.processing_hybridgen import HybridGenProcessor
from hybridgen.tokenization_hybridgen import add_image_tokens, image_token_ids

LAYOUTS = ("hybridgen", "janus-hf", "janus-official")
_DIFFUSION = ("model.patch_embed.", "model.timestep_embedder.", "model.final_layer.")  # no Janus has this path
HEAD, EMBEDDINGS = "lm_head.weight", "model.language_model.embed_tokens.weight"


@dataclass
class Janus:
    """A Janus checkpoint of any layout, described in transformers' terms. No weight is in memory.

    Args:
        layout: where it came from.
        tensors: by transformers' names.
        dropped: the source's own names of what is left behind, and why it may be.
        style, style_told_by: of the prompts, and what tells it.
    """

    folder: Path
    layout: str
    config: JanusConfig
    tensors: dict[str, Stored]
    dropped: list[str]
    tokenizer: PreTrainedTokenizerFast
    image_processor: HybridGenImageProcessor
    style: str
    style_told_by: str

    @property
    def dtype(self) -> torch.dtype:
        """The type that the model is in; single tensors may differ."""
        return common_dtype(self.tensors.values())


# ------------------------------------------------------------------------------------------------------ reading


def find_layout(folder: Path) -> str:
    """Which layout a folder has. Raises ValueError when it holds no Janus."""
    if not folder.is_dir():
        raise ValueError(f"{folder} does not exist; give the folder of a checkpoint")
    if (folder / INDEX).is_file():
        kind = read_json(folder / INDEX).get("_class_name")
        if kind != PIPELINE:
            raise ValueError(f"{folder} holds a {kind}, which is neither a Janus nor a checkpoint of hybridgen")
        return "hybridgen"
    config = read_json(folder / "config.json")
    if config.get("model_type") == "janus":
        return "janus-hf"
    if config.get("model_type") == "multi_modality" and "gen_head_config" in config and "language_config" in config:
        return "janus-official"
    kind = ", ".join(config.get("architectures") or []) or config.get("model_type") or "model of an unknown kind"
    raise ValueError(
        f"{folder} holds a {kind}, not a Janus; this converts Janus-1.3B and Janus-Pro of deepseek-ai or "
        "deepseek-community, and checkpoints of hybridgen"
    )


def open_janus(folder: str | Path, style: str | None = None) -> Janus:
    """Look over a checkpoint of any layout, without reading its weights.

    Args:
        style: of the prompts, `janus` or `janus-pro`; None = found out.

    Raises:
        ValueError: in one sentence, what the folder is or lacks. Weights are compared in `report`.
    """
    folder = Path(folder)
    layout = find_layout(folder)
    if layout == "hybridgen":
        return _open_ours(folder, style)
    tensors = open_weights(folder)
    dropped = [name for name in tensors if is_dropped(name)]
    tensors = {name: tensor for name, tensor in tensors.items() if name not in dropped}
    tokenizer = open_tokenizer(folder)
    with _config_in_one_sentence(folder / "config.json"):
        settings = read_json(folder / "config.json")
        if layout == "janus-hf":
            config = JanusConfig.from_dict(settings)
        else:
            tensors = from_official(tensors)
            config = config_from_official(settings, tensors)
            for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
                setattr(config.text_config, name, getattr(tokenizer, name))
            config.image_token_id = tokenizer.convert_tokens_to_ids(tokenizer.image_token)
    settle_tie(config, tensors, dropped)
    images = open_image_processor(folder, config.vision_config.image_size)
    told = (style, "it was asked for") if style else find_style(folder, template_of(folder))
    return Janus(folder, layout, config, tensors, dropped, tokenizer, images, *told)


def _open_ours(folder: Path, style: str | None) -> Janus:
    check_checkpoint(folder)
    with _config_in_one_sentence(folder / "model" / "config.json"):
        hybrid = HybridGenConfig.from_dict(read_json(folder / "model" / "config.json"))
        vq_file = folder / "vq_model" / "config.json"
        vq = JanusVQVAEConfig.from_dict(read_json(vq_file)) if _says_janus(vq_file) else None
        config = janus_config(hybrid, vq)
    tensors = open_weights(folder / "model")
    dropped = [name for name in tensors if name.startswith(_DIFFUSION)]
    tensors = {name: tensor for name, tensor in tensors.items() if name not in dropped}
    tensors |= {f"{VQ_PREFIX}{name}": tensor for name, tensor in open_weights(folder / "vq_model").items()}
    processor = folder / "processor"
    images = open_image_processor(processor, config.vision_config.image_size)
    told = (style, "it was asked for") if style else find_style(folder, template_of(processor))
    return Janus(folder, "hybridgen", config, tensors, dropped, open_tokenizer(processor), images, *told)


def _says_janus(file: Path) -> bool:
    return file.is_file() and read_json(file).get("model_type") == JanusVQVAEConfig.model_type


@contextmanager
def _config_in_one_sentence(file: Path) -> Iterator[None]:
    """What a config class says of values it does not take becomes a ValueError that names the file."""
    try:
        yield
    except (ValueError, TypeError, KeyError, StrictDataclassError) as error:
        raise ValueError(f"{file} does not describe a Janus: {' '.join(str(error).split())}") from error


def settle_tie(config: JanusConfig, tensors: dict[str, Stored], dropped: list[str]) -> None:
    """Let the weights say whether the head is the embeddings, and leave it out where it is."""
    if HEAD not in tensors or not config.tie_word_embeddings:
        return  # no head: tied if the config says so, and missing if not
    if EMBEDDINGS in tensors and torch.equal(tensors[HEAD].read(), tensors[EMBEDDINGS].read()):
        dropped.append(HEAD)
        tensors.pop(HEAD)
    else:
        config.tie_word_embeddings = False


# ----------------------------------------------------------------------------------------------------- a pipeline


def load_janus(folder: str | Path, style: str | None = None, dtype: torch.dtype | None = None) -> HybridGenPipeline:
    """The pipeline of a Janus checkpoint in DeepSeek's layout or transformers': model, processor with the prompts of
    its generation, VQ tokenizer.

    Args:
        style: of the prompts, `janus` (1.3B) or `janus-pro`; None = found out (`prompts.find_style`).
        dtype: of the weights; None = as on disk.

    Raises:
        ValueError: in one sentence, what the folder is or lacks.
    """
    janus = open_janus(folder, style)
    check(janus)
    return build_pipeline(janus, dtype or janus.dtype)


def build_pipeline(janus: Janus, dtype: torch.dtype) -> HybridGenPipeline:
    """The pipeline of a checkpoint that was looked over and compared."""
    processor = build_processor(janus)
    vq_model = JanusVQVAE.from_pretrained(
        None,
        config=janus.config.vq_config,
        state_dict={
            name.removeprefix(VQ_PREFIX): tensor.read()
            for name, tensor in janus.tensors.items()
            if name.startswith(VQ_PREFIX)
        },
        dtype=dtype,
    )
    model = HybridGenForConditionalGeneration.from_pretrained(
        None,
        config=hybrid_config(janus.config, image_token_ids(processor.tokenizer)),
        state_dict={name: tensor.read() for name, tensor in janus.tensors.items() if not name.startswith(VQ_PREFIX)},
        dtype=dtype,
    )
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(model.generation_config, name, getattr(processor.tokenizer, name))
    return HybridGenPipeline(model, processor, vq_model=vq_model.eval().requires_grad_(False))


def build_processor(janus: Janus) -> HybridGenProcessor:
    """Our processor with Janus' tokens, prompts and image settings; tokens of ours are added to the tokenizer."""
    tokenizer, vision = janus.tokenizer, janus.config.vision_config
    begins = begins_texts(tokenizer)
    add_image_tokens(tokenizer)
    factor = vq_factor(janus.config.vq_config.to_dict())
    side = vision.image_size // vision.patch_size * factor
    return HybridGenProcessor(
        janus.image_processor,
        tokenizer,
        chat_template=chat_template(janus.style, begins),
        num_image_tokens=vision.num_image_tokens,
        vq_token_size=factor,
        default_size=(side, side),
    )


def check(janus: Janus) -> None:
    """Raises ValueError when the tensors are not those of the config."""
    expected = expected_shapes(janus.config)
    if missing := sorted(set(expected) - set(janus.tensors)):
        raise ValueError(f"{janus.folder} lacks {len(missing)} tensors, such as {missing[0]}; see --dry-run")
    if unexpected := sorted(set(janus.tensors) - set(expected)):
        raise ValueError(
            f"{janus.folder} has {len(unexpected)} tensors that no Janus has, such as {unexpected[0]}; see --dry-run"
        )
    for name, tensor in janus.tensors.items():
        if tensor.shape != expected[name]:
            raise ValueError(
                f"{janus.folder} has {name} of shape {tensor.shape}, but its config makes it {expected[name]}"
            )
