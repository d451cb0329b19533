"""Records of own data as questions and prompts: what they ask, how their answers are compared, what is refused."""

import json
import re

import pytest
from PIL import Image

from hybridgen.data.synthetic import open_synthetic
from hybridgen.evaluation.own.records import Asked, Wanted, filled, read_tasks
from tests.processors import picture


@pytest.fixture
def read(tmp_path):
    """Records -> (tasks, reasons of broken ones, how many were not read)."""
    for seed in range(4):
        picture(seed=seed).save(tmp_path / f"{seed}.png")

    def call(*rows: dict, limit: int | None = None):
        file = tmp_path / "own.jsonl"
        file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        tasks, bad, unread, _ = read_tasks(file, limit)
        return tasks, [each.reason for each in bad], unread

    return call


def chat(*turns, **beside) -> dict:
    """A record whose turns are the user's and the assistant's in turn; a name of a .png is its picture."""

    def part(one):
        is_file = isinstance(one, str) and one.endswith(".png")
        return {"type": "image", "image": one} if is_file else {"type": "text", "text": one}

    messages = [
        {
            "role": ("user", "assistant")[i % 2],
            "content": [part(one) for one in (turn if isinstance(turn, tuple) else (turn,))],
        }
        for i, turn in enumerate(turns)
    ]
    return {"messages": messages, **beside}


GOOD = chat(("0.png", "what is it?"), "a dog")


def test_a_turn_of_the_assistant_is_asked_for(read):
    ((one,), bad, unread) = read(GOOD)
    assert (one.question, one.accepted, one.kind, one.inferred) == ("what is it?", ("a dog",), "exact", True)
    assert (bad, unread) == ([], 0)
    (message,) = filled(one.script, one.images)
    assert message["role"] == "user"
    assert [part["type"] for part in message["content"]] == ["image", "text"]
    assert message["content"][0]["image"].tobytes() == picture(seed=0).tobytes()
    assert filled(one.script, None) == [{"role": "user", "content": [{"type": "text", "text": "what is it?"}]}]


def test_later_turns_are_asked_after_what_stands_before(read):
    (first, second), _, _ = read(chat(("0.png", "what is it?"), "a dog", ("and what", "is here?", "1.png"), "a cat"))
    assert second.accepted == ("a cat",)
    roles = [message["role"] for message in filled(second.script, second.images)]
    assert roles == ["user", "assistant", "user"]
    assert len(first.images) == 1
    assert [image.tobytes() for image in second.images] == [picture(seed=seed).tobytes() for seed in (0, 1)]


def test_a_picture_at_the_end_is_drawn_and_earlier_ones_are_read(read):
    (asked, wanted), _, _ = read(chat("a dog", "0.png", "which animal?", "dog", "a cat", "1.png"))
    assert isinstance(asked, Asked)
    assert len(asked.images) == 1
    assert isinstance(wanted, Wanted)
    assert wanted.prompt == "a cat"
    assert wanted.picture.tobytes() == picture(seed=1).tobytes()
    assert len(wanted.conversation()) == 5


def test_a_prompt_may_come_without_a_picture(read):
    ((wanted,), _, _) = read(chat("a red circle", type="draw"))
    assert (wanted.prompt, wanted.picture) == ("a red circle", None)


def test_messages_that_are_not_learnt_are_not_asked_for(read):
    row = chat(("0.png", "what is it?"), "a dog", "and?", "nothing")
    row["messages"][1]["weight"] = 0
    assert [one.accepted for one in read(row)[0]] == [("nothing",)]


def test_all_forms_of_training_are_read(read):
    turns = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "owl"}]
    tasks, bad, _ = read(
        {"image": "0.png", "question": "which?", "answers": ["dog", "hound"]},
        {"image": "1.png", "text": "a red cat"},
        {"conversations": turns, "image": "2.png"},
    )
    assert bad == []
    assert [type(one) for one in tasks] == [Asked, Wanted, Asked]
    assert (tasks[0].accepted, tasks[2].accepted, tasks[1].prompt) == (("dog", "hound"), ("owl",), "a red cat")


TEN = [{"answer": "dog", "answer_id": i} for i in range(9)] + [{"answer": "cat", "answer_id": 9}]


