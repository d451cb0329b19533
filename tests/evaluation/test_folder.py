"""The folder of an evaluation: nothing else may be mixed with it, and its items come back."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from hybridgen.checkpoints import hashes
from hybridgen.evaluation import folder, run
from hybridgen.evaluation.generation import DrawSettings
from hybridgen.evaluation.processes import Processes
from hybridgen.evaluation.result import Item
from hybridgen.pipeline_hybridgen import load_pipeline
from tests.dolls import tiny_dolls_pipeline

QUICK = {"samples": 1, "draw_paths": ["diffusion"], "answer_paths": []}
FAST = {"diffusion": DrawSettings(steps=1, guidance=1.0)}


@pytest.fixture(scope="module")
def evaluated(tiny_checkpoint, tmp_path_factory):
    out = tmp_path_factory.mktemp("evaluated") / "out"
    run.evaluate(load_pipeline(tiny_checkpoint), "dolls", settings=FAST, out=out, **QUICK)
    return out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples": 2}, "samples 1, not 2"),
        ({"seed": 1}, "seed 0, not 1"),
        ({"settings": {"diffusion": DrawSettings(steps=2, guidance=1.0)}}, "settings.diffusion.steps 1, not 2"),
        ({"draw_paths": ["vq"]}, r"paths.draw \['diffusion'\], not \['vq'\]"),
        ({"options": {"chats": 3}}, "options.chats None, not '3'"),
    ],
)
def test_another_evaluation_is_refused_with_the_key_that_differs(pipeline, evaluated, changes, message):
    before = {file: file.stat().st_mtime_ns for file in evaluated.rglob("*")}
    with pytest.raises(ValueError, match=f"holds an evaluation with {message}; give the same settings to go on with"):
        run.evaluate(pipeline, "dolls", **{**QUICK, "settings": FAST, "out": evaluated, **changes})
    assert {file: file.stat().st_mtime_ns for file in evaluated.rglob("*")} == before


def test_another_suite_is_refused(pipeline, evaluated):
    with pytest.raises(ValueError, match=r"holds an evaluation with suites \['dolls'\], not \['emoji'\]"):
        run.evaluate(pipeline, "emoji", settings=FAST, out=evaluated, **QUICK)


def test_another_checkpoint_is_refused_and_the_same_one_from_elsewhere_is_not(tiny_checkpoint, evaluated, tmp_path):
    """It is known by its weights: of files, or in memory where they were changed after loading."""
    same = load_pipeline(tiny_checkpoint)
    same.save_pretrained(tmp_path / "moved")
    run.evaluate(load_pipeline(tmp_path / "moved"), "dolls", settings=FAST, out=evaluated, **QUICK)
    with torch.no_grad():
        next(same.model.parameters()).add_(1.0)
    with pytest.raises(ValueError, match="holds an evaluation with checkpoint.weights '.*', not '.*'"):
        run.evaluate(same, "dolls", settings=FAST, out=evaluated, **QUICK)


def test_weights_in_memory_have_a_name_of_their_own(tmp_path):
    one, other = tiny_dolls_pipeline(0), tiny_dolls_pipeline(1)
    identities = [folder.checkpoint_identity(each) for each in (one, tiny_dolls_pipeline(0), other)]
    assert identities[0] == identities[1] != identities[2]
    assert identities[0]["device"] == "cpu"


def test_files_are_known_by_what_is_in_them(tmp_path):
    file, moved = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    file.write_text("one")
    moved.write_text("one")
    first = folder.known_as(str(file))
    assert first == folder.known_as(moved)
    file.write_text("two!")
    assert folder.known_as(file) != first
    assert [folder.known_as(value) for value in ("dolls", 3, "", "\0", "x" * 300)] == [
        "dolls",
        "3",
        "",
        "\0",
        "x" * 300,
    ]


def test_several_files_and_code_are_known_by_what_is_in_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.txt", "b.txt", "mine.py"):
        (tmp_path / name).write_text(name)
    given = ("a.txt,b.txt", "*.txt", f"{tmp_path}/a.txt, b.txt", "mine.py:f", "mine.py:g")
    first = [folder.known_as(value) for value in given]
    assert first[0] == first[1] == first[2] != folder.known_as("b.txt,a.txt")
    assert first[3] != first[4]
    assert folder.known_as("in one word, or two?") == "in one word, or two?"
    (tmp_path / "b.txt").write_text("other")
    (tmp_path / "mine.py").write_text("other")
    assert all(then != folder.known_as(value) for then, value in zip(first, given, strict=True))


def test_folders_are_known_by_all_files_in_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("clip", "moved"):
        (tmp_path / name / "tokenizer").mkdir(parents=True)
        (tmp_path / name / "model.bin").write_bytes(b"weights")
        (tmp_path / name / "tokenizer" / "a.json").write_text("{}")
    first = folder.known_as("clip")
    assert first == folder.known_as(f"{tmp_path}/moved") == folder.known_as("clip/")
    for change in ("model.bin", "tokenizer/a.json", "tokenizer/b.json"):
        before = folder.known_as("clip")
        (tmp_path / "clip" / change).write_text(f"other {change}")
        assert folder.known_as("clip") != before
    (tmp_path / "moved" / ".cache").mkdir()
    (tmp_path / "moved" / ".cache" / "lock").write_text("")  # what the hub's client leaves there
    assert folder.known_as("moved") == first
    (tmp_path / "moved" / "tokenizer" / "a.json").rename(tmp_path / "moved" / "a.json")
    assert folder.known_as("moved") != first


def test_large_files_of_folders_are_hashed_once(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(hashes, "_LARGE", 100)
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "large").write_bytes(bytes(100))
    (tmp_path / "clip" / "small").write_bytes(bytes(99))
    first = hashes.folder_hash(tmp_path / "clip")
    (cached,) = json.loads((tmp_path / "cache" / "hybridgen" / "hashes.json").read_text())
    assert cached.endswith("large")
    monkeypatch.setattr(hashes.hashlib, "file_digest", None)
    assert hashes.folder_hash(tmp_path / "clip") == first


def test_checkpoints_are_known_by_their_weights_and_settings(tiny_checkpoint, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(tiny_checkpoint, moved)
    first = folder.known_as(str(tiny_checkpoint))
    (moved / "notes.txt").write_text("mine")  # what no part of it reads
    assert folder.known_as(moved) == first
    assert load_pipeline(moved).origin["weights"] in first
    config = moved / "processor" / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"clean_up_tokenization_spaces": "other"}))
    assert folder.known_as(moved) != first


def test_code_of_a_module_is_known_by_what_is_in_it(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "some_reader.py").write_text("def read(pictures): ...")
    first = folder.known_as("some_reader:read")
    assert first == folder.known_as(f"{tmp_path}/some_reader.py:read")
    (tmp_path / "some_reader.py").write_text("def read(pictures): return []")
    assert folder.known_as("some_reader:read") != first
    for text in ("no_such_module:read", "no.such:read", "http://a.b/c", ":", "a:", "rapidocr"):
        assert folder.known_as(text) == text


def test_only_options_of_files_are_known_by_files(pipeline, evaluated, tmp_path, monkeypatch):
    """A folder that happens to be called as a world or a number is not what the option names."""
    monkeypatch.chdir(tmp_path)

    def options(given: dict) -> dict:
        return run.identity(pipeline, ["dolls"], 1, 0, {}, {}, given)["options"]

    given = {"world": "dolls", "chats": "3", "distribution:data": "dolls", "tiif:data": "mine"}
    for name in ("dolls", "3", "mine"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text(name)
    known = options(given)
    assert known.pop("tiif:data") == folder.known_as("mine") != "mine"
    assert known == {name: value for name, value in given.items() if name != "tiif:data"}


def test_what_is_refused_leaves_nothing_behind(pipeline, tmp_path):
    for how in ({"samples": 2**40}, {"options": {"size": "31"}}, {"options": {"chats": 0}}):
        with pytest.raises(ValueError):
            run.evaluate(pipeline, "dolls", **{**QUICK, **how, "out": tmp_path / "out"})
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError):
        run.evaluate(pipeline, "dolls", **QUICK, out=tmp_path / "file" / "out")


def test_what_a_kill_left_half_written_is_cleared_away(pipeline, evaluated):
    (evaluated / "dolls" / ".000000.0123abcd.png").write_bytes(b"half")
    run.evaluate(pipeline, "dolls", settings=FAST, out=evaluated, **QUICK)
    assert not list(evaluated.rglob(".*"))


def test_what_is_not_ours_is_left_alone(tiny_checkpoint, tmp_path):
    """The folder may be one of the user's."""
    theirs = [tmp_path / name for name in (".bash.personal.sh", "notes/.a.0123abcd.txt")]
    for file in theirs:
        file.parent.mkdir(exist_ok=True)
        file.write_text("mine")
    for _ in range(2):
        run.evaluate(load_pipeline(tiny_checkpoint), "dolls", settings=FAST, out=tmp_path, **QUICK)
        assert all(file.read_text() == "mine" for file in theirs)


