"""What reaches the disk, in order: a recorder of the calls of `os` that flush and rename. Not a test itself.

A flush takes milliseconds, and the tests write thousands of files, so they do without (`skip_flushing`): what they ask
is only that, and when, it is called for.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest


def skip_flushing() -> None:
    """From now on this process waits for no disk."""
    os.fsync = lambda opened: None


@contextlib.contextmanager
def recorded() -> Iterator[list[tuple[str, str]]]:
    """Yields a list that gets ("flush", name) and ("rename", new name) as they happen."""
    calls: list[tuple[str, str]] = []
    fsync, replace, rename = os.fsync, os.replace, os.rename

    def recording_fsync(opened: int) -> None:
        calls.append(("flush", Path(os.readlink(f"/proc/self/fd/{opened}")).name))
        fsync(opened)

    def recording(move):
        def moved(source, target, **kwargs):
            calls.append(("rename", Path(target).name))
            move(source, target, **kwargs)

        return moved

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", recording_fsync)
        patch.setattr(os, "replace", recording(replace))
        patch.setattr(os, "rename", recording(rename))
        yield calls


def assert_flushed_first(calls: list[tuple[str, str]], contents: set[str], name: str, parent: str) -> None:
    """All contents were on the disk before the last rename to `name`, and the name was right after."""
    renamed = len(calls) - 1 - calls[::-1].index(("rename", name))
    assert contents <= {what for call, what in calls[:renamed] if call == "flush"}, calls
    assert ("flush", parent) in calls[renamed + 1 :], calls
