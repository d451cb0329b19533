"""Loading: batches as the model takes them, one stream for any number of ranks, and exact positions."""

import itertools
import json
import re
import threading

import pytest
import torch

from hybridgen.core.layout import IGNORE
from hybridgen.data.loading import RowLoader, collate, merge_positions
from hybridgen.data.mixture import Mixture
from hybridgen.processing_hybridgen import HybridGenProcessor, image_token_ids
from tests.data.in_memory import documents_of, drawings, numbered, questions, same, source_of
from tests.models import inputs_of, text_config, tiny_config, tiny_model
from tests.processors import assistant, image, tiny_processor, tiny_tokenizer, user

PROCESSOR = tiny_processor()


def loader(rows=3, length=96, processor=PROCESSOR, **how) -> RowLoader:
    tasks = [
        source_of(drawings(50), 1, "draw", write="diffusion", prompt_dropout=0.3, order=0.7, loss_on="all"),
        source_of(drawings(30), 1, "codes", write="vq"),
        source_of(questions(40), 1, "ask"),
        source_of(numbered(17), 1, "text", weight=0.5),
    ]
    return RowLoader(Mixture(tasks), processor, rows, length, **how)


def take(stream, count: int) -> list[dict]:
    return list(itertools.islice(stream, count))


# ------------------------------------------------------------------------------------------------------- collate


def test_a_batch_holds_every_image_of_its_path_in_reading_order():
    first = PROCESSOR.document([user("red"), assistant(image(1))], write="diffusion", clean_copy=True)
    second = PROCESSOR.document([user(image(2)), assistant("red")], read="diffusion")
    third = PROCESSOR.document([user(image(3), "?"), assistant(image(4))], write="vq")
    batch = collate([[first, second], [third], []], 64, 0, [10, 11, 12])
    assert batch["input_ids"].shape == (3, 64)
    assert batch["row_numbers"].tolist() == [10, 11, 12]
    assert batch["diffusion_noised"].tolist() == [True, False, False]
    assert batch["diffusion_image_first"].tolist() == [False, False, True]
    assert batch["diffusion_rows"].tolist() == [0, 0, 0]
    expected = [image.pixels for document in (first, second) for image in document.images]
    assert torch.equal(batch["diffusion_images"], torch.stack(expected))
    assert torch.equal(batch["pixel_values"], third.images[0].pixels[None])
    assert torch.equal(batch["vq_images"], third.images[1].pixels[None])
    assert batch["document_ids"][2].eq(-1).all()
    assert batch["noised_mask"].dtype == torch.bool
    assert batch["noised_mask"].sum() == 16
    assert batch["labels"].dtype == torch.long
    assert batch["labels"][2].eq(IGNORE).all()


def test_a_batch_without_a_modality_lacks_its_keys():
    batch = collate([[PROCESSOR.document([user("red"), assistant("blue")])]], 16, 0, [0])
    assert sorted(batch) == sorted(
        [
            "input_ids",
            "document_ids",
            "block_ids",
            "noised_mask",
            "position_ids",
            "labels",
            "code_labels",
            "row_numbers",
        ]
    )


def test_images_of_various_sizes_are_a_list():
    small = PROCESSOR.document([user("red"), assistant(image())], write="diffusion", height=8, width=8)
    large = PROCESSOR.document([user("red"), assistant(image())], write="diffusion")
    batch = collate([[small, large]], 64, 0, [0])
    assert [tuple(x.shape) for x in batch["diffusion_images"]] == [(3, 8, 8), (3, 16, 16)]


def test_the_model_takes_batches_as_they_come():
    tokenizer = tiny_tokenizer()
    config = tiny_config(text_config=text_config(vocab_size=len(tokenizer)), **image_token_ids(tokenizer))
    processor = HybridGenProcessor.for_config(config, tokenizer, vq_factor=4)
    batch = next(loader(processor=processor, prefetch=0))
    codes = torch.zeros(16 * len(batch["vq_images"]), dtype=torch.long)
    names = ("input_ids", "document_ids", "block_ids", "noised_mask", "position_ids", "pixel_values")
    images = batch["diffusion_images"]
    timesteps = torch.where(batch["diffusion_noised"], 500.0, 0.0)
    outputs = tiny_model(config)(
        **inputs_of({name: batch[name] for name in names}), latents=images, timesteps=timesteps, codes=codes
    )
    assert outputs.logits.shape == (3, 96, len(tokenizer))
    assert outputs.prediction.shape == images.shape


