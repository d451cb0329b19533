"""Manifests: what a PNG says of itself, the picture drawn again from it, and what is refused before any work."""

import io
import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import load_file, save_file

from hybridgen.checkpoints import hashes
from hybridgen.checkpoints.loading import check_checkpoint
from hybridgen.pipeline_hybridgen import load_pipeline


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def changed(file: Path, to: Path, pixels: Image.Image | None = None, without: tuple = (), **facts) -> Path:
    """A copy of a picture whose manifest, or whose pixels, say something else."""
    picture = Image.open(file)
    text = PngInfo()
    manifest = {name: fact for name, fact in json.loads(picture.text["manifest"]).items() if name not in without}
    text.add_itxt("manifest", json.dumps(manifest | facts))
    (pixels or picture).save(to, pnginfo=text)
    return to


WAYS = {
    "diffusion": ("--steps", 3, "--num-images", 3),
    "guided otherwise": (
        "--steps", 4, "--guider", "apg", "--guidance-interval", 0.25, 1, "--guidance-rescale", 0.5, "--shift", 2,
        "--negative-prompt", "a troll", "--height", 16, "--width", 40,
    ),
    "codes": ("--path", "vq", "--temperature", 0.7, "--top-k", 20, "--top-p", 0.9, "--guidance", 2, "--num-images", 3),
    "from an image": ("--steps", 2, "--image", "{image}", "--image-guidance", 2, "--read", "vq"),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_a_picture_is_drawn_again_to_the_bit(run, tiny_checkpoint, tmp_path, way):
    Image.new("RGB", (40, 30), "teal").save(tmp_path / "teal.png")
    arguments = [str(word).format(image=tmp_path / "teal.png") for word in WAYS[way]]
    prompts = ("--prompt", "an orc wearing a purple robe", "--prompt", "an elf")
    _, files, _ = run("sample", tiny_checkpoint, *prompts, *arguments, "--seed", 5, "--out", tmp_path / "a")
    code, lines, error = run("replay", files[1], "--out", tmp_path / "again")
    assert (code, error.count("Traceback")) == (0, 0)
    assert lines[1].startswith("identical: all ")
    again, before = Image.open(lines[0]), Image.open(files[1])
    assert again.tobytes() == before.tobytes()
    assert json.loads(again.text["manifest"]) == json.loads(before.text["manifest"])


def test_the_scheduler_is_that_of_the_manifest(run, tiny_checkpoint, tmp_path):
    _, (file,), _ = run("sample", tiny_checkpoint, "--prompt", "an orc", "--steps", 3, "--out", tmp_path)
    told = json.loads(Image.open(file).text["manifest"])["scheduler"]
    told["config"]["shift"] = 4.0
    code, lines, _ = run("replay", changed(file, tmp_path / "shifted.png", scheduler=told), tiny_checkpoint)
    assert code == 1
    assert lines[0].startswith("differs: ")


def test_what_differs_is_said(run, tiny_checkpoint, tmp_path):
    _, (file,), _ = run("sample", tiny_checkpoint, "--prompt", "an orc", "--steps", 1, "--out", tmp_path)
    other = Image.open(file).convert("RGB")
    other.putpixel((0, 0), tuple(255 - level for level in other.getpixel((0, 0))))
    versions = json.loads(Image.open(file).text["manifest"])["versions"] | {"torch": "1.0"}
    code, lines, _ = run("replay", changed(file, tmp_path / "b.png", other, versions=versions), tiny_checkpoint)
    assert code == 1
    assert lines[0].startswith("differs: 1 of 1024 pixels, by at most ")
    assert f"torch was 1.0 and is {torch.__version__.split('+')[0]}" in lines[0]


def test_other_weights_are_refused_before_anything_is_drawn(run, tiny_checkpoint, tmp_path):
    _, (file,), _ = run("sample", tiny_checkpoint, "--prompt", "an orc", "--steps", 1, "--out", tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(tiny_checkpoint, copy)
    assert run("replay", file, copy)[0] == 0  # another folder, the same weights
    weights = load_file(copy / "model" / "model.safetensors")
    next(iter(weights.values())).view(-1)[0] += 1
    save_file(weights, copy / "model" / "model.safetensors", {"format": "pt"})
    code, lines, error = run("replay", file, copy)
    assert (code, lines) == (2, [])
    assert f"drawn by other weights than those of {copy}: their hash was " in error
    shutil.rmtree(copy)
    shutil.copytree(tiny_checkpoint, copy)
    config = json.loads((copy / "processor" / "processor_config.json").read_text())
    (copy / "processor" / "processor_config.json").write_text(json.dumps(config | {"unconditional": "janus-hf"}))
    code, _, error = run("replay", file, copy)
    assert code == 2
    assert "drawn by other settings (config.json, processor or codec) than those of" in error
    assert run("replay", changed(file, tmp_path / "b.png", checkpoint="gone"))[2].count(
        "checkpoint gone does not exist"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "carries a manifest that is not valid JSON"),
        ("{}", "carries a manifest without checkpoint, config, height"),
        ("[]", "carries a manifest without everything"),
    ],
)
def test_a_manifest_that_was_changed_is_refused(run, tmp_path, text, message):
    info = PngInfo()
    info.add_itxt("manifest", text)
    Image.new("RGB", (4, 4)).save(tmp_path / "x.png", pnginfo=info)
    code, lines, error = run("replay", tmp_path / "x.png")
    assert (code, lines) == (2, [])
    assert message in error


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"path": "sound"}, "whose path 'sound' is none that can be drawn by"),
        ({"settings": {"steps": 3}}, "whose 'steps' is none"),
        ({"guider": {"strength": 3}}, "whose 'strength' is none"),
        ({"scheduler": {"class": "DDIMScheduler"}}, "whose 'config' is none"),
        (
            {"scheduler": {"class": "AutoencoderKL", "config": {}}},
            "drawn by AutoencoderKL, which this diffusers does not",
        ),
        ({"format": 99}, "a manifest of a later hybridgen"),
        ({"seed": "x"}, "seed is 'x'; it must be a whole number"),
    ],
)
def test_a_manifest_that_cannot_be_drawn_is_refused(run, tiny_checkpoint, tmp_path, facts, message):
    _, (drawn,), _ = run("sample", tiny_checkpoint, "--prompt", "an orc", "--steps", 1, "--out", tmp_path / "a")
    code, lines, error = run("replay", changed(drawn, tmp_path / "b.png", **facts), tiny_checkpoint)
    assert (code, lines) == (2, [])
    assert message in error


