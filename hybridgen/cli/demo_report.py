"""What the demo shows when all is trained and scored: its targets, its words, its pictures, and the page.

`demo` does the work; `evaluation.report` knows how a page looks. The page is written last: where there is a
report.html, everything it tells of is there and whole.

    OUT/drawn_PATH.png   OUT/answers.png   OUT/losses.png   OUT/scores.json   OUT/report.html
"""

from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from hybridgen.core.figures import grid, plot, save
from hybridgen.core.files import write_whole
from hybridgen.evaluation import environment
from hybridgen.evaluation.report import ReportContent, Target, duration, render
from hybridgen.evaluation.report_cards import answer_cards, drawing_cards, loss_panels
from hybridgen.evaluation.result import Result
from hybridgen.evaluation.scores import save_scores

PAGE = "report.html"
SHOWN = 24  # pictures on the sheet of a path
TARGETS = [
    Target("Drawing by diffusion, parts right", "generation", "diffusion", "slots", 0.98),
    Target("Drawing by diffusion, whole pictures right", "generation", "diffusion", "all_seven", 0.90),
    Target("Drawing by vq, parts right", "generation", "vq", "slots", 0.95),
    Target("Answers through understanding", "understanding", "understanding", "all", 0.98),
    Target("Answers through diffusion", "understanding", "diffusion", "all", 0.96),
    Target("In a chat: answers after drawing by diffusion", "conversation", "diffusion", "after_drawing", 0.95),
    Target("In a chat: answers after drawing by vq", "conversation", "vq", "after_drawing", 0.90),
]
UNSEEN = "None of these creatures was ever seen in these clothes."


def write(out: Path, result: Result, scores: dict, frames: dict[str, list[Image.Image]]) -> Iterator[str]:
    """Pictures, scores and, last of all, the page. Yields the paths of what a person wants to open.

    Args:
        scores: what is to stand in `scores.json`, with the demo's own numbers: `seconds` by stage, and `parameters`.
        frames: by path, the stages of one picture from noise or nothing.
    """
    panels = {
        "the VQ tokenizer": loss_panels(out / "codec" / "metrics.jsonl"),
        "the model": loss_panels(out / "metrics.jsonl"),
    }
    drawn, asked = (list(result.items.get(task, {})) for task in ("generation", "understanding"))
    for path in drawn:
        page = grid(drawing_cards(result, path)[:SHOWN], columns=4, title=f"drawn by {path}")
        save(page, out / f"drawn_{path}.png")
    if asked:
        save(grid(answer_cards(result)[: SHOWN // 2], columns=3, title="asked about"), out / "answers.png")
    save(plot([panel for stage in panels.values() for panel in stage]), out / "losses.png")
    yield str(save_scores(scores, out))
    content = ReportContent(
        title="One model, three paths",
        summary=summary(scores, drawn, asked),
        command=environment.command(),
        targets=TARGETS,
        panels=panels,
        denoising_frames=frames,
        facts={
            "seed": str(scores["seed"]),
            "parameters": ", ".join(f"{name} {count:,}" for name, count in scores["parameters"].items()),
        },
        stage_seconds={
            "training the VQ tokenizer": scores["seconds"].get("codec", 0.0),
            "training the model": scores["seconds"].get("model", 0.0),
            "drawing and answering": scores["seconds"]["evaluation"],
        },
        credit=result.credit,
    )
    write_whole(out / PAGE, render(result, scores, content))
    yield str(out / PAGE)


def summary(scores: dict, drawn: list[str], asked: list[str]) -> str:
    """What the page is about, in three sentences; `drawn` and `asked`: by which paths, and through which."""
    machine, seconds = scores["hardware"], scores["seconds"]
    where = machine.get("gpu", f"{machine['cores']} CPU cores")
    trained = duration(seconds.get("codec", 0.0) + seconds.get("model", 0.0))
    size = f"{scores['parameters']['model'] / 1e6:.1f} million parameters"
    return (
        f"A transformer of {size}, trained from nothing in {trained} on {where}. It draws pictures from words by "
        f"{' and by '.join(drawn)}, and answers questions about pictures that it reads through "
        f"{' and through '.join(asked)}. {UNSEEN}"
    )
