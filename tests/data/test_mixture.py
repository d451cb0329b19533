"""The mixture: realised shares of tokens, weights that change, a position to go on from."""

import json

import pytest

from hybridgen.data.loading import RowLoader
from hybridgen.data.mixture import Mixture
from hybridgen.data.row_stream import RowStream
from hybridgen.data.source_config import SourceConfig
from hybridgen.data.sources import open_source
from tests.data.in_memory import Listed, drawings, numbered, questions, source_of
from tests.processors import assistant, tiny_processor, user

WEIGHTS = [5.0, 3.0, 1.5, 0.5]


def four_tasks(seed: int = 0) -> list:
    return [
        source_of(drawings(50), seed, "draw", write="diffusion"),
        source_of(drawings(30), seed, "codes", write="vq"),
        source_of(questions(40), seed, "ask"),
        source_of(numbered(7), seed, "text"),
    ]


def row(mixture: Mixture, processor=None, number: int = 0, rows: int = 1, length: int = 96) -> RowStream:
    return RowStream(mixture, processor or tiny_processor(), number, rows, length)


@pytest.mark.parametrize(("number", "rows"), [(0, 1), (5, 8)])
def test_shares_of_tokens_are_the_weights(number, rows):
    stream = row(Mixture(four_tasks(), WEIGHTS), None, number, rows)
    longest = 0
    for _ in range(3000):
        longest = max(longest, len(stream.draw()))
        total = sum(stream.tokens.values())
        for name, weight in stream.mixture.weights_at(
            0
        ).items():  # never off by more than a few documents, from the first on
            assert abs(stream.tokens[name] - weight * total) <= 3 * longest  # worst seen 2.1
    for name, weight in zip(stream.tokens, WEIGHTS, strict=True):
        share = stream.tokens[name] / sum(stream.tokens.values())
        assert abs(share - weight / 10) < 0.01 * weight / 10  # within 1 % of each weight; worst seen 0.2 %


