"""The model against bare backbones and Janus, then its properties by perturbation and by gradient."""

import pytest
import torch
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from hybridgen import HybridGenConfig, HybridGenForConditionalGeneration
from hybridgen.core.layout import ImageSegment, TextSegment, lay_out
from hybridgen.core.objectives import place_codes
from tests.models import (
    BACKBONES,
    DIFFUSION,
    IMAGE,
    TOKENS,
    VQ,
    batch_of,
    inputs_of,
    text_config,
    tiny_config,
    tiny_model,
)

PATCHES = 16  # of a 16x16 picture
MIXED = [
    TextSegment([5, 6, 7]),
    ImageSegment("diffusion", PATCHES, True, write=True),
    TextSegment([8, 9]),
    ImageSegment("vq", 16, False, write=True),
    ImageSegment("understanding", 4, False),
    TextSegment([10, 11, 12]),
]


def mixed_inputs(seed: int = 0, images: int = 1) -> dict:
    generator = torch.Generator().manual_seed(seed)
    return {
        "latents": torch.randn(images, 3, 16, 16, generator=generator),
        "timesteps": torch.rand(images, generator=generator) * 1000,
        "codes": torch.randint(0, 50, (16 * images,), generator=generator),
        "pixel_values": torch.randn(images, 3, 16, 16, generator=generator),
    }


def states(model, batch, media) -> torch.Tensor:
    with torch.no_grad():
        return model.model(**inputs_of(batch), **media).last_hidden_state


# --------------------------------------------------------------------------------------------------- oracles


@pytest.mark.parametrize(
    ("config_class", "oracle_class"), [(Qwen3Config, Qwen3ForCausalLM), (LlamaConfig, LlamaForCausalLM)]
)
@pytest.mark.parametrize("tied", [False, True])
def test_text_only_equals_the_bare_backbone(config_class, oracle_class, tied):
    settings = text_config("qwen3" if config_class is Qwen3Config else "llama", tie_word_embeddings=tied)
    settings.pop("model_type")
    torch.manual_seed(0)
    oracle = oracle_class(config_class(**settings)).eval()
    model = tiny_model(tiny_config(text_config=oracle.config.to_dict()))
    model.model.language_model.load_state_dict(oracle.model.state_dict())
    model.lm_head.load_state_dict(oracle.lm_head.state_dict())

    ids = torch.randint(3, 90, (3, 20), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, :6] = 0  # left padding
    with torch.no_grad():
        ours, theirs = model(input_ids=ids, attention_mask=mask).logits, oracle(ids, attention_mask=mask).logits
    assert (ours - theirs)[mask.bool()].abs().max() < 1e-5  # measured 2e-7
    for options in ({}, {"num_beams": 3}):
        settings = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, **options}
        ours = model.generate(ids, attention_mask=mask, **settings)
        assert torch.equal(ours, oracle.generate(ids, attention_mask=mask, **settings))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_any_decoder_of_transformers_is_a_backbone(backbone):
    """Text equals the decoder's own model, and all three paths run forward and backward."""
    config = tiny_config(backbone)
    model = tiny_model(config)
    oracle = AutoModelForCausalLM.from_config(config.text_config).eval()
    oracle.model.load_state_dict(model.model.language_model.state_dict())
    oracle.lm_head.load_state_dict(model.lm_head.state_dict())
    ids = torch.randint(3, 90, (2, 12), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert (model(input_ids=ids).logits - oracle(ids).logits).abs().max() < 1e-5

    batch = batch_of([[lay_out(MIXED, TOKENS)]], 64)
    model.train()
    out = model(**inputs_of(batch), **mixed_inputs(), codes_to_keep=torch.ones(1, 64, dtype=torch.bool))
    (out.logits.mean() + out.code_logits.mean() + out.prediction.mean()).backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if "experts" not in n and "lm_head" not in n)


# ------------------------------------------------------------------------------------------------ properties


@pytest.mark.parametrize("bidirectional", [True, False])
def test_packed_equals_separate_documents(bidirectional):
    model = tiny_model()
    copied = ImageSegment("diffusion", PATCHES, bidirectional, write=True, clean_copy=True)
    documents = [
        lay_out(MIXED, TOKENS),
        lay_out([TextSegment([5, 6, 7, 8])], TOKENS),
        lay_out([copied, TextSegment([3, 4])], TOKENS),
    ]
    media = mixed_inputs(images=1)
    clean_copy = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(5))
    together = states(
        model,
        batch_of([documents], 160),
        {**media, "latents": torch.cat([media["latents"], clean_copy]), "timesteps": torch.tensor([500.0, 300.0, 0.0])},
    )
    alone = [
        states(model, batch_of([[documents[0]]], len(documents[0])), {**media, "timesteps": torch.tensor([500.0])}),
        states(model, batch_of([[documents[1]]], len(documents[1])), {}),
        states(
            model,
            batch_of([[documents[2]]], len(documents[2])),
            {"latents": clean_copy, "timesteps": torch.tensor([300.0, 0.0])},
        ),
    ]
    alone = torch.cat([state[0] for state in alone])
    assert (together[0, : len(alone)] - alone).abs().max() < 1e-5  # measured 1e-6


