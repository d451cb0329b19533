"""Chameleon's decoder as a backbone like any other: transformers' layers without the VQ tokenizer that it puts inside.

A Llama but for two things: queries and keys pass a LayerNorm with weights of its own for each head, and with
`swin_norm` (the 34B) a norm stands behind attention and feed-forward instead of before them (arXiv 2405.09818, sec.
2.3). transformers' `ChameleonModel` has the layers, and besides them a tokenizer of pictures, which is a component of
the pipeline here. `chameleon_decoder` is registered with transformers' Auto classes (`hybridgen/__init__`), so that
`text_config: {model_type: chameleon_decoder}` is all that it takes, in a new model as in a converted one.

Shapes: B rows, N tokens, H width.
"""

from typing import ClassVar

from torch import nn
from transformers import ChameleonConfig, ChameleonForConditionalGeneration, ChameleonModel, ChameleonPreTrainedModel
from transformers.models.chameleon.modeling_chameleon import (
    ChameleonDecoderLayer,
    ChameleonImageVocabularyMapping,
    ChameleonRMSNorm,
    ChameleonRotaryEmbedding,
    ChameleonSwinDecoderLayer,
)


class ChameleonDecoderConfig(ChameleonConfig):
    """transformers' settings of a Chameleon without those of its VQ tokenizer.

    Args:
        swin_norm: norms stand behind attention and feed-forward (34B).
        vocabulary_map: the tokens by name, as a Chameleon's config.json has them; nothing here reads it, it is kept for
            the way back.
        model_parallel_size: of the training that the weights come from, kept as well.
    """

    model_type = "chameleon_decoder"
    sub_configs_defaults: ClassVar[dict] = {}
    sub_configs: ClassVar[dict] = {}

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        self.vq_config = None


class ChameleonDecoder(ChameleonModel):
    """(B, N) ids or (B, N, H) embeddings -> (B, N, H); `forward` is transformers'."""

    config: ChameleonDecoderConfig
    config_class = ChameleonDecoderConfig
    input_modalities = ("text",)

    def __init__(self, config: ChameleonDecoderConfig):
        ChameleonPreTrainedModel.__init__(self, config)  # not `ChameleonModel.__init__`, which makes a tokenizer
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        layer = ChameleonSwinDecoderLayer if config.swin_norm else ChameleonDecoderLayer
        self.layers = nn.ModuleList([layer(config, number) for number in range(config.num_hidden_layers)])
        self.norm = ChameleonRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = ChameleonRotaryEmbedding(config=config)
        self.vocabulary_mapping = ChameleonImageVocabularyMapping({})  # of no picture: no token of the head is masked
        self.gradient_checkpointing = False
        self.post_init()


class ChameleonDecoderForCausalLM(ChameleonForConditionalGeneration):
    """The decoder with its head, whose logits of the tokens of pictures are not masked as transformers' are: what
    backbones are tried out against (`bridges.backbones`)."""

    config: ChameleonDecoderConfig
    config_class = ChameleonDecoderConfig
    input_modalities = ("text",)

    def __init__(self, config: ChameleonDecoderConfig):
        ChameleonPreTrainedModel.__init__(self, config)
        self.model = ChameleonDecoder(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()
