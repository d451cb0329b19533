"""Conversations are counted as they should be: of a partner that is always right, of one that always draws, and of a
model."""

import re

import numpy as np
import pytest
from PIL import Image

from hybridgen.chat.events import ImageDone, TextDelta
from hybridgen.data.synthetic import dolls
from hybridgen.evaluation import conversations, generation
from hybridgen.evaluation.generation import DrawSettings
from hybridgen.evaluation.intervals import wilson
from hybridgen.evaluation.run import evaluate
from hybridgen.evaluation.work import Work
from hybridgen.pipeline_hybridgen import load_pipeline

CHATS = 3


class Partner:
    """Stands in for a pipeline and its chats. It draws captions and answers about the last picture that it drew or was
    shown, and a wrong picture is a black one.

    Args:
        draws: whether its turns are right; None = it draws whatever is said.
    """

    def __init__(self, draws: bool | None = True, answers: bool = True):
        self.draws, self.answers, self.spec, self.settings = draws, answers, None, []

    def chat(self, **settings) -> "Partner":
        self.settings.append(settings)
        return Partner(self.draws, self.answers)

    def send(self, text: str, images: tuple = ()):
        if images:
            self.spec = dolls.nearest_specs(np.stack([np.asarray(images[0])]))[0]
        if text in conversations.GREETINGS:
            yield self._picture() if self.draws is None else TextDelta("hello")
        elif text.endswith("background"):
            self.spec = dolls.parse_caption(text)
            yield self._picture()
        else:
            thought, answer = TextDelta("<think> a robe</think>"), TextDelta(_right_answer(self.spec, text))
            yield from (thought, answer) if self.answers else (TextDelta("a robe"),)

    def _picture(self) -> ImageDone:
        picture = dolls.render(self.spec) if self.draws and self.spec else Image.new("RGB", (32, 32))
        return ImageDone(0, picture, {})


def _right_answer(spec, text: str) -> str:
    if text.startswith("is there"):
        thing = re.fullmatch(r"is there (?:an? )?(.+)\?", text)[1]
        return "yes" if dolls.reasoning(spec, dolls.Question("yes_no", text, "")) == thing else "no"
    return {each.question: each.answer for each in dolls.questions(spec, np.random.default_rng(0))}[text]


@pytest.fixture(scope="module")
def prompts():
    return generation.held_out_prompts(dolls, "held_out", CHATS, seed=4)


def talk(partner, prompts, seed: int = 4) -> dict:
    work = Work(partner, seed=seed, settings={"vq": DrawSettings(guidance=1.5)})
    tallies, items = conversations.converse(work, dolls, prompts, "vq", 32)
    for category, tally in tallies.items():  # the items say the same
        judged = [item.verdict[category] for item in items if category in item.verdict]
        assert sum(judged) / len(judged) == pytest.approx(tally["share"])
    assert {item.group for item in items} == {*(f"prompt {i}" for i in range(CHATS)), ""}  # greetings have none
    return tallies


def test_who_is_always_right_scores_all(prompts):
    partner = Partner()
    scores = talk(partner, prompts)
    counts = {name: (tally["right"], tally["n"]) for name, tally in scores.items()}
    assert counts == {
        "drawn": (6, 6),
        "slots": (42, 42),
        "all_seven": (6, 6),
        "words": (8, 8),
        "shown": (6, 6),
        "after_drawing": (15, 15),
    }
    assert all(tally["low"] < tally["share"] == 1 == tally["high"] for tally in scores.values())
    # what is about one prompt is not independent: three prompts, whatever is counted about them
    assert {name: tally.get("groups") for name, tally in scores.items()} == dict.fromkeys(scores, CHATS) | {
        "words": None
    }
    assert scores["slots"]["low"] == pytest.approx(wilson(CHATS, CHATS)[0])
    assert {settings["guidance_scale"] for settings in partner.settings if "guidance_scale" in settings} == {1.5}
    assert len(partner.settings) == 2 * CHATS + len(conversations.GREETINGS)


def test_after_the_last_seed_comes_the_first(prompts):
    partner = Partner()
    talk(partner, prompts, seed=2**64 - 1)
    assert [settings["seed"] for settings in partner.settings[: 2 * CHATS : 2]] == [2**64 - 1, 0, 1]


def test_wrong_pictures_and_answers_are_wrong(prompts):
    scores = talk(Partner(draws=False, answers=False), prompts)
    assert scores["drawn"]["share"] == 1
    assert scores["slots"]["share"] < 0.6
    assert scores["after_drawing"]["right"] == scores["shown"]["right"] == 0


def test_a_picture_where_words_were_asked_for_is_wrong(prompts):
    scores = talk(Partner(draws=None), prompts)
    assert scores["words"]["right"] == 0


def test_conversations_of_a_model_stand_in_its_scores(tiny_checkpoint):
    """Random weights: nothing is right, all is counted; without `chat_paths` no conversation is held."""
    quick = {"vq": DrawSettings(guidance=1.0)}
    pipe = load_pipeline(tiny_checkpoint)
    how = {"samples": 2, "draw_paths": [], "answer_paths": [], "settings": quick}
    done = evaluate(pipe, "dolls", chat_paths=["vq"], options={"chats": 1}, **how)
    result = done.scores["conversation"]["vq"]["scores"]
    assert {name: tally["n"] for name, tally in result.items()} == {
        "drawn": 2, "slots": 14, "all_seven": 2, "words": 8, "shown": 2, "after_drawing": 5,
    }  # fmt: skip
    with pytest.raises(ValueError, match="the understanding path reads and cannot draw"):
        evaluate(pipe, "dolls", chat_paths=["understanding"], **how)
