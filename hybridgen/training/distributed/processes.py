"""One process or many: the accelerator of a run, what each engine cannot do, and which processes are still alive.

The engines are accelerate's DDP, FSDP2 and DeepSpeed, chosen by `configs/accelerate/`; see `sharding` for FSDP2.
A process that dies does not end the others: they wait in the next collective until the connection breaks (gloo) or the
launcher ends them (torchrun, after seconds).
"""

import contextlib
import importlib.util
import os
import shutil
import time
import warnings
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedType, ParallelismConfig, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    FullyShardedDataParallelPlugin,
    GradientAccumulationPlugin,
    send_to_device,
    set_seed,
)
from torch.distributed.fsdp import MixedPrecisionPolicy

from hybridgen.training.config.schema import TrainConfig
from hybridgen.training.distributed.precision import choose_precision

COLLECTIVE_TIMEOUT = timedelta(minutes=30)  # long, as the others wait while one process saves or draws
HYBRID = "PARALLELISM_CONFIG"  # as accelerate calls shards within nodes and replicas over them
ROLL_CALL_SECONDS = 5.0  # in which the processes that are left report


def make_accelerator(config: TrainConfig) -> Accelerator:
    """An accelerator of the config's precision, on one process or several.

    Works around three behaviours of accelerate: it keeps one precision per process, but a second run in it (the demo's)
    may want another; on machines with only a CPU it has to be told so, or it takes each of several processes for a
    single one; and it shards on accelerators only, though FSDP2 itself works on CPUs too.

    Raises:
        ValueError: the config asks for what this engine cannot do.
    """
    AcceleratorState._reset_state()
    _ignore_warnings()
    if _launched_with("DEEPSPEED"):
        _require_deepspeed()
    cpu = not torch.accelerator.is_available()
    sharded = _launched_with("FSDP")
    precision = choose_precision(config.precision, PartialState(cpu=cpu, timeout=COLLECTIVE_TIMEOUT).device)
    plugin = _fsdp_plugin() if sharded else None
    _check_hybrid_sizes()
    with _no_hybrid_sharding() if cpu else contextlib.nullcontext():
        accelerator = Accelerator(
            cpu=cpu,
            # DeepSpeed's own bf16 would cast the whole model, and not its inputs; see `_check_deepspeed`
            mixed_precision="bf16" if precision == "bf16" and not _launched_with("DEEPSPEED") else "no",
            gradient_accumulation_plugin=GradientAccumulationPlugin(
                num_steps=config.accumulation, sync_each_batch=sharded and config.sharding.gradients == "sharded"
            ),
            fsdp_plugin=plugin,
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],  # stages reduce theirs themselves
        )
    if cpu and sharded and torch.distributed.is_initialized():
        _shard_on_cpus(accelerator, plugin)
    check_engine(config, accelerator)
    return accelerator


def _ignore_warnings() -> None:
    """Of libraries, about what they do themselves, and rightly."""
    # newer versions of torch have another name for it, which accelerate does not know yet
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
    about = (
        "FSDP2-wrapped module .* returned a view tensor",  # operations in place on an output, of which there are none
        "`_get_pg_default_device` will be deprecated",
        "Multiple backends are registered",
        "torch.distributed is disabled",  # of a state in shards that one process reads or writes
    )
    for message in about:
        warnings.filterwarnings("ignore", message=message, category=UserWarning)


@contextlib.contextmanager
def _no_hybrid_sharding() -> Iterator[None]:
    """Inside, accelerate does not see that it is told to shard by nodes, which it refuses on CPUs."""
    name = f"ACCELERATE_USE_{HYBRID}"
    said = os.environ.pop(name, None)
    try:
        yield
    finally:
        os.environ.update({} if said is None else {name: said})


def _shard_on_cpus(accelerator: Accelerator, plugin: FullyShardedDataParallelPlugin) -> None:
    """What accelerate does where it finds GPUs."""
    PartialState().distributed_type = accelerator.state.distributed_type = DistributedType.FSDP
    accelerator.state.fsdp_plugin = plugin
    if _launched_with(HYBRID):
        accelerator.state.parallelism_config = ParallelismConfig()
        accelerator.state.device_mesh = accelerator.parallelism_config.get_device_mesh("cpu")


def seed_dropout(seed: int) -> None:
    """Seed the global streams of this process, which dropout alone draws from: all else has generators of its own.

    A large seed is made smaller, since numpy takes 32 bits of it, with the process' number added.
    """
    set_seed(seed % ((1 << 32) - (1 << 16)), device_specific=True)


