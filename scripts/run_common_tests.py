"""Runs the libraries' own common tests against our classes, and counts them.

    python scripts/run_common_tests.py --transformers SOURCE --diffusers SOURCE [-k NAME]

SOURCE is a checkout (or an unpacked source distribution) of the version that is installed, with its `tests/` folder:
the wheels have none, and hybridgen copies none. Needs pytest, parameterized and requests_mock besides. Takes three
minutes on two idle cores. What is run stands in `common_tests/`, a file a kind:

    modeling.py     transformers: ModelTesterMixin, GenerationTesterMixin, ConfigTester and TrainingTesterMixin; two
                    kinds of tiny model
    processing.py   transformers: ProcessorTesterMixin, ImageProcessingTestMixin
    pipelines.py    diffusers: both classes called PipelineTesterMixin; by either path, with a VAE and without

A failure is a bug of ours, unless `common_tests/conftest.py` says why not; its table is printed as skips with reasons.

On a CPU with torch 2.13.0, none fails. Of transformers 5.23.0, 282 pass (and 5,520 subtests) and 150 are skipped: 146
by the library (they do not apply, are slow, or want flash attention, an accelerator or another package) and 4 by our
table. Of diffusers 0.42.1 (with the tests of 0.40.0), 63 pass and 36 are skipped of the older mixin, 48 pass and 18 are
skipped of the newer: 48 by the library (an accelerator, xformers) and 6 by our table.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
FILES = {"transformers": ("modeling.py", "processing.py"), "diffusers": ("pipelines.py",)}


def run(source: Path, files: tuple[str, ...], name: str | None) -> int:
    """One library's tests, in a process of their own: both have a package that is called `tests`."""
    paths = [source, source / "utils", HERE.parent, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "pytest", "-c", os.devnull, "--rootdir", str(HERE), "--import-mode=importlib"]
    command += ["-q", "-rs", "--tb=short", "-W", "ignore", "-p", "no:cacheprovider", *(["-k", name] if name else [])]
    command += [str(HERE / "common_tests" / file) for file in files]
    return subprocess.run(command, cwd=source, env=environment, check=False).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for library in FILES:
        parser.add_argument(f"--{library}", type=Path, help=f"source of {library}, with its tests/")
    parser.add_argument("-k", dest="name", help="only tests of this name, as pytest's -k")
    options = parser.parse_args()
    sources = {library: getattr(options, library) for library in FILES if getattr(options, library) is not None}
    if not sources:
        parser.error("give --transformers, --diffusers, or both")
    for library, source in sources.items():
        if not (source / "tests").is_dir():
            parser.error(f"--{library} {source} has no folder tests/; give a checkout of its source")
    return max(run(source.resolve(), FILES[library], options.name) for library, source in sources.items())


if __name__ == "__main__":
    raise SystemExit(main())
