"""The scripts beside the package: each can be imported, so that no rename leaves one behind."""

import runpy
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.mark.parametrize("file", sorted(SCRIPTS.glob("*.py")), ids=lambda file: file.stem)
def test_it_imports_and_does_no_work(file, monkeypatch):
    """As a module, so that what stands under `__main__` is not run."""
    monkeypatch.syspath_prepend(SCRIPTS)  # two benches share a module
    script = runpy.run_path(str(file))
    assert script["__doc__"]
