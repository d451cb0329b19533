"""The decoder: a faster forward of the backbone for sampling, optionally in bf16 or int8.

A step of sampling multiplies few tokens with many weights, so what stands between two matrix products costs nearly as
much as they do. For the Llama family (Llama, Mistral, Qwen2, Qwen3, Chameleon-7B), whose layers are the same few
operations, this file runs those on the layers' own weights. Any other backbone, and one whose layers were changed
(LoRA, offloading, a library's quantization), is run as transformers runs it; a test holds both equal.

Precision `model` copies nothing, so it is always the model as it is now. The others copy the matrices as they are when
the decoder is made (`is_current` tells whether they still are). `fp32` copies them in the order in which the processor
reads them, and rounds as float32 does. `bf16` and `int8` round more, and not the same in every batch: where two codes
are nearly equally likely, which one is drawn may depend on the other images of the batch.

What did not pay (Zen 4, 512 tokens): int8 for the inputs too, in chunks that stay in the cache, was 4 % faster than
bf16 and 1.4 % off; attention in bf16 is no faster than in float32, and written out as two products it is slower.

A picture of the diffusion path is multiplied by oneDNN, and so is all that is read with one. What comes step by step
(codes, words) is multiplied by BLAS where all matrices are small, which takes a third of the time (`_SMALL`), and by
torch's own kernel for int8 weights while there are few rows (`_INT8_ROWS`). How many tokens come in a row plays no
part, so a code is the same with guesses of others behind it. Each of these kernels makes the same of a row whatever
stands beside it (Zen 4, torch 2.13), but for one thing: in float32 a row that is multiplied alone may round otherwise
in its last bit, by BLAS up to three rows, which are therefore filled up to four.

What several requests want read next is read together (`read_together`): products, norms and activations are of all
their tokens at once, for they know of no row beside theirs; attention is of each request by itself, over its own keys,
exactly as it would be alone. So requests may be at different steps, of different lengths and sizes, and enter and leave
at any step, and no key is moved for it.

Shapes: R rows, n new tokens, K keys up to the last of them, N all new tokens that are read together (the sum of R n),
H width, A heads of the queries, G of the keys, d their width.
"""

from collections.abc import Hashable
from contextlib import ExitStack
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaModel, MistralModel, Qwen2Model, Qwen3Model

from hybridgen.core.names import PRECISIONS
from hybridgen.core.offload import bring, device_of
from hybridgen.core.values import choice
from hybridgen.core.versions import version_of
from hybridgen.modeling_hybridgen import HybridGenForConditionalGeneration
from hybridgen.paths.chameleon_decoder import ChameleonDecoder
from hybridgen.sampling.prefix import Prefix, PrefixCache, backbone

Precision = Literal["model", "fp32", "bf16", "int8"]
Kernel = Literal["onednn", "blas", "int8"]

_FAMILY = (LlamaModel, MistralModel, Qwen2Model, Qwen3Model, ChameleonDecoder)
_MOVING_ROPE = ("dynamic", "longrope")  # frequencies that depend on how long the text is
_INT8_ROWS = 8  # below which a product waits for weights, so that int8 pays (measured on AVX512: 2 to 6 times fp32)
_SMALL = 1 << 17  # weights of a matrix up to which BLAS multiplies few tokens sooner than oneDNN (measured on Zen 4)
_FULL = 4  # rows from which on BLAS rounds alike


def why_not_fused(model: HybridGenForConditionalGeneration) -> str | None:
    """What of the backbone is none of the operations that this file knows, to go on "it ..."; None = all is."""
    backbone, config = model.model.language_model, model.config
    if type(backbone) not in _FAMILY:
        return f"is {type(backbone).__name__}"
    if getattr(backbone.config, "swin_norm", False):
        return "has norms behind attention and feed-forward"
    if len(model.model.windows) > 1:
        return "has layers that see differently far back"
    if (scaling := backbone.rotary_emb.rope_type) in _MOVING_ROPE:
        return f"has positions (rope_type {scaling!r}) that depend on the length of the text"
    if config.diffusion_config is not None and config.diffusion_config.modality_experts:
        return "has modality experts"
    for name, module in backbone.named_modules():
        if module._forward_hooks or module._forward_pre_hooks or hasattr(module, "_hf_hook"):
            return f"has hooks on its {name or 'forward'}, as offloading sets them"
    for number, layer in enumerate(backbone.layers):
        for part in (part for group in _linears(layer) for part in group):
            if type(part) is not nn.Linear or type(part.weight) is not nn.Parameter:
                kind = type(part if type(part) is not nn.Linear else part.weight).__name__
                return f"has {kind} where layer {number} has a linear layer, as adapters and quantization put it there"
    return None


