"""LoRA: what it changes and what not by a bit, that it is saved alone, read by peft itself, and merged."""

import json

import pytest
import torch

from hybridgen.bridges.adapters import add_lora, load_adapter, merge, open_pipeline, target_modules
from hybridgen.bridges.lora_config import LoraConfig
from hybridgen.pipeline_hybridgen import HybridGenPipeline
from tests.pipelines import tiny_pipeline
from tests.processors import picture

peft = pytest.importorskip("peft", reason="LoRA is an optional extra: pip install 'hybridgen[peft]'")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora") / "base"
    tiny_pipeline().save_pretrained(folder)
    return folder


def adapted(base, *parts: str, seed: int = 1, **settings) -> HybridGenPipeline:
    """A pipeline with an adapter that has learnt something: both its matrices random."""
    pipeline = quiet(open_pipeline(base))
    add_lora(pipeline.model, LoraConfig([*parts], **settings))
    generator = torch.Generator().manual_seed(seed)
    for parameter in pipeline.model.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return pipeline


def quiet(pipeline: HybridGenPipeline) -> HybridGenPipeline:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@torch.no_grad()
def behaviour(pipeline: HybridGenPipeline) -> dict[str, torch.Tensor]:
    """Logits of text, of text after a picture read by each path, and pictures drawn by each path."""
    model, tokens = pipeline.model.eval(), pipeline.processor.special_tokens
    ids = torch.tensor([[token for token in range(3, 40) if token not in model.model.placeholders().values()]])
    found = {"text": model(ids).logits}
    for path in ("understanding", "diffusion", "vq"):
        content = [{"type": "image", "image": picture()}, {"type": "text", "text": "what color?"}]
        document = pipeline.processor.prompt([{"role": "user", "content": content}], read=path)
        found[f"read {path}"] = model(**pipeline.prompt_inputs([document])).logits
    few = {"diffusion": {"num_inference_steps": 2}, "vq": {}}
    for path in ("diffusion", "vq"):
        found[f"draw {path}"] = pipeline("a red circle", path=path, seed=0, output_type="pt", **few[path])[0]
    assert tokens.pad is not None
    return found


def changed(before: dict, after: dict) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def moved(before: dict, after: dict) -> set[str]:
    """As `changed`, but to rounding in drawn pictures: a backbone with adapters is run as transformers runs it, one
    without by `sampling.decoder`. Measured 2e-7."""
    drawn = {name for name in before if "draw" in name and (before[name] - after[name]).abs().max() < 1e-5}
    return changed(before, after) - drawn


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (["understanding"], {"read understanding"}),
        (["aligner"], {"read understanding"}),
        (["vq"], {"read vq", "draw vq"}),
        (["generation_aligner"], {"read vq", "draw vq"}),
        (["diffusion"], {"read diffusion", "draw diffusion"}),
        (["vq", "diffusion"], {"read vq", "draw vq", "read diffusion", "draw diffusion"}),
    ],
)
def test_an_adapter_changes_its_own_path_and_no_bit_of_the_others(base, parts, expected):
    assert changed(behaviour(quiet(open_pipeline(base))), behaviour(adapted(base, *parts))) == expected


def test_an_adapter_on_the_backbone_changes_all_and_is_taken_away_again(base):
    before, pipeline = behaviour(quiet(open_pipeline(base))), adapted(base, "backbone")
    assert changed(before, behaviour(pipeline)) == set(before)
    pipeline.model.disable_adapters()
    assert not moved(before, behaviour(pipeline))


def test_a_new_adapter_changes_nothing_and_alone_is_trained(base):
    before, pipeline = behaviour(quiet(open_pipeline(base))), quiet(open_pipeline(base))
    add_lora(pipeline.model, LoraConfig(["backbone", "vq"]), seed=3)
    assert not moved(before, behaviour(pipeline))
    trained = {name for name, parameter in pipeline.model.named_parameters() if parameter.requires_grad}
    assert trained
    assert all(".lora_" in name for name in trained)


def test_targets_choose_layers_within_a_part(base):
    model = open_pipeline(base).model
    chosen = target_modules(model, LoraConfig(["backbone"], targets=["q_proj", "v_proj"]))
    layers = range(model.config.text_config.num_hidden_layers)
    names = ("q_proj", "v_proj")
    assert sorted(chosen) == sorted(f"model.language_model.layers.{i}.self_attn.{n}" for i in layers for n in names)


def test_saved_alone_loaded_and_merged(base, tmp_path):
    """Merged weights round otherwise than two products: worst difference seen 2e-5, in logits of 0.5."""
    pipeline = adapted(base, "backbone", "understanding", "vq", rank=4, alpha=8)
    expected = behaviour(pipeline)
    pipeline.model.save_pretrained(tmp_path / "adapter")
    files = {file.name for file in (tmp_path / "adapter").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors"} <= files
    assert not any(name.startswith("model") for name in files)

    loaded = quiet(open_pipeline(tmp_path / "adapter"))
    assert not changed(expected, behaviour(loaded))
    theirs = quiet(open_pipeline(base))
    theirs.model = peft.PeftModel.from_pretrained(theirs.model, tmp_path / "adapter").base_model.model
    assert not changed(expected, behaviour(theirs))

    merge(loaded).save_pretrained(tmp_path / "merged")
    again = quiet(open_pipeline(tmp_path / "merged"))
    assert {type(module).__module__.split(".")[0] for module in again.model.modules()} & {"peft"} == set()
    for name, value in behaviour(again).items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-4, msg=name)


def test_bad_input(base, tmp_path):
    pipeline = open_pipeline(base)
    with pytest.raises(ValueError, match="lora.parts has 'text'; use some of backbone, aligner"):
        LoraConfig(["text"])
    with pytest.raises(ValueError, match="lora.parts is empty"):
        LoraConfig([])
    with pytest.raises(ValueError, match="rank 0"):
        LoraConfig(["vq"], rank=0)
    with pytest.raises(ValueError, match="no layer called c_attn in 'backbone'; there are: .*q_proj"):
        target_modules(pipeline.model, LoraConfig(["backbone"], targets=["c_attn"]))
    with pytest.raises(ValueError, match="lora.parts has 'vq', but this model has no such part"):
        target_modules(tiny_pipeline(vq_config=None).model, LoraConfig(["vq"]))
    other = adapted(base, "vq")
    other.model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match="adapter"):
        load_adapter(tiny_pipeline(vq_config=None), tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "base_model_name_or_path": str(tmp_path / "gone")}))
    with pytest.raises(ValueError, match="belongs to the model .*gone, which is not there"):
        open_pipeline(tmp_path / "adapter")
    no_model = "names no base_model_name_or_path"
    for junk, sentence in (
        ("{}", no_model),
        ('{"base_model_name_or_path": 5}', no_model),
        ('{"base_model_name_or_path": ""}', no_model),  # which is no name of the working folder
        ("[]", "adapter_config.json holds no JSON object"),
        ("{", "is not valid JSON"),
    ):
        file.write_text(junk)
        with pytest.raises(ValueError, match=sentence):
            open_pipeline(tmp_path / "adapter")
