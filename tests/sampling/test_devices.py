"""Sampling on an accelerator, pretended: every flow runs, and inner loops read nothing from the device but what decides
how they go on."""

import functools

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from diffusers.guiders import (
    AdaptiveProjectedGuidance,
    ClassifierFreeGuidance,
    ClassifierFreeZeroStarGuidance,
)

from hybridgen import HybridGenForMultimodalLM
from hybridgen.sampling import decoder
from tests.pipelines import tiny_pipeline, tiny_vae
from tests.pretended_device import DEVICE, host_reads, pretended_device, put_on
from tests.processors import picture

PIXELS = {"patch_size": 4, "sample_size": 16, "frequency_embedding_size": 32}
COSINE = PIXELS | {"prediction_type": "epsilon", "noise_schedule": "cosine"}
KINDS = {
    "pixels": {},
    "vae": {"vae": True},
    "llama": {"backbone": "llama"},
    "cosine": {"diffusion_config": COSINE},
    "causal": {"diffusion_config": PIXELS | {"bidirectional": False}},
    "experts": {"diffusion_config": PIXELS | {"modality_experts": True}},
    "unet": {"diffusion_config": PIXELS | {"unet_channels": [8, 16]}},
}
TWO = ["a red circle", "draw"]


@functools.cache
def there(kind: str = "pixels"):
    """A pipeline on the pretended device."""
    settings = dict(KINDS[kind])
    pipeline = tiny_pipeline(tiny_vae() if settings.pop("vae", False) else None, **settings)
    for part in (pipeline.model, pipeline.vae, pipeline.vq_model):
        if part is not None:
            put_on(part)
    return pipeline


def drawn(kind: str = "pixels", prompts=TWO, path: str = "diffusion", scheduler=None, **settings) -> None:
    pipeline = there(kind)
    given = pipeline.scheduler
    steps = {"num_inference_steps": 3} if path == "diffusion" else {}
    try:
        pipeline.scheduler = given if scheduler is None else scheduler
        images = pipeline(prompts, path=path, **{**steps, "seed": 0, **settings}).images
    finally:
        pipeline.scheduler = given
    assert len(images) == (1 if isinstance(prompts, str) else len(prompts))


def answered(kind: str = "pixels", path: str = "understanding", **settings) -> None:
    answers = there(kind).answer(
        [picture(), picture(seed=1)], ["what color", "is there a square?"], path=path, max_new_tokens=4, **settings
    )
    assert len(answers) == 2


def chatted(path: str) -> None:
    chat = there().chat(path=path, seed=0)
    chat.draw("a red circle", **({"num_inference_steps": 2} if path == "diffusion" else {}))
    chat.ask("what color", images=[picture()], max_new_tokens=4)
    other = chat.fork()
    other.rollback(1)
    assert len(other.messages) < len(chat.messages)


def streamed(**settings) -> None:
    events = there().stream([{"role": "user", "content": "a"}], max_new_tokens=4, seed=0, **settings)
    assert list(events)


CASES = {
    "pixels, guided": lambda: drawn(guidance_scale=2.0),
    "latents of a VAE": lambda: drawn("vae", guidance_scale=2.0),
    "a scale a prompt, rescaled and shifted": lambda: drawn(guidance_scale=[1.0, 3.0], guidance_rescale=0.5, shift=2.0),
    "a picture in the prompt": lambda: drawn(
        prompts="a red", image=picture(), image_guidance_scale=1.5, guidance_scale=3.0, read="vq"
    ),
    "latents given": lambda: drawn(prompts="a", latents=torch.randn(1, 3, 16, 16), guidance_scale=1.0),
    "a callback": lambda: drawn(prompts="a", callback_on_step_end=lambda pipe, step, timestep, given: given),
    "another size": lambda: drawn(prompts="a", height=8, width=16),
    "in parts": lambda: drawn(prompts=[*TWO, "a"], max_batch=2),
    "causal diffusion": lambda: drawn("causal", guidance_scale=2.0),
    "modality experts": lambda: drawn("experts", guidance_scale=2.0),
    "a U-Net": lambda: drawn("unet", guidance_scale=2.0),
    "codes, guided": lambda: drawn(path="vq", guidance_scale=2.0),
    "codes of llama": lambda: drawn("llama", path="vq", guidance_scale=2.0),
    "codes in windows": lambda: drawn(prompts="a", path="vq", window=4),
    "codes of the likeliest": lambda: drawn(prompts="a", path="vq", top_k=5, top_p=0.9, temperature=0.7),
    "answers by understanding": answered,
    "answers by diffusion": lambda: answered(path="diffusion"),
    "answers by vq": lambda: answered(path="vq"),
    "answers through a VAE": lambda: answered("vae", path="diffusion"),
    "sampled answers": lambda: answered(temperature=1.0, seed=0),
    "a chat with pictures by diffusion": lambda: chatted("diffusion"),
    "a chat with pictures by vq": lambda: chatted("vq"),
    "a stream by plan with previews": lambda: streamed(
        plan=["image", "text"], preview_every=2, path="diffusion", num_inference_steps=4
    ),
    "a stream that decides": lambda: streamed(text_temperature=1.0),
}
for guider in (
    ClassifierFreeGuidance(4.0, start=0.2, stop=0.8),
    AdaptiveProjectedGuidance(4.0, eta=0.0, stop=0.8, adaptive_projected_guidance_rescale=0.0),
    ClassifierFreeZeroStarGuidance(4.0, zero_init_steps=1),
):
    for by in ("diffusion", "vq"):
        if by == "diffusion" or not isinstance(guider, ClassifierFreeZeroStarGuidance):
            CASES[f"{type(guider).__name__} by {by}"] = functools.partial(drawn, prompts="a", path=by, guider=guider)
