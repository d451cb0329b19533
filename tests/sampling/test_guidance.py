"""Guidance: diffusers' guiders and transformers' processor as oracles, what a scale of 1 means, and what is refused."""

from functools import partial

import pytest
import torch
from diffusers.guiders import (
    AdaptiveProjectedGuidance,
    ClassifierFreeGuidance,
    ClassifierFreeZeroStarGuidance,
    TangentialClassifierFreeGuidance,
)
from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer
from transformers import ClassifierFreeGuidanceLogitsProcessor

from hybridgen.sampling.guidance import Guidance, Guide, check_scale, is_guided
from tests.sampling.prompts import worst

IMAGES, STEPS = 3, 6
GUIDERS = {
    "cfg": ClassifierFreeGuidance(4.0),
    "cfg, rescaled": ClassifierFreeGuidance(4.0, guidance_rescale=0.7),
    "cfg, for a while": ClassifierFreeGuidance(4.0, start=0.2, stop=0.7),
    "cfg, original": ClassifierFreeGuidance(4.0, use_original_formulation=True),
    "cfg, disabled": ClassifierFreeGuidance(4.0, enabled=False),
    "apg": AdaptiveProjectedGuidance(4.0, eta=0.3),
    "apg, momentum": AdaptiveProjectedGuidance(4.0, -0.5, adaptive_projected_guidance_rescale=2.0, eta=0.0),
    "apg, momentum, late": AdaptiveProjectedGuidance(4.0, -0.75, start=0.4, guidance_rescale=0.5),
    "zero star": ClassifierFreeZeroStarGuidance(4.0, zero_init_steps=0),
    "zero star, from zero": ClassifierFreeZeroStarGuidance(4.0, zero_init_steps=2),
    "zero star, original": ClassifierFreeZeroStarGuidance(4.0, zero_init_steps=1, use_original_formulation=True),
}


