"""Training through connectors and another tower: losses depend on nothing else, and every weight has a gradient."""

import functools
import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CLIPVisionConfig, CLIPVisionModel
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from hybridgen.cli.main import main
from hybridgen.core.objectives import total
from hybridgen.pipeline_hybridgen import HybridGenPipeline, load_pipeline
from hybridgen.training import load_config, train
from hybridgen.training.config.parts import hybrid_config
from tests.data.in_memory import Listed, drawings, numbered, source_of
from tests.models import MODEL_CONTENT, batch_of, inputs_of
from tests.paths.test_connectors import SMALL
from tests.pipelines import tiny_pipeline
from tests.pretended_device import pretended_device, put_on
from tests.processors import assistant, image, picture, user
from tests.training.monitor.test_flops import assert_as_counted
from tests.training.stages.test_model import stage_of, sums_of
from tests.training.test_devices import moved

CLIP = {
    "model_type": "clip_vision_model", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "image_size": 32, "patch_size": 8,
}  # fmt: skip
KINDS = {
    "pixel_shuffle": {"vision_feature_layer": [-2, -1], "aligner": {"type": "pixel_shuffle", "norm": True}},
    **{kind: {"aligner": {"type": kind, **SMALL[kind][0]}} for kind in ("perceiver_resampler", "q_former")},
}


def new_pipeline(kind: str) -> HybridGenPipeline:
    return tiny_pipeline(vision_config=CLIP, **KINDS[kind])


pipeline_of = functools.cache(new_pipeline)


def of_unlike_counts(count: int = 12) -> Listed:
    """Questions on no picture, one, two and three."""
    asked = [[*map(image, range(i, i + i % 4)), "what colour is it?"] for i in range(count)]
    return Listed([[user(*parts), assistant(f"blue {i}")] for i, parts in enumerate(asked)])


def asked(count: int = 12) -> list:
    return [source_of(of_unlike_counts(count), name="ask", shuffle=False)]


def stage_with(kind: str, tasks: list | None = None, pipeline: HybridGenPipeline | None = None, **settings):
    stage = stage_of(tasks or asked(), pipeline=pipeline or pipeline_of(kind), **settings)
    stage.model.zero_grad(set_to_none=True)
    return stage


