"""The vq path: codes -> embeddings for the backbone; hidden states -> logits over the codebook (Janus, 2410.13848).

Here is the head. The way in is an embedding table (`modeling_hybridgen`) and the connector `connectors.Aligner`. The
table is the path's own: it is not the tokenizer's codebook, which only the tokenizer's decoder uses.
"""

from torch import Tensor, nn
from transformers.activations import ACT2FN

from hybridgen.configuration_hybridgen import HybridGenVQConfig


class GenerationHead(nn.Module):
    """Hidden states (..., H) -> code logits (..., num_embeddings), named as transformers' Janus names it."""

    def __init__(self, config: HybridGenVQConfig):
        super().__init__()
        self.proj_out = nn.Linear(config.image_token_embed_dim, config.projection_dim)
        self.activation_fn = ACT2FN[config.hidden_act]
        self.vision_head = nn.Linear(config.projection_dim, config.num_embeddings)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.vision_head(self.features(hidden_states))  # ..., num_embeddings

    def features(self, hidden_states: Tensor) -> Tensor:
        """(..., H) -> what the last layer reads, (..., projection_dim)."""
        return self.activation_fn(self.proj_out(hidden_states))
