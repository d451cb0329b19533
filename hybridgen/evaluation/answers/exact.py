"""Texts compared letter by letter: exact match, and ANLS, which forgives a few wrong letters.

Exact match is after `normalise`: lower case, single spaces, no period at the end, accents in one spelling of Unicode.
ANLS (average normalised Levenshtein similarity; Biten et al., ICCV 2019; DocVQA, ST-VQA) is 1 less the share of letters
that must be changed, and 0 below 0.5. At 0.5 exactly the paper's formula says 0 and the official script 0.5: here it is
the script's. It counts letters after spaces are made single, the script before.
"""

import unicodedata
from collections.abc import Sequence

from hybridgen.core.edits import edit_distance
from hybridgen.data.synthetic.questions import normalise_answer

ANLS_THRESHOLD = 0.5


def normalise(text: str) -> str:
    """The form in which answers are compared."""
    return normalise_answer(unicodedata.normalize("NFC", text))


def exact_match(answer: str, accepted: Sequence[str]) -> bool:
    """Whether an answer is one of those accepted."""
    return normalise(answer) in map(normalise, accepted)


def anls(answer: str, accepted: Sequence[str]) -> float:
    """Likeness to the most similar of the accepted answers, 0 to 1."""
    given = _letters(answer)
    return max(_likeness(given, _letters(wanted)) for wanted in accepted)


def _letters(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).lower().split())


def _likeness(one: str, other: str) -> float:
    longest = max(len(one), len(other))
    likeness = 1.0 if longest == 0 else 1 - edit_distance(one, other) / longest
    return likeness if likeness >= ANLS_THRESHOLD else 0.0
