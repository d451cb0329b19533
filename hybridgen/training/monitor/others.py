"""Trackers beside wandb, by accelerate: TensorBoard, MLflow, trackio. They get the numbers of `metrics.jsonl`, the
config, and the pictures of samples.

None of them ends a run: what one raises is said once, and it is left out from then on. One that is not installed is
refused before the run (`config.checks`).
"""

import json
import re
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from PIL import Image

from hybridgen.core.files import write_whole
from hybridgen.core.values import one_line

PROJECT = "hybridgen"  # what MLflow calls an experiment and trackio a project; a run is named after its folder
RUNS = "trackers.json"  # in a run's folder: by which names trackers know it, so that a resumed run goes on there


class OtherTrackers:
    """
    Args:
        names: of TensorBoard, MLflow and trackio, those that are wanted.
        folder: of the run.
        config: of the run, nested.
        step: the run goes on from there.
        say: prints one sentence.
    """

    def __init__(self, names: list[str], folder: Path, config: dict, step: int, say: Callable[[str], None]):
        self._say, self._trackers = say, {}
        for name in names:
            self._guarded(name, lambda name=name: self._start(name, folder, config, step))

    def log(self, record: dict) -> None:
        """A step's numbers; what is none is left out."""
        numbers = {key: value for key, value in record.items() if isinstance(value, int | float) and key != "step"}
        for name, tracker in list(self._trackers.items()):
            named = {_metric(key): value for key, value in numbers.items()} if name == "mlflow" else numbers
            self._guarded(name, lambda log=tracker.log, named=named: log(named, step=record["step"]))

    def picture(self, step: int, path: Path, image: Image.Image) -> None:
        """A picture of samples that is in a file, too."""
        for name, tracker in list(self._trackers.items()):
            self._guarded(name, lambda name=name, tracker=tracker: _PICTURES[name](tracker, step, path, image))

    def close(self) -> None:
        for name, tracker in list(self._trackers.items()):
            self._guarded(name, tracker.finish)

    def _start(self, name: str, folder: Path, config: dict, step: int) -> None:
        file = folder / RUNS
        runs = json.loads(file.read_text(encoding="utf-8")) if step and file.is_file() else {}
        tracker = _STARTS[name](folder, step, runs.get(name))
        tracker.start()
        if not step:
            tracker.store_init_configuration(_flat(config))
        if name == "mlflow":
            write_whole(file, json.dumps(runs | {name: tracker.tracker.info.run_id}))
        self._trackers[name] = tracker

    def _guarded(self, name: str, call: Callable[[], None]) -> None:
        try:
            with redirect_stdout(sys.stderr):  # stdout is the run's: one line that says what it wrote
                call()
        except Exception as error:  # whatever a tracker raises: a run goes on without it
            self._trackers.pop(name, None)
            reason = one_line(error) or type(error).__name__
            self._say(f"tracker {name} failed ({reason}): it is left out from here on, metrics.jsonl has everything")


def _tensorboard(folder: Path, step: int, run: str | None) -> GeneralTracker:
    """Below the run's folder; steps that an interrupted run wrote after `step` are hidden."""
    hidden = {"purge_step": step + 1} if step else {}
    return LOGGER_TYPE_TO_CLASS["tensorboard"]("tensorboard", folder, **hidden)


def _mlflow(folder: Path, step: int, run: str | None) -> GeneralTracker:
    """Where MLFLOW_TRACKING_URI says."""
    return LOGGER_TYPE_TO_CLASS["mlflow"](PROJECT, run_id=run, run_name=folder.absolute().name)


def _trackio(folder: Path, step: int, run: str | None) -> GeneralTracker:
    """Where trackio keeps its runs (TRACKIO_DIR)."""
    name = folder.absolute().name
    return LOGGER_TYPE_TO_CLASS["trackio"](PROJECT, name=name, resume="allow" if step else "never")


def _trackio_picture(tracker: GeneralTracker, step: int, path: Path, image: Image.Image) -> None:
    import trackio  # imported already, as it runs

    tracker.log({"samples": trackio.Image(image.convert("RGB"))}, step=step)


_STARTS = {"tensorboard": _tensorboard, "mlflow": _mlflow, "trackio": _trackio}
_PICTURES = {
    "tensorboard": lambda tracker, step, path, image: tracker.log_images(
        {"samples": np.asarray(image.convert("RGB"))[None]}, step=step, dataformats="NHWC"
    ),
    "mlflow": lambda tracker, step, path, image: tracker.log_artifact(str(path), "samples"),
    "trackio": _trackio_picture,
}


def _metric(key: str) -> str:
    """A name as MLflow takes it: of a source called `a (b)` it takes no brackets."""
    return re.sub(r"[^\w\-. :/]", "_", key)


def _flat(config: dict, before: str = "") -> dict[str, bool | int | float | str]:
    """`{"a": {"b": 1}}` -> `{"a.b": 1}`; what trackers do not take is text."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{before}{key}.")
        else:
            flat[f"{before}{key}"] = value if isinstance(value, bool | int | float | str) else str(value)
    return flat
