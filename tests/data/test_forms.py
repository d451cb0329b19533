"""Forms by formats: a row is the same record in every file, whatever stands around it, and whoever reads which share.

`FORMS` holds rows of every form as data sets have them, each with what it is to become; `WRITERS` writes rows in every
format. What is tested is generated from both: orders, nulls, shares.
"""

import csv
import io
import json
import math
import random
import tarfile

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from hybridgen.core.messages import parts
from hybridgen.data.formats.image_folder import FolderSource
from hybridgen.data.formats.rows import record_of
from hybridgen.data.source_config import SourceConfig
from hybridgen.data.sources import open_source


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def color(number: int) -> tuple[int, int, int]:
    return number, 255 - number, number * 7 % 256


def png(number: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), color(number)).save(file, "PNG")
    return file.getvalue()


def human(words: str) -> dict:
    return {"from": "human", "value": words}


def gpt(words: str) -> dict:
    return {"from": "gpt", "value": words}


def said(role: str, content) -> dict:
    return {"role": role, "content": content}


IMAGE = {"type": "image"}


def text(words: str) -> dict:
    return {"type": "text", "text": words}


class Picture(int):
    """A picture's number in a row; each format writes it as it holds pictures."""


# form -> (k -> row, k -> messages); a number stands for a picture
FORMS = {
    "captions": (
        lambda k: {"image": Picture(k), "text": f"a {k}"},
        lambda k: [("user", f"a {k}"), ("assistant", k)],
    ),
    "captions: list of one": (
        lambda k: {"images": [Picture(k)], "caption": [f"a {k}"]},
        lambda k: [("user", f"a {k}"), ("assistant", k)],
    ),
    "captions: a number": (
        lambda k: {"image": Picture(k), "caption": k},
        lambda k: [("user", f"{k}"), ("assistant", k)],
    ),
    "text": (lambda k: {"text": f"words {k}"}, lambda k: [("assistant", f"words {k}")]),
    "questions": (
        lambda k: {"image": Picture(k), "question": "what?", "answer": f"b {k}"},
        lambda k: [("user", k, "what?"), ("assistant", f"b {k}")],
    ),
    "questions without a picture": (
        lambda k: {"question": f"what {k}?", "answer": "b"},
        lambda k: [("user", f"what {k}?"), ("assistant", "b")],
    ),
    "swift": (
        lambda k: {"images": [Picture(k), Picture(k + 1)], "query": f"<image>and <image>: {k}?", "response": "b"},
        lambda k: [("user", k, "and ", k + 1, f": {k}?"), ("assistant", "b")],
    ),
    "llama factory": (
        lambda k: {
            "messages": [said("user", f"<image>what {k}?"), said("assistant", "a <image>")],
            "images": [Picture(k), Picture(k + 1)],
        },
        lambda k: [("user", k, f"what {k}?"), ("assistant", "a ", k + 1)],
    ),
    "trl": (
        lambda k: {
            "messages": [said("user", [IMAGE, text(f"what {k}?")]), said("assistant", [text("b")])],
            "images": [Picture(k)],
        },
        lambda k: [("user", k, f"what {k}?"), ("assistant", "b")],
    ),
    "messages and system": (
        lambda k: {"messages": [said("user", f"hi {k}"), said("assistant", "b")], "system": "be short"},
        lambda k: [("system", "be short"), ("user", f"hi {k}"), ("assistant", "b")],
    ),
    "llava": (
        lambda k: {"image": Picture(k), "conversations": [human(f"<image>\nwhat {k}?"), gpt("b")]},
        lambda k: [("user", k, f"what {k}?"), ("assistant", "b")],
    ),
    "llava without a picture": (
        lambda k: {"conversations": [human(f"what {k}?"), gpt("b"), human("sure?"), gpt("yes")]},
        lambda k: [("user", f"what {k}?"), ("assistant", "b"), ("user", "sure?"), ("assistant", "yes")],
    ),
    "sharegpt roles": (
        lambda k: {"system": "be short", "conversations": [said("user", f"hi {k}"), said("assistant", "b")]},
        lambda k: [("system", "be short"), ("user", f"hi {k}"), ("assistant", "b")],
    ),
    "alpaca": (
        lambda k: {"instruction": f"do {k}", "input": "this", "output": "b", "history": [["a", "c"]]},
        lambda k: [("user", "a"), ("assistant", "c"), ("user", f"do {k}\nthis"), ("assistant", "b")],
    ),
    "alpaca without input": (
        lambda k: {"instruction": f"do {k}", "input": "", "output": "b"},
        lambda k: [("user", f"do {k}"), ("assistant", "b")],
    ),
    "prompts": (
        lambda k: {"prompt": f"go {k}", "completion": "b"},
        lambda k: [("user", f"go {k}"), ("assistant", "b")],
    ),
    "prompts of messages": (
        lambda k: {"prompt": [said("user", f"go {k}")], "completion": [said("assistant", "b")]},
        lambda k: [("user", f"go {k}"), ("assistant", "b")],
    ),
    "cauldron": (
        lambda k: {"images": [Picture(k)], "texts": [{"user": f"what {k}?", "assistant": "b", "source": "s"}]},
        lambda k: [("user", k, f"what {k}?"), ("assistant", "b")],
    ),
    "obelics": (
        lambda k: {"texts": [f"one {k}", None, "two"], "images": [None, Picture(k), None]},
        lambda k: [("assistant", f"one {k}", k, "two")],
    ),
}  # fmt: skip
FLAT = ("captions", "captions: a number", "text", "questions", "questions without a picture", "alpaca without input")
ONE_PICTURE = ("captions", "captions: a number", "questions", "llava")  # what a folder's metadata can hold


