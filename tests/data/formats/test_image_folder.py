"""Folders of captioned pictures: both layouts as records, and each thing that can be missing, named."""

import json
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import yaml

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


# ------------------------------------------------------------------------------------- many pictures, and metadata


def captioned(folder, count: int, words: str = "a long caption " * 8):
    folder.mkdir()
    for number in range(count):
        (folder / f"{number:04}.png").write_bytes(b"not decoded")
        (folder / f"{number:04}.txt").write_text(f"{number} {words}")
    return folder


def metadata(folder, count: int):
    folder.mkdir()
    for number in range(count):
        (folder / f"{number:04}.png").write_bytes(b"not decoded")
    write_metadata(folder, *({"file_name": f"{number:04}.png", "text": "a cat"} for number in range(count)))
    return folder


@pytest.mark.parametrize("make", [captioned, metadata])
def test_a_folder_is_listed_and_not_asked_file_by_file(tmp_path, monkeypatch, make):
    """Four times as many pictures: no call more of `stat`, no caption read, one listing."""
    calls = {}
    few, many = make(tmp_path / "few", 10), make(tmp_path / "many", 40)
    for owner, name in ((os, "stat"), (os, "scandir"), (Path, "read_bytes")):
        real = getattr(owner, name)

        def counted(*arguments, _real=real, _name=name, **named):
            calls[_name] = calls.get(_name, 0) + 1
            return _real(*arguments, **named)

        monkeypatch.setattr(owner, name, counted)
    found = []
    for folder, count in ((few, 10), (many, 40)):
        calls.clear()
        assert len(FolderSource(folder)) == count
        found.append(dict(calls))
    assert found[0] == found[1]
    assert found[0].get("read_bytes", 0) == 0
    assert found[0]["scandir"] <= 3


@pytest.mark.parametrize(("make", "most"), [(captioned, 80), (metadata, 50)])
def test_a_record_takes_few_bytes(tmp_path, make, most):
    """A name of 8 letters; for a captioned one also the picture's path, whose size is compared when a run goes on.
    Measured: 86 (27 of them the path) and 44 bytes, room of growing arrays included."""
    folder = make(tmp_path / "many", 500)
    FolderSource(folder)  # what is imported and cached
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    source = FolderSource(folder)
    size = (tracemalloc.get_traced_memory()[0] - before) / len(source)
    tracemalloc.stop()
    assert size < most + (len(str(folder)) + 1) * (make is captioned)


def test_a_caption_that_is_no_text_is_a_broken_record(tmp_path):
    """A long one is found when its turn comes; a short one when the folder is opened."""
    folder, bad = captioned(tmp_path / "a", 4), []
    (folder / "0001.txt").write_text("a caption of many words " * 4, encoding="utf-16")
    (folder / "0002.txt").write_text("red", encoding="utf-16")
    (folder / "0003.txt").write_text(" " * 200)
    source = FolderSource(folder, bad)
    assert [str(each) for each in bad] == [f"{folder}/0002.png: 0002.txt: the text is UTF-16; save the file as UTF-8"]
    assert len(source) == 3
    for index, sentence in ((1, "0001.png: 0001.txt: the text is UTF-16"), (2, "the caption of .*0003.png is empty")):
        with pytest.raises(ValueError, match=sentence):
            source.record(index)


def write_rows(folder, suffix: str, rows: list[dict]) -> None:
    file = folder / f"metadata.{suffix}"
    if suffix == "jsonl":
        write_metadata(folder, *rows)
    elif suffix == "csv":
        file.write_text("file_name,text\n" + "".join(f"{row['file_name']},{row['text']}\n" for row in rows))
    elif suffix == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    else:
        file.write_text(yaml.safe_dump(rows))


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet", "yaml", "yml"])
def test_metadata_of_every_kind_is_read_alike(folder, suffix):
    rows = [{"file_name": name, "text": f"row {number}"} for number, name in enumerate(("more/a.png", "b.png"))]
    write_rows(folder, suffix, [*rows, {"file_name": "gone.png", "text": "x"}])
    config = SourceConfig(f"{folder}/", shuffle=False)
    assert config.kind == "folder"
    source = open_source(config)
    assert captions(source) == ["row 0", "row 1"]
    assert [np.array(source[i]["messages"][1]["content"][0]["image"]).sum() for i in range(2)] == [
        np.array(picture(seed=seed)).sum() for seed in (1, 0)
    ]
    (bad,) = source.bad_records
    assert f"metadata.{suffix}:{4 if suffix == 'csv' else 3}: the image 'gone.png' is not there" in str(bad)
    (folder / ("metadata.csv" if suffix != "csv" else "metadata.jsonl")).write_text("")
    with pytest.raises(ValueError, match="has metadata.* and metadata.*; keep one of them"):
        open_source(SourceConfig(f"{folder}/"))


@pytest.mark.parametrize(
    ("suffix", "content", "sentence"),
    [
        ("yaml", b"a: [", "metadata.yaml: no YAML"),
        ("yaml", b"a: 1", "metadata.yaml: it must be a list of rows"),
        ("yaml", b"- 3", 'metadata.yaml:1: a line must be {"file_name": a picture'),
        ("parquet", b"PAR1", "metadata.parquet: no parquet file that can be read"),
    ],
)
def test_metadata_that_is_no_table_is_named(folder, suffix, content, sentence):
    (folder / f"metadata.{suffix}").write_bytes(content)
    with pytest.raises(ValueError, match=sentence):
        FolderSource(folder)


def test_what_a_folder_is_is_looked_up_once(folder, monkeypatch):
    walks, rglob = [], Path.rglob
    monkeypatch.setattr(Path, "rglob", lambda path, pattern: walks.append(path) or rglob(path, pattern))
    config = SourceConfig(f"{folder}/", write="vq")
    open_source(config)
    assert len(walks) == 1
    (folder / "b.png").unlink()
    (folder / "more" / "a.png").unlink()
    (folder / "0.parquet").write_bytes(b"PAR1")
    assert config.kind == "dataset"  # it is another folder now
