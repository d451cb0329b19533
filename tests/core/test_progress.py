"""The live line: what a terminal of any width shows in the end, whatever is printed meanwhile."""

import io
import sys
import time
import warnings

import pytest

from hybridgen.core import progress
from hybridgen.core.progress import LiveLine, above, cells, clock, fit, task_line


class Screen(io.StringIO):
    """A terminal of so many columns: it knows letters, carriage returns and line ends, and wraps what is too long."""

    def __init__(self, columns: int):
        super().__init__()
        self.columns = columns

    def isatty(self) -> bool:
        return True

    def rows(self) -> list[str]:
        """What is to be seen, without spaces at the ends of rows."""
        rows, column = [[]], 0
        for letter in self.getvalue():
            if letter == "\n":
                rows, column = [*rows, []], 0
            elif letter == "\r":
                column = 0
            else:
                if column + cells(letter) > self.columns:
                    rows, column = [*rows, []], 0
                row = rows[-1]
                row += " " * (column - len(row))
                row[column : column + 1] = [letter]
                column += cells(letter)
        return ["".join(row).rstrip() for row in rows]


def as_python_shows(message, category, filename, lineno, file=None, line=None) -> None:
    print(warnings.formatwarning(message, category, filename, lineno, line), end="", file=sys.stderr)


@pytest.fixture(params=[100, 24, 7])
def screen(request, monkeypatch) -> Screen:
    screen = Screen(request.param)
    monkeypatch.setenv("COLUMNS", str(request.param))
    monkeypatch.setattr(progress, "REDRAWN", 0.0)
    return screen


def test_the_line_is_one_row_whatever_is_printed_meanwhile(screen, monkeypatch):
    """Warnings, sentences and results each stand whole on rows of their own, and the line below them."""
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(warnings, "showwarning", as_python_shows)  # pytest keeps warnings for its summary
    line = LiveLine()
    line.show("step 1/200", "left 3:07", "loss 1.234 (text 0.5)")
    print("hello", file=sys.stderr)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("odd", stacklevel=1)
    with above():
        screen.write("b.png\n")  # stdout, on the same terminal
    line.show("step 2/200", "left 3:06")
    rows = screen.rows()
    assert rows[0] == "hello"
    assert "odd" in "".join(rows[1:-1])
    assert rows[-2] == "b.png"
    whole = "step 2/200  left 3:06"
    assert rows[-1] == whole if screen.columns > len(whole) else whole.startswith(rows[-1])
    assert sum(row.startswith("step ") for row in rows) == 1
    line.close()
    assert screen.rows()[-1] == ""
    assert sys.stderr is screen


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_nothing_of_it_stays_behind_a_task_that_ends_early(screen, monkeypatch, error):
    monkeypatch.setattr(sys, "stderr", screen)

    def stopped() -> None:
        with task_line() as tell:
            tell("drawing by diffusion", 3, 64)
            raise error

    with pytest.raises(error):
        stopped()
    print("stopped", file=sys.stderr)
    assert screen.rows() == ["stopped", ""]


def test_a_second_line_takes_the_place_of_the_first(screen, monkeypatch):
    monkeypatch.setattr(sys, "stderr", screen)
    first, second = LiveLine(), LiveLine()
    first.show("aaa")
    second.show("b")
    assert screen.rows() == ["b"]
    first.close()
    assert screen.rows() == ["b"]
    second.close()
    assert sys.stderr is screen


def test_it_is_looked_at_ten_times_a_second_and_at_the_end(screen, monkeypatch):
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(progress, "REDRAWN", 1000.0)
    with task_line() as tell:
        for done in range(1, 6):
            tell("a", done, 5)
        assert screen.getvalue().count("\r") == 2
        assert screen.rows() == ["a 5/5"]


def test_without_a_terminal_each_task_is_a_line(monkeypatch):
    file, now = io.StringIO(), [0.0]
    monkeypatch.setattr(sys, "stderr", file)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with task_line() as tell:
        for done in range(1, 101):
            now[0] += 1.0
            tell("drawing", done, 100)
        tell("answering", 8, 8)
    assert file.getvalue().splitlines() == ["drawing 61/100  left 0:39", "drawing 100/100", "answering 8/8"]
    LiveLine().show("nothing")
    with task_line(shown=False) as tell:
        tell("drawing", 1, 1)
    assert len(file.getvalue().splitlines()) == 3


@pytest.mark.parametrize(
    ("parts", "columns", "shown"),
    [
        (("step 1/8", "left 0:10", "loss 1"), 80, "step 1/8  left 0:10  loss 1"),
        (("step 1/8", "left 0:10", "loss 1"), 19, "step 1/8  left 0:10"),
        (("step 1/8", "left 0:10", "loss 1"), 18, "step 1/8"),
        (("step 1/8", "left 0:10"), 4, "step"),
        (("猫の写真 1/8",), 7, "猫の写"),
        (("a\x1b[2Jb\nc",), 80, "a[2Jbc"),
        ((), 80, ""),
    ],
)
def test_what_does_not_fit_is_left_out_from_the_end(parts, columns, shown):
    assert fit(parts, columns) == shown


def test_times_are_read_at_a_glance():
    assert [clock(seconds) for seconds in (0, 7.4, 187, 7387)] == ["0:00", "0:07", "3:07", "2:03:07"]
