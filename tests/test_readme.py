"""The README is true: its file tree, the commands it names, and the headers of the configs it points to.

The tree is the fenced block that has a line `hybridgen/`: two spaces a level, a name (or several, separated by commas;
`*` matches any), then two or more spaces and a phrase. A folder whose files are not listed stands for all of them.
"""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


def tree() -> list[str]:
    """Paths that the README's tree names, relative to the repository."""
    blocks = re.findall(r"^```[^\n]*\n(.*?)^```", README.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    block = next((block for block in blocks if re.search(r"^hybridgen/(\s|$)", block, re.MULTILINE)), None)
    assert block, "the README has no fenced block with a line `hybridgen/`"
    named, folders = [], []
    for line in block.splitlines():
        entry = re.match(r"( *)([^\s,]+(?:, [^\s,]+)*)", line)
        if entry is None:
            continue
        folders = folders[: len(entry[1]) // 2]
        for name in entry[2].split(", "):
            named.append("/".join([*folders, name.rstrip("/")]))
        if entry[2].endswith("/"):
            folders.append(entry[2].rstrip("/"))
    return named


def test_what_the_tree_names_exists():
    missing = [name for name in tree() if not list(ROOT.glob(name))]
    assert not missing, f"the README's tree names {missing}, which do not exist"


def test_the_tree_names_every_module():
    named = tree()
    listed = {path for name in named for path in ROOT.glob(name)}
    described = {folder for folder in listed if folder.is_dir() and not any(folder in path.parents for path in listed)}
    for file in sorted((ROOT / "hybridgen").rglob("*.py")):
        if file.name == "__init__.py":
            continue
        assert file in listed or described & set(file.parents), f"the README's tree lacks {file.relative_to(ROOT)}"


def test_the_two_commands_are_there():
    readme, makefile = README.read_text(encoding="utf-8"), (ROOT / "Makefile").read_text(encoding="utf-8")
    for command in ("demo", "test"):
        assert f"make {command}" in readme, f"the README does not say `make {command}`"
        assert re.search(rf"^{command}:", makefile, re.MULTILINE), f"the Makefile has no target {command}"


def test_linked_files_exist():
    links = re.findall(r"\]\((?!https?:|mailto:|#)([^)#\s]+)", README.read_text(encoding="utf-8"))
    missing = [link for link in links if not (ROOT / link).exists()]
    assert not missing, f"the README links to {missing}, which do not exist"


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
def test_a_config_opens_with_what_it_takes_and_gives(config):
    """Command, hardware, time and expected numbers, in the comment at the top."""
    header = re.match(r"(?:#[^\n]*\n)+", config.read_text(encoding="utf-8"))
    assert header, f"{config.name} does not open with a comment"
    for word in ("command", "hardware", "time", "expected"):
        assert re.search(rf"\b{word}\b", header[0], re.IGNORECASE), (
            f"the header of {config.name} does not say its {word}"
        )
