"""Dropout behind attention and feed-forward: what it drops, when, and where it cannot be."""

import pytest
import torch
from torch.nn import functional as F

from hybridgen.training.stages.dropout import add_dropout
from tests.models import tiny_config, tiny_model


def test_in_training_each_layer_adds_what_dropout_leaves():
    """Qwen3's layer written out, with the same random stream."""
    backbone = tiny_model().model.language_model
    layer, states = backbone.layers[0], torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(0))
    positions = torch.arange(5)[None]
    how = {"position_embeddings": backbone.rotary_emb(states, positions), "attention_mask": None}

    def by_hand() -> torch.Tensor:
        torch.manual_seed(7)
        attended = layer.self_attn(hidden_states=layer.input_layernorm(states), **how)[0]
        middle = states + F.dropout(attended, 0.5)
        return middle + F.dropout(layer.mlp(layer.post_attention_layernorm(middle)), 0.5)

    layer.train()
    expected = by_hand()
    plain = layer(states, **how)
    add_dropout(backbone, 0.5)
    layer.train()
    torch.manual_seed(7)
    assert torch.equal(layer(states, **how), expected)
    layer.eval()
    assert torch.equal(layer(states, **how), plain)


@pytest.mark.parametrize("backbone", ["llama", "qwen3_moe", "llama4_text"])
def test_other_decoders_have_it_too(backbone):
    model = tiny_model(tiny_config(backbone)).train()
    ids = torch.randint(3, 80, (1, 9))
    with torch.no_grad():
        still = [model(ids).logits for _ in range(2)]
        add_dropout(model.model.language_model, 0.3)
        moving = [model(ids).logits for _ in range(2)]
        quiet = model.eval()(ids).logits
    assert torch.equal(*still)
    assert not torch.equal(*moving)
    assert torch.equal(quiet, still[0])


def test_layers_of_another_form_are_refused():
    backbone = torch.nn.Module()
    backbone.layers = torch.nn.ModuleList([torch.nn.Linear(2, 2)])
    with pytest.raises(ValueError, match=r"dropout is 0.1, but a layer .*\(Linear\) has no self_attn and mlp"):
        add_dropout(backbone, 0.1)
