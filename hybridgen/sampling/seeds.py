"""Seeds: one random stream per image. Image i is the same alone, in a batch of 64, and in any chunking.

The streams live on the CPU unless the caller brings generators of another device: the same seed then draws the same
noise on every device. How many numbers an image draws must not depend on its neighbours, so every draw below is made
image by image, in the same order.

Shapes: I images, V codes to choose from.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Generator, Tensor

from hybridgen.core.values import listed, shown, whole_number

SEEDS = 1 << 64  # so many seeds there are, from 0
_CHUNK = 1 << 18  # numbers drawn at once for an image; what is drawn does not depend on it


def image_generators(
    count: int,
    seed: int | Sequence[int] | None = None,
    generator: Generator | Sequence[Generator] | None = None,
    of: str = "images are to be drawn: give one per image",
) -> list[Generator]:
    """One generator per image.

    Args:
        count: number of images.
        seed: image i is seeded with `nth_seed(seed, i)`, or with `seed[i]`.
        generator: one per image; a single one serves a single image as it is, and seeds a stream for each of several.
            With neither, every call draws something new.
        of: what an error says of the things that are counted.

    Raises:
        ValueError: both are given, a list has not one entry per image, a seed is not a whole number from 0 to 2^64 - 1,
            or a generator is none.
    """
    if seed is not None and generator is not None:
        raise ValueError("give seed or generator, not both: each decides the noise of every image")
    if (generators := listed(generator)) is not None:
        _check_length("generator", generators, count, of)
        return [_check_generator(one) for one in generators]
    if generator is not None:
        _check_generator(generator)
        return [generator] if count == 1 else further_generators(count, generator)
    if seed is None:
        return [_fresh() for _ in range(count)]
    if (seeds := listed(seed)) is None:
        seeds = [nth_seed(seed, i) for i in range(count)]
    _check_length("seed", seeds, count, of)
    return [_seeded(check_seed(number)) for number in seeds]


def further_generators(count: int, generator: Generator) -> list[Generator]:
    """Streams that another one seeds."""
    seeds = torch.randint(1 << 62, (count,), generator=generator, device=generator.device)
    return [Generator().manual_seed(seed) for seed in seeds.tolist()]


def nth_seed(seed: int, number: int) -> int:
    """The seed of the picture with this number in a call: `seed + number`, and after 2^64 - 1 comes 0."""
    return (check_seed(seed) + number) % SEEDS


def new_seed() -> int:
    """A seed from the operating system, where it is to be recorded."""
    return Generator().seed() % (1 << 62)


def _fresh() -> Generator:
    generator = Generator()
    generator.seed()  # from the operating system, not from torch's global stream
    return generator


def _seeded(seed: int) -> Generator:
    """The stream of a seed. torch makes its CPU streams of the low 32 bits alone, so that 5 and 2^32 + 5 would be one;
    the high ones therefore go into the state. A seed below 2^32 is torch's own."""
    generator = Generator().manual_seed(seed)
    if high := seed >> 32:
        state = generator.get_state()
        words = state.view(torch.int64)[3:627]  # the Mersenne Twister's 624, of 32 bits; before them stand 3 others
        words ^= torch.randint(1 << 32, (624,), generator=Generator().manual_seed(high))
        generator.set_state(state)
    return generator


def check_seed(seed: int) -> int:
    """A seed as Python's own number. Raises ValueError for what is none."""
    return whole_number("seed", seed, 0, SEEDS - 1, meaning="2^64 - 1")


def _check_generator(generator: Generator) -> Generator:
    if not isinstance(generator, Generator):
        raise ValueError(f"generator is {shown(generator)}; give a torch.Generator, or a list of one for each image")
    return generator


def _check_length(name: str, values: Sequence, count: int, of: str) -> None:
    if len(values) != count:
        raise ValueError(f"{name} is a list of {len(values)}, but {count} {of}")


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
