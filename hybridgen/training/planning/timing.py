"""How long a step will take: measured with the run's own model and a batch of its data, or told by its FLOPs.

Measured where the run will be on this machine's CPU and the model is small enough to be made for it; what a step of
another machine takes follows from FLOPs alone, and rests on two assumptions that are said.
"""

import time
from dataclasses import replace
from types import SimpleNamespace

import torch

from hybridgen.core.objectives import total
from hybridgen.modeling_hybridgen import HybridGenForConditionalGeneration
from hybridgen.training.config.schema import TrainConfig
from hybridgen.training.distributed.precision import choose_precision
from hybridgen.training.optim.optimization import build_optimizer, freeze
from hybridgen.training.planning.batches import PlannedData
from hybridgen.training.stages.model import ModelStage, prepare_model

MEASURED = 60_000_000  # parameters, at most: a step of more is not waited for
STEPS = 3  # that are measured; the fastest counts, as the first warms up and another program may be in the way


def measured_seconds(config: TrainConfig, data: PlannedData) -> float:
    """Seconds of one optimizer step on this machine's CPU, on random weights; layers as written, so it may be less."""
    config = replace(config, compile=False, data=replace(config.data, cache=None))
    device = torch.device("cpu")
    half = choose_precision(config.precision, device) == "bf16"
    with torch.random.fork_rng():
        model = HybridGenForConditionalGeneration(data.model_config)
        accelerator = SimpleNamespace(mixed_precision="bf16" if half else "no", device=device, is_main_process=False)
        prepare_model(model, config, accelerator)
        freeze(model, config.groups)
        model.train()
        optimizer = build_optimizer(model, config.optimizer, config.groups)
        stage = ModelStage(config, data.pipeline(model), data)
        counts = {kind: torch.ones(()) for kind in stage.kinds}
        taken = []
        for _ in range(STEPS):
            start = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                losses = stage.losses(model, data.batch)
            total(losses, counts, stage.weights).backward()
            optimizer.step()
            optimizer.zero_grad()
            taken.append(time.perf_counter() - start)
    return min(taken) * config.accumulation
