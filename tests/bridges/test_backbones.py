"""What can be a backbone: each decoder of transformers is its own model here, or is refused by name, by every door."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from hybridgen import HybridGenConfig, HybridGenForConditionalGeneration, HybridGenModel
from hybridgen.bridges import backbones
from hybridgen.bridges.assemble import AssemblyOptions, assemble
from hybridgen.bridges.backbones import check_config, decoder_of
from hybridgen.cli.main import main
from hybridgen.core.layout import Window
from hybridgen.paths.understanding import check_tower
from hybridgen.training.config.parts import hybrid_config
from hybridgen.training.config.schema import ModelConfig
from tests.bridges.test_assemble import text_tokenizer
from tests.models import tiny_config, tiny_model

SIZES = {"vocab_size": 320, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512}
LOCAL, FULL = "sliding_attention", "full_attention"
STATE = "which carries words past the end of a document in a state"
PLAIN_DEEPSEEK = {"num_experts_per_tok": 6, "topk_method": "greedy", "n_group": None, "topk_group": None}
GRANITE = {"logits_scaling": 8.0, "embedding_multiplier": 12.0, "residual_multiplier": 0.22}

DECODERS = {  # of the library's own default sizes, which no test could build; None = accepted, else what the error says
    "afmoe": ({}, None),
    "apertus": ({}, None),
    "arcee": ({}, None),
    "cohere": ({}, None),
    "cohere2": ({}, None),
    "cohere2_moe": ({}, None),
    "deepseek_v2": (PLAIN_DEEPSEEK, None),
    "deepseek_v3": ({}, None),
    "ernie4_5": ({}, None),
    "exaone4": ({}, None),
    "gemma": ({}, None),
    "gemma2": ({}, None),
    "gemma3_text": ({}, None),
    "glm4": ({}, None),
    "glm4_moe": ({}, None),
    "gpt_neox": ({}, None),
    "gpt_oss": ({}, None),
    "granite": (GRANITE, None),
    "granitemoe": (GRANITE, None),
    "helium": ({}, None),
    "hunyuan_v1_dense": ({"head_dim": 128}, None),
    "llama": ({}, None),
    "llama4_text": ({}, None),
    "minimax_m2": ({}, None),
    "ministral3": ({}, None),
    "mistral": ({}, None),
    "mixtral": ({"sliding_window": 4096}, None),
    "olmo2": ({}, None),
    "olmo3": ({}, None),
    "olmoe": ({}, None),
    "phi3": ({"sliding_window": 2047}, None),
    "qwen2": ({"use_sliding_window": True, "max_window_layers": 3}, None),
    "qwen2_moe": ({}, None),
    "qwen3": ({"use_sliding_window": True, "max_window_layers": 3}, None),
    "qwen3_moe": ({"output_router_logits": True}, None),
    "smollm3": ({}, None),
    "stablelm": ({}, None),
    "starcoder2": ({"sliding_window": 4096}, None),
    "bamba": ({}, STATE),
    "bloom": ({}, "which has no list of layers"),
    "deepseek_v32": ({}, "which chooses by itself which tokens to attend to"),
    "falcon": ({"alibi": True}, "which has no list of layers"),
    "falcon_h1": ({}, STATE),
    "gemma3n_text": ({}, "which looks up embeddings by the ids of the text in every layer"),
    "gpt2": ({}, "which has no list of layers"),
    "granitemoehybrid": ({}, "with layers of 'linear_attention', which carry words past the end of a document"),
    "jamba": ({}, STATE),
    "lfm2": ({}, STATE),
    "mamba2": ({}, STATE),
    "minimax": ({}, STATE),
    "mpt": ({}, "which has no list of layers"),
    "phi": ({}, "whose head is no plain matrix"),
    "qwen3_next": ({}, STATE),
    "recurrent_gemma": ({}, STATE),
    "rwkv": ({}, STATE),
    "zamba2": ({}, STATE),
}


@pytest.mark.parametrize("kind", DECODERS)
def test_decoders_of_transformers(kind):
    """A tiny one of its settings is tried out: nothing of these sizes is ever built."""
    changes, sentence = DECODERS[kind]
    config = type(AutoConfig.for_model(kind))(**changes)
    before = torch.get_rng_state()
    if sentence is None:
        check_config(config, "backbone x")
    else:
        with pytest.raises(ValueError) as refused:
            check_config(config, "backbone x")
        assert str(refused.value).startswith(f"backbone x is a '{kind}'")
        assert sentence in str(refused.value)
        assert "; give " in str(refused.value)
    assert torch.equal(torch.get_rng_state(), before)


# ---------------------------------------------------------------------------------- against the library's own models

LATENT = {"kv_lora_rank": 16, "q_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}
LATENT |= {"num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
BEYOND = {  # windows and chunks of 8 tokens
    "mistral": {"sliding_window": 8},
    "mixtral": {"sliding_window": 8, "num_local_experts": 4},
    "phi3": {"sliding_window": 8, "pad_token_id": 0},
    "starcoder2": {"sliding_window": 8},
    "gemma2": {"sliding_window": 8, "layer_types": [LOCAL, FULL]},
    "gemma3_text": {"sliding_window": 8, "layer_types": [LOCAL, FULL]},
    "qwen2": {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 1},
    "qwen3": {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 1},
    "qwen3_moe": {"sliding_window": 8, "use_sliding_window": True, **EXPERTS},
    "gpt_oss": {"sliding_window": 8, "num_local_experts": 4, "num_experts_per_tok": 2},
    "olmo3": {"sliding_window": 8, "layer_types": [LOCAL, FULL]},
    "cohere2": {"sliding_window": 8, "layer_types": [LOCAL, FULL]},
    "exaone4": {"sliding_window": 8, "layer_types": [LOCAL, FULL]},
    "smollm3": {"num_hidden_layers": 4, "pad_token_id": 0},
    "granite": GRANITE,
    "deepseek_v3": {**LATENT, "moe_intermediate_size": 16, "first_k_dense_replace": 1},
    "llama4_text": {
        "attention_chunk_size": 8, "floor_scale": 4, "num_local_experts": 2, "num_hidden_layers": 4,
        "intermediate_size_mlp": 64,
    },
}  # fmt: skip


def both(kind: str) -> tuple:
    """A decoder of transformers with its head, and the hybrid with the same weights."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**SIZES, **BEYOND[kind]})
    reference = AutoModelForCausalLM.from_config(config).eval()
    for parameter in reference.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    model = HybridGenForConditionalGeneration(HybridGenConfig(text_config=config)).eval()
    model.model.language_model.load_state_dict(decoder_of(reference).state_dict())
    model.lm_head.load_state_dict(reference.get_output_embeddings().state_dict())
    return reference, model


