"""A model sharded by FSDP2: what is gathered together, in which precision, and how it starts without ever being whole.

Groups: each transformer layer, the embedding, the head, and one of all that is left, the root's. Where the run is bf16,
layers, embedding and head are gathered in bf16, which is what autocast would multiply anyway; the root's group (the
timestep embedder, norms and connectors) stays fp32. What goes from group to group is fp32, as under autocast alone. The
rows that a process holds, gradients of a step and moments are fp32 always.

Start: the weights are those of the main process, who alone has made them (`makes_weights`); the others build the same
model on the meta device, where a parameter is a shape. Each tensor is then dealt out, one at a time.
"""

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard

from hybridgen.training.config.schema import ShardingConfig

FP32_ON_CPUS = (nn.LayerNorm, nn.GroupNorm)  # on a CPU they take no weights of another type than their input's


def makes_weights(accelerator: Accelerator) -> bool:
    """Whether this process makes the weights that training starts from, or only their shapes."""
    return accelerator.is_main_process or not accelerator.is_fsdp2


def shard(accelerator: Accelerator, model: nn.Module, settings: ShardingConfig) -> None:
    """Shard a model in place, over the processes or, with a hybrid mesh, over those of one node.

    1. The main process sets the weights aside; everywhere the parameters become shapes.
    2. The groups are sharded: DTensors on the meta device.
    3. Each weight goes to all, who keep their rows of it.
    """
    weights = dict(model.state_dict()) if accelerator.is_main_process else {}
    drop_weights(model)
    plugin, mesh = accelerator.state.fsdp_plugin, mesh_of(accelerator)
    common = {"mesh": mesh, "offload_policy": plugin.cpu_offload}
    groups = _groups(model)
    head = getattr(model, "get_output_embeddings", lambda: None)()
    for group in groups:
        policy = _policy(accelerator, group, settings)
        reshards = plugin.reshard_after_forward and not any(part is head for part in group)  # it comes first backward
        fully_shard(group, reshard_after_forward=reshards, mp_policy=policy, **common)
    fully_shard(model, mp_policy=MixedPrecisionPolicy(), **common)
    if head is not None:  # whole for all of the model's forward, which may use its weight without calling it
        model.register_forward_pre_hook(lambda *_: head.unshard())
    offload = isinstance(plugin.cpu_offload, CPUOffloadPolicy)
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, cpu_offload=offload)
    set_model_state_dict(model, weights, options=options)
    if hasattr(model, "tie_weights"):
        model.tie_weights()


def mesh_of(accelerator: Accelerator) -> DeviceMesh | None:
    """Two dimensions, replicas x shards, where the launcher's config has `parallelism_config`; None = all processes."""
    mesh = accelerator.torch_device_mesh
    return None if mesh is None else mesh[tuple(accelerator.parallelism_config.fsdp_dim_names)]


def drop_weights(model: nn.Module) -> None:
    """Leave the shapes of a model's parameters, tied ones tied. Buffers, which are small, stay."""
    empty: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, weight in module.named_parameters(recurse=False):
            if id(weight) not in empty:
                shape = torch.empty_like(weight, device="meta")
                empty[id(weight)] = nn.Parameter(shape, requires_grad=weight.requires_grad)
            setattr(module, name, empty[id(weight)])


def _groups(model: nn.Module) -> list[list[nn.Module]]:
    """All groups but the root's: layers, by the classes that the model's parts name as such, then embedding and head,
    together where they share their weight."""
    layers = set(getattr(model, "_no_split_modules", None) or ())
    groups = [[module] for module in model.modules() if type(module).__name__ in layers]
    embedding = getattr(model, "get_input_embeddings", lambda: None)()
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if embedding is None or head is None:
        return groups
    if embedding.weight is head.weight:
        return [*groups, [embedding, head]]
    return [*groups, [embedding], [head]]


def _policy(accelerator: Accelerator, group: list[nn.Module], settings: ShardingConfig) -> MixedPrecisionPolicy:
    """In which types a group's weights are gathered and its gradients reduced (None: as they are)."""
    parts = [part for module in group for part in module.modules()]
    fp32_here = accelerator.device.type == "cpu" and any(isinstance(part, FP32_ON_CPUS) for part in parts)
    if accelerator.mixed_precision == "no" or settings.param_dtype == "fp32" or fp32_here:
        return MixedPrecisionPolicy()
    return MixedPrecisionPolicy(
        param_dtype=torch.bfloat16,
        reduce_dtype=torch.float32 if settings.reduce_dtype == "fp32" else torch.bfloat16,
        output_dtype=torch.float32,
        cast_forward_inputs=False,  # the residual stream stays fp32, as under autocast
    )
