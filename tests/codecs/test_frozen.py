"""Codecs against the models they wrap: same pixels, same latents, DeepSeek's codes."""

import copy

import pytest
import torch
from diffusers import AutoencoderKL, VQModel
from torch.nn import functional as F
from transformers.models.janus import JanusVQVAE, JanusVQVAEConfig

from hybridgen.codecs import frozen
from hybridgen.codecs.frozen import PixelCodec, VAECodec, VQCodec, measure_latents, quantize
from tests.pipelines import tiny_vq_model


@pytest.fixture
def janus_vq() -> JanusVQVAE:
    torch.manual_seed(0)
    config = JanusVQVAEConfig(
        embed_dim=8, num_embeddings=64, latent_channels=32, base_channels=32, channel_multiplier=[1, 1, 1],
        num_res_blocks=1, num_patches=4,
    )  # fmt: skip
    model = JanusVQVAE(config).eval()
    torch.nn.init.normal_(model.quantize.embedding.weight)  # rows of unequal length, as after training
    return model


@pytest.fixture
def vae() -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4, scaling_factor=0.5, shift_factor=0.25,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    ).eval()  # fmt: skip


@pytest.fixture
def vq_model() -> VQModel:
    torch.manual_seed(0)
    model = VQModel(
        block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4, num_vq_embeddings=32,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    ).eval()  # fmt: skip
    torch.nn.init.normal_(model.quantize.embedding.weight)
    return model


def test_pixel_codec_changes_nothing():
    images = torch.rand(2, 3, 8, 8)
    assert PixelCodec().decode(PixelCodec().encode(images)) is images
    assert PixelCodec.downsample_factor == 1


def test_vae_latents_are_those_of_the_vae(vae):
    codec = VAECodec(vae)
    images = torch.rand(2, 3, 16, 8) * 2 - 1
    latents = codec.encode(images)
    assert codec.downsample_factor == 2
    assert latents.shape == (2, 4, 8, 4)
    with torch.no_grad():
        expected = (vae.encode(images).latent_dist.mode() - 0.25) * 0.5
        torch.testing.assert_close(latents, expected, rtol=0, atol=0)
        torch.testing.assert_close(codec.decode(latents), vae.decode(latents / 0.5 + 0.25).sample, rtol=0, atol=0)


def test_measured_latents_are_those_before_shift_and_scale(vae):
    """Whatever the config says already, and however the pictures are cut into batches."""
    pictures = torch.rand(6, 3, 16, 8) * 2 - 1
    with torch.no_grad():
        z = vae.encode(pictures).latent_dist.mode().double()
    expected = (float(z.mean()), float(z.std(correction=0)))
    assert measure_latents(vae, [pictures]) == pytest.approx(expected, rel=1e-5)  # measured 3e-10
    assert measure_latents(vae, pictures.split(4)) == pytest.approx(expected, rel=1e-5)
    vae.register_to_config(shift_factor=expected[0], scaling_factor=1 / expected[1])
    latents = VAECodec(vae).encode(pictures)
    assert (float(latents.mean()), float(latents.std())) == pytest.approx((0, 1), abs=1e-3)


def test_a_list_of_sizes_gives_a_list(vae):
    codec = VAECodec(vae)
    images = [torch.rand(3, 8, 8), torch.rand(3, 16, 8)]
    latents = codec.encode(images)
    assert [tuple(image.shape) for image in latents] == [(4, 4, 4), (4, 8, 4)]
    assert [tuple(image.shape) for image in codec.decode(latents)] == [(3, 8, 8), (3, 16, 8)]
    # alone or in a batch: measured 0
    torch.testing.assert_close(latents[0], codec.encode(images[0][None])[0], rtol=0, atol=1e-6)


def seen_by(monkeypatch, module: torch.nn.Module, name: str) -> list[tuple[int, ...]]:
    """The shapes of the inputs that a part of a codec was called with."""
    shapes, part = [], getattr(module, name)
    monkeypatch.setattr(part, "forward", lambda x, *args, f=part.forward: shapes.append(tuple(x.shape)) or f(x, *args))
    return shapes


