"""CIDEr-D: how much a caption has in common with people's captions of the same picture (Vedantam et al., CVPR 2015).

Runs of one to four words are weighted by how rare they are among all pictures' captions, cut to as often as the
person's caption has them, and a length that differs costs; 10 would be a person's own words. Equal to pycocoevalcap's
`CiderScorer` on the same words. The words are not the same: that package takes Stanford's PTBTokenizer, a Java program,
and here they are found by a regular expression that does as it does with English captions (lower case, no punctuation,
`don't` is two words), so published values may differ in the last digits. Captions of one picture alone have no rare
words: all is 0.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

LONGEST = 4  # words of a run
SIGMA = 6.0  # words that a length may differ by
_SUFFIX = re.compile(r"(?:(n)(['’]t)|(['’](?:s|m|d|re|ve|ll)))$")


def words_of(caption: str) -> list[str]:
    """The words of a caption, about as PTBTokenizer finds them without punctuation."""
    words = []
    for word in re.findall(r"\w+(?:[-'’./]\w+)*", caption.lower()):
        if match := _SUFFIX.search(word):
            words += [word[: match.start()], match[0]] if word[: match.start()] else [word]
        else:
            words.append(word)
    return words


def cider(captions: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """(n,) the score of each caption against people's captions of its picture, 0 to 10; their mean is CIDEr-D.

    Raises:
        ValueError: the two differ in length.
    """
    runs = [(_runs(caption), [_runs(one) for one in of_picture])
            for caption, of_picture in zip(captions, references, strict=True)]  # fmt: skip
    pictures_with = Counter(run for _, people in runs for run in set().union(*people))
    pictures = math.log(max(len(runs), 1))
    rarity = {run: pictures - math.log(count) for run, count in pictures_with.items()}

    def weighted(counts: Counter) -> list[dict]:
        """For each length of a run: run -> how often times how rare."""
        vectors: list[dict] = [{} for _ in range(LONGEST)]
        for run, count in counts.items():
            vectors[len(run) - 1][run] = count * rarity.get(run, pictures)
        return vectors

    scores = []
    for caption, people in runs:
        given = weighted(caption)
        likeness = [_likeness(given, weighted(one), _length(caption) - _length(one)) for one in people]
        scores.append(10 * sum(likeness) / len(people))
    return np.array(scores)


def _runs(caption: str) -> Counter:
    words = words_of(caption)
    return Counter(
        tuple(words[i : i + length]) for length in range(1, LONGEST + 1) for i in range(len(words) - length + 1)
    )


def _length(runs: Counter) -> int:
    """As the reference counts it: the runs of two words."""
    return sum(count for run, count in runs.items() if len(run) == 2)


def _likeness(given: list[dict], person: list[dict], longer: int) -> float:
    """The mean over the lengths of runs of the clipped cosine, less for a length that differs."""
    total = 0.0
    for mine, theirs in zip(given, person, strict=True):
        norm = math.sqrt(sum(x * x for x in mine.values()) * sum(x * x for x in theirs.values()))
        shared = sum(min(x, theirs[run]) * theirs[run] for run, x in mine.items() if run in theirs)
        total += shared / norm if norm else shared
    return total / LONGEST * math.exp(-(longer**2) / (2 * SIGMA**2))
