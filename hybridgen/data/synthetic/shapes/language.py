"""Words about the scenes of the shapes dataset: captions (and the way back), questions and their exact answers.

Captions have GenEval's wording ("a red circle left of a star", "three stars"), with the background after a comma where
it is named. What a caption does not say is open: "a circle and a star" may have any colours and places.
"""

import difflib
import re

import numpy as np

from hybridgen.core.geneval import COLOURS, OPPOSITE, RELATIONS, relations
from hybridgen.data.synthetic.questions import Question
from hybridgen.data.synthetic.shapes.pictures import BACKGROUNDS, SHAPES, ShapesSpec, Thing, box_of

CATEGORIES = ("shape", "colour", "number", "position", "relation", "background", "yes_no")
NUMBERS = ("zero", "one", "two", "three", "four")
OBJECT = "object"  # a thing whose shape is left open

_PLURALS = {name: f"{name}es" if name.endswith("s") else f"{name}s" for name in (*SHAPES, OBJECT)}


# ---- captions


def caption(spec: ShapesSpec) -> str:
    """Say all that a spec says, but for places and sizes, for example

    "a blue square left of a green star, black background", "three red circles, white background"
    """
    if spec.tag == "counting" and len({thing[:2] for thing in spec.things}) == 1:
        first = spec.things[0]
        words = _noun_phrase(first.shape, first.colour, len(spec.things))
    else:
        phrases = [_with_article(_noun_phrase(thing.shape, thing.colour)) for thing in spec.things]
        words = f" {spec.relation or 'and'} ".join(phrases) or "nothing"  # what a scorer may find
    return words + (f", {spec.background} background" if spec.background else "")


def prompt(spec: ShapesSpec) -> ShapesSpec:
    """What the prompt of a scene's category asks for, as GenEval's does; all else is left open.

    single_object  "a circle, gray background" (GenEval names no background; here it is what can be new about a circle)
    two_object     "a circle and a star"
    counting       "three circles"
    colors         "a red circle"
    position       "a circle left of a star"
    color_attr     "a red circle and a blue star"
    """
    coloured = spec.tag in ("colors", "color_attr")
    things = tuple(Thing(thing.shape, thing.colour if coloured else None) for thing in spec.things)
    return ShapesSpec(spec.tag, things, spec.relation, spec.background if spec.tag == "single_object" else None)


def unplaced(spec: ShapesSpec) -> ShapesSpec:
    """A scene without its places and sizes: what its full caption says."""
    return spec._replace(things=tuple(Thing(thing.shape, thing.colour) for thing in spec.things))


def open_caption(spec: ShapesSpec, rng: np.random.Generator) -> str:
    """As `caption`, but something is left open: "two objects", "a red object", "a star and a blue circle"."""
    everything = unplaced(spec)
    while True:
        opened = _open(everything, rng)
        if opened != everything:
            return caption(opened)


def _open(spec: ShapesSpec, rng: np.random.Generator) -> ShapesSpec:
    background = spec.background if rng.random() < 0.15 else None
    kept = [[rng.random() < 0.5, rng.random() < 0.35] for _ in spec.things]  # shape, colour
    if spec.tag == "counting":
        kept = kept[:1] * len(spec.things)
    things = tuple(
        Thing(thing.shape if shape else None, thing.colour if colour else None)
        for thing, (shape, colour) in zip(spec.things, kept, strict=True)
    )
    relation = spec.relation if rng.random() < 0.6 else None
    if len(things) == 2 and relation is None and things == (Thing(None, None),) * 2:
        return ShapesSpec("counting", things, None, background)  # "two objects"
    if relation and things[0] == things[1]:  # "an object left of an object" says nothing: an object has a name then
        things = (spec.things[0], things[1])
    tag = spec.tag if relation or spec.tag != "position" else "two_object"
    return ShapesSpec(tag, things, relation, background)


