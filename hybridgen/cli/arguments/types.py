"""The parser, types of arguments, and the arguments that several commands share.

A command's own arguments stand in its file here. What can be checked before a checkpoint is open is checked while
parsing: that `vq` is a path, not that the checkpoint has it.

argparse and not typer, because parsers built on click know no option with zero or more values, as `evaluate --draw`
(none named: do not draw) and `--paths understanding vq` are.
"""

import argparse
import re
from collections.abc import Callable
from pathlib import Path

from hybridgen.core import recognition
from hybridgen.core.launched import is_first, report_failure
from hybridgen.core.names import DEFAULTS, MOST_IMAGES, PATHS, PRECISIONS, check_belongs, check_values
from hybridgen.core.values import shown

OVERRIDES_HELP = "settings that replace those of the file, such as steps=100 or optimizer.lr=1e-3"

KeepLines = argparse.RawDescriptionHelpFormatter


_GIVEN = "options that were given"  # where a namespace holds them while it is filled


class _Once(argparse.Action):
    """Refuses an option that is given again; where several values are meant, an option says action="append"."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        given = vars(namespace).setdefault(_GIVEN, set())
        if option_string is not None and self.dest in given:
            once = "give it once, with all its values" if self.nargs in ("+", "*") else "give it once"
            parser.error(f"{self.option_strings[-1]} is given twice; {once}")
        given.add(self.dest)
        super().__call__(parser, namespace, values, option_string)


class _StoreOnce(_Once, argparse._StoreAction):
    """What `add_argument` makes unless told otherwise."""


class _FlagOnce(_Once, argparse._StoreTrueAction):
    """action="store_true"."""


class CommandParser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, like every other error of ours; an option is given once, or said to be one of
    several; `overrides` may stand after options."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        for action in (None, "store"):
            self.register("action", action, _StoreOnce)
        self.register("action", "store_true", _FlagOnce)

    def parse_args(self, args=None, namespace=None) -> argparse.Namespace:
        options, unknown = self.parse_known_args(args, namespace)
        vars(options).pop(_GIVEN, None)
        if hasattr(options, "overrides"):
            if not any(word.startswith("-") for word in unknown):
                options.overrides, unknown = [*options.overrides, *unknown], []  # argparse reads none after an option
            self._check_keys(options.overrides)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return options

    def _check_keys(self, overrides: list[str]) -> None:
        keys = [word.partition("=")[0] for word in overrides if "=" in word]
        if twice := [key for key in keys if keys.count(key) > 1]:
            self.error(f"{twice[0]} is given twice; give it once")

    def error(self, message: str) -> None:
        sentence = f"hybridgen: {message}; `{self.prog} --help` shows how it is used"
        report_failure(sentence)
        self.exit(2, f"{sentence}\n" if is_first() else None)


def new_command(commands, name: str, summary: str, about: str) -> argparse.ArgumentParser:
    """A command's parser.

    Args:
        commands: what `add_subparsers` returned.
        summary: for the list of commands.
        about: what the command does and, after a line `examples:`, how it is called.
    """
    description, heading, examples = about.partition("examples:\n")
    return commands.add_parser(
        name, help=summary, description=description, epilog=heading + examples, formatter_class=KeepLines
    )


# ------------------------------------------------------------------------------------------- types of arguments
# argparse shows the words of an ArgumentTypeError; any other error loses them.


def whole_number(lowest: int, highest: int | None = None) -> Callable[[str], int]:
    """The type of whole numbers of at least `lowest`, and at most `highest`."""
    rule = f"of at least {lowest}" if highest is None else f"from {lowest} to {highest}"

    def convert(text: str) -> int:
        if not text.isascii() or not text.isdigit() or len(text) > 20 or int(text) < lowest:
            raise argparse.ArgumentTypeError(f"{shown(text)} is not a whole number {rule}")
        if highest is not None and int(text) > highest:
            raise argparse.ArgumentTypeError(f"{shown(text)} is not a whole number {rule}")
        return int(text)

    return convert


# one side of a picture in pixels; what the checkpoint can draw is known once it is open
picture_side = whole_number(1, 65_536)
picture_count = whole_number(1, MOST_IMAGES)
seed_number = whole_number(0, 2**64 - 1)


def nonnegative_number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"{shown(text)} is not a number of at least 0")
    return number


def positive_number(text: str) -> float:
    if not (number := nonnegative_number(text)):
        raise argparse.ArgumentTypeError(f"{shown(text)} is not a number above 0")
    return number


def share(text: str) -> float:
    """A number from 0 to 1."""
    if (number := nonnegative_number(text)) > 1:
        raise argparse.ArgumentTypeError(f"{shown(text)} is not a number from 0 to 1")
    return number


def share_above_0(text: str) -> float:
    """A number above 0 and at most 1."""
    if not 0 < (number := nonnegative_number(text)) <= 1:
        raise argparse.ArgumentTypeError(f"{shown(text)} is not a number above 0 and at most 1")
    return number


def path_to(text: str) -> Path:
    """A path of the file system, `~` resolved. Whether something is there is checked once all is parsed."""
    try:
        return recognition.user_path(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def path_name(text: str) -> str:
    """The name of a path through the backbone."""
    if text not in PATHS:
        raise argparse.ArgumentTypeError(f"there is no path {shown(text)}; choose among {', '.join(PATHS)}")
    return text


def path_names(text: str) -> list[str]:
    """Several, separated by commas."""
    return [path_name(name.strip()) for name in text.split(",")]


def channel_counts(text: str) -> list[int]:
    """Whole numbers, separated by commas."""
    return [whole_number(1)(count.strip()) for count in text.split(",")]


def file_size(text: str) -> str:
    if not re.fullmatch(r"[1-9]\d*(\.\d+)?[KMGT]B", text):
        raise argparse.ArgumentTypeError(f"{shown(text)} is no size such as 500MB or 5GB")
    return text


# ----------------------------------------------------------------------------- arguments that several commands share

DRAWING_OPTIONS = {  # settings of drawing, as the pipeline calls them -> options
    "num_inference_steps": "--steps",
    "guidance_scale": "--guidance",
    "guidance_rescale": "--guidance-rescale",
    "guidance_interval": "--guidance-interval",
    "image_guidance_scale": "--image-guidance",
    "shift": "--shift",
    "forecast": "--forecast",
    "temperature": "--temperature",
    "top_k": "--top-k",
    "top_p": "--top-p",
    "precision": "--precision",
    "window": "--window",
}


def drawing_settings(options: argparse.Namespace) -> dict:
    """The settings of drawing that a command line names, as the pipeline calls them.

    An option that is not given is None and no default: the checkpoint may have a default of its own.
    """
    attributes = {name: option.removeprefix("--").replace("-", "_") for name, option in DRAWING_OPTIONS.items()}
    values = {name: getattr(options, attribute, None) for name, attribute in attributes.items()}
    return {name: value for name, value in values.items() if value is not None}


def check_drawing(options: argparse.Namespace, paths: list[str] | None) -> None:
    """Raises ValueError for a setting of drawing that means nothing, or is of another path than those that are drawn
    by; None = not known yet."""
    check_values(settings := drawing_settings(options), DRAWING_OPTIONS)
    if paths is not None:
        check_belongs(settings, paths, DRAWING_OPTIONS)


def check_image(what: str, file: Path) -> None:
    """Raises ValueError where a picture is not there."""
    if (link := recognition.nowhere(file)) is not None:
        raise ValueError(f"{what} {file} {link}; name the picture itself")
    if not recognition.is_there(file):
        near = recognition.nearest(file)
        raise ValueError(f"there is no image {file}" + ("" if near is None else f"; did you mean {near}?"))
    if file.is_dir():
        raise ValueError(f"{what} {file} is a folder, not a picture; name a file")


def check_out(folder: Path) -> None:
    """Raises ValueError, before anything long begins, for an --out that cannot be written to."""
    recognition.check_parents(folder, "another --out")


def add_drawing_options(group) -> None:
    """What `drawing_settings` reads."""
    for option, kind, meaning in (
        ("--steps", whole_number(1), "diffusion path: denoising steps"),
        ("--guidance", nonnegative_number, "1 = none, more = closer to the prompt"),
        ("--temperature", nonnegative_number, "vq path: 0 = the likeliest code, 1 = by its probability"),
        ("--top-k", whole_number(0), "vq path: keep the k likeliest codes; 0 = all"),
        ("--top-p", share_above_0, "vq path: keep the likeliest codes that together have this probability"),
        ("--forecast", whole_number(1), "diffusion path: compute every Nth step, forecast those between"),
        ("--window", whole_number(1), "vq path: codes read at once, at most, guessing ahead"),
    ):
        group.add_argument(option, type=kind, help=f"{meaning} ({default_of(option)})")
    add_precision(group)


def add_precision(group) -> None:
    """What weights are multiplied in."""
    how = f"of the weights that read, write and draw; model = as saved ({default_of('--precision')})"
    group.add_argument("--precision", choices=PRECISIONS, help=how)


_TEXT_OPTIONS = ("temperature", "top-k", "top-p")


def add_text_options(group, prefix: str) -> None:
    """How words are drawn; `prefix`: of the options' names."""
    likeliest = "the likeliest word each time"
    for name, kind, meaning in zip(
        _TEXT_OPTIONS,
        (nonnegative_number, whole_number(0), nonnegative_number),
        (
            f"1 = words by their probability, 0 = {likeliest} (default, unless another is given)",
            "draw among the k likeliest words; 0 = all",
            "draw among the likeliest words that together have this probability",
        ),
        strict=True,
    ):
        group.add_argument(f"--{prefix}{name}", type=kind, metavar="K" if name == "top-k" else "X", help=meaning)


