"""From the settings of a config to the connector they describe."""

from hybridgen.configuration_hybridgen import HybridGenConfig
from hybridgen.configuration_understanding import (
    AveragePoolSettings,
    PerceiverResamplerSettings,
    PixelShuffleSettings,
    QFormerSettings,
)
from hybridgen.paths.connectors.mlp import Aligner
from hybridgen.paths.connectors.perceiver_resampler import PerceiverResampler
from hybridgen.paths.connectors.pooling import AveragePoolAligner, PixelShuffleAligner
from hybridgen.paths.connectors.q_former import QFormer

_WITH_FEWER_TOKENS = {
    AveragePoolSettings: AveragePoolAligner,
    PixelShuffleSettings: PixelShuffleAligner,
    PerceiverResamplerSettings: PerceiverResampler,
    QFormerSettings: QFormer,
}


def build_connector(config: HybridGenConfig) -> Aligner:
    """The understanding path's connector: features (I, T, E) -> tokens (I, t, H)."""
    settings = config.connector
    if (kind := _WITH_FEWER_TOKENS.get(type(settings))) is not None:
        return kind(config)
    return Aligner(config.feature_width, config.text_config.hidden_size, settings.depth, settings.hidden_act)
