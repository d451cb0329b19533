"""One self-contained HTML page that shows what a pipeline drew, answered and scored. Nothing on it is fetched.

The content is put together here; `assets/report.html.jinja` lays it out and escapes it. Nothing is scored or chosen:
the page shows the first held-out prompts and pictures as they come, and every picture that was scored is on it.
"""

import base64
import io
from dataclasses import dataclass, field
from pathlib import Path

import jinja2
from markupsafe import Markup
from PIL import Image

from hybridgen.core.figures import Panel, panel_svg
from hybridgen.evaluation import environment, generation
from hybridgen.evaluation.suites import Evaluation

_ASSETS = Path(__file__).parent / "assets"


@dataclass(frozen=True)
class Target:
    """A score to reach: `scores[task][path]["scores"][category]["share"]` at least `share`."""

    label: str
    task: str  # "generation", "understanding" or "conversation"
    path: str
    category: str
    share: float

    def tally(self, scores: dict) -> dict | None:
        """The tally that it is about; None where that was not evaluated."""
        return scores.get(self.task, {}).get(self.path, {}).get("scores", {}).get(self.category)


@dataclass
class ReportContent:
    """What a report tells besides an evaluation; plain text throughout.

    Args:
        title, summary: heading and the paragraph under it.
        command: what one types to have it again.
        targets: scores to reach, shown first.
        panels: curves of each stage of the training.
        facts: what stands at the foot, by name.
        stage_seconds: how long each stage took, by name.
        denoising_frames: how one picture comes about, for each path.
        credit: whose pictures these are.
        examples: how many prompts are shown large; half as many pictures are shown with their questions.
    """

    title: str
    summary: str
    command: str
    targets: list[Target] = field(default_factory=list)
    panels: dict[str, list[Panel]] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)
    stage_seconds: dict[str, float] = field(default_factory=dict)
    denoising_frames: dict[str, list[Image.Image]] = field(default_factory=dict)
    credit: str = ""
    examples: int = 12


def render(evaluation: Evaluation, content: ReportContent) -> str:
    """The whole page."""
    scores, half = evaluation.scores, max(1, content.examples // 2)
    tallies = [(target, target.tally(scores)) for target in content.targets]
    return _templates().get_template("report.html.jinja").render(
        evaluation=evaluation,
        content=content,
        style=Markup((_ASSETS / "report.css").read_text(encoding="utf-8")),
        side=max(1, 128 // evaluation.dataset.SIZE - 1) * evaluation.dataset.SIZE,  # whole screen pixels each
        half=half,
        targets=[(target, tally) for target, tally in tallies if tally is not None],
        wrong={path: _wrong(evaluation, images) for path, images in evaluation.drawings.items()},
        quiz=_quiz(evaluation, half),
        tables=_tables(evaluation),
        charts={stage: [Markup(panel_svg(panel)) for panel in panels] for stage, panels in content.panels.items()},
        facts=_facts(scores, content),
    )  # fmt: skip


def _templates() -> jinja2.Environment:
    """Templates of `assets/`: what they are handed is escaped, unless it is `Markup`; an unknown name is an error."""
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_ASSETS),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters |= {"data_url": data_url, "percent": percent}
    return templates


# ------------------------------------------------------------------------------------------------------- content


def _wrong(evaluation: Evaluation, images: list[Image.Image]) -> list[str]:
    """Picture by picture, what is not as asked, in words."""
    wrong = generation.wrong_categories(evaluation.dataset, images, evaluation.prompts.specs)
    return [", ".join(evaluation.suite.label(category) for category in categories) for categories in wrong]


def _quiz(evaluation: Evaluation, pictures: int) -> list[tuple[Image.Image, list]]:
    """The first pictures, each with its questions and the answers to them: (path, text, right). A single answer, with
    no path, where all paths say the same."""
    if not evaluation.answers:
        return []
    quiz = []
    for picture, places in evaluation.quiz.by_picture()[:pictures]:
        lines = []
        for place in places:
            question = evaluation.quiz.questions[place]
            by_path = {path: answers[place] for path, answers in evaluation.answers.items()}
            if len(set(by_path.values())) == 1:
                by_path = {"": next(iter(by_path.values()))}
            answers = [(path, text, evaluation.is_right(text, question)) for path, text in by_path.items()]
            lines.append((question, answers))
        quiz.append((picture, lines))
    return quiz


@dataclass(frozen=True)
class CategoryTable:
    """One row per category, totals last; one column per path, then the counts and what stands beside the scores.

    Args:
        rows: label, and a cell under each heading: a tally, to be shown with its interval, or text.
    """

    title: str
    headings: list[str]
    rows: list[tuple[str, list[dict | str]]]


_BASELINES = {  # what stands beside a score, and its heading
    "generation": {"majority": "constant picture", "true": "true pictures", "codec": "true, as codes"},
    "understanding": {"majority": "constant answer", "blank": "blank"},
    "conversation": {},
}


def _tables(evaluation: Evaluation) -> list[CategoryTable]:
    tables = []
    for task, title in (
        ("generation", "Drawing"),
        ("understanding", "Answering"),
        ("conversation", "In conversations"),
    ):
        results = {path: result["scores"] for path, result in evaluation.scores[task].items()}
        if results:
            tables.append(_table(evaluation, title, results, _BASELINES[task]))
    return tables


def _table(evaluation: Evaluation, title: str, results: dict[str, dict], baselines: dict[str, str]) -> CategoryTable:
    """Baselines are the same for all paths and stand once, except the blank baseline: one column per path."""
    first = next(iter(results.values()))
    listed = [name for name in evaluation.dataset.CATEGORIES if name in first] if "all" in first else []
    names = listed + [name for name in first if name not in listed]
    columns: dict[str, list] = {path: [tallies[name] for name in names] for path, tallies in results.items()}
    columns["of"] = [str(first[name]["n"]) for name in names]
    for key, heading in baselines.items():
        with_baseline = [(path, tallies) for path, tallies in results.items() if key in tallies[names[0]]]
        for path, tallies in with_baseline if key == "blank" else with_baseline[:1]:
            shares = [percent(tallies[name][key]) for name in names]
            columns[f"{heading}, {path}" if key == "blank" else heading] = shares
    cells = zip(*columns.values(), strict=True)
    rows = [(evaluation.suite.label(name), list(row)) for name, row in zip(names, cells, strict=True)]
    return CategoryTable(title, list(columns), rows)


def _facts(scores: dict, content: ReportContent) -> dict[str, str]:
    return {
        **content.facts,
        **{name: duration(seconds) for name, seconds in content.stage_seconds.items()},
        "evaluated on": f"{scores['samples']} pictures and {scores['questions']} questions of {scores['suite']}, split "
        f"{scores['split']}, seed {scores['seed']}",
        "hardware": environment.describe(scores["hardware"]),
        "versions": ", ".join(f"{name} {number}" for name, number in scores["versions"].items()),
    }


# ------------------------------------------------------------------------------------------------------- formats


def data_url(image: Image.Image) -> str:
    """The picture as a PNG inside of a URL, to stand in a page without a file."""
    file = io.BytesIO()
    image.convert("RGB").save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def percent(share: float) -> str:
    """A share for reading: 100 % only when it is all, 0 % only when it is none, never by rounding."""
    if share in (0, 1):
        return f"{share:.0%}".replace("%", " %")
    return f"{min(max(100 * share, 0.1), 99.9):.1f} %"


def duration(seconds: float) -> str:
    """A time in words, such as `9 min 41 s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
