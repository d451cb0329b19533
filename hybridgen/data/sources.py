"""Sources: where records come from, and one task's share of the training data made of them.

A `Source` is a sequence of records (`JsonlSource`, the worlds). A `Task` is a source with its `SourceConfig`: which
paths read and write its images, how much of the mixture it is, and in which order its records come. The fact a newcomer
gets wrong: nothing here has a random stream. Whether record 7 loses its prompt, or which record comes 1,000th, is a
function of (seed, task, number), so a run goes on anywhere by knowing one integer a task.
"""

import hashlib
import json
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from PIL import Image

from hybridgen.chat import parts
from hybridgen.data.folders import FolderSource
from hybridgen.data.records import check_record, load_images
from hybridgen.data.worlds import open_world
from hybridgen.documents import Document
from hybridgen.layout import PATHS
from hybridgen.processing_hybridgen import LOSS_ON, HybridGenProcessor

ORDERS = {"caption_first": 1.0, "image_first": 0.0}


class Source(Protocol):
    """A sequence of records with their pictures inline; record i is the same whenever it is asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict: ...


class JsonlSource:
    """Records of a JSON-lines file. All lines are checked at once, pictures are opened when a record is asked for.

    Raises:
        ValueError: the file is missing or empty, or a line is no record; it names the file and the line.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not self.path.is_file():
            raise ValueError(
                f"there is no file {self.path}; a source is a .jsonl file or the name of a world, or a folder"
            )
        self._offsets, self._lines = array("q"), array("q")
        with self.path.open("rb") as file:
            offset = 0
            for number, line in enumerate(file, start=1):
                if line.strip():
                    self._parse(line, number)
                    self._offsets.append(offset)
                    self._lines.append(number)
                offset += len(line)
        if not self._offsets:
            raise ValueError(f"{self.path} holds no record; write one JSON object a line")

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.path} has records 0 to {len(self) - 1}, not {index}")
        with self.path.open("rb") as file:
            file.seek(self._offsets[index])
            record = self._parse(file.readline(), self._lines[index])
        return load_images(record, self.path.parent, self.where(index))

    def where(self, index: int) -> str:
        """The file and line of a record."""
        return f"{self.path}:{self._lines[index]}"

    def _parse(self, line: bytes, number: int) -> dict:
        where = f"{self.path}:{number}"
        try:
            return check_record(json.loads(line.decode("utf-8")), where)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where}: not a JSON object ({error.msg} at column {error.colno})") from error
        except UnicodeDecodeError as error:
            raise ValueError(f"{where}: not UTF-8 text (byte {error.start} of the line)") from error


@dataclass
class SourceConfig:
    """One task of the mixture.

    Args:
        source: a world (`dolls`, `emoji`), a .jsonl file, or a folder of captioned pictures (`data.folders`).
        name: what it is called in logs and checkpoints; None = made of source, task and path.
        task: worlds only: `draw` or `answer`.
        split: worlds only; None = `train`.
        weight: its share of the tokens is this over the sum of all weights. One that changes is a mapping from the
            optimizer step on which it begins to hold, the first 0: `{0: 0.5, 1000: 0.1}`.
        read, write, loss_on, twin, height, width: see `HybridGenProcessor.document`.
        prompt_dropout: share of the documents that lose what the user says (0.1 is usual where guidance is wanted).
        order: `caption_first`, `image_first`, or the share of documents that are caption first (Transfusion: 0.8).
            Concerns records of a caption by the user and a picture by the assistant; `image_first` exchanges the two.
            With loss_on `all` the picture is still written (Transfusion), with `assistant` it is then only read.
        questions_per_picture: worlds' `answer` only; None = all that apply.
        yes_no_questions: worlds' `answer` only: how many of those that apply want yes or no; None = 1.
        categories: worlds' `answer` only: which of the world's CATEGORIES are asked about; None = all.
        shuffle: a new order in each epoch; False = as they stand.
        seed: added to the run's, for pictures other than another task's.
    """

    source: str
    name: str | None = None
    task: str | None = None
    split: str | None = None
    weight: float | dict = 1.0
    read: str = "understanding"
    write: str | None = None
    loss_on: str = "assistant"
    prompt_dropout: float = 0.0
    twin: bool = False
    order: str | float = "caption_first"
    height: int | None = None
    width: int | None = None
    questions_per_picture: int | None = None
    yes_no_questions: int | None = None
    categories: list[str] | None = None
    shuffle: bool = True
    seed: int = 0

    def __post_init__(self):
        if self.name is None:
            words = (Path(self.source).stem if self.is_file else self.source, self.task, self.write or self.read)
            self.name = "-".join(word for word in words if word)
        self._check_weight()
        if not 0 <= self.prompt_dropout <= 1:
            raise ValueError(f"{self.name}: prompt_dropout is {self.prompt_dropout}; it must lie between 0 and 1")
        if self.order not in ORDERS and not (isinstance(self.order, int | float) and 0 <= self.order <= 1):
            raise ValueError(
                f"{self.name}: order is {self.order!r}; use 'caption_first', 'image_first' or a share from 0 to 1"
            )
        for key, value, allowed in (
            ("read", self.read, PATHS),
            ("write", self.write, (None, *PATHS)),
            ("loss_on", self.loss_on, LOSS_ON),
        ):
            if value not in allowed:
                raise ValueError(f"{self.name}: {key} is {value!r}; it must be one of {', '.join(map(str, allowed))}")
        names = ("task", "split", "questions_per_picture", "yes_no_questions", "categories")
        world_only = {name: getattr(self, name) for name in names}
        if self.is_file and (given := [key for key, value in world_only.items() if value is not None]):
            raise ValueError(f"{self.name}: {given[0]} belongs to worlds; a file or folder has none, leave it out")
        if not self.is_file and self.task is None:
            raise ValueError(f"{self.name}: task is missing; a world needs 'draw' or 'answer'")

    def _check_weight(self) -> None:
        by_step = self.weight if isinstance(self.weight, dict) else {0: self.weight}
        if 0 not in by_step or any(not isinstance(step, int) or step < 0 for step in by_step):
            raise ValueError(
                f"{self.name}: weight is {self.weight}; one that changes is a mapping from optimizer steps, the first "
                "of them 0, as in {0: 0.5, 1000: 0.1}"
            )
        for weight in by_step.values():
            if not isinstance(weight, int | float) or not 0 <= weight < float("inf"):
                raise ValueError(f"{self.name}: weight is {weight}; it must be a finite number of at least 0")

    @property
    def is_file(self) -> bool:
        """Whether the source is a file or folder, and not the name of a world."""
        return bool(Path(self.source).suffix) or "/" in self.source

    @property
    def caption_first(self) -> float:
        """The share of documents that are caption first."""
        return ORDERS[self.order] if isinstance(self.order, str) else float(self.order)


