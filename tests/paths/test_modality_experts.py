"""Modality experts: whose weights a token passes through, with plain backbones of either weights as the oracles."""

import copy
import threading

import pytest
import torch
from transformers import AutoModelForCausalLM

from hybridgen import HybridGenForConditionalGeneration
from hybridgen.core.layout import ImageSegment, TextSegment, lay_out
from hybridgen.paths.modality_experts import copy_into_experts
from hybridgen.processing_hybridgen import add_image_tokens
from hybridgen.training.config.schema import ModelConfig
from hybridgen.training.stages.building import build_model
from tests.bridges.test_assemble import save_backbone, text_tokenizer
from tests.models import TOKENS, batch_of, inputs_of, text_config, tiny_config, tiny_model
from tests.sampling.prompts import worst

DIFFUSION = {"patch_size": 4, "sample_size": 16, "frequency_embedding_size": 32}


def model_of(backbone: str = "qwen3", experts: bool = True) -> HybridGenForConditionalGeneration:
    return tiny_model(tiny_config(backbone, diffusion_config={**DIFFUSION, "modality_experts": experts}))


def pair(backbone: str = "qwen3"):
    """A model with experts, and two without: one of its text weights, one whose backbone has the experts' weights."""
    model = model_of(backbone)
    weights = model.state_dict()
    text, images = (model_of(backbone, experts=False) for _ in range(2))
    text.load_state_dict({name: value for name, value in weights.items() if ".own." not in name})
    experts = {name.replace(".own.", "."): value for name, value in weights.items() if ".own." in name}
    images.load_state_dict({**text.state_dict(), **experts})
    return model, text, images


def mixed(write: bool = True):
    segments = [TextSegment([1, 5, 6]), ImageSegment("diffusion", 16, True, write=write), TextSegment([7, 8, 2])]
    layout = lay_out(segments, TOKENS)
    batch = batch_of([[layout, layout], [layout]], 2 * len(layout) + 3)
    generator = torch.Generator().manual_seed(3)
    media = {"latents": torch.randn(3, 3, 16, 16, generator=generator), "timesteps": torch.tensor([0.0, 300.0, 800.0])}
    return batch, {**inputs_of(batch), **media}


@pytest.mark.parametrize("backbone", ["qwen3", "llama"])
def test_text_is_the_plain_backbones_to_the_bit(backbone):
    model, text, _ = pair(backbone)
    ids = torch.randint(3, 90, (2, 17), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(model(ids).logits, text(ids).logits)
    greedy = {"max_new_tokens": 6, "do_sample": False}
    assert torch.equal(model.generate(ids, **greedy), text.generate(ids, **greedy))


@pytest.mark.parametrize("backbone", ["qwen3", "llama"])
def test_images_alone_pass_through_the_experts(backbone):
    model, _, images = pair(backbone)
    ids = torch.full((2, 16), TOKENS.diffusion)
    media = {"latents": torch.randn(2, 3, 16, 16), "timesteps": torch.tensor([10.0, 900.0])}
    with torch.no_grad():
        assert worst(model(ids, **media).prediction, images(ids, **media).prediction) < 1e-5  # measured 0


def test_of_equal_weights_it_is_the_plain_model():
    """Also among each other, packed, with padding."""
    plain = model_of(experts=False)
    model = model_of()
    backbone = model.model.language_model
    backbone.load_state_dict(copy_into_experts(backbone, plain.model.language_model.state_dict()))
    model.load_state_dict(plain.state_dict(), strict=False)
    _, inputs = mixed()
    with torch.no_grad():
        ours, theirs = model(**inputs), plain(**inputs)
    assert worst(ours.logits, theirs.logits) < 1e-5  # measured 1e-6
    assert worst(ours.prediction, theirs.prediction) < 1e-5


def test_text_before_a_picture_does_not_notice_and_text_behind_it_does():
    model, text, _ = pair()
    batch, inputs = mixed()
    with torch.no_grad():
        ours, theirs = model(**inputs).logits, text(**inputs).logits
    before, behind = slice(0, 4), slice(21, 24)
    assert worst(ours[:, before], theirs[:, before]) < 1e-5
    assert (ours[:, behind] - theirs[:, behind]).abs().max() > 1e-3
    assert (batch["input_ids"][:, behind] == torch.tensor([7, 8, 2])).all()


def test_gradients_go_to_whose_tokens_they_are():
    model = model_of().train()
    _, inputs = mixed()
    ids = torch.randint(3, 90, (2, 17))
    model(ids).logits.square().sum().backward()
    for name, parameter in model.model.language_model.named_parameters():
        assert parameter.grad is not None, name  # so that no rank waits for a batch of text
        assert parameter.grad.any() != (".own." in name), name
    model.zero_grad()
    model(**inputs).prediction.square().sum().backward()
    last = ("k_proj", "v_proj", "k_norm", "input_layernorm")  # all that pictures want of words in the last layer
    for name, parameter in model.model.language_model.named_parameters():
        reached = ".own." in name or not name.startswith(("layers.1.", "norm.")) or any(part in name for part in last)
        assert parameter.grad.any() == reached, name


def test_copies_and_checkpoints_are_whole(tmp_path):
    model = model_of()
    _, inputs = mixed()
    copied = copy.deepcopy(model)
    model.save_pretrained(tmp_path)
    loaded = HybridGenForConditionalGeneration.from_pretrained(tmp_path)
    with torch.no_grad():
        expected = model(**inputs).prediction
        model(inputs["input_ids"][:, :3])  # the copy has a routing of its own
        assert torch.equal(copied(**inputs).prediction, expected)
        assert torch.equal(loaded(**inputs).prediction, expected)
    assert loaded.state_dict().keys() == model.state_dict().keys()


def test_recomputed_layers_are_those_that_were_computed():
    """Gradient checkpointing: the routing is still there in the backward pass, in whatever thread that runs."""
    _, inputs = mixed()
    gradients = []
    for recompute in (False, True):
        model = model_of().train()
        if recompute:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        loss = model(**inputs).prediction.square().sum()
        in_another_thread(loss.backward)
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    kept, recomputed = gradients
    assert all(torch.equal(recomputed[name], value) for name, value in kept.items() if value is not None)


@pytest.mark.parametrize("others", [False, True])
def test_a_backward_pass_recomputes_what_its_own_forward_was(others):
    """Between forward and backward another thread runs another batch on the model; the backward pass runs in a third
    thread, as autograd's own on a GPU, or in the one that ran the other batch."""
    _, inputs = mixed()

    def gradients(interrupted: bool) -> dict[str, torch.Tensor]:
        model = model_of().train()
        model.gradient_checkpointing_enable({"use_reentrant": False})
        loss = model(**inputs).prediction.square().sum()

        def meet_another_batch() -> None:
            with torch.no_grad():
                model(torch.tensor([[5, 6, 7]]))

        def meet_it_and_go_back() -> None:
            meet_another_batch()
            loss.backward()

        if interrupted and others:
            in_another_thread(meet_it_and_go_back)
        elif interrupted:
            in_another_thread(meet_another_batch)
            in_another_thread(loss.backward)
        else:
            loss.backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    expected, got = gradients(False), gradients(True)
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], value) for name, value in expected.items())


