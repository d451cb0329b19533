"""More layers for a trained decoder, which computes the same at first (block expansion: LLaMA Pro, arXiv 2401.02415).

Each layer is followed by copies of itself, whose output projections are zero:

    layers of the checkpoint   0        1        2
    of one twice as deep       0  0'    1  1'    2  2'        ' adds nothing to the residual stream, until it has learnt

A copy sees what its layer sees, so what a config says of single layers (a list with an entry a layer, numbers of
layers) is said again of the copies. Some decoders know the kind of a layer by its number alone, or add something even
where output projections are zero: they are refused, once empty layers of both depths were compared (`check_expansion`).
"""

import functools
import json
import re

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig

from hybridgen.bridges.backbones import recorded, tiny_settings
from hybridgen.checkpoints.loading import quiet
from hybridgen.paths.modality_experts import EXPERT

# what attention, feed-forward and experts end with, as transformers names it; a modality expert's stands inside of it
_OUTPUTS = "o_proj|out_proj|down_proj|dense|dense_4h_to_h|c_proj|fc2|output_linear|w2"
_OUTPUT = re.compile(rf"\.({_OUTPUTS})(_bias|(\.{EXPERT})?\.(weight|bias))?$")
_LAYER = re.compile(r"layers\.(\d+)\.")
_FIRST = ("first_k_dense_replace", "max_window_layers", "num_dense_layers", "moe_layer_start_index")  # so many before
_NUMBERS = ("mlp_only_layers", "moe_layers")  # lists of layers' numbers
_NO_LAYERS = ("architectures", "eos_token_id", "bos_token_id", "pad_token_id")  # lists that may be as long by chance


def is_output(name: str) -> bool:
    """Whether a weight of a layer ends its attention or its feed-forward, so that zeros there add nothing."""
    return _OUTPUT.search(name) is not None


def source_of(name: str, factor: int) -> tuple[str, bool]:
    """The weight of a decoder that one of a decoder `factor` times as deep comes from, and whether its layer is a copy.
    Weights outside of the layers come from themselves."""
    found = _LAYER.match(name)
    if found is None:
        return name, False
    number, copy = divmod(int(found[1]), factor)
    return f"layers.{number}.{name[found.end() :]}", copy > 0


def expanded_config(config: PreTrainedConfig, factor: int) -> PreTrainedConfig:
    """The config of a decoder with `factor` layers for each one of this."""
    settings, layers = config.to_dict(), config.num_hidden_layers
    if (step := settings.get("decoder_sparse_step") or 1) > 1:  # every so many layers; now by their numbers
        dense = {number for number in range(layers) if (number + 1) % step}
        settings["mlp_only_layers"] = sorted(dense.union(settings.get("mlp_only_layers") or ()))
        settings["decoder_sparse_step"] = 1
    for name, value in settings.items():
        if name in _NUMBERS and value:
            settings[name] = [number * factor + copy for number in value for copy in range(factor)]
        elif name in _FIRST and isinstance(value, int):
            settings[name] = value * factor
        elif name == "moe_layer_end_index" and isinstance(value, int) and value >= 0:
            settings[name] = (value + 1) * factor - 1
        elif isinstance(value, list) and len(value) == layers and name not in _NO_LAYERS:
            settings[name] = [entry for entry in value for _ in range(factor)]
    settings[getattr(type(config), "attribute_map", {}).get("num_hidden_layers", "num_hidden_layers")] = layers * factor
    with quiet():
        return type(config).from_dict(settings)


def check_expansion(config: PreTrainedConfig, expanded: PreTrainedConfig) -> None:
    """Raises ValueError for a decoder whose copied layers would be of another kind, or would not be silent."""
    both = (json.dumps(each.to_dict(), default=str, sort_keys=True) for each in (config, expanded))
    number = _layer_of_another_kind(*both)
    if number is not None:
        source = number * config.num_hidden_layers // expanded.num_hidden_layers
        raise ValueError(
            f"the backbone is a {config.model_type!r}, whose layer {number} of {expanded.num_hidden_layers} would not "
            f"be made as layer {source} of {config.num_hidden_layers}, which it copies: numbers decide how; keep "
            f"{config.num_hidden_layers} layers"
        )
    if not _can_be_silent(json.dumps(tiny_settings(config), default=str, sort_keys=True)):
        raise ValueError(
            f"the backbone is a {config.model_type!r}, whose layers add something even if their output projections are "
            f"zero; keep {config.num_hidden_layers} layers"
        )


@functools.lru_cache(maxsize=16)
def _layer_of_another_kind(settings: str, expanded: str) -> int | None:
    """The first layer of a deeper decoder that is not made as the one that it copies (both configs as JSON)."""
    with torch.random.fork_rng(), torch.device("meta"), quiet():
        configs = (AutoConfig.for_model(**json.loads(each)) for each in (settings, expanded))
        before, after = (AutoModel.from_config(config).layers for config in configs)
    kinds = [_kind(layer) for layer in before]
    factor = len(after) // len(before)
    return next((number for number, layer in enumerate(after) if _kind(layer) != kinds[number // factor]), None)


def _kind(layer: nn.Module) -> list:
    """All that tells layers apart before they have weights: modules, their plain settings, and shapes."""
    plain = (bool, int, float, str, tuple, type(None))
    return [
        (
            name,
            type(module).__name__,
            {key: value for key, value in vars(module).items() if isinstance(value, plain) and key != "layer_idx"},
            [(key, tuple(weight.shape)) for key, weight in module.named_parameters(recurse=False)],
        )
        for name, module in layer.named_modules()
    ]


@functools.lru_cache(maxsize=64)
def _can_be_silent(settings: str) -> bool:
    """Whether the layers of a tiny decoder (its config as JSON) return what they are given, output projections zero."""
    with torch.random.fork_rng(), torch.device("cpu"), torch.inference_mode(False), torch.no_grad(), quiet():
        torch.manual_seed(0)
        decoder = AutoModel.from_config(AutoConfig.for_model(**json.loads(settings)), dtype=torch.float32).eval()
        for name, weight in decoder.layers.named_parameters(prefix="layers"):
            weight.copy_(torch.zeros_like(weight) if is_output(name) else weight + 0.05 * torch.randn_like(weight))
        with recorded(decoder.layers) as records:
            decoder(torch.randint(3, decoder.config.vocab_size, (1, 12)))
    return all(torch.equal(given, made) for given, made in records)
