"""A study from its folder to its report: budgets, runs, comparisons.

OUT/budgets.json    what a step of each variant costs, and how many steps its budget buys
OUT/NAME/seed_N/    a run (`studies.runs`)
OUT/study.json      all numbers, the comparisons, and what came out
OUT/report.html     the same to read; OUT/plots/ its plots
"""

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from hybridgen.core.figures import read_curves
from hybridgen.core.files import write_json
from hybridgen.evaluation import environment
from hybridgen.studies import pages
from hybridgen.studies.codecs import Moved, redirect, stand_ins, train_codecs
from hybridgen.studies.comparisons import ArmComparison, compare, sentences
from hybridgen.studies.measuring import Measured, measure
from hybridgen.studies.numbers import check_number
from hybridgen.studies.runs import Run, overrides_of, run_all
from hybridgen.studies.scoring import Scoring, trained_paths
from hybridgen.studies.study_config import FILE, BudgetConfig, QuestionConfig, StudyConfig, is_loss, read_study
from hybridgen.training.config import strict
from hybridgen.training.config.checks import load_config
from hybridgen.training.config.schema import TrainConfig

SCORING_SEED = 0  # of the pictures that all runs are asked about
LARGEST_FLAW = 0.02  # of a budget: more than so much off, and runs are not called equal


@dataclass(frozen=True)
class Planned:
    """A variant with what it costs."""

    name: str
    measured: Measured
    steps: int

    @property
    def flops(self) -> float:
        return self.steps * self.measured.flops

    @property
    def tokens(self) -> float:
        return self.steps * self.measured.tokens

    def line(self) -> str:
        return (
            f"{self.name}: {self.measured.parameters / 1e6:.2f} M parameters, {self.steps:,} steps, "
            f"{self.tokens / 1e6:.2f} M tokens, {self.flops:.3g} FLOPs"
        )


def run_study(
    folder: Path,
    out: Path,
    overrides: Sequence[str] = (),
    seeds: Sequence[int] | None = None,
    only: Sequence[str] | None = None,
    jobs: int = 1,
    plan_only: bool = False,
) -> Iterator[str]:
    """
    1. Read the study, and every config as far as it can be checked now.
    2. Measure what a step of each variant costs, and write the budgets.
    3. Train the codecs that runs stand on, and make the runs that are not there yet.
    4. Compare, and write study.json, the plots and the report, of what there is.

    Args:
        overrides: settings that replace those of every variant's config.
        seeds: instead of the study's.
        only: variants to run; the report shows all that are there.
        plan_only: end after the second step.

    Yields:
        lines to print: the budgets, or what came out and the paths of what to open.

    Raises:
        ValueError: one sentence about what is wrong, before anything long is begun where that can be known.
    """
    study = read_study(folder)
    for name in only or ():
        if name not in study.variants:
            raise ValueError(f"there is no variant {name!r}; {strict.suggest(name, study.variants)}")
    codecs = [folder / file for file in study.before]
    with tempfile.TemporaryDirectory() as aside:
        plans = plan(study, folder, overrides, stand_ins(codecs, Path(aside)))
    write_json(out / "budgets.json", {each.name: _budget(each) for each in plans.values()})
    if plan_only:
        yield from (each.line() for each in plans.values())
        return
    moved = train_codecs(codecs, out)
    runs = [
        make_run(study, folder, out, planned, seed, overrides, moved)
        for planned in plans.values()
        for seed in (study.seeds if seeds is None else seeds)
    ]
    failure = None
    try:
        run_all([run for run in runs if only is None or run.name in only], jobs)
    except ValueError as error:
        failure = error  # after the report of what there is
    content = summarise(study, runs)
    write_json(out / "study.json", content)
    yield from (sentence for question in content["questions"] for sentence in question["came_out"])
    yield str(pages.write_study(out, content, {run.name: curves_of(run, runs) for run in runs}))
    if failure is not None:
        raise failure


def _budget(planned: Planned) -> dict:
    return {
        "steps": planned.steps, "flops": planned.flops, "tokens": planned.tokens,
        "of_a_step": asdict(planned.measured),
    }  # fmt: skip


def _words(study: StudyConfig, folder: Path, name: str, overrides: Sequence[str], moved: Moved) -> tuple[str, ...]:
    """All overrides of a variant but those of the single run."""
    given = {word.partition("=")[0] for word in overrides}
    paths = redirect(strict.read(folder / study.file_of(name)), moved)
    return (*(word for word in paths if word.partition("=")[0] not in given), *overrides)


def plan(study: StudyConfig, folder: Path, overrides: Sequence[str], moved: Moved) -> dict[str, Planned]:
    """Steps of every variant, by its budget."""
    configs = {
        name: load_config(folder / study.file_of(name), _words(study, folder, name, overrides, moved))
        for name in study.variants
    }
    _check_measures(study, configs)
    measured = {name: measure(config) for name, config in configs.items()}
    steps: dict[str, int] = {}
    names = sorted(study.variants, key=lambda name: study.budget_of(name).source is not None)  # these need the others'
    for name in names:
        steps[name] = _steps(name, study.budget_of(name), measured, steps)
    return {name: Planned(name, measured[name], steps[name]) for name in study.variants}