def _linears(layer: nn.Module) -> tuple[list[nn.Linear], ...]:
    """A layer's linear layers, in groups that read the same input. Each group becomes a `_Product`.

    Gate and up read one input as well, but stand apart, since each has an epilogue of its own.
    """
    attention, mlp = layer.self_attn, layer.mlp
    groups = [attention.q_proj, attention.k_proj, attention.v_proj], [attention.o_proj], \
        [mlp.gate_proj], [mlp.up_proj], [mlp.down_proj]  # fmt: skip
    return tuple([_plain(part) for part in group] for group in groups)


def _plain(layer: nn.Module) -> nn.Module:
    """The layer itself or, while the adapters of a layer of peft add nothing to the one under them, that one: they are
    disabled, not among the active ones, or fused into its weight."""
    if not hasattr(layer, "base_layer") or not hasattr(layer, "adapter_layer_names"):
        return layer
    if layer.disable_adapters:
        return layer if layer.merged else layer.base_layer
    held = {name for kind in layer.adapter_layer_names for name in getattr(layer, kind)}
    return layer.base_layer if layer.merged or not held & set(layer.active_adapters) else layer


def _has_onednn(weight: Tensor, device: torch.device) -> bool:
    """Whether oneDNN multiplies with a weight: on CPUs, where it is up to twice as fast as BLAS (fp32, Zen 4)."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    half = weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return half or weight.dtype == torch.float32


class _Matrix:
    """One matrix product: a weight, its bias, and an epilogue that is done before the product goes to memory.

    They nest: a `_Layer` has five `_Product`s, each of them one `_Matrix`, in which the copied weights of its
    linear layers stand one below the other, or one for each linear layer where nothing is copied.

    Args:
        packed: the weight is copied once in the order in which the processor reads it; for few tokens, whose product
            waits for weights, this is as fast again (oneDNN).
        device: where it multiplies; a weight that is offloaded is not there yet.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, packed: bool, device: torch.device):
        self.weight, self.bias, self.onednn = weight, bias, _has_onednn(weight, device) and weight.is_contiguous()
        self.is_small = weight.numel() <= _SMALL
        self.plain = weight if self.is_small or not packed else None  # as BLAS takes it
        if packed and self.onednn:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, 128)

    def __call__(
        self, inputs: Tensor, epilogue: str = "none", other: Tensor | None = None, kernel: Kernel = "onednn"
    ) -> Tensor:
        """inputs W^T + b, then an epilogue by oneDNN's name: "swish" (silu), or "add" or "mul" with `other`."""
        if kernel == "blas":
            return _apply_epilogue(functional.linear(inputs, self.plain, self.bias), epilogue, other)
        if self.onednn and other is not None and other.dtype == inputs.dtype:
            return torch.ops.mkldnn._linear_pointwise(inputs, other, self.weight, self.bias, epilogue)
        if self.onednn and other is None:
            return torch.ops.mkldnn._linear_pointwise(inputs, self.weight, self.bias, epilogue, [], "")
        product = self(inputs) if self.onednn else functional.linear(inputs, self.weight, self.bias)
        return _apply_epilogue(product, epilogue, other)


def _apply_epilogue(product: Tensor, epilogue: str, other: Tensor | None) -> Tensor:
    if other is None:
        return functional.silu(product) if epilogue == "swish" else product
    return other + product if epilogue == "add" else other * product


