"""A part of a source's records, so that the same files serve training and validation and no record is in both.

Records are counted off in an order that depends on their number alone: no seed moves one from a part to another.
"""

from typing import Any

from hybridgen.data.formats.rows import RowSource, check_index
from hybridgen.data.keyed_random import feistel_permutation


class PartSource(RowSource):
    """The records between two shares of that order: [0, 0.95] and [0.95, 1] of a source have none in common.

    Raises:
        ValueError: no record is between them.
    """

    def __init__(self, whole: RowSource, shares: list[float]):
        super().__init__(whole.name, whole.form, whole.columns, whole.images)
        self.files, self._whole = whole.files, whole
        self._first, self._end = (round(share * len(whole)) for share in shares)
        if not len(self):
            raise ValueError(f"part {shares} of the {len(whole)} records of {whole.name} holds none; make it larger")

    def __len__(self) -> int:
        return self._end - self._first

    def row(self, index: int) -> Any:
        return self._whole.row(self._place(index))

    def record(self, index: int, variant: int = 0) -> dict:
        return self._whole.record(self._place(index), variant)

    def read(self, index: int, variant: int = 0, unread: bool = False) -> dict:
        return self._whole.read(self._place(index), variant, unread)

    def where(self, index: int) -> str:
        return self._whole.where(self._place(index))

    def _place(self, index: int) -> int:
        """The number of a record in the whole source."""
        check_index(self, index, self.name)
        return feistel_permutation(self._first + index, len(self._whole), "part")
