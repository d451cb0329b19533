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
sees what the blocks let it see: all of a bidirectional image, and of a causal one what stands before it. Dense and flex
masks are two renderings of the same `attend`.

Some layers of some decoders see a part of what stands before them (`Window`): the last tokens only, or those of their
chunk. They are counted as transformers counts them, in tokens of the document, a picture's noised tokens not twice. For
them alone the rule has one more comparison, place[k] >= earliest[q]. Windows cut text, pictures are whole: all tokens
of an image stand at the place of its last one where others look for them, and look back from that of its first one.
So an image sees all of itself, and is seen as long as its last token is.

Shapes: B rows, N tokens of a row, K keys (N plus the cached ones), Q queries (the last of the K keys).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from hybridgen.core.names import PATHS

IGNORE = -100  # no loss here, as everywhere in torch and transformers
PADDING_DOCUMENT = -1

Path = Literal["understanding", "diffusion", "vq"]

SDPA = ("sdpa", "sdpa_fp32")  # the second is SDPA outside of autocast (training.distributed.precision)


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


def infer_image_ids(
    block_ids: Tensor,
    input_ids: Tensor | None = None,
    placeholders: Iterable[int] = (),
    noised_mask: Tensor | None = None,
) -> Tensor:
    """(B, K) the number of each token's image in its row, 0 on text: runs of one block, or of one placeholder.

    Args:
        input_ids: (B, N) of the last N tokens; images of those before them are known by their blocks alone.
    """
    goes_on = torch.zeros_like(block_ids, dtype=torch.bool)
    goes_on[:, 1:] = (block_ids[:, 1:] == block_ids[:, :-1]) & (block_ids[:, 1:] >= 0)  # -1 is all that was read before
    if input_ids is not None:
        same_kind = torch.zeros_like(goes_on[:, 1:])
        start = block_ids.shape[1] - input_ids.shape[1]
        for placeholder in placeholders:
            is_image = torch.nn.functional.pad(input_ids == placeholder, (start, 0))
            same_kind |= is_image[:, 1:] & is_image[:, :-1]
        if noised_mask is not None:  # an image and its clean copy are two
            same_kind &= noised_mask[:, 1:] == noised_mask[:, :-1]
        goes_on[:, 1:] |= same_kind
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
    start = 0 if queries is None else document_ids.shape[1] - queries
    noised = number_noised_images(noised_mask, document_ids)
    reaches = () if reach is None else (reach.earliest[:, start:, None], reach.place[:, None, :])
    allowed = attend(
        document_ids[:, start:, None], document_ids[:, None, :], block_ids[:, start:, None], block_ids[:, None, :],
        noised[:, start:, None], noised[:, None, :], *reaches,
    )  # fmt: skip
    return allowed[:, None]


def flex_mask(
    document_ids: Tensor,
    block_ids: Tensor,
    noised_mask: Tensor | None = None,
    queries: int | None = None,
    reach: Reach | None = None,
):
    """The same mask as a `BlockMask` of `torch.nn.attention.flex_attention`, which skips blocks that are empty."""
    from torch.nn.attention.flex_attention import create_block_mask

    noised = number_noised_images(noised_mask, document_ids)
    rows, keys = document_ids.shape
    start = 0 if queries is None else keys - queries

    def rule(b, h, q, k):
        q = q + start
        reaches = () if reach is None else (reach.earliest[b, q], reach.place[b, k])
        return attend(
            document_ids[b, q], document_ids[b, k], block_ids[b, q], block_ids[b, k], noised[b, q], noised[b, k],
            *reaches,
        )  # fmt: skip

    return create_block_mask(rule, rows, None, keys - start, keys, device=document_ids.device)


def attention_mask(
    implementation: str,
    dtype: torch.dtype,
    document_ids: Tensor,
    block_ids: Tensor,
    noised_mask: Tensor | None = None,
    queries: int | None = None,
    empty_slots: int = 0,
    reach: Reach | None = None,
):
    """The mask in the form that an attention implementation of transformers takes.

    Args:
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
    allowed = dense_mask(document_ids, block_ids, noised_mask, queries, reach)
    allowed = torch.nn.functional.pad(allowed, (0, empty_slots))
    if implementation in SDPA:
        return allowed
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(~allowed, torch.finfo(dtype).min)


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
    """Token ids of a stretch of text; `loss` says whether they have labels."""

    ids: list[int]
    loss: bool = True

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
    """

    path: Path
    length: int
    bidirectional: bool
    write: bool = False
    clean_copy: bool = False

    @property
    def size(self) -> int:
        """Tokens that it takes in a row: its own, those of its clean copy, and the two that frame them."""
        return self.length * (2 if self.clean_copy else 1) + 2


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of the tokens that frame images, of padding, and of each path's placeholder."""

    begin_image: int
    end_image: int
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

    1. A text token gets the next block, the next position, and itself as label if its segment has a loss.
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
            labels = list(segment.ids) if segment.loss else None
            position = put(list(segment.ids), shared_block=False, start=position, labels=labels)
            continue
        begin_label = [tokens.begin_image] if segment.write else None
        position = put([tokens.begin_image], shared_block=False, start=position, labels=begin_label)
        ids = [tokens.placeholder(segment.path)] * segment.length
        is_code = segment.path == "vq" and segment.write
        start = position
        position = put(ids, shared_block=segment.bidirectional, start=start, noised=segment.clean_copy, code=is_code)
        if segment.clean_copy:
            put(ids, shared_block=segment.bidirectional, start=start)
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
        ValueError: a stretch is longer than a row; raised when it is met, so that what stands before it can be had.
    """
    begin, stretches = 0, iter(whole)
    stretch = next(stretches, None)
    while begin < size:
        end = min(begin + length, size)
        while stretch is not None and stretch[1] <= end:
            stretch = next(stretches, None)
        if stretch is not None and stretch[0] < end:
            if stretch[0] == begin:
                raise ValueError(
                    f"a picture of {stretch[1] - stretch[0]} tokens, all its paths and copies counted, does not fit a "
                    f"row of {length}, and no picture is cut; raise sequence_length, or make the picture smaller"
                )
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
