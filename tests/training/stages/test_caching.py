"""Caches: what comes out is what went in, whoever asks and in whatever batch; other weights are refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hybridgen.training.stages import caching
from hybridgen.training.stages.caching import EncodingCache, picture_key, weights_key
from tests.data.in_memory import questions, source_of
from tests.training.stages.test_model import all_tasks, stage_of, sums_of


def pictures(count: int, side: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


class Codec:
    """Half of each picture, how often it was asked, and for how many."""

    calls = images = 0

    def encode(self, images):
        self.calls += 1
        self.images += len(images)
        return images[:, :, ::2] / 2


def test_entries_are_made_once_and_found_again(tmp_path):
    codec, given = Codec(), pictures(5)
    cache = EncodingCache(tmp_path, "latents", "w")
    first = cache.entries(given, codec.encode)
    assert all(torch.equal(entry, picture[:, ::2] / 2) for entry, picture in zip(first, given, strict=True))
    cache.entries(given.flip(0), codec.encode)
    assert (codec.calls, codec.images, len(cache)) == (5, 5, 5)
    cache.flush()
    cache.entries(given, codec.encode)
    again = EncodingCache(tmp_path, "latents", "w")
    mixed = [given[3], *pictures(1, side=4), given[0]]
    found = again.entries(mixed, codec.encode)
    assert (codec.calls, codec.images, len(again)) == (6, 6, 6)
    assert torch.equal(found[0], first[3])
    assert torch.equal(found[2], first[0])
    again.flush()
    assert sorted(path.suffix for path in (tmp_path / "latents").iterdir()) == [".json", ".safetensors", ".safetensors"]


@pytest.mark.parametrize(("elsewhere", "calls"), [(True, 2), (False, 4)])
def test_what_is_missing_is_encoded_each_picture_once(elsewhere, calls, tmp_path, monkeypatch):
    """Of nine pictures in two sizes three are known and two come twice: one call a size, but each alone on a CPU, where
    a batch would decide the last bits; one look into the folder."""
    codec, cache = Codec(), EncodingCache(tmp_path, "latents", "w")
    small, large = pictures(5), pictures(2, side=16)
    monkeypatch.setattr(caching, "_decides_bits", lambda batch: not elsewhere)
    cache.entries(small[:3], codec.encode)
    codec.calls = codec.images = 0
    looks = []
    look = EncodingCache._look_for_segments
    monkeypatch.setattr(EncodingCache, "_look_for_segments", lambda self: looks.append(self) or look(self))
    given = [large[0], *small, large[1], small[4], large[0]]
    found = cache.entries(given, codec.encode)
    assert all(torch.equal(entry, picture[:, ::2] / 2) for entry, picture in zip(found, given, strict=True))
    assert (codec.calls, codec.images, len(looks)) == (calls, 4, 1)
    cache.entries(given, codec.encode)
    assert (codec.calls, len(looks)) == (calls, 1)


def test_few_entries_are_written_after_a_while_so_that_others_find_them(tmp_path, monkeypatch):
    clock, codec = [1000.0], Codec()
    monkeypatch.setattr(caching.time, "monotonic", lambda: clock[0])
    first, second = (EncodingCache(tmp_path, "latents", "w") for _ in range(2))
    given = pictures(4)
    first.entries(given[:2], codec.encode)
    assert not list(tmp_path.rglob("segment_*"))
    clock[0] += caching.WRITE_SECONDS + 1
    first.entries(given[2:3], codec.encode)
    assert len(list(tmp_path.rglob("segment_*"))) == 1
    second.entries(given[:3], codec.encode)
    assert codec.images == 3
    first.entries(given[3:], codec.encode)  # the next ones wait again
    assert len(list(tmp_path.rglob("segment_*"))) == 1


def test_a_slow_folder_is_looked_into_seldom(tmp_path, monkeypatch):
    """A look of 2 seconds comes at most every 200."""
    clock, looks, glob = [1000.0], [], Path.glob

    def slow(folder, pattern):
        looks.append(clock[0])
        clock[0] += 2
        return glob(folder, pattern)

    cache = EncodingCache(tmp_path, "latents", "w")
    monkeypatch.setattr(caching.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(Path, "glob", slow)
    for number in range(1000):
        cache.entries(pictures(1, seed=number), Codec().encode)
        clock[0] += 1
    assert 4 <= len(looks) <= 6


def test_entries_of_before_pixels_came_as_bytes_are_found(tmp_path):
    """Older keys are of normalised pixels, and their segments say nothing of keys."""
    levels = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    given, codec = levels / 127.5 - 1, Codec()
    older = {picture_key(picture): picture[:, ::2].contiguous() / 2 for picture in given[:4]}
    EncodingCache(tmp_path, "latents", "w")
    save_file(older, tmp_path / "latents" / "segment_0.safetensors")
    cache, keys = EncodingCache(tmp_path, "latents", "w"), list(map(picture_key, levels))
    for _ in range(2):
        found = cache.entries(given, codec.encode, keys)
        assert all(torch.equal(entry, picture[:, ::2] / 2) for entry, picture in zip(found, given, strict=True))
        assert codec.images == 2
        cache.flush()
    again = EncodingCache(tmp_path, "latents", "w")
    again.entries(given, codec.encode, keys)
    assert codec.images == 2
    assert len(again) == 6


def test_files_are_opened_again_where_they_are_too_many(tmp_path, monkeypatch):
    monkeypatch.setattr(caching, "OPEN_SEGMENTS", 3)
    codec, cache, given = Codec(), EncodingCache(tmp_path, "latents", "w"), pictures(10)
    for picture in given:
        cache.entries([picture], codec.encode)
        cache.flush()
    for _ in range(2):
        found = cache.entries(given, codec.encode)
        assert all(torch.equal(entry, picture[:, ::2] / 2) for entry, picture in zip(found, given, strict=True))
    assert (codec.images, cache._opened.cache_info().currsize) == (10, 3)


def test_what_another_process_has_written_is_found(tmp_path):
    """Also in the middle of a run: of two processes that meet the same pictures, one encodes them."""
    encoded = []

    def encode(pictures):
        encoded.append(len(pictures))
        return pictures.mean((1, 2, 3), keepdim=True)

    first, second = (EncodingCache(tmp_path, "latents", "weights") for _ in range(2))
    pictures = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    entries = first.entries(pictures[:4], encode)
    assert sum(encoded) == 4
    first.flush()
    assert all(torch.equal(*pair) for pair in zip(second.entries(pictures[:4], encode), entries, strict=True))
    assert sum(encoded) == 4
    second.entries(pictures, encode)
    second.flush()
    first.entries(pictures, encode)
    first.flush()
    assert sum(encoded) == 6
    assert len(list(tmp_path.rglob("segment_*"))) == 2


def test_an_entry_has_the_same_bits_whatever_else_was_missing(tmp_path):
    """A convolution's last bits depend on its batch on a CPU: an interrupted run would differ from one that was not."""
    torch.manual_seed(0)
    codec = torch.nn.Sequential(torch.nn.Conv2d(3, 96, 3, padding=1), torch.nn.SiLU(), torch.nn.Conv2d(96, 8, 3)).eval()
    given = pictures(6, side=24)
    at_once = EncodingCache(tmp_path / "a", "latents", "w").entries(given, codec)
    later = EncodingCache(tmp_path / "b", "latents", "w")
    later.entries(given[::2], codec)
    assert all(map(torch.equal, at_once, later.entries(given, codec)))


