"""What a user's path leads to: `~` resolved, what is there called by its kind, the likely one named if nothing is.

Every path that a user gives (an argument, a key of a config, an argument of Python) passes `user_path`. A file is known
by its first bytes, a folder by what is in it, so that an error can say what it is instead of what went wrong inside a
library. Only the standard library is imported: the command line asks before anything else is loaded.
"""

import difflib
import json
import os
import re
import shlex
from pathlib import Path
from typing import NewType
from urllib.parse import unquote, urlsplit

FilePath = NewType("FilePath", str)  # the type of a config's key that names a file or folder
INDEX, ADAPTER = "model_index.json", "adapter_config.json"
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf")
_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_RECORDS = (".jsonl", ".json", ".parquet", ".arrow", ".tar", ".csv", ".txt")
_EXPECTED = dict.fromkeys((".bin", ".pt", ".pth", ".ckpt"), ("zip archive",)) | {".gguf": ("GGUF",)}
SMALL = "hybridgen/small"
PACKAGED = {SMALL: Path(__file__).parents[1] / "small"}  # checkpoints that come with the package
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_MAGIC = (  # first bytes of a file -> what it is
    (LFS_POINTER, "is a pointer of git lfs, not the file itself; run `git lfs pull` where it was cloned"),
    (b"\x89PNG", "is a PNG picture"),
    (b"\xff\xd8\xff", "is a JPEG picture"),
    (b"GIF8", "is a GIF picture"),
    (b"GGUF", "is a GGUF file"),
    (b"%PDF", "is a PDF"),
    (b"\x1f\x8b", "is compressed with gzip; unpack it"),
    (b"(\xb5/\xfd", "is compressed with zstd; unpack it"),
    (b"\x93NUMPY", "is an array of numpy; save what is in it in the format that is read here"),
    (b"PAR1", "is a parquet file"),
    (b"PK\x03\x04", "is a zip archive"),
)


def expand(text: str) -> str:
    """A path, or a pattern of paths, as a user writes it: `~` and `~name` are home folders, as in a shell; file:// URLs
    are paths.

    Raises:
        ValueError: it is empty, or no name that a file can have.
    """
    if not text or "\0" in text:
        raise ValueError(f"{text!r} is no path; give the name of a file or folder")
    return unquote(urlsplit(text).path) if text.startswith("file:") else os.path.expanduser(text)


def user_path(path: str | os.PathLike) -> Path:
    """`expand` for one path. Raises ValueError, also for an address of the net, whose two slashes a path would lose."""
    text = os.fspath(path)
    if re.match("[A-Za-z][A-Za-z0-9+.-]+://", text) and not text.startswith("file:"):
        raise ValueError(f"{text!r} is an address, not a path; nothing is downloaded here, name a file or folder")
    return Path(expand(text))


def checkpoint_path(name: str | os.PathLike) -> Path:
    """`user_path` of a checkpoint, which may be one that came with the package: "hybridgen/small", unless a folder of
    that name stands here."""
    path = user_path(name)
    if os.fspath(name) in PACKAGED and not is_there(path):
        return PACKAGED[os.fspath(name)]
    return path


def packaged_name(folder: Path) -> str | None:
    """The name of a checkpoint that came with the package, by its folder; None for any other folder."""
    return next((name for name, packaged in PACKAGED.items() if folder.absolute() == packaged), None)


def looks_like_folder(name: str | os.PathLike) -> bool:
    """Whether a name that leads nowhere was meant as a folder, and not as `owner/name` on the hub."""
    text = os.fspath(name)
    return text.startswith((".", "~", os.sep)) or text.count("/") > 1 or text.endswith("/") or os.sep != "/" in text


def dropped_path(text: str) -> Path:
    """The path of a file that was dropped on a terminal or pasted there: in quotes, with a backslash before each space,
    or as a file:// URL. Where something is there under the text as it stands, that is meant.

    Raises:
        ValueError: it is empty, or no name that a file can have.
    """
    if is_there(as_it_stands := user_path(text)):
        return as_it_stands
    try:
        words = shlex.split(text)
    except ValueError:  # a quotation mark that belongs to the name
        return as_it_stands
    return user_path(words[0]) if len(words) == 1 else as_it_stands


def is_there(path: Path) -> bool:
    """Whether something is at a path; False too for names that no file system takes."""
    try:
        return path.exists()
    except (OSError, ValueError):  # a name of more than 255 bytes, or with a zero byte
        return False


# ------------------------------------------------------------------------------------------------------------ files


