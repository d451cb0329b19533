"""The understanding path: pixels -> vision tower -> connector -> embeddings of the backbone. It reads only.

Here is the tower; the connectors are in `connectors`, and what a config says of both in `configuration_understanding`.

The tower is any vision model of transformers with one feature per patch, behind a known number of tokens of its own
(`PREFIX_TOKENS`). There are two SigLIP 2: those of a fixed size are plain SigLIP to transformers; the others (NaFlex)
take patches, a mask and a shape instead of pixels, and are given squares here.

Shapes: I images, T features of an image, E the tower's width, n tokens of its own before the features.
"""

import copy

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes
from transformers import AutoModel, PreTrainedConfig
from transformers.models.janus.modeling_janus import JanusVisionModel
from transformers.utils import ModelOutput

from hybridgen.configuration_understanding import PREFIX_TOKENS, feature_grid, prefix_tokens, tower_side
from hybridgen.core.values import one_line
from hybridgen.paths.patches import patchify

Layers = tuple[int, ...] | None  # hidden states that are the features; None = the tower's output
_USED_WHOLE = ("siglip_vision_model", "siglip2_vision_model", "janus_vision_model")  # in an output without a head


def check_tower(config: PreTrainedConfig) -> None:
    """Raises ValueError for a tower that has not one feature for each patch behind its own tokens. One that is not
    known is tried without weights, and must have none."""
    if config.model_type in PREFIX_TOKENS:
        return
    what = f"the vision tower is a {config.model_type!r}"
    hint = f"give one of {', '.join(PREFIX_TOKENS)}"
    try:
        rows, columns = feature_grid(config) or (0, 0)
        with torch.no_grad():
            count = _tried(config)[1].last_hidden_state.shape[1]
    except (AttributeError, TypeError, ValueError, RuntimeError, IndexError) as error:
        reason = one_line(error)
        raise ValueError(f"{what}, which makes no row of features of a picture ({reason}); {hint}") from error
    if count != rows * columns:
        raise ValueError(
            f"{what}, which makes {count} features of the {rows * columns} patches of a picture, but one for each is "
            f"needed; {hint}"
        )


def build_vision_tower(config: PreTrainedConfig) -> nn.Module:
    """The tower of a vision config. Janus' is the one that AutoModel does not know.

    Raises:
        ValueError: it has not one feature for each patch.
    """
    check_tower(config)
    return _tower(config)


def freeze_unused(tower: nn.Module, layers: Layers) -> None:
    """Freeze the weights that no feature comes from: layers behind those that are taken, a pooling head, a mask token.
    They never have a gradient, for which ranks would wait."""
    if layers is None and tower.config.model_type in _USED_WHOLE:
        return
    unused = unused_weights(tower.config, layers)
    for name, weight in tower.named_parameters():
        if name in unused:
            weight.requires_grad_(False)


def unused_weights(config: PreTrainedConfig, layers: Layers = None) -> set[str]:
    """Names of the parameters that no feature comes from: those that a backward pass of shapes alone does not reach."""
    with torch.enable_grad(), _disable_current_modes():
        tower, outputs = _tried(config, **({} if layers is None else {"output_hidden_states": True}))
        patch_features(outputs, config, layers).sum().backward()
    return {name for name, weight in tower.named_parameters() if weight.grad is None}


def encode_pixels(tower: nn.Module, pixels: Tensor, **kwargs):
    """Pixels (I, 3, h, w) -> the tower's output, with `last_hidden_state` (I, n + T, E).

    Args:
        kwargs: go to the tower, such as `output_hidden_states`.
    """
    if tower.config.model_type != "siglip2_vision_model":
        return tower(pixels, return_dict=True, **kwargs)
    p = tower.config.patch_size
    patches = patchify(pixels, p)  # I, T, p * p * 3: SigLIP 2 orders the values of a patch as we do
    shapes = torch.tensor([[side // p for side in pixels.shape[-2:]]] * len(pixels), device="cpu")  # I, 2
    mask = None  # of shapes alone, whose values cannot be looked at
    if not pixels.is_meta:
        mask = torch.ones(patches.shape[:2], dtype=torch.long, device=pixels.device)  # I, T: no padding
    return tower(patches, mask, shapes, return_dict=True, **kwargs)


def encode_features(tower: nn.Module, pixels: Tensor, layers: Layers = None, **kwargs) -> tuple[Tensor, ModelOutput]:
    """Pixels (I, 3, h, w) -> one feature for each patch (I, T, E * layers), and the tower's whole output."""
    if layers is not None:
        kwargs["output_hidden_states"] = True
    outputs = encode_pixels(tower, pixels.to(tower.dtype), **kwargs)
    return patch_features(outputs, tower.config, layers), outputs


def patch_features(outputs: ModelOutput, config: PreTrainedConfig, layers: Layers) -> Tensor:
    """A tower's output -> (I, T, E * layers): without the tokens that stand for no patch, layers side by side."""
    states = [outputs.last_hidden_state] if layers is None else [outputs.hidden_states[layer] for layer in layers]
    own = prefix_tokens(config)
    states = [each[:, own:] for each in states] if own else states
    return states[0] if len(states) == 1 else torch.cat(states, dim=-1)


def _tower(config: PreTrainedConfig, **kwargs) -> nn.Module:
    if config.model_type == "janus_vision_model":
        return JanusVisionModel._from_config(config, **kwargs)
    return AutoModel.from_config(config, **kwargs)


def _tried(config: PreTrainedConfig, **kwargs) -> tuple[nn.Module, ModelOutput]:
    """A tower of shapes alone, and what it makes of a picture."""
    side = tower_side(config)
    with _disable_current_modes(), torch.device("meta"):  # a plan's tensors of shapes alone meet none of these
        tower = _tower(copy.deepcopy(config), attn_implementation="eager").eval()
        return tower, encode_pixels(tower, torch.empty(1, config.num_channels, side, side), **kwargs)
