"""The config of `proposal` that fits the machine, with as many steps as the data need and a first run may take."""

import statistics
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch

from hybridgen.data.look import DataLook
from hybridgen.training.config import strict
from hybridgen.training.config.checks import check
from hybridgen.training.config.schema import TrainConfig
from hybridgen.training.monitor.flops import measured_peak
from hybridgen.training.planning.batches import PlannedData, planned_data
from hybridgen.training.planning.proposal import (
    UTILISATION,
    Start,
    adapted,
    device_of,
    document_tokens,
    held_out_share,
    largest_shape,
    propose,
)
from hybridgen.training.planning.report import Machines, amount, bytes_of_process, changes_to_try
from hybridgen.training.planning.simulation import Simulated, precision_on, simulate
from hybridgen.training.planning.timing import MEASURED, measured_seconds

EPOCHS = {"scratch": 150, "pretrained": 20}  # how often each record is met
FEWEST, MOST = {"scratch": 500, "pretrained": 200}, 100_000  # steps
HOURS = {"cpu": 2.0, "cuda": 12.0}  # that a first run may take
COMPILED = 1800.0  # seconds, from which on compiling the layers pays
ELSEWHERE = 150e12  # FLOP/s of a matrix product on a GPU that is not here


@dataclass(frozen=True)
class Proposal:
    """A config that fits.

    Args:
        content: of the config.
        parameters: of the model.
        peak: bytes that a process holds at most, `memory` of which there are.
        step_seconds: of one step, and `basis`, what that rests on.
        met: how often each record is met.
        shorter: more steps would serve the data, but take longer than `HOURS`.
    """

    content: dict
    parameters: int
    peak: float
    memory: float
    step_seconds: float
    basis: str
    met: float
    shorter: bool

    @property
    def seconds(self) -> float:
        return self.content["steps"] * self.step_seconds


def fitted(look: DataLook, start: Start, machines: Machines, output_dir: Path) -> Proposal:
    """The proposal, made smaller where it does not fit: recomputed activations, fewer rows at a time, a smaller model,
    an adapter in place of all weights.

    Raises:
        ValueError: nothing fits, or the start cannot learn from such data.
    """
    least, device = float("inf"), device_of(machines)
    for content in _candidates(look, start, machines, output_dir):
        config = strict.build(TrainConfig, deepcopy(content))
        check(config)
        data = planned_data(config, machines.processes)
        simulated = simulate(config, data, device)
        held = bytes_of_process(simulated, machines, precision_on(config, device) == "bf16")
        peak = sum(held.values()) + machines.reserve
        if peak <= machines.memory:
            return _timed(content, config, data, simulated, machines, look, peak)
        least = min(least, peak)
    raise ValueError(
        f"the smallest run from {start.named} needs {amount(least)} of memory, and there are "
        f"{amount(machines.memory)}; give a larger machine (--gpus, --memory), or another --from"
    )


def _candidates(look: DataLook, start: Start, machines: Machines, output_dir: Path) -> Iterator[dict]:
    """What may be trained, the largest first."""
    shapes = [None] if start.folder is not None else range(largest_shape(look, device_of(machines)), -1, -1)
    for shape in shapes:
        content = propose(look, start, machines, output_dir, shape)
        yield from _smaller(content, machines)
    if start.folder is not None and "lora" not in content:
        yield from _smaller(adapted(content, content["data"]["sources"][0].get("write")), machines)


def _smaller(content: dict, machines: Machines) -> Iterator[dict]:
    """The content as it is, then with one change after the other that takes memory from the run."""
    yield content
    config = strict.build(TrainConfig, deepcopy(content))
    for change, _, _ in changes_to_try(config, machines):
        if change.startswith("--"):  # another engine, which the config does not say
            continue
        content = deepcopy(content)
        for word in change.split():
            strict.override(content, word)
        yield content


def _timed(
    content: dict, config: TrainConfig, data: PlannedData, simulated: Simulated, machines: Machines, look: DataLook,
    peak: float,
) -> Proposal:  # fmt: skip
    """The content with its steps, and what depends on them."""
    content, device = deepcopy(content), device_of(machines)
    seconds, basis = _seconds_of_step(config, data, simulated, machines)
    tokens = simulated.tokens * config.accumulation * machines.processes
    draws = config.data.sources[0].weight / sum(source.weight for source in config.data.sources)
    a_step = draws * tokens / statistics.mean(document_tokens(content))  # records of the first source
    kind = "pretrained" if "from_pretrained" in content["model"] else "scratch"
    wanted, affordable = EPOCHS[kind] * look.records / a_step, HOURS[device] * 3600 / seconds
    steps = _rounded(min(max(min(wanted, affordable), FEWEST[kind]), MOST))
    content["steps"] = steps
    content["log_every"] = max(1, min(20, steps // 100))
    content["save_every"] = max(1, steps // 20)
    content["schedule"]["warmup_steps"] = min(100, steps // 10)
    if held_out := held_out_share(look) * look.records:  # no more batches than there are records to fill them
        content["validation"]["batches"] = max(1, min(4, round(held_out / a_step)))
    for name in ("validation", "sampling"):
        if content[name]["every"]:
            content[name]["every"] = max(1, steps // 10)
    content["compile"] = steps * seconds > COMPILED
    parameters = sum(simulated.parameters.values())
    met = steps * a_step / look.records
    return Proposal(
        content, parameters, peak, machines.memory, seconds, basis, met, steps < _rounded(min(wanted, MOST))
    )


def _seconds_of_step(
    config: TrainConfig, data: PlannedData, simulated: Simulated, machines: Machines
) -> tuple[float, str]:
    """Of one optimizer step, and what that rests on."""
    flops, half = simulated.flops * config.accumulation, precision_on(config, device_of(machines)) == "bf16"
    if not machines.gpus and sum(simulated.parameters.values()) <= MEASURED:
        return measured_seconds(config, data), "measured here"
    if machines.gpus and not torch.cuda.is_available():
        reached = ELSEWHERE * UTILISATION
        return flops / reached, f"assuming that each GPU reaches {reached / 1e12:.0f} TFLOP/s"
    device = torch.device("cuda" if machines.gpus else "cpu")
    reached = measured_peak(device, torch.bfloat16 if half else torch.float32) * UTILISATION
    return flops / reached, f"by its FLOPs, at {UTILISATION:.0%} of what a matrix product reaches here"


def _rounded(number: float) -> int:
    """Two digits that count, then zeros."""
    return int(float(f"{number:.1e}"))
