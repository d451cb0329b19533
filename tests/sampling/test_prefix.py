"""The prefix against whole forwards and against transformers' own cache."""

import pytest
import torch
from transformers import DynamicCache

from hybridgen.sampling.prefix import PrefixCache, extend, prefill
from tests.models import BACKBONES, tiny_config, tiny_model
from tests.sampling.prompts import EMPTY, PROMPTS, batch, image, prefix_of, whole, worst

TEXT = torch.tensor([21, 22, 23])


@pytest.mark.parametrize("backbone", BACKBONES)
def test_text_read_piece_by_piece_equals_one_forward(backbone):
    model = tiny_model(tiny_config(backbone))
    prefix = prefix_of(model, PROMPTS, begin=False)
    first, second = extend(model, prefix, TEXT), extend(model, prefix, TEXT[:1])
    for row, ids in enumerate(PROMPTS):
        expected = whole(model, [[*ids, *TEXT.tolist(), 21]])[len(ids) :]
        assert worst(torch.cat([first[row], second[row]]), expected) < 1e-5  # measured 7e-7
    assert torch.equal(prefix.last_state, second[:, -1])
    assert prefix.positions.tolist() == [len(ids) + 4 for ids in PROMPTS]


@pytest.mark.parametrize(
    ("path", "length", "media"),
    [
        ("understanding", 4, lambda: {"pixel_values": torch.randn(1, 3, 16, 16)}),
        ("diffusion", 16, lambda: {"latents": torch.randn(1, 3, 16, 16), "timesteps": torch.zeros(1)}),
        ("vq", 16, lambda: {"codes": torch.randint(50, (16,))}),
    ],
)
def test_an_image_in_a_padded_prompt(path, length, media):
    model, media = tiny_model(), media()
    segments = [[1, 5], image(path, model, length), [6, 7]]
    prefix = prefill(model, **batch([segments, [[1, 5, 6] * 10]], begin=False), **media)
    states = extend(model, prefix, TEXT)
    expected = whole(model, [*segments, TEXT.tolist()], **media)[-len(TEXT) :]
    assert worst(states[0], expected) < 1e-5  # measured 4e-7


def test_padding_on_the_left_changes_nothing():
    model = tiny_model()
    together, alone = prefix_of(model, PROMPTS), prefix_of(model, PROMPTS[1:2])
    assert together.positions[1] == alone.positions[0]
    assert worst(together.last_state[1], alone.last_state[0]) < 1e-5  # measured 5e-7
    assert worst(extend(model, together, TEXT)[1], extend(model, alone, TEXT)[0]) < 1e-5  # measured 4e-7


def test_eager_attention_equals_sdpa():
    model = tiny_model()
    states = extend(model, prefix_of(model, PROMPTS), TEXT)
    model.set_attn_implementation("eager")
    assert worst(extend(model, prefix_of(model, PROMPTS), TEXT), states) < 1e-5  # measured 5e-7


def test_the_buffered_cache_is_transformers_cache():
    """Prompt, one token, three tokens: same keys and values, bit for bit, whatever room was reserved."""
    model = tiny_model()
    ours, theirs = PrefixCache(), DynamicCache(config=model.config.text_config)
    with torch.no_grad():
        for ids, room in ((PROMPTS[2], 0), ([5], 2), ([6, 7, 8], 0)):
            ours.reserve(room)
            given = {"inputs_embeds": model.get_input_embeddings()(torch.tensor([ids])), "use_cache": True}
            a = model.model.language_model(**given, past_key_values=ours).last_hidden_state
            b = model.model.language_model(**given, past_key_values=theirs).last_hidden_state
            assert torch.equal(a, b)
    assert ours.get_seq_length() == theirs.get_seq_length() == 11
    for mine, reference in zip(ours.layers, theirs.layers, strict=True):
        assert torch.equal(mine.keys[:, :, : mine.length], reference.keys)
        assert torch.equal(mine.values[:, :, : mine.length], reference.values)


def test_without_commit_nothing_is_added():
    model = tiny_model()
    prefix, untouched = prefix_of(model, PROMPTS), prefix_of(model, PROMPTS)
    with prefix.cache.no_commit(), torch.no_grad():
        model.model.language_model(inputs_embeds=torch.randn(5, 3, 32), past_key_values=prefix.cache, use_cache=True)
    assert len(prefix) == len(untouched)
    assert torch.equal(extend(model, prefix, TEXT), extend(model, untouched, TEXT))


def test_no_commit_ends_with_an_error_too():
    model = tiny_model()
    prefix = prefix_of(model, PROMPTS)
    with pytest.raises(RuntimeError), prefix.cache.no_commit():
        raise RuntimeError
    assert all(layer.committing for layer in prefix.cache.layers)


def test_selected_rows_are_a_prefix_of_their_own():
    model = tiny_model()
    prefix = prefix_of(model, [*PROMPTS, EMPTY])
    rows = torch.tensor([3, 3, 0, 5])
    selected = prefix.select(rows)
    states = extend(model, selected, TEXT)
    assert selected.rows == 4
    assert len(prefix) == len(selected) - len(TEXT)
    assert worst(states, extend(model, prefix, TEXT)[rows]) < 1e-5  # measured 0
    assert torch.equal(states[0], states[1])


def test_masks_keep_the_padding_out():
    model = tiny_model()
    prefix = prefix_of(model, PROMPTS[:2], begin=False)
    mask = prefix.mask_with(model, torch.tensor([0, 0, 1]))[:, 0]
    assert (mask == 0).int().tolist() == [
        [[1, 1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1, 1]],
        [[0, 0, 1, 1, 1, 1, 0], [0, 0, 1, 1, 1, 1, 0], [0, 0, 1, 1, 1, 1, 1]],
    ]
