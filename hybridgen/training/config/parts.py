"""The configs of the model's parts, from a `model:` section and from folders, without any weight.

What transformers would take without a word (unknown keys, strings for numbers) is refused here by name. Whether a model
can work is checked by `HybridGenConfig` itself, which is made here.
"""

import inspect
from dataclasses import fields
from pathlib import Path

import diffusers
import torch
from diffusers import AutoencoderKL
from transformers import MODEL_MAPPING, AutoConfig, AutoModel, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.janus.configuration_janus import JanusVQVAEConfig

from hybridgen.bridges.backbones import check_config
from hybridgen.checkpoints.loading import check_checkpoint, friendly_errors, model_settings, quiet
from hybridgen.codecs.frozen import vq_downsample_factor
from hybridgen.codecs.patch_vq import PatchVQ
from hybridgen.configuration_hybridgen import (
    HybridGenConfig,
)
from hybridgen.core.files import read_json
from hybridgen.core.recognition import INDEX, check_files, checkpoint_path, require_folder, user_path
from hybridgen.paths.understanding import check_tower
from hybridgen.training.config.codec import VAETrainingConfig, VQTrainingConfig
from hybridgen.training.config.growth import grown_config
from hybridgen.training.config.schema import CodecPaths, ModelConfig
from hybridgen.training.config.sections import PATH_CONFIGS, said_of, sub_config
from hybridgen.training.config.strict import suggest, unknown_key

NO_FOLDER = "; give a folder that save_pretrained wrote"  # ends errors about JSON that is missing
BLOCKS = {"down_block_types": "DownEncoderBlock2D", "up_block_types": "UpDecoderBlock2D"}
MEASURED = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")


def hybrid_config(model: ModelConfig, vocab_size: int | None = None, **token_ids: int) -> HybridGenConfig:
    """The `HybridGenConfig` that a `model:` section describes; ids and vocabulary are the tokenizer's.

    Raises:
        ValueError: contradictions, unknown keys and wrong types, named.
    """
    if model.grow_from is not None:
        return grown_config(model, vocab_size or 0, token_ids)
    if model.from_pretrained is not None:
        return _pretrained_config(model)
    parts = {name: getattr(model, name) for name in ("text_config", "vision_config", "diffusion_config", "vq_config")}
    for part, folder in (("text_config", model.language_model), ("vision_config", model.vision_model)):
        if folder is None:
            continue
        if parts[part] is not None:
            raise ValueError(
                f"model.{part} is given and so is a pretrained part {folder!r}, which has its own; keep one"
            )
        parts[part] = _part_config(folder, part)
    if parts["text_config"] is None:
        raise ValueError("model needs one of from_pretrained, language_model and text_config; none is given")
    for part, default in (("text_config", "qwen3"), ("vision_config", "siglip_vision_model")):
        if isinstance(parts[part], dict):
            parts[part] = _typed_config(parts[part], default, f"model.{part}")
    if parts["vision_config"] is not None:
        check_tower(parts["vision_config"])
    for part, kind in PATH_CONFIGS.items():
        if parts[part] is not None:
            parts[part] = sub_config(parts[part], kind, f"model.{part}")
    if vocab_size is not None:
        parts["text_config"].vocab_size = vocab_size
    if model.shared_vocabulary:
        if (vq := parts["vq_config"]) is None:
            raise ValueError("model.shared_vocabulary is true, but the model has no vq_config; give it, or say false")
        vq.first_token_id = parts["text_config"].vocab_size
        parts["text_config"].vocab_size += vq.num_embeddings
    names = (
        "understanding_bidirectional", "vision_feature_layer", "aligner", "native_aspect", "aligner_depth",
        "aligner_hidden_act", "initializer_range", "tie_word_embeddings",
    )  # fmt: skip
    settings = {name: value for name in names if (value := getattr(model, name)) is not None}
    config = HybridGenConfig(**parts, **settings, **token_ids)
    name = "text_config" if model.language_model is None else f"language_model {model.language_model}"
    check_config(config.text_config, f"model.{name}")
    return config


def vq_config(settings: VQTrainingConfig) -> dict:
    """The full config of the tokenizer that a `vq_model:` section describes, with defaults for what it leaves out.

    Raises:
        ValueError: an unknown key, a wrong type, or a shape that the tokenizer cannot have.
    """
    where = "vq_model.config"
    if settings.kind == "patch":
        parameters = {p.name: p.default for p in inspect.signature(PatchVQ.__init__).parameters.values()}
        del parameters["self"]
        return _with_defaults(settings.config, where, parameters)
    config = sub_config(settings.config, JanusVQVAEConfig, where)
    if any(multiple * config.base_channels % 32 for multiple in (1, *config.channel_multiplier)):
        raise ValueError(
            f"{where}: base_channels {config.base_channels} times each of channel_multiplier "
            f"{list(config.channel_multiplier)} must be divisible by 32, the groups of JanusVQVAE's normalisation"
        )
    config.num_patches = settings.image_size // vq_downsample_factor(config.to_dict())
    return config.to_dict()


