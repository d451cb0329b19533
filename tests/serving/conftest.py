"""A server on loopback with a tiny pipeline behind it, and the real client of OpenAI before it."""

import contextlib
import socket
import threading
import time

import pytest

from tests.pipelines import tiny_pipeline

KEY = "a-secret"
NAME = "tiny"


@contextlib.contextmanager
def served(pipe, **options):
    """Yields the address of a server of this pipeline; it is orderly shut down behind."""
    from hybridgen.serving.app import create_app

    with running(create_app(pipe, **{"name": NAME, "key": KEY, "grace": 5.0, **options})) as address:
        yield address


@contextlib.contextmanager
def running(app, prepare=lambda server: server):
    """Yields the address of an application that runs in a thread. `prepare` may change the server before."""
    import uvicorn

    listener = socket.create_server(("127.0.0.1", 0))
    server = prepare(
        uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=5))
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)
        listener.close()
        assert not thread.is_alive()


@pytest.fixture(scope="session")
def pipe():
    return tiny_pipeline()


@pytest.fixture(scope="module")  # no server runs beside tests of other things
def address(pipe):
    pytest.importorskip("fastapi", reason="the extra 'serve' is not installed")
    pytest.importorskip("openai", reason="the client of OpenAI is not installed")
    with served(pipe) as where:
        yield where


@pytest.fixture
def client(address):
    import openai

    with openai.OpenAI(base_url=f"{address}/v1", api_key=KEY, max_retries=0, timeout=60) as made:
        yield made


@pytest.fixture
def http(address):
    import httpx

    with httpx.Client(base_url=address, headers={"authorization": f"Bearer {KEY}"}, timeout=60) as made:
        yield made
