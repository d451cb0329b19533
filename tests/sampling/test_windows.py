"""Backbones with windows and chunks, a token, a code or a picture at a time: what is read in steps is read as a whole.

Pictures are longer than the windows, and are seen whole.
"""

import pytest
import torch

from hybridgen.sampling.decoder import Decoder, why_not_fused
from hybridgen.sampling.denoise import commit_image, image_blocks
from hybridgen.sampling.prefix import extend, prefill, stack
from tests.models import END, WINDOWED, tiny_config, tiny_model
from tests.sampling.prompts import PROMPTS, batch, image, prefix_of, whole, worst

LONG = [1, *range(5, 20)]
TEXT = [21, 22, 23, 24, 25, 26, 27, 28, 29]


@pytest.fixture(params=WINDOWED)
def model(request):
    return tiny_model(tiny_config(request.param))


def read_all(model, prefix, tokens: list[int], **how) -> torch.Tensor:
    """(R, n, H) the backbone's output at each of some tokens that are read one by one."""
    read = Decoder(model).continue_from(prefix, torch.arange(len(tokens)), causal=True, **how)
    embeds = model.get_input_embeddings()(torch.tensor(tokens))[None].expand(prefix.rows, -1, -1)
    states = torch.cat([read(embeds[:, i : i + 1], i) for i in range(len(tokens))], dim=1)
    prefix.add(len(tokens), states[:, -1])
    return states


def test_which_is_fused():
    """The window of all layers is a mask as any other; several kinds of layers are transformers' to run."""
    assert why_not_fused(tiny_model(tiny_config("mistral"))) is None
    cause = why_not_fused(tiny_model(tiny_config("qwen3 of two kinds")))
    assert cause == "has layers that see differently far back"


@torch.no_grad()
def test_text_token_by_token(model):
    """Padded prompts; measured 2e-6."""
    prefix = prefix_of(model, [*PROMPTS, LONG], begin=False)
    states = torch.cat([read_all(model, prefix, TEXT), read_all(model, prefix, TEXT)], dim=1)
    for row, ids in enumerate([*PROMPTS, LONG]):
        expected = whole(model, [[*ids, *TEXT, *TEXT]])[len(ids) :]
        assert worst(states[row], expected) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize(
    ("path", "media"),
    [
        ("understanding", lambda: {"pixel_values": torch.randn(1, 3, 16, 16)}),
        ("diffusion", lambda: {"latents": torch.randn(1, 3, 16, 16), "timesteps": torch.zeros(1)}),
        ("vq", lambda: {"codes": torch.randint(50, (16,))}),
    ],
)
@pytest.mark.parametrize("mutual", [True, False])
def test_text_after_a_picture(model, path, media, mutual):
    """In a padded batch, in a prefix of stacked rows, and token by token, until the picture is left behind."""
    model.config.understanding_bidirectional = model.config.diffusion_config.bidirectional = mutual
    media, length = media(), 4 if path == "understanding" else 16
    segments = [[1, 5], image(path, model, length), [6, 7]]
    prefix = prefill(model, **batch([segments, [LONG]], begin=False), **media)
    expected = whole(model, [*segments, TEXT], **media)[-len(TEXT) :]
    states = extend(model, prefix, torch.tensor(TEXT[:3]))
    assert worst(states[0], expected[:3]) < 1e-5
    stacked = stack([prefix.select(torch.tensor([0])), prefix_of(model, [LONG * 3])])
    assert worst(read_all(model, stacked, TEXT[3:])[0], expected[3:]) < 1e-5  # measured 2e-6
    assert worst(read_all(model, prefix, TEXT[3:])[0], expected[3:]) < 1e-5


@torch.no_grad()
def test_codes_one_by_one(model):
    codes = torch.randint(50, (16,), generator=torch.Generator().manual_seed(0))
    prefix = prefix_of(model, [LONG])
    read = Decoder(model).continue_from(prefix, torch.arange(16), causal=True, is_image=True)
    embeds = model.model.embed_codes(codes)[None]
    states = torch.cat([read(embeds[:, i : i + 1], i) for i in range(16)], dim=1)
    prefix.add(16, states[:, -1], is_image=True)
    after = extend(model, prefix, torch.tensor([END, *TEXT]))
    expected = whole(model, [LONG, image("vq", model), TEXT], codes=codes)[len(LONG) + 1 :]
    assert worst(torch.cat([states[0], after[0]]), expected) < 1e-5  # measured 2e-6


@torch.no_grad()
@pytest.mark.parametrize("mutual", [True, False])
def test_a_picture_at_once(model, mutual):
    """Denoised against a prefix, then committed, then text."""
    model.config.diffusion_config.bidirectional = mutual
    latents = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    prefix = prefix_of(model, [LONG])
    blocks = image_blocks(model, 16, torch.device("cpu"))
    tokens, _, _ = model.model.embed_latents(latents, torch.zeros(1))
    seen = Decoder(model).continue_from(prefix, blocks, diffusion=True)(tokens[None], commit=False)
    committed = commit_image(model, prefix, latents)
    after = read_all(model, prefix, TEXT)
    media = {"latents": latents, "timesteps": torch.zeros(1)}
    expected = whole(model, [LONG, image("diffusion", model), TEXT], **media)[len(LONG) + 1 :]
    assert worst(seen[0], expected[:16]) < 1e-5
    assert worst(torch.cat([committed[0], after[0]]), expected) < 1e-5  # measured 3e-6


@torch.no_grad()
def test_a_picture_sees_all_of_itself_and_text_all_of_it(model):
    """By perturbation of one layer: the last code sees the first, 15 tokens before it, and so does the word behind."""
    backbone, kinds = model.model.language_model, list(model.model.windows)
    with_window = 1 if kinds[0] == "full_attention" else 0
    backbone.layers, backbone.config.num_hidden_layers = backbone.layers[with_window : with_window + 1], 1
    if hasattr(backbone.config, "layer_types"):
        backbone.config.layer_types = [kinds[with_window]]
    codes = torch.randint(25, (16,), generator=torch.Generator().manual_seed(0))
    other = codes.clone()
    other[0] += 1
    segments = [LONG, image("vq", model), TEXT]
    states = whole(model, segments, codes=codes) - whole(model, segments, codes=other)
    start = len(LONG) + 1
    changed = (states.abs().amax(-1) > 0).tolist()
    assert not any(changed[:start])
    assert all(changed[start : start + 17])  # its tokens, and the one that ends it
    assert not any(changed[-1:])  # left behind
