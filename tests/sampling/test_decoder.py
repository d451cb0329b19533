"""The fused decoder against transformers' own layers, and its fewer bits against the weights they come from."""

import pytest
import torch

from hybridgen.sampling import decoder
from hybridgen.sampling.decoder import PRECISIONS, Decoder, _Product, why_not_fused
from hybridgen.sampling.prefix import backbone, prefill
from tests.models import text_config, tiny_config, tiny_model
from tests.pretended_device import DEVICE, pretended_device, put_on
from tests.sampling.prompts import PROMPTS, batch, prefix_of, worst

FAMILY = {
    "qwen3": {},
    "llama": {"num_key_value_heads": 4},
    "llama, grouped, biased": {"model_type": "llama", "num_key_value_heads": 1, "attention_bias": True},
    "llama, scaled positions": {
        "model_type": "llama", "num_key_value_heads": 2,
        "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4},
    },
    "qwen2": {"model_type": "qwen2", "num_key_value_heads": 2},
    "mistral": {"model_type": "mistral", "num_key_value_heads": 2, "sliding_window": None},
}  # fmt: skip


def family(name: str, **changes):
    base = name if name in ("qwen3", "llama") else "llama"
    return tiny_model(tiny_config(text_config={**text_config(base), **FAMILY[name], **changes}))


def as_transformers(model, prefix, embeds, blocks, first: int, commit: bool):
    last = first + embeds.shape[1]
    mask = prefix.mask_with(model, blocks[:last], queries=embeds.shape[1])
    position_ids = prefix.positions_of(last)[:, first:]
    if commit:
        return backbone(model, prefix, embeds, mask, position_ids)
    with prefix.cache.no_commit():
        return backbone(model, prefix, embeds, mask, position_ids)


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILY)
def test_a_token_at_a_time_is_as_transformers_reads_it(name):
    """Prompts of unequal length; the norms and biases are no ones and zeros, so that none can be left out."""
    model = family(name)
    for key, parameter in model.model.language_model.named_parameters():
        if "norm" in key or "bias" in key:
            torch.nn.init.normal_(parameter, mean=0.5, std=0.2)
    assert why_not_fused(model) is None
    ours, theirs = prefix_of(model, PROMPTS), prefix_of(model, PROMPTS)
    blocks = torch.arange(6)
    read = Decoder(model).continue_from(ours, blocks, causal=True)
    for step in range(6):
        embeds = torch.randn(len(PROMPTS), 1, 32, generator=torch.Generator().manual_seed(step))
        expected = as_transformers(model, theirs, embeds, blocks, step, commit=True)
        assert worst(read(embeds, step), expected) < 1e-5  # measured 1e-6
    for mine, other in zip(ours.cache.layers, theirs.cache.layers, strict=True):
        assert mine.length == other.length
        assert worst(mine.keys[:, :, : mine.length], other.keys[:, :, : other.length]) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("prompts", [PROMPTS, [PROMPTS[0]] * 2], ids=["unequal", "equal"])
def test_an_image_at_once_is_as_transformers_reads_it_and_not_kept(prompts, attention):
    model = tiny_model()
    model.set_attn_implementation(attention)
    prefix = prefix_of(model, prompts)
    length, blocks = len(prefix), torch.zeros(16, dtype=torch.long)
    read = Decoder(model).continue_from(prefix, blocks)
    for seed in range(2):
        embeds = torch.randn(len(prompts), 16, 32, generator=torch.Generator().manual_seed(seed))
        expected = as_transformers(model, prefix, embeds, blocks, 0, commit=False)
        assert worst(read(embeds, commit=False), expected) < 1e-5  # measured 1e-6
        assert len(prefix) == length


def test_other_backbones_are_run_as_transformers_runs_them():
    for name in ("qwen3_moe", "llama4_text"):
        model = tiny_model(tiny_config(name))
        assert why_not_fused(model) is not None
        kind = type(model.model.language_model).__name__
        with pytest.raises(ValueError, match=f"Llama family .*, but this one is {kind}; use precision 'model'"):
            Decoder(model, "int8")


def test_what_is_changed_in_a_backbone_is_named():
    """And nothing else: the class of the backbone is right."""
    experts = tiny_config(diffusion_config={"patch_size": 4, "sample_size": 16, "modality_experts": True})
    with pytest.raises(ValueError, match="Llama family .*, but this one has modality experts; use"):
        Decoder(tiny_model(experts), "fp32")
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    with pytest.raises(ValueError, match=r"but this one has positions \(rope_type 'dynamic'\)"):
        Decoder(tiny_model(tiny_config(text_config=text_config("llama", rope_parameters=rope))), "fp32")


