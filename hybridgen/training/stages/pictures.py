"""Batches of pictures for training a codec, from the same sources as rows of documents (`data.loading`).

A source's weight is its share of pictures here, not of tokens; a record with three pictures gives three. Each place in
the global batch is a stream of its own, as a row of documents is (`data.row_stream`), with pictures in place of
documents.
"""

from collections.abc import Callable
from concurrent.futures import Future

import torch
from PIL import Image

from hybridgen.data.bad_records import BadRecord, BadRecordLog
from hybridgen.data.changes import changes, describe
from hybridgen.data.document_source import DocumentSource
from hybridgen.data.loading import PrefetchingLoader, check_shard, shares_of
from hybridgen.data.mixture import MIN_STREAM_RECORDS, PREFETCH
from hybridgen.data.older_positions import ROWS_DIVIDED, divided_pictures
from hybridgen.data.reading_threads import ReadingThreads
from hybridgen.data.row_stream import GOLDEN_RATIO, pick, spread
from hybridgen.image_processing_hybridgen import HybridGenImageProcessor

WITHOUT_PICTURE = 1000  # records in a row without a picture


class PictureStream:
    """The pictures of one place in the batches.

    Args:
        row, rows: its number in the global batch, and how many that has.
        ahead: records that are read ahead by `threads`.
        on_bad: called with each broken record that is met, its source, and how many records the run has come to.

    Attributes:
        cursors, inside: of each source, how many records of this row are used up, and how many pictures of the next.
        given: pictures of each source so far.
    """

    def __init__(
        self,
        sources: list[DocumentSource],
        row: int,
        rows: int,
        threads: ReadingThreads,
        ahead: int,
        on_bad: Callable[[DocumentSource, BadRecord, int], None],
    ):
        self.sources, self.row, self.rows = sources, row, rows
        self._threads, self._ahead, self._on_bad = threads, ahead, on_bad
        total = sum(source.weight for source in sources)
        self._shares = {number: source.weight / total for number, source in enumerate(sources)}
        self._begin = spread(row, rows)
        self._read: dict[tuple[int, int], Future[list]] = {}  # by number of the source and of the record
        self.cursors, self.inside, self.given = ([0] * len(sources) for _ in range(3))

    def draw(self) -> tuple[Image.Image, tuple[int, int]]:
        """The next picture, and its record: the source's number and the record's number in it."""
        number = pick(self._shares, (self._begin + sum(self.given) * GOLDEN_RATIO) % 1)
        for _ in range(WITHOUT_PICTURE):
            source, cursor = self.sources[number], self.cursors[number] * self.rows + self.row
            try:
                pictures = self._pictures(number, cursor)
            except ValueError as error:
                self._on_bad(source, BadRecord.of(source.where(cursor), error), cursor + 1)
                pictures = []
            inside = self.inside[number]
            if inside + 1 >= len(pictures):
                self._read.pop((number, cursor), None)
                self.cursors[number], self.inside[number] = self.cursors[number] + 1, 0
            else:
                self.inside[number] += 1
            if pictures:
                self.given[number] += 1
                return pictures[inside], (number, cursor)
        raise ValueError(
            f"source {self.sources[number].name!r} has no picture in {WITHOUT_PICTURE} records; a codec learns from "
            "pictures alone, leave the source out"
        )

    def _pictures(self, number: int, cursor: int) -> list:
        """The pictures of a record, read once; with threads, those of the next records are on their way."""
        for ahead in range(cursor, cursor + 1 + self._ahead * self.rows, self.rows):
            if (number, ahead) not in self._read:
                self._read[number, ahead] = self._start(self.sources[number], ahead)
        return self._read[number, cursor].result()

    def _start(self, source: DocumentSource, cursor: int) -> Future[list]:
        if self._threads.count:
            return self._threads.submit(source.pictures, cursor)
        done: Future[list] = Future()
        try:
            done.set_result(source.pictures(cursor))
        except Exception as error:  # raised where the record's turn comes
            done.set_exception(error)
        return done

    def cancel_reading(self) -> None:
        """Drop the records that were read ahead; they are read again when their turn comes."""
        read, self._read = self._read, {}
        for future in read.values():
            future.cancel()

    def state_dict(self) -> dict:
        """JSON-able."""
        return {"cursors": list(self.cursors), "inside": list(self.inside), "given": list(self.given)}

    def load_state_dict(self, state: dict) -> None:
        self.cursors, self.inside, self.given = (list(state[name]) for name in ("cursors", "inside", "given"))
        self.cancel_reading()


