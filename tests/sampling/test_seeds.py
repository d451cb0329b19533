"""Seeds: every image has a stream of its own, whatever its neighbours."""

import pytest
import torch
from torch import Generator

from hybridgen.sampling.seeds import draw_gumbel, draw_noise, image_generators


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


def test_a_list_of_generators_is_used_as_it_is():
    given = [Generator().manual_seed(i) for i in (3, 1)]
    assert image_generators(2, generator=given) is given


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
        ({"seed": 1.5}, "seed is 1.5; it must be a whole number"),
        ({"seed": [1, 2, "x"]}, "seed is 'x'; it must be a whole number"),
    ],
)
def test_bad_seeds_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        image_generators(3, **arguments)
