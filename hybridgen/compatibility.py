"""Mends torchvision beside a CPU build of torch, and only then.

The wheels of torchvision on PyPI are linked against CUDA builds of torch. Beside a CPU build their compiled operators
do not load, and the first `import torchvision` dies with `operator torchvision::nms does not exist`, which takes every
model of transformers with it. Only the *schemas* of two operators are missing; nothing in hybridgen calls them.
"""

import sys

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_library: torch.library.Library | None = None  # the schemas live as long as this object does


def mend_torchvision() -> bool:
    """Import torchvision, declaring its missing operator schemas if that stops it. Returns whether it had to."""
    global _library
    try:
        import torchvision  # noqa: F401
    except ImportError:
        return False  # not installed: whoever needs it says so
    except RuntimeError as error:
        if "torchvision::nms" not in str(error) or _library is not None:
            raise
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]  # half-imported by the failed attempt
        _library = torch.library.Library("torchvision", "DEF")
        for schema in _SCHEMAS:
            _library.define(schema)
        import torchvision  # noqa: F401

        return True
    return False
