"""The pipeline: pictures against loops without a cache, answers against bare `generate`, and what must not matter."""

import copy
import gc
import pickle
import subprocess
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler
from diffusers.guiders import (
    AdaptiveProjectedGuidance,
    ClassifierFreeGuidance,
    ClassifierFreeZeroStarGuidance,
    TangentialClassifierFreeGuidance,
)
from PIL import Image
from torch import Generator

from hybridgen.core.documents import left_pad
from hybridgen.core.layout import ImageSegment
from hybridgen.pipeline_hybridgen import HybridGenPipeline, load_pipeline
from hybridgen.sampling.decoder import Decoder
from hybridgen.sampling.denoise import ImagePredictor
from hybridgen.sampling.guidance import Guidance
from hybridgen.sampling.prefix import begin_image, extend, prefill
from tests.pipelines import tiny_pipeline, tiny_vae
from tests.sampling.prompts import worst

PROMPTS = [
    "a red circle",
    "draw a blue square on a red circle, twice",
    "a",
    "draw a red square",
    "circle circle circle",
]
COSINE = {"patch_size": 4, "sample_size": 16, "frequency_embedding_size": 32, "noise_schedule": "cosine"}
UNET = {
    "diffusion_config": {
        "patch_size": 4, "sample_size": 16, "frequency_embedding_size": 32, "unet_channels": [8, 16],
    }
}  # fmt: skip
CONVNEXT = {
    "diffusion_config": {
        "patch_size": 4, "sample_size": 16, "frequency_embedding_size": 32, "convnext_channels": 8, "time_token": True,
    }
}  # fmt: skip
FAST = {"num_inference_steps": 3, "output_type": "latent", "guidance_scale": 2.0}


@pytest.fixture(scope="module")
def pipe() -> HybridGenPipeline:
    return tiny_pipeline()


def picture(seed: int, size: tuple[int, int] = (16, 16)) -> Image.Image:
    levels = torch.randint(256, (*size, 3), generator=Generator().manual_seed(seed))
    return Image.fromarray(levels.to(torch.uint8).numpy())


def rows_seen(pipe, **call) -> list[int]:
    """How many rows the backbone computed, forward by forward."""
    rows = []
    backbone = pipe.model.model.language_model
    handle = backbone.register_forward_hook(lambda module, args, output: rows.append(len(output.last_hidden_state)))
    pipe(**{**FAST, **call})
    handle.remove()
    return rows


# -------------------------------------------------------------------------------------- against loops without a cache


def layouts(pipe, text: str, path: str) -> dict:
    """A prompt and an image to be drawn after it, as `forward` takes them."""
    layout = pipe.processor.prompt([{"role": "user", "content": text}]).layout
    config = pipe.model.config
    after = ImageSegment(path, 16, config.is_bidirectional(path))
    ids = [*layout.input_ids, config.begin_image_token_id, *[config.placeholder(path)] * after.length]
    start = len(layout) + 1
    blocks = [start] * after.length if after.bidirectional else range(start, len(ids))
    return {
        "input_ids": torch.tensor([ids]),
        "position_ids": torch.arange(len(ids))[None],
        "document_ids": torch.zeros(1, len(ids), dtype=torch.long),
        "block_ids": torch.tensor([[*range(start), *blocks]]),
    }


def test_a_denoised_picture_is_that_of_the_plain_euler_loop(pipe):
    made = pipe(PROMPTS[1], seed=3, num_inference_steps=5, guidance_scale=2.5, output_type="latent").images
    conditional, unconditional = (layouts(pipe, text, "diffusion") for text in (PROMPTS[1], ""))
    x = torch.randn(3, 16, 16, generator=Generator().manual_seed(3))[None]
    with torch.no_grad():
        for step in range(5):
            told = {"latents": x, "timesteps": torch.tensor([1000 * (1 - step / 5)])}
            c, u = (pipe.model(**layout, **told).prediction for layout in (conditional, unconditional))
            x = x - (u + 2.5 * (c - u)) / 5
    assert worst(made, x) < 1e-4  # of values up to 4; measured 7e-7


def test_codes_are_those_of_the_plain_greedy_loop(pipe):
    made = pipe(PROMPTS[1], path="vq", temperature=0, guidance_scale=2.5, output_type="latent").images
    conditional, unconditional = (layouts(pipe, text, "vq") for text in (PROMPTS[1], ""))
    codes = torch.zeros(16, dtype=torch.long)
    with torch.no_grad():
        for step in range(16):
            keep = {"codes": codes}
            c, u = (
                pipe.model(**layout, **keep, codes_to_keep=before(layout["input_ids"], step)).code_logits
                for layout in (conditional, unconditional)
            )
            codes[step] = (u + 2.5 * (c - u)).argmax()
    assert torch.equal(made[0].flatten(), codes)
    assert made.shape == (1, 4, 4)


def before(input_ids: torch.Tensor, step: int) -> torch.Tensor:
    """The position from which code `step` of 16 is predicted: the one before it."""
    keep = torch.zeros_like(input_ids, dtype=torch.bool)
    keep[:, input_ids.shape[1] - 17 + step] = True
    return keep


# ------------------------------------------------------------------------------------------------- what must not matter


