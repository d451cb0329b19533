"""Diagnostics in the loop: they change no bit of a run, they say what autograd says, and they go on after a kill."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.utils import send_to_device
from PIL import Image
from safetensors.torch import load_file
from torch.nn.utils import parameters_to_vector

from hybridgen.core.objectives import total
from hybridgen.training import load_config, train
from hybridgen.training.distributed.processes import make_accelerator
from hybridgen.training.monitor.diagnostics import PLOT, Diagnostics
from tests.models import MODEL_CONTENT
from tests.pipelines import tiny_vq_model
from tests.training import toy
from tests.training.stages.test_model import all_tasks, stage_of

CLOCKS = ("seconds", "tokens_per_second", "data_wait", "peak_memory_gb", "tflops", "mfu")
LOOKS = ("gradient_", "attention_", "output_rms", "max_logit")


@pytest.fixture(scope="module")
def config_file(tmp_path_factory) -> Path:
    """All paths on dolls at 16x16 pixels, with dropout and a frozen part, and a look at every second step."""
    folder = tmp_path_factory.mktemp("diagnostics")
    tiny_vq_model().save_pretrained(folder / "vq_model")
    size = {"height": 16, "width": 16}
    content = {
        "output_dir": str(folder / "run"), "steps": 4, "threads": 1, "precision": "fp32", "accumulation": 2,
        "log_every": 3, "save_every": 2, "ema": {"decay": 0.9}, "codec": {"vq": str(folder / "vq_model")},
        "diagnostics": {"every": 2, "peak_tflops": 0.5},
        "groups": [{"match": "model.vision_model", "frozen": True}],
        "data": {
            "per_device_batch_size": 2, "sequence_length": 96,
            "sources": [
                {"source": "dolls", "task": "draw", "write": "diffusion", "prompt_dropout": 0.2, "clean_copy": True,
                 **size},
                {"source": "dolls", "task": "draw", "write": "vq", **size},
                {"source": "dolls", "task": "answer", "questions_per_picture": 2, "name": "ask"},
            ],
        },
        "validation": {
            "every": 4, "batches": 1,
            "sources": [{"source": "dolls", "task": "answer", "split": "held_out", "name": "unseen",
                         "questions_per_picture": 2}],
        },
        "model": MODEL_CONTENT,
    }  # fmt: skip
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(scope="module")
def run(config_file) -> Path:
    train(load_config(config_file))
    return config_file.parent / "run"


def metrics_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def without(records: list[dict], *prefixes: str) -> list[dict]:
    kept = [{name: value for name, value in record.items() if not name.startswith(prefixes)} for record in records]
    return [record for record in kept if record.keys() - {"step"}]


def assert_same_weights(first: Path, second: Path) -> None:
    ours, theirs = (load_file(folder / "checkpoint/model/model.safetensors") for folder in (first, second))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_they_change_no_bit_of_a_run(config_file, run, tmp_path):
    train(load_config(config_file, [f"output_dir={tmp_path}", "diagnostics.every=0"]))
    assert_same_weights(run, tmp_path)
    assert without(metrics_of(run), *CLOCKS, *LOOKS) == without(metrics_of(tmp_path), *CLOCKS)


def test_resumed_they_go_on(config_file, run, tmp_path):
    """From between two logs: what was added up by then is in the state."""
    shutil.copytree(run / "state" / "step_000002", tmp_path / "state" / "step_000002")
    shutil.copytree(run / "tokenizer", tmp_path / "tokenizer")
    shutil.copy(run / "metrics.jsonl", tmp_path)
    train(load_config(config_file, [f"output_dir={tmp_path}"]))
    assert_same_weights(run, tmp_path)
    assert without(metrics_of(tmp_path), *CLOCKS) == without(metrics_of(run), *CLOCKS)


def test_what_a_run_tells(run):
    records = {record["step"]: record for record in metrics_of(run)}
    assert list(records) == [2, 3, 4]  # a look, a log, both and a validation
    logged, looked = records[3], records[2]
    entries = ("dolls-draw-diffusion", "dolls-draw-vq", "ask")
    assert {name.split("/")[1] for name in logged if name.startswith("source/")} == set(entries)
    assert {f"source/{entries[0]}/diffusion", f"source/{entries[1]}/bits_per_code"} <= set(logged)
    assert logged["source/ask/bits_per_byte"] == logged["bits_per_byte"] > 0
    assert any(name.startswith("diffusion_at/") for name in logged)
    assert logged["mfu"] == pytest.approx(logged["tflops"] / 0.5)
    assert 0 < logged["mfu"] < 1
    assert 0.01 < logged["peak_memory_gb"] < 100
    for name in ("gradient_cosine/language_model", "attention_entropy/layer_01", "output_rms/layer_01"):
        assert name in looked
    assert {"max_logit/text", "max_logit/code", "gradient_norm/patch_embed"} <= set(looked)
    assert "gradient_norm/vision_model" not in looked  # frozen
    assert not any(name.startswith(LOOKS) for name in logged)
    assert records[4]["validation/source/unseen/text"] == pytest.approx(records[4]["validation/loss/text"])
    with Image.open(run / PLOT) as image:
        assert image.width > 500


@pytest.mark.parametrize("token_mean", ["separate", "joint"])
def test_gradients_are_autograds(tmp_path, token_mean):
    """Two batches, each side's gradient by hand, and the training gradient, which stays as it was. Worst relative
    difference of a norm seen: 3e-7."""
    content = {"output_dir": str(tmp_path), "accumulation": 2, "precision": "fp32", "threads": 1}
    content |= {
        "diagnostics": {"every": 1, "peak_tflops": 1.0},
        "objective": {"diffusion_weight": 5.0, "token_mean": token_mean},
    }
    stage = stage_of(all_tasks(), **content)
    accelerator = make_accelerator(stage.config)
    diagnostics = Diagnostics(stage.config, stage, accelerator)
    window = [next(stage.loader) for _ in range(2)]
    counts = {kind: torch.tensor(sum(stage.counts(batch)[kind] for batch in window)) for kind in stage.kinds}
    parameters = list(stage.model.parameters())

    def gradient(kinds) -> torch.Tensor:
        weights = {"text": 1.0, "code": 1.0, "diffusion": 5.0, "token": 0.0}
        weights = {kind: weight * (kind in kinds) for kind, weight in weights.items()}
        divisors = counts | (dict.fromkeys(("text", "code"), counts["token"]) if token_mean == "joint" else {})
        losses = [total(stage.losses(stage.model, send_to_device(batch, "cpu")), divisors, weights) for batch in window]
        return parameters_to_vector(torch.autograd.grad(sum(losses), parameters))

    whole, text, image = gradient(stage.kinds), gradient(["text"]), gradient(["code", "diffusion"])
    for parameter, part in zip(parameters, whole.split([each.numel() for each in parameters]), strict=True):
        parameter.grad = part.view_as(parameter).clone()
    stage.breakdown.settle(taken=False)
    stream = torch.get_rng_state()
    assert diagnostics.probe(1, stage.model, window, counts) > 0
    found = diagnostics.end_step(window, taken=True)

    assert torch.equal(parameters_to_vector([parameter.grad for parameter in parameters]), whole)
    assert torch.equal(torch.get_rng_state(), stream)
    assert not stage.breakdown.sums.any()
    assert found["gradient_norm_text/all"] == pytest.approx(float(text.norm()), rel=1e-5)
    assert found["gradient_norm_image/all"] == pytest.approx(float(image.norm()), rel=1e-5)
    cosine = torch.nn.functional.cosine_similarity(text, image, dim=0)
    assert found["gradient_cosine/all"] == pytest.approx(float(cosine), abs=1e-5)
    torch.testing.assert_close(text + image, whole, rtol=1e-5, atol=1e-4)
    assert diagnostics.end_step(window, taken=True) == {}


def test_one_side_alone_has_no_angle(tmp_path):
    content = {"output_dir": str(tmp_path), "diagnostics": {"every": 1, "peak_tflops": 1.0}, "precision": "fp32"}
    stage = stage_of([each for each in all_tasks() if each.name == "text"], rows=2, length=80, **content)
    diagnostics = Diagnostics(stage.config, stage, make_accelerator(stage.config))
    window = [next(stage.loader)]
    counts = {kind: torch.tensor(float(count)) for kind, count in stage.counts(window[0]).items()}
    diagnostics.probe(1, stage.model, window, counts)
    found = diagnostics.end_step(window, taken=True)
    assert not any(name.startswith("gradient_cosine") for name in found)
    assert "attention_entropy/layer_00" in found


def test_a_stage_without_entries_shows_its_gradients(tmp_path):
    """Any stage has those, and its memory; the toy's weights are the same with and without."""
    toy.train(toy.config_of(tmp_path / "on", diagnostics={"every": 4}))
    toy.train(toy.config_of(tmp_path / "off"))
    ours, theirs = (load_file(tmp_path / name / "checkpoint/toy.safetensors") for name in ("on", "off"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    record = metrics_of(tmp_path / "on")[1]
    assert {"gradient_norm/embedding", "gradient_norm/heads", "peak_memory_gb"} <= set(record)
    assert "mfu" not in record
    assert (tmp_path / "on" / PLOT).exists()
    assert not (tmp_path / "off" / PLOT).exists()


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("diagnostics.every=-1", "diagnostics.every is -1; it must be 0 or more"),
        ("diagnostics.every=0.5", "diagnostics.every is 0.5; it must be a whole number"),
        ("diagnostics.peak_tflops=0", "diagnostics.peak_tflops is 0.0; it must be above 0, or null"),
        ("diagnostics.evry=1", "unknown key 'diagnostics.evry' (value 1); did you mean 'every'?"),
    ],
)
def test_what_makes_no_sense_is_refused(config_file, word, sentence):
    with pytest.raises(ValueError) as raised:
        load_config(config_file, [word])
    assert str(raised.value) == sentence