def test_gradient_across_documents_is_exactly_zero():
    model = tiny_model()
    first, second = lay_out(MIXED, TOKENS), lay_out(MIXED, TOKENS)
    batch = inputs_of(batch_of([[first, second]], len(first) + len(second) + 5))
    media = mixed_inputs(images=2)
    media["latents"].requires_grad_()
    media["pixel_values"].requires_grad_()
    out = model.model(**batch, **media).last_hidden_state
    out[0, len(first) : len(first) + len(second)].square().sum().backward()
    for name in ("latents", "pixel_values"):
        assert media[name].grad[0].abs().max() == 0
        assert media[name].grad[1].abs().max() > 0


def test_bidirectional_inside_an_image_and_causal_outside():
    model = tiny_model()
    row = lay_out(MIXED, TOKENS)
    batch = batch_of([[row]], len(row))
    media = mixed_inputs()
    before = states(model, batch, media)
    changed = {**media, "latents": media["latents"].clone()}
    changed["latents"][0, :, -4:, -4:] += 1  # the last patch
    difference = (states(model, batch, changed) - before).abs().amax(-1)[0]
    start = row.input_ids.index(DIFFUSION)
    assert (difference[:start] == 0).all()
    assert (difference[start:] > 1e-6).all()  # every patch of the image sees it, and all that follows


def test_codes_and_understanding_tokens_are_causal():
    model = tiny_model()
    row = lay_out(MIXED, TOKENS)
    batch = batch_of([[row]], len(row))
    media = mixed_inputs()
    before = states(model, batch, media)
    codes = media["codes"].clone()
    codes[7] = (codes[7] + 1) % 50
    difference = (states(model, batch, {**media, "codes": codes}) - before).abs().amax(-1)[0]
    position = row.input_ids.index(92) + 7
    assert (difference[:position] == 0).all()
    assert (difference[position:] > 1e-7).all()


def test_the_old_name_of_a_layout_vector_is_refused():
    """Other keywords are handed on to the backbone, which ignores those it does not know."""
    ids, old = torch.arange(3, 10)[None], {"hidden": torch.ones(1, 7, dtype=torch.bool)}
    model = tiny_model()
    for forward in (model, model.model):
        with pytest.raises(TypeError, match="hidden is called noised_mask now; rename it"):
            forward(ids, **old)


@pytest.mark.parametrize("bidirectional", [True, False])
def test_hidden_noise_is_not_seen_by_what_follows(bidirectional):
    """Neither by text nor by another noised image; every patch of its own image sees the first."""
    model = tiny_model()
    image = ImageSegment("diffusion", PATCHES, bidirectional, write=True, clean_copy=True)
    segments = [TextSegment([5]), image, TextSegment([7, 8]), image]
    row = lay_out(segments, TOKENS)
    batch = batch_of([[row]], len(row))
    latents = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    times = torch.tensor([700.0, 0.0, 300.0, 0.0])
    before = states(model, batch, {"latents": latents, "timesteps": times})
    latents = latents.clone()
    latents[0, :, :4, :4] += 1
    after = states(model, batch, {"latents": latents, "timesteps": times})
    difference = (after - before).abs().amax(-1)[0]
    assert (difference[2 : 2 + PATCHES] > 0).all()
    assert (difference[2 + PATCHES :] == 0).all()


@pytest.mark.parametrize("implementation", ["eager", "flex_attention"])
def test_attention_implementations_agree(implementation):
    model = tiny_model()
    copied = ImageSegment("diffusion", PATCHES, False, write=True, clean_copy=True)
    row = lay_out([*MIXED, copied], TOKENS)
    batch = batch_of([[row], [row]], 128)
    media = mixed_inputs(images=2)
    media["latents"] = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(4))
    media["timesteps"] = torch.tensor([500.0, 300.0, 0.0] * 2)
    sdpa = states(model, batch, media)
    model.model.language_model.set_attn_implementation(implementation)
    real = batch["document_ids"] >= 0
    assert (states(model, batch, media) - sdpa)[real].abs().max() < 1e-5  # measured 7e-7


