"""One self-contained HTML page that shows what a pipeline drew, said and scored. Nothing on it is fetched.

It scores nothing and draws no chart (`suites`, `figures`). The fact a newcomer gets wrong: the page shows the first
held-out prompts and pictures as they come. None was chosen, and every picture that was scored is on it.
"""

from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from PIL import Image

from hybridgen.core.figures import Panel, panel_svg
from hybridgen.evaluation import generation, provenance
from hybridgen.evaluation.markup import duration, image_tag, labelled, mark, percent, table, with_interval
from hybridgen.evaluation.suites import Evaluation

_STYLE = Path(__file__).parent / "assets" / "report.css"


@dataclass(frozen=True)
class Target:
    """A score to reach: `scores[task][path]["scores"][category]["share"]` at least `share`."""

    label: str
    task: str  # "generation" or "understanding"
    path: str
    category: str
    share: float

    def tally(self, scores: dict) -> dict | None:
        """The tally that it is about; None where that was not evaluated."""
        return scores[self.task].get(self.path, {}).get("scores", {}).get(self.category)


@dataclass
class Story:
    """What a report tells besides an evaluation; plain text throughout.

    Args:
        title, lede: heading and the paragraph under it.
        command: what one types to have it again.
        targets: scores to reach, shown first.
        panels: curves of each stage of the training.
        facts: what stands at the foot, by name.
        stages: seconds that each stage took, by name.
        films: how one picture comes about, frame by frame, for each path.
        credit: whose pictures these are.
        shown: how many prompts are shown large; half as many pictures are shown with their questions.
    """

    title: str
    lede: str
    command: str
    targets: list[Target] = field(default_factory=list)
    panels: dict[str, list[Panel]] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)
    stages: dict[str, float] = field(default_factory=dict)
    films: dict[str, list[Image.Image]] = field(default_factory=dict)
    credit: str = ""
    shown: int = 12


