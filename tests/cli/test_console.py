"""Bytes that are no UTF-8, and consoles that know few letters: one sentence, or the letter escaped, no traceback."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from hybridgen.cli import ask
from hybridgen.cli.main import main

LATIN = "caf\udce9"  # as Python keeps the bytes b"caf\xe9" of an argument
NOT_UTF8 = "is not UTF-8 text"
TEXTS = {  # what is said in bytes that are no UTF-8 -> what is named in the sentence
    "a question": (("ask", "{ck}", "--image", "{doll}", "--question", LATIN), "--question"),
    "a prompt": (("sample", "{ck}", "--prompt", "a", "--prompt", LATIN, "--steps", 1, "--out", "{tmp}/o"), "--prompt"),
    "a negative prompt": (
        ("sample", "{ck}", "--prompt", "a", "--negative-prompt", LATIN, "--out", "{tmp}/o"),
        "--negative-prompt",
    ),
    "a system message": (("chat", "{ck}", "--system", LATIN, "--out", "{tmp}/o"), "--system"),
    "an override": (("train", "{tmp}/config.yaml", f"output_dir={LATIN}"), "an argument"),
    "a config": (("train", "{tmp}/config.yaml"), "config {tmp}/config.yaml"),
    "the base of a config": (("train", "{tmp}/over.yaml"), "config {tmp}/config.yaml"),
    "a config to inspect": (("data", "inspect", "{tmp}/config.yaml"), "config {tmp}/config.yaml"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_text_that_is_not_utf8_is_one_sentence(run, tiny_checkpoint, tmp_path, doll, name):
    (tmp_path / "config.yaml").write_bytes(b"output_dir: runs/x\nname: caf\xe9\n")
    (tmp_path / "over.yaml").write_text("base: config.yaml\n")
    places = {"tmp": str(tmp_path), "ck": str(tiny_checkpoint), "doll": str(doll)}
    words, named = TEXTS[name]
    code, lines, error = run(*(word.format(**places) if isinstance(word, str) else word for word in words))
    assert (code, lines) == (2, [])
    assert error.startswith(f"hybridgen: {named.format(**places)} {NOT_UTF8}")
    assert error.count("\n") == 1
    assert not (tmp_path / "o").exists()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def chat(monkeypatch, checkpoint: Path, out: Path, stdin) -> int:
    monkeypatch.setattr("sys.stdin", stdin)
    words = ["chat", str(checkpoint), "--out", str(out), "--max-new-tokens", "2", "--steps", "1", "--seed", "0"]
    return main(words)


def pipe(content: bytes) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(content), encoding="ascii")


def test_a_chat_from_a_file_that_is_not_utf8_ends_with_one_sentence(monkeypatch, capsys, tiny_checkpoint, tmp_path):
    assert chat(monkeypatch, tiny_checkpoint, tmp_path, pipe(b"/draw an orc\ncaf\xe9\nnever heard\n")) == 2
    printed = capsys.readouterr()
    assert printed.out.count(".png") == 1  # what was drawn before is there
    assert printed.err.splitlines()[-1].startswith(f"hybridgen: message 0's text {NOT_UTF8}")


def test_at_a_terminal_it_goes_on(monkeypatch, capsys, tiny_checkpoint, tmp_path):
    assert chat(monkeypatch, tiny_checkpoint, tmp_path, Terminal(f"{LATIN}\n/draw an orc\n/quit\n")) == 0
    printed = capsys.readouterr()
    assert printed.out.count(".png") == 1
    assert NOT_UTF8 in printed.err


@pytest.mark.parametrize("console", ["pipe", "text"])
def test_a_byte_order_mark_before_the_first_line_is_no_part_of_it(
    monkeypatch, capsys, tiny_checkpoint, tmp_path, console
):
    """As PowerShell begins a pipe; and the console's own encoding is not a file's."""
    said = "\ufeff/draw ein süßer Ork\n"
    stdin = pipe(said.encode()) if console == "pipe" else io.StringIO(said)
    assert chat(monkeypatch, tiny_checkpoint, tmp_path, stdin) == 0
    (file,) = capsys.readouterr().out.split()
    assert Path(file).name.startswith("ein-s-er-ork-")


def test_a_zero_character_is_a_character(monkeypatch, capsys, tiny_checkpoint, tmp_path):
    assert chat(monkeypatch, tiny_checkpoint, tmp_path, io.StringIO("/draw an\0orc\nwhat?\0\n/save\n")) == 0
    record = [line for line in capsys.readouterr().out.split() if line.endswith(".jsonl")][0]
    assert json.loads(Path(record).read_text())["messages"][0]["content"][0]["text"] == "an\0orc"


def test_a_zero_character_in_a_name_of_a_file_is_one_sentence(monkeypatch, capsys, tiny_checkpoint, tmp_path):
    assert chat(monkeypatch, tiny_checkpoint, tmp_path, io.StringIO("/image a\0b.png\n")) == 2
    assert "hybridgen: 'a\\x00b.png' is no path" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------- few letters


ENCODINGS = ["ascii", "cp1252", "utf-8"]


def console_of(monkeypatch, encoding: str) -> io.BytesIO:
    """stdout of a console that knows few letters; what it holds is what was printed."""
    printed = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(printed, encoding=encoding, write_through=True))
    return printed


def shown(text: str, encoding: str) -> bytes:
    return text.encode(encoding, errors="backslashreplace")


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_paths_and_answers_are_escaped_where_letters_lack(monkeypatch, tiny_checkpoint, tmp_path, doll, encoding):
    printed, out = console_of(monkeypatch, encoding), tmp_path / "рисунки"
    words = ["sample", str(tiny_checkpoint), "--prompt", "an orc", "--steps", "1", "--out", str(out)]
    assert main(words) == 0
    (file,) = out.iterdir()
    assert printed.getvalue() == shown(f"{file}\n", encoding)
    monkeypatch.setattr(ask, "run", lambda options: iter(["das ist süß: рисунок"]))
    assert main(["ask", str(tiny_checkpoint), "--image", str(doll), "--question", "?"]) == 0
    assert printed.getvalue().endswith(shown("das ist süß: рисунок\n", encoding))


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_name_of_a_file_that_is_no_utf8_is_printed_as_it_is(monkeypatch, tiny_checkpoint, tmp_path, encoding):
    printed, out = console_of(monkeypatch, encoding), tmp_path / LATIN
    assert main(["sample", str(tiny_checkpoint), "--prompt", "an orc", "--steps", "1", "--out", str(out)]) == 0
    (file,) = out.iterdir()
    assert printed.getvalue() == bytes(file) + b"\n"
    assert main(["replay", str(file)]) == 0


@pytest.mark.parametrize("words", [["--help"], ["train", "рисунки.yaml"]])
def test_help_and_mistakes_too(words):
    command = [sys.executable, "-m", "hybridgen", *words]
    environment = {"PYTHONIOENCODING": "ascii", "PATH": "", "HOME": "/"}
    ended = subprocess.run(command, capture_output=True, env=environment, cwd=Path(__file__).parents[2])
    assert ended.returncode == (0 if words == ["--help"] else 2)
    assert b"Traceback" not in ended.stderr