def check_text_options(options: argparse.Namespace, prefix: str) -> None:
    """Raises ValueError for one of `add_text_options` that means nothing."""
    names = {name.replace("-", "_"): f"--{prefix}{name}" for name in _TEXT_OPTIONS}
    attributes = {name: option.removeprefix("--").replace("-", "_") for name, option in names.items()}
    check_values({name: getattr(options, attribute) for name, attribute in attributes.items()}, names)


def default_of(option: str) -> str:
    """What the help of an option of drawing says of its default."""
    setting = next(setting for setting, its_option in DRAWING_OPTIONS.items() if its_option == option)
    package = DEFAULTS[setting]
    package = " ".join(f"{value:g}" for value in package) if isinstance(package, list) else package
    package = f"{package:g}" if isinstance(package, float) else "as many as pay" if package is None else package
    return f"default: the checkpoint's, else {package}"


def checkpoint_to(text: str) -> Path:
    """The folder of a checkpoint, also by the name of one that comes with the package."""
    try:
        return recognition.checkpoint_path(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def add_checkpoint(command, default: str | None = None) -> None:
    """The positional CHECKPOINT; it may be left out where there is a `default` that this installation has."""
    has_default = default is not None and recognition.checkpoint_path(default).is_dir()
    optional = {"nargs": "?", "default": default} if has_default else {}
    told = f" (default: {default}, the model that comes with hybridgen)" if has_default else ""
    command.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        type=checkpoint_to,
        help="folder of a saved pipeline, or of an adapter" + told,
        **optional,
    )


def add_overrides(command, meaning: str = OVERRIDES_HELP) -> None:
    """`KEY=VALUE` words; they may stand before, between and after options."""
    command.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=meaning)
