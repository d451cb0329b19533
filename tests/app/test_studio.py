"""What the web page does, without a page: the pipeline's own pictures, answers and conversations, and sentences."""

import asyncio
import copy
import io
import re

import numpy as np
import pytest
from diffusers import FlowMatchHeunDiscreteScheduler
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from hybridgen.app.page import painted_mask
from hybridgen.app.studio import CUT, File, Shown, Studio
from hybridgen.chat.turn import Conversation
from hybridgen.checkpoints.manifest import edit_origin
from hybridgen.checkpoints.png import png_texts
from hybridgen.checkpoints.replaying import read_manifest
from hybridgen.core.messages import strip_reasoning
from hybridgen.serving.engine import Engine
from hybridgen.serving.errors import as_api_error
from hybridgen.serving.limits import Limits

PROMPT = "an elf wearing a green robe, sand background"
STEPS = {"diffusion": {"num_inference_steps": 4, "guidance_scale": 2.0}, "vq": {"guidance_scale": 1.5}}


@pytest.fixture
def studio(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    engine = Engine()
    yield Studio(pipeline, "tiny", engine, Limits())
    engine.close()


def all_of(generator) -> list:
    async def collected() -> list:
        return [item async for item in generator]

    return asyncio.run(collected())


def drawn(studio: Studio, seed="3", size="", settings=STEPS, negative="") -> dict[str, list[Shown]]:
    shown: dict[str, list[Shown]] = {}
    for path, picture in all_of(studio.draw(PROMPT, negative, seed, size, settings)):
        shown.setdefault(path, []).append(picture)
    return shown


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def png(size=(32, 32), seed=0) -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, "png")
    return file.getvalue()


def flat(size: tuple[int, int]) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size).save(file, "png")
    return file.getvalue()


# ---------------------------------------------------------------------------------------------------------- pictures


def test_both_paths_draw_the_pipelines_pictures_from_one_seed(studio):
    shown = drawn(studio, negative="an orc")
    for path, given in STEPS.items():
        first, *previews, last = shown[path]
        assert first == Shown("waiting")
        assert len(previews) >= 3
        assert {pixels(one.png).shape for one in previews} == {(32, 32, 3)}
        expected = studio.pipe(PROMPT, path=path, seed=3, negative_prompt="an orc", **given).images[0]
        assert np.array_equal(pixels(last.png), np.asarray(expected))
        manifest = read_manifest(png_texts(io.BytesIO(last.png)), "it")
        assert manifest == last.manifest
        assert (manifest["seed"], manifest["negative_prompt"], manifest["path"]) == (3, "an orc", path)
        alone = {"window": 1} if path == "vq" else {}  # the server guesses no codes ahead
        assert manifest["settings"] == studio.pipe.sampling_settings(path, **given) | alone
        assert last.name == f"an-elf-wearing-a-green-robe-sand-background-{path}-seed3.png"
        assert last.words.startswith("seed 3 · ")


def test_a_region_is_redrawn_by_both_paths_and_said_in_the_file(studio, tmp_path):
    """Previews are whole pictures; the file names picture and mask by what is in them, for `hybridgen replay`."""
    picture, mask = Image.open(io.BytesIO(png())), Image.new("1", (32, 32))
    mask.paste(1, (8, 8, 24, 32))
    mask.save(tmp_path / "mask.png")
    files = File("photo.png", png()), File("mask.png", (tmp_path / "mask.png").read_bytes())
    settings = {"diffusion": STEPS["diffusion"] | {"strength": 0.75}, "vq": STEPS["vq"]}
    shown: dict[str, list[Shown]] = {}
    for path, one in all_of(studio.draw(PROMPT, "", "3", "", settings, files)):
        shown.setdefault(path, []).append(one)
    for path, given in settings.items():
        *previews, last = shown[path]
        expected = studio.pipe(PROMPT, path=path, seed=3, edit_image=picture, mask_image=mask, **given).images[0]
        assert np.array_equal(pixels(last.png), np.asarray(expected))
        assert all(np.array_equal(pixels(one.png)[:, :8], np.asarray(picture)[:, :8]) for one in previews[1:])
        edit = read_manifest(png_texts(io.BytesIO(last.png)), "it")["edit"]
        assert (edit["file"], edit["strength"]) == ("photo.png", given.get("strength", 1.0))
        named = edit_origin(tmp_path / "mask.png", picture, tmp_path / "mask.png", mask, 1)["mask"]
        assert edit["mask"] == named | {"file": "mask.png"}
    black = File("mask.png", flat((32, 32)))
    assert "black all over" in sentence_of(studio.draw(PROMPT, "", "3", "", settings, (files[0], black)))
    small = studio.draw(PROMPT, "", "3", "", settings, (files[0], File("mask.png", white((8, 32)))))
    assert "mask_image is 8x32 pixels, but edit_image is 32x32" in sentence_of(small)


