"""Sources: what a config names is opened or refused; orders and dropouts are functions of a number."""

import numpy as np
import pytest

from hybridgen.data.document_source import image_first
from hybridgen.data.keyed_random import feistel_permutation, hash_uniform
from hybridgen.data.source_config import SourceConfig
from hybridgen.data.sources import open_source
from tests.data.formats.test_json_files import write_lines
from tests.data.in_memory import Listed, drawings, numbered, source_of
from tests.processors import assistant, image, tiny_processor, user


def test_a_missing_image_is_named_with_its_line(tmp_path):
    record = {"messages": [user({"type": "image", "image": "gone.png"}, "?"), assistant("red")]}
    path = write_lines(tmp_path / "a.jsonl", "", record)
    source = open_source(SourceConfig(str(path)))
    with pytest.raises(ValueError, match="a.jsonl:2: the image 'gone.png' is not there"):
        source.document(0, tiny_processor())


def test_what_the_processor_refuses_is_said_with_the_record():
    bad = source_of(Listed([[user("a <vq_placeholder>"), assistant("b")]]), name="captions")
    with pytest.raises(ValueError, match="source 'captions', record 0: a text contains '<vq_placeholder>'"):
        bad.document(0, tiny_processor())
    no_path = source_of(drawings(3), name="captions", write="vq")
    with pytest.raises(
        ValueError, match="source 'captions': no path 'vq' here; this model has: understanding, diffusion"
    ):
        no_path.check(tiny_processor(vq_token_size=None))


# ------------------------------------------------------------------------------------------------- synthetic datasets


@pytest.mark.parametrize(("dataset", "unseen"), [("dolls", "held_out"), ("emoji", "new")])
def test_synthetic_datasets_are_sources(dataset, unseen):
    processor = tiny_processor()
    draw = open_source(SourceConfig(dataset, task="draw", write="diffusion"))
    ask = open_source(SourceConfig(dataset, task="answer", read="diffusion", questions_per_picture=2))
    assert (draw.name, ask.name) == (f"{dataset}-draw-diffusion", f"{dataset}-answer-diffusion")
    assert [x.write for x in draw.document(7, processor).images] == [True]
    assert [x.write for x in ask.document(7, processor).images] == [False]
    assert np.array_equal(
        np.array(draw.pictures(3)[0]), np.array(draw[draw.index(3)]["messages"][1]["content"][0]["image"])
    )
    held_out = open_source(SourceConfig(dataset, task="draw", split=unseen), seed=4)
    assert held_out[0]["messages"] != draw[0]["messages"]


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"source": "dols", "task": "draw"}, "there is no synthetic dataset 'dols', only dolls, emoji"),
        ({"source": "dolls", "task": "paint"}, "unknown task 'paint' of dolls"),
        ({"source": "dolls", "task": "draw", "split": "test"}, "unknown split 'test' of dolls"),
        ({"source": "dolls", "task": "draw", "oversampling": {"drawf": 2}}, "oversampling of dolls has 'drawf'.*dwarf"),
        (
            {"source": "dolls", "task": "draw", "oversampling": {1: 2, "dwarf": 2}},
            "oversampling has 1; its keys are names",
        ),
        (
            {"source": "dolls", "task": "draw", "oversampling": {"dwarf": 0}},
            "oversampling has 0 for 'dwarf'; it must be",
        ),
        ({"source": "dolls"}, "dolls-understanding: task is missing"),
        (
            {"source": "x/a.jsonl", "oversampling": {"dwarf": 2}},
            "a-understanding: oversampling belongs to synthetic datasets",
        ),
        ({"source": "x/a.jsonl", "task": "draw"}, "a-draw-understanding: task belongs to synthetic datasets"),
        ({"source": "x/a.jsonl", "split": "train"}, "a-understanding: split belongs to synthetic datasets"),
        ({"source": "a.jsonl", "weight": -1}, "a-understanding: weight is -1"),
        ({"source": "a.jsonl", "weight": {0: 1, 50: -2}}, "a-understanding: weight is -2"),
        ({"source": "a.jsonl", "weight": {50: 1}}, r"a-understanding: weight is \{50: 1\}; one that changes"),
        ({"source": "a.jsonl", "prompt_dropout": 1.5}, "a-understanding: prompt_dropout is 1.5"),
        ({"source": "a.jsonl", "order": "random"}, "a-understanding: order is 'random'; use 'caption_first'"),
        ({"source": "a.jsonl", "order": 1.5}, "a-understanding: order is 1.5"),
        (
            {"source": "a.jsonl", "write": "pixels"},
            "a-pixels: write is 'pixels'; it must be one of None, understanding",
        ),
        ({"source": "a.jsonl", "read": "eyes"}, "a-eyes: read is 'eyes'"),
        ({"source": "a.jsonl", "loss_on": "user"}, "a-understanding: loss_on is 'user'"),
        ({"source": "a.jsonl", "long": "wrap"}, "a-understanding: long is 'wrap'; .* one of split, truncate, refuse"),
        ({"source": "a.jsonl", "form": "prose"}, "form is 'prose'; it must be one of messages, .*interleaved"),
        *(
            ({"source": "a.jsonl", "form": form, **given}, f"{key} is .*records of form '{form}' are .*leave it out")
            for form, key, given in (
                ("text", "write", {"write": "diffusion"}),
                ("text", "clean_copy", {"write": None, "clean_copy": True}),
                ("text", "height", {"height": 64}),
                ("text", "image_tokens", {"image_tokens": 64, "read": "diffusion"}),
                ("text", "prompt_dropout", {"prompt_dropout": 0.1}),
                ("plain", "prompt_dropout", {"prompt_dropout": 0.1}),
                ("plain", "order", {"order": "image_first"}),
                ("interleaved", "order", {"order": 0.8}),
            )
        ),
        ({"source": "a.txt", "streaming": True}, "a-understanding: streaming belongs to"),
    ],
)
def test_configs_that_cannot_be_are_refused(config, sentence):
    with pytest.raises(ValueError, match=sentence):
        open_source(SourceConfig(**config))


