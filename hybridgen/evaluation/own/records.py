"""Records of own data -> questions with accepted answers, and pictures to draw.

Records are read by the very readers of training, in all of their forms, so that what trains also evaluates. A turn of
the assistant that is a text is asked for, after all that stands before it in the record; one that is a picture and ends
the record is drawn. Earlier pictures of the assistant are read. What else a record may say, beside its messages, in its
`meta`, or in the assistant's message that it is about:

    answers     further accepted answers; a list of lists where the record has several questions
    choices     what there is to choose from; the accepted answer is the text or the letter (A, B, ...) of one of them
    type        how answers are compared, one of `KINDS`, or `draw` for a prompt without a picture
    category    scores of records with the same one stand together

What a record does not say is inferred: `choices` make it multiple choice; answers that are all yes, or all no, yes_no;
ten answers, or some that several people gave, vqa; a picture without words, caption; all others are exact.
"""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from hybridgen.core.messages import parts
from hybridgen.core.pictures import pixels_hash
from hybridgen.core.values import shown
from hybridgen.data.bad_records import BadRecord, record_errors
from hybridgen.data.formats.fields import text_of
from hybridgen.data.formats.json_files import json_source
from hybridgen.data.synthetic import DATASETS, open_synthetic
from hybridgen.evaluation.answers.choices import MOST_CHOICES, parse_choice
from hybridgen.evaluation.answers.exact import normalise
from hybridgen.evaluation.answers.vqa import ANNOTATORS
from hybridgen.evaluation.answers.yes_no import parse_yes_no

KINDS = ("exact", "yes_no", "multiple_choice", "vqa", "anls", "caption")
_FEWEST_ANNOTATORS = 3


@dataclass(frozen=True)
class Asked:
    """A question.

    Args:
        script: the messages before the answer as JSON, places of pictures in them as {"type": "image"}.
        images: the pictures for these places; None = none.
        accepted: the right answers.
        inferred: whether its kind was.
        group: the same of questions that are not independent: of one record, or first about the same pictures.
    """

    where: str
    script: str
    question: str
    images: tuple[Image.Image, ...] | None
    accepted: tuple[str, ...]
    kind: str
    choices: tuple[str, ...] = ()
    category: str = ""
    inferred: bool = True
    group: str = ""


@dataclass(frozen=True)
class Wanted:
    """A picture to draw.

    Args:
        script, images: the messages before it, as of `Asked`.
        prompt: the last words of the user.
        picture: the true one; None = not known.
        meta: of the record: where it names a synthetic dataset and a spec, its exact scorer judges.
    """

    where: str
    script: str
    prompt: str
    images: tuple[Image.Image, ...] | None
    picture: Image.Image | None
    meta: dict

    def conversation(self) -> list[dict]:
        """The messages before it, with their pictures."""
        return filled(self.script, self.images)


Task = Asked | Wanted


class Tasks(NamedTuple):
    """What the records of a file ask for, the broken ones among them, and how many were not read; and a hash of all
    that was read, pictures too."""

    tasks: list[Task]
    bad: list[BadRecord]
    unread: int
    hash: str


def read_tasks(file: str | Path, limit: int | None = None) -> Tasks:
    """
    Args:
        limit: read so many whole records; None = all.

    Raises:
        ValueError: there is no such file, or no record in it that can be evaluated.
    """
    bad: list[BadRecord] = []
    source = json_source(file, bad_records=bad)
    tasks, seen, unread = [], {}, len(source)
    for index in range(len(source)):
        if len(seen) == limit:
            break
        where, unread = source.where(index), unread - 1
        try:
            with record_errors(where):
                of_record = tasks_of(source.row(index), source.read(index), where)
                key, of_record = _fingerprint(of_record), _grouped(of_record)
                if key in seen:
                    raise ValueError(f"it is the same as {seen[key]}, and counts once")
        except ValueError as error:
            bad.append(BadRecord.of(where, error))
            continue
        seen[key] = where
        tasks += of_record
    if not tasks:
        raise ValueError(f"{file} holds no record that can be evaluated: {bad[0]}")
    return Tasks(tasks, bad, unread, hashlib.blake2b(b"".join(seen), digest_size=16).hexdigest())


def tasks_of(row: dict, record: dict, where: str) -> list[Task]:
    """What one record asks for.

    Args:
        row: as its file holds it.
        record: made of the row by the reader, its pictures decoded.

    Raises:
        ValueError: it asks for nothing, or says of its answers what cannot be.
    """
    if record.get("plain"):
        raise ValueError("it is a text without a question; suite text scores texts")
    messages, said = record["messages"], _Said(row)
    places = [place for place, message in enumerate(messages) if _is_asked_for(message)]
    texts = [place for place in places if not _has_picture(messages[place])]
    tasks: list[Task] = []
    for place in places:
        before = messages[:place]
        if place in texts:
            answer = " ".join(part["text"] for part in parts(messages[place])).strip()
            tasks.append(_asked(before, answer, said.of(texts.index(place), len(texts), messages[place]), where))
        elif place == len(messages) - 1:
            tasks.append(_wanted(before, _only_picture(messages[place]), record, where))
    if messages[-1]["role"] != "assistant":
        if said.type == "draw":
            tasks.append(_wanted(messages, None, record, where))
        elif said.has_answers and not texts:
            tasks.append(_asked(messages, None, said.of(0, 1, {}), where))
    if not tasks:
        raise ValueError("it has no answer; end it with the assistant's turn, or give answers: [...]")
    return tasks


