"""Fixtures that every test may use. hybridgen is imported first: it mends torchvision beside a CPU build of torch."""

import gc
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import hybridgen  # noqa: F401
from hybridgen.pipeline_hybridgen import HybridGenPipeline, load_pipeline
from tests.core.disk_calls import skip_flushing
from tests.dolls import tiny_dolls_pipeline
from tests.drawn_charts import draw_each_kind_once

skip_flushing()
draw_each_kind_once()


def pytest_collection_finish() -> None:
    """The libraries' objects and the tests themselves are there to the end: a million and a half that the collector
    need not look through whenever it is called, which took two thirds of a second each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory) -> Path:
    """The folder of a saved `tests.dolls.tiny_dolls_pipeline`, for reading only."""
    folder = tmp_path_factory.mktemp("tiny") / "checkpoint"
    tiny_dolls_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture
def pipeline(tiny_checkpoint) -> HybridGenPipeline:
    """A tiny pipeline for the dolls dataset, as loaded from disk."""
    return load_pipeline(tiny_checkpoint)


@pytest.fixture
def unhurried(monkeypatch) -> Callable[[float], None]:
    """`unhurried(0.01)`: pictures of the engine take so many seconds a step, and more, on any machine."""
    from hybridgen.serving import drawing

    task = drawing.PictureCall.task

    def slow_down(seconds: float) -> None:
        def slowly(call):
            made, answer = task(call), None
            while True:
                try:
                    asked = made.send(answer)
                except StopIteration as end:
                    return end.value
                time.sleep(seconds)
                answer = yield asked

        monkeypatch.setattr(drawing.PictureCall, "task", slowly)

    return slow_down
