"""Refuses what cannot work, in one sentence, before anything is loaded: the checks between settings of a run.

Types and unknown keys are checked in `strict`, the model's own fields in `configuration_hybridgen`; the latter run
here too, by making a `HybridGenConfig`, which holds no weights. Of the disk only small JSON files are read (the configs
of pretrained parts and codecs). Whether a perceptual model can read pictures of this size is known only once it is
loaded: the stage asks that when it is made, still before the first step.
"""

import re
from math import inf
from pathlib import Path

from accelerate.tracking import get_available_trackers

from hybridgen.bridges.adapters import require_peft
from hybridgen.bridges.chat_templates import check_template
from hybridgen.codecs.frozen import vq_downsample_factor
from hybridgen.configuration_hybridgen import HybridGenConfig
from hybridgen.core.files import read_json
from hybridgen.core.names import AS_DRAWN, KINDS, OF_PATH
from hybridgen.core.noise import NoiseProcess
from hybridgen.core.recognition import check_files, check_parents, require_folder, what_folder_it_is
from hybridgen.data.source_config import SourceConfig
from hybridgen.image_processing_hybridgen import FITS
from hybridgen.paths.patches import check_size
from hybridgen.processing_hybridgen import check_unconditional
from hybridgen.sampling.schedules import scheduler_named, with_shift
from hybridgen.training.config import strict
from hybridgen.training.config.codec import AdversarialConfig, CodecTrainingConfig, PerceptualConfig
from hybridgen.training.config.growth import check_growth
from hybridgen.training.config.parts import NO_FOLDER, codec_factors, hybrid_config, vae_config, vq_config
from hybridgen.training.config.schema import DataConfig, SamplingConfig, TrainConfig
from hybridgen.training.config.sections import said_of
from hybridgen.training.config.strict import unknown_key

WRITING = ("diffusion", "vq")
SHORT_NAMES = {  # settings of `SamplingConfig` that have a name of their own there
    "diffusion": {"num_inference_steps": "steps", "guidance_scale": "guidance"},
    "vq": {"guidance_scale": "guidance_vq", "temperature": "temperature_vq"},
}
ATTENTION = ("sdpa", "eager", "flex_attention")  # beside "auto"
FLASH = ("flash_attention_2", "flash_attention_3", "flash_attention_4")


