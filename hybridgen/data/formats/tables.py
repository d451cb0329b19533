"""Tables of the datasets library as sources: parquet files, folders that it saved, data sets by name.

Rows become records by `forms`; images stay encoded until a record is asked for, so that a broken one breaks only its
record. The fact a newcomer gets wrong: a table is copied to the library's cache on disk when it is first opened; what
is too large for that is read with `streaming: true` (`streams`).
"""

import contextlib
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from hybridgen.data.broken import Broken
from hybridgen.data.formats.forms import find_form, record_of
from hybridgen.data.records import check_record, load_images

SAVED = ("dataset_info.json", "dataset_dict.json", "state.json")  # of `save_to_disk`


class TableSource:
    """Rows of a `datasets.Dataset`.

    Args:
        name: what to call it in errors.
        form, columns: see `forms`; None = told by the first row.
        images: the folder that paths of images are relative to.
    """

    def __init__(
        self,
        table: Any,
        name: str,
        form: str | None = None,
        columns: dict[str, str] | None = None,
        images: str | Path = "",
        broken: list[Broken] | None = None,
    ):
        self.table, self.name, self.columns, self.images = table, name, columns or {}, Path(images)
        if not len(table):
            raise ValueError(f"{name} holds no row")
        self.form = form or find_form(table[0], self.columns, name)

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} has records 0 to {len(self) - 1}, not {index}")
        where = self.where(index)
        record = check_record(record_of(self.table[index], self.form, self.columns, where), where)
        return load_images(record, self.images, where)

    def where(self, index: int) -> str:
        """The row of a record."""
        return f"{self.name}, row {index}"


def open_table(
    source: str, kind: str, files: list[str], split: str | None = None, subset: str | None = None, streaming=False
) -> Any:
    """A `datasets.Dataset`, or an `IterableDataset` if streaming, whose images are not decoded.

    Args:
        kind: `parquet`, or `dataset` for the name of a data set or a folder of one.
        files: parquet's.

    Raises:
        ValueError: there is no such data set, split or subset, or a file is broken; it says what the library says.
    """
    import datasets  # takes a second to import, and most runs need none of it

    try:
        if kind == "parquet":
            table = datasets.load_dataset("parquet", data_files=files, split="train", streaming=streaming)
        elif any((Path(source) / file).is_file() for file in SAVED):
            table = datasets.load_from_disk(source)
            if isinstance(table, datasets.DatasetDict):
                table = table[_split_of(table, split, source)]
            table = table.to_iterable_dataset() if streaming else table
        else:
            with _not_waiting_for_the_hub(source, datasets.config):
                given = datasets.load_dataset(source, subset, streaming=streaming)
            table = given[_split_of(given, split, source)]
    except _FAULTS as error:
        raise ValueError(_sentence(source, error)) from error
    except datasets.exceptions.DatasetsError as error:
        raise ValueError(_sentence(source, error)) from error
    return _undecoded(table, datasets)


_FAULTS = (OSError, ValueError, ImportError)


@contextlib.contextmanager
def _not_waiting_for_the_hub(source: str, config: Any) -> Iterator[None]:
    """Where the hub cannot be reached, what is in the cache is taken at once; the library would try for 23 seconds."""
    if config.HF_HUB_OFFLINE or Path(source).is_dir() or _answers(config.HF_ENDPOINT):
        yield
        return
    config.HF_HUB_OFFLINE = True
    try:
        yield
    except _FAULTS:
        reason = f"{config.HF_ENDPOINT} does not answer, and it is neither a folder nor in the cache"
        raise ValueError(_sentence(source, ValueError(reason))) from None  # else the cause would be told
    finally:
        config.HF_HUB_OFFLINE = False


def _answers(endpoint: str) -> bool:
    """Asked once, for at most five seconds, through the proxy where there is one."""
    try:
        urlopen(Request(endpoint, method="HEAD"), timeout=5).close()
    except HTTPError:  # an answer, too
        return True
    except OSError as error:
        return isinstance(getattr(error, "reason", error), ssl.SSLError)  # the library has certificates of its own
    return True


def _sentence(source: str, error: Exception) -> str:
    error = error.__cause__ or error
    if str(error).startswith(f"source {source!r}"):
        return str(error)
    reason = " ".join(str(error).split()) or type(error).__name__
    return f"source {source!r} cannot be opened as a data set: {reason[:400]}"


def _split_of(splits: Any, split: str | None, source: str) -> str:
    """The one that is asked for; `train`, or the only one, where none is."""
    names = list(splits)
    if split is None:
        split = names[0] if len(names) == 1 else "train"
    if split not in names:
        raise ValueError(f"source {source!r} has no split {split!r}; it has {', '.join(names)}, say split: one of them")
    return split


def _undecoded(table: Any, datasets: Any) -> Any:
    """The same with images as {"bytes", "path"}, also inside of lists."""

    def plain(feature: Any) -> Any:
        if isinstance(feature, datasets.Image):
            return datasets.Image(decode=False)
        if isinstance(feature, datasets.List):
            return datasets.List(plain(feature.feature))
        if isinstance(feature, dict):
            return {name: plain(part) for name, part in feature.items()}
        return feature

    for name, feature in (table.features or {}).items():
        if (encoded := plain(feature)) != feature:
            table = table.cast_column(name, encoded)
    return table
