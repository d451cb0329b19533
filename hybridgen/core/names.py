"""Names that every room and the command line agree on: the paths, and the settings that each draws by.

It imports no library: arguments are checked against these names, and values, before any is loaded.
"""

from collections.abc import Callable, Sequence
from functools import partial

from hybridgen.core.values import choice, interval, number, one_or_each, whole_number

PRECISIONS = ("model", "fp32", "bf16", "int8")  # of weights in inner loops (`sampling.decoder`)
PATHS = ("understanding", "diffusion", "vq")  # in the order in which a default is looked for
CHAT_TEMPLATES = ("hybridgen", "bare", "vicuna", "janus", "janus-pro")  # see `bridges.chat_templates`

DEFAULTS = {  # settings of drawing, where neither a call nor the checkpoint's folder says anything
    "num_inference_steps": 30,
    "guidance_scale": 3.0,
    "guidance_rescale": 0.0,
    "guidance_interval": [0.0, 1.0],
    "image_guidance_scale": 1.0,
    "shift": None,
    "forecast": 1,
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "precision": "model",
    "window": None,  # up to 8 on a CPU, 1 elsewhere (`sampling.settings.window_of`)
}
MOST_IMAGES = 1_000_000  # of one call; more are drawn by several calls with other seeds
OF_PATH = {  # those that matter to a path
    "diffusion": (
        "num_inference_steps", "guidance_scale", "guidance_rescale", "guidance_interval", "image_guidance_scale",
        "shift", "forecast", "precision",
    ),
    "vq": (
        "guidance_scale", "guidance_rescale", "guidance_interval", "image_guidance_scale", "temperature", "top_k",
        "top_p", "precision", "window",
    ),
}  # fmt: skip
SHORT_NAMES = {"num_inference_steps": "steps", "guidance_scale": "guidance"}  # as commands and PNG files call them
check_scale = partial(number, meaning="1 = none, more = closer to the prompt")  # of guidance
KINDS: dict[str, Callable] = {  # (name, value) -> the value as plain Python; raises ValueError for what means nothing
    "num_inference_steps": whole_number,
    "guidance_scale": partial(one_or_each, check=check_scale),  # or one per prompt
    "guidance_rescale": partial(number, most=1),
    "guidance_interval": interval,  # shares of the steps
    "image_guidance_scale": partial(one_or_each, check=check_scale),
    "shift": partial(number, above=True, meaning="1 = none, more = more steps in the noise"),
    "forecast": partial(whole_number, meaning="1 = every step is computed"),
    "temperature": partial(number, meaning="0 = always the likeliest"),
    "top_k": partial(whole_number, least=0, meaning="0 = all"),
    "top_p": partial(number, most=1, above=True, meaning="1 = all"),
    "precision": partial(choice, choices=PRECISIONS),
    "window": partial(whole_number, meaning="1 = a code at a time"),
}
WRITING_PATHS = tuple(OF_PATH)  # in the order in which a default is looked for
AS_DRAWN = "drawn"  # how a chat reads its own pictures, where no path is named for it
REREAD = (AS_DRAWN, *PATHS)


def check_belongs(settings: dict, paths: Sequence[str], names: dict[str, str] | None = None) -> None:
    """Raises ValueError for a setting that matters to none of the paths that are drawn by. None = not given.

    Args:
        names: what a user knows a setting as, where that is not its name.
    """
    for name, value in settings.items():
        if value is not None and name in DEFAULTS and not any(name in OF_PATH[path] for path in paths):
            owner = next(path for path in OF_PATH if name in OF_PATH[path])
            drawn = f"the pictures are drawn by {' and '.join(paths)}" if paths else "no picture is drawn"
            raise ValueError(f"{(names or {}).get(name, name)} is for the {owner} path, but {drawn}; leave it out")


def check_values(settings: dict, names: dict[str, str] | None = None) -> dict:
    """The settings of drawing among `settings`, of any path, as plain Python; None = not given.

    Args:
        names: what a user knows a setting as, where that is not its name.

    Raises:
        ValueError: a value means nothing.
    """
    given = {name: value for name, value in settings.items() if name in KINDS and value is not None}
    return {name: KINDS[name]((names or {}).get(name, name), value) for name, value in given.items()}
