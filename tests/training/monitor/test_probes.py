"""Probes against autograd, torch and transformers' own attention weights; and that they leave nothing behind."""

import math

import pytest
import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from hybridgen.training.distributed.precision import set_attention
from hybridgen.training.monitor import probes
from tests.models import tiny_config, tiny_model

# -------------------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("model.language_model.layers.0.mlp.up_proj.weight", "language_model"),
        ("model.language_model.embed_tokens.weight", "embed_tokens"),
        ("module.model.vision_model.encoder.layers.0.layer_norm1.bias", "vision_model"),
        ("model.generation_aligner.fc1.weight", "generation_aligner"),
        ("lm_head.weight", "lm_head"),
        ("vq_model.encoder.conv_in.weight", "encoder"),
    ],
)
def test_parts_are_named_as_the_model_names_them(name, part):
    assert probes.part_of(name) == part


class Toy(nn.Module):
    """Gradients that are known by hand: that of a sum of products is the other factor."""

    def __init__(self):
        super().__init__()
        self.shared = nn.Linear(3, 1, bias=False)
        self.text_head, self.image_head = nn.Linear(2, 1, bias=False), nn.Linear(2, 1, bias=False)
        self.idle = nn.Linear(2, 2)


def test_norms_and_cosines_by_hand():
    """Text pulls `shared` along (3, 4, 0), images along (4, 3, 0): norms 5, cosine 24 / 25."""
    toy = Toy()
    text, image = torch.tensor([[3.0, 4.0, 0.0]]), torch.tensor([[4.0, 3.0, 0.0]])

    def backward(pull, head, factor):
        ((toy.shared.weight * pull).sum() + factor * head.weight.sum()).backward()
        found = probes.gradients(toy)
        probes.drop_grads(toy)
        return found

    first, second = backward(text, toy.text_head, 6.0), backward(image, toy.image_head, 8.0)
    found = probes.compare(first, second, ("text", "image"))
    of_text, of_image = math.sqrt(25 + 2 * 36), math.sqrt(25 + 2 * 64)
    assert found == pytest.approx(
        {
            "gradient_norm_text/shared": 5.0,
            "gradient_norm_image/shared": 5.0,
            "gradient_cosine/shared": 24 / 25,
            "gradient_norm_text/text_head": math.sqrt(72),
            "gradient_norm_image/image_head": math.sqrt(128),
            "gradient_norm_text/all": of_text,
            "gradient_norm_image/all": of_image,
            "gradient_cosine/all": 24 / (of_text * of_image),
        }
    )


def test_norms_are_torchs():
    model = tiny_model()
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
    found = probes.norms(model)
    assert {"gradient_norm/language_model", "gradient_norm/embed_tokens", "gradient_norm/final_layer"} <= set(found)
    aligner = torch.nn.utils.get_total_norm([parameter.grad for parameter in model.model.aligner.parameters()])
    assert found["gradient_norm/aligner"] == pytest.approx(float(aligner), rel=1e-5)
    whole = torch.nn.utils.get_total_norm([parameter.grad for parameter in model.parameters()])
    assert math.hypot(*found.values()) == pytest.approx(float(whole), rel=1e-5)


def _look_and_fail(model: nn.Module) -> None:
    with probes.preserve_grads_and_rng(model, torch.device("cpu")):
        assert all(parameter.grad is None for parameter in model.parameters())
        torch.rand(5)
        sum(parameter.sum() for parameter in model.parameters()).backward()
        raise KeyError


def test_what_is_inside_leaves_gradients_and_random_streams_alone():
    model = tiny_model().train()
    gradients = {name: torch.randn_like(parameter) for name, parameter in model.named_parameters()}
    for name, parameter in model.named_parameters():
        parameter.grad = gradients[name]
    stream = torch.get_rng_state()
    with pytest.raises(KeyError):  # also when it fails
        _look_and_fail(model)
    assert all(parameter.grad is gradients[name] for name, parameter in model.named_parameters())
    assert torch.equal(torch.get_rng_state(), stream)


