"""Mixtures of experts: the loss that balances their routers against transformers' own, and experts for image tokens."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from hybridgen import HybridGenConfig, HybridGenForConditionalGeneration
from hybridgen.bridges.backbones import decoder_of
from hybridgen.core.layout import ImageSegment, TextSegment, lay_out
from hybridgen.paths.modality_experts import EXPERT
from hybridgen.paths.moe import balancing_loss, router_outputs
from tests.models import TOKENS, batch_of, text_config, tiny_config, tiny_model

SIZES = {"vocab_size": 100, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "pad_token_id": 0}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "router_aux_loss_coef": 100.0}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
BALANCED = ["qwen3_moe", "qwen2_moe", "mixtral", "olmoe", "gpt_oss", "granitemoe", "phimoe"]
DIFFUSION = {"patch_size": 4, "sample_size": 16, "frequency_embedding_size": 32, "modality_experts": True}


def both(kind: str) -> tuple:
    torch.manual_seed(0)
    known = AutoConfig.for_model(kind).to_dict()
    settings = {name: value for name, value in {**SIZES, **EXPERTS}.items() if name in known}
    config = AutoConfig.for_model(kind, **settings, output_router_logits=True)
    reference = AutoModelForCausalLM.from_config(config).eval()
    for parameter in reference.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    model = HybridGenForConditionalGeneration(HybridGenConfig(text_config=config)).eval()
    model.model.language_model.load_state_dict(decoder_of(reference).state_dict())
    model.lm_head.load_state_dict(reference.get_output_embeddings().state_dict())
    return reference, model


@pytest.mark.parametrize("kind", BALANCED)
def test_the_loss_is_transformers_own(kind):
    """Of the router alone, in the whole loss, and in every gradient; with padding, which no loss counts."""
    reference, model = both(kind)
    ids = torch.randint(3, 90, (3, 20))
    present = torch.ones_like(ids)
    present[1, 15:], present[2, 8:] = 0, 0
    labels = ids.masked_fill(present == 0, -100)
    expected = reference(ids, attention_mask=present, labels=labels)
    ours = model(ids, attention_mask=present, labels=labels)
    assert expected.aux_loss > 0.5
    assert abs(ours.router_loss - expected.aux_loss) < 1e-5  # measured 0
    assert abs(ours.loss - expected.loss) < 1e-5 * expected.loss
    expected.loss.backward()
    ours.loss.backward()
    theirs = dict(decoder_of(reference).named_parameters())
    for name, parameter in model.model.language_model.named_parameters():
        assert (parameter.grad - theirs[name].grad).abs().max() < 1e-4 * theirs[name].grad.abs().max() + 1e-7, name
    packed = model(ids, document_ids=present - 1, output_router_logits=True)
    assert abs(packed.router_loss - expected.aux_loss) < 1e-5


def test_it_is_asked_for():
    _, model = both("qwen3_moe")
    model.config.text_config.output_router_logits = model.model.language_model.config.output_router_logits = False
    ids = torch.randint(3, 90, (1, 9))
    plain = model(ids, labels=ids)
    assert plain.router_loss is None
    assert plain.router_logits is None
    asked = model(ids, labels=ids, output_router_logits=True)
    assert abs(asked.loss - plain.loss - 100 * asked.router_loss) < 1e-4 * asked.loss
    assert [tuple(scores.shape) for scores in asked.router_logits] == [(9, 4)] * 2


def test_padding_alone_has_no_loss_and_no_gradient_that_is_no_number():
    scores = torch.randn(6, 4, requires_grad=True)
    loss = balancing_loss(router_outputs((scores,), None), torch.zeros(2, 3, dtype=torch.bool), 2)
    loss.backward()
    assert loss == 0
    assert scores.grad.abs().max() == 0


# ---------------------------------------------------------------------------------------- experts for image tokens


@pytest.fixture(params=["qwen3_moe", "llama4_text", "mixtral"])
def split(request):
    """A mixture of experts whose image tokens have one of their own."""
    text = text_config("qwen3_moe") if request.param == "mixtral" else text_config(request.param)
    if request.param == "mixtral":
        text = {**text, "model_type": "mixtral", "num_local_experts": 4}
        for name in ("num_experts", "moe_intermediate_size", "decoder_sparse_step"):
            text.pop(name)
    return tiny_model(tiny_config(text_config=text, diffusion_config=DIFFUSION))


def mixed_rows() -> tuple[dict, dict]:
    image = ImageSegment("diffusion", 16, True, write=True)
    rows = [
        [lay_out([TextSegment([5, 6, 7]), image, TextSegment([8])], TOKENS)],
        [lay_out([TextSegment([9] * 20)], TOKENS)],
    ]
    batch = batch_of(rows, 24)
    generator = torch.Generator().manual_seed(0)
    media = {"latents": torch.randn(1, 3, 16, 16, generator=generator), "timesteps": torch.tensor([300.0])}
    return {name: batch[name] for name in ("input_ids", "document_ids", "block_ids", "position_ids")}, media


def backbone_with(model, weights: str):
    """The same model with plain layers, of the text's weights or of the images'."""
    config = model.config.to_dict()
    config["diffusion_config"]["modality_experts"] = False
    plain = tiny_model(HybridGenConfig.from_dict(config))
    state = model.state_dict()
    own = {name.replace(f".{EXPERT}.", "."): value for name, value in state.items() if f".{EXPERT}." in name}
    rest = {name: value for name, value in state.items() if f".{EXPERT}." not in name}
    plain.load_state_dict(rest | own if weights == "image" else rest)
    return plain


def test_the_mixtures_have_experts_for_images(split):
    names = [name for name in split.state_dict() if f".{EXPERT}." in name]
    assert any("experts" in name for name in names)
    assert any("gate.weight" in name or "router.weight" in name for name in names)


@torch.no_grad()
def test_one_layer_is_the_two_plain_ones(split):
    """Of one layer without attention, text is the plain layer's of the text's weights, images of the images'."""
    rows, media = mixed_rows()
    for layer in split.model.language_model.layers:
        for name, parameter in layer.self_attn.named_parameters():
            if "o_proj" in name:
                parameter.zero_()
    is_image = rows["input_ids"] == TOKENS.diffusion
    states = split.model(**rows, **media).last_hidden_state
    for weights, where in (("text", ~is_image), ("image", is_image)):
        expected = backbone_with(split, weights).model(**rows, **media).last_hidden_state
        assert (states - expected)[where].abs().max() < 1e-5  # measured 5e-7
    assert (states - expected)[~is_image].abs().max() > 1e-3


