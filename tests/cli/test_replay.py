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

from hybridgen.core.pictures import read_picture


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
    "guided in the noise alone": ("--steps", 4, "--guidance-interval", 0, 0.5),
    "codes": ("--path", "vq", "--temperature", 0.7, "--top-k", 20, "--top-p", 0.9, "--guidance", 2, "--num-images", 3),
    "codes, projected": ("--path", "vq", "--guider", "apg", "--guidance", 2),
    "edited, half noised": ("--steps", 4, "--edit", "{edit}", "--mask", "{mask}", "--strength", 0.5),
    "edited codes": ("--path", "vq", "--edit", "{edit}", "--mask", "{mask}", "--image", "{image}"),
    "from an image": ("--steps", 2, "--image", "{image}", "--image-guidance", 2, "--read", "vq"),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_a_picture_is_drawn_again_to_the_bit(run, tiny_checkpoint, tmp_path, way):
    Image.new("RGB", (40, 30), "teal").save(tmp_path / "teal.png")
    edit, mask = edited(tmp_path)
    arguments = [str(word).format(image=tmp_path / "teal.png", edit=edit, mask=mask) for word in WAYS[way]]
    prompts = ("--prompt", "an orc wearing a purple robe", "--prompt", "an elf")
    _, files, _ = run("sample", tiny_checkpoint, *prompts, *arguments, "--seed", 5, "--out", tmp_path / "a")
    code, lines, error = run("replay", files[1], "--out", tmp_path / "again")
    assert (code, error.count("Traceback")) == (0, 0)
    assert lines[1].startswith("identical: all ")
    again, before = Image.open(lines[0]), Image.open(files[1])
    assert again.tobytes() == before.tobytes()
    assert json.loads(again.text["manifest"]) == json.loads(before.text["manifest"])


def test_the_picture_before_the_prompt_is_found_and_seen_as_it_was(run, tiny_checkpoint, tmp_path, monkeypatch):
    """Transparent and turned, named from another folder; then moved beside the picture, as other bytes, and changed."""
    (tmp_path / "a").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    photo = Image.new("RGBA", (40, 30), (200, 30, 60, 255))
    photo.paste((0, 0, 0, 0), (0, 0, 40, 10))
    photo.save(tmp_path / "a" / "photo.png", exif=exif)
    monkeypatch.chdir(tmp_path / "a")
    arguments = ("--prompt", "an elf", "--image", "photo.png", "--steps", 2, "--image-guidance", 3)
    _, (file,), _ = run("sample", tiny_checkpoint, *arguments, "--out", "drawn")
    origin = json.loads(Image.open(file).text["manifest"])["image"]
    assert origin["file"] == str(tmp_path / "a" / "photo.png")
    monkeypatch.chdir(tmp_path)
    drawn = Path("a") / file
    assert run("replay", drawn, tiny_checkpoint)[0] == 0
    named = changed(drawn, drawn.with_name("old.png"), image=origin | {"file": "photo.png", "pixels": None})
    assert (
        run("replay", named, tiny_checkpoint)[0] == 0
    )  # old manifests: as seen from where `sample` ran, without pixels
    read_picture(tmp_path / "a" / "photo.png").save(drawn.with_name("photo.png"), compress_level=1)
    (tmp_path / "a" / "photo.png").unlink()
    assert run("replay", drawn, tiny_checkpoint)[0] == 0
    Image.new("RGB", (30, 40)).save(drawn.with_name("photo.png"))
    code, _, error = run("replay", drawn, tiny_checkpoint)
    assert code == 2
    assert f"drawn from the image {tmp_path}/a/photo.png, which is no longer there or has changed; put it back" in error


def edited(folder: Path) -> tuple[Path, Path]:
    """A picture, and a mask of its right half."""
    edit, mask = folder / "edit.png", folder / "mask.png"
    Image.linear_gradient("L").resize((32, 32)).convert("RGB").save(edit)
    half = Image.new("1", (32, 32))
    half.paste(1, (16, 0, 32, 32))
    half.save(mask)
    return edit, mask


