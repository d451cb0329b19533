"""Models that outgrow a checkpoint: what it could do is the same at first, what is new starts as from scratch, and what
contradicts it is refused.

All is compared to the bit, once weights lie in memory alike: kernels may sum otherwise where one that was read begins
at an odd place (1.2e-7 of logits).
"""

import copy
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from hybridgen.cli.main import main as cli
from hybridgen.core.layout import ImageSegment, TextSegment, lay_out
from hybridgen.pipeline_hybridgen import HybridGenPipeline, load_pipeline
from hybridgen.processing_hybridgen import HybridGenProcessor, image_token_ids
from hybridgen.tokenization_hybridgen import BEGIN_IMAGE, END_IMAGE, PLACEHOLDERS, ROLE_TOKENS
from hybridgen.training import load_config, train
from hybridgen.training.config.parts import hybrid_config
from hybridgen.training.config.schema import ModelConfig
from hybridgen.training.planning.batches import plan_config, planned_data
from hybridgen.training.stages.building import build_model, build_parts
from tests.bridges.test_assemble import text_tokenizer
from tests.models import BACKBONES, WINDOWED, batch_of, inputs_of, text_config, tiny_config, tiny_model
from tests.pipelines import tiny_pipeline, tiny_vq_model

TOWER = {
    "model_type": "siglip_vision_model", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "image_size": 16, "patch_size": 8, "vision_use_head": False,
}  # fmt: skip
DIFFUSION = {"patch_size": 4, "sample_size": 16, "frequency_embedding_size": 32}
VQ = {"num_embeddings": 50, "embed_dim": 8, "sample_size": 4}
ALIGNED = {**DIFFUSION, "modality_experts": True, "alignment_layer": 1, "alignment_depth": 2}


def save(folder: Path, backbone: str = "qwen3", **changes) -> HybridGenPipeline:
    """A checkpoint that reads, its tower of two layers; `changes` give it paths."""
    changes = {"vision_config": TOWER, "diffusion_config": None, "vq_config": None, **changes}
    pipe = tiny_pipeline(backbone=backbone, **changes)
    pipe.save_pretrained(folder)
    return pipe


def grown(folder: Path, layers: int | None = None, seed: int = 0, weights: bool = True, **more):
    if layers is not None:
        more["text_config"] = {"num_hidden_layers": layers}
    tokenizer = HybridGenProcessor.from_pretrained(folder).tokenizer
    return build_model(ModelConfig(grow_from=str(folder), **more), tokenizer, seed, weights).eval()


def row_of(pipe: HybridGenPipeline, *paths: str) -> dict[str, torch.Tensor]:
    """A row with a picture by each of these paths between words, and the pictures."""
    tokens, generator = pipe.processor.special_tokens, torch.Generator().manual_seed(2)
    words = lambda: TextSegment(torch.randint(40, 300, (9,), generator=generator).tolist())  # noqa: E731
    counts = {"understanding": 4, "diffusion": 16, "vq": 16}
    segments = [words()]
    for path in paths:
        segments += [ImageSegment(path, counts[path], pipe.model.config.is_bidirectional(path)), words()]
    inputs = inputs_of(batch_of([[lay_out(segments, tokens)]], 96))
    picture = torch.randn(1, 3, 16, 16, generator=generator)
    if "understanding" in paths:
        inputs["pixel_values"] = picture
    if "diffusion" in paths:
        inputs |= {"latents": picture, "timesteps": torch.tensor([300.0])}
    if "vq" in paths:
        inputs["codes"] = torch.randint(0, 50, (16,), generator=generator)
    return inputs


# ------------------------------------------------------------------------------------------------- the same at first


@pytest.mark.parametrize("backbone", [*BACKBONES, *WINDOWED])
def test_a_model_that_grows_layers_and_paths_reads_as_before(tmp_path, backbone):
    """Logits behind a picture and words. Every weight of the checkpoint is there."""
    pipe = save(tmp_path / "ck", backbone)
    layers = pipe.model.config.text_config.num_hidden_layers
    model = grown(tmp_path / "ck", 3 * layers, diffusion_config=DIFFUSION, vq_config=VQ)
    assert model.config.paths == ("understanding", "diffusion", "vq")
    inputs = row_of(pipe, "understanding")
    assert torch.equal(copy.deepcopy(model)(**inputs).logits, pipe.model(**inputs).logits)
    before, after = pipe.model.state_dict(), model.state_dict()
    for name, value in before.items():
        if "language_model.layers" in name:
            number = int(name.split(".")[3])
            name = name.replace(f"layers.{number}.", f"layers.{3 * number}.")
        assert torch.equal(after[name], value), name
    places = [value.data_ptr() for value in model.parameters()]
    assert len(places) == len(set(places))  # no two share their memory


