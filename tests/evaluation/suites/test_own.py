"""Own data on a tiny model: scores, controls, pictures, notes; by the command line, again, and in Python."""

import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from hybridgen.cli.main import main
from hybridgen.data.synthetic import dolls
from hybridgen.evaluation.generation import DrawSettings
from hybridgen.evaluation.own.records import read_tasks
from hybridgen.evaluation.run import evaluate
from hybridgen.evaluation.suites import own as suite
from hybridgen.pipeline_hybridgen import load_pipeline

QUICK = {path: DrawSettings(steps=2, guidance=1.0) for path in ("diffusion", "vq")}


def user(*content) -> dict:
    return {"role": "user", "content": [
        {"type": "text", "text": one} if " " in one else {"type": "image", "image": one} for one in content
    ]}  # fmt: skip


def said(text: str) -> dict:
    return {"role": "assistant", "content": text}


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> str:
    folder, source = tmp_path_factory.mktemp("own"), dolls.Dolls("held_out", "draw", 0)
    for i in range(3):
        source.picture(i).save(folder / f"{i}.png")
    drawn = [{"role": "assistant", "content": [{"type": "image", "image": "0.png"}]}]
    rows = [
        {"messages": [user("0.png", "what creature is this?"), said("an orc")], "category": "creatures"},
        {"messages": [user("1.png", "is it red?"), said("yes"), user("is it blue?"), said("no")]},
        {"messages": [user("2.png", "which one?"), said("B")], "choices": ["an orc", "a man"]},
        {"image": "1.png", "question": "what is worn?", "answers": ["robe"] * 6 + ["cloak"] * 4},
        {"messages": [user("a dwarf, red background"), *drawn]},
        {"messages": [user("1.png", "now an orc"), *drawn], "meta": source[0]["meta"]},
        {"messages": [user("2.png", "nobody answers")]},
    ]
    file = folder / "own.jsonl"
    file.write_text("".join(f"{json.dumps(row, default=int)}\n" for row in rows))
    return str(file)


@pytest.fixture(scope="module")
def done(own, tiny_checkpoint, tmp_path_factory):
    pipeline, out = load_pipeline(tiny_checkpoint), tmp_path_factory.mktemp("out")
    how = {"draw_paths": ["diffusion"], "answer_paths": ["understanding"], "settings": QUICK}
    return evaluate(pipeline, own, **how, options={"max_new_tokens": 8}), pipeline, how, out


def test_scores_and_controls(done):
    result = done[0]
    scores = result.scores["understanding"]["understanding"]["scores"]
    assert {name: tally["n"] for name, tally in scores.items() if "unclear" not in name} == {
        "exact": 1, "exact of creatures": 1, "multiple_choice": 1, "vqa": 1, "yes_no": 2, "yes_no_f1": 2,
        "yes_no_precision": scores["yes_no_precision"]["n"], "yes_no_recall": 1, "yes_no_yes_ratio": 2, "all": 5,
    }  # fmt: skip
    for name in ("majority", "blank", "shuffled", "unseen"):
        assert all(name in tally for tally in scores.values())
    assert scores["exact"]["majority"] == scores["multiple_choice"]["majority"] == 1.0
    assert scores["vqa"]["majority"] == pytest.approx(1.0)
    assert result.facts["records"] == 6
    assert result.facts["broken"] == 1
    assert "own.jsonl:7: it has no answer" in result.facts["notes"][0]
    assert any("inferred" in note and "2 yes_no" in note for note in result.facts["notes"])


def test_answers_are_those_of_the_conversations(done):
    result, pipeline, *_ = done
    items = result.items["understanding"]["understanding"]
    picture = items[1].pictures["shown"]
    conversation = [
        {"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "is it red?"}]},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "is it blue?"},
    ]
    assert items[2].answer == pipeline.reply([conversation], max_new_tokens=8)[0]


def test_pictures_stand_beside_the_true_ones_and_a_named_world_scores_them(done):
    result = done[0]
    first, second = result.items["generation"]["diffusion"]
    assert list(first.pictures) == ["true picture", "diffusion"]
    assert first.verdict == {}
    scores = result.scores["generation"]["diffusion"]["scores"]
    assert set(second.verdict) == set(scores) > {"dolls: slots", "dolls: all_seven"}  # by which two are compared
    assert scores["dolls: slots"]["n"] == 7
    assert any("1 pictures are drawn and shown, and scored by nothing" in note for note in result.facts["notes"])


def test_a_prompt_alone_is_drawn_as_by_the_pipeline(done):
    result, pipeline, *_ = done
    image = result.items["generation"]["diffusion"][0].pictures["diffusion"]
    (alone,) = pipeline(
        "a dwarf, red background", path="diffusion", seed=0, **QUICK["diffusion"].arguments("diffusion")
    ).images
    assert image.tobytes() == alone.tobytes()
    assert isinstance(image, Image.Image)


def test_by_the_command_line_and_again(own, tiny_checkpoint, tmp_path, capsys):
    words = ["evaluate", str(tiny_checkpoint), "--suite", own, "--draw", "--answer", "vq", "--out", str(tmp_path)]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("1 broken records are left out") for line in lines)
    assert any("exact match: " in line and "majority 100.0" in line and "unseen" in line for line in lines)
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["suites"]["own"]["broken"] == 1
    (tmp_path / "scores.json").unlink()
    assert main(words) == 0
    again = json.loads((tmp_path / "scores.json").read_text())
    assert again["suites"] == scores["suites"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "own.jsonl"),
        ('{"messages": [{"role": "user", "content": "what?"}]}\n', "holds no record that can be evaluated"),
        ('{"messages": [{"role": "user", "content": "a dog"}], "type": "draw"}\n', "suite .*own.jsonl draws pictures"),
    ],
)
def test_refusals_are_one_line_and_nothing_is_written(content, words, tiny_checkpoint, tmp_path, capsys):
    file, out = tmp_path / "own.jsonl", tmp_path / "out"
    file.write_text(content)
    code = main(["evaluate", str(tiny_checkpoint), "--suite", str(file), "--draw", "--answer", "vq", "--out", str(out)])
    lines = capsys.readouterr().err.splitlines()
    assert code == 2
    assert len(lines) == 1
    assert re.search(words, lines[0])
    assert not (out / "scores.json").exists()


