"""Shards on their way to the disk: at once, or in the background while the next steps are taken.

In the background a state is first copied to main memory; a thread of each process then writes its share by torch's
distributed checkpointing and, in the main process, gives the folder its name (`checkpointing`). One state is written at
a time: the next waits for it, and so does the end of the run. What went wrong meanwhile is raised at the next step, in
all processes (`failed`, `wait`).
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedType
from torch.distributed import ProcessGroup
from torch.distributed import checkpoint as sharded_files
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from hybridgen.core.threads import compute_alone
from hybridgen.training.config.schema import TrainConfig
from hybridgen.training.state.checkpointing import begin_folder, finish_folder, raise_everywhere

Shards = dict[str, dict]  # folder inside the state -> tensors by (nested) name; DTensors, or the same in all processes


def saves_in_background(config: TrainConfig, accelerator: Accelerator) -> bool:
    """`async_save`, or, where it says nothing, whether a device other than the CPU trains. A codec's state has parts of
    its stage's own, and DeepSpeed's is its own: those are written at once."""
    if config.stage == "codec" or accelerator.distributed_type == DistributedType.DEEPSPEED:
        return False
    return accelerator.device.type != "cpu" if config.async_save is None else config.async_save


def write_shards(shards: Shards, state: Path, group: ProcessGroup | None = None) -> None:
    """Write these folders into a state's, where they are already made; all processes of the group together."""
    for folder, tensors in shards.items():
        sharded_files.save(tensors, checkpoint_id=state / folder, process_group=group)


class BackgroundWriter:
    """
    Args:
        accelerator: with several processes, they get connections for this alone: the threads of the background talk
            while the main ones do.
    """

    def __init__(self, accelerator: Accelerator):
        self._accelerator = accelerator
        several = accelerator.num_processes > 1
        self._group = torch.distributed.new_group(backend="gloo") if several else None
        self._stager = DefaultStager(StagingOptions(False, False, False, False))  # one copy, made before it returns
        self._thread = ThreadPoolExecutor(1, "state", compute_alone)
        self._pending: Future | None = None
        self._folder = Path()

    def write(self, folder: Path, shards: Shards, write_own: Callable[[Path], None], then: Callable[[], None]) -> None:
        """Begin to write a state; all processes together. Returns when the tensors may change again.

        Args:
            write_own: writes what is no tensor, at once.
            then: called in the main process once the state is there.
        """
        self.wait()
        aside = begin_folder(folder, self._accelerator, list(shards))
        with raise_everywhere(folder, self._accelerator):
            write_own(aside)
        copied = self._stager.stage(shards)
        self._folder, self._pending = folder, self._thread.submit(self._write, aside, folder, copied, then)

    def _write(self, aside: Path, folder: Path, shards: Shards, then: Callable[[], None]) -> None:
        write_shards(shards, aside, self._group)  # returns when all processes have written
        if self._accelerator.is_main_process:
            finish_folder(aside, folder)
            then()

    @property
    def failed(self) -> bool:
        """Whether this process knows that the last state could not be written."""
        return self._pending is not None and self._pending.done() and self._pending.exception() is not None

    def wait(self) -> None:
        """Until the last state is on the disk; all processes together.

        Raises:
            OSError: in one sentence, what could not be written, and that what was saved before is intact.
        """
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        with raise_everywhere(self._folder, self._accelerator):
            pending.result()