def test_weights_that_change_hold_from_their_step_and_nothing_is_caught_up_on():
    mixture = Mixture(four_tasks(), [{0: 0, 2: 6.0}, 2.0, {0: 6.0, 2: 0}, {0: 2.0, 2: 2.0}])
    stream = row(mixture)
    expected = [{"draw": 0, "codes": 0.2, "ask": 0.6, "text": 0.2}, {"draw": 0.6, "codes": 0.2, "ask": 0, "text": 0.2}]
    before = dict.fromkeys(stream.tokens, 0)
    for steps, shares in ((range(2), expected[0]), (range(2, 9), expected[1])):
        for step in steps:
            assert mixture.weights_at(step) == pytest.approx(shares)
            for _ in range(1000 // len(steps)):
                stream.draw(step)
        drawn = {name: tokens - before[name] for name, tokens in stream.tokens.items()}
        before = dict(stream.tokens)
        for name, share in shares.items():
            assert drawn[name] / sum(drawn.values()) == pytest.approx(share, abs=0.005)


@pytest.mark.parametrize("weights", [WEIGHTS, [{0: 5.0, 7: 0.0}, 3.0, 1.5, {0: 0.5, 12: 9.0}]])
def test_a_row_goes_on_from_its_state(weights):
    processor = tiny_processor()
    stream = row(Mixture(four_tasks(), weights), processor, 1, 3)
    for number in range(100):
        stream.draw(number // 10)
    state = json.loads(json.dumps(stream.state_dict()))
    expected = [stream.draw(10 + number // 10) for number in range(50)]
    again = row(Mixture(four_tasks(), weights), processor, 1, 3)
    again.load_state_dict(state)
    found = [again.draw(10 + number // 10) for number in range(50)]
    assert [(x.source.name, x.cursor) for x in found] == [(x.source.name, x.cursor) for x in expected]
    assert [x.document.layout for x in found] == [x.document.layout for x in expected]
    assert [x.where for x in found] == [x.where for x in expected]


def test_a_weight_of_zero_is_never_drawn():
    tasks = [source_of(numbered(5), name=name, weight=weight) for name, weight in (("a", 0), ("b", 1), ("c", 1))]
    for number in range(3):
        stream = row(Mixture(tasks), None, number, 3)
        assert {stream.draw().source.name for _ in range(10)} == {"b", "c"}
        assert stream.tokens["a"] == 0


@pytest.mark.parametrize(
    ("names", "weights", "sentence"),
    [
        ([], None, "no data: name at least one source"),
        (["a", "a"], None, "two sources are called 'a'; give each a name of its own"),
        (["a", "b"], [1, -1], r"weights \[1, -1\] cannot be shares"),
        (["a", "b"], [0, 0], r"weights \[0, 0\] cannot be shares"),
        (["a", "b"], [{0: 1, 5: 0}, {0: 1, 9: 0}], r"weights \[0, 0\] cannot be shares"),
        (["a", "b"], [1], "1 weights are given for 2 sources"),
    ],
)
def test_mixtures_that_cannot_be_are_refused(names, weights, sentence):
    with pytest.raises(ValueError, match=sentence):
        Mixture([source_of(numbered(3), name=name) for name in names], weights)


def test_a_document_longer_than_the_model_has_positions_is_broken():
    """Positions count from 0 in each document, so rows may be longer. What a source begins with is known at the
    start, before a batch is asked for."""
    processor = tiny_processor()
    records = Listed([[user("what?"), assistant(text)] for text in ("red " * 40, "red", "blue", "green")])
    mixture = Mixture([source_of(records, name="text", shuffle=False)], max_broken=1, max_positions=24)
    loader = RowLoader(mixture, processor, 1, 96, prefetch=0)
    batch = next(loader)
    (bad,) = loader.bad_records()
    assert "tokens, but the model only 24 positions (text_config.max_position_embeddings); raise it to at" in bad.reason
    assert int(batch["position_ids"].max()) < 24
    assert len(batch["records"]) > 1
    strict = Mixture([source_of(records, name="text", shuffle=False)], max_positions=24)
    with pytest.raises(ValueError, match="but the model only 24 positions"):
        RowLoader(strict, processor, 1, 96, prefetch=0)


def test_a_state_of_other_sources_is_refused():
    def loader(name: str) -> RowLoader:
        return RowLoader(Mixture([source_of(numbered(3), name=name)]), tiny_processor(), 1, 96, prefetch=0)

    with pytest.raises(ValueError, match="the saved position is of the sources a, but the config names b"):
        loader("b").load_state_dict(loader("a").state_dict())


def test_data_that_changed_since_a_state_was_saved_are_named(tmp_path):
    """By the number of records, else by the names and sizes of files; that they lie elsewhere is no change."""
    lines = [json.dumps({"text": f"line {number}"}) + "\n" for number in range(12)]

    def mixture(folder: str, lines: list[str], **config) -> Mixture:
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "a.jsonl").write_text("".join(lines))
        return Mixture([open_source(SourceConfig(f"{tmp_path}/{folder}/a.jsonl", name="words", **config))])

    state = json.loads(json.dumps(mixture("a", lines).state_dict()))
    assert mixture("b", lines).changes(state) == []
    assert mixture("a", lines[:5]).changes(state) == ["words has 5 records, 12 before"]
    changed = mixture("a", [*lines[:-1], lines[-1].replace("line", "a line")]).changes(state)
    assert changed == ["words has 1 file of 232 bytes, 1 file of 230 bytes before"]
    streamed = {"streaming": True, "buffer": 4}
    state = mixture("a", lines, **streamed).state_dict()
    assert mixture("a", lines, **streamed).changes(state) == []
    assert len(mixture("a", lines[1:], **streamed).changes(state)) == 1
    (tmp_path / "a" / "a.jsonl").rename(tmp_path / "a" / "b.jsonl")
    renamed = Mixture([open_source(SourceConfig(f"{tmp_path}/a/b.jsonl", name="words", **streamed))])
    assert renamed.changes(mixture("a", lines[1:], **streamed).state_dict()) == [
        "the files of words have other names or sizes than before"
    ]
    assert mixture("a", lines).changes({}) == []  # an older state
