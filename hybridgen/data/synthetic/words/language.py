"""What is said about the pictures of the words dataset: captions (and the way back), questions and their exact answers.

Words are spelled, `"a p p l e"`: so every letter is a token of its own, whatever the tokenizer has made of common
words, and a model can write a word that it has never met. `parse_caption` also reads `"apple"`. No pixels here.
"""

import re

import numpy as np

from hybridgen.data.synthetic.questions import Question, Tally
from hybridgen.data.synthetic.questions import score_answers as score_exactly
from hybridgen.data.synthetic.words.pictures import (
    ALPHABET,
    COLOURS,
    DARK,
    FAMILIES,
    MAX_LETTERS,
    MAX_LINES,
    STYLES,
    WordsSpec,
    draw_spec,
    similar_word,
)

CATEGORIES = (
    "text", "word_count", "letter_count", "first_letter", "last_letter", "style", "family", "ink", "paper", "yes_no",
)  # fmt: skip
SPELLED = ("text",)  # the categories whose answers are words: right whether they are spelled or not
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight")
_ORDINALS = ("first", "second", "third")
_CAPTION = re.compile(
    r'(?:the )?words? (?P<lines>"[^"]*"(?:(?:, and|,| and) "[^"]*")*)'
    r"(?: in (?P<font>[^,]+?))?(?:,(?: (?!on )(?P<ink>\w+))?)?(?: on (?P<paper>\w+))?"
)


def spell(word: str) -> str:
    """A word letter by letter: "apple" -> "a p p l e"."""
    return " ".join(word)


def caption(spec: WordsSpec) -> str:
    """Say what the picture shows: `the word "a p p l e" in bold serif, blue on white`.

    What the spec leaves open (None) is not said: `the word "a p p l e" in serif, on white`.
    """
    quoted = [f'"{spell(line)}"' for line in spec.lines]
    words = f"the word{'s' * (len(quoted) > 1)} {_join(quoted)}"
    font = " ".join(name for name in (spec.style, spec.family) if name)
    colours = " ".join(part for part in (spec.ink, spec.paper and f"on {spec.paper}") if part)
    return words + (f" in {font}" if font else "") + (f", {colours}" if colours else "")


def open_caption(spec: WordsSpec, rng: np.random.Generator) -> str:
    """As `caption`, but one or more of family, style, ink and paper are left open: `the word "a p p l e", blue`."""
    return caption(leave_open(spec, rng))


def leave_open(spec: WordsSpec, rng: np.random.Generator) -> WordsSpec:
    """The spec without one or more of family, style, ink and paper; half of the time both of a pair go together."""
    pairs = [("family", "style"), ("ink", "paper")]
    if rng.random() < 0.5:
        chosen = [pairs[rng.integers(2)], sum(pairs, ())][rng.integers(2)]
    else:
        names = sum(pairs, ())
        chosen = [name for name, out in zip(names, rng.random(4) < 0.5, strict=True) if out] or [names[rng.integers(4)]]
    return spec._replace(**dict.fromkeys(chosen))


def parse_caption(text: str) -> WordsSpec:
    """Read a caption back: the inverse of `caption`, also of one that leaves something open, which is None then.

    Words may be spelled ("a p p l e") or not ("apple"). Raises ValueError that quotes what is not understood.
    """
    plain = " ".join(text.lower().replace(".", " ").split())
    match = _CAPTION.fullmatch(plain)
    if match is None:
        raise ValueError(
            f"cannot read the caption {text!r}: say "
            'the word "a p p l e" in STYLE FAMILY, COLOUR on COLOUR (words in quotes; font and colours as needed)'
        )
    lines = tuple("".join(line.split()) for line in re.findall(r'"([^"]*)"', match["lines"]))
    if len(lines) > MAX_LINES:
        raise ValueError(f"{len(lines)} words in {text!r} are too many: a picture has at most {MAX_LINES}, one a line")
    for line in lines:
        if not 1 <= len(line) <= MAX_LETTERS or not set(line) <= set(ALPHABET):
            raise ValueError(f"{line!r} in {text!r} cannot be drawn: a word has 1 to {MAX_LETTERS} letters a to z")
    return WordsSpec(
        lines, *_parse_font(match["font"] or "", text), *_parse_colours(match["ink"], match["paper"], text)
    )


