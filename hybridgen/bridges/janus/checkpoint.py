"""A Janus checkpoint on disk, in any of three layouts: recognised, checked, and described in one way.

No weight is read, except to compare head and embeddings; `conversion` makes pipelines and other layouts of it. A config
does not reliably say whether text embeddings and head are tied: where nothing is written, transformers' Janus means yes
and DeepSeek's no. So the weights decide: tied, unless a head that differs is there.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import GenerationConfig, JanusConfig, PreTrainedTokenizerFast
from transformers.models.janus.configuration_janus import JanusVQVAEConfig

from hybridgen.bridges.folders import (
    LIBRARY_KEYS,
    config_of,
    friendly_config_errors,
    generation_of,
    generation_settings,
    kind_of,
    said_dtype,
    settle_tied_head,
    template_of,
)
from hybridgen.bridges.janus.configs import config_from_official, janus_config
from hybridgen.bridges.janus.prompts import find_style, open_image_processor, open_tokenizer
from hybridgen.bridges.janus.tensor_names import VQ_PREFIX, from_official, is_dropped
from hybridgen.bridges.weight_names import EMBEDDINGS, HEAD, is_of_diffusion
from hybridgen.bridges.weights import StoredTensor, common_dtype, open_weights
from hybridgen.checkpoints.loading import check_checkpoint
from hybridgen.configuration_hybridgen import HybridGenConfig
from hybridgen.core.files import read_json
from hybridgen.core.recognition import user_path
from hybridgen.image_processing_hybridgen import HybridGenImageProcessor

# why a tensor is left out
UNREAD, NO_PATH = "not read by any computation", "of a path that no Janus has"
GUIDANCE = 5  # Janus' default, which transformers reads from generation_config.json
SAMPLING = {"vq": {"guidance_scale": float(GUIDANCE)}}  # as our pipeline reads it from model_index.json
# keys of that file that each layout has in its own way, or that have no effect
LAYOUT_GENERATION_KEYS = ("guidance_scale", "generation_kwargs", *LIBRARY_KEYS)


@dataclass
class JanusCheckpoint:
    """A Janus checkpoint of any layout, described in transformers' terms. No weight is in memory.

    Args:
        layout: that of the folder.
        tensors: by transformers' names.
        dropped: tensors that are left out, by their names in the folder, and why.
        generation_config: settings of `generate` for texts, without guidance and Janus' own.
        style, style_found_by: of the prompts, and how it was found.
    """

    folder: Path
    layout: str
    config: JanusConfig
    tensors: dict[str, StoredTensor]
    dropped: dict[str, str]
    tokenizer: PreTrainedTokenizerFast
    image_processor: HybridGenImageProcessor
    generation_config: GenerationConfig
    style: str
    style_found_by: str

    @property
    def dtype(self) -> torch.dtype:
        """That of most numbers; single tensors may differ."""
        return common_dtype(self.tensors.values())

    def said_dtype(self, part: str | None = None) -> torch.dtype:
        """The dtype that the config says (of `vq_config`, or of the whole), by which libraries load a folder; where it
        says none, that of the whole or of most numbers. Single tensors may differ."""
        said = self.config.dtype if part is None else getattr(self.config, part).dtype
        if said is None:
            return self.dtype if part is None else self.said_dtype()
        return said_dtype(self.folder, said, self.dtype)

    @property
    def token_ids(self) -> dict[str, tuple[str, int]]:
        """The special tokens that Janus' code needs: kind -> (the token, its id)."""
        tokenizer = self.tokenizer
        names = {
            "pad": tokenizer.pad_token,
            "image": tokenizer.image_token,
            "begin": tokenizer.boi_token,
            "end": tokenizer.eoi_token,
        }
        return {kind: (name, tokenizer.convert_tokens_to_ids(name)) for kind, name in names.items()}


def find_layout(folder: Path) -> str:
    """Which layout a folder has. Raises ValueError when it holds no Janus."""
    if (config := config_of(folder)) is None:
        return "hybridgen"
    if config.get("model_type") == "janus":
        return "janus-hf"
    if config.get("model_type") == "multi_modality" and "gen_head_config" in config and "language_config" in config:
        return "janus-official"
    raise ValueError(
        f"{folder} holds a {kind_of(config)}, not a Janus; this converts Janus-1.3B and Janus-Pro of deepseek-ai or "
        "deepseek-community, and checkpoints of hybridgen"
    )


