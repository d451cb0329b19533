"""Yes or no: accuracy, precision, recall and F1 of the yes, and how often yes was said (POPE, arXiv 2305.10355; MME).

A model that says yes to everything has a recall of 100 % and a yes-ratio of 100 %, which its accuracy does not show.
An answer that says neither, "I don't know" among them, is wrong, and neither a yes nor a no. POPE's own script takes
every answer without "no" or "not" as a yes, and all others as a no, "I don't know" too; lmms-eval counts the yes of the
true answers in its yes-ratio; here, as in the paper, it is that of the model. English words only.
"""

import re
from collections.abc import Hashable, Sequence

import numpy as np

from hybridgen.data.synthetic.questions import tally
from hybridgen.evaluation.intervals import bootstrap, score_by_groups

_YES, _NO = frozenset(("yes", "yeah", "yep")), frozenset(("no", "nope", "not"))
_NOT = r"(?: not|n['’]t)"
_DOUBT = re.compile(  # what says that one does not know, with a "no" or "not" in it that answers nothing
    rf"\b(?:do|did|does){_NOT} (?:\w+ )?know\b"
    rf"|(?:\bnot|n['’]t) (?:\w+ )?(?:sure|certain)\b"
    rf"|\b(?:can|could)(?:not| not|n?['’]t) (?:\w+ )?(?:tell|say|know|determine|judge|decide|be sure|be certain)\b"
    rf"|(?:\bnot|n['’]t) (?:able|possible) to (?:tell|say|know|determine|judge|decide)\b"
    rf"|(?:\bnot|n['’]t) clear (?:if|whether|from)\b"
    rf"|(?:\bnot|n['’]t) enough (?:information|detail|context)\b"
    rf"|\bno (?:idea|clue|way to (?:tell|say|know)|way of (?:telling|knowing))\b"
)


def parse_yes_no(answer: str) -> bool | None:
    """Yes, no, or None where an answer says neither or both.

    The first word counts if it is one of the two ("yes and no" is a yes), else whichever of them stands in the first
    sentence. Any "not" or "n't" is a no, as in POPE's script, unless it says that one does not know ("I don't know",
    "not sure", "no idea", "I can't tell"): such words say nothing, and what else stands there counts.
    """
    sentence = _DOUBT.sub(" ", re.split(r"[.!?\n]", answer.strip().lower())[0])
    words = re.findall(r"[a-z]+(?:['’]t)?", sentence)
    said = [word in _YES for word in words if word in _YES or word in _NO or word.endswith(("n't", "n’t"))]
    if words and words[0] in _YES | _NO:
        return said[0]
    return said[0] if len(set(said)) == 1 else None


def yes_no_scores(
    answers: Sequence[str], truth: Sequence[bool], groups: Sequence[Hashable] | None = None
) -> dict[str, dict]:
    """Tallies `accuracy`, `precision`, `recall`, `yes_ratio` and `unclear` (answers that say neither), and the value
    `f1`, each with its interval.

    Args:
        groups: of each question, such as its picture: those of one are not independent. None = each stands alone.

    Precision is of the answers that say yes, recall of the questions whose answer is yes; a share of none is 0.

    Raises:
        ValueError: the two differ in length.
    """
    said = [parse_yes_no(answer) for answer in answers]
    pairs = list(zip(said, map(bool, truth), strict=True))  # numpy's True is not True
    groups = range(len(pairs)) if groups is None else groups
    # true positives, false positives, false negatives of each question
    cells = np.array([[say is True and yes, say is True and not yes, say is not True and yes] for say, yes in pairs])

    def of_some(places: list[int]) -> dict[str, dict]:
        hits, wrong, missed = (int(count) for count in cells.reshape(-1, 3)[places].sum(0))
        some = [pairs[i] for i in places]
        return {
            "accuracy": tally(sum(say is yes for say, yes in some), len(some)),
            "precision": tally(hits, hits + wrong),
            "recall": tally(hits, hits + missed),
            "yes_ratio": tally(hits + wrong, len(some)),
            "unclear": tally(sum(say is None for say, _ in some), len(some)),
        }

    return score_by_groups(of_some, groups) | {"f1": bootstrap(cells, _f1, unit="F1", groups=groups)}


def _f1(sums: np.ndarray) -> np.ndarray:
    """(R, 3) sums of true positives, false positives and false negatives -> (R,)."""
    hits, wrong, missed = sums.T
    return 2 * hits / np.maximum(2 * hits + wrong + missed, 1)
