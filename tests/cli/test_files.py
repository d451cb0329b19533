"""Files of the command line and of Python's calls: home folders, full disks, interrupts, things that were moved."""

import errno
import json
import shutil
import sys
from pathlib import Path

import pytest

from hybridgen import HybridGenForConditionalGeneration, HybridGenPipeline, HybridGenProcessor
from hybridgen.bridges.adapters import add_lora, open_pipeline
from hybridgen.bridges.janus import convert
from hybridgen.bridges.lora_config import LoraConfig
from hybridgen.bridges.weights import open_weights
from hybridgen.cli import evaluate, sample
from hybridgen.core import files
from hybridgen.core.recognition import nearest, user_path, what_folder_it_is
from hybridgen.data.source_config import SourceConfig
from hybridgen.data.sources import open_source
from hybridgen.pipeline_hybridgen import load_pipeline
from hybridgen.training import load_config

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 4\n"
DRAW = ("--prompt", "an elf", "--steps", 1, "--guidance", 1, "--path", "diffusion")


# ------------------------------------------------------------------------------------------------------------- home


@pytest.fixture
def home(tmp_path, monkeypatch, tiny_checkpoint) -> Path:
    """A home folder with a checkpoint in it."""
    home = tmp_path / "home"
    home.mkdir()
    shutil.copytree(tiny_checkpoint, home / "ck")
    monkeypatch.setenv("HOME", str(home))
    return home


def test_home_is_a_folder_in_every_argument(run, home, doll):
    shutil.copy(doll, home / "doll.png")
    code, lines, error = run("sample", "~/ck", *DRAW, "--image", "~/doll.png", "--out", "~/out")
    assert code == 0, error
    assert Path(lines[0]).parent == home / "out"
    assert run("replay", f"~/out/{Path(lines[0]).name}", "~/ck")[0] == 0
    assert run("ask", "~/ck", "--image", "~/doll.png", "--question", "what?", "--max-new-tokens", 2)[0] == 0


def test_home_is_a_folder_in_python(home):
    assert HybridGenPipeline.from_pretrained("~/ck").origin["checkpoint"] == str(home / "ck")
    assert load_pipeline("~/ck").origin["checkpoint"] == str(home / "ck")
    HybridGenForConditionalGeneration.from_pretrained("~/ck")
    HybridGenProcessor.from_pretrained("~/ck")
    load_pipeline("~/ck").save_pretrained("~/again")
    assert (home / "again" / "model_index.json").is_file()


def test_home_is_a_folder_in_configs_and_sources(home):
    (home / "base.yaml").write_text("steps: 3\nmodel: {from_pretrained: ~/ck}\n")
    (home / "rows.jsonl").write_text(json.dumps({"messages": [{"role": "user", "content": "hello"}]}) + "\n")
    (home / "c.yaml").write_text(
        "base: ~/base.yaml\noutput_dir: ~/run\ndata: {cache: ~/cache, sources: [{source: ~/rows.jsonl}]}\n"
    )
    config = load_config("~/c.yaml")
    assert config.output_dir == str(home / "run")
    assert config.data.cache == str(home / "cache")
    assert config.model.from_pretrained == str(home / "ck")
    assert config.data.sources[0].source == str(home / "rows.jsonl")
    assert open_source(config.data.sources[0]).records == 1
    assert isinstance(config.data.sources[0], SourceConfig)


def test_a_home_that_is_nobodys_is_a_name():
    assert user_path("~nobody-of-this-name/x") == Path("~nobody-of-this-name/x")
    with pytest.raises(ValueError, match="'' is no path"):
        user_path("")


# -------------------------------------------------------------------------------------------------------- full disks