def test_saving_again_keeps_both_hashes(tiny_checkpoint, tmp_path):
    load_pipeline(tiny_checkpoint).save_pretrained(tmp_path / "again")
    check_checkpoint(tmp_path / "again")
    for hashed in (hashes.weights_hash, hashes.config_hash):
        assert hashed(tmp_path / "again") == hashed(tiny_checkpoint)


def test_what_a_user_puts_into_a_checkpoint_changes_no_hash(tiny_checkpoint, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(tiny_checkpoint, copy)
    hashed = lambda: (hashes.weights_hash(copy), hashes.config_hash(copy))  # noqa: E731
    before = hashed()
    (copy / "model" / "note.txt").write_text("the good one")
    (copy / "scores.json").write_text("{}")
    (copy / "older").mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(copy / "model" / name, copy / "older" / name)
    assert hashed() == before
    (copy / "older").rename(copy / "unused")
    tokenizer = copy / "processor" / "tokenizer.json"
    tokenizer.write_text(json.dumps(json.loads(tokenizer.read_text()) | {"version": "2.0"}))
    assert hashed()[0] == before[0]
    assert hashed()[1] != before[1]


def test_every_setting_that_is_saved_is_hashed(tiny_checkpoint):
    """All of a saved checkpoint but the card, the index, the scheduler and settings of `generate`."""
    saved = {str(file.relative_to(tiny_checkpoint)) for file in tiny_checkpoint.rglob("*") if file.is_file()}
    rest = {"README.md", "model_index.json", "scheduler/scheduler_config.json", "model/generation_config.json"}
    known = {name for name in saved if not name.endswith(".safetensors")} - rest
    assert {name for name in known if hashes._decides(tiny_checkpoint / name)} == known


def test_a_picture_of_a_conversation_is_drawn_again_or_refused(run, tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("/draw an orc\n/draw an elf\n"))
    _, (first, second), _ = run("chat", tiny_checkpoint, "--seed", 3, "--steps", 2, "--out", tmp_path)
    assert run("replay", first)[:2] == (0, ["identical: all 32x32 pixels are as they were"])
    for count in ("prior_messages", "said_before"):  # as older PNGs call it
        old = changed(second, tmp_path / "old.png", without=("prior_messages",), **{count: 2})
        code, lines, error = run("replay", old)
        assert (code, lines) == (2, [])
        assert "in a conversation, after 2 messages and parts of messages that its manifest does not hold" in error
    assert json.loads(Image.open(second).text["manifest"])["prior_messages"] == 2
    alone = changed(first, tmp_path / "alone.png", without=("prior_messages",), said_before=0)
    assert run("replay", alone)[:2] == (0, ["identical: all 32x32 pixels are as they were"])


def test_a_file_is_hashed_once(tmp_path, monkeypatch):
    file, kept = tmp_path / "a.safetensors", tmp_path / "cache" / "hybridgen" / "hashes.json"
    file.write_bytes(b"abc")
    first = hashes.file_hash(file)
    assert first == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1
    known = json.loads(kept.read_text())
    known[str(file)]["sha256"] = "kept"
    kept.write_text(json.dumps(known))
    assert hashes.file_hash(file) == "kept"
    file.write_bytes(b"abd")
    assert hashes.file_hash(file) != "kept"
    kept.write_text("[no cache")
    assert hashes.file_hash(file) != first
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))  # a file, where no folder can be
    file.write_bytes(b"abc")
    assert hashes.file_hash(file) == first
