"""Indexes of tars: what a scan finds, kept on disk, read by whoever comes next, few bytes a sample."""

import io
import os
import random
import tarfile
import tracemalloc
import warnings

import numpy as np
import pytest

from hybridgen.data.formats import tar_index
from hybridgen.data.formats.tar_index import index_tars, scan
from hybridgen.data.formats.webdataset import WebDatasetSource
from hybridgen.data.source_config import SourceConfig
from hybridgen.data.sources import open_source
from tests.data.formats.test_formats import png, sample, write_tar


def tars(folder, count: int = 3, each: int = 5) -> list[str]:
    return [
        write_tar(folder / f"{shard}.tar", [sample(shard * each + number) for number in range(each)])
        for shard in range(count)
    ]


@pytest.fixture
def headers(monkeypatch) -> list:
    """The headers that were read, in all threads."""
    read, method = [], tar_index.Member.fromtarfile.__func__
    count = classmethod(lambda cls, tar: read.append(tar.name) or method(cls, tar))
    monkeypatch.setattr(tar_index.Member, "fromtarfile", count)
    return read


def rows(source: WebDatasetSource) -> list:
    return [(source.where(index), source.record(index)) for index in range(len(source))]


def test_a_second_start_reads_no_header(tmp_path, headers):
    files = tars(tmp_path)
    plain = rows(WebDatasetSource(files))
    assert len(plain) == 15
    scans = len(headers)
    assert scans >= 2 * 15
    assert rows(WebDatasetSource(files, index=tmp_path / "index")) == plain
    assert len(headers) == 2 * scans
    headers.clear()
    assert rows(WebDatasetSource(files, index=tmp_path / "index")) == plain
    assert not headers
    assert sorted(path.suffix for path in (tmp_path / "index").iterdir()) == [".npz"] * 3


def test_an_index_is_that_of_tarfile(tmp_path):
    """Long names, folders, links, names that are no UTF-8, an empty part: offsets and sizes are the library's."""
    names = ["a/0.txt", "a/0.png", "x" * 150 + ".txt", "b/caf\udce9.txt", "b/caf\udce9.seg.png", "empty.json"]
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        for number, name in enumerate(names):
            info = tarfile.TarInfo(name)
            info.size = number * 300 if name != "empty.json" else 0
            tar.addfile(info, io.BytesIO(bytes(info.size)))
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "a/0.png"
        tar.addfile(link)
        tar.addfile(tarfile.TarInfo(".DS_Store.txt"))
    index = scan(str(tmp_path / "a.tar"))
    with tarfile.open(tmp_path / "a.tar") as tar:
        expected = [(each.offset_data, each.size) for each in tar if each.isfile() and not each.name.startswith(".")]
    found = [part for number in range(len(index)) for part in index.parts(number)]
    assert [(offset, size) for _, offset, size in found[:-1]] == expected
    assert found[-1] == ("png", tar_index.LINK, 0)
    assert [name for name, _, _ in found] == ["txt", "png", "txt", "txt", "seg.png", "json", "png"]
    keys = [index.key(number) for number in range(len(index))]
    assert keys == ["a/0", "x" * 150, "b/caf\udce9", "empty", "link"]
    (saved,) = index_tars([str(tmp_path / "a.tar")], tmp_path / "index")
    (read,) = index_tars([str(tmp_path / "a.tar")], tmp_path / "index")
    for other in (saved, read):
        assert [other.key(number) for number in range(5)] == keys
        assert [part for number in range(5) for part in other.parts(number)] == found


def test_a_tar_that_changed_is_read_again(tmp_path, headers):
    files = tars(tmp_path)
    index_tars(files, tmp_path / "index")
    headers.clear()
    write_tar(tmp_path / "1.tar", [sample(number) for number in range(100, 109)])
    assert [len(index) for index in index_tars(files, tmp_path / "index")] == [5, 9, 5]
    assert {os.path.basename(name) for name in headers} == {"1.tar"}
    headers.clear()
    same_size = (tmp_path / "2.tar").read_bytes().replace(b"00010.", b"00099.")
    (tmp_path / "2.tar").write_bytes(same_size)
    os.utime(tmp_path / "2.tar", ns=(1, 1))
    index_tars(files, tmp_path / "index")
    assert {os.path.basename(name) for name in headers} == {"2.tar"}
    headers.clear()
    (tmp_path / "moved").mkdir()
    (tmp_path / "0.tar").rename(tmp_path / "moved/0.tar")
    (tmp_path / "2.tar").rename(tmp_path / "0.tar")  # another tar under a known name
    assert index_tars([str(tmp_path / "0.tar")], tmp_path / "index")[0].key(0) != "a/00000"
    assert headers


def _cut(file):
    file.write_bytes(file.read_bytes()[:-100])


def _foreign(file):
    np.savez(file, keys=np.zeros(3))


def _other_arrays(file):
    with np.load(file) as content:
        arrays = dict(content)
    np.savez(file, **{**arrays, "blocks": arrays["blocks"][:-1]})


