"""The report: one file that needs nothing else, says what was measured, and shows every picture."""

import base64
import io
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from hybridgen.core.figures import Panel
from hybridgen.data.synthetic import dolls
from hybridgen.data.synthetic.questions import tally
from hybridgen.evaluation import report
from hybridgen.evaluation.generation import DrawSettings
from hybridgen.evaluation.intervals import with_interval
from hybridgen.evaluation.report import ReportContent, Target, data_url, duration, percent
from hybridgen.evaluation.result import Result
from hybridgen.evaluation.run import evaluate, scores_of
from hybridgen.pipeline_hybridgen import load_pipeline
from tests.evaluation.pages import Checker


@pytest.fixture(scope="module")
def evaluation(tiny_checkpoint):
    settings = dict.fromkeys(("diffusion", "vq"), DrawSettings(steps=2, guidance=1.0))
    return evaluate(load_pipeline(tiny_checkpoint), "dolls", samples=3, seed=0, settings=settings)


CONTENT = ReportContent(
    title="A <title> & more",
    summary="What it is.",
    command="hybridgen demo --out 'a b'",
    targets=[
        Target("reachable", "generation", "diffusion", "slots", 0.0),
        Target("out of reach", "understanding", "vq", "all", 1.0),
        Target("not evaluated", "generation", "sound", "slots", 0.5),
    ],
    panels={"the model": [Panel("text loss", {"training": ([1, 2], [2.0, 1.0])})]},
    facts={"seed": "0"},
    stage_seconds={"training": 61.0},
    examples=2,
)


def render(result: Result, content: ReportContent) -> str:
    return report.render(result, scores_of({"dolls": result}, 0), content)


def changed_items(result: Result, task: str, **changes) -> Result:
    """The result with other values in the first item of each path."""
    of_task = {path: [replace(items[0], **changes), *items[1:]] for path, items in result.items[task].items()}
    return replace(result, items={**result.items, task: of_task})


@pytest.fixture(scope="module")
def page(evaluation) -> str:
    return render(evaluation, CONTENT)


def test_html_is_well_formed_and_loads_nothing(page):
    checker = Checker()
    checker.feed(page)
    assert not checker.open
    assert checker.sources
    assert all(source.startswith(("data:image/png;base64,", "#")) for source in checker.sources)
    assert not re.search(r"@import|<script|<link|url\((?!#)", page)
    assert not re.findall(r"https?://(?!www\.w3\.org/)", page)


def test_it_is_readable_on_a_phone_and_in_the_dark(page):
    assert 'name="viewport"' in page
    assert "prefers-color-scheme: dark" in page


def test_texts_are_escaped(page):
    assert "A &lt;title&gt; &amp; more" in page
    assert "<title> &" not in page


def test_every_picture_that_was_scored_is_on_it(evaluation, page):
    encoded = [base64.b64decode(data) for data in re.findall(r"data:image/png;base64,([^\"]+)", page)]
    shown = {Image.open(io.BytesIO(data)).convert("RGB").tobytes() for data in encoded}
    drawn = evaluation.items["generation"]
    pictures = [item.pictures[path] for path, items in drawn.items() for item in items]
    pictures += [item.pictures["true picture"] for item in drawn["vq"][:2]] + [drawn["vq"][0].pictures["as codes"]]
    assert {image.tobytes() for image in pictures} <= shown


def test_targets_stand_beside_scores(page):
    assert "reachable" in page
    assert "not evaluated" not in page
    assert page.count('<span class="right">reached</span>') == 1
    assert page.count('<span class="wrong">below</span>') == 1


def test_numbers_and_origins_are_told(evaluation, page):
    for path in ("diffusion", "vq", "understanding"):
        assert f'<th class="number">{path}</th>' in page
    for word in (
        "right hand",
        "whole pictures",
        "all questions",
        "constant answer or picture",
        "true, as codes",
    ):
        assert word in page
    for fact in (
        "1 min 1 s",
        "hybridgen demo --out &#39;a b&#39;",
        torch.__version__,
        "held_out",
    ):
        assert fact in page