def shown(record: dict) -> list[tuple]:
    """A record as `FORMS` writes it."""
    found = []
    for message in record["messages"]:
        content = []
        for part in parts(message):
            if part["type"] == "text":
                content.append(part["text"])
                continue
            pixels = np.array(part["image"])
            assert (pixels == pixels[0, 0]).all()
            assert tuple(pixels[0, 0]) == color(int(pixels[0, 0, 0]))
            content.append(int(pixels[0, 0, 0]))
        found.append((message["role"], *content))
    return found


def with_pictures(row, write):
    """The row with each `Picture` as `write` makes it."""
    if isinstance(row, Picture):
        return write(int(row))
    if isinstance(row, list):
        return [with_pictures(each, write) for each in row]
    return {name: with_pictures(each, write) for name, each in row.items()} if isinstance(row, dict) else row


def as_files(folder):
    def write(number: int) -> str:
        (folder / f"{number}.png").write_bytes(png(number))
        return f"{number}.png"

    return write


def as_bytes(number: int) -> dict:
    return {"bytes": png(number), "path": None}


def write_jsonl(folder, rows) -> str:
    lines = [json.dumps(with_pictures(row, as_files(folder))) for row in rows]
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    return f"{folder}/rows.jsonl"


def write_json(folder, rows) -> str:
    (folder / "rows.json").write_text(json.dumps(with_pictures(rows, as_files(folder)), indent=1))
    return f"{folder}/rows.json"


def write_wrapped(folder, rows) -> str:
    (folder / "rows.json").write_text(json.dumps({"data": with_pictures(rows, as_files(folder)), "version": 1}))
    return f"{folder}/rows.json"


def write_parquet(folder, rows) -> str:
    names = sorted({name for row in rows for name in row})
    rows = [{name: row.get(name) for name in names} for row in with_pictures(rows, as_bytes)]
    datasets.Dataset.from_list(rows).to_parquet(folder / "rows.parquet")
    return f"{folder}/rows.parquet"


