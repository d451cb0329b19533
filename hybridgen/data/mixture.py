"""The mixture: which task gives the next document, so that each has its stated share of the *tokens*.

It hands out one document at a time; rows are made of them in `packing`. The fact a newcomer gets wrong: weights are
shares of tokens, not of documents, and there is no dice: the task that lags its share most is next (ties: the first).
So realised shares are off by about one document a task, at any time, and the state is three numbers a task. A weight
may change at stated steps (a curriculum): what was drawn before stays drawn, and nothing is caught up on.
"""

from dataclasses import dataclass

from hybridgen.data.sources import Task
from hybridgen.documents import Document
from hybridgen.processing_hybridgen import HybridGenProcessor


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

    Raises:
        ValueError: there is no source, two have one name, or a weight is negative, or all are 0 at some step.
    """

    def __init__(self, sources: list[Task], weights: list[float | dict[int, float]] | None = None):
        weights = [source.weight for source in sources] if weights is None else weights
        names = [source.name for source in sources]
        if not sources:
            raise ValueError("no data: name at least one source")
        if len(weights) != len(sources):
            raise ValueError(f"{len(weights)} weights are given for {len(sources)} sources; give one each")
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two sources are called {twice[0]!r}; give each a name of its own")
        self.tasks = dict(zip(names, sources, strict=True))
        self._weights = dict(zip(names, map(by_step, weights), strict=True))
        for step in sorted({step for schedule in self._weights.values() for step in schedule}):
            self.weights_at(step)
        self.cursors = dict.fromkeys(names, 0)
        self.tokens = dict.fromkeys(names, 0)
        self._owed = dict.fromkeys(names, 0.0)  # tokens that its share came to so far

    def weights_at(self, step: int) -> dict[str, float]:
        """The share of the tokens of each task at an optimizer step."""
        now = {name: weights[max(filter(step.__ge__, weights))] for name, weights in self._weights.items()}
        if min(now.values()) < 0 or sum(now.values()) <= 0:
            found = list(now.values())
            raise ValueError(f"weights {found} cannot be shares; none may be negative, and one must be above 0")
        return {name: weight / sum(now.values()) for name, weight in now.items()}

    def check(self, processor: HybridGenProcessor) -> None:
        """Raises ValueError if the processor cannot serve one of the tasks."""
        for task in self.tasks.values():
            task.check(processor)

    def draw(self, processor: HybridGenProcessor, step: int = 0) -> Drawn:
        """The next document, counted."""
        weights = self.weights_at(step)
        lag = {name: self._owed[name] - self.tokens[name] for name, weight in weights.items() if weight > 0}
        name = max(lag, key=lag.__getitem__)
        drawn = self.again(name, self.cursors[name], processor)
        self.cursors[name] += 1
        self.tokens[name] += len(drawn)
        for other, weight in weights.items():
            self._owed[other] += weight * len(drawn)
        return drawn

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
        return {"cursors": dict(self.cursors), "tokens": dict(self.tokens), "owed": dict(self._owed)}

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


def by_step(weight: float | dict[int, float]) -> dict[int, float]:
    """A weight as numbers by the step from which they hold."""
    return weight if isinstance(weight, dict) else {0: weight}
