"""What a conversion loses, it says: on the way and in the dry run."""

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig

from hybridgen.bridges.assemble import assemble
from hybridgen.bridges.janus.checkpoint import open_janus
from hybridgen.bridges.janus.conversion import convert
from hybridgen.bridges.janus.report import lost
from hybridgen.cli import main as cli
from hybridgen.modeling_hybridgen import HybridGenForConditionalGeneration
from hybridgen.pipeline_hybridgen import load_pipeline
from tests.bridges.janus.test_conversion import assert_same, change, tensors_of
from tests.januses import VARIANTS, save_transformers, tiny_janus
from tests.pipelines import tiny_vae


@pytest.fixture
def plain(tmp_path) -> Path:
    return save_transformers(tmp_path / "plain")


@pytest.fixture
def run(capsys):
    """`hybridgen convert ...`: exit code, stdout, the lines of stderr that say what was lost or left out."""

    def call(*arguments) -> tuple[int, str, list[str]]:
        code = cli.main(["convert", *map(str, arguments)])
        printed = capsys.readouterr()
        return code, printed.out, [line for line in printed.err.splitlines() if ": " in line]

    return call


@pytest.fixture
def hybrid(plain, tmp_path) -> Path:
    """A Janus that has gained a diffusion path."""
    tiny_vae().save_pretrained(tmp_path / "vae")
    assemble(["understanding", "diffusion", "vq"], from_janus=plain, vae=tmp_path / "vae").save_pretrained(
        tmp_path / "hybrid"
    )
    return tmp_path / "hybrid"


def test_a_diffusion_path_is_left_out_loudly(hybrid, plain, tmp_path, run):
    code, _, said = run(hybrid, tmp_path / "back", "--to", "janus-hf")
    assert code == 0
    ours = load_file(hybrid / "model" / "model.safetensors")
    parts = ("model.patch_embed.", "model.timestep_embedder.", "model.final_layer.")
    left = sorted(name for name in ours if name.startswith(parts))
    assert len(left) > 6
    assert sorted(line.removeprefix("left out: ") for line in said if line.startswith("left out")) == left
    assert [line for line in said if line.startswith("lost")] == [
        "lost: vae/, which belongs to the diffusion path", "lost: scheduler/, which belongs to the diffusion path",
    ]  # fmt: skip
    back, before = tensors_of(tmp_path / "back"), load_file(plain / "model.safetensors")
    assert back.keys() == before.keys()
    assert all(torch.equal(back[name][: len(tensor)], tensor) for name, tensor in before.items())
    _, out, _ = run(hybrid, "--dry-run", "--to", "janus-hf")
    assert f"left out     {len(left)}" in out
    assert f"  {left[0]}  of a path that no Janus has" in out
    assert "lost         2\n  vae/, which belongs" in out


def test_alignment_head_and_modality_experts_are_left_out_as_well(hybrid, plain, tmp_path, run):
    pipeline = load_pipeline(hybrid)
    config = copy.deepcopy(pipeline.model.config)
    config.diffusion_config.alignment_layer, config.diffusion_config.modality_experts = 1, True
    pipeline.register_modules(model=HybridGenForConditionalGeneration(config))
    pipeline.model.load_state_dict(load_file(hybrid / "model" / "model.safetensors"), strict=False)
    pipeline.save_pretrained(tmp_path / "more")
    code, _, said = run(tmp_path / "more", tmp_path / "back", "--to", "janus-hf")
    assert code == 0
    left = [line.removeprefix("left out: ") for line in said if line.startswith("left out")]
    names = set(load_file(tmp_path / "more" / "model" / "model.safetensors"))
    new = names - set(load_file(hybrid / "model" / "model.safetensors"))
    assert any("alignment_head" in name for name in new)
    assert any(".own." in name for name in new)
    assert new <= set(left)
    back, before = tensors_of(tmp_path / "back"), load_file(plain / "model.safetensors")
    assert back.keys() == before.keys()
    assert all(torch.equal(back[name][: len(tensor)], tensor) for name, tensor in before.items())


