"""Where the samples of a tar stand: found by reading its headers once, kept in few bytes, and beside the run on disk.

To find the headers of ten million samples takes a process minutes, and each start would take them again. So what was
found is kept in a folder, a file for each tar, and is good as long as the tar has its size and time of change; what is
there is used by all processes of a run and by the next run. Processes that start together take the tars each in another
order and look again before each, so they divide the work.

    index/3f0c...e1.npz    arrays (`TarIndex`), and as JSON of which tar they are
"""

import hashlib
import json
import os
import random
import tarfile
import warnings
import zipfile
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hybridgen.core.files import whole_file
from hybridgen.core.values import one_line
from hybridgen.data.formats.image_folder import is_litter

VERSION = 1
BLOCK = 512  # bytes; all of a tar begins at a multiple of it
LINK = -1  # offset of a part that is a link
LARGEST_PART, LARGEST_TAR = 1 << 32, BLOCK << 31  # bytes, less one
IS_APART = "its parts ({}) do not follow one another in the tar; make it with tar --sort=name"
_ARRAYS = {
    "keys": np.uint8, "key_ends": np.uint32, "part_ends": np.uint32, "blocks": np.int32, "sizes": np.uint32,
    "names": np.uint32,
}  # fmt: skip
_BROKEN_FILE = (OSError, ValueError, KeyError, TypeError, EOFError, IndexError, zipfile.BadZipFile)


@dataclass
class TarIndex:
    """The samples of a tar, S of them with P parts in all, a part being a file.

    Args:
        keys: (bytes) the keys of all samples, one after the other; `key_ends` (S,) where each ends.
        part_ends: (S,) the number of parts up to the end of each sample.
        blocks: (P,) where each part begins, in blocks of 512 bytes; `LINK` = it is a link.
        sizes: (P,) in bytes.
        names: (P,) the number in `part_names` of each part's name behind the key.
        bad_records: the place in the tar of what cannot be used, empty for the tar itself, and why.
    """

    keys: np.ndarray
    key_ends: np.ndarray
    part_ends: np.ndarray
    blocks: np.ndarray
    sizes: np.ndarray
    names: np.ndarray
    part_names: list[str]
    bad_records: list[tuple[str, str]]

    def __len__(self) -> int:
        return len(self.key_ends)

    def key(self, sample: int) -> str:
        """The name that the parts of a sample share."""
        first = self.key_ends[sample - 1] if sample else 0
        return self.keys[first : self.key_ends[sample]].tobytes().decode(errors="surrogateescape")

    def parts(self, sample: int) -> Iterator[tuple[str, int, int]]:
        """(name behind the key, offset in bytes or `LINK`, bytes) of each part of a sample."""
        first = self.part_ends[sample - 1] if sample else 0
        for part in range(first, self.part_ends[sample]):
            block = int(self.blocks[part])
            yield self.part_names[self.names[part]], LINK if block == LINK else block * BLOCK, int(self.sizes[part])


def index_tars(files: list[str], folder: str | Path | None = None) -> list[TarIndex]:
    """The index of each tar, from the folder where it is there and fits, else made and put there.

    Raises:
        ValueError: a tar is missing, compressed or too large.
    """
    found: dict[int, TarIndex] = {}
    order = list(range(len(files)))
    if folder is not None:
        random.SystemRandom().shuffle(order)  # another in each process; the result is the same
    for number in order:
        found[number] = _index(files[number], None if folder is None else Path(folder))
    return [found[number] for number in range(len(files))]


def _index(file: str, folder: Path | None) -> TarIndex:
    if not Path(file).is_file():
        raise ValueError(f"there is no shard {file}; put it back, or leave it out of the source")
    path, stat = os.path.abspath(file), os.stat(file)
    of = {"version": VERSION, "tar": ascii(path), "bytes": stat.st_size, "changed": stat.st_mtime_ns}
    if folder is None:
        return scan(file)
    saved = folder / f"{hashlib.blake2b(os.fsencode(path), digest_size=16).hexdigest()}.npz"
    if (index := _load(saved, of)) is None:
        index = scan(file)
        _save(saved, of, index)
    return index


def _load(saved: Path, of: dict) -> TarIndex | None:
    """What was found before; None where nothing was, or of a tar that was another."""
    if not saved.is_file():
        return None
    try:
        with np.load(saved, allow_pickle=False) as content:
            about = json.loads(content["about"].tobytes())
            if {name: about[name] for name in of} != of:
                return None
            arrays = {name: content[name] for name in _ARRAYS}
        index = TarIndex(**arrays, part_names=about["part_names"], bad_records=list(map(tuple, about["bad_records"])))
        _check(index)
    except _BROKEN_FILE as error:
        warnings.warn(f"{saved} is no whole index of a tar ({one_line(error)}); it is made anew", stacklevel=2)
        return None
    return index


def _check(index: TarIndex) -> None:
    """Raises ValueError where arrays do not belong together."""

    def counts(ends: np.ndarray, total: int) -> bool:
        return (int(ends[-1]) if len(ends) else 0) == total and bool((np.diff(ends.astype(np.int64)) >= 0).all())

    if not (
        all(getattr(index, name).dtype == dtype for name, dtype in _ARRAYS.items())
        and counts(index.key_ends, len(index.keys))
        and counts(index.part_ends, len(index.blocks))
        and len(index.key_ends) == len(index.part_ends)
        and len(index.blocks) == len(index.sizes) == len(index.names)
        and (not len(index.names) or int(index.names.max()) < len(index.part_names))
    ):
        raise ValueError("its arrays do not belong together")


