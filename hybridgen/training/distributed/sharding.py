"""The model as accelerate distributes it among processes, sharded or not, and the way back to a whole one.

What sharding cannot do is refused in `processes`. With FSDP2 a parameter is a DTensor, of which this process holds some
rows. Elementwise arithmetic works on the `local` rows; anything else needs the whole, which all processes have to
gather together: one that does not join leaves the others waiting for ever.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator
from types import MethodType

import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import convert_outputs_to_fp32
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from hybridgen.training.config.schema import ShardingConfig
from hybridgen.training.distributed.fsdp import drop_weights, mesh_of, shard


class DistributedModel:
    """The model and optimizer as accelerate prepares them, and the way back to a model that one process can use.

    Args:
        model: as the stage made it; where FSDP2 shards it, only the main process' weights count (`fsdp.makes_weights`).
        make_optimizer: of its parameters, whose names in the optimizer's order are `parameter_names`. Called when they
            are sharded, so that no process needs whole ones.
        settings: of FSDP2.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        make_optimizer: Callable[[nn.Module], torch.optim.Optimizer],
        settings: ShardingConfig,
    ):
        self._accelerator, self._empty_model = accelerator, None
        deepspeed = accelerator.distributed_type == DistributedType.DEEPSPEED
        self.sharded = accelerator.is_fsdp2 or (deepspeed and accelerator.state.deepspeed_plugin.zero_stage == 3)
        self._hybrid = accelerator.is_fsdp2 and (mesh := mesh_of(accelerator)) is not None and mesh.ndim == 2
        if self.sharded and accelerator.is_main_process:
            self._empty_model = _without_weights(model)
        if self.sharded:
            for module in model.modules():
                if hasattr(module, "run_absent_modalities"):
                    module.run_absent_modalities = True
        if accelerator.is_fsdp2:
            _autocast(accelerator, model)
            shard(accelerator, model, settings)
        optimizer = make_optimizer(model)
        self.parameter_names = names_in_order(model, optimizer.param_groups)
        if accelerator.is_fsdp2:  # not by `prepare`, which shards by itself and then looks for the optimizer's weights
            self.model, self.optimizer = model, accelerator.prepare_optimizer(optimizer)
        else:
            self.model, self.optimizer = accelerator.prepare(model, optimizer)

    @contextlib.contextmanager
    def accumulating(self, last: bool) -> Iterator[None]:
        """Around forward and backward of a micro-batch: `last` of the step, or another.

        DDP sends gradients with the last one. FSDP2 scatters them with each, or it would hold them whole meanwhile
        (`sharding.gradients`); between nodes they go with the last.
        """
        if self._hybrid:
            self.model.set_requires_all_reduce(last)
        with self._accelerator.accumulate(self.model):
            yield

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
    weights = {id(weight): weight for weight in model.parameters()}
    copied = copy.deepcopy(model, memo=dict(weights))
    drop_weights(copied)
    return copied


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
