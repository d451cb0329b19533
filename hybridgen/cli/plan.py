"""`hybridgen plan`: what a run will hold in memory and how long it will take, before it (`training.planning`)."""

import argparse
from collections.abc import Iterator

import psutil

from hybridgen.training.config.schema import TrainConfig
from hybridgen.training.planning.batches import plan_config, planned_data
from hybridgen.training.planning.report import (
    Machines,
    amount,
    bytes_of_process,
    cache_lines,
    memory_lines,
    model_line,
    time_lines,
    way_out,
)
from hybridgen.training.planning.simulation import precision_on, simulate

STOPPED = "nothing was written"  # after Ctrl-C
GPU_MEMORY = 80.0  # GB, where none is named


def run(options: argparse.Namespace) -> Iterator[str]:
    """
    1. Read the config, and a batch of its data (or assume one).
    2. Go through a step of one process; divide by the engine.
    3. Print the table. What does not fit is said with the keys to change, and ends with exit code 1.
    """
    config, notes = plan_config(options.config, options.overrides)
    machines = _machines(options, config)
    device = "cuda" if machines.gpus else "cpu"

    def planned(changed: TrainConfig, on: Machines):
        data = planned_data(changed, on.processes)
        half = precision_on(changed, device) == "bf16"
        simulated = simulate(changed, data, device, sharded=on.shards > 1)
        whole_gradients = changed.sharding.gradients == "whole" and changed.accumulation > 1
        return data, simulated, bytes_of_process(simulated, on, half, whole_gradients)

    data, simulated, at_peak = planned(config, machines)
    for note in (*notes, *data.notes):
        yield f"note: {note}"
    yield model_line(simulated)
    yield from time_lines(simulated, config, machines, options.tokens)
    where = f"{machines.processes} GPUs, {machines.engine}" if machines.gpus > 1 else "one process"
    yield f"memory of each process at its peak ({where}, {precision_on(config, device)}):"
    yield from memory_lines(at_peak, machines)
    yield from cache_lines(simulated, config)
    if sum(at_peak.values()) + machines.reserve <= machines.memory:
        yield "it fits"
        return 0
    named, size = way_out(config, machines, lambda *each: sum(planned(*each)[2].values()) + machines.reserve)
    change = f"; set {' '.join(named)}" if named else ""
    enough = "it would fit" if size <= machines.memory else "even then it would not fit: take more or larger GPUs"
    then = f": {amount(size)}, {enough}" if named else "; take a larger machine, or a smaller model"
    yield f"it does not fit{change}{then}"
    return 1


def _machines(options: argparse.Namespace, config: TrainConfig) -> Machines:
    memory = psutil.virtual_memory().total if not options.gpus else GPU_MEMORY * 1e9
    memory = memory if options.memory is None else options.memory * 1e9
    tflops = config.diagnostics.peak_tflops if options.tflops is None else options.tflops
    return Machines(options.gpus, memory, options.engine, None if tflops is None else tflops * 1e12, options.mfu)
