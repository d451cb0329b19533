"""The emoji dataset: its rows and words are true, the splits hold, and the scorer keeps its own figures."""

import json
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hybridgen.data.synthetic import emoji, open_synthetic
from hybridgen.data.synthetic.emoji.language import CATEGORIES, LANGUAGES
from hybridgen.data.synthetic.emoji.pictures import _FILE, colour_is_plain, look_up, lookalikes, main_colour, pictures
from hybridgen.data.synthetic.emoji.scoring import _candidates
from hybridgen.data.synthetic.questions import Question

PICTURES = 64


@pytest.fixture(scope="module")
def specs():
    """A mixture of all splits and styles."""
    everything = list(pictures())
    return [everything[i] for i in np.random.default_rng(0).permutation(len(everything))[:PICTURES]]


@pytest.fixture(scope="module")
def images(specs):
    return emoji.render_batch(specs)


def spoil(images, blur=1, noise=0.0, shift=0):
    """Blur by means over blur x blur pixels, then move by up to `shift` pixels, then add noise (values 0..1)."""
    rng = np.random.default_rng(1)
    x = torch.from_numpy(images).permute(0, 3, 1, 2).double() / 255
    x = F.interpolate(F.avg_pool2d(x, blur), scale_factor=blur)
    moves = rng.integers(-shift, shift + 1, (len(x), 2)) + shift
    padded = F.pad(x, (shift,) * 4, value=1.0)
    x = torch.stack([image[:, y : y + 64, z : z + 64] for image, (y, z) in zip(padded, moves, strict=True)])
    x = x + torch.from_numpy(rng.normal(0, noise, x.shape))
    return (x.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()


# ---- pictures


def test_the_file_opens_with_datasets_and_says_the_same(tmp_path):
    from datasets import load_dataset

    rows = load_dataset("parquet", data_files=str(_FILE), split="train", cache_dir=str(tmp_path))
    assert len(rows) == len(pictures()) == 7012
    row = rows[1234]
    picture = list(pictures().values())[1234]
    assert (row["label"], row["style"], row["split"]) == (*picture.spec, picture.split)
    assert row["image"].size == (64, 64)


def test_the_splits_are_what_their_names_say():
    train, combo, new = (emoji.specs_of_split(split) for split in emoji.SPLITS)
    assert (len(train), len(combo), len(new)) == (5956, 676, 377)  # a format: scores compare only while these stay
    seen = {spec.label for spec in train}
    assert not set(train) & set(combo)
    assert {spec.label for spec in combo} <= seen
    assert not {spec.label for spec in new} & seen
    shown = set(train).union(*(lookalikes().get(spec, ()) for spec in train))
    assert not shown & {*combo, *new}


def test_pictures_are_on_white(images):
    assert images.shape == (PICTURES, 64, 64, 3)
    assert np.mean(images[:, 0, 0] == 255) > 0.9


@pytest.mark.parametrize(
    ("rgb", "name"),
    [
        ((220, 30, 30), "red"),
        ((255, 150, 30), "orange"),
        ((255, 210, 60), "yellow"),
        ((40, 160, 60), "green"),
        ((50, 110, 220), "blue"),
        ((130, 80, 200), "purple"),
        ((255, 150, 190), "pink"),
        ((130, 80, 50), "brown"),
        ((20, 20, 20), "black"),
        ((250, 250, 250), "white"),
        ((140, 140, 140), "gray"),
    ],
)
def test_colours_have_their_usual_names(rgb, name):
    from PIL import Image

    picture = Image.new("RGBA", (8, 8), (*rgb, 255))
    picture.paste((0, 255, 0, 0), (0, 0, 8, 2))  # transparent: does not count
    assert main_colour(picture) == (name, 1.0)


# ---- words


def test_captions_read_back():
    rng = np.random.default_rng(2)
    for spec in pictures():
        assert emoji.parse_caption(emoji.caption(spec)) == spec
        assert emoji.parse_caption(emoji.tagged_caption(spec, rng)) == spec


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("crown", "a crown, 3d style"),
        ("eye", "an eye, 3d style"),
        ("umbrella", "an umbrella, 3d style"),
        ("unicorn", "a unicorn, 3d style"),
        ("face with rolling eyes", "a face with rolling eyes, 3d style"),
        ("woman lifting weights", "a woman lifting weights, 3d style"),
        ("grapes", "grapes, 3d style"),
        ("people holding hands", "people holding hands, 3d style"),
        ("flag: Peru", "flag: Peru, 3d style"),
        ("OK hand", "OK hand, 3d style"),
    ],
)
def test_captions_are_english(label, words):
    assert emoji.caption(emoji.EmojiSpec(label, "3d")) == words


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a crown", "cannot read the caption 'a crown'.*twitter, google, flat, 3d"),
        ("a crown, oil style", "cannot read the caption"),
        ("a krown, 3d style", "'a krown'.*names like it are.*crown"),
        ("flag: Peru, flat style", "no 'flag: Peru' in flat style.*is drawn in twitter"),
    ],
)
def test_words_that_mean_nothing_are_quoted(text, message):
    with pytest.raises(ValueError, match=message):
        emoji.parse_caption(text)


