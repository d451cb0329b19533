"""The vq path: codes -> embeddings for the backbone; hidden states -> logits over the codebook (Janus, 2410.13848).

Here is the head. The way in is an embedding table (`modeling_hybridgen`) and the connector `connectors.Aligner`. The
table is the path's own: it is not the tokenizer's codebook, which only the tokenizer's decoder uses. Or codes are
tokens of the vocabulary (Chameleon, 2405.09818), with the text's embeddings and head: here is which token each is.
"""

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from hybridgen.configuration_hybridgen import HybridGenVQConfig


def tokens_of(codes: Tensor, config: HybridGenVQConfig) -> Tensor:
    """Codes, of any shape -> the tokens of the vocabulary that they are."""
    if config.token_ids is None:
        return codes + config.first_token_id
    return torch.tensor(config.token_ids, device=codes.device)[codes]


def logits_of_codes(logits: Tensor, config: HybridGenVQConfig) -> Tensor:
    """Logits of the vocabulary (..., V) -> those of the codes (..., num_embeddings)."""
    return logits[..., index_of_codes(config)]


def index_of_codes(config: HybridGenVQConfig) -> slice | list[int]:
    """Where the codes stand in the vocabulary, to index with."""
    codes = config.code_tokens
    return slice(codes.start, codes.stop) if isinstance(codes, range) else codes


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