def parse_caption(text: str) -> ShapesSpec:
    """Read a caption back: what it says, and None for what it leaves open (places always). Case does not matter.

    Raises ValueError that quotes the words which are not understood.
    """
    words = " ".join(text.lower().replace(".", " ").split()).removeprefix("a photo of ")
    words, _, background = words.partition(", ")
    if background:
        name = background.removesuffix(" background")
        if name == background or name not in BACKGROUNDS:
            raise ValueError(
                f"{background!r} in {text!r} is no background: say one of "
                + ", ".join(f"{known} background" for known in BACKGROUNDS)
            )
    background = name if background else None
    match = re.fullmatch(rf"(.+?) ({'|'.join((*RELATIONS, 'and'))}) (.+)", words)
    if match is None:
        return _read_one(words, background, text)
    things = tuple(_read_thing(phrase, text) for phrase in (match[1], match[3]))
    if match[2] != "and":
        return ShapesSpec("position", things, match[2], background)
    coloured = any(thing.colour for thing in things)
    return ShapesSpec("color_attr" if coloured else "two_object", things, None, background)


def _read_one(words: str, background: str | None, text: str) -> ShapesSpec:
    number = words.split(" ", 1)[0]
    if number in NUMBERS[1:]:
        thing = _read_noun(words.removeprefix(number).strip(), text, plural=number != "one")
        return ShapesSpec("counting", (thing,) * NUMBERS.index(number), None, background)
    thing = _read_thing(words, text)
    return ShapesSpec("colors" if thing.colour else "single_object", (thing,), None, background)


def _read_thing(phrase: str, text: str) -> Thing:
    match = re.fullmatch(r"(?:an?|the) (.+)", phrase)
    if match is None:
        raise ValueError(
            f'cannot read {phrase!r} in the caption {text!r}: say "a COLOUR SHAPE", "a COLOUR SHAPE left of a COLOUR '
            f'SHAPE" or "{" or ".join(NUMBERS[1:])} COLOUR SHAPES", colours as needed'
        )
    return _read_noun(match[1], text)


def _read_noun(noun: str, text: str, plural: bool = False) -> Thing:
    colour, _, name = noun.rpartition(" ")
    names = {_PLURALS[known] if plural else known: known for known in _PLURALS}
    if name not in names:
        near = ", ".join(difflib.get_close_matches(name, names, n=3, cutoff=0))
        raise ValueError(f"{name!r} in {text!r} is no shape that can be drawn: take one of {near}, ...")
    if colour and colour not in COLOURS:
        raise ValueError(f"{colour!r} in {text!r} is no colour that can be drawn: take one of {', '.join(COLOURS)}")
    return Thing(None if names[name] == OBJECT else names[name], colour or None)


def _noun_phrase(shape: str | None, colour: str | None, count: int | None = None) -> str:
    """ "red circle"; with a count "three red circles"."""
    noun = shape or OBJECT
    words = [NUMBERS[count] if count else None, colour, _PLURALS[noun] if count and count > 1 else noun]
    return " ".join(word for word in words if word)


def _with_article(phrase: str) -> str:
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


# ---- questions


def questions(spec: ShapesSpec, rng: np.random.Generator) -> list[Question]:
    """Questions with an exact answer about this scene; `rng` decides which thing is asked about, and yes or no.

    Not asked: the place of things that are on a diagonal, and the shape "of the red object" where two are red.
    """
    things = spec.things
    thing = things[rng.integers(len(things))]
    asked = [
        _number(spec, rng),
        Question("background", "what colour is the background?", spec.background),
        _yes_no(spec, rng),
    ]
    if spec.tag == "counting" and len(things) > 1:
        plural = _PLURALS[thing.shape]
        asked.append(Question("shape", "what shape are the objects?", thing.shape))
        asked.append(Question("colour", f"what colour are the {plural}?", thing.colour))
        return asked
    asked.append(Question("colour", f"what colour is the {thing.shape}?", thing.colour))
    if sum(other.colour == thing.colour for other in things) == 1:
        asked.append(Question("shape", f"what shape is the {thing.colour} object?", thing.shape))
    if len(things) == 2 and (held := _relation(spec)):
        first, second = things
        side = held if rng.random() < 0.75 else OPPOSITE[held]
        answer = first.shape if side == held else "nothing"
        asked.append(Question("position", f"what is {side} the {second.shape}?", answer))
        asked.append(Question("relation", f"where is the {first.shape}, seen from the {second.shape}?", held))
    return asked


