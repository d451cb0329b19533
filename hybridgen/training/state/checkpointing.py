"""States of a run on disk: written aside and renamed, checked before they are trusted, the oldest removed.

`saving` says what is in a state; here is how it gets there whole. A folder named `step_N` is never half written: it is
`step_N.tmp` until its last byte. Its manifest lists every file with its size, so that a state cut short by something
else (a full quota, a broken copy) is recognised and passed over.
"""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from torch.distributed.checkpoint.api import CheckpointException

from hybridgen.core.files import flush, flush_name, read_json, write_json
from hybridgen.core.values import one_line

MANIFEST = "manifest.json"
TORCH_SAVE_FAILED = ("PytorchStreamWriter", "inline_container")  # torch.save raises a RuntimeError on a full disk


def step_folder(states: Path, step: int) -> Path:
    """The folder of a step's state."""
    return states / f"step_{step:06d}"


def saved_steps(states: Path) -> list[Path]:
    """The states in a folder, complete or not, newest first."""
    steps = [path for path in states.glob("step_*") if path.is_dir() and path.name[5:].isdigit()]
    return sorted(steps, key=lambda path: int(path.name[5:]), reverse=True)


def find_damage(state: Path) -> str | None:
    """What is wrong with a state; None where every file of its manifest is there and has its size."""
    try:
        sizes = read_json(state / MANIFEST)
    except (OSError, ValueError):
        return f"{MANIFEST} is missing or cut short"
    for name, size in sizes.items():
        path = state / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
    return None


def newest_intact(states: Path, say: Callable[[str], None]) -> Path | None:
    """The newest state without damage; says which newer ones have some, and what."""
    for state in saved_steps(states):
        reason = find_damage(state)
        if reason is None:
            return state
        say(f"passing over {state}: {reason}; going on from the state before it")
    return None


@contextlib.contextmanager
def whole_folder(
    folder: Path, accelerator: Accelerator, manifest: bool = True, inside: Sequence[str] = ()
) -> Iterator[Path]:
    """A folder to write to, `FOLDER.tmp`, that is renamed once it is whole; all processes together.

    1. The main process clears `FOLDER.tmp` and makes the folders `inside` it; all write into it (the body).
    2. The main process adds the manifest, if one is wanted.
    3. The main process renames; an older folder of that name makes way.

    After each, all agree: if any process could not write, the folder is removed and every process raises.

    Raises:
        OSError: in one sentence, what could not be written, and that what was saved before is intact.
    """
    aside = begin_folder(folder, accelerator, inside)
    with raise_everywhere(folder, accelerator):
        yield aside
    with raise_everywhere(folder, accelerator):
        if accelerator.is_main_process:
            finish_folder(aside, folder, manifest)


def begin_folder(folder: Path, accelerator: Accelerator, inside: Sequence[str] = ()) -> Path:
    """Step 1 of `whole_folder`; returns `FOLDER.tmp`."""
    aside = folder.with_name(folder.name + ".tmp")
    with raise_everywhere(folder, accelerator):
        if accelerator.is_main_process:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
            for name in inside:
                (aside / name).mkdir()
    return aside


def finish_folder(aside: Path, folder: Path, manifest: bool = True) -> None:
    """Steps 2 and 3 of `whole_folder`, by the main process, once all have written."""
    if manifest:
        sizes = {str(path.relative_to(aside)): path.stat().st_size for path in aside.rglob("*") if path.is_file()}
        write_json(aside / MANIFEST, sizes)
    _replace(aside, folder)


@contextlib.contextmanager
def raise_everywhere(folder: Path, accelerator: Accelerator) -> Iterator[None]:
    """When the body cannot write in one process, all raise OSError at its end; any other error passes at once."""
    error = None
    try:
        yield
    except CheckpointException as caught:  # of what went wrong in any process while shards were written
        error = next(reason for reason, _ in caught.failures.values())
    except (OSError, RuntimeError, SafetensorError) as caught:
        error = caught
    if error is not None and not _cannot_write(error):
        raise error
    _raise_in_all(error, folder, accelerator)


def _cannot_write(error: BaseException) -> bool:
    if isinstance(error, RuntimeError):
        return any(word in str(error) for word in TORCH_SAVE_FAILED)
    return isinstance(error, OSError | SafetensorError) and not isinstance(error, ConnectionError)


def _raise_in_all(error: BaseException | None, folder: Path, accelerator: Accelerator) -> None:
    """Do nothing if no process had an error; otherwise clean up and raise in all."""
    flag = torch.tensor([float(error is not None)], device=accelerator.device)
    if not accelerator.reduce(flag, reduction="sum") > 0:
        return
    if accelerator.is_main_process:
        shutil.rmtree(folder.with_name(folder.name + ".tmp"), ignore_errors=True)
    reason = one_line(error or "another process could not write")
    raise OSError(
        f"could not save {folder} ({reason}); everything saved before it is intact: free some space and start the same "
        "command again"
    ) from error


def _replace(aside: Path, folder: Path) -> None:
    """Put a finished folder in its place; at every moment the old one or the new one is there under some name."""
    flush(aside)
    old = folder.with_name(folder.name + ".old")
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.replace(folder, old)
    os.replace(aside, folder)
    flush_name(folder)
    shutil.rmtree(old, ignore_errors=True)


def prune(states: Path, keep_last: int, step: int) -> None:
    """Remove all but the newest states up to a step, and what interrupted saves left behind. Later ones go, too: they
    are damaged, or the run went on from an earlier state instead."""
    all_states = saved_steps(states)
    newest = [state for state in all_states if int(state.name[5:]) <= step][:keep_last]
    for state in all_states:
        if state not in newest:
            shutil.rmtree(state, ignore_errors=True)
    for pattern in ("step_*.tmp", "step_*.old"):
        for leftover in states.glob(pattern):
            shutil.rmtree(leftover, ignore_errors=True)


def remove_all(states: Path) -> None:
    """Remove every state, for a run that starts over."""
    for state in saved_steps(states):
        shutil.rmtree(state)


def choose_state(resume: str, states: Path, say: Callable[[str], None]) -> Path | None:
    """The state that `resume` means: the newest intact one (`auto`), none (`never`), or a folder that must be intact.

    Raises:
        ValueError: states are there but none can be trusted, or the one that was named cannot.
    """
    if resume == "never":
        return None
    if resume == "auto":
        state = newest_intact(states, say)
        if state is None and saved_steps(states):
            raise ValueError(
                f"none of the states in {states} can be read; set resume=never to start over, or another output_dir"
            )
        return state
    if (reason := find_damage(Path(resume))) is not None:
        raise ValueError(f"resume {resume!r} cannot be read: {reason}; name another state, or set resume=auto")
    return Path(resume)
