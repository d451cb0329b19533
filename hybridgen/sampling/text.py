"""Text: the likeliest continuation of prompts with images in them, as transformers' `generate` writes it.

Rows whose text has ended leave the batch, so a long answer costs the short ones beside it nothing. Placeholders of
images are suppressed: the model scores them like words, and one that it wrote would ask for an image that is not there.
"""

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from hybridgen.core.layout import SpecialTokens
from hybridgen.core.names import PATHS
from hybridgen.modeling_hybridgen import HybridGenForConditionalGeneration
from hybridgen.sampling.decoder import Decoder
from hybridgen.sampling.prefix import Prefix, prefill


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


@torch.no_grad()
def write_text(
    model: HybridGenForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    tokens: SpecialTokens,
    prompts: dict,
    max_new_tokens: int,
) -> list[str]:
    """Greedy answers to prompts padded on the left, one per row, without special tokens and surrounding spaces.

    Args:
        prompts: the layout vectors (B, N) and the images, as `prefill` takes them.
    """
    prefix, decoder = prefill(model, **prompts), Decoder(model)
    states, rows = prefix.last_state, list(range(prefix.rows))  # rows: which prompt each row of the prefix is
    written: list[list[int]] = [[] for _ in rows]
    forward, read, suppressed = None, 0, unwritable_tokens(model, tokens)
    for left in range(max_new_tokens - 1, -1, -1):
        logits = model.lm_head(states).float()  # R, V
        chosen = logits.index_fill(-1, suppressed, -torch.inf).argmax(-1)
        for row, token in zip(rows, chosen.tolist(), strict=True):
            written[row].append(token)
        goes_on = [number for number, row in enumerate(rows) if written[row][-1] != tokenizer.eos_token_id]
        if not goes_on or not left:
            break
        if len(goes_on) < len(rows):
            selected = torch.tensor(goes_on, device=chosen.device)
            prefix, chosen, forward = _read_so_far(prefix, read, states).select(selected), chosen[selected], None
            rows = [rows[number] for number in goes_on]
        if forward is None:
            forward, read = decoder.continue_from(prefix, torch.arange(left, device=chosen.device), causal=True), 0
        states = forward(model.get_input_embeddings()(chosen)[:, None], read)[:, 0]  # R, H
        read += 1
    return [text.strip() for text in tokenizer.batch_decode(written, skip_special_tokens=True)]


def _read_so_far(prefix: Prefix, count: int, last_state: Tensor) -> Prefix:
    """A prefix whose cache has grown by `count` tokens, with all else that belongs to them."""
    document_ids = torch.nn.functional.pad(prefix.document_ids, (0, count))
    return Prefix(prefix.cache, document_ids, prefix.positions + count, last_state)


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
