"""The mixture: which source gives the next document, so that each has its stated share of the *tokens*.

It hands out one document at a time; rows are made of them in `packing`. Weights are shares of tokens, not of documents,
and nothing is drawn at random: the source that is furthest behind its share is next (ties: the first). So realised
shares are off by about one document per source at any time. The state is three numbers per source: its cursor (its
documents so far, over all epochs), its tokens so far, and the tokens that its share would have given it. A weight may
change at stated steps (a curriculum); shares before the change are not made up for. A broken record is listed
(`bad_records`), and its source gives the next one instead.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from hybridgen.core.documents import Document
from hybridgen.data.bad_records import BadRecord, BadRecordLog
from hybridgen.data.changes import changes, describe
from hybridgen.data.document_source import DocumentSource
from hybridgen.data.packing import check_length
from hybridgen.processing_hybridgen import HybridGenProcessor

MAX_BAD_IN_A_ROW = 10_000  # broken records, after which the source as a whole counts as broken
# a stream's length is unknown: a share of broken records is taken of at least this many
MIN_STREAM_RECORDS = 1000
PREFETCH = 2  # documents prepared ahead, for each thread


@dataclass(frozen=True)
class DrawnDocument:
    """A document and where it came from: enough to build it again."""

    document: Document
    source: DocumentSource
    cursor: int

    def __len__(self) -> int:
        return len(self.document)

    @property
    def where(self) -> str:
        """What to call it in an error."""
        return self.source.where(self.cursor)


class Mixture:
    """Documents of several sources, by their weights.

    Args:
        sources: what `open_source` returns.
        weights: each a number, or numbers by the step from which they hold; None = those of their configs.
        temperature: shares are weights to the power of 1 / temperature: above 1, small ones gain.
        max_broken: how many broken records are skipped before they stop the run (`BadRecordLog`).
        loader_threads: threads that build documents ahead; their number changes nothing but the time.
        max_positions: of the model; a document of more tokens is a broken record, as each document's positions count
            from 0.

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
        self.cursors = dict.fromkeys(names, 0)
        self.tokens = dict.fromkeys(names, 0)
        self._due = dict.fromkeys(names, 0.0)  # tokens that each should have had by its share so far
        self.bad_records = BadRecordLog(max_broken)
        self._threads = ThreadPoolExecutor(loader_threads, "hybridgen-data") if loader_threads else None
        self._ahead = PREFETCH * loader_threads
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

    def check(self, processor: HybridGenProcessor, longest: int | None = None) -> None:
        """Count the records found broken when the sources were opened, and build the first good document of each
        source; one of more tokens than `longest` is none.

        Raises:
            ValueError: the processor cannot serve one of the sources, or too much is broken.
        """
        for source in self.sources.values():
            source.check(processor)
        for source in self.sources.values():
            for bad in source.bad_records:
                self._add_bad(source, bad, 0)
        for source in self.sources.values():
            self._next_good(source, 0, processor, longest)

    def draw(self, processor: HybridGenProcessor, step: int = 0, longest: int | None = None) -> DrawnDocument:
        """The next document, counted; one of more tokens than `longest` is a broken record.

        Raises:
            ValueError: more records are broken than the limit allows; the sentence lists them.
        """
        weights = self.weights_at(step)
        tokens_behind = {name: self._due[name] - self.tokens[name] for name, weight in weights.items() if weight > 0}
        name = max(tokens_behind, key=tokens_behind.__getitem__)
        drawn = self._next_good(self.sources[name], self.cursors[name], processor, longest)
        self.cursors[name] = drawn.cursor + 1
        self.tokens[name] += len(drawn)
        for other, weight in weights.items():
            self._due[other] += weight * len(drawn)
        return drawn

    def _next_good(
        self, source: DocumentSource, first: int, processor: HybridGenProcessor, longest: int | None
    ) -> DrawnDocument:
        """The first document from the cursor `first` on that is not broken."""
        attempts = MAX_BAD_IN_A_ROW
        if source.records:
            # a run of bad records may span the end of one epoch and the start of the next
            attempts = min(2 * source.records, attempts)
        for cursor in range(first, first + attempts):
            try:
                document = self._build(source, cursor, processor)
                if longest is not None:
                    check_length(document, longest, source.where(cursor), self.max_positions)
                return DrawnDocument(document, source, cursor)
            except ValueError as error:
                last = BadRecord.of(source.where(cursor), error)
                self._add_bad(source, last, cursor + 1)
        raise ValueError(f"source {source.name!r} is broken: {attempts} records in a row, the last of them {last}")

    def _add_bad(self, source: DocumentSource, bad: BadRecord, records_seen: int) -> None:
        if source.records is None:
            records = max(records_seen, MIN_STREAM_RECORDS)
        else:
            records = source.records + len(source.bad_records)
        self.bad_records.add(source.name, bad, records)

    def _build(self, source: DocumentSource, cursor: int, processor: HybridGenProcessor) -> Document:
        if self._threads is None:
            return source.document(cursor, processor)
        for ahead in range(cursor, cursor + self._ahead):
            if (source.name, ahead) not in self._prefetched:
                self._prefetched[source.name, ahead] = self._threads.submit(source.document, ahead, processor)
        return self._prefetched.pop((source.name, cursor)).result()

    def cancel_prefetch(self) -> None:
        """Drop the documents that were built ahead; they are built again when their turn comes."""
        prefetched, self._prefetched = self._prefetched, {}
        for future in prefetched.values():
            future.cancel()

    def rebuild(self, name: str, cursor: int, processor: HybridGenProcessor) -> DrawnDocument:
        """A document that was drawn before; it is not counted again."""
        source = self.sources[name]
        return DrawnDocument(source.document(cursor, processor), source, cursor)

    def shares(self) -> dict[str, float]:
        """The realised share of the tokens of each source."""
        total = sum(self.tokens.values())
        return {name: tokens / total if total else 0.0 for name, tokens in self.tokens.items()}

    def state_dict(self) -> dict:
        """JSON-able."""
        # saved names, kept so that older states load
        numbers = {"cursors": dict(self.cursors), "tokens": dict(self.tokens), "owed": dict(self._due)}
        streams = {name: each.record_source.state_dict() for name, each in self.sources.items() if each.streaming}
        data = describe(self.sources.values())
        return {**numbers, "broken": self.bad_records.state_dict(), "streams": streams, "data": data}

    def changes(self, state: dict) -> list[str]:
        """What of the sources is not as it was when a state was saved."""
        return changes(self.sources.values(), state.get("data", {}))

    def load_state_dict(self, state: dict) -> None:
        """Raises ValueError if the state is that of a mixture of other sources."""
        if set(state["cursors"]) != set(self.sources):
            raise ValueError(
                f"the saved position is of the sources {', '.join(state['cursors'])}, but the config names "
                f"{', '.join(self.sources)}; go on with the same sources, or start anew"
            )
        self.cursors = {name: state["cursors"][name] for name in self.sources}
        self.tokens = {name: state["tokens"][name] for name in self.sources}
        self._due = {name: state["owed"][name] for name in self.sources}
        self.bad_records.load_state_dict(state.get("broken", []))
        self.cancel_prefetch()
        for name, chunk_beginnings in state.get("streams", {}).items():
            if self.sources[name].streaming:
                self.sources[name].record_source.load_state_dict(chunk_beginnings)


def by_step(weight: float | dict[int, float]) -> dict[int, float]:
    """A weight as numbers by the step from which they hold."""
    return weight if isinstance(weight, dict) else {0: weight}
