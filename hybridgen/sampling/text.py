"""Text: the continuation of prompts with images in them, as transformers' `generate` writes it where it is greedy.

Rows whose text has ended leave the batch, so a long answer costs the short ones beside it nothing. Placeholders of
images are suppressed: the model scores them like words, and one that it wrote would ask for an image that is not there.
"""

import dataclasses
from collections.abc import Iterator

import torch
from torch import Generator, Tensor
from transformers import PreTrainedTokenizerBase

from hybridgen.core.layout import SpecialTokens
from hybridgen.core.names import PATHS
from hybridgen.modeling_hybridgen import HybridGenForConditionalGeneration
from hybridgen.sampling.codes import GREEDY, CodeSampling
from hybridgen.sampling.decoder import Decoder
from hybridgen.sampling.finite import read_tokens
from hybridgen.sampling.prefix import Prefix, prefill
from hybridgen.sampling.seeds import draw_gumbel

_FIRST_ROOM = 31  # tokens that room is made for at first; then for as many again as were written


def unwritable_tokens(
    model: HybridGenForConditionalGeneration, tokens: SpecialTokens, allowed: tuple[int, ...] = ()
) -> Tensor:
    """Ids of all tokens that stand for an image, its frame or a code, of those that the model scores; those `allowed`
    are left out."""
    unwritable = {tokens.begin_image, tokens.end_image, *(getattr(tokens, path) for path in PATHS)} - {None}
    if (vq := model.config.vq_config) is not None and (first := vq.first_token_id) is not None:
        unwritable |= set(range(first, first + vq.num_embeddings))
    scored = [token for token in sorted(unwritable - set(allowed)) if token < model.lm_head.out_features]
    return torch.tensor(scored, dtype=torch.long, device=model.device)


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
) -> list[Answer]:
    """Answers to prompts padded on the left, one per row (B), without special tokens and surrounding spaces.

    Args:
        prompts: the layout vectors (B, N) and the images, as `prefill` takes them.
        max_new_tokens: of every answer, or of each. Memory grows with what is written, not with this.
        sampling: how each token is drawn.
        generators: one per row, where tokens are not the likeliest: a row draws the same whatever is beside it.
    """
    prefix, decoder = prefill(model, **prompts), Decoder(model)
    states, rows = prefix.last_state, list(range(prefix.rows))  # rows: which prompt each row of the prefix is
    limits = [max_new_tokens] * len(rows) if isinstance(max_new_tokens, int) else max_new_tokens
    noise = [draw_gumbel([one], 1 << 62, model.lm_head.out_features, model.device) for one in generators or ()]
    written: list[list[int]] = [[] for _ in rows]
    forward, read, room, suppressed = None, 0, 0, unwritable_tokens(model, tokens)
    while True:
        logits = model.lm_head(states).float().index_fill(-1, suppressed, -torch.inf)  # R, V
        chosen = sampling.draw(logits, _side_by_side(noise, rows))
        for row, token in zip(rows, read_tokens(chosen, logits, len(written[rows[0]]) + 1), strict=True):
            written[row].append(token)
        left = [0 if _has_ended(written[row], tokenizer) else limits[row] - len(written[row]) for row in rows]
        if not any(left):
            break
        if not all(left) or read == room:
            prefix, forward = _read_so_far(prefix, read, states), None
        if not all(left):
            goes_on = [number for number, more in enumerate(left) if more]
            selected = torch.tensor(goes_on, device=chosen.device)
            prefix, chosen, rows = prefix.select(selected), chosen[selected], [rows[number] for number in goes_on]
        if forward is None:
            read, room = 0, min(max(left), max(_FIRST_ROOM, len(written[rows[0]])))
            forward = decoder.continue_from(prefix, torch.arange(room, device=chosen.device), causal=True)
        states = forward(model.get_input_embeddings()(chosen)[:, None], read)[:, 0]  # R, H
        read += 1
    texts = tokenizer.batch_decode(written, skip_special_tokens=True)
    return [
        Answer(text.strip(), truncated=not _has_ended(ids, tokenizer)) for text, ids in zip(texts, written, strict=True)
    ]


def _has_ended(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> bool:
    return ids[-1] == tokenizer.eos_token_id


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
