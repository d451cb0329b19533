"""Interleaved: a conversation of texts and pictures read and written piece by piece, each token computed once.

    read_document   a document -> `ReadTokens`; what was read of it before is not read again
    start_image     `ReadTokens` -> what a picture is drawn against
    commit_block    a picture -> read clean after them, for what follows

Text that follows them is written by `text.TextWriting`, a picture by `codes.CodeWriting` or `denoise.LatentDrawing`.

Here a document is a list of tokens: each the id of a word, or (image, number of the token in it). Two documents share
what they begin with, and so do their keys and values. `ReadTokens` are never changed: what goes on from them is another
one, which shares their memory and copies before it writes. So a conversation can be forked, taken back, or dropped in
the middle of a step.

Shapes: one row, n new tokens, H width.
"""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from hybridgen.core.layout import PADDING_DOCUMENT
from hybridgen.core.offload import device_of
from hybridgen.modeling_hybridgen import HybridGenForConditionalGeneration
from hybridgen.sampling.codes import commit_codes
from hybridgen.sampling.decoder import Decoder
from hybridgen.sampling.prefix import PAD_MULTIPLE, Prefix, extend, read_rows, stack


@dataclass(frozen=True, eq=False)
class ImageBlock:
    """A picture in a document, as the backbone reads it; equal to nothing but itself.

    Args:
        path: by which it is read.
        length: its tokens, the frame not counted.
        bidirectional: whether they see each other.
        media: as `forward` takes it: `pixel_values` (1, 3, h, w), `latents` (1, C, h, w) or `codes` (T,).
    """

    path: str
    length: int
    bidirectional: bool
    media: dict[str, Tensor]

    def tokens(self, begin: int | None, end: int | None) -> "list[Token]":
        """Its tokens in a document, with the two ids of its frame, where it has one."""
        own = [(self, place) for place in range(self.length)]
        return own if begin is None else [begin, *own, end]


Token = int | tuple[ImageBlock, int]


@dataclass(frozen=True)
class ReadTokens:
    """What was read so far of a document.

    Args:
        tokens: of the document, padding not among them.
        prefix: their keys and values, one row.
        image_start: the same with the token that begins an image read after them, where that is known already.
        precision: that they were read in; what is read in another shares nothing with it.
    """

    tokens: list[Token]
    prefix: Prefix
    image_start: Prefix | None = field(default=None)
    precision: str = "model"

    def until(self, count: int) -> Prefix:
        """The prefix of its first tokens, to read on from; its `last_state` is right only where these are all."""
        return self.prefix.until(len(self.prefix) - len(self.tokens) + count, self.prefix.last_state)


def shared_length(earlier: ReadTokens | None, tokens: list[Token], decoder: Decoder | None = None) -> int:
    """How many of a document's tokens need not be read again by a decoder (None = the model itself)."""
    precision = "model" if decoder is None else decoder.precision
    return 0 if earlier is None or earlier.precision != precision else common_length(earlier.tokens, tokens)


def common_length(first: list[Token], second: list[Token]) -> int:
    """How many tokens two documents begin with alike."""
    pairs = zip(first, second, strict=False)
    return next((place for place, (one, other) in enumerate(pairs) if one != other), min(len(first), len(second)))


