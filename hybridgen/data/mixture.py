"""The mixture: sources with their shares of the *tokens*, and what all rows of a process share of them.

Weights are shares of tokens, not of documents, and nothing is drawn at random (`row_stream` says which source is next),
so realised shares are off by a few documents per source and row at any time. A weight may change at stated steps (a
curriculum); shares before the change are not made up for. A broken record is listed (`bad_records`), and its source
gives the next one instead.
"""

from collections.abc import Callable
from concurrent.futures import Future
from functools import partial

from hybridgen.core.documents import Document
from hybridgen.data.bad_records import BadRecord, BadRecordLog
from hybridgen.data.changes import changes, describe
from hybridgen.data.document_source import DocumentSource
from hybridgen.data.packing import fit_rows
from hybridgen.data.reading_threads import ReadingThreads
from hybridgen.processing_hybridgen import HybridGenProcessor

# a stream's length is unknown: a share of broken records is taken of at least this many
MIN_STREAM_RECORDS = 1000
MAX_BAD_AT_FIRST = 10_000  # broken records, after which the source as a whole counts as broken
PREFETCH = 2  # documents prepared ahead, for each thread


class Mixture:
    """Documents of several sources, by their weights.

    Args:
        sources: what `open_source` returns.
        weights: each a number, or numbers by the step from which they hold; None = those of their configs.
        temperature: shares are weights to the power of 1 / temperature: above 1, small ones gain.
        max_broken: how many broken records are skipped before they stop the run (`BadRecordLog`).
        loader_threads: threads that build documents ahead; their number changes nothing but the time.
        max_positions: of the model; a document of more tokens is cut or a broken record, as if a row had no more, since
            each document's positions count from 0.

    Raises:
        ValueError: there is no source, two have one name, or a weight is negative, or all are 0 at some step.
    """

    def __init__(
        self,
        sources: list[DocumentSource],
        weights: list[float | dict[int, float]] | None = None,
        temperature: float = 1.0,
        max_broken: float = 0,
        loader_threads: int = 0,
        max_positions: int | None = None,
    ):
        self.max_positions = max_positions
        weights = [source.weight for source in sources] if weights is None else weights
        names = [source.name for source in sources]
        if not sources:
            raise ValueError("no data: name at least one source")
        if len(weights) != len(sources):
            raise ValueError(f"{len(weights)} weights are given for {len(sources)} sources; give one each")
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two sources are called {twice[0]!r}; give each a name of its own")
        self.sources = dict(zip(names, sources, strict=True))
        self.temperature = temperature
        self._weights = dict(zip(names, map(by_step, weights), strict=True))
        for step in sorted({step for schedule in self._weights.values() for step in schedule}):
            self.weights_at(step)  # refuses weights that cannot be shares
        self.bad_records = BadRecordLog(max_broken)
        self._threads = ReadingThreads(loader_threads)
        self._first, self._rows, self._ahead = 0, 1, 1 + PREFETCH * loader_threads
        self._prefetched: dict[tuple[str, int], Future[Document]] = {}  # by (name, cursor)

    def weights_at(self, step: int) -> dict[str, float]:
        """The share of the tokens of each source at an optimizer step."""
        now = {name: weights[max(filter(step.__ge__, weights))] for name, weights in self._weights.items()}
        if min(now.values()) < 0 or sum(now.values()) <= 0:
            raise ValueError(
                f"weights {list(now.values())} cannot be shares; none may be negative, and one must be above 0"
            )
        if self.temperature != 1:
            now = {name: (weight / sum(now.values())) ** (1 / self.temperature) for name, weight in now.items()}
        return {name: weight / sum(now.values()) for name, weight in now.items()}

    def use_rows(self, first: int, count: int, total: int) -> None:
        """This process has rows `first` to `first + count - 1` of the `total` of a global batch, and reads what is
        theirs."""
        self._first, self._rows = first, total
        self._ahead = 1 - (-PREFETCH * self._threads.count // count)
        for source in self.sources.values():
            source.use_rows(first, count, total)

    def check(self, processor: HybridGenProcessor, length: int) -> None:
        """Count the records found broken when the sources were opened, and build the first good document of each
        source; one of which nothing goes into a row of `length` tokens is none.

        Raises:
            ValueError: the processor cannot serve one of the sources, or too much is broken.
        """
        for source in self.sources.values():
            source.check(processor)
        for source in self.sources.values():
            for bad in source.bad_records:
                self.add_bad(source, bad, 0)
        for source in self.sources.values():
            self._check_first(source, processor, length)

    def _check_first(self, source: DocumentSource, processor: HybridGenProcessor, length: int) -> None:
        attempts = MAX_BAD_AT_FIRST
        if source.records:
            # a run of bad records may span the end of one epoch and the start of the next
            attempts = min(2 * source.records, attempts)
        first, step = (self._first, self._rows) if source.streaming else (0, 1)  # all processes look at the same ones
        for number in range(first, first + attempts * step, step):
            try:
                document = source.document(number, processor)
                long = source.config.long_for(document.plain)
                next(fit_rows(document, length, long, source.where(number), self.max_positions))
                return
            except ValueError as error:
                last = BadRecord.of(source.where(number), error)
                self.add_bad(source, last, number + 1)
        raise ValueError(f"source {source.name!r} is broken: {attempts} records in a row, the last of them {last}")

    def add_bad(self, source: DocumentSource, bad: BadRecord, records_seen: int) -> None:
        """List a broken record.

        Args:
            records_seen: how many of the source's records the run has come to, over all rows.

        Raises:
            ValueError: it is one too many.
        """
        if source.records is None:
            records = max(records_seen, MIN_STREAM_RECORDS)
        else:
            records = source.records + len(source.bad_records)
        self.bad_records.add(source.name, bad, records)

    def build(self, source: DocumentSource, number: int, processor: HybridGenProcessor) -> Document:
        """A document of a source, its pictures not decoded; with threads, those that follow it in its row are on their
        way then."""
        if not self._threads.count:
            return source.document(number, processor, decode=False)
        for ahead in range(number, number + self._ahead * self._rows, self._rows):
            if (source.name, ahead) not in self._prefetched:
                self._prefetched[source.name, ahead] = self._threads.submit(source.document, ahead, processor, False)
        return self._prefetched.pop((source.name, number)).result()

    def read_pixels(self, source: DocumentSource, document: Document, number: int, processor) -> Callable[[], None]:
        """Decode the pictures of a document or a piece: done, or failed, once what is returned is called; with threads,
        it begins now."""
        if not document.images:
            return lambda: None
        if not self._threads.count:
            return partial(source.read_pixels, document, number, processor)
        return self._threads.submit(source.read_pixels, document, number, processor).result

    def cancel_prefetch(self) -> None:
        """Drop the documents that were built ahead; they are built again when their turn comes."""
        prefetched, self._prefetched = self._prefetched, {}
        for future in prefetched.values():
            future.cancel()

    def close(self) -> None:
        """End all threads, which begin again when a document is asked for."""
        self.cancel_prefetch()
        self._threads.close()
        for source in self.sources.values():
            source.close()

    def state_dict(self) -> dict:
        """What of the sources a position holds beside those of the rows; JSON-able."""
        streams = {name: each.record_source.state_dict() for name, each in self.sources.items() if each.streaming}
        return {"streams": streams, "data": describe(self.sources.values())}

    def load_state_dict(self, state: dict) -> None:
        self.cancel_prefetch()
        for name, points in state["streams"].items():
            if self.sources[name].streaming:
                self.sources[name].record_source.load_state_dict(points)

    def changes(self, state: dict) -> list[str]:
        """What of the sources is not as it was when a state was saved."""
        return changes(self.sources.values(), state.get("data", {}))


def by_step(weight: float | dict[int, float]) -> dict[int, float]:
    """A weight as numbers by the step from which they hold."""
    return weight if isinstance(weight, dict) else {0: weight}
