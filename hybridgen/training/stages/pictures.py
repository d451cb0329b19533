"""Batches of pictures for training a codec, from the same sources as rows of documents (`data.loading`).

A source's weight is its share of pictures here, not of tokens; a record with three pictures gives three.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from hybridgen.data.bad_records import BadRecord, BadRecordLog
from hybridgen.data.document_source import DocumentSource
from hybridgen.data.loading import PrefetchThread
from hybridgen.data.mixture import PREFETCH, changed_records
from hybridgen.image_processing_hybridgen import HybridGenImageProcessor

WITHOUT_PICTURE = 1000  # records in a row without a picture


class PictureLoader:
    """An endless iterator of batches (`protocols.Loader`):

        pictures   (rows, 3, size, size) in [-1, 1]
        numbers    (rows,) the number of each picture in the run
        records    (rows) the source's number and cursor of each picture's record

    The next picture comes from the source that is furthest behind its share. Every rank reads the pictures of all
    ranks, as only then it shows which are broken and so which is next, and makes pixels of its own; so W ranks see what
    one process with W times the rows would. The state is that of the last batch handed out.

    Args:
        rows, size: of a batch, and pixels along each side of a picture.
        prefetch: batches made ahead by a thread.
        loader_threads: threads that read records ahead; neither number changes anything but the time.
    """

    def __init__(
        self,
        sources: list[DocumentSource],
        rows: int,
        size: int,
        rank: int = 0,
        world_size: int = 1,
        max_broken: float = 0,
        on_broken: Callable[[list[BadRecord]], None] | None = None,
        prefetch: int = 0,
        loader_threads: int = 0,
    ):
        self.prefetch, self._thread = prefetch, None
        self._threads = ThreadPoolExecutor(loader_threads, "hybridgen-data") if loader_threads else None
        self._ahead = PREFETCH * loader_threads
        self._read: dict[tuple[int, int], Future[list]] = {}  # by number of the source and cursor
        self._on_broken = on_broken
        self.sources, self.rows, self.size, self.rank, self.world_size = sources, rows, size, rank, world_size
        self._processor = HybridGenImageProcessor()
        total = sum(source.weight for source in sources)
        self._weights = [source.weight / total for source in sources]
        self.broken = BadRecordLog(max_broken)
        for source in sources:
            for broken in source.bad_records:
                self._list(source, broken)
        self._state = {"cursors": [0] * len(sources), "given": [0] * len(sources), "inside": [0] * len(sources)}
        self._handed_out, self._told = self._snapshot(), 0
        self._tell_of_broken()

    def __iter__(self) -> "PictureLoader":
        return self

    def __next__(self) -> dict[str, torch.Tensor]:
        if self.prefetch and self._thread is None:
            self._thread = PrefetchThread(self._build, self.prefetch)
        batch, self._handed_out = self._thread.get() if self.prefetch else self._build()
        self._tell_of_broken()
        return batch

    def _build(self) -> tuple[dict[str, torch.Tensor], dict]:
        """The next batch, and the state after it."""
        first = sum(self._state["given"]) + self.rank * self.rows
        pictures = [self._draw() for _ in range(self.rows * self.world_size)]
        local = pictures[self.rank * self.rows : (self.rank + 1) * self.rows]
        pixels = [self._processor.generation(picture, self.size, self.size) for picture, _ in local]
        numbers = torch.arange(first, first + self.rows)
        batch = {"pictures": torch.stack(pixels), "numbers": numbers, "records": [record for _, record in local]}
        return batch, self._snapshot()

    def where(self, record: tuple[int, int]) -> str:
        """The source and place of one of a batch's `records`, (number of the source, cursor)."""
        number, cursor = record
        return self.sources[number].where(cursor)

    def _draw(self):
        """The next picture, and its record. The state's `cursors` and `inside` are each source's next record and the
        next picture inside it; `given` is how many pictures each source has given."""
        state = self._state
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

    def _list(self, source: DocumentSource, broken: BadRecord) -> None:
        self.broken.add(
            source.name, broken, WITHOUT_PICTURE if source.records is None else source.records + len(source.bad_records)
        )

    def _tell_of_broken(self) -> None:
        """Of the broken records up to the last batch handed out, where there are more of them."""
        broken = [BadRecord(where, reason) for where, _, reason in self._handed_out["broken"]]
        if self._on_broken is not None and len(broken) > self._told:
            self._on_broken(broken)
        self._told = len(broken)

    def state_dict(self) -> dict:
        """The position after the last batch handed out."""
        return self._handed_out

    def _snapshot(self) -> dict:
        streams = {source.name: source.record_source.state_dict() for source in self.sources if source.streaming}
        state = {name: list(values) for name, values in self._state.items()}
        records = {source.name: source.records for source in self.sources}
        return state | {"broken": self.broken.state_dict(), "streams": streams, "records": records}

    def changes(self, state: dict) -> list[str]:
        """What of the data is not as it was when this state was saved, in a few words each."""
        return changed_records(self.sources, state.get("records", {}))

    def load_state_dict(self, state: dict) -> None:
        """Raises ValueError if the state is of another number of sources."""
        if len(state["cursors"]) != len(self.sources):
            raise ValueError(
                f"the saved position is of {len(state['cursors'])} sources, but the config names {len(self.sources)}; "
                "go on with the same sources, or start anew"
            )
        self._state = {name: list(state[name]) for name in self._state}
        self.broken.load_state_dict(state.get("broken", []))
        self._read = {}
        for source in self.sources:
            if source.streaming:
                source.record_source.load_state_dict(state.get("streams", {}).get(source.name, {}))
        self._handed_out = self._snapshot()

    def shares(self) -> dict[str, float]:
        counts = self._handed_out["given"]
        return {source.name: given / max(1, sum(counts)) for source, given in zip(self.sources, counts, strict=True)}

    def close(self) -> None:
        """Stop making batches. The next one asked for is again the one after the last handed out."""
        if self._thread is not None:
            self._thread.stop()
            self._thread = None
            self.load_state_dict(self._handed_out)