def test_mixed_sizes_equal_the_same_images_alone():
    model = tiny_model()
    sizes = [(16, 16), (8, 24), (32, 8)]
    images = [torch.randn(3, *size, generator=torch.Generator().manual_seed(i)) for i, size in enumerate(sizes)]
    documents = [lay_out([TextSegment([5]), ImageSegment("diffusion", h * w // 16, True)], TOKENS) for h, w in sizes]
    times = torch.tensor([100.0, 500.0, 900.0])
    batch = inputs_of(batch_of([documents], 80))
    with torch.no_grad():
        together = model(**batch, latents=images, timesteps=times).prediction
        for i, (document, image) in enumerate(zip(documents, images, strict=True)):
            alone = inputs_of(batch_of([[document]], len(document)))
            single = model(**alone, latents=image[None], timesteps=times[i : i + 1]).prediction
            assert single.shape[1:] == image.shape
            assert (together[i] - single[0]).abs().max() < 1e-5


@pytest.mark.parametrize("present", ["text", "latents", "codes", "pixel_values"])
def test_a_missing_modality_leaves_every_weight_in_the_graph(present):
    """DDP and FSDP wait for every gradient: absent paths must give zeros, not nothing."""
    model = tiny_model().train()
    kinds = {"latents": ("diffusion", 16), "codes": ("vq", 16), "pixel_values": ("understanding", 4)}
    segments = [TextSegment([5, 6])]
    media = mixed_inputs()
    media = {
        name: value for name, value in media.items() if name == present or (present, name) == ("latents", "timesteps")
    }
    if present in kinds:
        segments.append(ImageSegment(*kinds[present], present == "latents", write=present != "pixel_values"))
    batch = batch_of([[lay_out(segments, TOKENS)]], 24)
    keep = batch["code_labels"].roll(-1, 1) >= 0
    out = model(**inputs_of(batch), **media, codes_to_keep=keep)
    (out.logits.sum() + out.code_logits.sum() + out.prediction.sum()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_generate_with_images_in_the_prompt_equals_recomputing_everything():
    model = tiny_model()
    segments = [
        TextSegment([5]),
        ImageSegment("understanding", 4, False),
        ImageSegment("diffusion", 16, True),
        TextSegment([6]),
    ]
    ids = torch.tensor([lay_out(segments, TOKENS).input_ids])
    media = mixed_inputs()
    media = {"pixel_values": media["pixel_values"], "latents": media["latents"]}
    generated = model.generate(ids, **media, max_new_tokens=6, do_sample=False, eos_token_id=None)
    slow = ids
    for _ in range(6):
        with torch.no_grad():
            following = model(input_ids=slow, **media).logits[:, -1].argmax(-1)
        slow = torch.cat([slow, following[:, None]], 1)
    assert torch.equal(generated, slow)


def test_save_load_save_is_byte_equal(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path / "a")
    loaded = HybridGenForConditionalGeneration.from_pretrained(tmp_path / "a")
    loaded.save_pretrained(tmp_path / "b")
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert "model.safetensors" in names
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_new_model_predicts_nothing():
    """The diffusion head starts at zero."""
    model = HybridGenForConditionalGeneration(tiny_config())
    batch = batch_of([[lay_out(MIXED, TOKENS)]], 64)
    with torch.no_grad():
        assert model(**inputs_of(batch), **mixed_inputs()).prediction.abs().max() == 0


def test_parts_start_at_their_own_scale():
    """What brings pixels and features in starts at unit gain, the diffusion head at 0, other heads as configured."""
    torch.manual_seed(0)
    model = HybridGenForConditionalGeneration(tiny_config(initializer_range=0.05)).model
    entrances = [model.patch_embed.proj, model.aligner.fc1, model.generation_aligner.fc1, *model.aligner.hidden_layers]
    for layer in entrances:
        xavier = (2 / sum(layer.weight.shape)) ** 0.5
        assert layer.weight.std().item() == pytest.approx(xavier, rel=0.1)
    assert not model.final_layer.linear.weight.any()
    assert model.generation_head.vision_head.weight.std().item() == pytest.approx(0.05, rel=0.1)


# ------------------------------------------------------------------------------------------------- bad input


def test_counts_that_differ_are_named_with_both_numbers():
    model = tiny_model()
    ids = torch.tensor([[5, IMAGE, IMAGE, 6]])
    with pytest.raises(ValueError, match="2 understanding tokens stand in the text, but the images given make 4"):
        model(input_ids=ids, pixel_values=torch.zeros(1, 3, 16, 16))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("path", "token"), [("understanding", IMAGE), ("diffusion", DIFFUSION), ("vq", 92)])
def test_placeholders_without_any_image_are_refused(training, path, token):
    """In training and out of it, by `forward` and by `generate`, as ids and as embeddings."""
    model = tiny_model().train(training)
    ids = torch.tensor([[5, *[token] * 3, 6], [5, 6, 7, 8, token]])
    message = f"4 {path} tokens stand in the text, but the images given make 0"
    with pytest.raises(ValueError, match=message):
        model(input_ids=ids)
    with pytest.raises(ValueError, match=message):
        model(input_ids=ids, attention_mask=torch.ones_like(ids), past_key_values=DynamicCache())
    with pytest.raises(ValueError, match=message):
        model(inputs_embeds=model.get_input_embeddings()(ids))
    with pytest.raises(ValueError, match=message):
        model.generate(input_ids=ids, max_new_tokens=2)


def test_a_placeholder_that_a_model_wrote_is_no_image():
    """An untrained one does, and its next forward goes on; but what a user adds to what was read is checked."""
    model = tiny_model()
    model.lm_head.weight.data[[IMAGE, DIFFUSION, 92]] *= 100
    ids = torch.tensor([[5, 6, 7]])
    settings = {"max_new_tokens": 6, "do_sample": True, "return_dict_in_generate": True}
    torch.manual_seed(0)
    written = model.generate(input_ids=ids, **settings)
    assert torch.isin(written.sequences, torch.tensor([IMAGE, DIFFUSION, 92])).any()
    model.generate(input_ids=ids, prompt_lookup_num_tokens=2, **settings)
    added = torch.cat([written.sequences, torch.tensor([[IMAGE, IMAGE]])], 1)
    with pytest.raises(ValueError, match="understanding tokens stand in the text, but the images given make 0"):
        model.generate(input_ids=added, past_key_values=written.past_key_values, max_new_tokens=2)


def test_input_for_an_absent_path_is_refused():
    model = tiny_model(tiny_config(diffusion_config=None))
    with pytest.raises(ValueError, match="input for the diffusion path, but this model has: understanding, vq"):
        model(input_ids=torch.tensor([[5, 6]]), latents=torch.zeros(1, 3, 16, 16))


def test_layout_of_the_wrong_length_is_refused():
    with pytest.raises(ValueError, match=r"block_ids has shape \(1, 3\)"):
        tiny_model()(input_ids=torch.tensor([[5, 6]]), block_ids=torch.zeros(1, 3, dtype=torch.long))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"diffusion_config": {"prediction_type": "velocty"}}, "prediction_type is 'velocty'"),
        ({"diffusion_config": {"noise_schedule": "cosine"}}, "say 'v_prediction'"),
        ({"diffusion_config": {"prediction_type": "v_prediction"}}, "say 'velocity'"),
        ({"diffusion_config": {"sample_size": 30, "patch_size": 4}}, "30 is not divisible by patch_size 4"),
        ({"diffusion_config": {"patch_size": 0}}, "patch_size is 0"),
        ({"vq_config": {"image_token_embed_dim": 7}}, "7 is not the backbone's hidden_size 32"),
        ({"diffusion_token_id": IMAGE}, "the ids repeat"),
    ],
)
def test_impossible_configs_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**changes)


