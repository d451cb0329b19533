"""Towers of the understanding path: the features of every family are transformers' own, one a patch."""

import pytest
import torch
from transformers import AutoConfig, AutoModel
from transformers.models.janus.configuration_janus import JanusVisionConfig
from transformers.models.janus.modeling_janus import JanusVisionModel

from hybridgen import HybridGenConfig
from hybridgen.configuration_understanding import PREFIX_TOKENS
from hybridgen.paths.understanding import build_vision_tower, encode_features, freeze_unused, unused_weights
from hybridgen.training.config.parts import hybrid_config
from hybridgen.training.config.schema import ModelConfig
from tests.models import text_config, tiny_config, tiny_model

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
SIZES |= {"image_size": 16, "patch_size": 4}  # 4 x 4 patches
# how many tokens stand before the patches, from each family's paper or model card, and what makes it so
FAMILIES = {
    "siglip_vision_model": (0, {}), "siglip2_vision_model": (0, {"num_patches": 16}), "janus_vision_model": (0, {}),
    "clip_vision_model": (1, {}), "chinese_clip_vision_model": (1, {}), "mlcd_vision_model": (1, {}),
    "aimv2_vision_model": (0, {}), "internvl_vision": (1, {}), "ijepa": (0, {}), "vit": (1, {}), "vit_msn": (1, {}),
    "beit": (1, {}), "data2vec-vision": (1, {}), "deit": (2, {}), "dinov2": (1, {}),
    "dinov2_with_registers": (5, {"num_register_tokens": 4}), "dinov3_vit": (4, {"num_register_tokens": 3}),
    "pixio": (8, {}),
}  # fmt: skip


def tower_config(kind: str, **changes):
    settings = SIZES | FAMILIES[kind][1] | changes
    if kind == "janus_vision_model":
        return JanusVisionConfig(**settings)
    return AutoConfig.for_model(kind, **settings)


def both(kind: str):
    """Our tower and transformers' own, with the same random weights."""
    torch.manual_seed(0)
    config = tower_config(kind)
    reference = JanusVisionModel(config) if kind == "janus_vision_model" else AutoModel.from_config(config)
    for weight in reference.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    ours = build_vision_tower(config).eval()
    ours.load_state_dict(reference.state_dict())
    return ours, reference.eval()


def read_by(reference, pixels, **kwargs):
    """What transformers' tower makes of pictures; NaFlex takes patches of row, column, channel."""
    if reference.config.model_type != "siglip2_vision_model":
        return reference(pixels, **kwargs)
    p = reference.config.patch_size
    patches = pixels.unfold(2, p, p).unfold(3, p, p).permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)
    mask = torch.ones(patches.shape[:2], dtype=torch.long)
    return reference(patches, mask, torch.tensor([[4, 4]] * len(pixels)), **kwargs)


def test_every_known_family_is_tested():
    assert set(FAMILIES) == set(PREFIX_TOKENS)


@pytest.mark.parametrize("kind", FAMILIES)
@torch.no_grad()
def test_features_are_transformers_own(kind):
    """Of the output, of one layer and of several: to the bit (promised: 1e-5)."""
    tower, reference = both(kind)
    pixels, own = torch.randn(2, 3, 16, 16), FAMILIES[kind][0]
    theirs = read_by(reference, pixels, output_hidden_states=True)
    assert torch.equal(encode_features(tower, pixels)[0], theirs.last_hidden_state[:, own:])
    assert torch.equal(encode_features(tower, pixels, (-2,))[0], theirs.hidden_states[2][:, own:])
    several = torch.cat([theirs.hidden_states[layer][:, own:] for layer in (0, 3)], dim=-1)
    assert torch.equal(encode_features(tower, pixels, (0, -1))[0], several)


@pytest.mark.parametrize("kind", FAMILIES)
@torch.no_grad()
def test_each_feature_is_of_its_patch(kind):
    """Where no layer has mixed them, another patch changes its own feature alone: none is of a class token or register,
    and they stand in reading order."""
    tower, _ = both(kind)
    pixels, changed = torch.randn(1, 3, 16, 16), 6  # the patch in row 1, column 2
    others = pixels.clone()
    others[..., 4:8, 8:12] += 1
    before, after = (encode_features(tower, each, (0,))[0] for each in (pixels, others))
    differs = (before - after).abs().amax(-1)[0] > 1e-6
    assert differs.nonzero().flatten().tolist() == [changed]


