"""Hashes of checkpoints: the same after saving again, of every setting that decides a picture, and cached."""

import json
import shutil

import pytest

from hybridgen.checkpoints import hashes
from hybridgen.checkpoints.loading import check_checkpoint
from hybridgen.pipeline_hybridgen import load_pipeline


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_saving_again_keeps_both_hashes(tiny_checkpoint, tmp_path):
    load_pipeline(tiny_checkpoint).save_pretrained(tmp_path / "again")
    check_checkpoint(tmp_path / "again")
    for hashed in (hashes.weights_hash, hashes.config_hash):
        assert hashed(tmp_path / "again") == hashed(tiny_checkpoint)


def test_what_a_user_puts_into_a_checkpoint_changes_no_hash(tiny_checkpoint, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(tiny_checkpoint, copy)
    hashed = lambda: (hashes.weights_hash(copy), hashes.config_hash(copy))  # noqa: E731
    before = hashed()
    (copy / "model" / "note.txt").write_text("the good one")
    (copy / "scores.json").write_text("{}")
    (copy / "older").mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(copy / "model" / name, copy / "older" / name)
    assert hashed() == before
    (copy / "older").rename(copy / "unused")
    tokenizer = copy / "processor" / "tokenizer.json"
    tokenizer.write_text(json.dumps(json.loads(tokenizer.read_text()) | {"version": "2.0"}))
    assert hashed()[0] == before[0]
    assert hashed()[1] != before[1]


def test_every_setting_that_is_saved_is_hashed(tiny_checkpoint):
    """All of a saved checkpoint but the card, the index, the scheduler and settings of `generate`."""
    saved = {str(file.relative_to(tiny_checkpoint)) for file in tiny_checkpoint.rglob("*") if file.is_file()}
    rest = {"README.md", "model_index.json", "scheduler/scheduler_config.json", "model/generation_config.json"}
    known = {name for name in saved if not name.endswith(".safetensors")} - rest
    assert {name for name in known if hashes._is_settings_file(tiny_checkpoint / name)} == known


def test_a_file_is_hashed_once(tmp_path, monkeypatch):
    file, kept = tmp_path / "a.safetensors", tmp_path / "cache" / "hybridgen" / "hashes.json"
    file.write_bytes(b"abc")
    first = hashes.file_hash(file)
    assert first == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1
    known = json.loads(kept.read_text())
    known[str(file)]["sha256"] = "kept"
    kept.write_text(json.dumps(known))
    assert hashes.file_hash(file) == "kept"
    file.write_bytes(b"abd")
    assert hashes.file_hash(file) != "kept"
    kept.write_text("[no cache")
    assert hashes.file_hash(file) != first
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))  # a file, where no folder can be
    file.write_bytes(b"abc")
    assert hashes.file_hash(file) == first
