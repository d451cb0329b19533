"""What a config says of LoRA: which layers get adapters, and of what rank. `adapters` puts them on a model."""

from dataclasses import dataclass, field

from hybridgen.bridges.weight_names import BACKBONE, PARTS_OF_PATH

PARTS = {
    "backbone": (BACKBONE,),
    "aligner": ("model.aligner.",),
    "generation_aligner": ("model.generation_aligner.",),
    **PARTS_OF_PATH,
}


@dataclass
class LoraConfig:
    """Low-rank adapters (arXiv 2106.09685) on linear layers; every other weight is frozen.

    Args:
        parts: modules that get adapters: `backbone`, `aligner`, `generation_aligner`, or a path: `understanding` (tower
            and aligner), `vq` (aligner and head), `diffusion` (patches, timestep and head).
        targets: last names of their layers, such as `q_proj`; empty = all linear layers.
        rank, alpha: the update is alpha / rank times the product of two matrices of this rank; None = alpha is rank.
        dropout: on the inputs of the adapter.
    """

    parts: list[str]
    targets: list[str] = field(default_factory=list)
    rank: int = 16
    alpha: float | None = None
    dropout: float = 0.0

    def __post_init__(self):
        if not self.parts:
            raise ValueError(f"lora.parts is empty; name some of {', '.join(PARTS)}")
        if unknown := [part for part in self.parts if part not in PARTS]:
            raise ValueError(f"lora.parts has {unknown[0]!r}; use some of {', '.join(PARTS)}")
        if self.rank < 1 or (self.alpha is not None and self.alpha <= 0) or not 0 <= self.dropout < 1:
            raise ValueError(
                f"lora has rank {self.rank}, alpha {self.alpha} and dropout {self.dropout}; rank must be at least 1, "
                "alpha above 0, dropout from 0 to below 1"
            )
