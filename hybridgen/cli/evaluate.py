"""`hybridgen evaluate`: scores of a checkpoint on one suite or several; `evaluation.run` draws, asks and scores.

`accelerate launch -m hybridgen evaluate ...` does it with several processes, of which the first alone speaks and writes
scores and the page.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

from hybridgen.bridges.adapters import open_pipeline
from hybridgen.cli.arguments.evaluate import draw_paths
from hybridgen.cli.arguments.types import DRAWING_OPTIONS, drawing_settings
from hybridgen.cli.running import best_device
from hybridgen.core.files import write_whole
from hybridgen.core.names import OF_PATH, WRITING_PATHS, check_belongs
from hybridgen.core.progress import task_line
from hybridgen.evaluation.generation import DrawSettings
from hybridgen.evaluation.page import PAGE, render_evaluation
from hybridgen.evaluation.processes import Processes
from hybridgen.evaluation.result import Result
from hybridgen.evaluation.run import evaluate_suites, scores_of
from hybridgen.evaluation.scores import in_lines, save_scores
from hybridgen.evaluation.work import TaskProgress
from hybridgen.pipeline_hybridgen import HybridGenPipeline
from hybridgen.training.distributed.launched import quiet_libraries

STOPPED = "what was drawn and answered is kept: the same command goes on from there"  # after Ctrl-C


def run(options: argparse.Namespace) -> Iterator[str]:
    """Yields the scores, then the files they were written to."""
    scores = evaluate_into(options.checkpoint, options, options.out)
    if scores is not None:
        yield from in_lines(scores)
        yield from (str(options.out / name) for name in ("scores.json", PAGE))


def evaluate_into(checkpoint: Path, options: argparse.Namespace, out: Path) -> dict | None:
    """Evaluate a checkpoint into a folder; returns the scores that were written, in the first process alone."""
    with Processes.launched() as processes, task_line(processes.is_main) as progress:
        if not processes.is_main:
            quiet_libraries(also_warnings=True)
        results = _evaluate(checkpoint, options, out, progress)
    if not processes.is_main:
        return None
    scores = scores_of(results, options.seed, processes.count) | {"checkpoint": str(checkpoint)}
    save_scores(scores, out)
    write_whole(out / PAGE, render_evaluation(results, scores, out))
    return scores


def _evaluate(checkpoint: Path, options: argparse.Namespace, out: Path, progress: TaskProgress) -> dict[str, Result]:
    """What the options say (`arguments.evaluate.add_evaluation`)."""
    settings = drawing_settings(options)
    pipeline = best_device(open_pipeline(checkpoint))
    check_belongs(settings, [path for path in WRITING_PATHS if path in pipeline.model.config.paths], DRAWING_OPTIONS)
    return evaluate_suites(
        pipeline,
        options.suite,
        samples=options.samples,
        seed=options.seed,
        draw_paths=draw_paths(options),
        answer_paths=options.paths if options.answer is None else options.answer,
        chat_paths=options.chat or [],
        settings={path: _draw_settings(settings, pipeline, path) for path in WRITING_PATHS},
        options=dict(options.option),
        out=out,
        progress=progress,
    )


def _draw_settings(settings: dict, pipeline: HybridGenPipeline, path: str) -> DrawSettings:
    """All settings of a path: those of the command line, else as the checkpoint draws."""
    of_path = {name: value for name, value in settings.items() if name in OF_PATH[path]}
    return DrawSettings.of(path, pipeline.sampling_settings(path, **of_path))
