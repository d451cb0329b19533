"""Several threads may use one pipeline: each call gives, to the bit, what it gives alone, for every setting.

All calls below run at once, and each also beside its neighbour in the list alone.
"""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from diffusers import FlowMatchHeunDiscreteScheduler
from diffusers.guiders import AdaptiveProjectedGuidance, ClassifierFreeZeroStarGuidance
from torch import Generator, Tensor

from hybridgen.chat.events import ImageDone, TextDelta
from hybridgen.multimodal_hybridgen import HybridGenForMultimodalLM
from hybridgen.pipeline_hybridgen import HybridGenPipeline
from hybridgen.sampling.guidance import Guidance
from tests.pipelines import tiny_pipeline
from tests.processors import picture

PROMPTS = ["a red circle", "draw a blue square on a red circle, twice", "a"]
APG = AdaptiveProjectedGuidance(3.0, -0.5, eta=0.5)  # one object for two calls: it has state of its own


class Lockstep:
    """Calls in threads, each held at every step until all others have come as far, so that they do interleave."""

    def __init__(self, pipe: HybridGenPipeline):
        core = pipe.model.model  # modules outside of the backbone: hooks there do not change how its layers run
        parts = core.patch_embed, core.generation_embeddings, pipe.model.lm_head
        self.handles = [part.register_forward_hook(self.meet) for part in parts]
        self.step, self.arrived, self.running, self.changed = 0, 0, 0, threading.Condition()

    def meet(self, *_) -> None:
        with self.changed:
            self.arrived += 1
            if self._go_on():
                return
            step = self.step
            self.changed.wait_for(lambda: self.step > step, timeout=60)

    def _go_on(self) -> bool:
        if self.arrived < self.running:
            return False
        self.step, self.arrived = self.step + 1, 0
        self.changed.notify_all()
        return True

    def run(self, calls: list) -> list:
        def one(call):
            try:
                return call()
            finally:
                with self.changed:
                    self.running -= 1
                    self._go_on()

        self.running = len(calls)
        with ThreadPoolExecutor(len(calls)) as threads:
            done = [future.result() for future in [threads.submit(one, call) for call in calls]]
        for handle in self.handles:
            handle.remove()
        return done


def halves_guidance(pipeline, step, timestep, tensors):
    """diffusers' documented way to change guidance within a call."""
    if step == int(pipeline.num_timesteps * 0.4):
        pipeline._guidance_scale = pipeline.guidance_scale / 2
    return tensors


def interrupts(pipeline, step, timestep, tensors):
    pipeline._interrupt = step == 2
    return tensors


def doubles(pipeline, step, timestep, tensors):
    return {"latents": tensors["latents"] * 1.5} if step == 1 else None


DRAWINGS = {
    "plain": {"guidance_scale": 2.0, "num_inference_steps": 6},
    "stronger, longer, wider": {"guidance_scale": 7.0, "num_inference_steps": 9, "width": 24},
    "changed by a callback": {"guidance_scale": 4.0, "num_inference_steps": 7, "callback_on_step_end": halves_guidance},
    "several scales, two batches": {"prompt": PROMPTS, "guidance_scale": [1.0, 3.0, 5.0], "max_batch": 2},
    "shifted, Euler": {"guidance_scale": 3.0, "num_inference_steps": 5, "shift": 3.0},
    "packed": {"guidance_scale": 3.0, "precision": "fp32"},
    "in bf16": {"guidance_scale": 3.0, "precision": "bf16"},
    "codes": {"path": "vq", "guidance_scale": 2.0},
    "codes in int8": {"path": "vq", "guidance_scale": 2.0, "precision": "int8"},
    "codes changed by a callback": {"path": "vq", "guidance_scale": 6.0, "callback_on_step_end": halves_guidance},
    "codes with guesses": {"path": "vq", "guidance_scale": 2.0, "window": 4, "temperature": 0.7, "top_k": 9},
    "interrupted": {"callback_on_step_end": interrupts, "num_inference_steps": 7},
    "codes interrupted": {"path": "vq", "callback_on_step_end": interrupts},
    "latents changed": {"callback_on_step_end": doubles},
    "guided by an object": {"guider": APG, "num_inference_steps": 5},
    "guided by the same object": {"guider": APG, "num_inference_steps": 7, "guidance_rescale": 0.5},
    "guided by another": {"guider": ClassifierFreeZeroStarGuidance(4.0)},
    "guided in an interval": {"guider": Guidance(3.0, start=0.2, stop=0.6), "guidance_scale": 3.0},
    "after a picture": {"image": picture(seed=1), "image_guidance_scale": 2.0, "read": "vq"},
    "away from another prompt": {"negative_prompt": PROMPTS[0], "num_images_per_prompt": 2},
    "from noise": {"latents": torch.randn(1, 3, 16, 16, generator=Generator().manual_seed(5)), "seed": None},
}


