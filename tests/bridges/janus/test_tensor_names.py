"""Names and shapes of the real checkpoints, without a weight: DeepSeek's 882 tensors are transformers' 964 (1B;
936 and 1018 of the 7B, which has six layers more)."""

import math

import pytest
import torch

from hybridgen.bridges.janus.configs import config_from_official, config_to_official, expected_shapes
from hybridgen.bridges.janus.tensor_names import from_official, is_dropped, to_official
from hybridgen.bridges.weights import StoredTensor, in_memory
from tests.official import SIZES, official_config, official_shapes


def on_meta(shapes: dict) -> dict[str, StoredTensor]:
    return {name: in_memory(torch.empty(shape, device="meta")) for name, shape in shapes.items()}


def shapes_of(tensors: dict[str, StoredTensor]) -> dict[str, tuple]:
    return {name: tensor.shape for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("size", "official", "transformers", "parameters"),
    [
        ("Janus-1.3B", 882, 964, 2.089),
        ("Janus-Pro-1B", 882, 964, 2.089),
        ("Janus-Pro-7B", 936, 1018, 7.42),  # six layers more, of nine tensors each
    ],
)
def test_every_tensor_of_the_real_checkpoints_has_its_place(size, official, transformers, parameters):
    theirs = official_shapes(**SIZES[size])
    assert len(theirs) == official
    kept = {name: shape for name, shape in theirs.items() if not is_dropped(name)}
    assert round(sum(map(math.prod, theirs.values())) / 1e9, 3) == parameters
    assert len(theirs) - len(kept) == 14  # 13 of the attention pool, and codebook_used
    made = from_official(on_meta(kept))
    assert len(made) == transformers
    config = config_from_official(official_config(**SIZES[size]), made)
    assert shapes_of(made) == expected_shapes(config)
    for name, tensor in made.items():
        assert tensor.read().shape == tensor.shape, name
    back = to_official(made)
    assert shapes_of(back) == kept
    for name, tensor in back.items():
        assert tensor.read().shape == tensor.shape, name
    assert not config.tie_word_embeddings


def test_the_config_comes_back_too():
    settings = official_config(**SIZES["Janus-Pro-1B"])
    kept = {name: shape for name, shape in official_shapes(**SIZES["Janus-Pro-1B"]).items() if not is_dropped(name)}
    made = config_to_official(config_from_official(settings, from_official(on_meta(kept))), torch.bfloat16)
    for part in ("vision_config", "aligner_config", "gen_vision_config", "gen_aligner_config", "gen_head_config"):
        assert made[part]["params"] == settings[part]["params"], part
        assert made[part]["cls"] == settings[part]["cls"], part
    assert made["language_config"].items() >= settings["language_config"].items()


def test_queries_keys_and_values_are_cut_in_this_order():
    whole = torch.arange(12.0).view(6, 2)
    name = "vision_model.vision_tower.blocks.7.attn.qkv.weight"
    parts = from_official({name: in_memory(whole)})
    layer = "model.vision_model.encoder.layers.7.self_attn"
    for number, part in enumerate("qkv"):
        assert torch.equal(parts[f"{layer}.{part}_proj.weight"].read(), whole[2 * number : 2 * number + 2])
    assert torch.equal(to_official(parts)[name].read(), whole)


def test_a_name_without_a_place_is_refused():
    with pytest.raises(ValueError, match=r"model\.something\.weight has no place in DeepSeek's layout"):
        to_official({"model.something.weight": in_memory(torch.zeros(1))})
