"""Which records a score is taken on: the first of a dataset's held-out split, the same for every model and path."""

from collections.abc import Iterator
from types import ModuleType


def first_records(
    dataset: ModuleType, split: str, task: str, samples: int, seed: int, size: int | None = None
) -> Iterator[dict]:
    """The first `samples` records of a dataset's split, for the task `draw` or `answer`, their pictures `size` pixels a
    side (None = as the dataset makes them).

    Raises:
        ValueError: no sample is asked for, or more than the split has.
    """
    source = dataset.Source(split, task, seed, size=size)
    if not 1 <= samples <= len(source):
        raise ValueError(f"{samples} samples cannot be taken from split {split!r}; take 1 to {len(source)}")
    return map(source.__getitem__, range(samples))
