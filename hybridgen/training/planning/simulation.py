"""The memory of one process of a run: two optimizer steps of the stage's own code, on tensors without values.

Weights, optimizer, losses and backward are those of a run (`sizes.ByteCount` counts what lives), so what a setting
costs is found and not written down a second time. Layers are taken as written: compiled ones keep less.

On a GPU attention is a fused kernel, which keeps queries, keys, values, its output and one number for each query and
head, and no scores; on a CPU it is what runs here.
"""

import contextlib
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import MethodType, SimpleNamespace
from unittest.mock import patch

import torch
from accelerate.utils import convert_outputs_to_fp32
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from hybridgen.core import cross_entropy
from hybridgen.core.objectives import total
from hybridgen.modeling_hybridgen import HybridGenForConditionalGeneration
from hybridgen.paths.modality_experts import EXPERT
from hybridgen.training.config.schema import TrainConfig
from hybridgen.training.distributed.precision import attention_of, choose_precision
from hybridgen.training.monitor.flops import FlopCount
from hybridgen.training.optim.ema import WeightAverage
from hybridgen.training.optim.optimization import build_optimizer, freeze
from hybridgen.training.planning.batches import PlannedData
from hybridgen.training.planning.sizes import ByteCount, nothing_remembered
from hybridgen.training.stages.model import ModelStage, prepare_model

KEPT = ("weights", "gradients", "optimizer", "average", "codecs")
LAYOUT = ("document_ids", "block_ids", "noised_mask")  # of which dense masks are made


@dataclass
class Simulated:
    """What one process holds, in bytes, were nothing sharded.

    Args:
        parameters: their number, by part of the model, and of these `trained`.
        kept: bytes of what stays between steps (`KEPT`), as they are when most lives; `working`: all else at that time.
        largest_layer, outside_layers: weights of the largest layer of the backbone, and of all that is in none.
        flops: of a forward and a backward of one batch.
        tokens, places: of the documents of a batch, and of its rows.
        bytes_of_key_values: of a token in all layers, fp32, as sampling keeps them.
        cached_bytes: of a picture in `data.cache`, by kind.
    """

    parameters: Counter
    trained: int
    kept: dict[str, int]
    working: Counter
    largest_layer: int
    outside_layers: int
    flops: float
    tokens: int
    places: int
    bytes_of_key_values: int
    cached_bytes: dict[str, float]

    @property
    def peak(self) -> int:
        return sum(self.kept.values()) + sum(self.working.values())


