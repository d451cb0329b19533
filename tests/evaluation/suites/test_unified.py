"""Generate, ask, compare: answers whose faults are known are put where they belong."""

import numpy as np
import pytest

from hybridgen.data.synthetic import dolls, words
from hybridgen.evaluation.generation import DrawSettings
from hybridgen.evaluation.intervals import wilson
from hybridgen.evaluation.report import tables_of
from hybridgen.evaluation.run import evaluate
from hybridgen.evaluation.suites import unified
from hybridgen.pipeline_hybridgen import load_pipeline

SPECS = [dolls.Dolls("held_out", "draw", 0).spec(i) for i in range(4)]


@pytest.fixture(scope="module")
def asked():
    """The last picture has another background than its caption says, and no body clothes."""
    drawn = [*SPECS[:3], SPECS[3]._replace(background=_other(SPECS[3].background), body=None)]
    shown = dolls.nearest_specs(dolls.render_batch(drawn))
    assert shown == drawn
    questions = unified._questions(dolls, SPECS, 0)
    return unified.questions_about(dolls, questions, SPECS, shown)


def _other(colour: str) -> str:
    return "white" if colour == "black" else "black"


def counts(tallies: dict) -> dict[str, tuple]:
    return {name: (tally["right"], tally["n"]) for name, tally in tallies.items()}


def test_what_a_wrong_picture_answers(asked):
    of_last = {one.category: (one.of_caption, one.of_picture) for one in asked if one.number == 3}
    assert of_last["background"] == (SPECS[3].background, _other(SPECS[3].background))
    assert of_last["worn"][1] == "nothing"
    assert of_last["creature"][0] == of_last["creature"][1]
    assert all(one.of_caption == one.of_picture for one in asked if one.number < 3)


def test_who_reads_rightly_is_right_about_the_picture_and_wrong_about_the_caption(asked):
    answers = [one.of_picture or "?" for one in asked]
    scores = counts(unified.score(dolls, answers, asked))
    wrong = sum(one.of_picture is not None and one.of_picture != one.of_caption for one in asked)
    unknown = sum(one.of_picture is None for one in asked)
    known = len(asked) - unknown
    assert wrong >= 2
    assert scores == {
        "as_asked": (known - wrong, len(asked)), "as_drawn": (known, known), "drawn_right": (known - wrong, known),
        "misread": (0, known - wrong),
    }  # fmt: skip


def test_who_repeats_the_caption_is_found_out(asked):
    scores = counts(unified.score(dolls, [one.of_caption for one in asked], asked))
    assert scores["as_asked"] == (len(asked), len(asked))
    assert scores["as_drawn"][0] < scores["as_drawn"][1]


def test_who_misreads_right_pictures(asked):
    scores = counts(unified.score(dolls, ["?"] * len(asked), asked))
    assert scores["misread"][0] == scores["misread"][1] == scores["drawn_right"][0]


@pytest.mark.parametrize("said", ["apple", "a p p l e", '"Apple".'])
def test_the_world_judges_what_is_the_same(said):
    """In `words` a word may be spelled or not: by whom it is answered, and what the picture is read to show."""
    asked = [
        unified._Asked(0, "text", "what is written?", "a p p l e", "a p p l e"),
        unified._Asked(1, "text", "what is written?", "a p p l e", "apple"),
        unified._Asked(2, "text", "what is written?", "a p p l e", "a p p l y"),
    ]
    assert counts(unified.score(words, [said] * 3, asked)) == {
        "as_asked": (3, 3), "as_drawn": (2, 3), "drawn_right": (2, 3), "misread": (0, 2),
    }  # fmt: skip
    dolls_own = unified._Asked(0, "worn", "what is worn?", "a p p l e", "a p p l e")
    assert counts(unified.score(dolls, ["apple"], [dolls_own]))["misread"] == (1, 1)


def test_questions_about_one_picture_are_not_independent(asked):
    scores = unified.score(dolls, [one.of_caption for one in asked], asked)
    assert scores["as_asked"]["groups"] == scores["as_drawn"]["groups"] == len(SPECS)
    assert scores["as_asked"]["low"] == pytest.approx(wilson(4, 4)[0], abs=0.01)  # all right: about four pictures


def test_on_a_model_each_pair_of_paths_and_chats(tiny_checkpoint):
    """Random weights: every answer is counted, in chats too; the true pictures stand beside."""
    quick = {"diffusion": DrawSettings(steps=2, guidance=1.0)}
    done = evaluate(
        load_pipeline(tiny_checkpoint), "unified", samples=2, draw_paths=["diffusion"],
        answer_paths=["understanding", "vq"], chat_paths=["diffusion"], settings=quick, options={"chats": 1},
    )  # fmt: skip
    scores = {path: of_path["scores"] for path, of_path in done.scores["unified"].items()}
    assert list(scores) == ["by diffusion, through understanding", "by diffusion, through vq"]
    pair = scores["by diffusion, through vq"]
    total = sum(len(dolls.questions(spec, np.random.default_rng(0))) for spec in SPECS[:2])
    assert pair["as_asked"]["n"] == total
    assert {"majority", "blank", "shuffled", "unseen", "true"} <= set(pair["as_asked"])
    assert pair["misread"]["n"] == pair["drawn_right"]["right"]
    chats = done.scores["conversation"]["diffusion"]["scores"]
    assert chats["in_chat"]["n"] == chats["as_asked_alone_vq"]["n"] == unified.CHAT_QUESTIONS
    assert {table.title for table in tables_of(done)} == {"Does it recognise what it drew?", "In conversations"}
    assert len(done.items["unified"]["by diffusion, through vq"]) == total
    items = done.items["conversation"]["diffusion"]
    assert len(items) == unified.CHAT_QUESTIONS
    assert all(list(item.pictures) == ["true picture", "diffusion"] and item.answer is not None for item in items)
    for task, pairs in {"conversation": chats, "unified": pair}.items():  # verdicts add up to the scores
        path = "diffusion" if task == "conversation" else "by diffusion, through vq"
        for name, tally in pairs.items():
            judged = [item.verdict[name] for item in done.items[task][path] if name in item.verdict]
            assert name == "misread" or sum(judged) == tally["right"]
            assert name == "misread" or len(judged) == tally["n"]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (
            {"options": {"world": "nowhere"}},
            "option world of suite unified is 'nowhere'; it must be one of dolls, emoji",
        ),
        ({"draw_paths": []}, "suite unified draws pictures, but there is no path to draw by"),
        ({"answer_paths": []}, "suite unified asks questions, but there is no path to answer through"),
        ({"options": {"size": 50}}, "50"),
    ],
)
def test_refusals(tiny_checkpoint, how, message):
    with pytest.raises(ValueError, match=message):
        evaluate(load_pipeline(tiny_checkpoint), "unified", **how)
