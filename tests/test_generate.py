"""`generate` in all its ways, and regressions that transformers' common tests showed (scripts/run_common_tests.py runs
those themselves)."""

import copy

import pytest
import torch
from transformers import DynamicCache, StaticCache

from hybridgen import HybridGenConfig, HybridGenForConditionalGeneration
from hybridgen.core.layout import ImageSegment, TextSegment, lay_out
from tests.models import PAD, TOKENS, tiny_config, tiny_model

# a placeholder that a random model writes stands for an image that is not there
GREEDY = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "suppress_tokens": [*range(90, 95)]}


def prompts(lengths: list[int], images: list[bool]) -> tuple[dict, list[dict]]:
    """A batch padded on the left, and its rows alone."""
    generator = torch.Generator().manual_seed(0)
    rows, pixels = [], []
    for length, image in zip(lengths, images, strict=True):
        segments = [TextSegment(torch.randint(5, 90, (length,), generator=generator).tolist())]
        if image:
            segments.append(ImageSegment("understanding", 4, True))
            pixels.append(torch.randn(1, 3, 16, 16, generator=generator))
        rows.append(lay_out([*segments, TextSegment([7])], TOKENS).input_ids)
    longest = max(map(len, rows))
    batch = {
        "input_ids": torch.tensor([[PAD] * (longest - len(row)) + row for row in rows]),
        "attention_mask": torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows]),
        "pixel_values": torch.cat(pixels),
    }
    left = iter(pixels)
    alone = [
        {"input_ids": torch.tensor([row])} | ({"pixel_values": next(left)} if image else {})
        for row, image in zip(rows, images, strict=True)
    ]
    return batch, alone


@pytest.fixture(scope="module", params=["llama", "qwen3", "mistral", "qwen3 of two kinds"])
def bidirectional(request) -> HybridGenForConditionalGeneration:
    """Its images see each other, so that a mask of transformers' own would be wrong."""
    return tiny_model(tiny_config(request.param, understanding_bidirectional=True))


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("cache", ["dynamic", "static", "none"])
def test_rows_of_a_batch_are_written_as_if_alone(bidirectional, beams, cache):
    """Different lengths, with and without images; every cache gives what recomputing everything gives."""
    batch, alone = prompts([3, 9, 6], [True, False, True])
    how = {"dynamic": {}, "static": {"cache_implementation": "static"}, "none": {"use_cache": False}}[cache]
    together = bidirectional.generate(**batch, **GREEDY, **how, num_beams=beams)[:, batch["input_ids"].shape[1] :]
    for row, single in zip(together, alone, strict=True):
        written = bidirectional.generate(**single, **GREEDY, use_cache=False, num_beams=beams)
        assert torch.equal(row, written[0, single["input_ids"].shape[1] :])


