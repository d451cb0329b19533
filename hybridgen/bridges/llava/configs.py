"""Configurations of LLaVA: `LlavaConfig` -> ours, and back. No weights are read here."""

import copy

import torch
from transformers import LlavaConfig, PreTrainedConfig

from hybridgen.bridges.comparison import shapes_on_meta
from hybridgen.configuration_hybridgen import HybridGenConfig
from hybridgen.configuration_understanding import MLPSettings, prefix_tokens
from hybridgen.modeling_hybridgen import HybridGenForConditionalGeneration

HEAD, EMBEDDINGS = "lm_head.weight", "model.language_model.embed_tokens.weight"
_STRATEGIES = {0: "full", 1: "default"}  # by the tokens of its own that a tower has before its patches


def hybrid_config(config: LlavaConfig) -> HybridGenConfig:
    """Our config of the same model.

    Raises:
        ValueError: it is no LLaVA 1.5: its projector or its features are of another kind.
    """
    vision, strategy = config.vision_config, config.vision_feature_select_strategy
    if not config.multimodal_projector_bias:
        raise ValueError("multimodal_projector_bias is false, but the linear layers of a LLaVA 1.5 have biases")
    if strategy != (fits := _STRATEGIES.get(own := prefix_tokens(vision))):
        there = "no token of its own" if own == 0 else f"{own} of its own"
        raise ValueError(
            f"vision_feature_select_strategy is {strategy!r}, but a {vision.model_type!r} has {there} before its "
            f"patches, and features are the patches alone here; {'say ' + repr(fits) if fits else 'give a CLIP'}"
        )
    hybrid = HybridGenConfig(
        text_config=_copy(config.text_config),
        vision_config=_copy(vision),
        vision_feature_layer=config.vision_feature_layer,
        aligner_depth=2,
        aligner_hidden_act=config.projector_hidden_act,
        image_token_id=config.image_token_id,
        tie_word_embeddings=config.tie_word_embeddings,
    )
    if config.image_seq_length != hybrid.image_tokens:
        raise ValueError(
            f"image_seq_length is {config.image_seq_length}, but the tower makes {hybrid.image_tokens} features of a "
            "picture"
        )
    return hybrid


def llava_config(hybrid: HybridGenConfig) -> LlavaConfig:
    """transformers' config of one of our models.

    Raises:
        ValueError: it is no LLaVA 1.5: it draws, frames its pictures, or is connected otherwise.
    """
    if hybrid.paths != ("understanding",):
        raise ValueError(f"a LLaVA reads pictures and draws none, but this model's paths are {', '.join(hybrid.paths)}")
    if hybrid.begin_image_token_id is not None:
        raise ValueError("a LLaVA's pictures stand among the words as they are, but this model's are framed by tokens")
    if hybrid.understanding_bidirectional:
        raise ValueError("a LLaVA reads images causally, but this model's understanding_bidirectional is true")
    if type(hybrid.connector) is not MLPSettings or hybrid.connector.depth != 2:
        raise ValueError("a LLaVA's aligner is two linear layers, but this model's is another connector")
    if hybrid.vision_feature_layer is None:
        raise ValueError(
            "a LLaVA takes hidden states of its tower, but this model's vision_feature_layer is not given: its output"
        )
    if (strategy := _STRATEGIES.get(prefix_tokens(hybrid.vision_config))) is None:
        raise ValueError(f"a LLaVA has no tower with the tokens of a {hybrid.vision_config.model_type!r}")
    return LlavaConfig(
        text_config=_copy(hybrid.text_config),
        vision_config=_copy(hybrid.vision_config),
        image_token_index=hybrid.image_token_id,
        image_seq_length=hybrid.image_tokens,
        projector_hidden_act=hybrid.connector.hidden_act,
        vision_feature_select_strategy=strategy,
        vision_feature_layer=hybrid.vision_feature_layer,
        tie_word_embeddings=hybrid.tie_word_embeddings,
    )


def _copy(config: PreTrainedConfig) -> PreTrainedConfig:
    """A copy, since classes that are given a config write into it; without the dtype, which is said once."""
    config = copy.deepcopy(config)
    config.dtype = None
    return config


def build(hybrid: HybridGenConfig) -> HybridGenForConditionalGeneration:
    """The model without weights, on the meta device."""
    with torch.device("meta"):
        return HybridGenForConditionalGeneration(copy.deepcopy(hybrid))


def expected_shapes(hybrid: HybridGenConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a model's tensors, ours; no memory is used for weights.

    Raises:
        ValueError: no model can be built of these sizes.
    """
    shapes = shapes_on_meta(lambda: build(hybrid), "LLaVA")
    if hybrid.tie_word_embeddings:
        shapes.pop(HEAD)
    return shapes
