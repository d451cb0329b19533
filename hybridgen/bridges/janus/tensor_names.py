"""Names of Janus' tensors: DeepSeek's and transformers', one table read in both directions.

Names and shapes only. Ours are transformers', except for the VQ tokenizer (`model.vqmodel.*`), which is a pipeline
component here. The two layouts differ in more than names: DeepSeek keeps a tower's queries, keys and values in one
tensor and its position table with a batch dimension, and has two things that nothing reads and transformers does not
keep: the tower's attention pool, and a count of which codes training used.
"""

import re
from collections.abc import Callable

import torch

from hybridgen.bridges.weights import StoredTensor

VQ_PREFIX = "model.vqmodel."
POSITIONS = "model.vision_model.embeddings.position_embedding.weight"

_TOWER_DEEPSEEK, _TOWER_TRANSFORMERS = "vision_model.vision_tower", "model.vision_model"
_TABLE = [  # DeepSeek's, transformers'. `#` is a number, `*` the rest; the first line that matches decides
    (f"{_TOWER_DEEPSEEK}.pos_embed", POSITIONS),
    (f"{_TOWER_DEEPSEEK}.patch_embed.proj.*", f"{_TOWER_TRANSFORMERS}.embeddings.patch_embedding.*"),
    (f"{_TOWER_DEEPSEEK}.blocks.#.norm1.*", f"{_TOWER_TRANSFORMERS}.encoder.layers.#.layer_norm1.*"),
    (f"{_TOWER_DEEPSEEK}.blocks.#.norm2.*", f"{_TOWER_TRANSFORMERS}.encoder.layers.#.layer_norm2.*"),
    (f"{_TOWER_DEEPSEEK}.blocks.#.attn.proj.*", f"{_TOWER_TRANSFORMERS}.encoder.layers.#.self_attn.projection_layer.*"),
    (f"{_TOWER_DEEPSEEK}.blocks.#.attn.*", f"{_TOWER_TRANSFORMERS}.encoder.layers.#.self_attn.*"),
    (f"{_TOWER_DEEPSEEK}.blocks.#.mlp.*", f"{_TOWER_TRANSFORMERS}.encoder.layers.#.mlp.*"),
    (f"{_TOWER_DEEPSEEK}.norm.*", f"{_TOWER_TRANSFORMERS}.post_layernorm.*"),
    *(
        (f"gen_vision_model.{side}.{theirs}", f"{VQ_PREFIX}{side}.{ours}")
        for side, blocks in (("encoder", "down"), ("decoder", "up"))
        for theirs, ours in (
            ("conv_blocks.#.res.#.*", f"{blocks}.#.block.#.*"),
            ("conv_blocks.#.*", f"{blocks}.#.*"),
            ("mid.0.*", "mid.block_1.*"),
            ("mid.1.*", "mid.attn_1.*"),
            ("mid.2.*", "mid.block_2.*"),
        )
    ),
    ("gen_vision_model.*", f"{VQ_PREFIX}*"),
    ("gen_embed.*", "model.generation_embeddings.*"),
    ("gen_head.output_mlp_projector.*", "model.generation_head.proj_out.*"),
    ("gen_head.vision_head.*", "model.generation_head.vision_head.*"),
    *(
        (f"{theirs}.layers.{2 * depth}.*", f"{ours}.{'fc1' if depth == 0 else f'hidden_layers.{depth - 1}'}.*")
        for theirs, ours in (("aligner", "model.aligner"), ("gen_aligner", "model.generation_aligner"))
        for depth in range(8)
    ),
    ("language_model.lm_head.weight", "lm_head.weight"),
    ("language_model.model.*", "model.language_model.*"),
]
_DROPPED = [  # not kept by transformers or us; the last three are tables that old versions saved and new ones compute
    f"{_TOWER_DEEPSEEK}.attn_pool.*",
    "gen_vision_model.quantize.codebook_used",
    "language_model.model.*rotary_emb.inv_freq",
    "model.language_model.*rotary_emb.inv_freq",
    f"{_TOWER_TRANSFORMERS}.embeddings.position_ids",
]


