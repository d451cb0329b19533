"""What processes that read different data have to agree on: that one cannot go on, and which records are broken.

An error of one process, raised there alone, would leave the others waiting in the next collective. So whoever reads
catches it and asks all to `raise_together`. Numbers that say whether there is anything to agree on travel in the
trainer's all-reduce of a step; only where there is are lists gathered.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from hybridgen.training.distributed.processes import sum_over_ranks

T = TypeVar("T")


def caught(read: Callable[[], T]) -> tuple[T | None, Exception | None]:
    """What `read` returns, and the error that a user can mend, if it raises one."""
    try:
        return read(), None
    except (ValueError, OSError) as error:
        return None, error


def raise_together(accelerator: Accelerator, error: Exception | None, failures: float | None = None) -> None:
    """The error of the first process that has one is raised in all, which call this together.

    Args:
        error: of this process.
        failures: how many processes have one, where that is known already.

    Raises:
        ValueError, OSError: with the same sentence in all processes.
    """
    if accelerator.num_processes > 1:
        if failures is None:
            failures = float(sum_over_ranks(accelerator, torch.tensor(float(error is not None), dtype=torch.float64)))
        if not failures:
            return
        told = gather_object([None if error is None else (isinstance(error, OSError), _sentence(error))])
        is_os, sentence = next(each for each in told if each is not None)
        raise (OSError if is_os else ValueError)(sentence) from error
    if error is not None:
        raise error


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def read_together(accelerator: Accelerator, begin: Callable[[], Iterable[T]]) -> Iterator[T]:
    """The batches that `begin` returns, of which all processes have as many; an error of one is raised by all."""
    iterator, error = caught(lambda: iter(begin()))
    raise_together(accelerator, error)
    end = object()
    while True:
        batch, error = caught(lambda: next(iterator, end))
        raise_together(accelerator, error)
        if batch is end:
            return
        yield batch


def share_bad_records(accelerator: Accelerator, loader) -> None:
    """Every process gets the broken records that each has met since the last call; all call this together.

    Raises:
        ValueError: in all processes alike, there are more than the limit allows.
        OSError: in all processes, the main one cannot list them in its file.
    """
    if accelerator.num_processes > 1:
        met = gather_object(loader.met_since_shared())
        raise_together(accelerator, caught(lambda: loader.agree_on_bad_records(met))[1])
