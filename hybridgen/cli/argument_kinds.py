"""Kinds of arguments, and how a command and its errors look: what every part of the command line shares.

The fact a newcomer gets wrong: argparse turns only an `ArgumentTypeError` into its own sentence; any other error of a
converter loses its words.
"""

import argparse
import re
from collections.abc import Callable
from pathlib import Path

from hybridgen.core.layout import PATHS


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, like every other error of ours; `overrides` may stand after options."""

    def parse_args(self, args=None, namespace=None) -> argparse.Namespace:
        options, rest = self.parse_known_args(args, namespace)
        if hasattr(options, "overrides") and not any(word.startswith("-") for word in rest):
            options.overrides, rest = [*options.overrides, *rest], []  # argparse gives up on them after an option
        if rest:
            self.error(f"unrecognized arguments: {' '.join(rest)}")
        return options

    def error(self, message: str) -> None:
        self.exit(2, f"hybridgen: {message}; `{self.prog} --help` shows how it is used\n")


KeepLines = argparse.RawDescriptionHelpFormatter


def command_of(commands, name: str, short: str, about: str) -> argparse.ArgumentParser:
    """A command; `about` is what it does and, after a line `examples:`, how it is called."""
    lines = [line.removeprefix(" " * 8) for line in about.splitlines()]
    cut = lines.index("examples:")
    long, examples = "\n".join(lines[:cut]), "\n".join(lines[cut:])
    return commands.add_parser(name, help=short, description=long, epilog=examples, formatter_class=KeepLines)


def add_checkpoint(command) -> None:
    command.add_argument(
        "checkpoint", metavar="CHECKPOINT", type=Path, help="folder of a saved pipeline, or of an adapter"
    )


def whole(lowest: int) -> Callable[[str], int]:
    def convert(text: str) -> int:
        if not text.isascii() or not text.isdigit() or int(text) < lowest:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {lowest}")
        return int(text)

    return convert


def widths(text: str) -> list[int]:
    return [whole(1)(width.strip()) for width in text.split(",")]


def file_size(text: str) -> str:
    if not re.fullmatch(r"[1-9]\d*(\.\d+)?[KMGT]B", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 500MB or 5GB")
    return text


def real(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 0")
    return number


def path_names(text: str) -> list[str]:
    return [path_name(name.strip()) for name in text.split(",")]


def path_name(text: str) -> str:
    if text not in PATHS:
        raise argparse.ArgumentTypeError(f"there is no path {text!r}; choose among {', '.join(PATHS)}")
    return text
