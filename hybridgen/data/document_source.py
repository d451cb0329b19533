"""A source of records with its config, as an endless sequence of training documents.

Nothing here has a random stream. A `cursor` counts the documents of a source over all epochs; which record that is (its
`index`), and whether it loses its prompt, is a function of (seed, name, cursor). So a run goes on anywhere by knowing
one integer per source.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from functools import cached_property
from typing import Protocol

from PIL import Image

from hybridgen.core.documents import Document
from hybridgen.core.files import fingerprint
from hybridgen.core.messages import parts
from hybridgen.data.bad_records import BadRecord, record_errors
from hybridgen.data.formats.rows import RowSource
from hybridgen.data.formats.streaming import StreamSource
from hybridgen.data.keyed_random import feistel_permutation, hash_uniform, lap_shift
from hybridgen.data.source_config import SourceConfig
from hybridgen.processing_hybridgen import HybridGenProcessor


class RecordSource(Protocol):
    """A sequence of records with decoded pictures in them; record i is the same every time it is read.

    It may have two methods more: `read(index, variant)`, the record with one or another of its captions or answers, and
    `where(index)`, the place to name in errors.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict: ...


class DocumentSource:
    """The training documents of one entry of a config's `data.sources`.

    Document number `cursor` is decided by (seed, name, cursor).

    Args:
        bad_records: those found when the records were opened.
    """

    def __init__(
        self,
        record_source: RecordSource | StreamSource,
        config: SourceConfig,
        seed: int = 0,
        bad_records: list[BadRecord] | None = None,
    ):
        self.record_source, self.config, self.seed = record_source, config, seed
        self.name, self.weight, self.bad_records = config.name, config.weight, bad_records or []
        self._rank, self._world_size = 0, 1  # which share of the records this process reads
        self._rows = 1  # of a global batch
        if not self.streaming and not len(record_source):
            raise ValueError(f"{self.name} holds no record; a source needs at least one")

    @property
    def streaming(self) -> bool:
        """Whether its records are read from front to end, so that their number is not known."""
        return isinstance(self.record_source, StreamSource)

    @cached_property
    def fingerprint(self) -> list | None:
        """Of its files (`core.files.fingerprint`), as they were when it was first asked for."""
        return fingerprint(getattr(self.record_source, "files", []))

    @property
    def records(self) -> int | None:
        """How many there are; None = not known."""
        return None if self.streaming else len(self.record_source)

    def __len__(self) -> int:
        return len(self.record_source)

    def __getitem__(self, index: int) -> dict:
        return self.record_source[index]

    def use_shard(self, rank: int, world_size: int) -> None:
        """Read only every `world_size`-th record, so that the ranks share the reading.

        Raises:
            ValueError: there are fewer records than ranks.
        """
        if self.streaming:
            self.record_source.use_shard(rank, world_size)
        elif len(self) < world_size:
            raise ValueError(
                f"source {self.name!r} has {len(self)} records, too few to be divided by {world_size} processes; set "
                "data.shard_by_rank: false"
            )
        else:
            self._rank, self._world_size = rank, world_size

    def use_rows(self, first: int, count: int, total: int) -> None:
        """Document `cursor` is of row `cursor % total` of a global batch; this process needs those of its `count` rows,
        from `first` on. A stream begins anew."""
        self._rows = total
        if self.streaming:
            self.record_source.use_rows(first, count, total)

    def anew(self) -> "DocumentSource":
        """The same source for a second reader, whose rows and place in a stream are its own."""
        other = copy(self)
        other._rows = 1
        if self.streaming:
            other.record_source = self.record_source.anew()
        return other

    def close(self) -> None:
        """End the thread of a stream that reads ahead; it begins again when a record is asked for."""
        if self.streaming:
            self.record_source.close()

    def _count(self, cursor: int) -> int:
        """Which one of all epochs' records in order is the `cursor`-th.

        A lap is a record for each row. Which row gets which is another in each lap, or a row would meet the same few
        records alone, where their number and that of the rows have a common factor.
        """
        lap, row = divmod(cursor, self._rows)
        return (cursor - row + (row + lap_shift(lap, self._rows)) % self._rows) * self._world_size + self._rank

    def index(self, cursor: int) -> int:
        """Which record is the `cursor`-th: every record once per epoch; of a stream, once per chunk."""
        if self.streaming:
            return cursor  # a stream shuffles itself
        epoch, position = divmod(self._count(cursor), len(self))
        if not self.config.shuffle:
            return position
        return feistel_permutation(position, len(self), f"{self.seed}/{self.name}/{epoch}")

    def _variant(self, cursor: int) -> int:
        """Which of several captions or answers the `cursor`-th record takes: the next one in each epoch."""
        index = self.index(cursor)
        first = int(hash_uniform(f"{self.seed}/{self.name}/{index}/variant") * 2**32)
        return first if self.streaming else first + self._count(cursor) // len(self)

    def record(self, cursor: int, unread: bool = False) -> dict:
        """The `cursor`-th record, its pictures decoded, or as what can be decoded later (`unread`), where the source
        has them in files.

        Raises:
            ValueError: it is broken.
            OSError: the source itself cannot be read any more.
        """
        index = self.index(cursor)
        if isinstance(self.record_source, RowSource):
            return self.record_source.read(index, self._variant(cursor), unread)
        read = getattr(self.record_source, "read", None)  # synthetic datasets have no variants
        return self.record_source[index] if read is None else read(index, self._variant(cursor))

    def where(self, cursor: int) -> str:
        """What to call the `cursor`-th record in an error."""
        index = self.index(cursor)
        where = getattr(self.record_source, "where", None)  # synthetic datasets have no files to name
        return f"source {self.name!r}, {where(index) if where else f'record {index}'}"

    def document(self, cursor: int, processor: HybridGenProcessor, decode: bool = True) -> Document:
        """The `cursor`-th training document.

        Args:
            decode: false = its pictures are decoded by `read_pixels`, if it comes to that.

        Raises:
            ValueError: naming the record, and what is wrong with it.
        """
        config = self.config
        with self._named(cursor) as place:
            record = self.record(cursor, unread=not decode)
            messages = record["messages"]
            if hash_uniform(f"{self.seed}/{self.name}/{cursor}/order") >= config.caption_first:
                messages = image_first(messages)
            with record_errors(place):
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
                    plain=record.get("plain", False),
                    decode=decode,
                )
        for image in document.images:
            image.max_timestep = config.max_timestep
        return document

    def read_pixels(self, document: Document, cursor: int, processor: HybridGenProcessor) -> None:
        """Decode the pictures of a document, or of a piece of one, that was made without.

        Raises:
            ValueError: naming the record, and what is wrong with it.
        """
        with self._named(cursor) as place, record_errors(place):
            processor.read_pixels(document)

    @contextmanager
    def _named(self, cursor: int) -> Iterator[str]:
        """Inside, errors name the source and the record; gives the place of the record in its source."""
        where = self.where(cursor)
        place = where.removeprefix(f"source {self.name!r}, ")
        try:
            yield place
        except ValueError as error:
            raise ValueError(f"{where}: {str(error).removeprefix(f'{place}: ')}") from error

    def pictures(self, cursor: int) -> list[Image.Image]:
        """The pictures of the `cursor`-th record, without words: what a codec trains on."""
        messages = self.record(cursor)["messages"]
        return [part["image"] for message in messages for part in parts(message) if part["type"] == "image"]

    def check(self, processor: HybridGenProcessor) -> None:
        """Raises ValueError, naming the source, if the processor cannot serve it, whatever its records."""
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