def vae_config(settings: VAETrainingConfig) -> dict:
    """The full arguments of the `AutoencoderKL` that a `vae:` section describes; every block is convolutional unless
    its type is given.

    Raises:
        ValueError: an unknown key, or a shape that the autoencoder cannot have.
    """
    where, content = "vae.config", settings.config
    known = [name for name in inspect.signature(AutoencoderKL.__init__).parameters if name != "self"]
    for key, value in content.items():
        if key not in known:
            raise unknown_key(f"{where}.{key}", value, known)
        if key in MEASURED:
            raise ValueError(f"{where}.{key} is given, but it is measured when training ends; leave it out")
    for key in ("in_channels", "out_channels"):
        if content.get(key, 3) != 3:
            raise ValueError(f"{where}.{key} is {content[key]!r}, but pictures have 3 channels; leave it out")
    whole = ("latent_channels", "layers_per_block", "norm_num_groups")
    widths = content.get("block_out_channels")
    if not isinstance(widths, list | tuple) or not widths:
        raise ValueError(
            f"{where}.block_out_channels is {widths!r}; give the width of each level, as in [64, 128, 256]"
        )
    numbers = {key: content[key] for key in whole if key in content}
    for key, value in {**numbers, **{f"block_out_channels.{i}": width for i, width in enumerate(widths)}}.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{where}.{key} is {value!r}; it must be an integer of at least 1")
    groups = content.get("norm_num_groups", 32)
    if any(width % groups for width in widths):
        raise ValueError(
            f"{where}: every one of block_out_channels {list(widths)} must be divisible by norm_num_groups {groups}"
        )
    for key in BLOCKS:
        if key in content and (not isinstance(content[key], list | tuple) or len(content[key]) != len(widths)):
            raise ValueError(
                f"{where}.{key} is {content[key]!r}, but block_out_channels has {len(widths)} levels; give one type "
                "for each, or leave it out"
            )
    arguments = {key: [block] * len(widths) for key, block in BLOCKS.items()} | {"sample_size": settings.image_size}
    arguments |= content
    try:
        with torch.device("meta"):
            AutoencoderKL(**arguments)
    except (ValueError, TypeError, KeyError, IndexError, ZeroDivisionError) as error:
        raise ValueError(f"{where}: {' '.join(str(error).split())}") from None
    return arguments


def _with_defaults(content: dict, where: str, defaults: dict) -> dict:
    """The defaults, replaced by `content`, whose keys must be known and whose values positive integers."""
    for key, value in content.items():
        if key not in defaults:
            raise unknown_key(f"{where}.{key}", value, defaults)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{where}.{key} is {value!r}; it must be an integer of at least 1")
    arguments = {**defaults, **content}
    if arguments["channels"] % arguments["norm_groups"]:
        raise ValueError(
            f"{where}: channels {arguments['channels']} is not divisible by norm_groups {arguments['norm_groups']}; "
            "make it so"
        )
    return arguments


def _reads_head_dim(kind: type[PreTrainedConfig]) -> bool:
    """Whether the decoder of a config class takes the width of its heads from a setting that the class does not
    declare, as Qwen3-MoE's and Granite's do: a layer without values is asked."""
    if kind not in MODEL_MAPPING:
        return False
    with torch.device("meta"), quiet():
        config = kind(num_hidden_layers=1, head_dim=8)
        return any(getattr(part, "head_dim", None) == 8 for part in AutoModel.from_config(config).modules())


def _typed_config(content: dict, default_type: str, where: str) -> PreTrainedConfig:
    model_type = content.get("model_type", default_type)
    if model_type not in CONFIG_MAPPING:
        near = suggest(str(model_type), CONFIG_MAPPING.keys())
        raise ValueError(
            f"{where}.model_type is {model_type!r}, which transformers does not know"
            + (f"; {near}" if near.startswith("did") else "; name one of its decoders or towers, such as 'qwen3'")
        )
    if where == "model.text_config" and "vocab_size" in content:
        raise ValueError(
            f"{where}.vocab_size is {content['vocab_size']!r}, but the vocabulary's size comes from the tokenizer; "
            "set model.tokenizer.vocab_size instead"
        )
    kind = CONFIG_MAPPING[model_type]
    undeclared = "head_dim" in content and "head_dim" not in {field.name for field in fields(kind)}
    return sub_config(content, kind, where, {"head_dim"} if undeclared and _reads_head_dim(kind) else set())


