"""What is put on show: the right picture beside the right words, and curves as they were logged."""

import json

import pytest

from hybridgen.data.synthetic import dolls
from hybridgen.evaluation import environment, generation, report_cards, understanding
from hybridgen.evaluation.result import Item, Result


@pytest.fixture
def prompts() -> generation.Prompts:
    return generation.held_out_prompts(dolls, "held_out", 3, seed=0)


@pytest.fixture
def result(prompts) -> Result:
    """Drawn: the true pictures, moved by one. Said: the right answers, but for the first."""
    quiz = understanding.held_out_quiz(dolls, "held_out", 3, seed=0)
    drawn = prompts.pictures[1:] + prompts.pictures[:1]
    pictures = zip(prompts.captions, prompts.pictures, drawn, strict=True)
    items = [Item(caption, {"true picture": true, "vq": came}) for caption, true, came in pictures]
    answered = [
        Item(question.question, {"shown": picture}, question.answer, question.answer, {"all": 1.0})
        for picture, question in zip(quiz.pictures, quiz.questions, strict=True)
    ]
    answered[0].answer, answered[0].verdict = "a boat", {"all": 0.0}
    return Result(items={"generation": {"vq": items}, "understanding": {"diffusion": answered}})


def test_drawing_cards_pair_what_was_asked_with_what_came(result, prompts):
    cards = report_cards.drawing_cards(result, "vq")
    assert [card.lines for card in cards] == [(caption,) for caption in prompts.captions]
    assert [list(card.pictures) for card in cards] == [["true picture", "vq"]] * 3
    assert cards[0].pictures["vq"] is prompts.pictures[1]
    assert cards[0].pictures["true picture"] is prompts.pictures[0]


def test_answer_cards_hold_every_question_of_a_picture(result):
    cards, asked = report_cards.answer_cards(result), result.items["understanding"]["diffusion"]
    assert len(cards) == 3
    assert sum(len(card.lines) for card in cards) == len(asked)
    assert cards[0].lines[0] == f"{asked[0].prompt} a boat  (wrong: {asked[0].expected})"
    assert not any("wrong" in line for card in cards for line in card.lines[1:])


def test_loss_panels_follow_the_log(tmp_path):
    records = [
        {"step": 1, "loss": 5.0, "loss/text": 3.0, "lr": 1.0},
        {"step": 2, "loss": 4.0, "loss/text": 2.0, "loss/diffusion": 1.5, "validation/loss/text": 2.5},
        {"step": 3, "validation/loss/text": 2.25},
    ]
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    text, diffusion = report_cards.loss_panels(file)
    assert (text.title, diffusion.title) == ("text loss", "diffusion loss")
    assert text.curves == {"training": ([1, 2], [3.0, 2.0]), "held out": ([2, 3], [2.5, 2.25])}
    assert diffusion.curves == {"training": ([2], [1.5])}


def test_environment_is_plain_json_and_reads_well():
    machine, versions = environment.hardware(), environment.versions()
    assert json.loads(json.dumps([machine, versions])) == [machine, versions]
    assert {"hybridgen", "python", "torch", "transformers", "diffusers"} <= set(versions)
    assert machine["cores"] >= 1
    assert environment.describe({"processor": "P", "cores": 2, "memory_gib": 24}) == "P, 2 cores, 24 GiB of memory"
    assert environment.describe({"processor": "P", "cores": 2, "gpu": "G"}) == "P, 2 cores, G"


def test_the_command_can_be_typed_again(monkeypatch):
    monkeypatch.setattr("sys.argv", ["/somewhere/bin/hybridgen", "demo", "--out", "runs/a b"])
    assert environment.command() == "hybridgen demo --out 'runs/a b'"
    monkeypatch.setattr("sys.argv", ["/somewhere/hybridgen/__main__.py", "demo"])
    assert environment.command() == "python -m hybridgen demo"
