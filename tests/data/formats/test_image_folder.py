"""Folders of captioned pictures: both layouts as records, and each thing that can be missing, named."""

import json

import numpy as np
import pytest

from hybridgen.data.formats.image_folder import FolderSource
from hybridgen.data.source_config import SourceConfig
from hybridgen.data.sources import open_source
from tests.processors import picture, tiny_processor


def write_metadata(folder, *lines):
    lines = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture
def folder(tmp_path):
    """Two captioned pictures, one in a subfolder."""
    (tmp_path / "more").mkdir()
    for number, name in enumerate(("b.png", "more/a.png")):
        picture(seed=number).save(tmp_path / name)
        (tmp_path / name).with_suffix(".txt").write_text(f" röt {number}\n", encoding="utf-8")
    return tmp_path


def captions(source) -> list[str]:
    return [source[i]["messages"][0]["content"][0]["text"] for i in range(len(source))]


def test_texts_beside_pictures(folder):
    source = FolderSource(folder)
    assert captions(source) == ["röt 0", "röt 1"]
    for number in range(2):
        asked, drawn = source[number]["messages"]
        assert (asked["role"], drawn["role"]) == ("user", "assistant")
        assert np.array_equal(np.array(drawn["content"][0]["image"]), np.array(picture(seed=number)))
    assert source.where(1) == str(folder / "more" / "a.png")
    with pytest.raises(IndexError, match="records 0 to 1, not 2"):
        source[2]


def test_metadata_says_more_than_texts(folder):
    write_metadata(folder, {"file_name": "more/a.png", "text": "the second", "aside": 1}, "")
    assert captions(FolderSource(folder)) == ["the second"]


def test_a_folder_is_a_source_of_both_directions(folder):
    drawn = open_source(SourceConfig(f"{folder}/", write="vq", shuffle=False)).document(0, tiny_processor())
    assert [(image.path, image.write) for image in drawn.images] == [("vq", True)]
    read = open_source(SourceConfig(f"{folder}/", order="image_first", shuffle=False)).document(0, tiny_processor())
    assert [(image.path, image.write) for image in read.images] == [("understanding", False)]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("{", "metadata.jsonl:1: not a JSON object"),
        ({"text": "a"}, 'metadata.jsonl:1: a line must be {"file_name": a picture, "text": its caption}'),
        (
            {"file_name": "b.png", "prompt": "a"},
            "metadata.jsonl:1: its columns are file_name, prompt, and none .*columns:",
        ),
        ({"file_name": "b.png", "text": None}, "metadata.jsonl:1: 'text' is missing"),
        ({"file_name": "b.png", "text": {}}, "metadata.jsonl:1: text is of type dict"),
        ("3", "metadata.jsonl:1: a line must be"),
        ({"file_name": "gone.png", "text": "a"}, "metadata.jsonl:1: the image 'gone.png' is not there"),
    ],
)
def test_bad_metadata_is_named_when_the_folder_is_opened(folder, line, sentence):
    write_metadata(folder, line)
    with pytest.raises(ValueError, match=sentence):
        FolderSource(folder)


def test_what_is_missing_is_named(folder, tmp_path):
    (folder / "b.txt").write_text(" ")
    with pytest.raises(ValueError, match=r"the caption of .*b.png is empty; write b.txt beside it"):
        FolderSource(folder)
    (folder / "b.txt").unlink()
    with pytest.raises(ValueError, match=r"the caption of .*b.png is missing"):
        FolderSource(folder)
    (folder / "more" / "a.png").write_bytes(b"no picture")
    (folder / "b.txt").write_text("a")
    with pytest.raises(ValueError, match=r"more/a.png cannot be decoded"):
        FolderSource(folder)[1]
    (folder / "none").mkdir()
    with pytest.raises(ValueError, match="none holds no picture"):
        FolderSource(folder / "none")