def in_another_thread(function) -> None:
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()


def test_a_forward_in_another_thread_changes_nothing():
    model = model_of()
    _, inputs = mixed()
    with torch.no_grad():
        expected = model(**inputs).prediction

    def interrupt(*_):
        handle.remove()
        with torch.no_grad():
            in_another_thread(lambda: others.append(model(torch.tensor([[5, 6, 7]])).logits))

    others: list[torch.Tensor] = []
    handle = model.model.language_model.layers[1].register_forward_pre_hook(interrupt)
    with torch.no_grad():
        assert torch.equal(model(**inputs).prediction, expected)
        assert torch.equal(others[0], model(torch.tensor([[5, 6, 7]])).logits)


def test_they_start_as_copies_of_a_pretrained_backbone(tmp_path):
    save_backbone(tmp_path, "llama")
    config = ModelConfig(language_model=str(tmp_path), diffusion_config={**DIFFUSION, "modality_experts": True})
    tokenizer = text_tokenizer()
    add_image_tokens(tokenizer)
    model = build_model(config, tokenizer, seed=0)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path).model.state_dict()
    own = {name: value for name, value in model.model.language_model.state_dict().items() if ".own." in name}
    assert len(own) == 2 * 9 + 1  # seven projections and two norms a layer, and the last norm
    assert all(torch.equal(value, theirs[name.replace(".own.", ".")]) for name, value in own.items())


def test_a_backbone_with_other_weights_is_refused():
    """gpt-oss has sinks in its attention, which images would share."""
    text = {"model_type": "gpt_oss", "num_local_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 2}
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim")
    text |= {name: value for name, value in text_config("qwen3_moe").items() if name in sizes}
    with pytest.raises(
        ValueError, match="modality_experts is true, but .* is neither projection nor norm nor mixture .*; take a dec"
    ):
        tiny_model(tiny_config(text_config=text, diffusion_config={**DIFFUSION, "modality_experts": True}))


def test_they_start_as_copies_of_random_weights_too():
    torch.manual_seed(0)
    model = HybridGenForConditionalGeneration(tiny_config(diffusion_config={**DIFFUSION, "modality_experts": True}))
    weights = model.model.language_model.state_dict()
    assert all(torch.equal(weights[name], weights[name.replace(".own.", ".")]) for name in weights)
