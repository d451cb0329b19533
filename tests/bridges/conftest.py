"""What the tests of all bridges share."""

import pytest

from hybridgen.cli import main as cli


@pytest.fixture
def run(capsys):
    """`hybridgen convert ...`: exit code, lines of stdout, stderr."""

    def call(*arguments) -> tuple[int, list[str], str]:
        code = cli.main(["convert", *map(str, arguments)])
        printed = capsys.readouterr()
        return code, printed.out.splitlines(), printed.err

    return call
