"""`hybridgen serve`: what stands in its way is one sentence, and it serves until a signal comes."""

import base64
import io
import os
import signal
import socket
import threading
import time

import pytest
from PIL import Image

from hybridgen.cli import main as main_module
from hybridgen.cli import serve
from hybridgen.cli.arguments.serve import KEY_VARIABLE


@pytest.fixture
def extra():
    pytest.importorskip("fastapi", reason="the extra 'serve' is not installed")
    return pytest.importorskip("openai", reason="the client of OpenAI is not installed")


@pytest.mark.usefixtures("ctrl_c")
def test_it_serves_until_ctrl_c(extra, tiny_checkpoint, pipeline, tmp_path, capsys, monkeypatch):
    """With a key from a file, a name and a precision; the picture is that of `hybridgen sample`."""
    key, made, said = tmp_path / "key.txt", [], []
    key.write_text("secret\n")
    monkeypatch.setattr(main_module.sys, "stdout", out := io.StringIO())

    def ask() -> None:
        while "/v1" not in out.getvalue():
            time.sleep(0.05)
        said.append(out.getvalue())
        try:
            where = out.getvalue().split()[-1]
            client = extra.OpenAI(base_url=where, api_key="secret", max_retries=0, timeout=60)
            with pytest.raises(extra.AuthenticationError):
                extra.OpenAI(base_url=where, api_key="other", max_retries=0).models.list()
            made.append(client.models.list().data[0].id)
            body = {"path": "vq", "seed": 2, "guidance_scale": 1.0}
            made.append(client.images.generate(prompt="an elf", extra_body=body).data[0].b64_json)
        finally:
            os.kill(os.getpid(), signal.SIGINT)

    client = threading.Thread(target=ask)
    client.start()
    words = ["serve", str(tiny_checkpoint), "--port", "0", "--name", "mine", "--api-key-file", str(key)]
    code = main_module.main([*words, "--precision", "fp32"])
    client.join()
    assert code == 130
    assert said[0].startswith("serving mine at http://127.0.0.1:")
    assert made[0] == "mine"
    drawn = Image.open(io.BytesIO(base64.b64decode(made[1]))).convert("RGB")
    expected = pipeline("an elf", path="vq", seed=2, guidance_scale=1.0, precision="fp32").images[0]
    assert drawn.tobytes() == expected.tobytes()
    assert "requests that were running had --grace seconds to end" in capsys.readouterr().err


def test_what_stands_in_its_way(extra, run, tiny_checkpoint, tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, _, error = run("serve", tiny_checkpoint, "--port", port)
    assert (code, error.count("\n")) == (2, 1)
    assert f"cannot listen at 127.0.0.1, port {port} (Address already in use); take another --port" in error
    code, _, error = run("serve", tiny_checkpoint, "--host", "no such host", "--port", 0)
    assert code == 2
    assert "cannot listen at no such host" in error
    (tmp_path / "key").write_text("two words")
    for words, sentence in (
        (("--api-key-file", tmp_path / "none"), "is not there; name a file that holds the key"),
        (("--api-key-file", tmp_path / "key"), "must be one word of ASCII characters"),
        (("--name", " "), "--name is empty"),
        (("--port", 99999), "is not a whole number from 0 to 65535"),
        (("--timeout", 0), "is not a number above 0"),
    ):
        code, _, error = run("serve", tiny_checkpoint, *words)
        assert code == 2
        assert sentence in error
    monkeypatch.setenv(KEY_VARIABLE, "")
    code, _, error = run("serve", tiny_checkpoint)
    assert (code, f"the key in {KEY_VARIABLE} must be one word" in error) == (2, True)
    code, _, error = run("serve", tmp_path)
    assert code == 2


def test_without_the_extra(run, tiny_checkpoint, monkeypatch):
    monkeypatch.setattr(serve, "find_spec", lambda name: None)
    code, _, error = run("serve", tiny_checkpoint)
    assert code == 2
    assert error == "hybridgen: fastapi is not installed, which serving needs; pip install 'hybridgen[serve]'\n"
