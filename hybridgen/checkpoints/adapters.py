"""Adapters on a model: several LoRAs at once, each with a scale, put on, taken away, or added to the weights.

A folder of an adapter is peft's own (`adapter_config.json`, `adapter_model.safetensors`). The verbs of the pipeline are
diffusers'; this is what they do. How an adapter is trained, and opened with its base, is in `bridges.adapters`.
"""

from collections.abc import Iterator
from math import prod
from pathlib import Path

from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import is_peft_available

from hybridgen.checkpoints.loading import friendly_errors, is_adapter, quiet
from hybridgen.core.files import read_json
from hybridgen.core.recognition import ADAPTER, check_files, require_folder, user_path
from hybridgen.core.values import shown

WEIGHTS = "adapter_model.safetensors"


def require_peft() -> None:
    """Raises ValueError when the optional package is missing."""
    if not is_peft_available():
        raise ValueError("LoRA needs the package peft: pip install 'hybridgen[peft]'")


def loaded(model: PreTrainedModel) -> list[str]:
    """Names of the adapters on a model, in the order in which they came."""
    return list(getattr(model, "peft_config", ()))


def active(model: PreTrainedModel) -> list[str]:
    """Names of those that have an effect now."""
    layer = next(_layers(model), (None, None))[1]
    return [] if layer is None or layer.disable_adapters else [*layer.active_adapters]


def load(model: PreTrainedModel, folder: str | Path, name: str = "default") -> None:
    """Put a saved adapter on a model; it alone is active then, at scale 1.

    Raises:
        ValueError: peft is missing, the name is taken, or the adapter is another model's; the model is as before.
    """
    require_peft()
    folder = user_path(folder)
    require_folder("adapter", folder, "give the checkpoint/ of a run with lora")
    if not is_adapter(folder):
        raise ValueError(f"{folder} holds no {ADAPTER}, so it is no adapter; give the checkpoint/ of a run with lora")
    check_files(folder)
    if name in loaded(model):
        raise ValueError(f"there is an adapter {name!r} on this model already; give another adapter_name, or delete it")
    if (kind := read_json(folder / ADAPTER).get("peft_type")) != "LORA":
        raise ValueError(f"adapter {folder} is of peft's type {shown(kind)}, but only LORA can be put on this model")
    _check_shapes(model, folder)
    before, conversions = active(model), getattr(model, "_weight_conversions", None)
    try:
        with friendly_errors(folder), quiet():
            model.load_adapter(str(folder), adapter_name=name)
            with safe_open(folder / WEIGHTS, "pt") as saved:
                saved_names = {key.removeprefix("base_model.model.") for key in saved.keys()}  # noqa: SIM118 - no dict
        names = set(model.get_adapter_state_dict(name))
        if saved_names != names:
            key = sorted(saved_names ^ names)[0]
            raise ValueError(f"adapter {folder} is another model's: {key} is {'missing' if key in names else 'extra'}")
    except BaseException:
        _take_away(model, [name], before)
        raise
    finally:  # loading sets the conversions of the adapter's names, which saving the merged model must not apply
        model._weight_conversions = conversions
    activate(model, {name: 1.0})


def activate(model: PreTrainedModel, scales: dict[str, float]) -> None:
    """Let these adapters alone have an effect, each times its scale."""
    for _, layer in _layers(model):
        layer.enable_adapters(enabled=True)
        layer.set_adapter([*scales], inference_mode=True)
        for name, scale in scales.items():
            layer.set_scale(name, scale)


def enable(model: PreTrainedModel, enabled: bool) -> None:
    """Take the effect of all adapters away, or bring it back."""
    for _, layer in _layers(model):
        layer.enable_adapters(enabled=enabled)


def delete(model: PreTrainedModel, names: list[str]) -> None:
    """Take adapters off a model; of the others, those that were active stay so, with their scales."""
    _take_away(model, names, [name for name in active(model) if name not in names])


def scale_of(model: PreTrainedModel, name: str) -> float:
    """What `activate` multiplied an adapter by last."""
    layer = next(layer for _, layer in _layers(model) if name in layer.scaling)
    root = layer.r[name] ** 0.5 if layer.use_rslora.get(name) else layer.r[name]
    return layer.scaling[name] * root / layer.lora_alpha[name]


def fuse(model: PreTrainedModel, scales: dict[str, float], safe: bool = False) -> None:
    """Add adapters to the weights under them, each times its scale, so that they cost nothing more.

    Args:
        safe: refuse, with a ValueError, those whose weights are not finite, before any is added.
    """
    if safe and (broken := [name for name in scales if not _is_finite(model, name)]):
        raise ValueError(f"adapter {broken[0]!r} has weights that are not finite; train it again")
    activate(model, scales)
    for _, layer in _layers(model):
        layer.merge(adapter_names=[*scales])


def _is_finite(model: PreTrainedModel, name: str) -> bool:
    matrices = [getattr(layer, kind) for _, layer in _layers(model) for kind in ("lora_A", "lora_B")]
    return all(held[name].weight.isfinite().all() for held in matrices if name in held)


def unfuse(model: PreTrainedModel) -> None:
    """Take them out of the weights again; what rounding took stays."""
    for _, layer in _layers(model):
        if layer.merged:
            layer.unmerge()


def fused(model: PreTrainedModel) -> bool:
    return any(layer.merged for _, layer in _layers(model))


def unload(model: PreTrainedModel) -> None:
    """Make the model an ordinary one, without adapters; what is fused stays in its weights."""
    for name, layer in list(_layers(model)):
        model.set_submodule(name, layer.get_base_layer())
    if loaded(model):
        del model.peft_config
    model._hf_peft_config_loaded = False


def _layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Names and layers of a model that hold adapters."""
    if not is_peft_available():
        return
    from peft.tuners.tuners_utils import BaseTunerLayer

    yield from ((name, part) for name, part in model.named_modules() if isinstance(part, BaseTunerLayer))


def _take_away(model: PreTrainedModel, names: list[str], keep_active: list[str]) -> None:
    """As if these adapters had never been loaded."""
    if not set(loaded(model)) - set(names):
        unload(model)
        return
    enabled = any(not layer.disable_adapters for _, layer in _layers(model))
    for name, layer in list(_layers(model)):
        layer.set_adapter(keep_active, inference_mode=True)
        for one in names:
            layer.delete_adapter(one)
        layer.enable_adapters(enabled=enabled)
        if not layer._all_available_adapter_names():
            model.set_submodule(name, layer.get_base_layer())
    for one in names:
        model.peft_config.pop(one, None)


def _check_shapes(model: nn.Module, folder: Path) -> None:
    """Raises ValueError for a matrix of an adapter that does not fit its layer."""
    linear = {name: part for name, part in model.named_modules() if hasattr(part, "in_features")}
    with friendly_errors(folder), safe_open(folder / WEIGHTS, "pt") as saved:
        shapes = {name: tuple(saved.get_slice(name).get_shape()) for name in saved.keys()}  # noqa: SIM118 - no dict
    for name, shape in shapes.items():
        layer, _, which = name.removeprefix("base_model.model.").rpartition(".lora_")
        if (there := linear.get(layer)) is None or len(shape) != 2 or not prod(shape):
            continue
        given, wanted = (shape[1], there.in_features) if which.startswith("A") else (shape[0], there.out_features)
        if given != wanted:
            way = "takes" if which.startswith("A") else "makes"
            raise ValueError(
                f"adapter {folder} is another model's: its {layer} {way} {given} values, this model's {wanted}"
            )
