"""bf16 where it pays, with attention kept in fp32 on CPUs.

Weights and losses are always fp32; bf16 is used through autocast only. On a CPU, bf16 autocast alone gains nothing,
because the backward pass of SDPA in bf16 is several times slower than in fp32. `sdpa_fp32` is SDPA outside of autocast,
under a name that is never saved in a checkpoint's config. In compiled layers, eager attention is faster still: its
products are bf16, its softmax fp32.
"""

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from hybridgen.core.layout import FP32_ATTENTION
from hybridgen.core.loss_kernels import autocast_dtype
from hybridgen.training.distributed.speed import compiler_found

FLEX_WIDTH = 16  # of a head, from which on flex attention has a kernel on CUDA


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


def choose_attention(
    attention: str, precision: str, device: torch.device, compiled: bool = False, dropout: float = 0.0
) -> str:
    """The attention implementation of a run: of training, and of validation, probes and samples within it.

    `auto` is flex attention on CUDA, wherever torch compiles it: what it holds grows with the length of a row, and not
    with its square. Elsewhere it is SDPA; where bf16 would slow it down, SDPA in fp32 or, in layers that are compiled,
    plain products and a softmax, which the compiler fuses: faster still.

    Args:
        dropout: share of attention's weights that the backbone drops, which flex attention cannot.

    Raises:
        ValueError: flex attention is asked for on a CPU, where torch has no backward pass of it.
    """
    if attention == "flex_attention" and device.type == "cpu":
        raise ValueError(
            "attention is 'flex_attention', which torch does not train on a CPU; use 'auto' (flex attention on CUDA), "
            "'sdpa' or 'eager'"
        )
    if attention != "auto":
        return attention
    if device.type == "cuda" and compiler_found(device) and not dropout:
        return "flex_attention"
    if precision == "bf16" and device.type == "cpu":
        return "eager" if compiled else FP32_ATTENTION
    return "sdpa"


def attention_of(backbone: PreTrainedModel, attention: str, asked: str) -> str:
    """That implementation, or where `auto` is asked and the backbone cannot have it, SDPA, or `eager`: what some add to
    attention (sinks of gpt-oss, bounds of Gemma 2) is in no kernel, and heads below `FLEX_WIDTH` not in flex's.

    Raises:
        ValueError: another one is asked for than it has.
    """
    has = {"sdpa": backbone._supports_sdpa, "flex_attention": backbone._supports_flex_attn, "eager": True}
    if asked != "auto":
        if not has.get(attention, backbone._supports_sdpa):
            raise ValueError(
                f"attention is {asked!r}, which the backbone, a {backbone.config.model_type!r}, does not have; use "
                "'eager'"
            )
        return attention
    if attention == "flex_attention" and has["flex_attention"] and _width_of_heads(backbone) < FLEX_WIDTH:
        attention = "sdpa"
    return attention if has.get(attention, backbone._supports_sdpa) else "eager"


def _width_of_heads(backbone: PreTrainedModel) -> int:
    config = backbone.config
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def set_attention(model: PreTrainedModel, attention: str) -> None:
    """Let the model and its parts attend by this implementation. A tower, whose pictures are whole and which needs no
    mask, has nothing of flex attention."""
    if attention == FP32_ATTENTION:
        AttentionInterface.register(FP32_ATTENTION, sdpa_fp32)
        AttentionMaskInterface.register(FP32_ATTENTION, sdpa_mask)
    if attention == "flex_attention":
        AttentionInterface.register(attention, flex_in_one_type)
    of_parts = {"text_config": attention, "vision_config": "sdpa" if attention == "flex_attention" else attention}
    parts = {name: chosen for name, chosen in of_parts.items() if getattr(model.config, name, None) is not None}
    model.set_attn_implementation({"": attention} | parts)  # other parts have no attention


def sdpa_fp32(module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs):
    """SDPA as transformers calls it, in fp32 outside of autocast; the next linear layer takes fp32 as well."""
    with torch.autocast(query.device.type, enabled=False):
        return sdpa_attention_forward(module, query.float(), key.float(), value.float(), attention_mask, **kwargs)


def flex_in_one_type(module, query: Tensor, key: Tensor, value: Tensor, attention_mask, **kwargs):
    """Flex attention as transformers calls it, with all in autocast's type: rotary positions and norms make queries and
    keys fp32, beside which some versions of torch take no values in bf16, or multiply in fp32."""
    if (dtype := autocast_dtype(query.device.type)) is not None:
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    return flex_attention_forward(module, query, key, value, attention_mask, **kwargs)
