"""The layout: the integer vectors from which the backbone knows which token sees which, and where losses fall.

This file is for sequences of tokens; it knows nothing of pixels, weights or files. The attention rule is not "causal
plus an image mask", but one comparison of one integer per token, its *block*:

    attend(q, k) = document[q] == document[k]  and  block[k] <= block[q]  and  noised[k] in (0, noised[q])

      text a b | image p q r | text c          a b p q r c
      blocks   0 1   2 2 2     3            a  x . . . . .
                                            b  x x . . . .
      a text token and a code each are a    p  x x x x x .
      block of their own (causal); the      q  x x x x x .
      tokens of one bidirectional image     r  x x x x x .
      share one.                            c  x x x x x x

`noised_mask` marks the tokens of a noised image that later tokens must not see, since they read its clean copy (BAGEL,
arXiv 2505.14683); `noised` numbers these images, and is 0 on all other tokens. Inside of its own image a noised token
sees what the blocks let it see: all of a bidirectional image, and of a causal one what stands before it. Dense,
additive and flex masks are three renderings of the same `attend`.

Some layers of some decoders see a part of what stands before them (`Window`): the last tokens only, or those of their
chunk. They are counted as transformers counts them, in tokens of the document, a picture's noised tokens not twice. For
them alone the rule has one more comparison, place[k] >= earliest[q]. Windows cut text, pictures are whole: all tokens
of an image stand at the place of its last one where others look for them, and look back from that of its first one.
So an image sees all of itself, and is seen as long as its last token is.

Shapes: B rows, N tokens of a row, K keys (N plus the cached ones), Q queries (the last of the K keys).
"""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from hybridgen.core.names import PATHS

IGNORE = -100  # no loss here, as everywhere in torch and transformers
PADDING_DOCUMENT = -1

Path = Literal["understanding", "diffusion", "vq"]

FP32_ATTENTION = "sdpa_fp32"  # SDPA outside of autocast (training.distributed.precision)
SDPA = ("sdpa", FP32_ATTENTION)

FLEX_TILE = 128  # queries, and keys, of a tile of flex attention
PAIRS_AT_ONCE = 1 << 22  # of queries and keys, whose rule is asked at once

Vectors = tuple[Tensor, ...]  # document, block, number of the noised image, and with a window its reach


# ---------------------------------------------------------------------------------------------------- the rule


def attend(
    document_q: Tensor,
    document_k: Tensor,
    block_q: Tensor,
    block_k: Tensor,
    noised_q: Tensor,
    noised_k: Tensor,
    earliest_q: Tensor | None = None,
    place_k: Tensor | None = None,
) -> Tensor:
    """The one predicate (module docstring), on broadcastable integer tensors; the last two are of layers with a
    window."""
    allowed = (document_q == document_k) & (block_k <= block_q) & ((noised_k == 0) | (noised_k == noised_q))
    return allowed if place_k is None else allowed & (place_k >= earliest_q)


def number_noised_images(noised_mask: Tensor | None, like: Tensor) -> Tensor:
    """(B, K) 0 on tokens that are not masked as noised, else the number of their image in the row: a run of noised
    tokens is an image, as its frame and its clean copy are not noised. None = none are, in the shape of `like`."""
    if noised_mask is None:
        return torch.zeros_like(like)
    is_noised = noised_mask.bool()
    return _begins(is_noised).cumsum(1) * is_noised


@dataclass(frozen=True)
class Window:
    """How far a layer of the backbone sees back (module docstring).

    Args:
        size: in tokens, at least 1.
        chunked: what is seen ends where the token's chunk of `size` tokens begins (Llama 4), not `size` tokens back
            (Mistral, Gemma).
    """

    size: int
    chunked: bool = False

    def earliest(self, places: Tensor) -> Tensor:
        """The first place that tokens at these places see."""
        return places // self.size * self.size if self.chunked else places - (self.size - 1)


class Reach(NamedTuple):
    """What `attend` compares in layers with a window: two integer vectors (B, K)."""

    earliest: Tensor
    place: Tensor


