"""A training step that computes nothing: shapes run through the real code, and the bytes that live are counted.

Tensors of numbers with a fraction have a shape and no values (torch's fake tensors); ids, masks and other integers are
real, so that what code decides by them (how many tokens have a label, where images stand) is decided as in a run.
Every storage is counted from when an operation makes it until the last reference to it is gone, as an allocator would,
without an allocator's rounding.
"""

import contextlib
import weakref
from collections import Counter
from collections.abc import Iterator

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only
from transformers.models.dinov3_vit import modeling_dinov3_vit

ACTIVATIONS = "activations"
# indexing by a mask asks how many are true, which is known of real masks only
_BY_MASK = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default, torch.ops.aten.index_put_.default,
            torch.ops.aten._index_put_impl_.default)  # fmt: skip
_GROUPED = torch.ops.aten._grouped_mm.default  # products of experts, whose shapes torch knows in bf16 alone
_READS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.item.default)


@contextlib.contextmanager
def nothing_remembered() -> Iterator[None]:
    """Inside, what transformers' DINOv3 remembers from call to call (coordinates of patches) is made anew: it would
    remember a tensor without values, and compute with that ever after."""
    name = "get_patches_center_coordinates"
    remembering = getattr(modeling_dinov3_vit, name)
    setattr(modeling_dinov3_vit, name, getattr(remembering, "__wrapped__", remembering))
    try:
        yield
    finally:
        setattr(modeling_dinov3_vit, name, remembering)


class ByteCount(TorchDispatchMode):
    """Inside, tensors with a fraction are fake, and living bytes are counted by purpose (`purpose`).

    Attributes:
        living: bytes now, by purpose.
        peak: the most that lived at once, and `at_peak`: what they were for.
    """

    def __init__(self):
        super().__init__()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.living: Counter[str] = Counter()
        self.total, self.peak, self.at_peak = 0, 0, Counter()
        self._purposes = [ACTIVATIONS]
        self._known: dict[int, tuple[weakref.ref, int, str]] = {}  # by the storage's id

    @contextlib.contextmanager
    def purpose(self, name: str) -> Iterator[None]:
        """Bytes that are made inside are for this."""
        self._purposes.append(name)
        try:
            yield
        finally:
            self._purposes.pop()

    def begin_peak(self) -> None:
        """Forget the peak so far: it is now what lives now."""
        self.peak, self.at_peak = self.total, Counter(self.living)

    def assign(self, tensor: Tensor, name: str) -> None:
        """Count a tensor's storage for another purpose than it was made for."""
        storage = tensor.untyped_storage()
        self._count(storage)
        reference, size, before = self._known[id(storage)]
        self.living[before] -= size
        self.living[name] += size
        self._known[id(storage)] = reference, size, name

    def without_values(self, tensor: Tensor) -> Tensor:
        """A tensor of the same shape and dtype that has no values."""
        fake = self._as_fake(tensor)
        self._count(fake.untyped_storage())
        return fake

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, Tensor)]
        fakes = [each for each in given if isinstance(each, FakeTensor)]
        if not fakes and (given or not _makes_fractions(function, args, kwargs)):
            result = function(*args, **kwargs)
        elif function is _GROUPED:
            result = self._grouped(*args, **kwargs)
        elif function in _READS:
            return False if fakes[0].dtype == torch.bool else 1.0  # False ends `while invalid.any()`
        else:
            if function in _BY_MASK:
                args = (args[0], [each for index in args[1] for each in _places(index)], *args[2:])
            args, kwargs = tree_map_only(Tensor, self._as_fake, (args, kwargs))
            with self.fake:
                result = function(*args, **kwargs)
            if any(each.is_floating_point() for each in given):
                result = tree_map_only(FakeTensor, _decided, result)
        for each in tree_flatten(result)[0]:
            if isinstance(each, Tensor):
                self._count(each.untyped_storage())
        return result

    def _grouped(self, a: Tensor, b: Tensor, ends: Tensor | None = None, bias=None, dtype=None) -> Tensor:
        """One product for each group: of the rows of a, (M, K) x (E, K, N) -> (M, N); of what is summed over,
        (K, M) x (M, N) -> (E, K, N). Which group a row is in changes no shape."""
        groups = [len(ends)] if a.ndim == b.ndim == 2 else a.shape[:1] if a.ndim == b.ndim == 3 else []
        with self.fake:
            return torch.empty(*groups, a.shape[-2], b.shape[-1], dtype=dtype or a.dtype)

    def _as_fake(self, tensor: Tensor) -> Tensor:
        if isinstance(tensor, FakeTensor):
            return tensor
        with self.fake:
            return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype)

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = id(storage)
        if key in self._known:
            return
        size, purpose = storage.nbytes(), self._purposes[-1]

        def freed(_reference, key=key):
            _, size, purpose = self._known.pop(key)
            self.living[purpose] -= size
            self.total -= size

        self._known[key] = weakref.ref(storage, freed), size, purpose
        self.living[purpose] += size
        self.total += size
        if self.total > self.peak:
            self.peak, self.at_peak = self.total, Counter(self.living)


def _makes_fractions(function, args: tuple, kwargs: dict) -> bool:
    """Whether a function without tensors among its arguments makes a tensor of numbers with a fraction."""
    dtype = kwargs.get("dtype")
    if dtype is not None:
        return dtype.is_floating_point
    name = function.overloadpacket.__name__
    if name in ("arange", "full", "scalar_tensor", "randint", "randperm", "tensor"):
        flat = [each for each in tree_flatten(args)[0] if isinstance(each, int | float)]
        return name in ("arange", "full", "scalar_tensor") and any(isinstance(each, float) for each in flat)
    return True


def _decided(tensor: Tensor) -> Tensor:
    """What was decided by numbers that are not there (a code, an expert): the first of each."""
    return tensor if tensor.is_floating_point() else torch.zeros(tensor.shape, dtype=tensor.dtype)


def _places(index: Tensor | None) -> list[Tensor | None]:
    """An index as whole numbers: of a mask, the places where it is true, for each of its axes."""
    if index is None or index.dtype not in (torch.bool, torch.uint8) or isinstance(index, FakeTensor):
        return [index]
    return list(index.nonzero(as_tuple=True))
