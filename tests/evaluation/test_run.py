"""Whole suites on a tiny pipeline of random weights: every score is there, with what it must be read beside."""

import json

import pytest

from hybridgen.data.synthetic import dolls
from hybridgen.evaluation import scores as files
from hybridgen.evaluation.generation import DrawSettings
from hybridgen.evaluation.result import Result
from hybridgen.evaluation.run import evaluate, scores_of
from hybridgen.pipeline_hybridgen import load_pipeline

FAST = dict.fromkeys(("diffusion", "vq"), DrawSettings(steps=2, guidance=1.0))


@pytest.fixture(scope="module")
def evaluation(tiny_checkpoint):
    return evaluate(load_pipeline(tiny_checkpoint), "dolls", samples=3, seed=0, settings=FAST)


def test_every_path_and_category_is_scored(evaluation):
    scores = evaluation.scores
    assert set(scores["generation"]) == {"diffusion", "vq"}
    assert set(scores["understanding"]) == {"understanding", "diffusion", "vq"}
    for path, result in scores["generation"].items():
        assert set(result["scores"]) == {*dolls.SLOTS, "slots", "all_seven"}
        for tally in result["scores"].values():
            expected = {"right", "n", "share", "low", "high", "majority", "true"} | (
                {"codec"} if path == "vq" else set()
            )
            assert set(tally) == expected | ({"groups"} if tally["n"] > 3 else set())
            assert tally.get("groups", 3) == 3  # pictures, also where parts of them are counted
            assert tally["true"] == 1.0
            assert tally["low"] <= tally["share"] == tally["right"] / tally["n"] <= tally["high"]
    for path, result in scores["understanding"].items():
        assert result["scores"]["all"]["n"] == evaluation.facts["questions"]
        assert len(evaluation.items["understanding"][path]) == evaluation.facts["questions"]
        assert all(set(tally) >= {"low", "high", "majority", "blank"} for tally in result["scores"].values())


def test_what_was_drawn_and_answered_is_kept(evaluation):
    assert {path: len(items) for path, items in evaluation.items["generation"].items()} == {"diffusion": 3, "vq": 3}
    assert {len(items) for items in evaluation.items["understanding"].values()} == {evaluation.facts["questions"]}
    assert all("as codes" in item.pictures for item in evaluation.items["generation"]["vq"])


def test_items_say_what_the_tallies_count(evaluation):
    """Their verdicts add up to the scores, in every category of every task."""
    for task, results in evaluation.items.items():
        for path, items in results.items():
            for category, tally in evaluation.scores[task][path]["scores"].items():
                judged = [item.verdict[category] for item in items if category in item.verdict]
                assert sum(judged) / len(judged) == pytest.approx(tally["share"])


def test_scores_come_again_with_the_seed(pipeline, evaluation):
    again = evaluate(pipeline, "dolls", samples=3, seed=0, settings=FAST)
    for task in ("generation", "understanding"):
        first, second = (
            {path: result["scores"] for path, result in done.scores[task].items()} for done in (evaluation, again)
        )
        assert first == second


def test_only_the_paths_asked_for(pipeline):
    done = evaluate(pipeline, "dolls", samples=2, draw_paths=[], answer_paths=["vq"])
    assert "generation" not in done.scores
    assert set(done.scores["understanding"]) == {"vq"}


def test_emoji_suite(pipeline):
    """Another dataset by the same names; 64x64 pictures, which the tiny model was not made for but can draw."""
    done = evaluate(pipeline, "emoji", samples=2, seed=0, draw_paths=["diffusion"], answer_paths=[], settings=FAST)
    assert done.items["generation"]["diffusion"][0].pictures["diffusion"].size == (64, 64)
    assert set(done.scores["generation"]["diffusion"]["scores"]) == {"emoji", "style", "picture"}
    assert done.scores["generation"]["diffusion"]["scores"]["picture"]["true"] == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"suite": "cats"}, "there is no suite 'cats'; choose dolls or emoji or .*or name a .jsonl file"),
        ({"suite": "dolls", "draw_paths": ["understanding"]}, "the understanding path reads and cannot draw"),
        ({"suite": "dolls", "answer_paths": ["sound"]}, "no path 'sound' here; this model has: understanding"),
        ({"suite": "dolls", "samples": 0}, "0 samples cannot be taken"),
        ({"suite": "dolls", "draw_paths": [], "answer_paths": []}, "there is nothing to evaluate"),
    ],
)
def test_refuses(pipeline, arguments, message):
    with pytest.raises(ValueError, match=message):
        evaluate(pipeline, **arguments)


def test_scores_file_comes_back(evaluation, tmp_path):
    scores = scores_of({"dolls": evaluation}, 0)
    path = files.save_scores(scores, tmp_path / "new")
    assert path.name == "scores.json"
    assert files.load_scores(path) == json.loads(json.dumps(scores))
    assert [file.name for file in path.parent.iterdir()] == ["scores.json"]


def test_a_file_of_one_suite_as_it_was_written_before_still_loads(tmp_path):
    old = {
        "suite": "dolls", "split": "held_out", "samples": 3, "questions": 29, "seed": 5,
        "generation": {"vq": {"seconds": 1.0, "scores": {"base": {"right": 1, "n": 3, "share": 1 / 3}}}},
        "understanding": {}, "versions": {"torch": "2"}, "hardware": {"cores": 2}, "checkpoint": "x",
    }  # fmt: skip
    (tmp_path / "scores.json").write_text(json.dumps(old))
    loaded = files.load_scores(tmp_path / "scores.json")
    assert loaded["suites"]["dolls"]["generation"] == old["generation"]
    assert loaded["suites"]["dolls"]["samples"] == 3
    assert (loaded["checkpoint"], loaded["versions"], loaded["seed"]) == ("x", {"torch": "2"}, 5)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    files.save_scores({"suites": {}}, tmp_path)
    before = (tmp_path / "scores.json").read_bytes()
    with pytest.raises(TypeError):
        files.save_scores({"suites": object()}, tmp_path)
    assert (tmp_path / "scores.json").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("content", ["{", "[]", '{"generation": {}}'])
def test_a_broken_scores_file_is_named(tmp_path, content):
    file = tmp_path / "scores.json"
    file.write_text(content)
    with pytest.raises(ValueError, match="scores.json.*delete it to evaluate again"):
        files.load_scores(file)


def test_lines_carry_share_count_and_interval(evaluation):
    lines = list(files.in_lines(scores_of({"dolls": evaluation}, 0)))
    count = sum(
        len(result["scores"]) for task in ("generation", "understanding") for result in evaluation.scores[task].values()
    )
    assert len(lines) == count
    assert all(" % of " in line and "95 % interval" in line and "majority" in line for line in lines)
    assert any(line.startswith("drawing by vq, right hand: ") for line in lines)


def test_lines_of_several_suites_say_of_which(evaluation):
    lines = list(files.in_lines(scores_of({"dolls": evaluation, "other": evaluation}, 0)))
    assert sum(line.startswith("dolls, drawing by vq, right hand: ") for line in lines) == 1
    assert sum(line.startswith("other, ") for line in lines) == len(lines) / 2


def test_a_task_that_is_shown_nowhere_is_refused_and_notes_stand_last(evaluation):
    with pytest.raises(ValueError, match="scores of task 'singing' would be shown nowhere; use one of generation"):
        Result().add("singing", "vq", {})
    noted = Result(evaluation.scores, facts={"notes": ["how to go on"]})
    assert list(files.in_lines(scores_of({"dolls": noted}, 0)))[-1] == "how to go on"
