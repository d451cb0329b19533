"""What a run costs, before it: FLOPs and tokens of a step, and the model's size.

The batches are those that the run itself will see first, and the FLOPs are those of `training.monitor.flops`, which the
run logs as well. Nothing is computed: the model has shapes and no values.
"""

from collections import Counter
from dataclasses import dataclass

from torch import nn

from hybridgen.core.layout import PADDING_DOCUMENT
from hybridgen.training.config.schema import TrainConfig
from hybridgen.training.monitor.flops import FlopCount
from hybridgen.training.optim.optimization import freeze
from hybridgen.training.planning.batches import planned_loader
from hybridgen.training.stages.building import empty_model

BATCHES = 24  # that means are taken over; packing makes batches differ by a few per cent


@dataclass(frozen=True)
class Measured:
    """Means of an optimizer step, and sizes.

    Args:
        flops: of forward and backward; frozen codecs are not counted.
        tokens: of documents, padding left out.
        source_tokens: of each source's documents, by the source's name.
        parameters: all weights of the model.
        without_embeddings: without the tables over vocabulary and codebook, and the heads over them.
    """

    flops: float
    tokens: float
    source_tokens: dict[str, float]
    parameters: int
    without_embeddings: int


def measure(config: TrainConfig, batches: int = BATCHES) -> Measured:
    """
    Raises:
        ValueError: the data or codecs are not there, or what a step costs changes over the run.
    """
    for source in config.data.sources:
        if isinstance(source.weight, dict):
            raise ValueError(
                f"{source.name}: weight is {source.weight}, so that the cost of a step changes over the run; give one "
                "number where budgets are compared"
            )
    if config.lora is not None or config.stage != "model":
        what = "stage is 'codec'" if config.stage != "model" else "lora is given"
        raise ValueError(f"{what}, but only runs of whole models can be compared by budgets")
    loader, hybrid, _ = planned_loader(config)
    model = empty_model(hybrid)
    freeze(model, config.groups)
    count, names = FlopCount(model, cached=config.data.cache is not None), list(loader.shares())
    flops, tokens, by_source = 0.0, 0, Counter()
    for _ in range(batches):
        batch = next(loader)
        real = batch["document_ids"] != PADDING_DOCUMENT
        flops += count.of(batch)
        tokens += int(real.sum())
        for number, name in enumerate(names):
            by_source[name] += int((batch["source_ids"][real] == number).sum())
    loader.close()
    steps = batches / config.accumulation
    return Measured(
        flops / steps,
        tokens / steps,
        {name: count / steps for name, count in by_source.items()},
        *sizes(model),
    )


def sizes(model: nn.Module) -> tuple[int, int]:
    """The model's weights, and those of them that are neither tables over vocabulary and codebook nor heads over
    them, whose size goes with what is told apart and not with the model."""
    inner = model.model
    tables = [inner.get_input_embeddings(), model.lm_head]
    if hasattr(inner, "generation_embeddings"):
        tables += [inner.generation_embeddings, inner.generation_head.vision_head]
    left_out = {id(parameter): parameter.numel() for table in tables for parameter in table.parameters()}
    every = {id(parameter): parameter.numel() for parameter in model.parameters()}
    return sum(every.values()), sum(every.values()) - sum(left_out.values())
