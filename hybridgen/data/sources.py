"""What a config names, opened: a synthetic dataset, or files of any of the `formats`, as a source of documents.

Opening checks all that can be checked without decoding a picture. A broken record is no error yet: it is listed in the
`DocumentSource`, and counted by the mixture.
"""

import glob
import re
from collections.abc import Iterator
from pathlib import Path

from hybridgen.core.messages import parts
from hybridgen.core.recognition import refuse_impostor
from hybridgen.data.bad_records import BadRecord
from hybridgen.data.document_source import DocumentSource
from hybridgen.data.formats.csv_files import CsvSource
from hybridgen.data.formats.endless import ZSTD, stream_files
from hybridgen.data.formats.hf_datasets import DatasetSource, open_dataset
from hybridgen.data.formats.image_folder import FolderSource
from hybridgen.data.formats.json_files import json_source
from hybridgen.data.formats.rows import RowSource
from hybridgen.data.formats.streaming import StreamSource
from hybridgen.data.formats.txt_files import TxtSource
from hybridgen.data.formats.webdataset import WebDatasetSource
from hybridgen.data.keyed_random import feistel_permutation
from hybridgen.data.part import PartSource
from hybridgen.data.source_config import SourceConfig
from hybridgen.data.synthetic import open_synthetic

FIRST_FILES = 100  # whose first bytes are looked at before a source is opened
STREAM_LOOK = 10_000  # records of a stream that are read in search of a picture


def open_source(config: SourceConfig, seed: int = 0, index: Path | None = None) -> DocumentSource:
    """Open what a config names, for a run of this seed.

    Args:
        index: a folder in which it is kept where the samples of tars stand; None = it is found anew each time.

    Raises:
        ValueError: there is no such file or data set, no such task or split in it, no record that is whole, or no
            picture in any where the config says by which path pictures are written.
    """
    if config.kind == "synthetic":
        return _open_synthetic(config, seed)
    bad: list[BadRecord] = []
    _refuse_impostors(config)
    source = open_stream(config, seed) if config.streaming else open_records(config, bad, index)
    if config.part is not None:
        source = PartSource(source, config.part)
    if config.write is not None:
        _require_picture(source, config, bad)
    bad = [BadRecord(f"source {config.name!r}, {each.where}", each.reason) for each in bad]
    return DocumentSource(source, config, seed, bad)


def _refuse_impostors(config: SourceConfig) -> None:
    """Raises ValueError for files of records that are a git-lfs pointer, a web page or empty. Of many, the first ones
    are looked at: a clone without git-lfs has none that is whole."""
    kind = config.kind
    if kind in ("folder", "dataset", "txt"):  # of which each file is a record, and perhaps a broken one
        return
    for file in [file for file in files_named(config.source) if "://" not in file][:FIRST_FILES]:
        refuse_impostor(Path(file), _expected(kind, file, config.streaming), f"{config.name}: ")


def _expected(kind: str, file: str, streaming: bool) -> tuple[str, ...]:
    """What a file may be besides text: a table, or what is unpacked while it is read. A tar tells by itself that it is
    packed with gzip, a file of lines by its name."""
    if kind in ("parquet", "webdataset"):
        return ("parquet",) if kind == "parquet" else ("gzip",)
    if not streaming or kind != "jsonl":
        return ()
    return ("zstd",) if file.endswith(ZSTD) else ("gzip",) if file.endswith(".gz") else ()


def _require_picture(source: RowSource, config: SourceConfig, bad: list[BadRecord]) -> None:
    """Raises ValueError if no record holds a picture; reads up to the first that does, and decodes none."""
    count, unread = 0, []
    streaming = isinstance(source, StreamSource)
    for record in source.first_records(STREAM_LOOK) if streaming else _whole_records(source, unread):
        if any(part["type"] == "image" for message in record["messages"] for part in parts(message)):
            return
        count += 1
    broken = [*map(str, bad), *unread]
    raise ValueError(
        f"{config.name}: write is {config.write!r}, but none of the {count} records read holds a picture; leave write "
        "out, or say which column holds the pictures, as in columns: {image: picture}"
        + (f" ({len(broken)} records are broken, the first of them {broken[0]})" if broken else "")
    )


