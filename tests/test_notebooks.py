"""The notebooks run from top to bottom, and are committed as they ran: with their pictures, and no trace of a machine.

They run on the demo's checkpoint where there is one, else on a tiny one of random weights. To run them again and keep
what they show (after `make demo`): `.venv/bin/jupyter execute --inplace notebooks/*.ipynb`.
"""

import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
DEMO = ROOT / "runs" / "demo" / "checkpoint"

pytestmark = pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)


def read(file: Path) -> nbformat.NotebookNode:
    return nbformat.read(file, as_version=4)


def outputs(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def pictures(notebook: nbformat.NotebookNode) -> int:
    return sum("image/png" in output.get("data", {}) for output in outputs(notebook))


def execute(notebook: nbformat.NotebookNode, folder: Path, checkpoint: Path | None, monkeypatch) -> None:
    """Run it in a folder, on a checkpoint; an error in a cell is raised."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    if checkpoint is None:
        monkeypatch.delenv("HYBRIDGEN_CHECKPOINT", raising=False)
    else:
        monkeypatch.setenv("HYBRIDGEN_CHECKPOINT", str(checkpoint))
    NotebookClient(
        notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_it_runs_from_top_to_bottom(file, tiny_checkpoint, tmp_path, monkeypatch):
    notebook = read(file)
    committed = pictures(notebook)
    execute(notebook, tmp_path, DEMO if DEMO.is_dir() else tiny_checkpoint, monkeypatch)
    assert pictures(notebook) == committed


@pytest.mark.slow
def test_its_first_cells_make_do_without_a_checkpoint(file, tmp_path, monkeypatch):
    """Where no demo was run, it says how to run one and goes on untrained."""
    notebook = read(file)
    notebook.cells = [cell for cell in notebook.cells if cell.cell_type == "code"][:2]
    execute(notebook, tmp_path, None, monkeypatch)
    printed = "".join(output.get("text", "") for output in outputs(notebook))
    assert "`hybridgen demo` makes one" in printed
    assert "paths: understanding, diffusion, vq" in printed


def test_it_is_committed_as_it_ran(file):
    notebook = read(file)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert pictures(notebook) >= 4
    assert not [output for output in outputs(notebook) if output.output_type == "error"]
    assert not [output for output in outputs(notebook) if output.get("name") == "stderr"]


def test_it_names_no_place_of_a_machine(file):
    text = "".join(cell.source for cell in read(file).cells) + "".join(
        output.get("text", "") + output.get("data", {}).get("text/plain", "") for output in outputs(read(file))
    )
    assert not re.findall(r"/(?:home|root|tmp|work|Users)/", text)
