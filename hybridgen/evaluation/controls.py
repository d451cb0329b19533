"""What answers are worth that were given without looking: four controls beside every score of understanding.

    majority    always the most frequent answer of the question's category
    blank       the same questions, asked of a gray picture of the same size
    shuffled    the same questions, asked of another item's picture
    unseen      the same questions, asked without any picture

A model can beat the majority without looking, because the wording of a question tells something; blank and unseen show
how much. `shuffled` shows what it says of a picture that is like those it knows, but the wrong one. Where that scores
as high as the right one, the picture does not matter.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from PIL import Image

from hybridgen.core.pictures import pixels_hash
from hybridgen.evaluation.answers.exact import normalise
from hybridgen.evaluation.work import Work

GRAY = (127, 127, 127)
_SEED = 0  # of which picture stands for which: the same for every model, path and run
Shown = Image.Image | tuple[Image.Image, ...] | None  # what is shown with a question
Ask = Callable[[list[Shown], list, str, str], Sequence[str]]  # images, questions, part, label -> answers
Score = Callable[[list[str]], dict[str, dict]]  # answers in the order of the questions -> {category: tally}


class Controlled(NamedTuple):
    """Answers, their tallies with the controls beside each, and in words which control there could not be."""

    answers: list[str]
    tallies: dict[str, dict]
    notes: list[str]


def answer_with_controls(
    work: Work,
    path: str,
    images: Sequence[Shown],
    questions: Sequence[Hashable],
    score: Score,
    constants: Sequence[str] | None = None,
    ask: Ask | None = None,
    group: str = "",
) -> Controlled:
    """Questions answered through a path, and the same ones by the controls, all scored alike.

    Args:
        questions: texts, or whatever `ask` takes for a question.
        images: of each question: a picture, a tuple of several, or None for no picture, which stays so in all controls.
        score: puts answers into tallies with intervals.
        constants: for each question the answer that `majority` gives (`most_frequent`); None = there is no majority.
        ask: how answers are got; None = `Work.answer`. Equal questions about equal pictures get equal answers.
        group: begins the names of the parts, for suites that ask several times through a path.
    """
    images, questions, notes = list(images), list(questions), []
    ask = ask or partial(_ask, work, path)
    label, part = f"answering through {path}", f"{group}{{}}-{path}".format
    answers = list(ask(images, questions, part("answer"), label))
    beside = {} if constants is None else {"majority": list(constants)}
    if any(image is not None for image in images):
        blank = list(map(blank_of, images))
        beside["blank"] = _ask_once(ask, blank, questions, part("blank"), f"{label}, of a blank picture")
        if (others := other_pictures(images)) is None:
            notes.append("shuffled pictures are left out: there is no other picture to show")
        else:
            beside["shuffled"] = list(ask(others, questions, part("shuffled"), f"{label}, of another picture"))
        unseen = [None] * len(images)
        beside["unseen"] = _ask_once(ask, unseen, questions, part("unseen"), f"{label}, without a picture")
    tallies = {category: dict(tally) for category, tally in score(answers).items()}
    for name, given in beside.items():
        for category, tally in score(given).items():
            if category in tallies:
                tallies[category][name] = tally["share"] if "share" in tally else tally["value"]
    return Controlled(answers, tallies, notes)


def _ask(work: Work, path: str, images: list[Shown], questions: list[str], part: str, label: str) -> Sequence[str]:
    return work.answer(path, images, questions, part, label=label)


def _ask_once(ask: Ask, images: list[Shown], questions: list, part: str, label: str) -> list[str]:
    """Each question once for each size of its empty pictures: the answer cannot differ."""
    keys = [(question, _sizes(shown)) for question, shown in zip(questions, images, strict=True)]
    first: dict[tuple, int] = {}
    for place, key in enumerate(keys):
        first.setdefault(key, place)
    places = list(first.values())
    given = ask([images[i] for i in places], [questions[i] for i in places], part, label)
    by_key = dict(zip(first, given, strict=True))
    return [by_key[key] for key in keys]


def most_frequent(categories: Sequence[str], accepted: Sequence[Sequence[str]]) -> list[str]:
    """For each question the answer that is accepted for most questions of its category: the best constant answer.

    Args:
        accepted: the right answers of each question; one that several people gave counts as often.
    """
    counts: dict[str, Counter] = defaultdict(Counter)
    for category, answers in zip(categories, accepted, strict=True):
        counts[category].update(map(normalise, answers))
    best = {category: of_one.most_common(1)[0][0] for category, of_one in counts.items()}
    return [best[category] for category in categories]


def blank_of(shown: Shown) -> Shown:
    """Gray pictures of the same sizes."""
    if isinstance(shown, tuple):
        return tuple(map(blank_of, shown))
    return None if shown is None else Image.new("RGB", shown.size, GRAY)


def other_pictures(images: Sequence[Shown]) -> list[Shown] | None:
    """For each question the pictures of another one, never any of its own, also where a picture stands with many
    questions or in several files; None where that cannot be.

    Each of the different sets of pictures takes the place of the next in an order of chance that is always the same:
    of single pictures, each is shown in the place of exactly one other. Of sets it is the nearest in that order with no
    picture in common, those with as many pictures first.
    """
    hashes = {id(picture): pixels_hash(picture) for shown in images for picture in _listed(shown)}
    keys = [tuple(hashes[id(picture)] for picture in _listed(shown)) for shown in images]
    distinct = {key: shown for key, shown in zip(keys, images, strict=True) if key}
    order = [list(distinct)[i] for i in np.random.default_rng(_SEED).permutation(len(distinct))]
    order.sort(key=len)
    stand_in: dict[tuple, Shown] = {(): None}
    for place, key in enumerate(order):
        following = [*range(place + 1, len(order)), *range(place)]
        others = (order[i] for i in following if not set(order[i]) & set(key))
        if (other := next(others, None)) is None:
            return None
        if len(other) != len(key):  # the last of those with as many: one of the others of them, if there is one
            other = next((one for one in others if len(one) == len(key)), other)
        stand_in[key] = distinct[other]
    return [stand_in[key] for key in keys]


def _listed(shown: Shown) -> tuple[Image.Image, ...]:
    return shown if isinstance(shown, tuple) else () if shown is None else (shown,)


def _sizes(shown: Shown) -> tuple:
    return tuple(picture.size for picture in _listed(shown))
