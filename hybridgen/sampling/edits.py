"""Edits: a picture of which a region is drawn anew, and all else stays.

What stays is kept in two places. While it is drawn, what is known is given to the model: after each denoising step the
known latents, at that step's noise level (Lugmayr et al., arXiv 2201.09865; Avrahami et al., 2206.02779), on the vq
path the known codes. In the end the picture's own pixels are pasted around the region, as no codec gives them back
exactly. The edge is hard: a soft one would change pixels that are to stay, or leave some of those that are not.

A cell (a latent, a code) is known where all of its pixels stay. Nothing is resized: the picture that comes out has the
size of the one that came in.

Shapes: I images, C x h x w latents, T codes, H x W pixels.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hybridgen.core.pictures import read_picture
from hybridgen.core.values import each, number

HALF = 128  # the darkest level of a mask that is redrawn
_COLOURED = 48  # levels that the channels of a mask may lie apart; a JPEG's black and white do by some


class Known(NamedTuple):
    """What the drawing of several images is given of pictures that are edited.

    Args:
        clean: latents (I, C, h, w), or codes (I, T).
        redrawn: (I, 1, h, w), or (I, T): where they are not to be used.
    """

    clean: Tensor
    redrawn: Tensor

    def keep(self, drawn: Tensor, known: Tensor) -> Tensor:
        """What was drawn where it is redrawn, and what is known elsewhere."""
        return torch.where(self.redrawn, drawn, known)


@dataclass(frozen=True, eq=False)
class Edit:
    """A picture, and where it is redrawn.

    Args:
        mask: of its size, in mode 1.
    """

    picture: Image.Image
    mask: Image.Image

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.picture.height, self.picture.width

    @property
    def pixels(self) -> Tensor:
        """The picture's levels (3, H, W) of 8 bits."""
        return torch.from_numpy(np.array(self.picture)).permute(2, 0, 1)

    @property
    def redrawn(self) -> Tensor:
        """(H, W) true where it is redrawn."""
        return torch.from_numpy(np.array(self.mask))

    def redrawn_cells(self, size: tuple[int, int]) -> Tensor:
        """(h, w) true where some pixel of a cell is redrawn."""
        height, width = (side // cells for side, cells in zip(self.size, size, strict=True))
        return self.redrawn.view(size[0], height, size[1], width).any(3).any(1)

    def paste(self, drawn: Image.Image) -> Image.Image:
        """The picture with what was drawn in the region, as far down as that is there."""
        edited = self.picture.copy()
        edited.paste(drawn, (0, 0), self.mask.crop((0, 0, *drawn.size)))
        return edited

    def paste_values(self, drawn: Tensor) -> Tensor:
        """The same for values (3, H, W) in [0, 1]."""
        return torch.where(self.redrawn, drawn, self.pixels / 255)


def read_edits(
    edit_image, mask_image, strength: float | None, path: str, count: int
) -> tuple[list[Edit | None], float]:
    """The edits of a call, one for each of `count` prompts, or None where nothing is edited; and the strength.

    Args:
        edit_image, mask_image, strength: see `HybridGenPipeline.__call__`.

    Raises:
        ValueError: they cannot be read, or mean nothing together.
    """
    if edit_image is None:
        for name, given in (("mask_image", mask_image), ("strength", strength)):
            if given is not None:
                raise ValueError(f"{name} is about the picture that is redrawn, but there is no edit_image; give both")
        return [None] * count, 1.0
    if strength is not None:
        strength = number("strength", strength, most=1, above=True, meaning="1 = drawn from noise alone")
    strength = 1.0 if strength is None else strength
    if strength != 1 and path != "diffusion":
        raise ValueError(
            f"strength is {strength:g}, but the {path} path has no noise to begin in: what it redraws is drawn anew; "
            "leave it out, or draw by diffusion"
        )
    if mask_image is None and strength == 1:
        raise ValueError(
            "edit_image has no mask_image, so that nothing of it would stay; give mask_image=..., white where it is "
            "redrawn, or a strength below 1 (diffusion)"
        )
    pictures = _pictures("edit_image", edit_image, count)
    masks = [None] * count if mask_image is None else _pictures("mask_image", mask_image, count)
    edits: dict[tuple, Edit] = {}  # equal ones are one object, whose latents are made once
    for picture, mask in zip(pictures, masks, strict=True):
        if (id(picture), id(mask)) not in edits:
            edits[id(picture), id(mask)] = Edit(picture, _region(picture, mask))
    return [edits[id(picture), id(mask)] for picture, mask in zip(pictures, masks, strict=True)], strength


def sides_of(edits: Sequence[Edit | None], heights: list, widths: list) -> tuple[list, list]:
    """Heights and widths, those that are None as the pictures have them. Raises ValueError for others than theirs."""
    for edit, height, width in zip(edits, heights, widths, strict=True):
        for name, asked, has in zip(("height", "width"), (height, width), edit.size if edit else (), strict=False):
            if asked is not None and asked != has:
                raise ValueError(
                    f"{name} is {asked}, but edit_image is {edit.size[1]}x{edit.size[0]} pixels and stays so; resize "
                    f"it before, or leave {name} out"
                )
    if all(edit is None for edit in edits):
        return heights, widths
    return [edit.size[0] for edit in edits], [edit.size[1] for edit in edits]


def _pictures(name: str, given, count: int) -> list[Image.Image]:
    """One for each of `count` prompts, read; those that are given once are one object. Raises ValueError."""
    if isinstance(given, np.ndarray | Tensor) and given.ndim == 4:
        given = list(given)
    sources = each(name, given, count)
    read = {id(source): read_picture(source, where=name) for source in sources}
    return [read[id(source)] for source in sources]


def _region(picture: Image.Image, mask: Image.Image | None) -> Image.Image:
    """Where a picture is redrawn; without a mask, everywhere. Raises ValueError for what is no mask of it."""
    if mask is None:
        return Image.new("1", picture.size, 1)
    if mask.size != picture.size:
        raise ValueError(
            f"mask_image is {mask.width}x{mask.height} pixels, but edit_image is {picture.width}x{picture.height}; "
            "give a mask of the picture's size"
        )
    levels = np.asarray(mask).astype(int)
    if (levels.max(-1) - levels.min(-1)).max() > _COLOURED:
        raise ValueError(
            "mask_image has colours, which say nothing; make it white where the picture is redrawn, black elsewhere"
        )
    redrawn = levels.mean(-1) >= HALF
    if not redrawn.any():
        warnings.warn("mask_image is black all over, so nothing of edit_image is redrawn", stacklevel=2)
    return Image.fromarray(redrawn)
