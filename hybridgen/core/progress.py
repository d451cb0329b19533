"""How a command shows that it goes on: one live line at a terminal, lines now and then in a file or a pipe.

A terminal has one last line, so the line that stands there is known to this module. Whatever else is printed meanwhile
(warnings, sentences, results) goes above it: `sys.stderr` is watched while the line stands, and who prints to stdout
asks for `above()`. Nothing of the line is left behind a command that ends, is stopped, or fails.
"""

import contextlib
import os
import shutil
import sys
import time
import unicodedata
from collections.abc import Iterator
from typing import TextIO

REDRAWN = 0.1  # seconds between two looks of the live line: more cannot be read
SAID = 60.0  # seconds between two lines of one task, where there is no terminal
_GAP = "  "
_standing: "LiveLine | None" = None  # the line that stands at the end of the terminal


class LiveLine:
    """The last line of a terminal, written again in its place; silent where stderr is none.

    Args:
        shown: false = silent in any case, as in all processes but the first.
    """

    def __init__(self, shown: bool = True):
        self.stream = _unwatched(sys.stderr)
        self.is_live = shown and _is_terminal(self.stream)
        self._text, self._drawn, self._last = "", 0, float("-inf")

    def show(self, *parts: str, at_once: bool = False) -> None:
        """Let the line be these parts, the most important first: what the terminal is too narrow for is left out.

        Args:
            at_once: also where the line was written a moment ago.
        """
        global _standing
        if not self.is_live or not (at_once or time.monotonic() - self._last >= REDRAWN):
            return
        if _standing is not self:
            if _standing is not None:
                _standing.close()
            _standing = self
            sys.stderr = _Watched(sys.stderr, self)
        self._text, self._last = fit(parts, _columns(self.stream) - 1), time.monotonic()
        self.draw()

    def draw(self) -> None:
        """Write the line, over what stands there of it."""
        width = cells(self._text)
        self._write("\r" + self._text + " " * max(0, self._drawn - width))
        self._drawn = width

    def clear(self) -> None:
        """Take the line away, until `draw`."""
        if self._drawn:
            self._write("\r" + " " * self._drawn + "\r")
            self._drawn = 0

    def close(self) -> None:
        """Take the line away for good; what is printed from now on begins where it stood."""
        global _standing
        if _standing is self:
            self.clear()
            _standing = None
            if isinstance(sys.stderr, _Watched):
                sys.stderr = sys.stderr.stream

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # a terminal that is gone ends no work
            self.stream.write(text)
            self.stream.flush()


class _Watched:
    """stderr while a live line stands: what is written goes above the line, which comes back behind each whole line."""

    def __init__(self, stream: TextIO, line: LiveLine):
        self.stream, self._line = stream, line

    def write(self, text: str) -> int:
        self._line.clear()
        count = self.stream.write(text)
        if text.endswith("\n"):
            self._line.draw()
        return count

    def __getattr__(self, name: str):
        return getattr(self.stream, name)


def _unwatched(stream: TextIO) -> TextIO:
    return stream.stream if isinstance(stream, _Watched) else stream


@contextlib.contextmanager
def above() -> Iterator[None]:
    """Inside, the live line is away, so that what is printed to stdout begins a line of its own."""
    line = _standing
    if line is not None:
        line.clear()
    try:
        yield
    finally:
        if line is not None and line is _standing:
            line.draw()


class TaskLine:
    """How far tasks have come that are done one after another, as a function of (what, done, total).

    At a terminal it is the live line; elsewhere a line for each task that is done, and one each minute of a long one.
    """

    def __init__(self, shown: bool = True):
        self._shown, self._line = shown, LiveLine(shown)
        self._what, self._first, self._said = None, (0.0, 0), 0.0

    def __call__(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if what != self._what:
            self._what, self._first, self._said = what, (now, done), now
        parts = (f"{what} {done:,}/{total:,}", *self._left(now, done, total))
        self._line.show(*parts, at_once=done >= total)
        if self._shown and not self._line.is_live and (done >= total or now - self._said >= SAID):
            self._said = now
            print(_GAP.join(parts), file=sys.stderr, flush=True)

    def _left(self, now: float, done: int, total: int) -> list[str]:
        """The time left at the pace since the task's first report; nothing at that one, and at the end."""
        (since, before), pace = self._first, 0.0
        if now > since:
            pace = (done - before) / (now - since)
        return [f"left {clock((total - done) / pace)}"] if pace and done < total else []

    def close(self) -> None:
        self._line.close()


@contextlib.contextmanager
def task_line(shown: bool = True) -> Iterator[TaskLine]:
    """A `TaskLine` that is gone at the end, however that comes."""
    line = TaskLine(shown)
    try:
        yield line
    finally:
        line.close()


# ------------------------------------------------------------------------------------------------------------- text


def fit(parts: tuple[str, ...], columns: int) -> str:
    """As many of the parts, from the first on, as stand side by side in so many columns; of the first, as much as does.
    What moves a cursor is left out of them."""
    line = ""
    for number, part in enumerate(parts):
        part = "".join(letter for letter in part if letter.isprintable())
        longer = f"{line}{_GAP}{part}" if number else part
        if cells(longer) > columns:
            break
        line = longer
    if line or not parts:
        return line
    first = "".join(letter for letter in parts[0] if letter.isprintable())
    while first and cells(first) > columns:
        first = first[:-1]
    return first


def cells(text: str) -> int:
    """How many columns of a terminal a text takes: two for each wide letter, none for what stands on another."""
    return sum(
        0 if unicodedata.combining(letter) else 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        for letter in text
    )


def clock(seconds: float) -> str:
    """A time as `3:07`, or `2:03:07`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # it is closed
        return False


def _columns(stream: TextIO) -> int:
    """Of this terminal now: it may have been made narrower."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError, AttributeError):  # it is one that is no file
        return shutil.get_terminal_size().columns
