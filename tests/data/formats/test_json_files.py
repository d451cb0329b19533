"""JSON files: records by file and line; a bad line is refused when the file is opened."""

import json

import numpy as np
import pytest

from hybridgen.data.formats.json_files import JsonlSource
from tests.processors import assistant, picture, user


def write_lines(path, *lines):
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return path


def test_json_lines_give_records_with_pictures(tmp_path):
    picture(seed=5).save(tmp_path / "five.png")
    drawing = {"messages": [user("röt"), assistant({"type": "image", "image": "five.png"})]}
    path = write_lines(tmp_path / "a.jsonl", drawing, "", {"messages": [user("b"), assistant("c")]})
    source = JsonlSource(path)
    assert len(source) == 2
    assert np.array_equal(np.array(source[0]["messages"][1]["content"][0]["image"]), np.array(picture(seed=5)))
    assert source[0]["messages"][0] == user("röt")
    assert source[1]["messages"] == [user("b"), assistant("c")]
    assert source.where(1) == f"{path}:3"
    with pytest.raises(IndexError, match="records 0 to 1, not 2"):
        source[2]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ('{"messages": [}', r"a.jsonl:2: not a JSON object \(Expecting value at column 15\)"),
        ('"messages"', "a.jsonl:2: a record must be an object"),
        ('{"messages": []}', "a.jsonl:2: messages must be a list of at least one message"),
        ('{"messages": [{"role": "bot", "content": "a"}]}', "a.jsonl:2: message 0 has role 'bot'"),
        (
            '{"messages": [{"role": "user", "content": [{"type": "image"}]}]}',
            "a.jsonl:2: 1 place for .*, but 0 pictures",
        ),
    ],
)
def test_a_bad_line_is_refused_when_the_file_is_opened(tmp_path, line, sentence):
    good = {"messages": [user("b"), assistant("c")]}
    with pytest.raises(ValueError, match=sentence):
        JsonlSource(write_lines(tmp_path / "a.jsonl", good, line, good))


def test_files_that_hold_nothing_are_refused(tmp_path):
    with pytest.raises(
        ValueError, match="there is no file .*none.jsonl; a source is a .jsonl file or the name of a synthetic dataset"
    ):
        JsonlSource(tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match="empty.jsonl holds no record"):
        JsonlSource(write_lines(tmp_path / "empty.jsonl", ""))
    (tmp_path / "latin.jsonl").write_bytes('{"messages": "é"}'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin.jsonl:1: not UTF-8 text \(byte 14\); save the file as UTF-8"):
        JsonlSource(tmp_path / "latin.jsonl")
