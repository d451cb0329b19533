"""What is in the data: figures that can be counted by hand."""

import json

import pytest

from hybridgen.data.inspection import count_overlap, inspect_source, measure_mixture, report_lines
from hybridgen.data.mixture import Mixture
from hybridgen.data.source_config import SourceConfig
from hybridgen.data.sources import open_source
from tests.data.in_memory import Listed, drawings, numbered, questions, source_of
from tests.processors import assistant, image, tiny_processor, user

PROCESSOR = tiny_processor()


def test_records_are_counted_as_they_are():
    source = Listed(
        [
            [user("a red circle"), assistant(image(1, 16, 8))],
            [user("red"), assistant(image(2))],
            [user("red"), assistant(image(2))],
            [user("<vq_placeholder>"), assistant(image(3))],
        ]
    )
    drawn = source_of(source, name="draw", write="diffusion", shuffle=False)
    report = inspect_source(drawn, 0, PROCESSOR)
    assert (report.records, report.read, report.repeated) == (4, 4, 1)
    assert report.sizes == {(16, 8): 1, (16, 16): 3}
    assert report.words == [3, 1, 1, 1]
    assert report.tokens == [len(drawn.document(cursor, PROCESSOR)) for cursor in range(3)]
    assert report.image_tokens == {"understanding": 0, "diffusion": 48, "vq": 0}
    assert [each.where for each in report.bad_records] == ["source 'draw', record 3"]
    assert report.bad_records[0].reason.startswith("a text contains '<vq_placeholder>', which stands for images")
    assert len(inspect_source(drawn, 2).words) == 2
    assert inspect_source(drawn, 2).tokens == []


def test_what_both_sets_share_is_found_by_content():
    training = [
        inspect_source(source_of(drawings(6), name="draw"), 0),
        inspect_source(source_of(questions(3), name="ask"), 0),
    ]
    validation = inspect_source(source_of(Listed([*drawings(9).conversations[4:]]), name="later"), 0)
    assert count_overlap(training, [validation]) == {("draw", "later"): (2, 2), ("ask", "later"): (0, 0)}
    other_words = inspect_source(source_of(Listed([[user("blue"), assistant(image(4))]]), name="other"), 0)
    assert count_overlap(training[:1], [other_words]) == {("draw", "other"): (0, 1)}
    lines = report_lines(training, [validation], overlap=count_overlap(training, [validation]))
    assert any(line.split() == ["draw", "later", "2", "2"] for line in lines)


def test_the_mix_is_what_a_run_would_draw():
    tasks = [
        source_of(drawings(50), name="a", write="diffusion", weight=3),
        source_of(numbered(50), name="b", weight=1),
    ]
    mix = measure_mixture(Mixture(tasks, temperature=2.0), PROCESSOR, 4, 96)
    expected = 3**0.5 / (3**0.5 + 1)
    assert mix.expected == pytest.approx({"a": expected, "b": 1 - expected})
    assert mix.realised == pytest.approx(mix.expected, abs=0.01)
    assert 0.9 < mix.fill <= 1
    assert mix.documents >= 500


def test_the_mix_of_weights_that_change_is_that_of_the_first_step():
    tasks = [
        source_of(numbered(50), name="a", weight={0: 3, 2: 1}),
        source_of(numbered(50), name="b", weight={0: 1, 2: 9}),
    ]
    mix = measure_mixture(Mixture(tasks), PROCESSOR, 4, 96)
    assert mix.realised == pytest.approx({"a": 0.75, "b": 0.25}, abs=0.01)
    assert mix.realised == pytest.approx(mix.expected, abs=0.01)


def test_a_broken_record_that_a_stream_brings_again_is_listed_once(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "red"}\n{"text": ""}\n{"text": "blue"}\n')
    source = open_source(SourceConfig(f"{tmp_path}/a.jsonl", name="texts", streaming=True))
    report = inspect_source(source, 0, PROCESSOR)
    source.close()
    assert report.read == 500
    assert [each.where for each in report.bad_records] == [f"source 'texts', {tmp_path}/a.jsonl:2"]


def test_long_documents_are_said_with_what_becomes_of_them(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        json.dumps({"text": "red blue " * 40}) + "\n" + json.dumps({"text": "red"}) + "\n"
    )

    def report(long):
        source = open_source(SourceConfig(f"{tmp_path}/a.jsonl", name="texts", shuffle=False, long=long))
        return inspect_source(source, 0, PROCESSOR, 30)

    split, truncated, refused = map(report, (None, "truncate", "refuse"))
    size = split.tokens[0]
    assert (split.long, split.pieces, split.lost_tokens) == (1, -(-size // 30), 0)
    said = f"texts: 1 of its documents are longer than a row and are cut into {split.pieces} pieces"
    assert said in report_lines([split])
    assert (truncated.long, truncated.pieces, truncated.lost_tokens) == (1, 1, size - 30)
    assert any(f"{size - 30} tokens are left out" in line for line in report_lines([truncated]))
    (broken,) = refused.bad_records
    assert f"the document has {size} tokens, but a row only 30" in broken.reason


@pytest.mark.parametrize(
    ("fit", "how", "count"),
    [
        ("crop", {"read": "diffusion"}, 2),
        ("crop", {"read": ["understanding", "vq"]}, 2),
        ("crop", {"read": "understanding"}, 0),  # on gray
        ("pad", {"read": "diffusion"}, 0),
        ("pad", {"write": "vq"}, 0),  # these are only read: the assistant has none
        ("crop", {"read": "diffusion", "image_tokens": 18}, 0),
    ],
)
def test_pictures_that_lose_their_sides_are_counted(fit, how, count):
    shown = [[user(image(number, *size), "?"), assistant("red")] for number, size in
             enumerate([(16, 16), (32, 16), (16, 32), (17, 16)])]  # fmt: skip
    report = inspect_source(source_of(Listed(shown), name="ask", **how), 0, tiny_processor(fit=fit))
    assert not report.bad_records
    assert report.cropped == count
    assert any("2 of its 4 pictures lose more than 10% at" in line for line in report_lines([report])) == (count == 2)


def test_pictures_that_are_drawn_fill_their_frame_and_what_they_lose_is_counted():
    drawn = Listed([[user("red"), assistant(image(0, 32, 16))]])
    assert inspect_source(source_of(drawn, write="vq"), 0, tiny_processor(fit="pad")).cropped == 1
