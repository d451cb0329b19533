"""Whole suites on a tiny pipeline of random weights: every score is there, with what it must be read beside."""

import json

import pytest

from hybridgen.evaluation import scores as files
from hybridgen.evaluation import suites
from hybridgen.evaluation.generation import DrawSettings
from hybridgen.pipeline_hybridgen import load_pipeline

FAST = dict.fromkeys(("diffusion", "vq"), DrawSettings(steps=2, guidance=1.0))


@pytest.fixture(scope="module")
def evaluation(tiny_checkpoint):
    return suites.evaluate(load_pipeline(tiny_checkpoint), "dolls", samples=3, seed=0, settings=FAST)


def test_every_path_and_category_is_scored(evaluation):
    scores = evaluation.scores
    assert set(scores["generation"]) == {"diffusion", "vq"}
    assert set(scores["understanding"]) == {"understanding", "diffusion", "vq"}
    for path, result in scores["generation"].items():
        assert set(result["scores"]) == {*evaluation.dataset.SLOTS, "slots", "all_seven"}
        for tally in result["scores"].values():
            expected = {"right", "n", "share", "low", "high", "majority", "true"} | (
                {"codec"} if path == "vq" else set()
            )
            assert set(tally) == expected
            assert tally["true"] == 1.0
            assert tally["low"] <= tally["share"] == tally["right"] / tally["n"] <= tally["high"]
    for result in scores["understanding"].values():
        assert result["scores"]["all"]["n"] == scores["questions"] == len(evaluation.quiz)
        assert all(set(tally) >= {"low", "high", "majority", "blank"} for tally in result["scores"].values())


def test_what_was_drawn_and_answered_is_kept(evaluation):
    assert {path: len(images) for path, images in evaluation.drawings.items()} == {"diffusion": 3, "vq": 3}
    assert {len(answers) for answers in evaluation.answers.values()} == {len(evaluation.quiz)}
    assert len(evaluation.reconstructions) == 3


def test_scores_come_again_with_the_seed(pipeline, evaluation):
    again = suites.evaluate(pipeline, "dolls", samples=3, seed=0, settings=FAST)
    for task in ("generation", "understanding"):
        first, second = (
            {path: result["scores"] for path, result in done.scores[task].items()} for done in (evaluation, again)
        )
        assert first == second


def test_only_the_paths_asked_for(pipeline):
    done = suites.evaluate(pipeline, "dolls", 2, 0, draw_paths=[], answer_paths=["vq"])
    assert not done.scores["generation"]
    assert set(done.scores["understanding"]) == {"vq"}


def test_emoji_suite(pipeline):
    """Another dataset by the same names; 64x64 pictures, which the tiny model was not made for but can draw."""
    done = suites.evaluate(
        pipeline, "emoji", samples=2, seed=0, draw_paths=["diffusion"], answer_paths=[], settings=FAST
    )
    assert done.drawings["diffusion"][0].size == (64, 64)
    assert set(done.scores["generation"]["diffusion"]["scores"]) == {"emoji", "style", "picture"}
    assert done.scores["generation"]["diffusion"]["scores"]["picture"]["true"] == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"suite": "cats"}, "there is no suite 'cats'; choose dolls or emoji"),
        ({"suite": "dolls", "draw_paths": ["understanding"]}, "the understanding path reads and cannot draw"),
        ({"suite": "dolls", "answer_paths": ["sound"]}, "no path 'sound' here; this model has: understanding"),
        ({"suite": "dolls", "samples": 0}, "0 samples cannot be taken"),
        ({"suite": "dolls", "draw_paths": [], "answer_paths": []}, "there is nothing to evaluate"),
    ],
)
def test_refuses(pipeline, arguments, message):
    with pytest.raises(ValueError, match=message):
        suites.evaluate(pipeline, **arguments)


def test_scores_file_comes_back(evaluation, tmp_path):
    path = files.save_scores(evaluation.scores, tmp_path / "new")
    assert path.name == "scores.json"
    assert files.load_scores(path) == json.loads(json.dumps(evaluation.scores))
    assert [file.name for file in path.parent.iterdir()] == ["scores.json"]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    files.save_scores({"generation": {}, "understanding": {}}, tmp_path)
    before = (tmp_path / "scores.json").read_bytes()
    with pytest.raises(TypeError):
        files.save_scores({"generation": object()}, tmp_path)
    assert (tmp_path / "scores.json").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("content", ["{", "[]", '{"generation": {}}'])
def test_a_broken_scores_file_is_named(tmp_path, content):
    file = tmp_path / "scores.json"
    file.write_text(content)
    with pytest.raises(ValueError, match="scores.json.*delete it to evaluate again"):
        files.load_scores(file)


def test_lines_carry_share_count_and_interval(evaluation):
    lines = list(files.in_lines(evaluation.scores))
    count = sum(
        len(result["scores"]) for task in ("generation", "understanding") for result in evaluation.scores[task].values()
    )
    assert len(lines) == count
    assert all(" % of " in line and "95 % interval" in line and "majority" in line for line in lines)
    assert any(line.startswith("drawing by vq, right hand: ") for line in lines)