def test_questions_are_exact():
    spec = emoji.EmojiSpec("grinning face", "twitter")
    rng = np.random.default_rng(3)
    answers = {}
    for _ in range(40):  # all languages come up
        answers |= {q.question: q.answer for q in emoji.questions(spec, rng) if q.category != "yes_no"}
    assert answers == {
        "what is this?": "grinning face",
        "what kind of thing is this?": "smileys & emotion",
        "in which style is it drawn?": "twitter",
        "what is the main colour?": "yellow",
        **{f"what is this in {LANGUAGES[code]}?": name for code, name in look_up(spec).names.items()},
    }
    assert look_up(spec).names["de"] == "grinsendes Gesicht"


def test_what_has_no_exact_answer_is_not_asked(specs):
    rng = np.random.default_rng(4)
    for spec in sorted(lookalikes()):
        assert {q.category for q in emoji.questions(spec, rng)} <= {"group", "style", "main_colour"}
    for spec in specs:
        asked = "main_colour" in {q.category for q in emoji.questions(spec, rng)}
        assert asked == colour_is_plain(spec)
    assert 0.3 < np.mean([colour_is_plain(spec) for spec in specs]) < 0.8


def test_yes_and_no_are_balanced_and_a_no_is_of_the_same_subgroup(specs):
    rng = np.random.default_rng(5)
    of_name = {spec.label: picture for spec, picture in pictures().items()}
    answers, subgroups = [], []
    for spec in specs * 3:
        for question in emoji.questions(spec, rng):
            if question.category == "yes_no":
                name = question.question.removeprefix("is this ").removesuffix("?")
                said = emoji.parse_caption(f"{name}, twitter style").label
                assert question.answer == ("yes" if said == spec.label else "no")
                assert of_name[said].group == look_up(spec).group
                subgroups.append(of_name[said].subgroup == look_up(spec).subgroup)
                answers.append(question.answer)
    assert np.mean(subgroups) > 0.99  # the one amphibian has no other beside it
    assert np.mean(np.array(answers) == "yes") == pytest.approx(0.5, abs=0.1)


def test_no_constant_answer_goes_far():
    baselines = emoji.majority_baselines(400, seed=0, split="combo")
    assert set(baselines["answers"]) == {*CATEGORIES, "all"}
    assert baselines["answers"]["style"] < 0.35
    assert baselines["answers"]["group"] < 0.27
    assert baselines["answers"]["name"] < 0.02
    assert baselines["answers"]["yes_no"] < 0.56
    assert set(baselines["pictures"]) == {"emoji", "style", "picture"}
    assert baselines["pictures"]["picture"] < 0.02


# ---- records


def test_every_epoch_shows_each_picture_once():
    source = emoji.Emoji("new", "draw", seed=0)
    count = len(emoji.specs_of_split("new"))
    first, second = ([source.spec(i) for i in range(epoch * count, (epoch + 1) * count)] for epoch in (0, 1))
    assert set(first) == set(second) == set(emoji.specs_of_split("new"))
    assert first != second


@pytest.mark.parametrize("task", emoji.TASKS)
def test_a_record_depends_on_its_index_only(task):
    first, second = (emoji.Emoji("train", task, seed=7) for _ in range(2))
    forward = [first[i] for i in range(12)]
    backward = [second[i] for i in reversed(range(12))][::-1]
    assert [record["meta"] for record in forward] == [record["meta"] for record in backward]
    assert [words_of(record) for record in forward] == [words_of(record) for record in backward]
    assert json.loads(json.dumps(forward[0]["meta"])) == json.loads(json.dumps(backward[0]["meta"]))
    assert emoji.spec_of(forward[3]) == first.spec(3)


def words_of(record):
    return [part["text"] for message in record["messages"] for part in message["content"] if part["type"] == "text"]


def test_held_out_prompts_name_one_picture_and_training_varies():
    for split in ("combo", "new"):
        source = emoji.Emoji(split, "draw", seed=0)
        for i in range(50):
            assert emoji.parse_caption(words_of(source[i])[0]) == source.spec(i)
    source = emoji.Emoji("train", "draw", seed=0)
    plain = [words_of(source[i])[0] == emoji.caption(source.spec(i)) for i in range(100)]
    assert 0.3 < np.mean(plain) < 0.7


