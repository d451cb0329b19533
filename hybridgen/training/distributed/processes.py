"""One process or many: the accelerator of a run, what each way of sharing the work cannot do, and who is still there.

Nothing here is an engine of our own: it is accelerate's DDP, FSDP2 and DeepSpeed, chosen by `configs/accelerate/`.
Weights that are sharded are `sharding`'s. The fact a newcomer gets wrong: a process that dies does not end the others.
They wait in the next collective; what ends them is the broken connection (gloo) or the launcher (torchrun, seconds).
"""

import contextlib
import importlib.util
import os
import shutil
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedType, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, FullyShardedDataParallelPlugin
from torch.distributed.fsdp import MixedPrecisionPolicy

from hybridgen.training.config.schema import TrainConfig
from hybridgen.training.distributed.precision import choose_precision

PATIENCE = timedelta(minutes=30)  # of a process for one that saves or draws meanwhile
ROLL_CALL = 5.0  # seconds in which those that are left say so


def make_accelerator(config: TrainConfig) -> Accelerator:
    """An accelerator of the config's precision, on one process or several.

    accelerate keeps one precision a process, but a second run in it (the demo's) may want another; where there is only
    a CPU and it is not told so, it takes each of several processes for one that is alone; and it shards on accelerators
    only, though FSDP2 itself does on CPUs too.

    Raises:
        ValueError: the config asks for what this way of sharing cannot do.
    """
    AcceleratorState._reset_state()
    if _told_to_use("DEEPSPEED"):
        _check_deepspeed_is_here()
    cpu = not torch.accelerator.is_available()
    sharded = _told_to_use("FSDP")
    precision = choose_precision(config.precision, PartialState(cpu=cpu, timeout=PATIENCE).device)
    plugin = _sharding() if sharded else None
    accelerator = Accelerator(
        cpu=cpu,
        mixed_precision="bf16" if precision == "bf16" else "no",
        gradient_accumulation_steps=config.accumulation,
        fsdp_plugin=plugin,
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],  # stages reduce theirs themselves
    )
    if sharded and torch.distributed.is_initialized() and accelerator.distributed_type != DistributedType.FSDP:
        PartialState().distributed_type = accelerator.state.distributed_type = DistributedType.FSDP
        accelerator.state.fsdp_plugin = plugin
    check(config, accelerator)
    return accelerator


def check(config: TrainConfig, accelerator: Accelerator) -> None:
    """
    Raises:
        ValueError: what cannot work, and the way out.
    """
    if accelerator.distributed_type == DistributedType.FSDP:
        if accelerator.state.fsdp_plugin.activation_checkpointing:
            raise ValueError(
                "fsdp_activation_checkpointing is true; set it to false, and gradient_checkpointing=true in the "
                "training config, which does the same under every launcher"
            )
        if config.stage == "codec":
            raise ValueError(
                "stage 'codec' moves the rows of its codebook itself and cannot be sharded; start it with "
                "configs/accelerate/ddp.yaml"
            )
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        _check_deepspeed(config, accelerator)


def _told_to_use(engine: str) -> bool:
    """What `accelerate launch` says in the environment."""
    return os.environ.get(f"ACCELERATE_USE_{engine}", "false").lower() == "true"


def _sharding() -> FullyShardedDataParallelPlugin:
    """Weights and what is reduced stay fp32, and autocast does the rest, as in every other way of running."""
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise ValueError("accelerate is told to use FSDP 1; set fsdp_version: 2, as in configs/accelerate/fsdp2.yaml")
    return FullyShardedDataParallelPlugin(mixed_precision_policy=MixedPrecisionPolicy())


def _check_deepspeed_is_here() -> None:
    if not (importlib.util.find_spec("deepspeed") and torch.accelerator.is_available()):
        raise ValueError(
            "accelerate is told to use DeepSpeed, which is not installed or finds no GPU here; install it, or use "
            "configs/accelerate/fsdp2.yaml, which needs neither"
        )


def _check_deepspeed(config: TrainConfig, accelerator: Accelerator) -> None:
    """DeepSpeed clips, accumulates and steps by itself, and keeps flat pieces of parameters."""
    plugin = accelerator.state.deepspeed_plugin
    why = None
    if config.optimizer.name == "muon":
        why = "optimizer.name 'muon' needs whole matrices, of which DeepSpeed keeps flat pieces"
    elif config.spike.factor is not None:
        why = "spike.factor needs to see a step before it is taken, and DeepSpeed takes it in the backward pass"
    elif config.ema is not None and plugin.zero_stage == 3:
        why = "ema averages parameters, which ZeRO 3 keeps elsewhere"
    elif config.stage == "codec":
        why = "stage 'codec' moves the rows of its codebook itself"
    if why is not None:
        raise ValueError(f"{why}; use configs/accelerate/fsdp2.yaml, which shards as much, or change the config")
    plugin.deepspeed_config |= {
        "train_micro_batch_size_per_gpu": config.data.per_device_batch_size,
        "gradient_accumulation_steps": config.accumulation,
        "gradient_clipping": config.clip or 0.0,
        "zero_allow_untested_optimizer": True,
    }


# ------------------------------------------------------------------------------------------------- those that are left


@contextlib.contextmanager
def peers_lost(accelerator: Accelerator, folder: Path) -> Iterator[None]:
    """Inside, the error of a collective that another process left becomes one sentence that names it.

    Args:
        folder: that all processes write to.

    Raises:
        ConnectionError: in the first process that is left; the others end without a word, with 2.
    """
    roll_call = folder / ".roll_call"
    if accelerator.is_main_process:
        shutil.rmtree(roll_call, ignore_errors=True)
    try:
        yield
    except RuntimeError as error:
        if accelerator.num_processes == 1 or not _is_of_a_collective(error):
            raise
        here = _call_roll(accelerator, roll_call)
        if min(here) != accelerator.process_index:
            raise SystemExit(2) from error
        gone = [str(rank) for rank in range(accelerator.num_processes) if rank not in here]
        who = (
            f"process {', '.join(gone)} of {accelerator.num_processes} is gone" if gone else "a process did not answer"
        )
        raise ConnectionError(
            f"{who} (killed, out of memory, or it said why itself: ranks count from 0), so all end; nothing is lost "
            "but the unsaved steps: the same command goes on from the last saved state"
        ) from error


def _is_of_a_collective(error: RuntimeError) -> bool:
    text = str(error).lower()
    return isinstance(error, torch.distributed.DistError) or "gloo" in text or "nccl" in text


def _call_roll(accelerator: Accelerator, folder: Path) -> set[int]:
    """The ranks that are still there, told by the files that they leave."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / str(accelerator.process_index)).touch()
    until, here = time.monotonic() + ROLL_CALL, set()
    while time.monotonic() < until and len(here) < accelerator.num_processes:
        time.sleep(0.05)
        here = {int(path.name) for path in folder.iterdir()}
    return here
