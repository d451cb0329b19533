"""The image processor: pictures -> pixels as each path wants them, and pixels -> pictures.

Pictures are PIL images, uint8 arrays (H, W, 3) or tensors (3, H, W); no files, no tokens. Two ways in: `understanding`
keeps the whole picture (long side resized, the rest padded), `generation` fills the frame (short side resized, the rest
cropped). `understanding` computes the short side with `int()`, as DeepSeek's Janus does; transformers' Janus rounds,
and so differs on half of all aspect ratios.

Shapes: I images, S the understanding path's side, H x W pixels.
"""

import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import make_flat_list_of_images
from transformers.processing_utils import ImagesKwargs

Picture = Image.Image | np.ndarray | Tensor


class HybridGenImageProcessorKwargs(ImagesKwargs, total=False):
    """Settings that a single call may change."""

    image_size: int
    pad_value: int
    min_size: int


class HybridGenImageProcessor(BaseImageProcessor):
    """
    Args:
        image_size: side S of the understanding path's square input.
        image_mean, image_std: of the understanding path; 0.5 maps pixels to [-1, 1].
        pad_value: level of the padding beside pictures that are not square, one or one per channel (127 is 0.5 of 255,
            rounded down, as in Janus).
        min_size: the short side is resized to no fewer pixels than this (Janus: 14).
        truncate: `postprocess` rounds levels down, as Janus' code does, instead of to the nearest.
    """

    model_input_names = ["pixel_values"]
    valid_kwargs = HybridGenImageProcessorKwargs
    do_rescale, rescale_factor, do_normalize = True, 1 / 255, True  # of the understanding path, as everywhere

    def __init__(
        self,
        image_size: int = 384,
        image_mean: list[float] | None = None,
        image_std: list[float] | None = None,
        pad_value: int | list[int] = 127,
        min_size: int = 14,
        truncate: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if not isinstance(image_size, int) or image_size < 1:
            raise ValueError(f"image_size is {image_size!r}; it must be an integer of at least 1")
        self.image_size = image_size
        self.image_mean = [0.5] * 3 if image_mean is None else list(image_mean)
        self.image_std = [0.5] * 3 if image_std is None else list(image_std)
        self.pad_value = pad_value
        self.min_size = min_size
        self.truncate = truncate

    def preprocess(self, images: Picture | list, return_tensors: str | None = "pt", **kwargs) -> BatchFeature:
        """The method that transformers calls: `pixel_values` of the understanding path. Pictures may be nested lists,
        and files or URLs; settings among `kwargs` hold for this call alone."""
        images = make_flat_list_of_images(self.fetch_images(images))
        settings = {name: value for name, value in kwargs.items() if name in SETTINGS and value is not None}
        processor = self if not settings else type(self).from_dict(self.to_dict() | settings)
        return BatchFeature({"pixel_values": processor.understanding(images)}, tensor_type=return_tensors)

    def understanding(self, images: list[Picture]) -> Tensor:
        """Pictures -> (I, 3, S, S): the whole picture, long side S, centred on gray."""
        values = np.stack([np.asarray(self._letterbox(as_rgb(image))) for image in images]).astype(np.float32)
        if self.do_rescale:
            values = values / np.float32(1 / self.rescale_factor)
        if self.do_normalize:
            values = (values - np.asarray(self.image_mean, np.float32)) / np.asarray(self.image_std, np.float32)
        return _channels_first(values)  # I, 3, S, S

    def _letterbox(self, image: Image.Image) -> Image.Image:
        side, long = self.image_size, max(image.size)
        width, height = (max(int(length / long * side), min(self.min_size, side)) for length in image.size)
        image = _resize(image, width, height)
        if image.size == (side, side):
            return image
        color = (self.pad_value,) * 3 if isinstance(self.pad_value, int) else tuple(self.pad_value)
        square = Image.new("RGB", (side, side), color)
        square.paste(image, ((side - width) // 2, (side - height) // 2))
        return square

    def generation(self, image: Picture, height: int, width: int) -> Tensor:
        """A picture -> (3, H, W) in [-1, 1]: resized to fill the frame, the rest cropped on both sides alike."""
        image = as_rgb(image)
        scale = max(height / image.height, width / image.width)
        image = _resize(image, max(width, round(image.width * scale)), max(height, round(image.height * scale)))
        left, top = (image.width - width) // 2, (image.height - height) // 2
        if image.size != (width, height):
            image = image.crop((left, top, left + width, top + height))
        return _channels_first(np.asarray(image) / np.float32(127.5) - 1)

    def postprocess(self, pixels: Tensor | list[Tensor]) -> list[Image.Image]:
        """(I, 3, H, W) in [-1, 1], or a list of (3, H, W) -> pictures; values outside of the range are clipped."""
        levels = [((image.detach().float().cpu() + 1) * 127.5).clamp(0, 255) for image in pixels]
        levels = levels if self.truncate else [image.round() for image in levels]
        return [Image.fromarray(image.to(torch.uint8).permute(1, 2, 0).numpy()) for image in levels]


SETTINGS = (
    "image_size", "image_mean", "image_std", "pad_value", "min_size", "do_rescale", "rescale_factor", "do_normalize",
)  # fmt: skip


def as_rgb(image: Picture) -> Image.Image:
    """A picture in RGB, on white where it is transparent.

    Raises:
        ValueError: it is no picture, or an array of another shape or type.
    """
    if isinstance(image, Tensor) and image.ndim == 3:
        image = image.detach().cpu().permute(1, 2, 0).numpy()
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (3, 4):
            raise ValueError(
                f"an image of shape {image.shape} and type {image.dtype} is no picture; give uint8 values, "
                "an array (height, width, 3) or a tensor (3, height, width)"
            )
        image = Image.fromarray(image)
    if not isinstance(image, Image.Image):
        kind = type(image).__name__
        raise ValueError(f"an image must be a PIL image, an array or a tensor, not {kind}; open the file first")
    if image.mode == "RGB":
        return image
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def fit_size(image: Picture, tokens: int, side: int) -> tuple[int, int]:
    """(height, width) in pixels of the grid of at most `tokens` tokens whose shape is nearest to the picture's.

    Of grids that are equally near, the one of the most tokens.

    Args:
        side: pixels along one side of a token.
    """
    rgb = as_rgb(image)
    target = math.log(rgb.width / rgb.height)
    grids = [(rows, tokens // rows) for rows in range(1, tokens + 1)]
    rows, columns = min(grids, key=lambda grid: (abs(math.log(grid[1] / grid[0]) - target), -grid[0] * grid[1]))
    return rows * side, columns * side


def _resize(image: Image.Image, width: int, height: int) -> Image.Image:
    return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BICUBIC)


def _channels_first(values: np.ndarray) -> Tensor:
    """(..., H, W, 3) -> (..., 3, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(values, -1, -3)))
