"""Seeds: every image has a stream of its own, whatever its neighbours."""

import numpy as np
import pytest
import torch
from torch import Generator

from hybridgen.sampling.seeds import draw_gumbel, draw_noise, image_generators, nth_seed


def test_a_seed_counts_up_over_the_images():
    together = draw_noise(image_generators(3, 7), (2, 4), "cpu")
    for i in range(3):
        assert torch.equal(together[i], draw_noise(image_generators(1, 7 + i), (2, 4), "cpu")[0])
        assert torch.equal(together[i], draw_noise(image_generators(1, [7 + i]), (2, 4), "cpu")[0])


def test_one_generator_serves_one_image_as_it_is_and_several_by_seeding_them():
    alone = Generator().manual_seed(3)
    assert image_generators(1, generator=alone) == [alone]
    first, second = (
        draw_noise(image_generators(3, generator=Generator().manual_seed(3)), (8,), "cpu") for _ in range(2)
    )
    assert torch.equal(first, second)
    assert len(first.unique()) == 24


LARGE = [5, 5 + 2**32, 5 + 2**33, 5 + 2**63, 2**64 - 1, 2**63 - 1, 2**32 - 1, 2**32, 0]


def test_all_64_bits_of_a_seed_count_and_below_32_it_is_torchs_own():
    drawn = [torch.randn(8, generator=generator) for generator in image_generators(len(LARGE), LARGE)]
    assert len({tuple(noise.tolist()) for noise in drawn}) == len(LARGE)
    for seed, noise in zip(LARGE, drawn, strict=True):
        assert (seed < 2**32) == torch.equal(noise, torch.randn(8, generator=Generator().manual_seed(seed)))
    large = torch.randn(100_000, generator=image_generators(1, 2**64 - 1)[0])
    assert abs(large.mean()) < 0.02
    assert abs(large.std() - 1) < 0.02
    uniform = torch.rand(100_000, generator=image_generators(1, 2**40)[0]).double()
    assert abs(uniform.mean() - 0.5) < 0.01


def test_seeds_count_on_from_zero_after_the_last():
    assert [nth_seed(2**64 - 2, number) for number in range(4)] == [2**64 - 2, 2**64 - 1, 0, 1]
    last, first = image_generators(2, 2**64 - 1)
    for generator, seed in ((last, 2**64 - 1), (first, 0)):
        assert torch.equal(
            torch.randn(3, generator=generator), torch.randn(3, generator=image_generators(1, [seed])[0])
        )


def test_streams_that_a_generator_seeds_are_those_they_were():
    """Of the seeds that it draws, of 62 bits, the low 32 count."""
    seeds = torch.randint(1 << 62, (3,), generator=Generator().manual_seed(9)).tolist()
    streams = image_generators(3, generator=Generator().manual_seed(9))
    for seed, stream in zip(seeds, streams, strict=True):
        expected = torch.randn(3, generator=Generator().manual_seed(seed % 2**32))
        assert torch.equal(torch.randn(3, generator=stream), expected)


@pytest.mark.parametrize("kind", [list, tuple])
def test_numpys_numbers_and_tuples_are_seeds(kind):
    drawn = image_generators(2, kind([np.int64(3), np.uint64(2**64 - 1)])) + image_generators(2, np.uint64(2**64 - 1))
    expected = image_generators(4, [3, 2**64 - 1, 2**64 - 1, 0])
    for one, other in zip(drawn, expected, strict=True):
        assert torch.equal(torch.randn(3, generator=one), torch.randn(3, generator=other))
    pair = kind([Generator(), Generator()])
    assert image_generators(2, generator=pair) == list(pair)


def test_a_list_of_generators_is_used_as_it_is():
    given = [Generator().manual_seed(i) for i in (3, 1)]
    assert image_generators(2, generator=given) == given


def test_without_a_seed_every_call_differs_and_the_global_stream_is_left_alone():
    before = torch.get_rng_state()
    first, second = (draw_noise(image_generators(2), (8,), "cpu") for _ in range(2))
    list(draw_gumbel(image_generators(2), 3, 5, "cpu"))
    assert not torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("width", [3, 1000, 300_000])
def test_gumbel_noise_does_not_depend_on_blocks_or_neighbours(width):
    """300,000 is more than a block; 3 puts all draws into one."""
    together = torch.stack(list(draw_gumbel(image_generators(2, 5), 4, width, "cpu")))
    alone = image_generators(1, 6)
    singly = torch.stack([next(draw_gumbel(alone, 1, width, "cpu")) for _ in range(4)])
    assert torch.equal(together[:, 1], singly[:, 0])
    assert together.isfinite().all()


def test_gumbel_noise_is_gumbel():
    drawn = torch.cat(list(draw_gumbel(image_generators(1, 0), 100, 1000, "cpu")))
    assert abs(drawn.mean() - 0.5772) < 0.02  # Euler's constant; measured 0.0002 off
    assert abs(drawn.var() - torch.pi**2 / 6) < 0.05  # measured 0.0008 off


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": 1, "generator": Generator()}, "give seed or generator, not both"),
        ({"seed": [1, 2]}, "seed is a list of 2, but 3 images are to be drawn"),
        ({"generator": [Generator()]}, "generator is a list of 1, but 3 images are to be drawn"),
        ({"seed": -1}, "seed is -1; it must be a whole number"),
        ({"seed": 2**64}, r"seed is 18446744073709551616; .* from 0 to 18446744073709551615 \(2\^64 - 1\)"),
        ({"seed": True}, "seed is True; it must be a whole number"),
        ({"generator": 5}, "generator is 5; give a torch.Generator"),
        ({"generator": [5, Generator(), Generator()]}, "generator is 5; give a torch.Generator"),
        ({"seed": 1.5}, "seed is 1.5; it must be a whole number"),
        ({"seed": [1, 2, "x"]}, "seed is 'x'; it must be a whole number"),
    ],
)
def test_bad_seeds_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        image_generators(3, **arguments)