@pytest.mark.parametrize("path", ["diffusion", "vq"])
@pytest.mark.parametrize("backbone", ["qwen3", "llama"])
def test_picture_i_is_the_same_alone_in_a_batch_and_in_any_chunking(path, backbone):
    pipe = tiny_pipeline(backbone=backbone)
    together = pipe(PROMPTS, path=path, seed=7, **FAST).images
    for i, prompt in enumerate(PROMPTS):
        alone = pipe(prompt, path=path, seed=7 + i, **FAST).images[0]
        assert same(alone, together[i])
    for max_batch in (1, 2, 4, 7):
        assert same(pipe(PROMPTS, path=path, seed=7, max_batch=max_batch, **FAST).images, together)
    assert not torch.equal(together[0], together[1])


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Codes exactly, latents to rounding: measured 6e-7 of values up to 4."""
    return torch.equal(a, b) if a.dtype == torch.long else worst(a, b) < 1e-4


@pytest.mark.parametrize("path", ["diffusion", "unet", "convnext", "vq"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_picture_i_is_the_same_to_the_bit(path, dtype):
    """On a CPU, where the rows of a product do not depend on one another, and in half precision too: prompts are padded
    to a whole number of shelves, so no sum is taken in another order."""
    changes = {"unet": UNET, "convnext": CONVNEXT}.get(path, {})
    path = "diffusion" if changes else path
    pipe = tiny_pipeline(**changes).to(dtype)
    together = pipe(PROMPTS, path=path, seed=7, **FAST).images
    for i in (0, 1, 4):
        assert torch.equal(pipe(PROMPTS[i], path=path, seed=7 + i, **FAST).images[0], together[i])
    turned = pipe(PROMPTS[::-1], path=path, seed=[11, 10, 9, 8, 7], max_batch=6, **FAST).images
    assert torch.equal(turned.flip(0), together)


@pytest.mark.parametrize("path", ["diffusion", "vq"])
def test_sizes_and_scales_may_differ_in_a_call(pipe, path):
    """Each picture as if it were alone, in the order of the prompts."""
    sizes, scales = [(16, 16), (8, 24), (16, 16), (24, 8), (8, 24)], [3.0, 1.0, 1.0, 0.0, 6.0]
    settings = {**FAST, "path": path, "num_images_per_prompt": 2}
    heights, widths = map(list, zip(*sizes, strict=True))
    mixed = {"guidance_scale": scales, "height": heights, "width": widths}
    together = pipe(PROMPTS, seed=3, max_batch=6, **settings | mixed).images
    assert pipe.guidance_scale == scales
    for i, (prompt, (height, width), scale) in enumerate(zip(PROMPTS, sizes, scales, strict=True)):
        own = {"guidance_scale": scale, "height": height, "width": width}
        alone = pipe(prompt, seed=3 + 2 * i, **settings | own).images
        assert torch.equal(torch.stack(together[2 * i : 2 * i + 2]), alone)
    pictures = pipe(PROMPTS, seed=3, height=heights, width=widths, path=path, num_inference_steps=2).images
    assert [image.size[::-1] for image in pictures] == sizes
    noise = [torch.randn(3, *size, generator=Generator().manual_seed(i)) for i, size in enumerate(sizes)]
    if path == "diffusion":
        given = pipe(PROMPTS, latents=noise, height=heights, width=widths, **FAST).images
        seeded = pipe(PROMPTS, seed=0, height=heights, width=widths, **FAST).images
        assert all(torch.equal(a, b) for a, b in zip(given, seeded, strict=True))


def test_only_what_is_guided_costs_two_rows(pipe):
    count, scales = FAST["num_inference_steps"], [1.0, 3.0, 1.0]
    rows = rows_seen(pipe, prompt=PROMPTS[:3], guidance_scale=scales)
    assert sorted(rows) == sorted([2] + [2] * count + [2] + [2] * count)  # two alone; one with the empty prompt
    whole = rows_seen(pipe, prompt=PROMPTS[0], guider=Guidance(3.0, start=0.4, stop=0.7), guidance_scale=3.0)
    assert whole == [2, 1, 2, 1]


# ----------------------------------------------------------------------------------------------------------- guidance


def test_guiders_of_diffusers_guide(pipe):
    settings = {"seed": 0, "num_inference_steps": 4, "output_type": "latent"}
    plain = pipe(PROMPTS[:2], guidance_scale=4.0, guidance_rescale=0.5, **settings).images
    assert torch.equal(pipe(PROMPTS[:2], guider=ClassifierFreeGuidance(4.0, 0.5), **settings).images, plain)
    assert torch.equal(
        pipe(PROMPTS[:2], guider=ClassifierFreeGuidance(9.0, 0.5), guidance_scale=[4.0, 4.0], **settings).images, plain
    )
    for guider in (AdaptiveProjectedGuidance(4.0, -0.5, eta=0.0), ClassifierFreeZeroStarGuidance(4.0)):
        together = pipe(PROMPTS[:2], guider=guider, **settings).images
        assert torch.equal(pipe(PROMPTS[:2], guider=guider, **settings).images, together)  # nothing is left in it
        assert torch.equal(pipe(PROMPTS[0], guider=guider, **settings).images[0], together[0])
        assert not same(together, plain)
    codes = {**settings, "path": "vq", "num_inference_steps": None}
    apg = Guidance(4.0, method="apg", eta=0.0)
    assert not torch.equal(pipe(PROMPTS[:2], guider=apg, **codes).images, pipe(PROMPTS[:2], **codes).images)


@pytest.mark.parametrize("settings", [{"path": "diffusion"}, {"path": "vq"}, {"path": "vq", "precision": "fp32"}])
def test_a_pipeline_of_inference_mode_draws_as_any(pipe, settings, tmp_path):
    """torch does not count how often its tensors were changed."""
    pipe.save_pretrained(tmp_path / "tiny")
    settings = {**settings, "seed": 0, "num_inference_steps": 2, "output_type": "latent"}
    expected = pipe(PROMPTS[0], **settings).images
    with torch.inference_mode():
        loaded = load_pipeline(tmp_path / "tiny")
        loaded.set_progress_bar_config(disable=True)
        assert torch.equal(loaded(PROMPTS[0], **settings).images, expected)
        assert loaded.origin
    assert torch.equal(loaded(PROMPTS[0], **settings).images, expected)


@pytest.mark.parametrize("how", [copy.deepcopy, lambda pipe: pickle.loads(pickle.dumps(pipe))])
@pytest.mark.parametrize("path", ["diffusion", "vq"])
def test_a_copy_draws_the_same(pipe, how, path):
    """Also after weights were copied for a precision: those are in no form that can be copied."""
    settings = {"path": path, "seed": 0, "precision": "fp32", "output_type": "latent", "num_inference_steps": 2}
    expected = pipe(PROMPTS[0], **settings).images
    copied = how(pipe)
    copied.set_progress_bar_config(disable=True)
    assert torch.equal(copied(PROMPTS[0], **settings).images, expected)
    with torch.no_grad():
        next(copied.model.lm_head.parameters()).add_(1)
    assert torch.equal(pipe(PROMPTS[0], **settings).images, expected)


@pytest.mark.parametrize("read", ["understanding", "diffusion", "vq"])
@pytest.mark.parametrize("path", ["diffusion", "vq"])
def test_an_image_condition_is_a_third_row(pipe, path, read):
    """Against whole forwards of three documents: prompt and image, image alone, neither."""
    condition, count = picture(3), 2
    scales = {"guidance_scale": 3.0, "image_guidance_scale": 1.7}
    how = {"num_inference_steps": count, "temperature": 0}
    settings = {"path": path, "output_type": "latent", "seed": 2, **how}
    made = pipe(PROMPTS[1], image=condition, read=read, **scales, **settings).images
    image = {"type": "image", "image": condition}
    contents = [[image, {"type": "text", "text": PROMPTS[1]}], [image], ""]
    documents = [pipe.processor.prompt([{"role": "user", "content": content}], read=read) for content in contents]
    rows = [read_prompts_alone(pipe, document) for document in documents]

    def guided(said: list[torch.Tensor]) -> torch.Tensor:
        full, without, nothing = said
        return nothing + 1.7 * (without - nothing) + 3.0 * (full - without)

    if path == "vq":
        codes = torch.zeros(0, dtype=torch.long)
        for _ in range(16):
            said = []
            for document, media in rows:
                prefix = prefill_alone(pipe, document, media)
                for code in codes:
                    extend(pipe.model, prefix, torch.tensor([pipe.model.config.vq_token_id]), codes=code[None])
                said.append(pipe.model.code_logits(prefix.last_state))
            codes = torch.cat([codes, guided(said).argmax(-1)])
        assert torch.equal(made.flatten(), codes)
        return
    x = torch.randn(3, 16, 16, generator=Generator().manual_seed(2))[None]
    for step in range(count):
        told = torch.tensor([1000 * (1 - step / count)])
        predict = [ImagePredictor(pipe.model, prefill_alone(pipe, *row), 1, (16, 16), told) for row in rows]
        x = x - guided([each(x, 0) for each in predict]) / count
    assert worst(made, x) < 2e-4  # of values up to 10


def read_prompts_alone(pipe, document):
    return document, pipe.encode_images(left_pad([document], 0))


@torch.no_grad()
def prefill_alone(pipe, document, media):
    vectors = {name: value[None] for name, value in document.layout.tensors().items()}
    names = ("input_ids", "document_ids", "block_ids", "position_ids")
    begun = begin_image({name: vectors[name] for name in names}, pipe.model.config.begin_image_token_id)
    return prefill(pipe.model, **begun, **media)


def test_images_stand_beside_their_prompts(pipe):
    settings = {**FAST, "image_guidance_scale": [1.0, 2.0, 1.0]}
    pictures = [picture(i) for i in range(3)]
    together = pipe(PROMPTS[:3], image=pictures, seed=0, **settings).images
    for i in range(3):
        own = {**FAST, "image_guidance_scale": settings["image_guidance_scale"][i]}
        assert torch.equal(pipe(PROMPTS[i], image=pictures[i], seed=i, **own).images[0], together[i])
    assert not same(pipe(PROMPTS[0], image=pictures[1], seed=0, **FAST).images[0], together[0])
    assert not same(pipe(PROMPTS[0], seed=0, **FAST).images[0], together[0])
    twice = pipe(PROMPTS[1], image=pictures[1], seed=1, **FAST | {"image_guidance_scale": 2.0, "negative_prompt": ""})
    assert torch.equal(twice.images[0], together[1])


def test_shift_is_the_schedulers(pipe):
    shifted = HybridGenPipeline(
        pipe.model, pipe.processor, pipe.scheduler.from_config(pipe.scheduler.config, shift=3.0)
    )
    shifted.set_progress_bar_config(disable=True)
    made = pipe(PROMPTS[0], seed=0, shift=3.0, **FAST).images
    assert torch.equal(shifted(PROMPTS[0], seed=0, **FAST).images, made)
    assert not same(made, pipe(PROMPTS[0], seed=0, **FAST).images)


@pytest.mark.parametrize("path", ["diffusion", "vq"])
def test_the_interval_is_the_guiders(pipe, path):
    """As an argument, of a guider, and as a default of the folder, whichever comes first in this order."""
    settings = {"path": path, "seed": 0, "num_inference_steps": 4, "guidance_scale": 3.0, "output_type": "latent"}
    drawn = {stop: pipe(PROMPTS[0], guider=Guidance(3.0, stop=stop), **settings).images for stop in (0.25, 0.5, 1.0)}
    assert not torch.equal(drawn[0.25], drawn[0.5])
    assert not torch.equal(drawn[0.5], drawn[1.0])
    assert torch.equal(pipe(PROMPTS[0], guidance_interval=(0, 0.5), **settings).images, drawn[0.5])
    own = HybridGenPipeline(
        pipe.model, pipe.processor, pipe.scheduler, vq_model=pipe.vq_model,
        sampling_defaults={path: {"guidance_interval": [0.0, 0.5]}},
    )  # fmt: skip
    own.set_progress_bar_config(disable=True)
    assert torch.equal(own(PROMPTS[0], **settings).images, drawn[0.5])
    assert torch.equal(own(PROMPTS[0], guider=Guidance(9.0, stop=0.25), **settings).images, drawn[0.25])
    both = {"guider": Guidance(9.0, stop=0.25), "guidance_interval": [0.0, 1.0]}
    assert torch.equal(own(PROMPTS[0], **both, **settings).images, drawn[1.0])


def test_a_folder_has_defaults_of_its_own(pipe, tmp_path):
    defaults = {"diffusion": {"num_inference_steps": 2, "guidance_scale": 1.0}, "vq": {"temperature": 0.0}}
    own = HybridGenPipeline(pipe.model, pipe.processor, vq_model=pipe.vq_model, sampling_defaults=defaults)
    own.save_pretrained(tmp_path)
    loaded = load_pipeline(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert loaded.sampling_defaults == defaults
    assert loaded.sampling_settings("vq", guidance_scale=2.0)["guidance_scale"] == 2.0
    assert rows_seen(loaded, prompt="a", num_inference_steps=None, guidance_scale=None) == [1, 1, 1]
    first, second = (loaded("a", path="vq", output_type="latent", seed=seed).images for seed in (0, 1))
    assert torch.equal(first, second)  # temperature 0
    assert pipe.sampling_settings("diffusion")["guidance_scale"] == 3.0
    for wrong, message in (
        ({"vq": {"guidance": 5}}, "sampling_defaults of vq have 'guidance'; there are: guidance_scale"),
        ({"vq": {"guidance_interval": 0.5}}, "vq: guidance_interval is 0.5; give two shares from 0 to 1"),
        ({"understanding": {}}, "sampling_defaults has 'understanding'"),
    ):
        with pytest.raises(ValueError, match=message):
            HybridGenPipeline(pipe.model, pipe.processor, sampling_defaults=wrong)


@pytest.mark.parametrize("path", ["diffusion", "vq"])
def test_images_of_a_prompt_stand_together(pipe, path):
    several = pipe(PROMPTS[:2], path=path, seed=5, num_images_per_prompt=2, **FAST).images
    for i, (prompt, seed) in enumerate([(PROMPTS[0], 5), (PROMPTS[0], 6), (PROMPTS[1], 7), (PROMPTS[1], 8)]):
        assert same(several[i], pipe(prompt, path=path, seed=seed, **FAST).images[0])
    listed = pipe(PROMPTS[:2], path=path, seed=[5, 6, 7, 8], num_images_per_prompt=2, **FAST).images
    assert torch.equal(several, listed)


@pytest.mark.parametrize("path", ["diffusion", "vq"])
def test_generators_are_seeds(pipe, path):
    seeded = pipe(PROMPTS[:2], path=path, seed=[5, 9], **FAST).images
    generators = [Generator().manual_seed(5), Generator().manual_seed(9)]
    assert torch.equal(pipe(PROMPTS[:2], path=path, generator=generators, **FAST).images, seeded)
    alone = pipe(PROMPTS[0], path=path, generator=Generator().manual_seed(5), **FAST).images[0]
    assert same(alone, seeded[0])


def test_latents_are_the_noise_to_start_from(pipe):
    noise = torch.stack([torch.randn(3, 16, 16, generator=Generator().manual_seed(seed)) for seed in (5, 9)])
    made = pipe(PROMPTS[:2], latents=noise, max_batch=2, **FAST).images
    assert same(made, pipe(PROMPTS[:2], seed=[5, 9], **FAST).images)
    with pytest.raises(ValueError, match=r"latents have shape \(2, 3, 16, 16\), but 1 images need .*\(1, 3, 16, 16\)"):
        pipe(PROMPTS[0], latents=noise, **FAST)
    with pytest.raises(ValueError, match="the vq path starts from none"):
        pipe(PROMPTS[:2], path="vq", latents=noise, **FAST)


@pytest.mark.parametrize("path", ["diffusion", "vq"])
def test_the_global_random_stream_is_neither_read_nor_moved(pipe, path):
    before = torch.get_rng_state()
    first, second = (pipe(PROMPTS[0], path=path, **FAST).images for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(first, second)


def test_rows_are_few(pipe):
    """Each text is read once, guidance 1 costs no second row, and no batch is larger than allowed."""
    steps = FAST["num_inference_steps"]
    four = {"prompt": PROMPTS[:2], "num_images_per_prompt": 2}
    assert rows_seen(pipe, **four) == [3] + [8] * steps  # two prompts and the empty one; then four images, guided
    assert rows_seen(pipe, **four, guidance_scale=1.0) == [2] + [4] * steps
    assert rows_seen(pipe, **four, guidance_scale=1) == [2] + [4] * steps
    assert rows_seen(pipe, **four, max_batch=4) == 2 * ([2] + [4] * steps)
    assert rows_seen(pipe, prompt=PROMPTS, path="vq", max_batch=1) == 5 * ([2] * 16)


@pytest.mark.parametrize("path", ["diffusion", "vq"])
def test_guidance_away_from_the_prompt_itself_is_no_guidance(pipe, path):
    settings = {**FAST, "guidance_scale": 1.0}
    unguided = pipe(PROMPTS[:2], path=path, seed=0, **settings).images
    settings["guidance_scale"] = 6.0
    assert same(pipe(PROMPTS[:2], path=path, seed=0, negative_prompt=PROMPTS[:2], **settings).images, unguided)
    assert not same(pipe(PROMPTS[:2], path=path, seed=0, **settings).images, unguided)
    empty = pipe(PROMPTS[:2], path=path, seed=0, negative_prompt="", **settings).images
    assert torch.equal(empty, pipe(PROMPTS[:2], path=path, seed=0, **settings).images)
    settings["guidance_scale"] = 0.0  # the negative prompt alone
    assert same(pipe(PROMPTS[0], path=path, seed=0, negative_prompt=PROMPTS[2], **settings).images,
                pipe(PROMPTS[2], path=path, seed=0, **FAST | {"guidance_scale": 1.0}).images)  # fmt: skip


# ------------------------------------------------------------------------------------------------------- what comes out


@pytest.mark.parametrize("path", ["diffusion", "vq"])
@pytest.mark.parametrize("size", [(None, None), (8, 24)])
def test_output_types_are_the_same_picture(pipe, path, size):
    settings = {"path": path, "seed": 1, "num_inference_steps": 3, "height": size[0], "width": size[1]}
    height, width = size if size[0] else (16, 16)
    pt = pipe(PROMPTS[:2], output_type="pt", **settings).images
    array = pipe(PROMPTS[:2], output_type="np", **settings).images
    pil = pipe(PROMPTS[:2], **settings).images
    latents = pipe(PROMPTS[:2], output_type="latent", return_dict=False, **settings)[0]
    assert pt.shape == (2, 3, height, width)
    assert (pt.min(), pt.max()) >= (0, 0)
    assert pt.max() <= 1
    np.testing.assert_array_equal(array, pt.permute(0, 2, 3, 1).numpy())
    for image, pixels in zip(pil, array, strict=True):
        assert image.size == (width, height)
        assert np.abs(np.asarray(image) / 255 - pixels).max() <= 0.5 / 255 + 1e-6
    codec = pipe.vq_codec if path == "vq" else pipe.latent_codec
    torch.testing.assert_close(((codec.decode(latents) + 1) / 2).clamp(0, 1), pt, rtol=0, atol=1e-6)


def test_the_first_writing_path_is_the_default(pipe):
    assert torch.equal(
        pipe(PROMPTS[0], seed=1, **FAST).images, pipe(PROMPTS[0], seed=1, path="diffusion", **FAST).images
    )
    only_vq = tiny_pipeline(diffusion_config=None)
    assert only_vq.scheduler is None
    assert only_vq(PROMPTS[0], **FAST).images.shape == (1, 4, 4)


def test_latents_of_a_vae_are_decoded_by_it():
    vae = tiny_vae()
    pipe = tiny_pipeline(vae)
    latents = pipe(PROMPTS[:2], seed=1, num_inference_steps=3, output_type="latent").images
    assert latents.shape == (2, 4, 8, 8)
    with torch.no_grad():
        expected = vae.decode(latents / 0.5 + 0.25).sample
    made = pipe(PROMPTS[:2], seed=1, num_inference_steps=3, output_type="pt").images
    torch.testing.assert_close(made, ((expected + 1) / 2).clamp(0, 1), rtol=0, atol=1e-6)  # measured 0
    answers = pipe.answer(picture(0), ["what color?", "a"], path="diffusion", max_new_tokens=3)
    assert len(answers) == 2


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize(
    "scheduler_class", [DDPMScheduler, DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler]
)
def test_any_ddpm_scheduler_draws(kind, scheduler_class):
    pipe = tiny_pipeline(diffusion_config={**COSINE, "prediction_type": kind})
    pipe.scheduler = scheduler_class.from_config(pipe.scheduler.config)
    together = pipe(PROMPTS[:3], seed=3, **FAST).images
    alone = pipe(PROMPTS[0], seed=3, **FAST).images[0]
    assert worst(together[0], alone) < 1e-5 * together.abs().max()  # the untrained model goes far; measured 6e-7
    assert together.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_draws_and_answers(dtype):
    pipe = tiny_pipeline(tiny_vae()).to(dtype)
    for path in ("diffusion", "vq"):
        pixels = pipe(PROMPTS[:2], path=path, seed=0, output_type="pt", num_inference_steps=3).images
        assert pixels.isfinite().all()
        assert pixels.dtype == torch.float32
    for path in ("understanding", "diffusion", "vq"):
        assert len(pipe.answer(picture(0), "what color?", path=path, max_new_tokens=3)) == 1


# ------------------------------------------------------------------------------------------------------------ callbacks


@pytest.mark.parametrize("path", ["diffusion", "vq"])
def test_callbacks_see_every_step_and_decide_what_goes_on(pipe, path):
    seen = []

    def callback(pipeline, step, timestep, tensors):
        seen.append((step, float(timestep), tuple(tensors["latents"].shape)))
        last = step == pipeline.num_timesteps - 1
        return {"latents": torch.full_like(tensors["latents"], 3)} if last else tensors

    made = pipe(PROMPTS[:2], path=path, callback_on_step_end=callback, **FAST).images
    assert (made == 3).all()
    if path == "diffusion":
        assert [(step, round(t, 3)) for step, t, _ in seen] == [(0, 1000.0), (1, 666.667), (2, 333.333)]
        assert {shape for *_, shape in seen} == {(2, 3, 16, 16)}
    else:
        assert [shape for *_, shape in seen] == [(2, step + 1) for step in range(16)]


@pytest.mark.parametrize("path", ["diffusion", "vq"])
def test_a_callback_may_change_the_guidance(pipe, path):
    def stop_guiding(pipeline, step, timestep, tensors):
        pipeline._guidance_scale = 1.0

    settings = {"path": path, "seed": 0, **FAST}
    changed = pipe(PROMPTS[0], callback_on_step_end=stop_guiding, **settings).images
    assert pipe.guidance_scale == 1.0
    assert not same(changed, pipe(PROMPTS[0], **settings).images)


def test_the_progress_bar_counts_every_step_of_every_batch(pipe, capsys):
    pipe.set_progress_bar_config(disable=False)
    pipe(PROMPTS, max_batch=4, **FAST)
    pipe.set_progress_bar_config(disable=True)
    shown = capsys.readouterr()
    assert "9/9" in shown.err
    assert not shown.out


@pytest.mark.parametrize("path", ["diffusion", "vq"])
def test_a_callback_may_interrupt(pipe, path):
    """As in diffusers: the call ends after the step, with pictures of what there is."""
    seen = []

    def stop(pipeline, step, timestep, tensors):
        seen.append(tensors["latents"].clone())
        assert not pipeline.interrupt
        if step == 1:
            pipeline._interrupt = True
        return tensors

    settings = {"path": path, "seed": 0, "num_inference_steps": 8, "guidance_scale": 2.0}
    made = pipe(PROMPTS[:2], callback_on_step_end=stop, output_type="latent", **settings).images
    assert len(seen) == 2
    if path == "diffusion":
        assert torch.equal(made, seen[-1])
    else:
        assert torch.equal(made.flatten(1)[:, :2], seen[-1])
        assert not made.flatten(1)[:, 2:].any()
    assert pipe.interrupt
    seen.clear()
    pictures = pipe(PROMPTS[:3], callback_on_step_end=stop, max_batch=2, **settings).images
    assert (len(pictures), pictures[0].size) == (1, (16, 16))  # those of batches that had not begun are left out
    seen.clear()
    whole = pipe(PROMPTS[:2], **settings, output_type="latent").images
    assert not pipe.interrupt  # each call begins anew
    assert not torch.equal(whole, made)


def test_another_thread_may_interrupt_also_where_it_made_a_call_before(pipe):
    pipe(PROMPTS[0], **FAST)  # in this thread
    begun, told, steps = threading.Event(), threading.Event(), []

    def wait(pipeline, step, timestep, tensors):
        steps.append(step)
        begun.set()
        told.wait(60)
        return tensors

    with ThreadPoolExecutor(1) as threads:
        call = threads.submit(pipe, PROMPTS[0], num_inference_steps=8, callback_on_step_end=wait)
        begun.wait(60)
        pipe._interrupt = True
        told.set()
        assert len(call.result().images) == 1
    assert steps == [0]


def test_a_callback_may_call_the_pipeline(pipe):
    """The inner call leaves the outer one's guidance alone, and the other way round."""
    inner, plain = [], {"seed": 3, **FAST}  # what it draws, and how

    def callback(pipeline, step, timestep, tensors):
        if step == 1:
            inner.append(pipeline(PROMPTS[1], **plain).images)
        assert (pipeline.guidance_scale, pipeline.num_timesteps) == (5.0, 4)
        return tensors

    settings = {"guidance_scale": 5.0, "num_inference_steps": 4, "output_type": "latent", "seed": 1}
    outer = pipe(PROMPTS[0], callback_on_step_end=callback, **settings).images
    assert torch.equal(outer, pipe(PROMPTS[0], **settings).images)
    assert torch.equal(inner[0], pipe(PROMPTS[1], **plain).images)