def test_config_without_arguments_is_usable():
    assert HybridGenConfig().paths == ()


def test_losses_of_tokens_instead_of_logits():
    """`text_labels` and `code_labels` give a loss a label, in reading order, and logits only where they are asked for;
    `labels` gives transformers' mean and all logits, as before."""
    model, batch, media = tiny_model(), batch_of([[lay_out(MIXED, TOKENS)]], 64), mixed_inputs()
    text = batch["labels"]
    codes = place_codes(batch["code_labels"], media["codes"], batch["input_ids"] == VQ)
    before_code = codes.roll(-1, 1) >= 0
    with torch.no_grad():
        plain = model(**inputs_of(batch), **media, codes_to_keep=before_code)
        found = model(**inputs_of(batch), **media, text_labels=text, code_labels=codes, with_log_z=True)
        asked = model(**inputs_of(batch), **media, text_labels=text, logits_to_keep=1)
        usual = model(**inputs_of(batch), **media, labels=text)
    here = text[0, 1:] >= 0
    logits = plain.logits[0, :-1][here]
    assert found.logits is None
    assert here.sum() > 0
    assert torch.equal(found.text_losses, F.cross_entropy(logits, text[0, 1:][here], reduction="none"))
    assert torch.equal(found.text_log_z, logits.logsumexp(-1))
    expected = F.cross_entropy(plain.code_logits, codes[codes >= 0], reduction="none")
    assert torch.equal(found.code_losses, expected)
    assert asked.logits.shape == (1, 1, plain.logits.shape[-1])
    assert asked.text_log_z is None
    assert torch.equal(usual.logits, plain.logits)
    torch.testing.assert_close(usual.loss, found.text_losses.mean())
