"""Prompts as token ids, and what the model makes of whole documents: the teacher-forced side of comparisons. Not a
test."""

import torch
from torch import Tensor

from hybridgen.core.documents import Document, left_pad
from hybridgen.core.layout import ImageSegment, TextSegment, lay_out
from hybridgen.sampling.prefix import Prefix, prefill
from tests.models import BEGIN, PAD, TOKENS

PROMPTS = [[1, 5, 6, 7], [1, 8], [1, 9, 10, 11, 12, 13, 14], [1, 15, 16], [1, 17, 18, 19, 20]]  # of unequal length
EMPTY = [1]


def document(segments: list, begin: bool = False) -> Document:
    """Segments (lists of ids are text) as a document, the token that begins an image last if `begin`."""
    segments = [TextSegment(item) if isinstance(item, list) else item for item in segments]
    return Document(lay_out(segments + ([TextSegment([BEGIN])] if begin else []), TOKENS))


def batch(prompts: list[list], begin: bool = True) -> dict[str, Tensor]:
    """Prompts, each a list of segments, as left-padded layout vectors."""
    padded = left_pad([document(prompt, begin) for prompt in prompts], PAD)
    return {name: padded[name] for name in ("input_ids", "document_ids", "block_ids", "position_ids")}


def prefix_of(model, prompts: list[list[int]], begin: bool = True, **images) -> Prefix:
    """A prefix of text prompts, ready to draw."""
    return prefill(model, **batch([[ids] for ids in prompts], begin), **images)


def whole(model, segments: list, **media) -> Tensor:
    """The backbone's output (N, H) over one whole document, in one forward without a cache."""
    vectors = {name: value[None] for name, value in document(segments).layout.tensors().items()}
    names = ("input_ids", "document_ids", "block_ids", "position_ids")
    with torch.no_grad():
        return model.model(**{name: vectors[name] for name in names}, **media).last_hidden_state[0]


def worst(a: Tensor, b: Tensor) -> float:
    """The largest difference; shapes must agree, so that nothing is compared by broadcasting."""
    assert a.shape == b.shape
    return (a - b).abs().max().item()


def image(path: str, model, length: int = 16) -> ImageSegment:
    return ImageSegment(path, length, model.config.is_bidirectional(path))
