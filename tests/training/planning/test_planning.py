"""The plan of a run's memory, against what a run takes on a CPU, byte by byte as torch's profiler counts them."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from torch.profiler import ProfilerActivity, profile

from hybridgen.cli.main import main as cli
from hybridgen.codecs.patch_vq import PatchVQ
from hybridgen.training import load_config, train
from hybridgen.training.planning.batches import planned_data
from hybridgen.training.planning.report import Machines, amount, bytes_of_process, way_out
from hybridgen.training.planning.simulation import simulate
from hybridgen.training.planning.sizes import ByteCount
from tests.pipelines import tiny_pipeline

CONFIGS = Path(__file__).parents[3] / "configs"
TEXT = {
    "model_type": "qwen3", "hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 24, "max_position_embeddings": 1024,
}  # fmt: skip
TOWER = {
    "model_type": "siglip_vision_model", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "image_size": 32, "patch_size": 8, "vision_use_head": False,
}  # fmt: skip
DIFFUSION = {"patch_size": 4, "sample_size": 32, "prediction_type": "sample", "noise_schedule": "flow"}
DRAW = {"source": "dolls", "task": "draw", "write": "diffusion", "name": "draw"}
ANSWER = {"source": "dolls", "task": "answer", "read": "understanding", "name": "answer"}
SHAPES = {
    "three paths, AdamW, an average, sdpa in fp32": {
        "model": {"vision_config": TOWER, "diffusion_config": DIFFUSION,
                  "vq_config": {"num_embeddings": 64, "embed_dim": 16, "sample_size": 8}},
        "sources": [DRAW, ANSWER, {**DRAW, "name": "codes", "write": "vq"}], "length": 256, "rows": 6,
        "ema": {"decay": 0.99}, "precision": "fp32",
    },
    "deep and checkpointed, Muon, two micro-batches": {
        "model": {"diffusion_config": DIFFUSION, "text_config": {**TEXT, "num_hidden_layers": 10, "hidden_size": 64}},
        "sources": [DRAW], "length": 512, "rows": 4, "optimizer": {"name": "muon"}, "gradient_checkpointing": True,
        "accumulation": 2, "precision": "fp32",
    },
    "answers alone in bf16, wide, eager attention": {
        "model": {"vision_config": TOWER, "text_config": {**TEXT, "hidden_size": 256, "num_hidden_layers": 2}},
        "sources": [ANSWER], "length": 384, "rows": 3, "precision": "bf16", "attention": "eager",
    },
    "a mixture of experts, of which pictures have their own": {
        "model": {"text_config": {**TEXT, "model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2,
                                  "moe_intermediate_size": 192},
                  "diffusion_config": {**DIFFUSION, "modality_experts": True}},
        "sources": [DRAW], "length": 128, "rows": 4, "precision": "fp32",
    },
}  # fmt: skip


def config_of(shape: dict, folder: Path):
    """The run of one of `SHAPES`, as a config file."""
    content = {key: value for key, value in shape.items() if key not in ("model", "sources", "length", "rows")}
    content["model"] = {"text_config": TEXT, "tokenizer": {"vocab_size": 600, "samples": 60}, **shape["model"]}
    content["data"] = {"sources": shape["sources"], "sequence_length": shape["length"], "prefetch": 0}
    content["data"]["per_device_batch_size"] = shape["rows"]
    if "vq_config" in shape["model"]:
        PatchVQ(4, 64, channels=16).save_pretrained(folder / "vq")
        content["codec"] = {"vq": str(folder / "vq")}
    content |= {"output_dir": str(folder / "run"), "steps": 3, "threads": 1, "log_every": 3, "save_every": 100}
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    return file


def measured_peak(config) -> int:
    """The most bytes that a run holds at once, as torch's allocator says them to the profiler."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        train(config)
    events = [each for each in profiler.profiler.kineto_results.events() if each.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda each: each.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


@pytest.mark.parametrize("name", SHAPES)
def test_a_plan_is_within_15_percent_of_what_a_run_takes(name, tmp_path):
    config = load_config(config_of(SHAPES[name], tmp_path))
    planned = simulate(config, planned_data(config, 1), "cpu").peak
    measured = measured_peak(config)
    print(name, planned / measured)
    assert planned == pytest.approx(measured, rel=0.15)


def test_living_bytes_are_counted_and_freed():
    with ByteCount() as count:
        a = torch.zeros(100, 10)
        with count.purpose("products"):
            b = a.T @ a
        view = b[:2]
        assert count.living == Counter(activations=4000, products=400)
        del b
        assert count.living["products"] == 400  # held by the view
        del view
        assert (count.total, count.peak) == (4000, 4400)
        mask = torch.arange(100) % 3 == 0
        assert a[mask].shape == (34, 10)  # what masks decide is decided
        assert float(a.sum()) == 1.0


def test_sharded_weights_are_divided_and_what_is_gathered_is_added(tmp_path):
    config = load_config(config_of(SHAPES["three paths, AdamW, an average, sdpa in fp32"], tmp_path))
    simulated = simulate(config, planned_data(config, 1), "cpu")
    weights = sum(simulated.parameters.values())
    machines = Machines(8, 80e9, "fsdp2", None, 0.4)
    sharded = bytes_of_process(simulated, machines, half=True)
    assert sharded["weights"] == 4 * weights // 8
    assert sharded["optimizer"] == simulated.kept["optimizer"] // 8
    assert sharded["weights gathered"] == 2 * (2 * simulated.largest_layer + simulated.outside_layers)
    whole = bytes_of_process(simulated, machines, half=True, whole_gradients=True)
    assert whole["gradients"] - sharded["gradients"] == 4 * simulated.trained - 4 * simulated.trained // 8
    ddp = bytes_of_process(simulated, Machines(8, 80e9, "ddp", None, 0.4), half=True)
    assert sum(ddp.values()) == simulated.peak + 4 * simulated.trained


def test_an_adapter_is_planned(tmp_path):
    """Its weights alone have gradients and moments. Measured against a run: 1.00."""
    tiny_pipeline().save_pretrained(tmp_path / "pipeline")
    content = {
        "output_dir": str(tmp_path / "run"), "steps": 2, "threads": 1, "precision": "fp32", "save_every": 100,
        "model": {"from_pretrained": str(tmp_path / "pipeline")}, "lora": {"parts": ["backbone", "vq"], "rank": 4},
        "data": {"sources": [DRAW], "sequence_length": 256, "per_device_batch_size": 8, "prefetch": 0},
    }  # fmt: skip
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    config = load_config(tmp_path / "config.yaml")
    planned = simulate(config, planned_data(config, 1), "cpu")
    assert planned.trained == planned.parameters["adapter"] > 0
    assert planned.kept["gradients"] <= 4 * planned.trained
    assert planned.peak == pytest.approx(measured_peak(config), rel=0.15)


def test_auto_is_the_attention_that_a_gpu_would_take(tmp_path):
    """OLMoE has nothing of flex attention; where it is asked for, that is said."""
    text = {**TEXT, "model_type": "olmoe", "num_experts": 4, "num_experts_per_tok": 2}
    shape = {"model": {"text_config": text, "diffusion_config": DIFFUSION}, "sources": [DRAW], "length": 128, "rows": 1}
    config = load_config(config_of(shape, tmp_path))
    data = planned_data(config, 1)
    assert simulate(config, data, "cuda").peak > 0
    with pytest.raises(ValueError, match="attention is 'flex_attention', which the backbone, a 'olmoe', does not have"):
        simulate(replace(config, attention="flex_attention"), data, "cuda")
    with pytest.raises(ValueError, match="attention is 'flex_attention', which torch does not train on a CPU"):
        simulate(replace(config, attention="flex_attention"), data, "cpu")


def test_an_average_in_main_memory_is_beside_a_gpu_and_within_a_cpu(tmp_path):
    shape = SHAPES["answers alone in bf16, wide, eager attention"] | {"ema": {"on_cpu": True}}
    config = load_config(config_of(shape, tmp_path))
    data = planned_data(config, 1)
    on_cpu, on_gpu = simulate(config, data, "cpu"), simulate(config, data, "cuda")
    assert on_cpu.kept["average"] == 4 * on_cpu.trained
    assert on_gpu.kept["average"] == 0


def test_keys_to_change_are_tried_in_turn_until_a_run_fits(tmp_path):
    config = load_config(config_of(SHAPES["three paths, AdamW, an average, sdpa in fp32"], tmp_path))
    machines = Machines(2, 100.0, "ddp", None, 0.4)
    sizes = {(False, 6, "ddp"): 200.0, (True, 6, "ddp"): 150.0, (True, 6, "fsdp2"): 120.0, (True, 3, "fsdp2"): 90.0}

    def peak_of(changed, on):
        return sizes[changed.gradient_checkpointing, changed.data.per_device_batch_size, on.engine]

    named, size = way_out(config, machines, lambda *each: peak_of(*each))
    assert size == 90.0
    assert [each.split()[0] for each in named] == [
        "ema.on_cpu=true", "gradient_checkpointing=true", "--config_file", "data.per_device_batch_size=3",
    ]  # fmt: skip


def test_the_command_says_what_fits_and_what_does_not(tmp_path, capsys):
    file = str(config_of(SHAPES["answers alone in bf16, wide, eager attention"], tmp_path))
    assert cli(["plan", file, "--memory", "4", "precision=fp32"]) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[-1] == "it fits"
    assert all(each in said for each in ("G a token", "4.0 GB"))
    assert cli(["plan", file, "--gpus", "2", "--memory", "0.01", "--tflops", "100"]) == 1
    said = capsys.readouterr().out
    expected = ("gradient_checkpointing=true", "configs/accelerate/fsdp2.yaml", "days at 40 %")
    assert all(each in said for each in expected)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize(("size", "said"), [(2.54e9, "2.5 GB"), (1e9, "1.0 GB"), (17.4e6, "17 MB"), (0, "0 MB")])
def test_amounts_of_memory(size, said):
    assert amount(size) == said


def test_data_that_are_not_there_are_assumed_and_that_is_said(capsys):
    words = ["model.text_config.num_hidden_layers=1", "data.per_device_batch_size=1", "data.sequence_length=1024"]
    assert cli(["plan", str(CONFIGS / "transfusion_0.16b.yaml"), "--gpus", "8", *words]) == 0
    said = capsys.readouterr().out
    assert all(each in said for each in ("'pairs.jsonl'", "a batch is assumed", "no codec.vae"))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["configs/demo_codec.yaml"], "stage is 'codec'"),
        (["configs/none.yaml"], "configs/none.yaml does not exist"),
        (["configs/janus_stage2.yaml"], "so the size of the model is not known"),
        (["configs/demo.yaml", "--gpus", "-1"], "-1"),
        (["configs/demo.yaml", "--memory", "0"], "not a number above 0"),
        (["configs/demo.yaml", "data.sources.0.weight=-1"], "weight"),
    ],
)
def test_bad_input_is_one_sentence(words, sentence, capsys):
    words = [str(CONFIGS.parent / word) if word.startswith("configs/") else word for word in words]
    try:
        code = cli(["plan", *words])
    except SystemExit as stop:  # of an option
        code = stop.code
    assert code == 2
    error = capsys.readouterr().err.strip()
    assert sentence in error
    assert len(error.splitlines()) == 1
