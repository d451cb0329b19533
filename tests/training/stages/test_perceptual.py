"""The feature distance: of a model on disk, its gradient, and what cannot be used."""

import json

import pytest
import torch
from torch.nn import functional as F
from transformers import (
    BertConfig,
    BertModel,
    ResNetConfig,
    ResNetForImageClassification,
    SiglipConfig,
    SiglipModel,
    ViTConfig,
    ViTModel,
)

from hybridgen.training.config.codec import PerceptualConfig
from hybridgen.training.stages.perceptual import FeatureDistance

CPU = torch.device("cpu")


def resnet(folder, normalise: bool = True) -> str:
    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    ResNetForImageClassification(config).save_pretrained(folder)
    if normalise:
        said = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}
        (folder / "preprocessor_config.json").write_text(json.dumps(said))
    return str(folder)


def vit(folder) -> str:
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    ViTModel(ViTConfig(image_size=16, patch_size=8, **shape)).save_pretrained(folder)
    return str(folder)


def pictures() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.rand(2, 2, 3, 32, 32, generator=generator) * 2 - 1)


def test_it_is_the_mean_squared_distance_of_unit_features(tmp_path):
    """Written out again, from the classifier that was saved."""
    path = resnet(tmp_path)
    distance = FeatureDistance(PerceptualConfig(path, layers=[0, -1]), 32, CPU)
    a, b = pictures()
    model = ResNetForImageClassification.from_pretrained(path).eval()
    mean, std = torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1), torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)
    with torch.no_grad():
        maps = [model(((x + 1) / 2 - mean) / std, output_hidden_states=True).hidden_states for x in (a, b)]
        ours = distance(a, b)
    expected = torch.zeros(2)
    for layer in (0, -1):
        cosine = F.cosine_similarity(maps[0][layer], maps[1][layer], dim=1)  # I, h, w
        expected += (2 - 2 * cosine).mean((1, 2)) / 2
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)  # measured 3e-8
    assert float(ours.min()) > 1e-3
    torch.testing.assert_close(distance(a, a), torch.zeros(2))


def test_the_gradient_goes_to_the_reconstruction_only(tmp_path):
    distance = FeatureDistance(PerceptualConfig(resnet(tmp_path, normalise=False)), 32, CPU)
    a, b = (each.requires_grad_() for each in pictures())
    distance(a, b).sum().backward()
    assert a.grad.abs().sum() > 0
    assert b.grad is None
    assert all(parameter.grad is None for parameter in distance.model.parameters())
    assert not distance.model.training


def test_each_picture_for_itself(tmp_path):
    distance = FeatureDistance(PerceptualConfig(vit(tmp_path), size=16), 32, CPU)
    a, b = pictures()
    alone = torch.cat([distance(a[i : i + 1], b[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(distance(a, b), alone, rtol=0, atol=1e-6)  # measured 0


def test_of_a_model_with_two_towers_the_one_that_sees(tmp_path):
    torch.manual_seed(0)
    half = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**half, "vocab_size": 20, "max_position_embeddings": 8}
    config = SiglipConfig(text_config=text, vision_config={**half, "image_size": 32, "patch_size": 16})
    SiglipModel(config).save_pretrained(tmp_path)
    distance = FeatureDistance(PerceptualConfig(str(tmp_path)), 32, CPU)
    assert distance(*pictures()).shape == (2,)


def test_what_cannot_be_used_is_said(tmp_path):
    a_vit = vit(tmp_path / "vit")
    with pytest.raises(ValueError, match=r"cannot read pictures of side 32 \(.*\); set perceptual.size to the side"):
        FeatureDistance(PerceptualConfig(a_vit), 32, CPU)
    with pytest.raises(ValueError, match="perceptual.layers has 7, but .* has the layers 0 to 2"):
        FeatureDistance(PerceptualConfig(a_vit, layers=[0, 7], size=16), 32, CPU)
    torch.manual_seed(0)
    text = BertConfig(vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    BertModel(text).save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match="holds a BertModel, which sees no pictures"):
        FeatureDistance(PerceptualConfig(str(tmp_path / "bert")), 32, CPU)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text('{"model_type": "resnet"}')
    with pytest.raises(ValueError, match="holds no model that transformers can load"):
        FeatureDistance(PerceptualConfig(str(tmp_path / "empty")), 32, CPU)
    ResNetForImageClassification(ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1])).save_pretrained(
        tmp_path / "shallow"
    )
    config = json.loads((tmp_path / "shallow" / "config.json").read_text())
    (tmp_path / "shallow" / "config.json").write_text(json.dumps({**config, "depths": [2]}))
    with pytest.raises(ValueError, match=r"lacks \d+ weights, .* features of random weights are none"):
        FeatureDistance(PerceptualConfig(str(tmp_path / "shallow")), 32, CPU)
