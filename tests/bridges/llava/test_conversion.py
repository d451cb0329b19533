"""LLaVAs on disk: what comes back is what was there, bit for bit; what cannot be converted is refused in one sentence
and leaves nothing behind."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing
from transformers import LlavaForConditionalGeneration

from hybridgen.bridges.families import convert
from hybridgen.bridges.folders import other_tokens
from hybridgen.bridges.llava.checkpoint import open_llava
from hybridgen.bridges.llava.report import lost
from hybridgen.pipeline_hybridgen import load_pipeline
from tests.bridges.janus.test_conversion import assert_same, change, tensors_of
from tests.foreign_tokenizers import llama2
from tests.llavas import VARIANTS, save_transformers, tiny_llava, tiny_tokenizer
from tests.pipelines import tiny_pipeline


@pytest.fixture(scope="module", params=VARIANTS)
def folder(request, tmp_path_factory) -> Path:
    """transformers' layout in bfloat16."""
    return save_transformers(tmp_path_factory.mktemp("hf") / request.param, request.param, torch.bfloat16)


@pytest.fixture
def plain(tmp_path) -> Path:
    return save_transformers(tmp_path / "plain")


def test_transformers_layout_comes_back_byte_for_byte(folder, tmp_path):
    assert list(convert(folder, tmp_path / "ours").lost()) == []
    assert list(convert(tmp_path / "ours", tmp_path / "back", "llava-hf").lost()) == []
    assert sorted(os.listdir(tmp_path / "back")) == sorted(os.listdir(folder))
    for name in os.listdir(folder):
        assert (tmp_path / "back" / name).read_bytes() == (folder / name).read_bytes(), name


def test_what_is_written_is_what_the_pipeline_writes(folder, tmp_path):
    convert(folder, tmp_path / "a")
    load_pipeline(tmp_path / "a").save_pretrained(tmp_path / "b")
    files = [sorted(path.relative_to(top) for path in top.rglob("*.*")) for top in (tmp_path / "a", tmp_path / "b")]
    assert files[0] == files[1]
    for file in files[0]:
        assert (tmp_path / "b" / file).read_bytes() == (tmp_path / "a" / file).read_bytes(), file


def test_names_of_every_time_are_read(plain, tmp_path):
    """Those of memory today, and those of old files, whose towers stood a level deeper."""
    tensors = load_file(plain / "model.safetensors")
    for number, renamed in enumerate(
        (
            {name.replace("vision_tower.", "vision_tower.vision_model."): tensor for name, tensor in tensors.items()},
            tiny_llava().state_dict(),
        )
    ):
        other = tmp_path / f"other{number}"
        other.mkdir()
        for file in plain.iterdir():
            if file.suffix != ".safetensors":
                (other / file.name).write_bytes(file.read_bytes())
        save_file({name: x.clone() for name, x in renamed.items()}, other / "model.safetensors", {"format": "pt"})
        convert(other, tmp_path / f"back{number}", "llava-hf")
        assert_same(tensors_of(tmp_path / f"back{number}"), tensors)


def test_dtypes_are_kept_and_shards_written(plain, tmp_path):
    tensors = load_file(plain / "model.safetensors")
    mixed = {n: t.half() if "norm" in n else t.bfloat16() if "mlp" in n else t for n, t in tensors.items()}
    save_file(mixed, plain / "model.safetensors", {"format": "pt"})
    convert(plain, tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "back", "llava-hf", max_shard_size="50KB")
    assert len(list((tmp_path / "back").glob("*.safetensors"))) > 2
    assert_same(tensors_of(tmp_path / "back"), mixed)
    ids = torch.tensor([[0, 60, 70]])
    logits = [LlavaForConditionalGeneration.from_pretrained(x, dtype=torch.float32)(ids).logits
              for x in (plain, tmp_path / "back")]  # fmt: skip
    assert torch.equal(*logits)


def test_the_dry_run_says_what_would_be_mapped(plain, tmp_path, run):
    code, lines, _ = run(plain, "--dry-run")
    assert code == 0
    for line in (
        f"mapped       {len(load_file(plain / 'model.safetensors'))}",
        "missing      0",
        "unexpected   0",
        "other shape  0",
        "head         untied",
        "backbone     llama",
        "tower        clip_vision_model, layer -2, 9 features of a picture",
        "image        3  <image>",
        "lost         0",
    ):
        assert line in lines
    tensors = load_file(plain / "model.safetensors")
    tensors["multi_modal_projector.linear_1.weight"] = torch.zeros(32, 8)
    tensors["vision_tower.extra"] = torch.zeros(3)
    del tensors["language_model.model.norm.weight"]
    save_file(tensors, plain / "model.safetensors", {"format": "pt"})
    before = sorted(tmp_path.rglob("*"))
    code, lines, err = run(plain, tmp_path / "out", "--dry-run")
    assert code == 2
    assert "lacks 1 of its tensors, such as model.language_model.norm.weight" in err
    for line in (
        "  model.language_model.norm.weight  expected (32,)",
        "  model.vision_model.extra  (3,)",
        "  model.aligner.fc1.weight  (32, 8), expected (32, 16)",
    ):
        assert line in lines
    assert sorted(tmp_path.rglob("*")) == before


