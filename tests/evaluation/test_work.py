"""A suite's work: the same in memory and in a folder, stopped anywhere and gone on with, alone and in company."""

import numpy as np
import pytest
import torch
from PIL import Image

from hybridgen.evaluation import work as module
from hybridgen.evaluation.generation import DrawSettings
from hybridgen.evaluation.processes import Processes
from hybridgen.evaluation.work import Work
from hybridgen.pipeline_hybridgen import load_pipeline

FAST = dict.fromkeys(("diffusion", "vq"), DrawSettings(steps=2, guidance=1.5))
PROMPTS = ["an orc", "an elf wearing a robe", "a dwarf", "an orc", "a human"]


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(module, "DRAWN_AT_ONCE", 2)
    monkeypatch.setattr(module, "CHUNK", 2)


def pixels(values) -> list[np.ndarray]:
    return [np.asarray(picture) for picture in values]


def same(first, second) -> bool:
    return all(np.array_equal(*pair) for pair in zip(pixels(first), pixels(second), strict=True))


@pytest.mark.parametrize("path", ["diffusion", "vq"])
def test_pictures_are_those_of_the_pipeline_with_seed_and_number(pipeline, path, small_chunks, tmp_path):
    """Whatever the chunks, in memory and read again from a folder: the same to the level."""
    pipeline.set_progress_bar_config(disable=True)
    how = FAST[path].arguments(path)
    how |= {"path": path, "height": 32, "width": 32}
    alone = [pipeline(text, seed=7 + i, **how).images[0] for i, text in enumerate(PROMPTS)]
    told = []
    work = Work(pipeline, seed=7, settings=FAST, progress=lambda *words: told.append(words))
    drawn = work.draw(path, PROMPTS, size=32)
    assert same(drawn, alone)
    assert told == [(f"drawing by {path}", done, 5) for done in (2, 4, 5)]
    assert work.seconds() > 0
    folder = Work(pipeline, seed=7, settings=FAST, out=tmp_path / "w")
    assert same(folder.draw(path, PROMPTS, size=32), alone)
    seeds = [11, 7, 8, 9, 10]
    own = folder.draw(path, PROMPTS, seeds=seeds, size=32, part="own seeds")
    assert same(own[1:2], pipeline(PROMPTS[1], seed=7, **how).images)
    assert folder.draw(path, ["an orc"], part="default size")[0].size == (32, 32)


def test_what_is_not_said_is_as_the_checkpoint_draws(tiny_checkpoint, tmp_path):
    pipeline = load_pipeline(tiny_checkpoint)
    pipeline.register_to_config(sampling_defaults={"diffusion": {"num_inference_steps": 3, "shift": 2.0}})
    pipeline.set_progress_bar_config(disable=True)
    work = Work(pipeline, settings={"vq": DrawSettings(guidance=1.0)})
    assert work.settings_of("diffusion").of_path("diffusion")["steps"] == 3
    assert work.settings_of("vq").guidance == 1.0
    assert same(work.draw("diffusion", ["an orc"]), pipeline("an orc", path="diffusion", seed=0).images)


def test_answers_are_those_of_the_pipeline(pipeline, small_chunks, tmp_path):
    images = [Image.new("RGB", (32, 32), (60 * i, 200, 30)) for i in range(4)]
    seen, questions = [images[0], None, (images[1], images[2]), images[3], images[0]], ["what is this?"] * 5
    expected = [str(pipeline.answer([each], "what is this?", path="vq", max_new_tokens=5)[0]) for each in seen]
    for out in (None, tmp_path):
        assert Work(pipeline, out=out).answer("vq", seen, questions, max_new_tokens=5) == expected
    assert len(set(expected)) > 1


def test_what_was_done_is_not_done_again_and_what_was_not_is(tmp_path):
    """Stopped in the third chunk, and in the middle of a picture's write; what that leaves does not disturb."""
    picture = Image.new("RGB", (4, 4), (1, 2, 3))
    done, stop_at = [], {3}

    def value(i: int) -> dict:
        if i in stop_at:
            stop_at.remove(i)
            raise KeyboardInterrupt
        done.append(i)
        return {"number": i / 3, "nested": [picture, {"again": picture}], "text": "one é 😀", "none": None}

    with pytest.raises(KeyboardInterrupt):
        Work(None, out=tmp_path).each(5, value, "part")
    assert sorted(file.name for file in (tmp_path / "part").glob("*.json")) == [f"00000{i}.json" for i in range(3)]
    (tmp_path / "part" / "000003.png").write_bytes(b"\x89PNG half of a pict")
    again = Work(None, out=tmp_path).each(5, value, "part")
    assert done == [0, 1, 2, 3, 4]
    whole = Work(None).each(5, value, "part")
    for one, other in zip(again, whole, strict=True):
        assert [one["number"], one["text"], one["none"]] == [other["number"], other["text"], other["none"]]
        assert same([one["nested"][0], one["nested"][1]["again"]], [picture, picture])
    assert again[1]["nested"][0].filename == str(tmp_path / "part" / "000001.png")


def test_arrays_are_kept_beside_as_they_are(tmp_path):
    def value(i: int) -> dict:
        return {"rows": np.arange(6, dtype=np.float32).reshape(2, 3) / 3 + i, "more": [np.array([i, 2])], "i": i}

    for out in (None, tmp_path):
        values = Work(None, out=out).each(3, value, "part")
        for i, kept in enumerate(values):
            assert kept["i"] == i
            assert kept["rows"].dtype == np.float32
            assert np.array_equal(kept["rows"], value(i)["rows"])
            assert np.array_equal(kept["more"][0], [i, 2])
    assert {"000002.json", "000002.npy", "000002-1.npy"} <= {file.name for file in (tmp_path / "part").iterdir()}


