"""own: the user's own data, from a file of chat records in any of the forms that training reads.

Source and licence: the user's. Records that end with a picture are drawn, and shown beside the true one; they are
scored only where a record's `meta` names a synthetic dataset and a spec. Turns of the assistant that are texts are
asked for, after all that stands before them in the record as it is there, and scored by what kind of question each is
(`own.records` says how a record tells it, `own.scoring` what is counted; `answers` how that differs from the reference
harnesses).
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image

from hybridgen.chat.events import ImageDone
from hybridgen.core.recognition import user_path
from hybridgen.core.values import shown
from hybridgen.data.bad_records import SHOWN, BadRecord
from hybridgen.data.synthetic import open_synthetic
from hybridgen.evaluation import generation
from hybridgen.evaluation.answers.choices import letters
from hybridgen.evaluation.answers.exact import normalise
from hybridgen.evaluation.controls import Ask, answer_with_controls
from hybridgen.evaluation.own.records import Asked, Tasks, Wanted, dataset_of, filled, read_tasks
from hybridgen.evaluation.own.scoring import constants_of, credits_of, score, values_of
from hybridgen.evaluation.result import Item, Result
from hybridgen.evaluation.synthetic import side_of
from hybridgen.evaluation.work import CHUNK, DRAWN_AT_ONCE, Work
from hybridgen.sampling.seeds import nth_seed

USUAL_RECORDS = 1000  # all of their pictures are held in memory
MAX_NEW_TOKENS = 64
LABELS = {
    "all": "all questions",
    "exact": "exact match",
    "yes_no": "yes or no",
    "yes_no_f1": "yes or no: F1",
    "vqa": "several people's answers",
    "caption": "captions",
    "anls": "text in pictures",
}
LABELS |= {f"yes_no_{name}": f"yes or no: {name.replace('_', ' ')}" for name in ("precision", "recall", "yes_ratio")}
LABELS |= {"yes_no_unclear": "yes or no: neither said", "multiple_choice_unclear": "multiple choice: none picked"}


def check(work: Work) -> None:
    asked, wanted, _, _ = _read(work)
    if not (asked and work.answer_paths) and not (wanted and work.draw_paths):
        (work.require_answering if asked else work.require_drawing)()
    work.number("max_new_tokens", MAX_NEW_TOKENS)
    _by_likelihood(work)
    for side in {_side_of(work, one) for one in wanted if work.draw_paths}:
        work.check_drawing([one.prompt for one in wanted if _side_of(work, one) == side], side)


def run(work: Work) -> Result:
    """
    1. Read the records; broken ones are listed and counted.
    2. Ask the questions through each path, with the controls beside.
    3. Draw the prompts by each path.
    """
    asked, wanted, bad, unread = _read(work)
    records = len({task.where for task in (*asked, *wanted)})
    facts = {"records": records, "broken": len(bad), "questions": len(asked), "prompts": len(wanted), "seed": work.seed}
    result = Result(facts=facts, labels=dict(LABELS))
    result.note(*_notes(work, asked, wanted, bad, unread))
    for path in work.answer_paths if asked else ():
        _answer(work, result, path, asked)
    for path in work.draw_paths if wanted else ():
        _draw(work, result, path, wanted)
    return result


def contents(work: Work) -> str:
    """A hash of the records that are evaluated and of their pictures, as they are read."""
    return _tasks(work).hash


def _tasks(work: Work) -> Tasks:
    return work.once("tasks", lambda: read_tasks(user_path(work.suite), work.samples or USUAL_RECORDS))


def _read(work: Work) -> tuple[list[Asked], list[Wanted], list[BadRecord], int]:
    """What is asked, what is to be drawn, what is broken, and how many records were not read."""
    if work.samples is not None and work.samples < 1:
        raise ValueError(f"{work.samples} samples cannot be taken of {work.suite}; take 1 or more")
    tasks, bad, unread, _ = _tasks(work)
    there_are = len({task.where for task in tasks}) + len(bad) + unread
    if work.samples is not None and work.samples > there_are:
        raise ValueError(f"{work.samples} samples cannot be taken of {work.suite}; take 1 to {there_are}")
    asked = [task for task in tasks if isinstance(task, Asked)]
    return asked, [task for task in tasks if isinstance(task, Wanted)], bad, unread


def _notes(work: Work, asked: list[Asked], wanted: list[Wanted], bad: list[BadRecord], unread: int) -> list[str]:
    """In sentences, what was left out or inferred."""
    notes = []
    if bad:
        more = f"; and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
        notes.append(f"{len(bad)} broken records are left out: {'; '.join(map(str, bad[:SHOWN]))}{more}")
    if unread:
        notes.append(f"the last {unread} records are not read; --samples says how many are evaluated")
    if inferred := Counter(one.kind for one in asked if one.inferred):
        kinds = ", ".join(f"{count} {kind}" for kind, count in inferred.most_common())
        notes.append(f"how answers are compared was inferred where records do not say their type: {kinds}")
    if _by_likelihood(work) and asked:
        chosen = sum(one.kind == "multiple_choice" for one in asked)
        notes.append(
            f"of {chosen} multiple-choice questions the likeliest choice is taken (mean log-likelihood of its tokens), "
            "not what is written"
        )
    if asked and not work.answer_paths:
        notes.append(f"{len(asked)} questions are not asked, as there is no path to answer through")
    if wanted and not work.draw_paths:
        notes.append(f"{len(wanted)} prompts are not drawn, as there is no path to draw by")
    elif unjudged := sum(dataset_of(one.meta) is None for one in wanted):
        notes.append(f"{unjudged} pictures are drawn and shown, and scored by nothing")
    return notes


# ------------------------------------------------------------------------------------------------------------ answering


def _answer(work: Work, result: Result, path: str, asked: list[Asked]) -> None:
    by_likelihood = _by_likelihood(work)
    questions = [_Question(one.script, *(_candidates(one) if by_likelihood else ())) for one in asked]
    done = answer_with_controls(
        work, path, [one.images for one in asked], questions, lambda answers: score(answers, asked),
        constants_of(asked), _replies(work, path),
    )  # fmt: skip
    items = []
    for one, answer, credit in zip(asked, done.answers, credits_of(values_of(done.answers, asked), asked), strict=True):
        pictures = {f"shown {n}" if n else "shown": picture for n, picture in enumerate(one.images or ())}
        expected = " / ".join(dict.fromkeys(one.accepted))
        wrong = "" if credit == 1 else f"{one.where}: {expected}"
        verdict = {"all": credit, one.kind: credit}
        items.append(Item(one.question, pictures, answer, expected, verdict, wrong, one.group))
    result.add("understanding", path, done.tallies, items, seconds=work.seconds(f"answer-{path}"))
    result.note(*done.notes)


class _Question(NamedTuple):
    """What is asked: messages, and, where the likeliest answer is chosen, what there is to choose from and the texts
    of these choices."""

    script: str
    candidates: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()


def _by_likelihood(work: Work) -> bool:
    """Whether the likeliest choice is taken. Raises ValueError where the option says neither this nor the other way."""
    how = work.text("choose", "answer")
    if how not in ("answer", "likelihood"):
        raise ValueError(f"option choose of suite {work.suite} is {shown(how)}; it must be answer or likelihood")
    return how == "likelihood"


def _candidates(one: Asked) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Of a multiple-choice question: the choices as its own accepted answer stands, by letter or by text, and their
    texts."""
    given = one.accepted[0].strip()
    if one.kind != "multiple_choice" or normalise(given) in map(normalise, one.choices):
        return one.choices, one.choices
    named = letters(one.choices)
    return tuple(named.lower() if given.islower() else named), one.choices


