"""All commands' arguments together: the parser of the command line, and what is refused before anything is loaded."""

import argparse
import sys
from collections.abc import Sequence

from hybridgen.cli.arguments import (
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
from hybridgen.cli.arguments.types import CommandParser, KeepLines
from hybridgen.cli.errors import exit_code
from hybridgen.core.utf8 import check_text
from hybridgen.version import __version__

ARGUMENTS = {  # in the order of the help
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
ABOUT = """\
One transformer for text and images. It reads pictures through three paths and draws them by two:

  understanding   reads, through a vision tower
  diffusion       reads clean patches, draws by denoising
  vq              reads codes of a tokenizer, draws code by code
"""
EXAMPLES = """\
examples:
  hybridgen demo
  hybridgen new mine --data pictures/
  hybridgen sample runs/demo/checkpoint --prompt "a minotaur wearing a gray robe, black background" --out pictures
  hybridgen ask runs/demo/checkpoint --image minotaur.png --question "what creature is this?"
  hybridgen evaluate runs/demo/checkpoint --suite dolls --out scores

Results go to stdout, everything else to stderr. Exit codes: 0 done, 1 a replay that differs or a plan that does not
fit, 2 something that you can mend (one sentence says what), 130 stopped with Ctrl-C. `hybridgen COMMAND --help` tells
more.
"""


def parser() -> CommandParser:
    """Everything the command line takes."""
    top = CommandParser(prog="hybridgen", description=ABOUT, epilog=EXAMPLES, formatter_class=KeepLines)
    top.add_argument("--version", action="version", version=f"hybridgen {__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True)
    for command in ARGUMENTS.values():
        command.add_arguments(commands)
    return top


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of a command line (None = `sys.argv`), checked as far as can be without loading a library.

    Raises:
        SystemExit: 0 after help or version, 2 after a mistake, which is told in one sentence.
        ValueError, OSError: in one sentence, what cannot be.
    """
    options = parser().parse_args(words)
    _check_texts(options)
    ARGUMENTS[options.command].check(options)
    return options


def _check_texts(options: argparse.Namespace) -> None:
    """Raises ValueError for a text that is not UTF-8. Files may be called what they like."""
    for name, value in vars(options).items():
        what = "an argument" if name == "overrides" else f"--{name.replace('_', '-')}"
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str):
                check_text(text, what)


def refuse_mistakes() -> None:
    """End the process where the words of `sys.argv` are a mistake, or ask for help; else do nothing."""

    def only_parse() -> int:
        parse()
        return 0

    if code := exit_code(only_parse):
        sys.exit(code)