def test_changed_layers_are_run_as_they_were_changed():
    model = tiny_model()
    layer = model.model.language_model.layers[1].self_attn
    handle = layer.register_forward_hook(lambda module, args, output: output)
    assert why_not_fused(model) is not None
    with pytest.raises(ValueError, match=r"but this one has hooks on its layers\.1\.self_attn"):
        Decoder(model, "bf16")
    handle.remove()
    assert why_not_fused(model) is None

    class Adapted(torch.nn.Linear):
        pass

    layer.q_proj.__class__ = Adapted
    assert why_not_fused(model) is not None
    with pytest.raises(ValueError, match="but this one has Adapted where layer 1 has a linear"):
        Decoder(model, "bf16")


@torch.no_grad()
@pytest.mark.parametrize("name", ["qwen3", "llama, grouped, biased", "llama"])
@pytest.mark.parametrize("tokens", [1, 16])
def test_devices_are_given_equally_many_heads_with_a_mask(name, tokens, monkeypatch):
    """CUDA's fused kernels take no mask beside grouped heads, and another would hold the scores of all heads."""
    model = family(name)
    embeds = torch.randn(len(PROMPTS), tokens, 32, generator=torch.Generator().manual_seed(0))
    blocks = torch.zeros(tokens, dtype=torch.long)
    expected = Decoder(model).continue_from(prefix_of(model, PROMPTS), blocks)(embeds, commit=False)
    attention, calls = torch.nn.functional.scaled_dot_product_attention, []

    def watched(query, key, value, attn_mask=None, enable_gqa=False, **kwargs):
        calls.append((query.shape[1], key.shape[1], attn_mask is not None and enable_gqa))
        return attention(query, key, value, attn_mask=attn_mask, enable_gqa=enable_gqa, **kwargs)

    monkeypatch.setattr(decoder, "why_not_fused", lambda model: None)  # a pretended tensor is no plain parameter
    with pretended_device():
        vectors = {key: vector.to(DEVICE) for key, vector in batch([[ids] for ids in PROMPTS]).items()}
        prefix = prefill(put_on(model), **vectors)
        read = Decoder(model).continue_from(prefix, blocks.to(DEVICE))
        assert read.fused
        monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
        made = read(embeds.to(DEVICE), commit=False).cpu()
    assert len(calls) == 2  # layers
    assert all(queries == keys and not both for queries, keys, both in calls)
    assert worst(made, expected) < 1e-5


@torch.no_grad()
def test_the_models_own_precision_copies_nothing():
    """What is trained on between two drawings is drawn with."""
    model = tiny_model()
    made, embeds = Decoder(model), torch.randn(1, 1, 32, generator=torch.Generator().manual_seed(0))

    def read():
        return made.continue_from(prefix_of(model, PROMPTS[:1]), torch.arange(1), causal=True)(embeds)

    before = read()
    model.model.language_model.layers[0].mlp.down_proj.weight.mul_(2)
    assert worst(read(), before) > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("hidden", [32, 40])
@pytest.mark.parametrize("tokens", [1, 16])
@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_fewer_bits_stay_close(precision, tokens, hidden):
    """Against the model's own weights; widths that are no multiple of a vector's too."""
    text = text_config("llama", hidden_size=hidden, intermediate_size=3 * hidden)
    model = tiny_model(tiny_config(text_config=text))
    made = []
    for chosen in ("model", precision):
        prefix = prefix_of(model, PROMPTS[:2])
        embeds = torch.randn(2, tokens, hidden, generator=torch.Generator().manual_seed(0))
        decoder = Decoder(model, chosen)
        states = decoder.continue_from(prefix, torch.zeros(tokens, dtype=torch.long))(embeds, commit=False)
        made.append((states, decoder.code_logits(states[:, -1])))
    for exact, rough in zip(*made, strict=True):
        difference = (exact - rough).norm() / exact.norm()
        assert 0 < difference < 0.03  # measured 0.006 (bf16), 0.012 (int8)


@torch.no_grad()
@pytest.mark.parametrize("tokens", [1, 16])
@pytest.mark.parametrize("name", FAMILY)
def test_packed_float32_is_the_models_own(name, tokens):
    """Only the order of a sum differs; biases are no zeros."""
    model = family(name)
    for key, parameter in model.model.language_model.named_parameters():
        if "bias" in key:
            torch.nn.init.normal_(parameter, std=0.5)
    made = []
    for precision in ("model", "fp32"):
        embeds = torch.randn(len(PROMPTS), tokens, 32, generator=torch.Generator().manual_seed(0))
        blocks = torch.zeros(tokens, dtype=torch.long)
        forward = Decoder(model, precision).continue_from(prefix_of(model, PROMPTS), blocks)
        made.append(forward(embeds, commit=False))
    assert worst(*made) < 1e-5  # measured 1e-6


