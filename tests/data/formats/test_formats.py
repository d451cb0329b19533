"""Formats: the same pictures and words come out of every one of them; what is broken is named by file and key."""

import io
import json
import socket
import tarfile
import time

import datasets
import numpy as np
import pytest

from hybridgen.data.source_config import SourceConfig
from hybridgen.data.sources import open_source
from tests.processors import picture, tiny_processor

COUNT = 7


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Tables are copied here and not to the home of whoever runs the tests."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def png(seed: int) -> bytes:
    file = io.BytesIO()
    picture(seed=seed).save(file, "PNG")
    return file.getvalue()


def write_tar(path, samples: list[dict[str, bytes]], mode: str = "w") -> str:
    with tarfile.open(path, mode) as tar:
        for name, content in ((name, content) for sample in samples for name, content in sample.items()):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return str(path)


def sample(number: int, **parts: bytes) -> dict[str, bytes]:
    return {
        f"a/{number:04}.{part}": content
        for part, content in ({"png": png(number), "txt": f"words {number}".encode()} | parts).items()
    }


def captioned(tmp_path, kind: str) -> dict:
    """COUNT captioned pictures on disk, as a source's settings."""
    rows = [{"image": png(number), "text": f"words {number}"} for number in range(COUNT)]
    encoded = [{**row, "image": {"bytes": row["image"], "path": None}} for row in rows]
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    if kind in ("webdataset", "tgz"):
        shards = [range(3), range(3, COUNT)]
        suffix, mode = ("tar", "w") if kind == "webdataset" else ("tar.gz", "w:gz")
        for number, shard in enumerate(shards):
            write_tar(tmp_path / f"shard-{number:02}.{suffix}", [sample(i) for i in shard], mode)
        return {"source": f"{tmp_path}/shard-{{00..01}}.{suffix}"}
    if kind == "parquet of bytes":
        datasets.Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
        return {"source": f"{tmp_path}/rows.parquet"}
    if kind == "parquet of images":
        table = datasets.Dataset.from_list(encoded, features=features)
        for part in range(2):
            table.shard(2, part, contiguous=True).to_parquet(tmp_path / f"rows-{part}.parquet")
        return {"source": f"{tmp_path}/rows-*.parquet"}
    if kind in ("parquet of paths", "jsonl", "json"):
        (tmp_path / "pictures").mkdir()
        for number in range(COUNT):
            picture(seed=number).save(tmp_path / "pictures" / f"{number}.png")
        rows = [{"file": f"pictures/{number}.png", "words": f"words {number}"} for number in range(COUNT)]
        columns = {"columns": {"image": "file", "text": "words"}}
        if kind == "jsonl":
            (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
            return {"source": f"{tmp_path}/rows.jsonl", **columns}
        if kind == "json":
            (tmp_path / "rows.json").write_text(json.dumps(rows))
            return {"source": f"{tmp_path}/rows.json", **columns}
        datasets.Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
        return {"source": f"{tmp_path}/rows.parquet", **columns}
    table = datasets.Dataset.from_list(encoded, features=features)
    if kind == "saved":
        datasets.DatasetDict({"train": table, "test": table.select(range(2))}).save_to_disk(tmp_path / "saved")
        return {"source": f"{tmp_path}/saved"}
    (tmp_path / "named" / "data").mkdir(parents=True)  # as a data set is laid out on the hub
    table.to_parquet(tmp_path / "named" / "data" / "train-00000-of-00001.parquet")
    return {"source": f"{tmp_path}/named"}


KINDS = [
    "webdataset",
    "tgz",
    "parquet of bytes",
    "parquet of images",
    "parquet of paths",
    "jsonl",
    "json",
    "saved",
    "named",
]
STREAMED = [kind for kind in KINDS if kind != "json"]


def contents(source, count: int = COUNT) -> list[tuple[str, np.ndarray]]:
    found = []
    for cursor in range(count):
        asked, drawn = source[source.index(cursor)]["messages"]
        found.append((asked["content"][0]["text"], np.array(drawn["content"][0]["image"])))
    return found


def same_contents(found, numbers) -> None:
    for (words, pixels), number in zip(found, numbers, strict=True):
        assert words == f"words {number}"
        assert np.array_equal(pixels, np.array(picture(seed=number)))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "tgz"])
