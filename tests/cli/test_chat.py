"""`hybridgen chat` from a pipe: the same as a `Chat`, files that can be trained on, and one sentence for a mistake."""

import io
import json
from pathlib import Path

import pytest
from PIL import Image

from hybridgen.cli.main import main
from hybridgen.data.records import check_record, load_images
from hybridgen.pipeline_hybridgen import load_pipeline

QUICK = ("--steps", 2, "--seed", 3, "--max-new-tokens", 4)


@pytest.fixture
def talk(capsys, monkeypatch, tiny_checkpoint):
    """Say lines to a checkpoint: exit code, stdout, stderr."""

    def call(lines: list[str], *arguments) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        try:
            code = main([str(word) for word in ("chat", tiny_checkpoint, *arguments)])
        except SystemExit as stop:  # argparse's own
            code = stop.code
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


def test_it_is_a_chat(talk, tiny_checkpoint, tmp_path, doll):
    """A question about a picture, a picture drawn, one turn taken back and drawn otherwise, and the record of it."""
    question = "what creature is this?"
    said = [f"/image {doll}", question, "", "/draw an orc", "/undo", "/draw an elf", "/save", "/quit", "never heard"]
    code, out, error = talk(said, *QUICK, "--out", tmp_path / "talk")
    assert (code, error.count("hybridgen:")) == (0, 0)
    chat = load_pipeline(tiny_checkpoint).chat(num_inference_steps=2, max_new_tokens=4)
    answer = "".join(getattr(event, "text", "") for event in chat.send(question, [Image.open(doll)], seed=3))
    orc = chat.draw("an orc", seed=4)
    chat.rollback()
    elf = chat.draw("an elf", seed=4)
    orc_file, elf_file, record = (Path(line) for line in out.removeprefix(answer).split())
    for file, picture in ((orc_file, orc), (elf_file, elf)):
        assert Image.open(file).tobytes() == picture.tobytes()
    manifest = json.loads(Image.open(elf_file).text["manifest"])
    assert (manifest["prompt"], manifest["seed"], manifest["checkpoint"]) == ("an elf", 4, str(tiny_checkpoint))
    (line,) = record.read_text().splitlines()
    saved = load_images(check_record(json.loads(line), "saved"), record.parent, "saved")
    pictures = [
        part["image"] for message in saved["messages"] for part in message["content"] if part["type"] == "image"
    ]
    assert [picture.convert("RGB").tobytes() for picture in pictures] == [
        Image.open(doll).convert("RGB").tobytes(),
        elf.tobytes(),
    ]
    assert [message["role"] for message in saved["messages"]] == ["user", "assistant"] * 2


@pytest.mark.parametrize(
    ("lines", "arguments", "sentence"),
    [
        (["/paint an orc"], (), "there is no /paint; /help shows what there is"),
        (["/image {tmp}/none.png"], (), "there is no image {tmp}/none.png"),
        (["/undo"], (), "turns is 1, but this chat has 0"),
        (["/undo two"], (), "/undo takes a number of turns, not 'two'"),
        (["/save"], (), "nothing was said yet, so there is nothing to save"),
        ([], ("--path", "understanding"), "the understanding path only reads"),
        ([], ("--path", "vq", "--steps", 3), "--steps is for the diffusion path, but the pictures are drawn by vq"),
        ([], ("--window", 3), "--window is for the vq path, but the pictures are drawn by diffusion"),
        ([], ("--height", 30), "size 30x32 is not divisible"),
        ([], ("--max-new-tokens", 9999), "but the model's context is 512"),
        ([], ("--out", "{tmp}/doll.png"), "a file is in its place"),
    ],
)
def test_a_mistake_is_one_sentence_and_ends_a_pipe(talk, tmp_path, doll, lines, arguments, sentence):
    places = {"tmp": str(tmp_path)}
    arguments = [str(word).format(**places) for word in arguments]
    arguments += [] if "--out" in arguments else ["--out", str(tmp_path / "talk")]
    code, out, error = talk([line.format(**places) for line in lines], *arguments)
    assert (code, out) == (2, "")
    assert error.splitlines()[-1].startswith("hybridgen: ")
    assert sentence.format(**places) in error.splitlines()[-1]
    assert "Traceback" not in error


def test_quit_ends_whatever_stands_behind_it(talk, tmp_path):
    assert talk(["/quit now", "/paint"], "--out", str(tmp_path / "talk"))[:2] == (0, "")


@pytest.mark.parametrize("spelling", ["{}", "'{}'", '"{}"', "{escaped}", "file://{quoted}"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_dropped_file_is_that_file(talk, tmp_path, doll, spelling, mark):
    """As terminals paste it, and as the first line of a script that begins with a byte order mark."""
    file = tmp_path / "my photo, it's one.png" if spelling in ("{}", '"{}"') else tmp_path / "my photo.png"
    file.write_bytes(doll.read_bytes())
    named = spelling.format(file, escaped=str(file).replace(" ", "\\ "), quoted=str(file).replace(" ", "%20"))
    said = [f"{mark}/image {named}", "what creature is this?", "/save"]
    code, out, error = talk(said, *QUICK, "--out", tmp_path / "talk")
    assert (code, error.count("hybridgen:")) == (0, 0)
    messages = json.loads(Path(out.splitlines()[-1]).read_text())["messages"]
    assert messages[0]["content"][0] == {"type": "image", "image": str(file)}


def test_words_of_a_chat_are_drawn_where_that_is_asked_for_and_a_cut_is_said(talk, tiny_checkpoint, tmp_path):
    how = ("--text-temperature", 1.5, "--text-top-k", 20, "--text-top-p", 0.9, "--seed", 3, "--max-new-tokens", 4)
    code, out, error = talk(["hello"], *how, "--out", tmp_path)
    assert code == 0
    chat = load_pipeline(tiny_checkpoint).chat(max_new_tokens=4)
    settings = {"text_temperature": 1.5, "text_top_k": 20, "text_top_p": 0.9, "seed": 3}
    events = list(chat.send("hello", **settings))
    assert out.splitlines()[0] == "".join(getattr(event, "text", "") for event in events).splitlines()[0]
    assert ("the answer was cut off where its tokens ran out" in error) == events[-1].truncated


class Terminal(io.StringIO):
    """Somebody who types."""

    def isatty(self) -> bool:
        return True


def test_at_a_terminal_a_mistake_is_said_and_the_conversation_goes_on(talk, monkeypatch, tmp_path):
    monkeypatch.setattr(io, "StringIO", Terminal)
    code, out, error = talk(["/undo", "/help", "/draw an orc"], *QUICK, "--out", tmp_path)
    assert code == 0
    assert Path(out.strip()).parent == tmp_path
    assert "turns is 1, but this chat has 0; take back at most those" in error
    assert error.count("/image FILE") == 2  # at the beginning and when asked for
