"""At home in transformers: Auto classes and pipelines on saved checkpoints, `generate` in all its ways, and regressions
that transformers' common tests showed (scripts/run_common_tests.py runs those themselves)."""

import copy
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
    GenerationConfig,
    TextIteratorStreamer,
    pipeline,
)

from hybridgen import (
    HybridGenForConditionalGeneration,
    HybridGenForMultimodalLM,
    HybridGenImageProcessor,
    HybridGenModel,
    HybridGenPipeline,
    HybridGenProcessor,
    multimodal_hybridgen,
)
from hybridgen.core.layout import ImageSegment, TextSegment, lay_out
from tests.models import TOKENS, tiny_model
from tests.pipelines import tiny_pipeline, tiny_vae
from tests.processors import picture

ASK = [
    {
        "role": "user",
        "content": [{"type": "image", "image": picture(20, 12)}, {"type": "text", "text": "what color is it?"}],
    }
]
DRAW = [{"role": "user", "content": [{"type": "text", "text": "a red circle"}]}]
GREEDY = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("home") / "checkpoint"
    tiny_pipeline(tiny_vae()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def multimodal(checkpoint) -> HybridGenForMultimodalLM:
    return AutoModelForMultimodalLM.from_pretrained(checkpoint)


@pytest.fixture(scope="module")
def processor(checkpoint) -> HybridGenProcessor:
    return AutoProcessor.from_pretrained(checkpoint)


def inputs_for(processor, conversation) -> dict:
    return processor.apply_chat_template(
        conversation, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )


# ------------------------------------------------------------------------------------------------------ Auto classes


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "part"])
def test_auto_classes_load_a_checkpoint_and_its_parts(checkpoint, whole):
    model, processor = (checkpoint, checkpoint) if whole else (checkpoint / "model", checkpoint / "processor")
    saved = HybridGenForConditionalGeneration.from_pretrained(checkpoint / "model")
    assert AutoConfig.from_pretrained(model).to_diff_dict() == saved.config.to_diff_dict()
    for auto, ours in [
        (AutoModel, HybridGenModel),
        (AutoModelForImageTextToText, HybridGenForConditionalGeneration),
        (AutoModelForMultimodalLM, HybridGenForMultimodalLM),
    ]:
        loaded = auto.from_pretrained(model)
        assert type(loaded) is ours
        weights = dict(saved.named_parameters())
        prefix = "model." if ours is HybridGenModel else ""
        assert all(torch.equal(value, weights[prefix + name]) for name, value in loaded.named_parameters())
    assert type(AutoProcessor.from_pretrained(processor)) is HybridGenProcessor
    assert type(AutoImageProcessor.from_pretrained(checkpoint / "processor")) is HybridGenImageProcessor
    assert type(AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(model))) is type(saved)


def test_a_checkpoint_in_the_hubs_cache_loads_by_its_name(checkpoint, tmp_path):
    """Offline, from the layout in which the hub's client keeps what it downloaded."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--somebody--tiny"
    shutil.copytree(checkpoint, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    code = """