def write_tar(folder, rows) -> str:
    """One picture of a row is a file of its own; the rest is its .json."""
    with tarfile.open(folder / "rows.tar", "w") as tar:
        for number, row in enumerate(rows):
            files = {"json": json.dumps({k: v for k, v in row.items() if k != "image"}).encode()}
            if row.get("image") is not None:
                files = {"png": png(row["image"]), **files}
            for part, content in files.items():
                info = tarfile.TarInfo(f"./{number:05}.{part}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return f"{folder}/rows.tar"


def write_csv(folder, rows) -> str:
    names = sorted({name for row in rows for name in row})
    with (folder / "rows.csv").open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(with_pictures(rows, as_files(folder)))
    return f"{folder}/rows.csv"


def write_folder(folder, rows) -> str:
    rows = [{"file_name" if name == "image" else name: value for name, value in row.items()} for row in rows]
    lines = [json.dumps(with_pictures(row, as_files(folder))) for row in rows]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return f"{folder}/"


WRITERS = {
    "jsonl": (write_jsonl, FORMS),
    "jsonl stream": (write_jsonl, FORMS),
    "json": (write_json, FORMS),
    "wrapped json": (write_wrapped, FORMS),
    "parquet": (write_parquet, FORMS),
    "parquet stream": (write_parquet, FORMS),
    "tar": (write_tar, [name for name in FORMS if "images" not in FORMS[name][0](0)]),
    "tar stream": (write_tar, [name for name in FORMS if "images" not in FORMS[name][0](0)]),
    "csv": (write_csv, FLAT),
    "folder": (write_folder, ONE_PICTURE),
}


def opened(source: str, format: str, **config):
    stream = {"streaming": True, "buffer": 4} if "stream" in format else {}
    return open_source(SourceConfig(source, name="s", shuffle=False, **stream, **config))


def records(source, count: int) -> list:
    """Each record as `shown`, or what is wrong with it."""
    found = []
    for cursor in range(count):
        try:
            found.append(shown(source.record(cursor)))
        except ValueError as error:
            found.append(str(error))
    return found


@pytest.mark.parametrize("format", WRITERS)
def test_every_form_is_read_in_every_format(tmp_path, format):
    write, forms = WRITERS[format]
    for place, form in enumerate(forms):
        row, messages = FORMS[form]
        folder = tmp_path / str(place)
        folder.mkdir()
        source = opened(write(folder, [row(k) for k in (3, 7)]), format)
        assert records(source, 2) == [messages(3), messages(7)], form


@pytest.mark.parametrize("format", ["jsonl", "jsonl stream", "json", "tar", "tar stream"])
@pytest.mark.parametrize("seed", range(4))
def test_the_order_of_rows_changes_nothing(tmp_path, format, seed):
    """Rows of all forms in one file, and rows whose picture is a null among them."""
    write, forms = WRITERS[format]
    rows = [(FORMS[form][0](k), FORMS[form][1](k)) for k, form in enumerate(forms)]
    if "tar" not in format:
        rows += [({"image": null, "text": f"lost {k}"}, "'image' is missing") for k, null in enumerate((None, "", []))]
        rows += [({"image": None, "question": "what?", "answer": "b"}, "'image' is missing")]
    random.Random(seed).shuffle(rows)
    source = opened(write(tmp_path, [row for row, _ in rows]), format)
    whole = [messages for _, messages in rows if isinstance(messages, list)]
    found = records(source, len(source) if source.records else len(rows))
    assert [each for each in found if isinstance(each, list)] == whole
    broken = [bad.reason for bad in source.bad_records] + [each for each in found if isinstance(each, str)]
    assert len(broken) == len(rows) - len(whole)
    assert all("'image' is missing" in reason for reason in broken)


@pytest.mark.parametrize("format", ["parquet", "parquet stream", "csv", "tar", "tar stream"])
@pytest.mark.parametrize("null", [0, 2, 5, (0, 1, 2), (4, 5)])
def test_a_null_picture_is_broken_wherever_it_stands(tmp_path, format, null):
    """A table has a column for the picture in every row; in a tar the row without one has no such file: it is text."""
    nulls = (null,) if isinstance(null, int) else null
    rows = [{"image": None if k in nulls else Picture(k), "text": f"a {k}"} for k in range(6)]
    source = opened(WRITERS[format][0](tmp_path, rows), format, write="diffusion")
    found = records(source, 6 if source.records is None else source.records)
    if "tar" in format:
        lost = [[("assistant", f"a {k}")] for k in nulls]
    else:
        lost = [each for each in found if isinstance(each, str)] + [bad.reason for bad in source.bad_records]
        assert len(lost) == len(nulls)
        assert all("'image' is missing" in reason for reason in lost)
    drawn = [[("user", f"a {k}"), ("assistant", k)] for k in range(6) if k not in nulls]
    assert [each for each in found if each not in lost] == drawn
    assert "tar" not in format or [each for each in found if each in lost] == lost


@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("streaming", [False, True])
def test_a_share_of_the_records_is_read_as_the_whole_is(tmp_path, parts, shards, streaming):
    forms = list(FORMS)
    rows = [FORMS[forms[k % len(forms)]] for k in range(24)]
    for shard in range(shards):
        (tmp_path / str(shard)).mkdir()
        write_jsonl(tmp_path / str(shard), [row(k) for k, (row, _) in enumerate(rows) if k % shards == shard])
    if not streaming and shards > 1:
        pytest.skip("a source that is no stream is one file")
    whole = sorted(map(repr, (messages(k) for k, (_, messages) in enumerate(rows))))
    config = SourceConfig(
        f"{tmp_path}/*/rows.jsonl" if streaming else f"{tmp_path}/0/rows.jsonl", name="s", format="jsonl",
        images=str(tmp_path / "0"), streaming=streaming, buffer=4, shuffle=False,
    )  # fmt: skip
    for shard in range(1, shards):
        for file in (tmp_path / str(shard)).glob("*.png"):
            file.rename(tmp_path / "0" / file.name)
    found = []
    for rank in range(parts):
        source = open_source(config)
        source.use_shard(rank, parts)
        seen = []
        for cursor in range(len(rows) if streaming else len(rows) // parts):
            each = repr(shown(source.record(cursor)))
            if each in seen:  # a stream begins again
                break
            seen.append(each)
        found += seen
    assert sorted(found) == whole


# --------------------------------------------------------------------------------------------------- several and none


@pytest.mark.parametrize("format", ["jsonl", "parquet", "jsonl stream"])
def test_one_of_several_captions_is_taken_and_another_in_each_epoch(tmp_path, format):
    words = [None, "a", float("nan"), "b", "", "c"]
    rows = [
        {"image": Picture(k), "caption": [f"{w} {k}" if isinstance(w, str) and w else w for w in words]}
        for k in range(4)
    ]
    if format == "parquet":
        rows = [{**row, "caption": [w if isinstance(w, str) else None for w in row["caption"]]} for row in rows]
    source = opened(WRITERS[format][0](tmp_path, rows), format)
    epochs = [[shown(source.record(cursor))[0][1] for cursor in range(4 * e, 4 * e + 4)] for e in range(6)]
    for record in range(4):
        taken = [epoch[record] for epoch in epochs]
        assert set(taken) <= {f"{w} {record}" for w in "abc"}
        if "stream" not in format:
            assert sorted(taken) == sorted(2 * [f"{w} {record}" for w in "abc"])  # round and round
    assert len({words for epoch in epochs for words in epoch}) > 8  # of twelve, also of a stream
    again = opened(f"{source.record_source.name}", format)
    assert [shown(again.record(cursor))[0][1] for cursor in (17, 2)] == [epochs[4][1], epochs[0][2]]


@pytest.mark.parametrize(
    ("answer", "words"),
    [(1, "1"), (0, "0"), (2.5, "2.5"), (True, "true"), (False, "false"), ([None, 3], "3"), ({"answer": "a"}, "a")],
)  # fmt: skip
def test_numbers_and_truth_are_answers(tmp_path, answer, words):
    source = opened(write_jsonl(tmp_path, [{"image": Picture(1), "question": "?", "answer": answer}]), "jsonl")
    assert shown(source[0])[1] == ("assistant", words)


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"text": math.nan}, "'text' is missing"),
        ({"image": [Picture(1), Picture(2)], "text": "a"}, "2 pictures have one caption"),
        ({"image": Picture(1), "images": [Picture(2)], "text": "a"}, "both image and images hold pictures"),
        ({"images": [Picture(1), None], "text": "a"}, "picture 1 of its 2 is missing"),
        ({"image": "https://example.org/a.png", "text": "a"}, "is an address; pictures are not downloaded"),
        ({"image": 7, "text": "a"}, "the image of an image part must be .* not int"),
        ({"messages": [said("user", "<image>what?"), said("assistant", "b")]}, "1 place .*<image>.* 0 pictures"),
        ({"messages": [said("user", "what?")], "images": [Picture(1)]}, "0 places .*<image>.* 1 picture in .*images"),
        ({"messages": [said("user", [IMAGE, IMAGE])], "images": [Picture(1)]}, "2 places .* 1 picture"),
        ({"messages": [said("user", [{**IMAGE, "index": 3}])], "images": [Picture(1)]}, "index 3, but no such picture"),
        ({"messages": [said("user", "<video>what?"), said("assistant", "b")], "videos": ["a.mp4"]}, "video"),
        ({"messages": [said("user", "<video>what?"), said("assistant", "b")]}, "<video>; video is not read"),
        ({"messages": [said("user", [{"type": "video", "video": "a.mp4"}])]}, "a part of type 'video'"),
        ({"video": "a.mp4", "text": "a"}, "a video or a sound"),
        ({"messages": [said("tool", "3")]}, "message 0 has role 'tool'"),
        ({"messages": [said("assistant", None)]}, "message 0 has content None"),
        ({"messages": [said("system", "a"), said("user", "b")], "system": "c"}, "one system message stands in"),
        ({"conversations": [human("what?"), gpt("")]}, "message 1 is empty"),
        ({"image": Picture(1), "prompt": "a"}, "its columns are image, prompt, and none .*columns: {image"),
        ({"chosen": "a", "rejected": "b"}, "its columns are chosen, rejected, and none"),
        ({"text": "half \ud83d"}, "not UTF-8 text: character 6 is a lone byte or half a pair"),
        ({"image": "a" * 5000 + ".png", "text": "a"}, "File name too long"),
        ({"image": "a\0b.png", "text": "a"}, r"a\\x00b.png.* is no path"),
        ({"image": {"path": None, "bytes": None}, "text": "a"}, "picture 0 of its 1 is missing"),
    ],
)  # fmt: skip
def test_what_cannot_be_a_record_is_broken_and_nothing_else(tmp_path, row, sentence):
    good = {"image": Picture(9), "text": "good"}
    for format in ("jsonl", "jsonl stream"):
        source = opened(write_jsonl(tmp_path, [good, row, good]), format)
        found = records(source, source.records or 3)
        assert [each for each in found if isinstance(each, list)] == 2 * [[("user", "good"), ("assistant", 9)]]
        broken = [str(bad) for bad in source.bad_records] + [each for each in found if isinstance(each, str)]
        assert len(broken) == 1
        assert f"{tmp_path}/rows.jsonl:2" in broken[0]
        with pytest.raises(ValueError, match=sentence):
            raise ValueError(broken[0])
        assert len(broken[0]) < 700
        assert "\n" not in broken[0]


