"""`hybridgen ask`: the answer, and nothing else."""

import subprocess
import sys

import pytest
from PIL import Image

from hybridgen.pipeline_hybridgen import load_pipeline


@pytest.mark.parametrize("path", ["understanding", "diffusion", "vq"])
def test_ask_prints_the_answer_alone(run, tiny_checkpoint, doll, pipeline, path):
    question = "what creature is this?"
    code, lines, _ = run("ask", tiny_checkpoint, "--image", doll, "--question", question, "--path", path)
    assert code == 0
    answer = pipeline.answer(Image.open(doll), question, path=path)[0]
    assert "\n".join(lines) == answer


def test_as_a_process(tiny_checkpoint, doll):
    """stdout holds the answer and nothing else."""
    command = [sys.executable, "-m", "hybridgen", "ask", str(tiny_checkpoint), "--image", str(doll), "--question", "a?"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == load_pipeline(tiny_checkpoint).answer(Image.open(doll), "a?")[0] + "\n"
