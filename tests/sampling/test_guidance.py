"""Guidance: the formula, and what scale 1 means."""

import pytest
import torch
from transformers import ClassifierFreeGuidanceLogitsProcessor

from hybridgen.sampling.guidance import check_scale, guide, is_guided


def test_guided_logits_are_transformers():
    rows = torch.randn(6, 50)
    assert torch.equal(guide(rows, 3, 5.0, 0), ClassifierFreeGuidanceLogitsProcessor(5.0)(rows[:3], rows))


def test_one_row_an_image_is_left_alone():
    rows = torch.randn(3, 4)
    assert guide(rows, 3, 5.0, 0) is rows
    assert not is_guided(1)
    assert is_guided(0.0)
    assert is_guided(3)


def test_scales_by_image_and_by_step():
    rows = torch.randn(4, 3, 2, 2)
    conditional, unconditional = rows.chunk(2)
    guided = guide(rows, 2, lambda step: torch.tensor([0.0, 1.0]) + step, 0)
    assert torch.equal(guided[0], unconditional[0])
    torch.testing.assert_close(guided[1], conditional[1])
    torch.testing.assert_close(guide(rows, 2, lambda step: 1.0 * step, 1), conditional)


@pytest.mark.parametrize("scale", [-0.1, float("nan"), float("inf"), None, "3", True])
def test_a_scale_that_means_nothing_is_refused(scale):
    with pytest.raises(ValueError, match="guidance_scale is .*; it must be a number of at least 0"):
        check_scale(scale)
