"""bf16 where it pays, with attention kept in fp32 on CPUs.

Weights and losses are always fp32; bf16 is used through autocast only. On a CPU, bf16 autocast alone gains nothing,
because the backward pass of SDPA in bf16 is several times slower than in fp32. `sdpa_fp32` is SDPA outside of autocast,
under a name that is never saved in a checkpoint's config. In compiled layers, eager attention is faster still: its
products are bf16, its softmax fp32.
"""

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from hybridgen.core.layout import FP32_ATTENTION


def choose_precision(precision: str, device: torch.device) -> str:
    """`fp32` or `bf16`; `auto` means bf16 where the device multiplies it faster than fp32."""
    if precision != "auto":
        return precision
    return "bf16" if bf16_pays(device) else "fp32"


def bf16_pays(device: torch.device) -> bool:
    """Whether bf16 matrix products have instructions of their own here (AMX or AVX512_BF16 on a CPU)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and (torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())


def choose_attention(attention: str, precision: str, device: torch.device, compiled: bool = False) -> str:
    """The attention implementation of the training forward. `auto` is SDPA; where bf16 would slow it down, SDPA in
    fp32 or, in layers that are compiled, plain products and a softmax, which the compiler fuses: faster still."""
    if attention != "auto":
        return attention
    if precision == "bf16" and device.type == "cpu":
        return "eager" if compiled else FP32_ATTENTION
    return "sdpa"


def set_attention(model: PreTrainedModel, attention: str) -> None:
    """Let the model and its parts attend by this implementation."""
    if attention == FP32_ATTENTION:
        AttentionInterface.register(FP32_ATTENTION, sdpa_fp32)
        AttentionMaskInterface.register(FP32_ATTENTION, sdpa_mask)
    parts = [name for name in ("text_config", "vision_config") if getattr(model.config, name, None) is not None]
    model.set_attn_implementation({"": attention} | dict.fromkeys(parts, attention))  # other parts have no attention


def sdpa_fp32(module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs):
    """SDPA as transformers calls it, in fp32 outside of autocast; the next linear layer takes fp32 as well."""
    with torch.autocast(query.device.type, enabled=False):
        return sdpa_attention_forward(module, query.float(), key.float(), value.float(), attention_mask, **kwargs)
