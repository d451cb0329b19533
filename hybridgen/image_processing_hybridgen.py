"""The image processor: pictures -> pixels as each path wants them, and pixels -> pictures.

Pictures are whatever `core.pictures` reads. Two ways in: `understanding` keeps the whole picture (long side resized,
the rest padded) or, with `understanding_fit="crop"`, its middle square, as CLIP's processor does; `generation` fills
the frame (short side resized, the rest cropped) or, with `fit="pad"`, keeps the whole picture. `understanding` computes
the short side with `int()`, as DeepSeek's Janus does; transformers' Janus rounds, and so differs on half of all aspect
ratios. `generation` can do as transformers' Chameleon does (`FRAMINGS`), for whose codes levels are a little smaller.

Shapes: I images, S the understanding path's side, H x W pixels.
"""

import math
from typing import NamedTuple
from urllib.request import urlopen

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.processing_utils import ImagesKwargs

from hybridgen.core.pictures import Source, UnreadPicture, read_picture, read_pictures
from hybridgen.core.values import choice, whole_number

MOST_FRAMES = 16  # a picture is made at most so many times as large as the frame that is cut out of it
FITS = ("crop", "pad")  # how a picture gets into a frame of another shape


class Framing(NamedTuple):
    """How the pictures of the paths that draw are resized and made values.

    Args:
        resample: Pillow's filter.
        rounds: the long side of a picture that fills a frame is rounded; false = its fraction is cut off.
        factor: levels times it, less one, are values; None = levels over 127.5, less one.
    """

    resample: Image.Resampling
    rounds: bool
    factor: float | None


FRAMINGS = {
    "hybridgen": Framing(Image.Resampling.BICUBIC, True, None),
    "chameleon-hf": Framing(Image.Resampling.LANCZOS, False, 0.0078),  # transformers' ChameleonImageProcessor
}
SECONDS = 30  # to wait for a picture that is downloaded


_OF_CLIP = Framing(Image.Resampling.BICUBIC, False, None)  # as transformers' CLIPImageProcessor cuts a picture


class HybridGenImageProcessorKwargs(ImagesKwargs, total=False):
    """Settings that a single call may change."""

    image_size: int
    pad_value: int
    min_size: int


