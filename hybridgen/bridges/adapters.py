"""Adapters: LoRA through peft. A few per cent of the weights learn, are saved alone, and are put back or merged in.

A folder of an adapter is peft's own (`adapter_config.json`, `adapter_model.safetensors`), so that peft opens it as
well; the folder of the model it belongs to is named inside. Where an adapter sits decides what it can change: one on a
path's own parts changes the other paths not by a bit, one on the backbone changes all of them, text too.
"""

from pathlib import Path

import torch
from torch import nn

from hybridgen.bridges.lora_config import PARTS, LoraConfig
from hybridgen.checkpoints.adapters import load, require_peft
from hybridgen.checkpoints.loading import adapter_base, is_adapter
from hybridgen.core.recognition import check_files, checkpoint_path
from hybridgen.modeling_hybridgen import HybridGenForConditionalGeneration
from hybridgen.pipeline_hybridgen import HybridGenPipeline, load_pipeline


def add_lora(model: HybridGenForConditionalGeneration, config: LoraConfig, seed: int = 0) -> None:
    """Put a new adapter on a model, and freeze everything else. Until the first step it changes no output.

    Raises:
        ValueError: peft is missing, or no linear layer is where the config says.
    """
    require_peft()
    import peft

    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.rank if config.alpha is None else config.alpha,
        lora_dropout=config.dropout,
        target_modules=target_modules(model, config),
    )
    model.requires_grad_(False)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model.add_adapter(settings)


def target_modules(model: nn.Module, config: LoraConfig) -> list[str]:
    """Names of the linear layers that a config means. Raises ValueError when a part has none."""
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    names = []
    for part in config.parts:
        there = [name for name in linear if f"{name}.".startswith(PARTS[part])]
        chosen = [name for name in there if not config.targets or name.rsplit(".", 1)[-1] in config.targets]
        if not chosen:
            known = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in there}))
            raise ValueError(
                f"lora finds no layer called {' or '.join(config.targets)} in {part!r}; there are: {known}"
                if there
                else f"lora.parts has {part!r}, but this model has no such part"
            )
        names += [name for name in chosen if name not in names]
    return names


def open_pipeline(folder: str | Path) -> HybridGenPipeline:
    """A pipeline from a checkpoint, or from the folder of an adapter: the pipeline it was trained on, with the adapter.

    Raises:
        ValueError: in one sentence, what the folder is or lacks.
    """
    folder = checkpoint_path(folder)
    if not is_adapter(folder):
        return load_pipeline(folder)
    check_files(folder)
    pipeline = load_adapter(load_pipeline(adapter_base(folder)), folder)
    pipeline.record_origin(folder)
    return pipeline


def load_adapter(pipeline: HybridGenPipeline, folder: str | Path) -> HybridGenPipeline:
    """Put a saved adapter on a pipeline's model; `pipeline.disable_lora()` takes its effect away again.

    Raises:
        ValueError: peft is missing, or it is another model's.
    """
    load(pipeline.model, folder)
    return pipeline


def merge(pipeline: HybridGenPipeline) -> HybridGenPipeline:
    """Add the adapter's updates to the weights under it; afterwards the model is an ordinary one."""
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    return pipeline