@pytest.mark.parametrize("bound", [None, 200])
def test_images_of_one_size_are_worked_on_together(vae, janus_vq, vq_model, monkeypatch, bound):
    """Within a bound in pixels, below which no image is cut; in reading order. Largest difference from one at a time:
    1e-6, and no other code."""
    monkeypatch.setattr(frozen, "PIXELS_AT_ONCE", bound or frozen.PIXELS_AT_ONCE)
    sizes = [(8, 8), (16, 8), (8, 8), (16, 16), (8, 8), (8, 8), (16, 8)]
    images = [torch.rand(3, *size, generator=torch.Generator().manual_seed(i)) for i, size in enumerate(sizes)]
    calls = {None: [(4, 8, 8), (2, 16, 8), (1, 16, 16)], 200: [(3, 8, 8), (1, 8, 8), *[(1, 16, 8)] * 2, (1, 16, 16)]}
    expected = [(count, 3, *size) for count, *size in calls[bound]]

    codec, encoded, decoded = VAECodec(vae), seen_by(monkeypatch, vae, "encoder"), seen_by(monkeypatch, vae, "decoder")
    latents = codec.encode(images)
    assert encoded == expected
    alone = [codec.encode(image[None])[0] for image in images]
    for each, of_one in zip(latents, alone, strict=True):
        torch.testing.assert_close(each, of_one, rtol=0, atol=1e-5)
    decoded.clear()
    pixels = codec.decode(latents)
    assert [(n, h * 2, w * 2) for n, _, h, w in decoded] == calls[bound]
    for each, latent, image in zip(pixels, latents, images, strict=True):
        assert each.shape == image.shape
        torch.testing.assert_close(each, codec.decode(latent[None])[0], rtol=0, atol=1e-5)

    for model in (janus_vq, vq_model):
        codec, encoded = VQCodec(model), seen_by(monkeypatch, model, "encoder")
        codes = codec.encode(images)
        assert encoded == expected
        assert torch.equal(codes, torch.cat([codec.encode(image[None]) for image in images]))
        assert codec.encode([]).shape == (0,)


def test_a_large_batch_is_worked_on_in_parts(vae, janus_vq, monkeypatch):
    images, codes = torch.rand(5, 3, 16, 8), torch.randint(64, (5, 4, 4))
    whole = VAECodec(vae).encode(images), VQCodec(janus_vq).encode(images), VQCodec(janus_vq).decode(codes)
    monkeypatch.setattr(frozen, "PIXELS_AT_ONCE", 2 * 16 * 16)
    encoded, decoded = seen_by(monkeypatch, vae, "encoder"), seen_by(monkeypatch, janus_vq, "decoder")
    parts = VAECodec(vae).encode(images), VQCodec(janus_vq).encode(images), VQCodec(janus_vq).decode(codes)
    assert [shape[0] for shape in encoded] == [4, 1]
    assert [shape[0] for shape in decoded] == [2, 2, 1]
    assert torch.equal(parts[1], whole[1])
    for part, of_whole in zip(parts[::2], whole[::2], strict=True):
        torch.testing.assert_close(part, of_whole, rtol=0, atol=1e-5)


def test_janus_codes_are_deepseeks_not_those_of_transformers(janus_vq):
    codec = VQCodec(janus_vq)
    images = torch.rand(3, 3, 16, 16) * 2 - 1
    codes = codec.encode(images)
    with torch.no_grad():
        z = F.normalize(janus_vq.quant_conv(janus_vq.encoder(images)), dim=1).permute(0, 2, 3, 1).reshape(-1, 8)
    book = F.normalize(janus_vq.quantize.embedding.weight.detach(), dim=-1)
    expected = torch.cdist(z, book).argmin(-1)  # the definition, as DeepSeek writes it
    assert torch.equal(codes, expected)
    assert (codes == janus_vq.encode(images).image_tokens).float().mean() < 0.9  # else the test shows nothing


