"""Exact scores for drawn figures: which spec does a picture show, and is it the one that was asked for?

No network judges here and nothing is learned: the answer is the spec whose own rendering is nearest. A blurred picture
scores low even when it looks right (true pictures under a strong blur do too), so score the true pictures beside the
drawn ones.

A layer is kept as ink = colour * alpha and clear = 1 - alpha: drawn over a picture it gives ink + clear * picture.

Shapes: n pictures of S x S x 3 (S = 32), k candidate layers of a slot. Inside, pictures are folded: (P, n, 4), where
P = 16 * 16 * 3 pooled values and 4 the pixels that each of them averages; so pooling is a sum over the last axis and
all candidates of a slot are one matmul.
"""

from functools import cache
from typing import NamedTuple

import numpy as np

from hybridgen.data.synthetic.dolls.pictures import (
    LAYER_SLOTS,
    SIZE,
    SLOTS,
    DollSpec,
    backgrounds,
    decode,
    encode,
    pixels,
    render_rows,
)
from hybridgen.data.synthetic.questions import Tally, tally
from hybridgen.data.synthetic.sizes import resized

_CHUNK = 64  # pictures at a time, which bounds the memory for their candidates
_SWEEPS = 12  # a bound only: descent stops by itself, since every change lowers the error; 3 to 5 sweeps are usual
_STARTS = 3


def score_pictures(images: np.ndarray, specs: list[DollSpec]) -> dict[str, Tally]:
    """How much of what was asked is in the pictures: (n, S, S, 3) uint8, S = 32, 64 or more, against n specs.

    Returns a tally {"right", "n", "share"} for each of the seven slots, for "slots" (all of them together, n = 7
    pictures' worth) and for "all_seven" (pictures with every slot right). A slot whose two readings draw the same
    picture counts as right: nobody could tell. Raises ValueError when the counts differ or the images have another
    shape or type.
    """
    right = _right_slots(images, specs)  # (n, 7)
    scores = {slot: tally(right[:, column].sum(), len(specs)) for column, slot in enumerate(SLOTS)}
    return scores | {"slots": tally(right.sum(), right.size), "all_seven": tally(right.all(axis=1).sum(), len(specs))}


def judge_pictures(images: np.ndarray, specs: list[DollSpec]) -> list[dict[str, bool]]:
    """As `score_pictures`, picture by picture: {slot: whether it is right}."""
    return [dict(zip(SLOTS, row, strict=True)) for row in _right_slots(images, specs).tolist()]


def _right_slots(images: np.ndarray, specs: list[DollSpec]) -> np.ndarray:
    """(n, 7) bool, in the order of `SLOTS`."""
    if len(images) != len(specs):
        raise ValueError(
            f"{len(images)} pictures cannot be compared with {len(specs)} specs: pass one spec for each picture"
        )
    wanted, nearest = encode(specs), nearest_rows(images)
    right = nearest == wanted
    for picture, column in np.argwhere(~right):
        swapped = wanted[picture].copy()
        swapped[column] = nearest[picture, column]
        right[picture, column] = np.array_equal(*render_rows(np.stack([swapped, wanted[picture]])))
    return right


def majority_slots(specs: list[DollSpec]) -> dict[str, float]:
    """What drawing the commonest part of each slot, always, would score: shares by the names of `score_pictures`."""
    rows = encode(specs)
    commonest = np.array([np.bincount(column + 1).argmax() - 1 for column in rows.T])
    right = rows == commonest
    shares = {slot: float(share) for slot, share in zip(SLOTS, right.mean(axis=0), strict=True)}
    return shares | {"slots": float(right.mean()), "all_seven": float(right.all(axis=1).mean())}


def nearest_specs(images: np.ndarray) -> list[DollSpec]:
    """The spec whose rendering is nearest to each picture: (n, S, S, 3) uint8 -> n specs.

    Nearest in squared error after 2x2 pooling, found by coordinate descent: each slot in turn takes its best layer
    given the others, until nothing changes; from several starts, the best end wins. 256 pictures take a few seconds
    on one core.
    """
    return decode(nearest_rows(images))


def nearest_rows(images: np.ndarray) -> np.ndarray:
    """As `nearest_specs`, encoded: (n, 7) int64. Pictures of another size are brought to 32 pixels first (`sizes`)."""
    images = resized(images, SIZE)
    chunks = [_descend_from_starts(images[i : i + _CHUNK]) for i in range(0, len(images), _CHUNK)]
    return np.concatenate(chunks) if chunks else np.empty((0, len(SLOTS)), np.int64)


class _Folded(NamedTuple):
    """One slot's layers and the empty one, folded; `where` lists the pooled values that any of them touches."""

    ink: np.ndarray  # (P, k, 4)
    clear: np.ndarray  # (P, k, 4)
    where: np.ndarray  # (P',)


def _descend_from_starts(images: np.ndarray) -> np.ndarray:
    """(n, S, S, 3) uint8 -> (n, 7): the best of the ends of descents from each start."""
    target = _fold(images).sum(-1)  # (P, n)
    starts = _starts(target)  # (starts, n, 7)
    ends = _descend(starts.reshape(-1, len(SLOTS)), np.tile(target, len(starts))).reshape(starts.shape)
    drawn = _fold(render_rows(ends.reshape(-1, len(SLOTS)))).sum(-1)
    drawn = drawn.reshape(len(target), len(starts), -1)  # (P, starts, n)
    errors = ((drawn - target[:, None]) ** 2).sum(0)  # (starts, n)
    return ends[errors.argmin(axis=0), np.arange(len(images))]


