"""Seeds: one random stream per image. Image i is the same alone, in a batch of 64, and in any chunking.

The streams live on the CPU unless the caller brings generators of another device: the same seed then draws the same
noise on every device. How many numbers an image draws must not depend on its neighbours, so every draw below is made
image by image, in the same order.

Shapes: I images, V codes to choose from.
"""

from collections.abc import Iterator
from numbers import Integral

import torch
from torch import Generator, Tensor

_CHUNK = 1 << 18  # numbers drawn at once for an image; what is drawn does not depend on it


def image_generators(
    count: int, seed: int | list[int] | None = None, generator: Generator | list[Generator] | None = None
) -> list[Generator]:
    """One generator per image.

    Args:
        count: number of images.
        seed: image i is seeded with `seed + i`, or with `seed[i]`.
        generator: one per image; a single one serves a single image as it is, and seeds a stream for each of several.
            With neither, every call draws something new.

    Raises:
        ValueError: both are given, a list has not one entry per image, or a seed is not a whole number from 0.
    """
    if seed is not None and generator is not None:
        raise ValueError("give seed or generator, not both: each decides the noise of every image")
    if isinstance(generator, list):
        _check_length("generator", generator, count)
        return generator
    if generator is not None:
        if count == 1:
            return [generator]
        seed = torch.randint(1 << 62, (count,), generator=generator, device=generator.device).tolist()
    if seed is None:
        return [_fresh() for _ in range(count)]
    if not isinstance(seed, list):
        seed = [_whole(seed) + i for i in range(count)]
    _check_length("seed", seed, count)
    return [Generator().manual_seed(_whole(number)) for number in seed]


def new_seed() -> int:
    """A seed from the operating system, where it is to be recorded."""
    return Generator().seed() % (1 << 62)


def _fresh() -> Generator:
    generator = Generator()
    generator.seed()  # from the operating system, not from torch's global stream
    return generator


def _whole(seed: int) -> int:
    if isinstance(seed, bool) or not isinstance(seed, Integral) or not 0 <= seed < 1 << 63:
        raise ValueError(f"seed is {seed!r}; it must be a whole number of at least 0")
    return int(seed)  # numpy's too


def _check_length(name: str, values: list, count: int) -> None:
    if len(values) != count:
        raise ValueError(f"{name} is a list of {len(values)}, but {count} images are to be drawn: give one per image")


def draw_noise(generators: list[Generator], shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Standard normal noise (I, *shape), float32."""
    draws = [torch.randn(shape, generator=generator, device=generator.device) for generator in generators]
    return torch.stack([draw.to(device) for draw in draws])


def draw_gumbel(generators: list[Generator], count: int, width: int, device: torch.device) -> Iterator[Tensor]:
    """`count` draws of Gumbel noise (I, V): the largest of logits plus noise is a sample of their softmax."""
    chunk = max(1, _CHUNK // width)
    for start in range(0, count, chunk):
        size = (min(chunk, count - start), width)
        draws = [torch.rand(size, generator=generator, device=generator.device) for generator in generators]
        uniform = torch.stack([draw.to(device) for draw in draws], dim=1)  # chunk, I, V
        yield from uniform.log_().neg_().log_().neg_()
