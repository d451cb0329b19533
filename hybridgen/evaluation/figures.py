"""Pictures of results: grids of drawn pictures beside their words, answered questions, and curves of a training run.

Nothing is scored here and no HTML is written (`report` does that). The fact a newcomer gets wrong: pixel art is
enlarged by whole factors with nearest neighbour, never smoothed, because a smoothed picture hides exactly the errors
one looks for.
"""

import io
import re
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

_PAPER, _INK, _SOFT = (255, 255, 255), (26, 28, 32), (104, 110, 120)
_GAP, _TITLE, _TEXT, _SMALL = 12, 16, 14, 12  # pixels


def enlarge(image: Image.Image, side: int) -> Image.Image:
    """The picture by the largest whole factor whose longer side fits `side` (at least its own size), unsmoothed."""
    factor = max(1, side // max(image.size))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


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
        side: pixels a picture is enlarged to.
    """

    pictures: dict[str, Image.Image]
    lines: tuple[str, ...]
    side: int = 128

    def draw(self) -> Image.Image:
        shown = {heading: enlarge(image, self.side) for heading, image in self.pictures.items()}
        width = sum(image.width for image in shown.values()) + _GAP * (len(shown) - 1)
        text = [line for paragraph in self.lines for line in wrap(paragraph, width)]
        tallest = max(image.height for image in shown.values())
        head = _SMALL + 6 if any(shown) else 0
        card = Image.new("RGB", (width, head + tallest + 6 + (_TEXT + 4) * len(text)), _PAPER)
        pen, left = ImageDraw.Draw(card), 0
        for heading, image in shown.items():
            pen.text((left, 0), heading, _SOFT, _font(_SMALL))
            card.paste(image.convert("RGB"), (left, head))
            left += image.width + _GAP
        for number, line in enumerate(text):
            pen.text((0, head + tallest + 6 + number * (_TEXT + 4)), line, _INK, _font(_TEXT))
        return card


def grid(cards: list[Card], columns: int, title: str = "") -> Image.Image:
    """Cards in reading order, `columns` a row, under a title.

    Raises:
        ValueError: there is no card to draw.
    """
    if not cards:
        raise ValueError("a grid needs at least one card")
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


# ------------------------------------------------------------------------------------------------------- curves


@dataclass(frozen=True)
class Panel:
    """One chart: named lines of (x values, y values) over steps."""

    title: str
    lines: dict[str, tuple[list[float], list[float]]]
    log: bool = True


# Stand-ins that no other part of a chart uses: swapped for the colours of a light or dark page.
_THEME = {"#010203": "var(--soft)", "#010204": "var(--rule)"}
_LINES = {"#2563a8": "var(--blue)", "#b4541a": "var(--rust)", "#3c7d4e": "var(--green)", "#7a4fa3": "var(--violet)"}


def draw_panel(panel: Panel, soft: str = "#687078", rule: str = "#dfe2e6"):
    """A panel as a matplotlib figure of its own, text in `soft` and lines of the grid in `rule`."""
    # matplotlib is slow to import and only pictures of curves need it
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6, 2.3), layout="constrained")
    axes = figure.subplots()
    figure.patch.set_alpha(0)
    axes.patch.set_alpha(0)
    for colour, (name, (x, y)) in zip(list(_LINES) * 4, panel.lines.items(), strict=False):
        marker = "o" if len(x) == 1 else None  # a line of one point is not seen
        axes.plot(x, y, color=colour, linewidth=1.3, marker=marker, label=name)
    _scale(axes, panel)
    axes.set_title(panel.title, fontsize=10, color=soft, loc="left")
    axes.set_xlabel("step", fontsize=8, color=soft)
    axes.tick_params(labelsize=8, colors=soft, which="both")
    axes.grid(color=rule, linewidth=0.6)
    for name, spine in axes.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color(rule)
    if len(panel.lines) > 1:
        axes.legend(fontsize=8, frameon=False, labelcolor=soft)
    return figure


def _scale(axes, panel: Panel) -> None:
    """Logarithmic where the values span enough for it, with numbers that are read at a glance."""
    from matplotlib.ticker import LogLocator, NullFormatter  # see draw_panel

    values = [value for _, y in panel.lines.values() for value in y]
    span = max(values) / min(values) if panel.log and min(values) > 0 else 1
    if span < 4:
        return
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if span < 200 else (1,)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def panel_svg(panel: Panel) -> str:
    """A panel as an `<svg>` element whose colours are the CSS variables of the page around it."""
    import matplotlib  # see draw_panel

    text = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": panel.title, "font.family": "sans-serif"}):
        draw_panel(panel, *_THEME).savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)  # the page has its own style
    for stand_in, variable in (_THEME | _LINES).items():
        svg = svg.replace(stand_in, variable)
    # two charts on a page must not share ids, and the page decides the size
    prefix = re.sub(r"\W+", "-", panel.title.lower())
    svg = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{prefix}-", svg)
    for side in ("width", "height"):
        svg = re.sub(rf'(<svg[^>]*?) {side}="[^"]*"', r"\1", svg, count=1)
    return svg


def panels_image(panels: list[Panel], columns: int = 3) -> Image.Image:
    """The panels as one picture on white, `columns` a row.

    Raises:
        ValueError: there is no panel to draw.
    """
    if not panels:
        raise ValueError("a plot needs at least one panel")
    drawn = []
    for panel in panels:
        figure, file = draw_panel(panel), io.BytesIO()
        figure.savefig(file, format="png", dpi=130)
        drawn.append(Image.open(file).convert("RGBA"))
    columns = min(columns, len(drawn))
    width, height = (max(side) for side in zip(*(image.size for image in drawn), strict=True))
    page = Image.new("RGB", (columns * width, -(-len(drawn) // columns) * height), _PAPER)
    for number, image in enumerate(drawn):
        page.paste(image, (number % columns * width, number // columns * height), image)
    return page
