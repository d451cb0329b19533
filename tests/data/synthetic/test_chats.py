"""Conversations of several turns: their kinds, what is learnt of them, and answers that follow from the pictures."""

from collections import Counter

import numpy as np
import pytest

from hybridgen.core.messages import check_messages, parts
from hybridgen.data.synthetic import chats, dolls, emoji
from hybridgen.data.synthetic.dolls.language import questions as questions_of
from hybridgen.data.synthetic.emoji import Source as Emoji

ASKED = {"questions_per_picture": 4, "yes_no_questions": 2, "reasoning": True}
MANY = 300


@pytest.fixture(scope="module")
def source():
    return dolls.Dolls("train", "chat", seed=3, open_captions=0.3, **ASKED)


@pytest.fixture(scope="module")
def records(source):
    return [source[index] for index in range(MANY)]


def text_of(message: dict) -> str:
    return "".join(part["text"] for part in parts(message) if part["type"] == "text")


def pictures_of(message: dict) -> list:
    return [part["image"] for part in parts(message) if part["type"] == "image"]


def kind_of(messages: list[dict]) -> str:
    """By what is shown, drawn and asked: `s` a picture of the user's, `d` one of the assistant's, `a` a text of it."""
    letters = ""
    for message in messages:
        has_picture = bool(pictures_of(message))
        letters += {"user": "s" * has_picture, "assistant": "d" if has_picture else "a"}[message["role"]]
    return letters


def test_records_are_conversations_and_the_same_each_time(source, records):
    for index in (0, 1, 17, 299):
        again, before = source[index], records[index]
        assert list(map(text_of, again["messages"])) == list(map(text_of, before["messages"]))
        first, second = (
            [np.asarray(image) for message in record["messages"] for image in pictures_of(message)]
            for record in (again, before)
        )
        assert len(first) == len(second)
        assert all(map(np.array_equal, first, second))
        check_messages(again["messages"])
        assert again["messages"][-1]["role"] == "assistant"


def test_all_kinds_come_about_as_often_as_stated(records):
    letters = Counter(kind_of(record["messages"]) for record in records)
    shares = {
        "draw twice": letters["dd"] / MANY,
        "show, ask, draw": (letters["sd"] + letters["sad"] + letters["saad"]) / MANY,
        "words": (letters["a"] + letters["ad"]) / MANY,
    }
    for kind, share in shares.items():
        assert share == pytest.approx(chats.KINDS[kind], abs=0.07), kind
    assert any(kind.startswith("da") for kind in letters)
    assert any(kind.startswith("dda") for kind in letters)


def test_only_a_picture_that_ends_a_conversation_is_learnt(records):
    for record in records:
        for place, message in enumerate(record["messages"]):
            ends = place == len(record["messages"]) - 1
            drawn = bool(pictures_of(message)) and message["role"] == "assistant"
            assert (message.get("weight") == 0) == (drawn and not ends)


def test_answers_are_those_to_the_picture_asked_about(records):
    """The picture shows the spec of the record, and each answer is the one that the spec has to the question."""
    seen = Counter()
    for record in records:
        spec, asked = dolls.spec_of(record), record["meta"]["questions"]
        said = {text_of(a): text_of(b) for a, b in zip(record["messages"], record["messages"][1:], strict=False)}
        right = {question.question: question.answer for question in questions_of(spec, np.random.default_rng(0))}
        pictures = [image for message in record["messages"] for image in pictures_of(message)]
        if not asked:
            continue
        about_first = asked[0][1].startswith(chats.OF_THE_FIRST)
        shown = "d" not in kind_of(record["messages"])[:1]
        about = pictures[0] if about_first or shown or len(pictures) == 1 else pictures[1]
        assert np.array_equal(np.asarray(about), np.asarray(dolls.render(spec)))
        for category, question, answer in asked:
            assert said[question] == answer
            plain = question.removeprefix(chats.OF_THE_FIRST)
            if category != "yes_no":
                assert right[plain] == answer
            seen[category, about_first] += 1
    assert sum(count for (_, first), count in seen.items() if first) > 20


def test_words_get_words(records):
    replies = {words: reply for reply, said in chats.WORDS.items() for words in said}
    greeted = [record["messages"] for record in records if kind_of(record["messages"]) == "a"]
    assert len(greeted) > 20
    for user, assistant in greeted:
        words = text_of(user).lower().rstrip(".!")
        expected = replies.get(words) or replies.get(words + "?") or replies.get(text_of(user).lower())
        assert text_of(assistant) == (expected or chats.NO_PICTURE), text_of(user)


def test_an_open_caption_says_nothing_wrong_and_leaves_something_out():
    source = dolls.Dolls("train", "draw", seed=5, open_captions=1.0)
    without_background = 0
    for index in range(200):
        words, spec = text_of(source[index]["messages"][0]), source.spec(index)
        assert words != dolls.caption(spec)
        allowed = set(dolls.caption(spec).replace(",", "").split()) | {"figure", "armour", "feather", "hat", "shield"}
        allowed |= {"a", "an"}
        assert set(words.replace(",", "").split()) <= allowed, (words, dolls.caption(spec))
        without_background += "background" not in words
    assert 100 < without_background < 190


def test_without_open_captions_nothing_changes():
    plain = dolls.Dolls("train", "draw", seed=5)
    assert all(text_of(plain[index]["messages"][0]) == dolls.caption(plain.spec(index)) for index in range(50))


def test_a_dataset_without_open_captions_says_so():
    class Closed(Emoji):
        has_open_captions = False

    with pytest.raises(ValueError, match="emoji has no captions that leave something open; leave open_captions out"):
        Closed("train", "draw", 0, open_captions=1.0)


def test_open_captions_of_emoji_leave_the_style_out():
    source = Emoji("train", "draw", 0, open_captions=1.0)
    for index in range(50):
        words, spec = text_of(source[index]["messages"][0]), source.spec(index)
        assert emoji.caption(spec) == f"{words}, {spec.style} style"


def test_conversations_about_emoji():
    source = Emoji("train", "chat", 0, questions_per_picture=2)
    assert {len(source[index]["messages"]) % 2 for index in range(30)} == {0}