def backward(stage, batch: dict) -> dict[str, float]:
    losses = stage.losses(stage.model, batch)
    total(losses, {kind: count for kind, (_, count) in losses.items()}, stage.weights).backward()
    return {kind: float(loss) for kind, (loss, _) in losses.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_no_gradient_crosses_from_a_picture_into_another_document(kind):
    """And packed states are those of the documents alone. Worst difference seen: 5e-7."""
    pipe = pipeline_of(kind)
    messages = [[user(image(1), image(2), "what colour is it?"), assistant("blue")], [user(image(3)), assistant("red")]]
    first, second = (pipe.processor.document(each).layout for each in messages)
    pixels = torch.randn(3, 3, 32, 32, requires_grad=True)
    model, length = pipe.model.model.eval(), len(first) + len(second)
    states = model(**inputs_of(batch_of([[first, second]], length + 3)), pixel_values=pixels).last_hidden_state[0]
    alone = [
        model(**inputs_of(batch_of([[each]], len(each))), pixel_values=some).last_hidden_state[0]
        for each, some in ((first, pixels[:2]), (second, pixels[2:]))
    ]
    assert (states[:length] - torch.cat(alone)).abs().max() < 1e-5
    states[len(first) : length].square().sum().backward()
    assert pixels.grad[:2].abs().max() == 0
    assert pixels.grad[2].abs().max() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_without_pictures_leaves_every_weight_in_the_graph(kind):
    """With gradients of zero, for which no rank waits."""
    stage = stage_with(kind, [source_of(numbered(8), name="text")])
    backward(stage, next(stage.loader))
    learns = {name: weight.grad for name, weight in stage.model.named_parameters() if weight.requires_grad}
    assert not [name for name, grad in learns.items() if grad is None]
    of_reading = [grad for name, grad in learns.items() if "aligner" in name or "vision_model" in name]
    assert all(float(grad.abs().max()) == 0 for grad in of_reading)


@pytest.mark.parametrize("kind", KINDS)
def test_the_cost_of_a_token_is_counted(kind):
    """Against torch's count of a forward and a backward. No difference was seen."""
    tasks = [*asked(), source_of(drawings(9), name="code", write="vq")]
    with sdpa_kernel(SDPBackend.MATH):  # of fused attention torch counts nothing on a CPU
        assert_as_counted(stage_with(kind, tasks, pipeline=new_pipeline(kind), rows=3, length=120))


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_on_another_device_is_the_same(kind):
    stage = stage_with(kind)
    expected = backward(stage, next(stage.loader))
    there = stage_with(kind, pipeline=new_pipeline(kind))
    with pretended_device(float64=False):
        for part in (there.model, there.pipeline.vq_model):
            put_on(part)
        assert backward(there, moved(next(there.loader))) == pytest.approx(expected, rel=1e-4)


def test_features_of_other_layers_are_not_taken_from_a_cache(tmp_path):
    """Those in it are what the forward makes. Worst relative difference seen: 1e-7."""
    pipe = new_pipeline("pixel_shuffle")
    pipe.model.model.vision_model.requires_grad_(False)

    def loss(cache: str | None) -> float:
        stage = stage_with("", pipeline=pipe, precision="fp32", data={"sources": [], "cache": cache})
        value = sums_of(stage, next(stage.loader))["text"][0]
        stage.inputs.flush()
        return value

    assert loss(str(tmp_path)) == pytest.approx(loss(None), rel=1e-6)
    pipe.model.config.vision_feature_layer = [-1, -2]
    with pytest.raises(ValueError, match="is stale: its features-fp32 were made by weights .* layers .-2, -1."):
        loss(str(tmp_path))


# ------------------------------------------------------------------------------------------------------- whole runs


@pytest.fixture(scope="module")
def config_file(tmp_path_factory) -> Path:
    """A CLIP whose folder says nothing of its pixels, and a resampler behind it."""
    folder = tmp_path_factory.mktemp("connectors")
    tower = CLIPVisionConfig(**{name: value for name, value in CLIP.items() if name != "model_type"})
    CLIPVisionModel(tower).save_pretrained(folder / "clip")
    model = {name: MODEL_CONTENT[name] for name in ("tokenizer", "text_config")}
    resampler = {"type": "perceiver_resampler", **SMALL["perceiver_resampler"][0]}
    content = {
        "output_dir": str(folder / "whole"), "steps": 4, "save_every": 2, "log_every": 1,
        "schedule": {"name": "constant"},
        "data": {
            "per_device_batch_size": 2, "sequence_length": 160, "sources": [{"source": "dolls", "task": "answer"}],
        },
        "model": {
            **model, "vision_model": str(folder / "clip"), "vision_feature_layer": [-2, -1], "aligner": resampler,
        },
    }  # fmt: skip
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_an_interrupted_run_equals_a_whole_one_and_ends_in_a_pipeline(config_file):
    whole = load_config(config_file)
    train(whole)
    halves = [f"output_dir={config_file.parent}/halves"]
    train(load_config(config_file, [*halves, "steps=2"]))
    train(load_config(config_file, halves))
    folders = [Path(whole.output_dir) / "checkpoint", config_file.parent / "halves" / "checkpoint"]
    ours, theirs = (load_file(folder / "model" / "model.safetensors") for folder in folders)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    pipe = load_pipeline(folders[0])
    assert json.loads((folders[0] / "model" / "config.json").read_text())["aligner"]["num_latents"] == 3
    assert pipe.processor.num_image_tokens == pipe.model.config.image_tokens == 3
    images = pipe.processor.image_processor  # a CLIP's, though its folder does not say so
    assert (images.image_mean, images.image_std) == (list(OPENAI_CLIP_MEAN), list(OPENAI_CLIP_STD))
    answers = pipe.answer([[picture(seed=1), picture(seed=2)], picture(seed=3)], ["which?", "who?"], max_new_tokens=2)
    assert len(answers) == 2


def test_a_config_that_does_not_fit_is_refused_in_one_sentence(config_file):
    for change, sentence in (
        (
            "model.aligner={type: pixel_shuffle, factor: 3}",
            "aligner.factor is 3, which does not divide the tower's 4x4",
        ),
        ("model.vision_feature_layer=7", "vision_feature_layer is 7, but the tower has 2 layers"),
        ("model.aligner={type: perceiver}", "aligner has the type 'perceiver'; it must be one of mlp, linear"),
        ("model.vision_feature_layer=[last]", "vision_feature_layer"),
    ):
        with pytest.raises(ValueError, match=sentence):
            load_config(config_file, [change])


DINO = {"model_type": "dinov3_vit", **{name: CLIP[name] for name in CLIP if name != "model_type"}}
PLANNED = {
    "dinov3_vit": {"vision_config": DINO | {"num_register_tokens": 4}, "vision_feature_layer": -2},
    "native": {
        "vision_config": {
            **{name: CLIP[name] for name in CLIP if name not in ("model_type", "image_size")},
            "model_type": "siglip2_vision_model", "num_patches": 36, "vision_use_head": False,
        },
        "native_aspect": True, "aligner": {"type": "average_pool"}, "vision_feature_layer": -1,
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", PLANNED)
def test_a_plan_goes_through_towers_and_leaves_nothing_behind(config_file, kind, capsys):
    """DINOv3 remembers coordinates from call to call: those of a plan have no values."""
    settings = {"vision_model": None, **PLANNED[kind]}
    overrides = [f"model.{name}={json.dumps(value)}" for name, value in settings.items()]
    assert main(["plan", str(config_file), *overrides]) == 0
    assert "FLOPs" in capsys.readouterr().out
    config = load_config(config_file, overrides)
    hybrid = hybrid_config(config.model)
    model = tiny_pipeline(vision_config=hybrid.vision_config, vision_feature_layer=hybrid.vision_feature_layer).model
    features = model.model.get_image_features(torch.randn(1, 3, hybrid.tower_size, hybrid.tower_size)).pooler_output
    assert type(features) is torch.Tensor
    assert features.isfinite().all()
