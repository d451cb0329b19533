"""Windows and chunks in the attention rule: transformers' masks on text, what each token should see, and positions."""

import random

import pytest
import torch
from transformers import Llama4TextConfig, MistralConfig
from transformers.masking_utils import create_chunked_causal_mask, create_sliding_window_causal_mask

from hybridgen.core.layout import (
    ImageSegment,
    TextSegment,
    Window,
    attention_mask,
    count_places,
    dense_mask,
    find_reach,
    flex_mask,
    infer_image_ids,
    lay_out,
    pack,
)
from tests.core.test_layout import (
    LENGTHS,
    TOKENS,
    random_document,
    random_rows,
    read_out,
    rows_of_several_blocks,
    vectors_of,
    visible,
)

PLACEHOLDERS = torch.tensor([TOKENS.understanding, TOKENS.diffusion, TOKENS.vq])
WINDOWS = [Window(1), Window(3), Window(7), Window(64), Window(1, True), Window(4, True), Window(11, True)]


def reach_of(rows: dict, window: Window):
    images = infer_image_ids(rows["block_ids"], torch.isin(rows["input_ids"], PLACEHOLDERS), rows["noised_mask"])
    return find_reach(window, rows["document_ids"], images, rows["noised_mask"])


def oracle(window: Window, length: int, attention_mask=None, position_ids=None) -> torch.Tensor:
    """(B, 1, N, N) transformers' own mask of text."""
    name, kind, create = ("sliding_window", MistralConfig, create_sliding_window_causal_mask)
    if window.chunked:
        name, kind, create = ("attention_chunk_size", Llama4TextConfig, create_chunked_causal_mask)
    config = kind(num_hidden_layers=1, **{name: window.size})
    config._attn_implementation = "eager"
    rows = 1 if attention_mask is None else len(attention_mask)
    made = create(
        config=config,
        inputs_embeds=torch.zeros(rows, length, 8),
        attention_mask=attention_mask,
        past_key_values=None,
        position_ids=position_ids,
    )
    return made == 0


@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_text_equals_transformers(window):
    ids = torch.zeros(1, 30, dtype=torch.long)
    mask = dense_mask(ids, torch.arange(30)[None], reach=find_reach(window, ids))
    assert torch.equal(mask, oracle(window, 30))


@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_packed_text_equals_transformers(window):
    """Windows are counted in the document, not in the row."""
    lengths = (9, 1, 14, 6)
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    documents = torch.arange(4).repeat_interleave(torch.tensor(lengths))[None]
    mask = dense_mask(documents, torch.arange(30)[None], reach=find_reach(window, documents))
    assert torch.equal(mask, oracle(window, 30, position_ids=positions))


@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_padding_on_the_left_equals_transformers(window):
    present = torch.ones(2, 20, dtype=torch.long)
    present[1, :6] = 0
    documents = present - 1
    mask = dense_mask(documents, torch.arange(20).expand(2, -1), reach=find_reach(window, documents))
    expected = oracle(window, 20, attention_mask=present)
    assert torch.equal(mask[0], expected[0])
    assert torch.equal(mask[1, :, 6:], expected[1, :, 6:])


def within(segments: list, window: Window) -> torch.Tensor:
    """(N, N) what a window leaves of a document, by its meaning: pictures whole, by their nearest tokens."""
    spans, position = [], 0  # of each token: positions of the first and the last token of its picture, or its own
    for segment in segments:
        if isinstance(segment, TextSegment):
            spans += [(position + i, position + i) for i in range(len(segment.ids))]
            position += len(segment.ids)
            continue
        first = position + 1
        image = [(first, first + segment.length - 1)] * segment.length
        spans += [(position, position), *image, *(image if segment.clean_copy else [])]
        position = first + segment.length
        spans.append((position, position))
        position += 1
    first, last = torch.tensor(spans).T
    if window.chunked:
        return last[None] // window.size >= first[:, None] // window.size
    return first[:, None] - last[None] < window.size


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("seed", range(6))
def test_pictures_are_whole(window, seed):
    """Packed documents with images of every path, causal, bidirectional and with clean copies."""
    rng = random.Random(seed)
    documents = [random_document(rng) for _ in range(4)]
    seen = [visible(segments) & within(segments, window) for segments in documents]
    expected = torch.block_diag(*seen).bool()
    row = pack([lay_out(segments, TOKENS) for segments in documents], len(expected) + 5, TOKENS.pad).tensors()
    rows = {name: values[None] for name, values in row.items()}
    mask = dense_mask(*vectors_of(rows), reach=reach_of(rows, window))[0, 0]
    assert torch.equal(mask[: len(expected), : len(expected)], expected)
    assert not mask[len(expected) :, : len(expected)].any()
    assert mask.diagonal().all()  # so no row of the softmax is empty


