"""What a suite hands back: scores, and every item with what the scorer says of it.

A *tally* is one number of the scores. A share is {"right", "n", "share", "low", "high"}, with the ends of its 95 %
interval; anything else is {"value", "n", "low", "high", "unit"} (`intervals.bootstrap`). Where what was counted is not
independent, "groups" says how many things are, such as pictures that several questions are about. Beside either may
stand what it is to be read against, under the names of `BASELINES`.

An *item* is one thing that a path was asked for. Items are what the report shows, worst first, and what two
evaluations of the same suite are compared by: item i of a task is the same thing for every path and every checkpoint.
"""

from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

TASKS = {  # what a suite's scores may hold; how a line of results begins, and the heading of its table
    "generation": ("drawing by {path}", "Drawing"),
    "understanding": ("answering through {path}", "Answering"),
    "conversation": ("talking, drawing by {path}", "In conversations"),
    "unified": ("drawing and asking, {path}", "Does it recognise what it drew?"),
    "text": ("{path}", "Text"),
}
BASELINES = {  # what may stand beside a score -> its heading in a table
    "majority": "constant answer or picture",
    "blank": "blank picture",
    "shuffled": "another picture",
    "unseen": "no picture",
    "true": "true pictures",
    "codec": "true, as codes",
    "chance": "chance",
}


@dataclass
class Item:
    """One thing that a path was asked for, and what came.

    Args:
        prompt: what was asked: a caption to draw, or a question.
        pictures: heading -> picture or its file, such as {"true picture": ..., "diffusion": ...}; empty where there is
            none.
        answer: what was said; None where nothing was to be said.
        expected: what would have been right, in words.
        verdict: category -> 1 right, 0 wrong, or a share between; empty where single items are not judged.
        wrong: in words, what is wrong; empty where nothing is.
        group: the name of what items are about that are not independent, such as a prompt that was drawn four times;
            empty where it is their pictures.
    """

    prompt: str
    pictures: dict[str, Image.Image | Path] = field(default_factory=dict)
    answer: str | None = None
    expected: str = ""
    verdict: dict[str, float] = field(default_factory=dict)
    wrong: str = ""
    group: str = ""

    @property
    def mean(self) -> float:
        """Of its verdicts: the smaller, the worse. What is not judged stands last."""
        return sum(self.verdict.values()) / len(self.verdict) if self.verdict else float("inf")


@dataclass
class Result:
    """What came out of one suite.

    Args:
        scores: task -> path -> {"seconds", the settings it was drawn with, "scores": {category: tally}}.
        items: task -> path -> its items, in the order of the suite.
        facts: what else stands in `scores.json`, such as the split and the number of questions; under "notes", lines
            to be read after the scores.
        labels: what a category is called where people read it, when its own name will not do.
        credit: whose pictures or questions these are, for the foot of the page.
    """

    scores: dict[str, dict[str, dict]] = field(default_factory=dict)
    items: dict[str, dict[str, list[Item]]] = field(default_factory=dict)
    facts: dict = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    credit: str = ""

    def add(self, task: str, path: str, scores: dict[str, dict], items: list[Item] | None = None, **beside) -> None:
        """The tallies of one path, its items, and what stands beside them in `scores.json` (seconds, settings).

        Raises:
            ValueError: there is no such task.
        """
        if task not in TASKS:
            raise ValueError(f"scores of task {task!r} would be shown nowhere; use one of {', '.join(TASKS)}")
        self.scores.setdefault(task, {})[path] = {**beside, "scores": scores}
        if items is not None:
            self.items.setdefault(task, {})[path] = items

    def note(self, *notes: str) -> None:
        """Add lines to be read after the scores, each once."""
        for note in notes:
            if note not in (told := self.facts.setdefault("notes", [])):
                told.append(note)

    def label(self, category: str) -> str:
        return self.labels.get(category, category.replace("_", " "))

    def as_json(self) -> dict:
        """As it stands in `scores.json`."""
        return {**self.facts, "labels": self.labels, **{task: self.scores.get(task, {}) for task in TASKS}}