def white(size: tuple[int, int]) -> bytes:
    file = io.BytesIO()
    Image.new("L", size, 255).save(file, "png")
    return file.getvalue()


def test_without_a_seed_there_is_another_each_time_the_same_for_both(studio):
    seeds = [{path: shown[-1].manifest["seed"] for path, shown in drawn(studio, "").items()} for _ in range(2)]
    assert all(one["diffusion"] == one["vq"] for one in seeds)
    assert seeds[0] != seeds[1]


def test_what_one_path_cannot_draw_is_said_in_its_place(studio):
    lacking = copy.copy(studio.pipe)
    lacking.vq_model = None
    shown = drawn(Studio(lacking, "tiny", studio.engine, studio.limits))
    assert [picture.png for picture in shown["vq"]] == [None]
    assert "vq_model" in shown["vq"][0].words
    assert pixels(shown["diffusion"][-1].png).shape == (32, 32, 3)


def test_many_draw_at_once_and_each_as_alone(studio):
    async def together() -> list:
        async def one(seed: int) -> bytes:
            return [shown async for _, shown in studio.draw(PROMPT, "", str(seed), "", {"diffusion": {}})][-1].png

        return await asyncio.gather(*map(one, range(3)))

    made = asyncio.run(together())
    assert studio.engine.counts().joined > studio.engine.counts().steps
    for seed, picture in enumerate(made):
        expected = studio.pipe(PROMPT, path="diffusion", seed=seed).images[0]
        assert np.array_equal(pixels(picture), np.asarray(expected))


def test_who_goes_away_is_not_drawn_for(studio):
    async def first_preview() -> None:
        shown = studio.draw(PROMPT, "", "", "", {"diffusion": {"num_inference_steps": 200}, "vq": {}})
        async for _, picture in shown:
            if picture.png is not None:
                break
        await shown.aclose()
        while studio.engine.counts().running:
            await asyncio.sleep(0.01)

    asyncio.run(first_preview())
    assert studio.engine.counts().cancelled == 2
    assert studio.engine.counts().finished == 0


def test_what_is_painted_is_a_mask():
    layers = [Image.new("RGBA", (16, 8)) for _ in range(2)]
    layers[0].paste((255, 0, 255, 255), (2, 2, 6, 6))
    layers[1].paste((255, 0, 255, 200), (8, 0, 16, 4))
    files = []
    for layer in layers:
        layer.save(file := io.BytesIO(), "png")
        files.append(file.getvalue())
    mask = pixels(painted_mask(files, Limits()))
    expected = np.zeros((8, 16), bool)
    expected[2:6, 2:6] = expected[:4, 8:] = True
    assert np.array_equal(mask[..., 0], 255 * expected)
    layers[0].paste((0, 0, 0, 0), (0, 0, 16, 8))
    layers[0].save(file := io.BytesIO(), "png")
    for nothing in ([], [file.getvalue()]):
        assert painted_mask(nothing, Limits()) is None


# ----------------------------------------------------------------------------------------------------------- replays


