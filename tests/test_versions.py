"""Which Pythons and libraries are allowed: said alike everywhere, and no syntax newer than the oldest of them."""

import ast
import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OLDEST = (3, 11)


def test_the_oldest_libraries_are_the_lower_bounds():
    lines = (ROOT / "constraints-oldest.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    bounds = {one.name: next(iter(one.specifier)).version for one in map(Requirement, PROJECT["dependencies"])}
    assert {"torch", "torchvision", "transformers", "diffusers", "accelerate"} == set(pinned)
    for name, version in pinned.items():
        assert version.split(".")[:2] == bounds[name].split(".")[:2], name


def test_pythons_are_said_alike():
    assert PROJECT["requires-python"] == f">={OLDEST[0]}.{OLDEST[1]}"
    named = [re.fullmatch(r"Programming Language :: Python :: 3\.(\d+)", one) for one in PROJECT["classifiers"]]
    assert [int(found[1]) for found in named if found] == [11, 12, 13]


def test_no_syntax_is_newer_than_the_oldest_python():
    """Which a newer Python would not notice by itself."""
    folders = ("hybridgen", "scripts", "examples", "tests")
    files = [*ROOT.glob("*.py"), *(file for folder in folders for file in (ROOT / folder).rglob("*.py"))]
    assert len(files) > 300
    for file in files:
        ast.parse(file.read_text(encoding="utf-8"), filename=str(file), feature_version=OLDEST)
