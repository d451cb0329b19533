"""Synthetic datasets: data that ships with the package, so that everything works offline, and its scores are exact.

For training and evaluation on known ground; not the way to feed data of your own (that is `hybridgen.data.sources`).
What newcomers get wrong: a record is computed from its index, not read from a list, so `source[i]` is the same
whoever asks and in whatever order.

Every dataset is a module with the same names:

    SIZE, SPLITS, TASKS, CATEGORIES      side of a picture in pixels; the names that the functions accept and return
    Source(split, task, seed)            endless: `source[i]` is a chat record, `source.picture(i)` its picture
    Spec, spec_of(record)                what a picture shows, in the form that is scored
    render, render_batch                 spec -> picture, specs -> (n, SIZE, SIZE, 3) uint8
    caption, parse_caption               spec -> words, words -> spec
    questions(spec, rng)                 the questions with an exact answer
    score_pictures(images, specs)        exact scores, as {name: {"right", "n", "share"}}; `judge_pictures` one by one
    score_answers(given, asked)          exact match, in the same form
    majority_baselines(n, seed, split)   what a constant answer would score, to be printed beside
"""

import importlib
from types import ModuleType

_MODULES = {"dolls": "hybridgen.data.synthetic.dolls", "emoji": "hybridgen.data.synthetic.emoji"}


def open_synthetic(name: str) -> ModuleType:
    """Return the module of the dataset `name`, "dolls" or "emoji"; any other name raises ValueError."""
    if name not in _MODULES:
        raise ValueError(
            f"unknown dataset {name!r}: the synthetic datasets that ship with hybridgen are {', '.join(sorted(_MODULES))}"
        )
    return importlib.import_module(_MODULES[name])
