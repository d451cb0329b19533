"""Configurations of Janus: DeepSeek's JSON -> `JanusConfig` -> ours, and back.

No weights are read here, only their shapes. DeepSeek's config names sizes ("VQ-16", "siglip_large_patch16_384") where
others give numbers, so most numbers are taken from the tensors; what tensors do not show is how many heads the tower
has.
"""

import torch
from transformers import JanusConfig, JanusForConditionalGeneration, JanusVisionConfig, JanusVQVAEConfig, LlamaConfig

from hybridgen.bridges.comparison import shapes_on_meta
from hybridgen.bridges.janus.tensor_names import POSITIONS, VQ_PREFIX, is_dropped
from hybridgen.bridges.weights import StoredTensor
from hybridgen.configuration_hybridgen import HybridGenConfig
from hybridgen.configuration_understanding import LinearSettings, MLPSettings

_HEADS = {"siglip_large_patch16_384": 16, "siglip_so400m_patch14_384": 16, "siglip_so400m_patch14_224": 16}
_LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "patch_size": 16, "mlp_ratio": 4.0}
_VQ_16 = {"base_channels": 128, "channel_multiplier": [1, 1, 2, 2, 4], "num_res_blocks": 2, "latent_channels": 256}
_LANGUAGE = (  # keys that DeepSeek's language_config may have
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "hidden_act", "max_position_embeddings", "rms_norm_eps", "rope_theta",
    "rope_scaling", "attention_bias", "mlp_bias", "bos_token_id", "eos_token_id", "pad_token_id",
)  # fmt: skip


# ---------------------------------------------------------------------------------------------- DeepSeek's JSON


def config_from_official(official: dict, tensors: dict[str, StoredTensor]) -> JanusConfig:
    """The config of a model from DeepSeek's config.json and its tensors, under transformers' names.

    Raises:
        ValueError: a tensor is missing that tells a size, or the tower's heads cannot be known.
    """
    kind = official["language_config"].get("model_type", "llama")
    if kind != "llama":
        raise ValueError(f"its language_config is a {kind!r}, but a Janus' backbone is a llama")
    language = {name: value for name, value in official["language_config"].items() if name in _LANGUAGE}
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    aligner, vq_aligner = "model.aligner.", "model.generation_aligner."
    vision = JanusVisionConfig(
        **_tower(official.get("vision_config", {}).get("params", {}), shapes),
        projection_dim=_shape(shapes, f"{aligner}fc1.weight")[0],
        depth=_count(shapes, f"{aligner}hidden_layers.") + 1,
    )
    codes, width = _shape(shapes, "model.generation_embeddings.weight")
    vq = JanusVQVAEConfig(
        **_vq_tokenizer(shapes),
        num_embeddings=codes,
        embed_dim=width,
        projection_dim=_shape(shapes, f"{vq_aligner}fc1.weight")[0],
        num_hidden_layers=_count(shapes, f"{vq_aligner}hidden_layers.") + 1,
        image_token_embed_dim=_shape(shapes, "model.generation_head.proj_out.weight")[1],
    )
    tied = bool(official["language_config"].get("tie_word_embeddings", False))
    config = JanusConfig(
        text_config=LlamaConfig(**language, tie_word_embeddings=tied),
        vision_config=vision,
        vq_config=vq,
        tie_word_embeddings=tied,
    )
    config.dtype = official.get("torch_dtype") or official.get("dtype")
    return config


def _tower(params: dict, shapes: dict[str, tuple]) -> dict:
    width, channels, patch, _ = _shape(shapes, "model.vision_model.embeddings.patch_embedding.weight")
    positions = _shape(shapes, POSITIONS)[-2]
    hidden = _shape(shapes, "model.vision_model.encoder.layers.0.mlp.fc1.weight")[0]
    heads = params.get("heads") or _HEADS.get(params.get("model_name"))
    if heads is None or width % heads:
        raise ValueError(
            f"config.json does not say how many heads the vision tower of width {width} has: model_name is "
            f"{params.get('model_name')!r}; add vision_config.params.heads"
        )
    ratio = hidden / width
    return {
        "hidden_size": width,
        "num_channels": channels,
        "patch_size": patch,
        "image_size": params.get("image_size") or round(positions**0.5) * patch,
        "num_image_tokens": positions,
        "num_hidden_layers": _count(shapes, "model.vision_model.encoder.layers."),
        "num_attention_heads": heads,
        # int(width * ratio) must give the tensor's rows again, also where the ratio is a rounded 3.7362
        "mlp_ratio": ratio if int(width * ratio) == hidden else (hidden + 0.5) / width,
        "attention_bias": "model.vision_model.encoder.layers.0.self_attn.q_proj.bias" in shapes,
    }


