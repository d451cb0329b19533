"""Modality experts: weights that only the diffusion path's tokens pass through, in every layer of the backbone
(Mixture-of-Transformers, arXiv 2411.04996; LMFusion's image tower, arXiv 2412.15188; BAGEL, arXiv 2505.14683).

Each projection and each norm of the backbone has an expert, a second module of its kind, for image tokens; a mixture of
experts has a second one, with a router of its own. Attention itself is shared: text and images see each other by the
layout's one rule. The first weights keep their names, and text alone runs through them as if nothing else were there,
so that a frozen language model stays the same to the bit.

Layers do not know which tokens are images; the model's forward tells them through a `ModalityRouting`, which all
experts share. It is set before the backbone runs, and remembered for layers that are recomputed in the backward pass.

Shapes: B rows, N new tokens, M = B * N of them flattened.
"""

import contextlib
import copy
import functools
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hybridgen.paths.moe import is_routed, router_class

EXPERT = "own"  # an expert's name in its module, and so in state dicts (`q_proj.own.weight`): a format of checkpoints


class TokenIndices(NamedTuple):
    """Where the tokens of each modality stand among M flattened ones: indices that together are 0 to M - 1."""

    text_index: Tensor
    image_index: Tensor


class ModalityRouting:
    """The indices of the forward that runs, one value per thread, so that two threads may use one model.

    A layer that is recomputed in the backward pass, which may run in any thread (on a GPU in autograd's own), gets the
    indices of its forward: `for_recomputation` is the `context_fn` of torch's checkpoint. Where it was not handed over
    (a checkpoint with `use_reentrant=True`), a thread that never set any has those that were set last.
    """

    def __init__(self):
        self._of_thread, self._latest = threading.local(), None

    def set(self, is_image: Tensor | None) -> None:
        """Args: is_image: (B, N) boolean; None = all tokens are text."""
        indices = None
        if is_image is not None:
            flat = is_image.flatten()
            indices = TokenIndices(flat.logical_not().nonzero()[:, 0], flat.nonzero()[:, 0])
        self._of_thread.indices = self._latest = indices

    def get(self) -> TokenIndices | None:
        """None = all tokens are text."""
        return getattr(self._of_thread, "indices", self._latest)

    def for_recomputation(self) -> tuple[AbstractContextManager, AbstractContextManager]:
        """Contexts of a part of the forward that runs now, and of the same part where it is recomputed."""
        return contextlib.nullcontext(), self._with(self.get())

    @contextlib.contextmanager
    def _with(self, indices: TokenIndices | None) -> Iterator[None]:
        before = self._of_thread.__dict__.copy()
        self._of_thread.indices = indices
        try:
            yield
        finally:
            self._of_thread.__dict__.clear()
            self._of_thread.__dict__.update(before)

    def __reduce__(self):  # copied and pickled without what belongs to a call
        return ModalityRouting, ()


def add_modality_experts(backbone: nn.Module) -> ModalityRouting:
    """Give every projection, norm and mixture of experts of the backbone's layers, and the norm after them, an expert
    that starts as a copy of it.

    Raises:
        ValueError: the layers hold weights of another kind (convolutions, sinks of attention): all would share them.
    """
    routing, router = ModalityRouting(), router_class(backbone)
    for part in (*backbone.layers, backbone.norm):
        mixtures = [name for name, module in part.named_modules() if is_routed(module, router)]
        for name, module in list(part.named_modules()):
            is_mixture = name in mixtures
            if any(name.startswith(f"{mixture}.") for mixture in mixtures):
                continue
            if not (is_mixture or list(module.parameters(recurse=False))):
                continue
            if not (is_mixture or isinstance(module, nn.Linear) or type(module).__name__.endswith("Norm")):
                raise ValueError(
                    f"diffusion_config.modality_experts is true, but {name!r} in the backbone's layers is neither "
                    f"projection nor norm nor mixture of experts ({type(module).__name__}); take a decoder of Llama's "
                    "or Qwen's form"
                )
            expert = copy.deepcopy(module)
            module.__class__ = _with_expert(type(module), _MixtureForward if is_mixture else _ExpertForward)
            module.modality_routing = routing
            setattr(module, EXPERT, expert)
    return routing


@functools.cache
def _with_expert(kind: type[nn.Module], forward: type) -> type[nn.Module]:
    """A subclass of `kind` with an expert. Its name ends as its parent's, since transformers initialises by names."""
    return type(f"ModalityExpert{kind.__name__}", (forward, kind), {})


class _ExpertForward:
    """The forward of all classes of `_with_expert`: text tokens through the module's weights, others through the
    expert's."""

    def forward(self, states: Tensor) -> Tensor:
        """(B, N, ...) -> (B, N, ...)."""
        indices = self.modality_routing.get()
        if indices is None:
            return super().forward(states)
        flat = states.flatten(0, 1)  # M, ...
        text = super().forward(flat[indices.text_index])
        image = getattr(self, EXPERT)(flat[indices.image_index])
        merged = text.new_empty(len(flat), *text.shape[1:])
        merged = merged.index_copy(0, indices.text_index, text).index_copy(0, indices.image_index, image)
        return merged.unflatten(0, states.shape[:2])


class _MixtureForward:
    """The same of a mixture of experts, which takes (B, N, H) alone, and may return more than its output."""

    def forward(self, states: Tensor) -> Tensor | tuple:
        """(B, N, H) -> (B, N, H), or a tuple that begins with it, its tokens flattened or not."""
        indices = self.modality_routing.get()
        if indices is None:
            return super().forward(states)
        flat = states.flatten(0, 1)  # M, H
        merged = torch.empty_like(flat)
        is_tuple = False
        for index, mixture in ((indices.text_index, super().forward), (indices.image_index, getattr(self, EXPERT))):
            if len(index):
                output = mixture(flat[index][None])
                is_tuple = isinstance(output, tuple)
                output = output[0] if is_tuple else output
                merged = merged.index_copy(0, index, output.reshape(-1, flat.shape[1]).to(merged.dtype))
        merged = (merged + self._zero_of_idle(indices)).unflatten(0, states.shape[:2])
        return (merged, None) if is_tuple else merged

    def _zero_of_idle(self, indices: TokenIndices) -> Tensor | float:
        """A zero from the weights of a mixture that no token came to, so that no rank of DDP waits for its gradient."""
        own = {id(weight) for weight in getattr(self, EXPERT).parameters()}
        idle = [
            weight
            for weight in self.parameters()
            if not len(indices.image_index if id(weight) in own else indices.text_index)
        ]
        return sum((weight.flatten()[:0].sum() for weight in idle), 0.0)


def copy_into_experts(backbone: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a plain backbone as those of `backbone`: each expert, if it has any, starts as a copy (LMFusion)."""
    return {name: weights[name.replace(f".{EXPERT}.", ".")] for name in backbone.state_dict()}
