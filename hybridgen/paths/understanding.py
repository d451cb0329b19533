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

from hybridgen.core.values import one_line
from hybridgen.paths.patches import patchify

_WITHOUT_CLASS_TOKEN = ("siglip_vision_model", "siglip2_vision_model", "janus_vision_model")


def check_tower(config: PreTrainedConfig) -> None:
    """Raises ValueError for a tower that has not one feature for each patch: CLIP's and DINO's put one before them that
    stands for the whole picture. A tower that is not known is tried without weights."""
    if config.model_type in _WITHOUT_CLASS_TOKEN:
        return
    what = f"the vision tower is a {config.model_type!r}"
    try:
        with torch.device("meta"), torch.no_grad():
            pixels = torch.empty(1, 3, config.image_size, config.image_size)
            count, patches = AutoModel.from_config(config)(pixels).last_hidden_state.shape[1], tokens_per_image(config)
    except (AttributeError, TypeError, ValueError, RuntimeError, IndexError) as error:
        reason = one_line(error)
        raise ValueError(f"{what}, which makes no row of features of a picture ({reason}); give a SigLIP") from error
    if count != patches:
        raise ValueError(
            f"{what}, which makes {count} features of the {patches} patches of a picture (a class token?), but one for "
            "each is needed; give a SigLIP"
        )


def build_vision_tower(config: PreTrainedConfig) -> nn.Module:
    """The tower of a vision config. Janus' is the one that AutoModel does not know.

    Raises:
        ValueError: it has not one feature for each patch.
    """
    check_tower(config)
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
