"""The suite of shapes: six categories and their mean, with everything a score is read beside."""

import pytest

from hybridgen.core.geneval import TAGS
from hybridgen.evaluation.generation import DrawSettings
from hybridgen.evaluation.run import evaluate
from hybridgen.evaluation.suites import shapes
from tests.painters import Painter, work_of


def test_a_perfect_painter_scores_all_six():
    work = work_of(Painter(), "shapes", samples=18)
    work.answer_paths = ()
    shapes.check(work)
    scores = shapes.run(work).scores["generation"]["diffusion"]["scores"]
    assert [scores[tag]["right"] for tag in TAGS] == [3] * 6
    assert scores["exact"]["share"] == scores["pictures"]["share"] == 1
    assert scores["overall"]["value"] == scores["overall"]["true"] == 100
    assert scores["overall"]["majority"] == pytest.approx(100 * sum(scores[tag]["majority"] for tag in TAGS) / 6)


def test_a_painter_of_hearts_scores_next_to_nothing():
    work = work_of(Painter(wrong=True), "shapes", samples=18)
    work.answer_paths = ()
    scores = shapes.run(work).scores["generation"]["diffusion"]["scores"]
    assert scores["overall"]["value"] < 20
    assert scores["overall"]["true"] == 100


def test_a_real_pipeline_is_scored_on_every_path(pipeline):
    fast = dict.fromkeys(("diffusion", "vq"), DrawSettings(steps=2, guidance=1.0))
    result = evaluate(pipeline, "shapes", samples=6, settings=fast, answer_paths=["understanding"])
    for path in ("diffusion", "vq"):
        scores = result.scores["generation"][path]["scores"]
        assert set(scores) == {*TAGS, "pictures", "exact", "overall"}
        assert scores["overall"]["n"] == 6
    answers = result.scores["understanding"]["understanding"]["scores"]
    assert {"shape", "colour", "number", "background", "yes_no", "all"} <= set(answers)


def test_pictures_that_are_drawn_in_chats_are_scored(pipeline):
    quick = {"diffusion": DrawSettings(steps=1, guidance=1.0)}
    how = {"samples": 1, "draw_paths": [], "answer_paths": [], "settings": quick}
    done = evaluate(pipeline, "shapes", chat_paths=["diffusion"], options={"chats": 1}, **how)
    assert done.scores["conversation"]["diffusion"]["scores"]["pictures"]["n"] == 2  # two chats of one prompt
