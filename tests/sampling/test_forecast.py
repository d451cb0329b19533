"""Predictions forecast between denoising steps: what is computed, what is forecast, and what stays the same."""

import pytest
import torch

from hybridgen.sampling import decoder, tasks
from hybridgen.sampling.forecast import Forecast
from tests.pipelines import tiny_pipeline

PROMPTS = ["a red circle", "draw a blue square " * 6]


def computed(every: int, steps: int, kinds=lambda step: True) -> list[int]:
    """The steps that are, each with its own number as the prediction."""
    forecast, made = Forecast(every, steps), []
    for step in range(steps):
        predicted = forecast.at(step, kinds(step))
        if predicted is None:
            made.append(step)
            forecast.add(step, torch.tensor(5.0 - 3 * step))
        else:
            assert predicted == 5 - 3 * step  # a straight line goes on
    return made


def test_which_steps_are_computed():
    assert computed(1, 5) == [0, 1, 2, 3, 4]
    assert computed(2, 8) == [0, 1, 3, 5, 7]
    assert computed(2, 9) == [0, 1, 3, 5, 7, 8]  # the last always
    assert computed(3, 12) == [0, 1, 4, 7, 10, 11]
    assert computed(9, 6) == [0, 1, 5]
    assert [computed(4, steps) for steps in (1, 2, 3)] == [[0], [0, 1], [0, 1, 2]]
    assert computed(3, 12, lambda step: step < 6) == [0, 1, 4, 6, 7, 10, 11]  # where guidance ends the line begins anew


def drawn(pipe, monkeypatch, prompts=PROMPTS[0], **settings):
    """The latents, and how many forwards of the backbone they took."""
    reads, original = [], decoder.read_together
    monkeypatch.setitem(tasks._TOGETHER, decoder.Read, lambda some: (reads.append(1), original(some))[1])
    images = pipe(prompts, path="diffusion", num_inference_steps=8, seed=1, output_type="latent", **settings).images
    return images, len(reads)


@pytest.mark.parametrize("guidance", [{"guidance_scale": 1.0}, {"guidance_scale": 3.0, "guidance_interval": (0, 0.5)}])
def test_a_picture_takes_fewer_forwards_and_is_nearly_the_same(monkeypatch, guidance):
    pipe = tiny_pipeline()
    exact, all_steps = drawn(pipe, monkeypatch, **guidance)
    assert torch.equal(drawn(pipe, monkeypatch, forecast=1, **guidance)[0], exact)
    near, fewer = drawn(pipe, monkeypatch, forecast=2, **guidance)
    assert (all_steps, fewer) == (8, 5 if guidance["guidance_scale"] == 1 else 6)
    assert 0 < (near - exact).norm() / exact.norm() < 0.02  # measured 0.002
    with pytest.raises(ValueError, match="forecast is 0"):
        pipe(PROMPTS, path="diffusion", forecast=0)


def test_it_is_the_same_beside_others_and_recorded(monkeypatch):
    pipe = tiny_pipeline()
    both, _ = drawn(pipe, monkeypatch, PROMPTS, forecast=3, guidance_scale=2.0)
    for number, prompt in enumerate(PROMPTS):
        options = {"num_inference_steps": 8, "seed": 1 + number, "output_type": "latent"}
        assert torch.equal(
            pipe(prompt, path="diffusion", forecast=3, guidance_scale=2.0, **options).images[0], both[number]
        )
    assert pipe.drawing_setup("diffusion", forecast=3).settings["forecast"] == 3
    chat = pipe.chat(plan=["image"], forecast=3)
    given = {"path": "diffusion", "seed": 1, "guidance_scale": 2.0, "num_inference_steps": 8}
    assert chat.draw(PROMPTS[0], **given).tobytes() == pipe(PROMPTS[0], forecast=3, **given).images[0].tobytes()