def test_wrong_answers_are_struck_and_put_right(evaluation):
    item = evaluation.items["understanding"]["vq"][0]
    page = render(changed_items(evaluation, "understanding", answer="<b>", verdict={"all": 0.0}), CONTENT)
    assert f'<s class="wrong">&lt;b&gt;</s> {item.expected}' in page


def test_parts_that_were_not_evaluated_are_left_out(evaluation):
    only = {name: {"understanding": getattr(evaluation, name)["understanding"]} for name in ("scores", "items")}
    page = render(replace(evaluation, **only), ReportContent("t", "s", "c"))
    assert "Drawn from words" not in page
    assert "Asked about pictures" in page
    assert "Scores beside their targets" not in page


def test_a_picture_is_put_in_by_its_very_pixels_and_its_words_are_escaped():
    picture = dolls.Dolls("train", "draw", 0).picture(0)
    macros = report._templates().get_template("macros.html.jinja").module
    tag = macros.picture(picture, 'a "doll"', **{"class": "off"})
    assert tag == f'<img src="{data_url(picture)}" alt="a &#34;doll&#34;" class="off">'
    data = base64.b64decode(re.search(r"base64,([^\"]+)", tag)[1])
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), np.asarray(picture))


@pytest.mark.parametrize(
    ("share", "shown"),
    [(1, "100 %"), (0, "0 %"), (0.99999, "99.9 %"), (0.00001, "0.1 %"), (0.5, "50.0 %"), (0.9734, "97.3 %")],
)
def test_percent_rounds_never_to_all_or_nothing(share, shown):
    assert percent(share) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"), [(12.4, "12 s"), (61, "1 min 1 s"), (599.6, "10 min 0 s"), (7260, "2 h 1 min")]
)
def test_durations(seconds, shown):
    assert duration(seconds) == shown


def test_totals_stand_out(evaluation, page):
    rows = re.findall(r"<tr( class=\"total\")?><td>([^<]+)</td>", page)
    assert [label for total, label in rows if total] == ["whole pictures", "all questions"]
    (drawing, answering) = report.tables_of(evaluation)
    assert [label for _, label in rows] == [label for table in (drawing, answering) for label, _ in table.rows]


def test_what_is_escaped_is_escaped_once(evaluation):
    """In every place that takes text."""
    word = "<i> & \"q\" 'a'"
    changed = {
        **CONTENT.__dict__,
        "title": word,
        "summary": word,
        "command": word,
        "credit": word,
        "facts": {"fact": word},
    }
    changed["targets"] = [Target(word, "generation", "diffusion", "slots", 0.0)]
    changed["panels"] = {word: CONTENT.panels["the model"]}
    changed["stage_seconds"] = {word: 1.0}
    wordy = changed_items(evaluation, "generation", prompt=word, wrong=word)
    wordy = changed_items(wordy, "understanding", prompt=word, answer=word, expected=word, verdict={"all": 0.0})
    page = render(wordy, ReportContent(**changed))
    assert "<i>" not in page
    assert "&amp;amp;" not in page
    assert "&amp;lt;" not in page
    checker = Checker()
    checker.feed(page)
    assert not checker.open
    assert sum(word in text for text in checker.words) >= 11


def test_a_baseline_that_differs_from_path_to_path_stands_with_each():
    """As what is right about true pictures does, read through different paths."""
    result = Result()
    for path, true in (("by vq, through vq", 0.5), ("by vq, through diffusion", 0.75)):
        result.add("unified", path, {"as_asked": {**with_interval(tally(1, 4)), "true": true, "majority": 0.25}})
    (table,) = report.tables_of(result)
    assert [word for word in table.headings if word.startswith("true")] == [
        "true pictures, by vq, through vq",
        "true pictures, by vq, through diffusion",
    ]
    assert table.headings.count("constant answer or picture") == 1