@pytest.mark.parametrize("backbone", ["llama", "qwen3_moe"])
def test_paths_that_are_there_write_as_before(tmp_path, backbone):
    """Modality experts are copied like the others, and the layer that is aligned is the same one."""
    pipe = save(tmp_path / "ck", backbone, diffusion_config=ALIGNED, vq_config=VQ)
    for name, weight in pipe.model.named_parameters():
        if ".own." in name:
            weight.data += 0.1
    pipe.save_pretrained(tmp_path / "ck")
    model = grown(tmp_path / "ck", 4)
    assert model.config.diffusion_config.alignment_layer == 2
    assert model.config.text_config.num_hidden_layers == 4
    inputs = row_of(pipe, "understanding", "diffusion", "vq") | {"alignment_pixels": torch.rand(1, 3, 16, 16)}
    inputs["codes_to_keep"] = inputs["input_ids"] == model.config.vq_token_id
    ours, theirs = copy.deepcopy(model)(**inputs), pipe.model(**inputs)
    for name in ("logits", "prediction", "alignment", "code_logits"):
        assert torch.equal(ours[name], theirs[name]), name


def test_new_parts_start_as_in_a_model_from_scratch(tmp_path):
    """From the same random numbers: the seed decides. New modality experts copy what they are experts of."""
    pipe = save(tmp_path / "ck", initializer_range=0.05)
    new = {"diffusion_config": ALIGNED, "vq_config": VQ}
    text = {key: value for key, value in text_config().items() if key not in ("vocab_size", "num_hidden_layers")}
    sections = {"text_config": {**text, "num_hidden_layers": 4}, "vision_config": TOWER, **new}
    scratch = build_model(ModelConfig(**sections, initializer_range=0.05), pipe.processor.tokenizer, 0).state_dict()
    model, other = (grown(tmp_path / "ck", 4, seed, **new).state_dict() for seed in (0, 1))
    assert model.keys() == scratch.keys() == other.keys()
    parts = ("patch_embed", "timestep_embedder", "final_layer", "alignment_head", "generation_")
    fresh = [name for name in model if name.removeprefix("model.").startswith(parts)]
    assert len(fresh) > 15
    assert all(torch.equal(model[name], scratch[name]) for name in fresh)
    assert not torch.equal(model["model.patch_embed.proj.weight"], other["model.patch_embed.proj.weight"])
    experts = [name for name in model if ".own." in name]
    assert experts
    assert all(torch.equal(model[name], model[name.replace(".own.", ".")]) for name in experts)
    wide = grown(tmp_path / "ck", vq_config=VQ, initializer_range=0.5)
    assert 0.4 < wide.model.generation_head.vision_head.weight.std() < 0.6