def test_items_come_back_with_their_pictures(tmp_path):
    rng = np.random.default_rng(0)
    shared, alone = (Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)) for _ in range(2))
    (tmp_path / "draw-vq").mkdir()
    alone.save(tmp_path / "draw-vq" / "000000.png")
    drawn = Image.open(tmp_path / "draw-vq" / "000000.png")
    items = {
        "generation": {"vq": [Item("a caption", {"true picture": shared, "vq": drawn}, None, "", {"all": 0.5}, "no")]},
        "understanding": {"vq": [Item("what? é\u2028\x85", {"shown": shared}, "", "", {"all": 0.0}), Item("none")]},
    }
    folder.save_items(tmp_path, items)
    back = folder.load_items(tmp_path)
    names = [
        [{h: str(p.relative_to(tmp_path)) for h, p in item.pictures.items()} for item in back[task]["vq"]]
        for task in back
    ]
    assert names[0][0]["vq"] == "draw-vq/000000.png"
    assert names[0][0]["true picture"] == names[1][0]["shown"]
    assert len(list((tmp_path / "pictures").iterdir())) == 1
    for task in items:
        for item, other in zip(items[task]["vq"], back[task]["vq"], strict=True):
            assert vars(item) | {"pictures": 0} == vars(other) | {"pictures": 0}
            for heading, picture in item.pictures.items():
                assert np.array_equal(np.asarray(Image.open(other.pictures[heading])), np.asarray(picture))


def test_a_folder_without_items_is_said_to_be_none(tmp_path):
    with pytest.raises(ValueError, match="has no items.jsonl; it is no suite's folder of an evaluation that is done"):
        folder.load_items(tmp_path)


def test_differences_name_nested_keys():
    assert list(folder.differences({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1}, "d": 4, "e": 5})) == [
        ("a.c", 2, None), ("d", 3, 4), ("e", None, 5),
    ]  # fmt: skip


def test_one_process_alone_agrees_with_itself():
    Processes().agree()
    with pytest.raises(OSError, match="full"):
        Processes().agree(OSError("full"))
    assert json.dumps(Processes().gather(3)) == "[3]"
