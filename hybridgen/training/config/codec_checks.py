"""Refuses what the codec stage cannot train, in one sentence, before anything is loaded: its part of `checks`.

The fact a newcomer gets wrong: whether a perceptual model can read pictures of this size is known only once it is
loaded; that is asked when the stage is made, still before the first step.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from hybridgen.codecs.frozen import vq_downsample_factor
from hybridgen.training.config.parts import read_json, vae_config, vq_config
from hybridgen.training.stages.adversarial import smallest_side

if TYPE_CHECKING:  # `config` calls `checks`, which calls this
    from hybridgen.training.config.codec import AdversarialConfig, CodecTrainingConfig, PerceptualConfig
    from hybridgen.training.config.schema import TrainConfig


def check_codec_stage(config: "TrainConfig") -> None:
    """
    Raises:
        ValueError: what cannot work, with key, value and way out.
    """
    if config.vq_model is None and config.vae is None:
        raise ValueError("stage is 'codec', but vq_model is missing and so is vae; say which of them is to be trained")
    if config.vq_model is not None and config.vae is not None:
        raise ValueError("stage is 'codec', but vq_model and vae are both given; a run trains one codec, keep one")
    for key in ("model", "lora"):
        if getattr(config, key) is not None:
            raise ValueError(f"stage is 'codec', but {key} is given; remove it, or set stage=model")
    for source in config.data.sources + config.validation.sources:
        if isinstance(source.weight, dict):
            raise ValueError(
                f"{source.name}: weight is {source.weight}, but in the codec stage shares do not change over the run; "
                "give one number"
            )
    for key, sources in (("data", config.data.sources), ("validation", config.validation.sources)):
        if sources and not sum(source.weight for source in sources):
            raise ValueError(f"every weight of {key}.sources is 0; give at least one of them a share")
    for key, absent in (("temperature", 1.0), ("shard_by_rank", False), ("cache", None)):
        if getattr(config.data, key) != absent:
            raise ValueError(
                f"data.{key} is {getattr(config.data, key)!r}, but the codec stage has no such thing; leave it out"
            )
    if config.vq_model is not None:
        _check_vq(config)
    else:
        _check_vae(config)


def _check_vq(config: "TrainConfig") -> None:
    settings = config.vq_model
    _check_common("vq_model", settings, vq_downsample_factor(vq_config(settings)), config.steps)
    for key in ("commitment", "codebook"):
        _require(f"vq_model.{key}", getattr(settings, key), lambda value: value >= 0, "0 or more")
    if settings.continuous_steps >= config.steps:
        raise ValueError(
            f"vq_model.continuous_steps {settings.continuous_steps} leaves none of the {config.steps} steps to "
            "learn codes in; lower it"
        )


def _check_vae(config: "TrainConfig") -> None:
    settings = config.vae
    factor = 2 ** (len(vae_config(settings)["block_out_channels"]) - 1)
    _check_common("vae", settings, factor, config.steps)
    _require("vae.kl", settings.kl, lambda value: value >= 0, "0 or more")
    _require("vae.measured_pictures", settings.measured_pictures, lambda value: value >= 1, "at least 1")


def _check_common(where: str, settings: "CodecTrainingConfig", factor: int, steps: int) -> None:
    side = settings.image_size
    _require(f"{where}.image_size", side, lambda value: value >= 1, "at least 1")
    if side % factor:
        part = "code" if where == "vq_model" else "latent"
        raise ValueError(
            f"{where}.image_size {side} is not divisible by {factor}, the pixels along one side of a {part} that "
            f"{where}.config makes; {max(side // factor, 1) * factor} would be"
        )
    for key in ("l1", "l2"):
        _require(f"{where}.{key}", getattr(settings, key), lambda value: value >= 0, "0 or more")
    if settings.perceptual is not None:
        _check_perceptual(f"{where}.perceptual", settings.perceptual)
    if not (settings.l1 or settings.l2 or (settings.perceptual and settings.perceptual.weight)):
        raise ValueError(f"{where}.l1 and {where}.l2 are 0, so nothing asks for pictures to come back; raise one")
    if settings.adversarial is not None:
        _check_adversarial(f"{where}.adversarial", settings.adversarial, side, steps)


def _check_perceptual(where: str, settings: "PerceptualConfig") -> None:
    _require(f"{where}.weight", settings.weight, lambda value: value >= 0, "0 or more")
    _require(f"{where}.size", settings.size, lambda value: value is None or value >= 1, "at least 1, or null")
    if settings.layers is not None and not settings.layers:
        raise ValueError(f"{where}.layers is empty; name at least one, or leave it out for all")
    if not Path(settings.path).is_dir():
        raise ValueError(
            f"{where}.path {settings.path!r} is no folder; name the folder of a vision model of transformers "
            "(config.json and weights), or leave perceptual out"
        )
    read_json(Path(settings.path) / "config.json", f"{where}.path")


def _check_adversarial(where: str, settings: "AdversarialConfig", side: int, steps: int) -> None:
    _require(f"{where}.weight", settings.weight, lambda value: value >= 0, "0 or more")
    for key in ("channels", "layers"):
        _require(f"{where}.{key}", getattr(settings, key), lambda value: value >= 1, "at least 1")
    _require(f"{where}.lr", settings.lr, lambda value: value is None or value > 0, "above 0, or null")
    _require(
        f"{where}.betas", settings.betas, lambda value: len(value) == 2 and all(0 <= b < 1 for b in value),
        "two in [0, 1)",
    )  # fmt: skip
    if not 0 <= settings.start < steps:
        raise ValueError(f"{where}.start is {settings.start}; it must be a step of the run, from 0 to {steps - 1}")
    if side < smallest_side(settings.layers):
        raise ValueError(
            f"{where}.layers is {settings.layers}, which needs pictures of side {smallest_side(settings.layers)} at "
            f"least, but image_size is {side}; use fewer layers"
        )


def _require(key: str, value, holds, rule: str) -> None:
    if not holds(value):
        raise ValueError(f"{key} is {value!r}; it must be {rule}")
