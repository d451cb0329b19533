"""Cross-entropy of a linear head without its logits: 16 k tokens x 152 k words are 10 GB in fp32, and training holds
them three times over.

`head_losses` is the way in. Few logits (up to `WHOLE`) are made whole, as `F.cross_entropy` takes them. More are made
in tiles of some tokens x some words (`TILE`), whose sums of exponentials are added up, and made again in the backward
pass, which adds up the gradients of states and weights tile by tile (after arXiv 2411.09009): a third more products,
and a few hundred megabytes whatever the vocabulary. Where Liger or cut-cross-entropy is installed, they do it on a GPU
(`loss_kernels`).

A head that is no plain linear layer (LoRA, a quantised weight, a hook that waits for its logits) is called on some
tokens at a time, and recomputed: as exact, slower. How often follows from the size of the batch, and not from how many
of its tokens predict: where a call gathers sharded weights (ZeRO 3), processes would wait for each other.

Shapes: n tokens that predict, H width, V words.
"""

import contextlib
import math

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed.fsdp import FSDPModule
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from hybridgen.core.loss_kernels import autocast_dtype, fused_kernel
from hybridgen.core.text_head import TextHead

WHOLE = 1 << 26  # logits (n x V) up to which they are made whole: at most about 1 GiB with what is made of them
TILE = 1 << 25  # logits of a tile: 128 MiB in fp32
CPU_TILE = 1 << 22  # on a CPU: what its cache holds, and so a tenth faster


def head_losses(
    head: nn.Module, states: Tensor, targets: Tensor, with_log_z: bool = False, places: int | None = None
) -> tuple[Tensor, Tensor | None]:
    """Negative log-likelihoods (n,) of targets (n,) in nats, and log Z (n,) where it is wanted, in fp32.

    Args:
        head: states (n, H) -> logits (n, V).
        states: of the positions that predict; none at all leaves the head in the graph.
        places: how many there may be, the same in all processes; None = as many as there are.
    """
    if not is_plain(head):
        return _by_calls(head, states, targets, with_log_z, len(states) if places is None else places)
    words = head.weight.shape[0]
    if len(states) * words <= WHOLE:
        return _losses_of(head.forward(states), targets, with_log_z)
    scale, cap = getattr(head, "scale", 1.0), getattr(head, "cap", None)
    kernel = None if with_log_z or scale != 1 else fused_kernel(states, head)
    if kernel is not None:
        return kernel(states, head.weight, head.bias, targets, cap), None
    losses, log_z = LinearCrossEntropy.apply(states, head.weight, head.bias, targets, scale, cap, _tile(states))
    return losses, log_z if with_log_z else None


def is_plain(head: nn.Module) -> bool:
    """Whether a head is its weight and nothing else: no adapter, no quantised or sharded weight, and nothing that waits
    for it to be called (a probe, an engine that gathers its weights).

    FSDP2 waits for a call too, but gathers the head for the whole of the model's forward (`distributed.fsdp`). It must
    not be called there: how often would depend on the number of tokens, and processes would wait for each other.
    """
    managed = isinstance(head, FSDPModule)
    if "_hf_hook" in head.__dict__:  # its weight is there in calls alone: offloaded
        return False
    kind = type(head).__mro__[2] if managed else type(head)
    listeners = max(len(head._forward_hooks), len(head._forward_pre_hooks)) - managed
    listeners += len(head._backward_hooks) + len(head._backward_pre_hooks)
    return kind in (nn.Linear, TextHead) and type(head.weight) in (Tensor, nn.Parameter) and listeners <= 0


def _words(head: nn.Module) -> int:
    """V of any head. An adapter's layer says it as a linear layer does."""
    if (words := getattr(head, "out_features", None)) is not None:
        return words
    return head.weight.shape[0]


def _losses_of(logits: Tensor, targets: Tensor, with_log_z: bool) -> tuple[Tensor, Tensor | None]:
    logits = logits.float()
    losses = F.cross_entropy(logits, targets, reduction="none")
    return losses, torch.logsumexp(logits, dim=-1) if with_log_z else None