# -------------------------------------------------------------------------------------------------------- stream


@pytest.mark.parametrize("prefetch", [0, 2])
def test_the_same_stream_again_and_again(prefetch):
    first, second = take(loader(prefetch=prefetch), 6), take(loader(prefetch=0), 6)
    assert all(map(same, first, second))
    assert first[1]["row_numbers"].tolist() == [3, 4, 5]


@pytest.mark.parametrize("prefetch", [0, 3])
@pytest.mark.parametrize("after", [0, 1, 5])
def test_an_interrupted_stream_goes_on_exactly(prefetch, after):
    whole = take(loader(prefetch=0), after + 4)
    interrupted = loader(prefetch=prefetch)
    take(interrupted, after)
    state = json.loads(json.dumps(interrupted.state_dict()))
    resumed = loader(prefetch=prefetch)
    take(resumed, 2)  # it had begun elsewhere
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    assert all(map(same, take(resumed, 4), whole[after:]))
    interrupted.close()  # what the thread had prepared ahead is made again
    assert all(map(same, take(interrupted, 4), whole[after:]))


@pytest.mark.parametrize("prefetch", [0, 2])
def test_each_batch_is_prepared_once_where_it_is_made(prefetch):
    threads = []

    def prepare(batch: dict) -> dict:
        threads.append(threading.current_thread().name)
        return batch | {"added": batch["row_numbers"] * 2}

    stream = loader(prefetch=prefetch, prepare=prepare)
    for plain, prepared in zip(take(loader(prefetch=0), 3), take(stream, 3), strict=True):
        assert torch.equal(prepared.pop("added"), 2 * plain["row_numbers"])
        assert same(plain, prepared)
    stream.close()
    assert set(threads) == {"hybridgen-loader" if prefetch else "MainThread"}