class _Said:
    """What a row says beside its messages: its own columns, and those of its `meta`."""

    def __init__(self, row: dict):
        meta = row.get("meta")
        self._columns = {**row, **(meta if isinstance(meta, dict) else {})}
        for name in ("answers", "answer"):  # of rows with a column for a question, both are names of one field
            if self._columns.get(name) is not None:
                self._columns["answers"] = self._columns[name]
                break

    @property
    def has_answers(self) -> bool:
        return self._columns.get("answers") is not None

    @property
    def type(self) -> Any:
        return self._columns.get("type")

    def of(self, number: int, count: int, message: dict) -> dict[str, Any]:
        """answers, choices, type and category of question `number` of `count`; those of its message come first."""
        found = {}
        for name in ("answers", "choices", "type", "category"):
            of_record = self._columns.get(name)
            found[name] = message.get(name)
            if found[name] is None and of_record is not None:
                found[name] = _of_question(name, of_record, number, count)
        return found


def _of_question(name: str, value: Any, number: int, count: int) -> Any:
    """What a record says of all its questions, as far as it is about one of them."""
    lists = name in ("answers", "choices")
    one_each = isinstance(value, list) and (not lists or (value and all(isinstance(one, list) for one in value)))
    if not one_each and (count == 1 or not lists):
        return value
    if not one_each or len(value) != count:
        raise ValueError(
            f"{name} is {shown(value)} for {count} questions; give a list with one {'list ' if lists else ''}for each, "
            f"or put {name} into the assistant's messages"
        )
    return value[number]


def _is_asked_for(message: dict) -> bool:
    return message["role"] == "assistant" and message.get("weight") != 0


def _has_picture(message: dict) -> bool:
    return any(part["type"] == "image" for part in parts(message))


def _only_picture(message: dict) -> Image.Image:
    if len(parts(message)) != 1:
        raise ValueError("its last turn is more than one picture; only a picture alone is drawn and compared")
    return parts(message)[0]["image"]


def _wanted(before: list[dict], picture: Image.Image | None, record: dict, where: str) -> Wanted:
    script, images = taken_apart(before)
    meta = record.get("meta")
    if not before or before[-1]["role"] != "user":
        raise ValueError("there is no turn of the user before its picture, so nothing says what to draw")
    meta = meta if isinstance(meta, dict) else {}
    if (name := dataset_of(meta)) is not None:
        _check_spec(name, meta)
    return Wanted(where, script, _words(before), images, picture, meta)


def dataset_of(meta: dict) -> str | None:
    """The synthetic dataset whose scorer judges a picture, where a record's meta names it and what the picture
    shows."""
    name = meta.get("dataset")
    return name if name in DATASETS and isinstance(meta.get("spec"), dict) else None


def _check_spec(name: str, meta: dict) -> None:
    """Raises ValueError for a spec that the dataset has not: its scorer could not judge by it."""
    dataset = open_synthetic(name)
    try:
        spec = dataset.spec_of({"meta": meta})
        dataset.parse_caption(dataset.caption(spec))  # refuses what is not of its words
        dataset.judge_pictures(np.full((1, dataset.SIZE, dataset.SIZE, 3), 127, np.uint8), [spec])
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"its meta has a spec that {name} cannot judge: {error}") from error


def _asked(before: list[dict], answer: str | None, said: dict[str, Any], where: str) -> Asked:
    if not before or before[-1]["role"] != "user":
        raise ValueError("there is no turn of the user before its answer, so nothing is asked")
    accepted = _accepted(answer, said["answers"])
    choices = _choices(said["choices"])
    kind = _kind(said["type"], accepted, choices, _words(before))
    if kind != "vqa" and answer and normalise(answer) not in map(normalise, accepted):
        accepted = (answer, *accepted)
    _check_kind(kind, accepted, choices)
    category = said["category"]
    if category is not None and not isinstance(category, str):
        raise ValueError(f"category is {shown(category)}; give a text")
    script, images = taken_apart(before)
    inferred = said["type"] is None
    return Asked(where, script, _words(before), images, accepted, kind, choices, category or "", inferred)


def _accepted(answer: str | None, answers: Any) -> tuple[str, ...]:
    if answers is None:
        if not answer:
            raise ValueError("its answer is empty; give a text")
        return (answer,)
    if isinstance(answers, list) and not answers:
        raise ValueError("answers is empty; give at least one text")
    for one in answers if isinstance(answers, list) else [answers]:
        if not isinstance(one, str | int | float | dict):
            raise ValueError(f"answers has {shown(one)}; each must be a text")
    return tuple(text_of(one, "answers", "").strip() for one in (answers if isinstance(answers, list) else [answers]))