@torch.no_grad()
def read_document(
    model: HybridGenForConditionalGeneration,
    earlier: ReadTokens | None,
    tokens: list[Token],
    pad_id: int,
    least_length: int = 0,
    decoder: Decoder | None = None,
) -> ReadTokens:
    """Read a document, from where it differs from what was read earlier.

    The token that begins an image is read along: a picture that comes next has then exactly the prefix that the
    pipeline would draw it against, to the bit. (A pad, where nothing frames images: it is not kept.)

    Args:
        earlier: None = nothing was read.
        pad_id: of the padding in front, up to a whole number of `PAD_MULTIPLE` tokens (see `prefix.read_prompts`).
        least_length: to pad to, at least: the tokens of a document that will stand beside it, padded likewise; as
            `read_prompts`, in the model's own precision alone.
        decoder: the model's, in the precision to read in; None = in its own.
    """
    decoder = Decoder(model) if decoder is None else decoder
    reused = min(shared_length(earlier, tokens, decoder), len(tokens) - 1)
    begin = model.config.begin_image_token_id
    ids, blocks, media = _as_inputs(model, [*tokens[reused:], pad_id if begin is None else begin])
    if reused:
        image_start = earlier.until(reused)
        states = extend(model, image_start, ids, blocks, decoder, **media)  # 1, n, H
    else:
        length = len(tokens) if decoder.copies else max(len(tokens), least_length)
        padding = -(-length // PAD_MULTIPLE) * PAD_MULTIPLE - len(tokens)
        image_start, states = _read_padded(model, ids, blocks, media, padding, pad_id, decoder)
    prefix = image_start.until(len(image_start) - 1, states[:, -2])
    return ReadTokens(list(tokens), prefix, None if begin is None else image_start, decoder.precision)


def _read_padded(
    model: HybridGenForConditionalGeneration,
    ids: Tensor,
    blocks: Tensor,
    media: dict,
    padding: int,
    pad_id: int,
    decoder: Decoder,
) -> tuple[Prefix, Tensor]:
    """A prefix of tokens (n,) with `padding` tokens before them, and the states (1, padding + n, H)."""
    padded = lambda vector, value: torch.nn.functional.pad(vector, (padding, 0), value=value)[None]  # noqa: E731
    prefix, states = read_rows(
        model,
        input_ids=padded(ids, pad_id),
        document_ids=padded(torch.zeros_like(ids), PADDING_DOCUMENT),
        block_ids=torch.cat([torch.arange(padding, device=ids.device), blocks + padding])[None],
        position_ids=padded(torch.arange(len(ids), device=ids.device), 0),
        decoder=decoder,
        **media,
    )
    return prefix, states


def _as_inputs(model: HybridGenForConditionalGeneration, tokens: list[Token]) -> tuple[Tensor, Tensor, dict]:
    """Ids and blocks (n,) of new tokens, and the pictures among them as `forward` takes them."""
    ids, blocks, media = [], [], {}
    for token in tokens:
        image, place = token if isinstance(token, tuple) else (None, 0)
        ids.append(token if image is None else model.config.placeholder(image.path))
        same_block = image is not None and image.bidirectional and place > 0
        blocks.append((blocks[-1] if blocks else -1) + (0 if same_block else 1))
        if image is not None and place == 0:
            for name, value in image.media.items():
                media.setdefault(name, []).append(value)
    media = {  # pictures of other sizes cannot be one tensor
        name: [value[0] for value in values]
        if name == "latents" or len({v.shape[1:] for v in values}) > 1
        else torch.cat(values)
        for name, values in media.items()
    }
    device = device_of(model)
    return torch.tensor(ids, device=device), torch.tensor(blocks, device=device), media


# -------------------------------------------------------------------------------------------------------- pictures


def start_image(model: HybridGenForConditionalGeneration, read: ReadTokens, decoder: Decoder | None = None) -> Prefix:
    """What a picture that comes next is drawn against: what was read, and the token that begins an image.

    Args:
        decoder: that read it; None = the model itself.
    """
    if read.image_start is not None:
        return read.image_start
    image_start, begin = read.until(len(read.tokens)), model.config.begin_image_token_id
    extend(model, image_start, torch.tensor([begin], device=device_of(model)), decoder=decoder)
    return image_start


def side_by_side(prefixes: list[Prefix]) -> Prefix:
    """Prefixes of one row each, in the order of guidance, as one to draw against; they stay as they are."""
    return stack(prefixes) if len(prefixes) > 1 else prefixes[0].until(len(prefixes[0]), prefixes[0].last_state)


@torch.no_grad()
def commit_block(
    model: HybridGenForConditionalGeneration,
    read: ReadTokens,
    drawing_prefix: Prefix | None,
    image: ImageBlock,
    decoder: Decoder | None = None,
) -> ReadTokens:
    """What was read with a finished picture, read clean, after it. Of the conditional row alone: text goes on from the
    conversation, not from what guidance led away from.

    Args:
        read: what the picture followed.
        drawing_prefix: what it was drawn against, the conditional row first; on the vq path it now holds all codes but
            the last. None = the picture is read anew.
        decoder: that read and drew them; None = the model itself.
    """
    tokens = image.tokens(model.config.begin_image_token_id, model.config.end_image_token_id)
    if image.path == "vq" and drawing_prefix is not None:
        prefix = drawing_prefix.select(slice(0, 1))
        commit_codes(model, prefix, image.media["codes"][None], decoder)
    else:
        image_start = start_image(model, read, decoder)
        prefix = image_start.until(len(image_start), image_start.last_state)
        ids, blocks, media = _as_inputs(model, tokens[1:])
        extend(model, prefix, ids, blocks, decoder, **media)
    return replace(read, tokens=read.tokens + tokens, prefix=prefix, image_start=None)
