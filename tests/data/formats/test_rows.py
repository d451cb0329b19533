"""Rows: each form becomes chat records; what is wrong with a row is named."""

import copy
import random

import pytest

from hybridgen.data.formats import conversations
from hybridgen.data.formats.conversations import conversation
from hybridgen.data.formats.fields import Fields
from hybridgen.data.formats.rows import find_form, record_of
from hybridgen.data.records import text_part


def turn(role: str, *content) -> dict:
    return {"role": role, "content": [{"type": "text", "text": x} if isinstance(x, str) else x for x in content]}


A, B = {"type": "image", "image": "a.png"}, {"type": "image", "image": "b.png"}
MMC4 = {
    "text_list": ["one", "two", "three"],
    "image_info": [
        {"image_name": "b.png", "matched_text_index": 2, "matched_sim": 0.3},
        {"image_name": "a.png", "matched_text_index": 0, "raw_url": "https://example.org/a.png"},
    ],
}


@pytest.mark.parametrize(
    ("row", "form", "messages"),
    [
        ({"image": "a.png", "text": "a"}, "captions", [turn("user", "a"), turn("assistant", A)]),
        ({"jpg": "a.png", "json": {"caption": "a"}}, "captions", [turn("user", "a"), turn("assistant", A)]),
        ({"png": "a.png", "txt": b"a\n"}, "captions", [turn("user", "a"), turn("assistant", A)]),
        ({"image": "a.png", "caption": ["a", "other"]}, "captions", [turn("user", "a"), turn("assistant", A)]),
        (
            {"image": "a.png", "question": "what?", "answer": "b"},
            "questions",
            [turn("user", A, "what?"), turn("assistant", "b")],
        ),
        (
            {
                "id": "1",
                "image": "a.png",
                "conversations": [
                    {"from": "human", "value": "<image>\nwhat?"},
                    {"from": "gpt", "value": "red"},
                    {"from": "human", "value": "sure?"},
                    {"from": "gpt", "value": "yes"},
                ],
            },
            "llava",
            [turn("user", A, "what?"), turn("assistant", "red"), turn("user", "sure?"), turn("assistant", "yes")],
        ),
        (
            {
                "image": ["a.png", "b.png"],
                "conversations": [
                    {"from": "human", "value": "<image> or\n<image>"},
                    {"from": "gpt", "value": "the first"},
                ],
            },
            "llava",
            [turn("user", A, " or", B), turn("assistant", "the first")],
        ),
        (
            {"conversations": [{"from": "system", "value": "be brief"}, {"from": "gpt", "value": "yes"}]},
            "llava",
            [turn("system", "be brief"), turn("assistant", "yes")],
        ),
        (
            {"texts": ["one", None, "two", "three"], "images": [None, "a.png", None, None]},
            "obelics",
            [turn("assistant", "one", A, "two\n\nthree")],
        ),
        (MMC4, "mmc4", [turn("assistant", A, "one\n\ntwo", B, "three")]),
    ],
)
def test_rows_of_each_form_become_chat_records(row, form, messages):
    assert find_form(Fields(row, {}, "here")) == form
    assert record_of(row, form, {}, "here") == {"messages": messages}


LLAVA = {
    "image": "a.png",
    "conversations": [{"from": "human", "value": "describe it\n<image>"}, {"from": "gpt", "value": "a red circle"}],
}
OBELICS = {"texts": ["one", None], "images": [None, "a.png"]}


@pytest.mark.parametrize(
    ("row", "form", "messages"),
    [
        ({"text": " a\n"}, "text", [turn("assistant", " a\n")]),  # as it stands
        ({"content": "def f():\n    pass\n"}, "text", [turn("assistant", "def f():\n    pass\n")]),
        ({"text": ["a", "b "]}, "text", [turn("assistant", "a")]),
        (LLAVA, "plain", [turn("user", A), turn("assistant", "a red circle")]),
        ({"image": "a.png", "text": " a "}, "plain", [turn("user", A), turn("assistant", "a")]),
        (
            {"messages": [turn("user", A, "what is it?"), {"role": "assistant", "content": "a"}]},
            "plain",
            [turn("user", A), turn("assistant", "a")],
        ),
        (OBELICS, "interleaved", [turn("assistant", "one", A)]),
        (MMC4, "interleaved", [turn("assistant", A, "one\n\ntwo", B, "three")]),
        ({"text": "a "}, "interleaved", [turn("assistant", "a ")]),
    ],
)
def test_rows_of_a_corpus_become_records_without_a_template(row, form, messages):
    assert record_of(row, form, {}, "here") == {"messages": messages, "plain": True}
    if form == "text":
        assert find_form(Fields(row, {}, "here")) == form
        assert record_of(row, None, {}, "here") == record_of(row, form, {}, "here")
        trimmed = [turn("assistant", part["text"].strip()) for part in messages[0]["content"]]
        assert record_of(row, "turn", {}, "here") == {"messages": trimmed}


def test_a_column_named_plain_makes_no_conversation_a_plain_text():
    row = {"messages": [turn("user", "a"), turn("assistant", "b")], "plain": True, "id": 3}
    assert record_of(row, None, {}, "here") == {"messages": row["messages"], "id": 3}


