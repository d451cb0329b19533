"""webdataset shards as a source: files of one name in a tar are one sample, `0001.jpg` and `0001.txt`.

Nothing is unpacked: where each file lies in its tar is noted when the source is opened, and a record is read from
there. The fact a newcomer gets wrong: a sample's name ends at the *first* dot after its folder, so `a.seg.png` is the
part `seg.png` of the sample `a`; and samples of several parts must stand together in the tar.
"""

import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from hybridgen.data.broken import Broken
from hybridgen.data.formats.forms import find_form, record_of
from hybridgen.data.formats.jsons import parse_line
from hybridgen.data.records import check_record, load_images

WHERE, BROKEN = "__where__", "__broken__"  # what a row of a stream says of itself


class TarSource:
    """Samples of tars, in their order.

    Args:
        files: the shards.
        form, columns: see `forms`; None = told by the first sample.
        broken: a shard that ends too early is added to it; None = that is raised.

    Raises:
        ValueError: a shard is missing, compressed or no tar, or no sample is in any.
    """

    def __init__(
        self,
        files: list[str],
        form: str | None = None,
        columns: dict[str, str] | None = None,
        broken: list[Broken] | None = None,
    ):
        self.files, self.columns = files, columns or {}
        self._samples: list[tuple[int, str, tuple[tuple[str, int, int], ...]]] = []  # shard, key, parts
        for number, file in enumerate(files):
            try:
                self._index(number, file)
            except tarfile.TarError as error:
                cut = Broken(str(file), f"the tar cannot be read to its end ({error})")
                if broken is None:
                    raise ValueError(str(cut)) from error
                broken.append(cut)
        if not self._samples:
            first = f": {broken[0]}" if broken else "; a sample is files of one name, as 0001.jpg and 0001.txt"
            raise ValueError(f"{files[0]} holds no sample{first}")
        self.form = form or self._find_form()

    def _find_form(self) -> str:
        """Told by the first sample that can be read."""
        for index in range(len(self)):
            try:
                row = self._row(index)
            except ValueError:
                continue  # it is met again when it is drawn, and listed then
            return find_form(row, self.columns, self.where(index))
        raise ValueError(f"no sample of {self.files[0]} can be read")

    def _index(self, number: int, file: str) -> None:
        if not Path(file).is_file():
            raise ValueError(f"there is no shard {file}; put it back, or leave it out of the source")
        with Path(file).open("rb") as opened:
            if opened.read(2) == b"\x1f\x8b":
                raise ValueError(
                    f"the shard {file} is compressed, so no record is found without all before it; set streaming: "
                    "true, or unpack it to .tar"
                )
            opened.seek(0)
            key, parts = None, []
            try:
                with tarfile.open(fileobj=opened, mode="r:", tarinfo=_Member) as tar:
                    for member in tar:
                        if not member.isfile() or (name := _split(member.name)) is None:
                            continue
                        if name[0] != key and parts:
                            self._samples.append((number, key, tuple(parts)))
                            parts = []
                        key = name[0]
                        parts.append((name[1], member.offset_data, member.size))
            finally:
                if parts:  # of a tar that was cut, the last may be too; that is said when it is drawn
                    self._samples.append((number, key, tuple(parts)))

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.files[0]} has records 0 to {len(self) - 1}, not {index}")
        where = self.where(index)
        record = check_record(record_of(self._row(index), self.form, self.columns, where), where)
        return load_images(record, Path(), where)

    def where(self, index: int) -> str:
        """The shard and key of a record."""
        shard, key, _ = self._samples[index]
        return f"{self.files[shard]}, key {key!r}"

    def _row(self, index: int) -> dict[str, Any]:
        shard, _, parts = self._samples[index]
        row = {}
        with Path(self.files[shard]).open("rb") as file:
            for name, offset, size in parts:
                file.seek(offset)
                row[name] = _content(name, file.read(size), self.where(index))
        return row


def tar_rows(file: str, opened: BinaryIO) -> Iterator[dict[str, Any]]:
    """The samples of one shard as it is read from front to end, compressed or not; each says where it stood, and one
    that cannot be read why."""
    row: dict[str, Any] = {}
    key = None
    try:
        with tarfile.open(fileobj=opened, mode="r|*", tarinfo=_Member) as tar:
            for member in tar:
                if not member.isfile() or (name := _split(member.name)) is None:
                    continue
                if name[0] != key and row:
                    yield row
                    row = {}
                key = name[0]
                row[WHERE] = f"{file}, key {key!r}"
                try:
                    row[name[1]] = _content(name[1], tar.extractfile(member).read(), row[WHERE])
                except ValueError as error:
                    row[BROKEN] = Broken.of(row[WHERE], error).reason
    except (tarfile.TarError, EOFError, zlib.error) as error:
        cut = {WHERE: file, BROKEN: f"the tar cannot be read to its end ({error})"}
    else:
        cut = None
    if row:
        yield row
    if cut:
        yield cut


class _Member(tarfile.TarInfo):
    """A member of a tar that ends with its end mark: Python takes one that was cut between members for whole."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> tarfile.TarInfo:
        try:
            return super().fromtarfile(tar)
        except (tarfile.EmptyHeaderError, tarfile.TruncatedHeaderError, tarfile.InvalidHeaderError) as error:
            raise tarfile.ReadError("unexpected end of data") from error


def _content(name: str, content: bytes, where: str) -> Any:
    return parse_line(content, where) if name.rpartition(".")[2] == "json" else content


def _split(path: str) -> tuple[str, str] | None:
    """(key, part) of a file's name in a tar; None where it has no part."""
    folder, slash, name = path.rpartition("/")
    key, dot, part = name.partition(".")
    return (f"{folder}{slash}{key}", part.lower()) if key and dot else None