@pytest.mark.parametrize(
    ("row", "kind", "accepted"),
    [
        (GOOD, "exact", ("a dog",)),
        (chat(("0.png", "is it?"), "Yes."), "yes_no", ("Yes.",)),
        (chat(("0.png", "which?"), "B", choices=["a dog", "a cat"]), "multiple_choice", ("B",)),
        (chat(("0.png", "which?"), "a cat", meta={"choices": ["a dog", "a cat"]}), "multiple_choice", ("a cat",)),
        ({"image": "0.png", "question": "which?", "answers": TEN}, "vqa", ("dog",) * 9 + ("cat",)),
        ({"image": "0.png", "question": "which?", "answers": ["a", "b", "a"]}, "vqa", ("a", "b", "a")),
        ({"image": "0.png", "question": "which?", "answers": ["a", "b", "c"]}, "exact", ("a", "b", "c")),
        (chat("0.png", "a dog in a field"), "caption", ("a dog in a field",)),
        (chat(("0.png", "which?"), "dog", answers=["hound", "a dog"]), "exact", ("dog", "hound", "a dog")),
        (chat(("0.png", "how many?"), "3", answers=[3]), "exact", ("3",)),
        (chat("which?", answers=["a", "b"]), "exact", ("a", "b")),
        (chat(("0.png", "read it"), "abc", type="anls"), "anls", ("abc",)),
    ],
)
def test_how_answers_are_compared(read, row, kind, accepted):
    ((one,), bad, _) = read(row)
    assert (one.kind, one.accepted, bad) == (kind, accepted, [])
    assert one.inferred == ("type" not in row)


def test_several_questions_have_each_their_own(read):
    row = chat(
        ("0.png", "which?"), "a", "is it?", "yes", answers=[["b"], ["yes"]], type=["anls", "yes_no"], category="x"
    )
    first, second = read(row)[0]
    assert (first.kind, first.accepted, second.kind, second.accepted) == ("anls", ("a", "b"), "yes_no", ("yes",))
    assert first.category == second.category == "x"
    row = chat(("0.png", "which?"), "a", "is it?", "B")
    row["messages"][3] |= {"choices": ["p", "q"], "category": "letters"}
    first, second = read(row)[0]
    assert (first.kind, second.kind, second.choices, second.category) == (
        "exact",
        "multiple_choice",
        ("p", "q"),
        "letters",
    )


BROKEN = [
    (chat(("0.png", "what?")), "it has no answer; end it with the assistant's turn, or give answers"),
    (chat(("9.png", "what?"), "a"), "9.png"),
    (chat(("0.png", "what?"), "a", answers=[]), "answers is empty; give at least one text"),
    (chat(("0.png", "what?"), "a", answers=[None]), "answers has None; each must be a text"),
    (chat(("0.png", "what?"), "a", answers=["a", ["b"]]), "answers has \\['b'\\]; each must be a text"),
    (chat(("0.png", "what?"), "a", answers=[{"no": 1}]), "answers is of type dict; it must be a text"),
    (chat(("0.png", "what?"), "x", choices=["b", "c"]), "are not one of the choices"),
    (chat(("0.png", "what?"), "a", choices=["b", "B."]), "choices has 'b' twice"),
    (chat(("0.png", "what?"), "a", choices=["a"]), "choices has 1 texts; give 2 to 26"),
    (chat(("0.png", "what?"), "a", choices="ab"), "choices is 'ab'; give a list of texts"),
    (chat(("0.png", "what?"), "a", choices=["a", "b"], answers=["b"]), "are not one of the choices"),
    (chat(("0.png", "what?"), "a", choices=["a", "b"], type="exact"), "it has choices, but type exact"),
    (chat(("0.png", "what?"), "a", type="multiple_choice"), "it has no choices"),
    (chat(("0.png", "what?"), "maybe", type="yes_no"), "of type yes_no they must all be yes, or all no"),
    (chat(("0.png", "what?"), "yes", answers=["no"], type="yes_no"), "they must all be yes, or all no"),
    (chat(("0.png", "what?"), "a", type="vqa"), "it has 1 answers; of type vqa give those of at least 3 people"),
    (chat(("0.png", "what?"), "a", type="other"), "type is 'other'; it must be one of exact, yes_no,"),
    (chat(("0.png", "what?"), "a", category=3), "category is 3; give a text"),
    (chat(("0.png", "a?"), "a", "b?", "b", answers=["a", "b"]), "for 2 questions; give a list with one list for each"),
    (chat("a dog", ("0.png", "here")), "a text and a picture|more than one picture"),
    ({"text": "words alone"}, "it is a text without a question; suite text scores texts"),
    ({"messages": [{"role": "assistant", "content": "hello"}]}, "no turn of the user before its answer"),
    (GOOD, "it is the same as .*own.jsonl:1, and counts once"),
]


