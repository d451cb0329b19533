"""Conversions on disk: what comes back is what was there, bit for bit; what cannot be converted is refused in one
sentence and leaves nothing behind."""

import json
import os
import pickle
import shutil
import stat
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, JanusForConditionalGeneration, JanusProcessor

from hybridgen.bridges.janus.conversion import convert, load_janus
from hybridgen.bridges.janus.prompts import open_tokenizer
from hybridgen.bridges.janus.report import lost
from hybridgen.modeling_hybridgen import HybridGenForConditionalGeneration
from hybridgen.pipeline_hybridgen import load_pipeline
from tests.januses import VARIANTS, save_transformers, tiny_janus
from tests.pipelines import tiny_pipeline

SAME_FILES = ("model.safetensors", "config.json", "tokenizer.json", "processor_config.json", "chat_template.jinja")


@pytest.fixture(scope="module", params=VARIANTS)
def folder(request, tmp_path_factory) -> Path:
    """transformers' layout in bfloat16."""
    return save_transformers(tmp_path_factory.mktemp("hf") / request.param, request.param, torch.bfloat16)


@pytest.fixture
def plain(tmp_path) -> Path:
    return save_transformers(tmp_path / "plain")


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def change(file: Path, **settings) -> None:
    content = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**content, **settings}), encoding="utf-8")


# --------------------------------------------------------------------------------------------------- round trips


def test_transformers_layout_comes_back_byte_for_byte(folder, tmp_path):
    convert(folder, tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "back", "janus-hf")
    for name in SAME_FILES:
        assert (tmp_path / "back" / name).read_bytes() == (folder / name).read_bytes(), name