def _by_calls(
    head: nn.Module, states: Tensor, targets: Tensor, with_log_z: bool, places: int
) -> tuple[Tensor, Tensor | None]:
    """By calls of the head, as many as `places` tokens take: one, or of some tokens each, whose logits are made again
    in the backward pass."""

    def losses_of(some: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor | None]:
        return _losses_of(head(some), wanted, with_log_z)

    words = _words(head)
    if places * words <= WHOLE:
        return losses_of(states, targets)
    calls = -(-places // max(1, _tile(states) // words))
    pairs = zip(states.tensor_split(calls), targets.tensor_split(calls), strict=True)
    parts = [checkpoint(losses_of, some, wanted, use_reentrant=False) for some, wanted in pairs]
    losses, log_z = zip(*parts, strict=True)
    return torch.cat(losses), torch.cat(log_z) if with_log_z else None


# --------------------------------------------------------------------------------------------------- tiles of our own


def tile_shape(tokens: int, words: int, tile: int) -> tuple[int, int]:
    """Tokens and words of a tile of at most so many logits, nearly square: each weight and each gradient is then read
    as seldom as may be."""
    rows = min(tokens, max(math.isqrt(tile), tile // words))
    return rows, min(words, max(1, tile // rows))


def _tile(like: Tensor) -> int:
    return min(TILE, CPU_TILE) if like.device.type == "cpu" else TILE


def loss_bytes(tokens: int, words: int, width: int, half: bool) -> int:
    """The most bytes that the losses of so many tokens take, forward and backward, with the gradient of their states
    and without the head's, of a plain head on an accelerator without other packages' kernels: for plans of memory.

    Args:
        half: products are in half precision.
    """
    if tokens * words <= WHOLE:  # logits in fp32, their softmax, and its gradient
        return tokens * (12 * words + 4 * width)
    rows, columns = tile_shape(tokens, words, TILE)
    return (4 + 2 * half) * (rows * columns + (tokens + columns) * width)


class LinearCrossEntropy(torch.autograd.Function):
    """(states (n, H), weight (V, H), bias (V,) or None, targets (n,), scale, cap, tile) -> losses (n,), log Z (n,).

    Products are in autocast's type, if it is on, or else in the weight's; sums, losses and accumulated gradients in
    fp32 at least.
    """

    @staticmethod
    def forward(ctx, states, weight, bias, targets, scale, cap, tile):
        dtype = autocast_dtype(states.device.type) or weight.dtype
        ctx.tiles = _Tiles(dtype, scale, cap, *tile_shape(len(states), len(weight), tile))
        with _no_autocast(states):
            losses, largest, sums = ctx.tiles.forward(states, weight, bias, targets)
        ctx.save_for_backward(states, weight, bias, targets, largest, sums)
        return losses, largest + sums.log()

    @staticmethod
    @once_differentiable
    def backward(ctx, of_losses, of_log_z):
        with _no_autocast(of_losses):
            gradients = ctx.tiles.backward(ctx.saved_tensors, of_losses, of_log_z, ctx.needs_input_grad)
        return *gradients, None, None, None, None


def _no_autocast(like: Tensor) -> contextlib.AbstractContextManager:
    """Inside, operations on this tensor's device keep the types that they are given."""
    device = like.device.type
    is_known = torch.amp.is_autocast_available(device)
    return torch.autocast(device, enabled=False) if is_known else contextlib.nullcontext()


class _Tiles:
    """The arithmetic of `LinearCrossEntropy`: words in the outer loop, so that each weight is cast once, and its
    gradient is finished before the next."""

    def __init__(self, dtype: torch.dtype, scale: float, cap: float | None, rows: int, words: int):
        self.dtype, self.scale, self.cap, self.rows, self.words = dtype, scale, cap, rows, words
        self.sums = torch.promote_types(dtype, torch.float32)

    def _slices(self, count: int, size: int) -> list[slice]:
        return [slice(first, min(first + size, count)) for first in range(0, count, size)]

    def _logits(self, states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """States and weights of a tile -> its logits, which the caller may overwrite."""
        logits = _product(states, weight.t(), self.sums)
        if bias is not None:
            logits += bias
        if self.scale != 1:
            logits *= self.scale
        return logits if self.cap is None else logits.div_(self.cap).tanh_().mul_(self.cap)

    @staticmethod
    def _inside(targets: Tensor, words: slice) -> tuple[Tensor, Tensor]:
        """Of targets (t,): the column (t, 1) in a tile of these words, and whether it is there (t,)."""
        column = targets - words.start
        inside = (column >= 0) & (column < words.stop - words.start)
        return column.clamp(0, words.stop - words.start - 1)[:, None], inside

    def forward(self, states, weight, bias, targets) -> tuple[Tensor, Tensor, Tensor]:
        """Losses, the largest logit of each token, and the sum of exp(logit - largest): as exact as a softmax, also
        where a loss is close to 0."""
        states = states.to(self.dtype)
        largest = states.new_full((len(states),), -torch.inf, dtype=self.sums)
        sums, of_target = torch.zeros_like(largest), torch.zeros_like(largest)
        for words in self._slices(len(weight), self.words):
            part = weight[words].to(self.dtype)
            for rows in self._slices(len(states), self.rows):
                logits = self._logits(states[rows], part, None if bias is None else bias[words])
                column, inside = self._inside(targets[rows], words)
                of_target[rows] += logits.gather(1, column)[:, 0].where(inside, 0)
                highest = torch.maximum(largest[rows], logits.amax(1))
                before = sums[rows] * (largest[rows] - highest).exp()
                sums[rows] = before + logits.sub_(highest[:, None]).exp_().sum(1)
                largest[rows] = highest
                del logits  # before the next tile is made
        return (largest - of_target) + sums.log(), largest, sums

    def backward(self, saved, of_losses, of_log_z, wanted) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Gradients of states, weight and bias, None where not `wanted`. A logit's is (p - is target) of its token's
        loss, p of its log Z, times the slope of cap and scale."""
        states, weight, bias, targets, largest, sums = saved
        kind, states = states.dtype, states.to(self.dtype)
        of_states = torch.zeros_like(states, dtype=self.sums) if wanted[0] else None
        of_weight = torch.zeros_like(weight) if wanted[1] else None
        of_bias = torch.zeros_like(bias) if wanted[2] else None
        factors = (of_losses + of_log_z) / sums  # of exp(logit - largest)
        for words in self._slices(len(weight), self.words):
            part = weight[words].to(self.dtype)
            of_part = None if of_weight is None else torch.zeros_like(part, dtype=self.sums)
            for rows in self._slices(len(states), self.rows):
                logits = self._logits(states[rows], part, None if bias is None else bias[words])
                slope = None if self.cap is None else 1 - (logits / self.cap).square()
                column, inside = self._inside(targets[rows], words)
                grad = logits.sub_(largest[rows, None]).exp_().mul_(factors[rows, None])
                grad.scatter_add_(1, column, -of_losses[rows].where(inside, 0)[:, None])
                if slope is not None:
                    grad *= slope
                if self.scale != 1:
                    grad *= self.scale
                if of_bias is not None:
                    of_bias[words] += grad.sum(0)
                grad = grad.to(self.dtype)
                if of_states is not None:
                    _add_product(of_states[rows], grad, part)
                if of_part is not None:
                    _add_product(of_part, grad.t(), states[rows])
                del logits, grad, slope  # before the next tile is made
            if of_part is not None:
                of_weight[words] = of_part
        return None if of_states is None else of_states.to(kind), of_weight, of_bias


def _product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """a @ b in this type, of which half-precision products on a GPU are never rounded to their own."""
    if a.device.type == "cuda" and a.dtype in (torch.bfloat16, torch.float16):
        return torch.mm(a, b, out_dtype=dtype)
    return torch.mm(a, b).to(dtype)


def _add_product(to: Tensor, a: Tensor, b: Tensor) -> None:
    """to += a @ b, in place."""
    if a.dtype == to.dtype:
        to.addmm_(a, b)
    else:
        to += _product(a, b, to.dtype)
