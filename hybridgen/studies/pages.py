"""Report pages of a study and of scaling ladders: one HTML file each that needs no other, and the plots beside it.

What stands on a page stands in the JSON that it is made of; nothing is computed here. `assets/` lays it out.
"""

import re
from pathlib import Path

from hybridgen.core.files import write_whole
from hybridgen.evaluation import environment
from hybridgen.evaluation.report import render_page
from hybridgen.studies import plots
from hybridgen.studies.comparisons import loss_number, share_number

PAGE = "report.html"
_ASSETS = Path(__file__).parent / "assets"
REFERENCE_LAWS = (  # arXiv 2504.07951, table 1 (early fusion): other data and sizes, cross-entropy in nats of a token
    ("text", {"E": 2.222, "alpha": 0.3084, "beta": 0.3375, "size_exponent": 0.5246, "token_exponent": 0.4774}),
)


def write_study(out: Path, content: dict, curves: dict[str, dict]) -> Path:
    """The page of a study.

    Args:
        content: of study.json.
        curves: variant -> held-out number -> a curve (FLOPs, values) for each seed.
    """
    folder = out / "plots"
    questions = []
    for number, question in enumerate(content["questions"], start=1):
        charts = [
            plots.keep(plots.points(comparison), folder, f"{number}_{_slug(comparison['measure'])}")
            for comparison in question["comparisons"]
        ]
        charts += _learning(question, curves, folder, number)
        questions.append({**question, "charts": charts})
    html = render_page(
        "study.html.jinja",
        _ASSETS,
        title=content["title"],
        content=content,
        questions=questions,
        shown=_shown,
        **_foot(content),
    )
    write_whole(out / PAGE, html)
    return out / PAGE


def _learning(question: dict, curves: dict[str, dict], folder: Path, number: int) -> list:
    """Curves of the held-out losses that all arms have."""
    of_arms = {arm: curves.get(variant, {}) for arm, variant in question["arms"].items()}
    shared = set.intersection(*(set(of_arm) for of_arm in of_arms.values()))
    names = [name for name in sorted(shared) if re.fullmatch(r"validation/source/.+/(text|code|diffusion)", name)]
    drawn = []
    for name in names:
        title = name.removeprefix("validation/source/").replace("/", ": ") + " loss, held out"
        draw = plots.learning(title, {arm: of_arm[name] for arm, of_arm in of_arms.items()})
        drawn.append(plots.keep(draw, folder, f"{number}_curve_{_slug(name)}"))
    return drawn


def _shown(comparison: dict, value: float) -> str:
    return loss_number(value) if comparison["is_loss"] else share_number(value)


def write_scaling(out: Path, content: dict) -> Path:
    """The page of ladders; `content` of scaling.json."""
    folder, recipes = out / "plots", []
    for name, recipe in content["recipes"].items():
        laws = [
            {
                "loss": loss, "counts": counts,
                "reference": dict(REFERENCE_LAWS).get(loss),
                "chart": plots.keep(
                    plots.ladder(f"{name}: {loss} loss", counts[content["shown"]]), folder, _slug(f"{name}_{loss}")
                ),
            }
            for loss, counts in recipe["losses"].items()
        ]  # fmt: skip
        recipes.append({"name": name, "laws": laws, "not_fitted": recipe["not_fitted"], "runs": recipe["runs"]})
    html = render_page(
        "scaling.html.jinja", _ASSETS, title="Scaling laws", content=content, recipes=recipes, **_foot(content)
    )
    write_whole(out / PAGE, html)
    return out / PAGE


def _foot(content: dict) -> dict:
    """What all pages take."""
    facts = {
        "hardware": environment.describe(content["hardware"]),
        "versions": ", ".join(f"{name} {number}" for name, number in content["versions"].items()),
    }
    return {"facts": facts, "version": content["versions"]["hybridgen"], "credit": "", "side": 128}


def _slug(text: str) -> str:
    return re.sub(r"\W+", "_", text.lower()).strip("_")
