"""Errors that the user of a command can mend, told apart from faults of ours, and printed as one line."""

import traceback
from pathlib import Path

_PACKAGE = Path(__file__).parents[1]


def is_for_the_user(error: Exception) -> bool:
    """Whether the user can mend it: a file that is missing or a disk that is full always, a ValueError if we raised it.

    A ValueError from inside another library is a fault of ours, and keeps its traceback.
    """
    if isinstance(error, OSError):
        return True
    return _PACKAGE in Path(traceback.extract_tb(error.__traceback__)[-1].filename).parents


def one_line(error: Exception) -> str:
    """What went wrong, on one line."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())