def test_settings_that_are_done_otherwise_are_said(plain):
    def set_images(**settings) -> list[str]:
        content = json.loads((plain / "processor_config.json").read_text())
        change(plain / "processor_config.json", image_processor={**content["image_processor"], **settings})
        return list(lost(open_llava(plain), "hybridgen"))

    assert set_images(resample=2)[0].startswith("resample 2: pictures of another size")
    assert "do_pad: pictures are padded to a square after they are resized here" in "\n".join(set_images(do_pad=True))
    assert open_llava(plain).images.understanding_fit == "pad"


def test_tokenizers_that_look_at_what_stands_before_are_said():
    """SentencePiece's put a space before a text: before each stretch of it (LLaVA 1.5's), or before its first word."""
    said = {"before each": llama2(legacy=True), "before the first": llama2(legacy=False), "nowhere": tiny_tokenizer()}
    for kind, tokenizer in said.items():
        tokenizer.add_special_tokens({"extra_special_tokens": ["<image>"]})
        frame = [(tokenizer.bos_token, tokenizer.bos_token_id)]
        single = f"{tokenizer.bos_token} $A"
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=single, special_tokens=frame)
        found = [line.split(":")[0] for line in other_tokens(tokenizer, "<image>")]
        behind_answers, at_begins = ["words behind an answer"], ["words that open a text or stand behind a picture"]
        expected = {"before each": behind_answers, "before the first": [*at_begins, *behind_answers], "nowhere": []}
        assert found == expected[kind]


def test_a_template_of_ones_own_comes_along(plain, tmp_path):
    template = plain / "chat_template.jinja"
    template.write_text(template.read_text().replace("ASSISTANT:", "BOT:"))
    convert(plain, tmp_path / "ours")
    assert "BOT:" in load_pipeline(tmp_path / "ours").processor.chat_template
    convert(tmp_path / "ours", tmp_path / "back", "llava-hf")
    assert (tmp_path / "back" / "chat_template.jinja").read_bytes() == template.read_bytes()
    template.unlink()
    convert(plain, tmp_path / "without")
    assert load_pipeline(tmp_path / "without").processor.chat_template.count("ASSISTANT:") == 1
    convert(tmp_path / "without", tmp_path / "back without", "llava-hf")
    assert not (tmp_path / "back without" / "chat_template.jinja").exists()


def _next(folder: Path) -> str:
    change(folder / "config.json", model_type="llava_next", architectures=["LlavaNextForConditionalGeneration"])
    return "holds a LlavaNextForConditionalGeneration, not a Janus, a Chameleon, a LLaVA or a checkpoint"


def _shard_missing(folder: Path) -> str:
    tiny_llava().save_pretrained(folder, max_shard_size="50KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    sorted(folder.glob("model-*.safetensors"))[1].unlink()
    return "is missing model-00002-of-"


def _no_bias(folder: Path) -> str:
    change(folder / "config.json", multimodal_projector_bias=False)
    return "multimodal_projector_bias is false"


def _class_token(folder: Path) -> str:
    change(folder / "config.json", vision_feature_select_strategy="full")
    return "vision_feature_select_strategy is 'full', but a 'clip_vision_model' has 1 of its own"


def _no_such_layer(folder: Path) -> str:
    change(folder / "config.json", vision_feature_layer=-7)
    return "vision_feature_layer is -7, but the tower has 3 layers"


def _length(folder: Path) -> str:
    change(folder / "config.json", image_seq_length=576)
    return "image_seq_length is 576, but the tower makes 9 features"


def _another_tokenizer(folder: Path) -> str:
    change(folder / "config.json", image_token_index=301)
    return "config.json says 301 for the token of images, but the tokenizer says 3"


def _no_image_token(folder: Path) -> str:
    file = folder / "tokenizer.json"
    file.write_text(file.read_text(encoding="utf-8").replace("<image>", "<music>"), encoding="utf-8")
    return "config.json says 3 for the token of images, but the tokenizer says"  # which adds the one it names


def _size_of_pictures(folder: Path) -> str:
    content = json.loads((folder / "processor_config.json").read_text())
    images = {**content["image_processor"], "crop_size": {"height": 336, "width": 336}}
    change(folder / "processor_config.json", image_processor=images)
    return "pixels, but the vision tower takes 24"


def _wrong_values(folder: Path) -> str:
    config = json.loads((folder / "config.json").read_text())
    change(folder / "config.json", text_config={**config["text_config"], "hidden_size": "wide"})
    return "does not describe a LLaVA"


@pytest.mark.parametrize(
    "spoil",
    [
        _next, _shard_missing, _no_bias, _class_token, _no_such_layer, _length, _another_tokenizer, _no_image_token,
        _size_of_pictures, _wrong_values,
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


def test_what_is_no_llava_is_refused(plain, tmp_path, run):
    out, ours, reads = tmp_path / "out", tmp_path / "ours", tmp_path / "reads"
    tiny_pipeline().save_pretrained(ours)
    tiny_pipeline(vq_config=None, diffusion_config=None).save_pretrained(reads)
    for sentence, *arguments in (
        ("reads pictures and draws none, but this model's paths are", ours, out, "--to", "llava-hf"),
        ("but this model's are framed by tokens", reads, out, "--to", "llava-hf"),
        ("which cannot be written as janus-hf; a LLaVA can as hybridgen or llava-hf", plain, out, "--to", "janus-hf"),
        ("--vq-decoder is not for a LLaVA", plain, out, "--vq-decoder", plain / "config.json"),
    ):
        refused(run, tmp_path, sentence, *arguments)
    assert tiny_tokenizer().convert_tokens_to_ids("<image>") == 3
