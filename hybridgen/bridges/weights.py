"""Weights on disk: the tensors of a folder by name, read one at a time, and written again in shards.

Safetensors or PyTorch's `.bin`, in one file or in shards with an index; names and shapes only, no model. A `.bin` file
is a pickle, and a pickle can run code: it is read with `weights_only=True` or not at all.
"""

import math
import pickle
import pickletools
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hybridgen.bridges.layouts import SHARD_SIZE
from hybridgen.core.files import read_json, write_json
from hybridgen.core.recognition import check_safetensors, refuse_impostor

INDEX = "model.safetensors.index.json"
# files of weights in the order of preference, as in transformers: pickles last
FILES = (
    "model.safetensors", "diffusion_pytorch_model.safetensors", INDEX, "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)  # fmt: skip


class StoredTensor(NamedTuple):
    """A tensor on disk; `read` brings it into memory."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def in_memory(tensor: Tensor) -> StoredTensor:
    """A tensor that is in memory already, as if it were on disk."""
    return StoredTensor(tuple(tensor.shape), tensor.dtype, lambda: tensor)


def open_weights(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of a folder.

    Raises:
        ValueError: there are none, a shard is missing, a file is cut off, or a pickle holds more than tensors.
    """
    tensors: dict[str, StoredTensor] = {}
    for file in _files(folder):
        for name, tensor in open_file(file).items():
            if name in tensors:
                raise ValueError(f"{folder} has {name} in two files, {file.name} and one before it; remove one")
            tensors[name] = tensor
    return tensors


def _files(folder: Path) -> list[Path]:
    file = next((folder / name for name in FILES if (folder / name).is_file()), None)
    if file is None:
        raise ValueError(f"{folder} has no weights: none of {', '.join(FILES)} is there")
    if file.suffix != ".json":
        return [file]
    shard_of_weight = read_json(file).get("weight_map")
    if not isinstance(shard_of_weight, dict) or not shard_of_weight:
        raise ValueError(f"{file} names no shards; it was changed, copy it again")
    shards = sorted(set(shard_of_weight.values()))
    if missing := [shard for shard in shards if not (folder / shard).is_file()]:
        raise ValueError(
            f"{folder} is missing {missing[0]}, one of the {len(shards)} shards that {file.name} names; copy it again"
        )
    return [folder / shard for shard in shards]


def open_file(file: Path) -> dict[str, StoredTensor]:
    """Every tensor of one file, of safetensors or of torch.save; of a training framework's, those of its `state_dict`.

    Raises:
        ValueError: it is cut off or another kind of file, or holds more than tensors.
    """
    refuse_impostor(file, ("zip archive",) if file.suffix != ".safetensors" else ())
    return _open_safetensors(file) if file.suffix == ".safetensors" else _open_pickle(file)


def _open_safetensors(file: Path) -> dict[str, StoredTensor]:
    check_safetensors(file)
    try:
        handle = safe_open(file, "pt")
    except SafetensorError as error:
        raise ValueError(f"{file} cannot be read ({error}); it was cut off or changed, copy it again") from error

    def entry(name: str) -> StoredTensor:
        header = handle.get_slice(name)
        dtype = _DTYPES.get(header.get_dtype())
        if dtype is None:
            raise ValueError(f"{file} has {name} as {header.get_dtype()}, a type that is not known here")
        return StoredTensor(tuple(header.get_shape()), dtype, lambda: handle.get_tensor(name))

    return {name: entry(name) for name in handle.keys()}  # noqa: SIM118  (a handle is no dict)


_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip


def _open_pickle(file: Path) -> dict[str, StoredTensor]:
    try:
        tensors = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except pickle.UnpicklingError as error:
        if not _is_pickle(file):
            raise ValueError(f"{file} is no file of torch.save; it was cut off or changed, copy it again") from error
        raise ValueError(
            f"{file} is a pickle that holds more than tensors, so it could run code and is not read; ask for "
            "safetensors instead"
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        raise ValueError(f"{file} cannot be read; it was cut off or changed, copy it again") from error
    except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise ValueError(f"{file} is no file of torch.save; it was cut off or changed, copy it again") from error
    if isinstance(tensors, dict) and isinstance(tensors.get("state_dict"), dict):
        tensors = tensors["state_dict"]
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise ValueError(f"{file} holds no table of tensors by name; save the model's state_dict, and nothing else")
    return {name: in_memory(tensor.detach()) for name, tensor in tensors.items()}


def _is_pickle(file: Path) -> bool:
    """Whether a file is a pickle from its first byte to its last instruction, or a zip archive that holds one."""
    if zipfile.is_zipfile(file):
        return True
    try:
        with open(file, "rb") as opened:
            return sum(1 for _ in pickletools.genops(opened)) > 0
    except (ValueError, EOFError, OSError):
        return False


def save_weights(folder: Path, tensors: dict[str, StoredTensor], max_shard_size: int | str = SHARD_SIZE) -> list[Path]:
    """Write tensors as `model.safetensors`, or as shards with an index where they are larger than a shard.

    The order of `tensors` decides what stands in which shard; no more than one shard is in memory at a time.
    """
    shapes = {name: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta") for name, tensor in tensors.items()}
    split = split_torch_state_dict_into_shards(
        shapes, filename_pattern="model{suffix}.safetensors", max_shard_size=max_shard_size
    )
    for shard, names in split.filename_to_tensors.items():
        loaded = {name: tensors[name].read() for name in names}
        save_file({name: _without_views(tensor) for name, tensor in loaded.items()}, folder / shard, {"format": "pt"})
    if split.is_sharded:
        parameters = sum(tensor.size for tensor in tensors.values())
        index = {"metadata": {"total_parameters": parameters, **split.metadata}, "weight_map": split.tensor_to_filename}
        write_json(folder / INDEX, index, indent=2, sort_keys=True)
    return [folder / shard for shard in split.filename_to_tensors]


def _without_views(tensor: Tensor) -> Tensor:
    """A clone of a tensor that is a part of a larger one: safetensors does not write views."""
    whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor.contiguous() if whole else tensor.clone(memory_format=torch.contiguous_format)


def common_dtype(tensors: Iterable[StoredTensor]) -> torch.dtype:
    """The dtype that most numbers have."""
    counts: dict[torch.dtype, int] = {}
    for tensor in tensors:
        counts[tensor.dtype] = counts.get(tensor.dtype, 0) + tensor.size
    return max(counts, key=counts.__getitem__, default=torch.float32)
