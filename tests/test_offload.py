"""Offloading by diffusers' verbs: nothing that is drawn or answered changes, and components are on the device only
while they run. Layers are offloaded to torch's own meta device here, so a weight read past its layer is an error."""

import threading

import numpy as np
import pytest
import torch

from hybridgen.codecs.patch_vq import PatchVQ
from hybridgen.core import cross_entropy
from hybridgen.core.offload import device_of
from hybridgen.pipeline_hybridgen import HybridGenPipeline, load_pipeline
from tests.pipelines import tiny_pipeline, tiny_vae
from tests.pretended_device import pretended_device, put_on
from tests.processors import picture

PIXELS = {"patch_size": 4, "sample_size": 16, "frequency_embedding_size": 32}
SIGLIP2 = {
    "model_type": "siglip2_vision_model", "num_patches": 4, "patch_size": 8,
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
}  # fmt: skip
KINDS = {
    "vae": {"vae": True},
    "llama and a tower that reads its embeddings' weights": {"backbone": "llama", "vision_config": SIGLIP2},
    "experts": {"diffusion_config": PIXELS | {"modality_experts": True}},
    "unet": {"diffusion_config": PIXELS | {"unet_channels": [8, 16]}},
}
VERBS = ["enable_model_cpu_offload", "enable_sequential_cpu_offload"]


def pipeline_of(kind: str) -> HybridGenPipeline:
    settings = dict(KINDS[kind])
    return tiny_pipeline(tiny_vae() if settings.pop("vae", False) else None, **settings)


def results(pipe: HybridGenPipeline, few: bool = False) -> dict:
    """Pictures by both paths, one after a picture; answers, a likelihood, and a chat that draws and reads again. Few of
    them where each takes long."""
    after = {"image": picture(), "image_guidance_scale": 1.5, "read": "vq"}
    chat = pipe.chat(seed=0, path="diffusion", num_inference_steps=2, preview_every=1)
    made = {
        "codes": pipe("a red", path="vq", seed=0, output_type="latent", max_batch=1, num_images_per_prompt=2).images,
        "answer": pipe.answer(picture(), "what", path="vq", max_new_tokens=3),
        "likelihood": pipe.score_answers(picture(), "what color", ["red"], path="diffusion")[0].nats,
        "chat drew": torch.from_numpy(np.array(chat.draw("a red circle"))),
        "chat said": str(chat.ask("what color", max_new_tokens=3)),
    }
    if few:
        return made
    return made | {
        "diffusion": pipe(["a red", "draw"], path="diffusion", num_inference_steps=3, seed=0, output_type="pt").images,
        "after": pipe("a red", path="diffusion", num_inference_steps=2, seed=0, output_type="pt", **after).images,
        **{f"answer {by}": pipe.answer(picture(), "what", path=by, max_new_tokens=3) for by in pipe.model.config.paths},
        "sampled": pipe.answer(picture(), "what", temperature=1.0, seed=0, max_new_tokens=3),
    }


def assert_same(given: dict, wanted: dict, atol: float) -> None:
    for name, value in wanted.items():
        if isinstance(value, torch.Tensor | float):
            torch.testing.assert_close(given[name], value, rtol=0, atol=atol, msg=lambda m, name=name: f"{name}: {m}")
        else:
            assert given[name] == value, name


@pytest.mark.parametrize("kind", KINDS)
def test_layer_by_layer_nothing_changes_and_no_weight_is_read_past_its_layer(kind):
    """The backbone is run as transformers runs it then: worst difference seen 5e-7."""
    pipe = pipeline_of(kind)
    wanted = results(pipe)
    pipe.enable_sequential_cpu_offload(device="cpu")
    assert_same(results(pipe), wanted, atol=5e-6)
    parts = [pipe.model, *([] if pipe.vae is None else [pipe.vae]), pipe.vq_model]
    assert all(parameter.is_meta for part in parts for parameter in part.parameters())
    pipe.remove_all_hooks()
    assert_same(results(pipe), wanted, atol=0)


def test_layer_by_layer_the_losses_of_many_words_are_those_of_few(monkeypatch):
    """Of many words they are computed in tiles of the head's weight, which is not there then."""
    pipe = tiny_pipeline()
    wanted = pipe.score_texts("a red circle")[0].nats
    pipe.enable_sequential_cpu_offload(device="cpu")
    monkeypatch.setattr(cross_entropy, "WHOLE", 0)
    assert pipe.score_texts("a red circle")[0].nats == pytest.approx(wanted, abs=1e-4)


def test_a_tokenizer_of_patches_layer_by_layer():
    torch.manual_seed(0)
    pipe = tiny_pipeline()
    pipe.vq_model = PatchVQ(patch_size=4, num_vq_embeddings=50, channels=8).eval()
    drawn = pipe("a red", path="vq", seed=0, output_type="pt").images
    said = pipe.answer(picture(), "what", path="vq", max_new_tokens=3)
    pipe.enable_sequential_cpu_offload(device="cpu")
    again = pipe("a red", path="vq", seed=0, output_type="pt").images
    torch.testing.assert_close(again, drawn, rtol=0, atol=1e-5)
    assert pipe.answer(picture(), "what", path="vq", max_new_tokens=3) == said


