"""docs/ as a site: what mkdocs calls while it builds (mkdocs.yml, `hooks`).

The pages are written for people who read them beside the code, and link to files of the repository
(`../configs/demo.yaml`). On the site

    the README             is the first page
    a file that is linked  is a page which shows it: Markdown as it reads, a notebook with its pictures, else as code
    a folder               is a list of its files, which are pages as well

so that the site is whole without a repository, a server or the internet.
"""

import json
import os
import re
from functools import cache
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
FILES = "files"  # the folder of the site that holds the pages of linked files
LINK = re.compile(r"(?<=\]\()(?!https?:|mailto:|data:|#)([^)\s#]+)(#[^)\s]*)?(?=\))")
LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".sh": "bash", ".toml": "toml", ".jinja": "jinja"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the README, and a page for each file that a page links to, and that such a page links to."""
    waiting = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
    pages = {}  # of the repository -> of the site
    while waiting:
        source = waiting.pop()
        for target, _ in links_of(source):
            if target not in pages and not target.is_relative_to(DOCS):
                pages[target] = place_of(target)
                waiting.append(target)
    pages[ROOT / "README.md"] = "index.md"
    for source, place in sorted(pages.items()):
        page = File.generated(config, place, content=text_of(source))
        page.inclusion = InclusionLevel.INCLUDED if place == "index.md" else InclusionLevel.NOT_IN_NAV
        files.append(page)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links to files of the repository -> to their pages."""
    source = source_of(page.file.src_uri)
    if not is_prose(source):
        return markdown

    def to_page(link: re.Match) -> str:
        target = (source.parent / link[1]).resolve()
        if not target.exists():
            return link[0]
        there = place_of(target)
        here = PurePosixPath(page.file.src_uri).parent
        return os.path.relpath(there, here).replace(os.sep, "/") + (link[2] or "")

    return LINK.sub(to_page, markdown)


def place_of(target: Path) -> str:
    """Where the site has a file of the repository, below its root."""
    if target == ROOT / "README.md":
        return "index.md"
    if target.is_relative_to(DOCS):
        return target.relative_to(DOCS).as_posix()
    name = target.relative_to(ROOT).as_posix()
    return f"{FILES}/{name}" if name.endswith(".md") else f"{FILES}/{name}.md"


@cache
def source_of(place: str) -> Path:
    """The file of the repository that a page of the site shows."""
    if place == "index.md":
        return ROOT / "README.md"
    if not place.startswith(f"{FILES}/"):
        return DOCS / place
    named = ROOT / place.removeprefix(f"{FILES}/")
    return named if named.exists() else named.with_suffix("")


def is_prose(source: Path) -> bool:
    """Whether the text of its page may hold links."""
    return source.is_dir() or source.suffix in (".md", ".ipynb")


def links_of(source: Path) -> list[tuple[Path, str]]:
    """What the page of a file links to, as far as it is a file or folder of the repository, and the anchors there."""
    if not is_prose(source):
        return []
    found = ((source.parent / link[1], link[2] or "") for link in LINK.finditer(text_of(source)))
    return [(target.resolve(), anchor) for target, anchor in found if target.exists()]


@cache
def text_of(source: Path) -> str:
    """The Markdown of the page that shows a file or folder; links in it are as seen from where the file lies."""
    name = source.relative_to(ROOT).as_posix()
    if source.is_dir():
        entries = sorted(entry for entry in source.iterdir() if not entry.name.startswith((".", "__")))
        lines = (f"- [{entry.name}]({source.name}/{entry.name})" for entry in entries)
        return f"# {name}/\n\n" + "\n".join(lines) + "\n"
    text = source.read_text(encoding="utf-8")
    if source.suffix == ".md":
        return text
    if source.suffix == ".ipynb":
        return notebook_text(json.loads(text))
    language = "make" if source.name == "Makefile" else LANGUAGES.get(source.suffix, "text")
    return f"# {name}\n\n{fenced(text, language)}\n"


def notebook_text(notebook: dict) -> str:
    """Its cells one after the other: prose, code, and what the code showed."""
    parts = []
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else fenced(text, "python"))
        for output in cell.get("outputs", ()):
            parts += shown(output)
    return "\n\n".join(parts) + "\n"


def shown(output: dict) -> list[str]:
    data = output.get("data", {})
    if "image/png" in data:
        return [f"![](data:image/png;base64,{''.join(data['image/png']).replace(chr(10), '')})"]
    text = "".join(output.get("text", data.get("text/plain", "")))
    return [fenced(text, "text")] if text.strip() else []


def fenced(text: str, language: str) -> str:
    """As a block of code, whatever fences stand in it."""
    fence = "`" * (3 + max((len(run) for run in re.findall(r"`{3,}", text)), default=0))
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