def test_a_finished_call_keeps_no_pipeline_alive():
    pipe = tiny_pipeline()
    pipe(PROMPTS[0], **FAST)
    known = weakref.ref(pipe)
    del pipe
    gc.collect()
    assert known() is None


# ------------------------------------------------------------------------------------------------------------ answering


@pytest.mark.parametrize("path", ["understanding", "diffusion", "vq"])
def test_answers_are_those_of_bare_generate_whatever_the_batch(pipe, path):
    questions = ["what color is the circle?", "is there a square?", "red or blue? say yes", "a"]
    images = [picture(i) for i in range(4)]
    answers = pipe.answer(images, questions, path=path, max_new_tokens=5)
    assert answers == pipe.answer(images, questions, path=path, max_new_tokens=5, max_batch=3)
    tokens = pipe.processor.special_tokens
    banned = [tokens.begin_image, tokens.end_image, tokens.understanding, tokens.diffusion, tokens.vq]
    for image, question, answer in zip(images, questions, answers, strict=True):
        message = {"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": question}]}
        document = pipe.processor.prompt([message], read=path)
        pixels = document.images[0].pixels[None]
        if path == "understanding":
            media = {"pixel_values": pixels}
        elif path == "diffusion":
            media = {"latents": pixels, "timesteps": torch.zeros(1)}
        else:
            media = {"codes": pipe.vq_codec.encode(pixels)}
        ids = torch.tensor([document.layout.input_ids])
        written = pipe.model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=5, suppress_tokens=banned,
            eos_token_id=pipe.processor.tokenizer.eos_token_id, **media,
        )[0, ids.shape[1] :]  # fmt: skip
        assert answer == pipe.processor.tokenizer.decode(written, skip_special_tokens=True).strip()


