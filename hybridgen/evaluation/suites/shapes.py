"""shapes: plain shapes on plain grounds in GenEval's six categories, drawn and asked about, exactly scored.

Source: `data.synthetic.shapes`, a world that the package draws itself; no data, no licence. The split `held_out`
combines anew what training shows apart: a shape and its colour, number, ground, neighbour, or where it is seen from.

The rule is GenEval's (`core.geneval`), and so is "overall", the mean of the six categories. What differs from GenEval:
the world, the scorer (no detector: the shape whose own rendering explains the pixels best), and that a prompt of
`single_object` names the ground as well, which must be right. "exact" counts pictures that show nothing besides.
"""

from hybridgen.core.geneval import TAGS
from hybridgen.evaluation.intervals import mean_of_shares
from hybridgen.evaluation.result import BASELINES, Result
from hybridgen.evaluation.synthetic import check_synthetic, evaluate_synthetic
from hybridgen.evaluation.work import Work

SPLIT = "held_out"
LABELS = {
    "single_object": "single object",
    "two_object": "two objects",
    "counting": "counting",
    "colors": "colours",
    "position": "position",
    "color_attr": "two colours",
    "pictures": "all pictures",
    "exact": "nothing besides",
    "overall": "overall (mean of the six)",
    "yes_no": "yes or no",
    "all": "all questions",
}
CREDIT = "The shapes are drawn by hybridgen."


def check(work: Work) -> None:
    check_synthetic(work, "shapes", SPLIT)


def run(work: Work) -> Result:
    result = evaluate_synthetic(work, "shapes", SPLIT, LABELS, CREDIT)
    for of_path in result.scores.get("generation", {}).values():
        of_path["scores"]["overall"] = overall(of_path["scores"])
    return result


def overall(scores: dict[str, dict]) -> dict:
    """The mean of the categories that there are, as GenEval takes it, and of what stands beside them."""
    six = [scores[tag] for tag in TAGS if tag in scores]
    beside = {name: [tally[name] for tally in six] for name in BASELINES if all(name in tally for tally in six)}
    return mean_of_shares(six) | {name: 100 * sum(shares) / len(six) for name, shares in beside.items()}
