"""Own layers: weights that only a path's tokens pass through, in every layer of the backbone (Mixture-of-Transformers,
arXiv 2411.04996; the image tower of LMFusion, arXiv 2412.15188; BAGEL's generation expert, arXiv 2505.14683).

Each projection and each norm of the backbone has a second one, named `own`, for tokens of the diffusion path. Attention
itself is shared: words and pictures see each other by the layout's one rule. The first weights keep their names, and
text alone runs through them as if nothing else were there, so frozen they say what they said, to the bit. The fact a
newcomer gets wrong: which tokens are whose is known to the forward, not to the layers; it is laid down in `Route`,
which all of them share, before the backbone runs, and stays for layers that are computed anew in the backward pass.

Shapes: B rows, N new tokens.
"""

import copy
import functools

from torch import Tensor, nn

OWN = "own"


class Route:
    """Which of the flattened (B * N) tokens are words and which are the path's; both None = all are words."""

    words: Tensor | None = None
    own: Tensor | None = None

    def set_modality_routing(self, is_own: Tensor | None) -> None:
        """Args: is_own: (B, N) boolean; None = no token is."""
        self.words = None if is_own is None else is_own.logical_not().flatten().nonzero()[:, 0]
        self.own = None if is_own is None else is_own.flatten().nonzero()[:, 0]


def add_modality_experts(backbone: nn.Module) -> Route:
    """Give every projection and norm of the backbone's layers, and the norm after them, an `own` that starts as a copy.

    Raises:
        ValueError: the layers hold weights of another kind (experts, convolutions), which would stay shared unsaid.
    """
    route = Route()
    for part in (*backbone.layers, backbone.norm):
        for name, module in list(part.named_modules()):
            if not list(module.parameters(recurse=False)):
                continue
            if not (isinstance(module, nn.Linear) or type(module).__name__.endswith("Norm")):
                raise ValueError(
                    f"diffusion_config.modality_experts is true, but {name!r} in the backbone's layers is neither projection "
                    f"nor norm ({type(module).__name__}); take a decoder of Llama's or Qwen's form"
                )
            _give(module, route)
    return route


def _give(module: nn.Module, route: Route) -> None:
    own = copy.deepcopy(module)
    module.__class__ = _routed(type(module))
    module.route, module.own = route, own


@functools.cache
def _routed(kind: type[nn.Module]) -> type[nn.Module]:
    """The same kind of module, of which `own` does a part of the work. Its name ends as its parent's: transformers
    starts weights by it."""
    return type(f"Own{kind.__name__}", (_Routed, kind), {})


class _Routed:
    def forward(self, states: Tensor) -> Tensor:
        """(B, N, ...) -> (B, N, ...)."""
        if self.route.words is None:
            return super().forward(states)
        flat = states.flatten(0, 1)  # B * N, ...
        words, own = super().forward(flat[self.route.words]), self.own(flat[self.route.own])
        made = words.new_empty(len(flat), *words.shape[1:])
        made = made.index_copy(0, self.route.words, words).index_copy(0, self.route.own, own)
        return made.unflatten(0, states.shape[:2])


def with_own(backbone: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a backbone without own layers as those of `backbone`: each `own` starts as a copy (LMFusion)."""
    return {name: weights[name.replace(f".{OWN}.", ".")] for name in backbone.state_dict()}