def test_rows_whose_answer_has_ended_leave_the_batch():
    """The end is made a token that one of the answers holds and another does not."""
    pipe = tiny_pipeline()
    torch.nn.init.normal_(pipe.model.lm_head.weight, generator=Generator().manual_seed(0))
    tokenizer, images = pipe.processor.tokenizer, [picture(i) for i in range(6)]
    questions = ["what color is the circle?", "is there a square?", "red or blue?", "a", "yes", "draw no square"]
    embeddings, rows = pipe.model.get_input_embeddings(), []

    def tokens_of(image, question) -> list[int]:
        """The answer's tokens, by the words that it is read again from."""
        read = []
        handle = embeddings.register_forward_hook(lambda module, inputs, output: read.append(inputs[0]))
        pipe.answer(image, question, max_new_tokens=8)
        handle.remove()
        return [int(ids) for ids in read if ids.numel() == 1]

    free = [tokens_of(image, question) for image, question in zip(images, questions, strict=True)]
    ends = [token for answer in free for token in answer if not all(token in other for other in free)]
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(ends[0])
    alone = [pipe.answer(*asked, max_new_tokens=8)[0] for asked in zip(images, questions, strict=True)]
    handle = embeddings.register_forward_hook(lambda module, inputs, output: rows.append(len(inputs[0])))
    assert pipe.answer(images, questions, max_new_tokens=8) == alone
    handle.remove()
    assert rows == sorted(rows, reverse=True)
    assert rows[0] == 6 > rows[-1]


