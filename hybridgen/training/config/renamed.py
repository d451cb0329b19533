"""Config keys that had another name once, and what they are called now.

In a YAML file or an override an old key is refused with its new name (`strict`). A state that an older run saved holds
that run's config, so there old keys are translated, and the run goes on.
"""

from fnmatch import fnmatchcase
from typing import Any

from hybridgen.data.source_config import RENAMED_FORMATS

RENAMED = {  # full old key -> new last part; * stands for whatever holds the sources, and for the number of one
    "data.rows": "per_device_batch_size",
    "data.row_length": "sequence_length",
    "data.workers": "loader_threads",
    "data.divide": "shard_by_rank",
    "*sources.*.twin": "clean_copy",
    "*sources.*.chances": "oversampling",
    "twin": "clean_copy",  # of one source alone, as `hybridgen data` takes it
    "chances": "oversampling",
    "model.diffusion_config.own_layers": "modality_experts",
}


def new_name(key: str) -> str | None:
    """What a full key (`data.sources.0.twin`) is called now; None where it was never called otherwise."""
    parent, dot, _ = key.rpartition(".")
    return next((parent + dot + name for old, name in RENAMED.items() if fnmatchcase(key, old)), None)


def with_new_names(content: Any, where: str = "") -> Any:
    """Nested mappings and lists with every old key, and every old `format`, renamed; a section keeps its order."""
    if isinstance(content, list):
        return [with_new_names(item, f"{where}.{number}") for number, item in enumerate(content)]
    if not isinstance(content, dict):
        return content
    renamed = {}
    for key, value in content.items():
        full = f"{where}.{key}" if where else str(key)
        new = new_name(full)
        if fnmatchcase(full, "*sources.*.format"):
            value = RENAMED_FORMATS.get(value, value)
        renamed[key if new is None else new.rpartition(".")[2]] = with_new_names(value, new or full)
    return renamed
