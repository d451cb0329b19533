"""Settings of drawing: as a call gives them, else as the checkpoint's folder says, else as the package does.

A model that was trained for guidance 5 says so in its folder (`sampling_defaults` in `model_index.json`), and every
call of the pipeline, conversation, evaluation and command that opens the folder draws it so. Defaults are stated path
by path: those for `vq` do not hold for `diffusion`. Beside the paths, `chat` says how conversations read what they have
drawn.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from hybridgen.core.names import AS_DRAWN, DEFAULTS, KINDS, OF_PATH, PRECISIONS, REREAD, check_scale, check_values
from hybridgen.core.values import choice, each, flag, shown
from hybridgen.sampling.codes import GREEDY, CodeSampling, check_window
from hybridgen.sampling.decoder import Decoder
from hybridgen.sampling.guidance import Guidance
from hybridgen.sampling.schedules import steps_taken

_WINDOW = 8  # codes read at once, at most, where nobody says


@dataclass(frozen=True)
class DrawingSetup:
    """How the images of a call are drawn, every setting filled in; what differs between images is an `ImageRequest`'s.

    Args:
        path: `diffusion` or `vq`.
        settings: every setting that matters to the path, as manifests record them.
        guidance: the method; the scales of an image are its request's, those of a batch are set when it is drawn.
        sampling: of codes.
        decoder: the model's, in the settings' precision.
        strength: the share of the denoising steps that are taken where a picture is edited (`sampling.edits`).
    """

    path: str
    settings: dict
    guidance: Guidance
    sampling: CodeSampling
    decoder: Decoder
    strength: float = 1.0

    @property
    def num_inference_steps(self) -> int:
        """Denoising steps; 1 on the vq path, which counts codes."""
        return self.settings.get("num_inference_steps", 1)

    @property
    def steps_taken(self) -> int:
        """Those of them that are taken."""
        return steps_taken(self.num_inference_steps, self.strength)

    @property
    def shift(self) -> float | None:
        return self.settings.get("shift")

    @property
    def forecast(self) -> int:
        return self.settings.get("forecast", 1)

    @property
    def window(self) -> int:
        return self.settings.get("window", 1)

    def __post_init__(self):
        check_window(self.window, self.guidance)


def check_defaults(defaults: dict[str, dict] | None) -> None:
    """Raises ValueError if a folder's `sampling_defaults` are not {path: {setting: value}} of known names, beside
    {"chat": {"reread": one of `REREAD`, "precision": one of `PRECISIONS`}}."""
    if defaults is not None and not isinstance(defaults, Mapping):
        raise ValueError(f"sampling_defaults are {shown(defaults)}; they must be settings for {' or '.join(OF_PATH)}")
    defaults = dict(defaults or {})
    if (chat := defaults.pop("chat", None)) is not None and not _are_of_chat(chat):
        raise ValueError(
            f"sampling_defaults has 'chat': {chat!r}; it must be {{'reread': one of {', '.join(map(repr, REREAD))}}}, "
            f"{{'precision': one of {', '.join(map(repr, PRECISIONS))}}}, or both"
        )
    for path, settings in defaults.items():
        if path not in OF_PATH or not isinstance(settings, dict):
            raise ValueError(
                f"sampling_defaults has {path!r}: {shown(settings)}; it must hold settings for {' or '.join(OF_PATH)}"
            )
        if unknown := sorted(set(settings) - set(OF_PATH[path])):
            raise ValueError(f"sampling_defaults of {path} have {unknown[0]!r}; there are: {', '.join(OF_PATH[path])}")
        for name, value in settings.items():
            if value is not None:
                KINDS[name](f"sampling_defaults of {path}: {name}", value)


def _are_of_chat(given) -> bool:
    choices = {"reread": REREAD, "precision": PRECISIONS}
    return isinstance(given, dict) and bool(given) and all(given[name] in choices.get(name, ()) for name in given)


def settings_of(path: str, defaults: dict[str, dict] | None, overrides: dict) -> dict:
    """Every setting that matters to a path: of `overrides`, else as the folder says, else as the package does.

    None = not given. A setting of another path is ignored, if it is one at all, so that one set of arguments serves
    calls by any path; a command, which has one path, refuses it (`check_belongs`).

    Raises:
        ValueError: a value means nothing.
    """
    known = DEFAULTS | ((defaults or {}).get(path) or {}) | check_values(overrides)
    return {name: known[name] for name in OF_PATH[path]}


def reread_of(defaults: dict[str, dict] | None, reread: str | None) -> str | None:
    """The path by which a chat reads what it has drawn: as the call says, else as the folder does; None = as drawn."""
    if reread is None:
        reread = ((defaults or {}).get("chat") or {}).get("reread", AS_DRAWN)
    return None if reread == AS_DRAWN else reread


def precision_of(defaults: dict[str, dict] | None, precision: str | None) -> str:
    """The precision that texts are read and written in: as the call says, else as the folder does (under `chat`), else
    the model's. Raises ValueError for what is none."""
    if precision is None:
        return ((defaults or {}).get("chat") or {}).get("precision", "model")
    return choice("precision", precision, PRECISIONS)


