"""The prefix: what the model has read so far, as keys and values, so that a step computes only what is new.

A `Prefix` holds R rows: I images' prompts, then (with guidance) the unconditional prompts, padded on the left so that
all rows end together. Denoising does not add to it: the tokens of a noisy image are read without being committed
(written behind the prefix, read, and overwritten by the next step); only the finished image is committed (`extend`).

Shapes: R rows, P tokens of the prefix, n new tokens, H width of the backbone.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from hybridgen.core import layout
from hybridgen.core.documents import Document, by_padded_length, left_pad
from hybridgen.core.offload import bring
from hybridgen.modeling_hybridgen import HybridGenForConditionalGeneration

PAD_MULTIPLE = 32  # tokens; prompts are padded to a multiple of it


class _BufferLayer(DynamicLayer):
    """One layer's keys and values at the front of a buffer (R, heads, room, d): new ones are written, nothing is
    copied."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.length = 0
        self.committing = True

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        end = self.length + key_states.shape[-2]
        if not self.is_initialized:
            self.dtype, self.device = key_states.dtype, key_states.device
            self.keys, self.values = key_states, value_states
            self.is_initialized = True
        else:
            if end > (room := self.keys.shape[-2]):
                self.reserve(max(end, room * 3 // 2))  # by half, so that a long text is not copied at every token
            self.keys[:, :, self.length : end] = key_states
            self.values[:, :, self.length : end] = value_states
        if self.committing:
            self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_seq_length(self) -> int:
        return self.length

    def reserve(self, room: int) -> None:
        """A buffer for `room` tokens, if it is not that large already."""
        if room > self.keys.shape[-2]:
            self.keys, self.values = (_enlarged(buffer, self.length, room) for buffer in (self.keys, self.values))

    def leading_rows(self, rows: int) -> "_BufferLayer":
        """The first rows, in the same memory."""
        # an empty layer with the same dtype, device and length; its buffers are set next
        layer = self.selected(slice(0, 0))
        layer.keys, layer.values = self.keys[:rows], self.values[:rows]
        return layer

    def selected(self, rows: Tensor | slice, length: int | None = None) -> "_BufferLayer":
        """A new layer that holds the first `length` tokens (None = all) of these rows. For a slice it is a view without
        room: the next tokens are written into a copy."""
        layer = _BufferLayer()
        layer.length = self.length if length is None else length
        layer.dtype, layer.device, layer.is_initialized = self.dtype, self.device, True
        layer.keys, layer.values = (buffer[:, :, : layer.length][rows] for buffer in (self.keys, self.values))
        return layer


def _enlarged(buffer: Tensor, length: int, room: int) -> Tensor:
    rows, heads, _, width = buffer.shape
    larger = buffer.new_empty(rows, heads, room, width)
    larger[:, :, :length] = buffer[:, :, :length]
    return larger


class PrefixCache(Cache):
    """A cache of transformers over buffers. Every layer keeps every token: the mask alone says who sees what."""

    def __init__(self, layers: list[_BufferLayer] | None = None):
        if layers is None:
            super().__init__(layer_class_to_replicate=_BufferLayer)
        else:
            super().__init__(layers=layers)

    def prepare(self, layers: int) -> None:
        """So many layers, where none was written yet."""
        self.layers += [_BufferLayer() for _ in range(layers - len(self.layers))]

    def reserve(self, room: int) -> None:
        """Make space for `room` more tokens at once, instead of growing by and by."""
        for layer in self.layers:
            layer.reserve(layer.length + room)

    def advance(self, count: int) -> None:
        """Commit the first `count` of the tokens that were read last without being committed."""
        for layer in self.layers:
            layer.length += count

    @contextmanager
    def no_commit(self) -> Iterator[None]:
        """Inside, new tokens are read but not added."""
        for layer in self.layers:
            layer.committing = False
        try:
            yield
        finally:
            for layer in self.layers:
                layer.committing = True


@dataclass
class Prefix:
    """
    Args:
        cache: keys and values of P tokens.
        document_ids: (R, P) 0, or PADDING_DOCUMENT on the padding.
        image_mask: (R, P) true on tokens of pictures, which windows of the backbone's layers do not cut.
        positions: (R,) the position of each row's next token.
        last_state: (R, H) the backbone's output at the last token: what the next one is predicted from.
    """

    cache: PrefixCache = field(default_factory=PrefixCache)
    document_ids: Tensor | None = None
    image_mask: Tensor | None = None
    positions: Tensor | None = None
    last_state: Tensor | None = None

    def __len__(self) -> int:
        return self.cache.get_seq_length()

    @property
    def rows(self) -> int:
        return len(self.positions)

    def select(self, rows: Tensor) -> "Prefix":
        """A new prefix with these rows (R',), any of them any number of times; this one stays as it is."""
        cache = PrefixCache([layer.selected(rows) for layer in self.cache.layers])
        return Prefix(
            cache, self.document_ids[rows], self.image_mask[rows], self.positions[rows], self.last_state[rows]
        )

    def until(self, length: int, last_state: Tensor) -> "Prefix":
        """Its first `length` tokens as a new prefix.

        It shares memory; it has no spare room, so its first write copies it.

        Args:
            last_state: (R, H) the backbone's output at the last of them.
        """
        cache = PrefixCache([layer.selected(slice(None), length) for layer in self.cache.layers])
        vectors = self.document_ids[:, :length], self.image_mask[:, :length]
        return Prefix(cache, *vectors, self.positions - (len(self) - length), last_state)

    def leading_rows(self, count: int) -> "Prefix":
        """Its first `count` rows, in the same memory.

        Reserve room first: what outgrows its room is copied, and no longer shared."""
        cache = PrefixCache([layer.leading_rows(count) for layer in self.cache.layers])
        vectors = self.document_ids[:count], self.image_mask[:count], self.positions[:count], self.last_state[:count]
        return Prefix(cache, *vectors)

    def keys_with(self, blocks: Tensor, is_image: Tensor | bool = False) -> dict[str, Tensor]:
        """The layout vectors (R, P + n) of all keys, when tokens of `blocks` (n,) come next.

        Args:
            is_image: (R, n) of each of them, or of all.
        """
        document_ids = torch.nn.functional.pad(self.document_ids, (0, len(blocks)))
        before = blocks.new_full((self.document_ids.shape[1],), -1)  # the prefix lies before all that is new
        block_ids = torch.cat([before, blocks]).expand_as(document_ids)
        image_mask = torch.nn.functional.pad(self.image_mask, (0, len(blocks)))
        image_mask[:, self.document_ids.shape[1] :] = is_image
        return {"document_ids": document_ids, "block_ids": block_ids, "image_mask": image_mask}

    def mask_with(
        self,
        model: HybridGenForConditionalGeneration,
        blocks: Tensor,
        queries: int | None = None,
        is_image: bool = False,
        implementation: str | None = None,
    ):
        """The backbone's mask (R, 1, n, P + n) for new tokens of `blocks` (n,), or of the last `queries` of them; one
        for each kind of its layers where they differ.

        Args:
            is_image: they are all of one picture.
            implementation: of attention; None = the backbone's.
        """
        queries = len(blocks) if queries is None else queries
        return model.model.layer_masks(
            **self.keys_with(blocks, is_image), queries=queries, implementation=implementation
        )

    def add(self, count: int, last_state: Tensor, is_image: Tensor | bool = False) -> None:
        """The cache has grown by so many tokens of every row: all else follows.

        Args:
            last_state: (R, H) the backbone's output at the last of them.
            is_image: (R, count) of each of them, or of all.
        """
        self.document_ids = torch.nn.functional.pad(self.document_ids, (0, count))
        self.image_mask = torch.nn.functional.pad(self.image_mask, (0, count))
        self.image_mask[:, self.image_mask.shape[1] - count :] = is_image
        self.positions = self.positions + count
        self.last_state = last_state

    def positions_of(self, count: int) -> Tensor:
        """Positions (R, count) of the next tokens."""
        return self.positions[:, None] + torch.arange(count, device=self.positions.device)


def stack(prefixes: list[Prefix]) -> Prefix:
    """The rows of several prefixes, one below the other, as one; the shorter are padded on the left."""
    longest, caches = max(map(len, prefixes)), [prefix.cache.layers for prefix in prefixes]
    layers = []
    for parts in zip(*caches, strict=True):
        # an empty layer with the same dtype and device; its length and buffers are set next
        stacked = parts[0].selected(slice(0, 0))
        stacked.length = longest
        stacked.keys = torch.cat([_padded(part.keys[:, :, : part.length], longest) for part in parts])
        stacked.values = torch.cat([_padded(part.values[:, :, : part.length], longest) for part in parts])
        layers.append(stacked)
    documents = [
        torch.nn.functional.pad(prefix.document_ids, (longest - len(prefix), 0), value=layout.PADDING_DOCUMENT)
        for prefix in prefixes
    ]
    images = [torch.nn.functional.pad(prefix.image_mask, (longest - len(prefix), 0)) for prefix in prefixes]
    return Prefix(
        PrefixCache(layers),
        torch.cat(documents),
        torch.cat(images),
        torch.cat([prefix.positions for prefix in prefixes]),
        torch.cat([prefix.last_state for prefix in prefixes]),
    )


def _padded(keys: Tensor, length: int) -> Tensor:
    return torch.nn.functional.pad(keys, (0, 0, length - keys.shape[2], 0))


def begin_image(vectors: dict[str, Tensor], token: int) -> dict[str, Tensor]:
    """Layout vectors (R, P) of prompts that end together, with the token that begins an image after them (R, P + 1)."""
    added = {
        "input_ids": torch.full_like(vectors["input_ids"][:, -1:], token),
        "document_ids": vectors["document_ids"][:, -1:],
        "block_ids": vectors["block_ids"][:, -1:] + 1,
        "position_ids": vectors["position_ids"][:, -1:] + 1,
    }
    return {name: torch.cat([vectors[name], last], dim=1) for name, last in added.items()}


class TokenReader(Protocol):
    """What reads tokens in another precision than the model's; a `decoder.Decoder`."""

    copies: bool  # whether it has weights of its own; else the model reads

    def read(self, embeds: Tensor, mask: Tensor, position_ids: Tensor, cache: PrefixCache) -> Tensor: ...


def _read_into(
    model: HybridGenForConditionalGeneration,
    cache: PrefixCache,
    input_ids: Tensor,
    keys: dict[str, Tensor],
    position_ids: Tensor,
    decoder: TokenReader | None,
    images: dict,
) -> Tensor:
    """The backbone's output (R, n, H) at tokens (R, n) that go into a cache.

    Args:
        keys: layout vectors (R, P + n) of all tokens, as `forward` takes them.
        decoder: None = the model's own weights, run as transformers runs them.
    """
    bring(model)
    if decoder is None or not decoder.copies:
        return model.model(
            input_ids=input_ids, **keys, position_ids=position_ids, past_key_values=cache, use_cache=True, **images
        ).last_hidden_state
    embeds = model.model.embed(input_ids, **images, is_step=cache.get_seq_length() > 0)
    mask = model.model.layer_masks(**keys, queries=input_ids.shape[1], implementation="sdpa")
    return decoder.read(embeds, mask, position_ids, cache)


@torch.no_grad()
def prefill(model: HybridGenForConditionalGeneration, *vectors: Tensor, **inputs) -> Prefix:
    """The prefix of `read_rows`."""
    return read_rows(model, *vectors, **inputs)[0]


@torch.no_grad()
def read_rows(
    model: HybridGenForConditionalGeneration,
    input_ids: Tensor,
    document_ids: Tensor,
    block_ids: Tensor,
    position_ids: Tensor,
    decoder: TokenReader | None = None,
    **images,
) -> tuple[Prefix, Tensor]:
    """Read prompts (R, P), padded on the left, with their images (`pixel_values`, `latents`, `codes`).

    Args:
        decoder: the model's, in the precision to read in; None = in its own.

    Returns:
        the prefix, and the backbone's output (R, P, H).
    """
    prefix, image_mask = Prefix(), model.model.find_images(input_ids)
    keys = {"document_ids": document_ids, "block_ids": block_ids, "image_mask": image_mask}
    states = _read_into(model, prefix.cache, input_ids, keys, position_ids, decoder, images)  # R, P, H
    prefix.document_ids, prefix.image_mask = document_ids, image_mask
    prefix.positions = position_ids[:, -1] + 1
    prefix.last_state = states[:, -1]
    return prefix, states


@torch.no_grad()
def read_prompts(
    model: HybridGenForConditionalGeneration,
    documents: list[Document],
    pad: int,
    begin: int,
    device: torch.device,
    encode: Callable[[dict], dict[str, Tensor]] = lambda batch: {},
    decoder: TokenReader | None = None,
) -> Prefix:
    """Read prompts, one per row, and the token that begins an image: ready to draw.

    A document that stands in several rows (the empty prompt of guidance, several images of a prompt) is read once.
    All are padded to a whole number of `PAD_MULTIPLE` tokens: sums over rows of another length are taken in another
    order and round otherwise, so that a picture would depend on the longest prompt beside it.

    In another precision than the model's, those of another length are read apart, each as long as it is: the empty
    prompt of guidance costs little beside a long one. In the model's own they are read at once, as they always were,
    and round as they always did.

    Args:
        encode: a batch as `left_pad` makes it -> its images as `prefill` takes them.
        decoder: the model's, in the precision to read in; None = in its own.
    """
    unique = list({id(document): document for document in documents}.values())
    together = [list(range(len(unique)))]
    if decoder is not None and decoder.copies:
        together = by_padded_length(unique, PAD_MULTIPLE)
    prefixes = []
    for numbers in together:
        batch = left_pad([unique[number] for number in numbers], pad, PAD_MULTIPLE)
        vectors = {name: batch[name].to(device) for name in ("input_ids", "document_ids", "block_ids", "position_ids")}
        prefixes.append(prefill(model, **begin_image(vectors, begin), decoder=decoder, **encode(batch)))
    prefix = stack(prefixes) if len(prefixes) > 1 else prefixes[0]
    order = [id(unique[number]) for numbers in together for number in numbers]
    wanted = [id(document) for document in documents]
    if order == wanted:
        return prefix
    where = {document: row for row, document in enumerate(order)}
    return prefix.select(torch.tensor([where[document] for document in wanted], device=device))


@torch.no_grad()
def extend(
    model: HybridGenForConditionalGeneration,
    prefix: Prefix,
    input_ids: Tensor,
    blocks: Tensor | None = None,
    decoder: TokenReader | None = None,
    **images,
) -> Tensor:
    """Read n more tokens in every row, and commit them.

    Args:
        input_ids: (R, n), or (n,) for all rows alike.
        blocks: (n,) blocks of these tokens; None = causal.
        decoder: the model's, in the precision to read in; None = in its own.
        images: as in `prefill`.

    Returns:
        the backbone's output (R, n, H).
    """
    input_ids = input_ids.expand(prefix.rows, -1)
    count = input_ids.shape[1]
    blocks = torch.arange(count, device=input_ids.device) if blocks is None else blocks
    is_image = model.model.find_images(input_ids)
    keys, positions = prefix.keys_with(blocks, is_image), prefix.positions_of(count)
    states = _read_into(model, prefix.cache, input_ids, keys, positions, decoder, images)  # R, n, H
    prefix.add(count, states[:, -1], is_image)
    return states


def backbone(
    model: HybridGenForConditionalGeneration,
    prefix: Prefix,
    embeds: Tensor,
    mask,
    position_ids: Tensor,
    diffusion: bool = False,
) -> Tensor:
    """The backbone alone on embeddings (R, n, H), without the heads: for inner loops, where all else is precomputed.

    `diffusion` says whether they are all tokens of that path.
    """
    model.model.set_modality_routing(torch.ones_like(embeds[..., 0], dtype=torch.bool) if diffusion else None)
    return model.model.language_model(
        inputs_embeds=embeds,
        attention_mask=mask,
        position_ids=position_ids,
        past_key_values=prefix.cache,
        use_cache=True,
    ).last_hidden_state