def render(evaluation: Evaluation, story: Story) -> str:
    """The whole page."""
    side = max(1, 128 // evaluation.dataset.SIZE - 1) * evaluation.dataset.SIZE  # a whole number of screen pixels each
    sections = [
        _header(evaluation, story),
        "<main>",
        _targets(evaluation.scores, story.targets),
        _drawings(evaluation, story.shown),
        _films(story.films, evaluation.prompts.captions[0]),
        _answers(evaluation, max(1, story.shown // 2)),
        _codec(evaluation, max(1, story.shown // 2)),
        _categories(evaluation),
        _curves(story.panels),
        _facts(evaluation.scores, story),
        "</main>",
        f"<footer>Made by hybridgen {escape(evaluation.scores['versions']['hybridgen'])}. "
        f"{escape(story.credit)}</footer>",
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(story.title)} · hybridgen</title>\n"
        f"<style>\n{_STYLE.read_text(encoding='utf-8')}</style>\n</head>\n"
        f'<body style="--side:{side}px">\n' + "\n".join(part for part in sections if part) + "\n</body>\n</html>\n"
    )


def _header(evaluation: Evaluation, story: Story) -> str:
    path, drawn = next(iter(evaluation.drawn.items()), ("", []))
    tags = [image_tag(image, text) for image, text in zip(drawn[:20], evaluation.prompts.captions, strict=False)]
    hero = (
        f'<div class="hero">{"".join(tags)}</div>'
        f'<p class="note">Drawn by {path}: the first of the held-out prompts, none chosen.</p>'
    )
    return (
        f'<header><div class="name">hybridgen</div><h1>{escape(story.title)}</h1>'
        f'<p class="lede">{escape(story.lede)}</p>{hero if tags else ""}</header>'
    )


# -------------------------------------------------------------------------------------------------------- targets


def _targets(scores: dict, targets: list[Target]) -> str:
    rows = [_target(target, tally) for target in targets if (tally := target.tally(scores)) is not None]
    if not rows:
        return ""
    return (
        "<h2>Scores beside their targets</h2>"
        '<p class="note"><span class="key" style="margin-left:0"></span>target'
        '<span class="key interval"></span>95 % interval'
        '<span class="key blind"></span>what a constant answer or picture scores</p>'
        f'<div class="scores">{"".join(rows)}</div>'
    )


def _target(target: Target, tally: dict) -> str:
    reached = tally["share"] >= target.share
    low, high = 100 * tally["low"], 100 * tally["high"]
    word = '<span class="right">reached</span>' if reached else '<span class="wrong">below</span>'
    return (
        f'<div class="score{"" if reached else " missed"}"><div>{escape(target.label)}</div>'
        f'<div class="bar"><i style="width:{100 * tally["share"]:.2f}%"></i>'
        f'<span class="interval" style="left:{low:.2f}%;width:{high - low:.2f}%"></span>'
        f'<span class="blind" style="left:{100 * tally["majority"]:.2f}%"></span>'
        f'<span class="tick" style="left:min({100 * target.share:.2f}%, 100% - 2px)"></span></div>'
        f'<div class="figure"><b>{percent(tally["share"])}</b> <span class="soft">of {tally["n"]}</span><br>'
        f'<span class="soft">target {percent(target.share)}, {word}</span></div></div>'
    )


# ------------------------------------------------------------------------------------------------------- pictures


def _drawings(evaluation: Evaluation, shown: int) -> str:
    if not evaluation.drawn:
        return ""
    prompts = evaluation.prompts
    wrong = {path: _wrong(evaluation, images) for path, images in evaluation.drawn.items()}
    cards = []
    for i, caption in enumerate(prompts.captions[:shown]):
        figures = [labelled(prompts.pictures[i], "true picture", f"true picture: {caption}")]
        for path, images in evaluation.drawn.items():
            figures.append(labelled(images[i], f"{path} {mark(wrong[path][i])}", f"drawn by {path}: {caption}"))
        cards.append(f'<div class="card"><div class="pictures">{"".join(figures)}</div><p>{escape(caption)}</p></div>')
    sheets = "".join(_sheet(path, images, prompts.captions, wrong[path]) for path, images in evaluation.drawn.items())
    return (
        "<h2>Drawn from words</h2><p>The same weights draw by every path. The true picture is what the caption "
        "describes; the model has never seen it. A tick says that the scorer found all that was asked for.</p>"
        f'<div class="cards">{"".join(cards)}</div><details><summary>Every picture that was scored</summary>'
        '<p class="note">Outlined: something is not as asked. Point at a picture to read its prompt.</p>'
        f"{sheets}</details>"
    )


def _wrong(evaluation: Evaluation, images: list) -> list[str]:
    """Picture by picture, what is not as asked, in words."""
    faults = generation.faults(evaluation.dataset, images, evaluation.prompts.specs)
    return [", ".join(evaluation.suite.word(category) for category in categories) for categories in faults]


def _sheet(path: str, images: list, captions: list[str], wrong: list[str]) -> str:
    tags = [
        image_tag(image, "", title=f"{text} (wrong: {fault})" if fault else text, class_="off" if fault else "")
        for image, text, fault in zip(images, captions, wrong, strict=True)
    ]
    right = len(images) - sum(map(bool, wrong))
    return f'<h3>{path}: {right} of {len(images)} as asked</h3><div class="sheet">{"".join(tags)}</div>'


def _films(films: dict[str, list[Image.Image]], caption: str) -> str:
    strips = "".join(
        f"<figure><figcaption>{path}</figcaption>"
        f'<div class="strip">{"".join(image_tag(frame, "") for frame in frames)}</div></figure>'
        for path, frames in films.items()
    )
    if not strips:
        return ""
    return (
        "<h2>How a picture comes about</h2><p>By diffusion, all of it grows out of noise at once. By vq, it is written "
        f'code by code, as text is.</p><div class="films">{strips}</div><p class="note">{escape(caption)}</p>'
    )


def _codec(evaluation: Evaluation, shown: int) -> str:
    if not evaluation.kept:
        return ""
    pairs = zip(evaluation.prompts.pictures[:shown], evaluation.kept[:shown], strict=True)
    cards = "".join(
        f'<div class="card"><div class="pictures">{labelled(true, "true picture", "a true picture")}'
        f"{labelled(kept, 'as codes', 'the same picture, encoded and decoded')}</div></div>"
        for true, kept in pairs
    )
    return (
        "<h2>What the codes can hold</h2><p>The vq path draws with the codes of a tokenizer that was trained first. "
        f'What is lost here, it cannot draw.</p><div class="cards narrow">{cards}</div>'
    )


# -------------------------------------------------------------------------------------------------------- answers


def _answers(evaluation: Evaluation, shown: int) -> str:
    if not evaluation.given:
        return ""
    quiz, cards = evaluation.quiz, {}
    for i, (picture, question) in enumerate(zip(quiz.pictures, quiz.asked, strict=True)):
        if id(picture) not in cards and len(cards) == shown:
            break
        _, lines = cards.setdefault(id(picture), (picture, []))
        said = {path: given[i] for path, given in evaluation.given.items()}
        lines.append(f"<dt>{escape(question.question)}</dt><dd>{_said(evaluation, question, said)}</dd>")
    shown_cards = "".join(
        f'<div class="card quiz">{image_tag(picture, "the picture asked about")}<dl>{"".join(lines)}</dl></div>'
        for picture, lines in cards.values()
    )
    return (
        f"<h2>Asked about pictures</h2><p>Held-out pictures, read through {' and '.join(evaluation.given)}. One answer "
        "where all agree; a wrong one is struck out, with the right one after it.</p>"
        f'<div class="cards wide">{shown_cards}</div>'
    )


def _said(evaluation: Evaluation, question, said: dict[str, str]) -> str:
    """The answers to one question: once when all paths say the same, by path otherwise."""

    def one(text: str) -> str:
        if evaluation.dataset.score_answers([text], [question])["all"]["right"]:
            return f"{escape(text)} {mark('')}"
        return f'<s class="wrong">{escape(text) or "(no answer)"}</s> {escape(question.answer)}'

    if len(set(said.values())) == 1:
        return one(next(iter(said.values())))
    return "<br>".join(f'{one(text)} <span class="soft">{path}</span>' for path, text in said.items())


# --------------------------------------------------------------------------------------------- numbers and origins

_BESIDE = {  # what stands beside a score, and its heading
    "generation": {"majority": "constant picture", "true": "true pictures", "codec": "true, as codes"},
    "understanding": {"majority": "constant answer", "blank": "blank"},
}


def _categories(evaluation: Evaluation) -> str:
    parts = []
    for task, title in (("generation", "Drawing"), ("understanding", "Answering")):
        results = {path: result["scores"] for path, result in evaluation.scores[task].items()}
        if results:
            parts.append(f"<h3>{title}</h3>{_category_table(evaluation, results, _BESIDE[task])}")
    return "<h2>Every category</h2>" + "".join(parts) if parts else ""


def _category_table(evaluation: Evaluation, results: dict[str, dict], beside: dict[str, str]) -> str:
    """A row a category, totals last; a column a path, then what stands beside: once where it is the same for all."""
    first = next(iter(results.values()))
    listed = [name for name in evaluation.dataset.CATEGORIES if name in first] if "all" in first else []
    names = listed + [name for name in first if name not in listed]
    columns = [[evaluation.suite.word(name) for name in names]]
    columns += [[with_interval(tallies[name]) for name in names] for tallies in results.values()]
    columns += [[str(first[name]["n"]) for name in names]]
    head = ["", *results, "of"]
    for key, heading in beside.items():
        columns_of = {path: tallies for path, tallies in results.items() if key in tallies[names[0]]}
        if key != "blank":
            columns_of = dict(list(columns_of.items())[:1])
        for path, tallies in columns_of.items():
            head.append(f"{heading}, {path}" if key == "blank" else heading)
            columns.append([percent(tallies[name][key]) for name in names])
    return table(head, [list(row) for row in zip(*columns, strict=True)], totals=1)


def _curves(panels: dict[str, list[Panel]]) -> str:
    parts = [
        f'<h3>{escape(stage)}</h3><div class="charts">{"".join(panel_svg(panel) for panel in drawn)}</div>'
        for stage, drawn in panels.items()
        if drawn
    ]
    return "<h2>How it learned</h2>" + "".join(parts) if parts else ""


def _facts(scores: dict, story: Story) -> str:
    listed = {
        **story.facts,
        **{name: duration(seconds) for name, seconds in story.stages.items()},
        "evaluated on": f"{scores['samples']} pictures and {scores['questions']} questions of {scores['suite']}, split "
        f"{scores['split']}, seed {scores['seed']}",
        "hardware": provenance.in_words(scores["hardware"]),
        "versions": ", ".join(f"{name} {number}" for name, number in scores["versions"].items()),
    }
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in listed.items())
    return f'<h2>How to have this again</h2><pre>{escape(story.command)}</pre><dl class="facts">{items}</dl>'
