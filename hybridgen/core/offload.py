"""Offloading: components wait on the CPU and are on an accelerator only while they run, by accelerate's hooks.

The hooks hang on `forward`, as diffusers hangs them. Our loops run parts of a component (its layers, a head, a codec's
decoder) and not the whole's forward, so they say themselves that they need it: `bring` before parts are run, `at_hand`
around what reads weights without running their layer. Both do nothing where nothing is offloaded.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import cpu_offload
from accelerate.hooks import (
    AlignDevicesHook,
    CpuOffload,
    UserCpuOffloadHook,
    add_hook_to_module,
    remove_hook_from_module,
)
from accelerate.utils.memory import clear_device_cache
from torch import nn

# of transformers and torch: modules that read weights of layers inside of them without running these
_READ_THEIR_LAYERS = (
    "MultiheadAttention",
    "Siglip2VisionEmbeddings",
    "SiglipVisionEmbeddings",
    "JanusVisionEmbeddings",
)


class TakesTurns(CpuOffload):
    """The hook of a whole component: when it is needed, all the others leave the device first.

    diffusers' own hooks know the one order in which its pipelines run; here a picture may be encoded, drawn, decoded
    and read again in one call.
    """

    def __init__(self, device: torch.device, components: list[nn.Module]):
        super().__init__(device)
        self.components = components

    def pre_forward(self, module: nn.Module, *args, **kwargs):
        for other in self.components:
            if other is not module and next(other.parameters()).device.type != "cpu":
                other.to("cpu")
                clear_device_cache()
        return super().pre_forward(module, *args, **kwargs)


def take_turns(components: list[nn.Module], device: torch.device) -> list[UserCpuOffloadHook]:
    """Let components take turns on a device, in place of hooks that they have; all are on the CPU afterwards."""
    hooks = []
    for component in components:
        remove_hook_from_module(component, recurse=True)
        hooks.append(UserCpuOffloadHook(component, TakesTurns(device, components)))
        add_hook_to_module(component, hooks[-1].hook)
    return hooks


def offload_layers(component: nn.Module, device: torch.device) -> None:
    """Let each layer come to a device for its forward alone, in place of hooks that the component has. Modules that
    read the weights of layers inside of them get all of these at once."""
    cpu_offload(component, device, offload_buffers=len(component._parameters) > 0)
    for module in component.modules():
        if type(module).__name__ in _READ_THEIR_LAYERS:
            remove_hook_from_module(module, recurse=True)
            add_hook_to_module(module, AlignDevicesHook(device, offload=True, place_submodules=True))


def offloaded_by(component: nn.Module) -> str | None:
    """How a component is offloaded, as the verb that did it; None = it is not."""
    hook = component.__dict__.get("_hf_hook")
    if hook is None:
        return None
    return "enable_model_cpu_offload" if isinstance(hook, CpuOffload) else "enable_sequential_cpu_offload"


def device_of(component: nn.Module) -> torch.device:
    """Where a component computes: where its weights are, or where offloading brings them."""
    if "_hf_hook" in component.__dict__:
        for module in component.modules():
            device = getattr(module.__dict__.get("_hf_hook"), "execution_device", None)
            if device is not None:
                return torch.device(device)
    return component.device


def bring(component: nn.Module) -> None:
    """Before parts of a component are run: if it takes turns, it comes to its device."""
    hook = component.__dict__.get("_hf_hook")
    if isinstance(hook, TakesTurns):
        hook.pre_forward(component)


@contextmanager
def at_hand(module: nn.Module) -> Iterator[None]:
    """Inside, weights of a part may be read without its forward, also where it is offloaded layer by layer."""
    hooked = [part for part in module.modules() if isinstance(part.__dict__.get("_hf_hook"), AlignDevicesHook)]
    for part in hooked:
        part._hf_hook.pre_forward(part)
    try:
        yield
    finally:
        for part in hooked:
            part._hf_hook.post_forward(part, None)