def test_one_image_or_one_question_stands_beside_all_of_the_other(pipe):
    images, questions = [picture(0), picture(1)], ["what color?", "is there a square?"]
    assert pipe.answer(images[0], questions, max_new_tokens=8) == pipe.answer(
        [images[0]] * 2, questions, max_new_tokens=8
    )
    assert pipe.answer(images, questions[0], max_new_tokens=8) == pipe.answer(
        images, [questions[0]] * 2, max_new_tokens=8
    )
    assert len(pipe.answer(images[0], questions[0], max_new_tokens=8)) == 1


def generated(pipe, pictures: list, question: str, count: int) -> str:
    """The answer of bare `generate` to a question about several pictures, read by the vision tower."""
    content = [*({"type": "image", "image": each} for each in pictures), {"type": "text", "text": question}]
    document, tokens = pipe.processor.prompt([{"role": "user", "content": content}]), pipe.processor.special_tokens
    banned = [tokens.begin_image, tokens.end_image, tokens.understanding, tokens.diffusion, tokens.vq]
    ids = torch.tensor([document.layout.input_ids])
    written = pipe.model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=count, suppress_tokens=banned,
        eos_token_id=pipe.processor.tokenizer.eos_token_id, pixel_values=torch.stack(document.pixels("understanding")),
    )[0, ids.shape[1] :]  # fmt: skip
    return pipe.processor.tokenizer.decode(written, skip_special_tokens=True).strip()


@pytest.mark.parametrize("path", ["understanding", "diffusion", "vq"])
def test_a_question_may_have_several_pictures_whatever_stands_beside_it(pipe, path):
    """Unlike numbers of pictures, and prompts of unlike length, in one call: each as if it were alone."""
    images = [[picture(0), picture(1)], picture(2), [picture(1)], (picture(3), picture(0), picture(2))]
    questions = ["what color is the circle?", "a", "is there a square? red or blue? say yes", "red or blue?"]
    together = pipe.answer(images, questions, path=path, max_new_tokens=5)
    alone = [
        pipe.answer([of], asked, path=path, max_new_tokens=5)[0] for of, asked in zip(images, questions, strict=True)
    ]
    assert together == alone
    if path == "understanding":
        assert together[0] == generated(pipe, images[0], questions[0], 5)
        assert together[3] == generated(pipe, images[3], questions[3], 5)
    assert pipe.answer([images[0]], questions[:2], path=path, max_new_tokens=5)[0] == together[0]
    batch = np.stack([np.asarray(each) for each in images[0]])  # an array of four axes: a picture for each question
    assert pipe.answer(batch, questions[:2], path=path, max_new_tokens=5) == pipe.answer(
        images[0], questions[:2], path=path, max_new_tokens=5
    )


def conversations() -> list[list[dict]]:
    """No picture; a picture and a turn before; two pictures, one the assistant's; a question about one picture."""

    def turn(role: str, *content) -> dict:
        content = [
            {"type": "text", "text": c} if isinstance(c, str) else {"type": "image", "image": c} for c in content
        ]
        return {"role": role, "content": content}

    return [
        [{"role": "user", "content": "red or blue?"}],
        [turn("user", picture(0), "what color?"), turn("assistant", "red"), turn("user", "is there a square?")],
        [turn("user", "a"), turn("assistant", picture(1)), turn("user", picture(2), "red or blue? say yes")],
        [turn("user", picture(3), "what color is the circle?")],
    ]


