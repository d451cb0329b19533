"""The dolls dataset: what it draws and says is true, the split holds, and the scorer keeps its own figures."""

import json
import re
import time
from collections import Counter

import numpy as np
import pytest

from hybridgen.data.records import check_record
from hybridgen.data.synthetic import dolls, open_synthetic
from hybridgen.data.synthetic.dolls.language import CATEGORIES, reasoning
from hybridgen.data.synthetic.dolls.pictures import LAYER_SLOTS, decode, encode, is_legible, layers
from hybridgen.data.synthetic.questions import Question

PICTURES = 128


@pytest.fixture(scope="module")
def specs():
    """Half seen, half held-out figures."""
    rng = np.random.default_rng(0)
    return [dolls.draw_spec(rng, held_out=i % 2 == 1) for i in range(PICTURES)]


@pytest.fixture(scope="module")
def images(specs):
    return dolls.render_batch(specs)


def add_noise(images, deviation):
    noisy = images + np.random.default_rng(1).normal(0, deviation, images.shape)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


def blur(images, factor):
    """Mean over factor x factor pixels, spread out again."""
    n, side = len(images), dolls.SIZE // factor
    small = images.reshape(n, side, factor, side, factor, 3).mean(axis=(2, 4))
    return np.rint(small).astype(np.uint8).repeat(factor, axis=1).repeat(factor, axis=2)


# ---- pictures


def test_drawing_equals_pillows_compositing_within_rounding(specs):
    from PIL import Image

    from hybridgen.data.synthetic.dolls import pictures as dolls_pictures

    with np.load(dolls_pictures._ASSETS / "dolls_layers.npz") as stored:
        for spec in specs[:16]:
            canvas = Image.new("RGBA", (32, 32), dolls_pictures.backgrounds()[spec.background])
            for slot in LAYER_SLOTS:
                if getattr(spec, slot) is not None:
                    canvas.alpha_composite(Image.fromarray(stored[slot][getattr(spec, slot)]))
            difference = np.asarray(canvas.convert("RGB")).astype(int) - np.asarray(dolls.render(spec))
            assert np.abs(difference).max() <= 1  # measured: 1, where a layer is translucent


def test_a_batch_draws_what_each_spec_draws_alone(specs, images):
    assert np.array_equal(images, np.stack([np.asarray(dolls.render(spec)) for spec in specs]))
    assert decode(encode(specs)) == specs


def test_man_and_dwarf_are_one_picture_under_a_black_hood_and_never_drawn(specs):
    bases, heads = ([layer.phrase for layer in layers()[slot]] for slot in ("base", "head"))
    hooded = specs[0]._replace(head=heads.index("black hood"), cloak=None)
    man, dwarf = (hooded._replace(base=bases.index(name)) for name in ("man", "dwarf"))
    assert np.array_equal(dolls.render(man), dolls.render(dwarf))
    assert not is_legible(man)
    assert not is_legible(dwarf)
    assert dolls.score_pictures(dolls.render_batch([man]), [dwarf])["all_seven"]["right"] == 1


def test_the_random_figures_leave_slots_empty_as_often_as_stated():
    rng = np.random.default_rng(2)
    rows = encode([dolls.draw_spec(rng) for _ in range(4000)])
    empty = dict(zip(dolls.SLOTS, (rows < 0).mean(axis=0), strict=True))
    for slot, share in {"cloak": 0.5, "body": 0.12, "head": 0.35, "hand1": 0.16, "hand2": 0.34, "base": 0}.items():
        assert empty[slot] == pytest.approx(share, abs=0.03), slot


# ---- the split


def test_training_never_shows_a_held_out_pair_but_both_parts_of_each():
    rng = np.random.default_rng(3)
    held_out = dolls.held_out_pairs()
    seen = Counter((spec.base, spec.body) for spec in (dolls.draw_spec(rng) for _ in range(8000)))
    assert not held_out & seen.keys()
    assert {base for base, _ in held_out} <= {base for base, _ in seen}
    assert {body for _, body in held_out} <= {body for _, body in seen}
    assert all((spec.base, spec.body) in held_out for spec in (dolls.draw_spec(rng, held_out=True) for _ in range(500)))


def test_the_held_out_pairs_are_a_format():
    """Scores of different versions compare only while these pairs stay the same."""
    pairs = sorted(dolls.held_out_pairs())
    assert len(pairs) == 36  # 11 % of 18 x 18
    assert pairs[:4] == [(0, 9), (0, 14), (1, 2), (1, 13)]


# ---- words


def test_captions_read_back(specs):
    rng = np.random.default_rng(4)
    for spec in specs + [dolls.draw_spec(rng) for _ in range(3000)]:
        text = dolls.caption(spec)
        assert dolls.parse_caption(text) == spec, text
        assert 4 <= len(text.split()) <= 28


