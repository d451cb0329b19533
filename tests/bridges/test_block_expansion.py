"""Decoders with more layers, which write the same logits at first; what numbers of layers mean stays what it was."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, DiffLlamaConfig, JetMoeConfig

from hybridgen.bridges.backbones import decoder_of
from hybridgen.bridges.block_expansion import check_expansion, expanded_config, is_output, source_of
from tests.bridges.test_backbones import BEYOND, EXPERTS, SIZES

MIXED = {**EXPERTS, "decoder_sparse_step": 2, "mlp_only_layers": [3], "num_hidden_layers": 4}
KINDS = {
    "llama": ("llama", {}),
    "biases, and experts of which some rest": ("gpt_oss", BEYOND["gpt_oss"]),
    "a dense layer first, latent attention": ("deepseek_v3", BEYOND["deepseek_v3"]),
    "layers without positions, chunks": ("llama4_text", BEYOND["llama4_text"]),
    "layers without positions by a list": ("smollm3", BEYOND["smollm3"]),
    "experts every second layer, but for one": ("qwen3_moe", MIXED),
    "windows below": ("qwen2", BEYOND["qwen2"]),
    "norms behind projections": ("gemma2", BEYOND["gemma2"]),
    "other names and biases": ("starcoder2", BEYOND["starcoder2"]),
    "side by side": ("gpt_neox", {}),
}


def both(kind: str, settings: dict, times: int) -> tuple:
    """A decoder of transformers with random weights everywhere, and the deeper one with the same."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**SIZES, **settings})
    small = AutoModelForCausalLM.from_config(config).eval()
    for parameter in small.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    grown = expanded_config(config, times)
    check_expansion(config, grown)
    large = AutoModelForCausalLM.from_config(grown).eval()
    saved, weights = decoder_of(small).state_dict(), {}
    for name in decoder_of(large).state_dict():
        source, is_copy = source_of(name, times)
        weights[name] = torch.zeros_like(saved[source]) if is_copy and is_output(name) else saved[source].clone()
    decoder_of(large).load_state_dict(weights)
    large.get_output_embeddings().load_state_dict(small.get_output_embeddings().state_dict())
    return small, large


@pytest.mark.parametrize("what", KINDS)
def test_a_deeper_decoder_writes_the_same_logits_and_its_copies_learn(what):
    """To the bit: what a copy adds is 0. Every weight that is zero gets a gradient."""
    kind, settings = KINDS[what]
    small, large = both(kind, settings, 3)
    assert large.config.num_hidden_layers == 3 * small.config.num_hidden_layers
    ids = torch.randint(3, 300, (2, 30), generator=torch.Generator().manual_seed(1))
    logits = large(ids).logits
    assert torch.equal(logits, small(ids).logits)
    logits.square().mean().backward()
    silent = {name: each for name, each in large.named_parameters() if is_output(name) and not each.any()}
    assert len(silent) >= 2 * 2 * small.config.num_hidden_layers  # attention and feed-forward of two copies a layer
    assert all(each.grad.any() for each in silent.values())


def test_lists_and_counts_of_layers_are_said_again_of_copies():
    config = AutoConfig.for_model("qwen3_moe", **{**SIZES, **MIXED, "eos_token_id": [1, 2, 3, 4]})
    grown = expanded_config(config, 2)
    assert grown.mlp_only_layers == [0, 1, 4, 5, 6, 7]  # layers 0, 2 and 3
    assert grown.decoder_sparse_step == 1
    assert grown.eos_token_id == [1, 2, 3, 4]  # as many as layers, by chance
    config = AutoConfig.for_model("gemma2", **SIZES, layer_types=["sliding_attention", "full_attention"])
    assert expanded_config(config, 2).layer_types == ["sliding_attention"] * 2 + ["full_attention"] * 2
    assert config.num_hidden_layers == 2  # it is another config


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (DiffLlamaConfig, "a 'diffllama', whose layer 1 of 4 would not be made as layer 0 of 2, which it copies"),
        (JetMoeConfig, "a 'jetmoe', whose layers add something even if their output projections are zero; keep 2"),
    ],
)
def test_decoders_that_cannot_grow_are_refused(config, sentence):
    """Layers that are scaled by their number, and experts with a bias of their own behind."""
    config = config(num_hidden_layers=2)
    with pytest.raises(ValueError, match=sentence):
        check_expansion(config, expanded_config(config, 2))
