"""Files that are there whole or not at all, and JSON that is read in one way everywhere.

A rename replaces a file in one move only within a folder, so what is written aside lies beside the file it becomes.
Folders are written by `checkpoints.loading.new_folder` (a checkpoint) and `training.state.checkpointing` (a state, by
all processes together).

A file system may bring a rename to the disk before the content, so a power cut would leave a file of the right name
and length full of zeros. So content is flushed to the disk first (`flush`), then the name.
"""

import errno
import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hybridgen.core.recognition import what_bytes_are


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A file to write to that takes the name `path` once the body is done; nothing is left of it when the body fails.

    Yields:
        an empty file in the same folder, with the same suffix (libraries choose formats by it).
    """
    path = Path(path).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.stem}.{secrets.token_hex(4)}{path.suffix}")
    aside.touch(exist_ok=False)
    try:
        mode = aside.stat().st_mode  # as the umask says
        yield aside
        aside.chmod(mode)  # libraries that put another file in its place (safetensors) keep it to its owner
        put_in_place(aside, path)
    except BaseException as error:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None and error.filename in (None, str(aside)):
            raise type(error)(error.errno, error.strerror, str(path)) from error  # a full disk names no file
        raise


def put_in_place(aside: Path, path: Path) -> None:
    """Give a file or folder that was written aside its name, once all of it is on the disk."""
    flush(aside)
    aside.replace(path)
    flush_name(path)


def flush(path: Path) -> None:
    """Wait until a file, or a folder with all that is in it, is on the disk.

    Raises:
        OSError: it did not fit, or the disk failed: some file systems tell only now.
    """
    inside = [each for each in path.rglob("*") if not each.is_symlink()] if path.is_dir() else []
    for each in (*reversed(inside), path):  # what is in a folder before the folder
        _flush_one(each)


def flush_name(path: Path) -> None:
    """Wait until the name of a file or folder is on the disk."""
    _flush_one(path.parent)


def _flush_one(path: Path) -> None:
    """Windows opens no folders, and some file systems flush none: they keep names in order themselves."""
    is_folder = path.is_dir()
    if os.name == "nt" and is_folder:
        return
    opened = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(opened)
    except OSError as error:
        if not (is_folder and error.errno in (errno.EINVAL, errno.EBADF, errno.EACCES, errno.ENOTSUP)):
            raise
    finally:
        os.close(opened)


def write_whole(path: str | Path, content: str | bytes) -> None:
    """Write a file so that it is there whole or not at all. Raises OSError when it cannot be written."""
    with whole_file(path) as aside:
        aside.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path: str | Path, content: Any, indent: int = 1, sort_keys: bool = False) -> None:
    """Write JSON so that it is there whole or not at all."""
    text = json.dumps(content, indent=indent, sort_keys=sort_keys, ensure_ascii=False) + "\n"
    # file names that are no UTF-8 hold lone surrogates, which JSON writes as `\udce9`
    write_whole(path, text.encode(errors="backslashreplace"))


def read_json(path: str | Path, where: str = "", missing: str = "") -> dict:
    """The JSON object in a file.

    Args:
        where: said first in errors, such as the key of a config that named the file.
        missing: said last where there is no such file: what follows from it, or what to give instead.

    Raises:
        ValueError: in one sentence, that the file is not there, is no JSON, or holds something else than an object.
    """
    path, where = Path(path), f"{where}: " if where else ""
    if not path.is_file():
        raise ValueError(f"{where}{path.parent} has no {path.name}{missing}")
    raw = path.read_bytes()
    if (words := what_bytes_are(raw[:1024])) is not None:
        raise ValueError(f"{where}{path} {words}" + ("" if ";" in words else "; give another file"))
    try:
        content = json.loads(raw.decode())
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise ValueError(
            f"{where}{path} is not valid JSON ({error}); it was cut off or changed, copy it again"
        ) from None
    if not isinstance(content, dict):
        raise ValueError(f"{where}{path} holds no JSON object; it was changed, copy it again")
    return content


def fingerprint(files: list[str]) -> list | None:
    """[count, bytes, hash of names and sizes] of files on this machine; None where there are none, or others."""
    if not files or any("://" in file for file in files):
        return None
    digest, total = hashlib.blake2b(digest_size=4), 0
    for file in files:
        size = Path(file).stat().st_size
        total += size
        digest.update(f"{Path(file).name}/{size}/".encode(errors="surrogateescape"))
    return [len(files), total, digest.hexdigest()]
