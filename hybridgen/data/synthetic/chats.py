"""Conversations of several turns about a synthetic dataset's pictures: draw and be asked, be shown and draw, or words.

    draw, ask          "a man, gray background" | picture | "what creature is this?" | "man" | ...
    draw twice, ask    two captions and pictures; questions about the last, or "in the first picture, ..."
    show, ask, draw    picture and question | answer | caption | picture; or picture and caption | picture
    draw twice         caption | picture | caption | picture
    words              "hello" | "hello, what shall I draw?", sometimes with a caption and its picture after it

A picture that ends a conversation is written. The assistant's earlier ones have the weight 0: they are read, as a chat
reads what it has drawn, and nothing is lost for learning, as every caption is also drawn alone.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image

from hybridgen.data.records import image_part, text_part
from hybridgen.data.synthetic.questions import Question

KINDS = {"draw, ask": 0.45, "draw twice, ask": 0.2, "show, ask, draw": 0.15, "draw twice": 0.1, "words": 0.1}
WORDS = {  # what the assistant says -> what it says it to
    "hello, what shall I draw?": ("hello", "hi", "hey", "hello there", "good morning", "good evening"),
    "you are welcome": ("thank you", "thanks", "thanks a lot", "nice", "very good", "well done", "great"),
    "goodbye": ("bye", "goodbye", "see you", "good night"),
    "fine, thank you": ("how are you?", "how do you do?", "are you well?"),
    "a small model that draws and answers": ("who are you?", "what are you?", "what is your name?"),
    "ask me to draw, or show me a picture": ("help", "what can you do?", "how does this work?", "what now?"),
    "all right": ("yes", "no", "ok", "okay", "wait", "stop", "never mind"),
}
NO_PICTURE = "I see no picture"  # to a question where there is none
ASK_TO_DRAW = ("", "", "", "draw ", "please draw ")  # what stands before a caption
OF_THE_FIRST = "in the first picture, "


class Scene(NamedTuple):
    """A picture, the words that ask for it, and questions about it, each with the thought that precedes its answer."""

    image: Image.Image
    caption: str
    questions: list[tuple[Question, str]]


def chat_turns(
    rng: np.random.Generator, scene: Scene, another: Callable[[], Scene]
) -> tuple[list[dict], list[Question]]:
    """The messages of a conversation, its kind drawn by `rng`, and the questions that are asked of `scene`.

    Args:
        another: makes a further scene, for the kinds that need one.
    """
    kind = list(KINDS)[rng.choice(len(KINDS), p=list(KINDS.values()))]
    if kind == "words":
        return _words(rng, scene), []
    if kind == "show, ask, draw":
        asked = scene.questions[: int(rng.integers(3))]
        if not asked:
            return _draw(rng, another(), last=True, shown=scene.image), []
        return [*_ask(asked, scene.image), *_draw(rng, another(), last=True)], [question for question, _ in asked]
    if kind == "draw, ask":
        greeting = _small_talk(rng) if rng.random() < 0.15 else []
        thanks = _small_talk(rng) if rng.random() < 0.15 else []
        asked = scene.questions
        return [*greeting, *_draw(rng, scene), *_ask(asked), *thanks], [question for question, _ in asked]
    if kind == "draw twice":
        return [*_draw(rng, scene), *_draw(rng, another(), last=True)], []
    of_first = bool(rng.random() < 0.4)
    first, second = (scene, another()) if of_first else (another(), scene)
    asked = [
        (question._replace(question=OF_THE_FIRST + question.question) if of_first else question, thought)
        for question, thought in scene.questions[:4]
    ]
    return [*_draw(rng, first), *_draw(rng, second), *_ask(asked)], [question for question, _ in asked]


def _words(rng: np.random.Generator, scene: Scene) -> list[dict]:
    turns = _small_talk(rng)
    if rng.random() < 0.2:
        turns = [*_user(scene.questions[0][0].question), *_says(NO_PICTURE)]
    return [*turns, *_draw(rng, scene, last=True)] if rng.random() < 0.2 else turns


def _small_talk(rng: np.random.Generator) -> list[dict]:
    reply = list(WORDS)[rng.integers(len(WORDS))]
    words = WORDS[reply][rng.integers(len(WORDS[reply]))]
    if rng.random() < 0.3:
        words = words.capitalize()
    if rng.random() < 0.3 and words[-1].isalpha():
        words += ".!"[rng.integers(2)]
    return [*_user(words), *_says(reply)]


def _draw(rng: np.random.Generator, scene: Scene, last: bool = False, shown: Image.Image | None = None) -> list[dict]:
    """A caption and its picture; `last`: it ends the conversation and is learnt; `shown` stands before the caption."""
    request = ASK_TO_DRAW[rng.integers(len(ASK_TO_DRAW))] + scene.caption
    picture = {"role": "assistant", "content": [image_part(scene.image)]}
    return [*_user(request, shown), picture if last else {**picture, "weight": 0}]


def _ask(questions: list[tuple[Question, str]], image: Image.Image | None = None) -> list[dict]:
    """Questions and answers in turn; the picture, where one is shown, stands before the first."""
    turns = []
    for question, thought in questions:
        turns += [*_user(question.question, None if turns else image), *_says(question.answer, thought)]
    return turns


def _user(text: str, image: Image.Image | None = None) -> list[dict]:
    picture = [] if image is None else [image_part(image)]
    return [{"role": "user", "content": [*picture, text_part(text)]}]


def _says(text: str, thought: str = "") -> list[dict]:
    message = {"role": "assistant", "content": [text_part(text)]}
    return [{**message, "reasoning_content": thought} if thought else message]