def test_a_source_that_writes_and_holds_no_picture_is_refused(tmp_path):
    file = write_jsonl(tmp_path, [{"text": "a"}, {"image": None, "text": "b"}])
    for format in ("jsonl", "jsonl stream"):
        with pytest.raises(ValueError, match="s: write is 'diffusion', but none of the 1 records read holds a picture"):
            opened(file, format, write="diffusion")
    assert opened(file, "jsonl").records == 1
    (tmp_path / "later").mkdir()
    rows = [{"text": f"{k}"} for k in range(50)] + [{"image": Picture(1), "text": "a"}]
    for format in ("jsonl", "jsonl stream"):
        assert opened(write_jsonl(tmp_path / "later", rows), format, write="diffusion")


def test_columns_that_are_named_must_be_there(tmp_path):
    """Else a name that is mistyped would make plain text of captioned pictures."""
    file = write_jsonl(tmp_path, [{"picture": Picture(1), "text": "a"}])
    assert shown(opened(file, "jsonl", columns={"image": "picture"})[0]) == [("user", "a"), ("assistant", 1)]
    with pytest.raises(ValueError, match="there is no column 'pictrue'; its columns are picture, text"):
        opened(file, "jsonl", columns={"image": "pictrue"})
    with pytest.raises(ValueError, match="columns says what 'picture' is, but the parts of a row are image, images"):
        opened(file, "jsonl", columns={"picture": "image"})