def _save(saved: Path, of: dict, index: TarIndex) -> None:
    about = json.dumps({**of, "part_names": index.part_names, "bad_records": index.bad_records}).encode()
    arrays = {name: getattr(index, name) for name in _ARRAYS}
    try:
        with whole_file(saved) as aside:
            np.savez(aside, about=np.frombuffer(about, np.uint8), **arrays)
    except OSError as error:  # it can be done without
        warnings.warn(f"{saved} cannot be written ({error}); the next start reads all headers again", stacklevel=2)


# -------------------------------------------------------------------------------------------------------------- headers


def scan(file: str) -> TarIndex:
    """The index of a tar, by its headers; what is in its files is passed."""
    writer = _Writer()
    with open(file, "rb") as opened:
        if opened.read(2) == b"\x1f\x8b":
            raise ValueError(
                f"the shard {file} is compressed, so no record is found without all before it; set streaming: true, "
                "or unpack it to .tar"
            )
        opened.seek(0)
        try:
            with tarfile.open(fileobj=opened, mode="r:", tarinfo=Member) as tar:
                for member in members(tar):
                    if member.isdir() or (name := split_name(member.name)) is None:
                        continue
                    if member.isfile() and (member.size >= LARGEST_PART or member.offset_data >= LARGEST_TAR):
                        raise ValueError(
                            f"the shard {file} holds {member.name} of {member.size:,} bytes at {member.offset_data:,}; "
                            "a file may have 4 GiB and a tar 1 TiB, cut it"
                        )
                    writer.add(*name, member.offset_data if member.isfile() else LINK, member.size)
        except tarfile.TarError as error:
            # the last sample may be cut, too: then reading it fails, and lists it
            writer.bad_records.append(("", f"the tar cannot be read to its end ({error})"))
    return writer.index()


class _Writer:
    """An index that is being made, of parts in the order of their tar."""

    def __init__(self):
        self._keys: list[str] = []
        self._part_ends, self._blocks = array("Q"), array("q")
        self._sizes, self._names = array("Q"), array("Q")
        self._part_names: dict[str, int] = {}
        self.bad_records: list[tuple[str, str]] = []

    def add(self, key: str, name: str, offset: int, size: int) -> None:
        if not self._keys or self._keys[-1] != key:
            self._keys.append(key)
            self._part_ends.append(len(self._blocks))
        self._blocks.append(LINK if offset == LINK else offset // BLOCK)
        self._sizes.append(size if offset != LINK else 0)
        self._names.append(self._part_names.setdefault(name, len(self._part_names)))
        self._part_ends[-1] = len(self._blocks)

    def index(self) -> TarIndex:
        """Without the samples whose parts stand apart: the words of one alone would be another record."""
        names = list(self._part_names)
        ends, blocks = np.array(self._part_ends, np.int64), np.array(self._blocks, np.int64)
        sizes, name_of = np.array(self._sizes, np.int64), np.array(self._names, np.int64)
        counts = np.diff(ends, prepend=0)
        apart = self._apart(names, ends, name_of)
        kept = np.array([key not in apart for key in self._keys], bool)
        parts = np.repeat(kept, counts)
        keys = [key.encode(errors="surrogateescape") for key in self._keys if key not in apart]
        for key in sorted(apart):
            self.bad_records.append((key, IS_APART.format(", ".join(apart[key]))))
        return TarIndex(
            np.frombuffer(b"".join(keys), np.uint8),
            np.cumsum([len(key) for key in keys], dtype=np.uint32),
            np.cumsum(counts[kept], dtype=np.uint32),
            blocks[parts].astype(np.int32),
            sizes[parts].astype(np.uint32),
            name_of[parts].astype(np.uint32),
            names,
            self.bad_records,
        )

    def _apart(self, names: list[str], ends: np.ndarray, name_of: np.ndarray) -> dict[str, list[str]]:
        """The keys that come several times with different parts, and those."""
        counts = Counter(self._keys)
        parts: dict[str, list[str]] = {}
        for sample, key in enumerate(self._keys):
            if counts[key] > 1:
                first = ends[sample - 1] if sample else 0
                parts.setdefault(key, []).extend(names[number] for number in name_of[first : ends[sample]])
        return {key: each for key, each in parts.items() if len(set(each)) == len(each)}


def members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The members of a tar, of which only the current one is in memory."""
    while (member := tar.next()) is not None:
        yield member
        tar.members = []


class Member(tarfile.TarInfo):
    """A member of a tar. A tar without its end mark is an error here; Python takes one cut between members for
    whole."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> tarfile.TarInfo:
        try:
            return super().fromtarfile(tar)
        except (tarfile.EmptyHeaderError, tarfile.TruncatedHeaderError, tarfile.InvalidHeaderError) as error:
            raise tarfile.ReadError("unexpected end of data") from error


def split_name(path: str) -> tuple[str, str] | None:
    """(key, part) of a file's name in a tar; None where it has no part, or was left behind by a computer."""
    folder, slash, name = path.rpartition("/")
    if any(is_litter(each) for each in path.split("/") if each not in ("", ".", "..")):
        return None
    key, dot, part = name.partition(".")
    return (f"{folder}{slash}{key}", part.lower()) if key and dot else None
