"""The model as accelerate distributes it among processes, sharded or not, and the way back to a whole one.

What sharding cannot do is refused in `processes`. With FSDP2 a parameter is a DTensor, of which this process holds some
rows. Elementwise arithmetic works on the `local` rows; anything else needs the whole, which all processes have to
gather together: one that does not join leaves the others waiting for ever.
"""

import contextlib
import copy
from collections.abc import Iterator
from types import MethodType

import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import convert_outputs_to_fp32
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor


class DistributedModel:
    """The model and optimizer as accelerate prepares them, and the way back to a model that one process can use.

    Args:
        model: as the stage made it.
        optimizer: of its parameters, whose names in the optimizer's order are `parameter_names`.
    """

    def __init__(self, accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer):
        self._accelerator, self._empty_model = accelerator, None
        self.parameter_names = names_in_order(model, optimizer.param_groups)
        deepspeed = accelerator.distributed_type == DistributedType.DEEPSPEED
        self.sharded = accelerator.is_fsdp2 or (deepspeed and accelerator.state.deepspeed_plugin.zero_stage == 3)
        if self.sharded and accelerator.is_main_process:
            self._empty_model = _without_weights(model)
        if self.sharded:
            for module in model.modules():
                if hasattr(module, "run_absent_modalities"):
                    module.run_absent_modalities = True
        if accelerator.is_fsdp2:
            _choose_layers(accelerator, model)
            _autocast(accelerator, model)
        self.model, self.optimizer = accelerator.prepare(model, optimizer)

    def gather(self) -> nn.Module | None:
        """The model with all its weights on the main process, None on the others; called by all together."""
        if not self.sharded:
            return self._accelerator.unwrap_model(self.model) if self._accelerator.is_main_process else None
        if self._accelerator.is_fsdp2:
            options = StateDictOptions(full_state_dict=True, cpu_offload=True)
            weights = get_model_state_dict(self.model, options=options)
        else:
            weights = self._accelerator.get_state_dict(self.model)
        if self._empty_model is None:
            return None
        model = copy.deepcopy(self._empty_model)
        model.load_state_dict(weights, assign=True)
        if hasattr(model, "tie_weights"):
            model.tie_weights()
        return model.to(self._accelerator.device).eval()

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Eval mode inside; `resharded` at the end."""
        self.model.eval()
        try:
            with resharded(self.model):
                yield
        finally:
            self.model.train()


@contextlib.contextmanager
def resharded(model: nn.Module) -> Iterator[None]:
    """At the end, no FSDP module holds its gathered weights any more.

    A forward without a backward leaves them gathered, in the modules that FSDP reshards in the backward pass: the root
    and the head. Until they are resharded, `parameters()` are not the optimizer's, and the next forward uses the old
    weights, though the shards have changed. So this stands around every such forward: evaluation, probes.
    """
    try:
        yield
    finally:
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()


def names_in_order(model: nn.Module, groups: list[dict]) -> list[str]:
    """The names of an optimizer's parameters, in the order in which its groups number them."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(parameter)] for group in groups for parameter in group["params"]]


def _without_weights(model: nn.Module) -> nn.Module:
    """A copy whose parameters are on the meta device."""
    empty = {
        id(weight): nn.Parameter(torch.empty_like(weight, device="meta"), requires_grad=weight.requires_grad)
        for weight in model.parameters()
    }
    return copy.deepcopy(model, memo=empty)


def _choose_layers(accelerator: Accelerator, model: nn.Module) -> None:
    """Shard by transformer layer: the classes that the model's parts name as such, as far as they occur in it."""
    present = {type(module).__name__ for module in model.modules()}
    accelerator.state.fsdp_plugin.transformer_cls_names_to_wrap = sorted(present & set(model._no_split_modules or ()))


def _autocast(accelerator: Accelerator, model: nn.Module) -> None:
    """Wrap the forward in autocast as accelerate does, except where FSDP2 shards."""
    if accelerator.mixed_precision != "no":
        forward = accelerator.autocast()(model.forward.__func__)
        model.forward = MethodType(convert_outputs_to_fp32(forward), model)


def local(tensor: Tensor) -> Tensor:
    """The rows of a tensor that this process holds: all of them, if it is not sharded. Shares its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full(tensor: Tensor) -> Tensor:
    """All of a tensor; called by all ranks together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local_part(whole: Tensor, like: Tensor) -> Tensor:
    """The rows of a tensor, whole in every process, that belong to this process' rows of `like`."""
    if not isinstance(like, DTensor):
        return whole
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None).to_local()


def as_shard(rows: Tensor, like: Tensor) -> Tensor:
    """The inverse of `local`: this process' rows as part of a tensor that is sharded like `like`."""
    if not isinstance(like, DTensor):
        return rows
    mesh, placements, shape, stride = like.device_mesh, like.placements, like.shape, like.stride()
    return DTensor.from_local(rows.to(mesh.device_type), mesh, placements, run_check=False, shape=shape, stride=stride)
