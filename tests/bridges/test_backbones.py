"""What can be a backbone: decoders that do more, or less, than the mask says are refused by name, by every door."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from hybridgen.bridges.assemble import assemble
from hybridgen.bridges.backbones import check_attention, check_config
from hybridgen.cli.main import main
from hybridgen.paths.understanding import check_tower
from hybridgen.training.config.parts import hybrid_config
from hybridgen.training.config.schema import ModelConfig
from tests.bridges.test_assemble import text_tokenizer
from tests.models import BACKBONES, text_config, tiny_config, tiny_model

SIZES = {"vocab_size": 320, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512}
WINDOWED = {
    "mistral": ({"sliding_window": 16}, "layers see 16 tokens at most (sliding_window)"),
    "gemma3_text": ({"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}, "see 16 tokens"),
    "gpt_oss": ({"sliding_window": 16, "num_local_experts": 2, "num_experts_per_tok": 1}, "see 16 tokens at most"),
    "qwen3": ({"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}, "see 16 tokens at most"),
    "llama4_text": ({"attention_chunk_size": 16, "num_local_experts": 2}, "see 16 tokens at most (attention_chunk"),
    "qwen3_next": ({"layer_types": ["linear_attention", "full_attention"]}, "with layers of 'linear_attention'"),
    "qwen3_moe": ({"output_router_logits": True}, "with output_router_logits, whose loss balances experts"),
}


def config_of(kind: str, **changes):
    return AutoConfig.for_model(kind, **{**SIZES, **changes})


@pytest.mark.parametrize("kind", WINDOWED)
def test_what_a_config_tells_is_refused(kind):
    changes, sentence = WINDOWED[kind]
    with pytest.raises(ValueError) as refused:
        check_config(config_of(kind, **changes), "backbone x")
    assert str(refused.value).startswith(f"backbone x is a '{kind}'")
    assert sentence in str(refused.value)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("llama", {}),
        ("qwen2", {"sliding_window": 16, "use_sliding_window": False}),
        ("qwen3", {"sliding_window": 16}),
        ("qwen3_moe", {}),
        ("mistral", {"sliding_window": None}),
        ("mistral", {"sliding_window": 512}),  # as long as the longest text
    ],
)
def test_what_changes_nothing_is_let_pass(kind, changes):
    check_config(config_of(kind, **changes), "backbone x")


@pytest.mark.parametrize("kind", BACKBONES)
def test_backbones_that_heed_the_mask(kind):
    model = tiny_model(tiny_config(kind)).train()
    before = torch.get_rng_state()
    check_attention(model)
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind", ["falcon_h1", "mamba2"])
def test_a_state_that_passes_from_document_to_document_is_refused(kind):
    changes = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "num_heads": 8}
    text = text_config("llama") | {"model_type": kind, "head_dim": 8, **changes}
    model = tiny_model(tiny_config(text_config=text, vision_config=None, vq_config=None))
    with pytest.raises(ValueError, match=f"the backbone is a '{kind}', (whose tokens see |which takes no mask)"):
        check_attention(model)


def test_a_backbone_that_sees_only_what_came_before_cannot_draw(monkeypatch):
    model = tiny_model()
    documents = torch.block_diag(torch.ones(8, 8), torch.ones(8, 8)).bool()
    causal = torch.ones(16, 16).tril().bool() & documents
    monkeypatch.setattr(model.model, "render_mask", lambda *args, **kwargs: causal[None, None])
    with pytest.raises(ValueError, match="whose tokens see nothing of an image's rest"):
        check_attention(model)


@pytest.fixture(scope="module")
def windowed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("backbones") / "mistral"
    torch.manual_seed(0)
    tokenizer = text_tokenizer()
    AutoModelForCausalLM.from_config(config_of("mistral", sliding_window=16)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_by_every_door(windowed, capsys, tmp_path):
    sentence = "is a 'mistral' whose layers see 16 tokens at most"
    with pytest.raises(ValueError, match=sentence):
        assemble(["diffusion"], backbone=windowed)
    words = ["init", str(tmp_path / "made"), "--backbone", str(windowed), "--paths", "diffusion", "--image-size", "16"]
    assert main(words) == 2
    assert sentence in capsys.readouterr().err
    diffusion = {"patch_size": 4, "sample_size": 16}
    with pytest.raises(ValueError, match=sentence):
        hybrid_config(ModelConfig(language_model=str(windowed), diffusion_config=diffusion))
    text = {"model_type": "mistral", "sliding_window": 16, **SIZES}
    text.pop("vocab_size")
    with pytest.raises(ValueError, match=sentence):
        hybrid_config(ModelConfig(text_config=text, diffusion_config=diffusion), vocab_size=320)


TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
TOWER |= {"image_size": 16, "patch_size": 8}


@pytest.mark.parametrize("kind", ["clip_vision_model", "dinov2"])
def test_a_tower_with_a_class_token_is_refused_when_the_config_is_read(kind):
    with pytest.raises(ValueError, match=f"the vision tower is a '{kind}', which makes 5 features of the 4 patches"):
        check_tower(AutoConfig.for_model(kind, **TOWER))
    text = {"model_type": "llama", **{name: value for name, value in SIZES.items() if name != "vocab_size"}}
    tower = {name: value for name, value in TOWER.items() if kind != "dinov2" or name != "intermediate_size"}
    with pytest.raises(ValueError, match="which makes 5 features of the 4 patches"):
        hybrid_config(ModelConfig(text_config=text, vision_config={"model_type": kind, **tower}), vocab_size=320)
    with pytest.raises(ValueError, match="which makes 5 features of the 4 patches"):
        tiny_model(tiny_config(vision_config={"model_type": kind, **TOWER}))


def test_a_tower_of_another_kind_is_refused_in_one_sentence():
    with pytest.raises(ValueError, match="the vision tower is a 'llama', which makes no row of features of a picture"):
        check_tower(AutoConfig.for_model("llama", **SIZES))
