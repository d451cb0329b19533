"""diffusers' verbs on our adapters: several at once, each with a scale, equal to their sum in the weights; drawn by
each path and answered, by every precision; and what is refused."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from hybridgen.bridges.adapters import add_lora, open_pipeline
from hybridgen.bridges.lora_config import LoraConfig
from hybridgen.pipeline_hybridgen import HybridGenPipeline, load_pipeline
from tests.pipelines import tiny_pipeline
from tests.processors import picture

pytest.importorskip("peft", reason="LoRA is an optional extra: pip install 'hybridgen[peft]'")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict:
    """A checkpoint, and adapters that were trained on it: two on backbone and head, of other layers and ranks, one on
    the way out of the diffusion path."""
    place = tmp_path_factory.mktemp("adapters")
    tiny_pipeline().save_pretrained(place / "base")
    kinds = {
        "wide": LoraConfig(["backbone", "vq"], rank=8, alpha=4),
        "narrow": LoraConfig(["backbone"], targets=["q_proj", "down_proj"], rank=2),
        "diffusion": LoraConfig(["diffusion"], rank=4),
    }
    for seed, (name, config) in enumerate(kinds.items()):
        model = load_pipeline(place / "base").model
        add_lora(model, config)
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
        model.save_pretrained(place / name)
    return {name: place / name for name in ("base", *kinds)}


@pytest.fixture
def pipe(folders) -> HybridGenPipeline:
    pipe = load_pipeline(folders["base"])
    pipe.set_progress_bar_config(disable=True)
    return pipe


def added(folders: dict, scales: dict[str, float]) -> HybridGenPipeline:
    """The oracle: B A alpha / rank times its scale, added to each weight by hand."""
    pipe = load_pipeline(folders["base"])
    pipe.set_progress_bar_config(disable=True)
    for name, scale in scales.items():
        config = json.loads((folders[name] / "adapter_config.json").read_text())
        saved = load_file(folders[name] / "adapter_model.safetensors")
        for key in [key for key in saved if ".lora_A." in key]:
            module = pipe.model.get_submodule(key.removeprefix("base_model.model.").split(".lora_A")[0])
            update = saved[key.replace("lora_A", "lora_B")] @ saved[key]
            with torch.no_grad():
                module.weight += scale * config["lora_alpha"] / config["r"] * update
    return pipe


def results(pipe: HybridGenPipeline, precision: str = "model") -> dict:
    drawn = {"seed": 0, "output_type": "pt", "precision": precision}
    return {
        "diffusion": pipe("a red", path="diffusion", num_inference_steps=3, **drawn).images,
        "codes": pipe("a red", path="vq", **drawn | {"output_type": "latent"}).images,
        "text": pipe.answer(picture(), "what color", path="vq", max_new_tokens=8, precision=precision),
        "likelihood": pipe.score_answers(picture(), "what", ["red blue"], path="understanding")[0].nats,
    }


def assert_same(given: dict, wanted: dict, atol: float = 1e-4) -> None:
    """Products with a sum of weights round otherwise than the sum of products: worst difference seen 3e-6."""
    for name in ("diffusion", "likelihood"):
        torch.testing.assert_close(given[name], wanted[name], rtol=0, atol=atol, msg=lambda m, name=name: f"{name} {m}")
    assert torch.equal(given["codes"], wanted["codes"])
    assert given["text"] == wanted["text"]


def differ(one: dict, other: dict) -> bool:
    return (one["diffusion"] - other["diffusion"]).abs().max() > 1e-3 and one["likelihood"] != other["likelihood"]


def test_several_at_once_are_their_sum_in_the_weights(pipe, folders):
    plain, origin = results(pipe), pipe.origin
    pipe.load_lora_weights(folders["wide"], adapter_name="wide")
    assert pipe.get_active_adapters() == ["wide"]
    assert differ(results(pipe), plain)
    assert_same(results(pipe), results(added(folders, {"wide": 1})))
    assert pipe.origin == {}  # a picture that it draws is not drawn by the folder alone
    pipe.load_lora_weights(folders["narrow"])
    pipe.load_lora_weights(folders["diffusion"], "way out")
    assert pipe.get_list_adapters() == {"model": ["wide", "default_0", "way out"]}
    assert pipe.get_active_adapters() == ["way out"]
    pipe.set_adapters(["wide", "default_0", "way out"], [0.5, -1, 2])
    sums = results(added(folders, {"wide": 0.5, "narrow": -1, "diffusion": 2}))
    assert_same(results(pipe), sums)
    pipe.delete_adapters("default_0")
    assert pipe.get_active_adapters() == ["wide", "way out"]
    assert_same(results(pipe), results(added(folders, {"wide": 0.5, "diffusion": 2})))
    pipe.disable_lora()
    assert pipe.get_active_adapters() == []
    assert_same(results(pipe), plain, atol=0)
    pipe.enable_lora()
    pipe.set_adapters("wide", 0.25)
    assert_same(results(pipe), results(added(folders, {"wide": 0.25})))
    pipe.unload_lora_weights()
    assert pipe.get_list_adapters() == {}
    assert_same(results(pipe), plain, atol=0)
    assert not [part for part in pipe.model.modules() if type(part).__module__.startswith("peft")]
    assert pipe.origin == origin != {}


@pytest.mark.parametrize("precision", ["model", "fp32", "bf16"])
def test_fused_they_are_in_the_copied_weights_too(pipe, folders, precision, tmp_path):
    before = results(pipe, precision)  # weights are copied here
    pipe.load_lora_weights(folders["wide"], "wide")
    if precision != "model":
        with pytest.raises(ValueError, match="has Linear where layer 0 has a linear layer, as adapters"):
            results(pipe, precision)
    pipe.set_adapters("wide", 2)
    pipe.fuse_lora(lora_scale=0.25, safe_fusing=True)
    assert pipe.decoder(precision).layers is not None
    fused, wanted = results(pipe, precision), results(added(folders, {"wide": 0.5}), precision)
    assert differ(fused, before)
    assert_same(fused, wanted, atol=0.05 if precision == "bf16" else 1e-4)
    pipe.unfuse_lora()
    pipe.disable_lora()
    assert_same(results(pipe), results(load_quietly(folders["base"])))
    pipe.enable_lora()
    pipe.set_adapters("wide", 0.5)
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    assert pipe.origin == {}
    pipe.save_pretrained(tmp_path / "fused")
    assert_same(results(load_quietly(tmp_path / "fused")), results(added(folders, {"wide": 0.5})))


def load_quietly(folder) -> HybridGenPipeline:
    pipe = open_pipeline(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_adapters_on_the_head_of_codes_are_seen_by_every_precision(pipe, folders, tmp_path, precision):
    """The backbone is plain and its weights are copied; the head, which has adapters, is not."""
    other = load_quietly(folders["base"])
    add_lora(other.model, LoraConfig(["vq"]))
    with torch.no_grad():
        for name, parameter in other.model.named_parameters():
            if "lora_" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(1))
    other.model.save_pretrained(tmp_path / "head")
    before = pipe("a red", path="vq", seed=0, output_type="latent", precision=precision).images
    pipe.load_lora_weights(tmp_path / "head")
    drawn = pipe("a red", path="vq", seed=0, output_type="latent", precision=precision).images
    assert not torch.equal(drawn, before)
    pipe.fuse_lora()
    assert torch.equal(pipe("a red", path="vq", seed=0, output_type="latent", precision=precision).images, drawn)


def test_what_is_kept_between_calls_notices_that_adapters_were_switched_on_the_model_itself(pipe, folders):
    draw = {"path": "vq", "seed": 0, "output_type": "latent"}
    plain = pipe("a red", **draw, precision="fp32").images
    pipe.load_lora_weights(folders["wide"])
    adapted = pipe("a red", **draw).images
    assert not torch.equal(adapted, plain)
    pipe.model.disable_adapters()
    assert torch.equal(pipe("a red", **draw, precision="fp32").images, plain)
    assert torch.equal(pipe("a red", **draw).images, plain)
    pipe.model.enable_adapters()
    with pytest.raises(ValueError, match="as adapters and quantization put it there"):
        pipe("a red", **draw, precision="fp32")
    assert torch.equal(pipe("a red", **draw).images, adapted)


def test_an_adapter_opened_with_its_base_loses_its_origin_when_it_is_changed(folders):
    pipe = load_quietly(folders["wide"])
    assert pipe.origin["checkpoint"] == str(folders["wide"])
    pipe.set_adapters("default", 0.5)
    assert pipe.origin == {}


def test_offloaded_they_come_along(pipe, folders):
    pipe.load_lora_weights(folders["wide"])
    wanted = results(pipe)
    pipe.enable_sequential_cpu_offload(device="cpu")
    assert_same(results(pipe), wanted)
    with pytest.raises(ValueError, match=r"set_adapters needs whole weights, but they are offloaded; call remove_all"):
        pipe.set_adapters("default_0", 0.5)
    pipe.enable_model_cpu_offload(device="cpu")
    pipe.set_adapters("default_0", 0.5)
    assert_same(results(pipe), results(added(folders, {"wide": 0.5})))


def changed_adapter(folders: dict, place, change) -> str:
    """A copy of the wide adapter whose tensors went through `change`."""
    place.mkdir()
    config = (folders["wide"] / "adapter_config.json").read_text()
    (place / "adapter_config.json").write_text(config)
    save_file(change(load_file(folders["wide"] / "adapter_model.safetensors")), place / "adapter_model.safetensors")
    return str(place)


def test_what_does_not_fit_is_refused_in_one_sentence_and_leaves_nothing_behind(pipe, folders, tmp_path):
    plain = results(pipe)

    def wider(tensors):
        return {name: nn.functional.pad(one, (0, 1)) if "lora_A" in name else one for name, one in tensors.items()}

    def fewer(tensors):
        return dict(list(tensors.items())[2:])

    (tmp_path / "empty").mkdir()
    other = tmp_path / "other"
    other.mkdir()
    (other / "adapter_config.json").write_text(json.dumps({"peft_type": "IA3", "base_model_name_or_path": "x"}))
    cases = {
        r"is another model's: its \S+ takes \d+ values, this model's \d+$": changed_adapter(
            folders, tmp_path / "wider", wider
        ),
        r"is another model's: \S+ is missing": changed_adapter(folders, tmp_path / "fewer", fewer),
        "adapter .* does not exist": tmp_path / "nowhere",
        "holds no adapter_config.json, so it is no adapter; give": tmp_path / "empty",
        "is of peft's type 'IA3', but only LORA": other,
        "takes the folder of an adapter, not": {"a": torch.zeros(1)},
    }
    for sentence, given in cases.items():
        with pytest.raises(ValueError, match=sentence) as caught:
            pipe.load_lora_weights(given)
        assert "\n" not in str(caught.value)
        assert pipe.get_list_adapters() == {}, sentence
    assert_same(results(pipe), plain, atol=0)
    pipe.load_lora_weights(folders["narrow"], "narrow")
    with pytest.raises(ValueError, match="another model's"):
        pipe.load_lora_weights(tmp_path / "fewer", "second")
    assert pipe.get_active_adapters() == ["narrow"]
    assert_same(results(pipe), results(added(folders, {"narrow": 1})))


def test_bad_input(pipe, folders, tmp_path):
    with pytest.raises(ValueError, match="adapter_names has 'a', but none is loaded; load_lora_weights"):
        pipe.set_adapters("a")
    with pytest.raises(ValueError, match="no adapter is active, so there is nothing to fuse"):
        pipe.fuse_lora()
    pipe.load_lora_weights(folders["narrow"], "narrow")
    bad = {
        "there is an adapter 'narrow' on this model already": lambda: pipe.load_lora_weights(folders["wide"], "narrow"),
        "adapter_name is 'a.b'; give a word without a dot": lambda: pipe.load_lora_weights(folders["wide"], "a.b"),
        "adapter_names has 'b', but there are: narrow": lambda: pipe.set_adapters(["narrow", "b"]),
        "names one twice": lambda: pipe.set_adapters(["narrow", "narrow"]),
        "adapter_weights is a list of 2 for 1 adapters": lambda: pipe.set_adapters("narrow", [1, 2]),
        "adapter_weights is nan; it must be a number": lambda: pipe.set_adapters("narrow", float("nan")),
        "adapter_weights is 'x'; it must be a number": lambda: pipe.set_adapters("narrow", "x"),
        "adapter_names has 'c'": lambda: pipe.delete_adapters(["c"]),
        "unfuse_lora: adapters are not fused": pipe.unfuse_lora,
        r"components is \['text_encoder'\]": lambda: pipe.fuse_lora(["text_encoder"]),
        "a saved pipeline holds no adapters, but the model has narrow": lambda: pipe.save_pretrained(tmp_path / "x"),
    }
    for sentence, call in bad.items():
        with pytest.raises(ValueError, match=sentence):
            call()
    assert not (tmp_path / "x").exists()
    pipe.fuse_lora()
    with pytest.raises(ValueError, match=r"set_adapters: adapters are fused into the weights; unfuse_lora\(\) first"):
        pipe.set_adapters("narrow", 0.5)
    pipe.unfuse_lora()
    next(p for name, p in pipe.model.named_parameters() if "lora_A" in name).data.fill_(float("nan"))
    with pytest.raises(ValueError, match="adapter 'narrow' has weights that are not finite"):
        pipe.fuse_lora(safe_fusing=True)
