"""`hybridgen data inspect`, and `hybridgen train` on data of which some is broken: what is printed and written."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.processors import picture


def captioned(folder: Path, numbers) -> Path:
    folder.mkdir()
    for number in numbers:
        picture(seed=number).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a red circle {number}")
    return folder


def damaged(folder: Path) -> Path:
    """One picture that is none, one without its caption."""
    captioned(folder, range(8))
    (folder / "2.png").write_bytes(b"no picture")
    (folder / "3.txt").unlink()
    return folder


def config(tmp_path: Path, train: Path, **data) -> Path:
    held_out = captioned(tmp_path / "held_out", range(7, 12))
    text = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8,
    }  # fmt: skip
    diffusion = {"patch_size": 4, "sample_size": 16, "frequency_embedding_size": 32}
    draw = {"write": "diffusion", "loss_on": "all"}
    sources = [
        {"source": f"{train}/", "name": "draw", "weight": 3, **draw},
        {"source": f"{train}/", "name": "read", "read": "diffusion", "order": "image_first"},
    ]
    content = {
        "output_dir": str(tmp_path / "run"), "steps": 6, "log_every": 3, "save_every": 6,
        "data": {"sources": sources, "sequence_length": 64, "per_device_batch_size": 2, **data},
        "validation": {"every": 6, "batches": 1, "sources": [{"source": f"{held_out}/", "name": "later", **draw}]},
        "model": {"tokenizer": {"vocab_size": 300}, "text_config": text, "diffusion_config": diffusion},
    }  # fmt: skip
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "c.yaml"


def test_a_folder_is_inspected(run, tmp_path):
    folder = damaged(tmp_path / "pictures")
    code, lines, _ = run("data", "inspect", f"{folder}/", "--out", tmp_path / "out")
    assert code == 0
    assert lines[1].split()[:6] == ["pictures-understanding", "7", "7", "2", "0", "6"]
    assert lines[-1] == str(tmp_path / "out" / "inspect.png")
    assert Image.open(lines[-1]).size[0] > 500
    assert (tmp_path / "out" / "inspect.txt").read_text().splitlines() == lines[:-2]
    broken = [json.loads(line) for line in (tmp_path / "out" / "broken.jsonl").read_text().splitlines()]
    assert [entry["where"].rpartition("/")[2] for entry in broken] == ["3.png", "2.png"]
    assert "the caption of" in broken[0]["reason"]
    assert "cannot be decoded" in broken[1]["reason"]


def test_a_config_is_inspected(run, tmp_path):
    file = config(tmp_path, captioned(tmp_path / "train", range(8)))
    code, lines, error = run("data", "inspect", file, "data.prefetch=0", "--out", tmp_path / "out")
    assert code == 0, error
    assert any(line.split()[:2] == ["validation", "later"] and "diffusion" in line for line in lines)
    mix = next(number for number, line in enumerate(lines) if line.startswith("shares of the tokens"))
    shares = [line.split() for line in lines[mix + 2 : mix + 4]]
    assert [row[:2] for row in shares] == [["draw", "75.0%"], ["read", "25.0%"]]
    assert np.allclose([float(row[2][:-1]) for row in shares], [75, 25], atol=1)
    assert any(line.split() == ["draw", "later", "1", "1"] for line in lines)
    assert not (tmp_path / "run").exists()  # looking leaves nothing of a run


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("nothing.jsonl",), "there is no file nothing.jsonl"),
        (("nothing.yaml",), "config nothing.yaml does not exist"),
        (("dolls", "task=draw", "colour=red"), "unknown key 'colour'"),
        (("dolls",), "dolls-understanding: task is missing"),
    ],
)
def test_what_cannot_be_inspected_is_one_sentence(run, tmp_path, words, sentence):
    code, lines, error = run("data", "inspect", *words, "--out", tmp_path / "out")
    assert (code, lines) == (2, [])
    assert sentence in error
    assert not (tmp_path / "out").exists()


def test_a_run_goes_over_broken_records_and_lists_them(run, tmp_path):
    file = config(tmp_path, damaged(tmp_path / "train"), loader_threads=2, temperature=2.0)
    code, lines, error = run("train", file)
    assert code == 0, error
    listed = [json.loads(line) for line in (tmp_path / "run" / "broken.jsonl").read_text().splitlines()]
    assert {(entry["where"].split(",")[0], entry["where"].rpartition("/")[2]) for entry in listed} == {
        (f"source {name!r}", file) for name in ("draw", "read") for file in ("3.png", "2.png")
    }
    assert "4 broken records are skipped" in error
    code, lines, error = run("train", file, "data.max_broken=1", "resume=never", f"output_dir={tmp_path}/other")
    assert (code, lines) == (2, [])
    assert "2 broken records are more than data.max_broken 1 allows: source 'draw', " in error
    assert error.count("3.png: the caption of") == 2
    assert not (tmp_path / "other" / "state").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("data.temperature=0",), "data.temperature is 0.0; it must be above 0"),
        (("data.max_broken=-1",), "data.max_broken is -1.0; it must be 0 or more"),
        (("data.loader_threads=-1",), "data.loader_threads is -1; it must be 0 or more"),
        (("data.sources.0.image_tokens=70",), "data.sources.0: an image of the diffusion path has 70 tokens"),
        (("data.sources.0.source=none.tar",), "there is no file none.tar"),
        (("data.sources.0.format=zip",), "draw: format is 'zip'"),
    ],
)
def test_settings_that_cannot_be_are_refused(run, tmp_path, words, sentence):
    code, lines, error = run("train", config(tmp_path, captioned(tmp_path / "train", range(4))), *words)
    assert (code, lines) == (2, [])
    assert sentence in error
