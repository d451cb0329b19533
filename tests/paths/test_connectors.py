"""Connectors: those of transformers' models with the same weights, and how many tokens they make, everywhere."""

import pytest
import torch
from transformers import (
    Blip2QFormerConfig,
    Blip2QFormerModel,
    Gemma3Config,
    Idefics3Config,
    IdeficsConfig,
    InternVLConfig,
    JanusConfig,
)
from transformers.models.gemma3.modeling_gemma3 import Gemma3MultiModalProjector
from transformers.models.idefics.perceiver import IdeficsPerceiverResampler
from transformers.models.idefics3.modeling_idefics3 import Idefics3Connector
from transformers.models.internvl.modeling_internvl import InternVLModel, InternVLMultiModalProjector
from transformers.models.janus.configuration_janus import JanusVisionConfig, JanusVQVAEConfig
from transformers.models.janus.modeling_janus import JanusVisionAlignerMLP

from hybridgen import HybridGenConfig
from hybridgen.bridges.janus.configs import janus_config
from hybridgen.configuration_understanding import CONNECTORS
from hybridgen.paths.connectors.building import build_connector
from hybridgen.paths.connectors.mlp import Aligner
from tests.models import text_config, tiny_config, tiny_model

TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
TOWER |= {"image_size": 32, "patch_size": 8, "vision_use_head": False}  # 4 x 4 features
SMALL = {  # each connector at toy size, and the tokens that it makes of 16 features
    "mlp": ({}, 16),
    "linear": ({}, 16),
    "pixel_shuffle": ({"factor": 2}, 4),
    "average_pool": ({"factor": 4}, 1),
    "perceiver_resampler": ({"num_latents": 3, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 8}, 3),
    "q_former": (
        {"num_query_tokens": 5, "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 3,
         "num_attention_heads": 2},
        5,
    ),
}  # fmt: skip


def config_of(kind: str, **settings) -> HybridGenConfig:
    return tiny_config(vision_config=TOWER, aligner={"type": kind, **SMALL[kind][0], **settings})


def connector(kind: str, **settings):
    torch.manual_seed(0)
    return build_connector(config_of(kind, **settings)).eval()


def randomise(module) -> None:
    torch.manual_seed(1)
    for weight in module.parameters():
        torch.nn.init.normal_(weight, std=0.3)


def features() -> torch.Tensor:
    torch.manual_seed(2)
    return torch.randn(3, 16, 16)


def copy_weights(ours, theirs, names: dict[str, str]) -> None:
    """Give ours the weights of theirs; every weight of ours has a name there."""
    randomise(theirs)
    state = theirs.state_dict()
    ours.load_state_dict({name: state[names[name]].view_as(weight) for name, weight in ours.state_dict().items()})


def distance(a, b) -> float:
    assert a.shape == b.shape
    return float((a - b).abs().max())


# ------------------------------------------------------------------------------------------------------- oracles


@torch.no_grad()
def test_mlp_is_janus():
    vision = {"hidden_size": 16, "projection_dim": 32, "depth": 2, "num_attention_heads": 2, "image_size": 32}
    theirs = JanusVisionAlignerMLP(JanusConfig(vision_config=vision).vision_config)
    ours = connector("mlp")
    copy_weights(ours, theirs, {name: name for name in ours.state_dict()})
    assert torch.equal(ours(features()), theirs(features()))


@torch.no_grad()
def test_pixel_shuffle_is_idefics3():
    """Measured: 0 (Idefics' layer has no bias)."""
    theirs = Idefics3Connector(
        Idefics3Config(vision_config={"hidden_size": 16}, text_config={"hidden_size": 32}, scale_factor=2)
    )
    ours = connector("pixel_shuffle", depth=1)
    randomise(theirs)
    ours.fc1.weight.copy_(theirs.modality_projection.proj.weight)
    ours.fc1.bias.zero_()
    assert distance(ours(features()), theirs(features())) < 1e-5


