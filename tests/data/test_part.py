"""Parts of a source: together all records, none in two of them, and the same ones for every seed."""

import json

import pytest

from hybridgen.data.source_config import SourceConfig
from hybridgen.data.sources import open_source


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": f"text {number}"}) + "\n" for number in range(41)))
    return path


def words(source) -> list[str]:
    return [source[index]["messages"][0]["content"][0]["text"] for index in range(len(source))]


def test_two_parts_are_the_whole_and_share_nothing(file):
    whole = words(open_source(SourceConfig(str(file))))
    first = None
    for seed in (0, 7):
        kept = open_source(SourceConfig(str(file), part=[0, 0.9]), seed)
        held_out = open_source(SourceConfig(str(file), part=[0.9, 1.0]), seed)
        assert (len(kept), len(held_out)) == (37, 4)
        assert sorted(words(kept) + words(held_out)) == sorted(whole)
        first = first or words(held_out)
        assert words(held_out) == first
    assert first != whole[-4:]  # spread over the file


def test_a_part_is_read_named_and_shuffled_as_its_whole(file):
    source = open_source(SourceConfig(str(file), part=[0.5, 1]))
    for cursor in range(2 * len(source)):
        text = source.record(cursor)["messages"][0]["content"][0]["text"]
        assert source.where(cursor).endswith(f"texts.jsonl:{int(text.split()[1]) + 1}")
    assert source.fingerprint == open_source(SourceConfig(str(file))).fingerprint
    with pytest.raises(IndexError, match="has records 0 to 20, not 21"):
        source[21]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"part": [0.9]}, r"part is \[0.9\]; give two shares in order"),
        ({"part": [0.9, 0.5]}, "give two shares in order"),
        ({"part": [0.5, 1.1]}, "give two shares in order"),
        ({"part": [0.99, 1.0]}, "of the 41 records of .* holds none; make it larger"),
        ({"part": [0.5, 1], "streaming": True}, "the records of a stream are not counted"),
    ],
)
def test_parts_that_cannot_be_are_refused(file, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        open_source(SourceConfig(str(file), **settings))


def test_a_synthetic_dataset_has_no_parts():
    with pytest.raises(ValueError, match="part belongs to"):
        SourceConfig("dolls", task="draw", part=[0, 0.5])
