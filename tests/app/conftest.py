"""The page of a tiny pipeline on loopback, and a headless browser before it."""

import contextlib
import os
import shutil

import pytest

import tests.web  # noqa: F401
from hybridgen.pipeline_hybridgen import HybridGenPipeline, load_pipeline
from tests.serving.conftest import running

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@contextlib.contextmanager
def paged(pipe: HybridGenPipeline, folder, name: str = "tiny"):
    """Yields the address of a page of this pipeline, and its engine; what is uploaded lies in `folder`."""
    from hybridgen.app.page import mount
    from hybridgen.app.studio import Studio
    from hybridgen.cli.app import ending_streams
    from hybridgen.serving.app import Server
    from hybridgen.serving.engine import Engine
    from hybridgen.serving.limits import Limits

    before = os.environ.get("GRADIO_TEMP_DIR")
    engine, limits = Engine(), Limits(image_bytes=1 << 20)
    app = mount(Server(pipe, name, engine, limits, 5.0).app(), Studio(pipe, name, engine, limits), folder)
    try:
        with running(app, lambda server: ending_streams(server, app, engine, 1.0)) as address:
            yield address, engine
    finally:
        os.environ.pop("GRADIO_TEMP_DIR")
        if before is not None:
            os.environ["GRADIO_TEMP_DIR"] = before


@pytest.fixture(scope="module")
def page(tiny_checkpoint, tmp_path_factory):
    """(address, engine, pipeline) of a page."""
    for module in ("gradio", "fastapi", "prometheus_client"):
        pytest.importorskip(module, reason="the extra 'app' is not installed")
    pipe = load_pipeline(tiny_checkpoint)
    pipe.set_progress_bar_config(disable=True)
    with paged(pipe, tmp_path_factory.mktemp("uploads")) as (address, engine):
        yield address, engine, pipe


@pytest.fixture(scope="module")  # while it is open, nothing else in its thread can run an event loop
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no chromium on this machine")
    with playwright.sync_playwright() as made:
        opened = made.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()