# ------------------------------------------------------------------------------------------- activations, attention


def test_entropy_by_hand():
    """One key: 0. Four alike: log 4. Two with odds of 1 to 3: log 4 - 3/4 log 3."""
    key = torch.tensor([[[0.0], [0.0], [0.0], [0.0], [math.log(3.0)]]])  # one head, five keys
    mask = torch.tensor([[[True, False, False, False, False], [True] * 4 + [False], [True, False, False, False, True]]])
    expected = torch.tensor([[0.0, math.log(4), math.log(4) - 0.75 * math.log(3)]])
    query = torch.full((1, 3, 1), 2.0)
    for each in (mask, torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)):
        found = probes.attention_entropy(query, key, each, scaling=0.5)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    alike = probes.attention_entropy(query, torch.zeros(1, 5, 1), None, scaling=0.5)
    torch.testing.assert_close(alike, torch.full((1, 3), math.log(5)))


@pytest.mark.parametrize("attention", ["sdpa", "eager", "flex_attention"])
@pytest.mark.parametrize("backbone", ["qwen3", "llama"])
@torch.compiler.set_stance(
    "force_eager"
)  # flex attention as written: what is compiled is held by tests/core/test_layout
@torch.no_grad()
def test_inside_is_what_eager_attention_shows(backbone, attention):
    """Entropies against transformers' attention weights, norms against its hidden states, with grouped heads, two
    documents and padding. Worst difference seen: 2e-7."""
    model = tiny_model(tiny_config(backbone))
    ids = torch.randint(3, 90, (2, 24), generator=torch.Generator().manual_seed(0))
    documents = torch.tensor([[0] * 9 + [1] * 11 + [-1] * 4, [0] * 24])
    inputs = {"input_ids": ids, "document_ids": documents, "block_ids": torch.arange(24).expand(2, -1)}
    set_attention(model, "eager")
    shown = model(**inputs, output_attentions=True, output_hidden_states=True)
    set_attention(model, attention)
    text = model.model.language_model
    hooks = [dict(module._forward_hooks) for module in (model.lm_head, *text.layers)]
    with probes.ActivationProbe(text, {"text": model.lm_head}, documents >= 0) as probe:
        logits = model(**inputs).logits
    found = probe.numbers()

    for layer, weights in enumerate(shown.attentions):
        of_heads = torch.special.entr(weights[0, :, :20]).sum(-1).mean(-1)
        assert found[f"attention_entropy/layer_{layer:02d}"] == pytest.approx(float(of_heads.mean()), abs=1e-5)
        assert found[f"attention_entropy_least/layer_{layer:02d}"] == pytest.approx(float(of_heads.min()), abs=1e-5)
    first = shown.hidden_states[1][documents >= 0]  # after layer 0; what follows the last layer is normed
    assert found["output_rms/layer_00"] == pytest.approx(float(first.pow(2).mean().sqrt()), rel=1e-5)
    assert found["max_logit/text"] == pytest.approx(float(logits.abs().max()))
    assert {name.split("/")[0] for name in found} == {
        "attention_entropy", "attention_entropy_least", "output_rms", "max_logit"
    }  # fmt: skip

    assert text.config._attn_implementation == attention
    assert not {"sdpa", "flex_attention"} & ALL_ATTENTION_FUNCTIONS._local_mapping.keys()
    assert [dict(module._forward_hooks) for module in (model.lm_head, *text.layers)] == hooks
    torch.testing.assert_close(model(**inputs).logits, shown.logits, rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_row_of_padding_has_no_attention_to_measure():
    model = tiny_model()
    inputs = {"input_ids": torch.zeros(1, 4, dtype=torch.long), "document_ids": torch.full((1, 4), -1)}
    with probes.ActivationProbe(model.model.language_model, {}, inputs["document_ids"] >= 0) as probe:
        model(**inputs)
    assert not any(name.startswith("attention") for name in probe.numbers())