def test_sampling_defaults_that_no_janus_knows_are_listed(hybrid, tmp_path, run):
    defaults = {"vq": {"guidance_scale": 5.0, "temperature": 0.9}, "diffusion": {"num_inference_steps": 9}}
    change(hybrid / "model_index.json", sampling_defaults=defaults)
    _, _, said = run(hybrid, tmp_path / "back", "--to", "janus-hf")
    assert [line for line in said if "model_index.json" in line] == [
        "lost: model_index.json: temperature 0.9 as the default of the vq path",
        "lost: model_index.json: num_inference_steps 9 as the default of the diffusion path",
    ]


def test_a_hybrid_is_not_rewritten_in_its_own_layout(hybrid, tmp_path, run):
    code, _, said = run(hybrid, tmp_path / "out")
    assert code == 2
    assert "is in hybridgen's layout already, and no Janus; copy it" in said[-1]
    assert not (tmp_path / "out").exists()


def test_nothing_else_is_lost(plain, tmp_path):
    convert(plain, tmp_path / "ours")
    convert(plain, tmp_path / "official", "janus-official")
    for folder in (plain, tmp_path / "ours", tmp_path / "official"):
        for to in ("hybridgen", "janus-hf"):
            assert list(lost(open_janus(folder), to)) == []


@pytest.mark.parametrize("variant", VARIANTS)
def test_deepseeks_code_knows_one_size(variant, tmp_path, run):
    folder = save_transformers(tmp_path / variant, variant)
    _, _, said = run(folder, tmp_path / "out", "--to", "janus-official")
    for part in ("the vision tower, which is not siglip_large_patch16_384", "the VQ tokenizer, which is not VQ-16"):
        assert f"lost: DeepSeek's own code cannot open {part}; hybridgen can" in said
    others = [line for line in said if "own code" not in line]
    assert others == ["lost: config.json cannot say text_config.initializer_range 0.2: it will be read as 0.02"]


def test_what_the_official_config_cannot_say(plain, tmp_path, run):
    config = json.loads((plain / "config.json").read_text())
    change(plain / "config.json", vision_config={**config["vision_config"], "hidden_act": "gelu_pytorch_tanh"})
    line = "config.json cannot say vision_config.hidden_act 'gelu_pytorch_tanh': it will be read as 'gelu'"
    assert line in run(plain, "--dry-run", "--to", "janus-official")[1]
    assert line not in run(plain, "--dry-run", "--to", "janus-hf")[1]


def test_generation_settings_come_along(plain, tmp_path, run):
    """Less guidance, which is Janus' 5, and what transformers would not write again."""
    GenerationConfig(
        do_sample=True, top_p=0.9, max_new_tokens=77, guidance_scale=3, eos_token_id=[1, 9]
    ).save_pretrained(plain)
    _, _, said = run(plain, tmp_path / "ours")
    assert said == ["lost: generation_config.json: guidance_scale 3; a Janus is drawn with 5"]
    convert(tmp_path / "ours", tmp_path / "back", "janus-hf")
    settings = json.loads((tmp_path / "back" / "generation_config.json").read_text())
    settings.pop("transformers_version")
    assert settings == {
        "do_sample": True, "top_p": 0.9, "max_new_tokens": 77, "bos_token_id": 0, "eos_token_id": [1, 9],
        "pad_token_id": 2, "guidance_scale": 5, "generation_kwargs": {"boi_token_id": 4},
    }  # fmt: skip
    (plain / "generation_config.json").write_text('{"temperature": 0.3, "eos_token_id": 1}')
    assert run(plain, tmp_path / "again")[2] == ["lost: generation_config.json: temperature 0.3"]
    assert run(plain, tmp_path / "official", "--to", "janus-official")[2][-1].endswith("temperature 0.3")


def test_a_template_of_its_own_is_replaced_and_said(plain, tmp_path, run):
    (plain / "chat_template.jinja").write_text("{{ messages[0]['content'] }}<|User|>")
    assert run(plain, tmp_path / "ours")[2] == [
        "lost: the chat template: that of janus-pro takes its place, which may write prompts otherwise"
    ]