def test_a_process_without_weights_has_the_same_shapes(tmp_path):
    save(tmp_path / "ck")
    whole, empty = (grown(tmp_path / "ck", 4, weights=there, vq_config=VQ) for there in (True, False))
    assert all(weight.is_meta for weight in empty.parameters())
    shapes = [{name: value.shape for name, value in model.state_dict().items()} for model in (whole, empty)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("tied", [False, True])
def test_tokens_that_the_checkpoint_lacks_become_rows(tmp_path, tied):
    """Those of paths it never had, and of roles: their rows are the mean of the others, which stay as they were."""
    tokenizer = text_tokenizer()
    names = [BEGIN_IMAGE, END_IMAGE, PLACEHOLDERS["understanding"]]
    tokenizer.add_tokens(names, special_tokens=True)
    begin, end, image = tokenizer.convert_tokens_to_ids(names)
    ids = {"begin_image_token_id": begin, "end_image_token_id": end, "image_token_id": image}
    text = text_config(vocab_size=len(tokenizer), tie_word_embeddings=tied, eos_token_id=[1, 2, 5])
    none = dict.fromkeys(("diffusion_config", "vq_config", "diffusion_token_id", "vq_token_id"))
    small = tiny_model(tiny_config(text_config=text, **none, **ids))
    HybridGenPipeline(small, HybridGenProcessor.for_config(small.config, tokenizer)).save_pretrained(tmp_path / "ck")
    content = run_of(tmp_path, {"grow_from": str(tmp_path / "ck"), "diffusion_config": DIFFUSION})
    content["model"]["chat_template"] = "hybridgen"
    config = written(tmp_path, content)
    pipe = build_parts(config).pipeline
    model, more = pipe.model, len(pipe.processor.tokenizer) - len(tokenizer)
    assert more == 2  # its template's tokens of roles are there
    assert not set(ROLE_TOKENS) - set(pipe.processor.tokenizer.get_vocab())
    assert {name: getattr(model.config, name) for name in ids} == ids
    assert image_token_ids(pipe.processor.tokenizer)["diffusion_token_id"] == model.config.diffusion_token_id
    assert model.config.text_config.eos_token_id == [1, 2, 5]
    for ours, theirs in ((model.lm_head.weight, small.lm_head.weight),
                         (model.get_input_embeddings().weight, small.get_input_embeddings().weight)):  # fmt: skip
        assert len(ours) == len(theirs) + more
        assert torch.equal(ours[: len(theirs)], theirs)
        assert torch.equal(ours[-more:], theirs.mean(0).expand(more, -1))
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied
    planned = planned_data(config, 1).model_config
    assert planned.to_dict() == model.config.to_dict()


# --------------------------------------------------------------------------------------------------------- whole runs


def run_of(folder: Path, model: dict, **more) -> dict:
    return {
        "output_dir": str(folder / "run"), "steps": 2, "threads": 1, "precision": "fp32", "model": model,
        "data": {"per_device_batch_size": 1, "sequence_length": 96, "prefetch": 0, "sources": [
            {"source": "dolls", "task": "draw", "write": "diffusion", "size": 16},
        ]},
        "optimizer": {"name": "adamw", "lr": 1e-2}, "save_every": 1, **more,
    }  # fmt: skip


def written(folder: Path, content: dict, *words: str):
    (folder / "config.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return load_config(folder / "config.yaml", words)


@pytest.fixture(scope="module")
def reader(tmp_path_factory) -> Path:
    """A checkpoint that reads, and writes codes, with its codec; its pictures are padded, its codes drawn coolly."""
    folder = tmp_path_factory.mktemp("growing")
    pipe = tiny_pipeline(vision_config=TOWER, diffusion_config=None)
    pipe.processor.fit, pipe.processor.image_processor.image_mean = "pad", [0.4, 0.5, 0.6]
    parts = (pipe.model, pipe.processor, None, None, pipe.vq_model)
    HybridGenPipeline(*parts, {"vq": {"temperature": 0.3}}).save_pretrained(folder / "ck")
    return folder


def test_a_run_of_a_grown_model_ends_in_a_checkpoint_and_resumes(reader, tmp_path):
    """The codec, the processor's settings and how codes are drawn come along; copies of layers have learnt."""
    model = {"grow_from": str(reader / "ck"), "diffusion_config": DIFFUSION, "text_config": {"num_hidden_layers": 4}}
    content = run_of(tmp_path, model)
    train(written(tmp_path, content))
    pipe, before = load_pipeline(tmp_path / "run/checkpoint"), load_pipeline(reader / "ck")
    assert pipe.model.config.paths == ("understanding", "diffusion", "vq")
    assert pipe.sampling_defaults["vq"] == {"temperature": 0.3}
    assert pipe.sampling_defaults["diffusion"] == {"guidance_scale": 2.0, "num_inference_steps": 20}
    assert type(pipe.scheduler).__name__ == "FlowMatchEulerDiscreteScheduler"
    assert pipe.processor.fit == "pad"
    assert pipe.processor.image_processor.image_mean == [0.4, 0.5, 0.6]
    assert pipe.processor.chat_template == before.processor.chat_template
    ours, theirs = pipe.vq_model.state_dict(), before.vq_model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    layers = pipe.model.model.language_model.layers
    assert all(layers[number].mlp.down_proj.weight.any() for number in (1, 3))
    pipe.set_progress_bar_config(disable=True)
    assert pipe("an elf", path="diffusion", num_inference_steps=2, seed=0).images[0].size == (16, 16)

    shutil.copytree(tmp_path / "run/state/step_000001", tmp_path / "again/state/step_000001")
    shutil.copy(tmp_path / "run/metrics.jsonl", tmp_path / "again")
    train(load_config(tmp_path / "config.yaml", [f"output_dir={tmp_path / 'again'}"]))
    ours, theirs = (load_file(tmp_path / f"{run}/checkpoint/model/model.safetensors") for run in ("run", "again"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_codes_start_from_the_codebook_of_the_codec_that_is_named(tmp_path):
    save(tmp_path / "ck")
    tiny_vq_model().save_pretrained(tmp_path / "codec")
    model = {"grow_from": str(tmp_path / "ck"), "vq_config": VQ, "codes_from_codebook": True, "fit": "pad"}
    content = run_of(tmp_path, model, codec={"vq": str(tmp_path / "codec")})
    content["data"]["sources"][0]["write"] = "vq"
    pipe = build_parts(written(tmp_path, content)).pipeline
    plain = build_parts(written(tmp_path, content, "model.codes_from_codebook=false")).pipeline.model.model
    weight = pipe.model.model.generation_embeddings.weight
    assert abs(weight.std() - 1) < 0.01
    assert not torch.equal(weight, plain.generation_embeddings.weight)
    assert torch.linalg.matrix_rank(weight.detach()) <= 8  # projections of vectors of 8 numbers
    assert pipe.processor.fit == "pad"


def test_a_plan_is_of_the_grown_model(reader, tmp_path):
    """With its data, and without: nothing is guessed that the checkpoint says."""
    model = {"grow_from": str(reader / "ck"), "diffusion_config": DIFFUSION, "text_config": {"num_hidden_layers": 4}}
    config = written(tmp_path, run_of(tmp_path, model))
    expected = build_parts(config).pipeline.model
    planned = planned_data(config, 1)
    assert planned.model_config.to_dict() == expected.config.to_dict()
    assert planned.codecs["vq"] == reader / "ck/vq_model"
    content = run_of(tmp_path, model)
    content["data"]["sources"][0] = {"source": str(tmp_path / "no.jsonl"), "write": "diffusion"}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    assumed = planned_data(plan_config(tmp_path / "config.yaml", [])[0], 1)
    assert "no.jsonl" in assumed.notes[0]
    assert assumed.model_config.to_dict() == expected.config.to_dict()
    assert assumed.codecs["vq"] == reader / "ck/vq_model"
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------------------------- what is refused


CONTRADICTIONS = [
    (
        "text_config={hidden_size: 64}",
        "model.text_config.hidden_size is 64, but the backbone comes with",
    ),
    ("text_config={num_hidden_layers: 3}", "num_hidden_layers is 3, but the checkpoint {ck} has 2 layers.* 4, 6, 8"),
    ("text_config={num_hidden_layers: 1}", "num_hidden_layers is 1, but the checkpoint {ck} has 2 layers"),
    ("text_config={num_hidden_layers: '4'}", "model.text_config.num_hidden_layers is '4'; it must be an integer"),
    ("text_config={num_hidden_layers: true}", "model.text_config.num_hidden_layers is True; it must be an integer"),
    ("text_config={num_hidden_layers: 0}", "model.text_config.num_hidden_layers is 0; it must be at least 1"),
    (
        "text_config={num_hidden_layers: 20000}",
        "num_hidden_layers is 20000; it must be at most 10000",
    ),
    ("vq_config={num_embeddings: 50}", "model.vq_config is .*50.*, but the checkpoint {ck}.* has that path already"),
    ("vision_config={hidden_size: 16}", "model.vision_config is .*16.*, but that comes with the checkpoint"),
    (
        "vision_model=x",
        "vision_model is 'x', but that comes with the checkpoint that model.grow_from names; leave",
    ),
    ("language_model=x", "model.language_model is 'x', but that comes with the checkpoint"),
    ("tokenizer.path=x", "model.tokenizer.path is 'x', but that comes with the checkpoint"),
    ("tokenizer.vocab_size=300", "model.tokenizer.vocab_size is 300, but that comes with the checkpoint"),
    ("from_pretrained=x", "model.from_pretrained is 'x' and model.grow_from '{ck}'; keep one"),
    ("embedding_std=1.0", "model.embedding_std is 1.0, but that comes with the checkpoint"),
    ("tie_word_embeddings=false", "model.tie_word_embeddings is False, but that comes with the checkpoint"),
    ("understanding_bidirectional=false", "model.understanding_bidirectional is False, but that comes with"),
    ("aligner_depth=2", "model.aligner_depth is 2, but that comes with the checkpoint"),
    ("shared_vocabulary=true", "model.shared_vocabulary is True, but that comes with the checkpoint"),
    ("codes_from_codebook=true", "model.codes_from_codebook is true, but codes come trained with the checkpoint"),
    ("diffusion_config.patch_sise=4", "unknown key 'model.diffusion_config.patch_sise'"),
    ("diffusion_config.alignment_layer=3", "alignment_layer is 3, but the backbone has 2 layers"),
    ("initializer_range=-1", "initializer_range is -1.0; it must be above 0"),
    ("grow_from=nowhere", "model.grow_from: checkpoint nowhere does not exist"),
]


@pytest.mark.parametrize(("word", "sentence"), CONTRADICTIONS, ids=[word for word, _ in CONTRADICTIONS])
def test_what_contradicts_the_checkpoint_is_refused(reader, tmp_path, word, sentence):
    content = run_of(tmp_path, {"grow_from": str(reader / "ck"), "diffusion_config": dict(DIFFUSION)})
    with pytest.raises(ValueError, match=sentence.format(ck=reader / "ck")) as refused:
        written(tmp_path, content, f"model.{word}")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ({}, "model.grow_from is '{ck}', but nothing is added to it; give .*, or name it as model.from_pretrained"),
        ({"text_config": {"num_hidden_layers": 2}}, "model.grow_from is '{ck}', but nothing is added to it"),
        ({"text_config": {"num_hidden_layers": 4}, "initializer_range": 0.1}, "initializer_range is 0.1, but no path"),
    ],
)
def test_what_would_change_nothing_is_refused(reader, tmp_path, model, sentence):
    content = run_of(tmp_path, {"grow_from": str(reader / "ck"), **model})
    content["data"]["sources"][0]["write"] = "vq"
    with pytest.raises(ValueError, match=sentence.format(ck=reader / "ck")):
        written(tmp_path, content)


def test_codes_that_are_words_leave_no_room_for_tokens(tmp_path, capsys):
    """And no new codes take the place of words; nor does an adapter grow. The command says one line."""
    pipe = save(tmp_path / "ck")
    capsys.readouterr()
    with pytest.raises(ValueError, match="model.vq_config.first_token_id is 9, but the tokens of the checkpoint"):
        hybrid_config(ModelConfig(grow_from=str(tmp_path / "ck"), vq_config={**VQ, "first_token_id": 9}))
    content = run_of(
        tmp_path, {"grow_from": str(tmp_path / "ck"), "diffusion_config": DIFFUSION}, lora={"parts": ["vq"]}
    )
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    assert cli(["train", str(tmp_path / "config.yaml")]) == 2
    said = capsys.readouterr().err
    assert "lora trains beside weights that stay as they are, but model.grow_from is" in said
    assert len(said.splitlines()) == 1

    tokenizer = pipe.processor.tokenizer
    words = len(tokenizer)
    shared = {"num_embeddings": 50, "sample_size": 4, "first_token_id": words}
    save(tmp_path / "shared", vq_config=shared, text_config=text_config(vocab_size=words + 50))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        file = tmp_path / "shared/processor" / name
        file.write_text(file.read_text(encoding="utf-8").replace(PLACEHOLDERS["diffusion"], "<|unused|>"))
    model = {"grow_from": str(tmp_path / "shared"), "diffusion_config": DIFFUSION}
    with pytest.raises(ValueError, match="whose tokenizer lacks 1 tokens of images or roles, and codes stand behind"):
        build_parts(written(tmp_path, run_of(tmp_path, model)))