def find_reach(
    window: Window, document_ids: Tensor, image_ids: Tensor | None = None, noised_mask: Tensor | None = None
) -> Reach:
    """Vectors (B, K) -> the `Reach` of a layer with this window; for `image_ids` see `infer_image_ids`."""
    places = count_places(document_ids, noised_mask)
    if image_ids is None:
        return Reach(window.earliest(places), places)
    goes_on = torch.zeros_like(document_ids, dtype=torch.bool)  # the token is of the image of the one before it
    goes_on[:, 1:] = (image_ids[:, 1:] == image_ids[:, :-1]) & (image_ids[:, 1:] > 0)
    indices = torch.arange(places.shape[1], device=places.device).expand_as(places)
    first = indices.masked_fill(goes_on, 0).cummax(1).values
    ends_here = ~torch.nn.functional.pad(goes_on[:, 1:], (0, 1))
    last = indices.masked_fill(~ends_here, places.shape[1] - 1).flip(1).cummin(1).values.flip(1)
    return Reach(window.earliest(places.gather(1, first)), places.gather(1, last))


def count_places(document_ids: Tensor, noised_mask: Tensor | None = None) -> Tensor:
    """(B, K) how many tokens of its document stand before each. Those of a noised image count where they are, but not
    for what follows, as its clean copy takes their places: so these are the positions that `lay_out` gives."""
    is_noised = torch.zeros_like(document_ids, dtype=torch.bool) if noised_mask is None else noised_mask.bool()
    order = document_ids.argsort(dim=1, stable=True)  # documents one after the other, wherever their tokens stand
    documents, counted = document_ids.gather(1, order), (~is_noised).long().gather(1, order)
    before = counted.cumsum(1) - counted
    goes_on = torch.zeros_like(is_noised)
    goes_on[:, 1:] = documents[:, 1:] == documents[:, :-1]
    places = torch.empty_like(before).scatter(1, order, before - before.masked_fill(goes_on, 0).cummax(1).values)
    if noised_mask is None:
        return places
    run = is_noised.long().cumsum(1)  # noised tokens so far; less those before the image, the place in it
    return places + (run - 1 - (run - 1).masked_fill(~_begins(is_noised), 0).cummax(1).values) * is_noised


def _begins(is_noised: Tensor) -> Tensor:
    """(B, K) true on the first token of each run of true ones."""
    return is_noised & ~torch.nn.functional.pad(is_noised[:, :-1], (1, 0))


def infer_image_ids(block_ids: Tensor, image_mask: Tensor | None = None, noised_mask: Tensor | None = None) -> Tensor:
    """(B, K) the number of each token's image in its row, 0 on text: runs of one block, or of `image_mask`.

    Two images stand apart by their begin and end tokens, and an image and its clean copy by `noised_mask`. One token
    alone is as text.

    Args:
        image_mask: (B, K) true on tokens of images, the causal ones, too, each of whose tokens is a block.
    """
    goes_on = torch.zeros_like(block_ids, dtype=torch.bool)
    goes_on[:, 1:] = (block_ids[:, 1:] == block_ids[:, :-1]) & (block_ids[:, 1:] >= 0)  # -1 is all that was read before
    if image_mask is not None:
        same = image_mask[:, 1:] & image_mask[:, :-1]
        if noised_mask is not None:
            same = same & (noised_mask[:, 1:] == noised_mask[:, :-1])
        goes_on[:, 1:] |= same
    is_image = goes_on | torch.nn.functional.pad(goes_on[:, 1:], (0, 1))
    return (~goes_on).cumsum(1) * is_image


def dense_mask(
    document_ids: Tensor,
    block_ids: Tensor,
    noised_mask: Tensor | None = None,
    queries: int | None = None,
    reach: Reach | None = None,
) -> Tensor:
    """Boolean mask (B, 1, Q, K), true where attention is allowed; vectors (B, K), `queries` of which are the last."""
    return _allowed(*_sides(document_ids, block_ids, noised_mask, queries, reach))[:, None]


def _sides(
    document_ids: Tensor, block_ids: Tensor, noised_mask: Tensor | None, queries: int | None, reach: Reach | None
) -> tuple[Vectors, Vectors]:
    """What `attend` compares: vectors (B, Q) of the queries, which are the last tokens, and (B, K) of the keys."""
    shared = document_ids, block_ids, number_noised_images(noised_mask, document_ids)
    earliest, place = ((), ()) if reach is None else ((reach.earliest,), (reach.place,))
    start = 0 if queries is None else document_ids.shape[1] - queries
    return tuple(vector[:, start:] for vector in (*shared, *earliest)), (*shared, *place)


