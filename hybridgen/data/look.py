"""A first look at data that nobody has described yet: what its records are, how many, how large its pictures.

`inspection` counts what a source of a config holds; here the source itself is found from no more than a path.
"""

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hybridgen.core.messages import parts
from hybridgen.core.recognition import expand, is_there, nearest
from hybridgen.data.document_source import DocumentSource
from hybridgen.data.formats.image_folder import SPLITS
from hybridgen.data.inspection import SourceReport, inspect_source
from hybridgen.data.source_config import SourceConfig
from hybridgen.data.sources import files_named, open_source

LIMIT = 1000  # records that are read
TRAINING, HELD_OUT = SPLITS[:2], SPLITS[2:]  # names of split folders
BROKEN = 0.5  # a larger share of broken records is no data set


@dataclass
class DataLook:
    """What is there.

    Args:
        source: as a config names it, from anywhere.
        split, held_out: names of its folders for training and validation; None = it has none.
        report: of its records, `LIMIT` of them at most.
        seen: how many were looked at, broken ones included.
        kinds: how many records draw a picture, answer about one, or are words alone.
        prompts: what is asked for in the first records that draw, each once.
    """

    source: str
    split: str | None
    held_out: str | None
    report: SourceReport
    seen: int
    kinds: Counter = field(default_factory=Counter)
    prompts: list[str] = field(default_factory=list)

    @property
    def records(self) -> int:
        return self.report.records

    @property
    def side(self) -> int:
        """The shorter side of a picture in pixels: half of them have a larger one."""
        return int(np.median([min(size) for size in self.report.sizes.elements()]))

    @property
    def broken_share(self) -> float:
        return len(self.report.bad_records) / self.seen

    def source_config(self, **settings) -> SourceConfig:
        return SourceConfig(self.source, split=self.split, **settings)


def look_at(data: str) -> DataLook:
    """Look at what a user calls their data: a folder, a file or a pattern of files.

    Raises:
        ValueError: in one sentence, that nothing is there, it holds no picture, no caption, or mostly broken records.
    """
    source = found(data)
    split, held_out = split_folders(Path(source))
    opened = open_source(SourceConfig(source, split=split))
    report = inspect_source(opened, LIMIT)
    look = DataLook(source, split, held_out, report, report.read + len(opened.bad_records))
    if report.bad_records and (not report.words or look.broken_share > BROKEN):
        bad, count = report.bad_records[0], len(report.bad_records)
        raise ValueError(
            f"{count} of the {look.seen} records of {data} that were read are broken, the first of them {bad.where} "
            f"({bad.reason}); mend them (`hybridgen data inspect {data}` lists them), or give other data"
        )
    if not report.sizes:
        raise ValueError(f"none of the {look.seen} records of {data} holds a picture; give captioned pictures")
    _count_kinds(look, opened)
    return look


def found(data: str) -> str:
    """The path of data as a config can name it, wherever it is run.

    Raises:
        ValueError: nothing is there.
    """
    path = Path(expand(data))
    if is_there(path):
        folder = "/" if path.is_dir() else ""
        return os.path.abspath(path) + folder
    pattern = os.path.abspath(path)
    if any(letter in data for letter in "*?{["):
        files_named(pattern)
        return pattern
    near = nearest(path)
    raise ValueError(
        f"there are no data at {data}; "
        + ("give a folder of captioned pictures, or a file" if near is None else f"did you mean {near}?")
    )


def split_folders(folder: Path) -> tuple[str | None, str | None]:
    """The folders inside for training and for validation, where there are both; else none of them."""
    if not folder.is_dir():
        return None, None
    inside = {entry.name for entry in folder.iterdir() if entry.is_dir()}
    training = next((name for name in TRAINING if name in inside), None)
    held_out = next((name for name in HELD_OUT if name in inside), None)
    return (training, held_out) if training and held_out else (None, None)


def _count_kinds(look: DataLook, opened: DocumentSource) -> None:
    for index in range(min(LIMIT, len(opened))):
        try:
            messages = opened.record_source.record(index)["messages"]
        except ValueError:  # broken, and in the report
            continue
        drawn = [message["role"] == "assistant" for message in messages for part in parts(message)
                 if part["type"] == "image"]  # fmt: skip
        look.kinds["draw" if any(drawn) else "answer" if drawn else "words"] += 1
        if any(drawn) and (said := prompt_of(messages)) and said not in look.prompts:
            look.prompts.append(said)


def prompt_of(messages: list[dict]) -> str:
    """What a record that draws asks for: the words of its first message, where that is the user's."""
    if messages[0]["role"] != "user":
        return ""
    return " ".join(part["text"] for part in parts(messages[0]) if part["type"] == "text").strip()
