"""One process or several that evaluate together: who does what, and how all get to know it.

Started by `accelerate launch`; the group of processes is torch's own. Weights are whole in each process.
"""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState

TIMEOUT = timedelta(hours=12)  # one process may still draw when the others have long done their share


@dataclass(frozen=True)
class Processes:
    """This process among those that evaluate together.

    Args:
        rank, count: its number, and how many there are.
    """

    rank: int = 0
    count: int = 1

    @classmethod
    def running(cls) -> "Processes":
        """Those of torch's group; one alone where there is none."""
        if not (dist.is_available() and dist.is_initialized()):
            return cls()
        return cls(dist.get_rank(), dist.get_world_size())

    @classmethod
    @contextmanager
    def launched(cls) -> Iterator["Processes"]:
        """Inside, the processes that `accelerate launch` or torchrun started are one group, each with its own GPU."""
        if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
            yield cls.running()
            return
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="OMP_NUM_THREADS/MKL_NUM_THREADS unset")
            PartialState(cpu=not torch.accelerator.is_available(), timeout=TIMEOUT)
        try:
            yield cls.running()
        finally:
            dist.destroy_process_group()

    @property
    def is_main(self) -> bool:
        """Whether it is the one that writes scores and speaks."""
        return self.rank == 0

    def gather(self, value: Any) -> list:
        """The value of each process, in all of them. They wait for each other here.

        Raises:
            ConnectionError: one of them is gone.
        """
        if self.count == 1:
            return [value]
        gathered = [None] * self.count
        try:
            dist.all_gather_object(gathered, value)
        except RuntimeError as error:  # torch's own errors of collectives are such
            raise ConnectionError(
                f"another of {self.count} processes is gone (killed, out of memory, or it said why itself); what was "
                "drawn and answered is kept: the same command goes on from there"
            ) from error
        return gathered

    def agree(self, error: Exception | None = None) -> None:
        """Raise the error of the first process that has one, in all of them: alone, it would leave the others waiting.

        Raises:
            ValueError, OSError: in all processes, with the same sentence.
        """
        told = self.gather(None if error is None else (isinstance(error, OSError), str(error)))
        if error is not None:
            raise error
        for is_os, sentence in filter(None, told):
            raise (OSError if is_os else ValueError)(sentence)
