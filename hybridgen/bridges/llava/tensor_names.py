"""Names of LLaVA's tensors: transformers' <-> ours.

On disk they are called as transformers' first LLaVA called them (`language_model.model.*`), by which it still saves; in
memory as it calls them today (`model.language_model.*`). Both are read, and the former written. Towers stood one level
deeper in files of older versions (`vision_tower.vision_model.*`).
"""

from hybridgen.bridges.janus.tensor_names import renamer
from hybridgen.bridges.weights import StoredTensor

_PROJECTOR = [("linear_1", "fc1"), ("linear_2", "hidden_layers.0")]
_ON_DISK = [  # on disk, ours
    ("language_model.lm_head.*", "lm_head.*"),
    ("language_model.model.*", "model.language_model.*"),
    ("vision_tower.*", "model.vision_model.*"),
    *((f"multi_modal_projector.{theirs}.*", f"model.aligner.{ours}.*") for theirs, ours in _PROJECTOR),
]
_READ = [
    ("vision_tower.vision_model.*", "model.vision_model.*"),
    ("model.vision_tower.vision_model.*", "model.vision_model.*"),
    *_ON_DISK,
    ("language_model.*", "model.language_model.*"),
    ("model.vision_tower.*", "model.vision_model.*"),
    *((f"model.multi_modal_projector.{theirs}.*", f"model.aligner.{ours}.*") for theirs, ours in _PROJECTOR),
]
_to_ours, _to_disk = renamer(_READ), renamer([(ours, theirs) for theirs, ours in _ON_DISK])
_UNREAD = ("rotary_emb.inv_freq", "embeddings.position_ids")  # tables that old versions saved and new ones compute


def is_dropped(name: str) -> bool:
    """Whether no computation reads a tensor of this name."""
    return name.endswith(_UNREAD)


def from_transformers(tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """transformers' tensors under our names; unknown names are kept."""
    return {_to_ours(name) or name: tensor for name, tensor in tensors.items()}


def to_transformers(names: list[str]) -> dict[str, str]:
    """Our names -> those on disk. Raises ValueError for a tensor that has none there."""
    renamed = {name: _to_disk(name) for name in names}
    if unknown := [name for name, theirs in renamed.items() if theirs is None]:
        raise ValueError(f"{unknown[0]} has no place in a LLaVA; write it as hybridgen")
    return renamed
