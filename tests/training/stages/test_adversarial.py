"""The adversarial term: VQGAN's weight recomputed by hand, a second optimizer, and a state that is whole."""

import copy
import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hybridgen.training.config import strict
from hybridgen.training.config.codec import AdversarialConfig
from hybridgen.training.config.schema import TrainConfig
from hybridgen.training.distributed.processes import make_accelerator
from hybridgen.training.stages.adversarial import Adversary, PatchDiscriminator
from tests.training.toy import config_of


def adversary(folder: Path, accumulation: int = 1, clip: float | None = None, **settings):
    config = config_of(folder, accumulation=accumulation, clip=clip, schedule={"name": "constant", "warmup_steps": 0})
    torch.manual_seed(0)
    decoder = nn.Conv2d(4, 3, 3, padding=1)  # the last layer of one
    settings = AdversarialConfig(channels=8, layers=2, **{"weight": 0.5, **settings})
    return Adversary(settings, config, decoder.weight, make_accelerator(config)), decoder


def batch(number: int, count: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(number)
    return torch.randn(count, 4, 16, 16, generator=generator), torch.rand(count, 3, 16, 16, generator=generator) * 2 - 1


def step(judge: Adversary, decoder: nn.Module, number: int, parts: int = 1) -> list[dict]:
    """One step's losses, its batch in so many parts, with the codec's own backward."""
    judge.begin_step(number, number / 10)
    made = []
    for features, pictures in zip(*(each.chunk(parts) for each in batch(number)), strict=True):
        decoded = decoder(features)
        errors = (decoded - pictures).abs().flatten(1).mean(1)
        losses = judge.losses(decoded, pictures, errors, training=True)
        (errors + judge.weight * losses["adversarial"]).sum().backward()
        made.append({name: value.detach() for name, value in losses.items()})
    return made


def test_shapes_and_the_least_picture():
    for layers in (1, 2, 3):
        side = AdversarialConfig(layers=layers).smallest_side
        assert PatchDiscriminator(8, layers)(torch.zeros(2, 3, side, side)).shape == (2, 1, 1, 1)
        with pytest.raises(RuntimeError):
            PatchDiscriminator(8, layers)(torch.zeros(2, 3, side - 1, side - 1))
    assert PatchDiscriminator(64, 3)(torch.zeros(1, 3, 256, 256)).shape == (1, 1, 30, 30)  # as in VQGAN
    counted = sum(each.numel() for each in PatchDiscriminator(64, 3).parameters())
    assert counted == 2_765_633  # pix2pix's 70x70 discriminator, its normalisation with scale and shift


def test_the_losses_are_hinge_losses(tmp_path):
    judge, decoder = adversary(tmp_path)
    judge.begin_step(0, 0.0)
    features, pictures = batch(0)
    decoded = decoder(features)
    losses = judge.losses(decoded, pictures, torch.zeros(4) * decoded.sum(), training=False)
    with torch.no_grad():
        real, made = judge.discriminator(pictures).flatten(1), judge.discriminator(decoded).flatten(1)
    torch.testing.assert_close(losses["adversarial"], -made.mean(1))
    hinge = (torch.clamp(1 - real, min=0) + torch.clamp(1 + made, min=0)).mean(1) / 2
    torch.testing.assert_close(losses["discriminator"], hinge)


def test_the_weight_is_vqgans_ratio_of_gradients_measured_in_the_step_before(tmp_path):
    judge, decoder = adversary(tmp_path)
    before = copy.deepcopy(judge.discriminator)
    step(judge, decoder, 0)
    assert judge.weight == 0  # nothing is measured yet
    judge.begin_step(1, 0.1)
    features, pictures = batch(0)
    decoded = decoder(features)
    (of_errors,) = torch.autograd.grad((decoded - pictures).abs().mean(), decoder.weight, retain_graph=True)
    (of_term,) = torch.autograd.grad(-before(decoded).mean(), decoder.weight)
    expected = of_errors.norm() / (of_term.norm() + 1e-4)
    assert judge.weight == pytest.approx(0.5 * float(expected), rel=1e-4)  # measured 3e-9


def test_without_adaptation_the_weight_is_the_configs(tmp_path):
    judge, decoder = adversary(tmp_path, adaptive=False, start=2)
    for number, expected in enumerate((0.0, 0.0, 0.5, 0.5)):
        losses = step(judge, decoder, number)[0]
        assert judge.weight == expected
        assert bool(losses["discriminator"].any()) == (number >= 2)


def test_the_codecs_loss_does_not_move_the_discriminator_nor_the_other_way(tmp_path):
    """Against torch: Adam on the gradient of the mean hinge loss, of the discriminator alone."""
    judge, decoder = adversary(tmp_path, clip=0.01, lr=0.01, betas=[0.5, 0.9], adaptive=False)
    twin = copy.deepcopy(judge.discriminator)
    decoder_twin = copy.deepcopy(decoder)
    optimizer = torch.optim.Adam(twin.parameters(), lr=0.01, betas=(0.5, 0.9))
    for number in range(2):
        losses = step(judge, decoder, number)
        features, pictures = batch(number)
        decoded = decoder_twin(features)
        errors = (decoded - pictures).abs().flatten(1).mean(1)
        decoder_twin.zero_grad()
        (errors - 0.5 * twin(decoded).flatten(1).mean(1)).sum().backward()
        torch.testing.assert_close(decoder.weight.grad, decoder_twin.weight.grad)
        decoder.zero_grad()
        judge.begin_step(number + 1, 0.0)
        optimizer.zero_grad()
        hinge = (F.relu(1 - twin(pictures)).mean() + F.relu(1 + twin(decoded.detach())).mean()) / 2
        assert float(losses[0]["discriminator"].mean()) == pytest.approx(hinge.item(), rel=1e-5)
        hinge.backward()
        nn.utils.clip_grad_norm_(twin.parameters(), 0.01)
        optimizer.step()
        for ours, theirs in zip(judge.discriminator.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)  # measured 0


def test_a_batch_in_two_parts_is_the_same_batch(tmp_path):
    whole, decoder = adversary(tmp_path)
    halves, decoder_of_halves = adversary(tmp_path, accumulation=2)
    for number in range(3):
        step(whole, decoder, number)
        step(halves, decoder_of_halves, number, parts=2)
        assert whole.weight == pytest.approx(halves.weight, rel=1e-4)  # measured 3e-7
    assert whole.weight > 0
    for ours, theirs in zip(whole.discriminator.parameters(), halves.discriminator.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)  # measured 2e-7


def test_the_state_is_all_that_the_next_step_depends_on(tmp_path):
    judge, decoder = adversary(tmp_path)
    for number in range(3):
        step(judge, decoder, number)
    state = copy.deepcopy(judge.state_dict())
    expected = [step(judge, decoder, number) for number in (3, 4)]
    other, its_decoder = adversary(tmp_path)
    other.load_state_dict(state)
    made = [step(other, its_decoder, number) for number in (3, 4)]
    for ours, theirs in zip(made, expected, strict=True):
        assert all(torch.equal(ours[0][name], theirs[0][name]) for name in ours[0])
    assert other.weight == judge.weight


def test_gradients_that_are_not_finite_change_nothing(tmp_path):
    judge, decoder = adversary(tmp_path)
    step(judge, decoder, 0)
    judge.begin_step(1, 0.1)
    before, weight = copy.deepcopy(judge.discriminator.state_dict()), judge.weight
    features, pictures = batch(1)
    decoded = decoder(features) * math.nan
    judge.losses(decoded, pictures, decoded.flatten(1).mean(1), training=True)
    judge.begin_step(2, 0.2)
    assert all(torch.equal(value, before[name]) for name, value in judge.discriminator.state_dict().items())
    assert judge.weight == weight


def test_settings_are_read():
    content = {"output_dir": "none", "steps": 4, "data": {"sources": []}, "stage": "codec"}
    content["vae"] = {"config": {}, "image_size": 16, "adversarial": {"weight": 1, "start": 2}}
    assert strict.build(TrainConfig, content).vae.adversarial == AdversarialConfig(weight=1.0, start=2)