# --------------------------------------------------------------------------------------------------- where pictures lie


def test_pictures_are_found_however_they_are_named(tmp_path):
    import base64

    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a b.png").write_bytes(png(5))
    encoded = base64.b64encode(png(5)).decode()
    names = [
        "in/a b.png",
        "in\\a b.png",
        f"{tmp_path}/in/a b.png",
        f"file://{tmp_path}/in/a%20b.png",
        f"data:image/png;base64,{encoded}",
        encoded,
        ["in/a b.png"],
        {"path": "in/a b.png"},
        {"path": "in/a b.png", "bytes": None},
        {"url": f"data:image/png;base64,{encoded}"},
    ]
    rows = [{"image": name, "text": "a"} for name in names]
    pieces = [
        *({"type": "image", key: name} for name in names[:6] for key in ("image", "url", "path")),
        *({"type": "image_url", "image_url": url} for name in names[:6] for url in (name, {"url": name})),
        {"type": "image", "base64": encoded},
    ]
    rows += [{"messages": [said("user", [piece, text("a")]), said("assistant", "b")]} for piece in pieces]
    source = opened(write_jsonl(tmp_path, rows), "jsonl")
    assert not source.bad_records
    found = records(source, len(rows))
    assert found[: len(names)] == len(names) * [[("user", "a"), ("assistant", 5)]]
    assert found[len(names) :] == len(pieces) * [[("user", 5, "a"), ("assistant", "b")]]


