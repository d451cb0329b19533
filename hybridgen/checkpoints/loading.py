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

import diffusers
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from torch import nn

from hybridgen.configuration_hybridgen import HybridGenConfig, check_memory
from hybridgen.core.files import put_in_place, read_json, write_whole
from hybridgen.core.hub import INDEX
from hybridgen.core.recognition import (
    ADAPTER,
    check_absent,
    check_files,
    checkpoint_path,
    require_checkpoint,
    user_path,
)
from hybridgen.core.values import one_line, shorten
from hybridgen.modeling_hybridgen import HybridGenForConditionalGeneration

PIPELINE = "HybridGenPipeline"
COMPONENTS = ("model", "processor", "scheduler", "vae", "vq_model")
WEIGHTS = ("model", "vae", "vq_model")  # components that have weights, not only settings
_PROCESSOR = (  # files of a processor, each under any of its names
    ("processor_config.json", "preprocessor_config.json"),
    ("tokenizer_config.json",),
    ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt"),
)


def check_checkpoint(folder: str | Path, components: tuple[str, ...] = ()) -> None:
    """Raises ValueError, in one sentence, when a folder is no saved pipeline or lacks a file.

    Args:
        components: names of those that the caller brings along, which need no files.
    """
    folder = checkpoint_path(folder)
    require_checkpoint(folder)
    is_adapter = ", so it is not a checkpoint of hybridgen: it is an adapter; make one of it with hybridgen merge first"
    index = read_json(folder / INDEX, missing=is_adapter)
    if (kind := index.get("_class_name")) != PIPELINE:
        raise ValueError(
            f"checkpoint {folder} is a {kind or 'folder of another kind'}, not a {PIPELINE}: {INDEX} says so"
        )
    parts = {name: index[name] for name in COMPONENTS if index.get(name) not in (None, [None, None])}
    for name, entry in parts.items():
        if not (isinstance(entry, list) and len(entry) == 2 and all(isinstance(word, str) for word in entry)):
            raise ValueError(
                f"{folder / INDEX} has {entry!r} for {name}, not the names of a library and a class; copy it again"
            )
        if name not in components:
            _check_component(folder / name, has_weights=name in WEIGHTS)
    if "model" not in components and "model" not in parts:
        raise ValueError(f"checkpoint {folder} names no model in {INDEX}; save the pipeline again")


def _check_component(folder: Path, has_weights: bool) -> None:
    if not folder.is_dir() or not any(folder.iterdir()):
        raise ValueError(
            f"checkpoint {folder.parent} is missing its folder {folder.name}/, which {INDEX} names; copy it again"
        )
    check_files(folder)
    if folder.name == "processor":
        for names in _PROCESSOR:
            if not any((folder / name).is_file() for name in names):
                raise ValueError(f"checkpoint {folder.parent} is missing processor/{names[0]}; copy it again")
    if folder.name == "scheduler":
        read_json(folder / "scheduler_config.json", missing=", so nobody knows how it denoises")
    if not has_weights:
        return
    read_json(folder / "config.json", missing=", so its weights cannot be placed")
    indices = sorted(folder.glob("*.safetensors.index.json"))
    shards = {shard for index in indices for shard in _shards(index)}
    missing = sorted(shard for shard in shards if not (folder / shard).is_file())
    if missing:
        raise ValueError(
            f"checkpoint {folder.parent} is missing {folder.name}/{missing[0]}, a part of its weights; copy it again"
        )
    if not shards and not list(folder.glob("*.safetensors")):
        raise ValueError(
            f"checkpoint {folder.parent} is missing the weights {folder.name}/*.safetensors; copy it again"
        )


def _shards(index: Path) -> list[str]:
    """The files that an index of shards names. Raises ValueError where it names none."""
    shard_of_weight = read_json(index).get("weight_map")
    if not isinstance(shard_of_weight, dict) or not all(isinstance(name, str) for name in shard_of_weight.values()):
        raise ValueError(f"{index} names no shards; it was changed, copy it again")
    return list(shard_of_weight.values())


def require_weights(folder: Path) -> None:
    """Raises ValueError where a folder of a model of any library has no file of weights."""
    if not any(file.suffix in (".safetensors", ".bin") for file in folder.iterdir()):
        raise ValueError(f"{folder} has no weights: no .safetensors and no .bin is there; copy it again")


def is_adapter(folder: str | Path) -> bool:
    """Whether a folder holds an adapter, and not a whole pipeline."""
    return (checkpoint_path(folder) / ADAPTER).is_file()


def adapter_base(folder: Path) -> Path:
    """The checkpoint that an adapter was trained on: where its config says or, moved together, beside the adapter.

    Raises:
        ValueError: it names none, or one that is not there.
    """
    base = read_json(folder / ADAPTER).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ValueError(f"{folder / ADAPTER} names no base_model_name_or_path; say there which model it belongs to")
    named = user_path(base)  # our folder's model/
    around = [folder, *folder.absolute().parents]
    places = [named, *(parent / part for parent in around for part in (named, Path(*named.parts[-2:])))]
    found = next((place.parent for place in places if (place.parent / INDEX).is_file()), None)
    if found is None:
        raise ValueError(
            f"adapter {folder} belongs to the model {base}, which is not there, nor beside the adapter; say where in "
            f"{folder / ADAPTER}"
        )
    return found


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
    folder = user_path(folder)
    check_absent(folder)
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
    OSError, ValueError, RuntimeError, KeyError, IndexError, TypeError, AttributeError, struct.error, SafetensorError,
    StrictDataclassError,
)  # fmt: skip


class _CheckpointError(ValueError):
    """An error of ours about a folder (weights that are missing, or of other shapes): one sentence already."""


def load_model(folder: Path) -> HybridGenForConditionalGeneration:
    """A model of which the folder has every weight, in its shape.

    Raises:
        ValueError: a weight is missing or has another shape.
    """
    config = HybridGenConfig.from_dict(model_settings(folder))
    check_memory(config, f"checkpoint {folder.parent}", bytes_per_weight=2)  # at least
    with quiet():
        model, report = HybridGenForConditionalGeneration.from_pretrained(
            folder.absolute(),  # by which an adapter that is trained on it finds it from anywhere
            output_loading_info=True,
            ignore_mismatched_sizes=True,
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


def model_settings(folder: Path) -> dict:
    """The config.json of a hybrid's folder. Raises ValueError where it is another model's."""
    settings = read_json(folder / "config.json")
    if (kind := settings.get("model_type")) != HybridGenConfig.model_type:
        raise _CheckpointError(
            f"{folder} holds a {kind!r}, not a model of hybridgen, as its config.json says; give a hybridgen checkpoint"
        )
    return settings


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, transformers and diffusers say nothing: what they would warn of is checked here and raised."""
    libraries = (transformers.utils.logging, diffusers.utils.logging)
    before = [library.get_verbosity() for library in libraries]
    for library in libraries:
        library.set_verbosity_error()
    try:
        yield
    finally:
        for library, level in zip(libraries, before, strict=True):
            library.set_verbosity(level)


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
    except ZeroDivisionError as error:
        raise ValueError(f"checkpoint {folder} cannot be loaded: a size in its config.json is 0") from error
    except _UNREADABLE as error:
        reason = f"one of its files lacks {error}" if isinstance(error, KeyError) else one_line(error)
        raise ValueError(f"checkpoint {folder} cannot be loaded: {shorten(reason, 600)}") from error
