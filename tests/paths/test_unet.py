"""The U-Net around the backbone: it says nothing at first, mixes nothing between images, and is what the levels say."""

import pytest
import torch

from hybridgen import HybridGenForConditionalGeneration
from hybridgen.configuration_hybridgen import HybridGenDiffusionConfig
from hybridgen.core.layout import ImageSegment, TextSegment, lay_out
from tests.models import TOKENS, batch_of, inputs_of, text_config, tiny_config, tiny_model

SETTINGS = {"patch_size": 4, "sample_size": 16, "frequency_embedding_size": 32, "unet_channels": [8, 16]}


def config_of(**changes):
    return tiny_config(diffusion_config={**SETTINGS, **changes})


def predicted(model, images, times, patch=4):
    documents = [
        lay_out([TextSegment([5]), ImageSegment("diffusion", image[0].numel() // patch**2, True)], TOKENS)
        for image in images
    ]
    batch = inputs_of(batch_of([documents], sum(map(len, documents))))
    with torch.no_grad():
        return model(**batch, latents=images, timesteps=times).prediction


def test_a_new_model_predicts_nothing_and_reads_as_a_linear_one():
    """What leads around the backbone, or is added to its input by convolutions, starts at zero."""
    model = HybridGenForConditionalGeneration(config_of()).eval()
    images, times = torch.randn(2, 3, 16, 16), torch.tensor([0.0, 700.0])
    assert predicted(model, images, times).abs().max() == 0
    linear, vectors = model.model.patch_embed.whole, model.model.timestep_embedder(times)
    assert torch.equal(model.model.patch_embed(images, vectors)[0], linear(images, vectors)[0])


def test_images_of_other_sizes_and_times_change_nothing():
    model = tiny_model(config_of())
    images = [torch.randn(3, *size) for size in [(16, 16), (8, 24), (32, 8), (16, 16)]]
    times = torch.tensor([100.0, 500.0, 900.0, 0.0])
    together = predicted(model, images, times)
    for i, image in enumerate(images):
        alone = predicted(model, [image], times[i : i + 1])[0]
        assert alone.shape == image.shape
        assert (together[i] - alone).abs().max() < 1e-5  # measured 2e-6


@pytest.mark.parametrize(("channels", "patch"), [([8], 2), ([8, 16], 2), ([16, 8, 24], 8)])
def test_details_go_around_the_backbone(channels, patch):
    """With the backbone's states held still, the prediction still follows the noisy image; a linear head's cannot."""
    model = tiny_model(config_of(unet_channels=channels, patch_size=patch)).model
    vectors = torch.randn(1, 32)
    images = torch.randn(1, 3, 16, 16, requires_grad=True)
    states = torch.randn(1, (16 // patch) ** 2, 32)
    tokens, skips = model.patch_embed(images, vectors)
    assert tokens.shape == states.shape
    rows = [16 // patch * 2**level for level in reversed(range(len(channels)))]
    assert [tuple(skip.shape) for skip in skips] == [(1, c, r, r) for c, r in zip(channels, rows, strict=True)]
    predicted = model.final_layer(states, vectors, skips, (16, 16))
    assert predicted.shape == images.shape
    predicted.sum().backward()
    assert images.grad.abs().min() > 0


def test_weights_stay_in_the_graph_without_an_image():
    model = tiny_model(config_of()).train()
    batch = batch_of([[lay_out([TextSegment([5, 6])], TOKENS)]], 8)
    out = model(**inputs_of(batch), codes_to_keep=torch.zeros(1, 8, dtype=torch.bool))
    (out.logits.sum() + out.code_logits.sum() + out.prediction.sum()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    model.zero_grad()
    labels = batch["labels"].clone()
    model(**inputs_of(batch), labels=labels).loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_save_load_save_is_byte_equal(tmp_path):
    tiny_model(config_of()).save_pretrained(tmp_path / "a")
    HybridGenForConditionalGeneration.from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "b")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_it_learns_what_a_wide_linear_patch_cannot():
    """White noise is denoised by a hair at low noise: all 48 numbers of a patch must come through. The backbone is 8
    wide, so a linear patch loses most of them; measured after 60 steps: .27 of the error left, of a linear one .83."""
    left = {}
    for name, channels in (("unet", [32]), ("linear", None)):
        torch.manual_seed(0)
        narrow = text_config(hidden_size=8, intermediate_size=16, num_attention_heads=2, num_key_value_heads=2)
        changes = {**SETTINGS, "unet_channels": channels}
        model = HybridGenForConditionalGeneration(tiny_config(text_config=narrow, diffusion_config=changes))
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(60):
            clean = torch.randn(16, 3, 16, 16)
            segments = [lay_out([ImageSegment("diffusion", 16, True)], TOKENS)]
            batch = inputs_of(batch_of([segments] * 16, len(segments[0])))
            noisy = 0.9 * clean + 0.1 * torch.randn_like(clean)
            loss = (model(**batch, latents=noisy, timesteps=torch.full((16,), 100.0)).prediction - clean).pow(2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        left[name] = loss.item()
    assert left["unet"] < 0.5 < left["linear"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unet_channels": []}, r"unet_channels is \[\]; it must be a list of multiples of 8"),
        ({"unet_channels": 64}, "unet_channels is 64"),
        ({"unet_channels": [64, 12]}, r"unet_channels is \[64, 12\]"),
        ({"unet_channels": [True, 8]}, "multiples of 8"),
        ({"unet_channels": [8, 8, 8], "patch_size": 2, "sample_size": 16}, "patch_size 2 is not divisible by 4"),
    ],
)
def test_channels_that_make_no_net_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        HybridGenDiffusionConfig(**changes)
