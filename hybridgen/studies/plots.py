"""The plots of studies and ladders, as matplotlib figures in the house's style. Every value that is shown stands in
study.json or scaling.json as well.

matplotlib is slow to import, so only the functions that plot import it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from hybridgen.core.figures import PALETTE, PAPER_RULE, PAPER_TEXT, save, set_style, themed_svg
from hybridgen.studies.scaling_law import Law

Draw = Callable[[str, str], Any]  # the colours of text and of quiet lines -> a figure


def keep(draw: Draw, folder: Path, name: str) -> Markup:
    """A plot as NAME.svg and NAME.png in a folder, and as an element for a page."""
    figure = draw(PAPER_TEXT, PAPER_RULE)
    for suffix in (".svg", ".png"):
        save(figure, folder / f"{name}{suffix}")
    return Markup(themed_svg(draw, name))


def points(comparison: dict) -> Draw:
    """One measure of all arms: a point a seed, the mean with its interval beside; pairs are joined by thin lines."""
    values, means = comparison["values"], comparison["means"]
    scale = 1.0 if comparison["is_loss"] else 100.0

    def draw(soft: str, rule: str) -> Any:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(3.6, 2.3), layout="constrained")
        axes = figure.add_subplot()
        for seed in next(iter(values.values())):
            axes.plot(range(len(values)), [scale * of_arm[seed] for of_arm in values.values()], color=rule, linewidth=1)
        for place, (arm, of_arm) in enumerate(values.items()):
            colour, mean = PALETTE[place % len(PALETTE)], means[arm]
            axes.plot([place] * len(of_arm), [scale * value for value in of_arm.values()], "o", color=colour, ms=4)
            axes.plot(place + 0.18, scale * mean["mean"], "_", color=colour, ms=9, mew=2)
            if mean["low"] is not None:
                ends = [scale * mean["low"], scale * mean["high"]]
                axes.plot([place + 0.18] * 2, ends, color=colour, linewidth=1.3)
        axes.set_xticks(range(len(values)), list(values))
        axes.set_xlim(-0.5, len(values) - 0.5)
        seen = [scale * value for of_arm in values.values() for value in of_arm.values()]
        room = 0.6 * (max(seen) - min(seen)) or 0.1 * abs(max(seen)) or 1.0
        axes.set_ylim(min(seen) - room, max(seen) + room)  # intervals of two or three seeds may be longer than that
        set_style(axes, comparison["measure"] + ("" if comparison["is_loss"] else ", %"), "", soft, rule)
        return figure

    return draw


def learning(title: str, arms: dict[str, list], is_loss: bool = True) -> Draw:
    """Held-out numbers over training FLOPs: a line a seed, a colour an arm.

    Args:
        arms: arm -> curves, each (FLOPs, values).
    """

    def draw(soft: str, rule: str) -> Any:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(3.6, 2.3), layout="constrained")
        axes = figure.add_subplot()
        for place, (arm, curves) in enumerate(arms.items()):
            for number, (flops, values) in enumerate(curves):
                label = arm if number == 0 else None
                colour = PALETTE[place % len(PALETTE)]
                axes.plot(flops, values, color=colour, linewidth=1.2, marker="o", ms=2, label=label)
        if is_loss:
            _log_where_it_pays(axes, [value for curves in arms.values() for _, values in curves for value in values])
        axes.legend(fontsize=7, frameon=False, labelcolor=soft)
        set_style(axes, title, "training FLOPs", soft, rule)
        return figure

    return draw


def ladder(title: str, law: dict, tokens_of_line: int = 60) -> Draw:
    """Losses over FLOPs: the points and the law of each size, and the best loss of each budget.

    Args:
        law: as `scaling.describe` gives it, with its points.
    """
    runs = law["points"]
    fitted = Law(*(law[name]["value"] for name in ("E", "A", "alpha", "B", "beta")), law["cost"], law["cost_exponent"])

    def draw(soft: str, rule: str) -> Any:
        from matplotlib import colormaps
        from matplotlib.figure import Figure
        from matplotlib.ticker import NullFormatter

        figure = Figure(figsize=(4.4, 3.0), layout="constrained")
        axes = figure.add_subplot()
        by_size: dict[float, list[dict]] = {}
        for run in runs:
            by_size.setdefault(run["parameters"], []).append(run)
        for number, (size, at) in enumerate(sorted(by_size.items())):
            colour = colormaps["viridis"](0.9 * number / max(1, len(by_size) - 1))
            tokens = np.geomspace(min(run["tokens"] for run in at), max(run["tokens"] for run in at), tokens_of_line)
            flops = fitted.cost * size**fitted.cost_exponent * tokens
            axes.plot(flops, fitted.loss(size, tokens), color=colour, linewidth=1)
            xs, ys = [run["flops"] for run in at], [run["loss"] for run in at]
            axes.plot(xs, ys, "o", color=colour, ms=4, label=f"{size / 1e6:.2g} M")
        budgets = np.geomspace(min(run["flops"] for run in runs), max(run["flops"] for run in runs), tokens_of_line)
        axes.plot(budgets, [fitted.best_loss(budget) for budget in budgets], color=soft, linewidth=1, linestyle="--")
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())
        _log_where_it_pays(axes, [run["loss"] for run in runs])
        axes.legend(fontsize=7, frameon=False, labelcolor=soft)
        set_style(axes, title, "training FLOPs (dashed: the best size for each)", soft, rule)
        return figure

    return draw


def _log_where_it_pays(axes: Any, values: list[float]) -> None:
    """A logarithmic scale of y for values that span a factor of four, with numbers that are read at a glance."""
    from matplotlib.ticker import LogLocator, NullFormatter

    if min(values) <= 0 or max(values) < 4 * min(values):
        return
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