def reasoning(spec: ShapesSpec, question: Question) -> str:
    """What a yes-or-no answer follows from: what there is in place of what the question names, named as it does.

    Of a place ("is the circle left of the star?") the true one, of a number ("are there three circles?") the true
    number, and else what all things are: their shapes ("is there a circle?"), their colours ("a red object?") or both.
    So the answer is yes where the thought holds the words asked about. Empty for all other questions.
    """
    if question.category != "yes_no":
        return ""
    if question.question.startswith("are there"):
        return NUMBERS[len(spec.things)]
    place = re.fullmatch(rf"is the (\w+) ({'|'.join(RELATIONS)}) the (\w+)\?", question.question)
    if place:
        held = _relation(spec)
        return held if place[1] == spec.things[0].shape else OPPOSITE[held]
    named = re.fullmatch(r"is there an? (.+)\?", question.question)[1].split()
    shape, colour = named[-1] != OBJECT, len(named) == 2
    things = [_noun_phrase(thing.shape if shape else None, thing.colour if colour else None) for thing in spec.things]
    return ", ".join(dict.fromkeys(things))


def _relation(spec: ShapesSpec) -> str | None:
    """Where the first of two things is, seen from the second, where that is one of the four relations alone."""
    held = relations(box_of(spec.things[0]), box_of(spec.things[1]))
    return next(iter(held)) if len(held) == 1 else None


def _number(spec: ShapesSpec, rng: np.random.Generator) -> Question:
    """How many there are: of all things, of a shape that is there, or now and then of one that is not."""
    chance = rng.random()
    if chance < 0.4:
        return Question("number", "how many objects are there?", NUMBERS[len(spec.things)])
    absent = [shape for shape in SHAPES if all(shape != thing.shape for thing in spec.things)]
    among = absent if chance > 0.85 else [thing.shape for thing in spec.things]
    shape = among[rng.integers(len(among))]
    count = sum(thing.shape == shape for thing in spec.things)
    return Question("number", f"how many {_PLURALS[shape]} are there?", NUMBERS[count])


def _yes_no(spec: ShapesSpec, rng: np.random.Generator) -> Question:
    """Yes or no with equal chance: about a thing, a place or a number; a "no" differs in one word from a "yes"."""
    truth = bool(rng.random() < 0.5)
    answer = "yes" if truth else "no"
    held = _relation(spec) if len(spec.things) == 2 and spec.tag != "counting" else None
    chance = rng.random()
    if held and chance < 0.4:
        first, second = spec.things if rng.random() < 0.5 else spec.things[::-1]
        mine = held if first == spec.things[0] else OPPOSITE[held]
        side = mine if truth else _other(rng, RELATIONS, {mine})
        return Question("yes_no", f"is the {first.shape} {side} the {second.shape}?", answer)
    if spec.tag == "counting" and len(spec.things) > 1 and chance < 0.5:
        count = len(spec.things)
        number = NUMBERS[count] if truth else _other(rng, NUMBERS[2:], {NUMBERS[count]})
        return Question("yes_no", f"are there {number} {_PLURALS[spec.things[0].shape]}?", answer)
    thing = spec.things[rng.integers(len(spec.things))]
    shape, colour = thing.shape, thing.colour
    naming = rng.integers(3)  # "a circle", "a red object", "a red circle"
    if not truth:
        shapes, colours = {other.shape for other in spec.things}, {other.colour for other in spec.things}
        if naming == 2 and len(shapes) == len(colours) == 2 and rng.random() < 0.4:
            colour = min(colours - {colour})  # both are there, but not together
        elif naming == 0 or (naming == 2 and rng.random() < 0.5):
            shape = _other(rng, SHAPES, shapes)
        else:
            colour = _other(rng, COLOURS, colours)
    phrase = _noun_phrase(shape if naming != 1 else None, colour if naming != 0 else None)
    return Question("yes_no", f"is there {_with_article(phrase)}?", answer)


def _other(rng: np.random.Generator, names: tuple[str, ...], but: set[str]) -> str:
    others = [name for name in names if name not in but]
    return others[rng.integers(len(others))]
