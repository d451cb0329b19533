"""The demo with tiny trainings: it writes all it promises, goes on where it was, and never loses or mixes runs."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from PIL import Image

from hybridgen.cli import demo
from hybridgen.cli.main import main
from hybridgen.core import recognition
from hybridgen.training.config.schema import UNSAID
from tests.pipelines import tiny_pipeline

OWN = dict(demo.CONFIGS)
CODEC = {
    "output_dir": "replaced",
    "stage": "codec",
    "steps": 3,
    "log_every": 1,
    "vq_model": {
        "image_size": 32,
        "config": {
            "base_channels": 32, "channel_multiplier": [1, 1, 1], "num_res_blocks": 0, "latent_channels": 32,
            "embed_dim": 8, "num_embeddings": 16,
        },
        "continuous_steps": 1,
    },
    "data": {"per_device_batch_size": 4, "sources": [{"source": "dolls", "task": "draw"}]},
}  # fmt: skip
MODEL = {
    "output_dir": "replaced",
    "steps": 3,
    "log_every": 1,
    "model": {
        "tokenizer": {"vocab_size": 400, "samples": 100},
        "text_config": {
            "model_type": "qwen3", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "head_dim": 16,
            "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 512,
        },
        "vision_config": {
            "model_type": "siglip_vision_model", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
            "num_attention_heads": 2, "image_size": 32, "patch_size": 16, "vision_use_head": False,
        },
        "diffusion_config": {"patch_size": 8, "sample_size": 32},
        "vq_config": {"num_embeddings": 16, "embed_dim": 8, "sample_size": 8},
    },
    "data": {
        "per_device_batch_size": 1,
        "sequence_length": 400,
        "sources": [
            {"source": "dolls", "task": "draw", "write": "diffusion"},
            {"source": "dolls", "task": "draw", "write": "vq"},
            {"source": "dolls", "task": "answer", "questions_per_picture": 3},
        ],
    },
    "validation": {
        "every": 3,
        "batches": 1,
        "sources": [{"source": "dolls", "task": "draw", "write": "diffusion", "split": "held_out"}],
    },
    "sampling": {"steps": 2, "guidance": 2.0, "guidance_vq": 1.0},
}  # fmt: skip


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    """Tiny configs in place of those that come with hybridgen."""
    folder = tmp_path_factory.mktemp("configs")
    for name, content in (("codec.yaml", CODEC), ("model.yaml", MODEL)):
        (folder / name).write_text(yaml.safe_dump(content))
    with pytest.MonkeyPatch.context() as patch:
        for stage in demo.CONFIGS:
            patch.setitem(demo.CONFIGS, stage, str(folder / f"{stage}.yaml"))
        patch.setitem(recognition.PACKAGED, recognition.SMALL, folder / "none")  # most tests here show nothing first
        yield folder


def run(out: Path, *overrides: str, samples: int = 2, seed: int = 0) -> list[str]:
    return list(demo.run_demo(out, seed, samples, list(overrides), lambda what, done, of: None))


@pytest.fixture(scope="module")
def finished(configs, tmp_path_factory) -> Path:
    """A finished demo, for reading only."""
    out = tmp_path_factory.mktemp("runs") / "demo"
    assert run(out) == [str(out / "scores.json"), str(out / "report.html")]
    return out


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    """A finished demo that a test may harm."""
    shutil.copytree(finished, tmp_path / "demo")
    return tmp_path / "demo"


def times(folder: Path) -> dict[str, int]:
    return {str(file.relative_to(folder)): file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()}


def test_it_writes_all_it_promises(finished):
    for name in ("metrics.jsonl", "codec/metrics.jsonl", "checkpoint/model_index.json", "scores.json", "report.html"):
        assert (finished / name).stat().st_size
    for name in ("drawn_diffusion.png", "drawn_vq.png", "answers.png", "losses.png"):
        Image.open(finished / name).verify()


def test_scores_are_those_of_what_was_trained(finished):
    scores = json.loads((finished / "scores.json").read_text())
    dolls = scores["suites"]["dolls"]
    assert list(dolls["generation"]) == ["diffusion", "vq"]
    assert list(dolls["understanding"]) == ["understanding"]
    assert dolls["samples"] == 2
    assert (dolls["generation"]["diffusion"]["steps"], dolls["generation"]["diffusion"]["guidance"]) == (2, 2.0)
    assert dolls["generation"]["vq"]["guidance"] == 1.0
    assert set(scores["seconds"]) == {"codec", "model", "evaluation"}
    assert all(seconds > 0 for seconds in scores["seconds"].values())
    assert [target["share"] for target in scores["targets"]] == [0.98, 0.90, 0.95, 0.98, 0.96, 0.95, 0.90]


def test_the_report_tells_how_it_was_made(finished):
    page = (finished / "report.html").read_text()
    for word in (
        "One model, three paths",
        "training the VQ tokenizer",
        "CPU cores",
        "diffusion loss",
        "l1 loss",
        "held out",
    ):
        assert word in page
    assert page.count('<div class="score') == 1 + 4  # the frame; the tiny model is not asked through diffusion


def test_a_finished_demo_says_so_and_touches_nothing(finished, capsys):
    before = times(finished)
    assert run(finished) == [str(finished / "report.html")]
    assert times(finished) == before
    assert "is finished" in capsys.readouterr().err


def test_without_its_report_it_scores_again_but_does_not_train(copy):
    (copy / "report.html").unlink()
    before = times(copy / "checkpoint")
    scores = json.loads((copy / "scores.json").read_text())
    run(copy)
    assert times(copy / "checkpoint") == before
    again = json.loads((copy / "scores.json").read_text())
    assert (copy / "report.html").is_file()
    first, second = (each["suites"]["dolls"]["generation"] for each in (scores, again))
    assert {path: each["scores"] for path, each in first.items()} == {p: each["scores"] for p, each in second.items()}


def test_other_samples_are_scored_anew(copy):
    run(copy, samples=1)
    assert json.loads((copy / "scores.json").read_text())["suites"]["dolls"]["samples"] == 1


def test_it_goes_on_with_the_model_when_the_codec_is_done(copy):
    shutil.rmtree(copy / "checkpoint")
    (copy / "report.html").unlink()
    before = times(copy / "codec")
    seconds = json.loads((copy / "demo.json").read_text())["seconds"]
    run(copy)
    assert times(copy / "codec") == before
    assert (copy / "checkpoint").is_dir()
    later = json.loads((copy / "demo.json").read_text())["seconds"]
    assert later["codec"] == seconds["codec"]
    assert later["model"] > seconds["model"]  # both goes together


def test_overrides_reach_their_config(configs, tmp_path):
    plan = demo.make_plan(tmp_path / "demo", 3, 4, ["steps=7", "codec:steps=5", "codec:vq_model.l1=2.0"])
    assert (plan.model.steps, plan.codec.steps, plan.codec.vq_model.l1) == (7, 5, 2.0)
    assert (plan.model.seed, plan.codec.seed) == (3, 3)
    assert plan.model.codec.vq == str(tmp_path / "demo" / "codec" / "checkpoint" / "vq_model")
    assert (plan.draw_paths, plan.answer_paths) == (["diffusion", "vq"], ["understanding"])


@pytest.mark.parametrize(
    ("overrides", "seed", "message"),
    [
        (["steps=9"], 0, "holds a demo with model.steps 3, not 9"),
        (["codec:steps=9"], 0, "holds a demo with codec.steps 3, not 9"),
        ([], 1, "holds a demo with codec.seed 0, not 1"),
    ],
)
def test_another_setting_is_refused_in_the_same_folder(finished, overrides, seed, message):
    before = times(finished)
    with pytest.raises(ValueError, match=message):
        run(finished, *overrides, seed=seed)
    assert times(finished) == before


def test_a_demo_with_older_names_is_still_finished(copy):
    """As `demo.json` was written when the dataset was a world and keys of configs had other names."""
    file = copy / "demo.json"
    content = json.loads(file.read_text())
    content["settings"]["world"] = content["settings"].pop("dataset")
    for config in ("codec", "model"):
        data = content["settings"][config]["data"]
        for old, new in (("rows", "per_device_batch_size"), ("workers", "loader_threads"), ("divide", "shard_by_rank")):
            data[old] = data.pop(new)
        for source in data["sources"]:
            source["twin"] = source.pop("clean_copy")
            del source["long"]  # a setting of today
        del content["settings"][config]["objective"]["token_mean"]
        sampling = content["settings"][config]["sampling"]
        content["settings"][config]["sampling"] = {
            key: UNSAID.get(key) if value is None else value
            for key, value in sampling.items()
            if key not in ("diffusion", "vq", "scheduler")
        }
    file.write_text(json.dumps(content))
    assert run(copy) == [str(copy / "report.html")]
    with pytest.raises(ValueError, match="holds a demo with model.data.per_device_batch_size 1, not 2"):
        run(copy, "data.per_device_batch_size=2")


def test_threads_may_differ(finished):
    assert run(finished, "threads=1", "codec:threads=1") == [str(finished / "report.html")]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["stpes=9"], "unknown key 'stpes'"),
        (["codec:stpes=9"], "unknown key 'stpes'"),
        (["model.vq_config.num_embeddings=17"], "num_embeddings is 17, but codec.vq has 16 codes"),
        (["codec:vq_model.image_size=33"], "image_size 33 is not divisible"),
        (["model.diffusion_config.patch_size=5"], "not divisible by patch_size 5"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_made(configs, tmp_path, overrides, message):
    """The model's too, although its codec is trained first."""
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "demo", *overrides)
    assert not (tmp_path / "demo").exists()


