"""Records: what is accepted, and one sentence for everything that is not."""

import numpy as np
import pytest
from PIL import Image

from hybridgen.data.records import check_record, load_image, load_images
from tests.processors import assistant, image, picture, user


def test_a_record_passes_as_it_is_with_whatever_else_it_holds():
    record = {"messages": [user("hi", image()), {"role": "assistant", "content": "red"}], "meta": {"id": 3}}
    assert check_record(record, "here") is record


@pytest.mark.parametrize(
    ("record", "sentence"),
    [
        ([], "a.jsonl:3: a record must be an object with the key messages"),
        ({"text": "hi"}, "a.jsonl:3: a record must be an object with the key messages"),
        ({"messages": []}, "a.jsonl:3: messages must be a list of at least one message"),
        ({"messages": "hi"}, "a.jsonl:3: messages must be a list of at least one message, not 'hi'"),
        ({"messages": ["hi"]}, "a.jsonl:3: message 0 must be an object with role and content, not 'hi'"),
        ({"messages": [{"role": "gpt", "content": "hi"}]}, "a.jsonl:3: message 0 has role 'gpt'; use one of system"),
        ({"messages": [user("hi"), {"role": "user", "content": []}]}, "a.jsonl:3: message 1 has content"),
        ({"messages": [user({"type": "image"})]}, "a.jsonl:3: message 0 has an image part without its image"),
        (
            {"messages": [user({"type": "image", "image": ""})]},
            "a.jsonl:3: message 0 has an image part without its image",
        ),
        (
            {"messages": [user({"type": "image", "image": 7})]},
            "a.jsonl:3: the image of an image part must be .*, not int",
        ),
        ({"messages": [user({"type": "text", "text": None})]}, "a.jsonl:3: message 0 has a text part without its text"),
        ({"messages": [user({"text": "hi"})]}, "a.jsonl:3: message 0 has a part .*'hi'"),
    ],
)
def test_what_is_no_record_is_refused_by_file_and_line(record, sentence):
    with pytest.raises(ValueError, match=sentence) as raised:
        check_record(record, "a.jsonl:3")
    assert "\n" not in str(raised.value)


def test_images_are_found_beside_the_file_that_names_them(tmp_path):
    (tmp_path / "pictures").mkdir()
    picture().save(tmp_path / "pictures" / "one.png")
    record = {"messages": [user({"type": "image", "image": "pictures/one.png"}, image(1)), assistant("red")], "id": 1}
    loaded = load_images(record, tmp_path, "here")
    first, second = loaded["messages"][0]["content"]
    assert np.array_equal(np.array(first["image"]), np.array(picture()))
    assert second["image"] is record["messages"][0]["content"][1]["image"]
    assert loaded["id"] == 1
    assert record["messages"][0]["content"][0]["image"] == "pictures/one.png"


def test_a_photograph_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held sideways
    picture(20, 10).save(tmp_path / "photo.png", exif=exif)
    assert load_image("photo.png", tmp_path, "here").size == (10, 20)


def test_a_missing_or_corrupt_image_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"a.jsonl:3: the image 'none.png' is not there \(looked for .*none.png\)"):
        load_image("none.png", tmp_path, "a.jsonl:3")
    with pytest.raises(ValueError, match="is a folder, not a picture; name a file in it"):
        load_image(".", tmp_path, "a.jsonl:3")
    picture(64, 64).save(tmp_path / "whole.png")
    data = (tmp_path / "whole.png").read_bytes()
    picture(64, 64).save(tmp_path / "whole.jpg")
    jpeg = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "empty.png").touch()
    with pytest.raises(ValueError, match="a.jsonl:3: the image .*empty.png is empty; it was cut off"):
        load_image("empty.png", tmp_path, "a.jsonl:3")
    damaged = {
        "words.png": b"no picture at all",
        "half.png": data[: len(data) // 2],
        "header.png": data[:20],
        "flipped.png": data[:60] + bytes(255 - byte for byte in data[60:90]) + data[90:],
        "half.jpg": jpeg[: len(jpeg) // 2],
    }
    for name, content in damaged.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"a.jsonl:3: the image .*{name} cannot be decoded"):
            load_image(name, tmp_path, "a.jsonl:3")
