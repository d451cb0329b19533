"""The command line: `hybridgen train | sample | replay | chat | ask | ...`.

Each command is a file beside this one with two functions, and a line in `COMMANDS`:

    add_arguments(commands)   what it takes, and its help
    run(options)              does it; yields the lines of its result, and may return an exit code

stdout carries results alone (paths written, an answer), because people pipe it; progress, warnings and whatever
libraries print go to stderr. An error that the user can mend is one sentence there, with exit code 2; an exception that
nobody foresaw keeps its traceback.
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TextIO

import diffusers
import transformers

from hybridgen.cli import ask, chat, convert, data, demo, evaluate, init, merge, replay, sample, train
from hybridgen.cli.arguments import CommandParser, KeepLines
from hybridgen.cli.errors import is_for_the_user, one_line
from hybridgen.version import __version__

COMMANDS = {  # in the order of the help
    "demo": demo,
    "init": init,
    "convert": convert,
    "merge": merge,
    "data": data,
    "train": train,
    "sample": sample,
    "replay": replay,
    "chat": chat,
    "ask": ask,
    "evaluate": evaluate,
}
ABOUT = """\
One transformer for text and images. It reads pictures through three paths and draws them by two:

  understanding   reads, through a vision tower
  diffusion       reads clean patches, draws by denoising
  vq              reads codes of a tokenizer, draws code by code
"""
EXAMPLES = """\
examples:
  hybridgen demo
  hybridgen sample runs/demo/checkpoint --prompt "a minotaur wearing a gray robe, black background" --out pictures
  hybridgen ask runs/demo/checkpoint --image minotaur.png --question "what creature is this?"
  hybridgen evaluate runs/demo/checkpoint --suite dolls --out scores

Results go to stdout, everything else to stderr. Exit codes: 0 done, 1 a replay that differs, 2 something that you can
mend (one sentence says what), 130 stopped with Ctrl-C. `hybridgen COMMAND --help` tells more.
"""


def parser() -> CommandParser:
    """Everything the command line takes."""
    top = CommandParser(prog="hybridgen", description=ABOUT, epilog=EXAMPLES, formatter_class=KeepLines)
    top.add_argument("--version", action="version", version=f"hybridgen {__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True)
    for command in COMMANDS.values():
        command.add_arguments(commands)
    return top


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 2 for what the user can mend, 130 after Ctrl-C."""
    try:
        options = parser().parse_args(arguments)
        for library in (transformers, diffusers):
            library.utils.logging.disable_progress_bar()  # they load in seconds, and fill the screen with bars
        results = sys.stdout
        with contextlib.redirect_stdout(sys.stderr):  # libraries print; results go to the real stdout
            return _print_all(COMMANDS[options.command].run(options), results)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read our results went away, as `head` does
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (the interpreter flushes stdout once more at its end)
        return 0
    except (ValueError, OSError) as error:
        if not is_for_the_user(error):
            raise
        print(f"hybridgen: {one_line(error)}", file=sys.stderr)
        return 2


def _print_all(lines: Iterator[str], results: TextIO) -> int:
    """Print what a command yields; returns the exit code that it returns, 0 where it returns none."""
    while True:
        try:
            line = next(lines)
        except StopIteration as done:
            return done.value or 0
        print(line, file=results, flush=True, end="" if isinstance(line, chat.StreamedText) else "\n")
