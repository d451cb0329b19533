"""Grafting: a hybrid from pretrained parts. A Llama or Qwen learns to see and draw, a Janus gains a diffusion path.

`graft` opens the donors (`donors`, `janus`), puts their weights into one model, gives the tokenizer what images need,
and starts what is new. It trains nothing. The fact a newcomer gets wrong: what is new is silent, not small. New heads
are zero, so their losses send no gradient into the backbone in the first step; new rows of the vocabulary are the mean
of the old ones, so no new token outscores every old one; and no old weight is touched. Text logits and the paths that
were there are the same to the bit. (To the bit where the old vocabulary is a multiple of 16, as all in use are but a
few: a matrix product may sum in another order at another width.)

Shapes: V rows of the vocabulary, H width of the backbone.
"""

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hybridgen.bridges.donors import open_backbone, open_tower, open_vae, open_vq, read_image_settings
from hybridgen.chat import DEFAULT_CHAT_TEMPLATE
from hybridgen.codecs import VAECodec, VQCodec
from hybridgen.configuration_hybridgen import HybridGenConfig
from hybridgen.image_processing_hybridgen import HybridGenImageProcessor
from hybridgen.layout import PATHS
from hybridgen.modeling_hybridgen import HybridGenForConditionalGeneration
from hybridgen.pipeline_hybridgen import HybridGenPipeline
from hybridgen.processing_hybridgen import HybridGenProcessor, add_image_tokens, image_token_ids

EMBEDDINGS, HEAD = "model.language_model.embed_tokens.weight", "lm_head.weight"
BACKBONE, TOWER = "model.language_model.", "model.vision_model."
OF_PATH = {  # path -> the parts of the model that only it has
    "understanding": ("model.vision_model.", "model.aligner."),
    "diffusion": ("model.patch_embed.", "model.timestep_embedder.", "model.final_layer."),
    "vq": ("model.generation_embeddings.", "model.generation_aligner.", "model.generation_head."),
}
ROUND = 64  # rows are added up to a multiple of it, which matrix products like


@dataclass
class Shape:
    """How the new paths are built; None = what the donors say.

    Args:
        image_size: side in pixels of the pictures that are written; by default the VQ tokenizer's grid or, where it has
            none, the vision tower's image size.
        patch_size: of the diffusion path, in latents; by default 2, and 8 pixels where there is no VAE.
        prediction_type: of the diffusion path: `velocity`, or `sample`, which suits patches of raw pixels.
        understanding_bidirectional: the tokens of a picture that is read see each other.
        chat_template: instead of the tokenizer's own; hybridgen's where that has none.
        seed: of everything that starts random.
    """

    image_size: int | None = None
    patch_size: int | None = None
    prediction_type: str = "velocity"
    understanding_bidirectional: bool = False
    chat_template: str | None = None
    seed: int = 0


def graft(
    paths: list[str] | tuple[str, ...],
    *,
    backbone: str | Path | None = None,
    gguf_file: str | None = None,
    vision: str | Path | None = None,
    vae: str | Path | None = None,
    vq: str | Path | None = None,
    from_janus: str | Path | None = None,
    shape: Shape | None = None,
) -> HybridGenPipeline:
    """A pipeline with exactly these paths.

    1. Open the donors. A Janus gives every part that no other argument names.
    2. Say what the model is: the donors' configs, and those of the new paths.
    3. Give the tokenizer the image tokens that it lacks, and the vocabulary rows for them.
    4. Make the model of the donors' weights; start what no donor has.
    5. Make the processor, and try out both: text as before, and a template that renders pictures.

    Args:
        backbone: folder of a decoder of transformers with its tokenizer; `gguf_file` = a file in it.
        vision: folder of a SigLIP tower, or a `.json` file with the config of a new one.
        vae: folder of an AutoencoderKL; None = the diffusion path works on pixels.
        vq: folder of a VQ tokenizer.
        from_janus: folder of a Janus in any layout.

    Raises:
        ValueError: a part is missing, of another kind or size, or not needed; in one sentence.
    """
    shape = shape or Shape()
    paths = _check_request(paths, backbone, gguf_file, vision, vae, vq, from_janus)
    with torch.random.fork_rng():
        torch.manual_seed(shape.seed)
        donors = _open(paths, backbone, gguf_file, vision, vae, vq, from_janus)
        config = _configure(paths, donors, shape)
        _extend_vocabulary(donors, config)
        model = _assemble(config, donors)
    processor = _processor(config, donors, shape)
    if donors.reference is not None:
        _check_text(model, donors.reference)
    _check_template(processor)
    return HybridGenPipeline(model, processor, vae=donors.vae, vq_model=donors.vq)


def _check_request(paths, backbone, gguf_file, vision, vae, vq, from_janus) -> tuple[str, ...]:
    """The paths in their order. Raises ValueError for what needs no file to be refused."""
    if unknown := [path for path in paths if path not in PATHS]:
        raise ValueError(f"there is no path {unknown[0]!r}; choose among {', '.join(PATHS)}")
    if not paths:
        raise ValueError(f"no path is asked for; name at least one of {', '.join(PATHS)}")
    if backbone is None and from_janus is None:
        raise ValueError("a hybrid needs a backbone; give the folder of a decoder as backbone, or of a Janus as from_janus")
    if gguf_file is not None and backbone is None:
        raise ValueError(f"gguf_file {gguf_file} belongs to a backbone; name the folder it is in as backbone")
    for path, name, part in (("understanding", "vision", vision), ("diffusion", "vae", vae), ("vq", "vq", vq)):
        if part is not None and path not in paths:
            raise ValueError(f"{name} {part} is given, but no {path} path is asked for; add it to paths or leave it out")
        if part is None and from_janus is None and path in paths and path != "diffusion":
            raise ValueError(f"the {path} path needs a donor; give {name} or from_janus, or leave the path out")
    if from_janus is not None and all((backbone, vision or "understanding" not in paths, vq or "vq" not in paths)):
        raise ValueError(f"nothing is left for the Janus {from_janus} to give; leave out from_janus or another part")
    return tuple(path for path in PATHS if path in paths)


# ---------------------------------------------------------------------------------------------------------- donors


@dataclass
class Donors:
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


def _open(paths, backbone, gguf_file, vision, vae, vq, from_janus) -> Donors:
    janus = None if from_janus is None else load_janus(from_janus)
    if backbone is None:
        donors = _of_janus(janus, (BACKBONE, HEAD), "text_config", "tie_word_embeddings")
        donors.tokenizer, donors.janus = copy.deepcopy(janus.processor.tokenizer), janus
    else:
        donors = _of_backbone(*open_backbone(backbone, gguf_file))
    if "understanding" in paths:
        if vision is not None:
            tower = open_tower(vision)
            donors.weights |= _named(tower, TOWER)
            donors.configs["vision_config"] = tower.config
            donors.images = read_image_settings(vision, tower.config.image_size)
        else:
            own = ("aligner_depth", "aligner_hidden_act", "understanding_bidirectional") if backbone is None else ()
            _take(donors, janus, OF_PATH["understanding"] if backbone is None else (TOWER,), "vision_config", *own)
            donors.images = janus.processor.image_processor
    if "diffusion" in paths and vae is not None:
        donors.vae = open_vae(vae)
    if "vq" in paths:
        donors.vq = open_vq(vq) if vq is not None else janus.vq_model
        if vq is None and backbone is None:
            _take(donors, janus, OF_PATH["vq"], "vq_config")
    return donors
