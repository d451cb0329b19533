"""How likely a model holds a text: the log-likelihood of documents' labels, in one forward over all of their tokens.

It is the loss of training with another sign, summed instead of averaged: what `forward(labels=...)` computes. Sampling
draws from the same numbers, token by token.

Shapes: B documents, N tokens of the longest.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from hybridgen.core.documents import Document
from hybridgen.core.layout import IGNORE, SpecialTokens, TextSegment, lay_out
from hybridgen.modeling_hybridgen import HybridGenForConditionalGeneration


class Likelihood(NamedTuple):
    """Of a text: the sum of its tokens' log-probabilities in nats, at most 0, and how many tokens that are.

    `greedy` says whether each of them is the likeliest, where that was asked for.
    """

    nats: float
    tokens: int
    greedy: bool | None = None

    @property
    def mean(self) -> float:
        """Per token, by which texts of different lengths are compared."""
        return self.nats / max(1, self.tokens)


@torch.no_grad()
def log_likelihoods(
    model: HybridGenForConditionalGeneration,
    documents: list[Document],
    inputs: dict[str, Tensor],
    unwritable: Tensor | None = None,
) -> list[Likelihood]:
    """The log-likelihood of each document's labels.

    Args:
        inputs: the documents padded on the left, and their images, as `forward` takes them (B, N).
        unwritable: tokens that the likeliest is not among; given where `greedy` is wanted, for which the logits of all
            labels are made whole.
    """
    width, device = inputs["input_ids"].shape[1], inputs["input_ids"].device
    rows = [[IGNORE] * (width - len(document)) + document.layout.labels for document in documents]
    labels = torch.tensor(rows, device=device)  # B, N
    kept = None if unwritable is None else F.pad(labels[:, 1:] != IGNORE, (0, 1))  # B, N
    outputs = model(**inputs, text_labels=labels, logits_to_keep=kept, use_cache=False)
    counts = [sum(label != IGNORE for label in row) for row in rows]
    losses = [float(of_one.sum()) for of_one in outputs.text_losses.cpu().double().split(counts)]
    greedy = [None] * len(rows)
    if unwritable is not None:
        likeliest = outputs.logits.float().index_fill(-1, unwritable, -torch.inf).argmax(-1)
        hits = (likeliest == labels[labels != IGNORE]).cpu()  # kept
        greedy = [bool(of_one.all()) for of_one in hits.split(counts)]
    return list(map(Likelihood, [-loss for loss in losses], counts, greedy))


def rolling_windows(
    ids: list[int], first: int, context: int, tokens: SpecialTokens, stride: int | None = None
) -> list[Document]:
    """A text of any length as documents of at most `context` tokens that together predict each of its tokens once.

    The first window predicts all it can after the token `first`, each further one `stride` tokens more, at its end,
    after as much of the text before as there is room for. None = as many as fit after one token of context, the windows
    of EleutherAI's lm-evaluation-harness (`loglikelihood_rolling`); half the context is usual where a lower figure is
    worth twice the work (transformers' guide to perplexity).
    """
    line, stride = [first, *ids], max(1, context - 1) if stride is None else stride
    ends = [*range(min(context, len(line)), len(line), stride), len(line)] if ids else []
    windows, predicted = [], 1  # of the line's tokens; `first` is only read
    for end in ends:
        start = max(0, end - context)
        losses = [place >= predicted for place in range(start, end)]
        windows.append(Document(lay_out([TextSegment(line[start:end], losses)], tokens), plain=True))
        predicted = end
    return windows
