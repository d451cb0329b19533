"""Names of checkpoints: a folder or hub repository with one component in it, or a whole checkpoint with all of them.

A whole checkpoint has each component in a folder of its own and `model_index.json` beside them; `config.json` there is
a copy of the model's, by which the Auto classes of transformers know what it is. So `from_pretrained` of the model and
of the processor take either. What a checkpoint must contain is checked in `checkpoints`. A hub repository is asked for
its index first, once, and only then for weights; offline, the answer comes from the cache.
"""

from os import PathLike
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from transformers.utils import cached_file

from hybridgen.core.recognition import INDEX, checkpoint_path, does_not_exist, looks_like_folder


def is_whole(name: str | PathLike | None, **kwargs) -> bool:
    """Whether a folder or hub repository is a whole checkpoint. `kwargs` are those of `from_pretrained`."""
    if name is None:
        return False
    if (folder := checkpoint_path(name)).exists():  # a file is none, and no name on the hub either
        return (folder / INDEX).is_file()
    quiet = dict.fromkeys(("gated_repo", "missing_entries", "connection_errors"), False)
    quiet = {f"_raise_exceptions_for_{kind}": value for kind, value in quiet.items()}
    return cached_file(str(name), INDEX, **_for_hub(kwargs), **quiet) is not None


def part_of(name: str | PathLike | None, part: str, **kwargs) -> str | PathLike | None:
    """The folder of a component in a whole checkpoint, downloaded as far as needed; or `name` itself."""
    folder = None if name is None else checkpoint_path(name)
    if folder is not None and folder.is_dir():
        name = folder
    elif folder is not None and not folder.exists() and (folder.is_absolute() or looks_like_folder(name)):
        raise does_not_exist("checkpoint", folder, "give a folder that training or save_pretrained wrote")
    if kwargs.get("subfolder") or not is_whole(name, **kwargs):
        return name
    if folder.is_dir():
        return folder / part
    return Path(snapshot_download(str(name), allow_patterns=f"{part}/*", **_for_hub(kwargs))) / part


def _for_hub(kwargs: dict) -> dict:
    names = ("cache_dir", "force_download", "token", "revision", "local_files_only")
    return {key: kwargs[key] for key in names if key in kwargs}


def whole_around(name: str | PathLike | None, **kwargs) -> str | PathLike | None:
    """The whole checkpoint that a name belongs to: itself, or the folder around a model's folder; None = neither."""
    if is_whole(name, **kwargs):
        return name
    if name is not None and (folder := checkpoint_path(name)).is_dir() and (folder.resolve().parent / INDEX).is_file():
        return folder.resolve().parent
    return None


def upload(
    folder: Path,
    repo_id: str,
    commit_message: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    create_pr: bool = False,
) -> str:
    """Upload a whole checkpoint to the hub; a model card that is there already stays. Returns the commit's URL."""
    hub = HfApi(token=token)
    repo_id = hub.create_repo(repo_id, private=private, exist_ok=True).repo_id
    existing = ["README.md"] if hub.file_exists(repo_id, "README.md") else None
    message = commit_message or "Upload a hybridgen checkpoint"
    settings = {"commit_message": message, "create_pr": create_pr, "ignore_patterns": existing}
    return hub.upload_folder(repo_id=repo_id, folder_path=folder, **settings).commit_url