def distance(ours: torch.Tensor, expected: torch.Tensor) -> float:
    return float((ours - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("kind", BEYOND)
@torch.no_grad()
def test_text_beyond_windows_equals_transformers(kind):
    """Logits and losses, of one text, of padded ones, and of those packed into a row. Measured: 6e-7 at most."""
    reference, model = both(kind)
    ids = torch.randint(3, 300, (2, 40))
    expected = reference(ids, labels=ids)
    ours = model(ids, labels=ids)
    assert distance(ours.logits, expected.logits) < 1e-5
    assert abs(ours.loss - expected.loss) < 1e-5
    lengths = torch.tensor([13, 27])
    positions = torch.cat([torch.arange(int(n)) for n in lengths])[None]
    packed = model(ids[:1], position_ids=positions).logits[0].split(lengths.tolist())
    for part, text in zip(packed, ids[:1].split(lengths.tolist(), dim=1), strict=True):
        assert distance(part, reference(text).logits[0]) < 1e-5
    padded = torch.nn.functional.pad(ids[:1], (5, 0))
    present = (torch.arange(45) >= 5).long()[None]
    assert distance(model(padded, attention_mask=present).logits[:, 5:], expected.logits[:1]) < 1e-5


@pytest.mark.parametrize("kind", BEYOND)
def test_nothing_crosses_documents(kind):
    _, model = both(kind)
    ids = torch.randint(3, 300, (1, 30))
    embeds = model.get_input_embeddings()(ids).detach().requires_grad_()
    documents = torch.arange(3).repeat_interleave(10)[None]
    places = {"document_ids": documents, "block_ids": torch.arange(30)[None]}
    logits = model(inputs_embeds=embeds, position_ids=torch.arange(10).repeat(3)[None], **places).logits
    (gradient,) = torch.autograd.grad(logits[:, 10:20].square().sum(), embeds)
    assert gradient[:, 10:20].abs().amax() > 0
    assert gradient[:, :10].abs().amax() == gradient[:, 20:].abs().amax() == 0


@pytest.mark.parametrize("kind", ["mistral", "gemma3_text", "qwen3", "llama4_text", "gpt_oss"])
def test_generation_beyond_windows_equals_transformers(kind):
    """Greedy, with caches that keep every token: of one prompt, and of two that are padded."""
    reference, model = both(kind)
    ids = torch.randint(3, 300, (2, 12))
    present = torch.ones_like(ids)
    present[0, :5] = 0
    rows = {"input_ids": ids, "attention_mask": present} if kind != "llama4_text" else {"input_ids": ids[1:]}
    settings = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    expected = reference.generate(**rows, **settings)
    assert torch.equal(model.generate(**rows, **settings), expected)
    assert torch.equal(model.generate(**rows, **settings, use_cache=False), expected)


def test_windows_of_configs():
    config = AutoConfig.for_model
    assert HybridGenModel(tiny_config()).windows == {FULL: None}
    gemma = HybridGenConfig(text_config=config("gemma3_text", **{**SIZES, **BEYOND["gemma3_text"]}))
    assert HybridGenModel(gemma).windows == {LOCAL: Window(8), FULL: None}
    llama = HybridGenConfig(text_config=config("llama4_text", **{**SIZES, **BEYOND["llama4_text"]}))
    assert HybridGenModel(llama).windows == {"chunked_attention": Window(8, chunked=True), FULL: None}
    for kind, changes in (("mistral", {"sliding_window": None}), ("qwen2", {"sliding_window": 8})):
        assert not HybridGenModel(HybridGenConfig(text_config=config(kind, **SIZES, **changes))).has_windows


# ------------------------------------------------------------------------------------------- what the trial notices


def tried(kind: str = "llama", **changes) -> str | None:
    backbones._try_out.cache_clear()
    try:
        check_config(AutoConfig.for_model(kind, **{**SIZES, **changes}), "x")
    except ValueError as error:
        return str(error)
    finally:
        backbones._try_out.cache_clear()
    return None


def test_layers_that_see_less_than_the_mask_shows(monkeypatch):
    def causal(self, document_ids, *_, **__):
        same = document_ids[:, :, None] == document_ids[:, None]
        return (same & torch.ones(same.shape[-1], same.shape[-1]).tril().bool())[:, None]

    monkeypatch.setattr(HybridGenModel, "layer_masks", causal)
    assert "whose layer 0 does not let tokens see all that the mask shows" in tried()


def test_layers_that_see_more_than_the_mask_shows(monkeypatch):
    everything = lambda self, document_ids, *_, **__: torch.ones(1, 1, *[document_ids.shape[1]] * 2).tril().bool()  # noqa: E731
    monkeypatch.setattr(HybridGenModel, "layer_masks", everything)
    monkeypatch.setattr(backbones, "_other_text", lambda *_: None)
    assert "whose layer 0 lets tokens see what the mask hides" in tried()


def test_a_window_that_is_left_out(monkeypatch):
    monkeypatch.setattr("hybridgen.modeling_hybridgen.layer_windows", lambda config: {FULL: None})
    assert "ours differ by" in tried("mistral", sliding_window=16)


def test_documents_that_depend_on_their_place_in_a_row(monkeypatch):
    monkeypatch.setattr("hybridgen.modeling_hybridgen.scale_by_position", lambda backbone: None)
    sentence = "whose documents depend on their place in a row"
    assert sentence in tried("llama4_text", num_local_experts=2, num_hidden_layers=4)


def test_settings_that_transformers_does_not_run():
    assert "which cannot be tried out" in tried("qwen3", hidden_act="nothing")
    assert "which cannot be tried out" in tried("mixtral", num_local_experts=0)


def test_settings_of_a_mixture_or_window_that_nothing_can_have():
    assert tried("mixtral", num_experts_per_tok=9) == (
        "x is a 'mixtral' whose num_experts_per_tok is 9; it must be from 1 to 8, its experts"
    )
    assert "num_experts_per_tok is 0; it must be from 1 to 4" in tried(
        "qwen3_moe", num_experts=4, num_experts_per_tok=0
    )
    assert tried("qwen3_moe", num_experts=0) is None  # which transformers builds as a dense one
    assert "sliding_window 0; give a number of tokens" in tried("mistral", sliding_window=0)


# ----------------------------------------------------------------------------------------------------------- the doors


@pytest.fixture(scope="module")
def stateful(tmp_path_factory):
    folder = tmp_path_factory.mktemp("backbones") / "qwen3_next"
    layers = {"layer_types": ["linear_attention", FULL], "num_experts": 2, "num_experts_per_tok": 1}
    layers |= {"linear_num_value_heads": 2, "linear_num_key_heads": 2, "moe_intermediate_size": 16}
    layers |= {"linear_key_head_dim": 8, "linear_value_head_dim": 8, "shared_expert_intermediate_size": 16}
    AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen3_next", **{**SIZES, **layers})).save_pretrained(folder)
    text_tokenizer().save_pretrained(folder)
    return folder


def test_by_every_door(stateful, capsys, tmp_path):
    sentence = f"is a 'qwen3_next', {STATE}"
    with pytest.raises(ValueError, match=sentence):
        assemble(["diffusion"], backbone=stateful)
    words = ["init", str(tmp_path / "made"), "--backbone", str(stateful), "--paths", "diffusion", "--image-size", "16"]
    assert main(words) == 2
    assert sentence in capsys.readouterr().err
    diffusion = {"patch_size": 4, "sample_size": 16}
    with pytest.raises(ValueError, match=sentence):
        hybrid_config(ModelConfig(language_model=str(stateful), diffusion_config=diffusion))
    text = {name: value for name, value in SIZES.items() if name != "vocab_size"}
    with pytest.raises(ValueError, match=sentence):
        hybrid_config(ModelConfig(text_config={"model_type": "qwen3_next", **text}), vocab_size=320)
    with pytest.raises(ValueError, match=sentence):
        HybridGenForConditionalGeneration(HybridGenConfig(text_config={"model_type": "qwen3_next", **SIZES}))


@pytest.mark.parametrize("kind", ["mistral", "gemma3_text", "llama4_text", "qwen3_moe", "granite"])
@torch.no_grad()
def test_init_takes_windows_chunks_experts_and_scales(kind, tmp_path):
    """A hybrid of the decoder writes its text beyond windows, before and after it is saved."""
    reference, _ = both(kind)
    reference.save_pretrained(tmp_path / kind)
    text_tokenizer().save_pretrained(tmp_path / kind)
    pipe = assemble(["diffusion"], backbone=tmp_path / kind, options=AssemblyOptions(image_size=16))
    ids = torch.randint(3, 300, (1, 40))
    expected = reference(ids).logits
    assert distance(pipe.model(ids).logits[..., :300], expected[..., :300]) < 1e-5
    pipe.save_pretrained(tmp_path / "saved")
    loaded = HybridGenForConditionalGeneration.from_pretrained(tmp_path / "saved").eval()
    assert torch.equal(loaded(ids).logits, pipe.model(ids).logits)


TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
TOWER |= {"image_size": 16, "patch_size": 8}


def test_a_tower_that_drops_patches_is_refused_when_the_config_is_read():
    """A masked autoencoder's tower makes a class token and a quarter of the patches, others each time."""
    with pytest.raises(ValueError, match="the vision tower is a 'vit_mae', which makes 2 features of the 4 patches"):
        check_tower(AutoConfig.for_model("vit_mae", **TOWER))
    text = {"model_type": "llama", **{name: value for name, value in SIZES.items() if name != "vocab_size"}}
    with pytest.raises(ValueError, match="which makes 2 features of the 4 patches"):
        hybrid_config(ModelConfig(text_config=text, vision_config={"model_type": "vit_mae", **TOWER}), vocab_size=320)
    with pytest.raises(ValueError, match="which makes 2 features of the 4 patches"):
        tiny_model(tiny_config(vision_config={"model_type": "vit_mae", **TOWER}))


def test_a_tower_of_another_kind_is_refused_in_one_sentence():
    with pytest.raises(ValueError, match="the vision tower is a 'llama', which makes no row of features of a picture"):
        check_tower(AutoConfig.for_model("llama", **SIZES))