def test_captions_are_english():
    spec = dolls.parse_caption(
        "A minotaur wearing white wizard hat and a gray robe holding the gold tower shield,  Black background."
    )
    assert dolls.caption(spec) == (
        "a minotaur wearing a gray robe and a white wizard hat, holding a gold tower shield, black background"
    )
    assert dolls.caption(spec._replace(body=10, hand1=0)) == (
        "a minotaur wearing chain mail and a white wizard hat, "
        "holding a dagger and a gold tower shield, black background"
    )
    bare = spec._replace(body=None, head=None, hand2=None, base=2)
    assert dolls.caption(bare) == "an elf, black background"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a unicorn, black background", "'a unicorn'"),
        ("a man wearing purple trousers, black background", "'purple trousers'"),
        ("a man wearing a dagger, black background", "'a dagger'"),
        ("a man holding a dagger and a club, black background", "'a club'.*one hand1 too many"),
        ("a man, pink background", "'pink'"),
        ("a man", "cannot read the caption 'a man'"),
    ],
)
def test_words_that_mean_nothing_are_quoted(text, words):
    with pytest.raises(ValueError, match=words):
        dolls.parse_caption(text)


def test_questions_are_exact():
    spec = dolls.parse_caption(
        "an elf wearing a red robe, a blue cloak and a green wizard hat, holding a purple book, sand background"
    )
    answers = {q.category: q.answer for q in dolls.questions(spec, np.random.default_rng(0)) if q.category != "yes_no"}
    assert answers == {
        "creature": "elf",
        "background": "sand",
        "worn": "robe",
        "head": "wizard hat",
        "right_hand": "nothing",
        "left_hand": "book",
        "hands": "one",
        "robe_colour": "red",
        "cloak_colour": "blue",
        "book_colour": "purple",
        "hat_colour": "green",
    }


def test_yes_and_no_are_balanced_and_true(specs):
    rng = np.random.default_rng(5)
    asked = [(spec, q) for spec in specs * 4 for q in dolls.questions(spec, rng) if q.category == "yes_no"]
    for spec, question in asked:
        thing = question.question.removeprefix("is there ").removesuffix("?").removeprefix("an ").removeprefix("a ")
        parts = [layers()[slot][getattr(spec, slot)] for slot in LAYER_SLOTS if getattr(spec, slot) is not None]
        present = {part.phrase for part in parts} | {part.kind for part in parts}
        assert question.answer == ("yes" if thing in present else "no"), (question, present)
    assert np.mean([q.answer == "yes" for _, q in asked]) == pytest.approx(0.5, abs=0.08)


def test_no_constant_answer_goes_far():
    baselines = dolls.majority_baselines(1500, seed=0)
    assert set(baselines["answers"]) == {*CATEGORIES, "all"}
    expected = {
        "worn": 0.49,
        "right_hand": 0.16,
        "left_hand": 0.34,
        "head": 0.35,
        "hands": 0.56,
        "creature": 0.06,
        "background": 0.18,
    }
    for category, share in expected.items():
        assert baselines["answers"][category] == pytest.approx(share, abs=0.04), category
    assert baselines["answers"]["yes_no"] < 0.55
    assert set(baselines["pictures"]) == {*dolls.SLOTS, "slots", "all_seven"}
    assert baselines["pictures"]["slots"] == pytest.approx(0.24, abs=0.03)


# ---- records


def test_records_are_chat_messages_and_their_meta_survives_json():
    record = dolls.Dolls("held_out", "draw", seed=1)[5]
    (user, assistant) = record["messages"]
    assert user == {"role": "user", "content": [{"type": "text", "text": dolls.caption(dolls.spec_of(record))}]}
    assert assistant["role"] == "assistant"
    assert assistant["content"][0]["image"].size == (32, 32)
    again = dict(record, meta=json.loads(json.dumps(record["meta"])))
    assert dolls.spec_of(again) == dolls.spec_of(record)


def test_questions_follow_one_another_in_one_conversation():
    record = dolls.Dolls("train", "answer", seed=1, questions_per_picture=3)[5]
    kinds = [[part["type"] for part in message["content"]] for message in record["messages"]]
    assert kinds == [["image", "text"], ["text"], ["text"], ["text"], ["text"], ["text"]]
    said = [message["content"][-1]["text"] for message in record["messages"]]
    assert [[q, a] for _, q, a in record["meta"]["questions"]] == [
        [q, a] for q, a in zip(said[::2], said[1::2], strict=True)
    ]


