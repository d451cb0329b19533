"""Checkpoints on disk: whether a folder is a saved `HybridGenPipeline`, and its model with every weight accounted for.

    model_index.json   model/   processor/   scheduler/   vq_model/   vae/

The pipeline itself is put together in `pipeline_hybridgen`. transformers loads a folder whose weights lack a tensor,
with random numbers in its place and a warning; here that is an error which names the tensor.
"""

import json
import pickle
import shutil
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from torch import nn

from hybridgen.core.files import put_in_place, read_json, write_whole
from hybridgen.core.hub import INDEX
from hybridgen.modeling_hybridgen import HybridGenForConditionalGeneration

PIPELINE, ADAPTER = "HybridGenPipeline", "adapter_config.json"
WEIGHTS = ("model", "vae", "vq_model")  # components that have weights, not only settings


def check_checkpoint(folder: str | Path, components: tuple[str, ...] = ()) -> None:
    """Raises ValueError, in one sentence, when a folder is no saved pipeline or lacks a file.

    Args:
        components: names of those that the caller brings along, which need no files.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"checkpoint {folder} does not exist; give a folder that training or save_pretrained wrote")
    index = read_json(folder / INDEX, missing=", so it is not a checkpoint of hybridgen")
    if (kind := index.get("_class_name")) != PIPELINE:
        raise ValueError(
            f"checkpoint {folder} is a {kind or 'folder of another kind'}, not a {PIPELINE}: {INDEX} says so"
        )
    for name, entry in index.items():
        if isinstance(entry, list) and entry[0] is not None and name not in components:
            _check_component(folder / name, has_weights=name in WEIGHTS)
    if "model" not in components and not isinstance(index.get("model"), list):
        raise ValueError(f"checkpoint {folder} names no model in {INDEX}; save the pipeline again")


def _check_component(folder: Path, has_weights: bool) -> None:
    if not folder.is_dir() or not any(folder.iterdir()):
        raise ValueError(
            f"checkpoint {folder.parent} is missing its folder {folder.name}/, which {INDEX} names; copy it again"
        )
    if not has_weights:
        return
    read_json(folder / "config.json", missing=", so its weights cannot be placed")
    indices = sorted(folder.glob("*.safetensors.index.json"))
    shards = {shard for index in indices for shard in read_json(index)["weight_map"].values()}
    missing = sorted(shard for shard in shards if not (folder / shard).is_file())
    if missing:
        raise ValueError(
            f"checkpoint {folder.parent} is missing {folder.name}/{missing[0]}, a part of its weights; copy it again"
        )
    if not shards and not list(folder.glob("*.safetensors")):
        raise ValueError(
            f"checkpoint {folder.parent} is missing the weights {folder.name}/*.safetensors; copy it again"
        )


def is_adapter(folder: str | Path) -> bool:
    """Whether a folder holds an adapter, and not a whole pipeline."""
    return (Path(folder) / ADAPTER).is_file()


def forget_origin(folder: str | Path) -> None:
    """Take out of a saved pipeline's settings the folder that diffusers says it was loaded from."""
    for file in (Path(folder) / INDEX, *Path(folder).glob("*/config.json")):
        settings = read_json(file)
        if settings.pop("_name_or_path", None) is not None:  # else not a byte changes
            write_whole(file, json.dumps(settings, indent=2, sort_keys=True) + "\n")  # as diffusers writes it


@contextmanager
def new_folder(folder: str | Path) -> Iterator[Path]:
    """A folder to write into that takes its name once all is written; nothing is left of it when something fails.

    Raises:
        ValueError: something is there already.
    """
    if (folder := Path(folder)).exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is there already; choose a folder that is not, or empty it first")
    folder = folder.resolve()
    aside = folder.parent / f".{folder.name}.unfinished"
    new_parents = [parent for parent in folder.parents if not parent.exists()]  # innermost first
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
        put_in_place(aside, folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        for parent in new_parents:
            with suppress(OSError):  # another process has put something there
                parent.rmdir()
        raise


_UNREADABLE = (
    OSError, ValueError, RuntimeError, KeyError, IndexError, TypeError, struct.error, SafetensorError,
    StrictDataclassError,
)  # fmt: skip


class _CheckpointError(ValueError):
    """An error of ours about a folder (weights that are missing, or of other shapes): one sentence already."""


def load_model(folder: Path) -> HybridGenForConditionalGeneration:
    """A model of which the folder has every weight, in its shape.

    Raises:
        ValueError: a weight is missing or has another shape.
    """
    model, report = HybridGenForConditionalGeneration.from_pretrained(
        folder, output_loading_info=True, ignore_mismatched_sizes=True
    )
    if missing := sorted(report["missing_keys"]):
        raise _CheckpointError(
            f"checkpoint {folder.parent} lacks {len(missing)} weights of its model, such as {missing[0]}"
        )
    for name, saved, expected in sorted(report["mismatched_keys"]):
        raise _CheckpointError(
            f"checkpoint {folder.parent} has {name} of shape {tuple(saved)}, but config.json makes it {tuple(expected)}"
        )
    return model


def check_codec_weights(folder: Path, codec: nn.Module) -> None:
    """Raises ValueError when a codec that was loaded from a folder has weights that the folder lacks."""
    saved = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            saved.update(tensors.keys())
    if missing := sorted(set(codec.state_dict()) - saved):
        raise _CheckpointError(
            f"checkpoint {folder.parent} lacks {len(missing)} weights of its {folder.name}: {missing[0]}"
        )


@contextmanager
def friendly_errors(folder: Path) -> Iterator[None]:
    """Inside, whatever transformers and diffusers raise about a damaged folder becomes one ValueError that names it."""
    try:
        yield
    except _CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"checkpoint {folder} has weights in a pickle that holds more than tensors, so it could run code and is "
            "not read; ask for safetensors instead"
        ) from error
    except _UNREADABLE as error:
        raise ValueError(f"checkpoint {folder} cannot be loaded: {' '.join(str(error).split())}") from error
