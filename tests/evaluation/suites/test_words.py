"""The suite of words: true pictures in place of drawn ones are read right; what does not serve is refused."""

import numpy as np
import pytest

from hybridgen.data.synthetic import words as world
from hybridgen.evaluation.generation import DrawSettings
from hybridgen.evaluation.run import evaluate
from hybridgen.evaluation.suites import words

FAST = dict.fromkeys(("diffusion", "vq"), DrawSettings(steps=2, guidance=1.0))
READER = {"reader": "tests.evaluation.suites.test_words:exact_reader"}


def exact_reader(pictures):
    """A reader of the tests: the world's own scorer, in another spelling."""
    read = world.nearest_specs(np.stack([np.asarray(picture.convert("RGB")) for picture in pictures]))
    return ["\n".join(spec.lines).upper() for spec in read]


def test_true_pictures_are_read_right(pipeline, monkeypatch):
    """The pipeline draws what was asked for, as no pipeline does; one word is drawn wrong."""
    asked = []

    def draws(prompts, height, **settings):
        asked.extend(prompts)
        specs = [world.parse_caption(prompt) for prompt in prompts]
        specs[1] = specs[1]._replace(lines=("q" * len(specs[1].lines[0]), *specs[1].lines[1:]))
        return type("Output", (), {"images": [world.render(spec, height) for spec in specs]})

    monkeypatch.setattr(type(pipeline), "__call__", lambda self, prompts, **settings: draws(prompts, **settings))
    result = evaluate(
        pipeline, "words", samples=8, seed=3, draw_paths=["diffusion"], answer_paths=[], settings=FAST, options=READER
    )
    scores = result.scores["generation"]["diffusion"]["scores"]
    assert (scores["read"]["right"], scores["read"]["n"]) == (7, 8)
    assert scores["read"]["true"] == 1.0
    assert scores["text"]["right"] == 7
    assert scores["paper"]["right"] == 8
    specs = [world.parse_caption(prompt) for prompt in asked]
    lone = [len(spec.lines[0]) for spec in specs if len(spec.lines) == 1]
    assert {name for name in scores if name[5:].isdecimal()} == {f"read_{n}" for n in lone}
    assert all(scores[f"read_{n}"]["n"] == lone.count(n) for n in lone)
    assert all({"low", "high", "true", "majority"} <= set(tally) for tally in scores.values())
    items = result.items["generation"]["diffusion"]
    assert [item.verdict["read"] for item in items] == [1, 0, 1, 1, 1, 1, 1, 1]
    assert 'OCR reads "qq' in items[1].wrong
    assert result.facts["reader"] == READER["reader"]


def test_without_a_reader_the_exact_scorer_remains(pipeline):
    result = evaluate(
        pipeline, "words", samples=2, draw_paths=["vq"], answer_paths=["understanding"], settings=FAST,
        options={"reader": "none"},
    )  # fmt: skip
    scores = result.scores["generation"]["vq"]["scores"]
    assert "text" in scores
    assert "read" not in scores
    assert set(result.scores["understanding"]["understanding"]["scores"]) <= {*world.CATEGORIES, "all"}


def test_the_reader_is_loaded_once(pipeline, monkeypatch):
    loaded, load = [], words.open_reader
    monkeypatch.setattr(words, "open_reader", lambda name: loaded.append(name) or load(name))
    evaluate(pipeline, "words", samples=2, draw_paths=["vq"], answer_paths=[], settings=FAST, options=READER)
    assert loaded == [READER["reader"]]


def test_letters_are_counted_as_edits_and_words_by_their_length():
    found = words.score(["aple", "mysky", ""], ["apple", "mysky", "hi"], [True, False, True])
    assert found["read_letters"]["groups"] == found["read"]["n"] == 3
    assert {name: (tally["right"], tally["n"]) for name, tally in found.items()} == {
        "read": (1, 3),
        "read_letters": (4 + 5 + 0, 12),
        "read_5": (0, 1),
        "read_2": (0, 1),
    }


def bad_reader(pictures):
    return ["one text"]


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"reader": "tesseract"}, "there is no reader 'tesseract'"),
        (
            {"reader": "tests.evaluation.suites.test_words:bad_reader"},
            "must return one text for each picture; it returned 1",
        ),
        ({"readers": "none"}, "no suite of words has an option 'readers'"),
    ],
)
def test_readers_that_do_not_serve_are_refused(pipeline, options, fault):
    with pytest.raises(ValueError, match=fault):
        evaluate(pipeline, "words", samples=2, draw_paths=["vq"], answer_paths=[], settings=FAST, options=options)
