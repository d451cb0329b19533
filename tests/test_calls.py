"""Every argument of every public call: what is no value of it is one sentence with its name, and every spelling of a
value that is one does the same to the bit."""

import inspect
from dataclasses import fields

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Generator

from hybridgen.chat.settings import TurnSettings
from hybridgen.multimodal_hybridgen import HybridGenForMultimodalLM
from hybridgen.pipeline_hybridgen import HybridGenPipeline
from hybridgen.sampling.codes import CodeSampling
from hybridgen.sampling.guidance import Guidance
from hybridgen.sampling.schedules import prepare
from tests.pipelines import tiny_pipeline

PICTURE = Image.new("RGB", (16, 16), "red")
NUMBERS = {  # kinds that are a number to some arguments
    "less than nothing": -1, "nothing": 0, "one": 1, "one and a half": 1.5, "NaN": float("nan"),
    "infinity": float("inf"), "true": True,
}  # fmt: skip
WRONG = {
    "an object": object(), "a text": "no such thing", "bytes": b"x", "an empty list": [], "a mixed list": ["x", 2],
    "three numbers": (1, 2, 3), "a table": {"x": 1}, "a set": {"x"}, "a range": range(3), "a class": object,
    "a function": lambda: 1, "a complex number": 3j, "a matrix": np.zeros((2, 2)),
    "a matrix of torch": torch.zeros(2, 2), "an empty array": np.array([]), **NUMBERS,
}  # fmt: skip
TEXT, WHOLE, NUMBER = ("a text",), ("one",), ("one", "one and a half")
RIGHT = {  # arguments -> the kinds above that are values of them
    **dict.fromkeys(("prompt", "negative_prompt", "questions", "text"), TEXT),
    **dict.fromkeys(("num_inference_steps", "num_images_per_prompt", "max_batch", "max_new_tokens", "window"), WHOLE),
    **dict.fromkeys(("max_images", "preview_every", "num_return_sequences", "num_beams"), WHOLE),
    **dict.fromkeys(("seed", "top_k", "text_top_k"), ("nothing", "one")),
    **dict.fromkeys(("guidance_scale", "temperature", "text_temperature"), ("nothing", *NUMBER)),
    **dict.fromkeys(("top_p", "text_top_p"), WHOLE),
    **dict.fromkeys(("return_dict", "do_sample", "return_dict_in_generate", "output_logits"), ("true",)),
    "guidance_rescale": ("nothing", "one"),
    "image_guidance_scale": WHOLE,
    "shift": NUMBER,
    "forecast": WHOLE,
    "image": ("a matrix", "a matrix of torch"),  # gray ones
    "images": ("a matrix", "a matrix of torch", "an empty list"),  # none, of a turn of a chat
    "callback_on_step_end": ("a class", "a function"),  # which are called
}
SAYS = {  # arguments whose errors name them otherwise
    "read": "path",
    "image": "image",
    "images": "image",
    "messages": "message",
    "plan": "plan",
    "attention_mask": "mask",
    **dict.fromkeys(("height", "width"), "height|width|size|context"),
}


@pytest.fixture(scope="module")
def pipe() -> HybridGenPipeline:
    return tiny_pipeline()


@pytest.fixture(scope="module")
def model(pipe, tmp_path_factory) -> HybridGenForMultimodalLM:
    folder = tmp_path_factory.mktemp("whole")
    pipe.save_pretrained(folder)
    return HybridGenForMultimodalLM.from_pretrained(folder)


def refuses(call, name: str) -> list[str]:
    """What is wrong with the errors of a call that is given each wrong value of one argument."""
    faults = []
    for kind in WRONG.keys() - set(RIGHT.get(name, ())):
        try:
            call(**{name: WRONG[kind]})
            faults.append(f"{name}: {kind} is taken")
        except ValueError as error:
            said = str(error)
            if "\n" in said or len(said) > 300 or not any(word in said for word in SAYS.get(name, name).split("|")):
                faults.append(f"{name}: {kind}: {said}")
        except Exception as error:
            faults.append(f"{name}: {kind}: {type(error).__name__}: {error}")
    return faults


def without_work(pipe):
    """A pipeline in which any forward is a fault: all must be refused before."""
    return pipe.model.model.language_model.register_forward_pre_hook(lambda *_: 1 / 0)


def arguments_of(function) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name not in ("self", "settings")]


@pytest.mark.parametrize("path", ["diffusion", "vq"])
def test_drawing_refuses_what_is_no_value(pipe, path):
    settings = {"prompt": "a", "path": path}
    handle = without_work(pipe)
    faults = [
        fault for name in arguments_of(pipe.__call__) for fault in refuses(lambda **w: pipe(**settings | w), name)
    ]
    handle.remove()
    assert not faults, "\n".join(faults)