@torch.no_grad()
def test_text_is_the_plain_backbones_to_the_bit(split):
    ids = torch.randint(3, 90, (2, 12))
    assert torch.equal(split(ids).logits, backbone_with(split, "text")(ids).logits)


@pytest.mark.parametrize("images", [True, False])
def test_every_weight_is_reached_whatever_a_batch_holds(split, images):
    """So that no rank of DDP waits: a batch of text alone leaves zeros for the images' experts, and none as None."""
    rows, media = mixed_rows()
    if not images:
        rows, media = {name: values[1:] for name, values in rows.items()}, {}
    split.train()
    outputs = split(**rows, **media, labels=rows["input_ids"], output_router_logits=True)
    outputs.loss.backward()
    missing = [name for name, parameter in split.model.language_model.named_parameters() if parameter.grad is None]
    assert not missing
    own = [parameter for name, parameter in split.named_parameters() if f".{EXPERT}." in name]
    assert any(bool(parameter.grad.abs().max() > 0) for parameter in own) == images


def test_each_set_of_routers_is_balanced_over_its_own_tokens(split):
    rows, media = mixed_rows()
    outputs = split(**rows, **media, output_router_logits=True)
    flat, real = rows["input_ids"].flatten(), (rows["document_ids"] >= 0).flatten()
    image = flat == TOKENS.diffusion
    expected, k = 0.0, split.model.experts_per_token
    for start, of_kind in ((0, ~image), (1, image)):
        scores = torch.stack([scores[real[of_kind]] for scores in outputs.router_logits[start::2]])  # L, n, E
        chosen = torch.zeros_like(scores).scatter(-1, scores.topk(k, -1).indices, 1.0)
        shares, chances = chosen.mean((0, 1)), scores.softmax(-1).mean((0, 1))
        expected += scores.shape[-1] * (shares * chances).sum() * (real & of_kind).sum()
    assert abs(outputs.router_loss - expected / real.sum()) < 1e-5
