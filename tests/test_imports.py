"""The architecture as a test: DESIGN.md's table of levels, kept for every module by reading its imports (not running
it).

To add a module, give it a level here. A module imports lower levels, and on its own level only its own group; so the
model never meets the data, training never meets evaluation, and no circle can form.
"""

import ast
import subprocess
import sys
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "hybridgen"

# level -> groups of modules that may import one another; the first pattern that matches decides
LEVELS: list[list[tuple[str, ...]]] = [
    [
        ("layout",),
        ("configuration_hybridgen",),
        ("noise",),
        ("version",),
        ("compatibility",),
        ("repository",),
        ("files",),
        ("paths.patches",),
    ],  # fmt: skip
    [
        ("codecs", "patch_vq"),
        ("paths", "paths.*", "processing_*", "*_processing_hybridgen", "tokenization_*", "chat", "documents"),
    ],
    [("modeling_*",), ("data", "data.*")],
    [("objectives",), ("sampling", "sampling.*"), ("checkpoints", "hashes"), ("model_card",)],
    [("pipeline_*", "multimodal_hybridgen")],
    [("bridges", "bridges.*", "adapters")],
    [("training", "training.*"), ("evaluation", "evaluation.*")],
    [
        (
            "cli",
            "arguments*",
            "argument_kinds",
            "*_command",
            "*_commands",
            "pictures",
            "user_errors",
            "demo",
            "demo_report",
            "manifest",
            "__main__",
        )
    ],
]
NEVER = [  # what the levels alone would allow
    ("objectives", "data"),
    ("sampling", "data"),
    ("bridges", "data"),
    ("pipeline_hybridgen", "data"),
    ("multimodal_hybridgen", "data"),
]


def modules() -> dict[str, Path]:
    """Dotted name below `hybridgen` -> file, without the package's own `__init__`."""
    found = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = file.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        if name:
            found[name] = file
    return found


MODULES = modules()


def place(module: str) -> tuple[int, int]:
    """(level, group) of a module."""
    for level, groups in enumerate(LEVELS):
        for group, patterns in enumerate(groups):
            if any(fnmatchcase(module, pattern) for pattern in patterns):
                return level, group
    raise LookupError(f"hybridgen.{module} has no level: give it one in {Path(__file__).name} and in the README")


def own_imports(nodes, module: str) -> set[str]:
    """Modules below `hybridgen` that import statements name; "" is the package itself."""
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"hybridgen.{module}, line {node.lineno}: write imports in full, not relative"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            # `from package import name`: the module is package.name where there is such a module, else package
            names = [name if name.removeprefix("hybridgen.") in MODULES else node.module for name in names]
        else:
            continue
        for name in names:
            if name == "hybridgen" or name.startswith("hybridgen."):
                found.add(name.removeprefix("hybridgen").removeprefix("."))
    return found


def imports_of(module: str, *, at_run_time: bool = False) -> set[str]:
    """All that it imports; with `at_run_time` without what only type checkers see."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    if at_run_time:
        tree.body = [
            node for node in tree.body if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test))
        ]
    return own_imports(ast.walk(tree), module)


@pytest.mark.parametrize("module", MODULES)
def test_levels(module):
    level, group = place(module)
    for imported in imports_of(module):
        assert imported, f"hybridgen.{module} imports the package itself: name the module that it needs"
        below, other = place(imported)
        assert below < level or (below, other) == (level, group), (
            f"hybridgen.{module} (level {level}) imports hybridgen.{imported} (level {below})"
        )
        for importer, forbidden in NEVER:
            met = module.split(".")[0] == importer and imported.split(".")[0] == forbidden
            assert not met, f"hybridgen.{module} imports hybridgen.{imported}: {importer} never sees {forbidden}"


@pytest.mark.parametrize("module", MODULES)
def test_no_import_of_ours_hides_in_a_function(module):
    """It would cheat the table."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            hidden = own_imports(ast.walk(function), module)
            assert not hidden, f"hybridgen.{module}, line {function.lineno}: imports {sorted(hidden)} inside a function"


def test_no_circles():
    graph = {module: imports_of(module, at_run_time=True) & set(MODULES) for module in MODULES}
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, f"a circle of imports: {' -> '.join((*above, module))}"
        if module not in done:
            for imported in graph[module]:
                visit(imported, (*above, module))
            done.add(module)

    for module in graph:
        visit(module, ())


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


def test_import_does_no_work_and_leaves_slow_optional_things_alone():
    """No default device, dtype, seed or thread count changed; wandb, datasets and matplotlib not imported."""
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
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