def _choices(choices: Any) -> tuple[str, ...]:
    if choices is None:
        return ()
    if not isinstance(choices, list) or not all(isinstance(one, str) and one.strip() for one in choices):
        raise ValueError(f"choices is {shown(choices)}; give a list of texts")
    if not 2 <= len(choices) <= MOST_CHOICES:
        raise ValueError(f"choices has {len(choices)} texts; give 2 to {MOST_CHOICES}")
    plain = [normalise(one) for one in choices]
    if twice := [one for one in plain if plain.count(one) > 1]:
        raise ValueError(f"choices has {twice[0]!r} twice; each must differ from the others")
    return tuple(choices)


def _kind(said: Any, accepted: tuple[str, ...], choices: tuple[str, ...], words: str) -> str:
    if said is not None:
        if not isinstance(said, str) or said not in KINDS:
            raise ValueError(f"type is {shown(said)}; it must be one of {', '.join(KINDS)}, or be left out")
        return said
    if choices:
        return "multiple_choice"
    plain = [normalise(one) for one in accepted]
    if set(plain) in ({"yes"}, {"no"}):
        return "yes_no"
    if len(plain) >= ANNOTATORS or (len(plain) >= _FEWEST_ANNOTATORS and len(set(plain)) < len(plain)):
        return "vqa"
    return "exact" if words else "caption"


def _check_kind(kind: str, accepted: tuple[str, ...], choices: tuple[str, ...]) -> None:
    """Raises ValueError where the accepted answers are none of this kind."""
    if kind == "yes_no" and (None in (said := {parse_yes_no(one) for one in accepted}) or len(said) > 1):
        raise ValueError(f"its answers are {shown(list(accepted))}; of type yes_no they must all be yes, or all no")
    if kind == "vqa" and len(accepted) < _FEWEST_ANNOTATORS:
        raise ValueError(
            f"it has {len(accepted)} answers; of type vqa give those of at least {_FEWEST_ANNOTATORS} people, or say "
            "type: exact"
        )
    if kind == "multiple_choice":
        if not choices:
            raise ValueError("it has no choices; of type multiple_choice give choices: [...]")
        right = {parse_choice(one, choices) for one in accepted}
        if None in right or len(right) != 1:
            raise ValueError(
                f"its answers {shown(list(accepted))} are not one of the choices {shown(list(choices))}; give the text "
                "or the letter of the right one"
            )
    elif choices:
        raise ValueError(f"it has choices, but type {kind}; say multiple_choice, or leave the choices out")


# -------------------------------------------------------------------------------------- messages without their pictures


def taken_apart(messages: list[dict]) -> tuple[str, tuple[Image.Image, ...] | None]:
    """Messages as JSON without their pictures, and these in reading order."""
    images: list[Image.Image] = []
    plain = []
    for message in messages:
        content = []
        for part in parts(message):
            if part["type"] == "image":
                images.append(part["image"])
            content.append({"type": "image"} if part["type"] == "image" else {"type": "text", "text": part["text"]})
        plain.append({"role": message["role"], "content": content})
    return json.dumps(plain, ensure_ascii=False), tuple(images) or None


def filled(script: str, images: tuple[Image.Image, ...] | None) -> list[dict]:
    """The inverse of `taken_apart`; with None the places of pictures are left out."""
    messages, rest = json.loads(script), iter(images or ())
    for message in messages:
        if images is None:
            texts = [part for part in message["content"] if part["type"] == "text"]
            message["content"] = texts or ""
        else:
            for part in message["content"]:
                if part["type"] == "image":
                    part["image"] = next(rest)
    return messages


def _words(messages: list[dict]) -> str:
    return " ".join(part["text"] for part in parts(messages[-1]) if part["type"] == "text").strip()


def _fingerprint(tasks: list[Task]) -> bytes:
    """Of all that a record asks for and expects: by it, one that stands twice is known."""
    digest = hashlib.blake2b(digest_size=16)
    for task in tasks:
        expected = [*task.accepted, *task.choices] if isinstance(task, Asked) else []
        pictures = [*(task.images or ()), *([task.picture] if isinstance(task, Wanted) and task.picture else ())]
        digest.update(json.dumps([task.script, *expected]).encode())
        for picture in pictures:
            digest.update(pixels_hash(picture))
    return digest.digest()


def _grouped(tasks: list[Task]) -> list[Task]:
    """A record's tasks, its questions under the pictures that the first of them is about, or else under the record."""
    asked = [task for task in tasks if isinstance(task, Asked)]
    if not asked:
        return tasks
    pictures = b"".join(map(pixels_hash, asked[0].images or ()))
    group = hashlib.blake2b(pictures, digest_size=16).hexdigest() if pictures else asked[0].where
    return [replace(task, group=group) if isinstance(task, Asked) else task for task in tasks]