def test_the_picture_and_the_mask_of_an_edit_are_those_that_were(run, tiny_checkpoint, tmp_path):
    """Moved beside the picture they are found; others are refused in a sentence; earlier versions refuse the format."""
    (tmp_path / "a").mkdir()
    edit, mask = edited(tmp_path / "a")
    arguments = ("--prompt", "an elf", "--edit", edit, "--mask", mask, "--steps", 2)
    _, (file,), _ = run("sample", tiny_checkpoint, *arguments, "--out", tmp_path / "drawn")
    before, after = Image.open(edit), Image.open(file).convert("RGB")
    assert after.crop((0, 0, 16, 32)).tobytes() == before.crop((0, 0, 16, 32)).tobytes()
    assert after.crop((16, 0, 32, 32)).tobytes() != before.crop((16, 0, 32, 32)).tobytes()
    manifest = json.loads(Image.open(file).text["manifest"])
    assert (manifest["format"], manifest["edit"]["strength"], manifest["image"]) == (3, 1.0, None)
    shutil.move(edit, tmp_path / "drawn" / "edit.png")
    Image.open(mask).convert("RGB").save(tmp_path / "drawn" / "mask.png")  # other bytes, the same pixels
    mask.unlink()
    assert run("replay", file)[0] == 0
    for name in ("mask", "edit"):
        other = tmp_path / "drawn" / f"{name}.png"
        Image.open(other).transpose(Image.Transpose.ROTATE_90).save(other)
        code, _, error = run("replay", file)
        assert code == 2
        assert "which is no longer there or has changed; put it back" in error
        assert f"drawn from the {'image' if name == 'edit' else name} {tmp_path}/a/{name}.png" in error


def test_an_older_manifest_is_guided_all_along(run, tiny_checkpoint, tmp_path):
    """It holds no interval, and the checkpoint that drew it has one of its own by now."""
    _, (file,), _ = run("sample", tiny_checkpoint, "--prompt", "an orc", "--steps", 4, "--out", tmp_path)
    settings = json.loads(Image.open(file).text["manifest"])["settings"]
    older = {name: value for name, value in settings.items() if name != "guidance_interval"}
    copy = tmp_path / "copy"
    shutil.copytree(tiny_checkpoint, copy)
    index = json.loads((copy / "model_index.json").read_text())
    own = {"diffusion": {"guidance_interval": [0.0, 0.5]}}
    (copy / "model_index.json").write_text(json.dumps(index | {"sampling_defaults": own}))
    for told in (settings, older):
        assert run("replay", changed(file, tmp_path / "b.png", settings=told), copy)[0] == 0
    _, (other,), _ = run("sample", copy, "--prompt", "an orc", "--steps", 4, "--out", tmp_path / "own")
    assert Image.open(other).tobytes() != Image.open(file).tobytes()


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
        ("[]", "carries a manifest that is no JSON object"),
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
        ({"settings": {}}, "whose num_inference_steps None is none"),
        ({"scheduler": {"class": "DDIMScheduler", "config": {"num_train_timesteps": -5}}}, "no DDIMScheduler takes"),
        ({"settings": {"steps": 3}}, "whose 'steps' is none"),
        ({"guider": {"strength": 3}}, "whose 'strength' is none"),
        ({"scheduler": {"class": "DDIMScheduler"}}, "whose scheduler {"),
        (
            {"scheduler": {"class": "AutoencoderKL", "config": {}}},
            "drawn by AutoencoderKL, which this diffusers does not",
        ),
        ({"format": 99}, "a manifest of a later hybridgen"),
        ({"edit": {"file": "a.png"}}, "whose edit"),
        ({"edit": {"file": "a", "sha256": "0", "mask": None, "strength": 2}}, "whose edit"),
        ({"seed": "x"}, "whose seed 'x' is none"),
    ],
)
def test_a_manifest_that_cannot_be_drawn_is_refused(run, tiny_checkpoint, tmp_path, facts, message):
    _, (drawn,), _ = run("sample", tiny_checkpoint, "--prompt", "an orc", "--steps", 1, "--out", tmp_path / "a")
    code, lines, error = run("replay", changed(drawn, tmp_path / "b.png", **facts), tiny_checkpoint)
    assert (code, lines) == (2, [])
    assert message in error


def test_all_bits_of_a_seed_count_and_older_pictures_are_drawn_again(run, tiny_checkpoint, tmp_path):
    """In manifests of format 1 the low 32 bits counted."""
    draw = ("sample", tiny_checkpoint, "--prompt", "an orc", "--steps", 1, "--out", tmp_path / "a")
    _, files, _ = run(*draw, "--seed", 2**64 - 1, "--num-images", 2)
    assert [Image.open(file).text["seed"] for file in files] == [str(2**64 - 1), "0"]
    for file in files:
        assert run("replay", file)[0] == 0
    _, (small,), _ = run(*draw, "--seed", 5)
    old = changed(small, tmp_path / "old.png", seed=5 + 2**40, format=1)
    assert run("replay", old)[0] == 0
    assert run("replay", changed(small, tmp_path / "new.png", seed=5 + 2**40))[0] == 1


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
