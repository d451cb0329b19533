"""Names that every room and the command line agree on: the paths, and the settings that each draws by.

It imports nothing: arguments are checked against these names before any library is loaded.
"""

from collections.abc import Sequence

PATHS = ("understanding", "diffusion", "vq")  # in the order in which a default is looked for

DEFAULTS = {  # settings of drawing, where neither a call nor the checkpoint's folder says anything
    "num_inference_steps": 30,
    "guidance_scale": 3.0,
    "guidance_rescale": 0.0,
    "image_guidance_scale": 1.0,
    "shift": None,
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "precision": "model",
    "window": 1,
}
OF_PATH = {  # those that matter to a path
    "diffusion": (
        "num_inference_steps", "guidance_scale", "guidance_rescale", "image_guidance_scale", "shift", "precision",
    ),
    "vq": (
        "guidance_scale", "guidance_rescale", "image_guidance_scale", "temperature", "top_k", "top_p", "precision",
        "window",
    ),
}  # fmt: skip
WRITING_PATHS = tuple(OF_PATH)  # in the order in which a default is looked for


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