class PictureLoader(PrefetchingLoader):
    """An endless iterator of batches (`protocols.Loader`):

        pictures   (rows, 3, size, size) in [-1, 1]
        numbers    (rows,) the number of each picture in the run
        records    (rows) the source's number and cursor of each picture's record

    Every rank reads the pictures of its own rows alone, and W ranks see what one process with W times the rows would.

    Args:
        rows: pictures of a batch, on each rank.
        size: pixels along one side of a picture.
        max_broken: see `BadRecordLog`.
        on_bad_records: called with all broken records so far whenever there are more of them.
        prefetch: batches prepared ahead by a thread.
        loader_threads: threads that read records ahead; neither number changes anything but the time.
        shard_by_rank: each rank reads its own part of the records, as if its rows were all there are.
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
        self.sources, self.rows, self.size, self.rank, self.world_size = sources, rows, size, rank, world_size
        self._processor = HybridGenImageProcessor()
        self._shard = [rank, world_size] if shard_by_rank else None
        first, total = (0, rows) if shard_by_rank else (rank * rows, world_size * rows)
        for source in sources:
            if shard_by_rank:
                source.use_shard(rank, world_size)
            source.use_rows(first, rows, total)
        self._threads = ReadingThreads(loader_threads)
        ahead = -(-PREFETCH * loader_threads // rows)
        self.streams = [
            PictureStream(sources, row, total, self._threads, ahead, self._list) for row in range(first, first + rows)
        ]
        self._bad_records = BadRecordLog(max_broken)
        for source in sources:
            for bad in source.bad_records:
                self._list(source, bad, 0)
        self._begin(prefetch, self._bad_records, on_bad_records)

    def _build(self) -> dict[str, torch.Tensor]:
        drawn = [stream.draw() for stream in self.streams]
        batches = sum(self.streams[0].given) - 1  # before this one
        first = (batches * self.world_size + self.rank) * self.rows
        pixels = [self._processor.generation(picture, self.size, self.size) for picture, _ in drawn]
        numbers = torch.arange(first, first + self.rows)
        return {"pictures": torch.stack(pixels), "numbers": numbers, "records": [record for _, record in drawn]}

    def where(self, record: tuple[int, int]) -> str:
        """The source and place of one of a batch's `records`, (number of the source, cursor)."""
        number, cursor = record
        return self.sources[number].where(cursor)

    def close(self) -> None:
        """Stop preparing batches and reading ahead, see `PrefetchingLoader.close`."""
        super().close()
        for stream in self.streams:
            stream.cancel_reading()
        self._threads.close()
        for source in self.sources:
            source.close()

    def _list(self, source: DocumentSource, bad: BadRecord, met: int) -> None:
        records = max(met, MIN_STREAM_RECORDS) if source.records is None else source.records + len(source.bad_records)
        self._bad_records.add(source.name, bad, records)

    def _snapshot(self) -> dict:
        streams = {source.name: source.record_source.state_dict() for source in self.sources if source.streaming}
        return {
            "row_streams": {str(stream.row): stream.state_dict() for stream in self.streams},
            "rows": self.rows * self.world_size,
            "sources": [source.name for source in self.sources],
            "part": self._shard,
            "streams": streams,
            "data": describe(self.sources),
        }

    def changes(self, state: dict) -> list[str]:
        """What of the data is not as it was when this state was saved, in a few words each."""
        return changes(self.sources, state.get("data", {}))

    def load_state_dict(self, state: dict) -> list[str]:
        """Go on from there: the next batch is the one that followed. Returns what there is to say of it.

        Raises:
            ValueError: the state is that of other sources, of another number of rows, or of another part of the data.
        """
        names, notes = [source.name for source in self.sources], []
        saved = state.get("sources", names)  # older states have no names
        if saved != names or len(state.get("cursors", names)) != len(names):
            named = f" ({', '.join(saved)})" if "sources" in state else ""
            raise ValueError(
                f"the saved position is of {len(state.get('cursors', saved))} sources{named}, but the config names "
                f"{', '.join(names)}; go on with the same sources, or start anew"
            )
        check_shard(state.get("part"), self._shard)
        if "row_streams" not in state:
            state, notes = divided_pictures(state, self.streams[0].rows), [ROWS_DIVIDED]
        rows = self.rows * self.world_size
        if state.get("rows", rows) != rows:
            raise ValueError(
                f"the saved position is of batches of {state['rows']} pictures, but now {rows} are asked for "
                "(data.per_device_batch_size times processes); keep them, or start anew"
            )
        self._stop_thread()
        self._load_bad_records(state.get("broken", []))
        for stream in self.streams:
            stream.load_state_dict(state["row_streams"][str(stream.row)])
        for source in self.sources:
            if source.streaming:
                source.record_source.load_state_dict(state.get("streams", {}).get(source.name, {}))
        self._state = self._snapshot()
        return notes

    def totals(self) -> dict[str, float]:
        """Pictures of each source in this rank's rows, to be summed over ranks."""
        streams = self._state["row_streams"].values()
        return {
            f"given/{source.name}": sum(each["given"][number] for each in streams)
            for number, source in enumerate(self.sources)
        }

    def shares(self) -> dict[str, float]:
        """The realised share of the pictures of each source in this rank's rows, up to the last batch handed out."""
        return shares_of(self.totals())
