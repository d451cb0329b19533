"""Text: the continuation of prompts with images in them, as transformers' `generate` writes it where it is greedy.

`TextWriting` is the state, `write_text` the loop. Placeholders of images are suppressed: the model scores them like
words, and one that it wrote would ask for an image that is not there.
"""

import dataclasses
from collections.abc import Callable, Iterator

import torch
from torch import Generator, Tensor
from transformers import PreTrainedTokenizerBase

from hybridgen.core.layout import SpecialTokens
from hybridgen.core.names import PATHS
from hybridgen.core.offload import bring, device_of
from hybridgen.modeling_hybridgen import HybridGenForConditionalGeneration
from hybridgen.sampling.codes import GREEDY, CodeSampling
from hybridgen.sampling.decoder import Decoder
from hybridgen.sampling.finite import read_tokens
from hybridgen.sampling.prefix import Prefix, prefill
from hybridgen.sampling.seeds import draw_gumbel
from hybridgen.sampling.tasks import Read, Score, Task, run

_FIRST_ROOM = 31  # tokens that room is made for at first; then for as many again as were written


def unwritable_tokens(
    model: HybridGenForConditionalGeneration, tokens: SpecialTokens, allowed: tuple[int, ...] = ()
) -> Tensor:
    """Ids of all tokens that stand for an image, its frame or a code, of those that the model scores; those `allowed`
    are left out."""
    unwritable = {tokens.begin_image, tokens.end_image, *(getattr(tokens, path) for path in PATHS)} - {None}
    if (vq := model.config.vq_config) is not None and vq.code_tokens is not None:
        unwritable |= set(vq.code_tokens)
    scored = [token for token in sorted(unwritable - set(allowed)) if token < model.lm_head.out_features]
    return torch.tensor(scored, dtype=torch.long, device=device_of(model))


class Answer(str):
    """A text that a model wrote; a plain `str`, but for one thing.

    Args:
        truncated: it ends where its tokens ran out, not where the model ended it.
    """

    truncated: bool

    def __new__(cls, text: str = "", truncated: bool = False) -> "Answer":
        answer = super().__new__(cls, text)
        answer.truncated = truncated
        return answer


@torch.no_grad()
def write_text(
    model: HybridGenForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    tokens: SpecialTokens,
    prompts: dict,
    max_new_tokens: int | list[int],
    sampling: CodeSampling = GREEDY,
    generators: list[Generator] | None = None,
    decoder: Decoder | None = None,
) -> list[Answer]:
    """Answers to prompts padded on the left, one per row (B), without special tokens and surrounding spaces.

    Args:
        prompts: the layout vectors (B, N) and the images, as `prefill` takes them.
        max_new_tokens: of every answer, or of each.
        sampling: how each token is drawn.
        generators: one per row, where tokens are not the likeliest: a row draws the same whatever is beside it.
        decoder: the model's, in the precision to read and write in; None = in its own.
    """
    noise = [draw_gumbel([one], 1 << 62, model.lm_head.out_features, device_of(model)) for one in generators or ()]

    def choose(logits: Tensor, rows: list[int]) -> Tensor:
        return sampling.draw(logits, _side_by_side(noise, rows))

    suppressed, ends = unwritable_tokens(model, tokens), {tokenizer.eos_token_id}
    prefix = prefill(model, **prompts, decoder=decoder)
    writing = TextWriting(model, prefix, max_new_tokens, choose, suppressed, ends, decoder)
    while not writing.done:
        run(writing.step())
    written = writing.written
    texts = tokenizer.batch_decode(written, skip_special_tokens=True)
    return [Answer(text.strip(), truncated=ids[-1] not in ends) for text, ids in zip(texts, written, strict=True)]


