"""`hybridgen ask`: the answer, and nothing else."""

import subprocess
import sys

import pytest
from PIL import Image

from hybridgen.pipeline_hybridgen import load_pipeline


@pytest.mark.parametrize("path", ["understanding", "diffusion", "vq"])
def test_ask_prints_the_answer_alone(run, tiny_checkpoint, doll, pipeline, path):
    question = "what creature is this?"
    code, lines, _ = run(
        "ask", tiny_checkpoint, "--image", doll, "--question", question, "--path", path, "--max-new-tokens", 8
    )
    assert code == 0
    answer = pipeline.answer(Image.open(doll), question, path=path, max_new_tokens=8)[0]
    assert "\n".join(lines) == answer


def test_several_pictures_are_read_before_the_question_and_every_question_is_answered(
    run, tiny_checkpoint, doll, pipeline, tmp_path
):
    Image.new("RGB", (32, 32), "white").save(tmp_path / "white.png")
    pictures, questions = [doll, tmp_path / "white.png"], ["what creature is this?", "is there a crossbow?"]
    words = [word for picture in pictures for word in ("--image", picture)]
    words += [word for question in questions for word in ("--question", question)]
    code, lines, _ = run("ask", tiny_checkpoint, *words, "--max-new-tokens", 6)
    assert code == 0
    opened = [Image.open(picture) for picture in pictures]
    answers = pipeline.answer([opened], questions, max_new_tokens=6)
    assert "\n".join(lines) == "\n".join(answers)
    _, asked, _ = run("ask", tiny_checkpoint, *words[:2], *words[4:], "--max-new-tokens", 6)
    assert asked != lines


def test_words_are_drawn_where_that_is_asked_for(run, tiny_checkpoint, doll, pipeline):
    words = ("ask", tiny_checkpoint, "--image", doll, "--question", "what creature is this?", "--max-new-tokens", 6)
    how = ("--temperature", 1.5, "--top-k", 20, "--top-p", 0.9, "--seed", 3)
    _, lines, error = run(*words, *how)
    answer = pipeline.answer(
        Image.open(doll), "what creature is this?", max_new_tokens=6, temperature=1.5, top_k=20, top_p=0.9, seed=3
    )[0]
    assert "\n".join(lines) == answer
    assert ("cut off where its tokens ran out; --max-new-tokens" in error) == answer.truncated
    for wrong, sentence in ((("--top-p", 2), "--top-p is 2.0; it must be a number above 0 and at most 1"),):
        code, _, error = run(*words, *wrong)
        assert code == 2
        assert sentence in error


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_an_answer_in_another_precision(run, tiny_checkpoint, doll, pipeline, precision, monkeypatch):
    words = ("ask", tiny_checkpoint, "--image", doll, "--question", "what creature is this?", "--max-new-tokens", 6)
    asked, decoder = [], type(pipeline).decoder
    monkeypatch.setattr(type(pipeline), "decoder", lambda pipe, name: (asked.append(name), decoder(pipe, name))[1])
    code, lines, _ = run(*words, "--precision", precision)
    assert (code, asked) == (0, [precision])
    assert (
        "\n".join(lines)
        == pipeline.answer(Image.open(doll), "what creature is this?", max_new_tokens=6, precision=precision)[0]
    )


def test_an_answer_that_was_cut_is_said_on_stderr(run, tiny_checkpoint, doll):
    words = ("ask", tiny_checkpoint, "--image", doll, "--question", "a?")
    _, whole, _ = run(*words)
    code, cut, error = run(*words, "--max-new-tokens", 1)
    assert code == 0
    assert len("\n".join(cut)) < len("\n".join(whole))
    assert "the answer was cut off where its tokens ran out; --max-new-tokens sets how many" in error


def test_as_a_process(tiny_checkpoint, doll):
    """stdout holds the answer and nothing else."""
    command = [sys.executable, "-m", "hybridgen", "ask", str(tiny_checkpoint), "--image", str(doll), "--question", "a?"]
    command += ["--max-new-tokens", "8"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == load_pipeline(tiny_checkpoint).answer(Image.open(doll), "a?", max_new_tokens=8)[0] + "\n"
