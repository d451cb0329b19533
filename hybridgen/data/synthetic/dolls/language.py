"""Words about the figures of the dolls dataset: captions (and the way back), questions and their exact answers.

No pixels here, and no free prose: `parse_caption` reads the captions that `caption` writes, with the parts in any
order. A caption names every part that is there and nothing else: "a man, black background" is a man with empty hands.
"""

import difflib
import re
from collections.abc import Callable
from functools import cache

import numpy as np

from hybridgen.data.synthetic.dolls.pictures import LAYER_SLOTS, DollSpec, backgrounds, draw_spec, layers
from hybridgen.data.synthetic.questions import Question

_WORN = ("body", "cloak", "head")  # the order in which a caption names them
_HELD = ("hand1", "hand2")
# kind -> slot, of things whose colour is asked for
_NAMED_COLOURS = {"robe": "body", "cloak": "cloak", "book": "hand2", "hood": "head", "wizard hat": "head"}
CATEGORIES = ("creature", "background", "worn", "head", "right_hand", "left_hand", "hands", "yes_no") + tuple(
    f"{kind.split()[-1]}_colour" for kind in _NAMED_COLOURS
)


def caption(spec: DollSpec) -> str:
    """Say what the picture shows, for example

    "a minotaur wearing a gray robe and a white wizard hat, holding a gold tower shield, black background"
    """
    return _say({slot: _phrase(spec, slot) for slot in LAYER_SLOTS}, spec.background)


def open_caption(spec: DollSpec, rng: np.random.Generator) -> str:
    """As `caption`, but one thing or more is left open: the background is not named, a thing is named by its kind ("a
    robe"), or the creature is "a figure". A part that is there is always named, as an unnamed one is not there.

    "a figure wearing a gray robe and a wizard hat, holding a gold tower shield"
    """
    names = {slot: _phrase(spec, slot) for slot in LAYER_SLOTS}
    by_kind = [slot for slot in LAYER_SLOTS if names[slot] != _kind(spec, slot)]
    background = None if rng.random() < 0.7 else spec.background
    if background is not None or rng.random() < 0.3:
        if not by_kind or rng.random() < 0.3:
            names["base"] = "figure"
        for slot in by_kind:
            if names["base"] != "figure" or rng.random() < 0.5:
                names[slot] = _kind(spec, slot)
    return _say(names, background)


def _say(names: dict[str, str | None], background: str | None) -> str:
    """A caption of what each slot holds and of the background, as far as it is named."""
    worn, held = (_join([_with_article(names[slot]) for slot in group if names[slot]]) for group in (_WORN, _HELD))
    figure = _with_article(names["base"]) + (f" wearing {worn}" if worn else "")
    known = [f"{background} background"] if background else []
    return ", ".join([figure] + ([f"holding {held}"] if held else []) + known)


def parse_caption(text: str) -> DollSpec:
    """Read a caption back: the inverse of `caption`. Case, order and missing articles do not matter.

    Raises ValueError that quotes the words which are not understood.
    """
    words = " ".join(text.lower().replace(".", " ").split())
    match = re.fullmatch(
        r"(?P<base>.+?)(?: wearing (?P<worn>.+?))?,? (?:holding (?P<held>.+?),? )?(?P<background>\S+) background", words
    )
    if match is None:
        raise ValueError(
            f'cannot read the caption {text!r}: say "a CREATURE wearing THINGS, holding THINGS, COLOUR background", '
            "the wearing and holding parts as needed"
        )
    if match["background"] not in backgrounds():
        raise ValueError(
            f"unknown background {match['background']!r} in {text!r}: it is one of {', '.join(backgrounds())}"
        )
    parts = dict.fromkeys(LAYER_SLOTS)
    for group, allowed in (("base", ("base",)), ("worn", _WORN), ("held", _HELD)):
        for item in re.split(r",? and |, ", match[group]) if match[group] else ():
            slot, index = _look_up(item, allowed, text)
            if parts[slot] is not None:
                raise ValueError(f"{item!r} in {text!r} is one {slot} too many: a figure has one of each")
            parts[slot] = index
    return DollSpec(**parts, background=match["background"])