def simulate(config: TrainConfig, data: PlannedData, device: str, sharded: bool = False) -> Simulated:
    """One process of a run.

    Args:
        data: its model's config, codecs and a batch.
        device: `cpu` or `cuda`; which of them is planned for, not where this runs.
        sharded: weights are gathered in the precision that they are multiplied in, and not cast once more.

    Raises:
        ValueError: a part of the model cannot be trained as the config says.
    """
    with nothing_remembered(), ByteCount() as count, _as_on(device), torch.random.fork_rng():
        with count.purpose("weights"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")  # where a layer is copied
            model = HybridGenForConditionalGeneration(data.model_config)
        config = _resolved(config, device, model.model.language_model)
        _prepare(model, config, count, device, sharded)
        optimizer = build_optimizer(model, config.optimizer, config.groups)
        with count.purpose("average"):
            elsewhere = config.ema is None or (config.ema.on_cpu and device != "cpu")
            average = None if elsewhere else WeightAverage(model, config.ema.decay)
        with count.purpose("codecs"):
            pipeline = data.pipeline(model)
        stage = ModelStage(config, pipeline, data)
        _tag_purposes(stage, count)
        flops = FlopCount(model, cached=config.data.cache is not None).of(data.batch)
        batch = _without_values(data.batch, count, dense=config.attention != "flex_attention")
        _make_moments(model, optimizer, count)
        count.begin_peak()
        _step(config, stage, model, optimizer, average, batch, count)
        return _summary(model, count, flops, stage.size(data.batch), _cached_bytes(stage, batch))


def _resolved(config: TrainConfig, device: str, backbone: PreTrainedModel) -> TrainConfig:
    """The config with `auto` decided for that device, and nothing compiled, drawn or kept on a disk."""
    precision, attention = precision_on(config, device), config.attention
    if attention == "auto" and device != "cpu":
        dropped = getattr(backbone.config, "attention_dropout", None)
        attention = attention_of(backbone, "sdpa" if dropped else "flex_attention", "auto")
    data = replace(config.data, cache=None)
    return replace(config, precision=precision, attention=attention, compile=False, data=data)


def precision_on(config: TrainConfig, device: str) -> str:
    """`fp32` or `bf16`, as a run there would choose; GPUs are taken to be of a kind that has bf16."""
    if config.precision == "auto" and device != "cpu":
        return "bf16"
    return choose_precision(config.precision, torch.device("cpu"))


def _prepare(model: nn.Module, config: TrainConfig, count: ByteCount, device: str, sharded: bool) -> None:
    """Make the model what it is in a run."""
    with count.purpose("weights"):
        accelerator = SimpleNamespace(
            mixed_precision="bf16" if config.precision == "bf16" else "no",
            device=torch.device(device),
            is_main_process=False,
        )
        # peft moves an adapter to where the weights are, which tensors without values refuse; all are in one place here
        with patch.object(nn.Module, "to", lambda module, *_, **__: module):
            prepare_model(model, config, accelerator)
        if sharded and config.precision == "bf16":
            _halve(model)
    freeze(model, config.groups)
    if config.precision == "bf16":  # as accelerate does
        forward = torch.autocast("cpu", torch.bfloat16)(model.forward.__func__)
        model.forward = MethodType(convert_outputs_to_fp32(forward), model)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda each: count.assign(each.grad, "gradients"))
    model.train()


def _halve(model: nn.Module) -> None:
    """Let the weights be bf16; those that are shared stay so."""
    halves: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, weight in module.named_parameters(recurse=False, remove_duplicate=False):
            half = nn.Parameter(torch.empty_like(weight, dtype=torch.bfloat16), weight.requires_grad)
            setattr(module, name, halves.setdefault(id(weight), half))


def _make_moments(model: nn.Module, optimizer: torch.optim.Optimizer, count: ByteCount) -> None:
    """A step on any gradients: from then on an optimizer has all that it keeps."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.empty_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    for state in optimizer.state.values():
        for value in state.values():
            if isinstance(value, Tensor):
                count.assign(value, "optimizer")


def _step(config, stage, model, optimizer, average, batch, count: ByteCount) -> None:
    """As the trainer's: micro-batches, the norm, a step, the average."""
    counts = {kind: torch.ones(()) for kind in stage.kinds}
    for _ in range(min(config.accumulation, 2)):  # the second finds the gradients of the first
        losses = stage.losses(model, batch)
        with count.purpose("backward"):
            total(losses, counts, stage.weights).backward()
        del losses
    torch.nn.utils.clip_grad_norm_([each for each in model.parameters() if each.requires_grad], config.clip or 1.0)
    with count.purpose("optimizer's work"):
        optimizer.step()
    if average is not None:
        with count.purpose("optimizer's work"):
            average.update()
    optimizer.zero_grad()


def _tag_purposes(stage: ModelStage, count: ByteCount) -> None:
    """Let what the codecs, the mask and the heads make be counted as theirs."""

    def tagged(function, name):
        def call(*args, **kwargs):
            with count.purpose(name):
                return function(*args, **kwargs)

        return call

    inner = stage.model.model
    inner.render_mask = tagged(inner.render_mask, "masks")
    stage.model._token_losses = tagged(stage.model._token_losses, "logits")
    for name in ("latents", "codes"):
        setattr(stage.inputs, name, tagged(getattr(stage.inputs, name), "codecs' work"))


