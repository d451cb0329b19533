"""Multiple choice: which of the choices a free answer picks, by its letter or its text, as MMMU's and lmms-eval's
parsers find it.

Unlike MMMU's, an answer that picks none is wrong and counted as unclear, where MMMU's draws a choice by chance; a
choice's text is found in short answers, too; and the words "A" and "I" are not taken for letters.
"""

import re
from collections.abc import Sequence
from string import ascii_uppercase

from hybridgen.evaluation.answers.exact import normalise

MOST_CHOICES = len(ascii_uppercase)
_WHOLE = re.compile(r"[\s*\"'(\[]*([A-Za-z])[\s*\"').\]:,]*")  # `B`, `(b).`
_BEFORE_TEXT = re.compile(r"[\s*\"'(\[]*([A-Za-z])[*)\].:]+\s")  # `B. a dog`
_LETTER = r"(?<![\w'’])([B-HJ-Z]|[AI](?!\s+[a-z]))(?![\w'’])"  # a capital that is a word, and neither article nor I
_SAID = re.compile(rf"(?i:\b(?:answer|option|choice|letter)(?:\s+is)?)[\s:*\"'(\[]*(?:{_LETTER}|([a-z])\W*$)")
_IN_BRACKETS = re.compile(r"[(\[]([A-Za-z])[)\]]")
_ALONE = re.compile(_LETTER)


def letters(choices: Sequence[str]) -> str:
    """The letters that stand for the choices."""
    return ascii_uppercase[: len(choices)]


def parse_choice(answer: str, choices: Sequence[str]) -> int | None:
    """The number of the choice that an answer picks; None where it is unclear.

    The first of these that is so: the answer is a choice's text; it is a letter, alone or before a text (`B`, `(b)`,
    `B. a dog`); it says `answer is B`, `option (B)`; it holds a letter in brackets; it holds a choice's text; it holds
    a capital letter as a word. Of several in one answer the last counts.
    """
    text, plain, known = answer.strip(), [normalise(choice) for choice in choices], letters(choices)
    if normalise(text) in plain:
        return plain.index(normalise(text))
    if (first := _WHOLE.fullmatch(text) or _BEFORE_TEXT.match(text)) and first[1].upper() in known:
        return known.index(first[1].upper())
    for pattern in (_SAID, _IN_BRACKETS):
        if (found := _last_letter(pattern, text, known)) is not None:
            return found
    found = _last_text(normalise(text), plain)
    return _last_letter(_ALONE, text, known) if found is None else found


def _last_letter(pattern: re.Pattern, text: str, known: str) -> int | None:
    found = [next(filter(None, match.groups())).upper() for match in pattern.finditer(text)]
    found = [letter for letter in found if letter in known]
    return known.index(found[-1]) if found else None


def _last_text(text: str, choices: list[str]) -> int | None:
    """The choice whose text stands last, as words of its own and not inside of a longer choice's."""
    found = [
        (match.end(), -match.start(), number)
        for number, choice in enumerate(choices)
        for match in re.finditer(rf"(?<!\w){re.escape(choice)}(?!\w)", text)
        if choice
    ]
    outermost = [
        (end, start, number)
        for end, start, number in found
        if not any(e >= end and s >= start and (e, s) != (end, start) for e, s, _ in found)
    ]
    return max(outermost)[2] if outermost else None
