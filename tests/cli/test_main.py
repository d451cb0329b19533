"""The command line on a tiny checkpoint: what it writes and prints, and one sentence for what a user can mend.

Commands run in this process through `main`; a few start Python anew, for what only a process has.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hybridgen.cli import main as cli
from hybridgen.cli.arguments import parser
from hybridgen.cli.pictures import slug
from hybridgen.data.synthetic import dolls
from hybridgen.pipeline_hybridgen import load_pipeline
from hybridgen.version import __version__

PROMPT = "an orc wearing a purple robe, holding a bottle, blue background"


@pytest.fixture
def run(capsys):
    """Run a command: exit code, lines of stdout, stderr."""

    def call(*arguments) -> tuple[int, list[str], str]:
        try:
            code = cli.main([str(argument) for argument in arguments])
        except SystemExit as stop:  # argparse's own
            code = stop.code
        printed = capsys.readouterr()
        return code, printed.out.split("\n")[:-1], printed.err

    return call


@pytest.fixture
def doll(tmp_path) -> Path:
    file = tmp_path / "doll.png"
    dolls.Dolls("held_out", "draw", 0).picture(0).save(file)
    return file


def pixels(file: str | Path) -> np.ndarray:
    return np.asarray(Image.open(file).convert("RGB"))


# ---------------------------------------------------------------------------------------------------------- sample


def test_sample_writes_pictures_that_say_how_they_were_made(run, tiny_checkpoint, tmp_path):
    code, lines, _ = run(
        "sample", tiny_checkpoint, "--prompt", PROMPT, "--seed", 5, "--steps", 2, "--guidance", 2,
        "--out", tmp_path / "a",
    )  # fmt: skip
    assert code == 0
    (file,) = lines
    assert Path(file).parent == tmp_path / "a"
    picture = Image.open(file)
    assert picture.size == (32, 32)
    made = json.loads(picture.text.pop("manifest"))
    assert made["settings"]["num_inference_steps"] == 2
    assert made["scheduler"]["class"] == "FlowMatchEulerDiscreteScheduler"
    assert picture.text == {
        "prompt": PROMPT, "path": "diffusion", "seed": "5", "steps": "2", "guidance": "2.0", "size": "32x32",
        "checkpoint": str(tiny_checkpoint), "hybridgen": __version__,
    }  # fmt: skip


def test_sample_never_writes_over_a_file(run, tiny_checkpoint, tmp_path):
    command = ("sample", tiny_checkpoint, "--prompt", PROMPT, "--path", "vq", "--guidance", 1, "--out", tmp_path)
    _, first, _ = run(*command)
    before = Path(first[0]).read_bytes()
    _, second, _ = run(*command)
    _, third, _ = run(*command)
    assert len({*first, *second, *third}) == 3
    assert Path(first[0]).read_bytes() == before
    assert np.array_equal(pixels(first[0]), pixels(third[0]))


def test_sample_draws_picture_i_with_seed_plus_i(run, tiny_checkpoint, tmp_path):
    fast = ("--steps", 2, "--guidance", 1)
    _, many, _ = run(
        "sample", tiny_checkpoint, "--prompt", "an orc", "--prompt", "an elf", "--num-images", 2, "--seed", 3, *fast,
        "--out", tmp_path / "many",
    )  # fmt: skip
    assert [Image.open(file).text["prompt"] for file in many] == ["an orc", "an orc", "an elf", "an elf"]
    assert [Image.open(file).text["seed"] for file in many] == ["3", "4", "5", "6"]
    _, alone, _ = run("sample", tiny_checkpoint, "--prompt", "an elf", "--seed", 6, *fast, "--out", tmp_path / "alone")
    assert np.abs(pixels(many[3]).astype(int) - pixels(alone[0])).max() <= 1  # a batch rounds differently


def test_sample_takes_sizes_and_a_negative_prompt(run, tiny_checkpoint, tmp_path):
    code, lines, _ = run(
        "sample", tiny_checkpoint, "--prompt", "Ünïcode, 猫", "--negative-prompt", "a troll", "--height", 16,
        "--width", 48, "--steps", 1, "--out", tmp_path,
    )  # fmt: skip
    assert code == 0
    picture = Image.open(lines[0])
    assert picture.size == (48, 16)
    assert (picture.text["prompt"], picture.text["negative prompt"]) == ("Ünïcode, 猫", "a troll")


def test_the_side_that_is_not_given_is_as_trained(run, tiny_checkpoint, tmp_path):
    for given, size in ((("--height", 16), (32, 16)), (("--width", 48), (48, 32))):
        command = ("sample", tiny_checkpoint, "--prompt", "an orc", "--steps", 1, *given, "--out", tmp_path)
        code, lines, error = run(*command)
        assert code == 0, error
        assert Image.open(lines[0]).size == size


def test_sample_takes_sizes_one_a_prompt(run, tiny_checkpoint, tmp_path):
    _, lines, _ = run(
        "sample", tiny_checkpoint, "--prompt", "an orc", "--prompt", "an elf", "--height", 16, "--height", 32,
        "--width", 24, "--steps", 1, "--out", tmp_path,
    )  # fmt: skip
    assert [Image.open(file).size for file in lines] == [(24, 16), (24, 32)]


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("An orc, BLUE background!", "an-orc-blue-background"),
        ("猫", "picture"),
        ("a " * 40, "a" + "-a" * 23),
        ("", "picture"),
    ],
)
def test_names_of_files(prompt, name):
    assert slug(prompt) == name


# ------------------------------------------------------------------------------------------------ ask and evaluate


@pytest.mark.parametrize("path", ["understanding", "diffusion", "vq"])
def test_ask_prints_the_answer_alone(run, tiny_checkpoint, doll, pipeline, path):
    question = "what creature is this?"
    code, lines, _ = run("ask", tiny_checkpoint, "--image", doll, "--question", question, "--path", path)
    assert code == 0
    answer = pipeline.answer(Image.open(doll), question, path=path)[0]
    assert "\n".join(lines) == answer


def test_evaluate_writes_scores(run, tiny_checkpoint, tmp_path):
    code, lines, _ = run(
        "evaluate", tiny_checkpoint, "--suite", "dolls", "--draw", "diffusion", "--answer", "understanding",
        "--samples", 2, "--steps", 2, "--out", tmp_path / "scores",
    )  # fmt: skip
    assert code == 0
    file = tmp_path / "scores" / "scores.json"
    assert lines[-1] == str(file)
    scores = json.loads(file.read_text())
    assert list(scores["generation"]) == ["diffusion"]
    assert list(scores["understanding"]) == ["understanding"]
    assert scores["generation"]["diffusion"]["steps"] == 2
    assert scores["checkpoint"] == str(tiny_checkpoint)
    assert len(lines) == 1 + sum(
        len(result["scores"]) for task in ("generation", "understanding") for result in scores[task].values()
    )


def test_evaluate_paths_serve_both_tasks(run, tiny_checkpoint, tmp_path):
    _, _, _ = run(
        "evaluate", tiny_checkpoint, "--suite", "dolls", "--paths", "understanding", "vq", "--samples", 1,
        "--out", tmp_path,
    )  # fmt: skip
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert (set(scores["generation"]), set(scores["understanding"])) == ({"vq"}, {"understanding", "vq"})


# -------------------------------------------------------------------------------------------------- what goes wrong


def broken(checkpoint: Path, tmp_path: Path, *, lacks: str = "", holds: tuple[str, str] | None = None) -> Path:
    """A copy of a checkpoint without a file, or with another content of one."""
    copy = tmp_path / "broken"
    shutil.copytree(checkpoint, copy)
    if lacks:
        (copy / lacks).unlink()
    if holds:
        (copy / holds[0]).write_text(holds[1])
    return copy


SAMPLE = ("--prompt", "an orc", "--steps", 1, "--out", "{tmp}/out")
BAD = {
    "no checkpoint": (("sample", "{tmp}/none", *SAMPLE), "checkpoint {tmp}/none does not exist"),
    "a folder of another kind": (("sample", "{tmp}", *SAMPLE), "model_index.json"),
    "a path to ask for that is none": (
        ("ask", "{ck}", "--image", "x", "--question", "?", "--path", "sound"),
        "'sound'",
    ),
    "a path that cannot draw": (("sample", "{ck}", *SAMPLE, "--path", "understanding"), "only reads"),
    "a size that no patch divides": (("sample", "{ck}", *SAMPLE, "--height", 30, "--width", 30), "30"),
    "a lone height that no patch divides": (("sample", "{ck}", *SAMPLE, "--height", 30), "size 30x32 is not divisible"),
    "steps of codes": (
        ("sample", "{ck}", *SAMPLE, "--path", "vq"),
        "--steps is for the diffusion path, but the pictures are drawn by vq; leave it out",
    ),
    "steps of codes, before the checkpoint is looked at": (
        ("sample", "{tmp}/none", *SAMPLE, "--path", "vq"),
        "--steps is for the diffusion path",
    ),
    "a window of noise, by default": (("sample", "{ck}", *SAMPLE, "--window", 4), "--window is for the vq path"),
    "codes' temperature of noise": (
        ("sample", "{ck}", *SAMPLE, "--path", "diffusion", "--temperature", 0.5),
        "--temperature is for the vq path, but the pictures are drawn by diffusion",
    ),
    "a path to read no image by": (("sample", "{ck}", *SAMPLE, "--read", "vq"), "--read says how to read --image"),
    "steps where codes alone are scored": (
        ("evaluate", "{ck}", "--suite", "dolls", "--draw", "vq", "--steps", 2, "--out", "{tmp}/scores"),
        "--steps is for the diffusion path, but the pictures are drawn by vq",
    ),
    "a window where nothing is drawn": (
        ("evaluate", "{ck}", "--suite", "dolls", "--draw", "--window", 2, "--out", "{tmp}/scores"),
        "--window is for the vq path, but no picture is drawn; leave it out",
    ),
    "a prompt longer than the context": (
        ("sample", "{ck}", "--prompt", "an orc " * 600, "--out", "{tmp}/out"),
        "context",
    ),
    "no steps": (("sample", "{ck}", "--prompt", "a", "--steps", 0, "--out", "{tmp}"), "'0' is not a whole number"),
    "a size beyond the context": (("sample", "{ck}", *SAMPLE, "--height", 800, "--width", 800), "context is 512"),
    "more steps than there are": (("sample", "{ck}", *SAMPLE, "--steps", 1001), "the process has 1000 timesteps"),
    "a rescale beyond 1": (("sample", "{ck}", *SAMPLE, "--guidance-rescale", 2), "guidance_rescale is 2.0"),
    "an interval that ends before it begins": (
        ("sample", "{ck}", *SAMPLE, "--guidance-interval", 0.8, 0.2),
        "guidance stop is 0.2",
    ),
    "guidance to an image that is not": (("sample", "{ck}", *SAMPLE, "--image-guidance", 2), "give image"),
    "no picture to replay": (("replay", "{tmp}/none.png"), "there is no image {tmp}/none.png"),
    "a picture without a manifest": (("replay", "{tmp}/doll.png", "{ck}"), "doll.png carries no manifest"),
    "a seed that is no number": (("sample", "{ck}", *SAMPLE, "--seed", "x"), "'x' is not a whole number"),
    "guidance below 0": (("sample", "{ck}", *SAMPLE, "--guidance=-1"), "'-1' is not a number of at least 0"),
    "a file for a folder": (("sample", "{ck}", "--prompt", "a", "--out", "{tmp}/doll.png"), "a file is in its place"),
    "no image": (("ask", "{ck}", "--image", "{tmp}/none.png", "--question", "?"), "there is no image {tmp}/none.png"),
    "an image that is text": (
        ("ask", "{ck}", "--image", "{tmp}/text.png", "--question", "?"),
        "text.png cannot be read",
    ),
    "half an image": (("ask", "{ck}", "--image", "{tmp}/half.png", "--question", "?"), "half.png cannot be read"),
    "a folder for an image": (("ask", "{ck}", "--image", "{tmp}", "--question", "?"), "cannot be read"),
    "a question longer than the context": (
        ("ask", "{ck}", "--image", "{tmp}/doll.png", "--question", "orc " * 600),
        "context",
    ),
    "an unknown suite": (("evaluate", "{ck}", "--suite", "cats", "--out", "{tmp}"), "there is no suite 'cats'"),
    "no config": (("train", "{tmp}/none.yaml"), "none.yaml does not exist"),
    "a mistyped key": (("train", "{tmp}/typo.yaml"), "unknown key"),
    "an override without a value": (("train", "{tmp}/typo.yaml", "steps"), "'steps' is not of the form key=value"),
    "an unknown dataset": (("demo", "--dataset", "cats", "--out", "{tmp}/demo"), "there is no suite 'cats'"),
    "an unknown command": (("draw",), "invalid choice: 'draw'"),
    "no command": ((), "COMMAND"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_a_user_can_mend_is_one_sentence(run, tiny_checkpoint, tmp_path, doll, name):
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "half.png").write_bytes(doll.read_bytes()[: doll.stat().st_size // 2])
    (tmp_path / "typo.yaml").write_text("output_dir: runs/x\nstpes: 3\n")
    arguments, expected = BAD[name]
    places = {"tmp": str(tmp_path), "ck": str(tiny_checkpoint)}
    code, lines, error = run(*(str(argument).format(**places) for argument in arguments))
    assert code == 2
    assert lines == []
    said = [line for line in error.splitlines() if line.startswith("hybridgen: ")]
    assert len(said) == 1, error
    assert error.splitlines()[-1] == said[0]
    assert expected.format(**places) in said[0]
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        ({"lacks": "model/model.safetensors"}, "missing the weights model/"),
        ({"lacks": "vq_model/model.safetensors"}, "missing the weights vq_model/"),
        ({"holds": ("model/config.json", "{")}, "not valid JSON"),
        ({"holds": ("model_index.json", '{"_class_name": "StableDiffusionPipeline"}')}, "is a StableDiffusionPipeline"),
        ({"holds": ("model/model.safetensors", "cut off")}, "cannot be loaded"),
    ],
)
def test_a_broken_checkpoint_is_named(run, tiny_checkpoint, tmp_path, damage, expected):
    checkpoint = broken(tiny_checkpoint, tmp_path, **damage)
    code, lines, error = run("sample", checkpoint, "--prompt", "an orc", "--out", tmp_path / "out")
    assert (code, lines) == (2, [])
    assert error.splitlines()[-1].startswith("hybridgen: ")
    assert expected in error.splitlines()[-1]
    assert "Traceback" not in error


def test_a_folder_that_cannot_be_written_to(run, tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)  # root, as whom tests may run, can write anywhere
    code, _, error = run("sample", tiny_checkpoint, "--prompt", "a", "--out", tmp_path)
    assert code == 2
    assert f"hybridgen: {tmp_path} cannot be written to; choose another --out" in error


# ------------------------------------------------------------------------------------------- how it ends otherwise


def raising(error: BaseException):
    def command(options):
        raise error
        yield

    return command


def test_an_error_that_nobody_foresaw_keeps_its_traceback(monkeypatch, doll, tiny_checkpoint):
    """Also a ValueError, when another library raises it: it is a fault of ours, not of the user."""

    def command(options):
        yield str(int("not a number"))

    ask = ["ask", str(tiny_checkpoint), "--image", str(doll), "--question", "?"]
    for unforeseen in (raising(KeyError("x")), raising(ValueError("raised in tests/, not in hybridgen/")), command):
        monkeypatch.setitem(cli._COMMANDS, "ask", unforeseen)
        with pytest.raises((KeyError, ValueError)):
            cli.main(ask)


def test_ctrl_c_is_quiet(run, monkeypatch):
    monkeypatch.setitem(cli._COMMANDS, "ask", raising(KeyboardInterrupt()))
    assert run("ask", "x", "--image", "x", "--question", "?") == (130, [], "")


def test_a_full_disk_is_said(run, monkeypatch):
    monkeypatch.setitem(cli._COMMANDS, "ask", raising(OSError(28, "No space left on device", "runs/x.png")))
    code, _, error = run("ask", "x", "--image", "x", "--question", "?")
    assert (code, error) == (2, "hybridgen: runs/x.png: No space left on device\n")


def test_what_libraries_print_goes_to_stderr(run, monkeypatch):
    def command(options):
        print("a library says hello")
        yield "the answer"

    monkeypatch.setitem(cli._COMMANDS, "ask", command)
    assert run("ask", "x", "--image", "x", "--question", "?") == (0, ["the answer"], "a library says hello\n")


def test_a_reader_that_goes_away_is_no_error(tiny_checkpoint, tmp_path):
    """As in `hybridgen sample ... | head -1`."""
    code = "import sys; from hybridgen.cli.main import main; sys.exit(main(sys.argv[1:]))"
    command = [
        sys.executable,
        "-c",
        code,
        "sample",
        str(tiny_checkpoint),
        *SAMPLE[:-1],
        str(tmp_path),
        "--num-images",
        "3",
    ]
    process = subprocess.Popen(
        [str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.close()
    error = process.stderr.read()
    assert process.wait() == 0
    assert "Traceback" not in error
    assert "BrokenPipe" not in error


def test_as_a_process(tiny_checkpoint, doll):
    """stdout holds the answer and nothing else."""
    command = [sys.executable, "-m", "hybridgen", "ask", str(tiny_checkpoint), "--image", str(doll), "--question", "a?"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == load_pipeline(tiny_checkpoint).answer(Image.open(doll), "a?")[0] + "\n"


def test_an_interrupted_process_is_quiet():
    code = (
        "import os, signal, sys; from hybridgen.cli import main as cli\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # jobs in the background start with it ignored
        "cli._COMMANDS['ask'] = lambda options: iter(lambda: os.kill(os.getpid(), signal.SIGINT), 0)\n"
        "sys.exit(cli.main(['ask', 'x', '--image', 'x', '--question', '?']))"
    )
    stopped = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (stopped.returncode, stopped.stdout, stopped.stderr) == (130, "", "")


# -------------------------------------------------------------------------------------------------------------- help


@pytest.mark.parametrize("command", ["", "demo", "train", "sample", "replay", "chat", "ask", "evaluate"])
def test_help_is_worth_reading(run, command):
    code, lines, _ = run(*command.split(), "--help")
    text = "\n".join(lines)
    assert code == 0
    assert "examples:" in text
    examples = [line.strip() for line in lines if line.startswith("  hybridgen ")]
    assert examples
    for line in examples:  # every example can be parsed
        parser().parse_args(shlex.split(line)[1:])


@pytest.mark.parametrize(
    ("typed", "overrides"),
    [
        ("data inspect c.yaml --limit 5 steps=3 --out x seed=1", ["steps=3", "seed=1"]),
        ("data inspect c.yaml steps=3 --limit 5 seed=1", ["steps=3", "seed=1"]),
        ("data --limit 5 inspect c.yaml steps=3", ["steps=3"]),
        ("demo steps=3 --seed 1 codec:steps=2", ["steps=3", "codec:steps=2"]),
        ("demo --seed 1 steps=3", ["steps=3"]),
        ("train c.yaml steps=3 seed=1", ["steps=3", "seed=1"]),
        ("train c.yaml", []),
    ],
)
def test_overrides_stand_before_and_after_options(typed, overrides):
    assert parser().parse_args(typed.split()).overrides == overrides


@pytest.mark.parametrize("typed", ["data inspect c.yaml --limits 5 a=1", "train c.yaml --steps 3", "replay a.png b c"])
def test_what_is_no_option_is_refused(run, typed):
    code, _, error = run(*typed.split())
    assert code == 2
    assert error.startswith("hybridgen: unrecognized arguments: ")


def test_version(run):
    assert run("--version")[:2] == (0, [f"hybridgen {__version__}"])