def test_every_format_holds_the_same_records(tmp_path, kind):
    settings = captioned(tmp_path, kind)
    source = open_source(SourceConfig(**settings, write="vq", shuffle=False))
    assert source.records == COUNT
    same_contents(contents(source), range(COUNT))
    assert [x.path for x in source.document(3, tiny_processor()).images] == ["vq"]


@pytest.mark.parametrize("kind", STREAMED)
def test_every_stream_holds_the_same_records_again_and_again(tmp_path, kind):
    settings = captioned(tmp_path, kind)
    source = open_source(SourceConfig(**settings, write="vq", shuffle=False, streaming=True, buffer=4))
    assert source.records is None
    same_contents(contents(source, 2 * COUNT), [*range(COUNT), *range(COUNT)])


def test_interleaved_documents_of_a_table_are_taught_whole(tmp_path):
    encoded = {"bytes": png(1), "path": None}
    rows = [{"texts": ["a red circle", None, "blue"], "images": [None, encoded, None]}]
    features = {"texts": datasets.List(datasets.Value("string")), "images": datasets.List(datasets.Image())}
    datasets.Dataset.from_list(rows, features=datasets.Features(features)).to_parquet(tmp_path / "web.parquet")
    for streaming in (False, True):
        source = open_source(
            SourceConfig(f"{tmp_path}/web.parquet", write="diffusion", loss_on="all", streaming=streaming, buffer=1)
        )
        document = source.document(0, tiny_processor())
        assert [(x.path, x.write, x.image_first) for x in document.images] == [("diffusion", True, False)]


def test_llava_files_are_lists_with_pictures_in_a_folder(tmp_path):
    (tmp_path / "coco").mkdir()
    picture(seed=4).save(tmp_path / "coco" / "4.png")
    turns = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "red"}]
    rows = [{"id": "4", "image": "4.png", "conversations": turns}, {"id": "5", "conversations": turns}]
    (tmp_path / "llava.json").write_text(json.dumps(rows))
    source = open_source(SourceConfig(f"{tmp_path}/llava.json", images=f"{tmp_path}/coco"))
    assert source.records == 1
    assert [(x.where, x.reason) for x in source.bad_records] == [
        (f"source 'llava-understanding', {tmp_path}/llava.json, record 1",
         "1 place for pictures (<image> in a text, or an image part without its image), but 0 pictures in image or "
         "images; give as many as there are places"),
    ]  # fmt: skip
    shown = source[0]["messages"][0]["content"]
    assert np.array_equal(np.array(shown[0]["image"]), np.array(picture(seed=4)))
    assert shown[1] == {"type": "text", "text": "what?"}


