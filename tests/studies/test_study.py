"""`hybridgen study` on a study of seconds: equal budgets, runs that are made once, numbers that follow from the runs.

Measured: FLOPs of a run lie within 2 % of its plan at two rows a step, of which 30 are taken.
"""

import json
import multiprocessing
import os
import shutil
import signal
import time
from functools import partial
from operator import gt
from pathlib import Path

import pytest
import yaml

from hybridgen.cli.main import main
from hybridgen.studies import runs
from hybridgen.studies.measuring import measure
from hybridgen.studies.study_config import read_study
from hybridgen.training import load_config
from tests.training.processes import start_command

ROOT = Path(__file__).parents[2]
DRAW = {"source": "dolls", "name": "draw", "task": "draw", "write": "diffusion", "weight": 0.5}
READ = {
    "source": "dolls", "name": "read", "task": "answer", "read": "diffusion", "questions_per_picture": 2, "seed": 1,
    "weight": 0.5,
}  # fmt: skip
BASE = {
    "output_dir": "runs/tiny", "steps": 4, "precision": "fp32", "threads": 1,
    "model": {
        "tokenizer": {"vocab_size": 400, "samples": 40},
        "text_config": {
            "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
            "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512,
        },
        "diffusion_config": {
            "patch_size": 8, "sample_size": 32, "prediction_type": "sample", "frequency_embedding_size": 32,
        },
    },
    "data": {"sequence_length": 128, "per_device_batch_size": 2, "sources": [DRAW, READ]},
    "validation": {"batches": 1, "sources": [each | {"split": "held_out"} for each in (DRAW, READ)]},
    "sampling": {"steps": 2, "guidance": 1},
    "optimizer": {"lr": 1e-2},
}  # fmt: skip
ALONE = {
    "base": "joint.yaml", "data": {"sources": [DRAW]}, "validation": {"sources": [DRAW | {"split": "held_out"}]},
}  # fmt: skip
STUDY = {
    "title": "Tiny",
    "seeds": [0, 1],
    "suite": "dolls",
    "samples": 2,
    "budget": {"flops": 2.33e8},
    "variants": {
        "joint": None,
        "causal": {},
        "alone": {"budget": {"source": "draw", "as_in": "joint"}},
    },
    "questions": [
        {
            "question": "Do patches have to see each other?",
            "arms": {"bidirectional": "joint", "causal": "causal"},
            "measures": {
                "parts": "dolls/generation/diffusion/slots",
                "held-out loss": "validation/source/draw/diffusion",
            },
            "papers": "Some say so.",
            "expected": "bidirectional",
        }
    ],
}


def write_study(folder: Path, **changes) -> Path:
    folder.mkdir(parents=True)
    causal = {"base": "joint.yaml", "model": {"diffusion_config": {"bidirectional": False}}}
    files = {"joint": BASE, "causal": causal, "alone": ALONE, "study": STUDY | changes}
    for name, content in files.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return folder


