"""Tasks: loops of sampling as generators, so that the steps of several can be computed together.

    drawing, writing     an object with a state; its `step` is a task that takes it one step on
    run                  drives a task by itself: a call of the pipeline
    compute              what many tasks wait for, at once: `serving.engine`

A task yields `Work`, what is to be computed next, and is sent what came of it:

    states = yield Read(forward, embeds)            # by the backbone (`decoder.read_together`)
    logits = yield Score(decoder.code_logits, states)   # by a head

All else (masks, noise, guidance, schedulers, caches) is the task's own. So there is one implementation of a step, and
whoever drives it decides what is computed beside it. Tasks call others by `yield from`. A task may yield other things
too, such as `chat.events`: they are for whoever waits for what it makes (`events_of`).

Shapes: R rows, n new tokens, H width.
"""

from collections.abc import Callable, Generator, Hashable, Iterator
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from hybridgen.sampling.decoder import Read, read_together

__all__ = ["Read", "Score", "Task", "Work", "compute", "events_of", "run"]


class Score(NamedTuple):
    """What a head is to make of states (R, H) or (R, n, H); rows are scored independently of one another."""

    head: Callable[[Tensor], Tensor]
    states: Tensor

    @property
    def key(self) -> Hashable:
        """Equal for what can be scored together."""
        owner, of_decoder = getattr(self.head, "__self__", None), getattr(self.head, "__name__", None)
        weights = self.head if owner is None else (getattr(owner, "key", id(owner)), of_decoder)
        return weights, self.states.shape[1:], self.states.dtype


def score_together(scores: list[Score]) -> list[Tensor]:
    """What a head makes of the states of each of several scores of equal `key`."""
    if len(scores) == 1:
        return [scores[0].head(scores[0].states)]
    made = scores[0].head(torch.cat([score.states for score in scores]))
    return list(made.split([len(score.states) for score in scores]))


Work = Read | Score
Made = TypeVar("Made")
Task = Generator[Any, Any, Made]  # yields Work, is sent tensors, returns what it made
_TOGETHER = {Read: read_together, Score: score_together}


@torch.no_grad()
def compute(works: list[Work]) -> list[Tensor]:
    """The results of several works, those computed together that can be."""
    alike: dict[Hashable, list[int]] = {}
    for place, work in enumerate(works):
        alike.setdefault((type(work), work.key), []).append(place)
    results: list[Tensor | None] = [None] * len(works)
    for (kind, _), places in alike.items():
        made = _TOGETHER[kind]([works[place] for place in places])
        for place, result in zip(places, made, strict=True):
            results[place] = result
    return results


@torch.no_grad()
def run(task: Task[Made]) -> Made:
    """What a task makes by itself, everything that it yields beside work left out."""
    result = None
    try:
        while True:
            item = task.send(result)
            result = compute([item])[0] if isinstance(item, Work) else None
    except StopIteration as end:
        return end.value


@torch.no_grad()
def events_of(task: Task) -> Iterator:
    """What a task by itself yields beside its work. To stop it, stop asking, or close this."""
    result = None
    try:
        while True:
            item = task.send(result)
            result = compute([item])[0] if isinstance(item, Work) else None
            if not isinstance(item, Work):
                yield item
    except StopIteration:
        return
    finally:
        task.close()
