"""Where tokens and pictures came from, against the texts themselves, and bytes counted by hand."""

import pytest
import torch

from hybridgen.data.attribution import NO_SOURCE, text_bytes
from hybridgen.data.loading import RowLoader
from hybridgen.data.mixture import Mixture
from tests.data.in_memory import Listed, drawings, numbered, source_of
from tests.processors import JANUS, assistant, image, tiny_processor, user

PROCESSOR = tiny_processor()


def test_every_token_is_of_the_entry_that_its_text_names():
    names = ("first", "second")
    loader = RowLoader(
        Mixture([source_of(numbered(9, name), name=name) for name in names]), PROCESSOR, 3, 96, prefetch=0
    )
    for _ in range(2):
        batch = next(loader)
        assert torch.equal(batch["source_ids"] == NO_SOURCE, batch["document_ids"] < 0)
        rows = zip(batch["input_ids"], batch["document_ids"], batch["source_ids"], strict=True)
        for ids, documents, sources in rows:
            for document in range(int(documents.max()) + 1):
                (source,) = sources[documents == document].unique().tolist()
                assert f"<{names[source]} " in PROCESSOR.tokenizer.decode(ids[documents == document])


def test_pictures_of_the_diffusion_path_are_told_in_reading_order():
    tasks = [
        source_of(drawings(9), name="vq", write="vq"),
        source_of(drawings(9), name="drawn", write="diffusion", clean_copy=True),
        source_of(Listed([[user(image(1)), assistant("red")]]), name="read", read="diffusion"),
    ]
    batch = next(RowLoader(Mixture(tasks), PROCESSOR, 3, 96, prefetch=0))
    placeholder, expected = PROCESSOR.special_tokens.diffusion, []
    for ids, sources in zip(batch["input_ids"], batch["source_ids"], strict=True):
        expected += sources[ids == placeholder][::16].tolist()  # 16 tokens per picture, a clean copy's too
    assert batch["diffusion_sources"].tolist() == expected
    assert set(expected) == {1, 2}
    assert len(expected) == len(batch["diffusion_images"])
    only_text = next(RowLoader(Mixture([source_of(numbered(5))]), PROCESSOR, 1, 96, prefetch=0))
    assert "diffusion_sources" not in only_text


@pytest.mark.parametrize(
    ("messages", "settings", "size"),
    [
        ([user("what?"), assistant("red")], {}, 3),
        ([user("what?"), assistant("blå ✓ 红")], {}, 12),  # 4 + 1 + 3 + 1 + 3
        ([user("what?"), assistant("red"), user("and?"), assistant("blue")], {}, 7),
        ([user("red"), assistant(image(1))], {"write": "diffusion"}, 0),
        ([user("red"), assistant(image(1))], {"write": "diffusion", "loss_on": "all"}, 3),
        ([user("red"), assistant("so", image(1), "be")], {"write": "vq"}, 4),
    ],
)
def test_bytes_are_those_of_the_text_that_is_taught(messages, settings, size):
    assert text_bytes(PROCESSOR.document(messages, **settings), PROCESSOR) == size


def test_bytes_follow_the_template():
    """Janus' writes a space before what the assistant says, which the model learns to write."""
    processor = tiny_processor(chat_template=JANUS)
    assert text_bytes(processor.document([user("what?"), assistant("red")]), processor) == 4


def test_bytes_of_a_batch_add_up_by_entry():
    tasks = [source_of(Listed([[user("a"), assistant("red")]]), name="x"), source_of(drawings(5), name="y", write="vq")]
    loader = RowLoader(Mixture(tasks), PROCESSOR, 4, 96, prefetch=0)
    batch = next(loader)
    documents = sum(
        int((sources[row == document] == 0).any())
        for row, sources in zip(batch["document_ids"], batch["source_ids"], strict=True)
        for document in range(int(row.max()) + 1)
    )
    assert batch["text_bytes"].sum(0).tolist() == [3 * documents, 0]
    assert documents > 1
