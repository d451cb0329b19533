"""One self-contained HTML page that shows what a pipeline drew, answered and scored. Nothing on it is fetched.

The content is put together here; `assets/report.html.jinja` lays it out and escapes it. Nothing is scored or chosen:
the page shows the first held-out prompts and pictures as they come, and every picture that was scored is on it.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jinja2
from markupsafe import Markup
from PIL import Image

from hybridgen.core.figures import Panel, panel_svg, scale_to_fit
from hybridgen.core.pictures import pixels_hash, read_picture
from hybridgen.evaluation import environment
from hybridgen.evaluation.result import BASELINES, TASKS, Item, Result

LARGEST = 256  # pixels of a picture's side on a page
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


def render(result: Result, scores: dict, content: ReportContent) -> str:
    """The whole page of one suite.

    Args:
        scores: the `scores.json` that holds it.
    """
    half, drawn = max(1, content.examples // 2), result.items.get("generation", {})
    tallies = [(target, target.tally(result.scores)) for target in content.targets]
    size = result.facts["size"]
    return render_page(
        "report.html.jinja",
        content=content,
        title=content.title,
        side=max(1, 128 // size - 1) * size,  # whole screen pixels each
        half=half,
        targets=[(target, tally) for target, tally in tallies if tally is not None],
        drawn=drawn,
        answered=list(result.items.get("understanding", {})),
        quiz=_quiz(result.items.get("understanding", {}), half),
        tables=tables_of(result),
        charts={stage: [Markup(panel_svg(panel)) for panel in panels] for stage, panels in content.panels.items()},
        facts=_facts(result, scores, content),
        version=scores["versions"]["hybridgen"],
        credit=content.credit,
    )


def render_page(template: str, folder: Path = _ASSETS, **content) -> str:
    """A page of `assets/`, or of a `folder` of other rooms' pages, from what its template asks for."""
    style = Markup((_ASSETS / "report.css").read_text(encoding="utf-8"))
    return _templates(folder).get_template(template).render(style=style, **content)


def _templates(folder: Path = _ASSETS) -> jinja2.Environment:
    """Templates of a folder and of `assets/`: what they are handed is escaped, unless it is `Markup`; an unknown name
    is an error."""
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, _ASSETS]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters |= {"data_url": data_url, "percent": percent}
    templates.globals["shared_headings"] = shared_headings
    return templates


# ------------------------------------------------------------------------------------------------------- content


def _quiz(answered: dict[str, list[Item]], pictures: int) -> list[tuple[Image.Image, list]]:
    """The first pictures, each with its questions and the answers to them: (path, text, right). A single answer, with
    no path, where all paths say the same."""
    quiz: dict[int, tuple[Image.Image, list]] = {}
    for items in zip(*answered.values(), strict=True):
        picture = items[0].pictures["shown"]
        if id(picture) not in quiz and len(quiz) == pictures:
            break
        by_path = dict(zip(answered, items, strict=True))
        if len({item.answer for item in items}) == 1:
            by_path = {"": items[0]}
        answers = [(path, item.answer, item.mean == 1) for path, item in by_path.items()]
        quiz.setdefault(id(picture), (picture, []))[1].append((items[0], answers))
    return list(quiz.values())


@dataclass(frozen=True)
class CategoryTable:
    """One row per category, totals last; one column per path, then the counts and what stands beside the scores.

    Args:
        rows: label, and a cell under each heading: a tally, to be shown with its interval, or text.
    """

    title: str
    headings: list[str]
    rows: list[tuple[str, list[dict | str]]]


_OF_EACH_PATH = ("blank", "shuffled", "unseen", "codec")  # baselines that belong to a path, also where they agree


def tables_of(result: Result) -> list[CategoryTable]:
    """A table for each task."""
    tables = []
    for task, (_, title) in TASKS.items():
        results = {path: of_path["scores"] for path, of_path in result.scores.get(task, {}).items()}
        if results:
            tables.append(_table(result, title, results))
    return tables


def _table(result: Result, title: str, results: dict[str, dict]) -> CategoryTable:
    """Baselines that are the same for all paths stand once."""
    first = next(iter(results.values()))
    totals = [name for name in ("all",) if name in first]
    names = [name for name in first if name not in totals] + totals
    columns: dict[str, list] = {path: [tallies[name] for name in names] for path, tallies in results.items()}
    columns["of"] = [_count(first[name]) for name in names]
    for key, heading in BASELINES.items():
        with_baseline = {path: tallies for path, tallies in results.items() if any(key in t for t in tallies.values())}
        cells = {path: [_number(tallies[name], key) for name in names] for path, tallies in with_baseline.items()}
        differs = any(of_path != next(iter(cells.values())) for of_path in cells.values())
        each = len(cells) > 1 and (key in _OF_EACH_PATH or differs)
        for path in list(cells) if each else list(cells)[:1]:
            columns[f"{heading}, {path}" if each else heading] = cells[path]
    rows = [
        (result.label(name), list(row)) for name, row in zip(names, zip(*columns.values(), strict=True), strict=True)
    ]
    return CategoryTable(title, list(columns), rows)


def _count(tally: dict) -> str:
    """Of how many, and in how many groups where they are not independent."""
    return f"{tally['n']} in {tally['groups']} groups" if "groups" in tally else str(tally["n"])


def _number(tally: dict, key: str) -> str:
    """What stands beside a tally under a name, as the tally itself is shown."""
    if key not in tally:
        return ""
    return percent(tally[key]) if "share" in tally else f"{tally[key]:.4g}"


def _facts(result: Result, scores: dict, content: ReportContent) -> dict[str, str]:
    facts, (suite,) = result.facts, scores["suites"]
    return {
        **content.facts,
        **{name: duration(seconds) for name, seconds in content.stage_seconds.items()},
        "evaluated on": f"{facts['samples']} pictures and {facts['questions']} questions of {suite}, split "
        f"{facts['split']}, seed {facts['seed']}",
        "hardware": environment.describe(scores["hardware"]),
        "versions": ", ".join(f"{name} {number}" for name, number in scores["versions"].items()),
    }


# ------------------------------------------------------------------------------------------------------- formats


def shared_headings(items: Sequence[Item]) -> list[str]:
    """The headings under which several items have the same picture; of one item, none."""
    first, *others = items
    return [
        heading
        for heading, picture in first.pictures.items()
        if others and all(_pixels(picture) == _pixels(other.pictures.get(heading)) for other in others)
    ]


def _pixels(picture: Image.Image | Path | None) -> bytes | None:
    return None if picture is None else pixels_hash(picture)


def data_url(image: Image.Image | Path, largest: int = LARGEST) -> str:
    """The picture as a PNG inside of a URL, to stand in a page without a file; large ones made smaller."""
    file, image = io.BytesIO(), read_picture(image)
    if max(image.size) > largest:
        image = scale_to_fit(image, largest)
    image.save(file, "PNG", optimize=True)
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
