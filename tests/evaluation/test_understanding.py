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


def test_blank_control_does_not_look(pipeline, quiz):
    """The same wording gets the same answer, whatever the picture."""
    blank = understanding.answer_blank(Work(pipeline), quiz, "understanding")
    answers = {}
    for question, text in zip(quiz.questions, blank, strict=True):
        assert answers.setdefault(question.question, text) == text
    other = Quiz(quiz.pictures[::-1], quiz.questions)
    assert understanding.answer_blank(Work(pipeline), other, "understanding") == blank


def test_scores_stand_beside_the_blind(quiz):
    right = [question.answer for question in quiz.questions]
    blank = ["nothing"] * len(quiz)
    scores = understanding.score(dolls, quiz, right, blank, {"all": 0.3, "creature": 0.06})
    assert scores["all"]["share"] == 1.0
    assert scores["all"]["low"] < 1.0
    assert scores["all"]["majority"] == 0.3
    assert scores["creature"] == {
        "right": 4, "n": 4, "share": 1.0, "low": pytest.approx(0.5101, abs=1e-4), "high": 1.0, "majority": 0.06,
        "blank": 0.0,
    }  # fmt: skip
    nothing = sum(question.answer == "nothing" for question in quiz.questions)
    assert scores["all"]["blank"] == nothing / len(quiz)
