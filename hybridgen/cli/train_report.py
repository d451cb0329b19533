"""The page at the end of a training run: its curves, what was drawn on the way, what was trained, how to go on.

All of it is read from the run's folder: one file that needs no other, `OUT/report.html`.
"""

import math
import shlex
from pathlib import Path

from markupsafe import Markup
from PIL import Image
from safetensors import safe_open

from hybridgen.core.figures import panel_svg, read_curves
from hybridgen.core.files import write_whole
from hybridgen.core.values import shorten
from hybridgen.evaluation import environment
from hybridgen.evaluation.report import duration, render_page
from hybridgen.evaluation.report_cards import loss_panels
from hybridgen.training.config.schema import TrainConfig

PAGE = "report.html"
SHEETS = 6  # sheets of samples on the page
_ASSETS = Path(__file__).parent / "assets"


def write_report(config: TrainConfig, file: Path) -> Path:
    """Write the page of a run that is done; returns its path.

    Args:
        file: the config, as it was named.
    """
    folder = Path(config.output_dir)
    curves = read_curves(folder / "metrics.jsonl")
    checkpoint = folder / "checkpoint"
    prompt = config.sampling.prompts[0] if config.sampling.prompts else "what to draw"
    text = render_page(
        "training.html.jinja",
        folder=_ASSETS,
        title=f"Trained: {folder.name if folder.name != 'run' else folder.parent.name}",
        summary=_summary(config, curves),
        sheets=samples(folder),
        numbers=_numbers(curves),
        charts=[Markup(panel_svg(panel)) for panel in loss_panels(folder / "metrics.jsonl")],
        sources=[(source.name, source.source, _shares(folder).get(source.name)) for source in config.data.sources],
        commands=_commands(config, file, checkpoint, prompt),
        facts=_facts(config, curves, checkpoint),
        side=128,
        version=environment.versions()["hybridgen"],
        credit="",
    )
    # the demo's own page, which scores what it trained, is not written over
    page = folder / ("training.html" if (folder / "demo.json").is_file() else PAGE)
    write_whole(page, text)
    return page


def samples(folder: Path) -> list[tuple[int, Image.Image]]:
    """(step, sheet) of what was drawn on the way: the first, the last, and some between."""
    files = sorted((folder / "samples").glob("step_*.png"))
    if len(files) > SHEETS:
        files = [files[round(place * (len(files) - 1) / (SHEETS - 1))] for place in range(SHEETS)]
    return [(int(file.stem.partition("_")[2]), Image.open(file)) for file in files]


def _summary(config: TrainConfig, curves: dict) -> str:
    names = " and ".join(dict.fromkeys(source.source for source in config.data.sources))
    took = f" in {duration(curves['seconds'][1][-1])}" if "seconds" in curves else ""
    start = config.model.start if config.model is not None else None
    grown = "grown " if start and config.model.grow_from else ""
    origin = f"{grown}from {start}" if start else "from random weights"
    return f"{config.steps:,} steps{took}, {origin}, on {shorten(names, 200)}."


def _numbers(curves: dict) -> list[tuple[str, str, str, str]]:
    """(what, first, last, best) of the losses; those of validation are on data that were not trained on."""
    rows = []
    for name, (_, values) in curves.items():
        if name.removeprefix("validation/").split("/")[0] == "loss":
            words = name.replace("validation/loss", "held out").replace("loss", "training").replace("/", ": ")
            rows.append((words, *(f"{value:.4g}" for value in (values[0], values[-1], min(values)))))
    return sorted(rows)


def _shares(folder: Path) -> dict[str, float]:
    """Of the tokens, by source, over the whole run."""
    curves = read_curves(folder / "metrics.jsonl")
    return {name.removeprefix("share/"): values[-1] for name, (_, values) in curves.items() if name[:6] == "share/"}


def _commands(config: TrainConfig, file: Path, checkpoint: Path, prompt: str) -> list[tuple[str, str]]:
    """(what for, what to type)."""
    named, trained = shlex.quote(str(file)), shlex.quote(str(checkpoint))
    more = ("train on, twice as long", f"hybridgen train {named} steps={2 * config.steps}")
    if config.stage == "codec":
        return [more]
    draws = any(source.write for source in config.data.sources)
    drawn = [("draw", f"hybridgen sample {trained} --prompt {shlex.quote(prompt)} --num-images 4 --out drawn")]
    asked = [("ask about a picture", f"hybridgen ask {trained} --image PICTURE --question 'what is this?'")]
    return [*(drawn if draws else ()), *asked, ("talk", f"hybridgen chat {trained}"), more]


def _facts(config: TrainConfig, curves: dict, checkpoint: Path) -> dict[str, str]:
    facts = {"checkpoint": str(checkpoint), "parameters": f"{_parameters(checkpoint):,}", "seed": str(config.seed)}
    if "tokens" in curves:
        facts["tokens"] = f"{sum(curves['tokens'][1]):,.0f}"
    if "flops" in curves:
        facts["FLOPs"] = f"{sum(curves['flops'][1]):.2g}"
    if "skipped" in curves:
        facts["steps that were skipped"] = f"{curves['skipped'][1][-1]:,.0f} (skipped.jsonl)"
    facts["hardware"] = environment.describe(environment.hardware())
    facts["versions"] = ", ".join(f"{name} {number}" for name, number in environment.versions().items())
    return facts


def _parameters(checkpoint: Path) -> int:
    """How many weights were saved, codecs left out; of an adapter, its own."""
    folder = checkpoint / "model" if (checkpoint / "model").is_dir() else checkpoint  # an adapter, or a codec
    count = 0
    for file in folder.rglob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            count += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
    return count