def what_it_is(file: Path) -> str | None:
    """What a file is by its first bytes, as a predicate ("is a PNG picture"); None = nothing that is known here.

    Raises:
        OSError: it cannot be read.
    """
    with open(file, "rb") as opened:
        return what_bytes_are(opened.read(1024))


def what_bytes_are(start: bytes) -> str | None:
    """`what_it_is` of a file that begins so, with at least 512 bytes where it has as many."""
    if not start:
        return "is empty; it was cut off when it was copied or the disk was full, copy it again"
    if _is_html(start):
        return "is an HTML page, such as the login or error page of a site, not the file itself; download it again"
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "is a WebP picture"
    return next((words for magic, words in _MAGIC if start.startswith(magic)), None)


def _is_html(start: bytes) -> bool:
    start = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    return start.startswith((b"<!doctype html", b"<html", b"<head"))


def refuse_impostor(file: Path, expected: tuple[str, ...] = (), what: str = "") -> None:
    """Raises ValueError, with its path, for a file that is known to be something else than its name says.

    Args:
        expected: words of `what_it_is` that are right here, such as "zip archive" for a `.bin` of PyTorch.
        what: said in front of the path, such as "config ".
    """
    words = what_it_is(file)
    if words is not None and not any(kind in words for kind in expected):
        raise ValueError(f"{what}{file} {words}" + ("" if ";" in words else "; give another file"))


def check_files(folder: Path) -> None:
    """Raises ValueError, with its path, for a file of weights or settings in a folder that is something else."""
    for file in sorted(folder.iterdir()) if folder.is_dir() else ():
        if file.suffix in (*_WEIGHTS, ".json", ".jinja", ".model") and file.is_file():
            refuse_impostor(file, _EXPECTED.get(file.suffix, ()))
            if file.suffix == ".safetensors":
                check_safetensors(file)
            if file.suffix == ".json":
                check_json(file)


def check_json(file: Path) -> None:
    """Raises ValueError, with its path, for a file that is no JSON, or settings that are no JSON object."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise ValueError(f"{file} is not valid JSON ({error}); it was cut off or changed, copy it again") from None
    if file.name.endswith(("config.json", "tokenizer.json", "index.json")) and not isinstance(content, dict):
        raise ValueError(f"{file} holds no JSON object; it was changed, copy it again")


def check_safetensors(file: Path) -> None:
    """Raises ValueError, with its path, for a safetensors file that is cut off or none at all. No weight is read."""
    size = file.stat().st_size
    with open(file, "rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if size < 8 or length > min(size, 100_000_000):
            raise ValueError(f"{file} is no safetensors file, or was cut off ({size} bytes); copy it again")
        try:
            header = json.loads(opened.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
            whole = 8 + length + max(ends, default=0)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError):
            raise ValueError(f"{file} is no safetensors file; its header was changed, copy it again") from None
    if size != whole:
        raise ValueError(f"{file} was cut off or changed: it has {size} bytes, its header says {whole}; copy it again")


# ---------------------------------------------------------------------------------------------------------- folders


def what_folder_it_is(folder: Path) -> str:
    """What a folder holds, as words that follow "is" ("a LoRA adapter"). It never raises."""
    names = {entry.name for entry in folder.iterdir()} if folder.is_dir() and os.access(folder, os.R_OK) else set()
    suffixes = {Path(name).suffix.lower() for name in names}
    if not names:
        return "an empty folder"
    if INDEX in names:
        return f"a {_field(folder / INDEX, '_class_name') or 'pipeline of diffusers'}"
    if ADAPTER in names:
        return "a LoRA adapter"
    if "manifest.json" in names and folder.name.startswith("step_"):
        return "a state that training goes on from"
    if "metrics.jsonl" in names or {"state", "config.yaml"} <= names:
        return "the folder of a run"
    if "config.json" in names:
        kind = _field(folder / "config.json", "_class_name") or _field(folder / "config.json", "model_type")
        return f"a model of the kind {kind!r}" if kind else "a folder with a config.json of an unknown kind"
    if suffixes & set(_WEIGHTS):
        return "a folder of weights without a config.json"
    if {"tokenizer.json", "tokenizer_config.json"} & names:
        return "a folder of a tokenizer"
    if {"dataset_info.json", "dataset_dict.json"} & names or suffixes & {*_RECORDS, *_PICTURES}:
        return "a folder of data"
    return "a folder of another kind"


def _field(file: Path, key: str) -> str | None:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return content.get(key) if isinstance(content.get(key), str) else None
    except (OSError, ValueError, AttributeError):
        return None


def likely_checkpoint(folder: Path) -> Path | None:
    """A checkpoint or adapter that was probably meant by a folder which is none: inside it, around it, or in the run
    that it belongs to."""
    states = folder.parent.parent / "checkpoint" if folder.parent.name == "state" else folder
    near = [folder / "checkpoint", folder.parent, folder.parent / "checkpoint", states]
    if folder.is_dir():
        near += sorted(folder.glob("*/checkpoint"))[:1]
    return next((place for place in near if place != folder and is_checkpoint(place)), None)


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder is a checkpoint of hybridgen, or an adapter of one."""
    return (folder / INDEX).is_file() or (folder / ADAPTER).is_file()