for of_ddpm in (
    DDPMScheduler(beta_schedule="squaredcos_cap_v2", clip_sample=False),
    DDIMScheduler(beta_schedule="squaredcos_cap_v2", clip_sample=False),
    DPMSolverMultistepScheduler(beta_schedule="squaredcos_cap_v2"),
    EulerAncestralDiscreteScheduler(beta_schedule="squaredcos_cap_v2"),
    UniPCMultistepScheduler(beta_schedule="squaredcos_cap_v2"),
):
    CASES[f"cosine by {type(of_ddpm).__name__}"] = functools.partial(
        drawn, "cosine", "a", scheduler=of_ddpm, num_inference_steps=12, guidance_scale=2.0
    )
for of_flow in (
    FlowMatchEulerDiscreteScheduler(),
    FlowMatchHeunDiscreteScheduler(),
    UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction"),
    DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction"),
):
    CASES[f"flow by {type(of_flow).__name__}"] = functools.partial(
        drawn, prompts="a", scheduler=of_flow, num_inference_steps=12, guidance_scale=2.0
    )


@pytest.mark.parametrize("name", CASES)
def test_every_flow_runs_on_another_device(name):
    with pretended_device(float64=False):
        CASES[name]()


@pytest.mark.parametrize("precision", ["model", "fp32", "bf16"])
@pytest.mark.parametrize("path", ["diffusion", "vq"])
def test_the_faster_forward_runs_on_another_device(monkeypatch, precision, path):
    monkeypatch.setattr(decoder, "why_not_fused", lambda model: None)  # a pretended tensor is no plain parameter
    with pretended_device(float64=False):
        drawn(path=path, precision=precision, guidance_scale=2.0)


def test_the_any_to_any_class_runs_on_another_device(tmp_path):
    tiny_pipeline(tiny_vae()).save_pretrained(tmp_path)
    model = HybridGenForMultimodalLM.from_pretrained(tmp_path).eval()
    processor = model.pipeline.processor

    def given(**content) -> dict:
        made = processor(**content, return_tensors="pt")
        return {name: value.to(DEVICE) for name, value in made.items() if isinstance(value, torch.Tensor)}

    with pretended_device(float64=False):
        for part in (model, model.pipeline.vae, model.pipeline.vq_model):
            put_on(part)
        text, read = given(text=TWO), given(images=[picture()], text=["<image_placeholder> what"])
        for options in ({"path": "vq", "do_sample": True}, {"path": "diffusion", "num_inference_steps": 2}):
            tokens = model.generate(**text, generation_mode="image", seed=0, guidance_scale=2.0, **options)
            assert len(model.decode_image_tokens(tokens)) == 2
        for beams in (1, 2):
            assert len(model.generate(**read, max_new_tokens=4, do_sample=False, num_beams=beams)) == 1


def reads(case, *sizes: int) -> list[int]:
    counted = []
    for size in sizes:
        with host_reads() as seen:
            case(size)
        counted.append(len(seen))
    return counted


@pytest.mark.parametrize("fused", [False, True])
def test_inner_loops_do_not_wait_for_the_device(monkeypatch, fused):
    """Reads of the device from 4 to 8 denoising steps: no more; from 4 to 16 codes: no more; in windows one a pass,
    whether the codes have settled; of text one a token, whether it has ended. A whole call of a prompt: 5."""
    if fused:
        monkeypatch.setattr(decoder, "why_not_fused", lambda model: None)
    with pretended_device(float64=False):
        calls = {
            "steps": (lambda n: drawn(prompts="a", num_inference_steps=n, guidance_scale=2.0), 4, 8),
            "codes": (lambda n: drawn(prompts="a", path="vq", height=n, width=n, guidance_scale=2.0), 8, 16),
            "windows": (lambda n: drawn(prompts="a", path="vq", height=n, width=n, window=4), 8, 16),
            "text": (
                lambda n: there().answer([picture()], ["what"], path="understanding", max_new_tokens=n),
                4,
                12,
            ),
        }
        counted = {name: reads(*call) for name, call in calls.items()}
    assert counted["steps"][0] == counted["steps"][1] <= 5
    assert counted["codes"][0] == counted["codes"][1] <= 5
    assert counted["windows"][1] - counted["windows"][0] <= 16 - 4
    assert counted["text"][1] - counted["text"][0] <= 12 - 4
