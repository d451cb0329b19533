"""Chameleons on disk: what comes back is what was there, bit for bit; what cannot be converted is refused in one
sentence and leaves nothing behind."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import ChameleonForConditionalGeneration

from hybridgen.bridges.chameleon.checkpoint import open_chameleon
from hybridgen.bridges.chameleon.configs import code_tokens
from hybridgen.bridges.chameleon.conversion import load_chameleon
from hybridgen.bridges.chameleon.report import lost
from hybridgen.bridges.families import convert
from hybridgen.pipeline_hybridgen import load_pipeline
from tests.bridges.janus.test_conversion import assert_same, change, tensors_of
from tests.chameleons import CODES, VARIANTS, code_name, save_transformers, tiny_chameleon, tiny_decoder
from tests.januses import save_transformers as save_janus
from tests.pipelines import tiny_pipeline


@pytest.fixture(scope="module", params=VARIANTS)
def folder(request, tmp_path_factory) -> Path:
    """transformers' layout in bfloat16."""
    return save_transformers(tmp_path_factory.mktemp("hf") / request.param, request.param, torch.bfloat16)


@pytest.fixture
def plain(tmp_path) -> Path:
    return save_transformers(tmp_path / "plain")


def with_decoder(folder: Path, dtype: torch.dtype = torch.bfloat16) -> Path:
    """The decoder's weights among the others, as Anole has them."""
    tensors = load_file(folder / "model.safetensors")
    tensors |= {f"model.vqmodel.{name}": tensor.to(dtype) for name, tensor in tiny_decoder(folder.name).items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def assert_same_folders(found: Path, expected: Path) -> None:
    assert sorted(os.listdir(found)) == sorted(os.listdir(expected))
    for name in os.listdir(expected):
        assert (found / name).read_bytes() == (expected / name).read_bytes(), name


def test_transformers_layout_comes_back_byte_for_byte(folder, tmp_path):
    convert(folder, tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "back", "chameleon-hf")
    assert_same_folders(tmp_path / "back", folder)


def test_what_is_written_is_what_the_pipeline_writes(folder, tmp_path):
    convert(folder, tmp_path / "a")
    load_pipeline(tmp_path / "a").save_pretrained(tmp_path / "b")
    files = [sorted(path.relative_to(top) for path in top.rglob("*.*")) for top in (tmp_path / "a", tmp_path / "b")]
    assert files[0] == files[1]
    for file in files[0]:
        assert (tmp_path / "b" / file).read_bytes() == (tmp_path / "a" / file).read_bytes(), file
    convert(tmp_path / "b", tmp_path / "back", "chameleon-hf")
    assert_same(tensors_of(tmp_path / "back"), tensors_of(folder))


def test_a_decoder_among_the_weights_comes_along(tmp_path):
    folder = with_decoder(save_transformers(tmp_path / "34b", "34b", torch.bfloat16))
    convert(folder, tmp_path / "ours")
    back = convert(tmp_path / "ours", tmp_path / "back", "chameleon-hf")
    assert_same(tensors_of(tmp_path / "back"), tensors_of(folder))
    assert "transformers' Chameleon does not read the decoder" in "\n".join(back.lost())
    assert load_pipeline(tmp_path / "ours").vq_model.config.has_decoder


def test_a_decoder_in_a_file_of_its_own(plain, tmp_path, run):
    """As Meta's release has it, with all else of the tokenizer beside it."""
    vq = {
        name.removeprefix("model.vqmodel."): tensor
        for name, tensor in load_file(plain / "model.safetensors").items()
        if name.startswith("model.vqmodel.")
    }
    torch.save({"state_dict": vq | tiny_decoder()}, tmp_path / "vqgan.ckpt")
    code, _, err = run(plain, tmp_path / "ours", "--vq-decoder", tmp_path / "vqgan.ckpt")
    assert (code, err) == (0, "")
    pipe = load_pipeline(tmp_path / "ours")
    pipe.set_progress_bar_config(disable=True)
    assert pipe("a red circle", path="vq", seed=0).images[0].size == (8, 8)
    save_file(tiny_decoder(), tmp_path / "decoder.safetensors")
    again = load_chameleon(plain, vq_decoder=tmp_path / "decoder.safetensors")
    assert_same(again.vq_model.state_dict(), pipe.vq_model.state_dict())


def test_without_a_decoder_pictures_are_read_and_their_codes_drawn(plain, tmp_path, run):
    code, _, err = run(plain, tmp_path / "ours")
    assert code == 0
    assert "lost: pictures cannot be drawn: the checkpoint has no decoder of its VQ tokenizer" in err
    pipe = load_pipeline(tmp_path / "ours")
    pipe.set_progress_bar_config(disable=True)
    assert pipe("a red circle", path="vq", seed=0, output_type="latent").images.shape == (1, 4, 4)
    with pytest.raises(ValueError, match="this VQ tokenizer has no decoder, so it reads pictures and draws none"):
        pipe("a red circle", path="vq", seed=0)


def test_dtypes_are_kept_tensor_by_tensor(plain, tmp_path):
    tensors = load_file(plain / "model.safetensors")
    mixed = {n: t.half() if "norm" in n else t.bfloat16() if "mlp" in n else t for n, t in tensors.items()}
    save_file(mixed, plain / "model.safetensors", {"format": "pt"})
    convert(plain, tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "back", "chameleon-hf", max_shard_size="100KB")
    assert len(list((tmp_path / "back").glob("*.safetensors"))) > 2
    assert_same(tensors_of(tmp_path / "back"), mixed)


def test_transformers_opens_what_is_written(folder, tmp_path):
    convert(folder, tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "back", "chameleon-hf")
    ids = torch.tensor([[0, 60, 70, 101]])
    logits = [
        ChameleonForConditionalGeneration.from_pretrained(each, dtype=torch.float32)(ids).logits
        for each in (folder, tmp_path / "back")
    ]
    assert torch.equal(*logits)


def test_settings_of_pictures_that_are_ours_come_along(plain, tmp_path, run):
    settings = json.loads((plain / "processor_config.json").read_text())
    images = {**settings["image_processor"], "rescale_factor": 1 / 127.5, "resample": 3}
    change(plain / "processor_config.json", image_processor=images)
    assert list(lost(open_chameleon(plain), "hybridgen"))[0].startswith("pictures cannot be drawn")
    convert(plain, tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "back", "chameleon-hf")
    names = ("config.json", "processor_config.json")
    before, after = ([json.loads((top / name).read_text()) for name in names] for top in (plain, tmp_path / "back"))
    assert before == after
    change(plain / "processor_config.json", image_processor={**images, "rescale_factor": 0.00784, "resample": 1})
    said = list(lost(open_chameleon(plain), "hybridgen"))
    assert said[0] == "rescale_factor 0.00784: levels are divided by 127.5 here"
    assert said[1].startswith("resample 1: pictures of another size are resized by 3")


def test_the_dry_run_says_what_would_be_mapped(folder, run):
    code, lines, _ = run(folder, "--dry-run")
    count = len(load_file(folder / "model.safetensors"))
    text, scattered = "\n".join(lines), folder.name == "scattered"
    assert code == 0
    for line in (f"mapped       {count}", "missing      0", "unexpected   0", "other shape  0", "left out     0"):
        assert line in lines
    for line in (
        f"head         {'tied to the embeddings' if scattered else 'untied'}",
        f"norms        {'behind attention and feed-forward (swin_norm)' if folder.name == '34b' else 'before them'}",
        f"codes        40, tokens 4 to 43{', not in the order of codes' if scattered else ''}",
        "image        47  <image>",
        "begin        45  <racm3:break>",
        "separator    46  <reserved08706>",
        f"images       {VARIANTS[folder.name]['resolution']} pixels, read only: no decoder",
    ):
        assert line in lines, text


def test_the_dry_run_lists_what_differs_and_writes_nothing(plain, tmp_path, run):
    tensors = load_file(plain / "model.safetensors")
    tensors["model.extra"] = torch.zeros(3)
    tensors["model.layers.1.self_attn.q_norm.weight"] = torch.zeros(1, 8)
    del tensors["model.vqmodel.quant_conv.bias"]
    save_file(tensors, plain / "model.safetensors", {"format": "pt"})
    before = sorted(tmp_path.rglob("*"))
    code, lines, err = run(plain, tmp_path / "out", "--dry-run")
    assert code == 2
    assert "lacks 1 of its tensors, such as model.vqmodel.quant_conv.bias" in err
    for line in (
        "  model.vqmodel.quant_conv.bias  expected (8,)",
        "  model.extra  (3,)",
        "  model.layers.1.self_attn.q_norm.weight  (1, 8), expected (4, 8)",
    ):
        assert line in lines
    assert sorted(tmp_path.rglob("*")) == before


def test_codes_are_found_by_their_names():
    config = tiny_chameleon("scattered").config
    assert code_tokens(config) == [config.vocabulary_map[code_name(code)] for code in range(CODES)]
    assert code_name(10) == "IMGIMGBAZ"


# ------------------------------------------------------------------------------------------------------ bad input


def _another_model(folder: Path) -> str:
    change(folder / "config.json", model_type="qwen3", architectures=["Qwen3ForCausalLM"])
    return "holds a Qwen3ForCausalLM, not a Janus, a Chameleon, a LLaVA or a checkpoint"


def _shard_missing(folder: Path) -> str:
    tiny_chameleon().save_pretrained(folder, max_shard_size="100KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    sorted(folder.glob("model-*.safetensors"))[1].unlink()
    return "is missing model-00002-of-"


def _shape_of_a_norm(folder: Path) -> str:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.self_attn.k_norm.bias"] = torch.zeros(2, 8)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return "k_norm.bias of shape (2, 8), but its config makes it (4, 8)"


def _no_map(folder: Path) -> str:
    change(folder / "config.json", vocabulary_map=None)
    return "config.json has no vocabulary_map"


def changed_map(folder: Path, change_it) -> None:
    content = json.loads((folder / "config.json").read_text())["vocabulary_map"]
    change_it(content)
    change(folder / "config.json", vocabulary_map=content)


def _code_without_a_token(folder: Path) -> str:
    changed_map(folder, lambda names: names.pop(code_name(17)))
    return "names 39 tokens of codes, none for code 17, but vq_config.num_embeddings is 40"


def _code_too_many(folder: Path) -> str:
    changed_map(folder, lambda names: names.update({code_name(40): 300}))
    return "names 41 tokens of codes, one for code 40, but vq_config.num_embeddings is 40"


def _code_of_two_tokens(folder: Path) -> str:
    changed_map(folder, lambda names: names.update({"IMGIMGAAZ": 300}))
    return "vocabulary_map names two tokens for code 0"


def _another_tokenizer(folder: Path) -> str:
    changed_map(folder, lambda names: names.update({"<image>": 301}))
    return "vocabulary_map says 301 for the token of images, but the tokenizer says 47"


def _no_image_tokens(folder: Path) -> str:
    file = folder / "tokenizer.json"
    file.write_text(file.read_text(encoding="utf-8").replace("<racm3:break>", "<racm3:brake>"), encoding="utf-8")
    return "has no <racm3:break>, which every Chameleon needs"


def _pictures_that_are_no_squares(folder: Path) -> str:
    images = json.loads((folder / "processor_config.json").read_text())["image_processor"]
    change(folder / "processor_config.json", image_processor={**images, "crop_size": {"height": 8, "width": 12}})
    return "a Chameleon's are squares"


def _other_values(folder: Path) -> str:
    images = json.loads((folder / "processor_config.json").read_text())["image_processor"]
    change(folder / "processor_config.json", image_processor={**images, "image_mean": [0.5] * 3})
    return "makes values from -0.5 to 1.489"


def _other_length(folder: Path) -> str:
    change(folder / "processor_config.json", image_seq_length=1024)
    return "gives a picture 1024 tokens, but one of 8 pixels has 16 codes"


def _double_latent(folder: Path) -> str:
    config = json.loads((folder / "config.json").read_text())
    change(folder / "config.json", vq_config={**config["vq_config"], "double_latent": True})
    return "vq_config.double_latent is true"


def _wrong_values(folder: Path) -> str:
    change(folder / "config.json", hidden_size="wide")
    return "does not describe a Chameleon"


@pytest.mark.parametrize(
    "spoil",
    [
        _another_model, _shard_missing, _shape_of_a_norm, _no_map, _code_without_a_token, _code_too_many,
        _code_of_two_tokens, _another_tokenizer, _no_image_tokens, _pictures_that_are_no_squares, _other_values,
        _other_length, _double_latent, _wrong_values,
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence_and_writes_nothing(plain, tmp_path, run, spoil):
    refused(run, tmp_path, spoil(plain), plain, tmp_path / "out")


def refused(run, tmp_path: Path, sentence: str, *arguments) -> None:
    before = sorted(tmp_path.rglob("*"))
    code, lines, err = run(*arguments)
    assert (code, lines) == (2, [])
    assert sentence in err
    assert len([line for line in err.splitlines() if line.startswith("hybridgen: ")]) == 1
    assert "Traceback" not in err
    assert sorted(tmp_path.rglob("*")) == before


def test_what_does_not_go_together_is_refused(plain, tmp_path, run):
    out, janus, ours = tmp_path / "out", save_janus(tmp_path / "janus"), tmp_path / "ours"
    tiny_pipeline().save_pretrained(ours)
    save_file({"x": torch.zeros(2)}, tmp_path / "none.safetensors")
    other = {"quantize.embedding.weight": torch.zeros(CODES, 8), **tiny_decoder()}
    save_file(other, tmp_path / "other.safetensors")
    for sentence, *arguments in (
        ("which cannot be written as janus-hf; a Chameleon can as hybridgen or", plain, out, "--to", "janus-hf"),
        ("holds a JanusForConditionalGeneration, which cannot be written as chameleon-hf", janus, out, "--to",
         "chameleon-hf"),
        ("backbone is a chameleon_decoder, but this model's is a qwen3", ours, out, "--to", "chameleon-hf"),
        ("--style is not for a Chameleon", plain, out, "--style", "janus"),
        ("--vq-decoder is not for a Janus", janus, out, "--vq-decoder", tmp_path / "none.safetensors"),
        ("has no tensors called decoder.*", plain, out, "--vq-decoder", tmp_path / "none.safetensors"),
        ("has another codebook than", plain, out, "--vq-decoder", tmp_path / "other.safetensors"),
        ("does not exist", plain, out, "--vq-decoder", tmp_path / "nowhere.ckpt"),
    ):  # fmt: skip
        refused(run, tmp_path, sentence, *arguments)