def _parse_font(words: str, text: str) -> tuple[str | None, str | None]:
    """ "bold serif", in any order -> family and style, None what is not named."""
    font = {"family": None, "style": None}
    for name in words.split():
        what = "style" if name in STYLES else "family" if name in FAMILIES else None
        if what is None or font[what] is not None:
            fault = "no font" if what is None else f"a second {what}"
            known = f"one of {', '.join(STYLES)} and one of {', '.join(FAMILIES)}"
            raise ValueError(f"{name!r} in {text!r} is {fault}: say {known}")
        font[what] = name
    return font["family"], font["style"]


def _parse_colours(ink: str | None, paper: str | None, text: str) -> tuple[str | None, str | None]:
    for name in (ink, paper):
        if name is not None and name not in COLOURS:
            raise ValueError(f"unknown colour {name!r} in {text!r}: it is one of {', '.join(COLOURS)}")
    if ink and paper and (ink in DARK) == (paper in DARK):
        raise ValueError(f"{ink} on {paper} in {text!r} cannot be read: take a dark and a light colour")
    return ink, paper


def questions(spec: WordsSpec, rng: np.random.Generator) -> list[Question]:
    """Every question with an exact answer about this picture; `rng` decides the yes-or-no question only.

    Of several words each is asked for by its place; letters are counted and named of a lone word.
    """
    applicable = [
        Question("word_count", "how many words are there?", _NUMBERS[len(spec.lines)]),
        Question("style", "is it plain, bold or italic?", spec.style),
        Question("family", "is it sans, serif, mono or roman?", spec.family),
        Question("ink", "what colour is the ink?", spec.ink),
        Question("paper", "what colour is the paper?", spec.paper),
        _yes_no(spec, rng),
    ]
    if len(spec.lines) == 1:
        (word,) = spec.lines
        return [
            Question("text", "what is written?", spell(word)),
            Question("letter_count", "how many letters are there?", _NUMBERS[len(word)]),
            Question("first_letter", "what is the first letter?", word[0]),
            Question("last_letter", "what is the last letter?", word[-1]),
            *applicable,
        ]
    asked = [
        Question("text", f"what is the {ordinal} word?", spell(word))
        for ordinal, word in zip(_ORDINALS, spec.lines, strict=False)
    ]
    return asked + applicable


def reasoning(spec: WordsSpec, question: Question) -> str:
    """What a yes or no follows from: all that is written, spelled. Empty for all other questions."""
    return ", ".join(map(spell, spec.lines)) if question.category == "yes_no" else ""


def score_answers(answers: list[str], questions: list[Question]) -> dict[str, Tally]:
    """Exact match, as the other datasets' `score_answers`; a word is right whether it is spelled or not, and so is one
    that is asked for."""

    def spelled(text: str, number: int) -> str:
        is_word = number < len(questions) and questions[number].category in SPELLED
        return spell(re.sub(r'[\s".]', "", text)) if is_word else text

    read = [spelled(answer, number) for number, answer in enumerate(answers)]
    wanted = [one._replace(answer=spelled(one.answer, number)) for number, one in enumerate(questions)]
    return score_exactly(read, wanted)


def _join(items: list[str]) -> str:
    return " and ".join([", ".join(items[:-1])] * bool(items[:-1]) + items[-1:])


def _yes_no(spec: WordsSpec, rng: np.random.Generator) -> Question:
    """Yes or no with equal chance: does it say a word, or is there a letter? The wording gives nothing away: a wrong
    word is of the same kind and length as the right one, and letters are asked for as often as they occur."""
    truth = bool(rng.random() < 0.5)
    if rng.random() < 0.5:
        word = spec.lines[rng.integers(len(spec.lines))]
        while not truth and word in spec.lines:
            word = similar_word(word, rng)
        return Question("yes_no", f'does it say "{spell(word)}"?', "yes" if truth else "no")
    written = asked = "".join(spec.lines)
    letter = asked[rng.integers(len(asked))]
    while not truth and letter in written:
        asked = draw_spec(rng).lines[0]
        letter = asked[rng.integers(len(asked))]
    return Question("yes_no", f'is there the letter "{letter}"?', "yes" if truth else "no")
