"""How likely a model holds a text: the log-likelihood of documents' labels, in one forward over all of their tokens.

It is the loss of training with another sign, summed instead of averaged: what `forward(labels=...)` computes. Sampling
draws from the same numbers, token by token.

Shapes: B documents, N tokens of the longest.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from hybridgen.core.documents import Document
from hybridgen.core.layout import IGNORE, SpecialTokens, TextSegment, lay_out
from hybridgen.modeling_hybridgen import HybridGenForConditionalGeneration


class Likelihood(NamedTuple):
    """Of a text: the sum of its tokens' log-probabilities in nats, at most 0, and how many tokens that are."""

    nats: float
    tokens: int

    @property
    def mean(self) -> float:
        """Per token, by which texts of different lengths are compared."""
        return self.nats / max(1, self.tokens)


@torch.no_grad()
def log_likelihoods(
    model: HybridGenForConditionalGeneration, documents: list[Document], inputs: dict[str, Tensor]
) -> list[Likelihood]:
    """The log-likelihood of each document's labels.

    Args:
        inputs: the documents padded on the left, and their images, as `forward` takes them (B, N).
    """
    width, device = inputs["input_ids"].shape[1], inputs["input_ids"].device
    rows = [[IGNORE] * (width - len(document)) + document.layout.labels for document in documents]
    labels = torch.tensor(rows, device=device)  # B, N
    losses = model(**inputs, text_labels=labels, use_cache=False).text_losses.cpu().double()  # kept
    counts = [sum(label != IGNORE for label in row) for row in rows]
    return [Likelihood(-float(of_one.sum()), count) for of_one, count in zip(losses.split(counts), counts, strict=True)]


def rolling_windows(ids: list[int], first: int, context: int, tokens: SpecialTokens) -> list[Document]:
    """A text of any length as documents of at most `context` tokens that together predict each of its tokens once.

    Each window begins with the last token of the one before, the first one with the token `first`, which are only
    read: the windows of EleutherAI's lm-evaluation-harness (`loglikelihood_rolling`) with one token of context.
    """
    line = [first, *ids]
    return [
        Document(lay_out([TextSegment(line[start : start + context])], tokens), plain=True)
        for start in range(0, len(ids), max(1, context - 1))
    ]
