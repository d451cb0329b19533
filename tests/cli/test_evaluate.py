"""`hybridgen evaluate`: scores as lines and as files; killed and gone on with; one process or two; what is refused."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from hybridgen.cli.main import main
from tests.training.processes import ProcessGroup

QUICK = ("--suite", "dolls", "--draw", "diffusion", "vq", "--answer", "understanding", "--chat", "vq")
QUICK += ("--option", "chats=2", "--samples", "70", "--steps", "2", "--guidance", "1")


def scores_in(folder: Path) -> dict:
    """What was scored, without times and the machine."""

    def timeless(value):
        if isinstance(value, dict):
            return {key: timeless(inner) for key, inner in value.items() if key != "seconds"}
        return value

    scores = json.loads((folder / "scores.json").read_text())
    return timeless({key: value for key, value in scores.items() if key not in ("hardware", "processes")})


def files_in(folder: Path) -> dict[str, bytes]:
    """Every picture and item that was written."""
    kept = [file for file in folder.rglob("*") if file.suffix in (".png", ".jsonl")]
    return {str(file.relative_to(folder)): file.read_bytes() for file in kept}


def evaluate(checkpoint: str, out: str) -> None:
    """In a process of its own."""
    sys.exit(main(["evaluate", checkpoint, *QUICK, "--out", out]))


@pytest.fixture(scope="module")
def whole(tiny_checkpoint, tmp_path_factory) -> Path:
    """An evaluation that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole") / "scores"
    assert main(["evaluate", str(tiny_checkpoint), *QUICK, "--out", str(out)]) == 0
    return out


def test_evaluate_writes_scores_and_a_page(run, tiny_checkpoint, tmp_path):
    code, lines, _ = run(
        "evaluate", tiny_checkpoint, "--suite", "dolls", "--draw", "diffusion", "--answer", "understanding",
        "--samples", 2, "--steps", 2, "--out", tmp_path / "scores",
    )  # fmt: skip
    assert code == 0
    file, page = tmp_path / "scores" / "scores.json", tmp_path / "scores" / "report.html"
    assert lines[-2:] == [str(file), str(page)]
    everything = json.loads(file.read_text())
    scores = everything["suites"]["dolls"]
    assert list(scores["generation"]) == ["diffusion"]
    assert list(scores["understanding"]) == ["understanding"]
    assert scores["generation"]["diffusion"]["steps"] == 2
    assert everything["checkpoint"] == str(tiny_checkpoint)
    assert len(lines) == 2 + sum(
        len(result["scores"]) for task in ("generation", "understanding") for result in scores[task].values()
    )
    assert "Drawing by diffusion" in page.read_text()


def test_evaluate_paths_serve_both_tasks(run, tiny_checkpoint, tmp_path):
    _, _, _ = run(
        "evaluate", tiny_checkpoint, "--suite", "dolls", "--paths", "understanding", "vq", "--samples", 1,
        "--out", tmp_path,
    )  # fmt: skip
    scores = json.loads((tmp_path / "scores.json").read_text())["suites"]["dolls"]
    assert (set(scores["generation"]), set(scores["understanding"])) == ({"vq"}, {"understanding", "vq"})


def test_several_suites_stand_in_one_file_and_on_one_page(run, tiny_checkpoint, tmp_path):
    words = ("--suite", "dolls,emoji", "--draw", "diffusion", "--answer", "--samples", 1, "--steps", 1)
    code, lines, error = run("evaluate", tiny_checkpoint, *words, "--option", "emoji:size=32", "--out", tmp_path)
    assert code == 0, error
    suites = json.loads((tmp_path / "scores.json").read_text())["suites"]
    assert (list(suites), suites["emoji"]["size"]) == (["dolls", "emoji"], 32)
    assert any(line.startswith("emoji, drawing by diffusion, style: ") for line in lines)
    assert 'id="emoji"' in (tmp_path / "report.html").read_text()


def test_a_second_time_nothing_is_computed(run, tiny_checkpoint, whole, monkeypatch):
    before, scores = files_in(whole), scores_in(whole)
    monkeypatch.setattr("hybridgen.pipeline_hybridgen.HybridGenPipeline.__call__", None)
    monkeypatch.setattr("hybridgen.pipeline_hybridgen.HybridGenPipeline.answer", None)
    assert run("evaluate", tiny_checkpoint, *QUICK, "--out", whole)[0] == 0
    assert (files_in(whole), scores_in(whole)) == (before, scores)


