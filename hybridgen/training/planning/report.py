"""What a plan says: bytes of one process under an engine, whether they fit, which keys to change, FLOPs and days.

What is sharded is divided; what a sharded run gathers is added: the weights outside of the layers, which are whole from
the beginning of a forward to the end of its backward, and two layers at a time with their gradients (one is computed
with while the next is fetched). Gradients of DDP stand twice, as themselves and in the buckets that are sent.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from hybridgen.training.config.schema import TrainConfig
from hybridgen.training.planning.simulation import Simulated

ENGINES = ("ddp", "fsdp2", "hsdp")
RESERVE = 2e9  # a GPU's context, its communication buffers, and what its allocator cannot use, in bytes
PER_NODE = 8  # GPUs of a machine, over which hsdp shards
GB = 1e9


@dataclass(frozen=True)
class Machines:
    """
    Args:
        gpus: processes, over all machines; 0 = one process on this machine's CPU.
        memory: bytes of each.
        engine: of `ENGINES`; says nothing of a single process.
        flops: that each can do in a second at most; None = not known.
        utilisation: the share of them that a run reaches (MFU).
    """

    gpus: int
    memory: float
    engine: str
    flops: float | None
    utilisation: float

    @property
    def processes(self) -> int:
        return max(self.gpus, 1)

    @property
    def shards(self) -> int:
        """Into how many parts weights are divided."""
        if self.processes == 1 or self.engine == "ddp":
            return 1
        return self.processes if self.engine == "fsdp2" else min(self.processes, PER_NODE)

    @property
    def reserve(self) -> float:
        return RESERVE if self.gpus else 0.0


def bytes_of_process(
    simulated: Simulated, machines: Machines, half: bool, whole_gradients: bool = False
) -> Counter[str]:
    """What one process holds at its peak, by purpose, in bytes.

    Args:
        half: weights are multiplied, and gathered, in bf16.
        whole_gradients: those of sharded weights are kept whole until the last micro-batch.
    """
    at_peak = Counter(simulated.working)
    if machines.shards == 1:
        at_peak += Counter(simulated.kept)
        if machines.processes > 1:
            at_peak["gradients on their way"] = 4 * simulated.trained
        return at_peak
    weights, size = sum(simulated.parameters.values()), 2 if half else 4
    whole = {"weights": 4 * weights, "gradients": 4 * simulated.trained, "optimizer": simulated.kept["optimizer"]}
    whole["average"] = simulated.kept["average"]
    at_peak += Counter({name: count // machines.shards for name, count in whole.items()})
    if whole_gradients:
        at_peak["gradients"] = whole["gradients"]
    at_peak["codecs"] += simulated.kept["codecs"]
    at_peak["weights gathered"] = size * (2 * simulated.largest_layer + simulated.outside_layers)
    at_peak["gradients not sharded yet"] = size * 2 * simulated.largest_layer
    return at_peak


def changes_to_try(config: TrainConfig, machines: Machines) -> Iterator[tuple[str, TrainConfig, Machines]]:
    """One change after the other that makes a run smaller, each on top of those before: what to set, and the result."""
    if config.ema is not None and not config.ema.on_cpu and machines.gpus:
        config = replace(config, ema=replace(config.ema, on_cpu=True))
        yield "ema.on_cpu=true", config, machines
    if not config.gradient_checkpointing:
        config = replace(config, gradient_checkpointing=True)
        yield "gradient_checkpointing=true", config, machines
    if machines.processes > 1 and machines.shards == 1:
        machines = replace(machines, engine="fsdp2")
        yield "--config_file configs/accelerate/fsdp2.yaml (shards the weights)", config, machines
    rows, accumulation = config.data.per_device_batch_size, config.accumulation
    while rows > 1 and rows % 2 == 0:
        rows, accumulation = rows // 2, accumulation * 2
        config = replace(config, accumulation=accumulation, data=replace(config.data, per_device_batch_size=rows))
        yield f"data.per_device_batch_size={rows} accumulation={accumulation}", config, machines


def way_out(
    config: TrainConfig, machines: Machines, peak_of: Callable[[TrainConfig, Machines], float]
) -> tuple[list[str], float]:
    """The first of `changes_to_try` that together fit, and the bytes then; all of them where none is enough."""
    named: list[str] = []
    size = float("inf")
    for change, changed, on in changes_to_try(config, machines):
        if change.startswith("data.per_device_batch_size"):
            named = [each for each in named if not each.startswith("data.per_device_batch_size")]
        named.append(change)
        size = peak_of(changed, on)
        if size <= machines.memory:
            break
    return named, size


def memory_lines(at_peak: Counter[str], machines: Machines) -> list[str]:
    """A table, the largest first."""
    rows = [(name, size) for name, size in at_peak.most_common() if size >= 1e6]
    rest = sum(at_peak.values()) - sum(size for _, size in rows)
    rows += [("smaller things", rest)] if rest > 0 else []
    if machines.reserve:
        rows.append(("reserve: context, communication, fragments (assumed)", machines.reserve))
    rows.append(("together, of " + amount(machines.memory), sum(at_peak.values()) + machines.reserve))
    width = max(len(name) for name, _ in rows)
    return [f"  {name:<{width}}  {amount(size, f'{size / GB:,.2f} GB'):>12}" for name, size in rows]


def amount(size: float, large: str | None = None) -> str:
    """Bytes in GB, or in MB where they are less than one.

    Args:
        large: how it is said in GB; None = with one decimal.
    """
    if size < GB:
        return f"{size / 1e6:,.0f} MB"
    return large or f"{size / GB:,.1f} GB"


def time_lines(simulated: Simulated, config: TrainConfig, machines: Machines, budget: float | None) -> list[str]:
    """FLOPs of a token, of the run, and how long they take."""
    of_token = simulated.flops / simulated.tokens
    places = simulated.places * config.accumulation * machines.processes
    fill = simulated.tokens / simulated.places
    tokens = budget or config.steps * places * fill
    lines = [
        f"a step: {places:,} places ({config.data.per_device_batch_size} rows of {config.data.sequence_length:,} x "
        f"accumulation {config.accumulation} x {machines.processes} processes), {100 * fill:.0f} % of them filled",
        f"FLOPs: {of_token / 1e9:,.3g} G a token, {of_token * tokens:.2g} for {tokens:.3g} tokens",
    ]
    if machines.flops is not None:
        days = of_token * tokens / (machines.flops * machines.utilisation * machines.processes) / 86400
        lines.append(
            f"time: {days:,.1f} days at {100 * machines.utilisation:.0f} % of {machines.flops / 1e12:,.0f} TFLOP/s on "
            f"each of {machines.processes}"
        )
    return lines


def cache_lines(simulated: Simulated, config: TrainConfig) -> list[str]:
    """What caches take: keys and values while sampling, and the folder of `data.cache`."""
    lines = [f"keys and values while sampling: {simulated.bytes_of_key_values / 1e3:,.0f} kB a token and row"]
    if config.data.cache is not None:
        sizes = ", ".join(f"{name} {size / 1e3:,.1f} kB" for name, size in simulated.cached_bytes.items())
        lines.append(f"data.cache: a picture's {sizes or 'entries are empty'}")
    return lines


def model_line(simulated: Simulated) -> str:
    total = sum(simulated.parameters.values())
    parts = ", ".join(f"{name} {_count(size)}" for name, size in simulated.parameters.most_common())
    return f"{_count(total)} parameters ({parts}), of which {_count(simulated.trained)} are trained"


def _count(number: float) -> str:
    """1.38 B, 24.6 M, 512."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)
