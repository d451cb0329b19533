"""webdataset shards as a source: files of one name in a tar are one sample, `0001.jpg` and `0001.txt`.

Nothing is unpacked: where each file stands in its tar is known from an index (`tar_index`), and a record is read from
there. As in webdataset, a sample's name ends at the *first* dot after its folder (`a.seg.png` is the part `seg.png` of
the sample `a`), and the parts of a sample must follow one another in the tar.
"""

import bisect
import gzip
import itertools
import lzma
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from hybridgen.data.bad_records import BadRecord
from hybridgen.data.formats.rows import RowSource
from hybridgen.data.formats.tar_index import IS_APART, LINK, Member, index_tars, members, split_name
from hybridgen.data.formats.text_files import parse_json

WHERE, BROKEN = "__where__", "__broken__"  # keys of a streamed row: its place, and why it cannot be read


_IS_CUT = "the tar ends inside of its part {!r}; copy the tar again"
_CANNOT_READ_ON = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)
_IS_LINK = "its part {!r} is a link, and the tar holds no file there; make it with tar --dereference --hard-dereference"


class _Part(NamedTuple):
    """Where a part of a streamed sample stands."""

    file: str
    offset: int
    size: int

    def read(self, name: str) -> bytes:
        with open(self.file, "rb") as file:
            return _read(file, name, self.offset, self.size)


def _read(file: BinaryIO, name: str, offset: int, size: int) -> bytes:
    """Raises ValueError for a part that the end of its tar cuts: half a caption would be another record."""
    file.seek(offset)
    if len(content := file.read(size)) < size:
        raise ValueError(_IS_CUT.format(name))
    return content


class WebDatasetSource(RowSource):
    """Samples of tars, in their order.

    Args:
        files: the shards.
        form, columns: see `rows`; a form of None is told by each sample.
        bad_records: a shard that ends too early is added to it; None = that is raised.
        index: the folder of indexes that are kept (`tar_index`); None = all headers are read.

    Raises:
        ValueError: a shard is missing, compressed or no tar, or no sample is in any.
    """

    def __init__(
        self,
        files: list[str],
        form: str | None = None,
        columns: dict[str, str] | None = None,
        bad_records: list[BadRecord] | None = None,
        index: str | Path | None = None,
    ):
        super().__init__(str(files[0]), form, columns)
        self.files, self._indexes = files, index_tars(files, index)
        self._ends = list(itertools.accumulate(map(len, self._indexes)))  # of each shard, in records
        first = None
        for file, shard in zip(files, self._indexes, strict=True):
            for place, reason in shard.bad_records:
                bad = BadRecord(_place(file, place) if place else str(file), reason)
                first = first or bad
                if bad_records is None:
                    raise ValueError(str(bad))
                bad_records.append(bad)
        if not len(self):
            reason = f": {first}" if first else "; a sample is files of one name, as 0001.jpg and 0001.txt"
            raise ValueError(f"{files[0]} holds no sample{reason}")

    def __len__(self) -> int:
        return self._ends[-1]

    def where(self, index: int) -> str:
        """The shard and key of a record."""
        shard, sample = self._find(index)
        return _place(self.files[shard], self._indexes[shard].key(sample))

    def _find(self, index: int) -> tuple[int, int]:
        """The shard of a record, and which of its samples it is."""
        shard = bisect.bisect_right(self._ends, index)
        return shard, index - (self._ends[shard - 1] if shard else 0)

    def _row(self, index: int) -> dict[str, Any]:
        (shard, sample), row = self._find(index), {}
        with Path(self.files[shard]).open("rb") as file:
            for name, offset, size in self._indexes[shard].parts(sample):
                if offset == LINK:
                    raise ValueError(f"{self.where(index)}: {_IS_LINK.format(name)}")
                row[name] = _content(name, _read(file, name, offset, size), self.where(index))
        return row


def _place(file: str, key: str) -> str:
    return f"{file}, key {key!r}"


def tar_rows(file: str, opened: BinaryIO) -> Iterator[dict[str, Any]]:
    """The samples of one shard read from front to end, compressed or not. Each carries its place (`WHERE`), and one
    that cannot be read the reason (`BROKEN`). Of a tar on this machine the parts are not read, but only where they
    stand (`read_parts`)."""
    row: dict[str, Any] = {}
    key, met = None, {}  # met: of each key, the parts so far
    skipped_through = "://" not in file and not is_compressed(opened)
    try:
        with tarfile.open(fileobj=opened, mode="r:" if skipped_through else "r|*", tarinfo=Member) as tar:
            for member in members(tar):
                if member.isdir() or (name := split_name(member.name)) is None:
                    continue
                if name[0] != key and row:
                    yield row
                    row = {}
                if name[0] != key and name[1] not in met.get(name[0], name[1]):
                    row[BROKEN] = IS_APART.format(", ".join([*met[name[0]], name[1]]))
                key = name[0]
                met.setdefault(key, []).append(name[1])
                row[WHERE] = _place(file, key)
                try:
                    row[name[1]] = _passed(tar, member, name[1], file if skipped_through else None)
                except ValueError as error:
                    row[BROKEN] = str(error)
    except _CANNOT_READ_ON as error:
        cut = {WHERE: file, BROKEN: f"the tar cannot be read to its end ({error})"}
    else:
        cut = None
    if row:
        yield row
    if cut:
        yield cut


def _passed(tar: tarfile.TarFile, member: tarfile.TarInfo, name: str, file: str | None) -> "bytes | _Part":
    """A part that is being passed: what it holds, or in a file that is skipped through, where it stands.

    Raises:
        ValueError: it is a link, or cut off.
    """
    if not member.isfile():
        raise ValueError(_IS_LINK.format(name))
    if file is not None:
        return _Part(file, member.offset_data, member.size)
    try:
        return tar.extractfile(member).read()
    except _CANNOT_READ_ON as error:
        raise ValueError(_IS_CUT.format(name)) from error


def is_compressed(opened: BinaryIO) -> bool:
    """Whether an open file is none that `tarfile` can seek in."""
    start = opened.read(6)
    opened.seek(0)
    return start.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd"))


def read_parts(row: Any) -> Any:
    """A row of a stream with what its parts hold."""
    if not isinstance(row, dict) or BROKEN in row or WHERE not in row:
        return row
    content = {}
    try:
        for name, part in row.items():
            value = part.read(name) if isinstance(part, _Part) else part
            content[name] = _content(name, value, row[WHERE]) if isinstance(value, bytes) else value
    except ValueError as error:
        return {WHERE: row[WHERE], BROKEN: BadRecord.of(row[WHERE], error).reason}
    return content


def _content(name: str, content: bytes, where: str) -> Any:
    return parse_json(content, where) if name.rpartition(".")[2] == "json" else content
