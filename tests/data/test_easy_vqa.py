"""easy-VQA: read as its package holds it, written as records that training reads, and scored with its controls."""

import json
import sys
from collections import Counter

import pytest
from PIL import Image

from hybridgen.core.pictures import read_picture
from hybridgen.data import easy_vqa
from hybridgen.data.records import check_record
from hybridgen.data.source_config import SourceConfig
from hybridgen.data.sources import open_source
from hybridgen.evaluation.run import evaluate
from hybridgen.evaluation.suites import SUITES
from scripts import write_easy_vqa

package = pytest.importorskip("easy_vqa", reason="easy-vqa is installed by `make test` and hybridgen[easy-vqa]")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "easy_vqa"
    assert write_easy_vqa.main([str(folder)]) == 0
    return folder


def test_the_splits_are_the_packages():
    """Its own README: 4,000 and 1,000 pictures, 38,575 and 9,673 questions, of which 28,407 and 7,136 are yes or no."""
    for split, pictures, questions, yes_no in (("train", 4000, 38575, 28407), ("test", 1000, 9673, 7136)):
        items = easy_vqa.read_split(split)
        assert (len({item.picture for item in items}), len(items)) == (pictures, questions)
        assert Counter(item.kind for item in items)["yes_no"] == yes_no
        assert {item.kind for item in items} == set(easy_vqa.KINDS)
    known = {answer.strip() for answer in package.get_answers()}
    assert {item.answer for item in items} == known
    colours = {item.answer for item in items if item.kind == "color"}
    assert known == colours | easy_vqa.SHAPES | easy_vqa.YES_NO
    assert not colours & (easy_vqa.SHAPES | easy_vqa.YES_NO)
    asked, answers, numbers = package.get_test_questions()
    assert [(item.question, item.answer, item.picture.stem) for item in items] == list(
        zip(asked, answers, map(str, numbers), strict=True)
    )


def test_what_it_thinks_is_what_other_questions_of_training_told(folder):
    """Each question of training as often as there are passes; none of the test split."""
    asked = Counter((item.question, item.answer, item.picture.stem) for item in easy_vqa.read_split("train"))
    written, told = Counter(), {}
    lines = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    for record in lines:
        check_record(record, "train")
        file = record["messages"][0]["content"][0]["image"]
        assert file.startswith("pictures/train/")
        stem = file.removeprefix("pictures/train/").removesuffix(".png")
        turns = record["messages"]
        for question, answer in zip(turns[::2], turns[1::2], strict=True):
            text = answer["content"][0]["text"]
            written[question["content"][-1]["text"], text, stem] += 1
            thought = answer.get("reasoning_content")
            if text in easy_vqa.YES_NO:
                told.setdefault(stem, set()).add(thought)
            else:
                assert thought is None
    assert written == Counter({key: write_easy_vqa.PASSES * count for key, count in asked.items()})
    truth = {}
    for _, answer, stem in asked:
        if answer not in easy_vqa.YES_NO:
            truth.setdefault(stem, {})["shape" if answer in easy_vqa.SHAPES else "color"] = answer
    for stem, thoughts in told.items():
        known = truth.get(stem, {})
        assert thoughts == {f"{known['color']} {known['shape']}" if len(known) == 2 else None}
    assert sum(thoughts != {None} for thoughts in told.values()) == 2435


def test_what_is_written_is_read_by_training(folder):
    documents = open_source(SourceConfig(str(folder / "train.jsonl"), read="understanding"))
    record = documents[0]
    assert read_picture(record["messages"][0]["content"][0]["image"]).size == (64, 64)
    questions = open_source(SourceConfig(str(folder / "test.jsonl"), read="understanding"))
    assert len(questions) == 9673
    assert not any("reasoning_content" in message for message in questions[0]["messages"])


def test_the_suite_scores_by_kind_with_its_controls(pipeline, monkeypatch):
    """An oracle that knows the pictures gets all; controls then say what they say of any model."""
    items = easy_vqa.read_split("test")[:300]
    truth = {(item.question, Image.open(item.picture).convert("RGB").tobytes()): item.answer for item in items}

    def answer(images, questions, **how):
        return [
            truth.get((question, b"" if image is None else image.tobytes()), "yes")
            for image, question in zip(images, questions, strict=True)
        ]

    monkeypatch.setattr(pipeline, "answer", answer)
    result = evaluate(pipeline, "easy_vqa", samples=300, answer_paths=["understanding"], draw_paths=[])
    tallies = result.scores["understanding"]["understanding"]["scores"]
    counts = Counter(item.kind for item in items)
    assert {name: tally["n"] for name, tally in tallies.items()} == {**counts, "all": 300}
    for name, tally in tallies.items():
        assert tally["share"] == 1
        assert tally["high"] == 1
        assert tally["blank"] == tally["unseen"]
        assert tally["blank"] < 1
        assert name == "yes_no" or tally["majority"] < 1
    assert tallies["all"]["blank"] == sum(item.answer == "yes" for item in items) / 300
    assert tallies["all"]["shuffled"] < 1
    assert len(result.items["understanding"]["understanding"]) == 300
    assert "easy_vqa" in SUITES


def test_what_is_missing_is_said_in_one_sentence(monkeypatch, tmp_path, capsys):
    with pytest.raises(ValueError, match="easy-VQA has no split 'val'; choose train or test"):
        easy_vqa.read_split("val")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "notes.txt").write_text("mine")
    assert write_easy_vqa.main([str(tmp_path / "there")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    monkeypatch.setattr(package, "get_test_image_paths", dict)
    with pytest.raises(ValueError, match="easy-vqa's test split lacks picture 0.png; install the package again"):
        easy_vqa.read_split("test")
    monkeypatch.setitem(sys.modules, "easy_vqa", None)
    with pytest.raises(ValueError, match=r"not installed: pip install hybridgen\[easy-vqa\]"):
        easy_vqa.read_split("test")
    assert write_easy_vqa.main([str(tmp_path / "new")]) == 2
    assert not (tmp_path / "new").exists()