@pytest.mark.parametrize(("row", "words"), BROKEN, ids=[words[:40] for _, words in BROKEN])
def test_broken_records_are_listed_and_left_out(read, row, words):
    tasks, bad, unread = read(GOOD, row)
    assert [one.question for one in tasks] == ["what is it?"]
    assert unread == 0
    assert len(bad) == 1
    assert re.search(words, bad[0]), bad


def test_lines_that_are_no_json_are_broken_records(tmp_path):
    file = tmp_path / "own.jsonl"
    picture(seed=0).save(tmp_path / "0.png")
    file.write_text(json.dumps(GOOD) + "\n{\n")
    tasks, bad, *_ = read_tasks(file)
    assert len(tasks) == 1
    assert str(bad[0]).startswith(f"{file}:2: not a JSON object")


def test_only_so_many_are_read(read):
    rows = [chat((f"{i}.png", "what?"), str(i)) for i in range(4)]
    tasks, bad, unread = read(rows[0], GOOD, *rows[1:], limit=2)
    assert [one.accepted for one in tasks] == [("0",), ("a dog",)]
    assert (bad, unread) == ([], 3)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "there is no file"),
        ("", "holds no record"),
        (json.dumps(chat("what?")) + "\n", "holds no record that can be evaluated: .*own.jsonl:1: it has no answer"),
    ],
)
def test_refuses_files_without_a_record(tmp_path, content, words):
    file = tmp_path / "own.jsonl"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ValueError, match=words):
        read_tasks(file)


def test_pictures_that_are_large_stay_as_they_are(tmp_path):
    Image.new("RGBA", (40, 20), (255, 0, 0, 128)).save(tmp_path / "0.png")
    (tmp_path / "own.jsonl").write_text(json.dumps(GOOD))
    (one,), *_ = read_tasks(tmp_path / "own.jsonl")
    assert (one.images[0].mode, one.images[0].size) == ("RGB", (40, 20))


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("words", {"lines": ["\u00dcnder"]}, "words cannot judge: .*\u00fcnder.* a word has 1 to 8 letters a to z"),
        ("words", {"lines": ["apples and pears"]}, "words cannot judge"),
        ("words", {"ink": "teal"}, "words cannot judge: unknown colour 'teal'"),
        ("dolls", {"head": 10**6}, "dolls cannot judge"),
        ("dolls", {"crown": 1}, "dolls cannot judge: .*crown"),
        ("emoji", {"label": "no such thing"}, "emoji cannot judge"),
        ("shapes", {"relation": 3}, "shapes cannot judge"),
    ],
)
def test_a_spec_that_its_world_cannot_judge_is_a_broken_record(read, name, change, words):
    """Otherwise it would end in an error after everything was drawn."""
    world = open_synthetic(name)
    meta = json.loads(json.dumps(world.Source(world.SPLITS[1], "draw", 0)[0]["meta"], default=int))
    good = chat("a caption", "0.png", meta=meta)
    wrong = chat("another caption", "1.png", meta={**meta, "spec": {**meta["spec"], **change}})
    (one,), (reason,), _ = read(good, wrong)
    assert one.meta["spec"] == meta["spec"]
    assert re.search(f"its meta has a spec that {words}", reason)


def test_questions_about_the_same_pictures_stand_in_one_group(read):
    """Of one record, or of several that first show the same; without a picture, of one record alone."""
    first, second, third, fourth, *plain = read(
        chat(("0.png", "what is it?"), "a dog", ("1.png", "and this?"), "a cat"),
        chat(("0.png", "is it red?"), "no"),
        chat(("1.png", "is it red?"), "no"),
        chat("is it?", "no", "really?", "no"),
        chat("is it not?", "no"),
    )[0]
    assert first.group == second.group == third.group != fourth.group
    assert plain[0].group == plain[1].group != plain[2].group
    assert len({one.group for one in (first, fourth, *plain)}) == 4


def test_the_hash_is_of_what_is_read(read, tmp_path):
    def of_now() -> str:
        return read_tasks(tmp_path / "own.jsonl").hash

    read(GOOD, chat("draw", "1.png"))
    first = of_now()
    assert of_now() == first
    picture(seed=9).save(tmp_path / "1.png")
    assert of_now() != first
