"""`hybridgen app`: what stands in its way is one sentence, and the page is there until a signal comes."""

import io
import os
import signal
import socket
import threading
import time
import urllib.request
from pathlib import Path

import pytest

import tests.web  # noqa: F401
from hybridgen.cli import main as main_module
from hybridgen.cli import serve
from hybridgen.cli.arguments.parser import parser
from hybridgen.core import recognition


@pytest.mark.usefixtures("ctrl_c")
def test_the_page_is_there_until_ctrl_c(tiny_checkpoint, capsys, monkeypatch):
    """What was uploaded is gone afterwards."""
    for module in ("gradio", "fastapi"):
        pytest.importorskip(module, reason="the extra 'app' is not installed")
    monkeypatch.setattr(main_module.sys, "stdout", out := io.StringIO())
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")  # as it was, afterwards
    pages, folders = [], []

    def look() -> None:
        while " is at " not in out.getvalue():
            time.sleep(0.05)
        try:
            address = out.getvalue().split()[-1]
            pages.append(urllib.request.urlopen(address, timeout=60).read().decode())
            form = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\nabc\r\n--x--\r\n'
            headers = {"content-type": "multipart/form-data; boundary=x"}
            urllib.request.urlopen(urllib.request.Request(f"{address}/gradio_api/upload", form, headers), timeout=60)
            folders.append(Path(os.environ["GRADIO_TEMP_DIR"]))
            pages.append([file.name for file in folders[0].rglob("*.png")])
        finally:
            os.kill(os.getpid(), signal.SIGINT)

    client = threading.Thread(target=look)
    client.start()
    code = main_module.main(["app", str(tiny_checkpoint), "--port", "0", "--name", "mine <b>"])
    client.join()
    assert code == 130
    assert out.getvalue().startswith("mine <b> is at http://127.0.0.1:")
    assert "hybridgen · mine" in pages[0]
    assert "<b>" not in pages[0]
    assert pages[1] == ["a.png"]
    assert not folders[0].exists()
    assert "the page is closed; pictures that were not downloaded are gone" in capsys.readouterr().err


def test_what_stands_in_its_way(run, tiny_checkpoint, monkeypatch, tmp_path):
    monkeypatch.setattr(serve, "find_spec", lambda name: True)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, _, error = run("app", tiny_checkpoint, "--port", port)
    assert (code, error.count("\n")) == (2, 1)
    assert f"cannot listen at 127.0.0.1, port {port}" in error
    for words, sentence in (
        ((tiny_checkpoint, "--name", " "), "--name is empty"),
        ((tiny_checkpoint, "--max-steps", 0), "is not a whole number of at least 1"),
        ((tmp_path / "none",), "does not exist"),
    ):
        code, _, error = run("app", *words)
        assert (code, sentence in error) == (2, True), error


def test_without_a_checkpoint_it_is_the_small_model(monkeypatch, tiny_checkpoint):
    monkeypatch.setitem(recognition.PACKAGED, recognition.SMALL, tiny_checkpoint)
    assert str(parser().parse_args(["app"]).checkpoint) == str(tiny_checkpoint)


def test_without_the_extra(run, tiny_checkpoint, monkeypatch):
    monkeypatch.setattr(serve, "find_spec", lambda name: None)
    code, _, error = run("app", tiny_checkpoint)
    assert code == 2
    assert error == "hybridgen: gradio is not installed, which the web page needs; pip install 'hybridgen[app]'\n"
