"""Where the routers of a mixture of experts send words and pictures: numbers, `routing.json`, and a plot of it.

Experts specialise in modalities where they are free to (Apple's scaling laws of native multimodal models, arXiv
2504.07951, section 5, find it in the first layers and the last). Here it is read off one forward between two steps: of
each modality's tokens, the share of choices that each expert gets, layer by layer; padding is no token.

Shapes: B rows, N tokens, E experts, k chosen for a token, L layers with experts.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from hybridgen.core.figures import save
from hybridgen.core.files import write_json
from hybridgen.core.layout import PADDING_DOCUMENT
from hybridgen.modeling_hybridgen import HybridGenModel
from hybridgen.paths.moe import router_class, router_scores

PLOT, SHARES = "routing.png", "routing.json"

Shares = dict[str, list[list[float]]]  # modality -> (L, E)


class RoutingProbe:
    """Measures the routers of a backbone in one forward: a context manager around it, without gradient.

    Args:
        batch: of that forward.
    """

    def __init__(self, model: HybridGenModel, batch: dict):
        self.model, self.scores = model, []
        ids, real = batch["input_ids"], batch["document_ids"] != PADDING_DOCUMENT  # B, N
        images = {path: ids == placeholder for path, placeholder in model.placeholders().items()}
        text = real & ~torch.stack([torch.zeros_like(real), *images.values()]).any(0)
        self.modalities = {name: where.flatten() for name, where in {"text": text, **images}.items()}

    def __enter__(self) -> "RoutingProbe":
        kind, backbone = router_class(self.model.language_model), self.model.language_model
        routers = [module for module in backbone.modules() if kind is not None and isinstance(module, kind)]
        self._hooks = [router.register_forward_hook(self._keep) for router in routers]
        return self

    def __exit__(self, *_) -> None:
        for hook in self._hooks:
            hook.remove()

    def _keep(self, module: nn.Module, inputs: tuple, output) -> None:
        self.scores.append(router_scores(self.model.language_model, output).detach())

    def shares(self) -> Shares:
        """Of each modality that there is, the share of its choices that each expert gets; those of its own routers
        where it has some."""
        found: dict[str, list[Tensor]] = {}
        for routers in self.model.routers_of(tuple(self.scores)) if self.scores else ():
            for scores, index in routers:
                chosen = scores.topk(self.model.experts_per_token, -1).indices  # n, k
                for name, where in self.modalities.items():
                    of_modality = chosen[where if index is None else where[index]].flatten()
                    if len(of_modality):
                        counts = torch.bincount(of_modality, minlength=scores.shape[-1])
                        found.setdefault(name, []).append(counts / len(of_modality))
        return {name: torch.stack(found[name]).tolist() for name in self.modalities if name in found}


def describe(shares: Shares) -> dict[str, float]:
    """
    experts_used/text/layer_00     how many experts a modality uses, as the exponential of its shares' entropy: E where
                                   it uses all alike, 1 where all its tokens go to one
    routing_overlap/vq/layer_00    what of its shares text has, too: 1 where both use the same experts, 0 where none
    """
    numbers = {}
    for name, layers in shares.items():
        for number, layer in enumerate(torch.tensor(layers)):
            numbers[f"experts_used/{name}/layer_{number:02d}"] = float(torch.special.entr(layer).sum().exp())
            if name != "text" and "text" in shares:
                of_text = torch.tensor(shares["text"][number])
                numbers[f"routing_overlap/{name}/layer_{number:02d}"] = float(torch.minimum(of_text, layer).sum())
    return numbers


def draw(shares: Shares, folder: Path) -> None:
    """Write `routing.json` and `routing.png`: a map of layers and experts for each modality.

    Raises:
        OSError: they cannot be written.
    """
    from matplotlib.figure import Figure

    write_json(folder / SHARES, shares)
    layers, experts = torch.tensor(next(iter(shares.values()))).shape
    height = min(8.0, 1.2 + 0.3 * layers)
    figure = Figure(figsize=(min(16.0, 1.0 + 2.8 * len(shares)), height), layout="constrained")
    most = max(max(map(max, of_modality)) for of_modality in shares.values())
    axes = figure.subplots(1, len(shares), sharey=True, squeeze=False)[0]
    for place, (name, of_modality) in zip(axes, shares.items(), strict=True):
        drawn = place.imshow(of_modality, aspect="auto", vmin=0, vmax=most, cmap="viridis", origin="lower")
        place.set_title(name, fontsize=10, loc="left")
        place.set_xlabel("expert", fontsize=8)
        place.set_xticks(range(0, experts, -(-experts // 8)))
        place.set_yticks(range(0, layers, -(-layers // 12)))
        place.tick_params(labelsize=8)
    axes[0].set_ylabel("layer with experts", fontsize=8)
    bar = figure.colorbar(drawn, ax=list(axes), fraction=0.05)
    bar.set_label("share of choices", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    save(figure, folder / PLOT)
