"""Synthetic datasets: data that ships with the package, so that everything works offline and has exact scores.

For training and evaluation on known ground; data of your own is read by `hybridgen.data.sources`. A record is computed
from its index, not read from a list, so `source[i]` is always the same.

Every dataset is a package of `pictures` (what is drawn), `language` (captions, questions, answers) and `scoring`. To
add one, copy `dolls/` and name it in `DATASETS`; copy `evaluation/suites/dolls.py`, which names the split that is
evaluated. Its `__init__` offers:

    SIZE, SPLITS, TASKS, CATEGORIES      side of a picture in pixels; the names that the functions accept and return
    Source(split, task, seed)            endless: `source[i]` is a chat record, `source.picture(i)` its picture
    spec_of(record)                      what a record's picture shows, as a named tuple: the spec
    render, render_batch                 spec -> picture, specs -> (n, SIZE, SIZE, 3) uint8; also of another `size`
    caption, parse_caption               spec -> words, words -> spec
    Question, questions(spec, rng)       the questions with an exact answer
    nearest_specs(images)                pictures -> the specs that they show best
    score_pictures(images, specs)        exact scores, as {name: {"right", "n", "share"}}
    judge_pictures(images, specs)        the same picture by picture, as {name: bool}
    score_answers(answers, questions)    exact match, as {category: {"right", "n", "share"}}
    majority_baselines(n, seed, split)   scores of constant answers and a constant picture, to be printed beside
"""

import importlib
from types import ModuleType

DATASETS = ("dolls", "emoji", "shapes", "words")  # packages beside this file


def open_synthetic(name: str) -> ModuleType:
    """The package of the dataset `name`, one of `DATASETS`. Raises ValueError for any other name."""
    if name not in DATASETS:
        known = ", ".join(sorted(DATASETS))
        raise ValueError(f"unknown dataset {name!r}: the synthetic datasets that ship with hybridgen are {known}")
    return importlib.import_module(f"{__name__}.{name}")
