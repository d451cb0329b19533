"""The noise convention against diffusers' schedulers on their own grids."""

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

from hybridgen.core.noise import NoiseProcess, add_noise, clean_and_noise, convert, target

PREDICTIONS = {
    "flow": ("velocity", "epsilon", "sample"),
    "cosine": ("v_prediction", "epsilon", "sample"),
    "linear": ("v_prediction", "epsilon", "sample"),
}
BETAS = {"cosine": "squaredcos_cap_v2", "linear": "linear"}


def pair(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, 4, 4, generator=generator), torch.randn(count, 3, 4, 4, generator=generator)


def broadcast(coefficients):
    return tuple(c.view(-1, 1, 1, 1) for c in coefficients)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_corruption_equals_ddpm_at_every_timestep(schedule):
    clean, noise = pair(1000)
    timesteps = torch.arange(1000)
    oracle = DDPMScheduler(beta_schedule=BETAS[schedule]).add_noise(clean, noise, timesteps)
    ours = add_noise(clean, noise, *broadcast(NoiseProcess(schedule).coefficients(timesteps)))
    assert (ours - oracle).abs().max() < 1e-6  # measured 0


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_v_target_equals_diffusers_velocity(schedule):
    clean, noise = pair(50)
    timesteps = torch.arange(0, 1000, 20)
    oracle = DDPMScheduler(beta_schedule=BETAS[schedule]).get_velocity(clean, noise, timesteps)
    ours = target("v_prediction", clean, noise, *broadcast(NoiseProcess(schedule).coefficients(timesteps)))
    assert (ours - oracle).abs().max() < 1e-6


def test_corruption_equals_flow_matching_on_its_grid():
    scheduler = FlowMatchEulerDiscreteScheduler()
    clean, noise = pair(1000)
    oracle = scheduler.scale_noise(clean, scheduler.timesteps, noise)
    ours = add_noise(clean, noise, *broadcast(NoiseProcess("flow").coefficients(scheduler.timesteps)))
    assert (ours - oracle).abs().max() < 1e-6  # measured 2e-7


@pytest.mark.parametrize("schedule", PREDICTIONS)
def test_predictions_convert_into_each_other(schedule):
    process = NoiseProcess(schedule)
    clean, noise = pair(5)
    alpha, sigma = broadcast(process.coefficients(process.timesteps(torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9]))))
    noisy = add_noise(clean, noise, alpha, sigma)
    for kind in PREDICTIONS[schedule]:
        prediction = target(kind, clean, noise, alpha, sigma)
        implied = clean_and_noise(kind, prediction, noisy, alpha, sigma)
        assert (implied[0] - clean).abs().max() < 2e-5  # measured 6e-6, epsilon at t = 0.9
        assert (implied[1] - noise).abs().max() < 2e-5
        for wanted in PREDICTIONS[schedule]:
            expected = target(wanted, clean, noise, alpha, sigma)
            assert (convert(kind, wanted, prediction, noisy, alpha, sigma) - expected).abs().max() < 2e-5


def test_a_clean_image_is_read_at_timestep_zero():
    alpha, sigma = NoiseProcess("flow").coefficients(torch.zeros(1))
    assert (alpha.item(), sigma.item()) == (1, 0)


@pytest.mark.parametrize("schedule", PREDICTIONS)
def test_default_scheduler_is_of_the_same_process(schedule):
    scheduler = NoiseProcess(schedule).default_scheduler("epsilon")
    if schedule == "flow":
        assert isinstance(scheduler, FlowMatchEulerDiscreteScheduler)
    else:
        alpha, _ = NoiseProcess(schedule).coefficients(torch.arange(1000))
        assert torch.equal(scheduler.alphas_cumprod.sqrt(), alpha)