def nowhere(path: Path) -> str | None:
    """What a link that leads nowhere is, as a predicate; None = no link."""
    return (
        f"is a link to {os.readlink(path)}, which is not there" if os.path.islink(path) and not is_there(path) else None
    )


def nearest(path: Path) -> Path | None:
    """What a path that leads nowhere probably meant: the name nearest to the first part that is not there."""
    parts = path.absolute().parts
    for number in range(1, len(parts)):
        parent = Path(*parts[:number])
        if is_there(Path(*parts[: number + 1])):
            continue
        try:
            names = [entry.name for entry in parent.iterdir() if not entry.name.startswith(".")]
        except OSError:
            return None
        for name in difflib.get_close_matches(parts[number], names, n=3, cutoff=0.7):
            found = parent.joinpath(name, *parts[number + 1 :])
            if is_there(found):
                return found if path.is_absolute() else Path(os.path.relpath(found))
        return None
    return None


def does_not_exist(what: str, path: Path, otherwise: str) -> ValueError:
    """The error of a path that leads nowhere.

    Args:
        what: names the thing in front of its path, such as "checkpoint".
        otherwise: the way out where nothing near is found.
    """
    if (link := nowhere(path)) is not None:
        return ValueError(f"{what} {path} {link}; {otherwise}")
    found = nearest(path)
    if found is not None and what == "checkpoint" and not is_checkpoint(found):
        found = likely_checkpoint(found)
    return ValueError(f"{what} {path} does not exist; {otherwise if found is None else f'did you mean {found}?'}")


def require_checkpoint(folder: Path, otherwise: str = "give a folder that training or save_pretrained wrote") -> None:
    """Raises ValueError, naming what is there and the likely one, where a folder is no checkpoint and no adapter."""
    if not is_there(folder):
        raise does_not_exist("checkpoint", folder, otherwise)
    if not folder.is_dir():
        raise ValueError(f"checkpoint {folder} is a file, not a folder; {otherwise}")
    if not is_checkpoint(folder):
        likely = likely_checkpoint(folder)
        raise ValueError(
            f"{folder} has no {INDEX}, so it is not a checkpoint of hybridgen: it is {what_folder_it_is(folder)}; "
            + (otherwise if likely is None else f"did you mean {likely}?")
        )


def require_folder(what: str, folder: Path, otherwise: str) -> None:
    """Raises ValueError where a folder is not there, or is a file."""
    if not is_there(folder):
        raise does_not_exist(what, folder, otherwise)
    if not folder.is_dir():
        raise ValueError(f"{what} {folder} is a file, not a folder; {otherwise}")


def require_file(what: str, file: Path, otherwise: str) -> None:
    """Raises ValueError where a file is not there, or is a folder."""
    if not is_there(file):
        raise does_not_exist(what, file, otherwise)
    if file.is_dir():
        raise ValueError(f"{what} {file} is a folder, not a file; {otherwise}")


# ------------------------------------------------------------------------------------------------ places to write to


def check_absent(folder: Path) -> None:
    """Raises ValueError where something is at a place that a folder is to be written to; an empty folder is nothing."""
    if is_there(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is there already; choose a folder that is not, or empty it first")
    check_parents(folder)


def check_parents(folder: Path, option: str = "another place") -> None:
    """Raises ValueError where a folder could not be made or written to: a file is in its place or above it, or it may
    not be written there. Nothing is made."""
    try:
        there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    except OSError as error:
        raise ValueError(f"{folder} cannot be a folder for results: {error.strerror}; choose {option}") from None
    if not there.is_dir():
        where = "in its place" if there == folder else f"in its way ({there})"
        raise ValueError(f"{folder} cannot be a folder for results: a file is {where}; choose {option}")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"{folder} cannot be written to; choose {option}")
