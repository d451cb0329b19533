"""What a decoder's config says of it as a backbone: which can be none, and how far each of its layers sees back.

The backbone is any decoder of transformers whose layers see what our mask shows, and nothing else. Layers with a window
or a chunk get it through the mask (`core.layout`). What no config tells is tried out: `bridges.backbones`.
"""

from transformers import PreTrainedConfig

from hybridgen.core.layout import Window

_STATEFUL = "carries words past the end of a document in a state"
_BY_IDS = "looks up embeddings by the ids of the text in every layer, which images do not have"
_SPARSE = "chooses by itself which tokens to attend to, beside what the mask shows"

# decoders that can be no backbone whatever their settings, by `model_type`, and why
NO_BACKBONES = {
    **dict.fromkeys(
        (
            "bamba", "falcon_h1", "falcon_mamba", "jamba", "kimi_linear", "lfm2", "lfm2_moe", "mamba", "mamba2",
            "minimax", "nemotron_h", "olmo_hybrid", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_next",
            "recurrent_gemma", "rwkv", "xlstm", "zamba", "zamba2",
        ),
        _STATEFUL,
    ),
    **dict.fromkeys(("gemma3n_text", "gemma4_text", "gemma4_unified_text"), _BY_IDS),
    **dict.fromkeys(("deepseek_v32", "deepseek_v4", "glm_moe_dsa", "doge"), _SPARSE),
}  # fmt: skip

_SIZES = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}


def check_kind(config: PreTrainedConfig, what: str) -> None:
    """Raises ValueError for a decoder that can be no backbone by its name, or by the kinds of its layers.

    Args:
        what: begins the error.
    """
    if (cause := NO_BACKBONES.get(config.model_type)) is not None:
        raise ValueError(f"{what}, which {cause}; give a decoder whose layers all attend, such as llama or qwen3")
    for kind in _kinds(config):
        if kind not in ("full_attention", "attention", *_SIZES):
            does = "choose by themselves what they attend to"
            if not kind.endswith("_attention") or kind.startswith("linear"):
                does = "carry words past the end of a document"
            raise ValueError(
                f"{what} with layers of {kind!r}, which {does}; give a decoder whose layers all attend, such as llama "
                "or qwen3"
            )
        size = getattr(config, _SIZES[kind], None) if kind in _SIZES else 1
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"{what} with layers of {kind!r}, but {_SIZES[kind]} {size!r}; give a number of tokens")


def layer_windows(config: PreTrainedConfig) -> dict[str, Window | None]:
    """The kinds of a decoder's layers, by transformers' names, and how far each sees back; None = to the beginning.

    Raises:
        ValueError: it can be no backbone (`check_kind`).
    """
    check_kind(config, f"the backbone is a {config.model_type!r}")
    return {
        kind: Window(getattr(config, _SIZES[kind]), kind == "chunked_attention") if kind in _SIZES else None
        for kind in _kinds(config)
    }


def _kinds(config: PreTrainedConfig) -> list[str]:
    """Configs list the kinds of their layers; those of older decoders have a window for all layers or for none."""
    kinds = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None)
    if kinds:
        return list(dict.fromkeys(kinds))
    window = getattr(config, "sliding_window", None)  # 0 is one, too, which nothing can have
    has_window = window is not None and getattr(config, "use_sliding_window", True)
    return ["sliding_attention" if has_window else "full_attention"]