def open_janus(folder: str | Path, style: str | None = None) -> JanusCheckpoint:
    """Open and check a checkpoint of any layout, without reading its weights.

    Args:
        style: of the prompts, `janus` or `janus-pro`; None = found by `find_style`.

    Raises:
        ValueError: in one sentence, what the folder is or lacks. Shapes of weights are compared in `report`.
    """
    folder = user_path(folder)
    layout = find_layout(folder)
    if layout == "hybridgen":
        return _open_hybridgen(folder, style)
    tensors = open_weights(folder)
    dropped = {name: UNREAD for name in tensors if is_dropped(name)}
    tensors = {name: tensor for name, tensor in tensors.items() if name not in dropped}
    tokenizer = open_tokenizer(folder)
    with friendly_config_errors(folder / "config.json", "Janus"):
        settings = read_json(folder / "config.json")
        if layout == "janus-hf":
            config = JanusConfig.from_dict(settings)
        else:
            tensors = from_official(tensors)
            config = config_from_official(settings, tensors)
            for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
                setattr(config.text_config, name, getattr(tokenizer, name))
            config.image_token_id = tokenizer.convert_tokens_to_ids(tokenizer.image_token)
    settle_tied_head(config, tensors, dropped, HEAD, EMBEDDINGS)
    images = open_image_processor(folder, config.vision_config.image_size)
    found_style = (style, "it was asked for") if style else find_style(folder, template_of(folder))
    generation = _generation(folder, tokenizer)
    janus = JanusCheckpoint(folder, layout, config, tensors, dropped, tokenizer, images, generation, *found_style)
    _check_tokens(janus)
    return janus


def _open_hybridgen(folder: Path, style: str | None) -> JanusCheckpoint:
    check_checkpoint(folder)
    with friendly_config_errors(folder / "model" / "config.json", "Janus"):
        hybrid = HybridGenConfig.from_dict(read_json(folder / "model" / "config.json"))
        vq_file = folder / "vq_model" / "config.json"
        vq = JanusVQVAEConfig.from_dict(read_json(vq_file)) if _is_janus_vq(vq_file) else None
        config = janus_config(hybrid, vq)
        config.dtype = hybrid.dtype
        config.vq_config.dtype = None if vq.dtype == hybrid.dtype else vq.dtype
    tensors = open_weights(folder / "model")
    dropped = {name: NO_PATH for name in tensors if is_of_diffusion(name)}
    tensors = {name: tensor for name, tensor in tensors.items() if name not in dropped}
    tensors |= {f"{VQ_PREFIX}{name}": tensor for name, tensor in open_weights(folder / "vq_model").items()}
    processor = folder / "processor"
    images = open_image_processor(processor, config.vision_config.image_size)
    found_style = (style, "it was asked for") if style else find_style(folder, template_of(processor))
    tokenizer = open_tokenizer(processor)
    generation = _generation(folder / "model", tokenizer)
    janus = JanusCheckpoint(folder, "hybridgen", config, tensors, dropped, tokenizer, images, generation, *found_style)
    _check_tokens(janus)
    return janus


def _generation(folder: Path, tokenizer: PreTrainedTokenizerFast) -> GenerationConfig:
    """The settings of generation_config.json, with the tokenizer's tokens."""
    config = generation_of(folder, LAYOUT_GENERATION_KEYS)
    config.bos_token_id, config.pad_token_id = tokenizer.bos_token_id, tokenizer.pad_token_id
    ends = generation_settings(folder).get("eos_token_id", tokenizer.eos_token_id)
    if not all(isinstance(end, int) for end in (ends if isinstance(ends, list) else [ends])):
        raise ValueError(f"{folder / 'generation_config.json'} has eos_token_id {ends!r}; give ids, or leave it out")
    config.eos_token_id = ends
    return config


def _check_tokens(janus: JanusCheckpoint) -> None:
    """Raises ValueError when the tokenizer is another model's."""
    ids = {kind: token_id for kind, (_, token_id) in janus.token_ids.items()}
    if janus.config.image_token_id != ids["image"]:
        raise ValueError(
            f"{janus.folder}: config.json says image_token_id {janus.config.image_token_id}, but the tokenizer says "
            f"{ids['image']}; take the tokenizer that belongs to the checkpoint"
        )
    rows = janus.config.text_config.vocab_size
    for kind in ("pad", "begin", "end"):  # not the placeholder, whose embedding is never looked up
        if ids[kind] >= rows:
            raise ValueError(
                f"{janus.folder}: the tokenizer's {kind} token has id {ids[kind]}, but the model has {rows} "
                "embeddings; take the tokenizer that belongs to the checkpoint"
            )


def _is_janus_vq(file: Path) -> bool:
    return file.is_file() and read_json(file).get("model_type") == JanusVQVAEConfig.model_type
