"""Attribution: which entry of the mixture each token and picture of a batch came from, and how many bytes it teaches.

Only numbers beside a batch are made here; losses are added up by them in `training.breakdown`. The fact a newcomer gets
wrong: bytes are those of the decoded text that carries a loss. Tokens that are no text (end of turn, begin of image)
have none, though each costs nats; so bits per byte count what it takes to write the text *and* to end it.

Shapes: B rows of this rank, N tokens of a row, I images of the diffusion path, S entries of the mixture.
"""

from itertools import groupby

import torch
from torch import Tensor

from hybridgen.core.documents import Document
from hybridgen.core.layout import IGNORE
from hybridgen.data.mixture import Drawn
from hybridgen.processing_hybridgen import HybridGenProcessor

NOWHERE = -1  # of padding


def attribute(rows: list[list[Drawn]], names: list[str], processor: HybridGenProcessor, length: int) -> dict:
    """
    Args:
        names: of the mixture's entries, whose places are their numbers.
        length: tokens of a row.

    Returns:
        source_ids: (B, N) the entry of each token, NOWHERE on padding.
        diffusion_sources: (I,) the entry of each image of the diffusion path; absent where there is none.
        text_bytes: (B, S) bytes of the text that each row teaches, by entry.
    """
    number = {name: place for place, name in enumerate(names)}
    ids = torch.full((len(rows), length), NOWHERE)
    pictures, sizes = [], torch.zeros(len(rows), len(names), dtype=torch.long)
    for row, documents in enumerate(rows):
        start = 0
        for drawn in documents:
            source = number[drawn.task.name]
            ids[row, start : start + len(drawn)] = source
            pictures += [source] * len(drawn.document.pixels("diffusion"))
            sizes[row, source] += text_bytes(drawn.document, processor)
            start += len(drawn)
    found: dict[str, Tensor] = {"source_ids": ids, "text_bytes": sizes}
    return found | ({"diffusion_sources": torch.tensor(pictures)} if pictures else {})


def text_bytes(document: Document, processor: HybridGenProcessor) -> int:
    """UTF-8 bytes of the text that a document teaches, one stretch of labels after another."""
    labels = document.layout.labels
    taught = (list(run) for is_label, run in groupby(labels, IGNORE.__ne__) if is_label)
    return sum(len(processor.decode_piece(run).encode()) for run in taught)
