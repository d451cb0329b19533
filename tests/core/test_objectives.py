"""Losses against torch and diffusers, draws against their distributions, and what a draw may depend on."""

import pytest
import torch
from diffusers.training_utils import compute_snr
from torch.nn import functional as F

from hybridgen import HybridGenDiffusionConfig
from hybridgen.core.layout import IGNORE
from hybridgen.core.noise import NoiseProcess
from hybridgen.core.objectives import (
    DiffusionTargets,
    ObjectiveConfig,
    corrupt,
    draw_noise_levels,
    image_losses,
    loss_weights,
    place_codes,
    predict_at,
    row_generator,
    shift_labels,
    sum_images,
    sum_tokens,
    total,
    z_loss,
)

FLOW = HybridGenDiffusionConfig()
COSINE = HybridGenDiffusionConfig(noise_schedule="cosine", prediction_type="epsilon")


def draw(latents, rows, numbers, noised=None, image_first=None, config=FLOW, objective=None, **options):
    count = len(latents)
    noised = torch.ones(count, dtype=torch.bool) if noised is None else torch.tensor(noised)
    image_first = torch.zeros(count, dtype=torch.bool) if image_first is None else torch.tensor(image_first)
    return corrupt(
        latents,
        noised,
        torch.tensor(rows),
        torch.tensor(numbers),
        image_first,
        config,
        objective or ObjectiveConfig(),
        seed=3,
        **options,
    )