def test_replies_to_conversations_are_those_of_bare_generate_whatever_stands_beside(pipe):
    tokens = pipe.processor.special_tokens
    banned = [tokens.begin_image, tokens.end_image, tokens.understanding, tokens.diffusion, tokens.vq]
    together = pipe.reply(conversations(), max_new_tokens=5)
    assert together == pipe.reply(conversations()[::-1], max_new_tokens=5, max_batch=2)[::-1]
    for messages, reply in zip(conversations(), together, strict=True):
        document = pipe.processor.prompt(messages)
        ids, pixels = torch.tensor([document.layout.input_ids]), document.pixels("understanding")
        written = pipe.model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=5, suppress_tokens=banned,
            eos_token_id=pipe.processor.tokenizer.eos_token_id,
            pixel_values=torch.stack(pixels) if pixels else None,
        )[0, ids.shape[1] :]  # fmt: skip
        assert reply == pipe.processor.tokenizer.decode(written, skip_special_tokens=True).strip()
    assert pipe.answer(picture(3), "what color is the circle?", max_new_tokens=5) == together[3:]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], "conversations is \\[\\]; give a list of at least one list of messages"),
        ({"role": "user", "content": "a"}, "conversations is .*; give a list of at least one"),
        ([[]], "conversation 0: messages must be a list of at least one message"),
        (
            [[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]],
            "0 ends with a turn of the assis",
        ),
        ([[{"role": "user", "content": [{"type": "image", "image": "none.png"}]}]], "none.png"),
    ],
)
def test_refuses_what_is_no_conversation_to_reply_to(pipe, given, words):
    with pytest.raises(ValueError, match=words):
        pipe.reply(given)


@torch.no_grad()
def test_replies_are_as_likely_as_their_tokens_are_one_by_one(pipe):
    """After each conversation alone; the end of the turn counts, and no word of the assistant's that stands before."""
    tokens, given = pipe.processor.special_tokens, ["red", "yes, a red circle", "a", "no no"]
    banned = torch.tensor([tokens.begin_image, tokens.end_image, tokens.understanding, tokens.diffusion, tokens.vq])
    scored = pipe.score_replies(conversations(), given, with_greedy=True, max_batch=2)
    for messages, reply, likelihood in zip(conversations(), given, scored, strict=True):
        prompt = pipe.processor.prompt(messages)
        words = pipe.processor.tokenizer.encode(reply, add_special_tokens=False)
        ids = torch.tensor([[*prompt.layout.input_ids, *words, pipe.processor.tokenizer.eos_token_id]])
        pixels = prompt.pixels("understanding")
        logits = pipe.model(ids, pixel_values=torch.stack(pixels) if pixels else None).logits[0, len(prompt) - 1 : -1]
        targets = ids[0, len(prompt) :]
        each = logits.log_softmax(-1)[range(len(targets)), targets]
        assert likelihood.nats == pytest.approx(float(each.sum()), abs=1e-4)  # measured 6e-6
        assert likelihood.tokens == len(words) + 1
        assert likelihood.greedy == bool((logits.index_fill(-1, banned, -torch.inf).argmax(-1) == targets).all())
    assert [one.greedy for one in pipe.score_replies(conversations(), given)] == [None] * 4
    alone = pipe.score_answers(picture(3), "what color is the circle?", ["no no"])[0]
    assert alone.nats == pytest.approx(scored[3].nats, abs=1e-5)
    with pytest.raises(ValueError, match="4 conversations have 1 replies; give one for each"):
        pipe.score_replies(conversations(), ["red"])
    with pytest.raises(ValueError, match="0 ends with a turn of the assistant"):
        pipe.score_replies([[*conversations()[0], {"role": "assistant", "content": "a"}]], ["red"])


@torch.no_grad()
def test_a_reply_that_is_written_is_the_likeliest_token_by_token(pipe):
    """What `reply` writes up to its end is what `greedy` says yes to."""
    document = pipe.processor.prompt(conversations()[0])
    start = torch.tensor([document.layout.input_ids])
    eos = pipe.processor.tokenizer.eos_token_id
    head = pipe.model.lm_head.weight
    state = pipe.model.model(start).last_hidden_state[0, -1]
    word = pipe.processor.tokenizer.encode("a", add_special_tokens=False)
    assert len(word) == 1
    after = pipe.model.model(torch.cat([start, torch.tensor([word])], 1)).last_hidden_state[0, -1]
    saved = head.data.clone()
    try:
        for token, towards in ((word[0], state), (eos, after)):  # its row answers to that state alone
            other = after if towards is state else state
            row = towards / towards.norm() - (other @ towards) / (other @ other) / towards.norm() * other
            head.data[token] = 1000 * row
        assert pipe.reply(conversations()[:1]) == ["a"]
        (likelihood,) = pipe.score_replies(conversations()[:1], ["a"], with_greedy=True)
        assert likelihood.greedy
        assert not pipe.score_replies(conversations()[:1], ["b"], with_greedy=True)[0].greedy
    finally:
        head.data.copy_(saved)


def test_answers_have_all_the_room_there_is_and_say_when_they_were_cut(pipe, monkeypatch):
    """And room is made as it is needed, not for thousands of tokens before the first."""
    rooms, inner = [], Decoder.continue_from
    monkeypatch.setattr(
        Decoder, "continue_from", lambda *given, **named: rooms.append(len(given[2])) or inner(*given, **named)
    )
    monkeypatch.setattr("hybridgen.pipeline_hybridgen.strip_reasoning", lambda text: text)  # random words may hold some
    context = 150
    monkeypatch.setattr(pipe.model.config.text_config, "max_position_embeddings", context)
    document = pipe.processor.prompt(
        [{"role": "user", "content": [{"type": "image", "image": picture(0)}, {"type": "text", "text": "what color?"}]}]
    )
    (answer,) = pipe.answer(picture(0), "what color?")
    assert answer.truncated
    assert rooms[0] == 31
    assert sum(rooms) == context - len(document) - 1  # the last token is written, but not read
    assert answer.startswith(pipe.answer(picture(0), "what color?", max_new_tokens=40)[0])
    assert pipe.answer(picture(0), "what color?", max_new_tokens=70)[0] == generated(
        pipe, [picture(0)], "what color?", 70
    )
    together = pipe.answer([picture(0), picture(1)], ["what color?", "is there a square? yes or no?"])
    assert together[0] == answer
    again = pickle.loads(pickle.dumps(answer))
    assert (again, again.truncated, isinstance(again, str)) == (answer, True, True)


def test_an_answer_that_ends_by_itself_is_not_cut(pipe):
    def ends(module, inputs, logits):
        return torch.full_like(logits, -1.0).index_fill(-1, torch.tensor(pipe.processor.tokenizer.eos_token_id), 1.0)

    handle = pipe.model.lm_head.register_forward_hook(ends)
    answers = [pipe.answer(picture(0), "a", max_new_tokens=limit)[0] for limit in (None, 1)]
    events = list(pipe.chat(plan=["text"]).send("a", max_new_tokens=1))
    handle.remove()
    assert [(answer, answer.truncated) for answer in answers] == [("", False)] * 2
    assert not events[-1].truncated
    assert list(pipe.chat(plan=["text"]).send("a", max_new_tokens=1))[-1].truncated
    assert pipe.chat().ask("a", max_new_tokens=1).truncated


def test_drawn_words_are_those_of_the_seed_whatever_is_asked_beside_it(pipe):
    images, questions = [picture(i) for i in range(3)], ["what color?", "is there a square? yes or no? red?", "a"]
    how = {"temperature": 1.5, "top_k": 40, "top_p": 0.95, "max_new_tokens": 8}
    together = pipe.answer(images, questions, seed=2**64 - 2, **how)
    assert together == pipe.answer(images, questions, seed=[2**64 - 2, 2**64 - 1, 0], max_batch=2, **how)
    assert together[1] == pipe.answer(images[1], questions[1], seed=2**64 - 1, **how)[0]
    assert together[0] == pipe.chat().ask(
        questions[0],
        [images[0]],
        seed=2**64 - 2,
        text_temperature=1.5,
        text_top_k=40,
        text_top_p=0.95,
        max_new_tokens=8,
    )
    likeliest = pipe.answer(images, questions, max_new_tokens=8)
    assert together != likeliest
    assert pipe.answer(images, questions, seed=1, do_sample=False, **how) == likeliest
    assert pipe.answer(images, questions, seed=1, **{**how, "temperature": 0}) == likeliest
    hot = {"seed": 1, "max_new_tokens": 8}
    assert pipe.answer(images, questions, do_sample=True, **hot) == pipe.answer(images, questions, temperature=1, **hot)
    with pytest.raises(ValueError, match="temperature is 0, .* but do_sample is True; give a temperature above 0"):
        pipe.answer(images, questions, do_sample=True, temperature=0)