@torch.no_grad()
def test_pixel_shuffle_is_internvl():
    """Which shuffles by a method of its model. Measured: 0."""
    config = InternVLConfig(vision_config={"hidden_size": 16}, text_config={"hidden_size": 32, "model_type": "qwen2"})
    theirs = InternVLMultiModalProjector(config)
    ours = connector("pixel_shuffle", norm=True)
    names = {"fc1": "linear_1", "hidden_layers.0": "linear_2", "norm": "layer_norm"}
    copy_weights(ours, theirs, {f"{a}.{w}": f"{b}.{w}" for a, b in names.items() for w in ("weight", "bias")})
    shuffled = InternVLModel.pixel_shuffle(None, features().view(3, 4, 4, 16), 0.5).flatten(1, 2)
    assert distance(ours(features()), theirs(shuffled)) < 1e-5


@torch.no_grad()
def test_average_pool_is_gemma3():
    """Gemma has an RMSNorm behind it and a matrix without bias. Measured: 0."""
    vision = {"hidden_size": 16, "image_size": 32, "patch_size": 8}
    theirs = Gemma3MultiModalProjector(
        Gemma3Config(vision_config=vision, text_config={"hidden_size": 32}, mm_tokens_per_image=4)
    )
    randomise(theirs)
    ours = connector("average_pool", factor=2, depth=1)
    ours.fc1.weight.copy_(theirs.mm_input_projection_weight.T)
    ours.fc1.bias.zero_()
    ours.norm = theirs.mm_soft_emb_norm
    assert distance(ours(features()), theirs(features())) < 1e-5


@torch.no_grad()
def test_perceiver_resampler_is_idefics():
    """Measured: 1.5e-7, of numbers up to .7."""
    config = IdeficsConfig(vision_config={"embed_dim": 16}, perceiver_config={"qk_layer_norms_perceiver": False})
    theirs = IdeficsPerceiverResampler(config, embed_dim=16, depth=2, n_heads=2, head_dim=8, n_latents=3)
    ours = connector("perceiver_resampler", hidden_act="relu")
    parts = {"features_norm": "context_layer_norm", "latents_norm": "latents_layer_norm", "out_proj": "output_proj"}
    names = {"latents": "latents", "norm.weight": "layer_norm.weight", "norm.bias": "layer_norm.bias"}
    for name in ours.state_dict():
        _, layer, kind, rest = (name.split(".", 3) + [""] * 3)[:4]
        if kind == "attention":
            part, weight = rest.split(".")
            names[name] = f"blocks.{layer}.0.{parts.get(part, part)}.{weight}"
        elif kind == "feed_forward":
            number, weight = rest.split(".")
            names[name] = f"blocks.{layer}.1.{('ln', 'fc', 'act', 'c_proj')[int(number)]}.{weight}"
    randomise(theirs)
    state = theirs.state_dict()
    mine = {name: state[names[name]] for name in ours.state_dict() if "fc1" not in name}
    ours.load_state_dict(mine, strict=False)
    assert distance(ours(features()), ours.fc1(theirs(features()))) < 1e-5


@torch.no_grad()
def test_q_former_is_blip2():
    """Every second layer looks at the features, the first of them too. Measured: 0."""
    theirs = Blip2QFormerModel(
        Blip2QFormerConfig(
            vocab_size=50,
            hidden_size=24,
            intermediate_size=32,
            num_hidden_layers=3,
            num_attention_heads=2,
            encoder_hidden_size=16,
            cross_attention_frequency=2,
        )  # fmt: skip
    ).eval()
    randomise(theirs)
    ours = connector("q_former")
    ours.q_former.load_state_dict(theirs.state_dict())
    queries = ours.query_tokens.expand(3, -1, -1)
    expected = theirs(query_embeds=queries, encoder_hidden_states=features()).last_hidden_state
    assert distance(ours(features()), ours.fc1(expected)) < 1e-5
    assert [layer.has_cross_attention for layer in ours.q_former.encoder.layer] == [True, False, True]


# ------------------------------------------------------------------------------------- one number of tokens, one name


@pytest.mark.parametrize("kind", CONNECTORS)
def test_the_number_of_tokens_is_what_the_module_makes(kind):
    config = config_of(kind)
    assert config.image_tokens == SMALL[kind][1] == build_connector(config)(features()).shape[1]
    assert HybridGenConfig.from_dict(config.to_dict()).aligner == config.aligner
    assert config.aligner["type"] == kind
    assert "depth" in config.aligner  # every default is written out