class Watch:
    """Which components are on the device whenever a part of one of them runs."""

    def __init__(self, pipe: HybridGenPipeline):
        self.pipe, self.seen, self.handles = pipe, set(), []
        for name, part in self.components().items():
            for module in part.modules():
                if not list(module.children()):
                    self.handles.append(module.register_forward_pre_hook(lambda *_, name=name: self.note(name)))

    def components(self) -> dict:
        return {name: part for name in ("model", "vae", "vq_model") if (part := getattr(self.pipe, name)) is not None}

    def there(self) -> frozenset[str]:
        return frozenset(n for n, part in self.components().items() if next(part.parameters()).device.type != "cpu")

    def note(self, running: str) -> None:
        self.seen.add((running, self.there()))

    def stop(self) -> None:
        for handle in self.handles:
            handle.remove()


@pytest.fixture
def swapping():
    """Weights change device inside of their tensors, as on a CUDA device, also on the pretended one."""
    torch.__future__.set_swap_module_params_on_conversion(True)
    yield
    torch.__future__.set_swap_module_params_on_conversion(False)


def test_component_by_component_no_bit_changes_and_each_is_there_only_while_it_runs(swapping):
    pipe, beside = pipeline_of("vae"), pipeline_of("vae")
    on_cpu = results(pipe, few=True)
    with pretended_device():
        for part in (beside.model, beside.vae, beside.vq_model):
            put_on(part)
        wanted = results(beside, few=True)
        pipe.enable_model_cpu_offload(device="meta")
        watch = Watch(pipe)
        assert watch.there() == frozenset()
        given = results(pipe, few=True)
        assert watch.there() == frozenset()
        assert watch.seen == {(name, frozenset([name])) for name in ("model", "vae", "vq_model")}
        assert device_of(pipe.model).type == "meta"
        for number, _ in enumerate(pipe.stream([{"role": "user", "content": "a"}], max_new_tokens=4, seed=0)):
            assert number or watch.there() == frozenset(["model"])
            break
        watch.stop()
        pipe.remove_all_hooks()
    assert_same(given, wanted, atol=0)
    assert_same(results(pipe, few=True), on_cpu, atol=0)


@pytest.mark.parametrize("verb", VERBS)
def test_what_was_loaded_keeps_its_origin(tiny_checkpoint, verb):
    pipe = load_pipeline(tiny_checkpoint)
    origin = pipe.origin
    assert origin
    getattr(pipe, verb)(device="cpu")
    assert pipe.origin == origin
    pipe.remove_all_hooks()
    assert pipe.origin == origin
    with torch.no_grad():
        pipe.model.lm_head.weight += 1
    getattr(pipe, verb)(device="cpu")
    assert pipe.origin == {}


@pytest.mark.parametrize("verb", VERBS)
def test_refused_in_one_sentence(verb):
    pipe = tiny_pipeline(tiny_vae())
    offload = getattr(pipe, verb)
    if not torch.accelerator.is_available():
        with pytest.raises(ValueError, match=f"{verb} needs an accelerator, and this machine has none"):
            offload()
    with pytest.raises(ValueError, match="device is 'gpu'; give one such as 'cuda'"):
        offload(device="gpu")
    with pytest.raises(ValueError, match="gpu_id is 1 and device is cuda:0, which has a number too"):
        offload(gpu_id=1, device="cuda:0")
    pipe.vae.half()
    with pytest.raises(ValueError, match=r"vae is in float16, .*first call pipe.vae.to\(torch.float32\)"):
        offload(device="cpu")
    pipe.vae.float()
    offload(device="cpu")
    with pytest.raises(ValueError, match=rf"offloaded \({verb}\), .*call remove_all_hooks\(\) before to\(\)"):
        pipe.to(torch.bfloat16)
    with pytest.raises(ValueError, match=f"precision 'bf16' keeps a copy of the weights, which {verb} is there to"):
        pipe("a", path="vq", precision="bf16")
    pipe.remove_all_hooks()
    assert pipe.to(torch.bfloat16).model.dtype == torch.bfloat16


def test_one_call_at_a_time_while_offloaded():
    pipe, said = tiny_pipeline(), []

    def in_another_thread(*given):
        def call():
            try:
                pipe("a", path="vq")
            except ValueError as error:
                said.append(str(error))

        thread = threading.Thread(target=call)
        thread.start()
        thread.join()

    def draw():
        pipe("a", path="diffusion", num_inference_steps=1, callback_on_step_end=in_another_thread)

    draw()
    assert said == []
    pipe.enable_model_cpu_offload(device="cpu")
    draw()
    assert len(said) == 1
    assert "serve one call at a time" in said[0]
    pipe("a", path="vq")  # and the first has let go


def test_other_ways_of_saving_memory_say_what_to_use_instead():
    pipe = tiny_pipeline()
    with pytest.raises(ValueError, match=r"never holds its whole matrix here .* max_batch, or enable_model_cpu_offl"):
        pipe.enable_attention_slicing()
    pipe.disable_attention_slicing()
    with pytest.raises(ValueError, match="use enable_sequential_cpu_offload"):
        pipe.enable_group_offload("cuda")


@pytest.mark.parametrize("given", [("nowhere",), ("cuda:99",), (None, "float32"), ("cpu", "cpu", "cpu")])
def test_to_says_in_one_sentence_what_cannot_be(given):
    pipe = tiny_pipeline()
    with pytest.raises(ValueError, match="this pipeline cannot be moved to ") as caught:
        pipe.to(*given)
    assert "\n" not in str(caught.value)
    assert pipe.to("cpu", torch.float64).model.dtype == torch.float64
    assert pipe.to(device="cpu", dtype=torch.float32).model.dtype == torch.float32