def _whole_records(source: RowSource, unread: list[str]) -> Iterator[dict]:
    """The records of a source that are whole, their pictures not decoded; of others the reason goes to `unread`."""
    for index in range(len(source)):
        try:
            yield source.record(index)
        except ValueError as error:
            unread.append(str(error))


def _open_synthetic(config: SourceConfig, seed: int) -> DocumentSource:
    dataset = open_synthetic(config.source)
    yes_no = 1 if config.yes_no_questions is None else config.yes_no_questions
    source = dataset.Source(
        config.split or "train",
        config.task,
        seed + config.seed,
        questions_per_picture=config.questions_per_picture,
        yes_no_questions=yes_no,
        categories=config.categories,
        reasoning=config.reasoning,
        oversampling=config.oversampling,
        open_captions=config.open_captions or 0.0,
        size=config.size,
    )
    return DocumentSource(source, config, seed)


def open_records(config: SourceConfig, bad_records: list[BadRecord], index: Path | None = None) -> RowSource:
    """The records of a source's files, by its format; what is broken is added to `bad_records`."""
    kind, rows = config.kind, {"form": config.form, "columns": config.columns}
    if kind == "folder":
        return FolderSource(config.source, bad_records, split=config.split, **rows)
    if kind in ("jsonl", "json", "csv"):
        open_file = CsvSource if kind == "csv" else json_source
        return open_file(config.source, images=config.images, bad_records=bad_records, **rows)
    if kind == "txt":
        return TxtSource(config.source, files_named(config.source), bad_records=bad_records, **rows)
    if kind == "webdataset":
        return WebDatasetSource(files_named(config.source), bad_records=bad_records, index=index, **rows)
    files = files_named(config.source) if kind == "parquet" else []
    table = open_dataset(config.source, kind, files, config.split, config.subset)
    source = DatasetSource(table, config.source, images=config.images or _folder_of(config, files), **rows)
    source.files = files
    return source


def open_stream(config: SourceConfig, seed: int) -> StreamSource:
    """The records of a source that is read from front to end; its files in another order each epoch if it shuffles."""
    kind = config.kind
    files = [] if kind == "dataset" else files_named(config.source)

    def files_of(epoch: int) -> tuple[str, ...]:
        if not config.shuffle:
            return tuple(files)
        key = f"{seed}/{config.name}/{epoch}/files"
        return tuple(files[feistel_permutation(place, len(files), key)] for place in range(len(files)))

    def open_files(files: tuple[str, ...]):
        if kind in ("jsonl", "webdataset"):
            return stream_files(list(files), kind)
        return open_dataset(config.source, kind, list(files), config.split, config.subset, streaming=True)

    images = config.images or _folder_of(config, files)
    rows, shuffle = (config.form, config.columns, images), f"{seed}/{config.name}" if config.shuffle else None
    stream = StreamSource(open_files, files_of, config.source, config.buffer, *rows, shuffle)
    stream.files = files
    stream.check()  # so that missing files are reported now and not in the first step
    return stream


def _folder_of(config: SourceConfig, files: list[str]) -> Path:
    """The folder that paths of images are relative to, where the config names none."""
    return Path(files[0]).parent if files else Path(config.source)


def files_named(source: str) -> list[str]:
    """The files that a pattern stands for, in order: {000..007} is a range of numbers, * and ? match names.

    Raises:
        ValueError: there is none.
    """
    files = []
    for name in _expand_range(source):
        if "://" in name or not glob.has_magic(name):
            files.append(name)
        else:
            files += sorted(glob.glob(name, recursive=True))
    missing = [name for name in files if "://" not in name and not Path(name).is_file()]
    if missing or not files:
        raise ValueError(f"there is no file {missing[0] if missing else source}; check the name, or leave it out")
    return files


def _expand_range(source: str) -> list[str]:
    """`a{08..10}` -> a08, a09, a10."""
    if (match := re.search(r"\{(\d+)\.\.(\d+)\}", source)) is None:
        return [source]
    first, last = match.groups()
    numbers = [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    before, after = source[: match.start()], source[match.end() :]
    return [name for number in numbers for name in _expand_range(f"{before}{number}{after}")]
