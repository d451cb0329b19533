"""Broken records: listed with their place and the reason, skipped, and counted against a limit.

A record is broken if reading it or making its document raises anything at all (`record_errors`): damaged pictures
raise whatever the decoder met. One that is met again in the next epoch is counted once. The list is part of the
position of a run, so a run that goes on skips, counts and stops as the uninterrupted one does.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from hybridgen.core.values import shorten

SHOWN = 20  # records listed in the sentence that stops a run
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class BadRecord(NamedTuple):
    """A record that cannot be used.

    Args:
        where: file and line, or file and key, or the number of the record.
        reason: one sentence, without the place.
    """

    where: str
    reason: str

    @classmethod
    def of(cls, where: str, error: Exception) -> "BadRecord":
        """From an error, whose sentence may begin with the place."""
        return cls(where, str(error).removeprefix(f"{where}: "))

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


@contextmanager
def record_errors(where: str, ends_run: type[Exception] | tuple = ()) -> Iterator[None]:
    """Whatever goes wrong with one record becomes a `ValueError` that names it: it costs the record, not the run.

    Args:
        where: the record; its sentence begins with it.
        ends_run: exceptions that are no fault of the record and stay what they are. So does a full disk.
    """
    try:
        yield
    except ends_run:
        raise
    except ValueError as error:
        raise ValueError(f"{where}: {str(error).removeprefix(f'{where}: ')}") from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _DISK_FULL:
            raise
        reason = shorten(" ".join(str(getattr(error, "strerror", None) or error).split()), 200)
        kind = type(error).__name__
        raise ValueError(f"{where}: it cannot be read ({f'{kind}: {reason}' if reason else kind})") from error


class BadRecordLog:
    """The broken records of a run.

    Args:
        limit: how many may be skipped: a whole number over all sources, or below 1 a share of each source.
    """

    def __init__(self, limit: float = 0):
        self.limit = limit
        self._entries: dict[str, tuple[str, str]] = {}  # where -> source, reason

    def __len__(self) -> int:
        return len(self._entries)

    def entries(self) -> list[BadRecord]:
        """In the order in which they were met."""
        return [BadRecord(where, reason) for where, (_, reason) in self._entries.items()]

    def add(self, source: str, bad: BadRecord, records: int) -> None:
        """Add a record to the list, unless it is there already.

        Args:
            source: name of its source.
            records: how many records the source has, or of a stream, how many were met.

        Raises:
            ValueError: it is one too many; the sentence holds the list.
        """
        if bad.where in self._entries:
            return
        self._entries[bad.where] = (source, bad.reason)
        if 0 < self.limit < 1:
            exceeded = sum(name == source for name, _ in self._entries.values()) > self.limit * records
        else:
            exceeded = len(self) > self.limit
        if exceeded:
            raise ValueError(self.sentence())

    def sentence(self) -> str:
        """The list, as one sentence."""
        shown = "; ".join(map(str, self.entries()[:SHOWN]))
        more = f"; and {len(self) - SHOWN} more" if len(self) > SHOWN else ""
        count = "1 broken record is" if len(self) == 1 else f"{len(self)} broken records are"
        return f"{count} more than data.max_broken {self.limit:g} allows: {shown}{more}"

    def state_dict(self) -> list[list[str]]:
        """JSON-able."""
        return [[where, *entry] for where, entry in self._entries.items()]

    def load_state_dict(self, state: list[list[str]]) -> None:
        self._entries = {where: (source, reason) for where, source, reason in state}