@pytest.fixture
def full_after(monkeypatch):
    """A disk that is full after so many files of a kind were written."""

    def limit(count: int, suffix: str = ".png") -> None:
        written, write = [], Path.write_bytes

        def write_bytes(path, content):
            if path.suffix != suffix:
                return write(path, content)
            if len(written) >= count:
                write(path, content[: len(content) // 2])
                raise OSError(errno.ENOSPC, "No space left on device")
            written.append(path)
            return write(path, content)

        monkeypatch.setattr(Path, "write_bytes", write_bytes)

    return limit


def test_a_full_disk_names_the_picture_and_says_what_is_written(run, tiny_checkpoint, tmp_path, full_after):
    full_after(2)
    code, lines, error = run("sample", tiny_checkpoint, *DRAW, "--num-images", 4, "--out", tmp_path / "out")
    assert code == 2
    name = tmp_path / "out" / "an-elf-diffusion-seed2.png"
    assert error.splitlines()[-1] == f"hybridgen: {name}: No space left on device; 2 of 4 pictures are written"
    assert sorted(map(str, (tmp_path / "out").iterdir())) == sorted(lines)  # no half of a picture, no other file


def test_a_full_disk_at_the_first_picture(run, tiny_checkpoint, tmp_path, full_after):
    full_after(0)
    code, lines, error = run("sample", tiny_checkpoint, *DRAW, "--out", tmp_path / "out")
    assert (code, lines) == (2, [])
    assert error.splitlines()[-1].endswith("an-elf-diffusion-seed0.png: No space left on device; no picture is written")
    assert not list((tmp_path / "out").iterdir())


def test_results_that_cannot_be_printed_are_one_line(run, tiny_checkpoint, doll, monkeypatch):
    class Full:
        def write(self, text):
            raise OSError(errno.ENOSPC, "No space left on device")

        def flush(self):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sys, "stdout", Full())
    code, _, error = run("ask", tiny_checkpoint, "--image", doll, "--question", "?", "--max-new-tokens", 2)
    assert (code, error.splitlines()[-1]) == (2, "hybridgen: standard output: No space left on device")


def test_an_older_file_stays_when_a_new_one_cannot_be_written(tmp_path, full_after):
    file = tmp_path / "scores.json"
    files.write_json(file, {"old": 1})
    full_after(0, ".json")
    with pytest.raises(OSError, match="scores.json") as caught:
        files.write_json(file, {"new": 2})
    assert caught.value.filename == str(file)
    assert json.loads(file.read_text()) == {"old": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["scores.json"]


# ------------------------------------------------------------------------------------------ written as they are done


def test_pictures_are_written_batch_by_batch(run, tiny_checkpoint, tmp_path, monkeypatch):
    """Ctrl-C in the second batch leaves the first one's pictures, each whole; and they are those of one batch."""
    whole = run("sample", tiny_checkpoint, *DRAW, "--num-images", 4, "--out", tmp_path / "whole")[1]
    monkeypatch.setattr(sample, "BATCH", 2)
    draw, calls = HybridGenPipeline.__call__, []

    def stopped(self, *args, **kwargs):
        calls.append(kwargs["seed"])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return draw(self, *args, **kwargs)

    monkeypatch.setattr(HybridGenPipeline, "__call__", stopped)
    code, lines, error = run("sample", tiny_checkpoint, *DRAW, "--num-images", 4, "--out", tmp_path / "out")
    assert code == 130
    said = "stopped; the pictures whose paths were printed are written; with --prompts, the same command goes on"
    assert error.splitlines()[-1] == f"hybridgen: {said}"
    assert calls == [[0, 1], [2, 3]]
    assert [Path(line).read_bytes() for line in lines] == [Path(line).read_bytes() for line in whole[:2]]


def test_a_picture_that_is_there_is_never_written_over(run, tiny_checkpoint, tmp_path):
    for _ in range(2):
        run("sample", tiny_checkpoint, *DRAW, "--out", tmp_path)
    (tmp_path / "an-elf-diffusion-seed0-3.png").write_text("mine")
    code, lines, _ = run("sample", tiny_checkpoint, *DRAW, "--out", tmp_path)
    assert (code, Path(lines[0]).name) == (0, "an-elf-diffusion-seed0-4.png")
    assert (tmp_path / "an-elf-diffusion-seed0-3.png").read_text() == "mine"


def test_ctrl_c_in_an_evaluation_says_what_is_safe(run, tiny_checkpoint, tmp_path, monkeypatch):
    (tmp_path / "scores.json").write_text("{}")

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate, "evaluate_suites", stop)
    code, lines, error = run("evaluate", tiny_checkpoint, "--suite", "dolls", "--out", tmp_path)
    assert (code, lines) == (130, [])
    assert (
        error.splitlines()[-1]
        == "hybridgen: stopped; what was drawn and answered is kept: the same command goes on from there"
    )
    assert (tmp_path / "scores.json").read_text() == "{}"


# --------------------------------------------------------------------------------------------------- what was moved


def test_replay_finds_checkpoint_and_picture_from_elsewhere(run, tiny_checkpoint, doll, tmp_path, monkeypatch):
    there, elsewhere = tmp_path / "there", tmp_path / "elsewhere"
    there.mkdir()
    elsewhere.mkdir()
    shutil.copytree(tiny_checkpoint, there / "ck")
    shutil.copy(doll, there / "in.png")
    monkeypatch.chdir(there)
    picture = run("sample", "ck", *DRAW, "--image", "in.png", "--out", "o")[1][0]
    monkeypatch.chdir(elsewhere)
    code, lines, error = run("replay", there / picture)
    assert code == 0, error
    assert lines[0].startswith("identical")


def test_an_adapter_finds_its_model_beside_itself(tiny_checkpoint, tmp_path, monkeypatch):
    """Trained on a model that was named as seen from a folder; then both are moved."""
    pytest.importorskip("peft")
    shutil.copytree(tiny_checkpoint, tmp_path / "a" / "start")
    monkeypatch.chdir(tmp_path / "a")
    pipeline = load_pipeline("start")
    add_lora(pipeline.model, LoraConfig(parts=["vq"]))
    pipeline.model.save_pretrained("lora")
    base = json.loads(Path("lora/adapter_config.json").read_text())["base_model_name_or_path"]
    assert base == str(tmp_path / "a" / "start" / "model")
    monkeypatch.chdir(tmp_path)
    open_pipeline(tmp_path / "a" / "lora")
    (tmp_path / "a").rename(tmp_path / "b")
    assert open_pipeline(tmp_path / "b" / "lora").origin["checkpoint"] == str(tmp_path / "b" / "lora")
    shutil.rmtree(tmp_path / "b" / "start")
    with pytest.raises(ValueError, match="belongs to the model .*a/start/model, which is not there, nor beside the ad"):
        open_pipeline(tmp_path / "b" / "lora")


# ----------------------------------------------------------------------------------------------------- Python's calls


@pytest.mark.parametrize("load", [HybridGenPipeline.from_pretrained, load_pipeline, open_pipeline])
def test_a_pointer_is_named_by_every_way_in(load, tiny_checkpoint, tmp_path):
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "ck"))
    (folder / "model" / "model.safetensors").write_text(LFS)
    with pytest.raises(ValueError, match=r"ck/model/model.safetensors is a pointer of git lfs, not the file itself"):
        load(folder)


