"""Packing: documents into rows of a token budget, first fit, nothing dropped and nothing cut.

Only lengths matter here: what a row looks like as vectors is `layout.pack`. A document that fits nowhere is not lost:
it waits, and is the first to be placed in the next rows.

    rows of 10      | 4 4   | 7     |      next: 5   fits nowhere: waits
                    | 4 4 2 | 7 3   |      next: 2, 3 fill the holes
"""

from collections.abc import Callable, Iterator, Sized
from typing import TypeVar

from hybridgen.core.documents import Document

D = TypeVar("D", bound=Sized)


def check_length(document: Sized, length: int, where: str, max_positions: int | None = None) -> None:
    """Raises ValueError for a document of more tokens than a row, or than the model has positions for."""
    size = len(document)
    if max_positions is not None and size > max_positions:
        raise ValueError(
            f"{where}: the document has {size} tokens, but the model only {max_positions} positions "
            f"(text_config.max_position_embeddings); raise it to at least {size}, make the document shorter, "
            "or say long: split, or truncate, of its source"
        )
    if size > length:
        raise ValueError(
            f"{where}: the document has {size} tokens, but a row only {length}; raise sequence_length to at least "
            f"{size}, make the document shorter, or say long: split, or truncate, of its source"
        )


def fit_rows(
    document: Document, length: int, long: str, where: str, max_positions: int | None = None
) -> Iterator[Document]:
    """A document as what goes into rows: itself, or, where it is longer than one, its pieces.

    Args:
        long: `split` = all pieces, `truncate` = the first, `refuse` = none (`SourceConfig.long`).

    Raises:
        ValueError: it is too long and `long` is `refuse`, or a picture in it is longer than a row (the pieces before it
            come first), or nothing would be learnt from what `truncate` leaves.
    """
    longest = length if max_positions is None else min(length, max_positions)
    if len(document) <= longest:
        yield document
    elif long == "split":
        yield from document.pieces(longest)
    elif long == "truncate":
        first = next(document.pieces(longest))
        if not first.learns:
            raise ValueError(
                f"{where}: the first {longest} of its {len(document)} tokens have no loss, so nothing would be learnt; "
                "raise sequence_length, or say long: split"
            )
        yield first
    else:
        check_length(document, length, where, max_positions)


def pack_rows(
    next_document: Callable[[], D], rows: int, length: int, pending: list[D], max_waiting: int = 8
) -> tuple[list[list[D]], list[D]]:
    """Fill `rows` rows of at most `length` tokens.

    1. Documents that wait are placed first, in order.
    2. Documents are drawn, and each goes into the first row with room for it.
    3. When `max_waiting` of them wait, or no token of room is left, the rows are done.

    Args:
        next_document: draws the next document; it has a length, and a `where` for errors.
        pending: documents that wait since the last call; not changed.
        max_waiting: how many may wait: more of them fill the rows better, and are kept in memory.

    Returns:
        the rows, and the documents that wait for the next call.

    Raises:
        ValueError: a document is longer than a row.
    """
    filled: list[list[D]] = [[] for _ in range(rows)]
    room = [length] * rows
    waiting: list[D] = []

    def place(document: D) -> None:
        check_length(document, length, document.where)
        size = len(document)
        for row in range(rows):
            if size <= room[row]:
                filled[row].append(document)
                room[row] -= size
                return
        waiting.append(document)

    for document in pending:
        place(document)
    while len(waiting) < max_waiting and any(room):
        place(next_document())
    return filled, waiting