@torch.no_grad()
@pytest.mark.parametrize("precision", ["model", "fp32"])
def test_a_row_is_the_same_to_the_bit_whatever_stands_beside_it(precision):
    model = tiny_model()
    made, blocks = Decoder(model, precision), torch.zeros(16, dtype=torch.long)
    embeds = torch.randn(16, 16, 32, generator=torch.Generator().manual_seed(0))
    alone = made.continue_from(prefix_of(model, PROMPTS[:1]), blocks)(embeds[:1], commit=False)
    beside = made.continue_from(prefix_of(model, PROMPTS[:1] * 16), blocks)(embeds, commit=False)
    assert torch.equal(alone, beside[:1])


@torch.no_grad()
@pytest.mark.parametrize("precision", ["model", "fp32", "bf16"])
def test_what_comes_after_a_product_is_done_to_it(precision):
    """silu, a sum and a product with another tensor, where they are fused and where dtypes differ."""
    layer = torch.nn.Linear(32, 48)
    product, inputs = _Product([layer], precision, layer.weight.device), torch.randn(2, 5, 32)
    other, plain = torch.randn(2, 5, 48), layer(inputs)
    near = 1e-5 if precision != "bf16" else 0.05
    assert worst(product.joined(inputs, "swish"), torch.nn.functional.silu(plain)) < near
    assert worst(product.joined(inputs, "add", other), plain + other) < near  # measured 5e-7; bf16: 0.01
    assert worst(product.joined(inputs, "mul", other), plain * other) < near


@torch.no_grad()
def test_int8_is_the_nearest_of_255_steps():
    """The product with few tokens against the rounded weights, by hand."""
    model = tiny_model(tiny_config("llama"))
    product = Decoder(model, "int8").layers[0].down
    layer = model.model.language_model.layers[0].mlp.down_proj
    step = layer.weight.abs().amax(1, keepdim=True) / 127
    rounded = (layer.weight / step).round() * step
    inputs = torch.randn(1, 2, layer.in_features, generator=torch.Generator().manual_seed(0)).bfloat16().float()
    expected = torch.nn.functional.linear(inputs, rounded)
    assert (
        worst(product(inputs, "int8")[0], expected) < 0.01 * expected.abs().max()
    )  # measured 0.004: bf16 scale and result


def test_precisions_that_are_none_are_refused():
    with pytest.raises(ValueError, match="precision is 'fp4'; it must be one of 'model', 'fp32', 'bf16', 'int8'"):
        Decoder(tiny_model(), "fp4")
    assert PRECISIONS == ("model", "fp32", "bf16", "int8")


@torch.no_grad()
def test_copies_are_made_again_when_weights_change():
    model = tiny_model()
    made = Decoder(model, "bf16")
    assert made.is_current()
    model.model.language_model.layers[0].mlp.down_proj.weight.mul_(2)
    assert not made.is_current()


@pytest.mark.parametrize("fused", [True, False])
@torch.compiler.set_stance("force_eager")  # flex attention as written
@torch.no_grad()
def test_a_model_that_attends_by_flex_attention_reads_pictures_as_by_sdpa(monkeypatch, fused):
    """As samples within a run on CUDA are drawn. And a picture whose tokens see each other has a mask of one row: in a
    context of 32 k tokens 32 k numbers, and not 1,024 times as many."""
    if not fused:
        monkeypatch.setattr(decoder, "why_not_fused", lambda model: "is asked to")
    model, states = tiny_model(), {}
    embeds = torch.randn(len(PROMPTS), 16, 32, generator=torch.Generator().manual_seed(0))
    for attention in ("sdpa", "flex_attention"):
        model.set_attn_implementation({"": attention, "text_config": attention, "vision_config": "sdpa"})
        picture, codes = prefix_of(model, PROMPTS), prefix_of(model, PROMPTS)
        read = Decoder(model).continue_from(picture, torch.zeros(16, dtype=torch.long), diffusion=True)
        states[attention] = [read(embeds, commit=False), read(embeds)]
        if fused or attention == "sdpa":
            assert read.mask.shape == (len(PROMPTS), 1, 1, read.prefix_length + 16)
        read = Decoder(model).continue_from(codes, torch.arange(3), causal=True)
        states[attention] += [read(embeds[:, step : step + 1], step) for step in range(3)]
    for ours, theirs in zip(*states.values(), strict=True):
        assert worst(ours, theirs) < 1e-5  # measured 1e-6
