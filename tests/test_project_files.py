"""The files that a code host looks for at the root: versions agree, forms are forms, what is named exists."""

import re
from pathlib import Path

import pytest
import yaml

from hybridgen.version import __version__

ROOT = Path(__file__).parents[1]
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
KINDS = {"markdown", "textarea", "input", "dropdown", "checkboxes"}  # of a form's parts, as GitHub knows them


def test_versions_agree():
    """Of the package, of the citation, and of the newest heading of the changelog."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)[1]
    assert str(citation["version"]) == newest == __version__


def test_the_citation_has_what_its_format_asks_for():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["license"] == "Apache-2.0"
    for work in (citation, *citation["references"]):
        assert work["title"]
        assert all(set(author) & {"name", "family-names"} for author in work["authors"])


def test_there_are_forms_for_issues():
    assert {file.stem for file in FORMS} == {"bug", "wish", "page", "config"}


@pytest.mark.parametrize("file", [file for file in FORMS if file.stem != "config"], ids=lambda file: file.stem)
def test_a_form_can_be_filled_in(file):
    form = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert form["name"]
    assert form["description"]
    ids = [part["id"] for part in form["body"] if part["type"] != "markdown"]
    assert len(ids) == len(set(ids)) > 0
    for part in form["body"]:
        assert part["type"] in KINDS
        assert part["attributes"]["label"]
        assert isinstance(part["validations"]["required"], bool)


def test_what_contributing_says_is_tested_is_tested():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/\w+\.py)` \|$", text, re.MULTILINE)
    assert len(named) >= 5
    assert [name for name in named if not (ROOT / name).is_file()] == []
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make (\w+)", text, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"the Makefile has no target {target}"
