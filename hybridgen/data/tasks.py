"""Tasks: a source with its config, as an endless sequence of training documents.

The fact a newcomer gets wrong: nothing here has a random stream. Whether record 7 loses its prompt, or which record
comes 1,000th, is a function of (seed, task, number), so a run goes on anywhere by knowing one integer a task.
"""

from typing import Protocol

from PIL import Image

from hybridgen.core.documents import Document
from hybridgen.core.messages import parts
from hybridgen.data.broken import Broken
from hybridgen.data.draws import feistel_permutation, hash_uniform
from hybridgen.data.formats.streams import StreamSource
from hybridgen.data.source_config import SourceConfig
from hybridgen.processing_hybridgen import HybridGenProcessor


class Source(Protocol):
    """A sequence of records with their pictures inline; record i is the same whenever it is asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict: ...


class Task:
    """A source with its config: an endless sequence of training documents.

    `cursor` counts them; (seed, name, cursor) decides all.

    Args:
        broken: what was found broken when the source was opened.
    """

    def __init__(
        self, source: Source | StreamSource, config: SourceConfig, seed: int = 0, broken: list[Broken] | None = None
    ):
        self.source, self.config, self.seed = source, config, seed
        self.name, self.weight, self.broken = config.name, config.weight, broken or []
        self._part, self._parts = 0, 1
        if not self.streaming and not len(source):
            raise ValueError(f"{self.name} holds no record; a source needs at least one")

    @property
    def streaming(self) -> bool:
        """Whether its records are read from front to end, so that nobody knows how many there are."""
        return isinstance(self.source, StreamSource)

    @property
    def records(self) -> int | None:
        """How many there are; None = not known."""
        return None if self.streaming else len(self.source)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict:
        return self.source[index]

    def take_part(self, part: int, parts: int) -> None:
        """Go on with every `parts`-th record alone, so that as many processes share the reading.

        Raises:
            ValueError: there are fewer records than parts.
        """
        if self.streaming:
            self.source.take_part(part, parts)
        elif len(self) < parts:
            raise ValueError(
                f"source {self.name!r} has {len(self)} records, too few to be divided by {parts} processes; set "
                "data.shard_by_rank: false"
            )
        else:
            self._part, self._parts = part, parts

    def index(self, cursor: int) -> int:
        """Which record is the `cursor`-th: every record once an epoch; of a stream, once a block."""
        if self.streaming:
            block, place = divmod(cursor, self.source.buffer)
            places = self.source.buffer
        else:
            block, place = divmod(cursor * self._parts + self._part, len(self))
            places = len(self)
        if self.config.shuffle:
            place = feistel_permutation(place, places, f"{self.seed}/{self.name}/{block}")
        return block * places + place if self.streaming else place

    def where(self, cursor: int) -> str:
        """What to call the `cursor`-th record in an error."""
        index = self.index(cursor)
        where = getattr(self.source, "where", None)  # synthetic datasets have no files to name
        return f"source {self.name!r}, {where(index) if where else f'record {index}'}"

    def document(self, cursor: int, processor: HybridGenProcessor) -> Document:
        """The `cursor`-th training document.

        Raises:
            ValueError: naming the record, and what is wrong with it.
        """
        config = self.config
        try:
            messages = self.source[self.index(cursor)]["messages"]
        except ValueError as error:
            raise ValueError(self._placed(cursor, error)) from error
        if hash_uniform(f"{self.seed}/{self.name}/{cursor}/order") >= config.caption_first:
            messages = image_first(messages)
        try:
            document = processor.document(
                messages,
                read=config.read,
                write=config.write,
                loss_on=config.loss_on,
                prompt_dropout=hash_uniform(f"{self.seed}/{self.name}/{cursor}/prompt") < config.prompt_dropout,
                clean_copy=config.clean_copy,
                height=config.height,
                width=config.width,
                image_tokens=config.image_tokens,
            )
        except ValueError as error:
            raise ValueError(self._placed(cursor, error)) from error
        for image in document.images:
            image.max_timestep = config.max_timestep
        return document

    def _placed(self, cursor: int, error: ValueError) -> str:
        """The error with its place said once, the source's name first."""
        where = self.where(cursor)
        place = where.removeprefix(f"source {self.name!r}, ")
        return f"{where}: {str(error).removeprefix(f'{place}: ')}"

    def pictures(self, cursor: int) -> list[Image.Image]:
        """The pictures of the `cursor`-th record, without words: what a codec trains on."""
        messages = self.source[self.index(cursor)]["messages"]
        return [part["image"] for message in messages for part in parts(message) if part["type"] == "image"]

    def check(self, processor: HybridGenProcessor) -> None:
        """Raises ValueError, naming the task, if the processor cannot serve it, whatever its records."""
        config = self.config
        how = (config.read, config.write, config.loss_on, config.clean_copy, config.height, config.width)
        try:
            processor.check_settings(*how)
        except ValueError as error:
            raise ValueError(f"source {self.name!r}: {error}") from error


def image_first(messages: list[dict]) -> list[dict]:
    """A caption and its picture with their places exchanged; any other conversation as it is."""
    if [message["role"] for message in messages] != ["user", "assistant"]:
        return messages
    kinds = [{part["type"] for part in parts(message)} for message in messages]
    if kinds != [{"text"}, {"image"}]:
        return messages
    user, assistant = messages
    return [{**user, "content": assistant["content"]}, {**assistant, "content": user["content"]}]
