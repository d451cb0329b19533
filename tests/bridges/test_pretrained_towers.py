"""Pretrained vision towers of every family, opened from the folders that transformers writes."""

import json

import pytest
import torch
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, OPENAI_CLIP_MEAN

from hybridgen.bridges.pretrained_parts import image_settings, open_tower
from hybridgen.paths.understanding import encode_features

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16, "patch_size": 8}
WIDE = SIZES | {"intermediate_size": 32}


def two_towers() -> CLIPModel:
    return CLIPModel(CLIPConfig(vision_config=WIDE, text_config={**WIDE, "vocab_size": 50}))


FOLDERS = {  # what is saved, the tower in it, and the mean of its family's pixels
    "clip": (lambda: CLIPVisionModel(CLIPVisionConfig(**WIDE)), lambda model: model, OPENAI_CLIP_MEAN),
    "clip with its text tower": (two_towers, lambda model: model.vision_model, OPENAI_CLIP_MEAN),
    "dinov2": (lambda: Dinov2Model(Dinov2Config(**SIZES)), lambda model: model, IMAGENET_DEFAULT_MEAN),
    "dinov3": (
        lambda: DINOv3ViTModel(DINOv3ViTConfig(**WIDE, num_register_tokens=2)),
        lambda model: model,
        IMAGENET_DEFAULT_MEAN,
    ),
    "a classifier, without a pooling head": (
        lambda: ViTForImageClassification(ViTConfig(**WIDE)),
        lambda model: model.vit,
        [0.5] * 3,
    ),
}


@pytest.mark.parametrize("kind", FOLDERS)
@torch.no_grad()
def test_a_tower_sees_as_its_library_has_it(kind, tmp_path):
    """To the bit. A pooling head that the folder lacks is not missed."""
    torch.manual_seed(0)
    make, tower_of, mean = FOLDERS[kind]
    reference = make().eval()
    for weight in reference.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    reference.save_pretrained(tmp_path)
    tower, pixels = open_tower(tmp_path), torch.randn(2, 3, 16, 16)
    features = encode_features(tower, pixels)[0]
    assert torch.equal(features, tower_of(reference)(pixels).last_hidden_state[:, -4:])
    assert image_settings(tmp_path, 16).image_mean == list(mean)
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.1, 0.2, 0.3], "image_std": [1] * 3})
    )
    assert image_settings(tmp_path, 16).image_mean == [0.1, 0.2, 0.3]
