"""The same picture by every call that takes one: what the model is given is what training would give it.

`tests/core/test_pictures.py` reads every mode and format; here it is one hard file (turned, transparent, of 16 bits).
"""

import base64
import io
import json
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from hybridgen.core.pictures import pixels_hash, read_picture
from hybridgen.data.source_config import SourceConfig
from hybridgen.data.sources import open_source
from hybridgen.pipeline_hybridgen import HybridGenPipeline
from tests.pipelines import tiny_pipeline
from tests.processors import picture

Q = "what color is the circle?"


@pytest.fixture(scope="module")
def pipe() -> HybridGenPipeline:
    return tiny_pipeline()


@pytest.fixture
def seen(pipe, monkeypatch) -> list[torch.Tensor]:
    """What the understanding path was given: pixels (I, 3, S, S) of each call."""
    pixels, encode = [], HybridGenPipeline.encode_images

    def spy(self, batch, *args, **kwargs):
        if batch["pixel_values"] is not None:
            pixels.append(batch["pixel_values"])
        return encode(self, batch, *args, **kwargs)

    monkeypatch.setattr(HybridGenPipeline, "encode_images", spy)
    return pixels


@pytest.fixture
def photo(tmp_path) -> Path:
    """A photograph as a phone stores it, its left half transparent."""
    upright = picture(40, 24).convert("RGBA")
    upright.paste((9, 9, 9, 0), (0, 0, 20, 24))
    exif = Image.Exif()
    exif[0x0112] = 6
    file = tmp_path / "photo.png"
    upright.transpose(Image.Transpose.ROTATE_90).save(file, exif=exif)
    return file


