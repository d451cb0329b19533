"""What the model's forwards return. Shapes: B rows, N new tokens, H width, V vocabulary, I images, T their tokens."""

from dataclasses import dataclass

from torch import Tensor
from transformers import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils import ModelOutput

Latents = Tensor | list[Tensor]  # (I, C, H, W), or I of (C, H, W) where sizes differ


@dataclass
class HybridGenModelOutput(BaseModelOutputWithPast):
    """What the backbone made of a sequence, and what the diffusion head needs of the input.

    Args:
        conditioning: (I, H) timestep embedding of each image of the diffusion path, in reading order.
        skips: of each group of images of one size, what goes around the backbone (`paths.unet`).
        diffusion_mask: (B, N) true on diffusion tokens.
        image_hidden_states: (I, tokens, H) aligned features of the understanding path.
    """

    conditioning: Tensor | None = None
    skips: list[list[Tensor]] | None = None
    diffusion_mask: Tensor | None = None
    image_hidden_states: Tensor | None = None


@dataclass
class HybridGenOutput(ModelOutput):
    """
    Args:
        loss: mean next-token cross-entropy, when `labels` were given.
        logits: (B, kept, V) text logits; (kept, V) when `logits_to_keep` is a boolean mask.
        code_logits: (kept, num_embeddings) where `codes_to_keep` says.
        prediction: the diffusion head's output for every image of `latents`, in the same form as `latents`.
        alignment: (I,) how much the states of each image of `latents` resemble what the tower sees (-1 to 1).
        past_key_values, hidden_states, attentions, image_hidden_states: as everywhere in transformers.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    code_logits: Tensor | None = None
    prediction: Latents | None = None
    alignment: Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    image_hidden_states: Tensor | None = None
