"""`diagnostics.png`: the curves of a run's `metrics.jsonl` in one picture, to look at while it goes on.

Which curves stand together is decided here; `core.figures` draws them.
"""

import fnmatch
from pathlib import Path

from hybridgen.core.figures import Curve, Panel, plot, read_curves, save

PANELS = {  # title -> patterns of its curves' names
    "loss": ("loss", "loss/*", "validation/loss"),
    "loss by source": ("source/*/loss",),
    "text, bits per byte": ("source/*/bits_per_byte",),
    "codes, bits each": ("source/*/bits_per_code",),
    "diffusion loss by timestep": ("diffusion_at/*",),
    "gradient norm": ("grad_norm", "gradient_norm/*"),
    "cosine of text and image gradients": ("gradient_cosine/*",),
    "RMS of the residual stream": ("output_rms/*",),
    "attention entropy, nats": ("attention_entropy/*",),
    "largest logit": ("max_logit/*",),
    "experts in use": ("experts_used/*",),
    "experts shared with text": ("routing_overlap/*",),
    "shares of time and of peak FLOPs": ("data_wait", "mfu"),
    "units per second": ("*_per_second",),
}
LINEAR = (  # other scales may be logarithmic
    "attention entropy, nats", "experts in use", "experts shared with text", "shares of time and of peak FLOPs",
    "units per second",
)  # fmt: skip
POINTS = 300  # of a curve, at most: more cannot be seen


def draw(metrics: Path, picture: Path) -> bool:
    """Draw the run, whole or not at all; returns whether there was anything to draw.

    Raises:
        OSError: the picture cannot be written.
    """
    curves = read_curves(metrics, POINTS)
    panels = [
        Panel(title, matching, log=title not in LINEAR)
        for title, patterns in PANELS.items()
        if (matching := _matching(curves, patterns))
    ]
    if panels:
        save(plot(panels), picture)
    return bool(panels)


def _matching(curves: dict[str, Curve], patterns: tuple[str, ...]) -> dict[str, Curve]:
    """The curves whose names match, by what the pattern leaves open of them."""
    named = {}
    for pattern in patterns:
        start, _, end = pattern.partition("*")
        for name in sorted(fnmatch.filter(curves, pattern)):
            named[name.removeprefix(start).removesuffix(end) or name] = curves[name]
    return named