# ------------------------------------------------------------------------------------------------ orders


def test_image_first_exchanges_a_caption_and_its_picture_and_nothing_else():
    drawing = [user("red"), assistant(image())]
    assert image_first(drawing) == [user(image()), assistant("red")]
    for other in ([user("a"), assistant("b")], [user(image(), "a"), assistant("b")], [*drawing, user("a")]):
        assert image_first(other) == other


def test_order_and_dropout_have_their_shares_and_are_functions_of_the_number():
    processor = tiny_processor()
    mixed = source_of(drawings(500), write="diffusion", loss_on="all", order=0.8, prompt_dropout=0.3, seed=3)
    images = [mixed.document(cursor, processor).images[0] for cursor in range(500)]
    first = np.mean([x.image_first for x in images])
    assert abs(first - 0.2) < 0.05  # seen 0.19; three standard deviations of a fair draw
    assert all(x.write for x in images)
    texts = [processor.tokenizer.decode(mixed.document(cursor, processor).layout.input_ids) for cursor in range(500)]
    assert abs(np.mean(["red" not in text for text in texts]) - 0.3 * 0.8) < 0.06  # captions that come last stay
    again = source_of(mixed.record_source, write="diffusion", loss_on="all", order=0.8, prompt_dropout=0.3, seed=3)
    assert again.document(77, processor).layout == mixed.document(77, processor).layout
    other = source_of(mixed.record_source, seed=4)
    assert [mixed.index(i) for i in range(500)] != [other.index(i) for i in range(500)]


def test_every_record_comes_once_an_epoch_in_an_order_of_its_own():
    shuffled, plain = source_of(numbered(37)), source_of(numbered(37), shuffle=False)
    epochs = [[shuffled.index(epoch * 37 + place) for place in range(37)] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(37)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert [plain.index(cursor) for cursor in range(74)] == [*range(37), *range(37)]


@pytest.mark.parametrize("length", [1, 2, 3, 5, 64, 65, 1000])
def test_permutations_are_permutations(length):
    assert sorted(feistel_permutation(place, length, "key") for place in range(length)) == list(range(length))
    assert 0 <= feistel_permutation(2**31 - 1, 2**31, "key") < 2**31


def test_chance_is_even():
    draws = [hash_uniform(f"{i}") for i in range(4000)]
    counts, _ = np.histogram(draws, bins=10, range=(0, 1))
    assert counts.sum() == 4000
    assert abs(counts - 400).max() < 80


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("shards/*.tar", "shards-diffusion"),
        ("shards/{000..007}.tar", "shards-diffusion"),
        ("shards/train-{00..10}-of-11.tar", "train-of-11-diffusion"),
        ("*.tar", "diffusion"),
        ("some/captions-2.jsonl", "captions-2-diffusion"),
        ("pictures/", "pictures-diffusion"),
    ],
)
def test_a_source_without_a_name_is_called_by_its_files(source, name):
    assert SourceConfig(source, write="diffusion").name == name


# ------------------------------------------------------------------------------------------------ texts of a corpus


def corpus(folder) -> list[str]:
    texts = ["a red circle\n\non a blue ground\n", "  é 日本", "a\r\nb"]
    for number, text in enumerate(texts):
        (folder / f"{number}.txt").write_bytes(text.encode())
    (folder / "3.txt").write_bytes(b"")
    (folder / "4.txt").write_bytes(b"\xff\xfe")
    return texts


def test_a_txt_file_is_one_document_as_it_stands(tmp_path):
    texts = corpus(tmp_path)
    source = open_source(SourceConfig(f"{tmp_path}/*.txt", shuffle=False))
    processor = tiny_processor()
    tokens = processor.tokenizer
    for cursor, text in enumerate(texts):
        document = source.document(cursor, processor)
        expected = [tokens.bos_token_id, *tokens(text, add_special_tokens=False)["input_ids"], tokens.eos_token_id]
        assert document.layout.input_ids == expected
        assert source.where(cursor).endswith(f"{cursor}.txt")
    (bad,) = source.bad_records
    assert str(bad).startswith(f"source {source.name!r}, {tmp_path}/3.txt: the file is empty")
    with pytest.raises(ValueError, match="4.txt: the text is UTF-16"):
        source.document(3, processor)


def test_txt_files_that_are_not_there_or_all_empty_are_refused(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"a.txt: .*empty"):
        open_source(SourceConfig(f"{tmp_path}/a.txt"))
    with pytest.raises(ValueError, match="there is no file .*b.txt"):
        open_source(SourceConfig(f"{tmp_path}/b.txt"))
    (tmp_path / "c.txt").write_text("words")
    with pytest.raises(ValueError, match="write is 'vq', but none of the 1 records read holds a picture"):
        open_source(SourceConfig(f"{tmp_path}/c.txt", write="vq"))


def test_what_becomes_of_a_long_document_unless_its_source_says_it():
    config = SourceConfig("a.jsonl")
    assert (config.long_for(plain=True), config.long_for(plain=False)) == ("split", "refuse")
    for long in ("split", "truncate", "refuse"):
        config = SourceConfig("a.jsonl", long=long)
        assert config.long_for(plain=True) == config.long_for(plain=False) == long