def _vq_tokenizer(shapes: dict[str, tuple]) -> dict:
    down = f"{VQ_PREFIX}encoder.down."
    base = _shape(shapes, f"{VQ_PREFIX}encoder.conv_in.weight")[0]
    levels = range(_count(shapes, down))
    return {
        "base_channels": base,
        "channel_multiplier": [_shape(shapes, f"{down}{i}.block.0.conv1.weight")[0] // base for i in levels],
        "num_res_blocks": _count(shapes, f"{down}0.block."),
        "latent_channels": _shape(shapes, f"{VQ_PREFIX}quant_conv.weight")[1],
        "in_channels": _shape(shapes, f"{VQ_PREFIX}encoder.conv_in.weight")[1],
        "out_channels": _shape(shapes, f"{VQ_PREFIX}decoder.conv_out.weight")[0],
    }


def _shape(shapes: dict[str, tuple], name: str) -> tuple:
    if name not in shapes:
        raise ValueError(f"the checkpoint lacks {name} (in transformers' names), so the model's sizes are unknown")
    return shapes[name]


def _count(shapes: dict[str, tuple], prefix: str) -> int:
    """How many numbered modules there are below a name."""
    return len({name.removeprefix(prefix).split(".")[0] for name in shapes if name.startswith(prefix)})


def config_to_official(config: JanusConfig, dtype: torch.dtype) -> dict:
    """DeepSeek's config.json. Numbers for which its code has no key (of a tower or tokenizer smaller than its own) are
    added under keys that `config_from_official` reads.

    Raises:
        ValueError: the backbone is no Llama.
    """
    text, vision, vq = config.text_config, config.vision_config, config.vq_config
    if text.model_type != "llama":
        raise ValueError(f"DeepSeek's layout holds a llama, but the backbone is a {text.model_type}; use --to janus-hf")
    rope = dict(text.rope_parameters or {})
    language = {name: getattr(text, name, None) for name in _LANGUAGE}
    language |= {"rope_theta": rope.pop("rope_theta", None), "rope_scaling": None}
    if rope.get("rope_type", "default") != "default":
        language["rope_scaling"] = rope
    if text.head_dim == text.hidden_size // text.num_attention_heads:
        language.pop("head_dim")
    language = {name: value for name, value in language.items() if value is not None}
    name = str(dtype).removeprefix("torch.")
    params = {"image_size": vision.image_size, "model_name": "siglip_large_patch16_384", "select_feature": "same"}
    params["select_layer"] = -1
    if not _has_sizes(vision, _LARGE):
        params |= {"model_name": "siglip", "heads": vision.num_attention_heads}
    return {
        "architectures": ["MultiModalityCausalLM"],
        "model_type": "multi_modality",
        "torch_dtype": name,
        "language_config": {
            "model_type": "llama", **language, "tie_word_embeddings": config.tie_word_embeddings, "torch_dtype": name,
        },
        "vision_config": {"cls": "CLIPVisionTower", "model_type": "vision", "params": params},
        "aligner_config": _aligner("aligner", vision.depth, vision.hidden_size, vision.projection_dim),
        "gen_vision_config": {
            "cls": "VQ-16", "model_type": "gen_vision",
            "params": {"image_token_size": vq.num_embeddings, "n_embed": vq.embed_dim},
        },
        "gen_aligner_config": _aligner("gen_aligner", vq.num_hidden_layers, vq.embed_dim, vq.projection_dim),
        "gen_head_config": {
            "cls": "vision_head", "model_type": "gen_head",
            "params": {
                "image_token_embed": vq.projection_dim, "image_token_size": vq.num_embeddings,
                "n_embed": vq.image_token_embed_dim,
            },
        },
    }  # fmt: skip


def _aligner(kind: str, depth: int, width: int, out: int) -> dict:
    params = {"depth": depth, "input_dim": width, "n_embed": out, "projector_type": "mlp_gelu"}
    return {"cls": "MlpProjector", "model_type": kind, "params": params}


def unsupported_by_deepseek(config: JanusConfig) -> list[str]:
    """Which parts DeepSeek's code cannot build, because it knows one size of them."""
    parts = []
    if not _has_sizes(config.vision_config, _LARGE):
        parts.append("the vision tower, which is not siglip_large_patch16_384")
    if not _has_sizes(config.vq_config, _VQ_16):
        parts.append("the VQ tokenizer, which is not VQ-16")
    return parts


def _has_sizes(config, sizes: dict) -> bool:
    return all(getattr(config, name) == value for name, value in sizes.items())


# ---------------------------------------------------------------------------------------------- hybridgen's config


def hybrid_config(janus: JanusConfig, token_ids: dict[str, int]) -> HybridGenConfig:
    """Our config of the same model. Raises ValueError when its sizes do not fit one another."""
    vision, vq = janus.vision_config, janus.vq_config
    side = vision.image_size // vision.patch_size
    if vision.num_image_tokens != side * side:
        raise ValueError(
            f"vision_config.num_image_tokens is {vision.num_image_tokens}, but image_size {vision.image_size} and "
            f"patch_size {vision.patch_size} make {side * side}"
        )
    if vision.projection_dim != janus.text_config.hidden_size:
        raise ValueError(
            f"vision_config.projection_dim is {vision.projection_dim}, but the backbone's hidden_size is "
            f"{janus.text_config.hidden_size}"
        )
    return HybridGenConfig(
        text_config=_copy(janus.text_config),
        vision_config=_copy(vision),
        vq_config={
            "num_embeddings": vq.num_embeddings,
            "embed_dim": vq.embed_dim,
            "projection_dim": vq.projection_dim,
            "num_hidden_layers": vq.num_hidden_layers,
            "hidden_act": vq.hidden_act,
            "image_token_embed_dim": vq.image_token_embed_dim,
            "sample_size": side,
        },
        aligner_depth=vision.depth,
        aligner_hidden_act=vision.hidden_act,
        understanding_bidirectional=False,
        tie_word_embeddings=janus.tie_word_embeddings,
        **token_ids,
    )


def janus_config(hybrid: HybridGenConfig, vq_config) -> JanusConfig:
    """transformers' config of one of our models, with the config of its VQ tokenizer.

    Raises:
        ValueError: it is no Janus: a path is missing, or one is of another kind.
    """
    for path in ("understanding", "vq"):
        if path not in hybrid.paths:
            raise ValueError(f"a Janus has the paths understanding and vq, but this model has no {path} path")
    if hybrid.vision_config.model_type != "janus_vision_model":
        raise ValueError(f"a Janus has Janus' vision tower, but this model's is a {hybrid.vision_config.model_type}")
    if type(hybrid.connector) not in (MLPSettings, LinearSettings):
        raise ValueError(
            f"a Janus has linear layers between tower and backbone, but this model's aligner is a "
            f"{hybrid.aligner['type']}"
        )
    if hybrid.feature_layers is not None:
        raise ValueError(
            f"a Janus reads its tower's output, but this model's vision_feature_layer is {hybrid.vision_feature_layer}"
        )
    if getattr(vq_config, "model_type", None) != "janus_vqgan":
        raise ValueError("a Janus has Janus' VQ tokenizer, but the vq_model of this checkpoint is of another kind")
    if hybrid.vq_config.code_tokens is not None:
        raise ValueError(
            "a Janus has a table and a head for codes, but this model's codes are tokens of its vocabulary"
        )
    if hybrid.understanding_bidirectional:
        raise ValueError("a Janus reads images causally, but this model's understanding_bidirectional is true")
    vision, vq = _copy(hybrid.vision_config), _copy(vq_config)
    if hybrid.aligner_hidden_act != vision.hidden_act:
        raise ValueError(
            f"a Janus has one activation in tower and aligner, but this model has {vision.hidden_act!r} and "
            f"{hybrid.aligner_hidden_act!r}"
        )
    vision.depth, vision.projection_dim = hybrid.aligner_depth, hybrid.text_config.hidden_size
    # these four describe the aligner and the head between VQ tokenizer and backbone
    for name in ("projection_dim", "num_hidden_layers", "hidden_act", "image_token_embed_dim"):
        setattr(vq, name, getattr(hybrid.vq_config, name))
    return JanusConfig(
        text_config=_copy(hybrid.text_config),
        vision_config=vision,
        vq_config=vq,
        image_token_id=hybrid.image_token_id,
        tie_word_embeddings=hybrid.tie_word_embeddings,
    )


def lost_settings(
    config: JanusConfig, to: str, tensors: dict[str, StoredTensor], dtype: torch.dtype
) -> dict[str, tuple]:
    """Settings that change when a config is written in a layout and read again: name -> (before, after)."""
    if to == "janus-hf":
        return {}
    if to == "janus-official":
        again = config_from_official(config_to_official(config, dtype), tensors)
    else:
        ids = {"image_token_id": config.image_token_id}
        again = janus_config(hybrid_config(config, ids), config.vq_config)
    before, after = _flat(config.to_dict()), _flat(again.to_dict())
    names = [name for name in before | after if not name.endswith(_KEPT_ELSEWHERE)]
    pairs = {name: (before.get(name), after.get(name)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


_KEPT_ELSEWHERE = (  # in the tokenizer or the tensors, or read by nobody
    "_token_id", "tie_word_embeddings", "dtype", "architectures", "transformers_version", "_name_or_path",
)  # fmt: skip


def _flat(settings: dict, prefix: str = "") -> dict:
    flat = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _copy(config):
    """A copy, since classes that are given a config write into it; without the dtype and what saving notes."""
    settings = config.to_dict()
    for name in ("dtype", "torch_dtype", "transformers_version", "architectures", "_name_or_path"):
        settings.pop(name, None)
    return type(config).from_dict(settings)


def expected_shapes(config: JanusConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a model's tensors as transformers saves them; no memory is used for weights.

    Raises:
        ValueError: no model can be built of these sizes.
    """
    made = shapes_on_meta(lambda: JanusForConditionalGeneration(config), "Janus")
    shapes = {name: shape for name, shape in made.items() if not is_dropped(name)}
    if config.tie_word_embeddings:
        shapes.pop("lm_head.weight")
    return shapes
