"""A ladder from its config to its laws: runs of several sizes and budgets, a fit of each held-out loss, the report.

A config of a ladder is one of a run with a section more, which is no part of any run:

    ladder:
      sizes:                     # name -> what changes with the size
        small: {model.text_config.hidden_size: 64, model.text_config.num_hidden_layers: 2}
        middle: {model.text_config.hidden_size: 96, model.text_config.num_hidden_layers: 3}
        large: {model.text_config.hidden_size: 128, model.text_config.num_hidden_layers: 4}
      tokens: [2e5, 4e5, 8e5]    # of each size, a run of its own each, with the whole schedule
      seeds: [0]
      before: [codec.yaml]       # runs that these stand on, made once; files beside the config
      losses: {text: validation/source/read/text}      # name -> number; left out: those of text, code and diffusion

    OUT/LADDER/SIZE_TOKENS/seed_N/   a run (`studies.runs`)
    OUT/scaling.json                 points, laws with intervals, parity ratios
    OUT/report.html, OUT/plots/      the same to read
"""

import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hybridgen.core.files import write_json
from hybridgen.evaluation import environment
from hybridgen.studies import pages
from hybridgen.studies.codecs import Moved, redirect, stand_ins, train_codecs
from hybridgen.studies.measuring import Measured, measure
from hybridgen.studies.numbers import check_loss
from hybridgen.studies.runs import Run, overrides_of, run_all
from hybridgen.studies.scaling_law import NUMBERS, Law, Point, bootstrap, fit, interval, parity
from hybridgen.training.config import strict
from hybridgen.training.config.checks import check
from hybridgen.training.config.schema import TrainConfig

LOSSES = {kind: f"validation/loss/{kind}" for kind in ("text", "code", "diffusion")}
COUNTS = ("without_embeddings", "parameters")  # what N may count, as results name it
LARGEST_FLAW = 0.05  # of a budget of tokens
FEW = 12  # runs, of three sizes and four budgets or the like: fewer are said to be few
TAIL = 0.025  # of the refits that lie beyond each end of an interval


@dataclass
class LadderConfig:
    """See the module."""

    sizes: dict[str, dict]
    tokens: list[float]
    seeds: list[int] = field(default_factory=lambda: [0])
    before: list[str] = field(default_factory=list)
    losses: dict[str, str] = field(default_factory=lambda: dict(LOSSES))


@dataclass(frozen=True)
class Ladder:
    """A recipe: its name, the config without the section, and the section."""

    name: str
    file: Path
    content: dict
    settings: LadderConfig


def read_ladder(file: Path) -> Ladder:
    """
    Raises:
        ValueError: one sentence with what is wrong.
    """
    content = strict.read(file)
    section = content.pop("ladder", None)
    if section is None:
        raise ValueError(f"{file} has no section ladder; give its sizes and tokens")
    try:
        settings = strict.build(LadderConfig, section, "ladder")
        for key in ("sizes", "tokens", "seeds", "losses"):
            if not getattr(settings, key):
                raise ValueError(f"ladder.{key} is empty; name at least one")
        for name, changes in settings.sizes.items():
            if not re.fullmatch(r"[\w.-]+", str(name)) or not isinstance(changes, dict):
                raise ValueError(f"ladder.sizes.{name} is {changes!r}; give a name and the keys that change with it")
        if any(not 0 < tokens < float("inf") for tokens in settings.tokens):
            raise ValueError(f"ladder.tokens is {settings.tokens}; each must be above 0, and finite")
        if len(set(settings.tokens)) < len(settings.tokens) or len(set(settings.seeds)) < len(settings.seeds):
            raise ValueError("ladder.tokens or ladder.seeds names a value twice; give each once")
        if not (content.get("validation") or {}).get("sources"):
            raise ValueError("validation.sources is missing; a law is fitted to held-out losses, so name held-out data")
        for other in settings.before:
            if not (file.parent / other).is_file():
                raise ValueError(f"ladder.before names {other}, which is no file beside it")
        for changes in settings.sizes.values():
            _check_losses(settings, strict.build(TrainConfig, _with_size(content, changes)))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    return Ladder(file.stem, file, content, settings)


