"""docs/ as a site: it builds without a warning, is whole without the internet, and shows what it says that it shows.

Built once, in this process (about eight seconds of a core). Left out where the extra `docs` is not installed.
"""

import ast
import importlib
import inspect
import logging
import re
import shutil
import socket
import subprocess
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

import hybridgen
from hybridgen.pipeline_hybridgen import HybridGenPipeline

pytest.importorskip("mkdocstrings_handlers.python", reason="the extra `docs` is not installed")
pytest.importorskip("material", reason="the extra `docs` is not installed")

from mkdocs.commands.build import build
from mkdocs.config import load_config

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
API = (DOCS / "api.md").read_text(encoding="utf-8")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Warnings(logging.Handler):
    def __init__(self):
        super().__init__(logging.WARNING)
        self.said = []

    def emit(self, record):
        self.said.append(record.getMessage())


def no_internet(connection, address):
    raise OSError(f"the site's build asks for {address}")


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The built site; building it stops at the first warning (`strict` in mkdocs.yml)."""
    folder, warnings = tmp_path_factory.mktemp("site") / "site", Warnings()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_MKDOCS_2_WARNING", "1")
        patch.setattr(socket.socket, "connect", no_internet)
        patch.chdir(ROOT)
        config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder))
        assert config.strict
        logging.getLogger("mkdocs").addHandler(warnings)
        try:
            config.plugins.on_startup(command="build", dirty=False)
            build(config)
        finally:
            config.plugins.on_shutdown()
            logging.getLogger("mkdocs").removeHandler(warnings)
    assert warnings.said == []
    return folder


class Seen(HTMLParser):
    """What a page loads, links to, and can be linked at."""

    def __init__(self, file: Path):
        super().__init__()
        self.loads, self.links, self.ids = [], [], set()
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.ids |= {given.get("id"), given.get("name") if tag == "a" else None}
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        elif tag == "link" and "canonical" not in given.get("rel", "") and given.get("href"):
            self.loads.append(given["href"])
        elif given.get("src"):
            self.loads.append(given["src"])


@pytest.fixture(scope="module")
def seen(site) -> dict[Path, Seen]:
    return {file: Seen(file) for file in sorted(site.rglob("*.html"))}


def test_nothing_is_loaded_from_elsewhere(site, seen):
    """Fonts, scripts and pictures lie in the site; pages of others are linked, not loaded."""
    outside = {load for page in seen.values() for load in page.loads if re.match(r"(https?:)?//", load)}
    assert outside == set()
    for file in site.rglob("*.css"):
        found = re.findall(r"""(?:url\(|@import )["']?((?:https?:)?//[^"')\s]+)""", file.read_text(encoding="utf-8"))
        assert not found, f"{file.name} loads {found}"


def test_every_link_leads_somewhere_in_the_site(site, seen):
    """Also opened from a disk: a link names a file, not a folder, and nothing leads out of the site."""
    missing = []
    for file, page in seen.items():
        if file.name == "404.html":  # its links begin at the root of a server
            continue
        for link in [*page.links, *page.loads]:
            if re.match(r"https?:|mailto:|data:|javascript:", link):
                continue
            path, _, anchor = link.partition("#")
            target = (file.parent / unquote(path.partition("?")[0])).resolve() if path else file
            if not target.is_file() or not target.is_relative_to(site.resolve()):
                missing.append(f"{file.relative_to(site)} -> {link}")
            elif target in seen and anchor and unquote(anchor) not in seen[target].ids:
                missing.append(f"{file.relative_to(site)} -> {link}: no such heading")
    assert missing == []


def test_the_readme_is_the_first_page_and_linked_files_are_pages(site):
    first = (site / "index.html").read_text(encoding="utf-8")
    assert "Five lines of Python" in first
    assert 'href="quick_start.html"' in first
    assert 'src="images/overview.png"' in first
    config = (site / "files" / "configs" / "demo.yaml.html").read_text(encoding="utf-8")
    assert "embedding_std" in config
    notebook = (site / "files" / "notebooks" / "inside_the_mask.ipynb.html").read_text(encoding="utf-8")
    assert notebook.count("data:image/png;base64,") > 3


def test_lists_are_lists(seen):
    """Markdown of a code host takes a list right below a paragraph, the site's does not."""
    for file in seen:
        for paragraph in re.findall(r"<p>(.*?)</p>", file.read_text(encoding="utf-8"), re.DOTALL):
            assert not re.search(r"\n(- |\d\. |\|)", paragraph), f"{file.name}: {paragraph[:200]}"


# ------------------------------------------------------------------------------------------------------------ API


def documented() -> list[str]:
    return re.findall(r"^::: ([\w.]+)$", API, re.MULTILINE)


def imported_by_pages() -> set[str]:
    """Names that the pages' Python takes from hybridgen."""
    names = set()
    for page in [ROOT / "README.md", *DOCS.glob("*.md")]:
        for line in re.findall(r"^from hybridgen\S* import (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE):
            names |= set(line.split(", "))
    return names - {"words"}  # a module: the synthetic dataset


def test_the_public_names_are_documented_and_no_others_that_are_private():
    names = {name.rpartition(".")[2] for name in documented()}
    assert set(hybridgen.__all__) - {"__version__"} <= names
    assert imported_by_pages() <= names
    assert not [name for name in documented() if "._" in name]


def test_methods_of_the_pipeline_that_pages_call_are_documented():
    members = re.search(r"members: \[(.*?)\]", API, re.DOTALL)[1].replace(",", " ").split()
    pages = "\n".join(page.read_text(encoding="utf-8") for page in [ROOT / "README.md", *DOCS.glob("*.md")])
    called = {name for name in re.findall(r"\bpipe\.(\w+)\(", pages) if name in vars(HybridGenPipeline)}
    assert called <= set(members), f"docs/api.md lacks {called - set(members)}"
    assert all(hasattr(HybridGenPipeline, name) for name in members)


def test_the_api_shows_the_docstrings(site, seen):
    page = site / "api.html"
    body = re.sub(r"<script.*?</script>", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    text = plain(unescape(re.sub(r"<[^>]+>", "", body)))
    for name in documented():
        module, _, attribute = name.rpartition(".")
        source = inspect.getsource(importlib.import_module(module))  # transformers rewrites some when they are run
        nodes = ast.walk(ast.parse(source))
        found = next(node for node in nodes if getattr(node, "name", "") == attribute)
        assert name in seen[page].ids, f"{name} is not on the page"
        first = plain(re.split(r"\n\n|:", ast.get_docstring(found))[0])
        assert first in text, f"the docstring of {name} is not on the page: {first}"
    assert "guidance_rescale" in text  # an argument of a call


def plain(text: str) -> str:
    return " ".join(re.sub(r"[`*]", "", text).split())


# --------------------------------------------------------------------------------------------------------- search


@pytest.mark.skipif(BROWSER is None, reason="there is no chromium")
def test_search_works_on_a_page_that_is_opened_from_a_disk(site, tmp_path):
    words = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path}",
        "--virtual-time-budget=20000",
    ]
    address = (site / "index.html").as_uri() + "?q=guidance"
    shown = subprocess.run([BROWSER, *words, "--dump-dom", address], capture_output=True, text=True, timeout=240)
    assert re.search(r'md-search-result__meta">\s*\d+ matching documents', shown.stdout), shown.stderr[-2000:]
    assert "drawing.html" in "".join(re.findall(r'<a href="[^"]*" class="md-search-result__link', shown.stdout))
