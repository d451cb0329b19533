"""Edits: a region is redrawn, all else stays to the pixel; against plain loops, and what must not matter."""

import warnings

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from PIL import Image
from torch import Generator

from hybridgen.configuration_hybridgen import HybridGenDiffusionConfig
from hybridgen.core.noise import convert
from hybridgen.image_processing_hybridgen import to_range
from hybridgen.sampling.codes import CodeWriting
from hybridgen.sampling.denoise import denoise, prepare
from hybridgen.sampling.edits import Known
from hybridgen.sampling.tasks import events_of, run
from hybridgen.serving.drawing import PictureCall
from tests.pipelines import tiny_pipeline, tiny_vae
from tests.sampling.prompts import worst
from tests.test_pipeline_hybridgen import before, layouts, picture

PROMPT = "a red circle on a blue square"
FAST = {"num_inference_steps": 3, "guidance_scale": 2.0, "seed": 3}
PATHS = ("diffusion", "vq")
PICTURE = picture(0)
HOLE = np.zeros((16, 16), bool)
HOLE[5:10, 2:9] = True  # no whole cells of 4x4 pixels
MASK = Image.fromarray(HOLE)
WHITE, BLACK = Image.new("L", (16, 16), 255), Image.new("L", (16, 16))
EDIT = {"edit_image": PICTURE, "mask_image": MASK}


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


@pytest.fixture(scope="module", params=["pixels", "vae"])
def any_pipe(request, pipe):
    return pipe if request.param == "pixels" else tiny_pipeline(tiny_vae())


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image)