def _check_measures(study: StudyConfig, configs: dict[str, TrainConfig]) -> None:
    """Raises ValueError for a measure that the runs of an arm will not have."""
    for place, question in enumerate(study.questions):
        for measure_name in question.measures:
            for arm, variant in question.arms.items():
                try:
                    check_number(question.number(measure_name, arm), configs[variant], study.suite)
                except ValueError as error:
                    raise ValueError(
                        f"{FILE}: questions.{place}.measures.{measure_name} is, for {variant}, {error}"
                    ) from error


def _steps(name: str, budget: BudgetConfig, measured: dict[str, Measured], steps: dict[str, int]) -> int:
    own = measured[name]
    if budget.flops is not None:
        wanted, of_step, what = budget.flops, own.flops, "FLOPs"
    elif budget.tokens is not None:
        wanted, of_step, what = budget.tokens, own.tokens, "tokens"
    else:
        other = measured[budget.as_in]
        for variant, of_variant in ((name, own), (budget.as_in, other)):
            if budget.source not in of_variant.source_tokens:
                raise ValueError(
                    f"variants.{name}.budget.source is {budget.source!r}, but {variant} has the sources "
                    f"{', '.join(of_variant.source_tokens)}"
                )
        wanted, what = steps[budget.as_in] * other.source_tokens[budget.source], f"tokens of {budget.source}"
        of_step = own.source_tokens[budget.source]
    count = round(wanted / of_step)
    if count < 1 or abs(count * of_step - wanted) > LARGEST_FLAW * wanted:
        raise ValueError(
            f"{name}: a budget of {wanted:.3g} {what} is {wanted / of_step:.2f} steps of {of_step:.3g}; runs cannot be "
            "made equal by so few, so raise the budget or make steps smaller (data.per_device_batch_size)"
        )
    return count


def make_run(
    study: StudyConfig, folder: Path, out: Path, planned: Planned, seed: int, overrides: Sequence[str], moved: Moved
) -> Run:
    place, file = out / planned.name / f"seed_{seed}", folder / study.file_of(planned.name)
    words = (*_words(study, folder, planned.name, overrides, moved), *overrides_of(place, planned.steps, seed))
    scoring = None
    if study.suite is not None:
        draw, answer = trained_paths(load_config(file, words))
        scoring = Scoring(study.suite, study.samples, SCORING_SEED, draw, answer)
    about = {"parameters": planned.measured.parameters, "without_embeddings": planned.measured.without_embeddings}
    return Run(planned.name, seed, place, file, words, scoring, about)


# ----------------------------------------------------------------------------------------------------- what came out


def summarise(study: StudyConfig, runs: Sequence[Run]) -> dict:
    """All that the report says, of the runs that are finished, as JSON."""
    results = [run.result() for run in runs if run.is_finished]
    numbers: dict[str, dict[int, dict]] = {}
    for result in results:
        numbers.setdefault(result["name"], {})[result["seed"]] = result["numbers"]
    missing = [f"{run.name}, seed {run.seed}" for run in runs if not run.is_finished]
    return {
        "title": study.title, "summary": study.summary, "suite": study.suite, "samples": study.samples,
        "questions": [_answer(question, numbers) for question in study.questions], "runs": results, "missing": missing,
        "command": environment.command(), "versions": environment.versions(), "hardware": environment.hardware(),
    }  # fmt: skip


def _answer(question: QuestionConfig, numbers: dict[str, dict[int, dict]]) -> dict:
    """A question with its comparisons; a measure that a finished run does not have is said."""
    comparisons, unknown = [], []
    for measure_name in question.measures:
        values = {}
        for arm, variant in question.arms.items():
            number = question.number(measure_name, arm)
            of_seeds = numbers.get(variant, {})
            if of_seeds and not any(number in has for has in of_seeds.values()):
                unknown.append(f"{measure_name}: {variant} has no number {number}")
            values[arm] = {seed: has[number] for seed, has in of_seeds.items() if number in has}
        less_is_better = is_loss(question.number(measure_name, next(iter(question.arms))))
        if compared := compare(measure_name, values, less_is_better, question.expected):
            comparisons.append(compared)
    told = [sentence for compared in comparisons for sentence in sentences(compared)]
    return {
        "question": question.question, "arms": question.arms, "papers": question.papers, "expected": question.expected,
        "comparisons": [_as_json(compared) for compared in comparisons],
        "came_out": told or ["No seed has all of its runs yet."], "unknown": unknown,
    }  # fmt: skip


def _as_json(compared: ArmComparison) -> dict:
    verdicts = [difference.verdict for difference in compared.differences]
    content = json.loads(json.dumps(asdict(compared)))
    for difference, verdict in zip(content["differences"], verdicts, strict=True):
        difference["verdict"] = verdict
    return content


def curves_of(run: Run, runs: Sequence[Run]) -> dict[str, list]:
    """Held-out losses of a variant over its training FLOPs, a curve for each seed that has begun: name -> curves."""
    curves: dict[str, list] = {}
    for each in (each for each in runs if each.name == run.name):
        logged = read_curves(each.folder / "metrics.jsonl")
        spent, total = {}, 0.0
        for step, flops in zip(*logged.get("flops", ((), ())), strict=True):
            total += flops
            spent[step] = total
        for name, (steps, values) in logged.items():
            if name.startswith("validation/") and all(step in spent for step in steps):
                curves.setdefault(name, []).append(([spent[step] for step in steps], values))
    return curves