def test_other_pictures_are_another_evaluation(own, pipeline, tmp_path):
    """Their names and the file stay: the folder is not gone on with. Where only a file's bytes are others, it is."""
    shutil.copytree(Path(own).parent, tmp_path / "data")
    file, out = tmp_path / "data" / "own.jsonl", tmp_path / "out"
    how = {"draw_paths": [], "answer_paths": ["vq"], "samples": 2, "options": {"max_new_tokens": 4}}
    first = evaluate(pipeline, str(file), out=out, **how)
    asked = tmp_path / "data" / "0.png"
    Image.open(asked).save(asked, compress_level=0)  # the same pixels
    shutil.copytree(tmp_path / "data", tmp_path / "moved")
    again = evaluate(pipeline, str(tmp_path / "moved" / "own.jsonl"), out=out, **how)
    assert again.scores == first.scores
    dolls.Dolls("train", "draw", 9).picture(0).save(tmp_path / "data" / "2.png")  # of a record that is not read
    evaluate(pipeline, str(file), out=out, **how)
    dolls.Dolls("train", "draw", 9).picture(0).save(asked)
    before = {each: each.stat().st_mtime_ns for each in out.rglob("*")}
    with pytest.raises(ValueError, match="holds an evaluation with contents.own '.*', not '.*'; give the same"):
        evaluate(pipeline, str(file), out=out, **how)
    assert {each: each.stat().st_mtime_ns for each in out.rglob("*")} == before


def test_records_are_read_once(own, pipeline, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(suite, "read_tasks", lambda *given: calls.append(given) or read_tasks(*given))
    evaluate(pipeline, own, out=tmp_path, samples=1, draw_paths=[], answer_paths=["vq"])
    assert len(calls) == 1


@pytest.fixture
def choices(tmp_path) -> str:
    """Questions whose accepted answers stand by letter, by small letter and by text, and one without choices."""
    dolls.Dolls("held_out", "draw", 0).picture(0).save(tmp_path / "0.png")
    asked = {"image": "0.png", "question": "which one?"}
    rows = [
        asked | {"choices": ["an orc", "a man", "a dwarf"], "answer": "B"},
        asked | {"choices": ["red", "blue"], "answer": "a"},
        asked | {"choices": ["a gray robe", "nothing"], "answer": "Nothing"},
        {"image": "0.png", "question": "what is worn?", "answer": "a robe"},
    ]
    (tmp_path / "choices.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(tmp_path / "choices.jsonl")


def test_choices_by_likelihood(choices, pipeline):
    """The likeliest of the letters or texts, as the accepted answer stands, by the pipeline's own likelihoods; all
    controls choose so, too, and equal questions with other choices are not taken for one."""
    how = {"draw_paths": [], "answer_paths": ["vq"]}
    done = evaluate(pipeline, choices, options={"choose": "likelihood", "max_new_tokens": 4}, **how)
    items = done.items["understanding"]["vq"]
    picture = items[0].pictures["shown"]
    forms = [("A", "B", "C"), ("a", "b"), ("a gray robe", "nothing")]
    texts = [["an orc", "a man", "a dwarf"], ["red", "blue"], ["a gray robe", "nothing"]]
    for item, candidates, text in zip(items, forms, texts, strict=False):
        questions = ["which one?"] * len(candidates)
        weighed = [one.mean for one in pipeline.score_answers(picture, questions, list(candidates), "vq")]
        assert item.answer == text[weighed.index(max(weighed))]
    assert items[3].answer == pipeline.answer(picture, "what is worn?", path="vq", max_new_tokens=4)[0]
    scores = done.scores["understanding"]["vq"]["scores"]
    assert (scores["multiple_choice_unclear"]["right"], scores["multiple_choice"]["n"]) == (0, 3)
    for name in ("blank", "shuffled", "unseen"):
        assert name not in scores["multiple_choice"] or scores["multiple_choice_unclear"][name] == 0
    assert any("of 3 multiple-choice questions the likeliest choice is taken" in note for note in done.facts["notes"])
    written = evaluate(pipeline, choices, options={"max_new_tokens": 4}, **how)
    assert [item.answer for item in written.items["understanding"]["vq"]] != [item.answer for item in items]


def test_choosing_otherwise_is_refused(choices, pipeline):
    with pytest.raises(ValueError, match="option choose of suite .* is 'chance'; it must be answer or likelihood"):
        evaluate(pipeline, choices, options={"choose": "chance"}, draw_paths=[], answer_paths=["vq"])


@pytest.mark.parametrize("samples", [0, 100])
def test_more_records_than_there_are_and_none_are_refused(own, pipeline, samples):
    with pytest.raises(ValueError, match=f"{samples} samples cannot be taken of .*own.jsonl; take 1"):
        evaluate(pipeline, own, samples=samples, draw_paths=[], answer_paths=["vq"])