def as_levels(image: Image.Image) -> torch.Tensor:
    """(1, 3, H, W) of 8 bits."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]


# ------------------------------------------------------------------------------------------------------------ oracles


@pytest.mark.parametrize("path", PATHS)
def test_all_is_redrawn_or_nothing(any_pipe, path):
    """White is a picture drawn without another, to the bit; black gives the picture back, and says so."""
    call = {**FAST, "path": path}
    plain = any_pipe(PROMPT, **call).images[0]
    assert any_pipe(PROMPT, edit_image=PICTURE, mask_image=WHITE, **call).images[0].tobytes() == plain.tobytes()
    with pytest.warns(UserWarning, match="mask_image is black all over, so nothing of edit_image is redrawn"):
        back = any_pipe(PROMPT, edit_image=PICTURE, mask_image=BLACK, **call).images[0]
    assert back.tobytes() == PICTURE.tobytes()
    edited = any_pipe(PROMPT, **EDIT, **call).images[0]
    assert (pixels(edited) == pixels(PICTURE))[~HOLE].all()
    assert (pixels(edited) != pixels(PICTURE))[HOLE].any()
    assert (pixels(edited) != pixels(plain))[HOLE].any()  # what stays is seen


def test_a_region_is_that_of_the_plain_loop(pipe):
    """Denoising by hand, the known part put in its place at each level of the first noise."""
    made = pipe(PROMPT, **EDIT, seed=3, num_inference_steps=5, guidance_scale=1.0, output_type="latent").images
    layout, hole = layouts(pipe, PROMPT, "diffusion"), torch.from_numpy(HOLE)
    clean = to_range(as_levels(PICTURE))[0]
    noise = torch.randn(3, 16, 16, generator=Generator().manual_seed(3))
    x = noise
    with torch.no_grad():
        for step in range(5):
            s = 1 - step / 5
            told = {"latents": x[None], "timesteps": torch.tensor([1000 * s])}
            x = x - pipe.model(**layout, **told).prediction[0] / 5
            x = torch.where(hole, x, (1 - (s - 0.2)) * clean + (s - 0.2) * noise)
    assert worst(made[0], x) < 1e-4  # of values up to 4; measured 1e-6
    assert worst(made[0][:, ~hole], clean[:, ~hole]) == 0


def test_codes_are_those_of_the_plain_loop_between_known_ones(pipe):
    made = pipe(PROMPT, **EDIT, path="vq", temperature=0, guidance_scale=1.0, output_type="latent").images
    known = pipe.vq_codec.encode(as_levels(PICTURE))
    redrawn = torch.tensor([place in (4, 5, 6, 8, 9, 10) for place in range(16)])  # cells that the hole touches
    layout, codes = layouts(pipe, PROMPT, "vq"), known.clone()
    with torch.no_grad():
        for place in redrawn.nonzero().flatten().tolist():
            keep = {"codes": codes, "codes_to_keep": before(layout["input_ids"], place)}
            codes[place] = pipe.model(**layout, **keep).code_logits.argmax()
    assert torch.equal(made[0].flatten(), codes)
    assert not torch.equal(codes, known)


AS_FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
COSINE = {"beta_schedule": "squaredcos_cap_v2"}
SCHEDULERS = {
    "flow": {
        "euler": FlowMatchEulerDiscreteScheduler(shift=3.0), "heun": FlowMatchHeunDiscreteScheduler(),
        "dpm++": DPMSolverMultistepScheduler(**AS_FLOW), "unipc": UniPCMultistepScheduler(**AS_FLOW),
    },
    "cosine": {
        "ddim": DDIMScheduler(**COSINE, clip_sample=False, timestep_spacing="trailing"),
        "dpm++": DPMSolverMultistepScheduler(**COSINE),
        "euler": EulerDiscreteScheduler(**COSINE),  # in a scale of its own
    },
}  # fmt: skip


@pytest.mark.parametrize(("process", "name"), [(kind, name) for kind in SCHEDULERS for name in SCHEDULERS[kind]])
def test_what_is_known_is_where_a_perfect_model_would_have_it(process, name):
    """After each step, by any scheduler, in its own scale; and where only the last steps are taken."""
    kind = "velocity" if process == "flow" else "epsilon"
    config = HybridGenDiffusionConfig(noise_schedule=process, prediction_type=kind)
    clean, noise = torch.randn(2, 1, 3, 4, 4, generator=Generator().manual_seed(0)).unbind()
    kept, drawn = torch.zeros(1, 1, 4, 4, dtype=torch.bool), torch.ones(1, 1, 4, 4, dtype=torch.bool)

    def steps(known: Known | None, strength: float = 1.0) -> list:
        seen, schedule = [], prepare(SCHEDULERS[process][name], 8, config, strength=strength)

        def perfect(noisy, step):
            return convert("sample", kind, clean, noisy, schedule.alpha[step], schedule.sigma[step])

        end = denoise(perfect, noise, schedule, kind, on_step=lambda at, x: seen.append(x) or x, known=known)
        assert worst(end, clean) < 1e-3
        return seen

    plain, held = steps(None), steps(Known(clean, kept))
    assert len(plain) == len(held)
    # relative to the largest value; measured 1.2e-3 where a scheduler calls .999 of noise what begins as all of it
    assert max(worst(one, other) / one.abs().max() for one, other in zip(plain, held, strict=True)) < 3e-3
    assert torch.equal(held[-1], clean)
    late = steps(Known(clean, drawn), 0.5)
    assert len(late) == (7 if name == "heun" else 4)
    assert max(worst(one, other) / one.abs().max() for one, other in zip(plain[-len(late) :], late, strict=True)) < 3e-3


# ------------------------------------------------------------------------------------------------- what must not matter


@pytest.mark.parametrize("path", PATHS)
def test_an_edit_is_the_same_alone_in_a_batch_and_as_a_job(any_pipe, path):
    """Beside others with other masks and pictures, in any chunking; with guidance by a picture before the prompt."""
    prompts, seeds = [PROMPT, "square", PROMPT], [3, 8, 9]
    pictures, masks = [PICTURE, picture(1), PICTURE], [MASK, WHITE, MASK.rotate(90)]
    call = {"num_inference_steps": 3, "guidance_scale": 2.0, "image": picture(2), "path": path}
    together = any_pipe(prompts, edit_image=pictures, mask_image=masks, seed=seeds, **call).images
    chunked = any_pipe(prompts, edit_image=pictures, mask_image=masks, seed=seeds, **call, max_batch=2).images
    for number, image in enumerate(together):
        edit = {"edit_image": pictures[number], "mask_image": masks[number], "seed": seeds[number]}
        assert any_pipe(prompts[number], **edit, **call).images[0].tobytes() == image.tobytes()
        assert chunked[number].tobytes() == image.tobytes()
        job = PictureCall.of(any_pipe, prompts[number], **edit, **call, preview_every=2)
        assert run(job.task())[0].tobytes() == image.tobytes()
        previews, outside = list(events_of(job.task())), ~np.asarray(masks[number].convert("1"))
        assert previews
        for preview in previews:  # whole pictures
            assert (pixels(preview.images[0]) == pixels(pictures[number]))[outside].all()


@pytest.mark.parametrize("window", [1, 3, 8])
def test_codes_that_are_known_save_steps_and_change_nothing(pipe, window, monkeypatch):
    call = {**FAST, "path": "vq", **EDIT, "output_type": "latent"}
    expected, steps, step = pipe(PROMPT, **call, window=1).images, [], CodeWriting.step
    monkeypatch.setattr(CodeWriting, "step", lambda self: steps.append(1) or step(self))
    assert torch.equal(pipe(PROMPT, **call, window=window).images, expected)
    assert len(steps) == {1: 16, 3: 8, 8: 6}[window]


@pytest.mark.parametrize("path", PATHS)
def test_output_types_are_the_same_edit(any_pipe, path):
    call = {**FAST, **EDIT, "path": path}
    image = any_pipe(PROMPT, **call).images[0]
    values = any_pipe(PROMPT, **call, output_type="np").images[0]
    assert np.array_equal(np.rint(values * 255), pixels(image))
    assert np.array_equal(values[~HOLE], pixels(PICTURE)[~HOLE] / np.float32(255))
    assert torch.equal(any_pipe(PROMPT, **call, output_type="pt").images[0], torch.from_numpy(values).permute(2, 0, 1))
    any_pipe.processor.image_processor.truncate = True  # which rounds other levels down
    cut = any_pipe(PROMPT, **call).images[0]
    any_pipe.processor.image_processor.truncate = False
    assert (pixels(cut) == pixels(PICTURE))[~HOLE].all()


def test_less_strength_stays_nearer(any_pipe):
    """Also without a mask; 1 is none; a picture of one step of ten is nearly what it was."""
    call = {"seed": 3, "num_inference_steps": 10, "guidance_scale": 2.0}
    calls, away = [], []

    def count(pipe, step, timestep, tensors):
        calls.append(step)
        return tensors

    for strength in (0.1, 0.5, 1):
        mask = {} if strength < 1 else {"mask_image": WHITE}
        edit = {"edit_image": PICTURE, "strength": strength, **mask, **call}
        latents = any_pipe(PROMPT, **edit, callback_on_step_end=count, output_type="latent").images
        away.append((latents - any_pipe.latent_codec.encode(to_range(as_levels(PICTURE)))).abs().mean())
        assert calls == list(range(int(10 * strength)))
        assert any_pipe.num_timesteps == len(calls)
        calls.clear()
    assert torch.equal(latents, any_pipe(PROMPT, **call, output_type="latent").images)
    assert away[0] < away[1] < away[2]


def test_an_edit_that_is_interrupted_keeps_what_it_knows(pipe):
    for path in PATHS:

        def stop(pipe, step, timestep, tensors):
            pipe._interrupt = step == 1
            return tensors

        made = pipe(PROMPT, **{**FAST, "path": path}, **EDIT, callback_on_step_end=stop, window=1).images[0]
        assert (pixels(made) == pixels(PICTURE))[~HOLE].all()


# ---------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"edit_image": PICTURE}, "edit_image has no mask_image, so that nothing of it would stay"),
        ({"mask_image": MASK}, "mask_image is about the picture that is redrawn, but there is no edit_image"),
        ({"strength": 0.5}, "strength is about the picture that is redrawn, but there is no edit_image"),
        (EDIT | {"strength": 0}, "strength is 0; it must be a number above 0 and at most 1"),
        (EDIT | {"strength": 1.5}, "strength is 1.5; it must be a number above 0 and at most 1"),
        (EDIT | {"mask_image": Image.new("L", (8, 16))}, "mask_image is 8x16 pixels, but edit_image is 16x16"),
        (EDIT | {"mask_image": PICTURE}, "mask_image has colours, which say nothing"),
        (EDIT | {"mask_image": "none.png"}, "mask_image: there is no image none.png"),
        (EDIT | {"mask_image": [MASK, MASK]}, "mask_image is a list of 2 for 1 prompts"),
        (EDIT | {"mask_image": np.full((16, 16), 7.0)}, "mask_image: the image has float64 values from 7 to 7"),
        (EDIT | {"edit_image": [PICTURE] * 3}, "edit_image is a list of 3 for 1 prompts"),
        (EDIT | {"edit_image": [None]}, "edit_image: an image must be a file"),
        (EDIT | {"edit_image": b"x"}, "edit_image: the image of 1 bytes"),
        (EDIT | {"height": 32}, "height is 32, but edit_image is 16x16 pixels and stays so"),
        ({"edit_image": picture(0, (18, 16)), "mask_image": Image.new("L", (16, 18), 255)}, "18"),
    ],
)
def test_what_cannot_be_edited_is_refused_before_any_work(pipe, path, given, sentence):
    handle = pipe.model.model.language_model.register_forward_pre_hook(lambda *_: 1 / 0)
    try:
        for call in (pipe, lambda *words, **settings: PictureCall.of(pipe, *words, **settings)):
            with pytest.raises(ValueError) as refused:  # noqa: PT011
                call("a", path=path, **given)
            assert sentence in str(refused.value)
            assert "\n" not in str(refused.value)
    finally:
        handle.remove()


def test_a_path_without_noise_has_no_strength(pipe):
    with pytest.raises(ValueError, match="strength is 0.5, but the vq path has no noise to begin in"):
        pipe("a", path="vq", **EDIT, strength=0.5)


@pytest.mark.parametrize(
    "mask",
    [
        HOLE, HOLE.astype(np.float32), torch.from_numpy(HOLE)[None], MASK.convert("L"), MASK.convert("RGB"),
        MASK.convert("P"), Image.fromarray(HOLE.astype(np.uint16) * 65535), MASK.convert("CMYK"),
        Image.fromarray(np.where(HOLE[..., None], [90, 9, 9, 0], [0, 0, 0, 255]).astype(np.uint8)),  # a hole is white
        Image.fromarray(np.where(HOLE, 140, 110).astype(np.uint8)),
    ],
    ids=["bool", "float", "tensor", "L", "RGB", "P", "16 bits", "CMYK", "RGBA", "gray"],
)  # fmt: skip
def test_a_mask_may_be_any_picture(pipe, mask):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = pipe(PROMPT, edit_image=PICTURE, mask_image=mask, **FAST).images[0]
    assert made.tobytes() == pipe(PROMPT, **EDIT, **FAST).images[0].tobytes()
