"""Broken records: listed with the place and the reason, skipped, and counted against a limit.

What is broken is what raises a `ValueError` when its document is made. The fact a newcomer gets wrong: a record that is
met again in the next epoch is counted once, and the list is part of the position of a run, so that one which goes on
skips, counts and stops where the uninterrupted one does.
"""

from typing import NamedTuple

SHOWN = 20  # of the list, in the sentence that stops a run


class Broken(NamedTuple):
    """A record that cannot be used.

    Args:
        where: file and line, or file and key, or the number of the record.
        reason: one sentence, without the place.
    """

    where: str
    reason: str

    @classmethod
    def of(cls, where: str, error: Exception) -> "Broken":
        """From an error, whose sentence may begin with the place."""
        return cls(where, str(error).removeprefix(f"{where}: "))

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


class BadRecordLog:
    """The broken records of a run.

    Args:
        limit: how many may be skipped: a whole number of all sources together, or below 1 a share of each source.
    """

    def __init__(self, limit: float = 0):
        self.limit = limit
        self._found: dict[str, tuple[str, str]] = {}  # where -> source, reason

    def __len__(self) -> int:
        return len(self._found)

    def entries(self) -> list[Broken]:
        """In the order in which they were met."""
        return [Broken(where, reason) for where, (_, reason) in self._found.items()]

    def add(self, source: str, broken: Broken, records: int) -> None:
        """Take one in.

        Args:
            source: its name.
            records: how many it has, or as many as were met.

        Raises:
            ValueError: it is one too many; the sentence holds the list.
        """
        if broken.where in self._found:
            return
        self._found[broken.where] = (source, broken.reason)
        if 0 < self.limit < 1:
            exceeded = sum(name == source for name, _ in self._found.values()) > self.limit * records
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
        return [[where, *entry] for where, entry in self._found.items()]

    def load_state_dict(self, state: list[list[str]]) -> None:
        self._found = {where: (source, reason) for where, source, reason in state}