@pytest.mark.parametrize("path", ["diffusion", "vq"])
def test_a_picture_is_drawn_again(studio, path):
    first = drawn(studio, settings={path: STEPS[path]})[path][-1]
    shown = all_of(studio.replay(first.png))
    assert shown[-1].words == "identical: all 32x32 pixels are as they were"
    assert shown[-1].manifest == first.manifest
    assert shown[-1].png == first.png
    changed = Image.open(io.BytesIO(first.png))
    text = dict(changed.text)
    changed.putpixel((3, 4), (255, 0, 255))
    again = all_of(studio.replay(with_text(changed, text)))
    assert again[-1].words.startswith("differs: 1 of 1024 pixels")


def with_text(image: Image.Image, text: dict[str, str]) -> bytes:
    info, file = PngInfo(), io.BytesIO()
    for name, value in text.items():
        info.add_itxt(name, value)
    image.save(file, "png", pnginfo=info)
    return file.getvalue()


def test_a_picture_of_another_scheduler_is_drawn_by_that(studio):
    """And the page's own stays what it was."""
    other = Studio(copy.copy(studio.pipe), "tiny", studio.engine, studio.limits)
    other.pipe.scheduler = FlowMatchHeunDiscreteScheduler()
    first = drawn(other, settings={"diffusion": STEPS["diffusion"]})["diffusion"][-1]
    plain = drawn(studio, settings={"diffusion": STEPS["diffusion"]})["diffusion"][-1]
    assert not np.array_equal(pixels(first.png), pixels(plain.png))
    before = type(studio.pipe.scheduler)
    assert all_of(studio.replay(first.png))[-1].words.startswith("identical")
    assert type(studio.pipe.scheduler) is before


def test_what_cannot_be_drawn_again_is_said(studio):
    first = drawn(studio, settings={"diffusion": STEPS["diffusion"]})["diffusion"][-1]
    image, text = Image.open(io.BytesIO(first.png)), Image.open(io.BytesIO(first.png)).text["manifest"]

    def refused(content: bytes) -> str:
        return sentence_of(studio.replay(content))

    def changed(old: str, new: str) -> bytes:
        assert (mended := text.replace(old, new)) != text
        return with_text(image, {"manifest": mended})

    weights = first.manifest["weights"]
    assert "the picture carries no manifest" in refused(png())
    assert "is no picture that can be read" in refused(b"\x89PNG\r\n\x1a\n and no more")
    assert "drawn by other weights than those of the model tiny" in refused(changed(weights, "0" * len(weights)))
    assert "not valid JSON" in refused(with_text(image, {"manifest": text[:-9]}))
    steps, size = ('"num_inference_steps": 4', '"num_inference_steps": 300'), ('"height": 32', '"height": 32000')
    assert refused(changed(*steps)) == "steps is 300; this server allows at most 200"
    assert re.fullmatch("image_tokens is 16000; this server allows at most 4096", refused(changed(*size)))
    before = changed('"image": null', '"image": {"file": "/etc/passwd", "sha256": "0", "read": "vq"}')
    assert "drawn from another, which its file does not hold" in refused(before)
    edited = '"edit": {"file": "a.png", "sha256": "0", "mask": null, "strength": 0.5}, "image": null'
    assert "drawn from another, which its file does not hold" in refused(changed('"image": null', edited))
    assert "float16" in refused(changed('"dtype": "float32"', '"dtype": "float16"'))
    assert studio.engine.counts().finished == 1


# ----------------------------------------------------------------------------------------------------------- answers


def test_every_path_answers_as_the_pipeline_does(studio):
    picture, question = png(), "what creature is this?"
    answers = dict(all_of(studio.ask(picture, question, studio.reading_paths, 6)))
    image = Image.open(io.BytesIO(picture))
    for path in ("understanding", "diffusion", "vq"):
        (expected,) = studio.pipe.answer(image, question, path=path, max_new_tokens=6)
        assert strip_reasoning(answers[path].removesuffix(CUT)) == expected
        assert answers[path].endswith("ran out)") == expected.truncated


