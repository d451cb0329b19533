"""`hybridgen sample`: files with what made them, never written over, and one seed a picture."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hybridgen.version import __version__

PROMPT = "an orc wearing a purple robe, holding a bottle, blue background"


def pixels(file: str | Path) -> np.ndarray:
    return np.asarray(Image.open(file).convert("RGB"))


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
    manifest = json.loads(picture.text.pop("manifest"))
    assert manifest["settings"]["num_inference_steps"] == 2
    assert manifest["scheduler"]["class"] == "FlowMatchEulerDiscreteScheduler"
    assert picture.text == {
        "prompt": PROMPT, "path": "diffusion", "seed": "5", "steps": "2", "guidance": "2.0",
        "guidance_rescale": "0.0", "guidance_interval": "[0.0, 1.0]", "size": "32x32",
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


def test_pictures_and_negative_prompts_stand_beside_their_prompts(run, tiny_checkpoint, tmp_path, doll):
    Image.new("RGB", (32, 32), "red").save(tmp_path / "red.png")
    prompts = ("--prompt", "an orc", "--prompt", "an elf")
    code, lines, error = run(
        "sample", tiny_checkpoint, *prompts, "--image", doll, "--image", tmp_path / "red.png", "--negative-prompt", "a",
        "--negative-prompt", "b", "--guidance", 2, "--steps", 1, "--seed", 4, "--out", tmp_path / "both",
    )  # fmt: skip
    assert code == 0, error
    manifests = [json.loads(Image.open(file).text["manifest"]) for file in lines]
    assert [made["negative_prompt"] for made in manifests] == ["a", "b"]
    assert [Path(made["image"]["file"]).name for made in manifests] == ["doll.png", "red.png"]
    _, alone, _ = run(
        "sample", tiny_checkpoint, *prompts[2:], "--image", tmp_path / "red.png", "--negative-prompt", "b",
        "--guidance", 2, "--steps", 1, "--seed", 5, "--out", tmp_path / "alone",
    )  # fmt: skip
    assert np.abs(pixels(lines[1]).astype(int) - pixels(alone[0])).max() <= 1
    for option in ("--image", "--negative-prompt"):
        words = [option, doll] * 3
        code, _, error = run("sample", tiny_checkpoint, *prompts, *words, "--out", tmp_path)
        assert code == 2
        assert f"{option} is given 3 times for 2 prompts; give it once, or for each" in error


def broken(checkpoint: Path, tmp_path: Path, *, lacks: str = "", holds: tuple[str, str] | None = None) -> Path:
    """A copy of a checkpoint without a file, or with another content of one."""
    copy = tmp_path / "broken"
    shutil.copytree(checkpoint, copy)
    if lacks:
        (copy / lacks).unlink()
    if holds:
        (copy / holds[0]).write_text(holds[1])
    return copy


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        ({"lacks": "model/model.safetensors"}, "missing the weights model/"),
        ({"lacks": "vq_model/model.safetensors"}, "missing the weights vq_model/"),
        ({"holds": ("model/config.json", "{")}, "not valid JSON"),
        ({"holds": ("model_index.json", '{"_class_name": "StableDiffusionPipeline"}')}, "is a StableDiffusionPipeline"),
        ({"holds": ("model/model.safetensors", "cut off")}, "is no safetensors file, or was cut off"),
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