def test_answering_refuses_what_is_no_value(pipe, monkeypatch):
    monkeypatch.setitem(RIGHT, "images", RIGHT["image"])
    settings = {"images": PICTURE, "questions": "a"}
    handle = without_work(pipe)
    faults = [
        fault for name in arguments_of(pipe.answer) for fault in refuses(lambda **w: pipe.answer(**settings | w), name)
    ]
    handle.remove()
    assert not faults, "\n".join(faults)


def test_conversations_refuse_what_is_no_value(pipe):
    def send(**wrong):
        pipe.chat().send(**{"text": "a"} | wrong)

    handle = without_work(pipe)
    names = ["text", "images", *(field.name for field in fields(TurnSettings))]
    faults = [fault for name in names for fault in refuses(send, name)]
    faults += refuses(pipe.chat, "messages")[:0] + refuses(pipe.stream, "messages")
    handle.remove()
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("path", ["diffusion", "vq"])
def test_generate_refuses_what_is_no_value(model, path):
    ids = model.pipeline.processor.prompt([{"role": "user", "content": "a"}]).layout.input_ids
    names = [
        "generation_mode", "input_ids", "attention_mask", "pixel_values", "latents", "codes", "path", "height", "width",
        "num_inference_steps", "seed", "generator", "guidance_scale", "negative_prompt_ids", "temperature", "top_k",
        "top_p", "do_sample", "return_dict_in_generate", "num_return_sequences", "max_new_tokens",
    ]  # fmt: skip

    def generate(**wrong):
        settings = {"input_ids": torch.tensor([ids]), "generation_mode": "image", "path": path, "seed": 0}
        settings = settings if "generator" not in wrong else {**settings, "seed": None}
        model.generate(**settings | wrong)

    handle = without_work(model.pipeline)
    faults = [fault for name in names for fault in refuses(generate, name)]
    handle.remove()
    assert not faults, "\n".join(faults)


def test_the_processor_refuses_what_is_no_value(pipe, monkeypatch):
    """Those of the tokenizer too, whose own errors do not name them."""
    processor, messages = pipe.processor, [{"role": "user", "content": "a"}]
    for name, kinds in (("padding", ("true",)), ("truncation", ("true",)), ("max_length", ("one",))):
        monkeypatch.setitem(RIGHT, name, kinds)
    monkeypatch.setitem(SAYS, "text", "text|at least one input")
    names = ("text", "padding", "truncation", "max_length", "return_tensors")
    faults = [fault for name in names for fault in refuses(lambda **w: processor(**{"text": "a"} | w), name)]
    monkeypatch.setitem(RIGHT, "unconditional", ("true",))
    prompt = lambda **w: processor.prompt(w.pop("messages", messages), **w)  # noqa: E731
    faults += [fault for name in ("messages", "read", "unconditional") for fault in refuses(prompt, name)]
    for name in ("height", "width"):
        monkeypatch.setitem(RIGHT, name, ("one",))
        faults += refuses(prompt, name)
    assert not faults, "\n".join(faults)


def test_what_a_call_is_made_of_refuses_what_is_no_value(pipe, monkeypatch):
    """Guidance, the sampling of codes and the steps of a schedule, made by hand."""
    for name, kinds in {
        "scale": ("nothing", *NUMBER, "a class", "a function", "a matrix of torch"), "start": ("nothing", "one"),
        "stop": ("nothing", "one"), "eta": ("nothing", *NUMBER), "norm_threshold": ("nothing", *NUMBER),
        "momentum": ("less than nothing", "nothing", "one"), "zero_init_steps": ("nothing", "one"), "turns": (),
        "image_scale": ("nothing", *NUMBER, "a class", "a function", "a matrix of torch"),
    }.items():  # fmt: skip
        monkeypatch.setitem(RIGHT, name, kinds)
        monkeypatch.setitem(SAYS, name, "guidance" if "scale" in name else name)
    faults = [fault for field in fields(Guidance) for fault in refuses(Guidance, field.name)]
    faults += [fault for field in fields(CodeSampling) for fault in refuses(CodeSampling, field.name)]
    steps = lambda **w: prepare(pipe.scheduler, diffusion_config=diffusion, **{"num_inference_steps": 2} | w)  # noqa: E731
    diffusion = pipe.model.config.diffusion_config
    faults += [fault for name in ("num_inference_steps", "shift") for fault in refuses(steps, name)]
    faults += refuses(pipe.chat().rollback, "turns")
    assert not faults, "\n".join(faults)


