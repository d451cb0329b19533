"""The command line as a whole: one sentence for what a user can mend, how commands end, the form of their files, help.

Commands run in this process through `main`; a few start Python anew, for what only a process has.
"""

import argparse
import contextlib
import inspect
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hybridgen.bridges.families import FAMILIES
from hybridgen.bridges.janus.prompts import ROLES
from hybridgen.bridges.layouts import LAYOUTS, STYLES
from hybridgen.cli import ask
from hybridgen.cli.arguments.parser import ARGUMENTS, parser
from hybridgen.cli.arguments.types import CommandParser
from hybridgen.cli.main import COMMANDS, main
from hybridgen.data.synthetic import DATASETS
from hybridgen.evaluation.suites import SUITES, open_suite
from hybridgen.version import __version__
from tests.training.processes import ProcessGroup

# ------------------------------------------------------------------------------------------- how it ends otherwise


def raising(error: BaseException):
    def command(options):
        raise error
        yield

    return command


def test_an_error_that_nobody_foresaw_keeps_its_traceback(monkeypatch, doll, tiny_checkpoint):
    """Also a ValueError, when another library raises it: it is a fault of ours, not of the user."""

    def command(options):
        yield str(int("not a number"))

    command_line = ["ask", str(tiny_checkpoint), "--image", str(doll), "--question", "?"]
    for unforeseen in (raising(KeyError("x")), raising(ValueError("raised in tests/, not in hybridgen/")), command):
        monkeypatch.setattr(ask, "run", unforeseen)
        with pytest.raises((KeyError, ValueError)):
            main(command_line)


def test_ctrl_c_is_one_line(run, monkeypatch, doll, tiny_checkpoint):
    monkeypatch.setattr(ask, "run", raising(KeyboardInterrupt()))
    expected = (130, [], "hybridgen: stopped; nothing was written\n")
    assert run("ask", tiny_checkpoint, "--image", doll, "--question", "?") == expected


def test_a_full_disk_is_said(run, monkeypatch, doll, tiny_checkpoint):
    monkeypatch.setattr(ask, "run", raising(OSError(28, "No space left on device", "runs/x.png")))
    code, _, error = run("ask", tiny_checkpoint, "--image", doll, "--question", "?")
    assert (code, error) == (2, "hybridgen: runs/x.png: No space left on device\n")


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 4 TB")])
def test_too_little_memory_is_said(run, monkeypatch, doll, tiny_checkpoint, error):
    monkeypatch.setattr(ask, "run", raising(error))
    code, _, said = run("ask", tiny_checkpoint, "--image", doll, "--question", "?")
    assert (code, len(said.splitlines())) == (2, 1)
    assert said.startswith("hybridgen: not enough memory")
    assert "ask for less at a time" in said


def test_what_libraries_print_goes_to_stderr(run, monkeypatch, doll, tiny_checkpoint):
    def command(options):
        print("a library says hello")
        yield "the answer"

    monkeypatch.setattr(ask, "run", command)
    expected = (0, ["the answer"], "a library says hello\n")
    assert run("ask", tiny_checkpoint, "--image", doll, "--question", "?") == expected