def rows_of_steps(rows: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(rows)
    return [torch.randn(rows * IMAGES, 3, 4, 4, generator=generator) + 0.3 for _ in range(STEPS)]


@pytest.mark.parametrize("name", GUIDERS)
def test_guidance_is_that_of_diffusers_guiders(name):
    """Over all steps, as momentum and intervals go over steps."""
    theirs, ours = GUIDERS[name], Guide(Guidance.of(GUIDERS[name]), IMAGES, STEPS)
    if getattr(theirs, "adaptive_projected_guidance_momentum", None) is not None:
        theirs.momentum_buffer = MomentumBuffer(theirs.adaptive_projected_guidance_momentum)
    for step, rows in enumerate(rows_of_steps()):
        theirs.set_state(step, STEPS, None)
        expected = theirs.forward(*rows.chunk(2)).pred
        assert worst(ours(rows, step), expected) < 5e-6  # of values up to 30; measured 1e-6


@pytest.mark.parametrize("name", GUIDERS)
def test_an_image_is_guided_alike_alone_and_beside_others(name):
    guidance = Guidance.of(GUIDERS[name])
    together, alone = Guide(guidance, IMAGES, STEPS), [Guide(guidance, 1, STEPS) for _ in range(IMAGES)]
    for step, rows in enumerate(rows_of_steps()):
        made = together(rows, step)
        for i in range(IMAGES):
            assert torch.equal(made[i], alone[i](rows[[i, IMAGES + i]], step)[0])


def test_guided_logits_are_transformers():
    rows = torch.randn(6, 50)
    assert torch.equal(Guide(5.0, 3)(rows, 0), ClassifierFreeGuidanceLogitsProcessor(5.0)(rows[:3], rows))


def test_three_rows_are_instruct_pix2pix():
    full, without, nothing = (rows := rows_of_steps(3)[0]).chunk(3)
    made = Guide(Guidance(7.5, 1.5), IMAGES)(rows, 0)
    expected = nothing + 1.5 * (without - nothing) + 7.5 * (full - without)
    assert worst(made, expected) < 1e-5  # measured 2e-6
    two = Guide(Guidance(7.5, 1.0), IMAGES)(rows[: 2 * IMAGES], 0)
    assert worst(Guide(Guidance(7.5, 1.0), IMAGES)(rows, 0), two) == 0
    neither = Guide(Guidance(7.5, 7.5), IMAGES)(rows, 0)  # one scale for both: prompt and image against neither
    assert worst(neither, nothing + 7.5 * (full - nothing)) < 2e-5  # measured 4e-6


def test_rows_that_count():
    assert [Guidance(scale, image).rows for scale, image in ((1, 1), (3, 1), (1, 2.0), (3.0, 0.5))] == [1, 2, 3, 3]
    assert Guidance(torch.tensor([1.0, 1.0])).rows == 1
    assert Guidance(torch.tensor([1.0, 2.0])).rows == 2
    on = Guide(Guidance(3.0, start=0.25, stop=0.75), IMAGES, 8)
    assert [on.is_on(step) for step in range(8)] == [False, False, True, True, True, True, False, False]


def test_one_row_per_image_is_left_alone():
    rows = torch.randn(3, 4)
    assert torch.equal(Guide(5.0, 3)(rows, 0), rows)
    assert not is_guided(1)
    assert is_guided(0.0)
    assert is_guided(3)


def test_scales_by_image_and_by_step():
    rows = torch.randn(4, 3, 2, 2)
    conditional, unconditional = rows.chunk(2)
    guided = Guide(lambda step: torch.tensor([0.0, 1.0]) + step, 2)(rows, 0)
    assert torch.equal(guided[0], unconditional[0])
    torch.testing.assert_close(guided[1], conditional[1])
    torch.testing.assert_close(Guide(lambda step: 1.0 * step, 2, steps=2)(rows, 1), conditional)


@pytest.mark.parametrize("method", ["cfg", "apg", "zero_star"])
def test_a_scale_for_each_image(method):
    rows, scales = rows_of_steps()[0], [0.5, 2.0, 7.0]
    made = Guide(Guidance(torch.tensor(scales), method=method, eta=0.2, guidance_rescale=0.3), IMAGES)(rows, 0)
    for i, scale in enumerate(scales):
        alone = Guide(Guidance(scale, method=method, eta=0.2, guidance_rescale=0.3), 1)(rows[[i, IMAGES + i]], 0)
        assert torch.equal(made[i], alone[0])


def test_rescaling_a_velocity_of_zero_stays_zero():
    """diffusers' divides by its deviation, and draws nothing at all from there on."""
    made = Guide(Guidance(3.0, method="zero_star", zero_init_steps=1, guidance_rescale=0.5), IMAGES)
    assert made(rows_of_steps()[0], 0).abs().max() == 0


def test_rescaling_predictions_without_deviation_is_finite():
    """As a model predicts whose last layer is still zero."""
    made = Guide(Guidance(3.0, guidance_rescale=0.5), IMAGES)(torch.zeros_like(rows_of_steps()[0]), 0)
    assert made.abs().max() == 0


@pytest.mark.parametrize("scale", [-0.1, float("nan"), float("inf"), None, "3", True])
def test_a_scale_that_means_nothing_is_refused(scale):
    for check in (partial(check_scale, "guidance_scale"), Guidance):
        with pytest.raises(ValueError, match="guidance_scale is .*; it must be a number of at least 0"):
            check(scale)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"guidance_rescale": 1.5}, "guidance_rescale is 1.5; it must be a number from 0 to 1"),
        ({"start": 0.6, "stop": 0.5}, "guidance stop is 0.5; it must be a number from 0.6 to 1"),
        ({"start": -0.1}, "guidance start is -0.1"),
        ({"method": "pag"}, "guidance method is 'pag'; it must be one of 'cfg', 'apg', 'zero_star'"),
        ({"momentum": float("nan")}, "guidance momentum is nan"),
        ({"zero_init_steps": -1}, "zero_init_steps is -1; it must be a whole number"),
        ({"image_scale": -1.0}, "image_guidance_scale is -1.0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Guidance(3.0, **settings)


def test_guiders_that_do_not_fit_are_refused():
    with pytest.raises(
        ValueError, match="TangentialClassifierFreeGuidance cannot guide here; use one of ClassifierFree"
    ):
        Guidance.of(TangentialClassifierFreeGuidance())
    with pytest.raises(ValueError, match="AdaptiveProjectedGuidance with use_original_formulation is not supported"):
        Guidance.of(AdaptiveProjectedGuidance(use_original_formulation=True))
    from_zero = Guidance(3.0, method="zero_star", zero_init_steps=1)
    from_zero.check_path("diffusion", "flow")
    for path, schedule, where in (("vq", "flow", "codes"), ("diffusion", "cosine", "noise_schedule 'cosine'")):
        with pytest.raises(ValueError, match=f"flow matching only and not with {where}; set it to 0"):
            from_zero.check_path(path, schedule)
    with pytest.raises(ValueError, match="guidance by apg knows no image_guidance_scale"):
        Guidance(3.0, method="apg").check_rows(3)