def check_engine(config: TrainConfig, accelerator: Accelerator) -> None:
    """
    Raises:
        ValueError: what the run's engine cannot do, and the way out.
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


def _launched_with(engine: str) -> bool:
    """Whether `accelerate launch` chose this engine, which it says in the environment."""
    return os.environ.get(f"ACCELERATE_USE_{engine}", "false").lower() == "true"


def _fsdp_plugin() -> FullyShardedDataParallelPlugin:
    """Of FSDP2. Its precision is not accelerate's, which is the same for all groups (`fsdp`)."""
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise ValueError("accelerate is told to use FSDP 1; set fsdp_version: 2, as in configs/accelerate/fsdp2.yaml")
    return FullyShardedDataParallelPlugin(mixed_precision_policy=MixedPrecisionPolicy())


def _check_hybrid_sizes() -> None:
    """Before accelerate makes a mesh of them."""
    names = ("DP_REPLICATE", "DP_SHARD")
    replicas, shards = (int(os.environ.get(f"{HYBRID}_{name}_SIZE", "1")) for name in names)
    processes = PartialState().num_processes
    if replicas * shards not in (1, processes):
        raise ValueError(
            f"parallelism_config has room for {replicas} x {shards} processes, but there are {processes}; set "
            "parallelism_config_dp_replicate_size to the machines and parallelism_config_dp_shard_size to the GPUs of "
            "each, as in configs/accelerate/hsdp_64.yaml"
        )


def _require_deepspeed() -> None:
    if not (importlib.util.find_spec("deepspeed") and torch.accelerator.is_available()):
        raise ValueError(
            "accelerate is told to use DeepSpeed, which is not installed or finds no GPU here; install it, or use "
            "configs/accelerate/fsdp2.yaml, which needs neither"
        )


def _check_deepspeed(config: TrainConfig, accelerator: Accelerator) -> None:
    """DeepSpeed clips, accumulates and steps by itself, and keeps flat pieces of parameters."""
    plugin = accelerator.state.deepspeed_plugin
    reason = None
    if config.optimizer.name == "muon":
        reason = "optimizer.name 'muon' needs whole matrices, of which DeepSpeed keeps flat pieces"
    elif config.spike.factor is not None:
        reason = "spike.factor needs to see a step before it is taken, and DeepSpeed takes it in the backward pass"
    elif any(group.rows != "all" for group in config.groups):
        reason = "groups.N.rows needs gradients before a step, and DeepSpeed keeps them to itself"
    elif config.ema is not None and plugin.zero_stage == 3:
        reason = "ema averages parameters, which ZeRO 3 keeps elsewhere"
    elif config.stage == "codec":
        reason = "stage 'codec' moves the rows of its codebook itself"
    elif config.async_save:
        reason = "async_save is true, and DeepSpeed writes its states by itself"
    if reason is not None:
        raise ValueError(f"{reason}; use configs/accelerate/fsdp2.yaml, which shards as much, or change the config")
    plugin.deepspeed_config |= {
        "train_micro_batch_size_per_gpu": config.data.per_device_batch_size,
        "gradient_accumulation_steps": config.accumulation,
        "gradient_clipping": config.clip or 0.0,
        "zero_allow_untested_optimizer": True,
    }
    if choose_precision(config.precision, accelerator.device) == "bf16":  # weights fp32, products and messages bf16
        plugin.deepspeed_config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}


def to_device(batch: dict, device: torch.device) -> dict:
    """A batch on a device. CUDA copies what lies in pinned memory while the CPU goes on."""
    return send_to_device(batch, device, non_blocking=torch.device(device).type == "cuda")


def sum_over_ranks(accelerator: Accelerator, values: torch.Tensor) -> torch.Tensor:
    """Summed over all processes, on the CPU in float64. What is alone meets no device, which may have no float64."""
    if accelerator.num_processes > 1:
        values = accelerator.reduce(values.to(accelerator.device), reduction="sum")
    return values.cpu().double()


# ------------------------------------------------------------------------------------------- processes that are left


@contextlib.contextmanager
def peers_lost(accelerator: Accelerator, folder: Path) -> Iterator[None]:
    """Inside, the error of a collective that another process left becomes one sentence that names it.

    Args:
        folder: that all processes write to.

    Raises:
        ConnectionError: in the first process that is left; the others exit silently with code 2.
    """
    roll_call = folder / ".roll_call"
    if accelerator.is_main_process:
        shutil.rmtree(roll_call, ignore_errors=True)
    try:
        yield
    except RuntimeError as error:
        if accelerator.num_processes == 1 or not _is_of_a_collective(error):
            raise
        alive = _call_roll(accelerator, roll_call)
        if min(alive) != accelerator.process_index:
            raise SystemExit(2) from error
        gone = [str(rank) for rank in range(accelerator.num_processes) if rank not in alive]
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
    """The ranks that are still alive: each leaves a file of its number."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / str(accelerator.process_index)).touch()
    until, alive = time.monotonic() + ROLL_CALL_SECONDS, set()
    while time.monotonic() < until and len(alive) < accelerator.num_processes:
        time.sleep(0.05)
        alive = {int(path.name) for path in folder.iterdir()}
    return alive
