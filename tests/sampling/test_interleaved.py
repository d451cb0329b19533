"""Rows against whole forwards and against one another; text that comes piece by piece against text decoded whole."""

import pytest
import torch

from hybridgen.sampling.interleaved import (
    ImageBlock,
    ReadTokens,
    commit_block,
    common_length,
    read_document,
    side_by_side,
)
from hybridgen.sampling.prefix import extend, stack
from hybridgen.sampling.tasks import run
from hybridgen.sampling.text import StableText, TextWriting
from tests.models import BEGIN, END, PAD, tiny_model
from tests.pipelines import WORDS
from tests.processors import tiny_tokenizer
from tests.sampling.prompts import image, prefix_of, whole, worst

TEXT = [1, 5, 6, 7]


def understood() -> ImageBlock:
    return ImageBlock("understanding", 4, False, {"pixel_values": torch.randn(1, 3, 16, 16)})


def contents(row: ReadTokens) -> list[torch.Tensor]:
    front = len(row.prefix) - len(row.tokens)
    return [layer.keys[:, :, front : layer.length].clone() for layer in row.prefix.cache.layers]


def test_documents_share_what_they_begin_with():
    one, other = understood(), understood()
    assert common_length([1, 2, 3], [1, 2, 4, 5]) == 2
    assert common_length([1, 2], [1, 2, 3]) == 2
    assert common_length([1, *one.tokens(8, 9), 2], [1, *one.tokens(8, 9), 3]) == 7
    assert common_length([1, *one.tokens(8, 9)], [1, *other.tokens(8, 9)]) == 2  # the frame's beginning


def test_a_document_read_in_two_parts_is_one_forward():
    model, seen = tiny_model(), understood()
    first = read_document(model, None, [*TEXT, 8], PAD)
    tokens = [*TEXT, *seen.tokens(BEGIN, END), 11]
    second = read_document(model, first, tokens, PAD)
    expected = whole(model, [TEXT, image("understanding", model, 4), [11, BEGIN]], **seen.media)
    assert worst(second.prefix.last_state[0], expected[-2]) < 1e-5  # measured 2e-7
    assert worst(second.image_start.last_state[0], expected[-1]) < 1e-5  # measured 2e-7


@pytest.mark.parametrize("path", ["diffusion", "vq"])
def test_a_row_is_never_changed(path):
    """By reading on, writing, drawing against it or committing to it."""
    model = tiny_model()
    row = read_document(model, None, TEXT, PAD)
    before, state = contents(row), row.prefix.last_state.clone()
    read_document(model, row, [*TEXT, 9, 10], PAD)
    greedy, nothing = lambda logits, rows: logits.argmax(-1), torch.tensor([], dtype=torch.long)  # noqa: E731
    writing = TextWriting(model, row.until(len(TEXT)), 4, greedy, nothing, set())
    while not writing.done:
        run(writing.step())
    assert len(run(writing.finish())) == len(row.prefix) + 4
    media = {"latents": torch.randn(1, 3, 16, 16)} if path == "diffusion" else {"codes": torch.arange(16)}
    drawn = ImageBlock(path, 16, path == "diffusion", media)
    against = side_by_side([row.image_start])
    if path == "vq":
        extend(model, against, torch.full((15,), model.config.vq_token_id), codes=torch.arange(15))
    grown = commit_block(model, row, against, drawn)
    assert len(grown.tokens) == len(grown.prefix) - (len(row.prefix) - len(TEXT)) == len(TEXT) + 18
    assert all(torch.equal(a, b) for a, b in zip(contents(row), before, strict=True))
    assert torch.equal(row.prefix.last_state, state)


def test_stacked_prefixes_read_on_as_each_alone():
    model = tiny_model()
    parts = [prefix_of(model, [ids]) for ids in (TEXT, [1, 8], [1, 9, 10, 11, 12, 13])]
    states = extend(model, stack(parts), torch.tensor([21, 22, 23]))
    for row, part in enumerate(parts):
        assert worst(states[row], extend(model, part, torch.tensor([21, 22, 23]))[0]) < 1e-5  # measured 4e-7


def test_text_told_piece_by_piece_is_text_decoded_whole():
    """Of any tokens, such that are no whole characters among them."""
    tokenizer, generator = tiny_tokenizer(), torch.Generator().manual_seed(0)
    held = 0
    for number in range(200):
        ids = torch.randint(len(tokenizer), (12,), generator=generator).tolist()
        ids = tokenizer.encode(f" {WORDS[number % 4]} \u00e4\u20ac ") + ids if number % 2 else ids
        text = StableText(tokenizer)
        pieces = [text.add(token) for token in ids]
        assert "".join([*pieces, text.rest()]) == tokenizer.decode(ids, skip_special_tokens=True).strip() == text.text
        held += "" in pieces
    assert held > 100
