"""Execute the notebooks and keep what they show: `python scripts/run_notebooks.py [NAME ...] [--check]`.

Each runs from top to bottom in an empty folder, and is written back with its outputs, its pictures made small, and a
record of what they were made of: a hash of its code, and one of each checkpoint that it names ("hybridgen/..."). With
`--check` nothing runs: it says which outputs are older than their code or checkpoint, and ends with 1 if any are. The
tests check the same.

    HYBRIDGEN_CHECKPOINT         a folder instead of the checkpoint that a notebook takes by itself; it is not recorded
    HYBRIDGEN_NOTEBOOK_MINUTES   how long `train_your_own` trains (10); the tests take a few seconds
"""

import argparse
import base64
import hashlib
import io
import json
import os
import re
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

from hybridgen.checkpoints.hashes import weights_hash
from hybridgen.core.files import write_whole

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "notebooks"
LARGEST = 300_000  # bytes of a notebook with its pictures
COLOURS = 128  # of a picture, at most: plots and pixel art have fewer
TIMEOUT = 3600  # seconds of a cell


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def code_hash(notebook: nbformat.NotebookNode) -> str:
    """Of the code alone: words between the cells may change."""
    return hashlib.sha256(json.dumps([cell.source for cell in code_cells(notebook)]).encode()).hexdigest()


def checkpoints(notebook: nbformat.NotebookNode) -> dict[str, str]:
    """The packaged checkpoints that its code names, and the hashes of their weights as they are now."""
    code = "\n".join(cell.source for cell in code_cells(notebook))
    return {name: weights_hash(name) for name in sorted(set(re.findall(r"""["'](hybridgen/[\w.-]+)["']""", code)))}


def stale(notebook: nbformat.NotebookNode) -> list[str]:
    """Why its outputs are not those of its code and its checkpoints; empty where they are."""
    recorded = notebook.metadata.get("hybridgen", {})
    if not recorded:
        return ["its outputs say nothing of what they were made of"]
    reasons = [] if recorded["code"] == code_hash(notebook) else ["its code has changed since it ran"]
    then, now = recorded["checkpoints"], checkpoints(notebook)
    reasons += [f"the weights of {name} have changed since it ran" for name in now if now[name] != then.get(name)]
    return reasons


def execute(notebook: nbformat.NotebookNode, folder: Path, timeout: int = TIMEOUT) -> None:
    """Run it in a folder, with the package of this repository; an error in a cell is raised."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), before]))
    try:
        resources = {"metadata": {"path": str(folder)}}
        NotebookClient(notebook, timeout=timeout, kernel_name="python3", resources=resources).execute()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def tidy(notebook: nbformat.NotebookNode) -> None:
    """Leave out when cells ran and where; make the pictures small; record what the outputs were made of."""
    for cell in code_cells(notebook):
        cell.metadata.pop("execution", None)
        for output in cell.outputs:
            if "image/png" in (data := output.get("data", {})):
                data.pop("image/jpeg", None)  # the same picture again
                data["image/png"] = smaller(data["image/png"])
    notebook.metadata["hybridgen"] = {"code": code_hash(notebook), "checkpoints": checkpoints(notebook)}


def smaller(png: str) -> str:
    """A PNG in base64 with a palette, where that takes less room."""
    image, packed = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB"), io.BytesIO()
    image.quantize(COLOURS, dither=Image.Dither.NONE).save(packed, "PNG", optimize=True)
    return min(png, base64.b64encode(packed.getvalue()).decode(), key=len)


def refresh(file: Path) -> None:
    """Run a notebook and write it back.

    Raises:
        ValueError: with its outputs it is too large to be kept.
    """
    notebook = nbformat.read(file, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        execute(notebook, Path(folder))
    tidy(notebook)
    text = nbformat.writes(notebook) + "\n"
    if len(text) > LARGEST:
        raise ValueError(f"{file.name} has {len(text):,} bytes with its outputs, and {LARGEST:,} at most; show less")
    write_whole(file, text)


def main(arguments: list[str] | None = None) -> int:
    known = {file.stem: file for file in sorted(FOLDER.glob("*.ipynb"))}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(known)}; all, if none is named")
    parser.add_argument("--check", action="store_true", help="run nothing: say which outputs are old")
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - set(known):
        parser.error(f"there is no notebook {min(unknown)!r}; there are {', '.join(known)}")
    old = 0
    for name in options.names or known:
        if options.check:
            reasons = stale(nbformat.read(known[name], as_version=4))
            old += bool(reasons)
            print(f"{name}: {'; '.join(reasons) or 'fresh'}")
            continue
        refresh(known[name])
        print(f"{name}: {known[name].stat().st_size // 1000} kB", flush=True)
    return int(old > 0)


if __name__ == "__main__":
    sys.exit(main())
