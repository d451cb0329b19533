"""Sources: what a config names, opened as a task of records.

A `Source` is a sequence of records with their pictures inline: the synthetic datasets, `FolderSource`, `JsonlSource`, `TarSource`,
`TableSource`, `StreamSource`. The fact a newcomer gets wrong: opening a source checks all that can be checked without
decoding a picture, and what is broken is not an error yet. It is listed in the task, and counted by the mixture.
"""

import glob
import re
from functools import partial
from pathlib import Path

from hybridgen.data.broken import Broken
from hybridgen.data.draws import feistel_permutation
from hybridgen.data.formats.folders import FolderSource
from hybridgen.data.formats.jsons import JsonlSource, JsonSource
from hybridgen.data.formats.streams import StreamSource, stream_files
from hybridgen.data.formats.tables import TableSource, open_table
from hybridgen.data.formats.tars import TarSource
from hybridgen.data.source_config import ORDERS, SourceConfig
from hybridgen.data.synthetic import open_synthetic
from hybridgen.data.tasks import Source, Task, image_first

__all__ = [
    "ORDERS",
    "JsonlSource",
    "Source",
    "SourceConfig",
    "Task",
    "hash_uniform",
    "image_first",
    "open_source",
    "feistel_permutation",
]


def open_source(config: SourceConfig, seed: int = 0) -> Task:
    """Open what a config names, for a run of this seed.

    Raises:
        ValueError: there is no such file, data set or world, no such task or split in it, or no record that is whole.
    """
    if config.kind == "synthetic":
        return _open_synthetic(config, seed)
    broken: list[Broken] = []
    source = _open_stream(config, seed) if config.streaming else _open_files(config, broken)
    return Task(source, config, seed, [Broken(f"source {config.name!r}, {each.where}", each.reason) for each in broken])


def _open_synthetic(config: SourceConfig, seed: int) -> Task:
    dataset = open_synthetic(config.source)
    yes_no = 1 if config.yes_no_questions is None else config.yes_no_questions
    asking = {"questions_per_picture": config.questions_per_picture, "yes_no_questions": yes_no}
    asking |= {"categories": config.categories, "reasoning": config.reasoning}
    arguments = (config.split or "train", config.task, seed + config.seed)
    source = dataset.Source(*arguments, **asking, oversampling=config.oversampling)
    return Task(source, config, seed)


def _open_files(config: SourceConfig, broken: list[Broken]) -> Source:
    how = {"form": config.form, "columns": config.columns, "broken": broken}
    kind = config.kind
    if kind == "folder":
        return FolderSource(config.source, broken)
    if kind in ("jsonl", "json"):
        return (JsonlSource if kind == "jsonl" else JsonSource)(config.source, images=config.images, **how)
    if kind == "webdataset":
        return TarSource(expand(config.source), **how)
    files = expand(config.source) if kind == "parquet" else []
    table = open_table(config.source, "parquet" if files else "dataset", files, config.split, config.subset)
    return TableSource(table, config.source, images=config.images or _folder_of(config, files), **how)


def _open_stream(config: SourceConfig, seed: int) -> StreamSource:
    kind = config.kind
    files = [] if kind == "dataset" else expand(config.source)

    def open_epoch(epoch: int):
        shards = files
        if config.shuffle:
            key = f"{seed}/{config.name}/{epoch}/files"
            shards = [files[feistel_permutation(place, len(files), key)] for place in range(len(files))]
        if kind in ("jsonl", "webdataset"):
            return stream_files(shards, kind)
        return table(files=shards)

    table = partial(open_table, config.source, kind, split=config.split, subset=config.subset, streaming=True)
    images = config.images or _folder_of(config, files)
    stream = StreamSource(open_epoch, config.source, config.buffer, config.form, config.columns, images)
    stream.where(0)  # what is missing is said now
    return stream


def _folder_of(config: SourceConfig, files: list[str]) -> Path:
    """What paths of images are relative to, where the config does not say."""
    return Path(files[0]).parent if files else Path(config.source)


def expand(source: str) -> list[str]:
    """The files that a name stands for, in order: {000..007} is counted out, * and ? are matched.

    Raises:
        ValueError: there is none.
    """
    names = _counted(source)
    found = []
    for name in names:
        if "://" in name or not glob.has_magic(name):
            found.append(name)
        else:
            found += sorted(glob.glob(name, recursive=True))
    missing = [name for name in found if "://" not in name and not Path(name).is_file()]
    if missing or not found:
        raise ValueError(f"there is no file {missing[0] if missing else source}; check the name, or leave it out")
    return found


def _counted(source: str) -> list[str]:
    """`a{08..10}` -> a08, a09, a10."""
    if (found := re.search(r"\{(\d+)\.\.(\d+)\}", source)) is None:
        return [source]
    first, last = found.groups()
    numbers = (str(number).zfill(len(first)) for number in range(int(first), int(last) + 1))
    return [name for number in numbers for name in _counted(source[: found.start()] + number + source[found.end() :])]
