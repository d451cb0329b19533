"""Pretrained parts on disk, opened and checked before anything is built from them.

A decoder with its tokenizer, a vision tower, a VAE, a VQ tokenizer, each as its own library saves it; `assemble` makes
one model of them. Note that transformers and diffusers open a folder that lacks weights with random numbers in their
place and a warning, and a folder of another kind as if it were the right one. Here no weight may be missing, and the
kind is read from the config first.
"""

from pathlib import Path

import diffusers
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_MAPPING
from transformers.utils import is_gguf_available

from hybridgen.bridges.backbones import check_config
from hybridgen.checkpoints.loading import check_checkpoint, friendly_errors, load_model
from hybridgen.codecs import frozen
from hybridgen.configuration_understanding import PREFIX_TOKENS
from hybridgen.core.files import read_json
from hybridgen.core.hub import INDEX
from hybridgen.core.recognition import check_files, refuse_impostor, user_path
from hybridgen.core.values import one_line
from hybridgen.image_processing_hybridgen import HybridGenImageProcessor
from hybridgen.paths.understanding import build_vision_tower, unused_weights
from hybridgen.processing_hybridgen import HybridGenProcessor

BOTH_TOWERS = {  # model type of a model of two towers -> that of its vision tower
    "siglip": "siglip_vision_model",
    "siglip2": "siglip2_vision_model",
    "clip": "clip_vision_model",
    "chinese_clip": "chinese_clip_vision_model",
    "aimv2": "aimv2_vision_model",
}
TOWERS = (*(kind for kind in PREFIX_TOKENS if kind in CONFIG_MAPPING and kind != "janus_vision_model"), *BOTH_TOWERS)
_CLIP_PIXELS, _IMAGENET_PIXELS = (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD), (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
PIXELS = {  # mean and deviation of the pixels that a family's towers were trained on; 0.5 for all others
    **dict.fromkeys(("clip_vision_model", "chinese_clip_vision_model", "mlcd_vision_model"), _CLIP_PIXELS),
    "aimv2_vision_model": _CLIP_PIXELS,
    **dict.fromkeys(("dinov2", "dinov2_with_registers", "dinov3_vit", "pixio", "internvl_vision"), _IMAGENET_PIXELS),
    **dict.fromkeys(("deit", "vit_msn", "ijepa"), _IMAGENET_PIXELS),
}
# arguments of from_pretrained with which it reports faults of weights, for `_check_complete` to name them
_REPORT_ALL = {"output_loading_info": True, "ignore_mismatched_sizes": True}


def open_backbone(folder: str | Path, gguf_file: str | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A decoder with its head, in float32, and its tokenizer.

    Args:
        gguf_file: a file of the folder to take both from, as in transformers; needs the package `gguf`.

    Raises:
        ValueError: it is no decoder of text, lacks weights, or its tokenizer is missing or another model's.
    """
    folder = user_path(folder)
    gguf = {} if gguf_file is None else {"gguf_file": gguf_file}
    check_backbone(folder, gguf_file)
    with friendly_errors(folder):
        model, report = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **_REPORT_ALL, **gguf)
    _check_complete(report, folder, "backbone")
    if gguf_file is not None:  # whose config is known only now
        check_config(model.config, f"backbone {folder}")
    head = model.get_output_embeddings()
    if head is None or getattr(head, "bias", None) is not None or model.config.is_encoder_decoder:
        raise ValueError(
            f"backbone {folder} is a {model.config.model_type!r}, whose head is no plain matrix; give another"
        )
    return model.eval(), _open_tokenizer(folder, model.get_input_embeddings().num_embeddings, gguf)


def check_backbone(folder: Path, gguf_file: str | None = None) -> None:
    """Raises ValueError for a folder that holds no decoder, from its config.json and the first bytes of its files."""
    if gguf_file is not None:
        _check_gguf(folder, gguf_file)
        return
    config = _read_config(folder, "backbone")
    kind = config.get("model_type")
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ValueError(f"backbone {folder} is a {kind!r}, no decoder of text such as llama or qwen3{_hint(kind)}")
    if config.get("quantization_config") is not None:
        raise ValueError(f"backbone {folder} is quantized, and would learn nothing; give the one it was made from")
    with friendly_errors(folder):
        config = AutoConfig.from_pretrained(folder)
    check_config(config.get_text_config(), f"backbone {folder}")


def _check_gguf(folder: Path, gguf_file: str) -> None:
    if not (folder / gguf_file).is_file():
        raise ValueError(f"backbone {folder} has no file {gguf_file}; name one that is there")
    refuse_impostor(folder / gguf_file, ("GGUF",))
    with open(folder / gguf_file, "rb") as opened:
        if opened.read(4) != b"GGUF":
            raise ValueError(f"{folder / gguf_file} is no GGUF file; name one that is")
    if not is_gguf_available():
        raise ValueError(f"{gguf_file} is GGUF, which needs the package gguf: pip install 'hybridgen[gguf]'")


def _open_tokenizer(folder: Path, rows: int, gguf: dict) -> PreTrainedTokenizerBase:
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **gguf)
    except Exception as error:  # the library raises ten kinds of error; the folder's tokenizer is the cause of all
        reason = one_line(error)
        raise ValueError(f"the tokenizer of backbone {folder} cannot be loaded ({reason}); copy its files") from error
    known = tokenizer.get_vocab()
    if gguf:  # transformers adds a token of GPT-2's that the model may not have; then it counts as new
        known = {token: id for token, id in known.items() if token not in tokenizer.get_added_vocab() or id < rows}
    ids = known.values()
    if not ids or max(ids) >= rows:
        raise ValueError(
            f"the tokenizer of backbone {folder} has ids up to {max(ids, default=-1)}, but the model has {rows} "
            "embeddings: it is another model's, or its files are missing"
        )
    return tokenizer


def open_tower(source: str | Path) -> nn.Module:
    """A vision tower without its pooling head, which is not used here; float32.

    Args:
        source: a folder of a tower (SigLIP, CLIP, DINO, ...: `TOWERS`) or of a model with both towers, a checkpoint of
            hybridgen with an understanding path, or a `.json` file of a tower's config: a new one, initialised by
            torch's global generator.

    Raises:
        ValueError: it is another model, or lacks weights.
    """
    source = user_path(source)
    if _is_hybridgen(source):
        return _tower_of_hybridgen(source)
    config = tower_config(source)
    if source.suffix == ".json":
        with friendly_errors(source):
            return build_vision_tower(config).eval()
    loader = MODEL_MAPPING[type(config)]
    with friendly_errors(source):
        tower, report = loader.from_pretrained(source, config=config, dtype=torch.float32, **_REPORT_ALL)
    missing = report["missing_keys"] - (unused_weights(config) if report["missing_keys"] else set())
    _check_complete(report | {"missing_keys": missing}, source, "vision tower")
    return tower.eval()


def _is_hybridgen(source: Path) -> bool:
    return (source / INDEX).is_file()


def _tower_of_hybridgen(folder: Path) -> nn.Module:
    check_checkpoint(folder)
    with friendly_errors(folder):
        model = load_model(folder / "model")
    if "understanding" not in model.config.paths:
        raise ValueError(f"checkpoint {folder} has no understanding path, and so no vision tower to give")
    return model.model.vision_model.float().eval()


def tower_config(source: str | Path) -> PreTrainedConfig:
    """The config of `open_tower`'s tower. Raises ValueError when it is another model's."""
    source = user_path(source)
    content = _read_config(source, "vision tower")
    kind = content.get("model_type")
    if kind not in TOWERS:
        raise ValueError(f"vision tower {source} is a {kind!r}, not one of {', '.join(TOWERS)}{_hint(kind)}")
    kind, content = BOTH_TOWERS.get(kind, kind), {**content.get("vision_config", content)}
    content.pop("model_type", None)
    if kind.startswith("siglip"):
        content["vision_use_head"] = False
    try:
        return CONFIG_MAPPING[kind](**content)
    except (StrictDataclassError, TypeError) as error:
        raise ValueError(f"vision tower {source}: {' '.join(str(error.__cause__ or error).split())}") from error


def image_settings(source: str | Path, image_size: int) -> HybridGenImageProcessor:
    """The image processor for a tower: mean and deviation as saved beside its weights; where nothing is, those of its
    family, and 0.5 for a new tower of a `.json` file."""
    source = user_path(source)
    if _is_hybridgen(source):
        return HybridGenProcessor.from_pretrained(source / "processor").image_processor
    file = source / "preprocessor_config.json"
    if file.is_file():
        content = _read_config(file, "vision tower")
        mean, std = content.get("image_mean"), content.get("image_std")
    else:
        family = None if source.suffix == ".json" else _read_config(source, "vision tower").get("model_type")
        mean, std = PIXELS.get(BOTH_TOWERS.get(family, family), (None, None))
    return HybridGenImageProcessor(image_size, image_mean=mean, image_std=std)


def open_vae(folder: str | Path) -> nn.Module:
    """A frozen `AutoencoderKL`, of any number of channels (4 of SD, 16 of SD3 and Flux).

    Raises:
        ValueError: it is another model, or lacks weights.
    """
    folder = user_path(folder)
    check_vae(folder)
    with friendly_errors(folder):
        vae, report = diffusers.AutoencoderKL.from_pretrained(
            folder, torch_dtype=torch.float32, output_loading_info=True
        )
    _check_complete(report, folder, "VAE")
    return vae.eval().requires_grad_(False)


def check_vae(folder: Path) -> None:
    """Raises ValueError where a folder holds another model, as its config.json says."""
    kind = _read_config(folder, "VAE").get("_class_name")
    if kind != "AutoencoderKL":
        raise ValueError(f"VAE {folder} is a {kind!r}, not an AutoencoderKL; name the folder vae/ of a diffusers model")


def open_vq(folder: str | Path) -> nn.Module:
    """A frozen VQ tokenizer, one of `codecs.frozen.VQ_KINDS`.

    Raises:
        ValueError: it is another model, or lacks weights.
    """
    folder = user_path(folder)
    kind = vq_kind(folder)
    with friendly_errors(folder):
        vq, report = frozen.VQ_KINDS[kind].from_pretrained(folder, output_loading_info=True)
    _check_complete(report, folder, "VQ tokenizer")
    return vq.float().eval().requires_grad_(False)


def vq_kind(folder: Path) -> str:
    """The class of a VQ tokenizer, as its config.json says. Raises ValueError where it is another model."""
    content = _read_config(folder, "VQ tokenizer")
    if (known := frozen.vq_kind(content)) is None:
        kind = content.get("_class_name") or content.get("model_type")
        raise ValueError(f"VQ tokenizer {folder} is a {kind!r}, not one of {', '.join(frozen.VQ_KINDS)}{_hint(kind)}")
    return known


# ---------------------------------------------------------------------------------------------------------- checks


def _read_config(source: Path, what: str) -> dict:
    """config.json of a folder whose files are what their names say, or a JSON file itself."""
    file = source if source.suffix == ".json" else source / "config.json"
    content = read_json(file, what, "; give a folder that save_pretrained wrote")
    check_files(source)
    return content


def _hint(kind: str | None) -> str:
    return "; a Janus is given as --from-janus" if kind in ("janus", "multi_modality") else ""


def _check_complete(report: dict, folder: Path, what: str) -> None:
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"{what} {folder} lacks {len(missing)} of its weights, such as {missing[0]}; copy it again")
    for name, shape, expected in sorted(report.get("mismatched_keys", [])):
        raise ValueError(
            f"{what} {folder} has {name} of shape {tuple(shape)}, but its config makes it {tuple(expected)}"
        )
