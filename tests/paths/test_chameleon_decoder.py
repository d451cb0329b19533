"""Chameleon's decoder as a backbone beside transformers' whole model, and in a model from scratch."""

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, ChameleonForConditionalGeneration

from hybridgen import HybridGenForConditionalGeneration
from hybridgen.bridges.backbones import check_config, check_text
from hybridgen.configuration_hybridgen import HybridGenConfig
from hybridgen.paths.chameleon_decoder import ChameleonDecoder, ChameleonDecoderConfig, ChameleonDecoderForCausalLM
from hybridgen.sampling.decoder import Decoder
from hybridgen.sampling.prefix import prefill
from tests.chameleons import tiny_chameleon
from tests.models import text_config
from tests.sampling.prompts import worst

SETTINGS = {"model_type": "chameleon_decoder", "num_key_value_heads": 2, "initializer_range": 0.2}


@pytest.fixture(params=[False, True], ids=["7b", "34b"])
def config(request) -> HybridGenConfig:
    return HybridGenConfig(text_config={**text_config("llama"), **SETTINGS, "swin_norm": request.param})


def test_it_is_what_transformers_model_is_without_its_tokenizer():
    for variant in ("7b", "34b"):
        theirs = tiny_chameleon(variant)
        settings = {name: value for name, value in theirs.config.to_dict().items() if name != "model_type"}
        ours = ChameleonDecoder(ChameleonDecoderConfig(**settings)).eval()
        assert ours.config.vq_config is None
        weights = {name: x for name, x in theirs.model.state_dict().items() if not name.startswith("vqmodel.")}
        ours.load_state_dict(weights)
        ids = torch.tensor([[0, 60, 70, 80]])
        with torch.no_grad():
            assert torch.equal(ours(ids).last_hidden_state, theirs.model(ids).last_hidden_state)


def test_the_auto_classes_know_it(config):
    assert type(AutoModel.from_config(config.text_config)) is ChameleonDecoder
    reference = AutoModelForCausalLM.from_config(config.text_config).eval()
    assert type(reference) is ChameleonDecoderForCausalLM
    assert isinstance(reference, ChameleonForConditionalGeneration)
    model = HybridGenForConditionalGeneration(config).eval()
    model.model.language_model.load_state_dict(reference.model.state_dict())
    model.lm_head.load_state_dict(reference.lm_head.state_dict())
    model.config.begin_image_token_id, model.config.end_image_token_id = 98, 99
    check_text(model, reference)


def test_it_can_be_a_backbone(config):
    """It sees what the mask shows and nothing else, in every layer (`bridges.backbones`)."""
    check_config(config.text_config, "it")


def test_norms_stand_where_swin_norm_says(config):
    """Behind attention and feed-forward a norm makes what a layer adds of size 1, however small its last matrix is."""
    backbone = HybridGenForConditionalGeneration(config).eval().model.language_model
    for layer in backbone.layers:
        layer.self_attn.o_proj.weight.data *= 0.1
        layer.mlp.down_proj.weight.data *= 0.1
    states = torch.randn(1, 3, 32)
    with torch.no_grad():
        added = backbone(inputs_embeds=states, output_hidden_states=True).hidden_states[1] - states
    size = added.square().mean().sqrt()
    assert (size > 1) if config.text_config.swin_norm else (size < 0.3)  # measured 1.4 and 0.1


def test_sampling_runs_it_as_transformers_does(config):
    """The 7B's layers by our own operations (`sampling.decoder`), the 34B's by transformers'."""
    model = HybridGenForConditionalGeneration(config).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data += 0.3 * torch.randn_like(parameter)
    decoder = Decoder(model)
    assert (decoder.layers is None) == config.text_config.swin_norm
    ids = torch.tensor([[3, 4, 5, 6, 7, 8]])
    vectors = {"input_ids": ids, "document_ids": torch.zeros_like(ids), "block_ids": torch.arange(6)[None]}
    prefix = prefill(model, **vectors, position_ids=torch.arange(6)[None], decoder=decoder)
    with torch.no_grad():
        expected = model.model(ids).last_hidden_state[:, -1]
    assert worst(prefix.last_state, expected) < 1e-5  # measured 0
    if not config.text_config.swin_norm:
        assert Decoder(model, "int8").layers is not None


def test_every_head_has_norms_of_its_own(config):
    model = HybridGenForConditionalGeneration(config)
    attention = model.model.language_model.layers[0].self_attn
    assert attention.q_norm.weight.shape == (4, 8)
    assert attention.k_norm.bias.shape == (2, 8)


def test_save_and_load(config, tmp_path):
    model = HybridGenForConditionalGeneration(config).eval()
    model.save_pretrained(tmp_path)
    again = HybridGenForConditionalGeneration.from_pretrained(tmp_path)
    assert again.config.text_config.swin_norm == config.text_config.swin_norm
    ids = torch.tensor([[3, 4, 5]])
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model(ids).logits)