@pytest.mark.parametrize("settings", [{"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2}])
@pytest.mark.parametrize("as_embeddings", [False, True])
def test_beams_keep_every_image_in_its_row(bidirectional, settings, as_embeddings):
    """Two images in a row, none, three, by all three paths that read: what is repeated is the row, not each image."""
    generator, model = torch.Generator().manual_seed(1), bidirectional
    image = {path: ImageSegment(path, 4, True) for path in ("understanding", "vq")}
    image["diffusion"] = ImageSegment("diffusion", 16, True)
    rows = [["understanding", "vq", "understanding"], [], ["diffusion", "understanding", "vq", "diffusion"]]
    alone = []
    for row in rows:
        segments = [TextSegment([5, 6]), *(image[path] for path in row), TextSegment([7])]
        inputs = {"input_ids": torch.tensor([lay_out(segments, TOKENS).input_ids])}
        counts = {path: row.count(path) for path in image}
        inputs["pixel_values"] = torch.randn(counts["understanding"], 3, 16, 16, generator=generator)
        inputs["codes"] = torch.randint(50, (4 * counts["vq"],), generator=generator)
        inputs["latents"] = torch.randn(counts["diffusion"], 3, 16, 16, generator=generator)
        inputs["timesteps"] = torch.zeros(counts["diffusion"])
        alone.append(inputs)
    batch = {name: torch.cat([inputs[name] for inputs in alone]) for name in alone[0] if name != "input_ids"}
    longest = max(inputs["input_ids"].shape[1] for inputs in alone)
    padded = [
        torch.nn.functional.pad(inputs["input_ids"], (longest - inputs["input_ids"].shape[1], 0)) for inputs in alone
    ]
    batch |= {"input_ids": torch.cat(padded), "attention_mask": (torch.cat(padded) != 0).long()}
    length = 0 if as_embeddings else longest
    if as_embeddings:
        batch["inputs_embeds"] = model.get_input_embeddings()(batch.pop("input_ids"))
    together = model.generate(**batch, **GREEDY, **settings)[:, length:]
    answers = settings.get("num_return_sequences", 1)
    for row, inputs in enumerate(alone):
        inputs = {name: value for name, value in inputs.items() if len(value)}
        written = model.generate(**inputs, **GREEDY, **settings)[:, inputs["input_ids"].shape[1] :]
        assert torch.equal(together[row * answers : (row + 1) * answers], written)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_a_static_cache_gives_the_states_of_none(bidirectional, implementation):
    model = copy.deepcopy(bidirectional)
    model.set_attn_implementation({"text_config": implementation})
    batch, _ = prompts([3, 9], [True, True])
    config = copy.deepcopy(model.config.text_config)
    if config.model_type == "mistral":  # all of whose layers have one
        config.sliding_window = None
    cache = StaticCache(config, max_cache_len=32)
    with torch.no_grad():
        whole = model(**batch).logits
        cached = model(**batch, past_key_values=cache).logits
        real = batch["attention_mask"].bool()
        assert (whole - cached)[real].abs().max() < 1e-5  # measured 5e-7
        following = torch.tensor([[8], [9]])
        mask = torch.cat([batch["attention_mask"], torch.ones(2, 1, dtype=torch.long)], 1)
        step = model(input_ids=following, attention_mask=mask, past_key_values=cache).logits[:, -1]
        longer = {**batch, "input_ids": torch.cat([batch["input_ids"], following], 1), "attention_mask": mask}
        assert (model(**longer).logits[:, -1] - step).abs().max() < 1e-5


def test_caches_that_drop_tokens_are_refused_once_they_have():
    """Until then, they are made to keep them."""
    model = tiny_model(tiny_config("mistral"))  # a window of 6
    ids = torch.arange(5, 15)[None]
    cache = DynamicCache(config=model.config.text_config)
    with torch.no_grad():
        model(ids[:, :4], past_key_values=cache)
        steps = model(ids[:, 4:], past_key_values=cache).logits
        assert (steps - model(ids).logits[:, 4:]).abs().max() < 1e-5  # measured 3e-7
        dropped = DynamicCache(config=model.config.text_config)
        model.model.language_model(ids, past_key_values=dropped)
        for cache in (dropped, StaticCache(model.config.text_config, max_cache_len=32)):
            with pytest.raises(ValueError, match="whose layers drop what lies behind a window .* give an empty Dynam"):
                model(ids[:, :1], past_key_values=cache)


def test_assisted_decoding_writes_what_the_model_writes(bidirectional):
    _, alone = prompts([6], [True])
    expected = bidirectional.generate(**alone[0], **GREEDY)
    assistant = tiny_model(tiny_config("llama", understanding_bidirectional=True), seed=1)
    for how in ({"assistant_model": assistant}, {"prompt_lookup_num_tokens": 2}):
        assert torch.equal(bidirectional.generate(**alone[0], **GREEDY, **how), expected)


def test_generation_goes_on_from_a_cache(bidirectional):
    batch, _ = prompts([4], [True])
    once = bidirectional.generate(**batch, **{**GREEDY, "max_new_tokens": 8})
    first = bidirectional.generate(**batch, **{**GREEDY, "max_new_tokens": 4}, return_dict_in_generate=True)
    ids, cache = first.sequences, first.past_key_values
    assert isinstance(cache, DynamicCache)
    settings = {**GREEDY, "max_new_tokens": 4, "past_key_values": cache}
    assert torch.equal(bidirectional.generate(ids, attention_mask=torch.ones_like(ids), **settings), once)


# ------------------------------------------------------------------------------------- regressions of the common tests


def test_outputs_are_tuples_where_asked():
    model = tiny_model()
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        named = model(input_ids=ids, labels=ids, output_hidden_states=True)
        plain = model(input_ids=ids, labels=ids, output_hidden_states=True, return_dict=False)
        assert isinstance(plain, tuple)
        assert torch.equal(plain[0], named.loss)
        assert torch.equal(plain[1], named.logits)
        features = model.get_image_features(torch.zeros(2, 3, 16, 16), output_hidden_states=True)
        assert features.pooler_output.shape == (2, 4, 32)
        assert len(features.hidden_states) == 2
        assert isinstance(model.get_image_features(torch.zeros(2, 3, 16, 16), return_dict=False), tuple)


def test_the_loss_is_taken_as_the_trainer_asks():
    """`num_items_in_batch` (transformers' Trainer accumulates with it) and labels that are shifted already."""
    model = tiny_model()
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        mean = model(input_ids=ids, labels=ids).loss
        torch.testing.assert_close(model(input_ids=ids, labels=ids, num_items_in_batch=6).loss, mean * 3 / 6)
        shifted = torch.tensor([[6, 7, 8, -100]])
        torch.testing.assert_close(model(input_ids=ids, labels=ids, shift_labels=shifted).loss, mean)


def test_a_loss_of_text_alone_reaches_every_weight():
    model = tiny_model().train()
    ids = torch.tensor([[5, 6, 7, 8]])
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    assert model.model.final_layer.linear.weight.grad.abs().max() == 0
    torch.testing.assert_close(loss.detach(), model.eval()(input_ids=ids, labels=ids).loss.detach(), rtol=0, atol=0)


@pytest.mark.parametrize("mutual", [True, False])
def test_embeddings_with_images_are_what_ids_with_images_are(mutual):
    model = tiny_model(tiny_config(understanding_bidirectional=mutual))
    batch, _ = prompts([3, 9], [True, True])
    ids = batch.pop("input_ids")
    with torch.no_grad():
        expected = model(input_ids=ids, **batch).logits
        logits = model(inputs_embeds=model.get_input_embeddings()(ids), **batch).logits
    assert torch.equal(logits, expected)


def test_the_vocabulary_can_be_resized(tmp_path):
    model = tiny_model()
    model.resize_token_embeddings(120)
    assert model.config.vocab_size == model.config.text_config.vocab_size == 120
    assert model(input_ids=torch.tensor([[110]])).logits.shape == (1, 1, 120)
    model.save_pretrained(tmp_path)
    assert HybridGenForConditionalGeneration.from_pretrained(tmp_path).lm_head.weight.shape == (120, 32)


def test_parts_of_a_config_load_from_the_whole(tmp_path):
    config = tiny_config()
    config.save_pretrained(tmp_path)
    loaded = HybridGenConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict()
    for name in ("text_config", "vision_config", "diffusion_config", "vq_config"):
        part = type(getattr(config, name)).from_pretrained(tmp_path).to_dict()
        assert part | {"transformers_version": 0} == config.to_dict()[name] | {"transformers_version": 0}


def test_rows_packed_by_their_positions_are_separate_documents():
    """As transformers' flattening collators make them: no mask, positions that restart."""
    model = tiny_model()
    first, second = torch.tensor([[5, 6, 7]]), torch.tensor([[8, 9, 10, 11]])
    packed, positions = torch.cat([first, second], 1), torch.tensor([[0, 1, 2, 0, 1, 2, 3]])
    with torch.no_grad():
        together = model(input_ids=packed, position_ids=positions).logits
        alone = torch.cat([model(input_ids=ids).logits for ids in (first, second)], 1)
        assert (together - alone).abs().max() < 1e-5  # measured 2e-7
        one = model(input_ids=packed, position_ids=torch.arange(7)[None]).logits
        assert torch.equal(one, model(input_ids=packed).logits)
        twice = model(input_ids=packed.repeat(2, 1), position_ids=positions).logits  # one row of positions for all
    assert (twice - together).abs().max() < 1e-5


def test_flash_attention_is_refused():
    with pytest.raises((ValueError, ImportError), match=r"[Ff]lash"):
        HybridGenForConditionalGeneration._from_config(tiny_config(), attn_implementation="flash_attention_2")
