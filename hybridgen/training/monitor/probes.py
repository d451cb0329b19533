"""Probes: what is measured inside a model between two steps. No gradient, weight or random stream is changed by them.

`diagnostics` says when they run and logs the numbers. The residual stream and attention show that a run is
going to diverge long before its loss does (Chameleon, arXiv 2405.09818, section 2.3: output norms of the last layer
grow without bound; arXiv 2303.06296: attention's entropy falls to nothing).

Shapes: B rows, N tokens, H width, h heads, d width of a head, Q queries at which attention is measured.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from functools import reduce

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from transformers.integrations.sdpa_attention import repeat_kv
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from hybridgen.training.distributed.sharding import full

WRAPPERS = ("module", "model", "base_model", "vq_model", "_orig_mod")  # prefixes that wrappers add to parameter names
QUERIES = 128  # of one row, evenly spaced, at which attention is measured

# ------------------------------------------------------------------------------------------------------- gradients


def part_of(name: str) -> str:
    """The part of the model that a parameter belongs to: `model.language_model.layers.0...` -> `language_model`."""
    words = [word for word in name.split(".") if word not in WRAPPERS]
    return "embed_tokens" if "embed_tokens" in words else words[0]


def gradients(model: nn.Module) -> dict[str, list[Tensor]]:
    """The gradients of the trainable parameters, by part; a single 0 for one that has none."""
    by_part: dict[str, list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            gradient = torch.zeros((), device=parameter.device) if parameter.grad is None else parameter.grad.detach()
            by_part.setdefault(part_of(name), []).append(gradient)
    return by_part


def dot(first: list[Tensor], second: list[Tensor]) -> Tensor:
    """The inner product of two lists of gradients, in fp32, over all ranks where they are sharded."""
    products = ((a.float() * b.float()).sum() for a, b in zip(first, second, strict=True))
    return full(reduce(torch.add, products))


def norms(model: nn.Module) -> dict[str, float]:
    """`gradient_norm/PART` of the model's gradients."""
    squares = {part: dot(each, each) for part, each in gradients(model).items()}
    return {f"gradient_norm/{part}": value**0.5 for part, value in _numbers(squares).items()}


def compare(first: dict[str, list], second: dict[str, list], names: tuple[str, str]) -> dict[str, float]:
    """Two gradients, part by part and all together: their norms and the cosine of their angle.

    A part that only one of them reaches has no angle. It still counts in `all`, where it makes the cosine smaller.
    """
    products = {}
    for part, a in first.items():
        b = second[part]
        products[part] = torch.stack([dot(a, a), dot(a, b), dot(b, b)])
    products["all"] = sum(products.values())
    numbers = {}
    for part, (aa, ab, bb) in _numbers(products).items():
        for name, square in zip(names, (aa, bb), strict=True):
            if square:
                numbers[f"gradient_norm_{name}/{part}"] = square**0.5
        if aa and bb:
            numbers[f"gradient_cosine/{part}"] = ab / math.sqrt(aa * bb)
    return numbers


def _numbers(tensors: dict[str, Tensor]) -> dict:
    """Tensors of one shape as numbers, copied from the device in one go."""
    return dict(zip(tensors, torch.stack(list(tensors.values())).tolist(), strict=True)) if tensors else {}