def _other_types(file):
    with np.load(file) as content:
        arrays = dict(content)
    np.savez(file, **{**arrays, "sizes": arrays["sizes"].astype(np.float32)})


def _objects(file):
    np.savez(file, about=np.array([{}], object))


HARMS = [_cut, _foreign, _other_arrays, _other_types, _objects, lambda file: file.write_bytes(b"")]


@pytest.mark.parametrize("harm", HARMS)
def test_a_broken_index_is_said_and_made_anew(tmp_path, harm):
    files = tars(tmp_path, 1)
    index_tars(files, tmp_path / "index")
    (saved,) = (tmp_path / "index").iterdir()
    harm(saved)
    with pytest.warns(UserWarning, match=r"index/\w+.npz is no whole index of a tar \(.*\); it is made anew"):
        assert len(index_tars(files, tmp_path / "index")[0]) == 5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(index_tars(files, tmp_path / "index")[0]) == 5


def test_a_folder_that_takes_nothing_is_said_and_done_without(tmp_path):
    files = tars(tmp_path, 1)
    (tmp_path / "index").write_text("a file")
    with pytest.warns(UserWarning, match="cannot be written .*; the next start reads all headers again"):
        assert len(index_tars(files, tmp_path / "index")[0]) == 5


def test_processes_that_start_together_divide_the_work(tmp_path, monkeypatch):
    """Each takes the tars in another order; what another has finished meanwhile is not read again."""
    files, scanned = tars(tmp_path, 6, 2), []

    def scan_after_another_process(file: str):
        scanned.append(file)
        if len(scanned) == 1:
            index_tars(files[:4], tmp_path / "index")
        return scan(file)

    monkeypatch.setattr(tar_index, "scan", scan_after_another_process)
    monkeypatch.setattr(random.SystemRandom, "shuffle", lambda _, order: order.reverse())
    assert [index.key(0) for index in index_tars(files, tmp_path / "index")] == [f"a/{2 * n:04}" for n in range(6)]
    assert scanned == [files[5], *files[3::-1], files[4]]


def test_what_is_wrong_with_a_tar_is_kept_with_its_index(tmp_path, headers):
    write_tar(tmp_path / "a.tar", [{"1.png": png(1)}, {"2.png": png(2), "2.txt": b"red"}, {"1.txt": b"red"}])
    write_tar(tmp_path / "b.tar", [sample(3), sample(4)])
    whole = (tmp_path / "b.tar").read_bytes()
    (tmp_path / "b.tar").write_bytes(whole[: 512 * 5 + 100])
    files, found = [str(tmp_path / "a.tar"), str(tmp_path / "b.tar")], []
    for _ in range(2):
        bad = []
        source = WebDatasetSource(files, bad_records=bad, index=tmp_path / "index")
        found.append((list(map(str, bad)), rows_or_reasons(source)))
        with pytest.raises(ValueError, match="a.tar, key '1': its parts .png, txt. do not follow one another"):
            WebDatasetSource(files, index=tmp_path / "index")
    assert found[0] == found[1]
    assert ["key '1'" in found[0][0][0], "cannot be read to its end" in found[0][0][1]] == [True, True]


def rows_or_reasons(source: WebDatasetSource) -> list[str]:
    found = []
    for index in range(len(source)):
        try:
            found.append(str(source.record(index)))
        except ValueError as error:
            found.append(str(error))
    return found


@pytest.mark.parametrize("streaming", [False, True])
def test_half_a_caption_is_no_record(tmp_path, streaming):
    """The tar ends inside of the last text: what is left of it would be another caption."""
    words = b"a red circle " * 100
    write_tar(tmp_path / "a.tar", [sample(0), {"1.png": png(1), "1.txt": words}])
    whole = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[: whole.index(words) + 600])
    source = open_source(SourceConfig(f"{tmp_path}/a.tar", shuffle=False, streaming=streaming, buffer=1))
    source.record(0)
    with pytest.raises(ValueError, match="key '1': the tar ends inside of its part 'txt'; copy the tar again"):
        source.record(1)


def test_a_part_that_the_arrays_cannot_hold_is_refused(tmp_path):
    info = tarfile.TarInfo("a.png")
    info.size = 1 << 32
    (tmp_path / "a.tar").write_bytes(info.tobuf(tarfile.PAX_FORMAT) + bytes(1024))
    with pytest.raises(ValueError, match="a.tar holds a.png of 4,294,967,296 bytes .* 4 GiB"):
        scan(str(tmp_path / "a.tar"))


def test_a_sample_takes_few_bytes(tmp_path):
    count = 2000
    write_tar(tmp_path / "a.tar", [{f"{number:06}.jpg": b"x", f"{number:06}.txt": b"y"} for number in range(count)])
    index_tars([str(tmp_path / "a.tar")], tmp_path / "index")
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    source = WebDatasetSource([str(tmp_path / "a.tar")], index=tmp_path / "index")
    size = (tracemalloc.get_traced_memory()[0] - before) / len(source)
    tracemalloc.stop()
    assert size < 45  # 38 measured: 2 parts of 12 bytes, 8 of ends, 6 of the key; 560 as Python's objects