def test_a_reader_that_goes_away_is_no_error(tiny_checkpoint, tmp_path):
    """As in `hybridgen sample ... | head -1`."""
    code = "import sys; from hybridgen.cli.main import main; sys.exit(main(sys.argv[1:]))"
    command = [
        sys.executable,
        "-c",
        code,
        "sample",
        str(tiny_checkpoint),
        *("--prompt", "an orc", "--steps", "1", "--out"),
        str(tmp_path),
        "--num-images",
        "3",
    ]
    process = subprocess.Popen(
        [str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.close()
    error = process.stderr.read()
    assert process.wait() == 0
    assert "Traceback" not in error
    assert "BrokenPipe" not in error


def interrupted(words: list[str]) -> None:
    """A command that Ctrl-C stops, in a process of its own."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background start with it ignored
    ask.run = lambda options: iter(lambda: os.kill(os.getpid(), signal.SIGINT), 0)
    sys.exit(main(words))


def test_an_interrupted_process_is_quiet(doll, tiny_checkpoint, tmp_path):
    words = ["ask", str(tiny_checkpoint), "--image", str(doll), "--question", "?"]
    stopped = ProcessGroup(tmp_path / "logs", interrupted, words=words)
    assert stopped.wait() == [130]
    assert stopped.output() == "hybridgen: stopped; nothing was written\n"


# ------------------------------------------------------------------------------------------- the form of a command

FOLDER = Path(sys.modules["hybridgen.cli"].__path__[0])
HELPERS = {"demo_first", "__init__", "main", "console", "errors", "pictures", "running", "demo_report", "train_report"}
HELPERS |= {"prompt_file", "quiet", "sample_file"}


def test_every_file_is_a_command_or_a_helper():
    files = {file.stem for file in FOLDER.glob("*.py")}
    assert files - HELPERS == set(COMMANDS), "give a new command a line in main.COMMANDS"
    assert {file.stem for file in (FOLDER / "arguments").glob("*.py")} - {"__init__", "parser", "types"} == set(
        COMMANDS
    )
    assert list(COMMANDS) == list(ARGUMENTS)
    for name, module in COMMANDS.items():
        assert module.__name__ == f"hybridgen.cli.{name}"
        assert ARGUMENTS[name].__name__ == f"hybridgen.cli.arguments.{name}"


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_its_arguments_and_what_it_does(name):
    arguments, module = ARGUMENTS[name], COMMANDS[name]
    for owner, function, parameter in (
        (arguments, "add_arguments", "commands"),
        (arguments, "check", "options"),
        (module, "run", "options"),
    ):
        assert list(inspect.signature(getattr(owner, function)).parameters) == [parameter]
        assert getattr(owner, function).__module__ == owner.__name__
    assert inspect.isgeneratorfunction(module.run)
    assert module.STOPPED
    alone = CommandParser(prog="hybridgen").add_subparsers(dest="command")
    arguments.add_arguments(alone)
    assert list(alone.choices) == [name]


# ------------------------------------------------------------------------------------------------------------- help


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_is_worth_reading(run, command):
    code, lines, _ = run(*command.split(), "--help")
    assert code == 0
    assert "examples:" in lines
    examples = [line.strip() for line in lines if line.startswith(f"  hybridgen {command}")]
    assert examples
    for example in examples:
        assert parser().parse_args(shlex.split(example)[1:]).command == (command or shlex.split(example)[1])


@pytest.mark.parametrize(
    ("typed", "overrides"),
    [
        ("data inspect c.yaml --limit 5 steps=3 --out x seed=1", ["steps=3", "seed=1"]),
        ("data inspect c.yaml steps=3 --limit 5 seed=1", ["steps=3", "seed=1"]),
        ("data --limit 5 inspect c.yaml steps=3", ["steps=3"]),
        ("data inspect --out x c.yaml steps=3", ["steps=3"]),
        ("data inspect c.yaml a=1 --limit 5 b=2 --out x c=3", ["a=1", "b=2", "c=3"]),
        ("demo steps=3 --seed 1 codec:steps=2", ["steps=3", "codec:steps=2"]),
        ("demo --seed 1 steps=3", ["steps=3"]),
        ("demo a=1 --seed 1 codec:b=2 --out x c=3", ["a=1", "codec:b=2", "c=3"]),
        ("demo --seed=1 a=1 b=-2 --samples 3", ["a=1", "b=-2"]),
        ("train c.yaml steps=3 seed=1", ["steps=3", "seed=1"]),
        ("train c.yaml", []),
    ],
)
def test_overrides_stand_before_and_after_options(typed, overrides):
    assert parser().parse_args(typed.split()).overrides == overrides


@pytest.mark.parametrize("typed", ["data inspect c.yaml --limits 5 a=1", "train c.yaml --steps 3", "replay a.png b c"])
def test_what_is_no_option_is_refused(run, typed):
    code, _, error = run(*typed.split())
    assert code == 2
    assert error.startswith("hybridgen: unrecognized arguments: ")


def options_of(name: str) -> list[argparse.Action]:
    """What a command takes beside its words without a name, and help."""
    commands = next(action for action in parser()._actions if action.dest == "command")
    return [action for action in commands.choices[name]._actions if action.option_strings and action.dest != "help"]


SEVERAL = {  # options that may be given again
    "sample": {"prompt", "negative_prompt", "height", "width", "image", "edit", "mask"},
    "ask": {"image", "question"},
    "evaluate": {"option"},
    "compare": {"option"},
}


def values_of(action: argparse.Action) -> list[str]:
    """Words that an option takes."""
    for word in action.choices or ("1", "vq", "5GB", "100", "key=1"):
        with contextlib.suppress(argparse.ArgumentTypeError):
            if action.type is not None:
                action.type(word)
            return [word] * (action.nargs if isinstance(action.nargs, int) else 1)
    raise AssertionError(f"{action.option_strings} takes none of these words")


@pytest.mark.parametrize("name", COMMANDS)
def test_an_option_given_twice_is_several_or_refused(run, name):
    needed = {"ask": ["--image", "a", "--question", "?"], "sample": ["--prompt", "a", "--out", "o"]}.get(name, [])
    for action in options_of(name):
        option = [action.option_strings[-1], *values_of(action)]
        code, lines, error = run(name, "inspect" if name == "data" else "x", *needed, *option, *option)
        if action.dest in SEVERAL.get(name, ()):
            assert "is given twice" not in error, option
        else:
            assert (code, lines) == (2, []), option
            assert f"{option[0]} is given twice; give it once" in error, option


def test_a_setting_of_a_config_given_twice_is_refused(run):
    code, _, error = run("train", "c.yaml", "steps=3", "seed=1", "steps=5")
    assert code == 2
    assert error.startswith("hybridgen: steps is given twice; give it once")


def test_version(run):
    assert run("--version")[:2] == (0, [f"hybridgen {__version__}"])


# ----------------------------------------------------------------------------------- parsed before anything is loaded


LIGHT = """
import sys
import {door} as door
sys.argv = ["hybridgen"]
try:
    code = door.main({words!r})
except SystemExit as stop:
    code = stop.code
heavy = sorted(name for name in ("torch", "transformers", "diffusers", "numpy", "PIL") if name in sys.modules)
print(code, heavy, file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("words", "code"),
    [(["--help"], 0), (["--version"], 0)]
    + [([command, "--help"], 0) for command in ARGUMENTS]
    + [
        (["sample", "nowhere", "--prompt", "a", "--out", "x"], 2),
        (["sample", "nowhere", "--prompt", "a", "--out", "x", "--path", "vq", "--steps", "3"], 2),
        (["ask", "nowhere", "--image", "none.png", "--question", "?"], 2),
        (["train", "none.yaml"], 2),
        (["demo", "--samples", "0"], 2),
    ],
)
def test_help_and_mistakes_load_no_library(words, code):
    """`import hybridgen` takes seconds; a mistyped option is answered at once."""
    script = LIGHT.format(door="hybridgen_command", words=words)
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=FOLDER.parents[1])
    assert ended.stderr.splitlines()[-1] == f"{code} []"


@pytest.mark.parametrize("words", [["--help"], ["sample", "nowhere", "--prompt", "a", "--out", "x"]])
def test_python_m_hybridgen_parses_first_too(words):
    command = [sys.executable, "-X", "importtime", "-m", "hybridgen", *words]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=FOLDER.parents[1])
    assert ended.returncode == (0 if words == ["--help"] else 2)
    imported = {
        line.rpartition("|")[2].strip() for line in ended.stderr.splitlines() if line.startswith("import time:")
    }
    assert "argparse" in imported
    assert not imported & {"torch", "transformers", "diffusers"}


def test_the_names_that_arguments_know_are_those_that_work():
    assert set(SUITES) & set(DATASETS) >= {"dolls", "emoji"}
    for name in SUITES:
        assert callable(open_suite(name).run)
    assert tuple(dict.fromkeys(layout for family in FAMILIES for layout in family.writers)) == LAYOUTS
    assert tuple(ROLES) == STYLES
