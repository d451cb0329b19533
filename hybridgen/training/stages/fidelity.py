"""How near a reconstruction is to its picture, and how much of a codebook is used: PSNR, SSIM, use, perplexity.

Values outside [-1, 1] are clipped first, as a viewer clips them. `psnr` is each picture's own, as papers on codecs
report it; the `psnr` that a run logs of its training batches is that of the mean error, which is another number.

Shapes: I pictures, C channels, H x W pixels, V codes.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from hybridgen.core.devices import sum_dtype
from hybridgen.training.distributed.processes import sum_over_ranks

PEAK = 2.0  # from -1 to 1
WINDOW, SIGMA = 11, 1.5  # of SSIM's Gaussian, as published


def psnr(pictures: Tensor, others: Tensor) -> Tensor:
    """(I, C, H, W) twice, in [-1, 1] -> (I,) decibels; 100 where they are the same."""
    error = (pictures.clamp(-1, 1) - others.clamp(-1, 1)).float().pow(2).flatten(1).mean(1)
    return 10 * torch.log10(PEAK**2 / error.clamp(min=PEAK**2 * 1e-10))


def ssim(pictures: Tensor, others: Tensor) -> Tensor:
    """(I, C, H, W) twice, in [-1, 1] -> (I,) structural similarity (Wang et al., 2004), the mean over the channels.

    Means, variances and covariance are taken in Gaussian windows of 11 x 11 that lie inside the picture.

    Raises:
        ValueError: a picture is smaller than a window.
    """
    if min(pictures.shape[-2:]) < WINDOW:
        raise ValueError(f"SSIM needs pictures of at least {WINDOW}x{WINDOW} pixels, not {tuple(pictures.shape[-2:])}")
    precise = sum_dtype(pictures.device)
    x, y = (each.clamp(-1, 1).to(precise).flatten(0, 1)[:, None] for each in (pictures, others))  # I * C, 1, H, W
    offsets = torch.arange(WINDOW, device=x.device, dtype=precise) - WINDOW // 2
    line = torch.exp(-offsets.pow(2) / (2 * SIGMA**2))
    line = line / line.sum()

    def smooth(values: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(values, line.view(1, 1, 1, -1)), line.view(1, 1, -1, 1))

    mean_x, mean_y = smooth(x), smooth(y)
    variance_x, variance_y = smooth(x * x) - mean_x**2, smooth(y * y) - mean_y**2
    covariance = smooth(x * y) - mean_x * mean_y
    small, larger = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2
    luminance = (2 * mean_x * mean_y + small) / (mean_x**2 + mean_y**2 + small)
    structure = (2 * covariance + larger) / (variance_x + variance_y + larger)
    return (luminance * structure).flatten(1).mean(1).view(len(pictures), -1).mean(1).float()


def perplexity(usage: Tensor) -> float:
    """How often each code is chosen (V,) -> exp of the entropy: so many evenly used codes would carry as much."""
    usage = usage.cpu().double()
    shares = usage / usage.sum().clamp(min=1e-12)
    return float(torch.exp(-torch.special.xlogy(shares, shares).sum()))


class ReconstructionScores:
    """Sums over the pictures of a validation, on the CPU: `add` batches, `reduce` over ranks, read `scores`.

    Args:
        codes: size of the codebook; None = there is none.
    """

    def __init__(self, codes: int | None = None):
        self.sums = torch.zeros(3, dtype=torch.float64)  # pictures, psnr, ssim
        self.usage = None if codes is None else torch.zeros(codes, dtype=torch.float64)
        self._has_ssim = True

    def add(self, pictures: Tensor, decoded: Tensor, codes: Tensor | None = None) -> None:
        self._has_ssim = min(pictures.shape[-2:]) >= WINDOW
        of_ssim = ssim(pictures, decoded).sum() if self._has_ssim else torch.zeros(())
        sums = [torch.tensor(float(len(pictures))), psnr(pictures, decoded).sum().cpu(), of_ssim.cpu()]
        self.sums += torch.stack(sums).to(self.sums)
        if self.usage is not None:
            self.usage += torch.bincount(codes.flatten(), minlength=len(self.usage)).to(self.usage)

    def reduce(self, accelerator) -> None:
        """Add the sums of all ranks; every rank has to call it."""
        self.sums = sum_over_ranks(accelerator, self.sums)
        if self.usage is not None:
            self.usage = sum_over_ranks(accelerator, self.usage)

    def scores(self) -> dict[str, float]:
        """Mean PSNR and SSIM (absent below 11 pixels), the share of codes that were chosen, and their perplexity."""
        count, of_psnr, of_ssim = self.sums.tolist()
        scores = {"psnr": of_psnr / count} | ({"ssim": of_ssim / count} if self._has_ssim else {})
        if self.usage is not None:
            scores |= {"codebook_use": float((self.usage > 0).double().mean())}
            scores |= {"codebook_perplexity": perplexity(self.usage)}
        return scores