@contextlib.contextmanager
def preserve_grads_and_rng(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Inside, there are no gradients; afterwards gradients and random streams are what they were, bit for bit."""
    parameters = list(model.parameters())
    before = [parameter.grad for parameter in parameters]
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices):
            drop_grads(model)
            yield
    finally:
        for parameter, gradient in zip(parameters, before, strict=True):
            parameter.grad = gradient


def drop_grads(model: nn.Module) -> None:
    """Set all gradients to None. Their tensors are left as they are, as `preserve_grads_and_rng` keeps some."""
    for parameter in model.parameters():
        parameter.grad = None


# ------------------------------------------------------------------------------------------- activations, attention


def attention_entropy(query: Tensor, key: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    """Entropy (h, Q) in nats of each query's attention: q (h, Q, d), k (h, N, d), mask (1, Q, N) boolean or additive.

    It is 0 for a query that attends to one key, log n for one that attends to n alike.
    """
    scores = (query.float() @ key.float().transpose(-1, -2)) * scaling  # h, Q, N
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask.float()
    return torch.special.entr(scores.softmax(-1)).sum(-1)


class ActivationProbe:
    """Measures a backbone and its heads in one forward: a context manager around that forward, without gradient.

    Args:
        backbone: a decoder of transformers, with `layers`.
        heads: modules whose outputs are logits, by name.
        real: (B, N) true on tokens of documents, false on padding.
    """

    def __init__(self, backbone: nn.Module, heads: dict[str, nn.Module], real: Tensor):
        self.backbone, self.heads, self.real = backbone, heads, real
        self._numbers: dict[str, Tensor] = {}
        self._layer_of = {module: i for i, layer in enumerate(backbone.layers) for module in layer.modules()}
        positions = real[0].nonzero()[:, 0]
        chosen = torch.linspace(0, len(positions) - 1, min(QUERIES, len(positions))).long()
        self._queries = positions[chosen.to(positions.device)]

    def numbers(self) -> dict[str, float]:
        """
        output_rms/layer_00      root mean square of the residual stream after a layer, over tokens and width
        attention_entropy/...    mean over heads and queries of the first row; attention_entropy_least/...: least head
        max_logit/text, code     largest absolute logit
        """
        return _numbers(self._numbers)

    def __enter__(self) -> "ActivationProbe":
        config = self.backbone.config
        self._implementation = config._attn_implementation
        self._probed = "flex_attention" if self._implementation == "flex_attention" else "sdpa"
        if self._probed == "flex_attention" or self.backbone._supports_sdpa:
            config._attn_implementation = self._probed  # else only its own function computes its attention
        self._attention = ALL_ATTENTION_FUNCTIONS[self._probed]
        ALL_ATTENTION_FUNCTIONS[self._probed] = self._attend
        hooks = [layer.register_forward_hook(self._output(i)) for i, layer in enumerate(self.backbone.layers)]
        self._hooks = hooks + [head.register_forward_hook(self._logits(name)) for name, head in self.heads.items()]
        return self

    def __exit__(self, *_) -> None:
        del ALL_ATTENTION_FUNCTIONS[self._probed]
        self.backbone.config._attn_implementation = self._implementation
        for hook in self._hooks:
            hook.remove()

    def _attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask, **kwargs):
        """SDPA or flex attention as transformers calls it, also measured: q (B, h, N, d)."""
        if module in self._layer_of and len(self._queries):
            keys = repeat_kv(key[:1], query.shape[1] // key.shape[1])[0]  # h, N, d
            mask = self._rows_of(attention_mask, keys.shape[1])
            scaling = kwargs.get("scaling") or query.shape[-1] ** -0.5
            of_heads = attention_entropy(query[0][:, self._queries], keys, mask, scaling).mean(-1)  # h
            layer = f"layer_{self._layer_of[module]:02d}"
            self._numbers[f"attention_entropy/{layer}"] = of_heads.mean()
            self._numbers[f"attention_entropy_least/{layer}"] = of_heads.min()
        return self._attention(module, query, key, value, attention_mask, **kwargs)

    def _rows_of(self, mask: Tensor | BlockMask | None, keys: int) -> Tensor | None:
        """(1, Q, N) of a mask (B, 1, N, N): the first row's, at the queries that are measured."""
        if isinstance(mask, BlockMask):
            first = self._queries.new_zeros(())
            at = self._queries[:, None], torch.arange(keys, device=self._queries.device)[None]
            return mask.mask_mod(first, first, *at)[None]
        return None if mask is None else mask[0][:, self._queries]

    def _output(self, layer: int) -> Callable:
        def hook(module, inputs, output):
            states = output[0] if isinstance(output, tuple) else output  # B, N, H
            square = states.detach().float().pow(2).mean(-1)[self.real].mean()
            self._numbers[f"output_rms/layer_{layer:02d}"] = square.sqrt()

        return hook

    def _logits(self, name: str) -> Callable:
        def hook(module, inputs, output):
            if output.numel():  # many logits come in several calls
                largest, key = output.detach().float().abs().max(), f"max_logit/{name}"
                self._numbers[key] = torch.maximum(self._numbers.get(key, largest), largest)

        return hook