def drawn(pipe: HybridGenPipeline, name: str, seed: int) -> list:
    """The latents of a call, and the guidance and interruption that the pipeline knows after it."""
    given = {"prompt": PROMPTS[1], "output_type": "latent", "num_inference_steps": 4, "seed": seed, **DRAWINGS[name]}
    return [*pipe(**given).images, pipe.guidance_scale, pipe.interrupt]


def turn(pipe: HybridGenPipeline, **settings) -> list:
    """What a turn says and shows."""
    settings = {"num_inference_steps": 3, "max_new_tokens": 5, "seed": 4, **settings}
    events = list(pipe.stream([{"role": "user", "content": PROMPTS[0]}], **settings))
    said = [event.text if isinstance(event, TextDelta) else event.image.tobytes() for event in events
            if isinstance(event, TextDelta | ImageDone)]  # fmt: skip
    return [*said, events[-1].truncated]


def ids_of(pipe: HybridGenPipeline) -> Tensor:
    return torch.tensor([pipe.processor.prompt([{"role": "user", "content": PROMPTS[0]}]).layout.input_ids])


def calls_of(pipe: HybridGenPipeline, model: HybridGenForMultimodalLM | None = None) -> dict:
    """Name -> a call: every setting of drawing, every way to ask, turns of conversations, transformers' generate."""
    heat = {"temperature": 1.5, "top_k": 30, "seed": 2, "max_new_tokens": 7}
    calls = {name: lambda name=name, seed=seed: drawn(pipe, name, seed) for seed, name in enumerate(DRAWINGS)}
    for path in pipe.model.config.paths:
        calls[f"asked by {path}"] = lambda path=path: pipe.answer(
            [picture(seed=1), [picture(seed=2), picture(seed=3)]], PROMPTS[:2], path=path, max_new_tokens=6
        )
        calls[f"a turn with {path}"] = lambda path=path: turn(pipe, path=path, plan=["text", "image", "text"])
    del calls["a turn with understanding"]
    calls["asked with drawn words"] = lambda: pipe.answer(picture(seed=4), PROMPTS, **heat)
    calls["a turn that draws words"] = lambda: turn(pipe, text_temperature=1.5, text_top_p=0.9, plan=["text"])
    if model is not None:
        ids = ids_of(pipe)
        draw = {"generation_mode": "image", "seed": 6, "num_inference_steps": 3}
        calls["generate writes"] = lambda: model.generate(ids, max_new_tokens=6, do_sample=False).tolist()
        calls["generate denoises"] = lambda: [*model.generate(ids, path="diffusion", num_return_sequences=2, **draw)]
        calls["generate draws codes"] = lambda: [*model.generate(ids, path="vq", do_sample=True, **draw)]
    return calls


def same(ours: list, others: list) -> bool:
    return len(ours) == len(others) and all(
        torch.equal(one, other) if isinstance(one, Tensor) else one == other
        for one, other in zip(ours, others, strict=True)
    )


