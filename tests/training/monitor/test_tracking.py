"""What a run tells: metrics.jsonl with each step once, a readable line, and wandb that never stands in the way."""

import io
import json
import socket
import sys

import pytest
import wandb
from PIL import Image

from hybridgen.core import progress
from hybridgen.core.files import write_whole
from hybridgen.data.bad_records import BadRecord
from hybridgen.training.config.schema import WandbConfig
from hybridgen.training.monitor import tracking
from hybridgen.training.monitor.tracking import StepLog, Tracker, start_wandb, summary

RECORD = {"step": 4, "loss": 1.25, "loss/text": 0.5, "loss/code": 0.75, "lr": 3e-4, "tokens_per_second": 12345.6}


@pytest.fixture(autouse=True)
def no_credentials(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_MODE", "WANDB_DISABLED"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no_netrc"))
    monkeypatch.setenv("WANDB_SILENT", "true")


def lines_of(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_resumed_run_cuts_what_came_after(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    metrics = StepLog(path, step=0)
    for step in (2, 4, 6):
        metrics.write({"step": step, "loss": step / 2})
    with path.open("a") as file:
        file.write('{"step": 8, "lo')  # killed while writing
    metrics = StepLog(path, step=4)
    metrics.write({"step": 6, "loss": 9.0})
    assert lines_of(path) == [{"step": 2, "loss": 1.0}, {"step": 4, "loss": 2.0}, {"step": 6, "loss": 9.0}]
    StepLog(path, step=0)
    assert lines_of(path) == []


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    metrics = StepLog(tmp_path / "metrics.jsonl", step=0)
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(OSError, match="could not write .*metrics.jsonl .*; saved states are intact"):
        metrics.write({"step": 1})


def test_without_a_terminal_the_bar_is_a_line_a_log(tmp_path, capfd):
    tracker = Tracker(tmp_path, WandbConfig(), {}, steps=8, step=0, is_main=True)
    tracker.log(RECORD, progress=0.5)
    tracker.log({"step": 5, "validation/loss": 1.0}, progress=0.6)
    tracker.log({**RECORD, "step": 6}, progress=0.75)
    tracker.picture(6, tmp_path / "samples" / "step_000006.png", Image.new("RGB", (4, 4)))
    tracker.close()
    shown = capfd.readouterr().err.splitlines()
    assert shown[0] == "step 4/8  loss 1.250 (text 0.500, code 0.750)  lr 3.0e-04  12,346 tokens/s"
    assert shown[1].startswith("step 6/8  loss 1.250")
    assert shown[1].endswith("left 0:00")
    assert [line["step"] for line in lines_of(tmp_path / "metrics.jsonl")] == [4, 5, 6]
    assert Image.open(tmp_path / "samples" / "step_000006.png").size == (4, 4)
    assert summary(RECORD) in shown[0]


def test_at_a_terminal_a_step_is_one_line_with_loss_speed_and_time_left(tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    monkeypatch.setattr(progress, "REDRAWN", 0.0)
    monkeypatch.setenv("COLUMNS", "120")
    tracker = Tracker(tmp_path, WandbConfig(), {}, steps=8, step=0, is_main=True)
    tracker.advance(1, progress=1 / 8)
    tracker.log(RECORD, progress=0.5)
    tracker.advance(8, progress=1.0)
    shown = terminal.getvalue().split("\r")
    assert shown[1].rstrip() == "step 1/8  12%"
    assert shown[-1].rstrip() == (
        "step 8/8  100%  left 0:00  loss 1.250 (text 0.500, code 0.750)  lr 3.0e-04  12,346 tokens/s"
    )
    assert "\n" not in terminal.getvalue()
    tracker.close()
    assert terminal.getvalue().endswith(" \r")


def test_the_bar_shows_each_entry_of_the_mixture():
    """Two that read the same pictures by two paths are apart, though they share the text loss."""
    entries = {"source/ask/loss": 0.25, "source/ask/text": 0.25, "source/ask by latents/loss": 0.75}
    shown = summary(RECORD | entries | {"validation/source/ask/loss": 9.0})
    assert shown == "loss 1.250 (ask 0.250, ask by latents 0.750)  lr 3.0e-04  12,346 tokens/s"


def test_a_skipped_step_has_no_loss():
    assert summary({"step": 4, "lr": 3e-4, "skipped": 1}) == "no loss, the step was skipped  lr 3.0e-04"


def test_other_processes_are_silent(tmp_path, capfd):
    tracker = Tracker(tmp_path / "run", WandbConfig("online"), {}, steps=8, step=0, is_main=False)
    tracker.log(RECORD, progress=0.5)
    tracker.advance(4, progress=0.5)
    tracker.close()
    assert tracker.run_id is None
    assert not (tmp_path / "run").exists()
    assert capfd.readouterr().err == ""


def test_no_key_no_wandb(tmp_path, capfd):
    assert start_wandb(tmp_path, WandbConfig("disabled"), {}, None) is None
    assert start_wandb(tmp_path, WandbConfig("online"), {}, None) is None
    assert "there is no API key (WANDB_API_KEY or `wandb login`): logging locally only" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("configured", "variables", "mode"),
    [
        ("online", {"WANDB_MODE": "disabled"}, None),
        ("offline", {"WANDB_MODE": "disabled"}, None),
        ("online", {"WANDB_DISABLED": "true"}, None),
        ("online", {"WANDB_MODE": "offline"}, "offline"),
        ("online", {"WANDB_MODE": "dryrun"}, "offline"),
        ("offline", {"WANDB_MODE": ""}, "offline"),
        ("disabled", {"WANDB_MODE": "online"}, None),
        ("online", {"WANDB_MODE": "never"}, None),
    ],
)
def test_the_environment_says_how_wandb_runs(tmp_path, monkeypatch, capfd, configured, variables, mode):
    """Without a network or a question: `disabled` asks for nothing at all, `offline` for no key."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    asked = []
    monkeypatch.setattr(wandb, "init", lambda **settings: asked.append(settings["mode"]))
    start_wandb(tmp_path, WandbConfig(configured), {}, None)
    assert asked == ([] if mode is None else [mode])
    said = capfd.readouterr().err
    assert ("WANDB_MODE is 'never', which is none of" in said) == ("never" in variables.values())


def test_wandb_offline(tmp_path):
    tracker = Tracker(tmp_path, WandbConfig("offline"), {"steps": 8}, steps=8, step=0, is_main=True)
    tracker.log(RECORD, progress=0.5)
    tracker.picture(4, tmp_path / "samples.png", Image.new("RGB", (4, 4)))
    assert tracker.run_id
    tracker.close()
    assert list((tmp_path / "wandb").glob("offline-run-*"))
    assert len(lines_of(tmp_path / "metrics.jsonl")) == 1


def test_wandb_that_does_not_answer_is_offline(tmp_path, monkeypatch, capfd):
    """A server that takes the connection and says nothing: the worst of networks. wandb is asked twice, once online for
    as long as we say, and never again."""
    monkeypatch.setattr(tracking, "WANDB_START_SECONDS", 3.0)
    asked, init = [], wandb.init

    def recording(**settings):
        asked.append((settings["mode"], settings["settings"].init_timeout))
        return init(**settings)

    monkeypatch.setattr(wandb, "init", recording)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        tracker = Tracker(tmp_path, WandbConfig("online"), {"steps": 8}, steps=8, step=0, is_main=True)
        tracker.log(RECORD, progress=0.5)
        tracker.close()
    assert asked == [("online", 3.0), ("offline", 3.0)]
    assert "logging offline, `wandb sync` sends it later" in capfd.readouterr().err
    assert list((tmp_path / "wandb").glob("offline-run-*"))
    assert len(lines_of(tmp_path / "metrics.jsonl")) == 1


def test_broken_records_are_added_to_their_file_which_is_written_once(tmp_path, monkeypatch, capsys):
    file, whole = tmp_path / "broken.jsonl", []
    monkeypatch.setattr(tracking, "write_whole", lambda *each: whole.append(each) or write_whole(*each))
    records = [BadRecord(f"a.jsonl:{number}", "no picture") for number in range(5)]
    told = tracking.BrokenList(file)
    for count in range(1, 5):
        told(records[:count])
        assert [json.loads(line)["where"] for line in file.read_text().splitlines()] == [
            each.where for each in records[:count]
        ]
    assert len(whole) == 1
    assert len(capsys.readouterr().err.splitlines()) == 4
    tracking.BrokenList(file)(records[:4])  # a run that goes on finds its own list
    assert not capsys.readouterr().err
    tracking.BrokenList(file)(records[1:3])  # and one from an earlier state another
    assert len(file.read_text().splitlines()) == 2
