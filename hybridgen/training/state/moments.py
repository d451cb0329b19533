"""The optimizer's moments, read from a state by the names of their parameters.

A file of whole moments (`optimizer.bin`) numbers them, in the order of the optimizer that wrote it, whose names the
state lists; shards (`optimizer_0/`) are filed under names. Today's optimizer may have other groups, other rules or
other parameters: each parameter takes what was saved under its name, where it is what its rule needs, and the rest
begins anew. Settings (rates, decay, betas) are never read from a state: they follow the config.
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed import checkpoint as sharded_files
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.tensor import DTensor

from hybridgen.training.config import strict
from hybridgen.training.config.schema import GroupConfig, OptimizerConfig
from hybridgen.training.distributed.sharding import as_shard, local_part, names_in_order
from hybridgen.training.optim.optimization import group_of, parameter_groups

WHOLE, SHARDS = "optimizer.bin", "optimizer_0"  # accelerate's names
NEEDED = {True: {"momentum_buffer"}, False: {"step", "exp_avg", "exp_avg_sq"}}  # by Muon, by AdamW

Moments = dict[str, dict[str, Tensor]]  # by the parameter's name, then by the moment's


def names_of_older_state(model: nn.Module, saved: dict, now: list[GroupConfig], state: Path) -> list[str]:
    """The order of a state that does not list it: that of the optimizer of the config it was saved with.

    Args:
        model: with today's parts frozen.
        saved: that config.

    Raises:
        ValueError: other parts were frozen then, so today's model does not tell what its optimizer numbered.
    """
    optimizer = strict.build(OptimizerConfig, saved["optimizer"])
    groups = [strict.build(GroupConfig, group) for group in saved["groups"]]
    frozen = [{name for name, _ in model.named_parameters() if _is_frozen(name, each)} for each in (groups, now)]
    if frozen[0] != frozen[1]:
        changed = sorted(frozen[0] ^ frozen[1])
        raise ValueError(
            f"{state} numbers its moments, as states of older versions do, and groups freeze other parts now "
            f"({first_few(changed)}), so whose they are cannot be told; go on with the groups it was saved with until "
            "its next state, which has names, or set resume=never to start over"
        )
    return names_in_order(model, parameter_groups(model, optimizer, groups))


def _is_frozen(name: str, groups: list[GroupConfig]) -> bool:
    group = group_of(name, groups)
    return group is not None and group.frozen


def by_name(whole: dict, names: list[str], state: Path) -> Moments:
    """The content of a file of whole moments under the names of their parameters.

    Raises:
        ValueError: it is not of an optimizer of these parameters.
    """
    count = sum(len(group["params"]) for group in whole["param_groups"])
    if count != len(names):
        raise ValueError(
            f"{state / WHOLE} holds moments of {count} parameters, but the run that saved it trained {len(names)}; "
            "name another state, or set resume=never to start over"
        )
    return {names[number]: moments for number, moments in whole["state"].items()}


def read_whole(state: Path, names: list[str]) -> Moments:
    """The moments of a state that was not sharded."""
    return by_name(torch.load(state / WHOLE, map_location="cpu", weights_only=True), names, state)


def read_shards(state: Path, parameters: dict[str, Tensor]) -> Moments:
    """What a sharded state holds under these names in their shapes; sharded as the parameters are. All processes
    together."""
    saved = FileSystemReader(state / SHARDS).read_metadata().state_dict_metadata
    moments: Moments = {}
    for name, parameter in parameters.items():
        for key in NEEDED[True] | NEEDED[False]:
            entry = saved.get(f"optimizer.state.{name}.{key}")
            if entry is not None and (key == "step" or entry.size == parameter.shape):
                empty = torch.zeros(()) if key == "step" else torch.empty_like(parameter)
                moments.setdefault(name, {})[key] = empty.detach()
    sharded_files.load({"optimizer": {"state": moments}}, checkpoint_id=state / SHARDS)
    return moments


def fit(optimizer: torch.optim.Optimizer, names: list[str], moments: Moments, known: list[str]) -> tuple[dict, list]:
    """A state dict of today's optimizer: its own settings, and the moments that are what it needs.

    Args:
        names: of its parameters, in order.
        known: names of those of the optimizer that was saved. One that it knew but had no moments of (a part that no
            batch had reached) has none now.

    Returns:
        the state dict, and the names of the parameters that begin anew.
    """
    parameters = [(group["muon"], parameter) for group in optimizer.param_groups for parameter in group["params"]]
    fitting: dict[int, dict[str, Tensor]] = {}
    anew = []
    for number, (name, (muon, parameter)) in enumerate(zip(names, parameters, strict=True)):
        saved = moments.get(name, {})
        if set(saved) == NEEDED[muon] and all(value.shape in ((), parameter.shape) for value in saved.values()):
            fitting[number] = {key: _placed(key, value, parameter) for key, value in saved.items()}
        elif saved or name not in known:
            anew.append(name)
    return {"state": fitting, "param_groups": optimizer.state_dict()["param_groups"]}, anew


def _placed(key: str, value: Tensor, parameter: Tensor) -> Tensor:
    """A moment as its parameter is: whole, or a process' rows of it. A count of steps has no rows."""
    if key == "step" or isinstance(value, DTensor):
        return value
    return as_shard(local_part(value, parameter), parameter)


def first_few(names: list[str], most: int = 3) -> str:
    """Names for a sentence: the first few, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
