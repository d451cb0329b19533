"""Attribution: which source each token and picture of a batch came from, and how many bytes of text are learned.

Losses are added up by these numbers in `training.monitor.breakdown`. Bytes are those of the decoded text that carries a
loss. Tokens that are no text (end of turn, begin of image) have no bytes though each costs nats, so bits per byte count
what it takes to write the text *and* to end it.

Shapes: B rows of this rank, N tokens of a row, I images of the diffusion path, S sources of the mixture.
"""

from itertools import groupby

import torch
from torch import Tensor

from hybridgen.core.documents import Document
from hybridgen.core.layout import IGNORE
from hybridgen.data.row_stream import DrawnDocument
from hybridgen.processing_hybridgen import HybridGenProcessor

NO_SOURCE = -1  # of padding


def attribute(rows: list[list[DrawnDocument]], names: list[str], processor: HybridGenProcessor, length: int) -> dict:
    """
    Args:
        names: of the mixture's sources; a source's number is its place here.
        length: tokens of a row.

    Returns:
        source_ids: (B, N) the source of each token, NO_SOURCE on padding.
        diffusion_sources: (I,) the source of each image of the diffusion path; absent where there is none.
        text_bytes: (B, S) bytes of text with a loss in each row, by source.
    """
    numbers = {name: number for number, name in enumerate(names)}
    ids = torch.full((len(rows), length), NO_SOURCE)
    pictures, sizes = [], torch.zeros(len(rows), len(names), dtype=torch.long)
    for row, documents in enumerate(rows):
        start = 0
        for drawn in documents:
            source = numbers[drawn.source.name]
            ids[row, start : start + len(drawn)] = source
            pictures += [source] * len(drawn.document.pixels("diffusion"))
            sizes[row, source] += text_bytes(drawn.document, processor)
            start += len(drawn)
    vectors: dict[str, Tensor] = {"source_ids": ids, "text_bytes": sizes}
    return vectors | ({"diffusion_sources": torch.tensor(pictures)} if pictures else {})


def text_bytes(document: Document, processor: HybridGenProcessor) -> int:
    """UTF-8 bytes of a document's text that carries a loss, decoded one run of labels after another."""
    runs = (list(run) for has_loss, run in groupby(document.layout.labels, IGNORE.__ne__) if has_loss)
    return sum(len(processor.decode_piece(run).encode()) for run in runs)