def test_the_connector_of_old_checkpoints_is_the_same_to_the_bit(tmp_path):
    """No `aligner` in the config: an MLP of its depth and activation, with its names, drawn by the same numbers."""
    old = tiny_config(aligner_depth=3, aligner_hidden_act="relu").to_dict()
    for name in ("aligner", "vision_feature_layer"):
        assert old.pop(name) is None
    torch.manual_seed(3)
    ours = build_connector(HybridGenConfig.from_dict(old))
    torch.manual_seed(3)
    expected = Aligner(16, 32, 3, "relu")
    assert list(ours.state_dict()) == [
        f"{layer}.{weight}" for layer in ("fc1", "hidden_layers.0", "hidden_layers.1") for weight in ("weight", "bias")
    ]
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), expected.parameters(), strict=True))
    said = tiny_config(aligner={"type": "mlp", "depth": 3, "hidden_act": "relu"})
    assert (said.aligner_depth, said.aligner_hidden_act) == (3, "relu")
    assert said.connector == HybridGenConfig.from_dict(old).connector


@pytest.mark.parametrize("kind", CONNECTORS)
def test_every_weight_learns_and_has_a_start(kind):
    """Saved and loaded it is the same; built from nothing its starting weights are finite and not all zero."""
    model = tiny_model(config_of(kind))
    aligned = model.model.get_image_features(torch.randn(2, 3, 32, 32), return_dict=True).pooler_output
    assert 0.05 < float(aligned.std()) < 20
    aligned.square().sum().backward()
    without = [name for name, weight in model.model.aligner.named_parameters() if weight.grad is None]
    assert not without


WRONG = [
    ({"type": "pixel_shuffle", "factor": 3}, "aligner.factor is 3, which does not divide the .* one of 2, 4"),
    ({"type": "average_pool", "factor": 0}, "aligner.factor is 0; it must be an integer of at least 1"),
    ({"type": "average_pool", "norm": 1}, "aligner.norm is 1; it must be true or false"),
    ({"type": "pixelshuffle"}, "aligner has the type 'pixelshuffle'; it must be one of mlp, linear, pixel_shuffle"),
    ({"factor": 2}, "aligner has no type; it must be one of"),
    ({"type": "q_former", "queries": 3}, "aligner.queries is 3, but a q_former connector has no such setting; it has"),
    ({"type": "q_former", "num_query_token": 3}, "did you mean num_query_tokens?"),
    ({"type": "q_former", "hidden_size": 10}, "aligner.hidden_size 10 is not divisible by num_attention_heads 12"),
    ({"type": "mlp", "hidden_act": "sharp"}, "aligner.hidden_act is 'sharp'; it must be one that transformers has"),
    ({"type": "linear", "depth": 2}, "aligner.depth is 2, but a linear connector is one layer; say type: mlp"),
    ("mlp", "aligner is 'mlp'; give its settings, such as {type: mlp}"),
]  # fmt: skip


@pytest.mark.parametrize(("aligner", "sentence"), WRONG, ids=range(len(WRONG)))
def test_one_sentence_from_the_config(aligner, sentence):
    with pytest.raises(ValueError, match=sentence.replace("?", ".")):
        tiny_config(vision_config=TOWER, aligner=aligner)


def test_contradictions_are_refused():
    with pytest.raises(ValueError, match="aligner_depth is 4, but aligner says depth 1; keep it in aligner alone"):
        tiny_config(vision_config=TOWER, aligner={"type": "linear"}, aligner_depth=4)
    with pytest.raises(ValueError, match="aligner is given, but there is no vision_config"):
        HybridGenConfig(text_config=text_config(), aligner={"type": "mlp"})


def test_what_no_janus_has_is_not_converted_to_one():
    janus = {"model_type": "janus_vision_model", "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2}
    janus |= {"image_size": 32, "patch_size": 8, "projection_dim": 32, "hidden_act": "gelu"}
    janus_vision = JanusVisionConfig(**{name: value for name, value in janus.items() if name != "model_type"})
    for changes, sentence in (
        ({"aligner": {"type": "average_pool"}}, "but this model's aligner is a average_pool"),
        ({"vision_feature_layer": -2}, "a Janus reads its tower's output, but this model's vision_feature_layer is -2"),
    ):
        with pytest.raises(ValueError, match=sentence):
            janus_config(tiny_config(vision_config=janus_vision, **changes), JanusVQVAEConfig())
    linear = tiny_config("llama", vision_config=janus_vision, aligner={"type": "linear"})
    assert janus_config(linear, JanusVQVAEConfig()).vision_config.depth == 1
