"""A sheet of pictures: one row a prompt, one column a path, each row's prompt beside it.

For looking at while a run goes on; reports and scores are `evaluation`'s.
"""

import textwrap

from PIL import Image, ImageDraw, ImageFont

TEXT_WIDTH, CELL, GAP = 220, 96, 6
CHARACTERS = 34  # of the built-in font on one line of TEXT_WIDTH


def sheet(prompts: list[str], drawn: dict[str, list[Image.Image]]) -> Image.Image:
    """
    Args:
        drawn: by the name of its column, a picture for each prompt.
    """
    font = ImageFont.load_default(size=11)
    width = TEXT_WIDTH + len(drawn) * (CELL + GAP) + GAP
    picture = Image.new("RGB", (width, 20 + len(prompts) * (CELL + GAP)), "white")
    pen = ImageDraw.Draw(picture)
    for column, (name, images) in enumerate(drawn.items()):
        left = TEXT_WIDTH + column * (CELL + GAP)
        pen.text((left, 4), name, fill="black", font=font)
        for row, image in enumerate(images):
            picture.paste(_fitted(image.convert("RGB")), (left, 20 + row * (CELL + GAP)))
    for row, prompt in enumerate(prompts):
        text = "\n".join(textwrap.wrap(prompt, CHARACTERS)[:6])
        pen.multiline_text((GAP, 20 + row * (CELL + GAP)), text, fill="black", font=font, spacing=2)
    return picture


def _fitted(image: Image.Image) -> Image.Image:
    """Into a cell, pixel art kept sharp."""
    scale = CELL / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BICUBIC)
