"""Damaged and foreign folders: one sentence that names what is wrong, for every way to load."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hybridgen.checkpoints.loading import check_checkpoint
from hybridgen.pipeline_hybridgen import HybridGenPipeline, load_pipeline
from tests.pipelines import tiny_pipeline, tiny_vae


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "saved"
    tiny_pipeline(tiny_vae()).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    return shutil.copytree(saved, tmp_path / "copy")


def refused(folder: Path) -> str:
    with pytest.raises(ValueError) as caught:
        load_pipeline(folder)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert str(folder) in sentence
    return sentence


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ("model_index.json", "has no model_index.json, so it is not a checkpoint"),
        ("model/config.json", "has no config.json"),
        ("model/model.safetensors", "missing the weights model/*.safetensors"),
        ("vq_model/config.json", "has no config.json"),
        ("vq_model/model.safetensors", "missing the weights vq_model/*.safetensors"),
        ("vae/diffusion_pytorch_model.safetensors", "missing the weights vae/*.safetensors"),
    ],
)
def test_a_missing_file_is_named(folder, part, said):
    (folder / part).unlink()
    assert said in refused(folder)
    with pytest.raises((ValueError, OSError)) as caught:
        HybridGenPipeline.from_pretrained(folder)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "part",
    [
        "scheduler/scheduler_config.json",
        "processor/tokenizer.json",
        "processor/processor_config.json",
    ],
)
def test_a_missing_setting_ends_in_one_sentence(folder, part):
    (folder / part).unlink()
    refused(folder)


@pytest.mark.parametrize("name", ["model", "processor", "scheduler", "vae", "vq_model"])
def test_a_missing_folder_is_named(folder, name):
    shutil.rmtree(folder / name)
    assert f"is missing its folder {name}/" in refused(folder)


def test_a_folder_that_is_not_there():
    assert "does not exist" in refused(Path("no/such/checkpoint"))


def test_a_checkpoint_of_another_kind(folder):
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "_class_name": "StableDiffusionPipeline"}))
    assert "is a StableDiffusionPipeline, not a HybridGenPipeline" in refused(folder)


def test_a_model_alone_is_no_pipeline(folder):
    assert "has no model_index.json" in refused(folder / "model")


def test_settings_that_are_cut_off(folder):
    (folder / "model" / "config.json").write_text('{"text_config": {')
    assert "is not valid JSON" in refused(folder)


@pytest.mark.parametrize("name", ["model/model.safetensors", "vae/diffusion_pytorch_model.safetensors"])
def test_weights_that_are_cut_off(folder, name):
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: len(whole) // 2])
    assert f"{folder / name} was cut off or changed" in refused(folder)


@pytest.mark.parametrize(
    ("name", "weight"),
    [
        ("model/model.safetensors", "lm_head.weight"),
        ("vq_model/model.safetensors", "quantize.embedding.weight"),
        ("vae/diffusion_pytorch_model.safetensors", "decoder.conv_in.weight"),
    ],
)
def test_a_missing_weight_is_named_and_not_made_up(folder, name, weight):
    weights = load_file(folder / name)
    del weights[weight]
    save_file(weights, folder / name, {"format": "pt"})
    assert weight in refused(folder)


def test_weights_of_another_shape(folder):
    file = folder / "model" / "model.safetensors"
    weights = load_file(file)
    made = tuple(weights["lm_head.weight"].shape)
    weights["lm_head.weight"] = torch.zeros(7, 32)
    save_file(weights, file, {"format": "pt"})
    assert f"has lm_head.weight of shape (7, 32), but config.json makes it {made}" in refused(folder)


def test_a_missing_shard_is_named(folder, tmp_path):
    pipeline = load_pipeline(folder)
    pipeline.model.save_pretrained(folder / "model", max_shard_size="50kB")
    (folder / "model" / "model.safetensors").unlink(missing_ok=True)
    assert load_pipeline(folder) is not None
    shard = sorted((folder / "model").glob("*.safetensors"))[1]
    shard.unlink()
    assert f"is missing model/{shard.name}" in refused(folder)


def test_an_adapter_is_no_checkpoint_and_the_way_out_is_said(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="it is an adapter; make one of it with hybridgen merge first"):
        check_checkpoint(tmp_path)
