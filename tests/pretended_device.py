"""A pretended accelerator, for tests of devices on a machine that has none. Not a test itself.

Its tensors say that they are on the device "meta", compute on the CPU, and refuse to meet plain CPU tensors where CUDA
would. `host_reads` counts what makes a program wait for its device: values that are read from it, and operators whose
output has a size that the device alone knows. What is not pretended: streams, other dtypes' kernels, and that device
tensors can only be printed after a copy.
"""

import contextlib
import traceback
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("meta")
aten = torch.ops.aten
COPIES = {aten.copy_.default, aten._to_copy.default, aten._foreach_copy_.default}  # between any two devices
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}
READS = {  # which wait for the device, or make a tensor of a size that is in its memory
    aten._local_scalar_dense.default, aten.is_nonzero.default, aten.equal.default, aten.nonzero.default,
    aten.masked_select.default, aten._unique2.default, aten.unique_consecutive.default, aten.unique_dim.default,
    aten.repeat_interleave.Tensor, aten.bincount.default,
}  # fmt: skip

_counts: list[list[str]] = []  # of the `host_reads` that are open


@contextlib.contextmanager
def host_reads() -> Iterator[list[str]]:
    """Inside, every read of the pretended device, as operator and place in this package."""
    reads: list[str] = []
    _counts.append(reads)
    try:
        yield reads
    finally:
        _counts.remove(reads)


def _note_read(function) -> None:
    if _counts:
        ours = [frame for frame in traceback.extract_stack() if "/hybridgen/" in frame.filename]
        where = f"{ours[-1].filename.split('/hybridgen/')[-1]}:{ours[-1].lineno}" if ours else "a test or a library"
        for reads in _counts:
            reads.append(f"{function} in {where}")


def _is_read(function, args: tuple, target: torch.device | None) -> bool:
    """Of an operator that a pretended tensor takes part in."""
    if function in READS:
        return True
    if function is aten._to_copy.default:
        return target is not None and target.type != DEVICE.type
    if function is aten.copy_.default:
        return not isinstance(args[0], PretendedTensor)
    if function in INDEXING:  # a mask is made into indices first, but not where one value is written
        written = args[2].numel() if len(args) > 2 else 0
        return written != 1 and any(isinstance(i, PretendedTensor) and i.dtype == torch.bool for i in args[1])
    return False


class PretendedTensor(torch.Tensor):
    """A tensor on the pretended device; `on_cpu` holds its values."""

    @staticmethod
    def __new__(cls, on_cpu: Tensor):
        layout = {"strides": on_cpu.stride(), "storage_offset": on_cpu.storage_offset(), "dtype": on_cpu.dtype}
        return torch.Tensor._make_wrapper_subclass(cls, on_cpu.size(), device=DEVICE, requires_grad=False, **layout)

    def __init__(self, on_cpu: Tensor):
        self.on_cpu = on_cpu

    def __repr__(self) -> str:
        return f"PretendedTensor({self.on_cpu})"

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return _run(function, args, kwargs or {})

    def tolist(self):
        _note_read("tolist")
        return self.on_cpu.tolist()

    def __deepcopy__(self, memo):
        if id(self) not in memo:
            copied = PretendedTensor(self.on_cpu.detach().clone())
            if isinstance(self, nn.Parameter):
                copied = nn.Parameter(copied, self.requires_grad)
            memo[id(self)] = copied
        return memo[id(self)]

    def numpy(self, *args, **kwargs):
        raise TypeError("a tensor of the pretended device has no numpy array; use Tensor.cpu() first")


class _Pretending(TorchDispatchMode):
    """Args: float64: whether the device has the type. Apple's has not."""

    def __init__(self, float64: bool):
        super().__init__()
        self.float64 = float64

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = _run(function, args, kwargs or {})
        for tensor in tree_leaves(made) if not self.float64 else ():
            if isinstance(tensor, PretendedTensor) and tensor.dtype == torch.float64:
                raise TypeError(f"{function}: the pretended device has no float64")
        return made


def _run(function, args: tuple, kwargs: dict):
    """One operator: refused if devices meet, else computed on the CPU, its outputs where CUDA's would be."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    pretended = [tensor for tensor in tensors if isinstance(tensor, PretendedTensor)]
    plain = [tensor for tensor in tensors if not isinstance(tensor, PretendedTensor)]
    target = None if kwargs.get("device") is None else torch.device(kwargs["device"])
    if pretended and function not in COPIES:
        _check_devices(function, args, plain)
    if pretended and _is_read(function, args, target):
        _note_read(function)
    if target is not None and target.type == DEVICE.type and kwargs.get("generator") is not None:
        raise RuntimeError(f"{function}: a CPU generator cannot fill a tensor on the pretended device")
    if target is not None:
        on_device = target.type == DEVICE.type  # also where it has a number
    else:
        on_device = isinstance(args[0], PretendedTensor) if function in COPIES else bool(pretended)
    values, options = tree_map(lambda x: x.on_cpu if isinstance(x, PretendedTensor) else x, (args, kwargs))
    made = function(*values, **(options if target is None else {**options, "device": "cpu"}))
    if not on_device:
        return made
    known = {id(tensor.on_cpu): tensor for tensor in pretended}  # in-place operators return the tensor itself

    def on_pretended_device(value):
        if not isinstance(value, Tensor):
            return value
        return known[id(value)] if id(value) in known else PretendedTensor(value)

    return tree_map(on_pretended_device, made)


def _check_devices(function, args: tuple, plain: list[Tensor]) -> None:
    """
    Raises:
        RuntimeError: a plain tensor meets a pretended one. Scalars may, and CPU indices of a device's tensor.
    """
    if function in INDEXING and isinstance(args[0], PretendedTensor):
        return
    refused = plain if function in INDEXING else [tensor for tensor in plain if tensor.ndim > 0]
    if refused:
        shapes = [tuple(tensor.shape) for tensor in refused]
        raise RuntimeError(f"{function}: tensors on the CPU, of shapes {shapes}, beside the pretended device's")


@contextlib.contextmanager
def pretended_device(float64: bool = True) -> Iterator[None]:
    """Inside, `to("meta")`, `device="meta"` and `put_on` mean the pretended device.

    Args:
        float64: whether it has that type.
    """
    tensor, new_tensor, autocast = torch.tensor, torch.Tensor.new_tensor, torch.autocast

    def pretended_tensor(*args, device=None, **kwargs):
        made = tensor(*args, **kwargs)
        return made if device is None else made.to(device)

    def pretended_new_tensor(self, data, dtype=None, device=None):
        return tensor(data, dtype=dtype or self.dtype).to(device or self.device)

    class PretendedAutocast(autocast):
        def __init__(self, device_type: str, *args, **kwargs):
            super().__init__("cpu" if device_type == DEVICE.type else device_type, *args, **kwargs)

    torch.tensor, torch.Tensor.new_tensor, torch.autocast = pretended_tensor, pretended_new_tensor, PretendedAutocast
    was = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills unwritten memory with NaN: reading it fails always
    try:
        with _Pretending(float64):
            yield
    finally:
        torch.tensor, torch.Tensor.new_tensor, torch.autocast = tensor, new_tensor, autocast
        torch.use_deterministic_algorithms(was[0], warn_only=was[1])


def put_on(module: nn.Module) -> nn.Module:
    """A module's parameters and buffers on the pretended device, in place, as `module.to("cuda")` would."""
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            part._parameters[name] = nn.Parameter(PretendedTensor(parameter.detach()), parameter.requires_grad)
        for name, buffer in part.named_buffers(recurse=False):
            part._buffers[name] = PretendedTensor(buffer)
    return module
