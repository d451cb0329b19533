"""What a step needs at least on this machine, and where the rest of its time goes: shared by the two benches.

The floor of a step is the longer of two times: its multiplications over what a large matrix product reaches here, and
the bytes that it must read over what a copy reaches. Which of the two binds depends on how many tokens read a weight at
once: a code of one picture waits for weights, a denoised picture for multiplications.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile

PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "_linear_pointwise", "_weight_int8pack_mm", "mkldnn_linear")
ITEM = {"fp32": 4, "model": 4, "bf16": 2, "int8": 1}  # bytes a weight


@dataclass(frozen=True)
class Machine:
    """FLOP a second of a matrix product of 2,048 x 2,048 in either dtype, and bytes a second that are read or written
    by a copy of 256 MB."""

    float32: float
    bfloat16: float
    memory: float

    def flops(self, precision: str) -> float:
        return self.bfloat16 if precision in ("bf16", "int8") else self.float32


def clock() -> float:
    """Seconds: of the processor on one thread, so that others may use the machine meanwhile; else of the wall."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def shortest_of(task: Callable[[], object], repeat: int) -> float:
    """Seconds of the shortest run, after one that warms it up."""
    best = float("inf")
    for turn in range(repeat + 1):
        start = clock()
        task()
        best = min(best, clock() - start) if turn else best
    return best


def measure(repeat: int, size: int = 2048) -> Machine:
    reached = []
    for dtype in (torch.float32, torch.bfloat16):
        a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
        reached.append(2 * size**3 / shortest_of(lambda a=a, b=b: a @ b, repeat))
    source, target = torch.ones(1 << 26), torch.empty(1 << 26)
    return Machine(*reached, memory=2 * source.nbytes / shortest_of(lambda: target.copy_(source), repeat))


def against(machine: Machine, what: str, precision: str, flop: float, read: float, seconds: float) -> dict:
    """A row: what a step takes beside what it needs."""
    multiplying, reading = flop / machine.flops(precision), read / machine.memory
    return {
        "what": what, "GFLOP": flop / 1e9, "MB": read / 1e6, "ms": seconds * 1e3, "ms multiplying": multiplying * 1e3,
        "ms reading": reading * 1e3, "binds": "multiplying" if multiplying > reading else "reading",
        "of its floor": max(multiplying, reading) / seconds,
    }  # fmt: skip


def where(what: str, task: Callable[[], object]) -> dict:
    """A row: shares of a run's time by what is computed; the profiler itself makes small operations look dearer."""
    task()
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        start = time.perf_counter()
        task()
        seconds = time.perf_counter() - start
    shares = {"matrix products": 0.0, "attention": 0.0, "other operations": 0.0}
    for event in profiled.key_averages():
        name = event.key.rsplit("::", 1)[-1]
        kind = "matrix products" if name in PRODUCTS else "other operations"
        kind = "attention" if "attention" in name else kind
        shares[kind] += event.self_cpu_time_total / 1e6 / seconds
    return {"what": what, **shares, "between them": 1 - sum(shares.values())}