def test_no_sentence_holds_the_text_of_a_picture(tmp_path):
    import base64

    encoded = base64.b64encode(png(5) + bytes(3000)).decode()
    cut = encoded[:2001]
    rows = [
        {"image": cut, "text": "a"},
        {"image": f"data:image/png;base64,{cut}", "text": "a"},
        {"messages": [said("user", [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{cut}"}}])]},
        {"messages": [said("user", [{"type": "picture", "data": encoded}])]},
        {"conversations": {"image": encoded}},
        {"messages": encoded},
        {encoded: 1},
    ]
    source = opened(write_jsonl(tmp_path, [{"text": "good"}, *rows]), "jsonl")
    broken = [str(bad) for bad in source.bad_records] + [
        each for each in records(source, len(source)) if isinstance(each, str)
    ]
    assert len(broken) == len(rows)
    for sentence in broken:
        assert encoded[:60] not in sentence
        assert len(sentence) < 900


# -------------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
@pytest.mark.parametrize("lines", [True, False])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_what_a_json_file_holds_tells_more_than_its_name(tmp_path, name, lines, mark):
    rows = [{"text": "one \u2028\x85\x0c\x0b line"}, {"text": "two"}]
    content = (
        "\r\n\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows) if lines else json.dumps(rows, indent=1)
    )
    (tmp_path / name).write_bytes((mark + content).encode())
    source = opened(f"{tmp_path}/{name}", "jsonl")
    assert records(source, len(source)) == [[("assistant", row["text"])] for row in rows]


def test_files_that_are_no_utf8_are_said_to_be_none(tmp_path):
    rows = [{"text": "é"}, {"text": "good"}]
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    for name in ("utf16.jsonl", "utf16.json", "utf16.csv"):
        (tmp_path / name).write_bytes((lines if name != "utf16.csv" else "text\né").encode("utf-16"))
        with pytest.raises(ValueError, match=f"{name}: the text is UTF-16; save the file as UTF-8"):
            opened(f"{tmp_path}/{name}", "")
    (tmp_path / "latin.jsonl").write_bytes(lines.encode("latin-1"))
    source = opened(f"{tmp_path}/latin.jsonl", "")
    assert [bad.reason for bad in source.bad_records] == ["not UTF-8 text (byte 10); save the file as UTF-8"]
    (tmp_path / "latin.json").write_bytes(json.dumps(rows, ensure_ascii=False).encode("latin-1"))
    with pytest.raises(ValueError, match="latin.json: not UTF-8 text"):
        opened(f"{tmp_path}/latin.json", "")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ('{"images": [{"id": 1}], "annotations": [{"id": 2}]}', "holds a dict with the keys images, annotations"),
        ("3", "holds a int"),
        ("{", "rows.json:1: not JSON"),
        ("", "rows.json is empty"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_json_that_holds_no_list_of_records_is_named(tmp_path, content, sentence):
    (tmp_path / "rows.json").write_text(content)
    with pytest.raises(ValueError, match=sentence):
        opened(f"{tmp_path}/rows.json", "json")


def test_a_table_as_text_is_read_with_its_lines(tmp_path):
    (tmp_path / "a.tsv").write_text('text\tn\n"two\nlines"\t1\n\tlost\nmore\t2\t3\nlast\t\n')
    source = opened(f"{tmp_path}/a.tsv", "csv")
    assert records(source, len(source)) == [[("assistant", "two\nlines")], [("assistant", "last")]]
    assert [str(bad).rpartition("/")[2] for bad in source.bad_records] == [
        "a.tsv:4: 'text' is missing; records of the form 'text' need it",
        "a.tsv:5: the row has 3 cells, more than the first line names; quote cells with commas",
    ]
    assert source.where(1).endswith("a.tsv:6")


def test_a_quote_that_is_not_closed_costs_its_own_row(tmp_path):
    """It would make all that follows one cell."""
    rows = ["text,n", 'one,"1', '"a ""b"" c",2', '"d" e,3', '"two', 'lines",4', '"cut']
    (tmp_path / "a.csv").write_text("\n".join(rows))
    source = opened(f"{tmp_path}/a.csv", "csv")
    assert [words for [(_, words)] in records(source, len(source))] == ['a "b" c', "d e", "two\nlines"]
    assert [bad.where.rpartition("/")[2] for bad in source.bad_records] == ["a.csv:2", "a.csv:7"]
    assert "a quote opens and is not closed well" in source.bad_records[0].reason


@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
def test_the_first_line_tells_what_separates_columns(tmp_path, mark):
    (tmp_path / "a.csv").write_text(f"n{mark}text\n1{mark}a red\n\n2{mark}a blue\n")
    source = opened(f"{tmp_path}/a.csv", "csv")
    assert [words for [(_, words)] in records(source, len(source))] == ["a red", "a blue"]


# ---------------------------------------------------------------------------------------------------- pictures unread


WORDS = {
    "text": {"text": "a"},
    "questions": {"question": "q", "answer": "a"},
    "alpaca": {"instruction": "q", "output": "a"},
}


@pytest.mark.parametrize("words", WORDS.values())
@pytest.mark.parametrize(
    "picture",
    ["1.png", "a/B.JPEG", "https://x.y/1.jpg?w=3", "data:image/png;base64,iVBO", ["1.webp"], {"bytes": png(1)}, png(1)],
)
def test_words_whose_picture_no_form_reads_are_broken(words, picture):
    row = {**words, "snapshot": picture, "page": "https://x.y/a.html", "n": 3}
    with pytest.raises(
        ValueError, match="s:1: the column 'snapshot' holds a picture, and no form reads it; say columns"
    ):
        record_of(row, None, {}, "s:1")
    form = next(form for form, each in WORDS.items() if each == words)
    assert record_of(row, form, {}, "s:1") == record_of(words, None, {}, "s:1")  # the way out
    record = record_of(row, None, {"image": "snapshot"}, "s:1")  # the other way out
    assert sum(part["type"] == "image" for message in record["messages"] for part in parts(message)) == 1


def tar_of(path, *members: tuple) -> str:
    """(name, bytes) is a file, (name, None) a link."""
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if content is None:
                info.type, info.linkname = tarfile.LNKTYPE, members[0][0]
            else:
                info.size = len(content)
            tar.addfile(info, io.BytesIO(content or b""))
    return str(path)


@pytest.mark.parametrize("format", ["tar", "tar stream"])
def test_a_sample_of_a_tar_never_loses_its_picture(tmp_path, format):
    members = [("0.png", png(0)), ("0.txt", b"a"), ("1.png", None), ("1.txt", b"b"), ("2.BMP", png(2)), ("2.txt", b"c")]
    members += [("3.seg.png", png(3)), ("3.txt", b"\xef\xbb\xbfd")]
    path = tar_of(tmp_path / "a.tar", *members)
    found = records(opened(path, format, write="vq"), 4)
    assert "its part 'png' is a link, and the tar holds no file there" in found[1]
    assert "the column 'seg.png' holds a picture, and no form reads it; say columns: {image: seg.png}" in found[3]
    assert [each for each in (found[0], found[2]) if isinstance(each, str)] == []
    named = opened(tar_of(tmp_path / "b.tar", *members[-2:]), format, columns={"image": "seg.png"})
    assert records(named, 1)[0][0] == ("user", "d")


@pytest.mark.parametrize("format", ["tar", "tar stream"])
def test_parts_of_a_sample_that_stand_apart_are_said(tmp_path, format):
    path = tar_of(tmp_path / "a.tar", ("9.txt", b"z"), ("0.txt", b"a"), ("9.json", b"{}"), ("8.txt", b"y"))
    source = opened(path, format)
    found = [*map(str, source.bad_records), *records(source, 4 if "stream" in format else 2)]
    said = [each for each in found if "do not follow one another in the tar; make it with tar --sort=name" in each]
    assert len(said) == 1
    assert "key '9': its parts (txt, json)" in said[0]


@pytest.mark.parametrize("format", ["parquet", "parquet stream"])
def test_a_table_without_rows_is_named(tmp_path, format):
    schema = pyarrow.schema([("text", pyarrow.string())])
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a"]}, schema), tmp_path / "0.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"text": []}, schema), tmp_path / "1.parquet")
    with pytest.raises((ValueError, OSError), match="1.parquet holds no row; remove it, or leave it out of the source"):
        opened(f"{tmp_path}/*.parquet", format)


# ------------------------------------------------------------------------------------------------------------- folders


def test_paths_of_windows_in_metadata(tmp_path):
    captioned(tmp_path / "sub", 1, suffix=".ignored")
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "sub\\1.png", "text": "a 1"}))
    assert numbers_in(tmp_path) == [1]


