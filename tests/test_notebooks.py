"""The notebooks run from top to bottom, and are committed as they ran: with their pictures, and no trace of a machine.

They run on the demo's checkpoint where there is one, else on a tiny one of random weights, and train for seconds. To
run them again and keep what they show: `scripts/run_notebooks.py`; a test fails where that was forgotten.
"""

import base64
import io
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import diffusers
import nbformat
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
DEMO = ROOT / "runs" / "demo" / "checkpoint"
RUNNER = runpy.run_path(str(ROOT / "scripts" / "run_notebooks.py"))

each = pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)


def read(file: Path) -> nbformat.NotebookNode:
    return nbformat.read(file, as_version=4)


def outputs(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [output for cell in RUNNER["code_cells"](notebook) for output in cell.outputs]


def pictures(notebook: nbformat.NotebookNode) -> int:
    return sum("image/png" in output.get("data", {}) for output in outputs(notebook))


def takes_a_checkpoint(file: Path) -> bool:
    return "HYBRIDGEN_CHECKPOINT" in file.read_text(encoding="utf-8")


@each
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_it_runs_from_top_to_bottom(file, tiny_checkpoint, tmp_path, monkeypatch):
    notebook = read(file)
    committed = pictures(notebook)
    monkeypatch.setenv("HYBRIDGEN_NOTEBOOK_MINUTES", "0.05")
    monkeypatch.setenv("HYBRIDGEN_CHECKPOINT", str(DEMO if DEMO.is_dir() else tiny_checkpoint))
    RUNNER["execute"](notebook, tmp_path, timeout=240)
    assert pictures(notebook) == committed
    assert not [output for output in outputs(notebook) if output.get("name") == "stderr"]


@pytest.mark.parametrize("file", [*filter(takes_a_checkpoint, NOTEBOOKS)], ids=lambda file: file.stem)
@pytest.mark.slow
def test_its_first_cells_make_do_without_a_checkpoint(file, tmp_path, monkeypatch, capsys):
    """Where no demo was run, it says how to run one and goes on untrained."""
    monkeypatch.delenv("HYBRIDGEN_CHECKPOINT", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    names = {"__name__": "__main__"}
    try:
        for cell in RUNNER["code_cells"](read(file))[:2]:
            exec(cell.source, names)
    finally:
        for library in (diffusers, transformers):
            library.utils.logging.enable_progress_bar()
    printed = capsys.readouterr().out
    assert "`hybridgen demo` makes one" in printed
    assert "paths: understanding, diffusion, vq" in printed


@each
def test_its_first_cell_installs_what_a_fresh_machine_lacks(file, tiny_checkpoint, monkeypatch):
    commands = []
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(subprocess, "run", lambda command, **how: commands.append(command))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("HYBRIDGEN_CHECKPOINT", str(tiny_checkpoint))
    monkeypatch.chdir(ROOT / "notebooks")
    exec(RUNNER["code_cells"](read(file))[0].source, {"__name__": "__main__"})
    assert commands[0] == [sys.executable, "-m", "pip", "install", "-q", "-e", str(ROOT)]
    assert sys.path[0] == str(ROOT)


@each
def test_outside_a_clone_its_first_cell_says_what_to_do(file, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="run this notebook inside a clone of it, or pip install it first"):
        exec(RUNNER["code_cells"](read(file))[0].source, {"__name__": "__main__"})


@each
def test_it_is_committed_as_it_ran(file):
    notebook = read(file)
    cells = RUNNER["code_cells"](notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert pictures(notebook) >= 3
    assert not [output for output in outputs(notebook) if output.output_type == "error"]
    assert not [output for output in outputs(notebook) if output.get("name") == "stderr"]
    assert file.stat().st_size <= RUNNER["LARGEST"]


@each
def test_its_outputs_are_those_of_its_code_and_its_checkpoint(file):
    assert RUNNER["stale"](read(file)) == [], f"run: .venv/bin/python scripts/run_notebooks.py {file.stem}"


@each
def test_it_names_no_place_of_a_machine(file):
    text = "".join(cell.source for cell in read(file).cells) + "".join(
        output.get("text", "") + output.get("data", {}).get("text/plain", "") for output in outputs(read(file))
    )
    assert not re.findall(r"/(?:home|root|tmp|work|Users)/", text)


def test_outputs_that_are_older_than_code_or_weights_are_found(tiny_checkpoint, tmp_path, monkeypatch):
    """A checkpoint that a notebook names is recorded by its weights; words between the cells may change."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_checkpoint, "hybridgen/tiny")
    make = nbformat.v4.new_notebook, nbformat.v4.new_markdown_cell, nbformat.v4.new_code_cell
    notebook = make[0](cells=[make[1]("words"), make[2]('pipe = load("hybridgen/tiny")')])
    stale = RUNNER["stale"]
    assert stale(notebook) == ["its outputs say nothing of what they were made of"]
    RUNNER["tidy"](notebook)
    assert list(notebook.metadata["hybridgen"]["checkpoints"]) == ["hybridgen/tiny"]
    assert stale(notebook) == []
    notebook.cells[0].source = "other words"
    assert stale(notebook) == []
    (weights,) = Path("hybridgen/tiny/model").glob("*.safetensors")
    tensors = load_file(weights)
    name = min(tensors)
    save_file(tensors | {name: torch.zeros_like(tensors[name]) + 1}, weights, metadata={"format": "pt"})
    assert stale(notebook) == ["the weights of hybridgen/tiny have changed since it ran"]
    notebook.cells[1].source += "\n"
    assert stale(notebook)[0] == "its code has changed since it ran"


def test_pictures_are_kept_small_and_once():
    """What PIL shows as PNG and as JPEG is kept as one PNG, with the same colours where they are few."""
    image, png = Image.new("RGB", (64, 64), (12, 34, 56)), io.BytesIO()
    image.save(png, "PNG", compress_level=0)
    data = {"image/png": base64.b64encode(png.getvalue()).decode(), "image/jpeg": "x"}
    cell = nbformat.v4.new_code_cell("1", outputs=[nbformat.v4.new_output("display_data", data=data)])
    notebook = nbformat.v4.new_notebook(cells=[cell])
    RUNNER["tidy"](notebook)
    kept = notebook.cells[0].outputs[0].data
    assert list(kept) == ["image/png"]
    assert len(kept["image/png"]) < len(data["image/png"]) / 10
    small = Image.open(io.BytesIO(base64.b64decode(kept["image/png"]))).convert("RGB")
    assert small.size == image.size
    assert set(small.get_flattened_data() if hasattr(small, "get_flattened_data") else small.getdata()) == {
        (12, 34, 56)
    }


def test_the_runner_refuses_a_notebook_that_there_is_not(capsys):
    with pytest.raises(SystemExit) as ended:
        RUNNER["main"](["cake"])
    assert ended.value.code == 2
    assert "there is no notebook 'cake'; there are finetune_janus, image_question_answering" in capsys.readouterr().err
