"""Conversations: what a model has drawn in a chat, does it understand there; does it draw when it is asked to, and only
then?

Each is a chat in which the model decides what its turn is made of, as a user meets it (`pipe.chat()`, no plan). Two for
each held-out prompt: one asks for a picture and then about it, the other shows a picture, asks about it, and then asks
for another picture. And one for each greeting.

    drawn            a picture came where one was asked for, and nothing else
    slots, ...       how much of what was asked for is in the pictures, by the dataset's own scorer
    after_drawing    questions about the picture that was just drawn, answered as the prompt says
    shown            questions about a picture that was shown
    words            words that ask for no picture were answered by words, and no picture
"""

import time
from collections.abc import Callable, Iterator
from functools import partial
from types import ModuleType
from typing import NamedTuple

import numpy as np
from PIL import Image

from hybridgen.chat.events import ImageDone, TextDelta
from hybridgen.chat.session import Chat
from hybridgen.core.messages import strip_reasoning
from hybridgen.data.synthetic.questions import tally
from hybridgen.evaluation import generation
from hybridgen.evaluation.generation import DrawSettings, Progress, Prompts, no_progress
from hybridgen.evaluation.intervals import with_interval
from hybridgen.evaluation.understanding import MAX_NEW_TOKENS
from hybridgen.pipeline_hybridgen import HybridGenPipeline
from hybridgen.sampling.seeds import nth_seed

GREETINGS = ("hello", "Hello!", "hi", "good morning", "thank you", "who are you?", "what can you do?", "bye")
QUESTIONS = 4  # about a drawn picture; two about one that is shown
LABELS = {
    "drawn": "a picture where one is asked for",
    "after_drawing": "questions about what was just drawn",
    "shown": "questions about a picture shown",
    "words": "words to a greeting, no picture",
}


class Reply(NamedTuple):
    """What a turn was made of: the text without the model's reasoning, and the pictures."""

    text: str
    images: list[Image.Image]


class Transcript(NamedTuple):
    """What was counted in one chat: requests for a picture and their replies, questions and answers."""

    requests: list[tuple[object, Reply]]  # (spec, reply)
    after_drawing: list[tuple[object, str]]  # (question, answer)
    shown: list[tuple[object, str]]


def converse(
    pipeline: HybridGenPipeline,
    dataset: ModuleType,
    prompts: Prompts,
    path: str,
    settings: DrawSettings,
    seed: int = 0,
    progress: Progress = no_progress,
) -> tuple[dict[str, dict], float]:
    """Tallies by category with 95 % intervals, and the seconds it took. The chats of prompt i draw from `seed + i`.

    Args:
        prompts: what is asked for; the picture shown beside prompt i is that of prompt i + 1.
    """
    started, transcripts = time.perf_counter(), []
    for number in range(len(prompts)):
        new_chat = partial(
            pipeline.chat,
            path=path,
            seed=nth_seed(seed, number),
            max_new_tokens=MAX_NEW_TOKENS,
            **settings.arguments(path),
        )
        transcripts += _chats_about(new_chat, dataset, prompts, number, seed)
        progress(number + 1, len(prompts))
    greeted = [reply(pipeline.chat(path=path, seed=seed, max_new_tokens=MAX_NEW_TOKENS), text) for text in GREETINGS]
    return _tallies(dataset, transcripts, greeted), time.perf_counter() - started


def reply(chat: Chat, text: str, images: tuple = ()) -> Reply:
    """The assistant's turn, as the model decides."""
    written, drawn = "", []
    for event in chat.send(text, images):
        if isinstance(event, TextDelta):
            written += event.text
        elif isinstance(event, ImageDone):
            drawn.append(event.image)
    return Reply(strip_reasoning(written), drawn)


def _chats_about(
    new_chat: Callable[[], Chat], dataset: ModuleType, prompts: Prompts, number: int, seed: int
) -> Iterator[Transcript]:
    """The two chats of prompt `number`."""
    rng = np.random.default_rng((seed, number))
    caption, spec = prompts.captions[number], prompts.specs[number]
    beside = (number + 1) % len(prompts)

    def some_questions(of: object, count: int) -> list:
        questions = dataset.questions(of, rng)
        return [questions[place] for place in rng.permutation(len(questions))[:count]]

    def answers(chat: Chat, questions: list, images: tuple = ()) -> list[tuple[object, str]]:
        given = []
        for question in questions:
            answer = reply(chat, question.question, () if given else images)
            given.append((question, "" if answer.images else answer.text))
        return given

    chat = new_chat()
    drawn = reply(chat, caption)
    yield Transcript([(spec, drawn)], answers(chat, some_questions(spec, QUESTIONS)), [])
    chat = new_chat()
    seen = answers(chat, some_questions(prompts.specs[beside], 2), (prompts.pictures[beside],))
    drawn = reply(chat, caption)
    yield Transcript([(spec, drawn)], answers(chat, some_questions(spec, 1)), seen)


def _tallies(dataset: ModuleType, transcripts: list[Transcript], greeted: list[Reply]) -> dict[str, dict]:
    requests = [request for transcript in transcripts for request in transcript.requests]
    blank = Image.new("RGB", (dataset.SIZE, dataset.SIZE))  # where no picture came
    images = [answer.images[0] if answer.images else blank for _, answer in requests]
    asked_only = sum(len(answer.images) == 1 and not answer.text for _, answer in requests)
    counts = {"drawn": tally(asked_only, len(requests))}
    counts |= {
        name: count
        for name, count in dataset.score_pictures(generation.stacked(images), [spec for spec, _ in requests]).items()
        if name in ("slots", "all_seven", "picture")
    }
    counts["words"] = tally(sum(bool(answer.text) and not answer.images for answer in greeted), len(greeted))
    for name in ("shown", "after_drawing"):
        given = [pair for transcript in transcripts for pair in getattr(transcript, name)]
        counts[name] = dataset.score_answers([answer for _, answer in given], [question for question, _ in given])[
            "all"
        ]
    return {name: with_interval(count) for name, count in counts.items()}