@pytest.mark.parametrize("layers", [None, [-2], [1, 0]])
@pytest.mark.parametrize("kind", FAMILIES)
def test_every_weight_that_learns_has_a_gradient(kind, layers):
    """Ranks would wait for those without: pooling heads, mask tokens and layers behind the features are frozen."""
    config = tower_config(kind, **({"vision_use_head": False} if "siglip" in kind else {}))
    tower = build_vision_tower(config)
    freeze_unused(tower, layers)
    encode_features(tower, torch.randn(1, 3, 16, 16), layers)[0].square().sum().backward()
    learns = {name for name, weight in tower.named_parameters() if weight.requires_grad}
    assert {name for name, weight in tower.named_parameters() if weight.grad is not None} == learns
    assert learns


def test_unused_weights_by_name():
    assert unused_weights(tower_config("clip_vision_model")) == {"post_layernorm.weight", "post_layernorm.bias"}
    assert unused_weights(tower_config("dinov3_vit")) == {"embeddings.mask_token"}


def both_models(**changes) -> HybridGenConfig:
    tower = {"model_type": "clip_vision_model", **SIZES}
    return tiny_config(vision_config=tower, **changes)


@torch.no_grad()
def test_a_model_reads_features_of_the_layers_that_its_config_names(tmp_path):
    """Through the connector into the backbone, and again after it is saved; with prepared features likewise."""
    model = tiny_model(both_models(vision_feature_layer=[-2, 1], aligner={"type": "pixel_shuffle"}))
    pixels = torch.randn(2, 3, 16, 16)
    hidden = model.model.vision_model(pixels, output_hidden_states=True).hidden_states
    features = torch.cat([hidden[2][:, 1:], hidden[1][:, 1:]], dim=-1)
    aligned = model.model.get_image_features(pixels, return_dict=True).pooler_output
    assert torch.equal(aligned, model.model.aligner(features))
    assert torch.equal(aligned, model.model.get_image_features(features, return_dict=True).pooler_output)
    assert aligned.shape[1] == model.config.image_tokens == 4
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert again.config.vision_feature_layer == [-2, 1]
    assert torch.equal(again.model.get_image_features(pixels, return_dict=True).pooler_output, aligned)
    frozen = [[name for name, weight in each.named_parameters() if not weight.requires_grad] for each in (model, again)]
    assert frozen[0] == frozen[1]
    assert any("encoder.layers.2." in name for name in frozen[0])


WRONG = [
    ({"vision_feature_layer": 4}, "vision_feature_layer is 4, but the tower has 3 layers: 4 is none of 0 .* to 3"),
    ({"vision_feature_layer": [-2, -5]}, "vision_feature_layer is .-2, -5., but the tower has 3 layers: -5 is none"),
    ({"vision_feature_layer": []}, "vision_feature_layer is ..; give the number of a layer"),
    ({"vision_feature_layer": True}, "vision_feature_layer is True; give the number of a layer"),
    ({"vision_feature_layer": "last"}, "vision_feature_layer is 'last'; give the number of a layer"),
    ({"vision_config": None, "vision_feature_layer": -2}, "vision_feature_layer is -2, but there is no vision_config"),
    ({"vision_config": {"model_type": "vit", **SIZES, "image_size": [16, 8]}}, "image_size is .16, 8.; towers read"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "sentence"), WRONG)
def test_a_layer_that_is_not_there_is_refused_by_the_config(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        both_models(**changes) if "vision_config" not in changes else tiny_config(**changes)


def test_a_training_config_says_so_before_anything_is_built():
    text = {name: value for name, value in text_config().items() if name != "vocab_size"}
    model = ModelConfig(
        text_config=text, vision_config={"model_type": "dinov2", **{k: SIZES[k] for k in SIZES if "inter" not in k}}
    )
    assert hybrid_config(model, vocab_size=100).image_tokens == 16
    model.vision_feature_layer = -9
    with pytest.raises(ValueError, match="vision_feature_layer is -9, but the tower has 3 layers"):
        hybrid_config(model, vocab_size=100)
