"""Which pretrained folder gives which part of a hybrid, and the weights under our names.

Folders are opened by `pretrained_parts` and `janus`; the model is built by `assemble`. Aligners and heads belong
neither to the tower nor to the VQ tokenizer: they are trained for one backbone. So a Janus gives them only together
with its own backbone; beside another backbone it gives its tower and its VQ tokenizer, and what lies between starts
new.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hybridgen.bridges.backbones import decoder_of
from hybridgen.bridges.janus import load_janus
from hybridgen.bridges.pretrained_parts import (
    check_backbone,
    check_vae,
    image_settings,
    open_backbone,
    open_tower,
    open_vae,
    open_vq,
    tower_config,
    vq_kind,
)
from hybridgen.bridges.weight_names import BACKBONE, HEAD, PARTS_OF_PATH, TOWER
from hybridgen.configuration_hybridgen import HybridGenConfig
from hybridgen.core.hub import is_whole
from hybridgen.core.names import PATHS
from hybridgen.core.recognition import user_path
from hybridgen.image_processing_hybridgen import HybridGenImageProcessor
from hybridgen.pipeline_hybridgen import HybridGenPipeline


@dataclass
class PretrainedParts:
    """The parts of a hybrid, opened.

    Args:
        weights: by our names; weights that are not in it start new.
        configs: arguments of `HybridGenConfig`.
        reference: the decoder itself, if it came from its own folder.
        janus: the Janus that gave the backbone, whose processor is taken over.
        images: settings for the pictures that the tower reads.
    """

    weights: dict[str, Tensor]
    configs: dict
    tokenizer: PreTrainedTokenizerBase
    reference: PreTrainedModel | None = None
    janus: HybridGenPipeline | None = None
    images: HybridGenImageProcessor | None = None
    vae: nn.Module | None = None
    vq: nn.Module | None = None


@dataclass(frozen=True)
class PartFolders:
    """The folders that a hybrid is made of; see `assemble.assemble`."""

    backbone: str | Path | None = None
    gguf_file: str | None = None
    vision: str | Path | None = None
    vae: str | Path | None = None
    vq: str | Path | None = None
    from_janus: str | Path | None = None


def check_request(paths: Sequence[str], folders: PartFolders) -> tuple[str, ...]:
    """The paths in `PATHS`' order. Raises ValueError for mistakes that show without opening a file."""
    backbone, janus, vision, vq = folders.backbone, folders.from_janus, folders.vision, folders.vq
    if unknown := [path for path in paths if path not in PATHS]:
        raise ValueError(f"there is no path {unknown[0]!r}; choose among {', '.join(PATHS)}")
    if not paths:
        raise ValueError(f"no path is asked for; name at least one of {', '.join(PATHS)}")
    if backbone is None and janus is None:
        raise ValueError(
            "a hybrid needs a backbone; give the folder of a decoder as backbone, or of a Janus as from_janus"
        )
    if folders.gguf_file is not None and backbone is None:
        raise ValueError(f"gguf_file {folders.gguf_file} belongs to a backbone; name the folder it is in as backbone")
    for path, name, part in (("understanding", "vision", vision), ("diffusion", "vae", folders.vae), ("vq", "vq", vq)):
        if part is not None and path not in paths:
            raise ValueError(
                f"{name} {part} is given, but no {path} path is asked for; add it to paths or leave it out"
            )
        if part is None and janus is None and path in paths and path != "diffusion":
            raise ValueError(
                f"the {path} path needs a pretrained part; give {name} or from_janus, or leave the path out"
            )
    if janus is not None and all((backbone, vision or "understanding" not in paths, vq or "vq" not in paths)):
        raise ValueError(f"nothing is left for the Janus {janus} to give; leave out from_janus or another part")
    return tuple(path for path in PATHS if path in paths)


def collect(paths: tuple[str, ...], folders: PartFolders) -> PretrainedParts:
    """Open the folders of a request that `check_request` let pass; all configs first, then weights."""
    _check_kinds(folders)
    janus = None if folders.from_janus is None else load_janus(folders.from_janus)
    janus_weights = {} if janus is None else janus.model.float().state_dict()
    janus_backbone = folders.backbone is None  # only with it do the Janus' aligners and heads fit
    if janus_backbone:
        tied = {"tie_word_embeddings": janus.model.config.tie_word_embeddings}
        tokenizer = copy.deepcopy(janus.processor.tokenizer)
        weights = _with_prefix(janus_weights, BACKBONE, HEAD)
        parts = PretrainedParts(weights, _settings(janus, "text_config") | tied, tokenizer, janus=janus)
    else:
        parts = _parts_of_backbone(*open_backbone(folders.backbone, folders.gguf_file))
    if "understanding" in paths and folders.vision is not None:
        tower = open_tower(folders.vision)
        parts.weights |= {TOWER + name: value for name, value in tower.state_dict().items()}
        parts.configs["vision_config"] = tower.config
        image_size = HybridGenConfig(vision_config=tower.config).tower_size
        parts.images = image_settings(folders.vision, image_size)
    elif "understanding" in paths:
        of_aligner = ("aligner", "aligner_depth", "aligner_hidden_act", "vision_feature_layer")
        settings = (*of_aligner, "understanding_bidirectional") if janus_backbone else ()
        prefixes = PARTS_OF_PATH["understanding"] if janus_backbone else (TOWER,)
        parts.weights |= _with_prefix(janus_weights, *prefixes)
        parts.configs |= _settings(janus, "vision_config", *settings)
        parts.images = janus.processor.image_processor
    if "diffusion" in paths and folders.vae is not None:
        parts.vae = open_vae(folders.vae)
    if "vq" in paths and folders.vq is not None:
        parts.vq = open_vq(folders.vq)
    elif "vq" in paths:
        parts.vq = janus.vq_model
        if janus_backbone:
            parts.weights |= _with_prefix(janus_weights, *PARTS_OF_PATH["vq"])
            parts.configs |= _settings(janus, "vq_config")
    return parts


def _check_kinds(folders: PartFolders) -> None:
    """Raises ValueError for a folder that holds another kind of model; no weight is read."""
    if folders.backbone is not None:
        check_backbone(user_path(folders.backbone), folders.gguf_file)
    if folders.vision is not None and not is_whole(user_path(folders.vision)):
        tower_config(folders.vision)
    if folders.vae is not None:
        check_vae(user_path(folders.vae))
    if folders.vq is not None:
        vq_kind(user_path(folders.vq))


def _parts_of_backbone(reference: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> PretrainedParts:
    head, embeddings = reference.get_output_embeddings().weight, reference.get_input_embeddings().weight
    weights = {BACKBONE + name: value for name, value in decoder_of(reference).state_dict().items()}
    text = copy.deepcopy(reference.config)
    if hasattr(text, "quantization_config"):
        del text.quantization_config  # of the GGUF file; the weights are float32 by now
    configs = {"text_config": text, "tie_word_embeddings": head is embeddings}
    if head is not embeddings:
        weights[HEAD] = head.detach()
    return PretrainedParts(weights, configs, tokenizer, reference)


def _with_prefix(weights: dict[str, Tensor], *prefixes: str) -> dict[str, Tensor]:
    return {name: value for name, value in weights.items() if name.startswith(prefixes)}


def _settings(janus: HybridGenPipeline, *names: str) -> dict:
    return {name: copy.deepcopy(getattr(janus.model.config, name)) for name in names}
