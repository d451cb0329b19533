"""Answering held-out questions: what is asked, the two blind baselines, and how they stand beside a score."""

import pytest

from hybridgen.data.synthetic import dolls
from hybridgen.evaluation import understanding
from hybridgen.evaluation.understanding import Quiz
from hybridgen.evaluation.work import Work


@pytest.fixture(scope="module")
def quiz() -> Quiz:
    return understanding.held_out_quiz(dolls, "held_out", 4, seed=0)


def test_quiz_asks_everything_about_each_picture(quiz):
    source = dolls.Dolls("held_out", "answer", 0)
    expected = [dolls.Question(*item) for i in range(4) for item in source[i]["meta"]["questions"]]
    assert quiz.questions == expected
    assert len(quiz.pictures) == len(quiz.questions) == len(quiz)
    assert len({id(picture) for picture in quiz.pictures}) == 4


def test_a_quiz_by_picture(quiz):
    groups = quiz.by_picture()
    assert [place for _, places in groups for place in places] == list(range(len(quiz)))
    assert len(groups) == 4
    assert all(quiz.pictures[place] is picture for picture, places in groups for place in places)


def test_refuses_no_samples():
    with pytest.raises(ValueError, match="0 samples cannot be taken"):
        understanding.held_out_quiz(dolls, "held_out", 0, seed=0)


def test_scores_stand_beside_the_blind(pipeline, quiz):
    """The controls' shares are those of the very answers; the majority is the dataset's own."""
    done = understanding.answer(Work(pipeline), quiz, "understanding", dolls.score_answers)
    alone = pipeline.answer(quiz.pictures, quiz.wordings, max_new_tokens=32)
    assert done.answers == alone
    expected = dolls.score_answers(alone, quiz.questions)
    majority = dolls.majority_baselines(4, 0, "held_out")["answers"]
    assert {name: tally["share"] for name, tally in done.tallies.items()} == {
        name: tally["share"] for name, tally in expected.items()
    }
    assert {name: tally["majority"] for name, tally in done.tallies.items()} == pytest.approx(majority)
    assert {"blank", "shuffled", "unseen", "low", "high", "n"} <= set(done.tallies["all"])
