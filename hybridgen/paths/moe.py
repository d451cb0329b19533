"""Mixtures of experts in the backbone: where its routers send tokens, and the loss that keeps experts evenly used.

The loss is transformers' own (Switch Transformer, arXiv 2101.03961): E * sum over experts of f * P, with f the share of
tokens that an expert gets (summed over the k choices) and P the mean probability that its router gives it, both over
all tokens and layers of a forward; padding is no token. It is no sum over tokens, so micro-batches and ranks are put
together as means are: each forward's loss counts with its number of tokens, (sum, count) = (loss * tokens, tokens). For
one micro-batch on one rank that is transformers' number.

With modality experts (`paths.modality_experts`) text and images have routers of their own, each balanced over its own
tokens, and weighed by them.

Shapes: B rows, N tokens, M = B * N of them flattened, E experts, k chosen for a token, L layers with experts.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

BALANCED = (  # whose own loss balances their routers in transformers, and Llama 4, whose config has a weight for it
    "dbrx", "ernie4_5_moe", "flex_olmo", "gpt_oss", "granitemoe", "granitemoeshared", "granitemoe_swa", "laguna",
    "llama4_text", "mellum", "minimax_m2", "mixtral", "olmoe", "phimoe", "qwen2_moe", "qwen3_moe",
)  # fmt: skip


class RouterOutput(NamedTuple):
    """The scores (n, E) of one router for some tokens, and where these stand among the M; None = they are all."""

    scores: Tensor
    index: Tensor | None = None


def router_class(backbone: nn.Module) -> type[nn.Module] | None:
    """The class of the modules that score experts in a decoder of transformers; None = it has none, or of several
    kinds."""
    recorder = (getattr(backbone, "_can_record_outputs", None) or {}).get("router_logits")
    found = getattr(recorder, "target_class", recorder)
    has_any = isinstance(found, type) and any(isinstance(module, found) for module in backbone.modules())
    return found if has_any else None


def router_scores(backbone: nn.Module, output) -> Tensor:
    """The scores (n, E) in what a router returns, which transformers knows the place of."""
    return output[getattr(backbone._can_record_outputs["router_logits"], "index", 0)].flatten(0, -2)


def router_weight(config: PreTrainedConfig, asked: float | None) -> float:
    """The weight of the balancing loss: as `asked`, or the decoder's `router_aux_loss_coef`, or 0 where it has none.

    Raises:
        ValueError: one is asked for, but the decoder has no router that such a loss balances.
    """
    if config.model_type in BALANCED:
        return float(getattr(config, "router_aux_loss_coef", None) or 0.0) if asked is None else asked
    if asked:
        raise ValueError(
            f"objective.router_weight is {asked}, but the backbone is a {config.model_type!r}, without routers that a "
            "loss balances; leave it out, or take a mixture of experts such as qwen3_moe"
        )
    return 0.0


def experts_per_token(config: PreTrainedConfig) -> int:
    """k, under the name that the decoder has for it."""
    names = ("num_experts_per_tok", "moe_k", "moe_topk")
    return next(value for name in names if (value := getattr(config, name, None)) is not None)


def router_outputs(scores: tuple[Tensor, ...], indices: tuple[Tensor, Tensor] | None) -> list[list[RouterOutput]]:
    """Scores in the order in which routers ran, as one list for each set of routers, with L entries each.

    Args:
        indices: of text and of image tokens among the M, where each of them has routers of its own.
    """
    flat = [of_layer.flatten(0, -2) for of_layer in scores]  # n, E
    if indices is None:
        return [[RouterOutput(of_layer) for of_layer in flat]]
    return [[RouterOutput(of_layer, index) for of_layer in flat[i::2]] for i, index in enumerate(indices)]


def balancing_loss(sets: list[list[RouterOutput]], real: Tensor, k: int) -> Tensor:
    """The mean loss of a forward (module docstring), a scalar.

    Args:
        real: (B, N) true on tokens that are no padding.
    """
    real = real.flatten()
    total = torch.zeros((), device=real.device)
    for routers in sets:
        scores, index = tuple(of_layer.scores for of_layer in routers), routers[0].index
        counted = (real if index is None else real[index]).float()  # n
        if len(counted) == 0:
            continue
        tokens = counted.sum()
        # padding alone has no loss, but 0 / 0 would be no number
        counted = torch.where(tokens > 0, counted, torch.ones_like(counted))
        total = total + load_balancing_loss_func(scores, scores[0].shape[-1], k, counted) * tokens
    return total / real.sum().clamp(min=1)


def is_routed(module: nn.Module, router: type[nn.Module] | None) -> bool:
    """Whether a module is a layer's whole mixture: the router, the experts, and those that all tokens share."""
    return router is not None and any(isinstance(child, router) for child in module.children())
