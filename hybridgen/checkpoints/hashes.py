"""The identity of a checkpoint: hashes of its weights, and of the settings that decide what it draws.

A checkpoint is named by these and not by its folder, whose content further training changes. Files are hashed once: the
hashes are kept in the user's cache, by path, size and times.
"""

import contextlib
import hashlib
import json
import os
from pathlib import Path

from hybridgen.checkpoints.loading import adapter_base, is_adapter
from hybridgen.core.files import read_json, write_json
from hybridgen.core.recognition import ADAPTER, INDEX, checkpoint_path, packaged_name

_VOLATILE = ("_diffusers_version", "transformers_version", "_name_or_path", "base_model_name_or_path")
_SETTINGS = (  # as transformers, diffusers and peft call them; other files in a folder are the user's
    "config.json", ADAPTER, "processor_config.json", "preprocessor_config.json", "tokenizer.json",
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "vocab.txt",
    "chat_template.json",
)  # fmt: skip


_LARGE = 2**24  # bytes


def checkpoint_hashes(checkpoint: str | Path) -> dict[str, str]:
    """What pictures were drawn by: the folder, and the hashes of what is in it."""
    hashes = {"weights": weights_hash(checkpoint), "config": config_hash(checkpoint)}
    folder = checkpoint_path(checkpoint).absolute()
    return {"checkpoint": packaged_name(folder) or str(folder), **hashes}


def weights_hash(checkpoint: str | Path) -> str:
    """One hash of all safetensors of a checkpoint; of an adapter, those of its model as well."""
    files = [(str(file.relative_to(folder)), file) for folder in _folders(checkpoint) for file in _weights(folder)]
    return _hash_of([(name, file_hash(file)) for name, file in files])


def weights_state(checkpoint: str | Path) -> list:
    """What tells at no cost whether the files behind `weights_hash` are still the same."""
    return [(str(file), *_stat(file)) for folder in _folders(checkpoint) for file in _weights(folder)]


def config_hash(checkpoint: str | Path) -> str:
    """One hash of what else decides a picture: the settings of model, processor, tokenizer and codecs. Not of the
    scheduler, which a manifest holds in full, nor of versions and paths, nor of what else lies in the folder."""
    settings = []
    for folder in _folders(checkpoint):
        for file in sorted(folder.rglob("*")):
            if _is_settings_file(file) and _is_in_component(file, folder):
                settings.append((str(file.relative_to(folder)), _stable_text(file)))
    return _hash_of(settings)


def _folders(checkpoint: str | Path) -> list[Path]:
    folder = checkpoint_path(checkpoint)
    return [folder, adapter_base(folder)] if is_adapter(folder) else [folder]


def _weights(folder: Path) -> list[Path]:
    return [file for file in sorted(folder.rglob("*.safetensors")) if _is_in_component(file, folder)]


def _is_settings_file(file: Path) -> bool:
    return file.name in _SETTINGS or file.suffix in (".jinja", ".model")


def _is_in_component(file: Path, folder: Path) -> bool:
    """Whether a file lies where a part of a checkpoint lies: in its folder, or a folder that its index names."""
    index, inside = folder / INDEX, file.relative_to(folder).parts
    components = read_json(index) if index.is_file() else {}
    return len(inside) == 1 or isinstance(components.get(inside[0]), list)


def _stable_text(file: Path) -> str:
    """The text of a settings file without versions and paths, its keys sorted."""
    text = file.read_text(encoding="utf-8")
    with contextlib.suppress(ValueError):
        settings = json.loads(text)
        if isinstance(settings, dict):
            settings = {name: value for name, value in settings.items() if name not in _VOLATILE}
        text = json.dumps(settings, sort_keys=True)
    return text


def folder_hash(folder: str | Path) -> str:
    """One hash of all files below a folder by their names there; hidden ones, which programs put there for themselves,
    are left out. Large files are hashed once (`file_hash`), small ones each time: of many, that costs less."""
    folder, named = Path(folder), []
    for file in sorted(folder.rglob("*")):
        inside = file.relative_to(folder)
        if file.is_file() and not any(part.startswith(".") for part in inside.parts):
            is_large = file.stat().st_size >= _LARGE
            named.append((str(inside), file_hash(file) if is_large else hashlib.sha256(file.read_bytes()).hexdigest()))
    return _hash_of(named)


def _hash_of(named: list[tuple[str, str]]) -> str:
    return hashlib.sha256(json.dumps(named).encode()).hexdigest()


def _stat(file: Path) -> list[int]:
    stat = file.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def _cache_file() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hybridgen" / "hashes.json"


def file_hash(file: str | Path) -> str:
    """SHA-256 of a file, computed once for as long as the file stays what it is. A cache that cannot be read or written
    costs time, nothing else."""
    file, cache = Path(file).resolve(), {}
    state = _stat(file)
    with contextlib.suppress(OSError, ValueError):
        cache = read_json(_cache_file())
    known = cache.get(str(file))
    if isinstance(known, dict) and known.get("state") == state:
        return known["sha256"]
    with open(file, "rb") as opened:
        sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
    with contextlib.suppress(OSError):
        write_json(_cache_file(), {**cache, str(file): {"state": state, "sha256": sha256}})
    return sha256
