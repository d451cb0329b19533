"""Small pieces of HTML that the report is made of. Text goes in as text and is escaped here; the rest is HTML already.

The fact a newcomer gets wrong: a picture is put in as the PNG of its own few pixels. The browser enlarges it,
unsmoothed, as the style sheet says; a PNG that was enlarged before would be many times as large, and blurred on most
screens.
"""

import base64
import io
from html import escape

from PIL import Image


def image_tag(image: Image.Image, alt: str, **attributes: str) -> str:
    """An `<img>` that holds the picture itself; an attribute with a trailing underscore is named without it."""
    file = io.BytesIO()
    image.convert("RGB").save(file, "PNG", optimize=True)
    source = base64.b64encode(file.getvalue()).decode()
    more = "".join(f' {name.rstrip("_")}="{escape(value)}"' for name, value in attributes.items() if value)
    return f'<img src="data:image/png;base64,{source}" alt="{escape(alt)}"{more}>'


def labelled(image: Image.Image, label: str, alt: str) -> str:
    """A picture under its label (HTML)."""
    return f"<figure><figcaption>{label}</figcaption>{image_tag(image, alt)}</figure>"


def mark(wrong: str) -> str:
    """A tick, or a cross that tells what is wrong when pointed at."""
    if wrong:
        return f'<span class="wrong" title="{escape(wrong)}">✗</span>'
    return '<span class="right">✓</span>'


def table(head: list[str], rows: list[list[str]], totals: int = 0) -> str:
    """Cells are HTML. All columns but the first hold numbers; the last `totals` rows stand out."""
    top = "".join(f"<th{' class=number' if i else ''}>{cell}</th>" for i, cell in enumerate(head))
    body = ""
    for number, row in enumerate(rows):
        cells = "".join(f"<td{' class=number' if i else ''}>{cell}</td>" for i, cell in enumerate(row))
        body += f"<tr{' class=total' if number >= len(rows) - totals else ''}>{cells}</tr>\n"
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>\n{body}</tbody></table></div>'


def percent(share: float) -> str:
    """A share for reading: 100 % only when it is all, 0 % only when it is none, never by rounding."""
    if share in (0, 1):
        return f"{share:.0%}".replace("%", " %")
    return f"{min(max(100 * share, 0.1), 99.9):.1f} %"


def with_interval(tally: dict) -> str:
    """A share and, softly, the ends of its interval."""
    return f'{percent(tally["share"])} <span class="soft">{100 * tally["low"]:.1f} to {100 * tally["high"]:.1f}</span>'


def duration(seconds: float) -> str:
    """A time in words, such as `9 min 41 s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
