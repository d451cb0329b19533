"""Configurations: one class for the model, one for each path that needs its own. A path exists if its config exists.

Nothing here switches on strings, and every check between fields of the model stands here (those of a run in
`training.config.checks`), so that an impossible model is refused before any weight is made. The VAE and the VQ
tokenizer are not part of the model: `vq_config` and `diffusion_config` describe what the backbone reads and predicts;
codecs are components of the pipeline.
"""

import math
from collections.abc import Mapping
from numbers import Real
from typing import ClassVar

import psutil
from transformers import AutoConfig, PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from hybridgen.configuration_understanding import (
    MLPSettings,
    NativeSizes,
    all_settings,
    check_square,
    connector_settings,
    feature_grid,
    feature_layers,
    tower_side,
)

PREDICTION_TYPES = ("velocity", "epsilon", "sample", "v_prediction")
NOISE_SCHEDULES = ("flow", "cosine", "linear")
SIZES = (  # of backbones and towers: numbers of at least 1, or None
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "vocab_size", "max_position_embeddings", "image_size", "patch_size", "num_channels",
)  # fmt: skip
MOST_LAYERS = 10_000  # some configs make a list with an entry a layer


def _one_of(name: str, value, allowed: tuple) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(map(repr, allowed))}")


def _positive(config, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{type(config).__name__}.{name} is {value!r}; it must be an integer of at least 1")


def _switches(config, *names: str) -> None:
    for name in names:
        if not isinstance(value := getattr(config, name), bool):
            raise ValueError(f"{type(config).__name__}.{name} is {value!r}; it must be true or false")


def check_sizes(settings: Mapping, where: str) -> None:
    """Raises ValueError for sizes of a backbone or tower that nothing can have, before its config class sees them."""
    for name in SIZES:
        value = settings.get(name)
        if isinstance(value, Real) and not isinstance(value, bool) and not value >= 1:
            raise ValueError(f"{where}.{name} is {value!r}; it must be at least 1")
    layers = settings.get("num_hidden_layers")
    if isinstance(layers, Real) and layers > MOST_LAYERS:
        raise ValueError(f"{where}.num_hidden_layers is {layers!r}; it must be at most {MOST_LAYERS}")


def _check_activation(value, where: str) -> None:
    if isinstance(value, str) and value not in ACT2FN:
        raise ValueError(f"{where} is {value!r}; it must be one that transformers has, such as 'silu' or 'gelu'")


def check_memory(config: "HybridGenConfig", what: str, bytes_per_weight: int) -> None:
    """Raises ValueError for a model whose weights this machine's memory can never hold, before any is made.

    Args:
        what: the model, as its user knows it.
    """
    weights, memory = weights_at_least(config), psutil.virtual_memory().total + psutil.swap_memory().total
    if (needed := weights * bytes_per_weight) <= memory:
        return
    text = config.text_config
    raise ValueError(
        f"{what} has at least {weights:,} weights, which are {needed / 1e9:,.0f} GB in memory, but this machine has "
        f"{memory / 1e9:,.0f} GB; make it smaller (text_config.hidden_size is {text.hidden_size}, num_hidden_layers "
        f"{text.num_hidden_layers}, vocab_size {text.vocab_size}), or take a larger machine"
    )


def weights_at_least(config: "HybridGenConfig") -> int:
    """How many weights a model has, at least: embeddings, attention, and feed-forward layers where all are alike."""
    text, vision, vq = config.text_config, config.vision_config, config.vq_config

    def size(of: PreTrainedConfig, name: str) -> int:
        value = getattr(of, name, None)
        return value if isinstance(value, int) else 0

    width, heads = size(text, "hidden_size"), size(text, "num_attention_heads")
    head = size(text, "head_dim") or width // max(heads, 1)
    attention = 2 * width * head * (heads + (size(text, "num_key_value_heads") or 1))
    experts = any(getattr(text, name, None) for name in ("num_experts", "num_local_experts", "n_routed_experts"))
    feed_forward = 0 if experts else 2 * width * size(text, "intermediate_size")
    embeddings = width * size(text, "vocab_size") * (1 if config.tie_word_embeddings else 2)
    weights = embeddings + size(text, "num_hidden_layers") * (attention + feed_forward)
    if vision is not None:
        side = size(vision, "hidden_size")
        layer = 4 * side * side + 2 * side * size(vision, "intermediate_size")
        weights += size(vision, "num_hidden_layers") * layer
    if vq is not None and vq.code_tokens is None:
        weights += vq.num_embeddings * (vq.embed_dim + width)
    return weights


class HybridGenDiffusionConfig(PreTrainedConfig):
    """The diffusion path: clean images read at t = 0, images written by denoising.

    Args:
        in_channels: channels of a latent (3 for pixels).
        patch_size: side of a patch, in latents (pixels where there is no VAE).
        sample_size: side of the default image, in latents.
        prediction_type: what the head predicts: `velocity` (flow matching, noise - x0), `epsilon`, `sample` (x0), or
            `v_prediction` (Salimans & Ho 2022, for cosine and linear schedules).
        noise_schedule: `flow` (x = (1 - s) x0 + s noise, timestep = 1000 s), or the DDPM schedules `cosine`
            (squaredcos_cap_v2) and `linear`, with diffusers' tables.
        num_train_timesteps: the model's timesteps lie between 0 and this.
        bidirectional: tokens of one image see each other (Transfusion) or only what came before (JanusFlow).
        frequency_embedding_size: width of the sinusoid under the timestep MLP (DiT: 256).
        unet_channels: channels of a small U-Net around the backbone, from its finest level to patches of `patch_size`,
            each level half the last one's rows and columns (Transfusion's U-Net down and up; `paths.unet`); None = one
            linear layer in and one out.
        convnext_channels: channels of ConvNeXt blocks in front of the backbone and, with a long skip, behind it
            (JanusFlow: 768; `paths.convnext`), instead of the linear layers or a U-Net; None = none.
        convnext_depth: how many of them on each side.
        time_token: an image's first token is its timestep, in front of the patches (JanusFlow).
        modality_experts: tokens of this path have projections and norms of their own in every layer of the backbone,
            whose attention they share with the others (LMFusion, BAGEL; `paths.modality_experts`). Configs of older
            checkpoints call it `own_layers`, which is still read.
        alignment_layer: layer of the backbone, from 1, whose states of an image's tokens are aligned with the vision
            tower's features of the clean picture (REPA, arXiv 2410.06940; JanusFlow: 6); None = there is no such head.
        alignment_depth: linear layers between the two.
    """

    model_type = "hybridgen_diffusion"
    base_config_key = "diffusion_config"

    in_channels: int = 3
    patch_size: int = 2
    sample_size: int = 32
    prediction_type: str = "velocity"
    noise_schedule: str = "flow"
    num_train_timesteps: int = 1000
    bidirectional: bool = True
    frequency_embedding_size: int = 256
    unet_channels: list[int] | None = None
    convnext_channels: int | None = None
    convnext_depth: int = 2
    time_token: bool = False
    modality_experts: bool = False
    alignment_layer: int | None = None
    alignment_depth: int = 3

    def __post_init__(self, **kwargs):
        self.modality_experts = kwargs.pop("own_layers", self.modality_experts)  # its name in older checkpoints
        _positive(self, "in_channels", "patch_size", "sample_size", "num_train_timesteps", "frequency_embedding_size")
        _positive(
            self,
            "convnext_depth",
            "alignment_depth",
            *(["alignment_layer"] if self.alignment_layer is not None else []),
        )
        _switches(self, "bidirectional", "time_token", "modality_experts")
        _one_of("diffusion_config.prediction_type", self.prediction_type, PREDICTION_TYPES)
        _one_of("diffusion_config.noise_schedule", self.noise_schedule, NOISE_SCHEDULES)
        wrong, right = ("v_prediction", "velocity") if self.noise_schedule == "flow" else ("velocity", "v_prediction")
        if self.prediction_type == wrong:
            raise ValueError(
                f"diffusion_config.prediction_type {wrong!r} does not go with noise_schedule {self.noise_schedule!r}; "
                f"say {right!r}"
            )
        if self.sample_size % self.patch_size:
            raise ValueError(
                f"diffusion_config.sample_size {self.sample_size} is not divisible by patch_size {self.patch_size}"
            )
        self._check_unet()
        if self.convnext_channels is not None:
            _positive(self, "convnext_channels")
            if self.unet_channels is not None:
                raise ValueError(
                    f"diffusion_config.convnext_channels is {self.convnext_channels} and unet_channels "
                    f"{self.unet_channels}; both lead into the backbone and out of it, so keep one"
                )
        super().__post_init__(**kwargs)

    def tokens(self, height: int, width: int) -> int:
        """How many tokens an image of this size, in latents, takes: its patches, and the timestep where that is one."""
        return (height // self.patch_size) * (width // self.patch_size) + self.time_token

    def _check_unet(self) -> None:
        channels = self.unet_channels
        if channels is None:
            return
        if not isinstance(channels, list | tuple) or not channels or not all(map(_is_multiple_of_8, channels)):
            raise ValueError(
                f"diffusion_config.unet_channels is {channels!r}; it must be a list of multiples of 8, from the finest "
                "level to the coarsest"
            )
        if self.patch_size % (step := 2 ** (len(channels) - 1)):
            raise ValueError(
                f"diffusion_config.patch_size {self.patch_size} is not divisible by {step}, as the {len(channels)} "
                "levels of unet_channels need; take another patch size or fewer levels"
            )


def _is_multiple_of_8(value) -> bool:
    return isinstance(value, int) and value > 0 and value % 8 == 0


class HybridGenVQConfig(PreTrainedConfig):
    """The vq path as in Janus, with its names: code embeddings -> aligner -> backbone -> head over the codebook. Or as
    in Chameleon (arXiv 2405.09818), where codes are tokens of the language model, with its embeddings and its head.

    Args:
        num_embeddings: number of codes of the tokenizer.
        first_token_id: token id of code 0 in the vocabulary, the other codes follow it; of the settings below, only
            `sample_size` is used then. None = the path has embeddings, aligner and head of its own.
        token_ids: instead of `first_token_id`, the token id of each code, where they do not follow one another.
        embed_dim: width of the path's own embedding table (not the tokenizer's codebook).
        projection_dim: width of the aligner and of the head's hidden layer; None = the backbone's.
        num_hidden_layers: linear layers of the aligner.
        hidden_act: activation between them.
        image_token_embed_dim: width of the backbone; None = taken from `text_config`.
        sample_size: codes along one side of the default image.
    """

    model_type = "hybridgen_vq"
    base_config_key = "vq_config"

    num_embeddings: int = 16384
    first_token_id: int | None = None
    token_ids: list[int] | None = None
    embed_dim: int = 8
    projection_dim: int | None = None
    num_hidden_layers: int = 2
    hidden_act: str = "gelu"
    image_token_embed_dim: int | None = None
    sample_size: int = 24

    def __post_init__(self, **kwargs):
        _positive(self, "num_embeddings", "embed_dim", "num_hidden_layers", "sample_size")
        self._check_token_ids()
        super().__post_init__(**kwargs)

    @property
    def code_tokens(self) -> range | list[int] | None:
        """The token id of each code, where codes are tokens of the vocabulary."""
        if self.token_ids is not None or self.first_token_id is None:
            return self.token_ids
        return range(self.first_token_id, self.first_token_id + self.num_embeddings)

    def _check_token_ids(self) -> None:
        if (ids := self.token_ids) is None:
            return
        if self.first_token_id is not None:
            raise ValueError(
                f"vq_config has first_token_id {self.first_token_id} and token_ids; both say which tokens the codes "
                "are, so keep one"
            )
        if not isinstance(ids, list) or not all(type(token) is int for token in ids):
            raise ValueError(f"vq_config.token_ids is {' '.join(repr(ids).split())[:60]}; it must be a list of ids")
        if len(ids) != self.num_embeddings or len(set(ids)) != len(ids):
            raise ValueError(
                f"vq_config.token_ids has {len(ids)} ids, {len(set(ids))} of them different, but there are "
                f"{self.num_embeddings} codes; give one for each"
            )


class HybridGenConfig(PreTrainedConfig):
    """A hybrid model: one decoder of transformers, and the paths whose configs are given.

    Args:
        text_config: any decoder that `AutoModel` knows (Qwen3, Llama, Qwen3-MoE, Llama 4 text, ...).
        vision_config: the understanding path's tower: SigLIP, SigLIP 2, Janus' vision model, CLIP, DINOv2, DINOv3, ViT
            and their kin (`configuration_understanding.PREFIX_TOKENS`); None = no such path.
        diffusion_config: see `HybridGenDiffusionConfig`; None = no such path.
        vq_config: see `HybridGenVQConfig`; None = no such path.
        image_token_id, diffusion_token_id, vq_token_id: placeholders, one per path, for the tokens of an image.
        begin_image_token_id, end_image_token_id: frame every image; None = nothing does.
        understanding_bidirectional: tokens of an image on the understanding path see each other (Janus: no).
        vision_feature_layer: the tower's hidden states that are its features, as LLaVA counts them: 0 = its embeddings,
            -1 = what its last layer makes, before the last norm, -2 = the layer before; several are put side by side.
            None = the tower's output.
        aligner: the connector from features to the backbone, `{type: ..., ...}`, one of those of
            `configuration_understanding.CONNECTORS` with its settings; None = `mlp`.
        native_aspect: the tower reads pictures in their own shape, of at most `vision_config.num_patches` patches, not
            squares with gray beside them (SigLIP 2 NaFlex alone). A picture then takes `native_sizes.count` tokens.
        aligner_depth, aligner_hidden_act: the connector's linear layers and activation (Janus: 2, gelu), where
            `aligner` does not say them.
        tie_word_embeddings: one matrix for text embeddings and head; None = as `text_config` says.
    """

    model_type = "hybridgen"
    sub_configs: ClassVar[dict] = {
        "text_config": AutoConfig,
        "vision_config": AutoConfig,
        "diffusion_config": HybridGenDiffusionConfig,
        "vq_config": HybridGenVQConfig,
    }

    text_config: dict | PreTrainedConfig | None = None
    vision_config: dict | PreTrainedConfig | None = None
    diffusion_config: dict | PreTrainedConfig | None = None
    vq_config: dict | PreTrainedConfig | None = None
    image_token_id: int | None = None
    diffusion_token_id: int | None = None
    vq_token_id: int | None = None
    begin_image_token_id: int | None = None
    end_image_token_id: int | None = None
    understanding_bidirectional: bool = False
    vision_feature_layer: int | list[int] | None = None
    aligner: dict | None = None
    native_aspect: bool = False
    aligner_depth: int = 2
    aligner_hidden_act: str = "gelu"
    initializer_range: float = 0.02
    tie_word_embeddings: bool | None = None

    def __post_init__(self, **kwargs):
        self.text_config = _sub_config(self.text_config or {}, "qwen3")
        self.vision_config = _with_image_size(_sub_config(self.vision_config, "siglip_vision_model"))
        self.diffusion_config = _path_config(self.diffusion_config, HybridGenDiffusionConfig)
        self.vq_config = _path_config(self.vq_config, HybridGenVQConfig)
        if self.vq_config is not None:
            self.vq_config.image_token_embed_dim = self.vq_config.image_token_embed_dim or self.text_config.hidden_size
            self.vq_config.projection_dim = self.vq_config.projection_dim or self.text_config.hidden_size
        self._settle_aligner()
        if self.tie_word_embeddings is None:
            self.tie_word_embeddings = bool(getattr(self.text_config, "tie_word_embeddings", False))
        self._check()
        super().__post_init__(**kwargs)

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths this model has, in the order of `core.names.PATHS`."""
        configs = {"understanding": self.vision_config, "diffusion": self.diffusion_config, "vq": self.vq_config}
        return tuple(path for path, config in configs.items() if config is not None)

    @property
    def tower_size(self) -> int:
        """Side in pixels of the pictures that the vision tower reads; of a square one, where they keep their shape."""
        return (
            self.feature_grid[0] * self.vision_config.patch_size
            if self.native_aspect
            else tower_side(self.vision_config)
        )

    @property
    def feature_grid(self) -> tuple[int, int]:
        """Rows and columns of the tower's features of a picture; of a square one, where they keep their shape."""
        if (native := self.native_sizes) is None:
            return feature_grid(self.vision_config)
        return (math.isqrt(native.most) * self.connector.square,) * 2

    @property
    def native_sizes(self) -> NativeSizes | None:
        """The sizes of pictures that keep their shape; None where they are squares."""
        if not self.native_aspect:
            return None
        square, vision = self.connector.square, self.vision_config
        return NativeSizes(square * vision.patch_size, vision.num_patches // square**2, self.connector.always)

    @property
    def feature_layers(self) -> tuple[int, ...] | None:
        """The tower's hidden states that are its features; None = its output."""
        return feature_layers(self.vision_feature_layer, self.vision_config)

    @property
    def feature_width(self) -> int:
        """Width of a feature: the tower's, once for each of its layers that are taken."""
        return self.vision_config.hidden_size * len(self.feature_layers or [None])

    @property
    def connector(self) -> MLPSettings:
        """The settings of the connector from features to the backbone."""
        if self.aligner is not None:
            return connector_settings(self.aligner)
        return MLPSettings(self.aligner_depth, self.aligner_hidden_act)

    @property
    def image_tokens(self) -> int | None:
        """How many tokens a picture takes on the understanding path (at most, where pictures keep their shape); None
        where there is no such path."""
        if self.vision_config is None:
            return None
        if (native := self.native_sizes) is not None and native.tokens is None:
            return native.most
        return self.connector.tokens(self.feature_grid)

    @property
    def vocab_size(self) -> int:
        return self.text_config.vocab_size

    @vocab_size.setter
    def vocab_size(self, value: int) -> None:  # `resize_token_embeddings` writes it
        self.text_config.vocab_size = value

    def placeholder(self, path: str) -> int:
        """The placeholder id of a path. Raises ValueError if the model does not have it."""
        require_path(self.paths, path)
        return {
            "understanding": self.image_token_id,
            "diffusion": self.diffusion_token_id,
            "vq": self.vq_token_id,
        }[path]

    def is_bidirectional(self, path: str) -> bool:
        """Whether the tokens of an image on this path see each other."""
        if path == "understanding":
            return self.understanding_bidirectional
        return path == "diffusion" and self.diffusion_config.bidirectional

    def to_dict(self) -> dict:
        """As everywhere, but the dtype is said once: loading writes it into every part, a new model into none."""
        output = super().to_dict()
        for name in self.sub_configs:
            if output.get(name) is not None:
                output[name]["dtype"] = None
        return output

    def _check(self) -> None:
        _positive(self, "aligner_depth")
        if not 0 < self.initializer_range < math.inf:
            raise ValueError(f"initializer_range is {self.initializer_range!r}; it must be above 0")
        for part in ("text_config", "vision_config"):
            if (config := getattr(self, part)) is not None:
                check_sizes(vars(config), part)
                _check_activation(getattr(config, "hidden_act", None), f"{part}.hidden_act")
        _check_activation(self.aligner_hidden_act, "aligner_hidden_act")
        self._check_features()
        width = self.text_config.hidden_size
        if self.vq_config is not None and self.vq_config.image_token_embed_dim != width:
            raise ValueError(
                f"vq_config.image_token_embed_dim {self.vq_config.image_token_embed_dim} is not the backbone's "
                f"hidden_size {width}; leave it out to follow the backbone"
            )
        if self.vq_config is not None and self.vq_config.projection_dim != width:
            raise ValueError(
                f"vq_config.projection_dim {self.vq_config.projection_dim} is not the backbone's hidden_size {width}: "
                "the aligner writes into the backbone; leave it out to follow it"
            )
        if self.diffusion_config is not None and width % 4:
            raise ValueError(f"the diffusion path's position table needs a hidden_size divisible by 4, not {width}")
        self._check_heads()
        self._check_alignment()
        self._check_shared_vocabulary()
        names = ("image_token_id", "diffusion_token_id", "vq_token_id")
        ids = [getattr(self, name) for name in names if getattr(self, name) is not None]
        if len(ids) != len(set(ids)):
            shown = ", ".join(f"{name} {getattr(self, name)}" for name in names)
            raise ValueError(f"each path needs a placeholder of its own, but the ids repeat: {shown}")

    def _settle_aligner(self) -> None:
        """Write out every setting of a connector that is given, so that later defaults do not change what is saved."""
        if self.aligner is None:
            return
        if self.vision_config is None:
            raise ValueError("aligner is given, but there is no vision_config; give it, or leave aligner out")
        settings = connector_settings(self.aligner)
        for name, default in (("depth", 2), ("hidden_act", "gelu")):
            long, said = f"aligner_{name}", getattr(settings, name)
            if getattr(self, long) not in (default, said):
                raise ValueError(
                    f"{long} is {getattr(self, long)!r}, but aligner says {name} {said!r}; keep it in aligner alone"
                )
            setattr(self, long, said)
        self.aligner = all_settings(settings)

    def _check_features(self) -> None:
        """That the tower has the layers that are asked for, and that the connector fits its features."""
        if self.vision_config is None:
            if self.native_aspect:
                raise ValueError("native_aspect is true, but there is no vision_config; leave it out")
            if self.vision_feature_layer is not None:
                given = self.vision_feature_layer
                raise ValueError(f"vision_feature_layer is {given!r}, but there is no vision_config; leave it out")
            return
        _switches(self, "native_aspect")
        if self.native_aspect:
            self._check_native()
            return
        check_square(self.vision_config)
        feature_layers(self.vision_feature_layer, self.vision_config)
        if (grid := feature_grid(self.vision_config)) is not None:  # else the tower is none (`check_tower`)
            self.connector.check(grid)

    def _check_native(self) -> None:
        if (kind := self.vision_config.model_type) != "siglip2_vision_model":
            raise ValueError(
                f"native_aspect is true, but the vision tower is a {kind!r}, which reads squares; give a "
                "'siglip2_vision_model', or say false"
            )
        feature_layers(self.vision_feature_layer, self.vision_config)
        if self.native_sizes.most < 1:
            raise ValueError(
                f"aligner.factor is {self.connector.square}, but the tower has "
                f"{self.vision_config.num_patches} patches, fewer than one token needs; make it smaller"
            )

    def _check_heads(self) -> None:
        """Attention heads must divide: transformers would fail in the first forward, with a less helpful message."""
        heads = getattr(self.text_config, "num_attention_heads", None)
        groups = getattr(self.text_config, "num_key_value_heads", None)
        if heads and groups and heads % groups:
            raise ValueError(
                f"text_config.num_attention_heads {heads} is not divisible by num_key_value_heads {groups}; make it a "
                "multiple"
            )
        head = getattr(self.text_config, "head_dim", None)
        if isinstance(head, int) and head % 2 and getattr(self.text_config, "rope_parameters", None):
            raise ValueError(f"text_config.head_dim is {head}; it must be even, as rotary positions turn pairs")
        side, patch = (getattr(self.vision_config, name, None) for name in ("image_size", "patch_size"))
        if isinstance(side, int) and isinstance(patch, int) and patch > side:
            raise ValueError(f"vision_config.patch_size {patch} is more than its image_size {side}; make it smaller")
        heads, width = (getattr(self.vision_config, name, None) for name in ("num_attention_heads", "hidden_size"))
        if heads and width and width % heads:
            raise ValueError(
                f"vision_config.hidden_size {width} is not divisible by num_attention_heads {heads}; make it a multiple"
            )

    def _check_alignment(self) -> None:
        layer = None if self.diffusion_config is None else self.diffusion_config.alignment_layer
        if layer is None:
            return
        if self.vision_config is None:
            raise ValueError(
                f"diffusion_config.alignment_layer is {layer}, but there is no vision tower to align with; give "
                "vision_config, or leave it out"
            )
        if layer > (layers := self.text_config.num_hidden_layers):
            raise ValueError(f"diffusion_config.alignment_layer is {layer}, but the backbone has {layers} layers")

    def _check_shared_vocabulary(self) -> None:
        if self.vq_config is None or (codes := self.vq_config.code_tokens) is None:
            return
        first, last = min(codes), max(codes)
        if first < 0 or last >= self.vocab_size:
            begin = "first_token_id " + str(first) if self.vq_config.token_ids is None else "token_ids"
            raise ValueError(
                f"vq_config.{begin} and {len(codes)} codes need the tokens {first} to {last}, but the vocabulary has "
                f"{self.vocab_size}; enlarge it, or begin earlier"
            )
        names = (
            "image_token_id", "diffusion_token_id", "vq_token_id", "begin_image_token_id", "end_image_token_id",
        )  # fmt: skip
        for name in names:
            if (token := getattr(self, name)) is not None and token in codes:
                raise ValueError(f"{name} {token} lies among the codes, which are the tokens {first} to {last}")


def require_path(paths: tuple[str, ...], path: str) -> None:
    """Raises ValueError, naming the paths there are, when `path` is not among them."""
    if not isinstance(path, str) or path not in paths:
        raise ValueError(
            f"no path {' '.join(repr(path).split())[:60]} here; this model has: {', '.join(paths) or 'none'}"
        )


def _sub_config(config: dict | PreTrainedConfig | None, default_type: str) -> PreTrainedConfig | None:
    if config is None or isinstance(config, PreTrainedConfig):
        return config
    where = "vision_config" if default_type == "siglip_vision_model" else "text_config"
    if not isinstance(config, dict):
        raise ValueError(f"{where} is {' '.join(repr(config).split())[:60]}; it must be an object of settings")
    config = dict(config)
    check_sizes(config, where)
    kind = config.pop("model_type", default_type)
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise ValueError(
            f"{where}.model_type is {kind!r}, which this transformers does not know; update it, or mend it"
        )
    return AutoConfig.for_model(kind, **config)


def _with_image_size(config: PreTrainedConfig | None) -> PreTrainedConfig | None:
    """SigLIP 2 (NaFlex) has a number of patches instead of an image size; here towers take squares, so one follows."""
    if config is not None and getattr(config, "image_size", None) is None and hasattr(config, "num_patches"):
        config.image_size = tower_side(config)
    return config


def _path_config(
    config: dict | PreTrainedConfig | None, config_class: type[PreTrainedConfig]
) -> PreTrainedConfig | None:
    return config_class(**config) if isinstance(config, dict) else config