class TextWriting:
    """Texts that follow the rows of a prefix, being written token by token.

    Rows whose text has ended leave, so a long text costs the short ones beside it nothing. Memory grows with what is
    written, not with the limits.

    Args:
        limits: tokens of every text, or of each.
        choose: logits (R, V), float32, and which rows of the prefix they are for -> tokens (R,).
        suppressed: ids of tokens that are never written.
        ends: tokens after which no more follow; they are not read.
        decoder: the model's, in another precision; None = in its own.
    """

    @torch.no_grad()
    def __init__(
        self,
        model: HybridGenForConditionalGeneration,
        prefix: Prefix,
        limits: int | list[int],
        choose: Callable[[Tensor, list[int]], Tensor],
        suppressed: Tensor,
        ends: set[int],
        decoder: Decoder | None = None,
    ):
        self.model, self.choose, self.suppressed, self.ends = model, choose, suppressed, ends
        self.limits = [limits] * prefix.rows if isinstance(limits, int) else limits
        self.written: list[list[int]] = [[] for _ in range(prefix.rows)]  # token ids, of each row of the prefix
        self.done = False
        self._decoder = Decoder(model) if decoder is None else decoder
        self._prefix, self._states, self._rows = prefix, prefix.last_state, list(range(prefix.rows))
        self._chosen, self._forward, self._read, self._room = None, None, 0, 0

    def step(self) -> Task[None]:
        """One token more in every row that goes on: read the last ones, then choose."""
        bring(self.model)
        if self._chosen is not None:
            yield from self._read_chosen()
        logits = (yield Score(self._decoder.text_logits, self._states)).index_fill(-1, self.suppressed, -torch.inf)
        self._chosen = self.choose(logits, self._rows)  # R
        tokens = read_tokens(self._chosen, logits, len(self.written[self._rows[0]]) + 1)
        for row, token in zip(self._rows, tokens, strict=True):
            self.written[row].append(token)
        self.done = not any(self._left())

    def finish(self) -> Task[Prefix]:
        """Read what was chosen last, where it ends no text: the prefix of a single row, with all that was written."""
        if self.written[0][-1] not in self.ends:
            yield from self._read_chosen()
        return _read_so_far(self._prefix, self._read, self._states)

    def _left(self) -> list[int]:
        """How many tokens each row may still have; 0 = its text has ended."""
        written = [self.written[row] for row in self._rows]
        limits = [self.limits[row] for row in self._rows]
        return [0 if ids[-1] in self.ends else most - len(ids) for ids, most in zip(written, limits, strict=True)]

    def _read_chosen(self) -> Task[None]:
        """Read the tokens that were chosen last, of the rows that go on."""
        left = self._left()
        goes_on = [number for number, more in enumerate(left) if more or self.done]
        if len(goes_on) < len(left) or self._read == self._room:
            self._prefix, self._forward = _read_so_far(self._prefix, self._read, self._states), None
        if len(goes_on) < len(left):
            selected = torch.tensor(goes_on, device=self._chosen.device)
            self._prefix, self._chosen = self._prefix.select(selected), self._chosen[selected]
            self._rows = [self._rows[number] for number in goes_on]
        if self._forward is None:
            self._read, self._room = 0, min(max(*left, 1), max(_FIRST_ROOM, len(self.written[self._rows[0]])))
            places = torch.arange(self._room, device=self._chosen.device)
            self._forward = self._decoder.continue_from(self._prefix, places, causal=True)
        embeds = self.model.get_input_embeddings()(self._chosen)[:, None]  # R, 1, H
        self._states = (yield Read(self._forward, embeds, self._read))[:, 0]  # R, H
        self._read += 1


def _side_by_side(streams: list[Iterator[Tensor]], rows: list[int]) -> Iterator[Tensor]:
    """The next noise (R, V) of some rows. Lazy: none is drawn where the likeliest token is taken."""
    yield torch.cat([next(streams[row]) for row in rows])


def _read_so_far(prefix: Prefix, count: int, last_state: Tensor) -> Prefix:
    """A prefix whose cache has grown by `count` tokens, with all else that belongs to them."""
    read = dataclasses.replace(prefix)
    read.add(count, last_state)
    return read


class StableText:
    """Text of tokens that come one by one, returned as soon as it is certain: characters when all their tokens are
    there, spaces when something follows them. Joined, it is what `write_text` makes of the tokens.

    Args:
        first: spaces before it are left out, as they are where an answer begins.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, first: bool = True):
        self.tokenizer, self.first = tokenizer, first
        self.text = ""  # returned so far
        self._ids: list[int] = []

    def add(self, token: int) -> str:
        """The text that is certain now and was not before; often none."""
        self._ids.append(token)
        text = self._decoded()
        return "" if text.endswith("\ufffd") else self._new_part(text.rstrip())  # the first bytes of a character

    def rest(self, last: bool = True) -> str:
        """What was held back; `last`: nothing follows, so that spaces at the end are left out."""
        text = self._decoded()
        return self._new_part(text.rstrip() if last else text)

    def _decoded(self) -> str:
        text = self.tokenizer.decode(self._ids, skip_special_tokens=True)
        return text.lstrip() if self.first else text

    def _new_part(self, text: str) -> str:
        more = text[len(self.text) :]
        self.text += more
        return more
