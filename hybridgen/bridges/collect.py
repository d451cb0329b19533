"""Gathering: which donor gives which part of a graft, and its weights under our names.

Nothing is made here (`grafting`) and no single folder understood (`donors`, `janus`). The fact a newcomer gets wrong:
aligners and heads are not the tower's or the tokenizer's but stand between it and one backbone. So a Janus gives them
only to its own; beside another backbone it gives its tower and its VQ tokenizer, and what lies between starts new.
"""

import copy
from dataclasses import dataclass

from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hybridgen.bridges.janus import load_janus
from hybridgen.bridges.pretrained_parts import image_settings, open_backbone, open_tower, open_vae, open_vq
from hybridgen.configuration_hybridgen import HybridGenConfig
from hybridgen.core.layout import PATHS
from hybridgen.image_processing_hybridgen import HybridGenImageProcessor
from hybridgen.pipeline_hybridgen import HybridGenPipeline

EMBEDDINGS, HEAD = "model.language_model.embed_tokens.weight", "lm_head.weight"
BACKBONE, TOWER = "model.language_model.", "model.vision_model."
PARTS_OF_PATH = {  # path -> the parts of the model that only it has
    "understanding": ("model.vision_model.", "model.aligner."),
    "diffusion": ("model.patch_embed.", "model.timestep_embedder.", "model.final_layer."),
    "vq": ("model.generation_embeddings.", "model.generation_aligner.", "model.generation_head."),
}


@dataclass
class PretrainedParts:
    """What was opened.

    Args:
        weights: by our names; what is not in it starts new.
        configs: arguments of `HybridGenConfig`.
        reference: the decoder itself, where it came from a folder of its own.
        janus: the processor's donor, where the backbone is a Janus'.
    """

    weights: dict[str, Tensor]
    configs: dict
    tokenizer: PreTrainedTokenizerBase
    reference: PreTrainedModel | None = None
    janus: HybridGenPipeline | None = None
    images: HybridGenImageProcessor | None = None
    vae: nn.Module | None = None
    vq: nn.Module | None = None


def check_request(paths, backbone, gguf_file, vision, vae, vq, from_janus) -> tuple[str, ...]:
    """The paths in their order. Raises ValueError for what needs no file to be refused."""
    if unknown := [path for path in paths if path not in PATHS]:
        raise ValueError(f"there is no path {unknown[0]!r}; choose among {', '.join(PATHS)}")
    if not paths:
        raise ValueError(f"no path is asked for; name at least one of {', '.join(PATHS)}")
    if backbone is None and from_janus is None:
        raise ValueError(
            "a hybrid needs a backbone; give the folder of a decoder as backbone, or of a Janus as from_janus"
        )
    if gguf_file is not None and backbone is None:
        raise ValueError(f"gguf_file {gguf_file} belongs to a backbone; name the folder it is in as backbone")
    for path, name, part in (("understanding", "vision", vision), ("diffusion", "vae", vae), ("vq", "vq", vq)):
        if part is not None and path not in paths:
            raise ValueError(
                f"{name} {part} is given, but no {path} path is asked for; add it to paths or leave it out"
            )
        if part is None and from_janus is None and path in paths and path != "diffusion":
            raise ValueError(f"the {path} path needs a donor; give {name} or from_janus, or leave the path out")
    if from_janus is not None and all((backbone, vision or "understanding" not in paths, vq or "vq" not in paths)):
        raise ValueError(f"nothing is left for the Janus {from_janus} to give; leave out from_janus or another part")
    return tuple(path for path in PATHS if path in paths)


def collect(paths, backbone, gguf_file, vision, vae, vq, from_janus) -> PretrainedParts:
    janus = None if from_janus is None else load_janus(from_janus)
    given = {} if janus is None else janus.model.float().state_dict()
    whole = backbone is None  # the Janus' aligners and heads belong to the Janus' own backbone
    if whole:
        tied = {"tie_word_embeddings": janus.model.config.tie_word_embeddings}
        tokenizer = copy.deepcopy(janus.processor.tokenizer)
        donors = PretrainedParts(
            _those(given, BACKBONE, HEAD), _settings(janus, "text_config") | tied, tokenizer, janus=janus
        )
    else:
        donors = _of_backbone(*open_backbone(backbone, gguf_file))
    if "understanding" in paths and vision is not None:
        tower = open_tower(vision)
        donors.weights |= {TOWER + name: value for name, value in tower.state_dict().items()}
        donors.configs["vision_config"] = tower.config
        donors.images = image_settings(vision, HybridGenConfig(vision_config=tower.config).vision_config.image_size)
    elif "understanding" in paths:
        own = ("aligner_depth", "aligner_hidden_act", "understanding_bidirectional") if whole else ()
        donors.weights |= _those(given, *(PARTS_OF_PATH["understanding"] if whole else (TOWER,)))
        donors.configs |= _settings(janus, "vision_config", *own)
        donors.images = janus.processor.image_processor
    if "diffusion" in paths and vae is not None:
        donors.vae = open_vae(vae)
    if "vq" in paths and vq is not None:
        donors.vq = open_vq(vq)
    elif "vq" in paths:
        donors.vq = janus.vq_model
        if whole:
            donors.weights |= _those(given, *PARTS_OF_PATH["vq"])
            donors.configs |= _settings(janus, "vq_config")
    return donors


def _of_backbone(reference: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> PretrainedParts:
    head, embeddings = reference.get_output_embeddings().weight, reference.get_input_embeddings().weight
    weights = {BACKBONE + name: value for name, value in reference.base_model.state_dict().items()}
    text = copy.deepcopy(reference.config)
    if hasattr(text, "quantization_config"):
        del text.quantization_config  # what GGUF was; the weights are float32 by now
    configs = {"text_config": text, "tie_word_embeddings": head is embeddings}
    if head is not embeddings:
        weights[HEAD] = head.detach()
    return PretrainedParts(weights, configs, tokenizer, reference)


def _those(weights: dict[str, Tensor], *prefixes: str) -> dict[str, Tensor]:
    return {name: value for name, value in weights.items() if name.startswith(prefixes)}


def _settings(janus: HybridGenPipeline, *names: str) -> dict:
    return {name: copy.deepcopy(getattr(janus.model.config, name)) for name in names}