class _Product:
    """Linear layers that read the same input: one matrix product for all, where their weights were copied.

    int8 weights have one scale per row; those of few rows are multiplied with them in torch's own kernel, those of many
    with their bf16 copy, which has the same values.
    """

    def __init__(self, layers: list[nn.Linear], precision: Precision, device: torch.device):
        self.sizes, self.int8_weight = [layer.out_features for layer in layers], None
        if precision == "model":
            self.dtype = layers[0].weight.dtype
            self.matrices = [_Matrix(layer.weight, layer.bias, False, device) for layer in layers]
            return
        self.dtype = torch.float32 if precision == "fp32" else torch.bfloat16
        weight = torch.cat([layer.weight.detach() for layer in layers]).to(self.dtype)  # sum of sizes, in
        biased = layers[0].bias is not None
        self.bias = torch.cat([layer.bias.detach() for layer in layers]).to(self.dtype) if biased else None
        if precision == "int8" and weight.shape[1] % 16 == 0:  # torch's kernel reads past the end of other rows
            weight = torch.cat([layer.weight.detach().float() for layer in layers])
            scale = (weight.abs().amax(1) / 127).clamp(min=1e-12)  # of each row, symmetric
            self.int8_weight = (weight / scale[:, None]).round().to(torch.int8)
            self.scale = scale.bfloat16()
            weight = self.int8_weight.bfloat16() * self.scale[:, None]  # the same weights, however many tokens come
        self.matrices = [_Matrix(weight, self.bias, True, device)]

    @property
    def is_of_few_weights(self) -> bool:
        return all(one.is_small for one in self.matrices)

    @property
    def is_small(self) -> bool:
        """Whether BLAS can multiply it (`_SMALL`)."""
        return self.dtype == torch.float32 and self.is_of_few_weights and all(one.onednn for one in self.matrices)

    def __call__(self, inputs: Tensor, kernel: Kernel = "onednn") -> list[Tensor]:
        """(R, n, in) -> (R, n, out) of each layer, in the input's dtype."""
        if len(self.matrices) == len(self.sizes) > 1:
            return [matrix(inputs, kernel=kernel) for matrix in self.matrices]
        return list(self.joined(inputs, kernel=kernel).split(self.sizes, -1))

    def joined(
        self, inputs: Tensor, epilogue: str = "none", other: Tensor | None = None, kernel: Kernel = "onednn"
    ) -> Tensor:
        """All outputs side by side, and the `epilogue` of them (see `_Matrix`), in the input's dtype."""
        tokens = inputs.to(self.dtype)
        if self.int8_weight is None or kernel != "int8":
            if tokens.dtype == inputs.dtype:
                return self.matrices[0](tokens, epilogue, other, kernel)
            return _apply_epilogue(self.matrices[0](tokens).to(inputs.dtype), epilogue, other)
        product = torch.ops.aten._weight_int8pack_mm(tokens.flatten(0, -2), self.int8_weight, self.scale)
        product = product if self.bias is None else product + self.bias
        return _apply_epilogue(product.to(inputs.dtype).view(*inputs.shape[:-1], -1), epilogue, other)


