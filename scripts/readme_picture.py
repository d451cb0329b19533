"""The README's picture: `python scripts/readme_picture.py CHECKPOINT --out FILE.png`, from the demo's checkpoint.

Three columns, all of them made by the checkpoint: prompts of pairs that it never saw, drawn by diffusion and by codes;
one of those pictures, asked about through two paths; and the attention mask of a packed row, as the backbone is given
it, coloured by what the query is.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

import hybridgen  # noqa: F401  first: it mends torchvision beside a CPU build of torch
from hybridgen.core.figures import save, scale_to_fit, wrap
from hybridgen.core.layout import PADDING_DOCUMENT, dense_mask, pack
from hybridgen.pipeline_hybridgen import HybridGenPipeline, load_pipeline

PROMPTS = [
    "a minotaur wearing a green robe and a purple hood, holding a crossbow, green background",
    "a naga wearing a red robe, holding a torch, black background",
    "an orc wearing a purple robe, holding a yellow diamond shield, blue background",
]
QUESTIONS = [
    ("what creature is this?", "understanding"),
    ("what is in the right hand?", "understanding"),
    ("what colour is the robe?", "diffusion"),
    ("is there a purple hood?", "diffusion"),
]
PAPER, INK, SOFT = (255, 255, 255), (26, 28, 32), (104, 110, 120)
COLOURS = {"text": (52, 98, 180), "diffusion": (214, 110, 40), "vq": (46, 142, 96), "padding": (190, 194, 200)}
SIDE, SMALL, LARGE, GAP = 128, 15, 19, 18  # pixels


def font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def write(page: Image.Image, place: tuple[int, int], text: str, width: int, colour=INK, size: int = SMALL) -> int:
    """Wrapped text; returns the height it takes."""
    lines = wrap(text, width, size)
    for number, line in enumerate(lines):
        ImageDraw.Draw(page).text((place[0], place[1] + number * (size + 5)), line, colour, font(size))
    return len(lines) * (size + 5)


def drawn_column(pipeline: HybridGenPipeline, seed: int) -> tuple[Image.Image, Image.Image]:
    """Each prompt beside its two pictures; and the first picture by diffusion, which the next column asks about."""
    drawn = {path: pipeline(PROMPTS, path=path, seed=seed).images for path in ("diffusion", "vq")}
    width = 2 * SIDE + GAP + 170
    page = Image.new("RGB", (width, 26 + len(PROMPTS) * (SIDE + GAP)), PAPER)
    for column, path in enumerate(drawn):
        write(page, (170 + column * (SIDE + GAP), 0), path, SIDE, COLOURS[path])
        for row, picture in enumerate(drawn[path]):
            page.paste(scale_to_fit(picture, SIDE), (170 + column * (SIDE + GAP), 26 + row * (SIDE + GAP)))
    for row, prompt in enumerate(PROMPTS):
        write(page, (0, 30 + row * (SIDE + GAP)), prompt, 158)
    return page, drawn["diffusion"][0]


def asked_column(pipeline: HybridGenPipeline, picture: Image.Image) -> Image.Image:
    page = Image.new("RGB", (250, 26 + 3 * (SIDE + GAP)), PAPER)
    page.paste(scale_to_fit(picture, SIDE), (0, 26))
    y = 26 + SIDE + 12
    for question, path in QUESTIONS:
        answer = pipeline.answer(picture, question, path=path)[0]
        y += write(page, (0, y), question, 250, SOFT)
        y += write(page, (0, y), f"{answer}   ({path})", 250) + 9
    return page


def mask_column(pipeline: HybridGenPipeline, pictures: list[Image.Image], cell: int = 2) -> Image.Image:
    """A row of two documents: one draws by diffusion and goes on in text, one draws by codes."""
    processor, documents = pipeline.processor, []
    for path, picture, prompt in zip(("diffusion", "vq"), pictures, PROMPTS, strict=False):
        said = [{"type": "image", "image": picture}, {"type": "text", "text": prompt}]
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": said}]
        documents.append(processor.document(messages, write=path).layout)
    row = pack(documents, sum(map(len, documents)) + 8, processor.tokenizer.pad_token_id)
    document_ids, block_ids = torch.tensor([row.document_ids]), torch.tensor([row.block_ids])
    allowed = dense_mask(document_ids, block_ids)[0, 0].numpy()
    kinds = {processor.special_tokens.placeholder(path): path for path in ("diffusion", "vq")}
    pixels = np.full((*allowed.shape, 3), 246, np.uint8)
    for query, (token, document) in enumerate(zip(row.input_ids, row.document_ids, strict=True)):
        kind = "padding" if document == PADDING_DOCUMENT else kinds.get(token, "text")
        pixels[query, allowed[query]] = COLOURS[kind]
    side = len(row) * cell
    page = Image.new("RGB", (side, 26 + side + 92), PAPER)
    write(page, (0, 0), "two documents in one packed row: who sees whom", side, SOFT)
    page.paste(Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST), (0, 26))
    y = 26 + side + 10
    for kind, words in (
        ("text", "text: causal"),
        ("diffusion", "an image drawn by diffusion: one block, both ways"),
        ("vq", "an image drawn by codes: causal"),
    ):
        ImageDraw.Draw(page).rectangle((0, y + 3, 12, y + 15), COLOURS[kind])
        y += write(page, (20, y), words, side - 20) + 4
    return page


def compose(pipeline: HybridGenPipeline, seed: int) -> Image.Image:
    drawn, picture = drawn_column(pipeline, seed)
    columns = {
        "It draws, by two paths": drawn,
        "It answers, by what it sees": asked_column(pipeline, picture),
        "One attention mask for both": mask_column(pipeline, [picture, picture]),
    }
    gap = 3 * GAP
    width = sum(page.width for page in columns.values()) + gap * (len(columns) + 1)
    sheet = Image.new("RGB", (width, GAP + 40 + max(page.height for page in columns.values())), PAPER)
    left = gap
    for heading, page in columns.items():
        write(sheet, (left, GAP), heading, page.width, size=LARGE)
        sheet.paste(page, (left, GAP + 40))
        left += page.width + gap
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/images/overview.png"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    pipeline = load_pipeline(options.checkpoint)
    pipeline.set_progress_bar_config(disable=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    save(compose(pipeline, options.seed), options.out)
    print(f"{options.out}: {options.out.stat().st_size // 1024} kB")


if __name__ == "__main__":
    main()