def load_config(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> TrainConfig:
    """A YAML file and `a.b=value` words (`data.sources.0.weight=2`) as a checked config.

    Raises:
        ValueError: one sentence with the key, its value and the way out, before anything is loaded.
    """
    content = strict.read(path)
    for word in overrides:
        strict.override(content, word)
    config = strict.build(TrainConfig, content)
    check(config)
    return config


def check(config: TrainConfig) -> None:
    """
    Raises:
        ValueError: what cannot work, with key, value and way out.
    """
    _check_numbers(config)
    _check_relations(config)
    if not config.data.sources:
        raise ValueError("data.sources is empty; name at least one source to train on")
    for key, sources in (("data", config.data.sources), ("validation", config.validation.sources)):
        if sources and not any(_has_weight(source.weight) for source in sources):
            raise ValueError(f"every weight of {key}.sources is 0; give at least one of them a share")
    _check_places(config)
    _check_trackers(config.trackers)
    if config.attention not in ("auto", *ATTENTION, *FLASH):
        known = ", ".join(map(repr, ("auto", *ATTENTION)))
        raise ValueError(f"attention is {config.attention!r}; it must be one of {known}")
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
        for name in ("lr_scale", "weight_decay"):
            value = getattr(group, name)
            if value is not None and not 0 <= value < inf:
                raise ValueError(f"groups.{number}.{name} is {value!r}; it must be 0 or more")
        if group.rows != "all" and (group.frozen or group.weight_decay is not None):
            other = "frozen" if group.frozen else "weight_decay"
            raise ValueError(
                f"groups.{number}.rows is {group.rows!r}, where all other rows stay as they are, and {other} is given "
                "for all of them; leave one out"
            )
    if config.stage == "codec":
        _check_codec_stage(config)
    else:
        _check_model_stage(config)


def _has_weight(weight: float | dict) -> bool:
    return any(weight.values()) if isinstance(weight, dict) else bool(weight)


def _check_places(config: TrainConfig) -> None:
    """Raises ValueError for folders that cannot be written to, and a state that is none. Nothing is made."""
    for key, folder in (("output_dir", config.output_dir), ("data.cache", config.data.cache)):
        if folder is not None:
            with said_of(key):
                check_parents(Path(folder))
    if config.resume in ("auto", "never"):
        return
    state = Path(config.resume)
    if not state.is_dir():
        raise ValueError(f"resume is {config.resume!r}; it must be 'auto', 'never' or the folder of a saved state")
    if not (state / "manifest.json").is_file():
        raise ValueError(
            f"resume is {config.resume!r}, which is {what_folder_it_is(state)}, not a saved state; name a folder "
            "state/step_N of a run, or say 'auto'"
        )


# -------------------------------------------------------------------------------------------------------- numbers


def _at_least_1(value: float) -> bool:
    return value >= 1


def _not_negative(value: float) -> bool:
    return value >= 0


def _two_betas(value: list[float]) -> bool:
    return len(value) == 2 and all(0 <= beta < 1 for beta in value)


RULES = (  # (keys, what holds of their values, the same in words)
    (("steps", "accumulation", "log_every", "save_every", "keep_last"), _at_least_1, "at least 1"),
    (("data.per_device_batch_size", "data.sequence_length"), _at_least_1, "at least 1"),
    (("spike.window", "spike.limit", "validation.batches", "validation.levels"), _at_least_1, "at least 1"),
    (("validation.every", "sampling.every", "diagnostics.every", "schedule.warmup_steps"), _not_negative, "0 or more"),
    (("data.prefetch", "data.loader_threads"), _not_negative, "0 or more"),
    (("optimizer.weight_decay",), lambda value: 0 <= value < inf, "0 or more"),
    (("data.max_broken",), _not_negative, "0 or more"),
    (("seed",), lambda value: 0 <= value < 2**64, "from 0 to 2^64 - 1"),
    (("data.loader_threads", "data.prefetch"), lambda value: value <= 1024, "at most 1024"),
    (("threads",), lambda value: value is None or value <= 1024, "at most 1024, or null"),  # torch dies of too many
    (("model.tokenizer.vocab_size", "model.tokenizer.samples"), _at_least_1, "at least 1"),
    (("optimizer.muon_steps",), _at_least_1, "at least 1"),
    (("optimizer.muon_momentum",), lambda value: 0 <= value < 1, "from 0 to below 1"),
    (("optimizer.muon_weight_decay",), lambda value: value is None or 0 <= value < inf, "0 or more, or null"),
    (("optimizer.lr", "optimizer.eps", "data.temperature"), lambda value: 0 < value < inf, "above 0, and finite"),
    (
        ("sampling.guidance", "sampling.guidance_vq", "sampling.temperature_vq"),
        lambda value: value is None or 0 <= value < inf,
        "0 or more, or null",
    ),
    (("dropout",), lambda value: 0 <= value < 1, "from 0 to below 1"),
    (
        ("max_seconds", "clip", "threads", "optimizer.muon_lr", "diagnostics.peak_tflops"),
        lambda value: value is None or value > 0,
        "above 0, or null",
    ),
    (("schedule.min_ratio",), lambda value: 0 <= value <= 1, "from 0 to 1"),
    (("schedule.decay_fraction",), lambda value: 0 < value <= 1, "above 0 and at most 1"),
    (("optimizer.betas",), _two_betas, "two in [0, 1)"),
    (("spike.factor",), lambda value: value is None or value > 1, "above 1, or null"),
)


def _check_numbers(config: TrainConfig) -> None:
    for keys, holds, rule in RULES:
        for key in keys:
            _require(config, key, holds, rule)


def _check_relations(config: TrainConfig) -> None:
    """Numbers that bound each other."""
    if config.schedule.name == "exponential":
        _require(config, "schedule.min_ratio", lambda value: value > 0, "above 0, as nothing decays to 0 by factors")
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
    if config.async_save and config.stage == "codec":
        raise ValueError(
            "async_save is true, but a codec's state is written at once, with what its stage adds; remove async_save"
        )
    if config.validation.every and not config.validation.sources:
        raise ValueError(
            f"validation.every is {config.validation.every}, but validation.sources is empty; name held-out data, "
            "or set validation.every=0"
        )


def _require(config: TrainConfig, key: str, holds, rule: str) -> None:
    value = config
    for part in key.split("."):
        value = getattr(value, part)
        if value is None and part != key.rpartition(".")[2]:
            return  # a section that is not given
    if not holds(value):
        raise ValueError(f"{key} is {value!r}; it must be {rule}")


# ---------------------------------------------------------------------------------------------------- model stage


def _check_model_stage(config: TrainConfig) -> None:
    if config.model is None:
        raise ValueError("stage is 'model', but model is missing; give model.from_pretrained or model.text_config")
    for key in ("vq_model", "vae"):
        if getattr(config, key) is not None:
            raise ValueError(f"stage is 'model', but {key} is given; remove it, or set stage=codec")
    if config.model.grow_from is not None:
        check_growth(config.model)
    if config.lora is not None:
        if config.model.grow_from is not None:
            raise ValueError(
                f"lora trains beside weights that stay as they are, but model.grow_from is {config.model.grow_from!r}, "
                "which adds weights that have to learn; leave one out"
            )
        if config.model.from_pretrained is None:
            raise ValueError("lora adapts a pretrained pipeline, but model.from_pretrained is missing; give it")
        require_peft()
    if config.model.tokenizer.path is not None:
        with said_of("model.tokenizer.path"):
            require_folder("tokenizer", Path(config.model.tokenizer.path), "give a folder that save_pretrained wrote")
            check_files(Path(config.model.tokenizer.path))
    if config.model.chat_template is not None:
        with said_of("model.chat_template"):
            check_template(config.model.chat_template)
    if config.model.fit not in (None, *FITS):
        raise ValueError(f"model.fit is {config.model.fit!r}; it must be one of {', '.join(map(repr, FITS))}")
    if config.model.unconditional is not None:
        with said_of("model.unconditional"):
            check_unconditional(config.model.unconditional)
    hybrid = hybrid_config(config.model)
    _check_starting_weights(config, hybrid)
    factors = codec_factors(hybrid, config.codec, config.model.start)
    sides = {path: getattr(hybrid, f"{path}_config").sample_size * factors[path] for path in factors}
    if len(set(sides.values())) > 1:
        shown = ", ".join(f"{path} {side}" for path, side in sides.items())
        raise ValueError(
            f"model: the paths would write images of different sides ({shown} pixels); make sample_size times the "
            "codec's factor equal"
        )
    for section, sources in (("data", config.data.sources), ("validation", config.validation.sources)):
        for number, source in enumerate(sources):
            _check_source(f"{section}.sources.{number}", source, hybrid, factors, sides, config.data.sequence_length)
    _check_sampling(config, hybrid, list(sides))


def _check_sampling(config: TrainConfig, hybrid: HybridGenConfig, writing: list[str]) -> None:
    """Raises ValueError for settings of drawing that this model cannot have.

    Args:
        writing: the paths by which it draws.
    """
    sampling = config.sampling
    for path in sampling.paths:
        if path not in writing:
            raise ValueError(f"sampling.paths has {path!r}; this model writes by: {', '.join(writing) or 'no path'}")
    most = 1000 if hybrid.diffusion_config is None else hybrid.diffusion_config.num_train_timesteps
    steps_fit = lambda value: value is None or 1 <= value <= most  # noqa: E731
    _require(config, "sampling.steps", steps_fit, f"from 1 to {most}, the process' timesteps")
    if not steps_fit(steps := sampling.diffusion.get("num_inference_steps")):
        raise ValueError(
            f"sampling.diffusion.num_inference_steps is {steps}; it must be from 1 to {most}, the process' timesteps"
        )
    for path in WRITING:
        _check_sampling_of(path, sampling, hybrid, writing)
    if sampling.scheduler is not None:
        if hybrid.diffusion_config is None:
            raise ValueError(f"sampling.scheduler is {sampling.scheduler!r}, but the model has no diffusion_config")
        with said_of("sampling.scheduler"):
            scheduler_named(sampling.scheduler, hybrid.diffusion_config)
    if sampling.reread not in (None, AS_DRAWN, *hybrid.paths):
        raise ValueError(
            f"sampling.reread is {sampling.reread!r}; choose {AS_DRAWN!r} or a path of this model: "
            f"{', '.join(hybrid.paths)}"
        )
    if sampling.every and not (sampling.prompts and writing):
        raise ValueError(
            f"sampling.every is {sampling.every}, but there is nothing to draw; give sampling.prompts and a "
            "path that writes, or set sampling.every=0"
        )


def _check_sampling_of(path: str, sampling: SamplingConfig, hybrid: HybridGenConfig, writing: list[str]) -> None:
    """Raises ValueError for settings of one path: of a path that is not there, unknown, or given twice."""
    settings = getattr(sampling, path)
    if settings and path not in writing:
        raise ValueError(f"sampling.{path} is given, but this model writes by: {', '.join(writing) or 'no path'}")
    for name, value in settings.items():
        key = f"sampling.{path}.{name}"
        if name not in OF_PATH[path]:
            raise unknown_key(key, value, list(OF_PATH[path]))
        KINDS[name](key, value)
        other = SHORT_NAMES[path].get(name)
        if other is not None and getattr(sampling, other) is not None:
            raise ValueError(f"{key} is given and so is sampling.{other}, which is the same; keep one")
    if (shift := settings.get("shift")) is not None and hybrid.diffusion_config is not None:
        diffusion = hybrid.diffusion_config
        with said_of(f"sampling.{path}"):
            with_shift(NoiseProcess.of(diffusion).default_scheduler(diffusion.prediction_type), shift)


def _check_starting_weights(config: TrainConfig, hybrid: HybridGenConfig) -> None:
    if config.model.embedding_std is not None:
        _require(config, "model.embedding_std", lambda value: 0 < value < inf, "above 0")
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
    if config.model.codes_from_codebook and hybrid.vq_config.code_tokens is not None:
        raise ValueError(
            "model.codes_from_codebook is true, but codes are tokens of the vocabulary here and have no table of their "
            "own; say false"
        )
    if config.model.codes_from_codebook and config.model.grow_from is not None and config.model.vq_config is None:
        raise ValueError(
            "model.codes_from_codebook is true, but codes come trained with the checkpoint that model.grow_from names; "
            "say false"
        )


def _check_source(
    key: str, source: SourceConfig, hybrid: HybridGenConfig, factors: dict, sides: dict, sequence_length: int
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
        positions = getattr(hybrid.text_config, "max_position_embeddings", None)
        if positions is not None and tokens + 2 > positions:
            raise ValueError(
                f"{key}: an image of the {path} path has {tokens} tokens and its two frames, more than the "
                f"{positions} positions of the model (model.text_config.max_position_embeddings); raise that"
            )
        if tokens + 2 > sequence_length:
            raise ValueError(
                f"{key}: an image of the {path} path has {tokens} tokens and its two frames, more than "
                f"data.sequence_length {sequence_length}; lengthen the rows"
            )


def _image_tokens(key, path, source, hybrid, factors, sides) -> int:
    if path == "understanding":
        return hybrid.image_tokens
    time_token = path == "diffusion" and hybrid.diffusion_config.time_token
    if source.image_tokens is not None:
        return source.image_tokens + time_token
    height, width = source.height or sides[path], source.width or sides[path]
    side = factors[path] * (hybrid.diffusion_config.patch_size if path == "diffusion" else 1)
    try:
        check_size(height, width, side)
    except ValueError as error:
        raise ValueError(f"{key} ({path} path): {error}") from None
    return (height // side) * (width // side) + time_token


# ---------------------------------------------------------------------------------------------------- codec stage


def _check_codec_stage(config: TrainConfig) -> None:
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
    for key in ("temperature", "cache", "sequence_length"):
        if getattr(config.data, key) != getattr(DataConfig, key):
            raise ValueError(
                f"data.{key} is {getattr(config.data, key)!r}, but the codec stage has no such thing; leave it out"
            )
    if config.vq_model is not None:
        _check_vq(config)
    else:
        _check_vae(config)


def _check_vq(config: TrainConfig) -> None:
    settings = config.vq_model
    _check_codec_losses(config, "vq_model", settings, vq_downsample_factor(vq_config(settings)))
    for key in ("commitment", "codebook"):
        _require(config, f"vq_model.{key}", _not_negative, "0 or more")
    if settings.continuous_steps >= config.steps:
        raise ValueError(
            f"vq_model.continuous_steps {settings.continuous_steps} leaves none of the {config.steps} steps to "
            "learn codes in; lower it"
        )


def _check_vae(config: TrainConfig) -> None:
    settings = config.vae
    factor = 2 ** (len(vae_config(settings)["block_out_channels"]) - 1)
    _check_codec_losses(config, "vae", settings, factor)
    _require(config, "vae.kl", _not_negative, "0 or more")
    _require(config, "vae.measured_pictures", _at_least_1, "at least 1")


def _check_codec_losses(config: TrainConfig, where: str, settings: CodecTrainingConfig, factor: int) -> None:
    side = settings.image_size
    _require(config, f"{where}.image_size", _at_least_1, "at least 1")
    if side % factor:
        part = "code" if where == "vq_model" else "latent"
        raise ValueError(
            f"{where}.image_size {side} is not divisible by {factor}, the pixels along one side of a {part} that "
            f"{where}.config makes; {max(side // factor, 1) * factor} would be"
        )
    for key in ("l1", "l2"):
        _require(config, f"{where}.{key}", _not_negative, "0 or more")
    if settings.perceptual is not None:
        _check_perceptual(config, f"{where}.perceptual", settings.perceptual)
    if not (settings.l1 or settings.l2 or (settings.perceptual and settings.perceptual.weight)):
        raise ValueError(f"{where}.l1 and {where}.l2 are 0, so nothing asks for pictures to come back; raise one")
    if settings.adversarial is not None:
        _check_adversarial(config, f"{where}.adversarial", settings.adversarial, side)


def _check_perceptual(config: TrainConfig, where: str, settings: PerceptualConfig) -> None:
    _require(config, f"{where}.weight", _not_negative, "0 or more")
    _require(config, f"{where}.size", lambda value: value is None or value >= 1, "at least 1, or null")
    if settings.layers is not None and not settings.layers:
        raise ValueError(f"{where}.layers is empty; name at least one, or leave it out for all")
    if not Path(settings.path).is_dir():
        raise ValueError(
            f"{where}.path {settings.path!r} is no folder; name the folder of a vision model of transformers "
            "(config.json and weights), or leave perceptual out"
        )
    read_json(Path(settings.path) / "config.json", f"{where}.path", NO_FOLDER)


def _check_adversarial(config: TrainConfig, where: str, settings: AdversarialConfig, side: int) -> None:
    _require(config, f"{where}.weight", _not_negative, "0 or more")
    for key in ("channels", "layers"):
        _require(config, f"{where}.{key}", _at_least_1, "at least 1")
    _require(config, f"{where}.lr", lambda value: value is None or value > 0, "above 0, or null")
    _require(config, f"{where}.betas", _two_betas, "two in [0, 1)")
    if not 0 <= settings.start < config.steps:
        raise ValueError(
            f"{where}.start is {settings.start}; it must be a step of the run, from 0 to {config.steps - 1}"
        )
    if side < settings.smallest_side:
        raise ValueError(
            f"{where}.layers is {settings.layers}, which needs pictures of side {settings.smallest_side} at least, but "
            f"image_size is {side}; use fewer layers"
        )


def _check_trackers(names: list[str]) -> None:
    """Raises ValueError for a tracker whose package is missing."""
    there = {str(name) for name in get_available_trackers()}
    if missing := [name for name in names if name not in there]:
        raise ValueError(
            f"trackers has {missing[0]!r}, whose package is not installed; pip install {missing[0]}, or leave it out"
        )
