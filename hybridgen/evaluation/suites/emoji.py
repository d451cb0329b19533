"""emoji: an emoji in the style of one of three fonts, told from all others by its pixels.

Source: `data.synthetic.emoji`: Twemoji (CC-BY 4.0), Noto Emoji (Apache 2.0) and Fluent Emoji (MIT). In the split
`combo`, training showed the emoji and the style, but not the two together. There is no reference harness.
"""

from hybridgen.evaluation.result import Result
from hybridgen.evaluation.synthetic import check_synthetic, evaluate_synthetic
from hybridgen.evaluation.work import Work

SPLIT = "combo"
LABELS = {"all": "all questions", "yes_no": "yes or no"}
CREDIT = "The emoji are Twemoji (CC-BY 4.0), Noto (Apache 2.0) and Fluent (MIT)."


def check(work: Work) -> None:
    check_synthetic(work, "emoji", SPLIT)


def run(work: Work) -> Result:
    return evaluate_synthetic(work, "emoji", SPLIT, LABELS, CREDIT)
