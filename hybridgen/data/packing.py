"""Packing: documents into rows of a token budget, nothing dropped, and cut only what is longer than a row.

Only lengths matter here: what a row looks like as vectors is `layout.pack`. Each row of a batch is filled on its own,
batch after batch, and has documents of its own that wait: what does not fit now comes later, the oldest first.

    room 10, waiting 7 4 3      the oldest first, then those that fill the row best: 7 3, and 4 waits
"""

from collections.abc import Callable, Iterator, Sized
from typing import TypeVar

from hybridgen.core.documents import Document

D = TypeVar("D", bound=Sized)

MAX_WAITING = 16  # documents of one row


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
        ValueError: it is too long and `long` is `refuse`, or a picture in it is longer than a row, or nothing would be
            learnt from what `truncate` leaves.
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


def fill_row(
    draw: Callable[[], D], room: int, waiting: list[D], max_waiting: int = MAX_WAITING
) -> tuple[list[D], list[D]]:
    """Fill a row, or what is left of one.

    1. As long as all documents fit they are placed in order, and the next one is drawn.
    2. Else more are drawn, until `max_waiting` wait. The oldest is placed, and of the others those that leave the least
       room.
    3. The room that is left takes what still comes and fits, until again `max_waiting` wait.

    Args:
        draw: draws the next document; none is longer than a row. Of two documents with one `order_key` (pieces of one
            that was cut) the first is always placed first.
        room: tokens.
        waiting: documents that wait since the last call, the oldest first; not changed.
        max_waiting: how many may wait: more of them fill the rows better.

    Returns:
        the documents of the row, and those that wait for the next call.
    """
    placed: list[D] = []
    waiting = list(waiting)

    def place(chosen: list[int]) -> None:
        nonlocal room
        for number in chosen:
            placed.append(waiting[number])
            room -= len(waiting[number])
        for number in sorted(chosen, reverse=True):
            del waiting[number]

    while room and sum(map(len, waiting)) <= room:
        place(range(len(waiting)))
        if room:
            waiting.append(draw())
    while room and len(waiting) < max_waiting:
        waiting.append(draw())
    if room and waiting and len(waiting[0]) <= room:
        place([0])
    if room:
        place(best_fit([len(each) for each in waiting], room, _without_later_pieces(waiting)))
    while room and len(waiting) < max_waiting:
        waiting.append(draw())
        last = len(waiting) - 1
        if len(waiting[last]) <= room and last in _without_later_pieces(waiting):
            place([last])
    return placed, waiting


def best_fit(sizes: list[int], room: int, allowed: list[int]) -> list[int]:
    """Which of the sizes together leave the least room: their places, in order. Of several ways to fill it, that with
    the largest sizes, as small ones are of more use later. All sums that can be reached are the bits of one number."""
    order = sorted(allowed, key=sizes.__getitem__)
    reachable = [1]
    for place in order:
        reachable.append((reachable[-1] | reachable[-1] << sizes[place]) & ((2 << room) - 1))
    left, chosen = reachable[-1].bit_length() - 1, []
    for place, sums in zip(reversed(order), reversed(reachable[:-1]), strict=True):
        if sizes[place] <= left and sums >> (left - sizes[place]) & 1:
            chosen.append(place)
            left -= sizes[place]
    return sorted(chosen)


def _without_later_pieces(waiting: list) -> list[int]:
    """Places of the documents, of pieces of one only that of the first."""
    first = {each.order_key: place for place, each in reversed(list(enumerate(waiting)))}
    return sorted(first.values())
