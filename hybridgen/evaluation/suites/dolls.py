"""dolls: pictures of a creature in clothes, whose seven parts a caption fixes and an exact scorer reads.

Source: `data.synthetic.dolls`, pixel art of Dungeon Crawl Stone Soup (CC0), put together by hybridgen. The split
`held_out` holds pairs of creature and clothes that never occur together in training. There is no reference harness.
"""

from hybridgen.evaluation.result import Result
from hybridgen.evaluation.synthetic import check_synthetic, evaluate_synthetic
from hybridgen.evaluation.work import Work

SPLIT = "held_out"
LABELS = {
    "base": "creature",
    "hand1": "right hand",
    "hand2": "left hand",
    "slots": "all parts",  # the seven parts of every picture, counted singly
    "all_seven": "whole pictures",  # pictures with all seven parts right
    "yes_no": "yes or no",
    "all": "all questions",
}
CREDIT = "The figures are pixel art of Dungeon Crawl Stone Soup, drawn by its artists, put together by hybridgen."


def check(work: Work) -> None:
    check_synthetic(work, "dolls", SPLIT)


def run(work: Work) -> Result:
    return evaluate_synthetic(work, "dolls", SPLIT, LABELS, CREDIT)