# ---- the scorer's own figures


@pytest.mark.parametrize(
    ("name", "changes", "lowest"),
    [
        # measured on 200 pictures: emoji, style and picture right
        ("true", {}, (1, 1, 1)),
        ("shift 4", {"shift": 4}, (1, 1, 1)),
        ("noise 0.1", {"noise": 0.1}, (0.97, 0.97, 0.97)),  # 0.995, 1.0, 0.995
        ("blur x4, noise 0.1, shift 4", {"blur": 4, "noise": 0.1, "shift": 4}, (0.94, 0.94, 0.92)),  # 0.985, 0.99, 0.98
    ],
)
def test_true_pictures_are_recognised_through_blur_noise_and_shift(name, changes, lowest, images, specs):
    scores = emoji.score_pictures(spoil(images, **changes), specs)
    assert {score["n"] for score in scores.values()} == {PICTURES}
    for key, least in zip(("emoji", "style", "picture"), lowest, strict=True):
        assert scores[key]["share"] >= least, (name, key, scores)


def test_smaller_pictures_are_recognised(images, specs):
    half = np.rint(images.reshape(-1, 32, 2, 32, 2, 3).mean(axis=(2, 4))).astype(np.uint8)
    assert emoji.score_pictures(half[:20], specs[:20])["picture"]["share"] == 1


@pytest.mark.parametrize("control", ["wrong", "blank"])
def test_other_pictures_are_not(control, images, specs):
    others = np.roll(images, 1, axis=0) if control == "wrong" else np.full_like(images, 255)
    scores = emoji.score_pictures(others, specs)
    assert scores["emoji"]["share"] <= 0.02
    assert scores["picture"]["share"] <= 0.02
    assert scores["style"]["share"] <= 0.4  # chance is a quarter


def test_twins_count_as_right():
    names = ("Australia", "Heard & McDonald Islands", "Spain", "Ceuta & Melilla")
    same, again, near, other = (emoji.EmojiSpec(f"flag: {name}", "twitter") for name in names)
    assert np.array_equal(emoji.render(same), emoji.render(again))
    scores = emoji.score_pictures(emoji.render_batch([same, again, near, other]), [again, same, other, near])
    assert scores["picture"]["right"] == 4


def test_the_twins_are_the_pictures_that_look_the_same():
    """None is missing: a gap in the distances separates the lookalikes from all other pairs of pictures."""
    specs, pooled = _candidates()
    grey_levels = torch.cdist(pooled, pooled) / pooled.shape[1] ** 0.5 * 255
    close = (grey_levels < 1).triu(1).nonzero().tolist()
    assert {frozenset((specs[i], specs[j])) for i, j in close} == {
        frozenset((spec, other)) for spec, group in lookalikes().items() for other in group if other != spec
    }


def test_scoring_is_fast_enough_to_be_used(images):
    emoji.nearest_specs(images[:1])  # decodes all pictures, once
    started = time.process_time()
    emoji.nearest_specs(images)
    assert time.process_time() - started < 15  # measured: 1 s for 64 pictures on one core


# ---- bad input


def test_bad_arguments_are_refused(images, specs):
    refused = [
        (lambda: emoji.Emoji("held_out", "draw", 0), "unknown split 'held_out' of emoji.*train, combo, new"),
        (lambda: emoji.render(emoji.EmojiSpec("crown", "oil")), "no 'crown' in oil style.*drawn in twitter"),
        (lambda: emoji.render(emoji.EmojiSpec("krown", "3d")), "no emoji has that name"),
        (lambda: emoji.nearest_specs(images.astype(np.float32)), "must be uint8.*float32"),
        (lambda: emoji.nearest_specs(images[:, :48, :48]), r"S = 64, 32 or 16"),
        (lambda: emoji.score_pictures(images, specs[:-1]), "64 pictures.*63 specs"),
    ]
    for call, message in refused:
        with pytest.raises(ValueError, match=message):
            call()


def test_both_datasets_offer_the_same_names():
    names = "SIZE SPLITS TASKS CATEGORIES Source Question caption parse_caption questions render render_batch spec_of"
    names += " nearest_specs judge_pictures score_pictures score_answers majority_baselines"
    for dataset in ("dolls", "emoji", "shapes"):
        assert not [name for name in names.split() if not hasattr(open_synthetic(dataset), name)]
    assert emoji.score_answers(["Krone"], [Question("translation", "?", "Krone")])["all"]["right"] == 1
