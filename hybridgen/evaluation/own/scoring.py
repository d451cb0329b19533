"""Answers to questions of own data, put into numbers by what kind of question each is.

    exact, multiple_choice      share right; of the latter also the share that picks no choice (`unclear`)
    yes_no                      accuracy (under the kind's name), precision, recall, F1, yes-ratio, unclear
    vqa, anls, caption          means over the questions: VQA accuracy, ANLS (0 to 1), CIDEr (0 to 10)
    all                         mean credit of all questions, a caption's being CIDEr / 10, at most 1

The kinds' own files are in `evaluation.answers`.
"""

from collections import defaultdict
from collections.abc import Sequence

from hybridgen.data.synthetic.questions import tally
from hybridgen.evaluation.answers.choices import parse_choice
from hybridgen.evaluation.answers.cider import cider
from hybridgen.evaluation.answers.exact import anls, exact_match
from hybridgen.evaluation.answers.vqa import vqa_accuracy
from hybridgen.evaluation.answers.yes_no import parse_yes_no, yes_no_scores
from hybridgen.evaluation.controls import most_frequent
from hybridgen.evaluation.intervals import bootstrap_mean, score_by_groups
from hybridgen.evaluation.own.records import Asked

_UNITS = {"vqa": "VQA accuracy", "anls": "ANLS", "caption": "CIDEr"}
_BEST_CAPTION = 10.0  # CIDEr of a person's own words


def values_of(answers: Sequence[str], asked: Sequence[Asked]) -> list[float]:
    """How right each answer is, as its kind counts it."""
    captions = [place for place, one in enumerate(asked) if one.kind == "caption"]
    of_captions = cider([answers[i] for i in captions], [asked[i].accepted for i in captions])
    by_place = dict(zip(captions, of_captions.tolist(), strict=True))
    return [
        by_place[place] if place in by_place else _value(answer, one)
        for place, (answer, one) in enumerate(zip(answers, asked, strict=True))
    ]


def _value(answer: str, asked: Asked) -> float:
    if asked.kind == "exact":
        return float(exact_match(answer, asked.accepted))
    if asked.kind == "yes_no":
        return float(parse_yes_no(answer) is parse_yes_no(asked.accepted[0]))
    if asked.kind == "multiple_choice":
        return float(parse_choice(answer, asked.choices) == parse_choice(asked.accepted[0], asked.choices))
    return vqa_accuracy(answer, asked.accepted) if asked.kind == "vqa" else anls(answer, asked.accepted)


def credits_of(values: Sequence[float], asked: Sequence[Asked]) -> list[float]:
    """How right each answer is, from 0 to 1."""
    return [
        min(value / _BEST_CAPTION, 1.0) if one.kind == "caption" else value
        for value, one in zip(values, asked, strict=True)
    ]


def score(answers: Sequence[str], asked: Sequence[Asked]) -> dict[str, dict]:
    """Tallies by kind, by kind and category where records name one, and of all, each with its 95 % interval over
    pictures: questions about the same ones are not independent."""
    values = values_of(answers, asked)
    kinds: dict[tuple[str, str], list[int]] = defaultdict(list)
    for place, one in enumerate(asked):
        kinds[one.kind, ""].append(place)
        if one.category:
            kinds[one.kind, one.category].append(place)
    tallies = {}
    for (kind, category), places in sorted(kinds.items()):
        end = f" of {category}" if category else ""
        given = [answers[i] for i in places], [asked[i] for i in places], [values[i] for i in places]
        tallies |= {f"{name}{end}": counted for name, counted in _of_kind(kind, *given).items()}
    credits, groups = credits_of(values, asked), groups_of(asked)
    if all(credit in (0.0, 1.0) for credit in credits):
        return tallies | {"all": _share(credits, groups)}
    return tallies | {"all": bootstrap_mean(credits, "mean credit", groups=groups)}


def groups_of(asked: Sequence[Asked]) -> list:
    """Of each question: what it shares with those that it is not independent of."""
    return [one.group or place for place, one in enumerate(asked)]


def _of_kind(kind: str, answers: list[str], asked: list[Asked], values: list[float]) -> dict[str, dict]:
    groups = groups_of(asked)
    if kind in _UNITS:
        return {kind: bootstrap_mean(values, _UNITS[kind], groups=groups)}
    tallies = {kind: _share(values, groups)}
    if kind == "multiple_choice":
        unclear = [parse_choice(answer, one.choices) is None for answer, one in zip(answers, asked, strict=True)]
        tallies["multiple_choice_unclear"] = _share(unclear, groups)
    if kind == "yes_no":
        counted = yes_no_scores(answers, [parse_yes_no(one.accepted[0]) for one in asked], groups)
        tallies |= {f"yes_no_{name}": value for name, value in counted.items() if name != "accuracy"}
    return tallies


def _share(rights: Sequence[float], groups: list) -> dict:
    """Of values that are 0 or 1."""
    return score_by_groups(lambda places: {"": tally(int(sum(rights[i] for i in places)), len(places))}, groups)[""]


def constants_of(asked: Sequence[Asked]) -> list[str]:
    """For each question the most frequent right answer of its kind and category."""
    accepted = []
    for one in asked:
        right = [one.choices[parse_choice(one.accepted[0], one.choices)]] if one.choices else one.accepted
        accepted.append(["yes" if parse_yes_no(right[0]) else "no"] if one.kind == "yes_no" else right)
    return most_frequent([f"{one.kind} {one.category}" for one in asked], accepted)
