"""Worlds: data that ships with the package, so that everything works offline, with exact scores for what a model draws and answers.

For training and evaluation on known ground; not the way to feed data of your own (that is `hybridgen.data.sources`). What newcomers
get wrong: a record is computed from its index, not read from a list, so `source[i]` is the same whoever asks and in whatever order.

Every world is a module with the same names:

    SIZE, SPLITS, TASKS, CATEGORIES                 picture side in pixels; names that the functions below accept and return
    Source(split, task, seed)                       indexable, endless: `source[i]` is a chat record, `source.picture(i)` a picture
    caption, questions                              words about one spec
    score_pictures(images, specs)                   exact scores of drawn pictures, as {name: {"right", "n", "share"}}
    score_answers(given, asked)                     exact match, in the same form
    majority_baselines(n, seed, split)              what a constant answer would score, to be printed beside
"""

import importlib
from types import ModuleType

_MODULES = {"dolls": "hybridgen.data.worlds.dolls", "emoji": "hybridgen.data.worlds.emoji"}


def open_world(name: str) -> ModuleType:
    """Return the module of the world `name`, "dolls" or "emoji"; any other name raises ValueError."""
    if name not in _MODULES:
        raise ValueError(f"unknown world {name!r}: the worlds that ship with hybridgen are {', '.join(sorted(_MODULES))}")
    return importlib.import_module(_MODULES[name])
