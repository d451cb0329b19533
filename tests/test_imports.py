"""The architecture as a test: the list of rooms, kept for every module by reading its imports (not running it).

`ROOMS` is the list of levels: a module imports only what stands above its own room, and within a room anything that
makes no circle. Imports for type checkers count like all others: a circle that only a type checker walks is one all the
same. To add a module, put it into a room; to add a room, put it into the list and into docs/architecture.md.
"""

import ast
import os
import subprocess
import sys
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "hybridgen"

ROOMS = [
    "version",
    "compatibility",
    "configuration_understanding",
    "configuration_hybridgen",
    "core",
    "image_processing_hybridgen",
    "tokenization_hybridgen",
    "paths",
    "modeling_hybridgen",
    "codecs",
    "sampling",
    "checkpoints",
    "processing_hybridgen",
    "chat",
    "data",
    "pipeline_hybridgen",
    "multimodal_hybridgen",
    "serving",
    "app",
    "bridges",
    "evaluation",
    "training",
    "studies",
    "cli",
    "__main__",
]
NEVER = [("training", "evaluation"), ("core.hub", "core.[!r]*")]  # what the list alone would allow
ROOT_FILES = 12  # at most so many modules outside of a folder


def modules_in(package: Path) -> dict[str, Path]:
    """Dotted name below the package -> file, without the package's own `__init__`."""
    found = {}
    for file in sorted(package.rglob("*.py")):
        parts = file.relative_to(package).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        if name:
            found[name] = file
    return found


MODULES = modules_in(PACKAGE)


def room_of(module: str) -> int:
    """Where a module's room stands in the list."""
    name = module.split(".")[0]
    if name not in ROOMS:
        raise LookupError(f"hybridgen.{module} stands in no room: give it one in {Path(__file__).name} and in the docs")
    return ROOMS.index(name)


def own_imports(nodes, module: str, modules: dict[str, Path]) -> set[str]:
    """Modules below `hybridgen` that import statements name; "" is the package itself."""
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"hybridgen.{module}, line {node.lineno}: write imports in full, not relative"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            # `from package import name`: the module is package.name where there is such a module, else package
            names = [name if name.removeprefix("hybridgen.") in modules else node.module for name in names]
        else:
            continue
        for name in names:
            if name == "hybridgen" or name.startswith("hybridgen."):
                found.add(name.removeprefix("hybridgen").removeprefix("."))
    return found


def imports_of(module: str, modules: dict[str, Path] = MODULES) -> set[str]:
    """All that a module imports of ours, also where only type checkers look."""
    return own_imports(ast.walk(ast.parse(modules[module].read_text(encoding="utf-8"))), module, modules)


def circle_in(graph: dict[str, set[str]]) -> list[str]:
    """One circle of a graph, its first node repeated at the end; empty where there is none."""
    done: set[str] = set()

    def visit(node: str, above: list[str]) -> list[str]:
        if node in above:
            return [*above[above.index(node) :], node]
        if node in done:
            return []
        for target in sorted(graph.get(node, ())):
            if circle := visit(target, [*above, node]):
                return circle
        done.add(node)
        return []

    return next((circle for node in sorted(graph) if (circle := visit(node, []))), [])


@pytest.mark.parametrize("module", MODULES)
def test_rooms(module):
    for imported in imports_of(module):
        assert imported, f"hybridgen.{module} imports the package itself: name the module that it needs"
        below, here = room_of(imported), room_of(module)
        assert below < here or module.split(".")[0] == imported.split(".")[0], (
            f"hybridgen.{module} imports hybridgen.{imported}, but {ROOMS[below]} stands below {ROOMS[here]}"
        )
        for importer, forbidden in NEVER:
            met = fnmatchcase(module, f"{importer}*") and fnmatchcase(imported, f"{forbidden}*")
            assert not met, f"hybridgen.{module} imports hybridgen.{imported}: {importer} never sees {forbidden}"


def test_no_circle_between_files():
    circle = circle_in({module: imports_of(module) & set(MODULES) for module in MODULES})
    assert not circle, f"a circle of imports: {' -> '.join(circle)}"


def test_no_circle_between_the_rooms_of_training():
    """`training/` is a house of its own: its folders are levels too."""
    graph: dict[str, set[str]] = {}
    for module in MODULES:
        if module.startswith("training."):
            room = module.split(".")[1]
            targets = {name.split(".")[1] for name in imports_of(module) if name.startswith("training.")}
            graph.setdefault(room, set()).update(targets - {room})
    circle = circle_in(graph)
    assert not circle, f"a circle of training's rooms: {' -> '.join(circle)}"


def test_a_circle_for_type_checkers_is_found(tmp_path):
    """Three stood here once, all of them hidden behind TYPE_CHECKING."""
    (tmp_path / "a.py").write_text("from hybridgen.b import B\n")
    (tmp_path / "b.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from hybridgen.a import A\nclass B: ...\n"
    )
    modules = modules_in(tmp_path)
    graph = {module: imports_of(module, modules) for module in modules}
    assert circle_in(graph) == ["a", "b", "a"]
    assert circle_in({"a": {"b"}, "b": {"c"}, "c": set()}) == []


@pytest.mark.parametrize("module", MODULES)
def test_no_import_of_ours_hides_in_a_function(module):
    """It would cheat the table."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            inside = own_imports(ast.walk(function), module, MODULES)
            assert not inside, f"hybridgen.{module}, line {function.lineno}: imports {sorted(inside)} inside a function"


def test_few_files_at_the_root():
    files = sorted(file.name for file in PACKAGE.glob("*.py"))
    assert len(files) <= ROOT_FILES, f"{len(files)} files at the root of the package: {files}; give new ones a room"


def test_no_two_classes_of_one_name():
    """Whoever reads `Report` must not have to ask which."""
    where: dict[str, list[str]] = {}
    for module, file in MODULES.items():
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                where.setdefault(node.name, []).append(module)
    double = {name: modules for name, modules in where.items() if len(modules) > 1}
    assert not double, f"classes of one name: {double}"


def test_nothing_imports_scripts_or_tests():
    for module, file in MODULES.items():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            roots = {name.split(".")[0] for name in names}
            assert not roots & {"scripts", "tests"}, f"hybridgen.{module} imports {roots & {'scripts', 'tests'}}"


def test_every_module_says_what_it_is_for():
    for module, file in MODULES.items():
        assert ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))), f"hybridgen.{module} has no docstring"


def test_import_does_no_work_and_leaves_slow_optional_things_alone(tmp_path):
    """No default device, dtype, seed or thread count changed, no file made; wandb, datasets and matplotlib not
    imported."""
    code = """
import sys, torch
before = torch.get_default_dtype(), torch.get_default_device(), torch.get_num_threads(), torch.get_rng_state()
import hybridgen
after = torch.get_default_dtype(), torch.get_default_device(), torch.get_num_threads(), torch.get_rng_state()
assert before[:3] == after[:3], (before[:3], after[:3])
assert torch.equal(before[3], after[3]), "the import drew random numbers"
slow = {"wandb", "datasets", "matplotlib"} & set(sys.modules)
assert not slow, slow
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=environment)
    assert not list(tmp_path.iterdir())
