"""Batches of pictures for training a codec, from the same sources as rows of documents (`data.loading`).

A source's weight is its share of pictures here, not of tokens; a record with three pictures gives three.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from hybridgen.data.bad_records import BadRecord, BadRecordLog
from hybridgen.data.changes import changes, describe
from hybridgen.data.document_source import DocumentSource
from hybridgen.data.loading import PrefetchingLoader, check_shard
from hybridgen.data.mixture import PREFETCH
from hybridgen.image_processing_hybridgen import HybridGenImageProcessor

WITHOUT_PICTURE = 1000  # records in a row without a picture


class PictureLoader(PrefetchingLoader):
    """An endless iterator of batches (`protocols.Loader`):

        pictures   (rows, 3, size, size) in [-1, 1]
        numbers    (rows,) the number of each picture in the run
        records    (rows) the source's number and cursor of each picture's record

    The next picture comes from the source that is furthest behind its share. Every rank reads the pictures of all
    ranks, as only then it shows which are broken and so which is next, and makes pixels of its own; so W ranks see what
    one process with W times the rows would.

    Args:
        rows: pictures of a batch, on each rank.
        size: pixels along one side of a picture.
        max_broken: see `BadRecordLog`.
        on_bad_records: called with all broken records so far whenever there are more of them.
        prefetch: batches prepared ahead by a thread.
        loader_threads: threads that read records ahead; neither number changes anything but the time.
        shard_by_rank: each rank reads and decodes its own part of the records alone, with a position of its own.
    """

    def __init__(
        self,
        sources: list[DocumentSource],
        rows: int,
        size: int,
        rank: int = 0,
        world_size: int = 1,
        max_broken: float = 0,
        on_bad_records: Callable[[list[BadRecord]], None] | None = None,
        prefetch: int = 0,
        loader_threads: int = 0,
        shard_by_rank: bool = False,
    ):
        self._threads = ThreadPoolExecutor(loader_threads, "hybridgen-data") if loader_threads else None
        self._ahead = PREFETCH * loader_threads
        self._read: dict[tuple[int, int], Future[list]] = {}  # by number of the source and cursor
        self.sources, self.rows, self.size, self.rank, self.world_size = sources, rows, size, rank, world_size
        self._processor = HybridGenImageProcessor()
        self._shard = [rank, world_size] if shard_by_rank else None
        for source in sources if shard_by_rank else ():
            source.use_shard(rank, world_size)
        total = sum(source.weight for source in sources)
        self._weights = [source.weight / total for source in sources]
        self._bad_records = BadRecordLog(max_broken)
        for source in sources:
            for bad in source.bad_records:
                self._list(source, bad)
        self._position = {"cursors": [0] * len(sources), "given": [0] * len(sources), "inside": [0] * len(sources)}
        self._begin(prefetch, on_bad_records)

    def _build(self) -> tuple[dict[str, torch.Tensor], dict]:
        """The next batch of this rank, and the state after it."""
        given, ranks = sum(self._position["given"]), self.world_size if self._shard is None else 1
        pictures = [self._draw() for _ in range(self.rows * ranks)]
        if self._shard is None:
            pictures = pictures[self.rank * self.rows : (self.rank + 1) * self.rows]
            first = given + self.rank * self.rows
        else:
            first = given * self.world_size + self.rank * self.rows
        pixels = [self._processor.generation(picture, self.size, self.size) for picture, _ in pictures]
        numbers = torch.arange(first, first + self.rows)
        batch = {"pictures": torch.stack(pixels), "numbers": numbers, "records": [record for _, record in pictures]}
        return batch, self._snapshot()

    def where(self, record: tuple[int, int]) -> str:
        """The source and place of one of a batch's `records`, (number of the source, cursor)."""
        number, cursor = record
        return self.sources[number].where(cursor)

    def _draw(self):
        """The next picture, and its record. The position's `cursors` and `inside` are each source's next record and the
        next picture inside it; `given` is how many pictures each source has given."""
        state = self._position
        total = sum(state["given"])
        pictures_behind = [weight * total - given for weight, given in zip(self._weights, state["given"], strict=True)]
        number = pictures_behind.index(max(pictures_behind))
        for _ in range(WITHOUT_PICTURE):
            source, cursor = self.sources[number], state["cursors"][number]
            try:
                pictures = self._pictures(number, cursor)
            except ValueError as error:
                self._list(source, BadRecord.of(source.where(cursor), error))
                pictures = []
            inside = state["inside"][number]
            last = inside + 1 >= len(pictures)
            if last:
                self._read.pop((number, cursor), None)
            state["cursors"][number] += int(last)
            state["inside"][number] = 0 if last else inside + 1
            if pictures:
                state["given"][number] += 1
                return pictures[inside], (number, cursor)
        raise ValueError(
            f"source {self.sources[number].name!r} has no picture in {WITHOUT_PICTURE} records; a codec learns from "
            "pictures alone, leave the source out"
        )

    def _pictures(self, number: int, cursor: int) -> list:
        """The pictures of a record, read once; with threads, those of the next records are on their way."""
        for ahead in range(cursor, cursor + 1 + self._ahead):
            if (number, ahead) not in self._read:
                self._read[number, ahead] = self._start(self.sources[number], ahead)
        return self._read[number, cursor].result()

    def _start(self, source: DocumentSource, cursor: int) -> Future[list]:
        if self._threads is not None:
            return self._threads.submit(source.pictures, cursor)
        done: Future[list] = Future()
        try:
            done.set_result(source.pictures(cursor))
        except Exception as error:  # raised where the record's turn comes
            done.set_exception(error)
        return done

    def _list(self, source: DocumentSource, bad: BadRecord) -> None:
        records = WITHOUT_PICTURE if source.records is None else source.records + len(source.bad_records)
        self._bad_records.add(source.name, bad, records)

    def _snapshot(self) -> dict:
        streams = {source.name: source.record_source.state_dict() for source in self.sources if source.streaming}
        return {
            **{name: list(values) for name, values in self._position.items()},
            "sources": [source.name for source in self.sources],
            "part": self._shard,
            "broken": self._bad_records.state_dict(),
            "streams": streams,
            "data": describe(self.sources),
        }

    def _bad_records_in(self, state: dict) -> list[list[str]]:
        return state["broken"]

    def changes(self, state: dict) -> list[str]:
        """What of the data is not as it was when this state was saved, in a few words each."""
        return changes(self.sources, state.get("data", {}))

    def load_state_dict(self, state: dict) -> None:
        """Go on from there: the next batch is the one that followed.

        Raises:
            ValueError: the state is that of other sources, or of another part of the data.
        """
        names = [source.name for source in self.sources]
        saved = state.get("sources", names)  # older states have no names
        if saved != names or len(state["cursors"]) != len(names):
            named = f" ({', '.join(saved)})" if "sources" in state else ""
            raise ValueError(
                f"the saved position is of {len(state['cursors'])} sources{named}, but the config names "
                f"{', '.join(names)}; go on with the same sources, or start anew"
            )
        check_shard(state.get("part"), self._shard)
        self._stop_thread()
        self._position = {name: list(state[name]) for name in self._position}
        self._bad_records.load_state_dict(state.get("broken", []))
        self._read = {}
        for source in self.sources:
            if source.streaming:
                source.record_source.load_state_dict(state.get("streams", {}).get(source.name, {}))
        self._state = self._snapshot()

    def shares(self) -> dict[str, float]:
        """The realised share of the pictures of each source, up to the last batch handed out."""
        given = self._state["given"]
        return {source.name: count / max(1, sum(given)) for source, count in zip(self.sources, given, strict=True)}