def _starts(target: np.ndarray) -> np.ndarray:
    """(P, n) -> (starts, n, 7): background and body that fit best, for each of the bases that fit best; the rest empty.

    The bases decide where a descent ends: the face of a man, a woman, an elf or a dwarf is a few pixels, and a wrong
    one holds on.
    """
    rows, table = _bodies_only()  # (m, 7), (P, m)
    errors = (table**2).sum(0) - 2 * target.T @ table  # (n, m), up to what is the same for all candidates of a picture
    base = rows[:, SLOTS.index("base")]
    best = np.stack([np.where(base == i, errors, np.inf).argmin(1) for i in range(base.max() + 1)])  # (bases, n)
    order = np.take_along_axis(errors.T, best, axis=0).argsort(axis=0)[:_STARTS]  # (starts, n)
    return rows[np.take_along_axis(best, order, axis=0)]


def _descend(rows: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Coordinate descent of encoded specs (n, 7) towards pooled pictures (P, n), until no single change helps."""
    rows, active = rows.copy(), np.arange(len(rows))
    for _ in range(_SWEEPS):
        swept = _sweep(rows[active], target[:, active])
        changed = (swept != rows[active]).any(axis=1)
        rows[active] = swept
        active = active[changed]
        if not len(active):
            break
    return rows


def _sweep(rows: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Give every slot in turn its best layer, from the background up.

    1. Compose, for every slot, what lies above it: ink and what it lets through. Changes further down do not touch it.
    2. From the background up: choose the slot's best candidate between what lies below and above, then add it to what
       lies below.
    """
    rows = rows.copy()
    above = _compose_above(rows)
    below = np.zeros((len(target), len(rows), 4), np.float32)
    for slot, (ink, clear) in zip(("background", *LAYER_SLOTS), above, strict=True):
        layer, column = _folded(slot), SLOTS.index(slot)
        at = layer.where
        # (P', n, 8): the factors of a candidate's ink and clearness in the composed picture
        paint = np.concatenate([clear[at], clear[at] * below[at]], axis=-1)
        brush = np.concatenate([layer.ink[at], layer.clear[at]], axis=-1)  # (P', k, 8)
        residual = paint @ brush.transpose(0, 2, 1)  # (P', n, k): pooled candidates, less what lies above
        residual += (ink[at].sum(-1) - target[at])[..., None]
        best = np.einsum("pnk,pnk->nk", residual, residual).argmin(axis=1)
        below *= layer.clear[:, best]
        below += layer.ink[:, best]
        optional = slot not in ("background", "base")
        rows[:, column] = np.where(best == layer.ink.shape[1] - 1, -1, best) if optional else best
    return rows


def _compose_above(rows: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """(n, 7) -> for the background and each slot, in drawing order, (ink, clear) of all above it; both (P, n, 4)."""
    ink = np.zeros((_folded("base").ink.shape[0], len(rows), 4), np.float32)
    clear = np.ones_like(ink)
    composed = [(ink, clear)]
    for column, slot in reversed(list(enumerate(LAYER_SLOTS))):
        layer = _folded(slot)
        ink = ink + clear * layer.ink[:, rows[:, column]]
        clear = clear * layer.clear[:, rows[:, column]]
        composed.append((ink, clear))
    return composed[::-1]


def _fold(images: np.ndarray) -> np.ndarray:
    """(n, S, S, 3) -> (P, n, 4) float32."""
    half = SIZE // 2
    quads = images.reshape(-1, half, 2, half, 2, 3).transpose(1, 3, 5, 0, 2, 4)  # (S/2, S/2, 3, n, 2, 2)
    return np.ascontiguousarray(quads, np.float32).reshape(half * half * 3, -1, 4)


@cache
def _folded(slot: str) -> _Folded:
    if slot == "background":
        colours = np.array(list(backgrounds().values()), np.float32)[:, None, None]  # (6, 1, 1, 3)
        ink = _fold(np.broadcast_to(colours, (len(colours), SIZE, SIZE, 3)))
        return _Folded(ink, np.zeros_like(ink), np.arange(len(ink)))
    layer = pixels()[slot]
    ink, clear = _fold(layer.ink), _fold(np.repeat(layer.clear, 3, axis=-1))
    where = np.flatnonzero((clear < 1).any(axis=(1, 2)))
    if slot == "base":  # never empty
        ink, clear = ink[:, :-1], clear[:, :-1]
    return _Folded(ink, clear, where)


@cache
def _bodies_only() -> tuple[np.ndarray, np.ndarray]:
    """All figures of background, base and body alone: encoded (m, 7) and pooled (P, m)."""
    rows = np.full((len(backgrounds()), len(pixels()["base"].ink) - 1, len(pixels()["body"].ink), len(SLOTS)), -1)
    rows[..., -1], rows[..., SLOTS.index("base")], rows[..., SLOTS.index("body")] = np.indices(rows.shape[:-1])
    rows[:, :, -1, SLOTS.index("body")] = -1  # the last of a slot's pixels is the empty layer
    rows = rows.reshape(-1, len(SLOTS))
    return rows, _fold(render_rows(rows)).sum(-1)
