"""Fixtures of the command line: a command run in this process, and a picture to read."""

import signal
from pathlib import Path

import pytest

from hybridgen.cli.main import main
from hybridgen.data.synthetic import dolls


@pytest.fixture
def run(capsys):
    """Run a command: exit code, lines of stdout, stderr."""

    def call(*arguments) -> tuple[int, list[str], str]:
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:  # argparse's own
            code = stop.code
        printed = capsys.readouterr()
        return code, printed.out.split("\n")[:-1], printed.err

    return call


@pytest.fixture
def doll(tmp_path) -> Path:
    file = tmp_path / "doll.png"
    dolls.Dolls("held_out", "draw", 0).picture(0).save(file)
    return file


@pytest.fixture
def ctrl_c():
    """Ctrl-C stops, also where the tests are a job in the background, which begins with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
