"""What `hybridgen evaluate` takes."""

import argparse

from hybridgen.cli.arguments.types import (
    add_checkpoint,
    add_drawing_options,
    check_drawing,
    check_out,
    new_command,
    path_name,
    path_to,
    picture_count,
    seed_number,
)
from hybridgen.core.names import WRITING_PATHS
from hybridgen.core.recognition import require_checkpoint
from hybridgen.data.synthetic import DATASETS

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
    what.add_argument("--suite", required=True, help=" or ".join(DATASETS))
    paths = {"type": path_name, "metavar": "PATH"}
    what.add_argument("--paths", nargs="+", help="paths to draw by and to answer through (default: all)", **paths)
    what.add_argument("--draw", nargs="*", help="paths to draw by, if not --paths; none named = do not draw", **paths)
    what.add_argument("--answer", nargs="*", help="paths to answer through, likewise", **paths)
    what.add_argument(
        "--chat", nargs="+", help="paths by which conversations draw, which are then held, too (default: none)", **paths
    )
    what.add_argument(
        "--samples", type=picture_count, default=256, help="pictures drawn and asked about (default: 256)"
    )
    what.add_argument("--seed", type=seed_number, default=0, help="seed of samples and drawing (default: 0)")
    add_drawing_options(command.add_argument_group("how to draw"))
    command.add_argument("--out", type=path_to, required=True, metavar="DIR", help="folder for scores.json")


def check(options: argparse.Namespace) -> None:
    """Raises ValueError for what shows without opening the checkpoint."""
    if options.suite not in DATASETS:
        raise ValueError(f"there is no suite {options.suite!r}; choose {' or '.join(DATASETS)}")
    check_drawing(options, draw_paths(options))
    if options.draw == [] and options.answer == [] and not options.chat:
        raise ValueError("nothing is to be evaluated: --draw and --answer name no path; name one, or leave one out")
    check_out(options.out)
    require_checkpoint(options.checkpoint)


def draw_paths(options: argparse.Namespace) -> list[str] | None:
    """The paths to draw by that a command line names; None = all that the checkpoint has."""
    if options.draw is not None or options.paths is None:
        return options.draw
    return [path for path in options.paths if path in WRITING_PATHS]