def guidance_of(guider) -> Guidance:
    """The guider of a call. Raises ValueError for what is none."""
    if guider is None:
        return Guidance()
    if not isinstance(guider, Guidance) and not hasattr(guider, "_input_predictions"):
        raise ValueError(
            f"guider is {shown(guider)}; give one of diffusers.guiders, or a Guidance; scales are guidance_scale"
        )
    return Guidance.of(guider)


def with_scales_of(guider: Guidance, overrides: dict) -> dict:
    """The settings of a call, the scales and the interval that it leaves at None filled in from its guider."""
    scales = {
        "guidance_scale": guider.scale,
        "guidance_rescale": guider.guidance_rescale,
        "guidance_interval": [guider.start, guider.stop],
        "image_guidance_scale": guider.image_scale,
    }
    filled = {name: scales[name] for name in scales if name in overrides and overrides[name] is None}
    return overrides | filled


def scales_of(name: str, scale, count: int) -> list[float]:
    """One scale per prompt. Raises ValueError for what is none."""
    return [check_scale(name, value) for value in each(name, scale, count)]


def text_sampling(do_sample=None, temperature=None, top_k=None, top_p=None) -> CodeSampling:
    """How the words of a text are drawn; None = not given.

    Args:
        do_sample: False = the likeliest words, whatever else is given; True = drawn; None = drawn where one of the
            others is given, and the temperature is not 0.

    Raises:
        ValueError: a value means nothing, or the temperature is 0 and they are to be drawn.
    """
    given = check_values({"temperature": temperature, "top_k": top_k, "top_p": top_p})
    is_cold = given.get("temperature") == 0
    sampled = bool(given) and not is_cold if do_sample is None else flag("do_sample", do_sample)
    if sampled and is_cold:
        raise ValueError(
            "temperature is 0, which takes the likeliest word each time, but do_sample is True; give a temperature "
            "above 0, or leave do_sample out"
        )
    return CodeSampling(**given) if sampled else GREEDY


def window_of(settings: dict, decoder: Decoder) -> int:
    """How many codes are read at once, at most; where nobody says, several where that costs little: on a CPU (elsewhere
    each forward would wait for the host), by our own decoder."""
    if (window := settings.get("window")) is not None:
        return window
    on_cpu = decoder.model.device.type == "cpu" and decoder.layers is not None
    return _WINDOW if on_cpu else 1


def code_sampling(settings: dict) -> CodeSampling:
    """How codes are drawn; raises ValueError for what means nothing."""
    return CodeSampling(**{name: settings[name] for name in ("temperature", "top_k", "top_p") if name in settings})
