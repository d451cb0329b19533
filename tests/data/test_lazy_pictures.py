"""Pictures are decoded when their document is placed in a row, each once by the process that trains on it."""

import base64
import io
import json

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, PngImagePlugin

from hybridgen.core import pictures as reader
from hybridgen.core.pictures import UnreadPicture, pixels_hash, read_picture
from hybridgen.data.loading import RowLoader, merge_positions
from hybridgen.data.mixture import Mixture
from hybridgen.data.source_config import SourceConfig
from hybridgen.data.sources import open_source
from tests.data.in_memory import documents_of, same
from tests.processors import assistant, image, picture, tiny_processor, user

PROCESSOR = tiny_processor()


@pytest.fixture
def folder(tmp_path):
    """Thirty pictures of many shapes with captions; 4 and 21 are cut, 9 is missing."""
    rng = np.random.default_rng(0)
    for number in range(30):
        height, width = rng.integers(8, 40, 2)
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.jpg")
    for number in (4, 21):
        (tmp_path / f"{number}.jpg").write_bytes((tmp_path / f"{number}.jpg").read_bytes()[:-60])
    (tmp_path / "9.jpg").unlink()
    lines = [{"image": f"{number}.jpg", "text": f"<{number}>" + " red" * (number % 5)} for number in range(30)]
    lines += [{"text": f"<{number}>" + " blue" * 30} for number in range(30, 44)]
    (tmp_path / "a.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return tmp_path


def loader(folder, rows: int = 2, streaming: bool = False, threads: int = 0, **how) -> RowLoader:
    kind = {"streaming": streaming, "buffer": 8, "format": "jsonl"}
    configs = [
        SourceConfig(f"{folder}/a.jsonl", name="drawn", write="diffusion", image_tokens=12, **kind),
        SourceConfig(f"{folder}/a.jsonl", name="twice", read=["diffusion", "understanding"], write="vq", **kind),
    ]
    mixture = Mixture([open_source(config, 3) for config in configs], max_broken=20, loader_threads=threads)
    return RowLoader(mixture, PROCESSOR, rows, 96, **how)


@pytest.fixture
def decoded(monkeypatch):
    """An entry for each file that was decoded, if it could be."""
    count, load = [], reader._load

    def counted(image: Image.Image) -> None:
        nonlocal count
        is_file = getattr(image, "fp", None) is not None  # one that is decoded already has none
        load(image)
        count += [image.format] * is_file

    monkeypatch.setattr(reader, "_load", counted)
    return count


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_every_process_decodes_its_own_pictures_once(folder, decoded, streaming, world):
    """Together they read and pack what one process does: pixels, shapes, broken ones and the position after it."""
    whole = loader(folder, 8, streaming, prefetch=0)
    ranks = [loader(folder, 8 // world, streaming, rank=rank, world_size=world, prefetch=0) for rank in range(world)]
    for _ in range(7):
        one, parts = next(whole), []
        for rank in ranks:
            before = len(decoded)
            parts.append(next(rank))
            pictures = len(parts[-1].get("diffusion_images", ())) + len(parts[-1].get("vq_images", ()))
            assert len(decoded) - before == pictures
        for name in ("input_ids", "labels", "row_numbers"):
            assert torch.equal(one[name], torch.cat([part[name] for part in parts]))
        for name in ("diffusion_images", "vq_images"):
            pixels = [image for part in parts for image in part.get(name, ())]
            assert same(list(one[name]), pixels)
            assert all(image.dtype == torch.uint8 for image in pixels)
    states = [json.loads(json.dumps(rank.state_dict())) for rank in ranks]
    merged = merge_positions(states)
    assert merged["row_streams"] == whole.state_dict()["row_streams"]
    assert {bad for rank in ranks for bad in rank.bad_records()} == set(whole.bad_records())
    for each in (whole, *ranks):
        each.close()


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("threads", [0, 3])
def test_broken_pictures_are_gone_over_where_they_would_be_placed(folder, streaming, threads):
    stream = loader(folder, streaming=streaming, threads=threads)
    plain = loader(folder, streaming=streaming, prefetch=0)
    words = ""
    for _ in range(30):
        batch = next(stream)
        assert same(batch, next(plain))
        words += " ".join(documents_of(batch, PROCESSOR.tokenizer))
        images = batch["input_ids"].eq(PROCESSOR.special_tokens.begin_image).sum()
        assert images == sum(len(batch.get(name, ())) for name in ("diffusion_images", "vq_images"))
    for number in range(44):
        assert (f"<{number}>" in words) == (number not in (4, 9, 21)), number
    for source in ("drawn", "twice"):
        where = f"source '{source}', {folder}/a.jsonl:"
        found = {bad.where.removeprefix(where): bad.reason for bad in stream.bad_records() if where in bad.where}
        assert set(found) == {"5", "10", "22"}
        assert "9.jpg' is not there" in found["10"]
        assert "4.jpg cannot be decoded" in found["5"]
    stream.close()


def test_to_go_on_no_picture_is_decoded_before_its_row(folder, decoded):
    stream = loader(folder, prefetch=0)
    batches = [next(stream) for _ in range(8)]
    begun, resumed = loader(folder, prefetch=0), loader(folder, prefetch=0)
    for _ in range(5):
        next(begun)
    decoded.clear()
    resumed.load_state_dict(json.loads(json.dumps(begun.state_dict())))
    assert sum(len(row.waiting) for row in resumed.streams) > 0
    assert not decoded
    assert all(same(next(resumed), batch) for batch in batches[5:])


def test_a_source_whose_pictures_are_all_broken_ends_the_run(folder):
    """Its first record is looked at when the run begins; where only that one is whole, a row ends it."""
    for number in range(30):
        if (folder / f"{number}.jpg").exists() and number:
            (folder / f"{number}.jpg").write_bytes(b"nothing")
    lines = (folder / "a.jsonl").read_text().splitlines()[:30]
    (folder / "a.jsonl").write_text("\n".join(lines))
    config = SourceConfig(f"{folder}/a.jsonl", name="drawn", write="vq", shuffle=False)
    stream = RowLoader(Mixture([open_source(config)], max_broken=float("inf")), PROCESSOR, 1, 20, prefetch=0)
    next(stream)
    (folder / "0.jpg").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="source 'drawn' is broken: 600 records in a row, the last of them .*jpg"):
        next(stream)
    with pytest.raises(ValueError, match="source 'drawn' is broken: 60 records in a row"):
        RowLoader(Mixture([open_source(config)], max_broken=float("inf")), PROCESSOR, 1, 20, prefetch=0)


# ---------------------------------------------------------------------------------------------- sizes, and levels


def encoded(image: Image.Image, kind: str, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"exif": exif} if orientation else {}))
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(9))
def test_the_size_is_known_before_the_picture_is_decoded(kind, orientation, decoded, tmp_path):
    content = encoded(picture(12, 20), kind, orientation)
    (tmp_path / "a").write_bytes(content)
    for source in (content, tmp_path / "a", {"bytes": content}):
        size = UnreadPicture(source).size
        assert not decoded or (kind == "TIFF" and orientation > 1)
        assert size == read_picture(source).size
        decoded.clear()


