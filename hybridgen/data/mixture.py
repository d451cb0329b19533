"""The mixture: which task gives the next document, so that each has its stated share of the *tokens*.

It hands out one document at a time; rows are made of them in `packing`. The fact a newcomer gets wrong: weights are
shares of tokens, not of documents, and there is no dice: the task that lags its share most is next (ties: the first).
So realised shares are off by about one document a task, at any time, and the state is three numbers a task. A weight
may change at stated steps (a curriculum): what was drawn before stays drawn, and nothing is caught up on. A broken
record is listed (`broken`), and its task gives the next one instead.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from hybridgen.core.documents import Document
from hybridgen.data.broken import BadRecordLog, Broken
from hybridgen.data.tasks import Task
from hybridgen.processing_hybridgen import HybridGenProcessor

PATIENCE = 10_000  # broken records in a row, after which nothing whole is waited for
MET = 1000  # of a stream at least so many records are taken as met, where a share of them may be broken
AHEAD = 2  # documents that are made before they are asked for, a worker


@dataclass(frozen=True)
class Drawn:
    """A document and where it came from: enough to make it again."""

    document: Document
    task: Task
    cursor: int

    def __len__(self) -> int:
        return len(self.document)

    @property
    def where(self) -> str:
        """What to call it in an error."""
        return self.task.where(self.cursor)


class Mixture:
    """Tasks by their weights.

    Args:
        sources: what `open_source` returns.
        weights: each a number, or numbers by the step from which they hold; None = those of their configs.
        temperature: shares are weights to the power of 1 / temperature: above 1, small ones gain.
        max_broken: how many broken records are skipped before they stop the run (`broken.BadRecordLog`).
        loader_threads: threads that make documents ahead; their number changes nothing but the time.

    Raises:
        ValueError: there is no source, two have one name, or a weight is negative, or all are 0 at some step.
    """

    def __init__(
        self,
        sources: list[Task],
        weights: list[float | dict[int, float]] | None = None,
        temperature: float = 1.0,
        max_broken: float = 0,
        loader_threads: int = 0,
    ):
        weights = [source.weight for source in sources] if weights is None else weights
        names = [source.name for source in sources]
        if not sources:
            raise ValueError("no data: name at least one source")
        if len(weights) != len(sources):
            raise ValueError(f"{len(weights)} weights are given for {len(sources)} sources; give one each")
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two sources are called {twice[0]!r}; give each a name of its own")
        self.tasks = dict(zip(names, sources, strict=True))
        self.temperature = temperature
        self._weights = dict(zip(names, map(by_step, weights), strict=True))
        for step in sorted({step for schedule in self._weights.values() for step in schedule}):
            self.weights_at(step)
        self.cursors = dict.fromkeys(names, 0)
        self.tokens = dict.fromkeys(names, 0)
        self._owed = dict.fromkeys(names, 0.0)  # tokens that its share came to so far
        self.broken = BadRecordLog(max_broken)
        self._workers = ThreadPoolExecutor(loader_threads, "hybridgen-data") if loader_threads else None
        self._ahead, self._made = AHEAD * loader_threads, {}  # (name, cursor) -> a document that is being made

    def weights_at(self, step: int) -> dict[str, float]:
        """The share of the tokens of each task at an optimizer step."""
        now = {name: weights[max(filter(step.__ge__, weights))] for name, weights in self._weights.items()}
        if min(now.values()) < 0 or sum(now.values()) <= 0:
            found = list(now.values())
            raise ValueError(f"weights {found} cannot be shares; none may be negative, and one must be above 0")
        if self.temperature != 1:
            now = {name: (weight / sum(now.values())) ** (1 / self.temperature) for name, weight in now.items()}
        return {name: weight / sum(now.values()) for name, weight in now.items()}

    def check(self, processor: HybridGenProcessor) -> None:
        """Count what was found broken when the sources were opened, and make the first document of each that is whole.

        Raises:
            ValueError: the processor cannot serve one of the tasks, or too much is broken.
        """
        for task in self.tasks.values():
            task.check(processor)
        for task in self.tasks.values():
            for broken in task.broken:
                self._list(task, broken, 0)
        for task in self.tasks.values():
            self._whole(task, 0, processor, None)

    def draw(self, processor: HybridGenProcessor, step: int = 0, longest: int | None = None) -> Drawn:
        """The next document, counted; one of more tokens than `longest` is broken.

        Raises:
            ValueError: one more record is broken than may be; it lists them.
        """
        weights = self.weights_at(step)
        lag = {name: self._owed[name] - self.tokens[name] for name, weight in weights.items() if weight > 0}
        name = max(lag, key=lag.__getitem__)
        drawn = self._whole(self.tasks[name], self.cursors[name], processor, longest)
        self.cursors[name] = drawn.cursor + 1
        self.tokens[name] += len(drawn)
        for other, weight in weights.items():
            self._owed[other] += weight * len(drawn)
        return drawn

    def _whole(self, task: Task, cursor: int, processor: HybridGenProcessor, longest: int | None) -> Drawn:
        """The document at a task's cursor, or the first after it that is not broken."""
        patience = min(2 * (task.records or PATIENCE), PATIENCE)  # two epochs may meet with their broken ones
        for place in range(cursor, cursor + patience):
            try:
                document = self._make(task, place, processor)
                if longest is not None and len(document) > longest:
                    size = len(document)
                    raise ValueError(
                        f"{task.where(place)}: the document has {size} tokens, but a row only {longest}; raise "
                        f"sequence_length to at least {size}, or make the document shorter"
                    )
                return Drawn(document, task, place)
            except ValueError as error:
                last = Broken.of(task.where(place), error)
                self._list(task, last, place + 1)
        raise ValueError(f"source {task.name!r} is broken: {patience} records in a row, the last of them {last}")

    def _list(self, task: Task, broken: Broken, met: int) -> None:
        records = max(met, MET) if task.records is None else task.records + len(task.broken)
        self.broken.add(task.name, broken, records)

    def _make(self, task: Task, cursor: int, processor: HybridGenProcessor) -> Document:
        if self._workers is None:
            return task.document(cursor, processor)
        for place in range(cursor, cursor + self._ahead):
            if (task.name, place) not in self._made:
                self._made[task.name, place] = self._workers.submit(task.document, place, processor)
        return self._made.pop((task.name, cursor)).result()

    def forget(self) -> None:
        """Drop what was made ahead; it is made again when it is asked for."""
        made, self._made = self._made, {}
        for future in made.values():
            future.cancel()

    def again(self, name: str, cursor: int, processor: HybridGenProcessor) -> Drawn:
        """A document that was drawn before, not counted."""
        task = self.tasks[name]
        return Drawn(task.document(cursor, processor), task, cursor)

    def shares(self) -> dict[str, float]:
        """The realised share of the tokens of each task."""
        total = sum(self.tokens.values())
        return {name: tokens / total if total else 0.0 for name, tokens in self.tokens.items()}

    def state_dict(self) -> dict:
        """JSON-able."""
        numbers = {"cursors": dict(self.cursors), "tokens": dict(self.tokens), "owed": dict(self._owed)}
        streams = {name: task.source.state_dict() for name, task in self.tasks.items() if task.streaming}
        return {**numbers, "broken": self.broken.state_dict(), "streams": streams}

    def load_state_dict(self, state: dict) -> None:
        """Raises ValueError if the state is that of a mixture of other sources."""
        if set(state["cursors"]) != set(self.tasks):
            raise ValueError(
                f"the saved position is of the sources {', '.join(state['cursors'])}, but the config names "
                f"{', '.join(self.tasks)}; go on with the same sources, or start anew"
            )
        self.cursors = {name: state["cursors"][name] for name in self.tasks}
        self.tokens = {name: state["tokens"][name] for name in self.tasks}
        self._owed = {name: state["owed"][name] for name in self.tasks}
        self.broken.load_state_dict(state.get("broken", []))
        self.forget()
        for name, begins in state.get("streams", {}).items():
            if self.tasks[name].streaming:
                self.tasks[name].source.load_state_dict(begins)


def by_step(weight: float | dict[int, float]) -> dict[int, float]:
    """A weight as numbers by the step from which they hold."""
    return weight if isinstance(weight, dict) else {0: weight}
