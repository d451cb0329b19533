"""webdataset shards as a source: files of one name in a tar are one sample, `0001.jpg` and `0001.txt`.

Nothing is unpacked: the offset of each file in its tar is noted when the source is opened, and a record is read from
there. As in webdataset, a sample's name ends at the *first* dot after its folder (`a.seg.png` is the part `seg.png` of
the sample `a`), and the parts of a sample must follow one another in the tar.
"""

import gzip
import lzma
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from hybridgen.data.bad_records import BadRecord
from hybridgen.data.formats.image_folder import is_litter
from hybridgen.data.formats.rows import RowSource
from hybridgen.data.formats.text_files import parse_json

WHERE, BROKEN = "__where__", "__broken__"  # keys of a streamed row: its place, and why it cannot be read


_IS_APART = "its parts ({}) do not follow one another in the tar; make it with tar --sort=name"
LINK = -1  # offset of a part that is a link
_IS_CUT = "the tar ends inside of its part {!r}; copy the tar again"
_CANNOT_READ_ON = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)
_IS_LINK = "its part {!r} is a link, and the tar holds no file there; make it with tar --dereference --hard-dereference"


class _Sample(NamedTuple):
    """One sample of a shard: its files as (part of the name behind the key, offset, bytes)."""

    shard: int
    key: str
    files: tuple[tuple[str, int, int], ...]


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

    Raises:
        ValueError: a shard is missing, compressed or no tar, or no sample is in any.
    """

    def __init__(
        self,
        files: list[str],
        form: str | None = None,
        columns: dict[str, str] | None = None,
        bad_records: list[BadRecord] | None = None,
    ):
        super().__init__(str(files[0]), form, columns)
        self.files = files
        self._samples: list[_Sample] = []
        for number, file in enumerate(files):
            first = len(self._samples)
            try:
                self._index(number, file)
                self._samples[first:] = self._whole(self._samples[first:], bad_records)
            except tarfile.TarError as error:
                cut = BadRecord(str(file), f"the tar cannot be read to its end ({error})")
                if bad_records is None:
                    raise ValueError(str(cut)) from error
                bad_records.append(cut)
        if not self._samples:
            first = (
                f": {bad_records[0]}" if bad_records else "; a sample is files of one name, as 0001.jpg and 0001.txt"
            )
            raise ValueError(f"{files[0]} holds no sample{first}")

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
            key, parts = None, []  # of the sample that is being collected
            try:
                with tarfile.open(fileobj=opened, mode="r:", tarinfo=_Member) as tar:
                    for member in tar:
                        if member.isdir() or (name := _split(member.name)) is None:
                            continue
                        if name[0] != key and parts:
                            self._samples.append(_Sample(number, key, tuple(parts)))
                            parts = []
                        key = name[0]
                        parts.append((name[1], member.offset_data if member.isfile() else LINK, member.size))
            finally:
                if parts:  # if the tar was cut, this sample may be cut too: then reading it fails, and lists it
                    self._samples.append(_Sample(number, key, tuple(parts)))

    def _whole(self, samples: list[_Sample], bad_records: list[BadRecord] | None) -> list[_Sample]:
        """The samples of a shard but those whose parts stand apart: its words alone would be another record."""
        parts: dict[str, list[str]] = {}
        for sample in samples:
            parts.setdefault(sample.key, []).extend(name for name, _, _ in sample.files)
        counts = Counter(sample.key for sample in samples)
        apart = {key for key in parts if counts[key] > 1 and len(set(parts[key])) == len(parts[key])}
        for key in sorted(apart):
            bad = BadRecord(f"{self.files[samples[0].shard]}, key {key!r}", _IS_APART.format(", ".join(parts[key])))
            if bad_records is None:
                raise ValueError(str(bad))
            bad_records.append(bad)
        return [sample for sample in samples if sample.key not in apart]

    def __len__(self) -> int:
        return len(self._samples)

    def where(self, index: int) -> str:
        """The shard and key of a record."""
        sample = self._samples[index]
        return f"{self.files[sample.shard]}, key {sample.key!r}"

    def _row(self, index: int) -> dict[str, Any]:
        sample, row = self._samples[index], {}
        with Path(self.files[sample.shard]).open("rb") as file:
            for name, offset, size in sample.files:
                if offset == LINK:
                    raise ValueError(f"{self.where(index)}: {_IS_LINK.format(name)}")
                row[name] = _content(name, _read(file, name, offset, size), self.where(index))
        return row


def tar_rows(file: str, opened: BinaryIO) -> Iterator[dict[str, Any]]:
    """The samples of one shard read from front to end, compressed or not. Each carries its place (`WHERE`), and one
    that cannot be read the reason (`BROKEN`). Of a tar on this machine the parts are not read, but only where they
    stand (`read_parts`)."""
    row: dict[str, Any] = {}
    key, met = None, {}  # met: of each key, the parts so far
    skipped_through = "://" not in file and not is_compressed(opened)
    try:
        with tarfile.open(fileobj=opened, mode="r:" if skipped_through else "r|*", tarinfo=_Member) as tar:
            for member in members(tar):
                if member.isdir() or (name := _split(member.name)) is None:
                    continue
                if name[0] != key and row:
                    yield row
                    row = {}
                if name[0] != key and name[1] not in met.get(name[0], name[1]):
                    row[BROKEN] = _IS_APART.format(", ".join([*met[name[0]], name[1]]))
                key = name[0]
                met.setdefault(key, []).append(name[1])
                row[WHERE] = f"{file}, key {key!r}"
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


def members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The members of a tar, of which only the current one is in memory."""
    while (member := tar.next()) is not None:
        yield member
        tar.members = []


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


class _Member(tarfile.TarInfo):
    """A member of a tar. A tar without its end mark is an error here; Python takes one cut between members for
    whole."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> tarfile.TarInfo:
        try:
            return super().fromtarfile(tar)
        except (tarfile.EmptyHeaderError, tarfile.TruncatedHeaderError, tarfile.InvalidHeaderError) as error:
            raise tarfile.ReadError("unexpected end of data") from error


def _content(name: str, content: bytes, where: str) -> Any:
    return parse_json(content, where) if name.rpartition(".")[2] == "json" else content


def _split(path: str) -> tuple[str, str] | None:
    """(key, part) of a file's name in a tar; None where it has no part, or was left behind by a computer."""
    folder, slash, name = path.rpartition("/")
    if any(is_litter(each) for each in path.split("/") if each not in ("", ".", "..")):
        return None
    key, dot, part = name.partition(".")
    return (f"{folder}{slash}{key}", part.lower()) if key and dot else None
