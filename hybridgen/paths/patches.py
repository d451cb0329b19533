"""Images <-> patches, and their positions: the arithmetic of the diffusion path, without weights.

Shapes: C channels, H x W pixels (or latents), p the patch size, h = H / p, w = W / p, D = p * p * C.
"""

import torch
from torch import Tensor


def patchify(image: Tensor, patch_size: int) -> Tensor:
    """(..., C, H, W) -> (..., h * w, p * p * C), patches in row-major order, channels innermost (as DiT).

    Raises:
        ValueError: H or W is not divisible by the patch size.
    """
    *batch, channels, height, width = image.shape
    check_size(height, width, patch_size)
    h, w, p = height // patch_size, width // patch_size, patch_size
    image = image.reshape(*batch, channels, h, p, w, p)
    n = len(batch)
    image = image.permute(*range(n), n + 1, n + 3, n + 2, n + 4, n)  # ..., h, w, p, p, C
    return image.reshape(*batch, h * w, p * p * channels)


def unpatchify(patches: Tensor, patch_size: int, height: int, width: int) -> Tensor:
    """(..., h * w, p * p * C) -> (..., C, H, W): the inverse of `patchify`."""
    *batch, _, dim = patches.shape
    h, w, p = height // patch_size, width // patch_size, patch_size
    patches = patches.reshape(*batch, h, w, p, p, dim // (p * p))
    n = len(batch)
    patches = patches.permute(*range(n), n + 4, n, n + 2, n + 1, n + 3)  # ..., C, h, p, w, p
    return patches.reshape(*batch, dim // (p * p), height, width)


def check_size(height: int, width: int, patch_size: int) -> None:
    """Raises ValueError, with the numbers, when an image cannot be cut into whole patches."""
    if height <= 0 or width <= 0 or height % patch_size or width % patch_size:
        nearest = [max(1, round(side / patch_size)) * patch_size for side in (height, width)]
        raise ValueError(
            f"size {height}x{width} is not divisible by the patch size {patch_size}; "
            f"the nearest that is: {nearest[0]}x{nearest[1]}"
        )


def patch_positions(height: int, width: int, patch_size: int, device=None) -> Tensor:
    """Row and column (h * w, 2) of each patch, counted from the image's top left corner."""
    rows = torch.arange(height // patch_size, device=device)
    columns = torch.arange(width // patch_size, device=device)
    return torch.cartesian_prod(rows, columns).reshape(-1, 2)


def aspect_buckets(side: int, token_size: int, ratio: float = 2.0) -> list[tuple[int, int]]:
    """Heights and widths that cost no more tokens than a square of `side`, from wide to tall, each in whole tokens.

    Args:
        token_size: pixels along one side of a token.
        ratio: of the longer side to the shorter, at most.

    Raises:
        ValueError: the square is no whole number of tokens, or the ratio is below 1.
    """
    check_size(side, side, token_size)
    if not 1 <= ratio < float("inf"):
        raise ValueError(f"ratio is {ratio!r}; the longer side over the shorter is at least 1")
    tokens = (side // token_size) ** 2
    grids = [(rows, tokens // rows) for rows in range(1, tokens + 1)]
    return [(h * token_size, w * token_size) for h, w in grids if max(h, w) <= ratio * min(h, w)]


def sincos_table(positions: Tensor, dim: int) -> Tensor:
    """Fixed sine-cosine features (T, dim) of integer positions (T, 2): half for the row, half for the column (DiT).

    A function of the position, so a picture of any size has a table. Rows and columns beyond those of training are
    positions that the model never saw: nothing is rescaled.

    Raises:
        ValueError: `dim` is not divisible by 4.
    """
    if dim % 4:
        raise ValueError(f"a 2-D sine-cosine table needs a width divisible by 4, not {dim}")
    omega = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float32, device=positions.device) / (dim // 4))
    angles = positions.float()[:, :, None] * omega  # T, 2, dim / 4
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(1)