def test_two_ranks_see_what_one_with_twice_the_rows_sees():
    whole = take(loader(rows=4, prefetch=0), 5)
    ranks = [take(loader(rows=2, rank=rank, world_size=2), 5) for rank in range(2)]
    for one, *parts in zip(whole, *ranks, strict=True):
        for name in one:
            if name == "diffusion_rows":
                continue
            if name == "records":
                assert one[name] == [record for part in parts for record in part[name]]
                continue
            assert same(one[name], torch.cat([part[name] for part in parts if name in part])), name
        rows = torch.cat([part["diffusion_rows"] + 2 * rank for rank, part in enumerate(parts)])
        assert torch.equal(one["diffusion_rows"], rows)
    one, *ranks = [
        loader(rows=4 // world, rank=rank, world_size=world, prefetch=0) for world, rank in ((1, 0), (2, 0), (2, 1))
    ]
    states = [json.loads(json.dumps(take(each, 3) and each.state_dict())) for each in (one, *ranks)]
    assert merge_positions(states[1:]) == states[0]


@pytest.mark.parametrize(("count", "rows"), [(101, 2), (8, 4), (3, 5), (1, 3)])
@pytest.mark.parametrize("shuffle", [False, True])
def test_rows_together_draw_every_document_once_an_epoch(count, rows, shuffle):
    """However far each has come: those that a row did not draw of the epochs so far are its own next ones."""
    source = source_of(numbered(count), name="text", shuffle=shuffle)
    stream = RowLoader(Mixture([source]), PROCESSOR, rows, 80, prefetch=0)
    found = []
    for _ in range(-(-3 * count // rows)):
        found += [int(re.search(r"<n (\d+)>", words)[1]) for words in documents_of(next(stream), PROCESSOR.tokenizer)]
    found += [source.index(drawn.cursor) for row in stream.streams for drawn in row.waiting]
    laps = max(row.cursors["text"] for row in stream.streams)
    for row in stream.streams:
        found += [source.index(lap * rows + row.row) for lap in range(row.cursors["text"], laps)]
    assert laps * rows >= 3 * count
    whole, rest = divmod(laps * rows, count)
    assert {found.count(number) for number in range(count)} <= {whole, whole + (rest > 0)}
    if not shuffle:
        first = [source.index(row) for row in range(rows)]
        assert first == [row % count for row in range(rows)]  # the first batch begins with the first records


def test_no_row_meets_the_same_few_records_alone():
    """Eight rows and as many records, not shuffled: each row meets all of them."""
    stream = RowLoader(Mixture([source_of(numbered(8), name="text", shuffle=False)]), PROCESSOR, 8, 48, prefetch=0)
    met = [set() for _ in range(8)]
    for batch in take(stream, 40):
        for row, ids in zip(met, batch["input_ids"], strict=True):
            row |= set(re.findall(r"<n (\d+)>", PROCESSOR.tokenizer.decode(ids)))
    assert all(len(row) == 8 for row in met)


def test_figures_are_those_of_what_was_handed_out():
    stream = loader(rows=4, length=128, prefetch=3)
    assert stream.fill_rate() == 0
    assert set(stream.shares().values()) == {0.0}
    batches = take(stream, 40)
    real = sum(int((batch["document_ids"] >= 0).sum()) for batch in batches)
    assert stream.fill_rate() == real / (40 * 4 * 128)
    assert stream.fill_rate() > 0.98  # seen 0.994
    shares, weights = stream.shares(), stream.mixture.weights_at(0)
    assert all(abs(shares[name] - weights[name]) < 0.01 for name in weights)


# ------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize("reading", [0, 2])
def test_threads_of_the_loader_have_no_team_of_their_own(reading):
    """torch computes in each of them alone, and in all others, also later ones, as it did."""
    before, seen = torch.get_num_threads(), []
    torch.set_num_threads(3)
    try:

        class Counted(list):
            def __getitem__(self, place):
                if threading.current_thread() is not threading.main_thread():
                    seen.append((threading.current_thread().name.split("_")[0], torch.get_num_threads()))
                return super().__getitem__(place)

        records = numbered(17)
        records.conversations = Counted(records.conversations)
        stream = RowLoader(
            Mixture([source_of(records, name="text")], loader_threads=reading), PROCESSOR, 2, 96,
            prepare=lambda batch: seen.append((threading.current_thread().name, torch.get_num_threads())) or batch,
        )  # fmt: skip
        take(stream, 4)
        stream.close()
        later = []
        thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert {name for name, _ in seen} == {"hybridgen-loader"} | ({"hybridgen-data"} if reading else set())
        assert {threads for _, threads in seen} == {1}
        assert (torch.get_num_threads(), later) == (3, [3])
    finally:
        torch.set_num_threads(before)


def test_errors_of_the_thread_are_raised_where_a_batch_is_asked_for():
    broken = numbered(10)
    broken.conversations[7] = [user("what?"), assistant(" red" * 200)]
    stream = RowLoader(Mixture([source_of(broken, name="text", shuffle=False)]), PROCESSOR, 1, 60)
    for _ in range(2):  # asked again, it says so again
        with pytest.raises(ValueError, match="source 'text', record 7: the document has 20. tokens, but a row only 60"):
            take(stream, 10)


def test_what_cannot_be_loaded_is_refused_before_anything_is_read():
    no_vq = tiny_processor(vq_token_size=None)
    with pytest.raises(ValueError, match="source 'codes': no path 'vq' here; this model has: understanding, diffusion"):
        loader(processor=no_vq)
    no_eyes = tiny_processor(num_image_tokens=None)
    with pytest.raises(ValueError, match="source 'ask', record .*: no path 'understanding' here"):
        loader(processor=no_eyes)
    for how, sentence in (
        ({"rows": 0}, "rows is 0; it must be at least 1"),
        ({"prefetch": -1}, "prefetch is -1; it must be at least 0"),
        ({"rank": 2, "world_size": 2}, "rank 2 does not exist among 2"),
    ):
        with pytest.raises(ValueError, match=sentence):
            loader(**how)


def test_a_position_of_other_rows_is_refused():
    state = loader(rows=4).state_dict()
    loader(rows=2, world_size=2).load_state_dict(state)  # the same steps, divided otherwise
    with pytest.raises(ValueError, match="is of batches of 4 rows of 96 tokens, but now 3 rows of 96"):
        loader(rows=3).load_state_dict(state)
