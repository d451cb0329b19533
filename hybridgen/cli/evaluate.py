"""`hybridgen evaluate`: scores of a checkpoint on held-out pictures; `evaluation.suites` draws, asks and scores."""

import argparse
from collections.abc import Iterator
from pathlib import Path

from hybridgen.bridges.adapters import open_pipeline
from hybridgen.cli.arguments import (
    DRAWING_OPTIONS,
    add_checkpoint,
    add_drawing_options,
    drawing_settings,
    new_command,
    path_name,
    whole_number,
)
from hybridgen.cli.pictures import writable_folder
from hybridgen.cli.running import best_device, progress_bars
from hybridgen.evaluation import suites
from hybridgen.evaluation.generation import DrawSettings
from hybridgen.evaluation.scores import in_lines, save_scores
from hybridgen.pipeline_hybridgen import HybridGenPipeline
from hybridgen.sampling.settings import OF_PATH, WRITING_PATHS, check_belongs

ABOUT = """\
Draw held-out captions, answer held-out questions, score both exactly, and write scores.json: for each path
and category the share that is right, with counts and a 95 % interval, beside what a constant answer, a blank
picture and the true pictures score. An older scores.json in the folder is replaced, once all is done.

examples:
  hybridgen evaluate runs/demo/checkpoint --suite dolls --out scores
  hybridgen evaluate runs/demo/checkpoint --suite dolls --draw diffusion --answer --guidance 2 --out guidance2
"""


def add_arguments(commands) -> None:
    command = new_command(commands, "evaluate", "score a checkpoint on held-out pictures", ABOUT)
    add_checkpoint(command)
    what = command.add_argument_group("what to evaluate")
    what.add_argument("--suite", required=True, help=" or ".join(suites.SUITES))
    paths = {"type": path_name, "metavar": "PATH"}
    what.add_argument("--paths", nargs="+", help="paths to draw by and to answer through (default: all)", **paths)
    what.add_argument("--draw", nargs="*", help="paths to draw by, if not --paths; none named = do not draw", **paths)
    what.add_argument("--answer", nargs="*", help="paths to answer through, likewise", **paths)
    what.add_argument(
        "--samples", type=whole_number(1), default=256, help="pictures drawn and asked about (default: 256)"
    )
    what.add_argument("--seed", type=whole_number(0), default=0, help="seed of samples and drawing (default: 0)")
    add_drawing_options(command.add_argument_group("how to draw"))
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for scores.json")


def run(options: argparse.Namespace) -> Iterator[str]:
    """Yields the scores, then the file they were written to."""
    suites.open_suite(options.suite)
    settings = drawing_settings(options)
    draw_paths = _writing_paths(options.paths) if options.draw is None else options.draw
    if draw_paths is not None:
        check_belongs(settings, draw_paths, DRAWING_OPTIONS)
    out = writable_folder(options.out)
    pipeline = best_device(open_pipeline(options.checkpoint))
    check_belongs(settings, _writing_paths(pipeline.model.config.paths), DRAWING_OPTIONS)
    with progress_bars() as progress:
        scores = suites.evaluate(
            pipeline,
            options.suite,
            samples=options.samples,
            seed=options.seed,
            draw_paths=draw_paths,
            answer_paths=options.paths if options.answer is None else options.answer,
            settings={path: _draw_settings(settings, pipeline, path) for path in WRITING_PATHS},
            progress=progress,
        ).scores
    scores["checkpoint"] = str(options.checkpoint)
    yield from in_lines(scores)
    yield str(save_scores(scores, out))


def _draw_settings(settings: dict, pipeline: HybridGenPipeline, path: str) -> DrawSettings:
    """All settings of a path: those of the command line, else as the checkpoint draws."""
    of_path = {name: value for name, value in settings.items() if name in OF_PATH[path]}
    complete = pipeline.sampling_settings(path, **of_path)
    return DrawSettings(**{name: complete[full_name] for name, full_name in DrawSettings.names(path).items()})


def _writing_paths(paths: list[str] | None) -> list[str] | None:
    return None if paths is None else [path for path in paths if path in WRITING_PATHS]