def _pattern(name: str) -> re.Pattern:
    return re.compile(re.escape(name).replace(r"\#", r"(\d+)").replace("#", r"(\d+)").replace(r"\*", "(.+)"))


def _filled(name: str, values: tuple[str, ...]) -> str:
    values = iter(values)
    return re.sub(r"[#*]", lambda _: next(values), name)


def renamer(pairs: list[tuple[str, str]]) -> Callable[[str], str | None]:
    """A function from a name to its place by a table such as `_TABLE`; None where the table has none."""
    compiled = [(_pattern(source), target) for source, target in pairs]

    def rename(name: str) -> str | None:
        for pattern, target in compiled:
            if match := pattern.fullmatch(name):
                return _filled(target, match.groups())
        return None

    return rename


_to_transformers = renamer(_TABLE)
_to_official = renamer([(ours, theirs) for theirs, ours in _TABLE])
_dropped = re.compile("|".join(_pattern(name).pattern for name in _DROPPED))


def is_dropped(name: str) -> bool:
    """Whether no computation reads a tensor of this name."""
    return _dropped.fullmatch(name) is not None


def from_official(tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """DeepSeek's tensors under transformers' names; unknown names are kept."""
    return under_new_names(tensors, _to_transformers)


def under_new_names(tensors: dict[str, StoredTensor], rename: Callable[[str], str | None]) -> dict[str, StoredTensor]:
    """DeepSeek's tensors under other names, the tower's joined ones apart; names that `rename` does not know stay."""
    renamed = {}
    for name, tensor in tensors.items():
        target = rename(name)
        if target is None:
            renamed[name] = tensor
        elif ".qkv." in target:
            renamed |= dict(zip((target.replace(".qkv.", f".{x}_proj.") for x in "qkv"), _thirds(tensor), strict=True))
        elif target == POSITIONS and len(tensor.shape) == 3 and tensor.shape[0] == 1:
            renamed[target] = StoredTensor(tensor.shape[1:], tensor.dtype, lambda tensor=tensor: tensor.read()[0])
        else:
            renamed[target] = tensor
    return renamed


def to_official(tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """transformers' tensors under DeepSeek's names. Raises ValueError for a tensor that has none there."""
    renamed = {}
    for name, tensor in tensors.items():
        target = _to_official(name)
        if target is None:
            raise ValueError(f"{name} has no place in DeepSeek's layout; convert with --to janus-hf instead")
        if target.endswith((".k_proj.weight", ".k_proj.bias", ".v_proj.weight", ".v_proj.bias")) and _is_tower(name):
            continue  # joined with its query below
        if _is_tower(name) and ".q_proj." in name:
            parts = [tensors[name.replace(".q_proj.", f".{x}_proj.")] for x in "qkv"]
            renamed[target.replace(".q_proj.", ".qkv.")] = _concatenate(parts)
        elif name == POSITIONS:
            renamed[target] = StoredTensor((1, *tensor.shape), tensor.dtype, lambda tensor=tensor: tensor.read()[None])
        else:
            renamed[target] = tensor
    return renamed


def _is_tower(name: str) -> bool:
    return name.startswith(f"{_TOWER_TRANSFORMERS}.")


def _thirds(tensor: StoredTensor) -> list[StoredTensor]:
    rows = tensor.shape[0] // 3

    def part(number: int) -> StoredTensor:
        return StoredTensor(
            (rows, *tensor.shape[1:]), tensor.dtype, lambda: tensor.read()[number * rows : (number + 1) * rows]
        )

    return [part(number) for number in range(3)]


def _concatenate(parts: list[StoredTensor]) -> StoredTensor:
    rows = sum(part.shape[0] for part in parts)
    return StoredTensor((rows, *parts[0].shape[1:]), parts[0].dtype, lambda: torch.cat([part.read() for part in parts]))
