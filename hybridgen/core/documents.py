"""Documents: a layout together with the pixels of its images, and batches of them for generation.

The processor makes them; packing, sampling and evaluation take them. Training rows are made in `data.loading`; this
file knows neither templates nor files. `images` follows the placeholders, not the messages, so an image with a clean
copy is there twice, once written and once read. A document longer than a row is cut into pieces, which are documents.

Shapes: B documents, N tokens of the longest, I images, 3 x H x W pixels in [-1, 1].
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from hybridgen.core.layout import IGNORE, PADDING_DOCUMENT, SequenceLayout, cuts, piece_of


@dataclass
class DocumentImage:
    """One image of a document, in reading order.

    Args:
        path: its path, and so its placeholder.
        pixels: (3, H, W) as that path wants them, floats, or levels of 8 bits where they were read for training; None =
            not yet read (`HybridGenProcessor.read_pixels`).
        span: (begin, end) of all tokens of its picture in the document, its frame, its clean copy and the other paths
            by which it stands there counted: what is never cut. All images made of one picture have the same.
        write: the model learns to draw it; otherwise it is read.
        image_first: true if no text of the conversation precedes it (role tokens are no text), dropped text included:
            unconditional pictures need all noise levels, which an objective may cap for images that come first.
        max_timestep: cap on its noise where it is drawn by diffusion; None = the objective's.
        picture, frame: what the pixels are made of, and their height, width and fit, where they are not yet read.
    """

    path: str
    pixels: Tensor | None
    span: tuple[int, int]
    write: bool = False
    image_first: bool = False
    max_timestep: float | None = None
    picture: Any = None
    frame: tuple[int | None, int | None, str | None] = (None, None, None)


@dataclass
class Document:
    """One conversation or one text as tokens, and its images.

    Args:
        plain: it is made without a chat template.
    """

    layout: SequenceLayout
    images: list[DocumentImage] = field(default_factory=list)
    plain: bool = False

    def __len__(self) -> int:
        return len(self.layout)

    def pixels(self, path: str) -> list[Tensor]:
        """The images of one path, in reading order."""
        return [image.pixels for image in self.images if image.path == path]

    @property
    def learns(self) -> bool:
        """Whether anything of it has a loss: a token, or an image that is drawn."""
        return any(label != IGNORE for label in self.layout.labels) or any(image.write for image in self.images)

    def pieces(self, length: int) -> Iterator["Document"]:
        """The document cut into pieces of at most `length` tokens (`layout.cuts`); one that is not longer is its only
        piece. A cut costs the label of the token after it, and what stands behind it no longer sees what stands before.

        Raises:
            ValueError: a picture does not fit a row.
        """
        if len(self) <= length:
            yield self
            return
        for begin, end in cuts(len(self), length, sorted({image.span for image in self.images})):
            inside = [image for image in self.images if begin <= image.span[0] < end]
            yield Document(
                piece_of(self.layout, begin, end), [self._moved(image, begin) for image in inside], self.plain
            )

    def _moved(self, image: DocumentImage, begin: int) -> DocumentImage:
        """An image in the piece from token `begin` on; one before which only images stand there comes first."""
        first, last = image.span
        before = sum(span[1] - span[0] for span in {each.span for each in self.images} if begin <= span[0] < first)
        opens = begin > 0 and before == first - begin
        return replace(image, span=(first - begin, last - begin), image_first=image.image_first or opens)


def left_pad(documents: list[Document], pad_id: int, multiple: int = 1) -> dict[str, Tensor | list[Tensor] | None]:
    """Documents as one batch padded on the left, so that every row continues in the same column.

    Args:
        multiple: N is rounded up to a multiple of this.

    Returns:
        input_ids, attention_mask, document_ids, block_ids, position_ids: (B, N). Padding is a document of its own.
        pixel_values: (I, 3, h, w) images of the understanding path, or a list where sizes differ; None when there are
            none.
        diffusion_images, vq_images: lists of (3, H, W). All images in reading order, row after row.

    Raises:
        ValueError: no document is given.
    """
    if not documents:
        raise ValueError("no documents to make a batch of; give at least one prompt")
    longest = -(-max(len(document) for document in documents) // multiple) * multiple
    columns: dict[str, list[list[int]]] = {}
    for document in documents:
        layout, pad = document.layout, longest - len(document)
        row = {
            "input_ids": [pad_id] * pad + layout.input_ids,
            "attention_mask": [0] * pad + [1] * len(document),
            "document_ids": [PADDING_DOCUMENT] * pad + layout.document_ids,
            "block_ids": [*range(pad), *(block + pad for block in layout.block_ids)],
            "position_ids": [0] * pad + layout.position_ids,
        }
        for name, values in row.items():
            columns.setdefault(name, []).append(values)
    batch: dict = {name: torch.tensor(rows) for name, rows in columns.items()}
    understanding = [image for document in documents for image in document.pixels("understanding")]
    alike = len({image.shape for image in understanding}) == 1
    batch["pixel_values"] = (torch.stack(understanding) if alike else understanding) if understanding else None
    for path in ("diffusion", "vq"):
        batch[f"{path}_images"] = [image for document in documents for image in document.pixels(path)]
    return batch


def by_padded_length(documents: Sequence[Document], multiple: int) -> list[list[int]]:
    """Numbers of the documents that are equally long when padded to whole multiples: a row that is padded as it would
    be alone is computed as it would be alone, whatever is beside it."""
    alike: dict[int, list[int]] = {}
    for number, document in enumerate(documents):
        alike.setdefault(math.ceil(len(document) / multiple), []).append(number)
    return list(alike.values())