def _check_losses(settings: LadderConfig, config: TrainConfig) -> None:
    """Raises ValueError for a loss that no run will measure."""
    for name, number in settings.losses.items():
        try:
            check_loss(number, config)
        except ValueError as error:
            raise ValueError(f"ladder.losses.{name} is {error}") from error


def _with_size(content: dict, changes: dict) -> dict:
    """A config of one size; the given one stays as it is."""
    changed = json.loads(json.dumps(content))
    for key, value in changes.items():
        strict.override(changed, f"{key}={json.dumps(value)}")
    return changed


def run_scaling(
    files: Sequence[Path],
    out: Path,
    all_parameters: bool = False,
    refits: int = 400,
    jobs: int = 1,
    plan_only: bool = False,
) -> Iterator[str]:
    """
    1. Read the ladders; measure what a step of each size costs.
    2. Train the codecs that runs stand on, and make the runs that are not there yet.
    3. Fit each held-out loss, for N with and without embeddings; compare recipes by the FLOPs that they need.
    4. Write scaling.json, plots and report.

    Yields:
        lines to print: the runs, or the laws and the paths of what to open.

    Raises:
        ValueError: one sentence about what is wrong; ladders that no law can be fitted to, before any run is made where
            that can be known; else after the report, which says why.
    """
    ladders = [read_ladder(Path(file)) for file in files]
    for ladder in ladders:
        _check_shape(ladder)
    codecs = list(dict.fromkeys(ladder.file.parent / other for ladder in ladders for other in ladder.settings.before))
    with tempfile.TemporaryDirectory() as aside:
        moved = stand_ins(codecs, Path(aside))
        measured = {ladder.name: measure_sizes(ladder, moved) for ladder in ladders}
    runs = {ladder.name: list(plan_ladder(ladder, out, measured[ladder.name])) for ladder in ladders}
    every = [run for of_ladder in runs.values() for run in of_ladder]
    if plan_only:
        yield from (_line(run) for run in every)
        yield f"together {sum(run.about['planned_flops'] for run in every):.3g} FLOPs"
        return
    moved = train_codecs(codecs, out)
    for ladder in ladders:
        write_sizes(ladder, out, moved)
    run_all(every, jobs)
    content = summarise(ladders, runs, refits) | {"shown": COUNTS[all_parameters]}
    write_json(out / "scaling.json", content)
    yield from in_lines(content)
    yield str(pages.write_scaling(out, content))
    for ladder in ladders:
        if not content["recipes"][ladder.name]["losses"]:
            raise ValueError(f"{ladder.file}: no law could be fitted to any loss of ladder.losses, as said above")


def _check_shape(ladder: Ladder) -> None:
    """Raises ValueError, before any run, for a ladder that no law can be fitted to."""
    for key, what in (("sizes", "E, A and alpha take"), ("tokens", "E, B and beta take")):
        if (count := len(getattr(ladder.settings, key))) < 3:
            raise ValueError(f"{ladder.file}: ladder.{key} has {count}; {what} at least 3")


def _content(ladder: Ladder, size: str, moved: Moved) -> dict:
    """The config of a size, its codecs those of `moved`."""
    content = _with_size(ladder.content, ladder.settings.sizes[size])
    for word in redirect(content, moved):
        strict.override(content, word)
    return content


def measure_sizes(ladder: Ladder, moved: Moved) -> dict[str, Measured]:
    """What a step of each size costs; every config is checked in full here."""
    measured = {}
    for size in ladder.settings.sizes:
        config = strict.build(TrainConfig, _content(ladder, size, moved))
        check(config)
        measured[size] = measure(config)
    return measured


def size_file(ladder: Ladder, size: str, out: Path) -> Path:
    return out / ladder.name / f"{size}.yaml"


def write_sizes(ladder: Ladder, out: Path, moved: Moved) -> None:
    """The config of each size as a file, which its runs read."""
    for size in ladder.settings.sizes:
        write_json(size_file(ladder, size, out), _content(ladder, size, moved))  # JSON is YAML