def test_answers_come_without_their_reasoning(pipe):
    """The head is made to write a fixed text: the state after each of its words wants the next one."""
    tokenizer, head = pipe.processor.tokenizer, pipe.model.lm_head
    written = iter(tokenizer("<think>a red circle</think>yes")["input_ids"] + [tokenizer.eos_token_id])

    def wants_next(module, inputs, logits):
        return torch.full_like(logits, -1.0).index_fill(-1, torch.tensor(next(written)), 1.0)

    handle = head.register_forward_hook(wants_next)
    answers = pipe.answer(picture(0), "is there a circle?")
    handle.remove()
    assert answers == ["yes"]


def test_answers_hold_no_token_of_images(pipe):
    """The head is made to want a placeholder whatever the state: for one of two opposite rows the logit is largest."""
    tokens, head = pipe.processor.special_tokens, pipe.model.lm_head.weight
    kept = head.detach().clone()
    with torch.no_grad():
        head[tokens.vq] = 50 * torch.randn(head.shape[1])
        head[tokens.begin_image] = -head[tokens.vq]
        answers = pipe.answer(picture(0), "what color?", max_new_tokens=8)
        head.copy_(kept)
    assert answers == pipe.answer(picture(0), "what color?", max_new_tokens=8)


# ------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"path": "difusion"}, "no path 'difusion' here; this model has: understanding, diffusion, vq"),
        ({"path": "understanding"}, "the understanding path only reads images; to draw, .* diffusion, vq"),
        ({"prompt": []}, r"prompt is \[\]; give a text or a list of at least one text"),
        ({"prompt": ["a", 3]}, "give a text or a list of at least one text"),
        ({"prompt": "red <vq_placeholder>"}, "a text contains '<vq_placeholder>'"),
        ({"height": 10, "width": 16}, "size 10x16 is not divisible by the patch size 4; the nearest that is: 8x16"),
        ({"height": 10}, "size 10x16 is not divisible by the patch size 4"),
        ({"read": "vq"}, "read is 'vq', a path to read an image by, but none is given"),
        ({"guidance_scale": -1.0}, "guidance_scale is -1.0; it must be a number of at least 0"),
        ({"guidance_scale": [1.0, 2.0]}, "guidance_scale is a list of 2 for 1 prompts; give one for each"),
        ({"guidance_scale": [float("nan")]}, "guidance_scale is nan; it must be a number of at least 0"),
        ({"guidance_rescale": 2.0}, "guidance_rescale is 2.0; it must be a number from 0 to 1"),
        ({"guidance_interval": [0.5]}, r"guidance_interval is \[0.5\]; give two shares from 0 to 1, where it begins"),
        ({"guidance_interval": (0.5, 0.2)}, r"guidance_interval is \(0.5, 0.2\); it ends before it begins"),
        ({"guidance_interval": (0, 1.5)}, "guidance_interval is 1.5; it must be a number from 0 to 1"),
        ({"guider": 3.0}, "guider is 3.0; give one of diffusers.guiders"),
        ({"guider": TangentialClassifierFreeGuidance()}, "TangentialClassifierFreeGuidance cannot guide here"),
        ({"guider": AdaptiveProjectedGuidance(), "path": "vq"}, r"norm_threshold \(.*_rescale\) is 15"),
        ({"guider": Guidance(2.0, method="apg", momentum=-0.5), "path": "vq"}, r"momentum \(.*\) is -0.5, .* set"),
        ({"guider": ClassifierFreeZeroStarGuidance(3.0), "path": "vq"}, "zero_init_steps is 1, .* set it to 0"),
        ({"image_guidance_scale": 2.0}, "image_guidance_scale leads to an image, but none is given"),
        (
            {"image": Image.new("RGB", (4, 4)), "image_guidance_scale": 2.0, "guider": Guidance(3.0, method="apg")},
            "guidance by apg knows no image_guidance_scale",
        ),
        ({"image": [1, 2]}, "image is a list of 2 for 1 prompts"),
        ({"image": "x.png"}, "there is no image x.png"),
        ({"image": Image.new("RGB", (4, 4)), "read": "sight"}, "no path 'sight' here"),
        ({"height": [16, 8], "width": 16}, "height is a list of 2 for 1 prompts"),
        ({"height": 0, "width": 16}, "height is 0; it must be a whole number of at least 1"),
        ({"height": 16.0, "width": 16}, "height is 16.0; it must be a whole number"),
        ({"height": 400, "width": 400}, r"needs 10001 more, .* context is 512 \(\w+\); draw a smaller picture$"),
        ({"num_images_per_prompt": 10**9}, "num_images_per_prompt is 1000000000; it must be .* from 1 to 1000000"),
        ({"latents": torch.full((1, 3, 16, 16), float("nan"))}, "latents hold values that are NaN or infinite; give"),
        ({"image": {"url": "x.png"}}, "an image as a dict holds 'bytes' or 'path', but this one holds 'url'"),
        ({"shift": -1.0}, "shift is -1.0; it must be a number above 0"),
        ({"num_inference_steps": 1001}, "num_inference_steps is 1001; the process has 1000 timesteps, take fewer"),
        ({"num_inference_steps": 0}, "num_inference_steps is 0; it must be a whole number of at least 1"),
        ({"num_inference_steps": 2.5}, "num_inference_steps is 2.5"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt is 0"),
        ({"max_batch": 0}, "max_batch is 0"),
        ({"seed": [1, 2]}, "seed is a list of 2, but 1 images are to be drawn"),
        ({"seed": 1, "generator": Generator()}, "give seed or generator, not both"),
        ({"generator": [Generator()] * 3}, "generator is a list of 3, but 1 images are to be drawn"),
        ({"negative_prompt": ["a", "b"]}, "negative_prompt is a list of 2 for 1 prompts; give one for each"),
        ({"output_type": "jpg"}, "output_type is 'jpg'; it must be one of 'pil', 'np', 'pt', 'latent'"),
        ({"path": "vq", "temperature": -1.0}, "temperature is -1.0"),
        ({"path": "vq", "top_p": 2.0}, "top_p is 2.0"),
        ({"prompt": "circle " * 600}, r"prompt 'circle circle .*\.\.\.' has \d+ tokens and the picture needs 17 more"),
        ({"callback_on_step_end_tensor_inputs": ["noise"]}, "only 'latents' can be handed over"),
    ],
)  # fmt: skip
def test_what_cannot_be_drawn_is_refused_in_one_sentence_before_any_work(pipe, call, message):
    forwards = []
    handle = pipe.model.model.language_model.register_forward_hook(lambda *given: forwards.append(1))
    with pytest.raises(ValueError, match=message) as caught:
        pipe(**{"prompt": "a red circle", **call})
    handle.remove()
    assert not forwards
    assert "\n" not in str(caught.value)


def test_a_scheduler_of_another_process_is_refused(pipe):
    other = HybridGenPipeline(pipe.model, pipe.processor, DDIMScheduler(), vq_model=pipe.vq_model)
    with pytest.raises(ValueError, match="DDIMScheduler samples a DDPM process, but the model was trained with"):
        other("a red circle")
    assert len(other("a red circle", path="vq").images) == 1


