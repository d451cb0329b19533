"""The command line: `hybridgen train | sample | replay | chat | ask | ...`.

A command is two files of one name, and a line in `COMMANDS` and in `arguments.parser.ARGUMENTS`:

    arguments/NAME.py   add_arguments(commands)   what it takes, and its help
                        check(options)            refuses what shows without loading a library
    NAME.py             run(options)              does it; yields the lines of its result, may return an exit code
                        STOPPED                   what is safe after Ctrl-C, in words

stdout carries results alone (paths written, an answer), because people pipe it; progress, warnings and whatever
libraries print go to stderr. An error that the user can mend is one sentence there, with exit code 2; an exception that
nobody foresaw keeps its traceback (`errors`). The script itself is `hybridgen_command`, beside the package.
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from typing import TextIO

from hybridgen.cli import (
    app,
    ask,
    chat,
    compare,
    convert,
    data,
    demo,
    evaluate,
    init,
    merge,
    new,
    plan,
    replay,
    sample,
    scale,
    serve,
    study,
    train,
)
from hybridgen.cli.arguments.parser import parse
from hybridgen.cli.errors import exit_code
from hybridgen.cli.quiet import libraries_quiet
from hybridgen.core.progress import above

COMMANDS = {
    "demo": demo,
    "new": new,
    "init": init,
    "convert": convert,
    "merge": merge,
    "data": data,
    "plan": plan,
    "train": train,
    "sample": sample,
    "replay": replay,
    "chat": chat,
    "ask": ask,
    "serve": serve,
    "app": app,
    "evaluate": evaluate,
    "compare": compare,
    "study": study,
    "scale": scale,
}


def main(words: Sequence[str] | None = None) -> int:
    """Run one command (None = the words of `sys.argv`); returns the exit code: 0, 2 for what the user can mend, 130
    after Ctrl-C."""
    return exit_code(lambda: run(parse(words)))


def run(options: argparse.Namespace) -> int:
    """Run a command whose arguments are parsed; returns its exit code.

    Raises:
        KeyboardInterrupt: Ctrl-C; it says what is safe.
        ValueError, OSError: what the user can mend, in one sentence.
    """
    command, results = COMMANDS[options.command], sys.stdout
    try:
        with contextlib.redirect_stdout(sys.stderr), libraries_quiet():  # results go to the real stdout
            return _print_all(command.run(options), results)
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(f"stopped; {command.STOPPED}") from stop


def _print_all(lines: Iterator[str], results: TextIO) -> int:
    """Print what a command yields; returns the exit code that it returns, 0 where it returns none."""
    while True:
        try:
            line = next(lines)
        except StopIteration as done:
            return done.value or 0
        try:
            with above():
                print(line, file=results, flush=True, end="" if isinstance(line, chat.StreamedText) else "\n")
        except BrokenPipeError:
            raise
        except OSError as error:  # results go into a file on a full disk; the interpreter would flush them once more
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115
            raise OSError(error.errno, error.strerror, "standard output") from error