@pytest.mark.parametrize("content", ["", "file_name,text\n", "\n"])
def test_metadata_without_a_line_is_named(tmp_path, content):
    captioned(tmp_path, 1)
    (tmp_path / "metadata.csv").write_text(content)
    with pytest.raises(ValueError, match="metadata.csv: it names no picture; fill it, or remove it where .txt files"):
        FolderSource(tmp_path)


def captioned(folder, *numbers, suffix=".txt"):
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        (folder / f"{number}.png").write_bytes(png(number))
        (folder / f"{number}").with_suffix(suffix).write_bytes(f"\ufeffa {number}\r\n".encode())


def numbers_in(folder, **settings) -> list[int]:
    source = FolderSource(folder, **settings)
    found = [shown(source[index]) for index in range(len(source))]
    assert all(messages == [("user", f"a {messages[1][1]}"), ("assistant", messages[1][1])] for messages in found)
    return [messages[1][1] for messages in found]


def test_what_computers_leave_behind_is_no_data(tmp_path):
    captioned(tmp_path, 1, 2)
    captioned(tmp_path / ".ipynb_checkpoints", 3)
    captioned(tmp_path / "__MACOSX", 4)
    (tmp_path / "._1.png").write_bytes(b"\0\5\x16\7")
    (tmp_path / "._1.txt").write_bytes(b"\0\5\x16\7")
    (tmp_path / "Thumbs.db").write_bytes(b"x")
    assert numbers_in(tmp_path) == [1, 2]