def test_killed_and_gone_on_with_is_as_if_nothing_was(run, tiny_checkpoint, whole, tmp_path):
    """By SIGKILL, in the drawing by either path, in the answers, and in a conversation."""
    out = tmp_path / "out"
    for place in ("draw-diffusion/000031.png", "draw-vq/000000.json", "answer-understanding/000064.json", "chat-vq"):
        process = ProcessGroup(tmp_path / "logs", evaluate, 1, "single", checkpoint=str(tiny_checkpoint), out=str(out))
        process.wait_for(out / "dolls" / place)
        process.kill()
        process.wait()
        assert not (out / "scores.json").exists()
    code, _, error = run("evaluate", tiny_checkpoint, *QUICK, "--out", out)
    assert code == 0, error
    assert scores_in(out) == scores_in(whole)
    assert files_in(out) == files_in(whole)
    assert not list(out.rglob(".*"))


def test_two_processes_are_one(tiny_checkpoint, whole, tmp_path):
    """Also where one process began it; the first alone speaks."""
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    for gone in ("draw-diffusion/000032.json", "draw-diffusion/000064.json", "answer-understanding/000000.json"):
        (out / "dolls" / gone).unlink()
    shutil.rmtree(out / "dolls" / "draw-vq")
    for name in ("scores.json", "report.html"):
        (out / name).unlink()
    group = ProcessGroup(tmp_path / "logs", evaluate, 2, "ddp", checkpoint=str(tiny_checkpoint), out=str(out))
    group.finish()
    assert scores_in(out) == scores_in(whole)
    assert files_in(out) == files_in(whole)
    assert json.loads((out / "scores.json").read_text())["processes"] == 2
    spoken = group.output(0)
    assert spoken.rstrip().endswith(str(out / "report.html"))
    assert group.output(1) == ""


def test_the_death_of_one_process_is_told_by_the_other(tiny_checkpoint, whole, tmp_path):
    """It would wait for ever. What it has done is kept."""
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    for name in ("draw-diffusion", "draw-vq"):
        shutil.rmtree(out / "dolls" / name)
    group = ProcessGroup(tmp_path / "logs", evaluate, 2, "ddp", checkpoint=str(tiny_checkpoint), out=str(out))
    group.wait_for(out / "dolls" / "draw-diffusion" / "000000.json")
    group.kill(rank=1)
    codes = group.wait()
    assert codes[0] == 2
    assert "another of 2 processes is gone" in group.output(0)
    assert "the same command goes on from there" in group.output(0)
    assert (out / "dolls" / "draw-diffusion" / "000000.json").is_file()


def test_a_mistake_of_two_processes_is_said_once(tiny_checkpoint, whole, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    identity = json.loads((out / "evaluation.json").read_text())
    (out / "evaluation.json").write_text(json.dumps(identity | {"seed": 3}))
    group = ProcessGroup(tmp_path / "logs", evaluate, 2, "ddp", checkpoint=str(tiny_checkpoint), out=str(out))
    assert group.wait() == [2, 2]
    assert "holds an evaluation with seed 3, not 0" in group.output(0)
    assert group.output(1) == ""


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--suite", "cats"), "there is no suite 'cats'; choose dolls or emoji"),
        (("--suite", "dolls,,emoji"), "there is no suite ''; choose dolls or emoji"),
        (("--suite", "dolls,dolls"), "suite dolls is given twice; give it once"),
        (("--suite", "dolls", "--option", "weight=3"), "no suite of dolls has an option 'weight'; there are: chats ("),
        (("--suite", "dolls", "--option", "emoji:chats=3"), "no suite of dolls has an option 'emoji:chats'"),
        (("--suite", "dolls", "--option", "chats"), "'chats' is no KEY=VALUE"),
        (("--suite", "dolls", "--option", "chats=1", "--option", "chats=2"), "option chats is given twice"),
        (("--suite", "dolls", "--option", "chats=none"), "option chats of suite dolls is 'none'; give a whole number"),
        (("--suite", "dolls", "--option", "size=33"), "pictures of 32 pixels cannot become 33 pixels a side"),
        (("--suite", "dolls", "--samples", "0"), "'0' is not a whole number from 1"),
    ],
)
def test_mistakes_are_one_sentence_and_leave_nothing(run, tiny_checkpoint, tmp_path, words, sentence):
    code, lines, error = run("evaluate", tiny_checkpoint, *words, "--out", tmp_path / "out")
    assert (code, lines) == (2, [])
    assert sentence in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_help_names_the_suites_and_their_options(run):
    code, lines, _ = run("evaluate", "--help")
    assert code == 0
    assert any(line.startswith("  dolls ") for line in lines)
    assert any("--option chats=..." in line for line in lines)
