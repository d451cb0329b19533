"""The README and docs/ are true: the file tree, the list of rooms, links, renamed keys, and the headers of the configs.

What stands in their blocks is run by `test_docs`. The tree is the fenced block that has a line `hybridgen/`: two
spaces a level, a name (or several, separated by commas; `*` matches any), then two or more spaces and a phrase. A
folder stands for all of its files, but for the package's root, where each file is named.
"""

import re
from pathlib import Path

import pytest

from hybridgen.training.config.renamed import RENAMED
from tests.test_imports import ROOMS

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [README, *DOCS, *(ROOT / name for name in ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"))]
MADE = (
    "runs",
    "site",
    "mine",
    "pictures",
    "processor",
    "checkpoint",
    "samples",
    "state",
    "train",
    "test",
)  # made by users, commands
LINES, PICTURE = 200, 150_000  # the README's lines, and the bytes of its picture, at most
CONFIGS = sorted(file for file in (ROOT / "configs").rglob("*.yaml") if file.parent.name != "accelerate")
NUMBER = r"(?<![\w.])\d*[.,]?\d+(?:e-\d)?"  # 99.0, .48, 1,089, 6e-7


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
    described = {path for path in listed if path.is_dir()} - {ROOT / "hybridgen"}
    for file in sorted((ROOT / "hybridgen").rglob("*.py")):
        if file.name == "__init__.py":
            continue
        assert file in listed or described & set(file.parents), f"the README's tree lacks {file.relative_to(ROOT)}"


def test_the_rooms_stand_in_their_order():
    """In the README's tree, where one line may name several, and in the table of docs/architecture.md."""
    inside = [name.removeprefix("hybridgen/").removesuffix(".py") for name in tree() if name.startswith("hybridgen/")]
    assert [name for name in inside if "/" not in name] == ROOMS
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = page.split("| room | holds |")[1].split("\n\n")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == ROOMS


def test_the_two_commands_are_there():
    readme, makefile = README.read_text(encoding="utf-8"), (ROOT / "Makefile").read_text(encoding="utf-8")
    for command in ("demo", "test"):
        assert f"make {command}" in readme, f"the README does not say `make {command}`"
        assert re.search(rf"^{command}:", makefile, re.MULTILINE), f"the Makefile has no target {command}"


def test_the_readme_is_short_and_its_picture_small():
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LINES
    (picture,) = re.findall(r"!\[[^\]]+\]\((\S+)\)", text)
    assert (ROOT / picture).stat().st_size <= PICTURE


def anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub and mkdocs make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_is_linked_exists(page):
    for link in re.findall(r"\]\((?!https?:|mailto:)([^)\s]+)\)", page.read_text(encoding="utf-8")):
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), f"{page.name} links to {link}, which does not exist"
        assert not anchor or anchor in anchors(target), (
            f"{page.name} links to {link}: {target.name} has no such heading"
        )


def test_every_page_is_linked_from_the_readme():
    text = README.read_text(encoding="utf-8")
    assert [page.name for page in DOCS if f"(docs/{page.name})" not in text] == []


def test_every_page_is_in_the_navigation():
    """So that nobody writes a page which the site does not show. The home page is the README."""
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    named = re.findall(r"([\w/]+\.md)$", text[text.index("\nnav:") :], re.MULTILINE)
    assert sorted(named) == sorted(["index.md", *(page.name for page in DOCS)])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_files_that_are_named_exist(page):
    """Such as `core/layout.py`, below the package or the repository."""
    for name in re.findall(r"`((?:[\w.]+/)+(?:\w+\.(?:py|sh|yaml))?)`", page.read_text(encoding="utf-8")):
        if "/" in name and name.split("/")[0] not in MADE:
            assert (ROOT / name).exists() or (ROOT / "hybridgen" / name).exists(), f"{page.name} names {name}"


def test_the_table_of_renamed_keys_is_whole():
    page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\S+)` \| `(\S+)` \| config", page, re.MULTILINE)
    told = {old.replace("data.sources.0.", "*sources.*."): new.rpartition(".")[2] for old, new in rows}
    keys = {old: new for old, new in RENAMED.items() if "." in old}  # the others are of a source alone
    assert told == keys


def test_figures_are_those_of_the_pages_and_configs():
    """Every number in a row of docs/figures.md stands in the README, another page or a config, which explains it."""
    figures = ROOT / "docs" / "figures.md"
    sources = [README, *(page for page in DOCS if page != figures), *CONFIGS]
    known = set(re.findall(NUMBER, "\n".join(file.read_text(encoding="utf-8") for file in sources)))
    rows = re.findall(r"^\| (?!-|what).*", figures.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) >= 25
    for row in rows:
        assert re.search(r" 20\d\d-\d\d-\d\d, ", row), f"no date: {row}"
        cells = re.sub(r"20\d\d-\d\d-\d\d|\]\([^)]+\)", "", row)
        assert set(re.findall(NUMBER, cells)) <= known, f"{set(re.findall(NUMBER, cells)) - known} of: {row}"


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.relative_to(ROOT / "configs").as_posix())
def test_a_config_opens_with_what_it_takes_and_gives(config):
    """Command, hardware, time and expected numbers, a line each, in the comment on top; what was tried elsewhere."""
    header = re.match(r"(?:#[^\n]*\n)+", config.read_text(encoding="utf-8"))
    assert header, f"{config.name} does not open with a comment"
    for word in ("command", "hardware", "time", "expected"):
        assert re.search(rf"^# {word} +\S", header[0], re.MULTILINE), (
            f"the header of {config.name} lacks `# {word}   ...`"
        )
    tried = re.search(r"(?<!docs/)\b([Tt]ried|[Nn]ot taken|no better)\b", header[0])
    assert not tried, f"{config.name}: what was {tried[0]!r} goes into docs/tried.md"