@pytest.mark.parametrize(
    ("row", "form", "sentence"),
    [
        ({**LLAVA, "image": ["a.png", "b.png"]}, "plain", "1 place for pictures .* but 2 pictures"),
        (
            {"conversations": LLAVA["conversations"] * 2, "images": ["a.png", "b.png"]},
            "plain",
            "one picture and its one",
        ),
        (
            {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
            "plain",
            "one picture and",
        ),
        ({"text": "a"}, "plain", "'image' is missing"),
        ({"image": "a.png", "text": "a"}, "interleaved", "no interleaved document; say form: captions, or form: plain"),
        ({"text": " \n"}, "text", "text is empty"),
    ],
)
def test_rows_that_are_not_of_their_plain_form_are_broken(row, form, sentence):
    with pytest.raises(ValueError, match=f"here: .*{sentence}"):
        record_of(row, form, {}, "here")


@pytest.mark.parametrize(
    ("row", "form", "sentence"),
    [
        ({"image": "a.png", "text": None}, "captions", "here: 'text' is missing"),
        ({"image": None, "text": "a"}, "captions", "here: 'image' is missing"),
        ({"image": "a.png", "text": "  "}, "captions", "here: text is empty"),
        ({"image": "a.png", "text": [[]]}, "captions", "here: text is empty"),
        ({"image": "a.png", "text": float("inf")}, "captions", "here: text is of type float"),
        ({"image": "a.png", "txt": b"\xff"}, "captions", r"here: text is not UTF-8 text \(byte 0\)"),
        (
            {"image": "a", "conversations": [{"from": "bot", "value": "a"}]},
            "llava",
            "here: message 0 has role 'bot'; use one of human, user",
        ),
        (
            {"image": "a", "conversations": [{"from": "gpt", "value": "a"}]},
            "llava",
            "here: 0 places for pictures .* but 1 picture in image or images",
        ),
        (
            {"conversations": [{"from": "gpt", "value": "<image>"}]},
            "llava",
            "here: 1 place for pictures .* but 0 pictures",
        ),
        ({"conversations": []}, "llava", r"here: messages must be a list of at least one message, not \[\]"),
        ({"texts": ["a"], "images": ["b"]}, "obelics", "here: both a text and an image stand at place 0"),
        ({"texts": ["a"], "images": []}, "obelics", "here: texts and images must be lists of one length"),
        ({"texts": [None], "images": [None]}, "obelics", "here: the document holds neither"),
        ({"text_list": ["a"], "image_info": [{"matched_text_index": 1}]}, "mmc4", "matched_text_index 1; it must be"),
        ({"text_list": ["a"], "image_info": [{"matched_text_index": 0}]}, "mmc4", "image_info 0 names no image_name"),
        ({"text_list": ["a"], "image_info": [{"image_base64": "%", "matched_text_index": 0}]}, "mmc4", "not base64"),
        (["a"], "captions", "here: a record must be an object with named parts, not list"),
    ],
)
def test_what_is_wrong_with_a_row_is_said(row, form, sentence):
    with pytest.raises(ValueError, match=sentence):
        record_of(row, form, {}, "here")


def test_columns_that_no_form_is_made_of_are_named():
    with pytest.raises(ValueError, match="here: its columns are picture, words, and none of the forms messages"):
        find_form(Fields({"picture": 1, "words": 2}, {}, "here"))
    assert find_form(Fields({"picture": 1, "words": 2}, {"image": "picture", "text": "words"}, "here")) == "captions"


def test_plain_words_are_read_fast_and_as_all_others_are(monkeypatch):
    """Messages of plain words take a short way; it is refused by whatever the long one would change."""
    rng = random.Random(0)
    changed = [
        {"role": "user", "content": ""}, {"role": "system", "content": ""}, {"role": "human", "content": "a"},
        {"from": "human", "value": "a"}, {"role": "user", "content": "<b>a</b>"}, {"role": "user", "content": None},
        {"role": "assistant", "content": "a", "weight": 0}, {"role": "user", "content": "<image>"}, "a",
        {"role": "user", "content": [text_part("a")]}, {"role": ["user"], "content": "a"}, {"role": "user"},
        {"role": "assistant", "content": "<video>"}, {"role": "user", "content": {"type": "text", "text": "a"}},
        {"role": "user", "content": 7},
    ]  # fmt: skip
    plain = [{"role": role, "content": "what is it?"} for role in ("user", "assistant", "system")]

    def outcome(turns):
        try:
            return conversation(copy.deepcopy(turns), [], "here")
        except ValueError as error:
            return str(error)

    cases = [
        [rng.choice(plain if rng.random() < 0.7 else changed) for _ in range(rng.randint(0, 4))] for _ in range(300)
    ]
    fast = [outcome(turns) for turns in cases]
    assert sum(map(conversations._says_all, cases)) > 50
    monkeypatch.setattr(conversations, "_says_all", lambda turns: False)
    assert fast == [outcome(turns) for turns in cases]
