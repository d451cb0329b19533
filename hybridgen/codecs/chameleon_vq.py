"""Chameleon's VQ tokenizer: transformers' encoder and codebook, and the decoder that transformers leaves out.

transformers' `ChameleonVQVAE` only reads pictures. The decoder is that of taming-transformers' VQGAN (arXiv
2012.09841), of which Janus' is a variant: the same blocks in the same order, with attention at the coarsest level
besides. So it is transformers' Janus decoder here without that attention. Checkpoints in transformers' layout mostly
lack its weights, as Meta's release keeps them in a file of their own: then there is none (`has_decoder`), and pictures
are read but not drawn.

Shapes: I images, L latent channels, h x w codes, H x W = f h x f w pixels.
"""

from torch import nn
from transformers import ChameleonVQVAE, ChameleonVQVAEConfig, PreTrainedModel  # noqa: F401  (diffusers looks it up)
from transformers.models.janus.modeling_janus import JanusVQVAEAttnBlock, JanusVQVAEDecoder


class ChameleonVQConfig(ChameleonVQVAEConfig):
    """transformers' settings of Chameleon's tokenizer, and two of the decoder.

    Args:
        has_decoder: whether there is one.
        out_channels: of the pictures that it makes.
    """

    model_type = "chameleon_vq"

    has_decoder: bool = False
    out_channels: int = 3


class ChameleonVQDecoder(JanusVQVAEDecoder):
    """(I, L, h, w) -> pixels (I, 3, H, W). Levels stand from the coarsest to the finest, as in transformers' Janus."""

    def __init__(self, config: ChameleonVQConfig):
        super().__init__(config)
        attends = config.attn_type == "vanilla"
        if not attends:
            self.mid.attn_1 = nn.Identity()
        sides = [config.resolution // 2**number for number in reversed(range(self.num_resolutions))]
        for level, side, multiple in zip(self.up, sides, reversed(config.channel_multiplier), strict=True):
            count = len(level.block) if attends and side in (config.attn_resolutions or ()) else 0
            channels = config.base_channels * multiple
            level.attn = nn.ModuleList(JanusVQVAEAttnBlock(channels) for _ in range(count))


class ChameleonVQ(ChameleonVQVAE):
    """The tokenizer with its decoder, where there is one; see `frozen.VQCodec`, which runs it."""

    config: ChameleonVQConfig
    config_class = ChameleonVQConfig

    def __init__(self, config: ChameleonVQConfig):
        super().__init__(config)
        self.decoder = ChameleonVQDecoder(config) if config.has_decoder else None
        self.eval()
        self.post_init()
