"""Files that are there whole or not at all, and JSON that is read back as it was written."""

import errno
import os
import stat

import pytest

from hybridgen.checkpoints.loading import new_folder
from hybridgen.core.files import put_in_place, read_json, whole_file, write_json, write_whole
from tests.core.disk_calls import assert_flushed_first, recorded


@pytest.mark.parametrize("umask", [0o077, 0o022, 0o002])
def test_a_file_may_be_read_by_whom_the_umask_says(tmp_path, umask):
    before = os.umask(umask)
    try:
        write_whole(tmp_path / "a.json", "{}")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.json").stat().st_mode) == 0o666 & ~umask


def test_a_file_that_is_replaced_inside_is_no_more_closed_than_others(tmp_path):
    with whole_file(tmp_path / "a.bin") as aside:
        (tmp_path / "private").touch(0o600)
        (tmp_path / "private").replace(aside)  # as safetensors writes
    write_whole(tmp_path / "b.bin", b"")
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a.bin", "b.bin")}
    assert len(modes) == 1


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    write_whole(tmp_path / "a.txt", "old")
    with pytest.raises(TypeError), whole_file(tmp_path / "a.txt") as aside:
        aside.write_bytes("half")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("a.txt", "old")]


def test_a_folder_in_its_place_stays(tmp_path):
    (tmp_path / "a.txt" / "b").mkdir(parents=True)
    with pytest.raises(OSError):
        write_whole(tmp_path / "a.txt", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_content_is_on_the_disk_before_its_name_is(tmp_path):
    """Else a power cut may leave a file of the right name and length full of zeros."""
    with recorded() as calls:
        write_whole(tmp_path / "a.json", "{}")
    flushed = calls[0]
    assert flushed[0] == "flush"
    assert flushed[1].startswith(".a.")
    assert calls[1:] == [("rename", "a.json"), ("flush", tmp_path.name)]


def test_so_is_all_that_is_in_a_folder(tmp_path):
    (tmp_path / "aside/inner").mkdir(parents=True)
    (tmp_path / "aside/inner/a.bin").write_bytes(b"a")
    (tmp_path / "aside/b.bin").write_bytes(b"b")
    with recorded() as calls:
        put_in_place(tmp_path / "aside", tmp_path / "whole")
    assert_flushed_first(calls, {"a.bin", "b.bin", "inner", "aside"}, "whole", tmp_path.name)
    assert calls.index(("flush", "a.bin")) < calls.index(("flush", "inner")) < calls.index(("flush", "aside"))


def test_so_is_a_checkpoint(tmp_path):
    with recorded() as calls, new_folder(tmp_path / "checkpoint") as aside:
        (aside / "model").mkdir()
        (aside / "model/model.safetensors").write_bytes(b"a")
    assert_flushed_first(calls, {"model.safetensors", "model"}, "checkpoint", tmp_path.name)


def test_a_disk_that_turns_out_to_be_full_leaves_the_old_file(tmp_path, monkeypatch):
    """Some file systems tell only when they are asked to write what they took."""
    write_whole(tmp_path / "a.txt", "old")

    def full(opened: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(tmp_path / "a.txt", "new")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("a.txt", "old")]


def test_a_file_system_that_flushes_no_folders(tmp_path, monkeypatch):
    fsync = os.fsync

    def files_only(opened: int) -> None:
        if stat.S_ISDIR(os.fstat(opened).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(opened)

    monkeypatch.setattr(os, "fsync", files_only)
    write_whole(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "new"


def test_the_file_aside_has_the_suffix_and_is_hidden(tmp_path):
    with whole_file(tmp_path / "new" / "a.tar.gz") as aside:
        assert aside.parent == tmp_path / "new"
        assert aside.suffix == ".gz"
        assert aside.name.startswith(".a.tar.")
        assert aside.read_bytes() == b""


def test_a_relative_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_whole("a.txt", "ü")
    assert (tmp_path / "a.txt").read_bytes() == "ü".encode()


@pytest.mark.parametrize("text", ["plain", "ü 漢 \U0001f600", os.fsdecode(b"caf\xe9.png"), 'a "quote" \\ \n'])
def test_json_is_read_as_it_was_written(tmp_path, text):
    content = {text: [text, 1.5, None, float("inf")]}
    write_json(tmp_path / "a.json", content)
    assert read_json(tmp_path / "a.json") == content


@pytest.mark.parametrize("content", [b"", b"{", b"\xff{}", b"[1]", b"3"])
def test_what_is_no_json_object_is_named(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"^model\.path: .*a\.json .*copy it again$"):
        read_json(tmp_path / "a.json", "model.path")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"has no a\.json; give another$"):
        read_json(tmp_path / "a.json", missing="; give another")
