"""`hybridgen evaluate`: scores of a checkpoint on one suite or several; `evaluation.run` draws, asks and scores."""

import argparse
from collections.abc import Iterator

from hybridgen.bridges.adapters import open_pipeline
from hybridgen.cli.arguments.evaluate import draw_paths
from hybridgen.cli.arguments.types import DRAWING_OPTIONS, drawing_settings
from hybridgen.cli.running import best_device, progress_bars
from hybridgen.core.names import OF_PATH, WRITING_PATHS, check_belongs
from hybridgen.evaluation.generation import DrawSettings
from hybridgen.evaluation.run import evaluate_suites, scores_of
from hybridgen.evaluation.scores import in_lines, save_scores
from hybridgen.pipeline_hybridgen import HybridGenPipeline

STOPPED = "what was drawn and answered is kept: the same command goes on from there"  # after Ctrl-C


def run(options: argparse.Namespace) -> Iterator[str]:
    """Yields the scores, then the file they were written to."""
    settings = drawing_settings(options)
    pipeline = best_device(open_pipeline(options.checkpoint))
    check_belongs(settings, [path for path in WRITING_PATHS if path in pipeline.model.config.paths], DRAWING_OPTIONS)
    with progress_bars() as progress:
        results = evaluate_suites(
            pipeline,
            options.suite,
            samples=options.samples,
            seed=options.seed,
            draw_paths=draw_paths(options),
            answer_paths=options.paths if options.answer is None else options.answer,
            chat_paths=options.chat or [],
            settings={path: _draw_settings(settings, pipeline, path) for path in WRITING_PATHS},
            options=dict(options.option),
            out=options.out,
            progress=progress,
        )
    scores = scores_of(results, options.seed) | {"checkpoint": str(options.checkpoint)}
    yield from in_lines(scores)
    yield str(save_scores(scores, options.out))


def _draw_settings(settings: dict, pipeline: HybridGenPipeline, path: str) -> DrawSettings:
    """All settings of a path: those of the command line, else as the checkpoint draws."""
    of_path = {name: value for name, value in settings.items() if name in OF_PATH[path]}
    complete = pipeline.sampling_settings(path, **of_path)
    return DrawSettings(**{name: complete[full_name] for name, full_name in DrawSettings.names(path).items()})