def _without_values(batch: dict, count: ByteCount, dense: bool) -> dict:
    """The batch as the device gets it: pixels and noise have shapes alone, and so has a layout that dense masks are
    made of, which would be large."""

    def of(tensor: Tensor) -> Tensor:
        fake = count.without_values(tensor)
        count.assign(fake, "batch")
        return fake

    return {
        name: tree_map_only(Tensor, of, value) if _has_fractions(value) or (dense and name in LAYOUT) else value
        for name, value in batch.items()
    }


def _has_fractions(value) -> bool:
    tensors = value if isinstance(value, list) else [value]
    return any(isinstance(each, Tensor) and (each.is_floating_point() or each.dtype == torch.uint8) for each in tensors)


def _summary(
    model: nn.Module, count: ByteCount, flops: float, sizes: tuple[int, int], cached_bytes: dict[str, float]
) -> Simulated:
    parameters = Counter()
    for name, parameter in model.named_parameters():
        parameters[part_of_name(name)] += parameter.numel()
    layers = [sum(each.numel() for each in layer.parameters()) for layer in model.model.language_model.layers]
    text = model.config.text_config
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return Simulated(
        parameters,
        trained=sum(each.numel() for each in model.parameters() if each.requires_grad),
        kept={name: count.at_peak[name] for name in KEPT},
        working=Counter({name: size for name, size in count.at_peak.items() if name not in KEPT and size > 0}),
        largest_layer=max(layers),
        outside_layers=sum(parameters.values()) - sum(layers),
        flops=flops,
        tokens=sizes[0],
        places=sizes[1],
        bytes_of_key_values=2 * len(layers) * heads * head * 4,
        cached_bytes=cached_bytes,
    )


def _cached_bytes(stage: ModelStage, batch: dict) -> dict[str, float]:
    """Bytes of one picture's entry, by kind: the mean over the batch."""
    sizes, pixels = {}, stage.pixels(batch)
    batch = batch | stage.pixels(batch)
    if "diffusion_images" in batch:
        latents = stage.latent_codec.encode(pixels["diffusion_images"])
        sizes["latents"] = sum(each.numel() for each in latents) * 4 / len(latents)
    if "vq_images" in batch:
        sizes["codes"] = len(stage.vq.encode(pixels["vq_images"])) * 8 / len(batch["vq_images"])
    config = stage.model.config
    if "pixel_values" in batch and config.vision_config is not None and not config.native_aspect:
        rows, columns = config.feature_grid
        sizes["features"] = float(rows * columns * config.feature_width * 4)
    return sizes


def part_of_name(name: str) -> str:
    """The part of the model that a parameter belongs to."""
    words = name.split(".")
    if "lora_A" in name or "lora_B" in name:
        return "adapter"
    if EXPERT in words:
        return "modality experts"
    return words[1] if words[0] == "model" else words[0]


# ------------------------------------------------------------------------------------------------------- attention


class _Fused(torch.autograd.Function):
    """What a fused kernel keeps and makes, in shapes. (B, heads, N, width) queries, keys and values."""

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, ...]:
        query, key, value, *_ = ctx.saved_tensors
        return tuple(torch.empty_like(each) for each in (query, key, value))


def _fused(module, query: Tensor, key: Tensor, value: Tensor, attention_mask=None, **kwargs):
    return _Fused.apply(query, key, value).transpose(1, 2).contiguous(), None


@contextlib.contextmanager
def _as_on(device: str) -> Iterator[None]:
    """On a GPU, both kinds of attention that `auto` knows are fused, and the tiles of a loss are a GPU's."""
    if device == "cpu":
        yield
        return
    names, tile = ("flex_attention", "sdpa"), cross_entropy.CPU_TILE
    for name in names:
        ALL_ATTENTION_FUNCTIONS[name] = _fused
    cross_entropy.CPU_TILE = cross_entropy.TILE
    try:
        yield
    finally:
        cross_entropy.CPU_TILE = tile
        for name in names:
            del ALL_ATTENTION_FUNCTIONS[name]  # what was registered for all is back