import hybridgen
from transformers import AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoProcessor
assert AutoModelForImageTextToText.from_pretrained("somebody/tiny").config.paths
assert AutoProcessor.from_pretrained("somebody/tiny").paths
assert AutoModelForMultimodalLM.from_pretrained("somebody/tiny").pipeline.vae is not None
assert hybridgen.HybridGenPipeline.from_pretrained("somebody/tiny").vq_model is not None
"""
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1], env=environment)


@pytest.mark.parametrize("how", [{"dtype": torch.bfloat16}, {"dtype": "bfloat16"}, {"torch_dtype": torch.bfloat16}])
def test_dtype_says_what_the_weights_become(checkpoint, how):
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, low_cpu_mem_usage=True, **how)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    with torch.no_grad():
        assert model(input_ids=torch.tensor([[5, 6]])).logits.dtype == torch.bfloat16


def test_device_map_and_meta_device(checkpoint):
    expected = HybridGenForConditionalGeneration.from_pretrained(checkpoint)
    ids = torch.tensor([[5, 6, 7]])
    for where in ("cpu", {"": "cpu"}, "auto"):
        model = AutoModelForImageTextToText.from_pretrained(checkpoint, device_map=where)
        with torch.no_grad():
            torch.testing.assert_close(model(input_ids=ids).logits, expected(input_ids=ids).logits, rtol=0, atol=0)
    with torch.device("meta"):
        empty = HybridGenForConditionalGeneration(expected.config)
    assert {name: value.shape for name, value in empty.named_parameters()} == {
        name: value.shape for name, value in expected.named_parameters()
    }
    assert {"Qwen3DecoderLayer", "SiglipEncoderLayer"} <= set(expected._no_split_modules)


def test_gradient_checkpointing_changes_no_gradient():
    gradients = []
    row = lay_out([ImageSegment("diffusion", 16, True), TextSegment([5, 6, 7])], TOKENS)
    ids = torch.tensor([row.input_ids])
    for checkpointing in (False, True):
        model = tiny_model().train()
        if checkpointing:
            model.gradient_checkpointing_enable()
            assert model.model.language_model.layers[0].gradient_checkpointing
        model(
            input_ids=ids, labels=ids, latents=torch.ones(1, 3, 16, 16), timesteps=torch.tensor([0.0])
        ).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():  # recomputed, so the same numbers
        torch.testing.assert_close(gradient, gradients[1][name], rtol=0, atol=0, msg=name)


# -------------------------------------------------------------------------------------------------------- pipelines


def test_the_any_to_any_pipeline_writes_text_as_the_model_does(checkpoint, multimodal, processor):
    settings = {"max_new_tokens": 5, "do_sample": False}
    ids = inputs_for(processor, ASK)
    written = multimodal.generate(**ids, **settings)[0, ids["input_ids"].shape[1] :]
    expected = processor.tokenizer.decode(written, skip_special_tokens=True)
    for task in ("any-to-any", "image-text-to-text"):
        pipe = pipeline(task, model=str(checkpoint))
        mode = {"generation_mode": "text"} if task == "any-to-any" else {}
        output = pipe(text=ASK, generate_kwargs=settings, return_full_text=False, **mode)
        output = output[0] if isinstance(output, list) else output
        assert output["generated_text"] == expected


@pytest.mark.parametrize("path", ["diffusion", "vq"])
def test_the_any_to_any_pipeline_draws_what_our_pipeline_draws(checkpoint, multimodal, processor, path):
    """Prompts of different lengths, several images of each, guided by the same empty prompt and seeds."""
    prompts = ["a red circle", "draw a blue square on a red circle"]
    ours = HybridGenPipeline.from_pretrained(checkpoint)
    steps, heat = ({"num_inference_steps": 3}, {}) if path == "diffusion" else ({}, {"temperature": 0.7})
    alike = {"path": path, "seed": 5, "guidance_scale": 2.0, **steps}
    expected = ours(prompts, num_images_per_prompt=2, output_type="latent", **alike, **heat).images
    settings = {
        **alike, "do_sample": True, "temperature": 0.7, "top_k": 0, "num_return_sequences": 2,
        "generation_mode": "image",
    }  # fmt: skip
    conversations = [[{"role": "user", "content": [{"type": "text", "text": prompt}]}] for prompt in prompts]
    output = multimodal.generate(**inputs_for(processor, conversations), **settings)
    if path == "vq":
        assert torch.equal(output, expected.flatten(1))
    else:
        torch.testing.assert_close(output, expected, rtol=0, atol=1e-4)  # of values up to 4; measured below 1e-5
    pixels = multimodal.decode_image_tokens(output)
    assert pixels.shape == (4, 3, 16, 16)

    settings.pop("generation_mode")
    pipe = pipeline("any-to-any", model=multimodal, processor=processor)
    first = pipe(conversations[0], generation_mode="image", generate_kwargs=settings)
    image = first[0]["generated_image"] if isinstance(first, list) else first["generated_image"]
    shown = processor.postprocess(pixels[:1])[0]
    assert image.size == (16, 16)
    difference = torch.tensor(list(image.getdata())) - torch.tensor(list(shown.getdata()))
    assert difference.abs().max() <= 1  # the last digit


def test_several_pictures_of_a_prompt_need_no_sampling_where_they_start_from_noise(multimodal, processor):
    pipe = pipeline("any-to-any", model=multimodal, processor=processor)
    conversation = [{"role": "user", "content": [{"type": "text", "text": "a red circle"}]}]
    draw = {"num_inference_steps": 2, "path": "diffusion", "seed": 3}
    results = pipe(conversation, generation_mode="image", generate_kwargs={**draw, "num_return_sequences": 2})
    assert len(results) == 2
    inputs = inputs_for(processor, [conversation])
    several = {"num_return_sequences": np.int64(2)}
    made = multimodal.generate(**inputs, generation_mode="image", **draw, **several)
    assert made.shape[0] == 2
    assert not torch.equal(made[0], made[1])
    config = GenerationConfig(do_sample=True, num_return_sequences=2)
    assert torch.equal(multimodal.generate(**inputs, generation_mode="image", generation_config=config, **draw), made)
    with pytest.raises(ValueError, match="num_return_sequences is 2, but the likeliest codes make the same picture"):
        multimodal.generate(**inputs, generation_mode="image", path="vq", **several)
    with pytest.raises(
        ValueError, match="num_return_sequences is 1000000000; it must be a whole number from 1 to 1000000"
    ):
        multimodal.generate(**inputs, generation_mode="image", **draw, num_return_sequences=10**9)
    with pytest.raises(ValueError, match=r"prompt 'input_ids' has \d+ tokens and the picture needs 10001 more"):
        multimodal.generate(**inputs, generation_mode="image", height=400, width=400)
    with pytest.raises(ValueError, match="negative_prompt_ids has 2 rows for 1 prompts; give one for each, or one for"):
        multimodal.generate(**inputs, generation_mode="image", negative_prompt_ids=torch.zeros(2, 3, dtype=torch.long))


def test_an_image_in_the_prompt_is_read_before_the_picture_is_drawn(multimodal, processor):
    settings = {"generation_mode": "image", "path": "vq", "guidance_scale": 2.0, "seed": 0}
    first, second = (
        multimodal.generate(
            **inputs_for(processor, [{**ASK[0], "content": [{"type": "image", "image": shown}]}]), **settings
        )
        for shown in (picture(16, 16, 1), picture(16, 16, 2))
    )
    assert not torch.equal(first, second)


def test_sizes_seeds_and_negative_prompts(multimodal, processor):
    inputs = inputs_for(processor, DRAW)
    settings = {"generation_mode": "image", "path": "vq", "height": 8, "width": 24, "do_sample": True}
    codes = multimodal.generate(**inputs, **settings, seed=1)
    assert codes.shape == (1, 12)
    assert multimodal.decode_image_tokens(codes, 8, 24).shape == (1, 3, 8, 24)
    torch.manual_seed(3)
    first = multimodal.generate(**inputs, **settings)
    assert not torch.equal(multimodal.generate(**inputs, **settings), first)  # the stream goes on
    torch.manual_seed(3)
    assert torch.equal(multimodal.generate(**inputs, **settings), first)
    away = multimodal.generate(**inputs, **settings, seed=1, negative_prompt_ids=inputs["input_ids"])
    unguided = multimodal.generate(**inputs, **settings, seed=1, guidance_scale=1.0)
    assert torch.equal(away, unguided)  # guidance away from the prompt itself is none
    assert not torch.equal(codes, unguided)


def test_streamers_see_every_token(multimodal, processor):
    inputs = inputs_for(processor, ASK)
    streamer = TextIteratorStreamer(processor.tokenizer, skip_prompt=True, timeout=30)
    written = multimodal.generate(**inputs, **GREEDY, streamer=streamer)[0, inputs["input_ids"].shape[1] :]
    assert "".join(streamer) == processor.tokenizer.decode(written)


def test_the_processor_pads_left_whatever_the_tokenizer_says(processor):
    other = copy.deepcopy(processor)
    other.tokenizer.padding_side = "right"
    texts = ["red", "a red circle on a blue square"]
    assert other(text=texts)["input_ids"] == processor(text=texts)["input_ids"]
    assert processor(text=texts)["attention_mask"][0][0] == 0
    assert processor(text=texts, padding_side="right")["attention_mask"][0][0] == 1


@pytest.mark.parametrize("path", ["diffusion", "vq"])
def test_pictures_heed_the_checkpoints_precision_and_window(checkpoint, processor, path, monkeypatch):
    defaults = {"vq": {"precision": "bf16", "window": 3}, "diffusion": {"precision": "bf16", "num_inference_steps": 2}}
    model = AutoModelForMultimodalLM.from_pretrained(checkpoint)
    model.pipeline.register_to_config(sampling_defaults=defaults)
    name, heeded = ("write_codes" if path == "vq" else "draw_latents"), []
    original = getattr(multimodal_hybridgen, name)

    def watched(*args, **kwargs):
        heeded.append((kwargs["decoder"].precision, kwargs.get("window")))
        return original(*args, **kwargs)

    monkeypatch.setattr(multimodal_hybridgen, name, watched)
    model.generate(**inputs_for(processor, DRAW), generation_mode="image", path=path, seed=0)
    assert heeded == [("bf16", 3 if path == "vq" else None)]


# -------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"generation_mode": "audio"}, "generation_mode is 'audio'; it must be one of 'text', 'image'"),
        ({"num_beams": 2}, "num_beams is 2, but images are drawn without beams"),
        ({"path": "understanding"}, "the understanding path only reads"),
        ({"heigth": 8}, "does not know heigth"),
        ({"height": 9, "width": 9}, "9x9 is not divisible by the patch size 4"),
        ({"guidance_scale": float("nan")}, "guidance_scale"),
        ({"attention_mask": torch.tensor([[1, 1, 0]])}, "padded on the right"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_what_cannot_be_drawn_is_said_in_one_sentence(multimodal, settings, message):
    with pytest.raises(ValueError, match=message):
        multimodal.generate(torch.tensor([[5, 6, 7]]), **{"generation_mode": "image", **settings})


def test_a_model_without_its_checkpoint_writes_text_only(checkpoint, tmp_path):
    shutil.copytree(checkpoint / "model", tmp_path / "alone")
    model = AutoModelForMultimodalLM.from_pretrained(tmp_path / "alone")
    assert model.generate(torch.tensor([[5, 6]]), max_new_tokens=2).shape[1] >= 3
    with pytest.raises(ValueError, match="loaded without its codecs"):
        model.generate(torch.tensor([[5, 6]]), generation_mode="image")
    plain = pipeline(
        "any-to-any",
        model=HybridGenForConditionalGeneration(model.config),
        processor=AutoProcessor.from_pretrained(checkpoint),
    )
    with pytest.raises(ValueError, match="not supported for HybridGenForConditionalGeneration"):
        plain(DRAW, generation_mode="image")


def test_codes_that_make_no_square_need_a_size(multimodal):
    with pytest.raises(ValueError, match="12 codes make no picture of 12x12; give its height and width"):
        multimodal.decode_image_tokens(torch.zeros(1, 12, dtype=torch.long))