def test_a_chunk_that_was_cut_off_is_said_to_be(tmp_path):
    """A file appears whole or not at all, so this is a damaged disk, and not ours to guess at."""
    Work(None, out=tmp_path).each(2, float, "part")
    for broken in ('{"seconds": 0.0, "val', '{"seconds": 0.0, "values": []}', "[1]", '{"values": "1"}'):
        (tmp_path / "part" / "000001.json").write_text(broken)
        with pytest.raises(ValueError, match="000001.json does not hold the 1 finished items that it should; delete"):
            Work(None, out=tmp_path).each(2, float, "part")


def test_one_part_is_one_piece_of_work():
    work = Work(None, "mine")
    work.each(1, float, "part")
    with pytest.raises(ValueError, match="suite mine does 'part' twice"):
        work.each(1, float, "part")


class TwoInTurn(Processes):
    """Process 0 or 1 of two that run one after the other and share a folder."""

    def gather(self, value):
        return [value] * self.count


def test_each_process_does_every_second_chunk(tmp_path):
    """The first stops where it would wait for the other; both together have done each chunk once."""
    done: dict[int, list] = {0: [], 1: []}
    for rank in (0, 1):
        work = Work(None, out=tmp_path, processes=TwoInTurn(rank, 2))
        do = lambda numbers, rank=rank: done[rank].extend(numbers) or [float(i) for i in numbers]  # noqa: E731
        if rank == 0:
            with pytest.raises(ValueError, match="000002.json does not hold the 2 finished items"):
                work.batches(7, do, "part", "label", 2)
        else:
            values = work.batches(7, do, "part", "label", 2)
    assert done == {0: [0, 1, 4, 5], 1: [2, 3, 6]}
    assert list(values) == [float(i) for i in range(7)]


# ---------------------------------------------------------------------------------------------------- likelihoods


def test_choices_are_weighed_as_the_model_weighs_them(pipeline, small_chunks, tmp_path):
    """By the mean log-likelihood of an answer's tokens and the end of the turn, of the model's own forward."""
    images = [Image.new("RGB", (32, 32), (40 * i, 90, 200 - 40 * i)) for i in range(3)]
    choices = [["an orc", "an elf wearing a robe"], ["yes", "no", "a dwarf"], ["no", "yes"]]
    questions = ["what is this?", "is it an elf?", "is it a dwarf?"]
    means = []
    for image, question, of_one in zip(images, questions, choices, strict=True):
        means.append([])
        for answer in of_one:
            content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
            messages = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
            document = pipeline.processor.document(messages, read="understanding")
            inputs = pipeline.prompt_inputs([document])
            with torch.no_grad():
                loss = pipeline.model(**inputs, labels=torch.tensor([document.layout.labels])).loss
            means[-1].append(-float(loss))
    weighed = Work(pipeline).likelihoods("understanding", images[:1] * 2, questions[:1] * 2, choices[0])
    assert [one.mean for one in weighed] == pytest.approx(means[0], abs=1e-5)  # measured: 3e-7
    for out in (None, tmp_path):
        chosen = Work(pipeline, out=out).choose("understanding", images, questions, choices)
        assert chosen == [max(range(len(each)), key=each.__getitem__) for each in means]


def test_texts_are_scored_as_the_model_scores_them(pipeline, small_chunks, tmp_path):
    texts = ["an orc wearing a robe", "an elf", ""]
    tokenizer = pipeline.processor.tokenizer
    expected = []
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        first = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        with torch.no_grad():
            logits = pipeline.model(input_ids=torch.tensor([[first, *ids]])).logits[0].double().log_softmax(-1)
        expected.append(sum(float(logits[i, token]) for i, token in enumerate(ids)))
    for out in (None, tmp_path):
        assert Work(pipeline, out=out).score_text(texts) == pytest.approx(expected, abs=1e-4)  # measured: 8e-7


# ------------------------------------------------------------------------------------------------ what is refused


def test_what_a_suite_cannot_have_is_refused_in_a_sentence(pipeline, tmp_path):
    work = Work(pipeline, "mine", samples=9, options={"chats": "many", "weights": str(tmp_path / "w.pt"), "side": "0"})
    assert Work(pipeline, "mine").count(8, 4) == 4
    assert Work(pipeline, "mine").count(3, 4) == 3
    assert work.count(9, 4) == 9
    for refused, message in (
        (lambda: work.count(8, 4), "9 samples cannot be taken of suite mine, which has 8; take 1 to 8"),
        (lambda: work.number("chats", 4), "option chats of suite mine is 'many'; give a whole number of at least 1"),
        (lambda: work.number("side", 4), "option side of suite mine is '0'"),
        (lambda: work.file("weights", "get them from X"), "option weights of suite mine: there is no .*w.pt; get them"),
        (lambda: work.file("judge", "get it from X"), "suite mine needs --option judge=FILE: get it from X"),
        (work.require_drawing, "suite mine draws pictures, but there is no path to draw by"),
        (work.require_answering, "suite mine asks questions, but there is no path to answer through"),
    ):
        with pytest.raises(ValueError, match=message):
            refused()
    assert work.number("else", 4) == 4
    (tmp_path / "w.pt").write_text("")
    assert work.file("weights", "") == tmp_path / "w.pt"
