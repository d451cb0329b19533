"""Text: the likeliest continuation of prompts with images in them, by transformers' own `generate`.

The fact a newcomer gets wrong: nothing in `generate` knows that placeholders are no words. A model that gives one a
high score would write it, and the next step would ask for an image that is not there; so they are suppressed here.
"""

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from hybridgen.layout import PATHS, SpecialTokens
from hybridgen.modeling_hybridgen import HybridGenForConditionalGeneration


def image_tokens(tokens: SpecialTokens) -> list[int]:
    """Every token that stands for an image or its frame."""
    given = [getattr(tokens, path) for path in PATHS]
    return [tokens.begin_image, tokens.end_image, *(token for token in given if token is not None)]


@torch.no_grad()
def write_text(
    model: HybridGenForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    tokens: SpecialTokens,
    prompts: dict,
    max_new_tokens: int,
) -> list[str]:
    """Greedy answers to prompts padded on the left, one a row, without special tokens and surrounding spaces.

    Args:
        prompts: `input_ids` and `attention_mask` (B, N), and the images as `forward` takes them.
    """
    settings = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokens.pad,
        suppress_tokens=image_tokens(tokens),
    )
    written = model.generate(**prompts, generation_config=settings)[:, prompts["input_ids"].shape[1] :]
    return [text.strip() for text in tokenizer.batch_decode(written, skip_special_tokens=True)]


class StableText:
    """Text of tokens that come one by one, told as soon as it is certain: characters when all their tokens are there,
    spaces when something follows them. Joined, it is what `write_text` makes of the tokens.

    Args:
        first: spaces before it are left out, as they are where an answer begins.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, first: bool = True):
        self.tokenizer, self.first = tokenizer, first
        self.said = ""
        self._ids: list[int] = []

    def add(self, token: int) -> str:
        """What can be told now; often nothing."""
        self._ids.append(token)
        text = self._decoded()
        return "" if text.endswith("\ufffd") else self._tell(text.rstrip())  # the first bytes of a character

    def rest(self, last: bool = True) -> str:
        """What was held back; `last`: nothing follows, so that spaces at the end are left out."""
        text = self._decoded()
        return self._tell(text.rstrip() if last else text)

    def _decoded(self) -> str:
        text = self.tokenizer.decode(self._ids, skip_special_tokens=True)
        return text.lstrip() if self.first else text

    def _tell(self, text: str) -> str:
        more = text[len(self.said) :]
        self.said += more
        return more
