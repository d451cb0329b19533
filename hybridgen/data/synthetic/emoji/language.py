"""Words about the pictures of the emoji dataset: captions (and the way back), questions and their exact answers.

No pixels here. Names are Unicode's, not everyday English ("face with rolling eyes", "A button (blood type)"), so the
article before them is a guess that reads well most of the time; `parse_caption` ignores it.
"""

import difflib
import re
from functools import cache

import numpy as np

from hybridgen.data.synthetic.emoji.pictures import STYLES, EmojiSpec, colour_is_plain, look_up, lookalikes, pictures
from hybridgen.data.synthetic.questions import Question

CATEGORIES = ("name", "group", "style", "yes_no", "main_colour", "translation")
LANGUAGES = {"de": "German", "fr": "French", "es": "Spanish", "ja": "Japanese", "zh": "Chinese", "ru": "Russian"}
MAX_TAGS = 4

_NO_ARTICLE = ("flags", "symbols")  # groups of proper names and signs
_AFTER_HEAD = ("with", "of", "in", "on", "from", "over", "and", "without", "behind")
_PLURALS = ("people", "men", "women", "feet", "mice")


def caption(spec: EmojiSpec) -> str:
    """Name and style: "a crown, 3d style"."""
    return f"{_with_article(spec.label)}, {spec.style} style"


def tagged_caption(spec: EmojiSpec, rng: np.random.Generator) -> str:
    """Name, up to `MAX_TAGS` of its tags, and style: "a crown (king, royal), 3d style". Tags help with unseen names."""
    return f"{_with_article(spec.label)} ({', '.join(_some_tags(spec, rng))}), {spec.style} style"


def tags_only_caption(spec: EmojiSpec, rng: np.random.Generator) -> str:
    """Up to `MAX_TAGS` tags and style: "king, royal, 3d style". Several emoji may answer to it: not for scores."""
    return f"{', '.join(_some_tags(spec, rng))}, {spec.style} style"


def open_caption(spec: EmojiSpec, rng: np.random.Generator) -> str:
    """The name, and the style unsaid: "a crown". Any style in which it is drawn is right."""
    return _with_article(spec.label)


def parse_caption(text: str) -> EmojiSpec:
    """Read back what `caption` or `tagged_caption` wrote; case and articles do not matter.

    Raises ValueError that quotes the words which are not understood.
    """
    words = " ".join(text.lower().split()).rstrip(".")
    match = re.fullmatch(rf"(?P<name>.+), (?P<style>{'|'.join(STYLES)}) style", words)
    if match is None:
        raise ValueError(
            f'cannot read the caption {text!r}: say "a NAME, STYLE style", with a style of {", ".join(STYLES)}'
        )
    name = match["name"]
    for candidate in (name, re.sub(r" \([^()]*\)$", "", name)):  # as it stands, or less the tags
        label = _labels().get(candidate) or _labels().get(_without_article(candidate))
        if label:
            return look_up(EmojiSpec(label, match["style"])).spec
    near = difflib.get_close_matches(_without_article(name), _labels(), n=3, cutoff=0)
    raise ValueError(f"{name!r} in {text!r} is no emoji's name: names like it are {', '.join(near)}")


def questions(spec: EmojiSpec, rng: np.random.Generator) -> list[Question]:
    """Every question with an exact answer about this picture; `rng` decides the yes/no question and the language.

    Not asked: the name of a picture with a lookalike, and the main colour where no colour covers 60 %.
    """
    picture = look_up(spec)
    applicable = [
        Question("group", "what kind of thing is this?", picture.group),
        Question("style", "in which style is it drawn?", spec.style),
    ]
    if spec not in lookalikes():
        language = list(LANGUAGES)[rng.integers(len(LANGUAGES))]
        applicable += [
            Question("name", "what is this?", spec.label),
            Question("translation", f"what is this in {LANGUAGES[language]}?", picture.names[language]),
            _yes_no(spec, rng),
        ]
    if colour_is_plain(spec):
        applicable.append(Question("main_colour", "what is the main colour?", picture.main_colour))
    return applicable


def reasoning(spec: EmojiSpec, question: Question) -> str:
    """What a yes-or-no answer follows from: the picture's name. Empty for all other questions."""
    return spec.label if question.category == "yes_no" else ""


def _yes_no(spec: EmojiSpec, rng: np.random.Generator) -> Question:
    """Yes or no with equal chance; a "no" names another emoji of the subgroup (of the group where it is alone)."""
    truth, label = bool(rng.random() < 0.5), spec.label
    if not truth:
        picture = look_up(spec)
        for section in ((picture.group, picture.subgroup), (picture.group,)):
            others = [name for name in _names_by_section()[section] if name != spec.label]
            if others:
                break
        label = others[rng.integers(len(others))]
    return Question("yes_no", f"is this {_with_article(label)}?", "yes" if truth else "no")


def _some_tags(spec: EmojiSpec, rng: np.random.Generator) -> list[str]:
    tags = look_up(spec).tags
    count = min(len(tags), int(rng.integers(1, MAX_TAGS + 1)))
    return [tags[i] for i in sorted(rng.choice(len(tags), count, replace=False))]


def _with_article(label: str) -> str:
    """An article where the name is countable, as far as its words tell: "a crown", "an eye", but "grapes"."""
    head = _head(label)
    plural = head in _PLURALS or (head.endswith("s") and not head.endswith(("ss", "us", "is")))
    if _groups_by_name()[label] in _NO_ARTICLE or not label[0].islower() or ":" in label or plural:
        return label
    vowel = label[0] in "aeiou" and not label.startswith(("one", "uni", "uk", "eu"))
    return f"{'an' if vowel else 'a'} {label}"


def _without_article(name: str) -> str:
    return re.sub(r"^(an?|the) ", "", name)


def _head(label: str) -> str:
    """What the name is about: the word before the first preposition or "-ing" ("face with rolling eyes" -> face)."""
    words = label.split()
    for i, word in enumerate(words[1:], start=1):
        if word in _AFTER_HEAD or word.endswith("ing"):
            return words[i - 1]
    return words[-1]


@cache
def _labels() -> dict[str, str]:
    return {spec.label.lower(): spec.label for spec in pictures()}


@cache
def _groups_by_name() -> dict[str, str]:
    return {spec.label: picture.group for spec, picture in pictures().items()}


@cache
def _names_by_section() -> dict[tuple[str, ...], list[str]]:
    """Names in each (group, subgroup) and each (group,), without repetition, in the order of the file."""
    names = {}
    for spec, picture in pictures().items():
        for section in ((picture.group, picture.subgroup), (picture.group,)):
            names.setdefault(section, {})[spec.label] = None
    return {section: list(labels) for section, labels in names.items()}
