"""Losses against torch and diffusers, draws against their distributions, and what a draw may depend on."""

import math
import random

import pytest
import torch
from diffusers.training_utils import compute_snr
from torch.nn import functional as F

from hybridgen import HybridGenDiffusionConfig
from hybridgen.core.layout import IGNORE
from hybridgen.core.noise import NoiseProcess, add_noise, target
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

LEVELS = (torch.arange(8) + 0.5) / 8
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


def one_by_one(latents, rows, noised, first, config, objective, levels, caps):
    """What `corrupt` gives, image after image: level and noise of the row's generator, then the process' own line."""
    process, kind = NoiseProcess.of(config), config.prediction_type
    generators, drawn_in, images = {row: row_generator(3, row) for row in rows}, dict.fromkeys(rows, 0), []
    for clean, row, is_drawn, is_first, cap in zip(latents, rows, noised, first, caps, strict=True):
        if not is_drawn:
            images.append((clean, torch.zeros_like(clean), process.timesteps(torch.zeros(()))))
            continue
        level = draw_noise_levels(1, objective, generators[row])[0]
        noise = torch.randn(clean.shape, generator=generators[row]).to(clean.dtype)
        level = level if levels is None else levels[(row + drawn_in[row]) % len(levels)]
        drawn_in[row] += 1
        cap = min(cap, objective.image_first_max_timestep) if is_first else cap
        level = level * cap / 1000 if is_first or cap < 1000 else level
        alpha, sigma = process.coefficients(process.timesteps(level[None]))
        noisy = add_noise(clean, noise, alpha.to(clean.dtype), sigma.to(clean.dtype))
        images.append((noisy, target(kind, clean, noise, alpha, sigma).to(clean.dtype), process.timesteps(level)))
    return images


@pytest.mark.parametrize("seed", range(20))
def test_images_are_noised_together_as_one_by_one(seed):
    """To the bit, of one size and of several, clean ones among them, on every process, in both dtypes."""
    rng = random.Random(seed)
    schedule = rng.choice(["flow", "cosine", "linear"])
    kind = rng.choice(["velocity" if schedule == "flow" else "v_prediction", "epsilon", "sample"])
    config = HybridGenDiffusionConfig(noise_schedule=schedule, prediction_type=kind)
    objective = ObjectiveConfig(
        timestep_sampling=rng.choice(["uniform", "logit_normal"]),
        timestep_shift=rng.choice([1.0, 3.0]),
        loss_weighting=rng.choice(["none", "velocity", "min_snr"]),
        image_first_max_timestep=rng.choice([1000.0, 500.0]),
    )
    count, dtype = rng.randint(1, 9), rng.choice([torch.float32, torch.bfloat16])
    sizes = [(rng.choice([4, 6, 16]), 5) if seed % 2 else (7, 5) for _ in range(count)]
    latents = [torch.randn(3, *size).to(dtype) for size in sizes]
    rows = sorted(rng.choice([40, 41, 42]) for _ in range(count))
    noised, first = ([rng.random() < share for _ in range(count)] for share in (0.7, 0.5))
    levels, caps = rng.choice([None, LEVELS]), [rng.choice([1000.0, 200.0]) for _ in range(count)]
    expected = one_by_one(latents, rows, noised, first, config, objective, levels, caps)
    given = latents if seed % 2 else torch.stack(latents)
    options = {"fixed_levels": levels, "max_timesteps": torch.tensor(caps)}
    in_batch = [row - 40 for row in rows]
    noisy, targets = draw(given, in_batch, [40, 41, 42], noised, first, config, objective, **options)
    assert isinstance(noisy, type(given))
    for image, value, timestep, (image_alone, value_alone, timestep_alone) in zip(
        noisy, targets.values, targets.timesteps, expected, strict=True
    ):
        assert image.dtype == value.dtype == dtype
        assert torch.equal(image, image_alone)
        assert torch.equal(value, value_alone)
        assert timestep == timestep_alone
    weights = loss_weights(targets.timesteps, NoiseProcess.of(config), kind, objective)
    assert torch.equal(targets.weights, weights * torch.tensor(noised))


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
        ({"router_weight": math.nan}, "objective.router_weight is nan; it must be a finite number"),
        ({"z_loss": math.inf}, "objective.z_loss is inf; it must be a finite number"),
        ({"image_first_max_timestep": 2000}, "image_first_max_timestep is 2000"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ObjectiveConfig(**settings)
