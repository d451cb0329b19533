"""Documents cut into pieces: nothing lost or doubled, no picture cut, images with their tokens."""

import random
from dataclasses import fields, replace

import pytest
import torch

from hybridgen.core.documents import Document, DocumentImage
from hybridgen.core.layout import (
    IGNORE,
    ImageSegment,
    SequenceLayout,
    SpecialTokens,
    TextSegment,
    cuts,
    lay_out,
    piece_of,
)

TOKENS = SpecialTokens(begin_image=93, end_image=94, pad=0, understanding=90, diffusion=91, vq=92)


def generated(rng: random.Random) -> Document:
    """Texts and pictures in any order, a picture by one to three paths, causal or not, with a clean copy or without."""
    segments, images, size = [], [], 0
    for number in range(rng.randint(1, 9)):
        if rng.random() < 0.5:
            segments.append(TextSegment([rng.randrange(1, 80) for _ in range(rng.randint(1, 12))], rng.random() < 0.8))
            size += segments[-1].size
            continue
        passes = []
        for path in rng.sample(["understanding", "diffusion", "vq"], rng.randint(1, 3)):
            write = path != "understanding" and rng.random() < 0.5
            copied = write and path == "diffusion" and rng.random() < 0.5
            passes.append(ImageSegment(path, rng.randint(1, 5), path != "vq" and rng.random() < 0.5, write, copied))
        span = size, size + sum(segment.size for segment in passes)
        for segment in passes:
            made = DocumentImage(segment.path, torch.full((3, 1, 1), number), span, segment.write)
            images += [made, replace(made, write=False)] if segment.clean_copy else [made]
        segments, size = segments + passes, span[1]
    return Document(lay_out(segments, TOKENS), images)


def runs_of_images(layout: SequenceLayout) -> list[tuple[str, bool]]:
    """(path, whether noised) of each image whose placeholders stand in a layout, found without spans."""
    paths = {90: "understanding", 91: "diffusion", 92: "vq"}
    found, before = [], None
    for token, noised in zip(layout.input_ids, layout.noised_mask, strict=True):
        here = (paths[token], noised) if token in paths else None
        if here is not None and here != before:
            found.append(here)
        before = here
    return found


LONGEST_PICTURE = 3 * (2 * 5 + 2)


@pytest.mark.parametrize("seed", range(60))
def test_pieces_are_the_document_cut(seed):
    rng = random.Random(seed)
    document, length = generated(rng), rng.randint(LONGEST_PICTURE, LONGEST_PICTURE + 20)
    pieces = list(document.pieces(length))

    assert all(0 < len(piece) <= length for piece in pieces)
    for name in ("input_ids", "noised_mask", "code_labels"):
        joined = [value for piece in pieces for value in getattr(piece.layout, name)]
        assert joined == getattr(document.layout, name), name
    begin = 0
    for piece in pieces:
        end = begin + len(piece)
        assert not any(
            first < begin < last or first < end < last for image in document.images for first, last in [image.span]
        )
        labels = document.layout.labels[begin:end]
        assert piece.layout.labels == [IGNORE, *labels[1:]]
        for name in ("block_ids", "position_ids"):  # the same steps, from 0 on
            values = getattr(document.layout, name)[begin:end]
            assert getattr(piece.layout, name) == [value - values[0] for value in values]
        assert set(piece.layout.document_ids) == {0}
        begin = end

    images = [image for piece in pieces for image in piece.images]
    assert [(image.path, image.write, image.pixels.tolist()) for image in images] == [
        (image.path, image.write, image.pixels.tolist()) for image in document.images
    ]
    for piece in pieces:  # each stands where its tokens are
        assert [image.path for image in piece.images] == [path for path, _ in runs_of_images(piece.layout)]
        for image in piece.images:
            first, last = image.span
            assert piece.layout.input_ids[first] == TOKENS.begin_image
            assert piece.layout.input_ids[last - 1] == TOKENS.end_image


@pytest.mark.parametrize("seed", range(30))
def test_a_piece_is_as_long_as_can_be(seed):
    rng = random.Random(seed)
    document, length = generated(rng), rng.randint(LONGEST_PICTURE, LONGEST_PICTURE + 20)
    spans = {image.span for image in document.images}
    begin = 0
    for piece in list(document.pieces(length))[:-1]:
        next_end = (
            begin + len(piece) + 1
        )  # one token more is too long, or would cut a picture at every place up to a row
        fitting = range(next_end, min(begin + length, len(document)) + 1)
        assert all(any(first < end < last for first, last in spans) for end in fitting)
        begin += len(piece)


def test_texts_are_cut_into_full_rows():
    layout = lay_out([TextSegment(list(range(1, 24)))], TOKENS)
    assert [len(piece) for piece in Document(layout).pieces(10)] == [10, 10, 3]
    assert [len(piece) for piece in Document(layout).pieces(23)] == [23]


def test_what_fits_stays_itself():
    document = generated(random.Random(1))
    assert next(document.pieces(len(document))) is document


def test_a_picture_longer_than_a_row_is_refused_with_both_sizes_before_the_first_piece():
    segment = ImageSegment("diffusion", 6, True, write=True, clean_copy=True)  # 14 tokens
    image = DocumentImage("diffusion", torch.zeros(3, 1, 1), (3, 17), write=True)
    document = Document(lay_out([TextSegment([1, 2, 3]), segment, TextSegment([4])], TOKENS), [image, image])
    with pytest.raises(ValueError, match="picture of 14 tokens.* does not fit a row of 13.*raise sequence_length"):
        next(document.pieces(13))
    assert [len(piece) for piece in document.pieces(14)] == [3, 14, 1]


def test_an_image_that_opens_a_later_piece_comes_first_there():
    image = DocumentImage("diffusion", torch.zeros(3, 1, 1), (4, 8), write=True)
    segments = [TextSegment([1, 2, 3, 4]), ImageSegment("diffusion", 2, True, write=True), TextSegment([5, 6])]
    document = Document(lay_out(segments, TOKENS), [image])
    _, second = document.pieces(7)
    assert second.images[0].image_first
    assert second.images[0].span == (0, 4)
    first, _ = document.pieces(8)  # behind words it does not
    assert not first.images[0].image_first


def test_whether_a_document_learns():
    assert not Document(
        lay_out([TextSegment([1]), TextSegment([2], loss=False)], TOKENS)
    ).learns  # nothing before the 1
    assert Document(lay_out([TextSegment([1, 2])], TOKENS)).learns
    drawn = DocumentImage("diffusion", torch.zeros(3, 1, 1), (0, 3), write=True)
    assert Document(lay_out([ImageSegment("diffusion", 1, True, write=True)], TOKENS), [drawn]).learns


def test_sizes_of_segments_are_their_tokens_in_the_row():
    rng = random.Random(0)
    for _ in range(30):
        length, copied = rng.randint(1, 9), rng.random() < 0.5
        segment = ImageSegment("diffusion", length, True, write=True, clean_copy=copied)
        assert len(lay_out([segment], TOKENS)) == segment.size


def test_no_token_no_piece():
    assert list(cuts(0, 5)) == []
    empty = piece_of(lay_out([TextSegment([1])], TOKENS), 0, 0)
    assert all(getattr(empty, each.name) == [] for each in fields(SequenceLayout))