def test_labels_shift_by_one():
    """Against `F.cross_entropy` of shifted logits and labels, as every language model has it."""
    logits = torch.randn(2, 9, 13, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(0, 13, (2, 9), generator=torch.Generator().manual_seed(1))
    labels[0, 3:6] = IGNORE
    keep, targets = shift_labels(labels)
    loss, count = sum_tokens(F.cross_entropy(logits[keep], targets, reduction="none"))
    flat = F.cross_entropy(
        logits[:, :-1].reshape(-1, 13), labels[:, 1:].reshape(-1), reduction="sum", ignore_index=IGNORE
    )
    assert (loss - flat).abs() < 1e-4
    assert count == (labels[:, 1:] != IGNORE).sum()
    assert torch.equal(keep, predict_at(labels))
    log_z = torch.logsumexp(logits[keep], -1)
    assert z_loss(log_z)[0] == log_z.square().sum()
    assert z_loss(log_z)[1] == count


def test_codes_are_placed_only_where_a_loss_is_wanted():
    code_labels = torch.tensor([[IGNORE, 0, 0, IGNORE, IGNORE]])
    is_code = torch.tensor([[False, True, True, True, False]])  # the last one belongs to an image that is only read
    assert place_codes(code_labels, torch.tensor([7, 8, 9]), is_code).tolist() == [[IGNORE, 7, 8, IGNORE, IGNORE]]


def test_noise_depends_on_seed_and_row_alone():
    """The same image in the same row of the run: whatever stands beside it, in whichever batch or rank."""
    images = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    together, targets = draw(images, [0, 1, 1], [40, 41])
    alone, alone_targets = draw(images[1:], [0, 0], [41])
    assert torch.equal(together[1:], alone)
    assert torch.equal(targets.timesteps[1:], alone_targets.timesteps)
    elsewhere, _ = draw(images[1:], [0, 0], [42])
    assert not torch.equal(alone, elsewhere)


def test_all_bits_of_a_seed_count():
    """torch's CPU streams are made of 32 bits."""
    seeds = [5, 5 + 2**32, 5 + 2**33, 2**63 - 1, 2**64 - 1, 2**32 - 1]
    drawn = {tuple(torch.randn(4, generator=row_generator(seed, 7)).tolist()) for seed in seeds}
    assert len(drawn) == len(seeds)


def test_images_that_are_read_stay_clean_and_carry_no_loss():
    images = torch.randn(2, 3, 8, 8)
    noisy, targets = draw(images, [0, 0], [0], noised=[False, True])
    assert torch.equal(noisy[0], images[0])
    assert targets.timesteps[0] == 0
    assert targets.weights[0] == 0
    loss, count = sum_images(image_losses(torch.randn(2, 3, 8, 8), targets), targets)
    assert count == 1
    assert loss > 0


LEVELS = (torch.arange(8) + 0.5) / 8


@pytest.mark.parametrize("clean", [0, 1, 2])
@pytest.mark.parametrize("rows", [1, 8])
def test_a_fixed_grid_is_over_the_drawn_images_alone(clean, rows):
    """Each level equally often, whatever number of clean images stands beside each that is drawn."""
    noised = [place == 0 for _ in range(16) for place in range(1 + clean)]
    images = torch.zeros(len(noised), 3, 4, 4)
    in_rows = [place * rows // len(noised) for place in range(len(noised))]
    _, targets = draw(images, in_rows, list(range(rows)), noised=noised, fixed_levels=LEVELS)
    drawn = targets.timesteps[torch.tensor(noised)] / 1000
    assert torch.equal(drawn.sort().values, LEVELS.repeat_interleave(2))
    assert (targets.timesteps[~torch.tensor(noised)] == 0).all()


def test_a_fixed_grid_does_not_depend_on_the_batch():
    """Rows of one image, read one by one, see all levels: as they do together."""
    images = torch.randn(16, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    together, targets = draw(images, list(range(16)), list(range(16)), fixed_levels=LEVELS)
    alone = [draw(images[row : row + 1], [0], [row], fixed_levels=LEVELS) for row in range(16)]
    assert torch.equal(torch.cat([noisy for noisy, _ in alone]), together)
    assert torch.equal(torch.cat([target.timesteps for _, target in alone]), targets.timesteps)
    assert torch.equal(targets.timesteps.sort().values, (LEVELS * 1000).repeat_interleave(2))


@pytest.mark.parametrize("config", [FLOW, COSINE])
def test_corruption_is_the_processes(config):
    """Noise recovered from (noisy, clean, target) is the same noise, of unit variance."""
    images = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    noisy, targets = draw(images, list(range(64)), list(range(64)), config=config)
    alpha, sigma = (c.view(-1, 1, 1, 1) for c in NoiseProcess.of(config).coefficients(targets.timesteps))
    noise = targets.values if config is COSINE else targets.values + images
    assert (alpha * images + sigma * noise - noisy).abs().max() < 1e-5
    assert abs(noise.std() - 1) < 0.02


def test_noise_cap_of_image_first_documents():
    """Transfusion, section 4.1: t <= 500 where the image stands before its caption."""
    images = torch.zeros(400, 3, 4, 4)
    first = [i % 2 == 0 for i in range(400)]
    objective = ObjectiveConfig(image_first_max_timestep=500)
    _, targets = draw(images, list(range(400)), list(range(400)), image_first=first, config=COSINE, objective=objective)
    first = torch.tensor(first)
    assert targets.timesteps[first].max() < 500
    assert targets.timesteps[first].max() > 480
    assert targets.timesteps[~first].max() > 900


def test_distributions_of_noise_levels():
    generator = torch.Generator().manual_seed(0)
    uniform = draw_noise_levels(20000, ObjectiveConfig(), generator)
    assert abs(uniform.mean() - 0.5) < 0.01
    normal = draw_noise_levels(20000, ObjectiveConfig(timestep_sampling="logit_normal", logit_mean=0.5), generator)
    assert abs(torch.logit(normal).mean() - 0.5) < 0.03
    shifted = draw_noise_levels(20000, ObjectiveConfig(timestep_shift=3.0), generator)
    assert abs(shifted.median() - 0.75) < 0.01  # 3 * 0.5 / (1 + 2 * 0.5)


@pytest.mark.parametrize(
    ("kind", "divisor"),
    [("epsilon", lambda snr: snr), ("v_prediction", lambda snr: snr + 1), ("sample", lambda snr: 1)],
)
def test_min_snr_weights_equal_diffusers_formula(kind, divisor):
    process = NoiseProcess("cosine")
    scheduler = process.default_scheduler(kind)
    timesteps = torch.arange(10, 990, 10)
    snr = compute_snr(scheduler, timesteps)
    oracle = torch.minimum(snr, torch.tensor(5.0)) / divisor(snr)
    ours = loss_weights(timesteps, process, kind, ObjectiveConfig(loss_weighting="min_snr", max_weight=1e9))
    assert (ours / oracle - 1).abs().max() < 1e-3


def test_velocity_weighting_makes_every_prediction_cost_the_same():
    """A wrong x0 costs what the velocity it implies would have cost."""
    process = NoiseProcess("flow")
    timesteps = torch.tensor([200.0, 500.0, 900.0])
    alpha, sigma = process.coefficients(timesteps)
    objective = ObjectiveConfig(loss_weighting="velocity", max_weight=1e9)
    sample = loss_weights(timesteps, process, "sample", objective)
    epsilon = loss_weights(timesteps, process, "epsilon", objective)
    assert torch.allclose(sample, 1 / sigma**2)
    assert torch.allclose(epsilon, 1 / alpha**2)
    assert torch.allclose(loss_weights(timesteps, process, "velocity", objective), torch.ones(3))


def test_a_list_of_sizes_costs_what_each_costs_alone():
    sizes = [(8, 8), (4, 12)]
    prediction = [torch.randn(3, *size) for size in sizes]
    values = [torch.randn(3, *size) for size in sizes]
    targets = DiffusionTargets(values, torch.tensor([1.0, 2.0]), torch.zeros(2))
    loss, count = sum_images(image_losses(prediction, targets), targets)
    expected = F.mse_loss(prediction[0], values[0]) + 2 * F.mse_loss(prediction[1], values[1])
    assert (loss - expected).abs() < 1e-5
    assert count == 2


def test_total_divides_each_loss_by_its_own_count():
    losses = {"text": (torch.tensor(6.0), torch.tensor(3.0)), "diffusion": (torch.tensor(5.0), torch.tensor(0.0))}
    counts = {"text": torch.tensor(4.0), "diffusion": torch.tensor(0.0)}
    assert total(losses, counts, {"text": 1.0, "diffusion": 5.0}) == 6 / 4 + 25


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"diffusion_weight": -1}, "diffusion_weight is -1"),
        ({"timestep_sampling": "normal"}, "timestep_sampling is 'normal'"),
        ({"loss_weighting": "snr"}, "loss_weighting is 'snr'"),
        ({"timestep_shift": 0}, "timestep_shift"),
        ({"image_first_max_timestep": 2000}, "image_first_max_timestep is 2000"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ObjectiveConfig(**settings)
