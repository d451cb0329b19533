"""Broken records: listed with their place and the reason, skipped, and counted against a limit.

A record is broken if reading it or making its document raises anything at all (`record_errors`): damaged pictures
raise whatever the decoder met. One that is met again in the next epoch is counted once. The list is part of the
position of a run, so a run that goes on skips, counts and stops as the uninterrupted one does.
"""

import errno
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from hybridgen.core.values import one_line, shorten

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
        reason = shorten(one_line(getattr(error, "strerror", None) or error), 200)
        kind = type(error).__name__
        raise ValueError(f"{where}: it cannot be read ({f'{kind}: {reason}' if reason else kind})") from error


class Met(NamedTuple):
    """A broken record that was met.

    Args:
        source: name of its source.
        records: how many records the source has, or of a stream, how many were met.
    """

    source: str
    bad: BadRecord
    records: int


class BadRecordLog:
    """The broken records of a run, in the order in which they were met; the list only grows.

    Args:
        limit: how many may be skipped: a whole number over all sources, or below 1 a share of each source.
    """

    def __init__(self, limit: float = 0):
        self.limit = limit
        self._load([])

    def _load(self, entries: list[Met]) -> None:
        self._entries = entries
        self._places = {each.bad.where for each in entries}
        self._of_source = Counter(each.source for each in entries)

    def __len__(self) -> int:
        return len(self._entries)

    def entries(self, count: int | None = None) -> list[BadRecord]:
        """The first `count` of them; None = all."""
        return [each.bad for each in self._entries[:count]]

    def since(self, count: int, end: int | None = None) -> list[Met]:
        """Those that were met after the first `count`, up to number `end`."""
        return self._entries[count:end]

    def add(self, source: str, bad: BadRecord, records: int) -> None:
        """Add a record to the list (see `Met`), unless it is there already.

        Raises:
            ValueError: it is one too many; the sentence holds the list.
        """
        if bad.where in self._places:
            return
        self._entries.append(Met(source, bad, records))
        self._places.add(bad.where)
        self._of_source[source] += 1
        if 0 < self.limit < 1:
            exceeded = self._of_source[source] > self.limit * records
        else:
            exceeded = len(self) > self.limit
        if exceeded:
            raise ValueError(self.sentence())

    def sentence(self) -> str:
        """The list, as one sentence."""
        shown = "; ".join(map(str, self.entries(SHOWN)))
        more = f"; and {len(self) - SHOWN} more" if len(self) > SHOWN else ""
        count = "1 broken record is" if len(self) == 1 else f"{len(self)} broken records are"
        return f"{count} more than data.max_broken {self.limit:g} allows: {shown}{more}"

    def state_dict(self, count: int | None = None) -> list[list[str]]:
        """JSON-able: the first `count` of them, None = all. What remembers a position needs only `len`."""
        return [[each.bad.where, each.source, each.bad.reason] for each in self._entries[:count]]

    def load_state_dict(self, state: list[list[str]]) -> None:
        self._load([Met(source, BadRecord(where, reason), 0) for where, source, reason in state])
