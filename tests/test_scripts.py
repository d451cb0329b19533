"""The scripts beside the package: each can be imported, so that no rename leaves one behind."""

import re
import runpy
from pathlib import Path

import pytest
import torch

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.mark.parametrize("file", sorted(SCRIPTS.glob("*.py")), ids=lambda file: file.stem)
def test_it_imports_and_does_no_work(file, monkeypatch):
    """As a module, so that what stands under `__main__` is not run."""
    monkeypatch.syspath_prepend(SCRIPTS)  # two benches share a module
    script = runpy.run_path(str(file))
    assert script["__doc__"]


def test_the_bench_of_a_gpu_runs_at_toy_size(monkeypatch, capsys):
    """The trainer's own steps at both sizes, and a line for a config's header of each; without a GPU it says so."""
    monkeypatch.syspath_prepend(SCRIPTS)
    bench = runpy.run_path(str(SCRIPTS / "bench_gpu.py"))
    assert bench["main"](["--toy", "--steps", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    sizes = [f"{rows} x {length:,} tokens: " for rows, length in bench["TOY_SIZES"]]
    measured = [line for line in lines if line.startswith("# measured")]
    assert [size in line for size, line in zip(sizes, measured, strict=True)] == [True, True]
    for line in measured:
        found = re.search(r"([\d,]+) tokens a second, MFU ([\d.]+)%, .* ([\d.]+) GB \(plan: ([\d.]+)\)", line)
        assert all(float(number.replace(",", "")) >= 0 for number in found.groups())
        assert float(found[1].replace(",", "")) > 0
    if not torch.cuda.is_available():
        assert bench["main"]([]) == 2
        assert "no CUDA GPU is here" in capsys.readouterr().err