def plan_ladder(ladder: Ladder, out: Path, measured: dict[str, Measured]) -> Iterator[Run]:
    """The runs of a ladder."""
    for size, of_step in measured.items():
        about = {"parameters": of_step.parameters, "without_embeddings": of_step.without_embeddings}
        for tokens in ladder.settings.tokens:
            steps = round(tokens / of_step.tokens)
            if steps < 1 or abs(steps * of_step.tokens - tokens) > LARGEST_FLAW * tokens:
                raise ValueError(
                    f"{ladder.file}: {tokens:.3g} tokens are {tokens / of_step.tokens:.2f} steps of "
                    f"{of_step.tokens:.3g} for size {size}; raise ladder.tokens, or make steps smaller"
                )
            costs = {"planned_flops": steps * of_step.flops, "planned_tokens": steps * of_step.tokens}
            for seed in ladder.settings.seeds:
                name = f"{size}_{tokens:.0f}"
                folder = out / ladder.name / name / f"seed_{seed}"
                words, file = overrides_of(folder, steps, seed), size_file(ladder, size, out)
                yield Run(f"{ladder.name}/{name}", seed, folder, file, words, None, about | costs)


def _line(run: Run) -> str:
    about = run.about
    return (
        f"{run.name}, seed {run.seed}: {about['parameters'] / 1e6:.2f} M parameters "
        f"({about['without_embeddings'] / 1e6:.2f} M without embeddings), "
        f"{about['planned_tokens'] / 1e6:.2f} M tokens, {about['planned_flops']:.3g} FLOPs"
    )


# ------------------------------------------------------------------------------------------------------------ fits


def summarise(ladders: Sequence[Ladder], runs: dict[str, list[Run]], refits: int) -> dict:
    """Points, laws and parity ratios as JSON. What cannot be fitted stands there with the reason."""
    recipes, laws = {}, {}
    for ladder in ladders:
        results = [run.result() for run in runs[ladder.name]]
        fits, not_fitted = {}, {}
        for loss, number in ladder.settings.losses.items():
            if not any(number in result["numbers"] for result in results):
                not_fitted[loss] = f"no run has measured {number}"
                continue
            points = {count: points_of(results, number, count) for count in COUNTS}
            try:
                found = {count: fit(points[count], f"{ladder.name}, {loss}") for count in COUNTS}
            except ValueError as error:
                not_fitted[loss] = str(error)
                continue
            fits[loss] = {}
            for count, law in found.items():
                refitted = bootstrap(points[count], law, refits)
                laws[ladder.name, loss, count] = law, refitted, [point.flops for point in points[count]]
                fits[loss][count] = describe(law, refitted, points[count])
        recipes[ladder.name] = {"losses": fits, "not_fitted": not_fitted, "runs": results}
    return {
        "recipes": recipes, "parity": list(_parities(ladders, laws)), "command": environment.command(),
        "versions": environment.versions(), "hardware": environment.hardware(),
    }  # fmt: skip


def points_of(results: Sequence[dict], number: str, count: str) -> list[Point]:
    """The points of a ladder, of what its runs did and not of what was planned."""
    return [
        Point(result[count], result["tokens"], result["numbers"].get(number, float("nan")), result["flops"])
        for result in results
    ]


def describe(law: Law, refitted: Sequence[Law], points: Sequence[Point]) -> dict:
    """A law with 95 % intervals of its numbers, and of the exponents of N* ~ C^a and D* ~ C^b; which of its numbers
    stand at the solver's bounds, what makes it less than it seems, and its points."""
    names = (*NUMBERS, "size_exponent", "token_exponent")
    numbers = {
        name: {"value": getattr(law, name), **_ends([getattr(each, name) for each in refitted])} for name in names
    }
    return numbers | {
        "cost": law.cost, "cost_exponent": law.cost_exponent, "spread": law.spread, "at_bounds": list(law.at_bounds),
        "doubts": list(_doubts(law, refitted, len(points))), "points": [point._asdict() for point in points],
    }  # fmt: skip


