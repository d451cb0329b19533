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
from hybridgen.evaluation.suites import OWN_DATA, SUITES, find_suite, options_by_suite

ABOUT = """\
Draw, ask and score what a suite holds, and write scores.json and report.html: every number with its count and
95 % interval, beside what a constant answer, a blank picture and the true pictures score; pictures with the worst
first. What is done is kept in the folder piece by piece: the same command goes on after a stop, also on another
number of processes (accelerate launch -m hybridgen evaluate ...).

examples:
  hybridgen evaluate runs/demo/checkpoint --suite dolls --out scores
  hybridgen evaluate runs/demo/checkpoint --suite dolls --draw diffusion --answer --guidance 2 --out guidance2
"""


def add_arguments(commands) -> None:
    command = new_command(commands, "evaluate", "score a checkpoint on one suite or several", ABOUT)
    command.epilog += f"\n{suites_help()}"
    add_checkpoint(command)
    add_evaluation(command, required=True)
    command.add_argument("--out", type=path_to, required=True, metavar="DIR", help="folder for all that is written")


def suites_help() -> str:
    """The suites and their options, for the help."""
    lines = ["suites:"]
    for name, suite in {**SUITES, "FILE.jsonl": OWN_DATA}.items():
        lines.append(f"  {name:<12}{suite.about}")
        lines += [f"{'':<14}--option {key}=...  {about}" for key, about in suite.options.items()]
    return "\n".join(lines)


def add_evaluation(command, required: bool) -> None:
    """What is evaluated, and how."""
    what = command.add_argument_group("what to evaluate")
    what.add_argument(
        "--suite", required=required, type=suite_names, metavar="NAME[,NAME]",
        help="one or several of those below, or a .jsonl file of chat records of your own",
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


def check(options: argparse.Namespace) -> None:
    """Raises ValueError for what shows without opening the checkpoint."""
    check_evaluation(options)
    check_out(options.out)
    require_checkpoint(options.checkpoint)


def check_evaluation(options: argparse.Namespace) -> None:
    """Raises ValueError for what `add_evaluation` took and cannot be."""
    check_suites(options.suite, [key for key, _ in options.option])
    check_drawing(options, draw_paths(options))
    if options.draw == [] and options.answer == [] and not options.chat:
        raise ValueError("nothing is to be evaluated: --draw and --answer name no path; name one, or leave one out")


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