def test_janus_pixels_equal_those_of_transformers(janus_vq):
    codec = VQCodec(janus_vq)
    codes = torch.randint(64, (2, 4, 4), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = janus_vq.decode(codes.flatten(1))
    torch.testing.assert_close(codec.decode(codes), expected, rtol=0, atol=1e-6)  # measured 0
    assert codec.downsample_factor == 4


def test_janus_tokenizer_at_another_grid(janus_vq):
    codec = VQCodec(janus_vq)
    codes = codec.encode([torch.rand(3, 8, 20), torch.rand(3, 16, 16)])
    assert codes.shape == (2 * 5 + 4 * 4,)
    assert codec.decode(codes[:10].view(1, 2, 5)).shape == (1, 3, 8, 20)


def test_vq_model_codes_and_pixels_equal_those_of_diffusers(vq_model):
    codec = VQCodec(vq_model)
    images = torch.rand(2, 3, 8, 8) * 2 - 1
    codes = codec.encode(images)
    with torch.no_grad():
        z = vq_model.encode(images).latents
        _, _, (_, _, expected) = vq_model.quantize(z)
        pixels = vq_model.decode(z).sample
    assert torch.equal(codes, expected)
    torch.testing.assert_close(codec.decode(codes.view(2, 4, 4)), pixels, rtol=0, atol=1e-5)  # measured 9e-7


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_tokenizers_decode(janus_vq, dtype):
    codes = torch.randint(64, (1, 4, 4))
    expected = VQCodec(janus_vq).decode(codes)
    half = janus_vq.to(dtype)
    pixels = VQCodec(half).decode(codes)
    assert pixels.dtype == torch.float32
    assert half.dtype == dtype  # the caller's module is as it was
    tolerance = 5e-3 if dtype == torch.float16 else 1e-1  # weights were rounded; measured 1.3e-3 and 2e-2, of 0.7
    torch.testing.assert_close(pixels, expected, rtol=0, atol=tolerance)


def test_a_half_precision_model_is_copied_once_and_again_when_it_changes(vae, janus_vq, monkeypatch):
    """Every access of a pipeline's codec makes a new codec."""
    copies, deepcopy = [], copy.deepcopy
    monkeypatch.setattr(frozen.copy, "deepcopy", lambda *args: copies.append(args[0]) or deepcopy(*args))

    def copied() -> int:
        return sum(value is model for value in copies)

    codes, latents = torch.randint(64, (1, 4, 4)), torch.randn(1, 4, 4, 4)
    for model, made, coded in ((janus_vq, VQCodec, codes), (vae, VAECodec, latents)):
        copies.clear()
        model.half()
        kept = made(model)
        before = [kept.decode(coded), made(model).decode(coded)]
        assert copied() == 1
        assert torch.equal(*before)
        changed = {name: weight * 2 for name, weight in model.state_dict().items()}
        model.load_state_dict(changed)
        assert not torch.equal(kept.decode(coded), before[0])
        assert copied() == 2
        assert torch.equal(kept.decode(coded), made(deepcopy(model)).decode(coded))
        copies.clear()
        model.float()
        assert kept.decode(coded).isfinite().all()
        assert copied() == 0


def test_codecs_are_frozen_and_ignore_autocast(vae, janus_vq):
    images = torch.rand(1, 3, 16, 16, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        latents, codes = VAECodec(vae).encode(images), VQCodec(janus_vq).encode(images)
        assert torch.equal(VAECodec(vae).decode(latents), VAECodec(vae).decode(latents.clone()))
    assert latents.dtype == torch.float32
    assert not latents.requires_grad
    assert torch.equal(latents, VAECodec(vae).encode(images))
    assert torch.equal(codes, VQCodec(janus_vq).encode(images))


def test_size_that_does_not_divide_is_refused(vae, janus_vq):
    with pytest.raises(ValueError, match="size 9x8 is not divisible by the patch size 2"):
        VAECodec(vae).encode(torch.rand(1, 3, 9, 8))
    with pytest.raises(ValueError, match="size 10x8 is not divisible by the patch size 4"):
        VQCodec(janus_vq).encode(torch.rand(1, 3, 10, 8))


@pytest.mark.parametrize("directions", [True, False])
def test_nearest_codes_are_those_of_float32_also_under_autocast(directions):
    generator = torch.Generator().manual_seed(0)
    z, codebook = torch.randn(4, 8, 6, 6, generator=generator), torch.randn(512, 8, generator=generator)
    places, entries = z.permute(0, 2, 3, 1).double(), codebook.double()
    if directions:
        places, entries = torch.nn.functional.normalize(places, dim=-1), torch.nn.functional.normalize(entries, dim=-1)
    nearest = torch.cdist(places.flatten(0, 2), entries).argmin(-1).view(4, 6, 6)  # by the distance itself
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(quantize(z, codebook, directions).codes, nearest)


@pytest.mark.parametrize("directions", [True, False])
def test_quantize_passes_the_gradient_straight_through(directions):
    torch.manual_seed(0)
    z = torch.randn(2, 4, 3, 3, requires_grad=True)
    codebook = torch.randn(16, 4, requires_grad=True)
    made = quantize(z, codebook, directions)
    assert made.codes.shape == (2, 3, 3)
    seen = F.normalize(z, dim=1) if directions else z
    (expected,) = torch.autograd.grad(seen.sum(), z, retain_graph=True)
    through = torch.autograd.grad(made.vectors.sum(), (z, codebook), retain_graph=True, allow_unused=True)
    torch.testing.assert_close(through[0], expected)
    assert through[1] is None
    only_book = torch.autograd.grad(made.codebook_error.sum(), (z, codebook), retain_graph=True, allow_unused=True)
    only_z = torch.autograd.grad(made.commitment_error.sum(), (z, codebook), allow_unused=True)
    assert only_book[0] is None
    assert only_book[1].abs().sum() > 0
    assert only_z[0].abs().sum() > 0
    assert only_z[1] is None
    assert torch.equal(made.codebook_error, made.commitment_error)


def test_a_picture_of_a_single_code_is_decoded_and_encoded():
    """torch refuses groups of one value, of which this tokenizer's norms then have some: alone as beside another."""
    codec = VQCodec(tiny_vq_model())
    codes = torch.tensor([[[3]], [[7]]])
    alone = torch.cat([codec.decode(code[None]) for code in codes])
    torch.testing.assert_close(alone, codec.decode(codes), atol=1e-6, rtol=0)  # rounding of a convolution: 1e-7
    pictures = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert torch.equal(codec.encode(pictures), torch.cat([codec.encode(one[None]) for one in pictures]))