def test_a_key_is_the_content():
    one = pictures(1)[0]
    assert picture_key(one) == picture_key(one.clone())
    others = [one + 1e-6, one.double(), one.view(3, 4, 16), one.transpose(1, 2).contiguous()]
    assert len({picture_key(each) for each in (one, *others)}) == 5
    assert picture_key(one.transpose(1, 2)) == picture_key(others[-1])


def test_weights_are_told_by_every_value():
    layer = torch.nn.Linear(3, 2)
    before = weights_key(layer)
    assert weights_key(layer) == before
    with torch.no_grad():
        layer.bias[1] += 1e-6
    assert weights_key(layer) != before
    assert weights_key(layer.half()) != weights_key(layer.float())


def test_what_other_weights_made_is_refused(tmp_path):
    EncodingCache(tmp_path, "codes", "old")
    with pytest.raises(
        ValueError, match="data.cache '.*' is stale: its codes were made by weights 'old', but these are"
    ):
        EncodingCache(tmp_path, "codes", "new")
    EncodingCache(tmp_path, "latents", "new")  # a kind of its own
    (tmp_path / "codes" / "cache.json").write_text("{")
    with pytest.raises(ValueError, match="cache.json is not JSON; remove the folder"):
        EncodingCache(tmp_path, "codes", "old")
    (tmp_path / "latents" / "segment_1_000001.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match="segment_1_000001.safetensors is no whole file of a cache"):
        EncodingCache(tmp_path, "latents", "new")


def test_a_stage_with_caches_has_the_losses_of_one_without(tmp_path):
    """The worst seen is 0: entries are made alone, and at this size a batch gives the same bits."""
    plain = stage_of(all_tasks(), precision="fp32")
    cached = [stage_of(all_tasks(), precision="fp32", data={"sources": [], "cache": str(tmp_path)}) for _ in range(2)]
    for stage in (plain, *cached):
        stage.model.model.vision_model.requires_grad_(False)
    for _ in range(2):
        batch = next(plain.loader)
        expected = sums_of(plain, batch)
        for stage in cached:
            for kind, (value, count) in sums_of(stage, batch).items():
                assert value == pytest.approx(expected[kind][0], rel=1e-5)
                assert count == expected[kind][1]
            stage.inputs.flush()
    kinds = {path.parent.name: json.loads(path.read_text())["version"] for path in tmp_path.glob("*/cache.json")}
    assert kinds["codes"] == kinds["features-fp32"] == 1
    used = stage_of(all_tasks(), precision="fp32", data={"sources": [], "cache": str(tmp_path)})
    used.model.model.vision_model.requires_grad_(False)
    used.vq.encode = used._tower_features = None  # every entry is found
    used.inputs._vq = None
    assert sums_of(used, batch)["code"][0] == pytest.approx(expected["code"][0], rel=1e-5)


def autocast_forward(stage, bf16: bool) -> None:
    """Let the model run as the accelerator would have it: the forward alone in autocast."""
    forward = stage.model.forward

    def wrapped(**inputs):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return forward(**inputs)

    stage.model.forward = wrapped


def test_features_have_the_precision_of_the_run(tmp_path):
    """A bf16 run trains on what its tower says in bf16, with a cache and without. No difference was seen."""
    losses = {}
    for precision in ("fp32", "bf16"):
        for cache in (None, str(tmp_path)):
            tasks = [source_of(questions(20), name="ask")]
            stage = stage_of(tasks, precision=precision, data={"sources": [], "cache": cache})
            stage.model.model.vision_model.requires_grad_(False)
            autocast_forward(stage, precision == "bf16")
            losses[precision, cache is not None] = float(sums_of(stage, next(stage.loader))["text"][0])
            stage.inputs.flush()
    assert sorted(folder.name for folder in tmp_path.glob("features*")) == ["features-bf16", "features-fp32"]
    assert losses["fp32", True] == pytest.approx(losses["fp32", False], rel=1e-6)
    assert losses["bf16", True] == pytest.approx(losses["bf16", False], rel=1e-6)
    assert losses["bf16", True] != losses["fp32", True]


def test_features_are_not_kept_of_a_tower_that_learns(tmp_path):
    stage = stage_of(all_tasks(), data={"sources": [], "cache": str(tmp_path)})
    sums_of(stage, next(stage.loader))
    assert not list(tmp_path.glob("features*"))
    with torch.no_grad():
        next(stage.vq.model.parameters()).add_(1)
    with pytest.raises(ValueError, match="is stale: its codes"):
        type(stage)(stage.config, stage.pipeline, stage.loader)
