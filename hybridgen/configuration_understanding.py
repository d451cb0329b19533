"""The understanding path in numbers: what the settings of a vision tower and of its connector make of a picture.

How many features the tower has of it, how wide they are and from which layers, and how many tokens the connector makes
of them: `HybridGenConfig.image_tokens` is that number wherever it is asked for. Here are no modules: the tower is in
`paths.understanding`, the connectors are in `paths.connectors`.

The fact a newcomer gets wrong: a tower's output may begin with tokens that stand for no patch (a class token,
registers). They are dropped, by the tower's own layout, so a picture has as many features as patches.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches

from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

Grid = tuple[int, int]  # rows and columns of features


# --------------------------------------------------------------------------------------------------------- the tower


def _registers(config: PreTrainedConfig) -> int:
    return 1 + config.num_register_tokens


# towers of one feature a patch: how many tokens of no patch stand before them (class token, distillation, registers)
PREFIX_TOKENS: dict[str, int | Callable[[PreTrainedConfig], int]] = {
    "siglip_vision_model": 0,
    "siglip2_vision_model": 0,
    "janus_vision_model": 0,
    "aimv2_vision_model": 0,
    "ijepa": 0,
    "clip_vision_model": 1,
    "chinese_clip_vision_model": 1,
    "mlcd_vision_model": 1,
    "internvl_vision": 1,
    "vit": 1,
    "vit_msn": 1,
    "beit": 1,
    "data2vec-vision": 1,
    "deit": 2,
    "dinov2": 1,
    "dinov2_with_registers": _registers,
    "dinov3_vit": _registers,
    "pixio": lambda config: config.n_cls_tokens,
}


def prefix_tokens(vision: PreTrainedConfig) -> int:
    """Tokens of a tower's output before its patches; of one that is not known, none (`understanding.check_tower`)."""
    count = PREFIX_TOKENS.get(vision.model_type, 0)
    return count if isinstance(count, int) else count(vision)


def one_side(value) -> int | None:
    """A size that is a number, or two equal ones, as some towers' configs have it; None for anything else."""
    if isinstance(value, list | tuple) and len(value) == 2 and value[0] == value[1]:
        value = value[0]
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def tower_side(vision: PreTrainedConfig) -> int | None:
    """Side in pixels of the pictures that a tower reads; None where the config does not say. SigLIP 2 (NaFlex) has a
    number of patches instead, of which a square is made."""
    patch, patches = one_side(getattr(vision, "patch_size", None)), getattr(vision, "num_patches", None)
    if getattr(vision, "image_size", None) is None and patch is not None and isinstance(patches, int):
        return math.isqrt(patches) * patch
    return one_side(getattr(vision, "image_size", None))


