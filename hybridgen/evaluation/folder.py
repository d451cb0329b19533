"""The folder of an evaluation: what is evaluated there, which nothing else may be mixed with, and its items.

OUT/evaluation.json     checkpoint, suites, settings, seed, samples: what the numbers depend on
OUT/SUITE/items.jsonl   one item a line, with the names of its pictures
OUT/SUITE/pictures/     those pictures that no part of the work has kept, by what is on them
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from hybridgen.checkpoints.hashes import config_hash, file_hash, folder_hash, weights_hash
from hybridgen.core.files import read_json, whole_file, write_json, write_whole
from hybridgen.core.pictures import pixels_hash
from hybridgen.core.recognition import checkpoint_path, expand, is_checkpoint, user_path
from hybridgen.core.values import shown
from hybridgen.data.sources import files_named
from hybridgen.evaluation.named_objects import source_of
from hybridgen.evaluation.processes import Processes
from hybridgen.evaluation.result import Item
from hybridgen.pipeline_hybridgen import HybridGenPipeline

IDENTITY, ITEMS = "evaluation.json", "items.jsonl"
LEFT_OVER = f".*.{'[0-9a-f]' * 8}.*"  # what a process that was killed was writing (`core.files.whole_file`)


def checkpoint_identity(pipeline: HybridGenPipeline) -> dict[str, str]:
    """What tells one checkpoint from another, wherever its folder is: the hashes of its files, or of the weights in
    memory where they are not those of a folder; and what else decides its numbers."""
    origin = pipeline.origin
    hashes = {name: origin[name] for name in ("weights", "config")} if origin else {"weights": _weights_hash(pipeline)}
    dtype = str(pipeline.model.dtype).removeprefix("torch.")
    return {**hashes, "dtype": dtype, "device": pipeline.model.device.type}


def _weights_hash(pipeline: HybridGenPipeline) -> str:
    digest = hashlib.sha256()
    for part in (pipeline.model, pipeline.vae, pipeline.vq_model):
        for name, weight in sorted(part.state_dict().items()) if part is not None else ():
            digest.update(name.encode())
            digest.update(weight.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def known_as(value: Any) -> str:
    """What an option names, as an evaluation is known by it: by what is in it, wherever it is. Of a checkpoint that are
    its weights and settings, of another folder all files, of MODULE:NAME the code; files may be several, between commas
    or for a *. What names nothing of these is known by its text."""
    text = str(value)
    if _is(checkpoint_path, text, is_checkpoint):
        return f"a checkpoint of weights {weights_hash(text)} and settings {config_hash(text)}"
    if _is(user_path, text, Path.is_dir):
        return f"a folder of sha256 {folder_hash(user_path(text))}"
    if (code := source_of(text)) is not None and _is_file(code):
        return f"{_by_content(code)}:{text.rpartition(':')[2]}"
    files = [path for part in text.split(",") for path in _files(part.strip())]
    return ", ".join(map(_by_content, files)) if files and all(map(_is_file, files)) else text


def _is(path_of: Callable[[str], Path], text: str, kind: Callable[[Path], bool]) -> bool:
    try:
        return kind(path_of(text))
    except (OSError, ValueError):  # no name that a file can have
        return False


def _files(pattern: str) -> list[Path]:
    """What a pattern stands for (`data.sources.files_named`), or itself."""
    try:
        return list(map(Path, files_named(expand(pattern))))
    except (OSError, ValueError):  # no name that a file can have
        return [Path("")]


def _by_content(file: Path) -> str:
    return f"a file of sha256 {file_hash(file)}"


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # no name that a file can have
        return False


def open_folder(out: Path, identity: dict, processes: Processes) -> None:
    """Begin or go on with an evaluation in a folder.

    Raises:
        ValueError: it holds another one.
        OSError: it cannot be written to.
    """
    error = None
    if processes.is_main:
        try:
            _open(out, json.loads(json.dumps(identity)))  # as it is saved
        except (ValueError, OSError) as raised:
            error = raised
    processes.agree(error)


def _open(out: Path, identity: dict) -> None:
    file = out / IDENTITY
    if file.is_file():
        for key, then, now in differences(read_json(file), identity):
            raise ValueError(
                f"{out} holds an evaluation with {key} {shown(then)}, not {shown(now)}; give the same settings to go "
                "on with it, another --out for a second one, or delete it"
            )
        suites = [out / suite for suite in identity["suites"]]  # beside them, the folder may hold what is not ours
        for left in (*out.glob(LEFT_OVER), *(file for suite in suites for file in suite.rglob(LEFT_OVER))):
            left.unlink(missing_ok=True)
    else:
        write_json(file, identity)


def differences(then: dict, now: dict, parent: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Every key whose values differ, with both."""
    for key in dict.fromkeys([*then, *now]):
        old, new = then.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from differences(old, new, f"{parent}{key}.")
        elif old != new:
            yield f"{parent}{key}", old, new


# ---------------------------------------------------------------------------------------------------------- items


def save_items(folder: Path, items: dict[str, dict[str, list[Item]]]) -> None:
    """The items of a suite in its folder: task -> path -> items."""
    names: dict[int, str] = {}  # of pictures that stand in several items
    lines = []
    for task, by_path in items.items():
        for path, of_path in by_path.items():
            for item in of_path:
                pictures = {}
                for heading, picture in item.pictures.items():
                    if id(picture) not in names:
                        names[id(picture)] = _name_of(picture, folder)
                    pictures[heading] = names[id(picture)]
                lines.append({"task": task, "path": path, **vars(replace(item, pictures=pictures))})
    write_whole(folder / ITEMS, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def _name_of(picture: Image.Image | Path, folder: Path) -> str:
    """Where a picture lies below a folder; it is put there where it does not."""
    file = Path(picture if isinstance(picture, Path) else getattr(picture, "filename", None) or "")
    if file.is_relative_to(folder):
        return str(file.relative_to(folder))
    picture = Image.open(picture) if isinstance(picture, Path) else picture
    name = f"pictures/{pixels_hash(picture).hex()[:16]}.png"
    if not (folder / name).is_file():
        with whole_file(folder / name) as aside:
            picture.save(aside)
    return name


def load_items(folder: Path) -> dict[str, dict[str, list[Item]]]:
    """What `save_items` wrote; pictures stay in their files.

    Raises:
        ValueError: the folder holds no items.
    """
    file = folder / ITEMS
    if not file.is_file():
        raise ValueError(
            f"{folder} has no {ITEMS}; it is no suite's folder of an evaluation that is done, evaluate again"
        )
    items: dict[str, dict[str, list[Item]]] = {}
    for line in file.read_text(encoding="utf-8").split("\n")[:-1]:  # JSON holds what splitlines takes for line ends
        fields = json.loads(line)
        fields["pictures"] = {heading: folder / name for heading, name in fields["pictures"].items()}
        items.setdefault(fields.pop("task"), {}).setdefault(fields.pop("path"), []).append(Item(**fields))
    return items
