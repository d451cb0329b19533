"""Batches of pictures for training a codec: the sources of the config without their words.

Rows of documents are `data.loading`'s. The fact a newcomer gets wrong: here a source's weight is its share of
*pictures*, and a record with three of them gives three.
"""

from collections.abc import Callable

import torch

from hybridgen.data.broken import BadRecordLog, Broken
from hybridgen.data.sources import Task
from hybridgen.image_processing_hybridgen import HybridGenImageProcessor

PATIENCE = 1000  # records in a row without a picture


class PictureLoader:
    """An endless iterator of {"pictures": (rows, 3, size, size) in [-1, 1], "numbers": (rows,) which of the run's
    pictures they are, "records": what they come from} (`protocols.Loader`).

    The task that lags its share most gives the next picture. Every rank counts all pictures of a step and makes pixels
    of its own, so W ranks see what one of W times the rows would.
    """

    def __init__(
        self,
        tasks: list[Task],
        rows: int,
        size: int,
        rank: int = 0,
        world_size: int = 1,
        max_broken: float = 0,
        on_broken: Callable[[list[Broken]], None] | None = None,
    ):
        self._on_broken = on_broken
        self.tasks, self.rows, self.size, self.rank, self.world_size = tasks, rows, size, rank, world_size
        self._processor = HybridGenImageProcessor()
        total = sum(task.weight for task in tasks)
        self._weights = [task.weight / total for task in tasks]
        self.broken = BadRecordLog(max_broken)
        for task in tasks:
            for broken in task.broken:
                self._list(task, broken)
        self._state = {"cursors": [0] * len(tasks), "given": [0] * len(tasks), "inside": [0] * len(tasks)}

    def __iter__(self) -> "PictureLoader":
        return self

    def __next__(self) -> dict[str, torch.Tensor]:
        first = sum(self._state["given"]) + self.rank * self.rows
        pictures = [self._draw() for _ in range(self.rows * self.world_size)]
        mine = pictures[self.rank * self.rows : (self.rank + 1) * self.rows]
        made = [self._processor.generation(picture, self.size, self.size) for picture, _ in mine]
        numbers = torch.arange(first, first + self.rows)
        return {"pictures": torch.stack(made), "numbers": numbers, "records": [record for _, record in mine]}

    def where(self, record: tuple[int, int]) -> str:
        """What to call one of a batch's `records`, (number of the task, cursor), in an error."""
        number, cursor = record
        return self.tasks[number].where(cursor)

    def _draw(self):
        """The next picture, and its record. `cursors` and `inside` say which record of a task comes next, and which of
        its pictures."""
        state = self._state
        total = sum(state["given"])
        lag = [weight * total - given for weight, given in zip(self._weights, state["given"], strict=True)]
        number = lag.index(max(lag))
        for _ in range(PATIENCE):
            task, cursor = self.tasks[number], state["cursors"][number]
            try:
                found = task.pictures(cursor)
            except ValueError as error:
                self._list(task, Broken.of(task.where(cursor), error))
                found = []
            inside = state["inside"][number]
            last = inside + 1 >= len(found)
            state["cursors"][number] += int(last)
            state["inside"][number] = 0 if last else inside + 1
            if found:
                state["given"][number] += 1
                return found[inside], (number, cursor)
        raise ValueError(
            f"source {self.tasks[number].name!r} has no picture in {PATIENCE} records; a codec learns from pictures "
            "alone, leave the source out"
        )

    def _list(self, task: Task, broken: Broken) -> None:
        before = len(self.broken)
        self.broken.add(task.name, broken, PATIENCE if task.records is None else task.records + len(task.broken))
        if self._on_broken is not None and len(self.broken) > before:
            self._on_broken(self.broken.entries())

    def state_dict(self) -> dict:
        streams = {task.name: task.source.state_dict() for task in self.tasks if task.streaming}
        state = {name: list(values) for name, values in self._state.items()}
        return state | {"broken": self.broken.state_dict(), "streams": streams}

    def load_state_dict(self, state: dict) -> None:
        """Raises ValueError if the state is of another number of sources."""
        if len(state["cursors"]) != len(self.tasks):
            raise ValueError(
                f"the saved position is of {len(state['cursors'])} sources, but the config names {len(self.tasks)}; "
                "go on with the same sources, or start anew"
            )
        self._state = {name: list(state[name]) for name in self._state}
        self.broken.load_state_dict(state.get("broken", []))
        for task in self.tasks:
            if task.streaming:
                task.source.load_state_dict(state.get("streams", {}).get(task.name, {}))

    def shares(self) -> dict[str, float]:
        total = max(1, sum(self._state["given"]))
        return {task.name: given / total for task, given in zip(self.tasks, self._state["given"], strict=True)}

    def close(self) -> None:
        """Nothing is prepared ahead."""