class HybridGenImageProcessor(BaseImageProcessor):
    """Pictures -> pixels of the size and range that each path needs, and back.

    Args:
        image_size: side S of the understanding path's square input.
        image_mean, image_std: of the understanding path; 0.5 maps pixels to [-1, 1].
        pad_value: level of the padding beside pictures that are not square, one or one per channel (127 is 0.5 of 255,
            rounded down, as in Janus).
        min_size: the short side is resized to no fewer pixels than this (Janus: 14).
        truncate: `postprocess` rounds levels down, as Janus' code does, instead of to the nearest.
        understanding_fit: `pad` = the whole picture on gray; `crop` = the short side resized to S, the middle taken.
        framing: one of `FRAMINGS`: how pictures of the paths that draw are resized and made values.
    """

    model_input_names = ["pixel_values"]
    valid_kwargs = HybridGenImageProcessorKwargs
    do_rescale, rescale_factor, do_normalize = True, 1 / 255, True  # of the understanding path, as everywhere
    framing, understanding_fit = "hybridgen", "pad"  # written into a folder only where they are others

    def __init__(
        self,
        image_size: int = 384,
        image_mean: list[float] | None = None,
        image_std: list[float] | None = None,
        pad_value: int | list[int] = 127,
        min_size: int = 14,
        truncate: bool = False,
        framing: str = "hybridgen",
        understanding_fit: str = "pad",
        **kwargs,
    ):
        super().__init__(**kwargs)
        if choice("framing", framing, tuple(FRAMINGS)) != type(self).framing:
            self.framing = framing
        if choice("understanding_fit", understanding_fit, FITS) != type(self).understanding_fit:
            self.understanding_fit = understanding_fit
        self.image_size = whole_number("image_size", image_size)
        self.image_mean = [0.5] * 3 if image_mean is None else list(image_mean)
        self.image_std = [0.5] * 3 if image_std is None else list(image_std)
        self.pad_value = pad_value
        self.min_size = min_size
        self.truncate = truncate

    def fetch_images(self, images: Source | list) -> Image.Image | list:
        """The method that transformers calls: pictures in nested lists, read. Those of web addresses are downloaded, as
        by its processors; nothing else of hybridgen downloads any.

        Raises:
            ValueError: in one sentence, which is no picture, or cannot be downloaded.
        """
        if isinstance(images, list | tuple):
            return [self.fetch_images(image) for image in images]
        if isinstance(images, str) and images.startswith(("http://", "https://")):
            return read_picture(_download(images), where=images)
        pictures = read_pictures(images)
        return pictures[0] if len(pictures) == 1 else pictures

    def preprocess(self, images: Source | list, return_tensors: str | None = "pt", **kwargs) -> BatchFeature:
        """The method that transformers calls: `pixel_values` of the understanding path. Pictures may be nested lists,
        and URLs; settings among `kwargs` hold for this call alone."""
        images = read_pictures(self.fetch_images(images))
        settings = {name: value for name, value in kwargs.items() if name in SETTINGS and value is not None}
        processor = self if not settings else type(self).from_dict(self.to_dict() | settings)
        return BatchFeature({"pixel_values": processor.understanding(images)}, tensor_type=return_tensors)

    def understanding(self, images: list[Source]) -> Tensor:
        """Pictures -> (I, 3, S, S): the whole picture, long side S, centred on gray, or its middle square."""
        return self.normalize(torch.stack([self.understanding_levels(image) for image in images]))

    def native_levels(self, image: Source, height: int, width: int) -> Tensor:
        """As `understanding_levels`, for a tower that reads any shape: (3, H, W), resized as SigLIP 2's are."""
        picture = read_picture(image)
        if picture.size != (width, height):
            picture = picture.resize((width, height), Image.Resampling.BILINEAR)
        return _channels_first(np.array(picture))

    def understanding_levels(self, image: Source) -> Tensor:
        """The levels (3, S, S) of 8 bits that `normalize` makes the values of: a quarter of their bytes."""
        picture, side = read_picture(image), self.image_size
        crops = self.understanding_fit == "crop"
        return _channels_first(np.array(_fill(picture, side, side, _OF_CLIP) if crops else self._letterbox(picture)))

    def normalize(self, levels: Tensor) -> Tensor:
        """Levels (..., 3, S, S) of the understanding path -> its values, on their device; the same bits on all devices:
        a number to divide by is a tensor there, as CUDA multiplies by the reciprocal of one that is not."""
        values = levels.float()
        if self.do_rescale:
            values = values / torch.full((), 1 / self.rescale_factor, dtype=torch.float32, device=levels.device)
        if self.do_normalize:
            mean, std = (
                torch.tensor(numbers, dtype=torch.float32).to(levels.device)[:, None, None]
                for numbers in (self.image_mean, self.image_std)
            )
            values = (values - mean) / std
        return values

    def _letterbox(self, image: Image.Image) -> Image.Image:
        side, long = self.image_size, max(image.size)
        width, height = (max(int(length / long * side), min(self.min_size, side)) for length in image.size)
        image = _resize(image, width, height)
        return self._on_gray(image, side, side)

    def _on_gray(self, image: Image.Image, height: int, width: int) -> Image.Image:
        """The picture in the middle of a frame that is not smaller."""
        if image.size == (width, height):
            return image
        color = (self.pad_value,) * 3 if isinstance(self.pad_value, int) else tuple(self.pad_value)
        frame = Image.new("RGB", (width, height), color)
        frame.paste(image, ((width - image.width) // 2, (height - image.height) // 2))
        return frame

    def generation(self, image: Source, height: int, width: int, fit: str = "crop") -> Tensor:
        """A picture -> (3, H, W) in [-1, 1].

        Args:
            fit: `crop` = resized to fill the frame, the rest cropped on both sides alike; `pad` = the whole picture, as
                large as the frame lets it be, on gray.
        """
        return self.generation_values(self.generation_levels(image, height, width, fit))

    def generation_values(self, levels: Tensor) -> Tensor:
        """Levels (..., 3, H, W) of a path that draws -> values in [-1, 1], on their device; the same bits on all."""
        if (factor := FRAMINGS[self.framing].factor) is None:
            return to_range(levels)
        return levels.float() * torch.full((), factor, dtype=torch.float32, device=levels.device) - 1

    def generation_levels(self, image: Source, height: int, width: int, fit: str = "crop") -> Tensor:
        """The levels (3, H, W) of 8 bits that `generation_values` makes the values of."""
        picture, framing = read_picture(image), FRAMINGS[self.framing]
        if choice("fit", fit, FITS) == "crop":
            image = _fill(picture, height, width, framing)
        else:
            image = self._on_gray(_contain(picture, height, width, framing), height, width)
        return _channels_first(np.array(image))

    def postprocess(self, pixels: Tensor | list[Tensor]) -> list[Image.Image]:
        """(I, 3, H, W) in [-1, 1], or a list of (3, H, W) -> pictures; values outside of the range are clipped."""
        levels = [((image.detach().float().cpu() + 1) * 127.5).clamp(0, 255) for image in pixels]
        levels = levels if self.truncate else [image.round() for image in levels]
        return [Image.fromarray(image.to(torch.uint8).permute(1, 2, 0).numpy()) for image in levels]


SETTINGS = (
    "image_size", "image_mean", "image_std", "pad_value", "min_size", "do_rescale", "rescale_factor", "do_normalize",
    "understanding_fit",
)  # fmt: skip


def to_range(levels: Tensor) -> Tensor:
    """Levels of 8 bits -> [-1, 1], on their device; the same bits on all devices (`normalize`)."""
    return levels.float() / torch.full((), 127.5, dtype=torch.float32, device=levels.device) - 1


def as_rgb(image: Source) -> Image.Image:
    """`core.pictures.read_picture` by its older name."""
    return read_picture(image)


def fit_size(image: Source, tokens: int, side: int) -> tuple[int, int]:
    """(height, width) in pixels of the grid of at most `tokens` tokens whose shape is nearest to the picture's.

    Of grids that are equally near, the one of the most tokens.

    Args:
        side: pixels along one side of a token.
    """
    width, height = (image if isinstance(image, UnreadPicture) else read_picture(image)).size
    target = math.log(width / height)
    grids = [(rows, tokens // rows) for rows in range(1, tokens + 1)]
    rows, columns = min(grids, key=lambda grid: (abs(math.log(grid[1] / grid[0]) - target), -grid[0] * grid[1]))
    return rows * side, columns * side


def _resize(
    image: Image.Image, width: int, height: int, resample: Image.Resampling = Image.Resampling.BICUBIC
) -> Image.Image:
    return image if image.size == (width, height) else image.resize((width, height), resample)


def _fill(image: Image.Image, height: int, width: int, framing: Framing) -> Image.Image:
    """The middle of the picture that has the frame's shape, in the frame's size.

    A thin picture that fills the frame would be huge before it is cropped; of those the middle alone is resized. Pillow
    rounds otherwise there, so it is not done to all.
    """
    scale = max(height / image.height, width / image.width)
    if framing.rounds:
        wide, high = max(width, round(image.width * scale)), max(height, round(image.height * scale))
    else:
        frame, side = max((height, image.height), (width, image.width), key=lambda pair: pair[0] / pair[1])
        wide, high = max(width, int(frame * image.width / side)), max(height, int(frame * image.height / side))
    left, top = (wide - width) // 2, (high - height) // 2
    box = left, top, left + width, top + height
    if wide * high <= MOST_FRAMES * height * width:
        image = _resize(image, wide, high, framing.resample)
        return image if image.size == (width, height) else image.crop(box)
    shrink = image.width / wide, image.height / high
    box = [min(edge * shrink[axis % 2], image.size[axis % 2]) for axis, edge in enumerate(box)]
    return image.resize((width, height), framing.resample, box=box)


def _contain(image: Image.Image, height: int, width: int, framing: Framing) -> Image.Image:
    """The whole picture, as large as the frame lets it be."""
    scale = min(height / image.height, width / image.width)
    wide, high = (max(1, round(length * scale)) for length in image.size)
    return _resize(image, min(wide, width), min(high, height), framing.resample)


def cropped_share(size: tuple[int, int], height: int, width: int) -> float:
    """How much of a picture of this (width, height) is lost where it fills a frame."""
    ratio = (size[0] / size[1]) / (width / height)
    return 1 - min(ratio, 1 / ratio)


def _download(url: str) -> bytes:
    try:
        with urlopen(url, timeout=SECONDS) as answer:
            return answer.read()
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise ValueError(f"the picture {url} cannot be downloaded ({reason}); name a file") from error


def _channels_first(values: np.ndarray) -> Tensor:
    """(..., H, W, 3) -> (..., 3, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(values, -1, -3)))
