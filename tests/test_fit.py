"""Wide and high pictures: by which ways in they are whole, and that what is drawn fills its frame."""

import numpy as np
import pytest
import torch
from PIL import Image

from hybridgen.image_processing_hybridgen import HybridGenImageProcessor, cropped_share
from hybridgen.processing_hybridgen import HybridGenProcessor
from tests.processors import assistant, picture, tiny_processor, user

PATHS = ("understanding", "diffusion", "vq")


def striped(width: int, height: int) -> Image.Image:
    """Black, its first and last fifth of the longer side white: what a crop loses first."""
    levels = np.zeros((height, width), np.uint8)
    if width >= height:
        levels[:, : width // 5] = levels[:, -(width // 5) :] = 255
    else:
        levels[: height // 5] = levels[-(height // 5) :] = 255
    return Image.fromarray(levels).convert("RGB")


def read(processor: HybridGenProcessor, image: Image.Image, path: str, **how) -> torch.Tensor:
    messages = [user({"type": "image", "image": image}, "?"), assistant("red")]
    (found,) = processor.document(messages, read=path, **how).images
    return found.pixels


@pytest.mark.parametrize("size", [(48, 16), (16, 48), (64, 16)])
@pytest.mark.parametrize("path", PATHS)
def test_padded_pictures_are_read_whole_by_every_path(path, size):
    processor = tiny_processor(fit="pad")
    pixels = read(processor, striped(*size), path)
    assert pixels.shape == (3, 16, 16)
    assert pixels.max() > 0.9  # its white ends are there, at both sides of the middle
    along = pixels[0].amax(0) if size[0] > size[1] else pixels[0].amax(1)
    assert along[0] > 0.9
    assert along[-1] > 0.9


@pytest.mark.parametrize("path", ["diffusion", "vq"])
def test_the_default_fills_the_frame_as_ever(path):
    wide = striped(64, 16)
    cropped = read(tiny_processor(), wide, path)
    assert torch.equal(cropped, HybridGenImageProcessor(image_size=16).generation(wide, 16, 16))
    assert cropped.max() < -0.9  # all that was white is lost


def test_a_picture_of_the_frames_shape_is_the_same_either_way():
    for size in ((16, 16), (40, 40), (5, 5)):
        for path in ("diffusion", "vq"):
            of_both = [read(tiny_processor(fit=fit), picture(*size), path) for fit in ("crop", "pad")]
            assert torch.equal(*of_both)


def test_pictures_that_are_drawn_fill_their_frame_and_clean_copies_are_theirs():
    processor = tiny_processor(fit="pad")
    messages = [user("red"), assistant({"type": "image", "image": striped(64, 16)})]
    document = processor.document(messages, read=["diffusion", "vq"], write="diffusion", clean_copy=True)
    drawn, copy, again = document.images
    expected = processor.image_processor.generation(striped(64, 16), 16, 16)
    assert torch.equal(drawn.pixels, expected)
    assert torch.equal(copy.pixels, expected)
    assert again.path == "vq"
    assert again.pixels.max() > 0.9  # read, and so whole


def test_frames_of_other_shapes():
    processor = HybridGenImageProcessor(image_size=16, pad_value=127)
    for width, height in ((48, 16), (16, 48), (1, 900), (900, 1), (3, 2)):
        pixels = processor.generation(striped(width, height) if min(width, height) > 4 else picture(width, height),
                                      24, 12, fit="pad")  # fmt: skip
        assert pixels.shape == (3, 24, 12)
        gray = (pixels - (127 / 127.5 - 1)).abs().amax(0) < 1e-6  # H, W
        scale = min(24 / height, 12 / width)
        inside = max(1, round(width * scale)) * max(1, round(height * scale))
        assert (~gray).sum() <= inside
        assert gray.sum() >= 24 * 12 - inside


@pytest.mark.parametrize(("size", "share"), [((16, 16), 0), ((32, 16), 0.5), ((16, 32), 0.5), ((64, 16), 0.75)])
def test_how_much_is_cropped(size, share):
    assert cropped_share(size, 16, 16) == pytest.approx(share)
    assert cropped_share(size, size[1], size[0]) == 0


def test_the_way_is_saved_and_others_are_refused(tmp_path):
    tiny_processor(fit="pad").save_pretrained(tmp_path)
    assert HybridGenProcessor.from_pretrained(tmp_path).fit == "pad"
    with pytest.raises(ValueError, match="fit is 'stretch'; it must be one of 'crop', 'pad'"):
        tiny_processor(fit="stretch")
