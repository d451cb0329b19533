"""Caches: what comes out is what went in, whoever asks and in whatever batch; other weights are refused."""

import json

import pytest
import torch

from hybridgen.training.stages.caching import EncodingCache, picture_key, weights_key
from tests.data.in_memory import questions, source_of
from tests.training.stages.test_model import all_tasks, stage_of, sums_of


def pictures(count: int, side: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


class Codec:
    """Half of each picture, and how often it was asked."""

    calls = 0

    def encode(self, images):
        assert len(images) == 1  # alone, or a batch would decide the last bits
        self.calls += 1
        return images[:, :, ::2] / 2


def test_entries_are_made_once_and_found_again(tmp_path):
    codec, given = Codec(), pictures(5)
    cache = EncodingCache(tmp_path, "latents", "w")
    first = cache.entries(given, codec.encode)
    assert all(torch.equal(entry, picture[:, ::2] / 2) for entry, picture in zip(first, given, strict=True))
    cache.entries(given.flip(0), codec.encode)
    assert (codec.calls, len(cache)) == (5, 5)
    cache.flush()
    cache.entries(given, codec.encode)
    again = EncodingCache(tmp_path, "latents", "w")
    mixed = [given[3], *pictures(1, side=4), given[0]]
    found = again.entries(mixed, codec.encode)
    assert (codec.calls, len(again)) == (6, 6)
    assert torch.equal(found[0], first[3])
    assert torch.equal(found[2], first[0])
    again.flush()
    assert sorted(path.suffix for path in (tmp_path / "latents").iterdir()) == [".json", ".safetensors", ".safetensors"]


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
