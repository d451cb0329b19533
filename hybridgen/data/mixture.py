"""The mixture: which task gives the next document, so that each has its stated share of the *tokens*.

It hands out one document at a time; rows are made of them in `packing`. The fact a newcomer gets wrong: weights are
shares of tokens, not of documents, and there is no dice: the task that lags its share most is next (ties: the first).
So realised shares are off by less than one document a task, at any time, and the state is two integers a task.
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
        weights: None = those of their configs.

    Raises:
        ValueError: there is no source, two have one name, or a weight is negative, or all are 0.
    """

    def __init__(self, sources: list[Task], weights: list[float] | None = None):
        weights = [source.weight for source in sources] if weights is None else weights
        names = [source.name for source in sources]
        if not sources:
            raise ValueError("no data: name at least one source")
        if len(weights) != len(sources):
            raise ValueError(f"{len(weights)} weights are given for {len(sources)} sources; give one each")
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two sources are called {twice[0]!r}; give each a name of its own")
        if min(weights) < 0 or sum(weights) <= 0:
            raise ValueError(f"weights {weights} cannot be shares; none may be negative, and one must be above 0")
        self.tasks = dict(zip(names, sources, strict=True))
        self.weights = {name: weight / sum(weights) for name, weight in zip(names, weights, strict=True)}
        self.cursors = dict.fromkeys(names, 0)
        self.tokens = dict.fromkeys(names, 0)

    def check(self, processor: HybridGenProcessor) -> None:
        """Raises ValueError if the processor cannot serve one of the tasks."""
        for task in self.tasks.values():
            task.check(processor)

    def draw(self, processor: HybridGenProcessor) -> Drawn:
        """The next document, counted."""
        total = sum(self.tokens.values())
        lag = {name: weight * total - self.tokens[name] for name, weight in self.weights.items() if weight > 0}
        name = max(lag, key=lag.__getitem__)
        drawn = self.again(name, self.cursors[name], processor)
        self.cursors[name] += 1
        self.tokens[name] += len(drawn)
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
        return {"cursors": dict(self.cursors), "tokens": dict(self.tokens)}

    def load_state_dict(self, state: dict) -> None:
        """Raises ValueError if the state is that of a mixture of other sources."""
        if set(state["cursors"]) != set(self.tasks):
            raise ValueError(
                f"the saved position is of the sources {', '.join(state['cursors'])}, but the config names "
                f"{', '.join(self.tasks)}; go on with the same sources, or start anew"
            )
        self.cursors = {name: state["cursors"][name] for name in self.tasks}
        self.tokens = {name: state["tokens"][name] for name in self.tasks}
