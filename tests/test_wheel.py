"""The wheel holds all that the package needs, and works where the checkout is not.

It is built as `python -m build` does it: a source distribution of the repository, and the wheel from that. Then it is
unpacked into an empty folder, as pip does it, and used from another one. Dependencies are those of this environment.
About ten seconds of a core.
"""

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from configparser import ConfigParser
from email import message_from_string
from pathlib import Path

import pytest

from hybridgen.version import __version__

pytest.importorskip("build", reason="`build` is not installed (extra `dev`)")

ROOT = Path(__file__).parents[1]
SOURCES = ["hybridgen", "configs"]
FILES = ["hybridgen_command.py", "hybridgen_lmms_eval.py", "pyproject.toml", "README.md", "LICENSE"]
KEPT_OUT = ("__pycache__", "*.pyc", "*.egg-info")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy, so that nothing is left in the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    copy, dist = folder / "repository", folder / "dist"
    copy.mkdir()
    for name in SOURCES:
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns(*KEPT_OUT))
    for name in FILES:
        shutil.copy(ROOT / name, copy / name)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(dist), str(copy)]
    built = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert built.returncode == 0, built.stdout + built.stderr
    (found,) = dist.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("installed") / "here"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-compile"]
    done = subprocess.run([*command, "--target", str(target), str(wheel)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target


def run(installed: Path, words: list[str], folder: Path) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    return subprocess.run(words, capture_output=True, text=True, cwd=folder, env=environment)


def files_below(folder: Path) -> set[str]:
    """All files of a folder of the package, as the wheel names them."""
    return {
        file.relative_to(ROOT).as_posix()
        for file in folder.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts and not file.name.startswith(".")
    }


def test_the_wheel_holds_the_package_whole_and_nothing_else(wheel):
    """Modules, data, templates, the configs, and the small model where it is there."""
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    wanted = files_below(ROOT / "hybridgen") | {f"hybridgen/{name}" for name in files_below(ROOT / "configs")}
    assert names == wanted | {"hybridgen_command.py", "hybridgen_lmms_eval.py"}
    for name in ("py.typed", "configs/demo.yaml", "configs/accelerate/ddp.yaml", "configs/smollm_chat.jinja"):
        assert f"hybridgen/{name}" in names
    assert sum(name.startswith("hybridgen/data/synthetic/assets/") for name in names) >= 5


def test_what_the_wheel_says_of_itself(wheel):
    content = zipfile.ZipFile(wheel)
    info = f"hybridgen-{__version__}.dist-info"
    metadata = message_from_string(content.read(f"{info}/METADATA").decode())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert metadata["Version"] == __version__
    assert metadata["License-Expression"] == project["license"]
    assert set(metadata.get_all("Provides-Extra")) == set(project["optional-dependencies"])
    assert metadata.get_payload().startswith("# hybridgen")
    points = ConfigParser()
    points.read_string(content.read(f"{info}/entry_points.txt").decode())
    assert points["console_scripts"]["hybridgen"] == "hybridgen_command:main"


def test_the_command_says_its_version(installed, tmp_path):
    said = run(installed, [sys.executable, str(installed / "bin" / "hybridgen"), "--version"], tmp_path)
    assert (said.returncode, said.stdout, said.stderr) == (0, f"hybridgen {__version__}\n", "")


USED = """
import sys
from pathlib import Path

import hybridgen
from hybridgen.cli.demo import config_file
from hybridgen.cli.main import main
from hybridgen.data.source_config import SourceConfig
from hybridgen.data.sources import open_source
from hybridgen.training import load_config

installed, checkpoint = map(Path, sys.argv[1:])
assert Path(hybridgen.__file__).is_relative_to(installed), hybridgen.__file__
for module in list(sys.modules.values()):
    file = getattr(module, "__file__", None)
    if file and module.__name__.partition(".")[0] == "hybridgen":
        assert Path(file).is_relative_to(installed), file
for name in ("dolls", "emoji", "shapes", "words"):
    assert open_source(SourceConfig(source=name, task="draw"))[0]["messages"]
assert config_file("draw_only.yaml").is_relative_to(installed)
assert load_config(config_file("draw_only.yaml")).steps > 0
words = "--prompt orc --steps 1 --path diffusion --out drawn".split()
assert main(["sample", str(checkpoint), *words]) == 0
"""


def test_it_works_away_from_the_checkout(installed, tiny_checkpoint, tmp_path):
    """Its data and configs are its own; it draws and writes a picture."""
    done = run(installed, [sys.executable, "-c", USED, str(installed), str(tiny_checkpoint)], tmp_path)
    assert done.returncode == 0, done.stderr
    (picture,) = (tmp_path / "drawn").glob("*.png")
    assert done.stdout.splitlines()[-1].endswith(picture.name)
