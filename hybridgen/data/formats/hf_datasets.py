"""Data sets of the datasets library as sources: parquet files, folders that it saved, data sets by name.

Images stay encoded until a record is read, so that a damaged one breaks only its record. Note that the library copies a
data set to its cache on disk when it is first opened; what is too large for that is read with `streaming: true`
(`streaming`).
"""

import contextlib
import logging
import ssl
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from hybridgen.core.values import one_line
from hybridgen.data.formats.rows import RowSource

SAVED = ("dataset_info.json", "dataset_dict.json", "state.json")  # files that `save_to_disk` writes


class DatasetSource(RowSource):
    """Rows of a `datasets.Dataset`. Arguments as of `RowSource`."""

    def __init__(
        self,
        table: Any,
        name: str,
        form: str | None = None,
        columns: dict[str, str] | None = None,
        images: str | Path = "",
    ):
        super().__init__(name, form, columns, images)
        self.table = table
        if not len(table):
            raise ValueError(f"{name} holds no row")

    def __len__(self) -> int:
        return len(self.table)

    def where(self, index: int) -> str:
        """The row of a record."""
        return f"{self.name}, row {index}"

    def _row(self, index: int) -> dict:
        return self.table[index]


def open_dataset(
    source: str, kind: str, files: list[str], split: str | None = None, subset: str | None = None, streaming=False
) -> Any:
    """A `datasets.Dataset`, or an `IterableDataset` if streaming, whose images are not decoded.

    Args:
        kind: `parquet`, or `dataset` for the name of a data set or a folder of one.
        files: parquet's.

    Raises:
        ValueError: there is no such data set, split or subset, or a file is broken, with the library's reason.
    """
    import datasets  # takes a second to import, and most runs do not need it

    with said_by_us():
        return _undecoded(_open(source, kind, files, split, subset, streaming, datasets), datasets)


@contextlib.contextmanager
def said_by_us() -> Iterator[None]:
    """Inside, the library logs nothing of what it raises; threads may be inside at once."""
    logger = logging.getLogger("datasets")
    with _quiet.lock:
        if not _quiet.inside:
            _quiet.level = logger.level
            logger.setLevel(logging.CRITICAL)
        _quiet.inside += 1
    try:
        yield
    finally:
        with _quiet.lock:
            _quiet.inside -= 1
            if not _quiet.inside:
                logger.setLevel(_quiet.level)


class _Quiet:
    """How many are inside of `said_by_us`, and the level that was set before the first of them."""

    def __init__(self):
        self.lock, self.inside, self.level = threading.Lock(), 0, logging.NOTSET


_quiet = _Quiet()


def _open(
    source: str, kind: str, files: list[str], split: str | None, subset: str | None, streaming: bool, datasets: Any
):
    try:
        if kind == "parquet":
            table = datasets.load_dataset("parquet", data_files=files, split="train", streaming=streaming)
        elif any((Path(source) / file).is_file() for file in SAVED):
            table = datasets.load_from_disk(source)
            if isinstance(table, datasets.DatasetDict):
                table = table[_split_of(table, split, source)]
            table = table.to_iterable_dataset() if streaming else table
        else:
            with _offline_if_unreachable(source, datasets.config):
                splits = datasets.load_dataset(source, subset, streaming=streaming)
            table = splits[_split_of(splits, split, source)]
    except (*_LIBRARY_ERRORS, datasets.exceptions.DatasetsError) as error:
        raise ValueError(_cannot_open(source, error, files)) from error
    return table


_LIBRARY_ERRORS = (OSError, ValueError, ImportError)


@contextlib.contextmanager
def _offline_if_unreachable(source: str, config: Any) -> Iterator[None]:
    """Use the library's cache at once where the hub cannot be reached; left alone, it would retry for 23 seconds."""
    if config.HF_HUB_OFFLINE or Path(source).is_dir() or _is_reachable(config.HF_ENDPOINT):
        yield
        return
    config.HF_HUB_OFFLINE = True
    try:
        yield
    except _LIBRARY_ERRORS:
        reason = f"{config.HF_ENDPOINT} does not answer, and it is neither a folder nor in the cache"
        # `from None`: `open_dataset` reports an error's cause, and here this sentence is the one to report
        raise ValueError(_cannot_open(source, ValueError(reason))) from None
    finally:
        config.HF_HUB_OFFLINE = False


def _is_reachable(endpoint: str) -> bool:
    """One request of at most five seconds, through the proxy where there is one."""
    try:
        urlopen(Request(endpoint, method="HEAD"), timeout=5).close()
    except HTTPError:  # an error status is an answer, too
        return True
    except OSError as error:
        return isinstance(getattr(error, "reason", error), ssl.SSLError)  # the library brings its own certificates
    return True


def _cannot_open(source: str, error: Exception, files: Sequence[str] = ()) -> str:
    error = error.__cause__ or error
    if str(error).startswith(f"source {source!r}"):
        return str(error)
    return f"source {source!r} cannot be opened as a data set: {reason_of(error, files)}"


def reason_of(error: Exception, files: Sequence[str]) -> str:
    """What the library could not read, in one line. Of a parquet file without rows it names neither file nor fault."""
    if "BatchSize" in str(error):
        from pyarrow.parquet import read_metadata  # slow to import, as in `open_dataset`

        for file in files:
            if Path(file).is_file() and not read_metadata(file).num_rows:
                return f"{file} holds no row; remove it, or leave it out of the source"
    return (one_line(error) or type(error).__name__)[:400]


def _split_of(splits: Any, split: str | None, source: str) -> str:
    """The split that is asked for; where none is, the only one, else `train`."""
    names = list(splits)
    if split is None:
        split = names[0] if len(names) == 1 else "train"
    if split not in names:
        raise ValueError(f"source {source!r} has no split {split!r}; it has {', '.join(names)}, say split: one of them")
    return split


def _undecoded(table: Any, datasets: Any) -> Any:
    """The same table with images as {"bytes", "path"}, also inside of lists."""

    def undecoded(feature: Any) -> Any:
        if isinstance(feature, datasets.Image):
            return datasets.Image(decode=False)
        if isinstance(feature, datasets.List | datasets.LargeList):
            return type(feature)(undecoded(feature.feature))
        if isinstance(feature, dict):
            return {name: undecoded(part) for name, part in feature.items()}
        return feature

    for name, feature in (table.features or {}).items():
        if (encoded := undecoded(feature)) != feature:
            table = table.cast_column(name, encoded)
    return table
