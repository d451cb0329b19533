"""The understanding path: pixels -> vision tower -> connector -> embeddings of the backbone. It reads only.

Here is the tower; the connector is `connectors.Aligner`.

The tower is any vision model of transformers with one feature per patch (SigLIP, SigLIP 2, Janus' own). There are two
SigLIP 2: those of a fixed size are plain SigLIP to transformers; the others (NaFlex) take patches, a mask and a shape
instead of pixels, and are given squares here.

Shapes: I images, T tokens of an image, E the tower's width.
"""

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig
from transformers.models.janus.modeling_janus import JanusVisionModel

from hybridgen.paths.patches import patchify


def build_vision_tower(config: PreTrainedConfig) -> nn.Module:
    """The tower of a vision config. Janus' is the one that AutoModel does not know."""
    if config.model_type == "janus_vision_model":
        return JanusVisionModel._from_config(config)
    return AutoModel.from_config(config)


def encode_pixels(tower: nn.Module, pixels: Tensor, **kwargs):
    """Pixels (I, 3, h, w) -> the tower's output, with `last_hidden_state` (I, T, E).

    Args:
        kwargs: go to the tower, such as `output_hidden_states`.
    """
    if tower.config.model_type != "siglip2_vision_model":
        return tower(pixels, return_dict=True, **kwargs)
    p = tower.config.patch_size
    patches = patchify(pixels, p)  # I, T, p * p * 3: SigLIP 2 orders the values of a patch as we do
    shapes = torch.tensor([[side // p for side in pixels.shape[-2:]]] * len(pixels), device=pixels.device)  # I, 2
    mask = torch.ones(patches.shape[:2], dtype=torch.long, device=pixels.device)  # I, T: no padding
    return tower(patches, mask, shapes, return_dict=True, **kwargs)


def tokens_per_image(config: PreTrainedConfig) -> int:
    """Features, and so tokens, of one image."""
    return (config.image_size // config.patch_size) ** 2