SPELLINGS = {
    "whole": (np.int64, np.uint8, np.array, torch.tensor),
    "number": (np.float32, np.float64, np.array, torch.tensor),
}
SETTINGS = {  # names -> kind, value
    "num_inference_steps": ("whole", 3), "guidance_scale": ("number", 2.5), "guidance_rescale": ("number", 0.25),
    "shift": ("number", 2.5), "height": ("whole", 8), "width": ("whole", 24), "seed": ("whole", 7),
    "max_batch": ("whole", 2), "num_images_per_prompt": ("whole", 2), "temperature": ("number", 0.5),
    "top_k": ("whole", 5), "top_p": ("number", 0.75), "window": ("whole", 2),
}  # fmt: skip


@pytest.mark.parametrize("path", ["diffusion", "vq"])
@pytest.mark.parametrize("number", range(4))
def test_every_spelling_of_a_number_draws_the_same_to_the_bit(pipe, path, number):
    """All settings at once, as Python's numbers and as others: one by one, and in lists where there may be several."""
    plain = {name: value for name, (_, value) in SETTINGS.items()}
    spelt = {name: SPELLINGS[kind][number](value) for name, (kind, value) in SETTINGS.items()}
    assert all(type(spelt[name]) is not type(plain[name]) or number == 1 for name in plain)
    drawn, again = (pipe("a red circle", path=path, output_type="pt", **each).images for each in (plain, spelt))
    assert torch.equal(drawn, again)
    several = {"guidance_scale": [2.0, 3.0], "height": [8, 16], "seed": [1, 2, 3, 4]}
    listed = {name: (tuple, np.array, torch.tensor, np.array)[number](value) for name, value in several.items()}
    prompts = ["a", "a red circle"]
    drawn, again = (
        pipe(prompts if each is several else tuple(prompts), path=path, output_type="pt", **plain | each).images
        for each in (several, listed)
    )
    assert all(torch.equal(one, other) for one, other in zip(drawn, again, strict=True))


def test_manifests_hold_plain_numbers_whatever_spelling_they_came_in(pipe):
    spelt = {name: np.float32(2) for name in ("guidance_scale", "shift")} | {"num_inference_steps": np.int64(2)}
    settings = pipe.sampling_settings("diffusion", **spelt)
    assert {type(settings[name]) for name in spelt} == {int, float}
    assert (settings["guidance_scale"], settings["num_inference_steps"]) == (2.0, 2)
    request = TurnSettings(
        seed=np.uint64(2**64 - 1), max_new_tokens=np.int64(3), height=torch.tensor(16), plan=("text",)
    )
    assert (request.seed, request.max_new_tokens, request.height, request.plan) == (2**64 - 1, 3, 16, ["text"])
    assert {type(request.seed), type(request.height)} == {int}


def test_generators_may_stand_in_any_list(pipe):
    fresh = lambda: [Generator().manual_seed(seed) for seed in (3, 4)]  # noqa: E731
    settings = {"num_inference_steps": 2, "output_type": "pt", "num_images_per_prompt": 2}
    drawn = pipe("a", seed=[3, 4], **settings).images
    for spelling in (list, tuple):
        assert torch.equal(pipe("a", generator=spelling(fresh()), **settings).images, drawn)
    with pytest.raises(ValueError, match="generator is a list of 3, but 2 images are to be drawn"):
        pipe("a", generator=(*fresh(), Generator()), **settings)


def test_a_callback_that_returns_no_table_is_said(pipe):
    with pytest.raises(ValueError, match="callback_on_step_end returned 1; return the dict that it was given, or None"):
        pipe("a", num_inference_steps=2, callback_on_step_end=lambda *_: 1)


@pytest.mark.parametrize("path", ["diffusion", "vq"])
def test_settings_of_the_other_path_are_ignored_but_not_what_is_no_value(pipe, path):
    other = {"vq": {"num_inference_steps": 5, "shift": 2.0}, "diffusion": {"temperature": 0.1, "top_k": 1, "top_p": 0.1,
                                                                          "window": 4}}[path]  # fmt: skip
    quick = {"num_inference_steps": 2} if path == "diffusion" else {}
    drawn = pipe("a", path=path, seed=0, output_type="latent", **quick).images
    assert torch.equal(pipe("a", path=path, seed=0, output_type="latent", **quick | other).images, drawn)
    for name in other:
        with pytest.raises(ValueError, match=f"{name} is -1; it must be"):
            pipe("a", path=path, **{name: -1})