def test_a_png_that_says_behind_its_pixels_how_it_is_turned_is_decoded_for_it(decoded):
    plain, turned = (encoded(picture(12, 20), "PNG", orientation) for orientation in (0, 6))
    begin, end = turned.index(b"eXIf") - 4, plain.index(b"IEND") - 4
    chunk = turned[begin : begin + 12 + int.from_bytes(turned[begin : begin + 4])]
    late = plain[:end] + chunk + plain[end:]
    assert UnreadPicture(late).size == read_picture(late).size == (20, 12)
    info, buffer = PngImagePlugin.PngInfo(), io.BytesIO()
    info.add_text("comment", "before the pixels")
    picture(12, 20).save(buffer, "PNG", pnginfo=info)
    decoded.clear()
    assert UnreadPicture(buffer.getvalue()).size == (12, 20)
    assert not decoded


def test_an_unread_picture_says_what_a_read_one_says(tmp_path):
    (tmp_path / "a.png").write_bytes(b"nothing")
    for ask in (lambda unread: unread.size, read_picture):
        with pytest.raises(ValueError, match="a.jsonl:3: the image .*a.png cannot be decoded: it is no picture"):
            ask(UnreadPicture("a.png", tmp_path, "a.jsonl:3"))
        with pytest.raises(ValueError, match="a.jsonl:3: the image 'b.png' is not there"):
            ask(UnreadPicture("b.png", tmp_path, "a.jsonl:3"))