def test_more_yes_no_questions_are_asked_where_wanted():
    usual, more = (dolls.Dolls("train", "answer", seed=1, yes_no_questions=count) for count in (1, 4))
    for index in range(20):
        one, four = (sorted(source[index]["meta"]["questions"]) for source in (usual, more))
        assert sum(category == "yes_no" for category, _, _ in one) == 1
        assert sum(category == "yes_no" for category, _, _ in four) == 4
        assert [q for q in one if q[0] != "yes_no"] == [q for q in four if q[0] != "yes_no"]
        assert usual.spec(index) == more.spec(index)


@pytest.mark.parametrize("dataset", ["dolls", "emoji"])
def test_reasoning_says_what_a_yes_or_no_follows_from(dataset):
    source = open_synthetic(dataset).Source
    plain, reasoned = (source("train", "answer", 1, yes_no_questions=4, reasoning=given) for given in (False, True))
    words = set()
    for index in range(150):
        record = check_record(reasoned[index], "here")
        thoughts = [message.pop("reasoning_content", None) for message in record["messages"]]
        said = [[m["role"], m["content"][-1]["text"]] for m in record["messages"]]
        assert said == [[m["role"], m["content"][-1]["text"]] for m in plain[index]["messages"]]
        assert record["meta"] == plain[index]["meta"]
        assert set(thoughts[::2]) == {None}
        for thought, (category, question, answer) in zip(thoughts[1::2], record["meta"]["questions"], strict=True):
            assert (thought is not None) == (category == "yes_no")
            if thought is not None:
                asked = re.sub(r"^is (this|there) (an? )?|\?$", "", question)
                assert (thought == asked) == (answer == "yes")
                words.add(thought)
    assert len(words) > 30


def test_reasoning_names_what_the_figure_has_in_that_place():
    spec = dolls.parse_caption("a man wearing a gray robe, holding a spear, black background")
    for asked, thought in {
        "a gray robe": "gray robe",
        "a robe": "robe",
        "a red robe": "gray robe",
        "plate armour": "gray robe",
        "a cloak": "nothing",
        "a trident": "spear",
        "an orc": "man",
    }.items():
        question = dolls.Question("yes_no", f"is there {asked}?", "no")
        assert reasoning(spec, question) == thought


def test_only_the_categories_that_are_named_are_asked_where_they_apply():
    every, some = (dolls.Dolls("train", "answer", 1, categories=names) for names in (None, ["robe_colour", "hands"]))
    for index in range(20):
        asked = [question for question in every[index]["meta"]["questions"] if question[0] in some.categories]
        assert sorted(some[index]["meta"]["questions"]) == sorted(asked)
        assert some.spec(index) == every.spec(index)
    rare = dolls.Dolls("train", "answer", 1, categories=["robe_colour"])
    asked = [{category for category, _, _ in rare[index]["meta"]["questions"]} for index in range(20)]
    assert {"robe_colour"} in asked
    assert any("creature" in kinds for kinds in asked)  # no robe: all that apply


def test_things_are_shown_as_often_as_their_chances_say():
    figures, oversampling = 600, {"dwarf": 6, "man": 3, "pumpkin head": 9}
    some = dolls.Dolls("train", "draw", seed=1, oversampling=oversampling)
    shown = Counter(layers()["base"][some.spec(index).base].phrase for index in range(figures))
    rest = 18 + 6 + 3 - 2  # the weights of all creatures
    for name in ("dwarf", "man", "elf"):  # a little rarer: twins under a pumpkin head are drawn again
        share = oversampling.get(name, 1) / rest
        assert shown[name] / figures == pytest.approx(share, abs=4 * (share / figures) ** 0.5)
    assert not {(spec.base, spec.body) for spec in map(some.spec, range(figures))} & dolls.held_out_pairs()
    plain, none = (dolls.Dolls("train", "draw", 1, oversampling=given) for given in (None, {"dwarf": 1}))
    assert [plain.spec(index) for index in range(20)] == [none.spec(index) for index in range(20)]


def test_a_record_depends_on_its_index_only():
    first, second = (dolls.Dolls("train", "answer", seed=7) for _ in range(2))
    forward = [first[i]["meta"] for i in range(20)]
    assert [second[i]["meta"] for i in reversed(range(20))][::-1] == forward
    assert dolls.Dolls("train", "answer", seed=8)[0]["meta"] != forward[0]
    assert np.array_equal(first.picture(3), first[3]["messages"][0]["content"][0]["image"])
    assert dolls.Dolls("train", "draw", seed=7).spec(3) == first.spec(3)
    assert len(first) == 2**31
    assert first[2**31 - 1]


# ---- the scorer's own figures