def test_links_are_followed_and_those_that_turn_back_end(tmp_path):
    captioned(tmp_path / "data" / "here", 1)
    captioned(tmp_path / "elsewhere", 2, 3)
    (tmp_path / "data" / "there").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "here" / "up").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "4.png").symlink_to(tmp_path / "elsewhere" / "3.png")
    (tmp_path / "data" / "4.txt").write_text("a 3")
    assert numbers_in(tmp_path / "data") == [3, 1, 2, 3]
    assert open_source(SourceConfig(f"{tmp_path}/data/")).records == 4
    (tmp_path / "data" / "5.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / "data" / "5.txt").write_text("a 5")
    broken = []
    assert numbers_in(tmp_path / "data", bad_records=broken) == [3, 1, 2, 3]
    assert [bad.reason for bad in broken] == ["it is a link to a file that is not there"]


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
def test_metadata_speaks_for_the_folder_it_lies_in(tmp_path, name):
    """Also inside of a folder whose other pictures have their captions beside them, and with columns of other names."""
    captioned(tmp_path, 1)
    captioned(tmp_path / "more" / "deep", 2, 3, suffix=".ignored")
    lines = ["file_name,words", "deep/3.png,a 3", "deep/2.png,a 2"]
    if name == "metadata.jsonl":
        lines = [json.dumps(dict(zip(("file_name", "words"), line.split(","), strict=True))) for line in lines[1:]]
    (tmp_path / "more" / name).write_text("\n".join(lines), encoding="utf-8-sig")
    assert numbers_in(tmp_path, columns={"text": "words"}) == [1, 3, 2]
    with pytest.raises(ValueError, match=f"{name}:[12]: its columns are file_name, words, and none of the forms"):
        FolderSource(tmp_path)


def test_captions_may_be_called_captions(tmp_path):
    captioned(tmp_path, 1, 2, suffix=".caption")
    (tmp_path / "2.txt").write_text("a 2")
    (tmp_path / "2.caption").write_text("another")
    assert numbers_in(tmp_path) == [1, 2]


def test_of_split_folders_one_is_read(tmp_path):
    captioned(tmp_path / "train", 1)
    assert numbers_in(tmp_path) == numbers_in(tmp_path, split="train") == [1]
    captioned(tmp_path / "test", 2)
    assert numbers_in(tmp_path, split="test") == [2]
    with pytest.raises(ValueError, match="has the splits test, train; say split: one of them"):
        FolderSource(tmp_path)
    with pytest.raises(ValueError, match="has no split 'dev'; it has test, train"):
        FolderSource(tmp_path, split="dev")
    captioned(tmp_path, 3)
    assert numbers_in(tmp_path) == [3, 2, 1]  # no folder of splits: all of it is data
    assert open_source(SourceConfig(f"{tmp_path}/", split="test")).records == 1


def test_litter_in_a_tar_is_no_sample(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, content in (("./._1.png", b"x"), ("__MACOSX/1.png", b"x"), ("./1.png", png(1)), ("./1.txt", b"a 1")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    assert records(opened(f"{tmp_path}/a.tar", ""), 1) == [[("user", "a 1"), ("assistant", 1)]]
    assert opened(f"{tmp_path}/a.tar", "").records == 1


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet", "a.tar"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "is a pointer of git lfs"),
        (b"<!DOCTYPE html><html><body>log in</body></html>", "is an HTML page"),
        (b"PK\3\4" + bytes(200), "is a zip archive"),
    ],
)
def test_a_file_that_is_another_is_called_what_it_is(tmp_path, capfd, name, content, words):
    (tmp_path / name).write_bytes(content)
    for streaming in (False, True) if name not in ("a.json", "a.csv") else (False,):
        with pytest.raises(ValueError, match=f"{name} {words}.*; "):
            open_source(SourceConfig(f"{tmp_path}/{name}", streaming=streaming))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("streaming", [False, True])
def test_of_a_broken_table_our_sentence_is_all_that_is_said(tmp_path, capfd, streaming):
    (tmp_path / "a.parquet").write_bytes(b"PAR1" + bytes(50))
    with pytest.raises(
        (ValueError, OSError), match="a.parquet' cannot be opened as a data set|a.parquet cannot be read"
    ):
        open_source(SourceConfig(f"{tmp_path}/a.parquet", streaming=streaming))
    assert "Failed to read" not in capfd.readouterr().err