class _Layer:
    """One layer of the Llama family."""

    def __init__(self, layer: nn.Module, precision: Precision, device: torch.device):
        attention, mlp = layer.self_attn, layer.mlp
        products = [_Product(group, precision, device) for group in _linears(layer)]
        self.qkv, self.out, self.gate, self.up, self.down = products
        self.norms = layer.input_layernorm, layer.post_attention_layernorm
        self.head_norms = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)  # Qwen3
        self.head_dim, self.scaling, self.act_fn = attention.head_dim, attention.scaling, mlp.act_fn
        self.is_silu = mlp.config.hidden_act in ("silu", "swish")

    @property
    def is_small(self) -> bool:
        return all(product.is_small for product in (self.qkv, self.out, self.gate, self.up, self.down))

    def __call__(self, states: Tensor, cos: Tensor, sin: Tensor, spans: list["_Span"], number: int) -> Tensor:
        """(N, H) -> the same; keys and values go into the caches' layer of this number.

        Args:
            cos, sin: (N, 1, d) of each token's position.
            spans: whose tokens they are, one after another.
        """
        normed = _norm(self.norms[0], states).to(self.qkv.dtype)
        kernel = spans[0].kernel
        parts = self.qkv(normed, kernel)
        queries, keys, values = (part.to(states.dtype).unflatten(-1, (-1, self.head_dim)) for part in parts)
        if self.head_norms[0] is not None:
            queries, keys = _norm(self.head_norms[0], queries), _norm(self.head_norms[1], keys)
        heads = torch.cat([queries, keys], dim=1)  # N, A + G, d
        heads = torch.addcmul(heads * cos, heads.roll(self.head_dim // 2, -1), sin)
        sizes, seen = [queries.shape[1], keys.shape[1]], []
        for span, own, own_values in zip(spans, _cut(heads, spans), _cut(values, spans), strict=True):
            queries, keys = own.transpose(1, 2).split(sizes, dim=1)  # R, A, n, d and R, G, n, d
            keys, own_values = span.cache.layers[number].update(keys, own_values.transpose(1, 2))  # R, G, K, d
            attended = _attention(queries, keys, own_values, span.mask, self.scaling)  # R, A, n, d
            seen.append(attended.transpose(1, 2).flatten(2).flatten(0, 1))  # R n, A d
        attended = _filled_up(_joined(seen), len(states) - sum(map(len, seen)))
        states = self.out.joined(attended, "add", states, kernel)
        normed = _norm(self.norms[1], states).to(self.gate.dtype)
        gate = self.gate.joined(normed, "swish" if self.is_silu else "none", kernel=kernel)
        gate = gate if self.is_silu else self.act_fn(gate)
        return self.down.joined(self.up.joined(normed, "mul", gate, kernel), "add", states, kernel)


class _Span(NamedTuple):
    """The tokens of one request among those that are read together: R rows of n tokens, what they see, and the cache
    that their keys go to; and the kernel that multiplies all that are read together."""

    rows: int
    count: int
    mask: Tensor
    cache: PrefixCache
    kernel: Kernel = "onednn"


def _cut(tokens: Tensor, spans: list[_Span]) -> list[Tensor]:
    """Tokens (N, ...) -> (R, n, ...) of each span; what they were filled up with is left out."""
    sizes = [span.rows * span.count for span in spans]
    parts = tokens.split([*sizes, filled]) if (filled := len(tokens) - sum(sizes)) else tokens.split(sizes)
    return [part.unflatten(0, (span.rows, span.count)) for part, span in zip(parts, spans, strict=False)]


def _filled_up(tokens: Tensor, count: int) -> Tensor:
    """Tokens (N, ...) and `count` zeros behind them."""
    return torch.cat([tokens, tokens.new_zeros(count, *tokens.shape[1:])]) if count else tokens


def _joined(parts: list[Tensor]) -> Tensor:
    """Tokens of several spans, one after another (N, ...); of one span not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _attention(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scaling: float) -> Tensor:
    """(R, A, n, d) of queries (R, A, n, d), keys and values (R, G, K, d), and an additive mask (R, 1, n, K).

    A CPU's kernel takes a mask and grouped heads together. CUDA's fused kernels do not, and torch would fall back to
    one that holds all scores (R, A, n, K): on devices the heads are made equally many, as transformers does (`pack_gqa`
    and `repeat_kv` of its SDPA). Of one token, a group's heads become the queries of one; for more, keys are repeated.
    """
    shape, groups = queries.shape, queries.shape[1] // keys.shape[1]
    on_cpu = keys.device.type == "cpu"
    if groups > 1 and not on_cpu:
        if shape[2] == 1:
            queries = queries.reshape(shape[0], keys.shape[1], groups, shape[3])
        else:
            keys, values = (part.repeat_interleave(groups, dim=1) for part in (keys, values))
    seen = functional.scaled_dot_product_attention(
        queries, keys, values, attn_mask=mask, scale=scaling, enable_gqa=groups > 1 and on_cpu
    )
    return seen.reshape(shape)


def _norm(norm: nn.Module, states: Tensor) -> Tensor:
    """RMSNorm, in one call where transformers' rounding between two dtypes plays no part; any other norm as it is."""
    if states.dtype != torch.float32 or norm.weight.dtype != torch.float32 or not hasattr(norm, "variance_epsilon"):
        return norm(states)
    return functional.rms_norm(states, norm.weight.shape, norm.weight, norm.variance_epsilon)


class Decoder:
    """A model's backbone and code head for inner loops.

    Args:
        precision: of the weights that are multiplied: the `model`'s own, `fp32` (packed for the processor), `bf16`
            (likewise), or `int8` (one scale per output, bf16 where so many rows come at once that it does not pay).
            All else, attention and the cache included, keeps the model's dtype.
        copies: whether weights were copied, so that tokens are to be read by it also where the model itself could.

    Raises:
        ValueError: precision is another, or cannot be had with this backbone or on this device.
    """

    def __init__(self, model: HybridGenForConditionalGeneration, precision: Precision = "model"):
        choice("precision", precision, PRECISIONS)
        self.model, self.precision = model, precision
        self.layers: list[_Layer] | None = None
        self.copies, self._made_of = precision != "model", _parts_of(model)
        if (cause := why_not_fused(model)) is not None:
            if precision != "model":
                raise ValueError(
                    f"precision {precision!r} needs a plain backbone of the Llama family (Llama, Mistral, Qwen2, "
                    f"Qwen3, Chameleon-7B), but this one {cause}; use precision 'model', or load the model in bfloat16"
                )
            return
        if precision == "int8" and model.device.type != "cpu":
            raise ValueError(f"precision 'int8' runs on CPUs, the model is on {model.device}; use 'bf16'")
        device = device_of(model)
        self.layers = [_Layer(layer, precision, device) for layer in model.model.language_model.layers]
        self._is_small = all(layer.is_small for layer in self.layers)
        self.head = None
        vq = model.config.vq_config
        if precision != "model" and vq is not None and vq.code_tokens is None:  # else it is the text's, unchanged
            head = model.model.generation_head
            inner, outer = _plain(head.proj_out), _plain(head.vision_head)
            if type(inner) is type(outer) is nn.Linear:  # else it has adapters, and is run as it is
                products = (_Product([layer], precision, device) for layer in (inner, outer))
                self.head = next(products), head.activation_fn, next(products)

    @property
    def key(self) -> Hashable:
        """Equal for decoders that compute the same: of one model's own weights, or the same copies of them."""
        return (id(self.model), self.layers is None) if self.precision == "model" else id(self)

    def is_current(self) -> bool:
        """Whether the model still has the parts, weights and hooks that it had when this was made."""
        return self._made_of == _parts_of(self.model)

    def code_logits(self, states: Tensor) -> Tensor:
        """(R, H) or (R, n, H) -> scores of num_embeddings codes, in float32."""
        if self.layers is None or self.head is None:
            return self.model.code_logits(states).float()
        inner, activation, outer = self.head
        kernel = self._kernel_of_heads(len(states))
        return outer(activation(inner(states, kernel)[0]), kernel)[0].float()

    def text_logits(self, states: Tensor) -> Tensor:
        """(R, H) -> scores of all words, in float32."""
        if self._words is None:
            return self.model.lm_head(states).float()
        return self._words(states, self._kernel_of_heads(len(states)))[0].float()

    @cached_property
    def _words(self) -> _Product | None:
        """The head that writes text, copied when the first word is written; None = the model's own."""
        head = self.model.lm_head
        is_plain = type(head) is nn.Linear and type(head.weight) is nn.Parameter
        hooked = head._forward_hooks or head._forward_pre_hooks
        is_copied = self.copies and is_plain and not hooked
        return _Product([head], self.precision, device_of(self.model)) if is_copied else None

    def kernel(self, rows: int, stepwise: bool, is_one_token: bool = False) -> Kernel:
        """By which this many rows are multiplied; the number of tokens in them does not matter, so that a code is the
        same whether it is read alone or with guesses of those behind it.

        Args:
            stepwise: they are codes or words, that come step by step.
            is_one_token: it is one row of one. oneDNN rounds that otherwise than in company, and has to read weights in
                an order that is not its own; BLAS has not.
        """
        if not stepwise:
            return "onednn"
        if is_one_token and self.precision == "model" and self.layers[0].gate.dtype == torch.float32:
            return "blas"
        return "blas" if self._is_small else self._kernel_of_heads(rows)

    def _kernel_of_heads(self, rows: int) -> Kernel:
        return "int8" if self.precision == "int8" and rows < _INT8_ROWS else "onednn"

    def read(self, embeds: Tensor, mask: Tensor, position_ids: Tensor, cache: PrefixCache) -> Tensor:
        """The backbone's output (R, n, H) at tokens that go into a cache once: a prompt, or a finished picture.

        Args:
            mask: (R, 1, n, K).
            position_ids: (R, n).
        """
        cache.prepare(len(self.layers))
        span = _Span(*embeds.shape[:2], mask, cache)
        cos, sin = (part.flatten(0, 1) for part in self.rotary(embeds, position_ids))
        return self.run(embeds.flatten(0, 1), cos, sin, [span])[0]

    def rotary(self, like: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines (R, T, 1, d) of positions (R, T), the sines with the sign that `roll` needs."""
        cos, sin = self.model.model.language_model.rotary_emb(like, position_ids)  # R, T, d
        half = sin.shape[-1] // 2
        sin = torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)  # rotate_half(x) * sin = roll(x) * this
        return cos[:, :, None], sin[:, :, None]

    def run(self, states: Tensor, cos: Tensor, sin: Tensor, spans: list[_Span]) -> list[Tensor]:
        """Embeddings (N, H) of several spans, one after another -> the backbone's output (R, n, H) of each.

        Args:
            cos, sin: (N, 1, d) of their positions.
        """
        missing = _FULL - len(states) if spans[0].kernel == "blas" and len(states) > 1 else 0
        if missing > 0:
            states, cos, sin = (_filled_up(part, missing) for part in (states, cos, sin))
        for number, layer in enumerate(self.layers):
            states = layer(states, cos, sin, spans, number)  # N, H
        return _cut(_norm(self.model.model.language_model.norm, states), spans)

    def continue_from(
        self,
        prefix: Prefix,
        blocks: Tensor,
        causal: bool = False,
        diffusion: bool = False,
        is_image: bool = False,
    ) -> "IncrementalForward":
        """A function that runs the backbone on tokens that come next in a prefix.

        Args:
            blocks: (T,) blocks of all tokens that will come.
            causal: they come one at a time or, those of a picture, a few.
            diffusion: they are tokens of the diffusion path.
            is_image: they are tokens of one picture of any path.
        """
        return IncrementalForward(self, prefix, blocks, causal, diffusion, is_image or diffusion)


def _parts_of(model: HybridGenForConditionalGeneration) -> list[tuple]:
    """What a decoder is made of, in a form that changes when it does: of the backbone and the heads each module and
    its hooks, of each weight the object, the address and the version, and where they compute. Two are equal where
    nothing changed."""
    parts, heads = [(device_of(model),)], (model.lm_head, getattr(model.model, "generation_head", None))
    left = [part for part in (model.model.language_model, *heads) if part is not None]
    while left:
        module = left.pop()
        hooks = len(module._forward_hooks), len(module._forward_pre_hooks), hasattr(module, "_hf_hook")
        weights = [weight for weight in module._parameters.values() if weight is not None]
        parts.append((module, type(module), *hooks))
        if hasattr(module, "merged_adapters"):  # of peft: which add to the weight under them, and which are in it
            parts.append((module.disable_adapters, *module.active_adapters, *module.merged_adapters))
        parts += [(id(weight), weight.data_ptr(), version_of(weight)) for weight in weights]
        left += [part for part in module._modules.values() if part is not None]
    return parts


class IncrementalForward:
    """Runs the backbone on tokens that come next in a prefix; what does not depend on them is computed here, once."""

    def __init__(self, decoder: Decoder, prefix: Prefix, blocks: Tensor, causal: bool, diffusion: bool, is_image: bool):
        self.decoder, self.prefix, self.blocks, self.diffusion = decoder, prefix, blocks, diffusion
        self.is_image, self.causal, self.stepwise = is_image, causal, (causal or is_image) and not diffusion
        model, count = decoder.model, len(blocks)
        bring(model)
        # tokens of one block see the same keys, and so does one token that comes alone, but for words that a window
        # leaves behind: one row is the mask of all
        self.one_row = causal and (is_image or not model.model.has_windows)
        self.one_row |= diffusion and model.config.is_bidirectional("diffusion")
        self.prefix_length = len(prefix)
        self.position_ids = prefix.positions_of(count)  # R, T
        prefix.cache.reserve(count)
        self.fused = decoder.layers is not None
        implementation = "sdpa" if self.fused else None
        self.mask = prefix.mask_with(model, blocks, 1 if self.one_row else count, is_image, implementation)
        self._mask_at = None if self.one_row else (0, count)  # whose mask it is, where masks cannot be sliced
        if self.fused:
            self.cos, self.sin = decoder.rotary(prefix.last_state[:1].to(model.dtype), self.position_ids)

    def __call__(self, embeds: Tensor, first: int = 0, commit: bool = True) -> Tensor:
        """Embeddings (R, n, H) of tokens `first` to `first + n` -> the backbone's output (R, n, H).

        Args:
            commit: the prefix grows by them; otherwise it stays as it was.
        """
        return read_together([Read(self, embeds, first, commit)])[0]

    @property
    def cost_of_a_guess(self) -> float:
        """What another code beside one costs, as a share of a forward of one: little in a small model, where most is
        between the products, and nearly half in int8, whose kernel gains the less the more tokens come (Zen 4)."""
        layers, rows = self.decoder.layers, self.prefix.rows
        if layers is None or layers[0].gate.is_of_few_weights:
            return 0.03
        return 0.4 if self.decoder.kernel(rows, self.stepwise) == "int8" else 0.1

    def mask_of(self, first: int, last: int):
        """The mask (R, 1, n, K) of tokens `first` to `last`: a slice of one mask, where masks can be sliced."""

        def sliced(mask: Tensor) -> Tensor:
            rows = mask if self.one_row else mask[:, :, first:last]  # R, 1, 1 or T, P + T
            rows = rows[..., : self.prefix_length + last]
            return rows if last - first == 1 or not (self.one_row and self.causal) else _stepped(rows, last - first)

        if isinstance(self.mask, Tensor):
            return sliced(self.mask)
        if isinstance(self.mask, dict) and all(isinstance(mask, Tensor) for mask in self.mask.values()):
            return {kind: sliced(mask) for kind, mask in self.mask.items()}
        if self._mask_at != (first, last):
            self.mask = self.prefix.mask_with(self.decoder.model, self.blocks[:last], last - first, self.is_image)
            self._mask_at = first, last
        return self.mask


def _stepped(mask: Tensor, count: int) -> Tensor:
    """The mask (R, 1, 1, K) of the last of several tokens that see each other in order -> that of all (R, 1, n, K)."""
    later = torch.ones(count, count, dtype=torch.bool, device=mask.device).triu(1)
    mask = mask.repeat(1, 1, count, 1)
    mask[..., -count:].masked_fill_(later, torch.finfo(mask.dtype).min)
    return mask


class Read(NamedTuple):
    """What a request wants read next: the arguments of an `IncrementalForward`, and it."""

    forward: IncrementalForward
    embeds: Tensor  # R, n, H
    first: int = 0
    commit: bool = True

    @property
    def key(self) -> Hashable:
        """Equal for what can be read together: by the same weights, in one precision."""
        return self.forward.decoder.key


@torch.no_grad()
def read_together(reads: list[Read]) -> list[Tensor]:
    """The backbone's output (R, n, H) for each of several reads of equal `key`, each as if it were read alone.

    A backbone that is run as transformers runs it reads them one after another.
    """
    decoder = reads[0].forward.decoder
    bring(decoder.model)
    with ExitStack() as stack:
        for read in reads:
            if not read.commit:
                stack.enter_context(read.forward.prefix.cache.no_commit())
        if decoder.layers is None:
            return [_read_by_transformers(*read[:3]) for read in reads]
        rows, stepwise = sum(len(read.embeds) for read in reads), all(read.forward.stepwise for read in reads)
        is_one_token = sum(read.embeds[..., 0].numel() for read in reads) == 1
        kernel, spans, cosines, sines = decoder.kernel(rows, stepwise, is_one_token), [], [], []
        for forward, embeds, first, _ in reads:
            (rows, count), last = embeds.shape[:2], first + embeds.shape[1]
            spans.append(_Span(rows, count, forward.mask_of(first, last), forward.prefix.cache, kernel))
            cosines.append(forward.cos[:, first:last].flatten(0, 1))
            sines.append(forward.sin[:, first:last].flatten(0, 1))
        states, cos, sin = _joined([read.embeds.flatten(0, 1) for read in reads]), _joined(cosines), _joined(sines)
        return decoder.run(states, cos, sin, spans)


def _read_by_transformers(forward: IncrementalForward, embeds: Tensor, first: int) -> Tensor:
    last = first + embeds.shape[1]
    where = forward.mask_of(first, last), forward.position_ids[:, first:last]
    return backbone(forward.decoder.model, forward.prefix, embeds, *where, forward.diffusion)