def read(file: Path) -> dict:
    return json.loads(file.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> tuple[Path, Path]:
    """A study, and the folder of its runs."""
    folder = tmp_path_factory.mktemp("study")
    assert main(["study", str(write_study(folder / "study")), "--out", str(folder / "out")]) == 0
    return folder / "study", folder / "out"


@pytest.fixture
def again(done, tmp_path) -> tuple[Path, Path]:
    """The same, to be changed."""
    return shutil.copytree(done[0], tmp_path / "study"), shutil.copytree(done[1], tmp_path / "out")


def test_budgets_are_equal_and_kept(done):
    """Of FLOPs, and of tokens of a task; and the runs' own counts say the same."""
    budgets = read(done[1] / "budgets.json")
    assert abs(budgets["joint"]["flops"] / 2.33e8 - 1) < 0.02
    assert abs(budgets["causal"]["flops"] / 2.33e8 - 1) < 0.02
    tokens = {name: each["steps"] * each["of_a_step"]["source_tokens"]["draw"] for name, each in budgets.items()}
    assert abs(tokens["alone"] / tokens["joint"] - 1) < 0.02
    assert budgets["alone"]["flops"] < 0.6 * budgets["joint"]["flops"]
    for name, budget in budgets.items():
        for seed in (0, 1):
            result = read(done[1] / name / f"seed_{seed}" / "result.json")
            assert result["steps"] == budget["steps"]
            assert abs(result["flops"] / budget["flops"] - 1) < 0.05
            assert abs(result["tokens"] / budget["tokens"] - 1) < 0.05


def test_what_is_measured_is_what_a_run_counts(done):
    """The batches are the run's own: of its first 24 steps, to the last FLOP."""
    lines = (done[1] / "joint" / "seed_0" / "metrics.jsonl").read_text().splitlines()
    logged = [record for record in map(json.loads, lines) if "flops" in record and record["step"] <= 24]
    assert logged[-1]["step"] == 24
    measured = measure(load_config(done[0] / "joint.yaml"), 24)
    assert sum(record["flops"] for record in logged) == pytest.approx(24 * measured.flops)
    assert sum(record["tokens"] for record in logged) == pytest.approx(24 * measured.tokens)
    assert sum(measured.source_tokens.values()) == pytest.approx(measured.tokens)


def test_numbers_come_from_the_runs(done):
    content = read(done[1] / "study.json")
    (question,) = content["questions"]
    shares, losses = question["comparisons"]
    for arm, variant in (("bidirectional", "joint"), ("causal", "causal")):
        for seed in ("0", "1"):
            folder = done[1] / variant / f"seed_{seed}"
            scores = read(folder / "scores.json")["suites"]["dolls"]["generation"]["diffusion"]["scores"]
            assert shares["values"][arm][seed] == scores["slots"]["share"]
            last = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
            looks = [each["validation/source/draw/diffusion"] for each in last if "validation/loss" in each]
            assert losses["values"][arm][seed] == looks[-1]
            assert len(looks) == 10
    assert content["missing"] == []
    assert question["unknown"] == []


def test_the_report_shows_what_came_out(done):
    page = (done[1] / "report.html").read_text(encoding="utf-8")
    for question in read(done[1] / "study.json")["questions"]:
        for sentence in question["came_out"]:
            assert sentence in page
    assert "Some say so." in page
    assert page.count("<svg") == 5  # two measures, and learning curves of the three losses that both arms have
    plots = {file.name for file in (done[1] / "plots").iterdir()}
    assert {"1_parts.svg", "1_parts.png", "1_held_out_loss.svg", "1_held_out_loss.png"} <= plots


def test_what_is_finished_is_not_made_again(again, capsys):
    study, out = again
    before = {file: file.stat().st_mtime_ns for file in out.rglob("metrics.jsonl")}
    assert main(["study", str(study), "--out", str(out)]) == 0
    assert {file: file.stat().st_mtime_ns for file in out.rglob("metrics.jsonl")} == before
    assert "6 of 6 runs are finished already" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_that_was_interrupted_goes_on_to_the_same_numbers(again, monkeypatch):
    """Killed after its third quarter: the state that it had is what it goes on from."""
    study, out = again
    folder = out / "joint" / "seed_0"
    before = read(folder / "result.json")
    shutil.rmtree(folder)
    from hybridgen.training import trainer

    steps, original = [], trainer.Trainer._train_step

    def stop_later(self):
        steps.append(self.step)
        if len(steps) == 25:
            raise KeyboardInterrupt
        return original(self)

    monkeypatch.setattr(trainer.Trainer, "_train_step", stop_later)
    assert main(["study", str(study), "--out", str(out)]) == 130
    assert not (folder / "result.json").exists()
    assert main(["study", str(study), "--out", str(out)]) == 0
    assert steps[25] == 24  # of 30, saved at 8, 16 and 24
    after = read(folder / "result.json")
    assert after["numbers"] == before["numbers"]
    assert (after["flops"], after["tokens"]) == (before["flops"], before["tokens"])
    assert not (folder / "state").exists()


def refused(capsys, *words: str) -> str:
    """One sentence and exit code 2."""
    capsys.readouterr()
    assert main(["study", *words]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


def test_runs_of_other_settings_are_not_mixed_in(again, capsys):
    study, out = again
    base = yaml.safe_load((study / "joint.yaml").read_text())
    base["optimizer"]["lr"] = 0.02
    (study / "joint.yaml").write_text(yaml.safe_dump(base, sort_keys=False))
    said = refused(capsys, str(study), "--out", str(out))
    assert "holds a run with config.optimizer.lr 0.01, not 0.02; choose another --out" in said


ASKED = STUDY["questions"][0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sedes": [0]}, "unknown key 'sedes'"),
        ({"seeds": [0, 0]}, r"seeds is \[0, 0\]; give different whole numbers"),
        ({"variants": {}}, "variants is empty"),
        ({"variants": {"joint": None, "jiont": None}}, "there is no config jiont.yaml"),
        ({"variants": {"joint": {"budgte": {}}}}, "unknown key 'variants.joint.budgte'"),
        ({"budget": {"flops": 1e9, "tokens": 1e6}}, "budget gives flops and tokens; give one of"),
        ({"budget": {}}, "budget gives nothing; give one of"),
        ({"budget": {"flops": -1.0}}, "budget.flops is -1.0; it must be above 0"),
        (
            {"variants": STUDY["variants"] | {"alone": {"budget": {"source": "draw", "as_in": "jiont"}}}},
            "variants.alone.budget.as_in is 'jiont'; did you mean 'joint'",
        ),
        (
            {"questions": [ASKED | {"arms": {"a": "joint"}}]},
            "arms has 1; a comparison takes at least 2",
        ),
        (
            {"questions": [ASKED | {"arms": {"a": "joint", "b": "casual"}}]},
            "questions.0.arms.b is 'casual'; did you mean 'causal'",
        ),
        (
            {"questions": [ASKED | {"expected": "none"}]},
            "expected is 'none'; it must be one of the arms",
        ),
        (
            {
                "questions": [
                    STUDY["questions"][0] | {"measures": {"a": {"bidirectional": "x", "causal": "validation/x"}}}
                ]
            },
            "compares a score with a loss",
        ),
    ],
)
def test_a_study_that_cannot_be_is_refused(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read_study(write_study(tmp_path / "study", **changes))


def test_refusals_come_before_anything_is_written(tmp_path, capsys):
    study = write_study(tmp_path / "study", budget={"flops": 2e7})
    out = tmp_path / "out"
    said = refused(capsys, str(study), "--out", str(out))
    assert "a budget of 2e+07 FLOPs is 2.57 steps" in said
    assert "there is no variant 'casual'" in refused(capsys, str(study), "--out", str(out), "--only", "casual")
    assert "unknown key 'modle'" in refused(capsys, str(study), "--out", str(out), "modle.x=1")
    assert "--seeds names a seed twice" in refused(capsys, str(study), "--out", str(out), "--seeds", "1", "1")
    assert "study.yaml" in refused(capsys, str(tmp_path), "--out", str(out))
    assert not out.exists()


@pytest.mark.parametrize(
    ("number", "message"),
    [
        ("validation/source/darw/diffusion", "'validation/source/darw/diffusion', which no run measures; give validat"),
        ("emoji/generation/diffusion/slots", "is, for joint, 'emoji/generation/diffusion/slots', but runs are scored"),
        ("dolls/generation/vq/slots", "'dolls/generation/vq/slots', but its config trains generation by diffusion"),
        ("dolls/understanding/vq/all", "'dolls/understanding/vq/all', but its config trains understanding by diffusi"),
    ],
)
def test_a_measure_that_no_run_will_have_is_refused_before_any(number, message, tmp_path, capsys):
    study = write_study(tmp_path / "study", questions=[ASKED | {"measures": {"it": number}}])
    said = refused(capsys, str(study), "--out", str(tmp_path / "out"))
    assert "study.yaml: questions.0.measures.it is, for joint, " in said
    assert message in said
    assert not (tmp_path / "out").exists()


def test_what_a_killed_process_was_writing_is_no_other_run(tmp_path):
    """It was killed before it had written what the run is."""
    one = runs.Run("causal", 3, tmp_path, tmp_path / "none.yaml", ())
    (tmp_path / ".run.0123abcd.json").write_text("{")
    runs.check_folder(one)
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds something that no study wrote"):
        runs.check_folder(one)


def test_a_weight_that_changes_over_a_run_has_no_budget(tmp_path):
    content = json.loads(json.dumps(BASE))
    content["data"]["sources"][0]["weight"] = {0: 0.1, 2: 0.9}
    (tmp_path / "joint.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    with pytest.raises(ValueError, match="draw: weight is .* the cost of a step changes over the run"):
        measure(load_config(tmp_path / "joint.yaml"))


@pytest.mark.parametrize("name", sorted(file.stem for file in (ROOT / "configs" / "study").glob("*.yaml")))
def test_the_studys_configs_open_with_what_they_take_and_give(name):
    text = (ROOT / "configs" / "study" / f"{name}.yaml").read_text(encoding="utf-8")
    header = text.split("\n\n")[0].lower()
    assert all(word in header for word in ("command", "hardware", "time", "expected"))


@pytest.mark.slow
def test_the_study_in_the_box_can_be_made(tmp_path, capsys, monkeypatch):
    """Its plan: every config checked in full, tokenizers and codecs of the right shape, budgets within 1 %; what is
    compared at equal parameters has them."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("hybridgen.studies.study.measure", partial(measure, batches=4))
    assert main(["study", "configs/study", "--out", str(tmp_path / "out"), "--plan"]) == 0
    budgets = read(tmp_path / "out" / "budgets.json")
    study = read_study(Path("configs/study"))
    assert set(budgets) == set(study.variants)
    for name, budget in budgets.items():
        if study.budget_of(name).flops:
            assert abs(budget["flops"] / study.budget_of(name).flops - 1) < 0.01
    sizes = {name: budget["of_a_step"]["parameters"] for name, budget in budgets.items()}
    assert abs(sizes["early_fusion"] / sizes["joint"] - 1) < 0.01


class Ended:
    """A process that has."""

    def __init__(self, exitcode: int):
        self.exitcode = exitcode

    def join(self) -> None:
        pass


@pytest.mark.parametrize(
    ("exitcode", "said"),
    [
        (-9, "its process was killed by SIGKILL"),  # as the kernel does where memory runs out
        (0, "it was stopped before its end"),
        (1, "its process failed; what it printed says why"),
    ],
)
def test_how_a_process_ended_without_a_word_is_told(exitcode, said, tmp_path):
    child = runs._Child.__new__(runs._Child)
    child.run = runs.Run("causal", 3, tmp_path, tmp_path / "none.yaml", ())
    child.process = Ended(exitcode)
    child._heard, told = multiprocessing.Pipe(duplex=False)
    told.close()
    assert child.failure() == said
    child.run.result_file.write_text("{}")
    assert child.failure() is None


def test_a_run_that_fails_is_told_of(tmp_path):
    one = runs.Run("causal", 3, tmp_path / "run", tmp_path / "none.yaml", ())
    with pytest.raises(ValueError, match="1 of 1 runs failed .causal, seed 3: .*none.yaml"):
        runs.run_all([one])  # one after the other; its config is not there


@pytest.mark.slow
def test_of_runs_side_by_side_one_fails_and_those_that_are_missing_are_made_and_are_the_same(again, capsys):
    """Each in a process of its own: what comes out depends neither on the runs before it nor on --jobs. The one that
    fails is told of in the words of its own process, and the report is written all the same."""
    study, out = again
    broken, missing = out / "causal" / "seed_0", [out / "joint" / "seed_1", out / "alone" / "seed_0"]
    before = [read(folder / "result.json") for folder in missing]
    (broken / "result.json").unlink()
    for folder in (broken / "checkpoint", *missing):
        shutil.rmtree(folder)
    (broken / "checkpoint").mkdir()
    capsys.readouterr()
    assert main(["study", str(study), "--out", str(out), "--jobs", "2"]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "1 of 6 runs failed (causal, seed 0: " in said
    assert "it is an empty folder" in said
    for folder, result in zip(missing, before, strict=True):
        assert read(folder / "result.json")["numbers"] == result["numbers"]
    assert read(out / "study.json")["missing"] == ["causal, seed 0"]


def children_of(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and that nobody has asked for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0] != "Z"
    except OSError:
        return False


def lines_of(file: Path) -> int:
    return len(file.read_text().splitlines()) if file.is_file() else 0


def wait_until(what, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> tuple[Path, dict]:
    """A study of three runs of a few seconds, and what it comes to."""
    folder = tmp_path_factory.mktemp("stopped")
    study = write_study(folder / "study", seeds=[0], budget={"flops": 1.6e9})
    assert main(["study", str(study), "--out", str(folder / "whole")]) == 0
    return study, read(folder / "whole" / "study.json")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="children are looked up in /proc")
@pytest.mark.timeout(900)
def test_a_study_that_is_stopped_leaves_nothing_running_and_goes_on(uninterrupted, tmp_path):
    """Two of three runs side by side, stopped twice, politely and not: both save their states, the third
    is not begun, and no process is left; then the same runs, one after the other, come to the same numbers."""
    study, whole = uninterrupted
    out = tmp_path / "out"
    words = ["study", str(study), "--out", str(out)]
    begun = [out / name / "seed_0" for name in ("joint", "causal")]
    logs = [folder / "metrics.jsonl" for folder in begun]
    for number, code in ((signal.SIGTERM, 0), (signal.SIGKILL, -signal.SIGKILL)):
        logged = [*map(lines_of, logs)]
        said = tmp_path / f"{number.name}.txt"
        process = start_command([*words, "--jobs", "2"], said)
        wait_until(lambda logged=logged: all(map(gt, map(lines_of, logs), logged)))
        children = children_of(process.pid)
        assert len(children) >= 2
        os.kill(process.pid, number)
        process.join(300)
        assert process.exitcode == code
        wait_until(lambda children=children: not any(map(is_alive, children)))
        assert "Traceback" not in said.read_text()
        assert not any((folder / "result.json").is_file() for folder in begun)
        assert all((folder / "state").is_dir() for folder in begun)
        assert not (out / "alone").exists()
    assert main(words) == 0
    content = read(out / "study.json")
    assert content["missing"] == []
    assert content["questions"] == whole["questions"]
    for one, other in zip(content["runs"], whole["runs"], strict=True):
        for key in ("name", "seed", "steps", "flops", "tokens", "numbers"):
            assert one[key] == other[key]