def test_a_file_is_opened_once(tmp_path, monkeypatch):
    picture().save(tmp_path / "a.png")
    opened, real = [], io.open
    monkeypatch.setattr("pathlib.Path.open", lambda self, *how: opened.append(self) or real(self, *how))
    monkeypatch.setattr("builtins.open", lambda *how, **more: opened.append(how[0]) or real(*how, **more))
    read_picture(tmp_path / "a.png")
    assert opened == [tmp_path / "a.png"]


@pytest.mark.parametrize("settings", [{}, {"image_mean": [0.48, 0.45, 0.41], "image_std": [0.27, 0.26, 0.28]}])
@pytest.mark.parametrize("do", [(True, True), (False, True), (True, False), (False, False)])
def test_levels_become_the_values_that_the_processor_makes_bit_by_bit(settings, do):
    """Against the formula in NumPy, over all 256 levels."""
    processor = tiny_processor()
    images = processor.image_processor
    images.do_rescale, images.do_normalize = do
    for name, value in settings.items():
        setattr(images, name, value)
    levels = torch.arange(256, dtype=torch.uint8).repeat(3, 1).reshape(3, 16, 16)
    values = levels.numpy().transpose(1, 2, 0).astype(np.float32)
    if do[0]:
        values = values / np.float32(1 / images.rescale_factor)
    if do[1]:
        values = (values - np.asarray(images.image_mean, np.float32)) / np.asarray(images.image_std, np.float32)
    assert torch.equal(
        processor.pixel_values(levels, "understanding"), torch.from_numpy(values.transpose(2, 0, 1).copy())
    )
    generation = torch.from_numpy(levels.numpy() / np.float32(127.5) - 1)
    assert torch.equal(processor.pixel_values(levels, "vq"), generation)
    assert processor.pixel_values(generation, "vq") is generation


def test_a_document_read_later_is_the_document():
    messages = [user(image(0, 30, 20), "what?"), assistant("red", image(1, 9, 40))]
    how = {"read": ["diffusion", "understanding"], "write": "diffusion", "clean_copy": True, "image_tokens": 12}
    at_once, later = PROCESSOR.document(messages, **how), PROCESSOR.document(messages, **how, decode=False)
    assert at_once.layout == later.layout
    assert all(image.pixels is None for image in later.images)
    PROCESSOR.read_pixels(later)
    for a, b in zip(at_once.images, later.images, strict=True):
        assert (a.path, a.write, a.span, a.image_first) == (b.path, b.write, b.span, b.image_first)
        assert torch.equal(a.pixels, PROCESSOR.pixel_values(b.pixels, b.path))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "GIF"])
def test_the_hash_of_a_picture_that_is_not_read_is_that_of_its_bytes(kind, decoded, tmp_path):
    """Wherever they are: in a file, as bytes or as text; of pixels alone, that of the pixels. Nothing is decoded."""
    content = encoded(picture(12, 20), kind, 0)
    (tmp_path / "a").write_bytes(content)
    decoded.clear()
    first = UnreadPicture("a", tmp_path).content_hash()
    same_bytes = [content, {"bytes": content, "path": "b"}, base64.b64encode(content).decode()]
    assert all(UnreadPicture(one).content_hash() == first for one in same_bytes)
    assert not decoded
    (tmp_path / "a").write_bytes(content + b"more")
    assert UnreadPicture("a", tmp_path).content_hash() != first
    assert UnreadPicture(picture(12, 20)).content_hash() == pixels_hash(picture(12, 20))
    (tmp_path / "a").write_text("no picture")
    with pytest.raises(ValueError, match="no picture in a format"):
        UnreadPicture("a", tmp_path).content_hash()