def _pretrained_config(model: ModelConfig) -> HybridGenConfig:
    others = [
        field.name
        for field in fields(model)
        if field.name not in ("from_pretrained", "tokenizer", "chat_template", "fit", "unconditional")
        and getattr(model, field.name) != field.default
    ]
    if others:
        raise ValueError(
            f"model.from_pretrained is given and so is model.{others[0]}, which the pretrained model brings; keep one"
        )
    with said_of("model.from_pretrained"):
        check_checkpoint(model.from_pretrained)
        config = HybridGenConfig.from_dict(model_settings(checkpoint_path(model.from_pretrained) / "model"))
        check_config(config.text_config, "the backbone")
        return config


def tower_folder(folder: str | Path) -> Path:
    """Where the tower that a config names has its config and weights: in `model`, if it is that of a checkpoint."""
    folder = user_path(folder)
    return folder / "model" if (folder / INDEX).is_file() else folder


def _part_config(folder: str | Path, part: str) -> PreTrainedConfig:
    key = "model.language_model" if part == "text_config" else "model.vision_model"
    with said_of(key):
        folder = folder if part == "text_config" else tower_folder(folder)
        kind = open_folder(folder).get("model_type")
        with friendly_errors(user_path(folder)):
            config = AutoConfig.from_pretrained(user_path(folder))
        if part == "text_config":
            return config.get_text_config()
        config = getattr(config, "vision_config", config)
        if not any(hasattr(config, name) for name in ("image_size", "num_patches")):
            raise ValueError(f"{folder} is a {kind!r}, which has no vision tower; give the folder of one")
    if getattr(config, "vision_use_head", False):
        config.vision_use_head = False  # nothing reads it, and weights without a gradient make ranks wait for them
    return config


def open_folder(folder: str | Path) -> dict:
    """The config.json of a folder that a config names, once every file in it is known to be what its name says.

    Raises:
        ValueError: there is no such folder, or a file of it is something else.
    """
    folder = user_path(folder)
    require_folder("folder", folder, NO_FOLDER.removeprefix("; "))
    content = read_json(folder / "config.json", missing=NO_FOLDER)
    check_files(folder)
    return content


# -------------------------------------------------------------------------------------------------------- codecs


def codec_factors(hybrid: HybridGenConfig, codec: CodecPaths, start: str | None = None) -> dict[str, int]:
    """Pixels along one side of a latent or code, for each path that writes, from the codecs' JSON alone.

    Raises:
        ValueError: a codec is missing, of another kind, or does not fit the model.
    """
    folders = codec_folders(codec, start)
    factors = {}
    if hybrid.diffusion_config is not None:
        factors["diffusion"], channels = 1, 3
        if folders["vae"] is not None:
            with said_of("codec.vae"):
                vae = open_folder(folders["vae"])
                _check_autoencoder(folders["vae"], vae.get("_class_name"))
            channels = vae.get("latent_channels", 4)
            factors["diffusion"] = 2 ** (len(vae.get("block_out_channels", [0])) - 1)
        if hybrid.diffusion_config.in_channels != channels:
            raise ValueError(
                f"diffusion_config.in_channels is {hybrid.diffusion_config.in_channels}, but "
                f"{'the latents of codec.vae' if folders['vae'] else 'pixels (no codec.vae)'} have {channels} channels"
            )
    if hybrid.vq_config is not None:
        if folders["vq"] is None:
            raise ValueError(
                "model.vq_config is given, but codec.vq is not; name the folder of a VQ tokenizer (the codec stage "
                "makes one), or remove model.vq_config"
            )
        with said_of("codec.vq"):
            vq = open_folder(folders["vq"])
        codes = vq.get("num_embeddings", vq.get("num_vq_embeddings"))
        if codes is None:
            raise ValueError(f"codec.vq {folders['vq']} holds no VQ tokenizer (JanusVQVAE, VQModel or PatchVQ)")
        if codes != hybrid.vq_config.num_embeddings:
            raise ValueError(
                f"vq_config.num_embeddings is {hybrid.vq_config.num_embeddings}, but codec.vq has {codes} codes; "
                "make them equal"
            )
        factors["vq"] = vq_downsample_factor(vq)
    return factors


def _check_autoencoder(folder: Path, kind: str | None) -> None:
    """Raises ValueError for a model of diffusers that encodes no picture."""
    if kind is not None and not all(hasattr(getattr(diffusers, kind, None), name) for name in ("encode", "decode")):
        raise ValueError(f"{folder} is a {kind!r}, not an autoencoder; name the folder vae/ of a diffusers model")


def codec_folders(codec: CodecPaths, start: str | None) -> dict[str, Path | None]:
    """Where the codecs are: as the config says, or in the pipeline folder `start` that training goes on from."""
    start = None if start is None else checkpoint_path(start)
    folders = {}
    for name, component in (("vq", "vq_model"), ("vae", "vae")):
        folder = getattr(codec, name)
        if folder is None and start is not None and (start / component).is_dir():
            folder = start / component
        folders[name] = None if folder is None else user_path(folder)
    return folders
