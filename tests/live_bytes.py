"""Counts the bytes that tensors hold, without any that are needed: on torch's device "meta". Not a test itself."""

import weakref

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Inside, the bytes of all storages that operators made and that are still there, `now`, and their `peak`.

    What an operator of several steps holds within itself is not seen, and a storage counts whole, for all its views.
    """

    def __init__(self):
        super().__init__()
        self.now = self.peak = self.largest = 0
        self._known: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        given = {tensor.untyped_storage() for tensor in tree_leaves((args, kwargs or {})) if isinstance(tensor, Tensor)}
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage not in given and storage not in self._known:
                    self._count(storage)
        return made

    def storages_of(self, size: int) -> int:
        """How many storages of so many bytes are there."""
        return sum(count == size for count in self._known.values())

    def _count(self, storage: torch.UntypedStorage) -> None:
        count = storage.nbytes()
        self._known[storage] = count
        self.now += count
        self.peak, self.largest = max(self.peak, self.now), max(self.largest, count)
        weakref.finalize(storage, self._free, count)

    def _free(self, count: int) -> None:
        self.now -= count
