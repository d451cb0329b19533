"""Plain text files (.txt) as sources: one document a file, all of it, as it stands."""

from pathlib import Path
from typing import Any

from hybridgen.core.recognition import what_it_is
from hybridgen.data.bad_records import BadRecord
from hybridgen.data.formats.rows import RowSource
from hybridgen.data.formats.text_files import decode


class TxtSource(RowSource):
    """Records of text files, a file each.

    Args:
        form, columns: see `rows`; the one column of a file is `text`.
        bad_records: files that hold no text by their first bytes are added to it; None = the first of them is raised.

    Raises:
        ValueError: none of the files holds a text.
    """

    def __init__(
        self,
        name: str,
        files: list[str],
        form: str | None = None,
        columns: dict[str, str] | None = None,
        bad_records: list[BadRecord] | None = None,
    ):
        super().__init__(name, form, columns)
        kinds = {file: what_it_is(Path(file)) for file in files}
        self.files = [file for file in files if kinds[file] is None]
        bad = [BadRecord(file, f"the file {kind}") for file, kind in kinds.items() if kind is not None]
        if bad and (bad_records is None or not self.files):
            raise ValueError(f"{bad[0]}; a .txt file is one document, so it must hold a text")
        if bad:
            bad_records += bad

    def __len__(self) -> int:
        return len(self.files)

    def where(self, index: int) -> str:
        """The file."""
        return self.files[index]

    def _row(self, index: int) -> Any:
        return {"text": decode(Path(self.files[index]).read_bytes(), self.files[index])}