def test_a_conversation_is_that_of_a_chat(studio):
    """What was drawn is read again as it was drawn, though no keys are kept."""
    chat, before = studio.pipe.chat(), Conversation()
    turns = [("an orc", [], ["image"]), ("what is this?", [], ["text"]), ("and this?", [png()], ["text"])]
    for number, (text, pictures, plan) in enumerate(turns):
        settings = {"plan": plan, "seed": number, "max_tokens": 6 if plan == ["text"] else None}
        shown = all_of(studio.reply(before, text, pictures, settings))
        assert [conversation for _, conversation in shown[:-1]] == [None] * (len(shown) - 1)
        parts, before = shown[-1]
        given = {"max_new_tokens": 6} if plan == ["text"] else {}
        images = [Image.open(io.BytesIO(picture)) for picture in pictures]
        events = list(chat.send(text, images, plan=plan, seed=number, **given))
        for part, expected in zip(parts, chat.messages[-1]["content"], strict=True):
            if expected["type"] == "image":
                assert np.array_equal(pixels(part.png), np.asarray(expected["image"]))
            else:
                assert part.removesuffix(CUT) == expected["text"]
        assert events
    assert len(before.messages) == 6
    assert (before.cond, before.uncond) == (None, None)


# ---------------------------------------------------------------------------------------------------------- mistakes


def sentence_of(generator) -> str:
    """That the page shows; it is of one line, and nothing of ours failed."""
    with pytest.raises(Exception, match=".") as caught:
        all_of(generator)
    error = as_api_error(caught.value)
    assert error.status < 500, caught.value
    assert error.message == " ".join(error.message.split())
    return error.message


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"seed": "-1"}, r"the seed is '-1'; give a whole number, or leave it empty"),
        ({"seed": "9" * 19 + "99"}, "the seed is"),
        ({"seed": "18446744073709551616"}, "seed is 18446744073709551616"),
        ({"size": "big"}, "size is 'big'; give WIDTHxHEIGHT"),
        ({"size": "4096x4096"}, "size in tokens is .*; this server allows at most 4096"),
        ({"size": "33x33"}, "33x33 is not divisible"),
        ({"settings": {}}, "no path is chosen"),
        (
            {"settings": {"diffusion": {"num_inference_steps": 100_000}}},
            "steps is 100000; .* at most 200",
        ),
        ({"settings": {"diffusion": {"num_inference_steps": 2.5}}}, "must be a whole number"),
        ({"settings": {"vq": {"temperature": -1}}}, "temperature is -1"),
        ({"settings": {"vq": {"guidance_scale": "x"}}}, "guidance_scale is 'x'"),
    ],
)
def test_what_cannot_be_drawn_is_one_sentence(studio, changes, sentence):
    given = {"seed": "", "size": "", "settings": {"diffusion": {}, "vq": {}}, **changes}
    said = sentence_of(studio.draw(PROMPT, "", given["seed"], given["size"], given["settings"]))
    assert re.search(sentence, said), said
    assert studio.engine.counts().finished == 0


def test_what_cannot_be_answered_is_one_sentence(pipeline):
    limits = Limits(image_bytes=10_000, image_pixels=5_000, text_characters=50, new_tokens=20)
    studio = Studio(pipeline, "tiny", engine := Engine(), limits)
    for given, sentence in (
        ((png(), "?", [], 5), "no path is chosen"),
        ((b"no picture", "?", ["vq"], 5), "the picture is no picture that can be read"),
        ((png((100, 60)), "?", ["vq"], 5), "the picture is 18.*; this server allows at most 10000"),
        ((flat((100, 60)), "?", ["vq"], 5), "the picture has 100x60 pixels; this server reads at most 5000"),
        ((png(), "?" * 51, ["vq"], 5), "the length of the text is 51"),
        ((png(), "?", ["vq"], 21), "max_tokens is 21"),
        ((png(), "?", ["vq"], 0), "max_tokens is 0"),
        ((png(), "\ud800", ["vq"], 5), "the text"),
        ((png(), "?", ["understood"], 5), "understood"),
    ):
        said = sentence_of(studio.ask(*given))
        assert re.search(sentence, said), said
    assert "nothing to answer" in sentence_of(studio.reply(Conversation(), " ", [], {}))
    assert "seed is -1" in sentence_of(studio.reply(Conversation(), "a", [], {"seed": -1}))
    assert "number of pictures is 17" in sentence_of(studio.reply(Conversation(), "a", [flat((8, 8))] * 17, {}))
    engine.close()