class Task:
    """A source with its config: an endless sequence of training documents.

    `cursor` counts them; (seed, name, cursor) decides all.
    """

    def __init__(self, source: Source, config: SourceConfig, seed: int = 0):
        self.source, self.config, self.seed = source, config, seed
        self.name, self.weight = config.name, config.weight
        if not len(source):
            raise ValueError(f"{self.name} holds no record; a source needs at least one")

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict:
        return self.source[index]

    def index(self, cursor: int) -> int:
        """Which record is the `cursor`-th: every record once an epoch."""
        epoch, place = divmod(cursor, len(self))
        return permute(place, len(self), f"{self.seed}/{self.name}/{epoch}") if self.config.shuffle else place

    def where(self, cursor: int) -> str:
        """What to call the `cursor`-th record in an error."""
        index = self.index(cursor)
        place = self.source.where(index) if isinstance(self.source, JsonlSource | FolderSource) else f"record {index}"
        return f"source {self.name!r}, {place}"

    def document(self, cursor: int, processor: HybridGenProcessor) -> Document:
        """The `cursor`-th training document.

        Raises:
            ValueError: naming the record, and what is wrong with it.
        """
        config = self.config
        messages = self.source[self.index(cursor)]["messages"]
        if chance(f"{self.seed}/{self.name}/{cursor}/order") >= config.caption_first:
            messages = image_first(messages)
        try:
            return processor.document(
                messages,
                read=config.read,
                write=config.write,
                loss_on=config.loss_on,
                prompt_dropout=chance(f"{self.seed}/{self.name}/{cursor}/prompt") < config.prompt_dropout,
                twin=config.twin,
                height=config.height,
                width=config.width,
            )
        except ValueError as error:
            raise ValueError(f"{self.where(cursor)}: {error}") from error

    def pictures(self, cursor: int) -> list[Image.Image]:
        """The pictures of the `cursor`-th record, without words: what a codec trains on."""
        messages = self.source[self.index(cursor)]["messages"]
        return [part["image"] for message in messages for part in parts(message) if part["type"] == "image"]

    def check(self, processor: HybridGenProcessor) -> None:
        """Raises ValueError, naming the task, if the processor cannot serve it; makes the first document to see."""
        config = self.config
        try:
            processor.check_settings(
                config.read, config.write, config.loss_on, config.twin, config.height, config.width
            )
        except ValueError as error:
            raise ValueError(f"source {self.name!r}: {error}") from error
        self.document(0, processor)


def open_source(config: SourceConfig, seed: int = 0) -> Task:
    """Open what a config names, for a run of this seed.

    Raises:
        ValueError: there is no such file or world, or no such task or split in it.
    """
    if config.is_file:
        kind = FolderSource if Path(config.source).is_dir() else JsonlSource
        return Task(kind(config.source), config, seed)
    world = open_world(config.source)
    yes_no = 1 if config.yes_no_questions is None else config.yes_no_questions
    asking = {"questions_per_picture": config.questions_per_picture, "yes_no_questions": yes_no}
    asking["categories"] = config.categories
    source = world.Source(config.split or "train", config.task, seed + config.seed, **asking)
    return Task(source, config, seed)


def image_first(messages: list[dict]) -> list[dict]:
    """A caption and its picture with their places exchanged; any other conversation as it is."""
    if [message["role"] for message in messages] != ["user", "assistant"]:
        return messages
    kinds = [{part["type"] for part in parts(message)} for message in messages]
    if kinds != [{"text"}, {"image"}]:
        return messages
    user, assistant = messages
    return [{**user, "content": assistant["content"]}, {**assistant, "content": user["content"]}]


# ------------------------------------------------------------------------------------- decisions without a stream


def chance(key: str) -> float:
    """A number in [0, 1) that only depends on the key, as good as random."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest()) / 2**64


def permute(place: int, length: int, key: str) -> int:
    """Where `place` of 0 .. length - 1 goes in the permutation named by `key`; needs no memory, however long.

    A Feistel network of four rounds on the next even power of two, walked until it lands inside.
    """
    half = max(1, ((length - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = place >> half, place & mask
        for round_ in range(4):
            digest = hashlib.blake2b(f"{key}/{round_}/{right}".encode(), digest_size=8).digest()
            left, right = right, left ^ (int.from_bytes(digest) & mask)
        place = left << half | right
        if place < length:
            return place