def _doubts(law: Law, refitted: Sequence[Law], runs: int) -> Iterator[str]:
    """What makes a law less than it seems, a sentence each."""
    if law.at_bounds:
        numbers = ", ".join(f"{name} {getattr(law, name):.3g}" for name in law.at_bounds)
        yield (
            f"at the bounds of the fit: {numbers}; these points do not tell the law's numbers, and the best sizes and "
            "the FLOPs for a loss that follow from it are unreliable"
        )
    shares = {name: sum(name in each.at_bounds for each in refitted) / len(refitted) for name in NUMBERS}
    if ends := [f"{name} in {100 * share:.0f} %" for name, share in shares.items() if share > TAIL]:
        yield f"refits stand at the bounds of the fit, where their intervals end for that reason: {', '.join(ends)}"
    if runs < FEW:
        yield f"{runs} runs are few for five numbers: how far off they are is told by {runs - 5} residuals alone"


def _ends(values: Sequence[float]) -> dict[str, float]:
    return dict(zip(("low", "high"), interval(values), strict=True))


def _parities(ladders: Sequence[Ladder], laws: dict) -> Iterator[dict]:
    """The FLOPs that each further recipe needs for the first one's loss, at the first one's largest budget."""
    first, *others = ladders
    for other in others:
        for loss in first.settings.losses:
            for count in COUNTS:
                if (first.name, loss, count) not in laws or (other.name, loss, count) not in laws:
                    continue
                law, refitted, spent = laws[first.name, loss, count]
                law_2, refitted_2, spent_2 = laws[other.name, loss, count]
                flops = max(spent)
                ratio = parity(law, law_2, flops)
                ratios = [parity(one, two, flops) for one, two in zip(refitted, refitted_2, strict=True)]
                low, high = (value if value < float("inf") else None for value in interval(ratios))
                yield {
                    "first": first.name, "second": other.name, "loss": loss, "count": count, "flops": flops,
                    "at_loss": law.best_loss(flops), "ratio": ratio if ratio < float("inf") else None,
                    "low": low, "high": high, "extrapolated": not min(spent_2) / 2 <= ratio * flops <= 2 * max(spent_2),
                    "unreliable": [
                        f"{name} of {recipe.name}" for recipe, each in ((first, law), (other, law_2))
                        for name in each.at_bounds
                    ],
                }  # fmt: skip


def in_lines(content: dict) -> Iterator[str]:
    """Laws and ratios to read, for N as it is shown."""
    for name, recipe in content["recipes"].items():
        for loss, counts in recipe["losses"].items():
            law = counts[content["shown"]]
            numbers = ", ".join(f"{key} {_number(law[key])}" for key in ("E", "A", "alpha", "B", "beta"))
            yield f"{name}, {loss}: {numbers}; the points lie {100 * law['spread']:.1f} % off in the mean"
            yield from (f"{name}, {loss}: {doubt}" for doubt in law["doubts"])
        yield from (f"{name}, {loss}: nothing is fitted: {reason}" for loss, reason in recipe["not_fitted"].items())
    for ratio in content["parity"]:
        if ratio["count"] == content["shown"]:
            yield parity_sentence(ratio)


def _number(entry: dict) -> str:
    return f"{entry['value']:.3g} ({entry['low']:.3g} to {entry['high']:.3g})"


def parity_sentence(ratio: dict) -> str:
    """A parity ratio in words."""
    never = "more than any budget"
    start = f"{ratio['loss']} loss {ratio['at_loss']:.3g}, which {ratio['first']} has for {ratio['flops']:.2g} FLOPs"
    doubt = f"; unreliable: {', '.join(ratio['unreliable'])} at the bounds of the fit" if ratio["unreliable"] else ""
    if ratio["ratio"] is None:
        return f"{start}: {ratio['second']} never gets there by its law{doubt}"
    ends = f"{ratio['low']:.2f}" if ratio["low"] is not None else never
    ends += f" to {ratio['high']:.2f}" if ratio["high"] is not None else f" to {never}"
    beyond = ", beyond its ladder" if ratio["extrapolated"] else ""
    return f"{start}: {ratio['second']} takes {ratio['ratio']:.2f} times as many ({ends}{beyond}){doubt}"