# -------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("streaming", [False, True])
def test_a_shard_that_ends_too_early_is_listed_and_the_rest_is_read(tmp_path, streaming):
    write_tar(tmp_path / "a.tar", [sample(0), sample(1)])
    whole = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[: 512 * 4 + 100 + len(png(0)) // 512 * 512])
    write_tar(tmp_path / "b.tar", [sample(2)])
    source = open_source(SourceConfig(f"{tmp_path}/*.tar", shuffle=False, streaming=streaming, buffer=1))
    found, broken = [], [each.where for each in source.bad_records]
    for cursor in range(source.records or 3):
        try:
            found.append(source[source.index(cursor)]["messages"][0]["content"][0]["text"])
        except ValueError as error:
            broken.append(str(error))
    assert "words 2" in found
    assert any("a.tar" in each for each in broken)


def test_samples_are_named_by_shard_and_key(tmp_path):
    rows = [
        sample(0),
        {"a/0001.png": png(1)},
        sample(2, txt=b"\xff"),
        sample(3, png=b"no picture"),
        sample(4, json=b"{"),
    ]
    path = write_tar(tmp_path / "a.tar", rows)
    source = open_source(SourceConfig(path, shuffle=False))
    for cursor, sentence in enumerate(
        [
            "",
            "its columns are png, and none of the forms",
            "text is not UTF-8",
            "cannot be decoded",
            "not a JSON object",
        ]
    ):
        if sentence:
            with pytest.raises(ValueError, match=f"source 'a-.*a.tar, key 'a/000{cursor}': .*{sentence}") as error:
                source.document(cursor, tiny_processor())
            assert str(error.value).count("a.tar") == 1


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"source": "{0}/none-*.tar"}, "there is no file .*none-\\*.tar"),
        ({"source": "{0}/none-{{0..1}}.parquet"}, "there is no file .*none-0.parquet"),
        ({"source": "{0}/text.parquet"}, "source '.*text.parquet' cannot be opened as a data set: "),
        ({"source": "{0}/saved", "split": "dev"}, "has no split 'dev'; it has train, test"),
        ({"source": "{0}/object.json"}, "object.json holds a dict with the keys info; it must hold a list of records"),
        ({"source": "{0}/a.tar.gz"}, "the shard .*a.tar.gz is compressed, .* set streaming: true"),
        ({"source": "a.tar", "format": "zip"}, "a-understanding: format is 'zip'; it must be one of synthetic, jsonl"),
        (
            {"source": "a.tar", "format": "world"},
            "a-understanding: format 'world' is called 'synthetic' now; rename it",
        ),
        ({"source": "a.tar", "form": "coco"}, "a-understanding: form is 'coco'; it must be one of messages, llava"),
        ({"source": "a.json", "streaming": True}, "streaming belongs to jsonl and webdataset and parquet and dataset"),
        ({"source": "a.tar", "subset": "en"}, "subset belongs to dataset; a webdataset has none"),
        (
            {"source": "dolls", "task": "draw", "columns": {"text": "a"}},
            "columns belongs to jsonl .* a synthetic dataset has none",
        ),
        ({"source": "a.tar", "buffer": 0}, "buffer is 0; it must be at least 1"),
        ({"source": "a.tar", "image_tokens": 0}, "image_tokens is 0"),
        ({"source": "a.tar", "image_tokens": 9, "height": 8}, "image_tokens is given, and so are height or width"),
        ({"source": "a.tar", "image_tokens": 9}, "image_tokens belongs to the paths diffusion and vq"),
        ({"source": "a.tar", "max_timestep": 9, "write": "vq"}, "max_timestep belongs to write: diffusion, not vq"),
        ({"source": "a.tar", "max_timestep": 0}, r"max_timestep is 0; it must be in \(0, 1000\]"),
    ],
)
def test_what_cannot_be_opened_is_refused_in_one_sentence(tmp_path, settings, sentence):
    (tmp_path / "text.parquet").write_text("no parquet")
    (tmp_path / "object.json").write_text('{"info":\n 1}')
    write_tar(tmp_path / "a.tar.gz", [sample(0)], "w:gz")
    if "split" in settings:
        captioned(tmp_path, "saved")
    settings = {**settings, "source": settings["source"].format(tmp_path)}
    with pytest.raises(ValueError, match=sentence) as error:
        open_source(SourceConfig(**settings))
    assert "\n" not in str(error.value)


def test_pictures_in_memory_are_records_too(tmp_path):
    table = datasets.Dataset.from_list([{"image": png(0), "text": "a"}, {"image": b"none", "text": "b"}])
    table.to_parquet(tmp_path / "a.parquet")
    source = open_source(SourceConfig(f"{tmp_path}/a.parquet", shuffle=False))
    with pytest.raises(ValueError, match="a.parquet, row 1: the image of 4 bytes cannot be decoded"):
        source.document(1, tiny_processor())


def test_without_a_network_a_data_set_by_name_is_refused_at_once(monkeypatch):
    """The library alone tries for 23 seconds (measured)."""
    with socket.socket() as closed:  # nobody listens there
        closed.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", endpoint)
    started = time.monotonic()
    with pytest.raises(ValueError, match="source 'nobody/nothing' cannot be opened as a data set: ") as error:
        open_source(SourceConfig("nobody/nothing"))
    assert time.monotonic() - started < 15  # of which the first use of the library takes a part
    assert f"{endpoint} does not answer, and it is neither a folder nor in the cache" in str(error.value)
    assert not datasets.config.HF_HUB_OFFLINE