def test_a_folder_of_something_else_is_left_alone(configs, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds something that the demo did not write; choose another --out"):
        run(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_a_strange_folder_name_is_no_yaml(configs, tmp_path):
    plan = demo.make_plan(tmp_path / "runs: 1, #2", 0, 2, [])
    assert plan.model.output_dir == str(tmp_path / "runs: 1, #2")


def test_on_the_command_line(finished, capsys):
    assert main(["demo", "--out", str(finished), "--samples", "2"]) == 0
    assert capsys.readouterr().out == f"{finished / 'report.html'}\n"


def test_the_configs_that_come_with_hybridgen_fit_together(tmp_path, monkeypatch):
    for stage, name in OWN.items():
        monkeypatch.setitem(demo.CONFIGS, stage, name)
        assert demo.config_file(name).is_file()
    plan = demo.make_plan(tmp_path / "demo", 0, 256, [])
    assert plan.draw_paths == plan.chat_paths == ["diffusion", "vq"]
    assert set(plan.answer_paths) == {"understanding", "diffusion"}
    assert {source.source for source in plan.model.data.sources} == {"dolls"}


def test_it_begins_with_what_the_packages_own_model_draws(configs, tmp_path, monkeypatch, capsys):
    small = tmp_path / "small"
    tiny_pipeline().save_pretrained(small)
    monkeypatch.setitem(recognition.PACKAGED, recognition.SMALL, small)
    out = tmp_path / "demo"
    first, *rest = run(out)
    assert first == str(out / "first.png")
    assert len(rest) == 2
    Image.open(first).verify()
    (out / "scores.json").unlink()
    assert len(run(out)) == 2  # a demo that goes on does not show it again


def test_an_installation_without_that_model_says_so(configs, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(recognition.PACKAGED, recognition.SMALL, tmp_path / "none")
    assert len(run(tmp_path / "demo")) == 2
    assert "hybridgen/small is not in this installation" in capsys.readouterr().err
