"""Whose fault an error is: what a user can mend, told apart from faults of ours."""

import traceback
from pathlib import Path

_PACKAGE = Path(__file__).parents[1]


def is_for_the_user(error: BaseException) -> bool:
    """Whether the user can mend it: a file that is missing or a disk that is full always, a ValueError if we raised it.

    A ValueError from inside another library is a fault of ours, and keeps its traceback.
    """
    if isinstance(error, OSError):
        return True
    frames = traceback.extract_tb(error.__traceback__)
    return isinstance(error, ValueError) and bool(frames) and _PACKAGE in Path(frames[-1].filename).parents