def _replies(work: Work, path: str) -> Ask:
    """Questions asked in their conversations, with the pictures that a control puts there; of candidates the likeliest
    is taken, by the mean log-likelihood of its tokens."""
    limit = work.number("max_new_tokens", MAX_NEW_TOKENS)

    def ask(images: list, questions: list[_Question], part: str, label: str) -> Sequence[str]:
        def reply(numbers: list[int]) -> list[str]:
            chats = {i: filled(questions[i].script, images[i]) for i in numbers}
            free = [i for i in numbers if not questions[i].candidates]
            pairs = [(i, candidate) for i in numbers for candidate in questions[i].candidates]
            written = work.pipeline.reply([chats[i] for i in free], path, limit) if free else []
            given = dict(zip(free, map(str, written), strict=True))
            texts = [text for _, text in pairs]
            weighed = work.pipeline.score_replies([chats[i] for i, _ in pairs], texts, path) if pairs else []
            means: dict[int, list[float]] = {}
            for (i, _), likelihood in zip(pairs, weighed, strict=True):
                means.setdefault(i, []).append(likelihood.mean)
            given |= {i: questions[i].choices[of_one.index(max(of_one))] for i, of_one in means.items()}
            return [given[i] for i in numbers]

        return work.batches(len(questions), reply, part, label, CHUNK)

    return ask


