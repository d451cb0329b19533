"""Which parameters learn, how fast, and when: groups by part of the model, AdamW or Muon beside it, the schedule.

The update rules stand in `muon`. The schedule is a pure function of progress, so a state holds nothing of it. Settings
follow the config, also after a resume: only the moments of a saved optimizer are used, so a run goes on with the
learning rate that its config says now.
"""

import math
import re

import torch
from torch import nn

from hybridgen.paths.convnext import GlobalResponseNorm
from hybridgen.training.config.schema import GroupConfig, OptimizerConfig, ScheduleConfig
from hybridgen.training.optim.muon import MuonAdamW


def freeze(model: nn.Module, groups: list[GroupConfig]) -> None:
    """Freeze the parameters of frozen groups; all others stay as the model has them.

    Raises:
        ValueError: a group matches no parameter, or nothing is left to train.
    """
    names = [name for name, _ in model.named_parameters()]
    for number, group in enumerate(groups):
        if not any(re.match(group.match, name) for name in names):
            parts = sorted({".".join(name.split(".")[:2]) for name in names})
            raise ValueError(
                f"groups.{number}.match {group.match!r} matches no parameter; the parts of this model are: "
                f"{', '.join(parts)}"
            )
    for name, parameter in model.named_parameters():
        group = group_of(name, groups)
        if group is not None and group.frozen:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("every parameter is frozen; leave a part of the model to train")


def group_of(name: str, groups: list[GroupConfig]) -> GroupConfig | None:
    """The first group that matches a parameter's name."""
    return next((group for group in groups if re.match(group.match, name)), None)


def parameter_groups(model: nn.Module, config: OptimizerConfig, groups: list[GroupConfig]) -> list[dict]:
    """The trainable parameters, those with equal settings together, as a torch optimizer takes them.

    `base_lr` is the rate before the schedule. Biases, norms and embeddings do not decay, unless `decay_all` says so.
    """
    kept = nn.Embedding, GlobalResponseNorm  # what has more than one axis, and is no matrix
    tables = {id(each) for part in model.modules() if isinstance(part, kept) for each in part.parameters(recurse=False)}
    by_settings: dict[tuple, dict] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        group = group_of(name, groups)
        muon = config.name == "muon" and is_hidden_matrix(name, parameter)
        lr = config.muon_lr if muon and config.muon_lr is not None else config.lr
        decay = config.muon_weight_decay if muon and config.muon_weight_decay is not None else config.weight_decay
        if group is not None:
            lr, decay = lr * group.lr_scale, decay if group.weight_decay is None else group.weight_decay
        if not config.decay_all and (parameter.ndim < 2 or id(parameter) in tables):
            decay = 0.0
        if group is not None and group.rows != "all":
            decay = 0.0  # it would move the rows that are held
        settings = {"muon": muon, "base_lr": lr, "weight_decay": decay}
        alike = by_settings.setdefault(tuple(settings.values()), {**settings, "lr": lr, "params": []})
        alike["params"].append(parameter)
    return list(by_settings.values())


def is_hidden_matrix(name: str, parameter: torch.Tensor) -> bool:
    """Whether Muon can train this parameter: a matrix inside a transformer stack (`layers.N`), no embedding or head."""
    return parameter.ndim == 2 and re.search(r"\.layers\.\d+\.", name) is not None


def build_optimizer(model: nn.Module, config: OptimizerConfig, groups: list[GroupConfig]) -> MuonAdamW:
    """One optimizer for all trainable parameters.

    Raises:
        ValueError: the config says Muon, but there is no trainable matrix inside a stack.
    """
    params = parameter_groups(model, config, groups)
    if config.name == "muon" and not any(group["muon"] for group in params):
        raise ValueError(
            "optimizer.name is 'muon', but no trainable matrix stands inside a transformer stack; use 'adamw'"
        )
    return MuonAdamW(
        params,
        betas=tuple(config.betas),
        eps=config.eps,
        momentum=config.muon_momentum,
        steps=config.muon_steps,
        scale=config.muon_scale,
    )


def lr_factor(config: ScheduleConfig, step: int, progress: float) -> float:
    """What the learning rates are multiplied by in step number `step` (from 0), `progress` of the run done (0 to 1).

    The decay begins where the warmup ends, so nothing jumps there: as much of the run went to the warmup as
    `warmup_steps` take at the pace so far, which is exact where progress counts steps. States of runs
    whose schedule still jumped after its warmup (it decayed from step 0 on) go on by this one, from a slightly higher
    rate.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.name == "constant":
        return 1.0
    warmup = progress * config.warmup_steps / step if step else 0.0  # share of the run
    rest = 1 - warmup
    if rest <= 0:
        return config.min_ratio
    if config.name == "wsd":
        left = min(1.0, (1 - progress) / min(config.decay_fraction, rest))
        return config.min_ratio + (1 - config.min_ratio) * left
    done = (progress - warmup) / rest  # of the decay
    if config.name == "cosine":
        return config.min_ratio + (1 - config.min_ratio) * (1 + math.cos(math.pi * done)) / 2
    return config.min_ratio**done
