"""The OCR reader on true pictures of words: what its score of drawn pictures is read against."""

import numpy as np
import pytest
from PIL import Image

from hybridgen.data.synthetic import words
from hybridgen.evaluation import readers


def test_true_pictures_are_read_right_and_empty_ones_as_nothing():
    """One word of five letters in each font, two words, and nothing: 12 of 12 and an empty text."""
    five = [word for word in words.words_of_split("held_out") if len(word) == 5]
    specs = [
        words.WordsSpec((five[7 * i + j],), family, style, *("blue", "white") if j % 2 else ("yellow", "black"))
        for i, family in enumerate(words.FAMILIES)
        for j, style in enumerate(words.STYLES)
    ] + [words.WordsSpec(("red", "sky"), "serif", "plain", "green", "pink")]
    read = readers.open_reader("rapidocr")
    texts = read([*map(words.render, specs), Image.new("RGB", (64, 64), "white")])
    assert [readers.letters_only(text) for text in texts] == ["".join(spec.lines) for spec in specs] + [""]
    assert texts[-2].split() == ["red", "sky"]


def test_the_first_held_out_pictures_are_read_right():
    """The first 24 of the 450 of docs/evaluation.md, of which 450 are read right: words of one to eight letters, one to
    three, in all fonts, as a suite meets them."""
    source, read = words.Source("held_out", "draw", seed=0, size=64), readers.open_reader("rapidocr")
    records = [source[number] for number in range(24)]
    texts = read([record["messages"][1]["content"][0]["image"] for record in records])
    wanted = ["".join(words.spec_of(record).lines) for record in records]
    assert [readers.letters_only(text) for text in texts] == wanted
    assert len(set(wanted)) > 20


def test_a_small_picture_is_enlarged_by_whole_pixels_and_has_a_rim():
    picture = Image.new("RGB", (64, 32), (9, 8, 7))
    assert readers.enlarged(picture).shape == (32 * 4 + 64, 64 * 4 + 64, 3)
    assert (readers.enlarged(picture) == (9, 8, 7)).all()
    large = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8))
    assert np.array_equal(readers.enlarged(large), np.asarray(large))


def test_only_letters_count():
    assert readers.letters_only(" Faír,\nSky 2!") == "fairsky"


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("tesseract", "there is no reader 'tesseract'; choose rapidocr, or name your own as MODULE:NAME"),
        ("no.such:thing", "reader no.such:thing cannot be loaded"),
        ("hybridgen.version:__version__", "is of type str; it must be callable"),
    ],
)
def test_readers_that_there_are_not(name, fault):
    with pytest.raises(ValueError, match=fault):
        readers.open_reader(name)


def test_a_reader_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(readers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match=r"rapidocr and onnxruntime, which is not installed: pip install 'hybridgen\[ocr"
    ):
        readers.open_reader("rapidocr")