@pytest.mark.parametrize(
    ("name", "spoil", "slots", "all_seven"),
    [
        # measured on 256 pictures, shares of slots and of whole pictures
        ("true", lambda x: x, (1, 1), (1, 1)),
        ("noise 40/255", lambda x: add_noise(x, 40), (0.98, 1), (0.94, 1)),  # 0.997, 0.977
        (
            "blur x2, noise 20",
            lambda x: add_noise(blur(x, 2), 20),
            (0.99, 1),
            (0.97, 1),
        ),  # 1.0, 1.0: pooling undoes this blur
        ("blur x4", lambda x: blur(x, 4), (0.65, 0.9), (0.02, 0.3)),  # 0.73, 0.11
        ("blank", lambda x: np.full_like(x, 128), (0, 0.3), (0, 0)),  # 0.17, 0
        ("wrong", lambda x: np.roll(x, 2, axis=0), (0, 0.25), (0, 0.02)),  # 0.12, 0
    ],
)
def test_what_the_scorer_says_of_true_and_spoilt_pictures(name, spoil, slots, all_seven, images, specs):
    scores = dolls.score_pictures(spoil(images), specs)
    assert set(scores) == {*dolls.SLOTS, "slots", "all_seven"}
    assert scores["slots"]["n"] == 7 * PICTURES
    assert scores["all_seven"]["n"] == PICTURES
    assert slots[0] <= scores["slots"]["share"] <= slots[1], (name, scores["slots"])
    assert all_seven[0] <= scores["all_seven"]["share"] <= all_seven[1], (name, scores["all_seven"])


def test_one_wrong_slot_is_one_wrong_slot(images, specs):
    asked = [spec._replace(hand2=None if spec.hand2 == 3 else 3) for spec in specs]
    scores = dolls.score_pictures(images, asked)
    assert scores["hand2"]["right"] == scores["all_seven"]["right"] == 0
    assert scores["slots"]["right"] == 6 * PICTURES


def test_scoring_is_fast_enough_to_be_used(images):
    started = time.process_time()
    dolls.nearest_specs(images)
    assert time.process_time() - started < 10  # measured: 0.5 s for 128 pictures on one core


def test_answers_are_compared_after_normalisation():
    asked = [Question("head", "?", "wizard hat"), Question("head", "?", "hood"), Question("hands", "?", "two")]
    scores = dolls.score_answers([" Wizard  hat.", "crown", "two"], asked)
    assert scores["head"] == {"right": 1, "n": 2, "share": 0.5}
    assert scores["hands"]["right"] == 1
    assert scores["all"] == {"right": 2, "n": 3, "share": pytest.approx(2 / 3)}


# ---- bad input


def test_bad_arguments_are_refused(images, specs):
    refused = [
        (lambda: open_synthetic("cats"), "unknown dataset 'cats'.*dolls, emoji"),
        (lambda: dolls.Dolls("test", "draw", 0), "unknown split 'test'.*train, held_out"),
        (lambda: dolls.Dolls("train", "paint", 0), "unknown task 'paint'.*draw, answer"),
        (lambda: dolls.Dolls("train", "draw", -1), "negative"),
        (lambda: dolls.Dolls("train", "answer", 0, questions_per_picture=0), "questions_per_picture is 0"),
        (lambda: dolls.Dolls("train", "answer", 0, yes_no_questions=0), "yes_no_questions is 0"),
        (lambda: dolls.Dolls("train", "answer", 0, categories=["hat"]), "questions has 'hat': choose among creature"),
        (lambda: dolls.Dolls("train", "answer", 0, categories=[]), "questions is empty: choose among creature"),
        (
            lambda: dolls.Dolls("train", "draw", 0, oversampling={"dwarfs": 2}),
            "oversampling of dolls has 'dwarfs'.*mean dwarf",
        ),
        (
            lambda: open_synthetic("emoji").Source("train", "draw", 0, oversampling={"cat": 2}),
            "oversampling of emoji has 'cat'.*none",
        ),
        (lambda: dolls.render(specs[0]._replace(head=99)), "head 99 does not exist: it is 0 to 24, or None"),
        (lambda: dolls.render(specs[0]._replace(base=None)), "base -1 does not exist"),
        (lambda: dolls.render(specs[0]._replace(background="pink")), "unknown background 'pink'"),
        (lambda: dolls.nearest_specs(images.astype(np.float32)), "must be uint8.*float32"),
        (lambda: dolls.nearest_specs(images[:, :16]), r"\(n, S, S, 3\)"),
        (lambda: dolls.score_pictures(images, specs[:-1]), "128 pictures.*127 specs"),
        (lambda: dolls.score_answers(["a"], []), "1 answers.*0 questions"),
    ]
    for call, message in refused:
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(IndexError, match="record -1 does not exist"):
        dolls.Dolls("train", "draw", 0)[-1]
