"""Pictures of a synthetic dataset at other sizes: enlarged by whole pixels, pooled, or refused; scored as their own."""

import numpy as np
import pytest
from PIL import Image

from hybridgen.data.source_config import SourceConfig
from hybridgen.data.sources import open_source
from hybridgen.data.synthetic import DATASETS, open_synthetic
from hybridgen.data.synthetic.sizes import resized


def test_enlarged_and_pooled_are_what_pillow_makes():
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    larger = np.asarray(Image.fromarray(picture).resize((96, 96), Image.Resampling.NEAREST))
    assert np.array_equal(resized(picture[None], 96)[0], larger)
    smaller = np.asarray(Image.fromarray(picture).resize((8, 8), Image.Resampling.BOX)).astype(int)
    assert abs(resized(picture[None], 8)[0] - smaller).max() <= 1  # Pillow rounds between its two passes
    assert np.array_equal(resized(resized(picture[None], 64), 32)[0], picture)


@pytest.mark.parametrize("side", [0, -32, 48, 33, 5])
def test_a_side_that_would_shift_pixels_is_refused(side):
    with pytest.raises(ValueError, match=f"pictures of 32 pixels cannot become {side} pixels a side: choose"):
        resized(np.zeros((1, 32, 32, 3), np.uint8), side)


@pytest.mark.parametrize("name", DATASETS)
def test_a_source_draws_at_the_size_it_is_asked_for(name):
    dataset = open_synthetic(name)
    small, large = (dataset.Source(dataset.SPLITS[0], "draw", 0, size=size) for size in (32, 64))
    for index in range(4):
        assert small.spec(index) == large.spec(index)
        assert small.picture(index).size == (32, 32)
        assert large.picture(index).size == (64, 64)
        assert large[index]["messages"][1]["content"][0]["image"].size == (64, 64)


@pytest.mark.parametrize("side", [32, 64, 128])
def test_dolls_are_scored_at_any_size(side):
    dolls = open_synthetic("dolls")
    source = dolls.Source("held_out", "draw", 0, size=side)
    specs = [source.spec(index) for index in range(24)]
    images = np.stack([np.asarray(source.picture(index)) for index in range(24)])
    assert dolls.score_pictures(images, specs)["all_seven"]["right"] == 24


def test_the_key_of_a_source_reaches_its_pictures():
    documents = open_source(SourceConfig("dolls", task="draw", size=64), seed=0)
    assert documents.record_source[0]["messages"][1]["content"][0]["image"].size == (64, 64)


def test_a_source_refuses_a_size_it_cannot_have():
    with pytest.raises(ValueError, match="cannot become 40 pixels"):
        open_synthetic("dolls").Source("train", "draw", 0, size=40)
    with pytest.raises(ValueError, match="size"):
        SourceConfig("pictures/", size=64)
