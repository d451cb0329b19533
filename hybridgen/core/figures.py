"""Figures, made in one way everywhere: pages of captioned pictures (Pillow), and panels of curves (matplotlib).

Pictures are enlarged by whole factors with nearest neighbour, never smoothed: smoothing hides exactly the errors that
one looks for. matplotlib is slow to import, so only the functions that plot import it. The report page's HTML is
made in `evaluation.report`.
"""

import io
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from hybridgen.core.files import whole_file

_PAPER, _INK = "#ffffff", "#1a1c20"
PAPER_TEXT, PAPER_RULE = "#687078", "#dfe2e6"  # quiet text, and lines that are no curves
_GAP, _TITLE, _TEXT, _SMALL = 12, 16, 14, 12  # pixels
_DPI = 130  # of plots


def save(figure: Any, path: str | Path) -> None:
    """Write a picture (Pillow) or a plot (matplotlib) in the format of the path's suffix, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    with whole_file(path) as aside:
        if isinstance(figure, Image.Image):
            figure.save(aside)
        elif Path(path).suffix == ".png":
            from matplotlib.backends.backend_agg import FigureCanvasAgg

            figure.set_dpi(_DPI)
            FigureCanvasAgg(figure).print_png(aside)  # `savefig` draws twice, first to lay out what is drawn
        else:
            figure.savefig(aside, dpi=_DPI)


# ------------------------------------------------------------------------------------------------------- pictures


def scale_to_fit(image: Image.Image, side: int) -> Image.Image:
    """The picture with its longer side at most `side`: enlarged by a whole factor, unsmoothed, or else made smaller."""
    factor = side // max(image.size)
    if factor:
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.convert("RGB").resize(size, Image.Resampling.BICUBIC)


def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)  # Pillow carries one, so that no machine lacks it


def wrap(text: str, width: int, size: int = _TEXT) -> list[str]:
    """Lines of `text` that fit `width` pixels; a longer word stands alone."""
    font, lines = _font(size), [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


@dataclass(frozen=True)
class Card:
    """Pictures side by side, each under its heading, above lines of text.

    Args:
        pictures: heading -> picture, at least one.
        lines: paragraphs below, wrapped.
        side: pixels that a picture's longer side may take.
    """

    pictures: dict[str, Image.Image]
    lines: tuple[str, ...] = ()
    side: int = 128

    def draw(self) -> Image.Image:
        shown = {heading: scale_to_fit(image, self.side) for heading, image in self.pictures.items()}
        width = sum(image.width for image in shown.values()) + _GAP * (len(shown) - 1)
        text = [line for paragraph in self.lines for line in wrap(paragraph, width)]
        tallest = max(image.height for image in shown.values())
        head = _SMALL + 6 if any(shown) else 0
        card = Image.new("RGB", (width, head + tallest + 6 + (_TEXT + 4) * len(text)), _PAPER)
        pen, left = ImageDraw.Draw(card), 0
        for heading, image in shown.items():
            pen.text((left, 0), heading, PAPER_TEXT, _font(_SMALL))
            card.paste(image.convert("RGB"), (left, head))
            left += image.width + _GAP
        for number, line in enumerate(text):
            pen.text((0, head + tallest + 6 + number * (_TEXT + 4)), line, _INK, _font(_TEXT))
        return card


def side_by_side(captions: list[str], columns: dict[str, list[Image.Image]]) -> list[Card]:
    """One card per caption, with the picture of each column above it.

    Args:
        columns: heading -> one picture per caption. An empty caption takes no room.
    """
    return [
        Card(dict(zip(columns, pictures, strict=True)), (caption,) if caption else ())
        for caption, *pictures in zip(captions, *columns.values(), strict=True)
    ]


def grid(cards: list[Card], columns: int, title: str = "") -> Image.Image:
    """A page of cards in reading order, `columns` per row, under a title.

    Raises:
        ValueError: there is no card to draw.
    """
    if not cards:
        raise ValueError("a grid needs at least one card")
    columns = min(columns, len(cards))
    drawn = [card.draw() for card in cards]
    rows = [drawn[i : i + columns] for i in range(0, len(drawn), columns)]
    width = max(card.width for card in drawn)
    heights = [max(card.height for card in row) for row in rows]
    margin, line = 2 * _GAP, _TITLE + 6
    page_width = columns * (width + margin) + margin
    lines = wrap(title, page_width - 2 * margin, _TITLE) if title else []
    y = margin + line * len(lines)
    page = Image.new("RGB", (page_width, sum(heights) + margin * len(rows) + y), _PAPER)
    for number, text in enumerate(lines):
        ImageDraw.Draw(page).text((margin, margin // 2 + number * line), text, _INK, _font(_TITLE))
    for row, height in zip(rows, heights, strict=True):
        for column, card in enumerate(row):
            page.paste(card, (margin + column * (width + margin), y))
        y += height + margin
    return page


# --------------------------------------------------------------------------------------------------------- curves

Curve = tuple[list[float], list[float]]  # steps, values


def read_curves(metrics: Path, points: int | None = None) -> dict[str, Curve]:
    """Every finite number that a run logged in its `metrics.jsonl`, by name; a resumed run shows all of its life.

    A line that a kill cut short is passed over; no file is no curve.

    Args:
        points: of a curve, at most: the last and every n-th before it.
    """
    curves: dict[str, Curve] = {}
    for line in metrics.read_text(encoding="utf-8").splitlines() if metrics.exists() else ():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        for name, value in record.items():
            if isinstance(value, int | float) and math.isfinite(value) and name != "step":
                steps, values = curves.setdefault(name, ([], []))
                steps.append(record["step"])
                values.append(value)
    if points is None:
        return curves
    return {name: (_thin(steps, points), _thin(values, points)) for name, (steps, values) in curves.items()}


def _thin(values: list[float], points: int) -> list[float]:
    """At most `points` of the values: the last, and every n-th before it."""
    every = -(-len(values) // points)
    return values[::-every][::-1]


@dataclass(frozen=True)
class Panel:
    """One chart: named curves over training steps.

    Args:
        log: a logarithmic scale where the values are positive and span enough for one.
    """

    title: str
    curves: dict[str, Curve]
    log: bool = True


PALETTE = (  # what a legend can tell apart; more curves than these take shades in order
    "#2563a8", "#b4541a", "#3c7d4e", "#7a4fa3", "#b08a12", "#b5367a", "#2a8f94", "#7a5230", "#7b828c", "#8fae2b",
)  # fmt: skip
_NAMED = 8  # curves in a legend, at most


def plot(panels: list[Panel], columns: int = 3, soft: str = PAPER_TEXT, rule: str = PAPER_RULE) -> Any:
    """The panels as one matplotlib figure, `columns` per row.

    Args:
        soft, rule: colours of the text and of the lines that are no curves.

    Raises:
        ValueError: there is no panel to draw.
    """
    from matplotlib.figure import Figure

    if not panels:
        raise ValueError("a plot needs at least one panel")
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(3.6 * columns, 2.3 * rows), layout="constrained")
    for place, panel in enumerate(panels, start=1):
        _draw_panel(figure.add_subplot(rows, columns, place), panel, soft, rule)
    return figure


def _draw_panel(axes: Any, panel: Panel, soft: str, rule: str) -> None:
    for colour, (name, (steps, values)) in zip(_colours(len(panel.curves)), panel.curves.items(), strict=True):
        marker = "o" if len(steps) == 1 else None  # a line of one point is not seen
        axes.plot(steps, values, color=colour, linewidth=1.3, marker=marker, label=name)
    _scale(axes, panel)
    set_style(axes, panel.title, "step", soft, rule)
    lines = axes.get_lines()
    axes.legend(handles=lines[:: -(-len(lines) // _NAMED)], fontsize=7, frameon=False, labelcolor=soft)


def set_style(axes: Any, title: str, below: str, soft: str = PAPER_TEXT, rule: str = PAPER_RULE) -> None:
    """How all charts look: title, what stands below, quiet lines."""
    axes.patch.set_alpha(0)
    axes.set_title(title, fontsize=10, color=soft, loc="left")
    axes.set_xlabel(below, fontsize=8, color=soft)
    axes.tick_params(labelsize=8, colors=soft, which="both")
    axes.grid(color=rule, linewidth=0.6)
    for name, spine in axes.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color(rule)


def _colours(count: int) -> list:
    """Colours that can be told apart; shades in order where there are too many curves for that."""
    from matplotlib import colormaps

    if count <= len(PALETTE):
        return list(PALETTE[:count])
    return [colormaps["viridis"](number / (count - 1)) for number in range(count)]


def _scale(axes: Any, panel: Panel) -> None:
    """Logarithmic where the values span enough for it, with numbers that are read at a glance."""
    from matplotlib.ticker import LogLocator, NullFormatter

    values = [value for _, curve in panel.curves.values() for value in curve]
    span = max(values) / min(values) if panel.log and min(values) > 0 else 1
    if span < 4:
        return
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if span < 200 else (1,)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


# stand-ins that nothing else in a chart uses, and curves' colours -> variables of the page that a chart stands on
_THEME = {"#010203": "var(--soft)", "#010204": "var(--rule)"}
_OF_PAGE = dict(zip(PALETTE, ("var(--blue)", "var(--rust)", "var(--green)", "var(--violet)"), strict=False))


def panel_svg(panel: Panel) -> str:
    """A panel as an `<svg>` element for an HTML page; see `themed_svg`."""
    return themed_svg(lambda soft, rule: plot([panel], 1, soft, rule), panel.title)


def themed_svg(draw: Callable[[str, str], Any], name: str) -> str:
    """A plot as an `<svg>` element for an HTML page, whose CSS variables (--soft, --rule, --blue, ...) colour it.

    Args:
        draw: makes the figure, given the colours of its text and of lines that are no curves.
        name: other than those of all other plots on the page, as their ids begin with it.
    """
    import matplotlib

    text = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif"}):
        figure = draw(*_THEME)
        figure.patch.set_alpha(0)
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)  # the page has its own style
    for colour, variable in (_THEME | _OF_PAGE).items():
        svg = svg.replace(colour, variable)
    # two charts on a page must not share ids, and the page decides the size
    prefix = re.sub(r"\W+", "-", name.lower())
    svg = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{prefix}-", svg)
    for side in ("width", "height"):
        svg = re.sub(rf'(<svg[^>]*?) {side}="[^"]*"', r"\1", svg, count=1)
    return svg
