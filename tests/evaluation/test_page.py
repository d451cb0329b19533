"""The page of an evaluation: whole, self-contained, the worst first, every number with what it is read against."""

import re

import pytest
from PIL import Image

from hybridgen.data.synthetic.questions import tally
from hybridgen.evaluation import page as module
from hybridgen.evaluation.intervals import bootstrap_mean, with_interval
from hybridgen.evaluation.result import Item, Result
from hybridgen.evaluation.run import scores_of
from tests.evaluation.pages import Checker

SMALL = Image.new("RGB", (4, 4))


@pytest.fixture(scope="module")
def results() -> dict[str, Result]:
    drawing, text = Result(credit="Whose <they> are.", facts={"samples": 60, "notes": ["to be <read>"]}), Result()
    items = [
        Item(f"prompt {i:02}", {"true picture": Image.new("RGB", (600, 300), (i, 9, 9)), "vq": SMALL},
             None, "", {"shape": float(i % 3 > 0), "colour": 1.0}, "" if i % 3 else "shape & form")
        for i in range(60)
    ]  # fmt: skip
    tallies = {"shape": {**with_interval(tally(40, 60)), "majority": 0.25, "codec": 0.9}}
    tallies["distance"] = {**bootstrap_mean([1.0, 2.0, 3.0], "points"), "true": 0.125}
    drawing.add("generation", "vq", tallies, items, seconds=2.0)
    asked = [Item("what?", {"shown": Image.new("RGB", (4, 4))}, answer, "an orc", {"all": float(answer == "an orc")})
             for answer in ("an orc", "", "<b>")]  # fmt: skip
    drawing.add("understanding", "vq", {"all": {**with_interval(tally(1, 3)), "blank": 0.0}}, asked)
    text.add("text", "plain", {"bits": bootstrap_mean([2.0, 2.5], "bits per byte")}, [Item("a text"), Item("another")])
    return {"pictures": drawing, "texts": text}


@pytest.fixture(scope="module")
def page(results, tmp_path_factory) -> str:
    scores = scores_of(results, 5) | {"checkpoint": "runs/x"}
    return module.render_evaluation(results, scores, tmp_path_factory.mktemp("out"))


def test_it_is_well_formed_and_loads_nothing(page):
    checker = Checker()
    checker.feed(page)
    assert not checker.open
    assert all(source.startswith(("data:image/png;base64,", "#")) for source in checker.sources)
    assert "Whose &lt;they&gt; are." in page
    assert "<p>to be &lt;read&gt;</p>" in page
    assert "&lt;b&gt;" in page
    assert "<b>" not in page


def test_the_worst_stand_first(page):
    prompts = re.findall(r"<p>prompt (\d\d)</p>", page)
    wrong = [f"{i:02}" for i in range(0, 60, 3)]
    assert prompts[:20] == wrong
    assert len(prompts) == module.SHOWN
    assert page.count("✗ shape &amp; form") == 20
    assert "40 of 60 right in all. The worst 48 of 60." in page
    assert "of 2 right" not in page  # what is not judged is not counted
    assert page.index("(no answer)") < page.index("an orc <span")


def test_numbers_stand_with_counts_intervals_and_baselines(page):
    assert re.search(r"66\.7 % <span class=\"soft\">54\.\d to 77\.\d</span></td><td class=\"number\">60</td>", page)
    assert "2 points" in page
    assert "2.25 bits per byte" in page
    for heading in ("constant answer or picture", "blank picture", "true, as codes", "true pictures"):
        assert f">{heading}</th>" in page
    for cell in ("25.0 %", "90.0 %", "0.125"):
        assert f">{cell}</td>" in page


def test_large_pictures_are_made_smaller(page):
    assert len(page) < 400_000
    assert 'id="pictures"' in page
    assert 'href="#texts"' in page