def feature_grid(vision: PreTrainedConfig) -> Grid | None:
    """Rows and columns of a picture's patches; None where the config does not say."""
    side, patch = tower_side(vision), one_side(getattr(vision, "patch_size", None))
    return None if side is None or patch is None else (side // patch, side // patch)


@dataclass(frozen=True)
class NativeSizes:
    """The sizes of pictures that keep their shape, for a tower that reads any (SigLIP 2 NaFlex, arXiv 2502.14786).

    Args:
        side: pixels along one side of a square, of which a picture has whole ones alone.
        most: at most so many squares.
        tokens: of a picture of any size, where the connector makes always as many; None = one a square.
    """

    side: int
    most: int
    tokens: int | None = None

    def size_of(self, width: int, height: int) -> tuple[int, int]:
        """Height and width in pixels that a picture of this size gets: the largest of its shape, each side rounded up
        to whole squares, that has not too many of them. Its scale is searched to 1e-5, as transformers does, whose
        towers have learnt from such sizes.
        """
        low, high = 1e-6, 100.0
        while high - low >= 1e-5:
            scale = (low + high) / 2
            rows, columns = self._squares(scale, width, height)
            low, high = (scale, high) if rows * columns <= self.most else (low, scale)
        rows, columns = self._squares(low, width, height)
        return rows * self.side, columns * self.side

    def _squares(self, scale: float, width: int, height: int) -> tuple[int, int]:
        return tuple(max(1, math.ceil(length * scale / self.side)) for length in (height, width))

    def count(self, height: int, width: int) -> int:
        """How many tokens a picture of this size in pixels takes."""
        return (height // self.side) * (width // self.side) if self.tokens is None else self.tokens


def check_square(vision: PreTrainedConfig) -> None:
    """Raises ValueError for a tower whose pictures or patches are no squares."""
    for name in ("image_size", "patch_size"):
        value = getattr(vision, name, None)
        if isinstance(value, list | tuple) and one_side(value) is None:
            raise ValueError(f"vision_config.{name} is {value!r}; towers read squares here, so give one number")


def feature_layers(given, vision: PreTrainedConfig) -> tuple[int, ...] | None:
    """The hidden states that features are made of, from `vision_feature_layer`; None = the tower's output.

    Raises:
        ValueError: it is no number nor a list of them, or the tower has no such layer.
    """
    if given is None:
        return None
    layers = list(given) if isinstance(given, list | tuple) else [given]
    if not layers or any(isinstance(layer, bool) or not isinstance(layer, int) for layer in layers):
        raise ValueError(
            f"vision_feature_layer is {given!r}; give the number of a layer, such as -2, or a list of several"
        )
    last = getattr(vision, "num_hidden_layers", None)
    if not isinstance(last, int):
        raise ValueError(
            f"vision_feature_layer is {given!r}, but a {vision.model_type!r} has no layers to choose from; leave it out"
        )
    for layer in layers:
        if not -last - 1 <= layer <= last:
            raise ValueError(
                f"vision_feature_layer is {given!r}, but the tower has {last} layers: {layer} is none of 0 (the "
                f"embeddings) to {last}, or -1 to {-last - 1} from the end"
            )
    return tuple(layers)


# ----------------------------------------------------------------------------------------------------- the connector


def _whole(name: str, value, least: int = 1) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"aligner.{name} is {value!r}; it must be an integer of at least {least}")


@dataclass(frozen=True)
class MLPSettings:
    """`mlp`: linear layers with an activation between them, a token a feature (LLaVA 1.5, arXiv 2310.03744; Janus).

    Every connector ends in such layers, which lead into the backbone.

    Args:
        depth: how many.
        hidden_act: the activation.
    """

    depth: int = 2
    hidden_act: str = "gelu"

    def __post_init__(self):
        for field in fields(self):
            if field.type is int:
                _whole(field.name, getattr(self, field.name))
            elif field.type is bool and not isinstance(getattr(self, field.name), bool):
                raise ValueError(f"aligner.{field.name} is {getattr(self, field.name)!r}; it must be true or false")
        if self.hidden_act not in ACT2FN:
            raise ValueError(
                f"aligner.hidden_act is {self.hidden_act!r}; it must be one that transformers has, such as 'gelu'"
            )

    @property
    def square(self) -> int:
        """How many features along one side become one token, or are looked at one by one (1)."""
        return 1

    @property
    def always(self) -> int | None:
        """How many tokens a picture takes whatever its size; None where that depends on it."""
        return None

    def tokens(self, grid: Grid) -> int:
        """How many tokens a picture with features on this grid takes."""
        return (grid[0] // self.square) * (grid[1] // self.square) if self.always is None else self.always

    def check(self, grid: Grid) -> None:
        """Raises ValueError where the connector does not fit a tower with features on this grid."""


@dataclass(frozen=True)
class LinearSettings(MLPSettings):
    """`linear`: one linear layer (LLaVA, arXiv 2304.08485; JanusFlow)."""

    depth: int = 1

    def __post_init__(self):
        super().__post_init__()
        if self.depth != 1:
            raise ValueError(f"aligner.depth is {self.depth}, but a linear connector is one layer; say type: mlp")


@dataclass(frozen=True)
class AveragePoolSettings(MLPSettings):
    """`average_pool`: the mean of each square of `factor` x `factor` features.

    Args:
        factor: how many features along one side become one.
        norm: a LayerNorm before the linear layers.
    """

    factor: int = 2
    norm: bool = False

    @property
    def square(self) -> int:
        return self.factor

    def check(self, grid: Grid) -> None:
        if grid[0] % self.factor or grid[1] % self.factor:
            rows, columns = grid
            fits = [factor for factor in range(2, min(grid) + 1) if not (rows % factor or columns % factor)]
            raise ValueError(
                f"aligner.factor is {self.factor}, which does not divide the tower's {rows}x{columns} features; "
                + (f"take one of {', '.join(map(str, fits))}" if fits else "take another image_size or connector")
            )


@dataclass(frozen=True)
class PixelShuffleSettings(AveragePoolSettings):
    """`pixel_shuffle`: the features of each such square side by side, `factor` squared times as wide (InternVL 1.5,
    arXiv 2404.16821, with `norm` and `depth: 2`; nanoVLM and Idefics 3, `depth: 1`)."""


@dataclass(frozen=True)
class PerceiverResamplerSettings(MLPSettings):
    """`perceiver_resampler`: learnt latents that attend to the features and to themselves (Flamingo, arXiv 2204.14198).

    Args:
        num_latents: how many, which are the tokens of a picture.
        num_hidden_layers, num_attention_heads, head_dim: of the resampler; it is as wide as the features.
        hidden_act: also that of its feed-forward layers.
    """

    depth: int = 1
    num_latents: int = 64
    num_hidden_layers: int = 6
    num_attention_heads: int = 16
    head_dim: int = 96

    @property
    def always(self) -> int:
        return self.num_latents


@dataclass(frozen=True)
class QFormerSettings(MLPSettings):
    """`q_former`: learnt queries in a small transformer of their own, which look at the features in every second layer
    (BLIP-2, arXiv 2301.12597).

    Args:
        num_query_tokens: how many, which are the tokens of a picture.
        hidden_size, intermediate_size, num_hidden_layers, num_attention_heads: of the transformer.
        cross_attention_frequency: layers from one that looks at the features to the next.
    """

    depth: int = 1
    num_query_tokens: int = 32
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    cross_attention_frequency: int = 2

    def __post_init__(self):
        super().__post_init__()
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"aligner.hidden_size {self.hidden_size} is not divisible by num_attention_heads "
                f"{self.num_attention_heads}; make it a multiple"
            )

    @property
    def always(self) -> int:
        return self.num_query_tokens


CONNECTORS: dict[str, type[MLPSettings]] = {
    "mlp": MLPSettings,
    "linear": LinearSettings,
    "pixel_shuffle": PixelShuffleSettings,
    "average_pool": AveragePoolSettings,
    "perceiver_resampler": PerceiverResamplerSettings,
    "q_former": QFormerSettings,
}


def connector_settings(given: Mapping) -> MLPSettings:
    """The settings of `aligner: {type: ..., ...}`.

    Raises:
        ValueError: the type or a key is not known, or a value is impossible.
    """
    if not isinstance(given, Mapping):
        raise ValueError(f"aligner is {given!r}; give its settings, such as {{type: mlp}}")
    kind = given.get("type")
    if not isinstance(kind, str) or kind not in CONNECTORS:
        said = "has no type" if "type" not in given else f"has the type {kind!r}"
        raise ValueError(f"aligner {said}; it must be one of {', '.join(CONNECTORS)}")
    known = [field.name for field in fields(CONNECTORS[kind])]
    for key in given:
        if key != "type" and key not in known:
            near = get_close_matches(str(key), known, 1)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(known)}"
            raise ValueError(f"aligner.{key} is {given[key]!r}, but a {kind} connector has no such setting; {hint}")
    return CONNECTORS[kind](**{key: value for key, value in given.items() if key != "type"})


def all_settings(settings: MLPSettings) -> dict:
    """The settings as a config keeps them: with their type, and every default said."""
    kind = next(name for name, of_kind in CONNECTORS.items() if of_kind is type(settings))
    return {"type": kind, **asdict(settings)}