def test_a_picture_is_seen_as_long_as_its_last_token_is():
    segments = [TextSegment([1, 2]), ImageSegment("diffusion", 5, True), TextSegment([3, 4, 5])]
    rows = {name: values[None] for name, values in lay_out(segments, TOKENS).tensors().items()}
    mask = dense_mask(*vectors_of(rows), reach=reach_of(rows, Window(3)))[0, 0]
    drawn = """x...........
               xx..........
               xxx.........
               .xxxxxxx....
               .xxxxxxx....
               .xxxxxxx....
               .xxxxxxx....
               .xxxxxxx....
               ...xxxxxx...
               ...xxxxxxx..
               ........xxx.
               .........xxx"""
    assert torch.equal(mask, torch.tensor([[c == "x" for c in line.strip()] for line in drawn.splitlines()]))


@pytest.mark.parametrize("seed", range(10))
def test_places_are_the_positions_of_the_layout(seed):
    rows = random_rows(seed)
    assert torch.equal(count_places(rows["document_ids"], rows["noised_mask"]), rows["position_ids"])


def test_places_of_a_document_that_is_interrupted():
    """Padding between real tokens is not counted, as positions of transformers do not count it."""
    present = torch.tensor([[0, 1, 1, 0, 0, 1, 1, 1, 0]])
    places = count_places(present - 1)
    assert places[present.bool()].tolist() == [0, 1, 2, 3, 4]


def test_images_of_a_row():
    """A run of a placeholder or of a block is an image; a noised one and its clean copy are two; a token is text."""
    segments = [TextSegment([1, 2]), ImageSegment("diffusion", 3, True, True, True), ImageSegment("vq", 2, False, True)]
    segments += [ImageSegment("understanding", 1, False)]
    rows = {name: values[None] for name, values in lay_out(segments, TOKENS).tensors().items()}
    images = infer_image_ids(rows["block_ids"], torch.isin(rows["input_ids"], PLACEHOLDERS), rows["noised_mask"])[0]
    kinds = {number: place for place, number in enumerate(dict.fromkeys(images.tolist()))}
    named = [kinds[number] for number in images.tolist()]
    assert named == [0, 0, 0, 1, 1, 1, 2, 2, 2, 0, 0, 3, 3, 0, 0, 0, 0]
    assert not images[0]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize(("window", "queries"), [(Window(50), None), (Window(90, True), None), (Window(50), 130)])
def test_flex_is_dense(length, window, queries):
    rows = rows_of_several_blocks(length)
    arguments = (*vectors_of(rows), queries)
    reach = reach_of(rows, window)
    allowed, kinds = read_out(flex_mask(*arguments, reach=reach))
    assert torch.equal(allowed, dense_mask(*arguments, reach=reach)[:, 0])
    assert not torch.equal(allowed, dense_mask(*arguments)[:, 0])  # the window shows
    assert {"partial", "empty"} <= kinds


def test_additive_is_dense():
    rows = random_rows(1)
    reach = reach_of(rows, Window(4))
    additive = attention_mask("eager", torch.float32, *vectors_of(rows), reach=reach, empty_slots=2)
    assert torch.equal(additive[..., :-2] == 0, dense_mask(*vectors_of(rows), reach=reach))
    assert (additive[..., -2:] < -1e30).all()
