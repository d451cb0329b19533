"""GenEval in its official format: what is written is what its scorer reads, and the rule's scores are those of it."""

import json
import os
import re

import numpy as np
import pytest
from PIL import Image

from hybridgen.core.geneval import TAGS, Found
from hybridgen.data.synthetic import shapes
from hybridgen.evaluation.generation import DrawSettings
from hybridgen.evaluation.intervals import mean_of_shares
from hybridgen.evaluation.result import Result
from hybridgen.evaluation.run import evaluate
from hybridgen.evaluation.suites import geneval
from tests.painters import Painter, work_of

DETECTOR = "hybridgen.data.synthetic.shapes:detect"
PROMPTS = 12


@pytest.fixture(scope="module")
def metadata(tmp_path_factory):
    """Two prompts of each category about shapes, sorted as GenEval's file is, with a key that nobody knows."""
    rng, file = np.random.default_rng(0), tmp_path_factory.mktemp("geneval") / "evaluation_metadata.jsonl"
    lines = []
    for tag in TAGS:
        for _ in range(PROMPTS // 6):
            asked = shapes.prompt(shapes.draw_spec(rng, True, tag))._replace(background=None)
            lines.append({**shapes.geneval_line(asked), "note": "kept"})
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def read_as_the_official_scorer(folder):
    """The loops of its `main`: folders of digits, `metadata.jsonl` by json.load, samples of digits."""
    read = {}
    for name in sorted(os.listdir(folder)):
        inner = os.path.join(folder, name)
        if not os.path.isdir(inner) or not name.isdigit():
            continue
        with open(os.path.join(inner, "metadata.jsonl")) as file:
            line = json.load(file)
        samples = [one for one in sorted(os.listdir(os.path.join(inner, "samples"))) if re.match(r"\d+\.png", one)]
        read[name] = line, [Image.open(os.path.join(inner, "samples", one)).convert("RGB") for one in samples]
    return read


def test_the_folder_is_the_one_that_the_official_scorer_reads(metadata, tmp_path):
    painter = Painter()
    work = work_of(
        painter, "geneval", tmp_path, seed=7, options={"data": str(metadata), "n_samples": "3", "size": "64"}
    )
    geneval.check(work)
    result = geneval.run(work)
    lines = [json.loads(line) for line in metadata.read_text().splitlines()]
    read = read_as_the_official_scorer(tmp_path / "diffusion-pictures")
    assert list(read) == [f"{i:05d}" for i in range(PROMPTS)]
    for i, (line, samples) in enumerate(read.values()):
        assert line == lines[i]
        assert len(samples) == 3
        for k, picture in enumerate(samples):
            assert picture.size == (64, 64)
            assert np.array_equal(picture, painter.draw(line["prompt"], 7 + k, 64))  # every prompt from the same seeds
        assert Image.open(tmp_path / "diffusion-pictures" / f"{i:05d}" / "grid.png").size == (128, 128)
    assert "evaluate_images.py" in result.facts["notes"][0]
    assert result.scores["generation"]["diffusion"]["scores"] == {}
    items = result.items["generation"]["diffusion"]  # shown, though nothing is scored
    assert [item.prompt for item in items] == [line["prompt"] for line in lines for _ in range(3)]


@pytest.mark.parametrize("wrong", [False, True])
def test_the_scores_of_a_perfect_painter_and_of_one_that_draws_hearts(metadata, wrong):
    options = {"data": str(metadata), "n_samples": "2", "detector": DETECTOR}
    work = work_of(Painter(wrong), "geneval", options=options)
    geneval.check(work)
    result = geneval.run(work)
    scores = result.scores["generation"]["diffusion"]["scores"]
    assert set(scores) == {*TAGS, "pictures", "prompts", "overall"}
    assert scores["pictures"]["n"] == 2 * PROMPTS
    assert scores["prompts"]["n"] == PROMPTS
    assert scores["overall"]["value"] == pytest.approx(100 * np.mean([scores[tag]["share"] for tag in TAGS]))
    if wrong:
        assert scores["pictures"]["share"] < 0.2
        assert all(item.wrong for item in result.items["generation"]["diffusion"] if not item.verdict["pictures"])
    else:
        assert {scores[tag]["share"] for tag in TAGS} == {1.0}
        assert scores["overall"]["value"] == 100
        assert scores["overall"]["low"] < 100


def test_the_detector_is_loaded_once(metadata, monkeypatch):
    """It may be a class that loads weights."""
    loaded, load = [], geneval.load_named
    monkeypatch.setattr(geneval, "load_named", lambda *words: loaded.append(words[1]) or load(*words))
    work = work_of(Painter(), "geneval", samples=2, options={"data": str(metadata), "detector": DETECTOR})
    geneval.check(work)
    geneval.run(work)
    assert loaded == [DETECTOR]


def test_samples_of_a_prompt_are_not_independent(metadata, monkeypatch):
    """All samples of a prompt right or wrong: their intervals are those of the prompts, and so is the mean's."""
    work = work_of(Painter(), "geneval", options={"data": str(metadata), "n_samples": "4", "detector": DETECTOR})
    monkeypatch.setattr(
        geneval, "picture_faults", lambda detector, picture, line: ["wrong"] if "red" in line["prompt"] else []
    )
    result = geneval.run(work)
    scores, items = result.scores["generation"]["diffusion"]["scores"], result.items["generation"]["diffusion"]
    assert scores["pictures"]["groups"] == scores["prompts"]["n"] == PROMPTS
    assert 0 < scores["prompts"]["right"] < PROMPTS
    for end in ("low", "high"):
        assert scores["pictures"][end] == pytest.approx(scores["prompts"][end])
    assert scores["overall"]["low"] == pytest.approx(mean_of_shares([scores[tag] for tag in TAGS])["low"])
    assert scores["pictures"]["n"] == 4 * PROMPTS
    assert len({item.group for item in items}) == PROMPTS  # so that `compare` draws them again together
    assert items[0].group == items[3].group != items[4].group


def test_of_some_prompts_all_categories_are_taken(metadata):
    options = {"data": str(metadata), "n_samples": "1", "detector": DETECTOR}
    result = geneval.run(work_of(Painter(), "geneval", samples=6, options=options))
    assert list(result.scores["generation"]["diffusion"]["scores"])[:6] == list(TAGS)


def test_thresholds_are_the_references():
    """0.3, when counting 0.9; at most 16 of a class, the surest first."""
    picture = Image.new("RGB", (8, 8))
    single = {"tag": "single_object", "prompt": "", "include": [{"class": "dog", "count": 1}]}
    counting = {**single, "tag": "counting", "exclude": [{"class": "dog", "count": 2}]}

    def finds(*scores):
        return lambda picture: [("dog", score, (0, 0, 4, 4)) for score in scores]

    assert geneval.picture_faults(finds(0.3), picture, single)
    assert not geneval.picture_faults(finds(0.31), picture, single)
    assert geneval.picture_faults(finds(0.9), picture, counting)
    assert not geneval.picture_faults(finds(0.91, 0.9, 0.5), picture, counting)
    assert geneval.picture_faults(finds(0.91, 0.92), picture, counting)
    many = {**single, "include": [{"class": "dog", "count": 16}], "exclude": [{"class": "dog", "count": 17}]}
    assert not geneval.picture_faults(finds(*[0.8] * 30), picture, many)

    def coloured(picture):
        return [("dog", 0.5, (0, 0, 1, 1)), ("dog", 0.9, (5, 5, 6, 6))]

    coloured.colours = lambda picture, objects: ["red" if one.box[0] else "blue" for one in objects]
    red = {**single, "include": [{"class": "dog", "count": 1, "color": "red"}]}
    assert not geneval.picture_faults(coloured, picture, red)  # the surest one
    assert Found(*coloured(picture)[0]).mask is None


def test_a_real_pipeline_goes_through(pipeline, metadata, tmp_path):
    options = {"data": str(metadata), "n_samples": 2, "detector": DETECTOR}
    fast = dict.fromkeys(("diffusion", "vq"), DrawSettings(steps=2, guidance=1.0))
    how = {"samples": 2, "settings": fast, "draw_paths": ["diffusion"], "answer_paths": [], "options": options}
    result = evaluate(pipeline, "geneval", out=tmp_path, **how)
    assert isinstance(result, Result)
    assert result.scores["generation"]["diffusion"]["scores"]["pictures"]["n"] == 4
    assert len(read_as_the_official_scorer(tmp_path / "geneval" / "diffusion-pictures")) == 2
    again = evaluate(pipeline, "geneval", out=tmp_path, **how)
    assert again.scores == result.scores


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"tag": "colours"}, "prompt 2 of .* has the tag 'colours'; GenEval's are single_object"),
        ({"include": [{"count": 1}]}, "has an include without a class"),
        ({"include": [{"class": "dog", "count": 0}]}, "include of dog whose count is 0"),
        ({"include": [{"class": "dog", "count": 1, "color": "teal"}]}, "asks for the colour 'teal'"),
        ({"include": [{"class": "dog", "count": 1, "position": ["above", 0]}]}, "has the position"),
        ({"include": [{"class": "dog", "count": 1, "position": ["above", -1]}]}, "has the position"),
        ({"include": [{"class": "dog", "count": 1, "position": 3}]}, "has the position 3"),
        ({"include": [{"class": "dog", "count": 1, "position": ["above", "0"]}]}, "has the position"),
        ({"include": 5}, "has the include 5; it must be a list"),
        ({"exclude": 5}, "has the exclude 5; give a list"),
        ({"include": None}, None),
    ],
)
def test_bad_lines_are_refused(tmp_path, change, sentence):
    line = {"tag": "colors", "prompt": "a dog", "include": [{"class": "dog", "count": 1}]}
    other = {key: value for key, value in {**line, **change}.items() if value is not None}
    file = tmp_path / "metadata.jsonl"
    file.write_text(json.dumps(line) + "\n" + json.dumps(other) + "\n")
    with pytest.raises(ValueError, match=sentence or "line 2 of .* has no 'include'; it has 'tag', 'prompt'"):
        geneval.read_metadata(file)