def questions(spec: DollSpec, rng: np.random.Generator) -> list[Question]:
    """Every question with an exact answer about this figure; `rng` decides the yes/no question only.

    An empty slot answers "nothing". A thing is answered by its kind ("robe"); the colours of robe, cloak, book, hood
    and hat are questions of their own, asked when there is one.
    """
    applicable = [
        Question("creature", "what creature is this?", _phrase(spec, "base")),
        Question("background", "what colour is the background?", spec.background),
        Question("worn", "what is worn on the body?", _kind(spec, "body") or "nothing"),
        Question("head", "what is on the head?", _kind(spec, "head") or "nothing"),
        Question("right_hand", "what is in the right hand?", _kind(spec, "hand1") or "nothing"),
        Question("left_hand", "what is in the left hand?", _kind(spec, "hand2") or "nothing"),
        Question("hands", "how many hands hold something?", _how_many_hands(spec)),
        _yes_no(spec, rng),
    ]
    for kind, slot in _NAMED_COLOURS.items():
        if _kind(spec, slot) == kind:
            name = kind.split()[-1]
            applicable.append(
                Question(f"{name}_colour", f"what colour is the {name}?", layers()[slot][getattr(spec, slot)].colour)
            )
    return applicable


def reasoning(spec: DollSpec, question: Question) -> str:
    """What a yes-or-no answer follows from: what this figure has where the thing asked about would be, named as the
    question names things ("red robe" if a gray robe, "robe" if a cloak is asked about), "nothing" where it has nothing.
    Empty for all other questions.
    """
    if question.category != "yes_no":
        return ""
    thing = re.fullmatch(r"is there (?:an? )?(.+)\?", question.question)[1]
    slot, naming = _slots_and_namings()[thing]
    return naming(spec, slot) or "nothing"


def _yes_no(spec: DollSpec, rng: np.random.Generator) -> Question:
    """Yes or no with equal chance; a "no" names a part of another random figure, so the wording gives nothing away.

    The part is named as captions do ("a gray robe") or by its kind ("a robe"), with equal chance: kinds are fewer and
    are learnt first, and until then nothing in the phrases tells yes from no.
    """
    naming = (_phrase, _kind)[rng.integers(2)]
    truth = bool(rng.random() < 0.5)
    name = naming(spec, _some_part(spec, rng)) if truth else _absent_name(spec, naming, rng)
    return Question("yes_no", f"is there {_with_article(name)}?", "yes" if truth else "no")


def _some_part(spec: DollSpec, rng: np.random.Generator) -> str:
    present = [slot for slot in LAYER_SLOTS if getattr(spec, slot) is not None]
    return present[rng.integers(len(present))]


def _absent_name(spec: DollSpec, naming: Callable, rng: np.random.Generator) -> str:
    present = [f" {name(spec, slot)}" for slot in LAYER_SLOTS for name in (_phrase, _kind)]
    while True:
        other = draw_spec(rng)
        name = naming(other, _some_part(other, rng))
        # by its end: "is there a man?" has no plain answer about a bird man
        if not any(mine.endswith(f" {name}") for mine in present):
            return name


def _how_many_hands(spec: DollSpec) -> str:
    return ("zero", "one", "two")[sum(getattr(spec, slot) is not None for slot in _HELD)]


def _phrase(spec: DollSpec, slot: str) -> str | None:
    index = getattr(spec, slot)
    return None if index is None else layers()[slot][index].phrase


def _kind(spec: DollSpec, slot: str) -> str | None:
    index = getattr(spec, slot)
    return None if index is None else layers()[slot][index].kind


def _with_article(phrase: str) -> str:
    if phrase.split()[-1] in ("armour", "mail"):  # not countable
        return phrase
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def _join(items: list[str]) -> str:
    return " and ".join([", ".join(items[:-1])] * bool(items[:-1]) + items[-1:])


@cache
def _phrases() -> dict[str, tuple[str, int]]:
    return {layer.phrase: (slot, index) for slot in LAYER_SLOTS for index, layer in enumerate(layers()[slot])}


@cache
def _slots_and_namings() -> dict[str, tuple[str, Callable]]:
    """Each name that questions use: the slot it is in, and whether it is a phrase or a kind."""
    kinds = {layer.kind: (slot, _kind) for slot in LAYER_SLOTS for layer in layers()[slot]}
    return kinds | {phrase: (slot, _phrase) for phrase, (slot, _) in _phrases().items()}


def _look_up(item: str, allowed: tuple[str, ...], text: str) -> tuple[str, int]:
    phrase = re.sub(r"^(an?|the) ", "", item)
    slot, index = _phrases().get(phrase, (None, None))
    if slot not in allowed:
        names = [layer.phrase for name in allowed for layer in layers()[name]]
        near = difflib.get_close_matches(phrase, names, n=3, cutoff=0) + ([] if len(names) <= 3 else ["..."])
        raise ValueError(
            f"{item!r} in {text!r} is no {' or '.join(allowed)} that can be drawn: take one of {', '.join(near)}"
        )
    return slot, index
