"""Refuses what cannot work, in one sentence, before anything is loaded: the cross-field half of a strict config.

Types and unknown keys are `strict`'s. Of the disk only small JSON files are read here (the configs of pretrained parts
and codecs). The fact a newcomer gets wrong: the model's own checks run here too, by making its `HybridGenConfig`, which
holds no weights; so a check that belongs to the model stands in `configuration_hybridgen`.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from hybridgen.bridges.adapters import require_peft
from hybridgen.codecs.frozen import vq_downsample_factor
from hybridgen.configuration_hybridgen import HybridGenConfig
from hybridgen.paths.patches import check_size
from hybridgen.paths.understanding import tokens_per_image
from hybridgen.training.config.codec_checks import check_codec_stage
from hybridgen.training.config.parts import hybrid_config, read_json

if TYPE_CHECKING:  # `config` calls `check`
    from hybridgen.data.sources import SourceConfig
    from hybridgen.training.config.schema import CodecPaths, TrainConfig

WRITING = ("diffusion", "vq")
FLASH = ("flash_attention_2", "flash_attention_3", "flash_attention_4")


def check(config: "TrainConfig") -> None:
    """
    Raises:
        ValueError: what cannot work, with key, value and way out.
    """
    _check_numbers(config)
    if not config.data.sources:
        raise ValueError("data.sources is empty; name at least one source to train on")
    if config.attention in FLASH:
        raise ValueError(
            f"attention {config.attention!r} cannot express a mask that is causal over text and bidirectional inside "
            "images; use 'auto', 'sdpa', 'eager' or 'flex_attention'"
        )
    for number, group in enumerate(config.groups):
        try:
            re.compile(group.match)
        except re.error as error:
            raise ValueError(f"groups.{number}.match {group.match!r} is not a regular expression: {error}") from None
    if config.resume not in ("auto", "never") and not Path(config.resume).is_dir():
        raise ValueError(f"resume is {config.resume!r}; it must be 'auto', 'never' or the folder of a saved state")
    if config.stage == "codec":
        check_codec_stage(config)
    else:
        _check_model_stage(config)


# -------------------------------------------------------------------------------------------------------- numbers


def _check_numbers(config: "TrainConfig") -> None:
    at_least_one = (
        "steps",
        "accumulation",
        "log_every",
        "save_every",
        "keep_last",
        "data.per_device_batch_size",
        "data.sequence_length",
    )
    at_least_one += ("spike.window", "spike.limit", "validation.batches", "validation.levels")
    for key in at_least_one:
        _require(config, key, lambda value: value >= 1, "at least 1")
    for key in (
        "validation.every",
        "sampling.every",
        "diagnostics.every",
        "schedule.warmup_steps",
        "optimizer.weight_decay",
        "data.prefetch",
        "data.loader_threads",
        "data.max_broken",
    ):
        _require(config, key, lambda value: value >= 0, "0 or more")
    for key in ("optimizer.lr", "optimizer.eps", "data.temperature"):
        _require(config, key, lambda value: value > 0, "above 0")
    for key in ("sampling.guidance", "sampling.guidance_vq", "sampling.temperature_vq"):
        _require(config, key, lambda value: 0 <= value < float("inf"), "0 or more")
    _require(config, "sampling.steps", lambda value: 1 <= value <= 1000, "from 1 to 1000, the process' timesteps")
    _require(config, "dropout", lambda value: 0 <= value < 1, "from 0 to below 1")
    for key in ("max_seconds", "clip", "threads", "optimizer.muon_lr", "diagnostics.peak_tflops"):
        _require(config, key, lambda value: value is None or value > 0, "above 0, or null")
    _require(config, "schedule.min_ratio", lambda value: 0 <= value <= 1, "from 0 to 1")
    _require(config, "schedule.decay_fraction", lambda value: 0 < value <= 1, "above 0 and at most 1")
    _require(
        config, "optimizer.betas", lambda value: len(value) == 2 and all(0 <= b < 1 for b in value), "two in [0, 1)"
    )
    if config.schedule.name == "exponential":
        _require(config, "schedule.min_ratio", lambda value: value > 0, "above 0, as nothing decays to 0 by factors")
    _require(config, "spike.factor", lambda value: value is None or value > 1, "above 1, or null")
    if config.spike.limit > config.spike.window:
        raise ValueError(
            f"spike.limit {config.spike.limit} can never be reached within spike.window {config.spike.window}; make it "
            "the smaller one"
        )
    if config.ema is not None:
        _require(config, "ema.decay", lambda value: 0 <= value < 1, "from 0 to below 1")
    if config.schedule.warmup_steps > config.steps:
        raise ValueError(
            f"schedule.warmup_steps {config.schedule.warmup_steps} is more than the run's steps {config.steps}; "
            "shorten the warmup"
        )
    if config.validation.every and not config.validation.sources:
        raise ValueError(
            f"validation.every is {config.validation.every}, but validation.sources is empty; name held-out data, "
            "or set validation.every=0"
        )


def _require(config, key: str, holds, rule: str) -> None:
    value = config
    for part in key.split("."):
        value = getattr(value, part)
    if not holds(value):
        raise ValueError(f"{key} is {value!r}; it must be {rule}")


# ---------------------------------------------------------------------------------------------------- model stage


def _check_model_stage(config: "TrainConfig") -> None:
    if config.model is None:
        raise ValueError("stage is 'model', but model is missing; give model.from_pretrained or model.text_config")
    for key in ("vq_model", "vae"):
        if getattr(config, key) is not None:
            raise ValueError(f"stage is 'model', but {key} is given; remove it, or set stage=codec")
    if config.lora is not None:
        if config.model.from_pretrained is None:
            raise ValueError("lora adapts a pretrained pipeline, but model.from_pretrained is missing; give it")
        require_peft()
    hybrid = hybrid_config(config.model)
    if config.model.embedding_std is not None:
        _require(config, "model.embedding_std", lambda value: 0 < value < float("inf"), "above 0")
        if config.model.language_model is not None:
            raise ValueError(
                f"model.embedding_std is {config.model.embedding_std}, but the embeddings come trained with "
                "model.language_model; leave it out"
            )
        if hybrid.tie_word_embeddings:
            raise ValueError(
                f"model.embedding_std is {config.model.embedding_std}, but embeddings and head are one matrix here, "
                "and a head starts small; leave it out, or say model.tie_word_embeddings=false"
            )
    if config.model.codes_from_codebook and hybrid.vq_config is None:
        raise ValueError("model.codes_from_codebook is true, but the model has no vq_config; give it, or say false")
    if config.model.codes_from_codebook and hybrid.vq_config.first_token_id is not None:
        raise ValueError(
            "model.codes_from_codebook is true, but codes are tokens of the vocabulary here and have no table of their "
            "own; say false"
        )
    factors = codec_factors(hybrid, config.codec, config.model.from_pretrained)
    sides = {path: getattr(hybrid, f"{path}_config").sample_size * factors[path] for path in factors}
    if len(set(sides.values())) > 1:
        shown = ", ".join(f"{path} {side}" for path, side in sides.items())
        raise ValueError(
            f"model: the paths would write images of different sides ({shown} pixels); make sample_size times the "
            "codec's factor equal"
        )
    for kind, sources in (("data", config.data.sources), ("validation", config.validation.sources)):
        for number, source in enumerate(sources):
            _check_source(f"{kind}.sources.{number}", source, hybrid, factors, sides, config.data.sequence_length)
    for path in config.sampling.paths:
        if path not in hybrid.paths or path not in WRITING:
            raise ValueError(f"sampling.paths has {path!r}; this model writes by: {', '.join(sides) or 'no path'}")
    if config.sampling.every and not (config.sampling.prompts and sides):
        raise ValueError(
            f"sampling.every is {config.sampling.every}, but there is nothing to draw; give sampling.prompts and a "
            "path that writes, or set sampling.every=0"
        )


def _check_source(
    key: str, source: "SourceConfig", hybrid: HybridGenConfig, factors: dict, sides: dict, sequence_length: int
) -> None:
    if source.write is not None and source.write not in WRITING:
        raise ValueError(f"{key}.write is {source.write!r}; images are written by 'diffusion' or 'vq'")
    for role, path in (*(("read", path) for path in source.reads), ("write", source.write)):
        if path is None or path in hybrid.paths:
            continue
        if role == "read" and source.task != "answer":
            continue  # texts and captions read no picture; a file's pictures are known when its records are
        part = "vision_config" if path == "understanding" else f"{path}_config"
        raise ValueError(f"{key}.{role} is {path!r}, but the model has no {part}; give model.{part} or another path")
    used = {path for path in (*source.reads, source.write) if path in hybrid.paths}
    for path in used:
        tokens = _image_tokens(key, path, source, hybrid, factors, sides)
        if tokens + 2 > sequence_length:
            raise ValueError(
                f"{key}: an image of the {path} path has {tokens} tokens and its two frames, more than "
                f"data.sequence_length {sequence_length}; lengthen the rows"
            )


def _image_tokens(key, path, source, hybrid, factors, sides) -> int:
    if path == "understanding":
        return tokens_per_image(hybrid.vision_config)
    if source.image_tokens is not None:
        return source.image_tokens
    height, width = source.height or sides[path], source.width or sides[path]
    side = factors[path] * (hybrid.diffusion_config.patch_size if path == "diffusion" else 1)
    try:
        check_size(height, width, side)
    except ValueError as error:
        raise ValueError(f"{key} ({path} path): {error}") from None
    return (height // side) * (width // side)


def codec_factors(hybrid: HybridGenConfig, codec: "CodecPaths", from_pretrained: str | None = None) -> dict[str, int]:
    """Pixels along one side of a latent or code, for each path that writes, from the codecs' JSON alone.

    Raises:
        ValueError: a codec is missing, of another kind, or does not fit the model.
    """
    folders = codec_folders(codec, from_pretrained)
    factors = {}
    if hybrid.diffusion_config is not None:
        factors["diffusion"], channels = 1, 3
        if folders["vae"] is not None:
            vae = read_json(folders["vae"] / "config.json", "codec.vae")
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
        vq = read_json(folders["vq"] / "config.json", "codec.vq")
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


def codec_folders(codec: "CodecPaths", from_pretrained: str | None) -> dict[str, Path | None]:
    """Where the codecs are: as the config says, or in the pipeline folder that training goes on from."""
    folders = {}
    for name, component in (("vq", "vq_model"), ("vae", "vae")):
        given = getattr(codec, name)
        if given is None and from_pretrained is not None and (Path(from_pretrained) / component).is_dir():
            given = Path(from_pretrained) / component
        folders[name] = None if given is None else Path(given)
    return folders