# ------------------------------------------------------------------------------------------------------------ shards


def test_shards_are_of_the_size_that_is_asked_for(plain, tmp_path, run, capsys):
    """Cut alike, files are the same byte for byte; uncut, tensors are."""
    before = load_file(plain / "model.safetensors")
    (plain / "model.safetensors").unlink()
    tiny_janus().save_pretrained(plain, max_shard_size="300KB")
    files = sorted(file.name for file in plain.glob("model*"))
    assert len(files) > 3
    size = ("--max-shard-size", "300KB")
    assert run(plain, tmp_path / "ours", *size)[0] == 0
    assert len(list((tmp_path / "ours" / "vq_model").glob("*.safetensors"))) > 1
    assert run(tmp_path / "ours", tmp_path / "back", "--to", "janus-hf", *size)[0] == 0
    for name in files:
        assert (tmp_path / "back" / name).read_bytes() == (plain / name).read_bytes(), name
    assert run(tmp_path / "ours", tmp_path / "whole", "--to", "janus-hf")[0] == 0
    assert_same(load_file(tmp_path / "whole" / "model.safetensors"), before)
    with pytest.raises(SystemExit):
        cli.main(["convert", str(plain), str(tmp_path / "x"), "--max-shard-size", "large"])
    assert "'large' is no size such as 500MB or 5GB" in capsys.readouterr().err


def test_safetensors_are_read_where_pickles_stand_beside_them(plain, tmp_path):
    expected = load_file(plain / "model.safetensors")
    torch.save({name: torch.zeros_like(tensor) for name, tensor in expected.items()}, plain / "pytorch_model.bin")
    index = {"weight_map": dict.fromkeys(expected, "pytorch_model.bin")}
    (plain / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    convert(plain, tmp_path / "out", "janus-hf")
    assert_same(tensors_of(tmp_path / "out"), expected)


# -------------------------------------------------------------------------------------------- what cannot be built


@pytest.mark.parametrize(
    ("part", "values"),
    [
        ("text_config", {"num_attention_heads": 5}),
        ("vision_config", {"num_attention_heads": 3}),
        ("vq_config", {"base_channels": 20}),
        ("text_config", {"pad_token_id": 5000}),
        ("vision_config", {"patch_size": 0}),
    ],
)
def test_sizes_of_which_nothing_can_be_built_are_one_sentence(plain, tmp_path, run, part, values):
    config = json.loads((plain / "config.json").read_text())
    change(plain / "config.json", **{part: {**config[part], **values}})
    code, _, said = run(plain, tmp_path / "new" / "deep" / "out")
    assert code == 2
    assert "config.json" in said[-1]
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("file", "values", "sentence"),
    [
        ("config.json", {"language_config": None}, "config.json does not describe a Janus"),
        ("config.json", {"language_config": {"model_type": "qwen2"}}, "is a 'qwen2', but a Janus' backbone is a llama"),
        ("config.json", {"vision_config": {"params": []}}, "config.json does not describe a Janus"),
        ("preprocessor_config.json", {"image_mean": 0.5}, "has image_mean 0.5; it must be three numbers"),
        ("generation_config.json", {"eos_token_id": "</s>"}, "has eos_token_id '</s>'; give ids"),
    ],
)
def test_official_settings_that_say_nothing_sensible(plain, tmp_path, run, file, values, sentence):
    convert(plain, tmp_path / "official", "janus-official")
    (tmp_path / "official" / "generation_config.json").write_text("{}")
    change(tmp_path / "official" / file, **values)
    code, _, said = run(tmp_path / "official", tmp_path / "out")
    assert code == 2
    assert sentence in said[-1]


def test_a_weight_map_that_is_none(plain, tmp_path, run):
    tensors = load_file(plain / "model.safetensors")
    (plain / "model.safetensors").unlink()
    save_file(tensors, plain / "model-00001-of-00001.safetensors", {"format": "pt"})
    (plain / "model.safetensors.index.json").write_text('{"weight_map": null}')
    code, _, said = run(plain, tmp_path / "out")
    assert code == 2
    assert "model.safetensors.index.json names no shards" in said[-1]
