"""Other sizes of a dataset's pictures: enlarged by whole pixels, or pooled, so that nothing is invented or shifted.

For datasets made of pixels. One that draws from shapes draws itself at the size it is asked for.
"""

import numpy as np
from PIL import Image


def resized(images: np.ndarray, side: int) -> np.ndarray:
    """Pictures with `side` pixels a side: (n, S, S, 3) uint8 -> (n, side, side, 3) uint8.

    Larger: each pixel becomes a square of pixels. Smaller: each square of pixels becomes its mean, rounded.

    Raises:
        ValueError: the pictures are no squares of uint8, or `side` is neither a whole multiple of theirs nor a part.
    """
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[1] != images.shape[2] or images.shape[3] != 3 or images.dtype != np.uint8:
        raise ValueError(
            f"pictures must be uint8 of shape (n, S, S, 3), not {images.dtype} {images.shape}: convert them first"
        )
    check_side(side, images.shape[1])
    if side >= images.shape[1]:
        return images.repeat(side // images.shape[1], axis=1).repeat(side // images.shape[2], axis=2)
    pool = images.shape[1] // side
    squares = images.reshape(len(images), side, pool, side, pool, 3)
    return np.rint(squares.mean(axis=(2, 4), dtype=np.float32)).astype(np.uint8)


def picture_of_side(picture: Image.Image, side: int) -> Image.Image:
    """As `resized`, of one RGB picture."""
    return Image.fromarray(resized(np.asarray(picture)[None], side)[0])


def check_side(side: int, of: int) -> None:
    """Raises ValueError where `side` pixels are neither a whole multiple of `of` pixels nor a part of them."""
    if side < 1 or (side % of and of % side):
        parts = [str(of // k) for k in range(min(of, 4), 1, -1) if of % k == 0]
        raise ValueError(
            f"pictures of {of} pixels cannot become {side} pixels a side: choose a whole multiple ({2 * of}, {3 * of}, "
            f"...) or a part ({', '.join(parts) or of})"
        )
