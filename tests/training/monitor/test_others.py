"""Trackers beside wandb, each by the real library where it is installed: numbers, config and pictures arrive, a resumed
run goes on, and one that fails never ends a run."""

import importlib.util
import io
import json

import numpy as np
import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, TensorBoardTracker
from PIL import Image

from hybridgen.training.config.checks import load_config
from hybridgen.training.config.schema import WandbConfig
from hybridgen.training.monitor.tracking import Tracker

RECORD = {"step": 2, "loss": 1.25, "source/a (b)/loss": 0.5, "lr": 3e-4, "tokens_per_second": 100.0, "note": "x"}
CONFIG = {"steps": 8, "data": {"sources": [{"path": "a"}]}, "clip": None, "model": {"compile": False}}


def needs(package: str):
    missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"the tracker {package} is not installed: pip install {package}")


def run(folder, *names: str, step: int = 0) -> Image.Image:
    """Two steps of a run and a picture of samples, as the trainer tells them."""
    tracker = Tracker(folder, WandbConfig(), CONFIG, 8, step, True, None, list(names))
    picture = Image.fromarray(np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3))
    for at in (step + 2, step + 4):
        tracker.log({**RECORD, "step": at, "loss": at / 2}, progress=at / 8)
    tracker.picture(step + 4, folder / "samples" / f"step_{step + 4:06}.png", picture)
    tracker.close()
    return picture


@needs("tensorboard")
def test_tensorboard_has_numbers_pictures_and_config(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    picture = run(tmp_path, "tensorboard")
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(2, 1.0), (4, 2.0)]
    assert {"source/a (b)/loss", "lr", "tokens_per_second"} <= set(events.Tags()["scalars"])
    (shown,) = events.Images("samples")
    assert (shown.step, shown.width, shown.height) == (4, 6, 4)
    assert np.array_equal(Image.open(io.BytesIO(shown.encoded_image_string)), picture)
    (saved,) = (tmp_path / "tensorboard").rglob("hparams.yml")
    assert "data.sources" in saved.read_text()
    assert "model.compile: false" in saved.read_text()
    run(tmp_path, "tensorboard", step=2)  # resumed from step 2: what was written after it is hidden
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [2, 4, 6]
    assert [line["step"] for line in map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())] == [
        2,
        4,
        6,
    ]


@needs("mlflow")
def test_mlflow_has_numbers_pictures_and_config(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    import mlflow

    folder = tmp_path / "my run"
    run(folder, "mlflow")
    run(folder, "mlflow", step=4)
    client = mlflow.MlflowClient()
    (experiment,) = client.search_experiments(filter_string="name = 'hybridgen'")
    (found,) = client.search_runs([experiment.experiment_id])  # resumed, it is the same run
    assert found.info.run_name == "my run"
    assert found.data.params["data.sources"] == "[{'path': 'a'}]"
    assert [(each.step, each.value) for each in client.get_metric_history(found.info.run_id, "loss")] == [
        (2, 1.0), (4, 2.0), (6, 3.0), (8, 4.0),
    ]  # fmt: skip
    assert "source/a _b_/loss" in found.data.metrics
    names = [file.path for file in client.list_artifacts(found.info.run_id, "samples")]
    assert names == ["samples/step_000004.png", "samples/step_000008.png"]


@needs("trackio")
def test_trackio_has_numbers_and_pictures(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    import trackio

    run(tmp_path / "my run", "trackio")
    logged = trackio.Api().runs("hybridgen")
    assert [each.name for each in logged] == ["my run"]
    assert list((tmp_path / "trackio").rglob("*.png"))


def test_one_that_is_not_installed_is_refused_in_a_sentence_before_the_run(monkeypatch):
    monkeypatch.setattr("hybridgen.training.config.checks.get_available_trackers", lambda: ["tensorboard"])
    assert load_config("configs/draw_only.yaml", ["trackers=[tensorboard]"]).trackers == ["tensorboard"]
    with pytest.raises(ValueError, match="trackers has 'mlflow', whose package is not installed; pip install mlflow"):
        load_config("configs/draw_only.yaml", ["trackers=[tensorboard, mlflow]"])
    with pytest.raises(ValueError, match="trackers"):
        load_config("configs/draw_only.yaml", ["trackers=[tensorbord]"])


class Broken(TensorBoardTracker):
    """A tracker whose calls fail from one of them on."""

    fails = "log"

    def start(self):
        if self.fails == "start":
            raise ConnectionError("no\nanswer")

    def store_init_configuration(self, values):
        pass

    def log(self, values, step=None, **kwargs):
        if self.fails == "log" and step > 2:
            raise OSError("the disk is full")

    def log_images(self, values, step=None, **kwargs):
        if self.fails == "log_images":
            raise RuntimeError

    def finish(self):
        if self.fails == "finish":
            raise KeyError("run")


@pytest.mark.parametrize(
    ("fails", "sentence"),
    [
        ("start", "tracker tensorboard failed (no answer): it is left out from here on"),
        ("log", "tracker tensorboard failed (the disk is full): it is left out"),
        ("log_images", "tracker tensorboard failed (RuntimeError): it is left out"),
        ("finish", "tracker tensorboard failed ('run'): it is left out"),
    ],
)
def test_one_that_fails_is_said_once_and_never_ends_a_run(tmp_path, monkeypatch, capfd, fails, sentence):
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "tensorboard", Broken)
    monkeypatch.setattr(Broken, "fails", fails)
    run(tmp_path, "tensorboard")
    said = capfd.readouterr().err
    assert said.count("tracker tensorboard failed") == 1
    assert sentence in said
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
    assert (tmp_path / "samples" / "step_000004.png").is_file()


def test_ctrl_c_is_no_failure(tmp_path, monkeypatch):
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "tensorboard", Broken)
    monkeypatch.setattr(Broken, "start", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "tensorboard")