@pytest.mark.parametrize("kind", [HybridGenForConditionalGeneration, HybridGenProcessor])
def test_parts_of_a_mistyped_folder_do_not_exist(kind, tiny_checkpoint, tmp_path):
    shutil.copytree(tiny_checkpoint, tmp_path / "demo" / "checkpoint")
    with pytest.raises(ValueError, match=r"does not exist; did you mean .*demo/checkpoint\?"):
        kind.from_pretrained(tmp_path / "demmo" / "checkpoint")


@pytest.mark.parametrize("load", [HybridGenPipeline.from_pretrained, load_pipeline, open_pipeline])
def test_a_mistyped_folder_is_guessed_by_every_way_in(load, tiny_checkpoint, tmp_path):
    shutil.copytree(tiny_checkpoint, tmp_path / "runs" / "demo" / "checkpoint")
    for typed in ("runs/demmo/checkpoint", "runs/demo/chekpoint", "runs/demmo"):
        with pytest.raises(ValueError, match=r"does not exist; did you mean .*runs/demo/checkpoint\?"):
            load(tmp_path / typed)
    with pytest.raises(ValueError, match=r"the folder of a run|of another kind.*did you mean .*demo/checkpoint\?"):
        load(tmp_path / "runs" / "demo")


def test_weights_are_named_by_what_they_are(tmp_path):
    file = tmp_path / "pytorch_model.bin"
    for content, words in ((LFS, "git lfs"), ("<html></html>", "HTML"), ("", "is empty"), ("abc", "no file of torch")):
        file.write_text(content)
        with pytest.raises(ValueError, match=words) as caught:
            open_weights(tmp_path)
        assert "run code" not in str(caught.value)
        assert str(file) in str(caught.value)
    (tmp_path / "config.json").write_text('{"model_type": "janus"}')
    with pytest.raises(ValueError, match="no file of torch"):
        convert(tmp_path, tmp_path / "out")


def test_folders_are_called_what_they_are(tiny_checkpoint, tmp_path):
    assert what_folder_it_is(tiny_checkpoint) == "a HybridGenPipeline"
    assert what_folder_it_is(tiny_checkpoint / "vq_model") == "a model of the kind 'janus_vqgan'"
    assert what_folder_it_is(tmp_path) == "an empty folder"
    (tmp_path / "a.parquet").touch()
    assert what_folder_it_is(tmp_path) == "a folder of data"
    assert nearest(tmp_path / "b.parquet") == tmp_path / "a.parquet"
    assert nearest(tmp_path / "something-else") is None
