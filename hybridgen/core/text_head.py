"""The head that writes text: a linear layer, behind which some decoders scale or cap their logits.

Whoever calls the head gets the decoder's own logits: training, sampling, and the losses that never hold them whole
(`cross_entropy`).
"""

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

# what logits are multiplied by, by the beginning of `model_type`
_SCALES = {
    "cohere": lambda config: config.logit_scale,
    "granite": lambda config: 1 / config.logits_scaling,
    "hyperclovax": lambda config: config.logits_scaling,
    "minicpm3": lambda config: 1 / config.logits_scaling,
}


class TextHead(nn.Linear):
    """States (..., H) -> logits (..., V): cap * tanh(scale * W h / cap).

    Args:
        scale: what logits are multiplied by (Cohere, Granite).
        cap: no logit is larger (Gemma's `final_logit_softcapping`); None = no bound.
    """

    def __init__(self, width: int, words: int, bias: bool = False, scale: float = 1.0, cap: float | None = None):
        super().__init__(width, words, bias=bias)
        self.scale, self.cap = scale, cap

    def forward(self, states: Tensor) -> Tensor:
        logits = super().forward(states)
        logits = logits if self.scale == 1 else logits * self.scale
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)


def build_text_head(config: PreTrainedConfig) -> nn.Linear:
    """The head of a decoder of transformers, as its config says; a plain linear layer for most."""
    scales = (scale(config) for name, scale in _SCALES.items() if config.model_type.startswith(name))
    scale, cap = float(next(scales, 1.0)), getattr(config, "final_logit_softcapping", None)
    if scale == 1 and cap is None:
        return nn.Linear(config.hidden_size, config.vocab_size, bias=False)
    return TextHead(config.hidden_size, config.vocab_size, scale=scale, cap=cap)


def scaled_as(old: nn.Linear, new: nn.Linear) -> nn.Linear:
    """A plain head that transformers made in place of `old` (for another vocabulary), scaled and capped as that."""
    if isinstance(old, TextHead) and type(new) is nn.Linear:
        new.__class__, new.scale, new.cap = TextHead, old.scale, old.cap
    return new