def test_the_official_layout_comes_back_byte_for_byte(folder, tmp_path):
    convert(folder, tmp_path / "official", "janus-official")
    convert(tmp_path / "official", tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "again", "janus-official")
    for name in sorted(os.listdir(tmp_path / "official")):
        if name != "tokenizer.json":  # what begins a text, a setting there, stands in it after one round
            assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "official" / name).read_bytes(), name
    convert(tmp_path / "again", tmp_path / "hf", "janus-hf")
    assert (tmp_path / "hf" / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_what_is_written_is_what_the_pipeline_writes(folder, tmp_path):
    """And a saved pipeline is a source like any other."""
    convert(folder, tmp_path / "a")
    load_pipeline(tmp_path / "a").save_pretrained(tmp_path / "b")
    written, saved = (
        sorted(path.relative_to(top) for path in top.rglob("*") if path.is_file())
        for top in (tmp_path / "a", tmp_path / "b")
    )
    assert written == saved
    assert Path("config.json") in written  # by which the Auto classes know it
    for file in written:
        assert (tmp_path / "b" / file).read_bytes() == (tmp_path / "a" / file).read_bytes(), file
    load_janus(folder).save_pretrained(tmp_path / "c")
    convert(tmp_path / "c", tmp_path / "back", "janus-hf")
    assert (tmp_path / "back" / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_transformers_opens_what_is_written(folder, tmp_path):
    convert(folder, tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "back", "janus-hf")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "back", dtype=torch.float32)
    assert isinstance(model, JanusForConditionalGeneration)
    ids = torch.tensor([[0, 10, 11, 12]])
    original = JanusForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    assert torch.equal(model(ids).logits, original(ids).logits)
    processor = JanusProcessor.from_pretrained(tmp_path / "back")
    assert processor.tokenizer.get_vocab() == JanusProcessor.from_pretrained(folder).tokenizer.get_vocab()


def test_dtypes_are_kept_tensor_by_tensor(plain, tmp_path):
    tensors = load_file(plain / "model.safetensors")
    mixed = {n: t.half() if "norm" in n else t.bfloat16() if "mlp" in n else t for n, t in tensors.items()}
    save_file(mixed, plain / "model.safetensors", {"format": "pt"})
    convert(plain, tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "official", "janus-official")
    convert(tmp_path / "official", tmp_path / "back", "janus-hf")
    assert_same(tensors_of(tmp_path / "back"), mixed)
    assert load_janus(plain).model.dtype == torch.float32  # in memory it is one type, as in transformers


def said_dtypes(folder: Path, *places: str) -> list:
    """What the JSON files of a folder say at `file:key.key`."""
    said = []
    for place in places:
        file, _, keys = place.partition(":")
        value = json.loads((folder / file).read_text())
        for key in keys.split("."):
            value = value.get(key)
        said.append(value)
    return said


def test_the_dtype_that_a_config_says_is_kept_whatever_most_tensors_have(plain, tmp_path):
    """It is what libraries load a folder in; a part's own, where the new layout has a place for it, else it is said."""
    change(plain / "config.json", dtype="float16")
    vq = json.loads((plain / "config.json").read_text())["vq_config"]
    change(plain / "config.json", vq_config={**vq, "dtype": "bfloat16"})
    convert(plain, tmp_path / "ours")
    assert said_dtypes(tmp_path / "ours", "model/config.json:dtype", "vq_model/config.json:dtype") == [
        "float16",
        "bfloat16",
    ]
    for source in (plain, tmp_path / "ours"):
        official, back = tmp_path / f"official of {source.name}", tmp_path / f"back from {source.name}"
        janus = convert(source, official, "janus-official")
        places = ("config.json:torch_dtype", "config.json:language_config.torch_dtype")
        assert said_dtypes(official, *places) == ["float16", "float16"]
        lost_dtype = "config.json cannot say vq_config.dtype 'bfloat16': it will be read as 'float16'"
        assert lost_dtype in list(lost(janus, "janus-official"))
        convert(source, back, "janus-hf")
        assert said_dtypes(back, "config.json:dtype", "config.json:vq_config.dtype") == ["float16", "bfloat16"]
    convert(tmp_path / "official of ours", tmp_path / "again", "hybridgen")
    assert said_dtypes(tmp_path / "again", "model/config.json:dtype", "vq_model/config.json:dtype") == ["float16"] * 2
    change(plain / "config.json", dtype="float17")
    with pytest.raises(ValueError, match="float17"):
        convert(plain, tmp_path / "none")


@pytest.mark.parametrize("kind", ["shards", "bin", "old bin", "bin shards"])
def test_every_kind_of_file_is_read(plain, tmp_path, kind):
    expected = load_file(plain / "model.safetensors")
    (plain / "model.safetensors").unlink()
    if kind == "shards":
        tiny_janus().save_pretrained(plain, max_shard_size="300KB")
        assert len(list(plain.glob("*.safetensors"))) > 2
    elif kind == "bin shards":
        halves = [dict(list(expected.items())[start::2]) for start in (0, 1)]
        names = {}
        for number, half in enumerate(halves):
            torch.save(half, plain / f"pytorch_model-{number}.bin")
            names |= dict.fromkeys(half, f"pytorch_model-{number}.bin")
        (plain / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    else:
        torch.save(expected, plain / "pytorch_model.bin", _use_new_zipfile_serialization=kind == "bin")
    convert(plain, tmp_path / "out", "janus-hf")
    assert_same(tensors_of(tmp_path / "out"), expected)


def test_large_checkpoints_are_written_in_shards(plain, tmp_path):
    convert(plain, tmp_path / "out", "janus-official", max_shard_size="300KB")
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 2
    convert(tmp_path / "out", tmp_path / "back", "janus-hf")
    assert_same(tensors_of(tmp_path / "back"), load_file(plain / "model.safetensors"))


# ---------------------------------------------------------------------------------------------- the official layout


@pytest.fixture
def official(plain, tmp_path) -> Path:
    """As DeepSeek's: one .bin, with the attention pool and the count of used codes in it."""
    convert(plain, tmp_path / "official", "janus-official")
    file = tmp_path / "official" / "model.safetensors"
    pool = {f"vision_model.vision_tower.attn_pool.{name}": torch.randn(16) for name in ("latent", "q.weight", "q.bias")}
    used = {"gen_vision_model.quantize.codebook_used": torch.zeros(65536)}
    torch.save({**load_file(file), **pool, **used}, tmp_path / "official" / "pytorch_model.bin")
    file.unlink()
    return tmp_path / "official"


def test_official_loses_what_it_lists_and_nothing_else(official, plain, tmp_path, run):
    code, lines, err = run(official, tmp_path / "ours")
    assert (code, lines) == (0, [str(tmp_path / "ours")])
    lost = sorted(line.removeprefix("left out: ") for line in err.splitlines() if line.startswith("left out: "))
    pool = [f"vision_model.vision_tower.attn_pool.{name}" for name in ("latent", "q.bias", "q.weight")]
    assert lost == ["gen_vision_model.quantize.codebook_used", *pool]
    convert(tmp_path / "ours", tmp_path / "back", "janus-official")
    before = torch.load(official / "pytorch_model.bin", weights_only=True)
    assert_same(tensors_of(tmp_path / "back"), {name: tensor for name, tensor in before.items() if name not in lost})


def test_both_layouts_make_the_same_pipeline(official, plain):
    theirs, ours = load_janus(official), load_janus(plain)
    assert_same(theirs.model.state_dict(), ours.model.state_dict())
    assert_same(theirs.vq_model.state_dict(), ours.vq_model.state_dict())
    assert theirs.processor.chat_template == ours.processor.chat_template
    assert theirs.processor.special_tokens == ours.processor.special_tokens
    for pipeline in (theirs, ours):
        pipeline.set_progress_bar_config(disable=True)
    settings = {"path": "vq", "guidance_scale": 5.0, "seed": 0}
    pictures = [pipeline("a red circle", **settings).images[0].tobytes() for pipeline in (theirs, ours)]
    assert pictures[0] == pictures[1]


@pytest.mark.parametrize(
    ("name", "sft_format", "style"),
    [("Janus-1.3B", "deepseek", "janus"), ("Janus-Pro-7B", "deepseek", "janus-pro"), ("x", "deepseek_old", "janus")],
)
def test_the_generation_is_found_out(official, name, sft_format, style, run):
    folder = official.rename(official.with_name(name))
    change(folder / "processor_config.json", sft_format=sft_format)
    _, lines, _ = run(folder, "--dry-run")
    assert f"prompts      {style} (" in "\n".join(lines)


def test_the_pad_token_is_found_by_its_name(official):
    """Its id differs from size to size, and older tokenizer settings name another."""
    change(official / "tokenizer_config.json", pad_token="<｜end▁of▁sentence｜>")
    assert open_tokenizer(official).pad_token == "<｜▁pad▁｜>"
    assert load_janus(official).processor.special_tokens.pad == 2


def test_the_weights_say_whether_the_head_is_tied(plain, tmp_path):
    """Janus-Pro in transformers' layout says nothing, which means tied there, and holds a head of its own."""
    change(plain / "config.json", tie_word_embeddings=True)
    assert not load_janus(plain).model.config.tie_word_embeddings
    tied = save_transformers(tmp_path / "tied", "tied")
    tensors = load_file(tied / "model.safetensors")
    assert "lm_head.weight" not in tensors
    assert load_janus(tied).model.config.tie_word_embeddings
    twice = {**tensors, "lm_head.weight": tensors["model.language_model.embed_tokens.weight"].clone()}
    save_file(twice, tied / "model.safetensors", {"format": "pt"})
    assert load_janus(tied).model.config.tie_word_embeddings


# ---------------------------------------------------------------------------------------------------- the dry run


def test_the_dry_run_says_what_would_be_mapped(folder, run):
    code, lines, _ = run(folder, "--dry-run")
    with safe_open(folder / "model.safetensors", "pt") as file:
        count = len(file.keys())
    text = "\n".join(lines)
    assert code == 0
    for line in (f"mapped       {count}", "missing      0", "unexpected   0", "other shape  0", "other dtype  0"):
        assert line in text
    tied = "tied" in folder.name
    assert f"head         {'tied to the embeddings' if tied else 'untied'}" in text
    for line in (
        "pad          2  <｜▁pad▁｜>",
        "image        3  <image",
        "begin        4  <begin",
        "end          5  <end",
    ):
        assert line in text
    assert "prompts      janus-pro (its chat template)" in text


def test_the_dry_run_lists_what_differs_and_writes_nothing(plain, tmp_path, run):
    tensors = load_file(plain / "model.safetensors")
    tensors["model.extra"] = torch.zeros(3)
    tensors["model.aligner.fc1.bias"] = torch.zeros(31)
    tensors["model.language_model.norm.weight"] = tensors["model.language_model.norm.weight"].half()
    del tensors["model.aligner.fc1.weight"]
    save_file(tensors, plain / "model.safetensors", {"format": "pt"})
    before = sorted(tmp_path.rglob("*"))
    code, lines, err = run(plain, tmp_path / "out", "--dry-run")
    assert code == 2
    assert "lacks 1 of its tensors, such as model.aligner.fc1.weight" in err
    for line in (
        "  model.aligner.fc1.weight  expected (32, 16)",
        "  model.extra  (3,)",
        "  model.aligner.fc1.bias  (31,), expected (32,)",
        "  model.language_model.norm.weight  float16, most float32",
    ):
        assert line in lines
    assert sorted(tmp_path.rglob("*")) == before


# ------------------------------------------------------------------------------------------------------ bad input


class Evil:
    def __reduce__(self):
        return os.system, ("echo code ran > evil.txt",)


def _another_model(folder: Path) -> str:
    change(folder / "config.json", model_type="qwen3", architectures=["Qwen3ForCausalLM"])
    return "holds a Qwen3ForCausalLM, not a Janus"


def _no_config(folder: Path) -> str:
    (folder / "config.json").unlink()
    return "has no config.json"


def _janusflow(folder: Path) -> str:
    change(folder / "config.json", model_type="multi_modality", architectures=["MultiModalityCausalLM"])
    return "not a Janus"


def _shard_missing(folder: Path) -> str:
    tiny_janus().save_pretrained(folder, max_shard_size="300KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    sorted(folder.glob("model-*.safetensors"))[1].unlink()
    return "is missing model-00002-of-"


def _no_weights(folder: Path) -> str:
    (folder / "model.safetensors").unlink()
    return "has no weights"


def _pickle_with_code(folder: Path) -> str:
    (folder / "model.safetensors").unlink()
    with open(folder / "pytorch_model.bin", "wb") as file:
        pickle.dump({"lm_head.weight": Evil()}, file)
    return "could run code"


def _torch_pickle_with_code(folder: Path) -> str:
    (folder / "model.safetensors").unlink()
    torch.save({"lm_head.weight": Evil()}, folder / "pytorch_model.bin")
    return "could run code"


def _no_table(folder: Path) -> str:
    (folder / "model.safetensors").unlink()
    torch.save([torch.zeros(2)], folder / "pytorch_model.bin")
    return "holds no table of tensors"


def _cut_off(folder: Path) -> str:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    return "cut off"


def _cut_off_bin(folder: Path) -> str:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"PK\x03\x04 nothing more")
    return "cannot be read"


def _no_image_tokens(folder: Path) -> str:
    file = folder / "tokenizer.json"
    file.write_text(file.read_text(encoding="utf-8").replace("<begin_of_image>", "<begin_of_music>"), encoding="utf-8")
    return "has no <begin_of_image>"


def _no_tokenizer(folder: Path) -> str:
    (folder / "tokenizer.json").unlink()
    return "has no tokenizer.json"


def _another_tokenizer(folder: Path) -> str:
    change(folder / "config.json", image_token_id=100581)
    return "image_token_id 100581, but the tokenizer says 3"


def _sizes_of_tensors(folder: Path) -> str:
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["lm_head.weight"][:300].clone()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return "lm_head.weight of shape (300, 32), but its config makes it (352, 32)"


def _sizes_of_parts(folder: Path) -> str:
    config = json.loads((folder / "config.json").read_text())
    change(folder / "config.json", vision_config={**config["vision_config"], "num_image_tokens": 576})
    return "num_image_tokens is 576, but image_size 32 and patch_size 8 make 16"


def _size_of_pictures(folder: Path) -> str:
    settings = json.loads((folder / "processor_config.json").read_text())
    images = {**settings["image_processor"], "size": {"height": 384, "width": 384}}
    change(folder / "processor_config.json", image_processor=images)
    return "makes pictures of 384 pixels, but the vision tower takes 32"


def _wrong_values(folder: Path) -> str:
    config = json.loads((folder / "config.json").read_text())
    change(folder / "config.json", text_config={**config["text_config"], "hidden_size": "wide"})
    return "does not describe a Janus"


def _no_json(folder: Path) -> str:
    (folder / "config.json").write_text("{")
    return "is not valid JSON"


@pytest.mark.parametrize(
    "spoil",
    [
        _another_model, _no_config, _janusflow, _shard_missing, _no_weights, _pickle_with_code,
        _torch_pickle_with_code, _no_table, _cut_off, _cut_off_bin, _no_image_tokens, _no_tokenizer,
        _another_tokenizer, _sizes_of_tensors, _sizes_of_parts, _size_of_pictures, _wrong_values, _no_json,
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence_and_writes_nothing(plain, tmp_path, run, spoil, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sentence = spoil(plain)
    before = sorted(tmp_path.rglob("*"))
    code, lines, err = run(plain, tmp_path / "out")
    assert (code, lines) == (2, [])
    assert sentence in err
    assert len([line for line in err.splitlines() if line.startswith("hybridgen: ")]) == 1
    assert "Traceback" not in err
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(ValueError, match=r".+"):
        load_janus(plain)


def test_where_to_write_is_checked_first(plain, tmp_path, run):
    assert "is there already" in run(plain, plain)[2]
    assert "no folder to write to" in run(plain)[2]
    assert "does not exist" in run(tmp_path / "nothing", tmp_path / "out")[2]
    (tmp_path / "empty").mkdir()
    assert run(plain, tmp_path / "empty")[0] == 0


def test_a_failure_half_way_leaves_nothing(plain, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hybridgen.bridges.weights.save_file", full)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OSError, match="No space left"):
        convert(plain, tmp_path / "out")
    assert sorted(tmp_path.rglob("*")) == before


def test_the_new_folder_is_as_open_as_any_other(plain, tmp_path):
    convert(plain, tmp_path / "out")
    (tmp_path / "other").mkdir()
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == stat.S_IMODE((tmp_path / "other").stat().st_mode)


# ------------------------------------------------------------------------------------------- what is not a Janus


def test_a_model_that_is_no_janus_is_not_written_as_one(tmp_path, run):
    tiny_pipeline().save_pretrained(tmp_path / "hybrid")
    code, _, err = run(tmp_path / "hybrid", tmp_path / "out", "--to", "janus-hf")
    assert code == 2
    assert "this model's is a siglip_vision_model" in err
    tiny_pipeline(vq_config=None).save_pretrained(tmp_path / "two")
    assert "has no vq path" in run(tmp_path / "two", tmp_path / "out", "--to", "janus-hf")[2]
    assert not (tmp_path / "out").exists()


def test_meta_loading_works(plain, tmp_path):
    """DeepSeek's tower calls `.item()` while it is built, and cannot be."""
    convert(plain, tmp_path / "ours")
    model = HybridGenForConditionalGeneration.from_pretrained(tmp_path / "ours" / "model", device_map="cpu")
    with torch.device("meta"):
        empty = HybridGenForConditionalGeneration(model.config)
    assert {name: value.shape for name, value in empty.state_dict().items()} == {
        name: value.shape for name, value in model.state_dict().items()
    }
    shutil.rmtree(tmp_path / "ours" / "vq_model")
    with pytest.raises(ValueError, match="is missing its folder vq_model/"):
        convert(tmp_path / "ours", tmp_path / "back", "janus-hf")
