"""The plot of a run: the curves of `metrics.jsonl` in one picture, to look at while it goes on.

It reads the file alone, so a resumed run shows all of its life. The fact a newcomer gets wrong: reports draw charts of
their own (`evaluation.figures`), because training and evaluation never meet.
"""

import fnmatch
import json
import math
import os
from pathlib import Path

# title -> patterns of its curves' names; "|" after it: logarithmic where the values span decades
PANELS = {
    "loss |": ("loss", "loss/*", "validation/loss"),
    "loss by entry of the mixture |": ("source/*/loss",),
    "text, bits a byte |": ("source/*/bits_per_byte",),
    "codes, bits each |": ("source/*/bits_per_code",),
    "diffusion loss by timestep |": ("diffusion_at/*",),
    "gradient norm |": ("grad_norm", "gradient_norm/*"),
    "cosine of text and image gradients": ("gradient_cosine/*",),
    "RMS of the residual stream |": ("output_rms/*",),
    "attention entropy, nats": ("attention_entropy/*",),
    "largest logit |": ("max_logit/*",),
    "shares of time and of peak FLOPs": ("data_wait", "mfu"),
    "units a second": ("*_per_second",),
}
COLUMNS = 3
NAMED = 8  # curves in a legend, at most
POINTS = 300  # of a curve, at most: more cannot be seen

Curve = tuple[list[float], list[float]]


def draw(metrics: Path, picture: Path) -> bool:
    """Draw the run, written aside and renamed; returns whether there was anything to draw.

    Raises:
        OSError: the picture cannot be written.
    """
    from matplotlib import colormaps  # slow to import, and only a plot needs it
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    found = curves(metrics)
    chosen = {title: named for title, patterns in PANELS.items() if (named := _matching(found, patterns))}
    if not chosen:
        return False
    rows = -(-len(chosen) // COLUMNS)
    figure = Figure(figsize=(4.2 * COLUMNS, 2.8 * rows), layout="constrained")
    for place, (title, named) in enumerate(chosen.items(), start=1):
        axes = figure.add_subplot(rows, COLUMNS, place)
        for number, (name, (steps, values)) in enumerate(named.items()):
            colour = colormaps["tab10"](number) if len(named) <= 10 else colormaps["viridis"](number / (len(named) - 1))
            axes.plot(steps, values, color=colour, linewidth=1, label=name, marker="." if len(steps) == 1 else None)
        if title.endswith("|") and _spans_decades([value for _, values in named.values() for value in values]):
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_title(title.rstrip(" |"), fontsize=9, loc="left")
        axes.tick_params(labelsize=7, which="both")
        handles = axes.get_lines()
        axes.legend(handles=handles[:: -(-len(handles) // NAMED)], fontsize=6, frameon=False, loc="upper right")
    aside = picture.with_name(picture.name + ".tmp")
    figure.savefig(aside, format="png", dpi=80)
    os.replace(aside, picture)
    return True


def _spans_decades(values: list[float]) -> bool:
    return min(values) > 0 and max(values) > 30 * min(values)


def curves(metrics: Path) -> dict[str, Curve]:
    """Steps and values of every number in the file, thinned evenly; a line cut short by a kill is passed over."""
    found: dict[str, Curve] = {}
    for line in metrics.read_text(encoding="utf-8").splitlines() if metrics.exists() else ():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        for name, value in record.items():
            if isinstance(value, int | float) and math.isfinite(value) and name != "step":
                steps, values = found.setdefault(name, ([], []))
                steps.append(record["step"])
                values.append(value)
    return {name: (_thin(steps), _thin(values)) for name, (steps, values) in found.items()}


def _thin(values: list[float]) -> list[float]:
    """Every n-th, counted from the last."""
    every = -(-len(values) // POINTS)
    return values[::-1][::every][::-1]


def _matching(found: dict[str, Curve], patterns: tuple[str, ...]) -> dict[str, Curve]:
    """The curves whose names match, by what the pattern leaves open of them."""
    named = {}
    for pattern in patterns:
        start, _, end = pattern.partition("*")
        for name in sorted(fnmatch.filter(found, pattern)):
            named[name.removeprefix(start).removesuffix(end) or name] = found[name]
    return named
