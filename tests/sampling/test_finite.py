"""Numbers that are not finite end in a sentence with path and step, by every way in, and not in a black picture."""

import pytest
import torch
from PIL import Image

from hybridgen.sampling.codes import CodeSampling, write_codes
from hybridgen.sampling.decoder import Decoder
from hybridgen.sampling.finite import read_tokens
from hybridgen.sampling.seeds import image_generators
from tests.models import tiny_model
from tests.pipelines import tiny_pipeline
from tests.sampling.prompts import PROMPTS, prefix_of

HEADS = {"diffusion": "final_layer", "vq": "generation_head", "text": "lm_head"}


def pipeline_with(value: float, head: str):
    pipe = tiny_pipeline()
    for name, parameter in pipe.model.named_parameters():
        if HEADS[head] in name:
            parameter.data.flatten()[:1] = value
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("path", "settings", "steps"),
    [
        ("diffusion", {"num_inference_steps": 3}, 3),
        ("diffusion", {"num_inference_steps": 3, "guidance_scale": 1.0}, 3),
        ("vq", {}, "[0-9]+"),
        ("vq", {"window": 4, "temperature": 0.0}, "[0-9]+"),
    ],
)
def test_a_picture_of_broken_weights_is_refused(value, path, settings, steps):
    pipe = pipeline_with(value, path)
    message = f"the {path} path came to numbers that are not finite at step 1 of {steps}; load the model in float32"
    for draw in (
        lambda: pipe("an orc", path=path, seed=0, **settings),
        lambda: list(pipe.stream([{"role": "user", "content": "an orc"}], path=path, plan=["image"], **settings)),
    ):
        with pytest.raises(ValueError, match=message):
            draw()


def test_a_text_of_broken_weights_is_refused():
    pipe, picture = pipeline_with(float("nan"), "text"), Image.new("RGB", (16, 16))
    message = "the text came to numbers that are not finite at token 1; load the model in float32"
    with pytest.raises(ValueError, match=message):
        pipe.answer(picture, "what is it?", max_new_tokens=3)
    with pytest.raises(ValueError, match=message):
        list(pipe.stream([{"role": "user", "content": "hello"}], plan=["text"], max_new_tokens=3))


@pytest.mark.parametrize(("path", "scale"), [("diffusion", 1e300), ("vq", 1e39)])
def test_guidance_that_no_number_holds_is_named_as_a_cause(path, scale):
    with pytest.raises(ValueError, match="not finite at step 1 of .*, guide less if guidance_scale is huge, else"):
        tiny_pipeline()("an orc", path=path, guidance_scale=scale, seed=0)


def test_the_step_is_the_first_that_is_not_finite():
    pipe = tiny_pipeline()
    pipe.set_progress_bar_config(disable=True)

    def spoil(pipe, step, timestep, tensors):
        return {"latents": tensors["latents"] * (float("inf") if step == 1 else 1)}

    with pytest.raises(ValueError, match="the diffusion path .* not finite at step 3 of 5"):
        pipe("an orc", path="diffusion", num_inference_steps=5, callback_on_step_end=spoil)


@pytest.mark.parametrize("window", [1, 4])
def test_the_code_is_the_first_that_is_not_finite(window):
    """A guess that was not finite and is not taken counts for nothing."""
    model = tiny_model()
    decoder, calls = Decoder(model), []

    class Spoiled:
        continue_from = decoder.continue_from

        def code_logits(self, states):
            calls.append(states.shape)
            logits = decoder.code_logits(states).clone()
            if len(calls) == 3:
                logits[:, 0, 7] = float("nan")
            return logits

    sampling = CodeSampling(temperature=0)
    with pytest.raises(ValueError, match="the vq path .* not finite at step [0-9]+ of 16") as raised:
        write_codes(
            model, prefix_of(model, PROMPTS[:1]), 16, image_generators(1, 0), sampling, decoder=Spoiled(), window=window
        )
    assert window > 1 or "step 3 of" in str(raised.value)


def test_suppressed_tokens_are_no_fault():
    logits = torch.tensor([[-torch.inf, 0.5, -torch.inf], [1.0, -torch.inf, 2.0]])
    assert read_tokens(logits.argmax(-1), logits, 1) == [1, 2]
    logits[1, 0] = torch.nan
    with pytest.raises(ValueError, match="the text .* at token 7"):
        read_tokens(logits.argmax(-1), logits, 7)
