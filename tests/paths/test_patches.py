"""Patches: there and back, against DiT's order, and the sizes that cannot be cut."""

import pytest
import torch
from diffusers.models.embeddings import get_2d_sincos_pos_embed

from hybridgen.paths.patches import aspect_buckets, check_size, patch_positions, patchify, sincos_table, unpatchify


@pytest.mark.parametrize(("height", "width", "patch"), [(8, 8, 2), (12, 4, 4), (6, 10, 1)])
def test_there_and_back(height, width, patch):
    images = torch.randn(2, 3, height, width)
    patches = patchify(images, patch)
    assert patches.shape == (2, height * width // patch**2, 3 * patch**2)
    assert torch.equal(unpatchify(patches, patch, height, width), images)
    assert torch.equal(patchify(images[0], patch), patches[0])


def test_order_is_row_major_with_channels_innermost():
    image = torch.arange(3 * 4 * 4).view(3, 4, 4).float()
    patches = patchify(image, 2)
    assert torch.equal(
        patches[1], torch.stack([image[:, 0, 2], image[:, 0, 3], image[:, 1, 2], image[:, 1, 3]]).flatten()
    )
    assert patch_positions(4, 4, 2).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]


def test_position_table_holds_the_features_of_diffusers():
    """Same set of features per position (diffusers puts the column's half first)."""
    ours = sincos_table(patch_positions(6, 6, 1), 32)
    theirs = torch.as_tensor(get_2d_sincos_pos_embed(32, 6, base_size=6, output_type="pt")).float()
    row, column = ours[:, :16], ours[:, 16:]
    assert (torch.cat([column, row], 1) - theirs).abs().max() < 1e-5


@pytest.mark.parametrize(("height", "width"), [(30, 32), (32, 2), (0, 4)])
def test_sizes_that_cannot_be_cut_are_refused(height, width):
    with pytest.raises(ValueError, match=f"size {height}x{width} is not divisible by the patch size 4; the nearest"):
        patchify(torch.zeros(3, height, width), 4)


def test_width_of_the_table():
    with pytest.raises(ValueError, match="divisible by 4, not 30"):
        sincos_table(torch.zeros(1, 2), 30)


def test_aspect_buckets_cost_no_more_than_the_square():
    assert aspect_buckets(64, 16, 2.0) == [(48, 80), (64, 64), (80, 48)]
    assert aspect_buckets(64, 16, 1.0) == [(64, 64)]
    for side, token, ratio in ((256, 16, 3.0), (64, 8, 2.0), (384, 16, 1.6)):
        buckets = aspect_buckets(side, token, ratio)
        assert (side, side) in buckets
        assert len(set(buckets)) == len(buckets) > 4
        for height, width in buckets:
            check_size(height, width, token)
            assert 0.8 * side**2 < height * width <= side**2
            assert max(height, width) <= ratio * min(height, width)


@pytest.mark.parametrize(
    ("arguments", "message"), [((60, 16), "60x60 is not divisible"), ((64, 16, 0.5), "ratio is 0.5")]
)
def test_buckets_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        aspect_buckets(*arguments)
