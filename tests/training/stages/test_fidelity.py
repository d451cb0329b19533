"""PSNR and SSIM against their definitions and scikit-image; codebook use against counting."""

import math

import numpy as np
import pytest
import torch

from hybridgen.training.distributed.processes import make_accelerator
from hybridgen.training.stages.fidelity import ReconstructionScores, perplexity, psnr, ssim
from tests.training.toy import config_of


def pair(side: int = 20, noise: float = 0.2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    pictures = torch.rand(2, 3, side, side + 4, generator=generator) * 2 - 1
    return pictures, (pictures + noise * torch.randn(pictures.shape, generator=generator)).clamp(-1, 1)


def ssim_as_published(x: np.ndarray, y: np.ndarray, peak: float) -> float:
    """One channel, window by window, straight from the paper's equations."""
    at = np.arange(11) - 5
    window = np.exp(-(at[:, None] ** 2 + at[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    values = []
    for top in range(x.shape[0] - 10):
        for left in range(x.shape[1] - 10):
            a, b = (each[top : top + 11, left : left + 11] for each in (x, y))
            mean_a, mean_b = (window * a).sum(), (window * b).sum()
            of_a, of_b = (window * (a - mean_a) ** 2).sum(), (window * (b - mean_b) ** 2).sum()
            both = (window * (a - mean_a) * (b - mean_b)).sum()
            c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
            value = (2 * mean_a * mean_b + c1) * (2 * both + c2)
            values.append(value / ((mean_a**2 + mean_b**2 + c1) * (of_a + of_b + c2)))
    return float(np.mean(values))


def test_ssim_is_the_published_one():
    pictures, others = pair()
    expected = [
        np.mean([ssim_as_published(a.numpy(), b.numpy(), 2.0) for a, b in zip(*channels, strict=True)])
        for channels in zip(pictures.double(), others.double(), strict=True)
    ]
    torch.testing.assert_close(ssim(pictures, others).tolist(), expected, rtol=0, atol=1e-6)  # measured 1e-8
    assert ssim(pictures, pictures).tolist() == pytest.approx([1, 1])


def test_ssim_and_psnr_equal_scikit_image():
    metrics = pytest.importorskip("skimage.metrics", reason="an oracle that only developers need")
    pictures, others = pair(side=32)
    for a, b, ours, decibels in zip(pictures, others, ssim(pictures, others), psnr(pictures, others), strict=True):
        theirs = metrics.structural_similarity(
            a.numpy(), b.numpy(), channel_axis=0, data_range=2.0, gaussian_weights=True, sigma=1.5,
            use_sample_covariance=False,
        )  # fmt: skip
        assert float(ours) == pytest.approx(theirs, abs=1e-5)  # measured 6e-8
        assert float(decibels) == pytest.approx(metrics.peak_signal_noise_ratio(a.numpy(), b.numpy(), data_range=2.0))


def test_psnr_is_each_pictures_own_and_clips():
    pictures = torch.zeros(3, 3, 4, 4)
    others = torch.stack([torch.full((3, 4, 4), value) for value in (0.2, 0.02, 5.0)])
    assert psnr(pictures, others).tolist() == pytest.approx([20, 40, 10 * math.log10(4)], abs=1e-4)
    assert psnr(pictures, pictures).tolist() == pytest.approx([100] * 3)


def test_ssim_of_a_picture_smaller_than_its_window_is_refused():
    with pytest.raises(ValueError, match=r"SSIM needs pictures of at least 11x11 pixels, not \(10, 14\)"):
        ssim(*pair(side=10))


def test_perplexity_counts_codes_that_are_used_evenly():
    assert perplexity(torch.tensor([5.0, 5.0, 0.0, 5.0, 5.0])) == pytest.approx(4)
    assert perplexity(torch.tensor([7.0, 0.0])) == pytest.approx(1)
    assert perplexity(torch.tensor([3.0, 1.0])) == pytest.approx(
        math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    )
    assert math.isfinite(perplexity(torch.zeros(4)))


def test_a_tally_is_the_same_in_one_batch_or_two(tmp_path):
    pictures, others = pair()
    codes = torch.tensor([[0, 1], [1, 1]])
    whole, halves = ReconstructionScores(4), ReconstructionScores(4)
    whole.add(pictures, others, codes)
    for number in (0, 1):
        halves.add(pictures[number : number + 1], others[number : number + 1], codes[number])
    halves.reduce(make_accelerator(config_of(tmp_path)))
    assert whole.scores() == pytest.approx(halves.scores(), rel=1e-6)
    assert whole.scores()["codebook_use"] == 0.5
    small = ReconstructionScores()
    small.add(pictures[..., :8, :8], others[..., :8, :8])
    assert small.scores().keys() == {"psnr"}  # too small for SSIM
