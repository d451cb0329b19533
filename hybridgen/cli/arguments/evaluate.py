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
from hybridgen.core.values import shown
from hybridgen.evaluation.suites import SUITES, find_suite, options_by_suite

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
    what.add_argument(
        "--suite", required=True, type=suite_names, metavar="NAME[,NAME]",
        help=f"one or several of {', '.join(SUITES)}, or a .jsonl file of chat records of your own",
    )  # fmt: skip
    what.add_argument(
        "--option", type=key_and_value, action="append", default=[], metavar="KEY=VALUE",
        help="a setting of a suite (below); SUITE:KEY=VALUE is for one of several",
    )  # fmt: skip
    paths = {"type": path_name, "metavar": "PATH"}
    what.add_argument("--paths", nargs="+", help="paths to draw by and to answer through (default: all)", **paths)
    what.add_argument("--draw", nargs="*", help="paths to draw by, if not --paths; none named = do not draw", **paths)
    what.add_argument("--answer", nargs="*", help="paths to answer through, likewise", **paths)
    what.add_argument(
        "--chat", nargs="+", help="paths by which conversations draw, which are then held, too (default: none)", **paths
    )
    what.add_argument("--samples", type=picture_count, help="items of each suite (default: as many as is usual for it)")
    what.add_argument("--seed", type=seed_number, default=0, help="seed of samples and drawing (default: 0)")
    add_drawing_options(command.add_argument_group("how to draw"))
    command.add_argument("--out", type=path_to, required=True, metavar="DIR", help="folder for scores.json")


def check(options: argparse.Namespace) -> None:
    """Raises ValueError for what shows without opening the checkpoint."""
    check_suites(options.suite, [key for key, _ in options.option])
    check_drawing(options, draw_paths(options))
    if options.draw == [] and options.answer == [] and not options.chat:
        raise ValueError("nothing is to be evaluated: --draw and --answer name no path; name one, or leave one out")
    check_out(options.out)
    require_checkpoint(options.checkpoint)


def suite_names(text: str) -> list[str]:
    """Names between commas."""
    return [name.strip() for name in text.split(",")]


def key_and_value(text: str) -> tuple[str, str]:
    key, sign, value = text.partition("=")
    if not key or not sign:
        raise argparse.ArgumentTypeError(f"{shown(text)} is no KEY=VALUE")
    return key, value


def check_suites(suites: list[str], options: list[str]) -> None:
    """Raises ValueError for suites or options of theirs that there are not, and for what is given twice."""
    for name in suites:
        find_suite(name)
    for kind, words in (("suite", suites), ("option", options)):
        if twice := [word for word in words if words.count(word) > 1]:
            raise ValueError(f"{kind} {twice[0]} is given twice; give it once")
    options_by_suite(suites, dict.fromkeys(options))


def draw_paths(options: argparse.Namespace) -> list[str] | None:
    """The paths to draw by that a command line names; None = all that the checkpoint has."""
    if options.draw is not None or options.paths is None:
        return options.draw
    return [path for path in options.paths if path in WRITING_PATHS]
