"""Yes or no: accuracy, precision, recall and F1 of the yes, and how often yes was said (POPE, arXiv 2305.10355; MME).

A model that says yes to everything has a recall of 100 % and a yes-ratio of 100 %, which its accuracy does not show.
An answer that says neither is wrong, and is no yes. POPE's own script takes every answer without "no" or "not" as a
yes, and lmms-eval counts the yes of the true answers in its yes-ratio; here, as in the paper, it is that of the model.
English words only.
"""

import re
from collections.abc import Sequence

import numpy as np

from hybridgen.data.synthetic.questions import tally
from hybridgen.evaluation.intervals import bootstrap, with_interval

_YES, _NO = frozenset(("yes", "yeah", "yep")), frozenset(("no", "nope", "not"))


def parse_yes_no(answer: str) -> bool | None:
    """Yes, no, or None where an answer says neither or both.

    The first word counts if it is one of the two ("yes and no" is a yes), else whichever of them stands in the first
    sentence. Any "not" or "n't" is a no, as in POPE's script: "I don't know" is one, too.
    """
    sentence = re.split(r"[.!?\n]", answer.strip().lower())[0]
    words = re.findall(r"[a-z]+(?:['’]t)?", sentence)
    said = [word in _YES for word in words if word in _YES or word in _NO or word.endswith(("n't", "n’t"))]
    if words and words[0] in _YES | _NO:
        return said[0]
    return said[0] if len(set(said)) == 1 else None


def yes_no_scores(answers: Sequence[str], truth: Sequence[bool]) -> dict[str, dict]:
    """Tallies `accuracy`, `precision`, `recall`, `yes_ratio` and `unclear` (answers that say neither), and the value
    `f1`, each with its interval.

    Precision is of the answers that say yes, recall of the questions whose answer is yes; a share of none is 0.

    Raises:
        ValueError: the two differ in length.
    """
    said = [parse_yes_no(answer) for answer in answers]
    pairs = list(zip(said, map(bool, truth), strict=True))  # numpy's True is not True
    # true positives, false positives, false negatives of each question
    cells = np.array([[say is True and yes, say is True and not yes, say is not True and yes] for say, yes in pairs])
    hits, wrong, missed = (int(count) for count in cells.reshape(-1, 3).sum(0))
    shares = {
        "accuracy": (sum(say is yes for say, yes in pairs), len(pairs)),
        "precision": (hits, hits + wrong),
        "recall": (hits, hits + missed),
        "yes_ratio": (hits + wrong, len(pairs)),
        "unclear": (said.count(None), len(pairs)),
    }
    scores = {name: with_interval(tally(*counts)) for name, counts in shares.items()}
    return scores | {"f1": bootstrap(cells, _f1, unit="F1")}


def _f1(sums: np.ndarray) -> np.ndarray:
    """(R, 3) sums of true positives, false positives and false negatives -> (R,)."""
    hits, wrong, missed = sums.T
    return 2 * hits / np.maximum(2 * hits + wrong + missed, 1)