def test_paths_that_lack_something_say_so(pipe):
    without = HybridGenPipeline(pipe.model, pipe.processor)
    with pytest.raises(ValueError, match="the vq path needs a tokenizer, but this pipeline has no vq_model"):
        without("a", path="vq")
    with pytest.raises(ValueError, match="no vq_model"):
        without.answer(picture(0), "a", path="vq")
    latent = tiny_pipeline(tiny_vae())
    latent.vae = None
    with pytest.raises(ValueError, match="the diffusion path works on 4 channels, but this pipeline has no vae"):
        latent("a")
    with pytest.raises(ValueError, match="no path that writes images"):
        tiny_pipeline(diffusion_config=None, vq_config=None)("a")
    with pytest.raises(ValueError, match="no path 'diffusion' here; this model has: understanding"):
        tiny_pipeline(diffusion_config=None, vq_config=None).answer(picture(0), "a", path="diffusion")


@pytest.mark.parametrize(
    ("images", "questions", "settings", "message"),
    [
        (2, 3, {}, "2 images and 3 questions do not pair"),
        (0, 1, {}, "0 images and 1 questions leave nothing to answer"),
        (1, 0, {}, "1 images and 0 questions leave nothing to answer"),
        (1, 1, {"path": "seeing"}, "no path 'seeing' here; this model has: understanding, diffusion, vq"),
        (1, 1, {"max_new_tokens": 0}, "max_new_tokens is 0"),
        (
            1,
            1,
            {"max_new_tokens": 1000},
            r"the answer needs 1000 more, .* context is 512 \(\w+\); ask for fewer new tokens$",
        ),
        (1, 1, {"path": []}, r"path is \[\]; name a path"),
        (1, 1, {"seed": [1, 2]}, "seed is a list of 2, but 1 questions are asked: give one per question"),
    ],
)
def test_what_cannot_be_answered_is_refused(pipe, images, questions, settings, message):
    with pytest.raises(ValueError, match=message):
        pipe.answer([picture(i) for i in range(images)], ["what color?"] * questions, **settings)


@pytest.mark.parametrize(
    ("path", "change", "sentence"),
    [
        ("diffusion", lambda latents: None, "returned latents of None; return floats of shape"),
        ("diffusion", lambda latents: latents[..., :3], "returned latents of shape .* as given$"),
        ("diffusion", lambda latents: latents.long(), "torch.int64; return floats of shape"),
        ("vq", lambda codes: codes * 1.5, "torch.float32; return whole numbers of shape"),
    ],
)
def test_a_callback_returns_what_the_loop_can_go_on_with(pipe, path, change, sentence):
    with pytest.raises(ValueError, match=sentence):
        pipe("a", path=path, seed=0, callback_on_step_end=lambda *given: {"latents": change(given[3]["latents"])})


def test_a_callback_sets_guidance_that_means_something(pipe):
    with pytest.raises(ValueError, match="guidance_scale is 'x'; it must be a number"):
        pipe("a", callback_on_step_end=lambda pipe, *given: setattr(pipe, "_guidance_scale", "x"))


def test_the_way_out_of_too_long_a_question_is_one_that_works(pipe):
    """What is too much is said: words that can be taken off, pictures, or new tokens; nothing shorter than nothing."""
    with pytest.raises(ValueError, match=r"\); shorten it by \d+ tokens$"):
        pipe.answer(picture(0), "what color? " * 300)
    with pytest.raises(ValueError, match=r"\); shorten it by \d+ tokens, or show fewer pictures$"):
        pipe.answer([[picture(0)] * 200], "what color?")
    with pytest.raises(ValueError, match=r"\); shorten it by \d+ tokens, or ask for fewer new tokens$"):
        pipe.answer(picture(0), "what color?", max_new_tokens=511)
    with pytest.raises(ValueError, match="questions is 3; give a text"):
        pipe.answer(picture(0), 3)


# ----------------------------------------------------------------------------------------------------- saved and loaded


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


@pytest.mark.parametrize("with_vae", [True, False])
def test_save_load_save_changes_no_byte(tmp_path, with_vae):
    pipe = tiny_pipeline(tiny_vae() if with_vae else None)
    pipe.save_pretrained(tmp_path / "first")
    loaded = load_pipeline(tmp_path / "first")
    loaded.save_pretrained(tmp_path / "second")
    first, second = files(tmp_path / "first"), files(tmp_path / "second")
    assert set(first) == set(second)
    assert [name for name in first if first[name] != second[name]] == []
    assert str(tmp_path).encode() not in b"".join(first.values()) + b"".join(second.values())
    HybridGenPipeline.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "third")
    assert files(tmp_path / "third") == first
    loaded.set_progress_bar_config(disable=True)
    for path in ("diffusion", "vq"):
        settings = {"path": path, "seed": 0, **FAST}
        assert same(loaded(PROMPTS[:2], **settings).images, pipe(PROMPTS[:2], **settings).images)


def test_components_are_found_by_module_path_in_a_fresh_process(tmp_path, pipe):
    pipe.save_pretrained(tmp_path)
    code = (
        "import hybridgen, sys; from hybridgen.pipeline_hybridgen import HybridGenPipeline;"
        "pipe = HybridGenPipeline.from_pretrained(sys.argv[1]);"
        "print(len(pipe('a red circle', num_inference_steps=2).images), type(pipe.vq_model).__name__, pipe.vae)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "JanusVQVAE", "None"]
    index = (tmp_path / "model_index.json").read_text()
    assert '"hybridgen.modeling_hybridgen"' in index
    assert '"hybridgen.processing_hybridgen"' in index


def test_a_pipeline_without_optional_parts_round_trips(tmp_path):
    tiny_pipeline(diffusion_config=None, vq_config=None).save_pretrained(tmp_path)
    loaded = load_pipeline(tmp_path)
    assert (loaded.scheduler, loaded.vae, loaded.vq_model) == (None, None, None)
    assert len(loaded.answer(picture(0), "what color?", max_new_tokens=2)) == 1


# ---------------------------------------------------------------------------------------------------------- precision


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_fewer_bits_draw_nearly_the_same_pictures(pipe, precision):
    exact = pipe(PROMPTS, path="diffusion", seed=0, **FAST).images
    rough = pipe(PROMPTS, path="diffusion", seed=0, precision=precision, **FAST).images
    assert 0 < (exact - rough).norm() / exact.norm() < 0.05  # measured 0.004 (bf16), 0.008 (int8)
    codes = pipe(PROMPTS, path="vq", seed=0, precision=precision, output_type="latent").images
    assert (codes == pipe(PROMPTS, path="vq", seed=0, output_type="latent").images).float().mean() > 0.5


def test_copied_weights_are_kept_until_they_change():
    pipe = tiny_pipeline()
    first = pipe.decoder("bf16")
    assert pipe.decoder("bf16") is first
    with torch.no_grad():
        pipe.model.model.language_model.norm.weight.mul_(2)
    assert pipe.decoder("bf16") is not first


def test_a_precision_that_is_none_is_refused_before_anything_is_read(pipe):
    with pytest.raises(ValueError, match="precision is 'fp8'; it must be one of 'model', 'fp32', 'bf16', 'int8'"):
        pipe(PROMPTS[0], precision="fp8")


def test_a_window_of_codes_changes_no_picture(pipe):
    one, several = (pipe(PROMPTS, path="vq", seed=0, window=window, output_type="latent").images for window in (1, 4))
    assert torch.equal(one, several)
    assert rows_seen(pipe, prompt=PROMPTS[0], path="vq", window=1) == [2] * 16
    assert len(rows_seen(pipe, prompt=PROMPTS[0], path="vq", window=16, temperature=0)) < 16
    with pytest.raises(ValueError, match="window is 0"):
        pipe(PROMPTS, path="vq", window=0)