# ------------------------------------------------------------------------------------------------------------- drawing


def _draw(work: Work, result: Result, path: str, wanted: list[Wanted]) -> None:
    images = _drawn(work, path, wanted)
    items = [
        Item(one.prompt, {**({"true picture": one.picture} if one.picture else {}), path: image})
        for one, image in zip(wanted, images, strict=True)
    ]
    tallies = {}
    for name in sorted({name for one in wanted if (name := dataset_of(one.meta))}):
        places = [place for place, one in enumerate(wanted) if dataset_of(one.meta) == name]
        tallies |= _judge(name, [images[i] for i in places], [wanted[i] for i in places], [items[i] for i in places])
    settings = work.settings_of(path).of_path(path)
    result.add("generation", path, tallies, items, seconds=work.seconds(f"draw-{path}"), **settings)


def _drawn(work: Work, path: str, wanted: list[Wanted]) -> list[Image.Image]:
    """A picture for each: prompts alone many at a time, longer conversations one by one."""
    settings = work.settings_of(path).arguments(path)
    conversations, sides = [one.conversation() for one in wanted], [_side_of(work, one) for one in wanted]
    alone = [one.images is None and len(messages) == 1 for one, messages in zip(wanted, conversations, strict=True)]

    def draw(numbers: list[int]) -> list[Image.Image]:
        drawn, prompts = {}, [i for i in numbers if alone[i]]
        if prompts:
            size = [sides[i] for i in prompts]
            seeds = [nth_seed(work.seed, i) for i in prompts]
            given = {"path": path, "seed": seeds, "height": size, "width": size, **settings}
            drawn = dict(zip(prompts, work.pipeline([wanted[i].prompt for i in prompts], **given).images, strict=True))
        for i in numbers:
            if not alone[i]:
                given = {
                    "path": path,
                    "seed": nth_seed(work.seed, i),
                    "height": sides[i],
                    "width": sides[i],
                    **settings,
                }
                events = work.pipeline.stream(conversations[i], plan=["image"], **given)
                drawn[i] = next(event.image for event in events if isinstance(event, ImageDone))
        return [drawn[i] for i in numbers]

    return list(work.batches(len(wanted), draw, f"draw-{path}", f"drawing by {path}", DRAWN_AT_ONCE))


def _side_of(work: Work, wanted: Wanted) -> int | None:
    """The side of a picture that a synthetic dataset's scorer judges; None = as the checkpoint draws."""
    name = dataset_of(wanted.meta)
    return None if name is None else side_of(work, open_synthetic(name))


def _judge(name: str, images: list[Image.Image], wanted: list[Wanted], items: list[Item]) -> dict[str, dict]:
    """Tallies of a synthetic dataset's pictures by its own scorer; what is wrong is written into their items."""
    dataset = open_synthetic(name)
    specs = [dataset.spec_of({"meta": one.meta}) for one in wanted]
    verdicts = generation.judge(dataset, images, specs)
    for item, verdict in zip(items, verdicts, strict=True):
        item.verdict = {f"{name}: {category}": share for category, share in verdict.shares.items()}
        item.wrong = ", ".join(verdict.wrong)
    tallies = generation.score(dataset, images, specs, verdicts)
    return {f"{name}: {category}": tally for category, tally in tallies.items()}