def message(image) -> list[dict]:
    return [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": Q}]}]


def test_every_call_sees_the_same_pixels(pipe, seen, photo):
    upright = Image.new("RGB", (40, 24), "white")
    upright.paste(picture(40, 24).crop((20, 0, 40, 24)), (20, 0))
    truth = pipe.processor.image_processor.understanding([upright])
    array, url = np.asarray(upright), f"data:;base64,{base64.b64encode(photo.read_bytes()).decode()}"
    for image in (
        photo, str(photo), photo.as_uri(), url, photo.read_bytes(), Image.open(photo), upright, array, array / 255,
        torch.from_numpy(array.copy()).permute(2, 0, 1),
    ):  # fmt: skip
        pipe.answer(image, Q, max_new_tokens=1)
        pipe.answer([image], [Q], max_new_tokens=1)
        pipe("a circle", image=image, num_inference_steps=1, guidance_scale=1.0, output_type="latent", seed=0)
        list(pipe.stream(message(image), max_new_tokens=1, plan=["text"]))
        pipe.chat().ask(Q, images=[image], max_new_tokens=1)
        pipe.chat(message(image)[:1]).ask(Q, images=image, max_new_tokens=1)
        seen.append(pipe.processor.prompt(message(image)).images[0].pixels[None])
        seen.append(pipe.processor(images=image, text="<image_placeholder>", return_tensors="pt")["pixel_values"])
        seen.append(pipe.processor.image_processor(image)["pixel_values"])
        assert len(seen) == 10
        assert all(torch.equal(pixels, truth) for pixels in seen)
        seen.clear()


def sources_of(photo: Path) -> dict[str, SourceConfig]:
    """The picture as every format of data holds it."""
    folder, content = photo.parent, photo.read_bytes()
    encoded = base64.b64encode(content).decode()
    url = f"data:image/png;base64,{encoded}"
    for name, image in (("path", photo.name), ("uri", photo.as_uri()), ("url", url), ("base64", encoded)):
        (folder / f"{name}.jsonl").write_text(json.dumps({"image": image, "text": "red"}) + "\n")
    (folder / "list.json").write_text(json.dumps([{"image": photo.name, "text": "red"}]))
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "red"}]
    turns = [{"role": "user", "content": parts}, {"role": "assistant", "content": "red"}]
    (folder / "openai.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    table = datasets.Dataset.from_list([{"image": content, "text": "red"}])
    table.to_parquet(folder / "bytes.parquet")
    table = datasets.Dataset.from_list([{"image": {"bytes": content, "path": None}, "text": "red"}])
    table.cast_column("image", datasets.Image()).to_parquet(folder / "images.parquet")
    table.cast_column("image", datasets.Image()).save_to_disk(folder / "saved")
    with tarfile.open(folder / "a.tar", "w") as tar:
        for name, member in (("1.png", content), ("1.txt", b"red")):
            info = tarfile.TarInfo(name)
            info.size = len(member)
            tar.addfile(info, io.BytesIO(member))
    for name, texts in (("captioned", {"photo.txt": "red"}), ("listed", {"metadata.jsonl": LISTED})):
        (folder / name).mkdir()
        (folder / name / photo.name).write_bytes(content)
        for text, words in texts.items():
            (folder / name / text).write_text(words)
    files = ["path.jsonl", "uri.jsonl", "url.jsonl", "base64.jsonl", "list.json", "openai.jsonl", "bytes.parquet"]
    files += ["images.parquet", "saved/", "a.tar", "captioned/", "listed/"]
    streamed = ("path.jsonl", "bytes.parquet", "images.parquet", "a.tar")
    return {name: SourceConfig(f"{folder}/{name}") for name in files} | {
        f"{name}, streamed": SourceConfig(f"{folder}/{name}", streaming=True, buffer=1) for name in streamed
    }


LISTED = json.dumps({"file_name": "photo.png", "text": "red"})


def test_training_sees_the_same_pixels_by_every_format(pipe, photo):
    truth = pipe.processor.prompt(message(photo)).images[0].pixels
    whole = pixels_hash(read_picture(photo))
    for name, config in sources_of(photo).items():
        source = open_source(config)
        assert torch.equal(source.document(0, pipe.processor).images[0].pixels, truth), name
        assert [pixels_hash(image) for image in source.pictures(0)] == [whole], name


@pytest.mark.parametrize("output_type", ["np", "pt", "pil"])
def test_what_the_pipeline_draws_it_can_read(pipe, seen, output_type):
    drawn = [
        pipe(["a red circle", "a square"], seed=3, num_inference_steps=1, output_type=kind).images
        for kind in ("pil", output_type)
    ]
    truth = pipe.processor.image_processor.understanding(drawn[0])
    answers = pipe.answer(drawn[1], [Q, Q], max_new_tokens=2)
    assert torch.equal(torch.cat(seen), truth)
    assert answers == pipe.answer(drawn[0], Q, max_new_tokens=2)
    again = pipe(["a", "b"], image=drawn[1], seed=0, num_inference_steps=1, output_type="latent").images
    assert torch.equal(
        again, pipe(["a", "b"], image=drawn[0], seed=0, num_inference_steps=1, output_type="latent").images
    )
    texts = ["<image_placeholder>", "a <image_placeholder>"]
    pixels = pipe.processor(images=drawn[1], text=texts, return_tensors="pt")["pixel_values"]
    assert torch.equal(pixels, truth)


def test_chats_keep_the_pictures_as_they_were_read(pipe, photo):
    chat = pipe.chat(message(photo)[:1])
    opening = chat.messages[0]["content"][0]["image"]
    assert opening.tobytes() == read_picture(photo).tobytes()
    upright = read_picture(photo)
    chat.ask(Q, images=[upright], max_new_tokens=1)
    assert chat.messages[-2]["content"][0]["image"] is upright


def test_any_to_any_takes_what_a_message_of_transformers_names(pipe, photo, tmp_path):
    pipe.processor.save_pretrained(tmp_path / "processor")
    processor = AutoProcessor.from_pretrained(tmp_path / "processor")
    truth = pipe.processor.image_processor.understanding([photo])
    for key, image in (("path", str(photo)), ("url", str(photo)), ("image", Image.open(photo))):
        messages = [{"role": "user", "content": [{"type": "image", key: image}, {"type": "text", "text": Q}]}]
        inputs = processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")
        assert torch.equal(inputs["pixel_values"], truth)


@pytest.mark.parametrize("image", [Image.new("RGB", (0, 15)), np.zeros((15, 0, 3), np.uint8)])
def test_pictures_without_pixels_are_refused_by_every_call(pipe, image):
    for path in pipe.model.config.paths:
        with pytest.raises(ValueError, match=r"the image has no pixels \(0x15\)"):
            pipe.answer(image, Q, path=path)
        with pytest.raises(ValueError, match=r"the image has no pixels \(0x15\)"):
            pipe("a circle", image=image, read=path)
    with pytest.raises(ValueError, match=r"the image has no pixels \(0x15\)"):
        pipe.chat().send(Q, images=[image])
    with pytest.raises(ValueError, match=r"the image has no pixels \(0x15\)"):
        pipe.stream(message(image))
    with pytest.raises(ValueError, match=r"the image has no pixels \(0x15\)"):
        pipe.processor(images=image, text="<image_placeholder>")


def test_an_address_is_downloaded_by_the_processor_alone(pipe, photo, monkeypatch):
    asked = []

    def download(url, timeout):
        asked.append(url)
        if url.endswith("gone.png"):
            raise OSError("HTTP Error 404: Not Found")
        return photo.open("rb")

    monkeypatch.setattr("hybridgen.image_processing_hybridgen.urlopen", download)
    url = "https://example.org/photo.png"
    pixels = pipe.processor(images=url, text="<image_placeholder>", return_tensors="pt")["pixel_values"]
    assert torch.equal(pixels, pipe.processor.image_processor.understanding([photo]))
    with pytest.raises(ValueError, match="gone.png cannot be downloaded .HTTP Error 404: Not Found.; name a file"):
        pipe.processor.image_processor("https://example.org/gone.png")
    with pytest.raises(ValueError, match="is an address; pictures are not downloaded"):
        pipe.answer(url, Q)
    assert asked == [url, "https://example.org/gone.png"]