def check_together(pipe: HybridGenPipeline, calls: dict) -> None:
    alone = {name: call() for name, call in calls.items()}
    together = dict(zip(calls, Lockstep(pipe).run(list(calls.values())), strict=True))
    differing = [name for name in calls if not same(together[name], alone[name])]
    assert not differing, differing


@pytest.fixture(scope="module")
def pipe() -> HybridGenPipeline:
    return tiny_pipeline()


def test_all_calls_at_once_give_what_each_gives_alone(pipe):
    model = HybridGenForMultimodalLM(pipe.model.config).eval()
    model.load_state_dict(pipe.model.state_dict())
    model.pipeline = HybridGenPipeline(model, pipe.processor, pipe.scheduler, vq_model=pipe.vq_model)
    model.pipeline.set_progress_bar_config(disable=True)
    check_together(model.pipeline, calls_of(model.pipeline, model))


@pytest.mark.parametrize("number", range(len(DRAWINGS)))
def test_two_threads_may_use_one_pipeline(pipe, number):
    """Each call draws, to the bit, what it draws alone, and afterwards its thread reads its own guidance."""
    names = list(DRAWINGS)
    pair = {name: lambda name=name: drawn(pipe, name, 3) for name in (names[number], names[number - 1])}
    check_together(pipe, pair)


@pytest.mark.parametrize("scheduler", ["FlowMatchHeunDiscreteScheduler", "DDPMScheduler"])
def test_schedulers_with_state_and_noise_of_their_own_may_be_shared(scheduler):
    """Heun's remembers its last evaluation, and DDPM's draws noise at each step."""
    changes = {} if scheduler.startswith("Flow") else {"noise_schedule": "cosine", "prediction_type": "epsilon"}
    diffusion = {"patch_size": 4, "sample_size": 16, "frequency_embedding_size": 32, **changes}
    pipe = tiny_pipeline(diffusion_config=diffusion)
    if scheduler.startswith("Flow"):
        pipe.scheduler = FlowMatchHeunDiscreteScheduler.from_config(pipe.scheduler.config)
    assert type(pipe.scheduler).__name__ == scheduler
    check_together(pipe, {name: lambda name=name: drawn(pipe, name, 3) for name in ("plain", "changed by a callback")})


def test_two_threads_may_use_one_pipeline_with_modality_experts():
    """Which tokens go through the experts is known to the layers for as long as a forward runs."""
    experts = {"patch_size": 4, "sample_size": 16, "frequency_embedding_size": 32, "modality_experts": True}
    pipe = tiny_pipeline(diffusion_config=experts)
    calls = calls_of(pipe)
    names = ("changed by a callback", "codes", "asked by diffusion", "a turn with vq", "asked with drawn words")
    check_together(pipe, {name: calls[name] for name in names})


def test_two_threads_may_use_one_processor(pipe, monkeypatch):
    """A fast tokenizer keeps padding and truncation as state: each call has its own."""
    processor, both = pipe.processor, threading.Barrier(2)
    calls = [
        lambda: processor(text=["a", "a red circle"], return_tensors="pt")["input_ids"].tolist(),
        lambda: processor(text=["a", "draw a red circle, twice"], padding=False)["input_ids"],
    ]
    alone = [call() for call in calls]
    tokenizer = type(processor.tokenizer)
    set_state = tokenizer.set_truncation_and_padding

    def set_and_wait(*given, **named):
        set_state(*given, **named)
        try:
            both.wait(timeout=0.3)  # the other call may come as far, unless it is held off
        except threading.BrokenBarrierError:
            both.reset()

    monkeypatch.setattr(tokenizer, "set_truncation_and_padding", set_and_wait)
    with ThreadPoolExecutor(2) as threads:
        together = [future.result() for future in [threads.submit(call) for call in calls]]
    assert together == alone