def _allowed(queries: Vectors, keys: Vectors) -> Tensor:
    """(B, Q, K) of vectors (B, Q) and (B, K): all pairs, so for few queries at a time where there are many keys."""
    pairs = ((q[:, :, None], k[:, None, :]) for q, k in zip(queries, keys, strict=True))
    return attend(*itertools.chain.from_iterable(pairs))


def additive_mask(
    dtype: torch.dtype,
    document_ids: Tensor,
    block_ids: Tensor,
    noised_mask: Tensor | None = None,
    queries: int | None = None,
    empty_slots: int = 0,
    reach: Reach | None = None,
) -> Tensor:
    """The same mask as numbers (B, 1, Q, K + empty_slots) to add to scores: 0 where attention is allowed, else the
    lowest of `dtype`.

    SDPA adds what it is given, but makes such a mask of a boolean one anew in each layer, and keeps each for the
    backward pass. Beside the mask itself, its making holds a few booleans for each of `PAIRS_AT_ONCE` pairs.
    """
    vectors, keys = _sides(document_ids, block_ids, noised_mask, queries, reach)
    (rows, count), width = vectors[0].shape, document_ids.shape[1]
    lowest = torch.finfo(dtype).min
    mask = torch.zeros(rows, 1, count, width + empty_slots, dtype=dtype, device=document_ids.device)
    mask[..., width:] = lowest
    at_once = max(1, PAIRS_AT_ONCE // max(1, rows * width))
    for first in range(0, count, at_once):
        some = slice(first, first + at_once)
        allowed = _allowed(tuple(vector[:, some] for vector in vectors), keys)
        mask[:, 0, some, :width].masked_fill_(allowed.logical_not_(), lowest)
    return mask


def flex_mask(
    document_ids: Tensor,
    block_ids: Tensor,
    noised_mask: Tensor | None = None,
    queries: int | None = None,
    reach: Reach | None = None,
) -> BlockMask:
    """The same mask as a `BlockMask` of `torch.nn.attention.flex_attention`, which skips what is not in its table.

    1. A tile of FLEX_TILE x FLEX_TILE pairs is full if the rule holds for all of them, and computed with the rule if it
       may hold for one: both are read off the smallest and largest values of its queries and of its keys, so that no
       tensor is larger than the vectors or the table, (K / 128)^2. (`create_block_mask` of torch asks all K^2 pairs.)
    2. Where documents and blocks are in order, as in packed rows, this is the same table; of other vectors, and at the
       ends of windows, more tiles may be computed, with the same result.
    """
    possible, certain = _tiles(*_sides(document_ids, block_ids, noised_mask, queries, reach))  # B, Q / 128, K / 128
    noised = number_noised_images(noised_mask, document_ids)
    count = document_ids.shape[1] if queries is None else queries
    start = document_ids.shape[1] - count

    def rule(b, h, q, k):
        q = q + start
        reaches = () if reach is None else (reach.earliest[b, q], reach.place[b, k])
        return attend(
            document_ids[b, q], document_ids[b, k], block_ids[b, q], block_ids[b, k], noised[b, q], noised[b, k],
            *reaches,
        )  # fmt: skip

    return BlockMask.from_kv_blocks(
        *_listed(possible & ~certain),
        *_listed(certain),
        BLOCK_SIZE=FLEX_TILE,
        mask_mod=rule,
        seq_lengths=(count, document_ids.shape[1]),
    )


def _listed(tiles: Tensor) -> tuple[Tensor, Tensor]:
    """(B, Q / 128, K / 128) booleans -> of each row of tiles how many there are, and the columns of these first."""
    columns = tiles.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
    return tiles.sum(-1, dtype=torch.int32)[:, None], columns.to(torch.int32)[:, None]


class _Range(NamedTuple):
    """The values of a vector in each tile (B, tiles): the smallest, the largest, and the smallest of those that are at
    least some bound (more than any other where there is none)."""

    low: Tensor
    high: Tensor
    least: Tensor


def _range(vector: Tensor, bound: int) -> _Range:
    beyond = torch.iinfo(vector.dtype).max
    fill = -vector.shape[1] % FLEX_TILE
    tiles = torch.cat([vector, vector[:, -1:].expand(-1, fill)], dim=1).unflatten(1, (-1, FLEX_TILE))
    return _Range(tiles.amin(2), tiles.amax(2), tiles.masked_fill(tiles < bound, beyond).amin(2))


def _tiles(queries: Vectors, keys: Vectors) -> tuple[Tensor, Tensor]:
    """(B, Q / 128, K / 128) whether `attend` may hold for a pair of each tile, and whether it holds for every one: each
    of its terms by what the tile's values lie between.

    The last tiles of lengths that are no multiple of FLEX_TILE are never full.
    """
    bounds = PADDING_DOCUMENT + 1, 0, 1, 0  # of real documents and noised images; no other term asks for a bound
    ranges_q = [_Range(*(of[:, :, None] for of in _range(*pair))) for pair in zip(queries, bounds, strict=False)]
    ranges_k = [_Range(*(of[:, None, :] for of in _range(*pair))) for pair in zip(keys, bounds, strict=False)]
    (document_q, block_q, noised_q), (document_k, block_k, noised_k) = ranges_q[:3], ranges_k[:3]
    both_padding = (document_q.low < 0) & (document_k.low < 0)
    possible = (_overlap(document_q, document_k) | both_padding) & (block_k.low <= block_q.high)
    possible &= (noised_k.low == 0) | _overlap(noised_q, noised_k)
    # two such equations, since no low is above its high, say that all four are one value
    certain = (document_q.low == document_k.high) & (document_q.high == document_k.low)
    certain &= block_k.high <= block_q.low
    certain &= (noised_k.high == 0) | ((noised_q.low == noised_k.high) & (noised_q.high == noised_k.least))
    for earliest, place in zip(ranges_q[3:], ranges_k[3:], strict=True):
        possible &= place.high >= earliest.low
        certain &= place.low >= earliest.high
    whole_q, whole_k = (vectors[0].shape[1] // FLEX_TILE for vectors in (queries, keys))
    certain[:, whole_q:], certain[:, :, whole_k:] = False, False
    return possible, certain


def _overlap(q: _Range, k: _Range) -> Tensor:
    return (q.least <= k.high) & (k.least <= q.high)


def attention_mask(
    implementation: str,
    dtype: torch.dtype,
    document_ids: Tensor,
    block_ids: Tensor,
    noised_mask: Tensor | None = None,
    queries: int | None = None,
    empty_slots: int = 0,
    reach: Reach | None = None,
) -> Tensor | BlockMask:
    """The mask in the form that an attention implementation of transformers takes.

    Args:
        dtype: in which scores are computed: that of the states, or autocast's.
        empty_slots: keys behind those of the vectors that hold nothing yet (a static cache's), seen by no token.
        reach: of a layer with a window (`find_reach`); None = it sees all that stands before.

    Raises:
        ValueError: the implementation cannot express the rule (flash attention knows causal and full, nothing between).
    """
    if implementation == "flex_attention":
        if empty_slots:
            raise ValueError("flex_attention with a static cache is not supported; use 'sdpa', or a dynamic cache")
        return flex_mask(document_ids, block_ids, noised_mask, queries, reach)
    if implementation not in (*SDPA, "eager"):
        raise ValueError(
            f"attention implementation {implementation!r} cannot express a mask that is causal over text and "
            "bidirectional inside images; use 'sdpa', 'eager' or 'flex_attention'"
        )
    dtype = torch.float32 if implementation == FP32_ATTENTION else dtype
    return additive_mask(dtype, document_ids, block_ids, noised_mask, queries, empty_slots, reach)


def infer_block_ids(input_ids: Tensor, bidirectional_ids: tuple[int, ...]) -> Tensor:
    """Blocks (B, N) of rows that come as ids alone: a run of one bidirectional placeholder is one block.

    Two images stand apart by their begin and end tokens, so a run is an image.
    """
    same_as_before = torch.zeros_like(input_ids, dtype=torch.bool)
    for placeholder in bidirectional_ids:
        is_image = input_ids == placeholder
        same_as_before[:, 1:] |= is_image[:, 1:] & is_image[:, :-1]
    return torch.cumsum(~same_as_before, dim=1) - 1


def infer_document_ids(position_ids: Tensor) -> Tensor:
    """Documents (B, N) of rows that come with their positions alone: one begins where they do not grow by one."""
    goes_on = position_ids.diff(dim=1) == 1
    return torch.nn.functional.pad(torch.cumsum(~goes_on, dim=1), (1, 0))


# ---------------------------------------------------------------------------------------------------- building


@dataclass(frozen=True)
class TextSegment:
    """Token ids of a stretch of text; `loss` says whether they have labels, all of them or each."""

    ids: list[int]
    loss: bool | list[bool] = True

    @property
    def size(self) -> int:
        """Tokens that it takes in a row."""
        return len(self.ids)


@dataclass(frozen=True)
class ImageSegment:
    """The tokens of one image on one path.

    Args:
        path: decides their placeholder, and which loss they can have.
        length: number of tokens.
        bidirectional: whether they see each other (one block) or are causal (a block each).
        write: the model learns to draw this image (noised on the diffusion path, codes as labels on vq).
        clean_copy: diffusion only: later tokens do not see the noised tokens, and read a clean copy instead.
        framed: it stands between the tokens that begin and end an image; false = it stands among the words as it is
            (LLaVA), and is read only.
    """

    path: Path
    length: int
    bidirectional: bool
    write: bool = False
    clean_copy: bool = False
    framed: bool = True

    @property
    def size(self) -> int:
        """Tokens that it takes in a row: its own, those of its clean copy, and the two that frame them."""
        return self.length * (2 if self.clean_copy else 1) + 2 * self.framed


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of the tokens that frame images (None = nothing does), of padding, and of each path's placeholder."""

    begin_image: int | None
    end_image: int | None
    pad: int
    understanding: int | None = None
    diffusion: int | None = None
    vq: int | None = None

    def placeholder(self, path: str) -> int:
        placeholder = {"understanding": self.understanding, "diffusion": self.diffusion, "vq": self.vq}.get(path)
        if placeholder is None:
            known = [name for name in PATHS if getattr(self, name) is not None]
            raise ValueError(f"no path {path!r} here; this model has: {', '.join(known) or 'none'}")
        return placeholder


@dataclass
class SequenceLayout:
    """One document or one packed row: parallel lists of length N (module docstring).

    `code_labels` marks where a code is to be predicted: 0 there (a marker, not code 0), IGNORE elsewhere. The codes
    themselves are known only once the codec has run; `objectives.place_codes` puts them in.
    """

    input_ids: list[int] = field(default_factory=list)
    document_ids: list[int] = field(default_factory=list)
    block_ids: list[int] = field(default_factory=list)
    noised_mask: list[bool] = field(default_factory=list)
    position_ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    code_labels: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.input_ids)

    def tensors(self) -> dict[str, Tensor]:
        """The vectors as tensors of shape (N,), under the names that `forward` takes."""
        return {f.name: torch.tensor(getattr(self, f.name)) for f in fields(self)}


def lay_out(segments: list[TextSegment | ImageSegment], tokens: SpecialTokens) -> SequenceLayout:
    """One document as a layout.

    1. A text token gets the next block, the next position, and itself as label if its segment gives it a loss.
    2. An image is framed by begin and end tokens; the begin token has a label if the image is written (a model must
       decide to draw), the end token never has (the size decides it).
    3. A clean copy takes the positions of the noised tokens that it replaces, and a block after theirs.
    4. The first token of a document has no label: nothing precedes it.
    """
    layout = SequenceLayout()
    position = 0

    def put(ids: list[int], *, shared_block: bool, start: int, noised: bool = False, labels=None, code: bool = False):
        """Append tokens with positions from `start` on; returns the position after them."""
        block = layout.block_ids[-1] + 1 if layout.block_ids else 0
        count = len(ids)
        layout.input_ids += ids
        layout.document_ids += [0] * count
        layout.block_ids += [block] * count if shared_block else range(block, block + count)
        layout.noised_mask += [noised] * count
        layout.position_ids += range(start, start + count)
        layout.labels += labels if labels is not None else [IGNORE] * count
        layout.code_labels += [0 if code else IGNORE] * count
        return start + count

    for segment in segments:
        if isinstance(segment, TextSegment):
            has_loss = [segment.loss] * segment.size if isinstance(segment.loss, bool) else segment.loss
            labels = [token if taught else IGNORE for token, taught in zip(segment.ids, has_loss, strict=True)]
            position = put(list(segment.ids), shared_block=False, start=position, labels=labels)
            continue
        if segment.framed:
            begin_label = [tokens.begin_image] if segment.write else None
            position = put([tokens.begin_image], shared_block=False, start=position, labels=begin_label)
        ids = [tokens.placeholder(segment.path)] * segment.length
        is_code = segment.path == "vq" and segment.write
        start = position
        position = put(ids, shared_block=segment.bidirectional, start=start, noised=segment.clean_copy, code=is_code)
        if segment.clean_copy:
            put(ids, shared_block=segment.bidirectional, start=start)
        if segment.framed:
            position = put([tokens.end_image], shared_block=False, start=position)
    if layout.labels:
        layout.labels[0] = IGNORE
    return layout


def cuts(size: int, length: int, whole: Iterable[tuple[int, int]] = ()) -> Iterator[tuple[int, int]]:
    """Where a document longer than a row is cut: (begin, end) of pieces of at most `length` tokens, in order, that
    together are all of it. Each is as long as can be.

    Args:
        size: tokens of the document.
        whole: (begin, end) of stretches that are never cut, in order and apart: pictures, each with its frame, its
            clean copy and the other paths by which it is read.

    Raises:
        ValueError: a stretch is longer than a row, wherever it stands; raised before the first piece.
    """
    whole = list(whole)
    if (longest := max((last - first for first, last in whole), default=0)) > length:
        raise ValueError(
            f"a picture of {longest} tokens, all its paths and copies counted, does not fit a row of {length}, and no "
            "picture is cut; raise sequence_length, or make the picture smaller"
        )
    begin, stretches = 0, iter(whole)
    stretch = next(stretches, None)
    while begin < size:
        end = min(begin + length, size)
        while stretch is not None and stretch[1] <= end:
            stretch = next(stretches, None)
        if stretch is not None and stretch[0] < end:
            end = stretch[0]
        yield begin, end
        begin = end


def piece_of(document: SequenceLayout, begin: int, end: int) -> SequenceLayout:
    """Tokens `begin` to `end` as a document of their own: positions and blocks count from 0, and the first token has no
    label, as nothing precedes it."""
    piece = SequenceLayout(**{each.name: getattr(document, each.name)[begin:end] for each in fields(SequenceLayout)})
    if len(piece):
        piece.block_ids = [block - piece.block_ids[0] for block in piece.block_ids]
        piece.position_ids = [position - piece.position_ids[0] for position in piece.position_ids]
        piece.labels[0] = IGNORE
    return piece


def pack(documents: list[SequenceLayout], length: int, pad_token_id: int) -> SequenceLayout:
    """One row of exactly `length` tokens: the documents one after another, then padding (a document of its own).

    Raises:
        ValueError: the documents are longer than the row.
    """
    total = sum(len(document) for document in documents)
    if total > length:
        raise ValueError(f"{len(documents)} documents of {total} tokens do not fit a row of {length}")
    row = SequenceLayout()
    for number, document in enumerate(documents):
        offset = row.block_ids[-1] + 1 if row.block_ids else 0
        row.input_ids += document.input_ids
        row.document_ids += [number] * len(document)
        row.block_ids += [block + offset for block in document.block_ids]
        row.noised_mask += document.noised_mask
        row.position_ids += document.position_ids
        row.labels += document.labels
        row.code_labels += document.code_labels
    padding = length - total
    first_block = row.block_ids[-1] + 1 if row.block_ids else 0
    row.input_ids += [pad_token_id] * padding
    row.document_ids += [PADDING_DOCUMENT] * padding
    row.block_ids += range(first_block, first_block + padding)
    row.noised_mask += [False] * padding
    row.position_ids += range(padding)
    row.labels += [IGNORE] * padding
    row.code_labels += [IGNORE] * padding
    return row