def test_bad_options_are_refused_before_anything_is_drawn(metadata, tmp_path):
    painter, data = Painter(), {"data": str(metadata)}
    (tmp_path / "mine.py").write_text("def find(picture):\n    return []\nnothing = 1\n")
    refused = [
        ({}, tmp_path, "geneval needs --option data=FILE: it is prompts/evaluation_metadata.jsonl"),
        ({"data": "nowhere.jsonl"}, tmp_path, "there is no nowhere.jsonl"),
        (data, None, "only writes pictures for the official scorer"),
        ({**data, "n_samples": "0"}, tmp_path, "n_samples of suite geneval is '0'"),
        ({**data, "detector": "nothing"}, None, "detector 'nothing' is no MODULE:NAME"),
        ({**data, "detector": "no_such_module:find"}, None, "cannot be loaded: No module named 'no_such_module'"),
        ({**data, "detector": "hybridgen.data.synthetic.shapes:no"}, None, "cannot be loaded"),
        ({**data, "detector": f"{tmp_path}/mine.py:nothing"}, None, "is of type int; it must be a function"),
        (
            {**data, "detector": f"{tmp_path}/mine.py:find"},
            None,
            "ask for colours, and the detector .* has no `colours`",
        ),
    ]
    for options, out, sentence in refused:
        with pytest.raises(ValueError, match=sentence):
            geneval.check(work_of(painter, "geneval", out, options=options))
    assert painter.calls == []


def test_the_mean_of_shares_is_their_mean_with_an_honest_interval():
    tallies = [{"right": right, "n": 50, "share": right / 50} for right in (50, 50, 25)]
    mean = mean_of_shares(tallies)
    assert mean["value"] == pytest.approx(100 * 2.5 / 3)
    assert mean["n"] == 150
    assert mean["low"] < mean["value"] < mean["high"]
    # of one share it is Wilson's interval
    assert mean_of_shares(tallies[2:])["low"] == pytest.approx(100 * 0.3664, abs=0.1)
    rng = np.random.default_rng(1)  # it covers the truth as often as it says (of 20,000: 0.950)
    truth, inside = np.array([0.9, 0.7, 0.5, 0.95, 0.3, 0.8]), 0
    for _ in range(1000):
        rights = rng.binomial(40, truth)
        mean = mean_of_shares([{"right": right, "n": 40, "share": right / 40} for right in rights])
        inside += mean["low"] <= 100 * truth.mean() <= mean["high"]
    assert 0.93 < inside / 1000 < 0.97
