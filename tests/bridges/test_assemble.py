"""Grafting: what was there is the same to the bit, what is new is silent, and each donor that does not fit is named."""

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from hybridgen.bridges.assemble import AssemblyOptions, assemble
from hybridgen.bridges.janus.conversion import load_janus
from hybridgen.checkpoints.loading import check_checkpoint
from hybridgen.cli import main as cli
from hybridgen.core.objectives import total
from hybridgen.data.loading import RowLoader
from hybridgen.data.mixture import Mixture
from hybridgen.pipeline_hybridgen import load_pipeline
from hybridgen.processing_hybridgen import HybridGenProcessor, build_tokenizer
from hybridgen.training import load_config, train
from hybridgen.training.config import strict
from hybridgen.training.config.schema import TrainConfig
from hybridgen.training.stages.model import ModelStage
from tests.bridges.janus.test_conversion import Evil, change
from tests.data.in_memory import drawings, questions, source_of
from tests.januses import save_transformers
from tests.pipelines import WORDS, tiny_vae, tiny_vq_model
from tests.processors import CHATML, REWRITING, picture

ROWS = 320
TEXT = {
    "vocab_size": ROWS, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512, "initializer_range": 0.2,
}  # fmt: skip
TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 8}
BACKBONES = {
    "llama": (LlamaForCausalLM, LlamaConfig, {"tie_word_embeddings": False}),
    "llama tied": (LlamaForCausalLM, LlamaConfig, {"tie_word_embeddings": True}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"tie_word_embeddings": True}),
    "qwen3 with rows to spare": (Qwen3ForCausalLM, Qwen3Config, {"tie_word_embeddings": False, "vocab_size": 384}),
}


def text_tokenizer(chat_template: str | None = CHATML):
    """A text model's: no token for images, a template that takes plain texts. 320 tokens."""
    tokenizer = build_tokenizer([*WORDS, "the capital of a country is its largest city, mostly"], ROWS)
    assert len(tokenizer) == ROWS
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    names = [token["content"] for token in content["added_tokens"]]
    renamed = {name: f"<|unused{i}|>" for i, name in enumerate(names) if "image" in name or "placeholder" in name}
    text = tokenizer.backend_tokenizer.to_str()
    for before, after in renamed.items():
        text = text.replace(before, after)
    return type(tokenizer)(
        tokenizer_object=type(tokenizer.backend_tokenizer).from_str(text),
        bos_token="<|bos|>", eos_token="<|eos|>", pad_token="<|pad|>", chat_template=chat_template,
    )  # fmt: skip


def save_backbone(folder, kind: str = "llama", chat_template: str | None = CHATML):
    model_class, config_class, changes = BACKBONES[kind]
    tokenizer = text_tokenizer(chat_template)
    torch.manual_seed(5)
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model = model_class(config_class(**{**TEXT, "vocab_size": len(tokenizer), **ids, **changes})).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A folder of donors."""
    folder = tmp_path_factory.mktemp("donors")
    for kind in BACKBONES:
        save_backbone(folder / kind, kind)
    torch.manual_seed(6)
    siglip = SiglipVisionConfig(**TOWER, image_size=16)
    SiglipVisionModel(siglip).save_pretrained(folder / "siglip")
    SiglipModel(
        SiglipConfig(
            vision_config=siglip.to_dict(),
            text_config=dict(vocab_size=9, **{k: v for k, v in TOWER.items() if k != "patch_size"}),
        )
    ).save_pretrained(folder / "siglip_both")  # noqa: E501
    Siglip2VisionModel(Siglip2VisionConfig(**TOWER, num_patches=4)).save_pretrained(folder / "siglip2")
    (folder / "new_tower.json").write_text(json.dumps({"model_type": "siglip_vision_model", **TOWER, "image_size": 16}))
    for spoilt in ("tower_of_junk", "tower_of_other_sizes"):
        shutil.copytree(folder / "siglip", folder / spoilt)
    (folder / "tower_of_junk" / "preprocessor_config.json").write_text("[]")
    change(folder / "tower_of_other_sizes" / "config.json", intermediate_size=48)
    tiny_vae().save_pretrained(folder / "vae")
    tiny_vq_model().save_pretrained(folder / "vq")
    save_transformers(folder / "janus")
    return folder


def all_paths(parts, backbone: str = "llama", **changes):
    given = {"backbone": parts / backbone, "vision": parts / "siglip", "vae": parts / "vae", "vq": parts / "vq"}
    return assemble(["understanding", "diffusion", "vq"], **{**given, **changes})


# ------------------------------------------------------------------------------------------------ what was there


def test_a_backbone_with_several_chat_templates(parts, tmp_path):
    """`default` is used, the others are kept and saved again."""
    folder = tmp_path / "several"
    shutil.copytree(parts / "llama", folder)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text(CHATML.replace("user", "asker"))
    all_paths(parts, backbone=folder).save_pretrained(tmp_path / "start")
    processor = HybridGenProcessor.from_pretrained(tmp_path / "start")
    assert processor.chat_template == {"default": CHATML, "rag": CHATML.replace("user", "asker")}
    assert processor.prompt([{"role": "user", "content": "a"}])
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="several chat templates, 'rag', and none is called 'default'"):
        all_paths(parts, backbone=folder)


@pytest.mark.parametrize("kind", BACKBONES)
@torch.no_grad()
def test_text_is_the_same_to_the_bit(parts, kind, tmp_path):
    reference = BACKBONES[kind][0].from_pretrained(parts / kind).eval()
    rows = reference.config.vocab_size
    pipeline = all_paths(parts, kind)
    pipeline.save_pretrained(tmp_path / "start")
    known = len(text_tokenizer())
    for model in (pipeline.model, load_pipeline(tmp_path / "start").model):
        for length in (1, 2, 17, 40):
            ids = torch.randint(0, known, (2, length), generator=torch.Generator().manual_seed(length))
            ours = model(ids).logits[..., :rows]
            frames = [model.config.begin_image_token_id, model.config.end_image_token_id]
            old = [token for token in range(rows) if token not in frames]
            assert torch.equal(ours[..., old], reference(ids).logits[..., old])
    greedy = {"do_sample": False, "max_new_tokens": 12}
    assert torch.equal(pipeline.model.generate(ids, **greedy), reference.generate(ids, **greedy))
    assert pipeline.model.config.tie_word_embeddings == reference.config.tie_word_embeddings


@pytest.mark.parametrize("kind", BACKBONES)
def test_new_tokens_start_as_the_mean_of_the_old(parts, kind):
    reference = BACKBONES[kind][0].from_pretrained(parts / kind)
    pipeline = all_paths(parts, kind)
    model, tokenizer, config = pipeline.model, pipeline.processor.tokenizer, pipeline.model.config
    assert config.vocab_size >= len(tokenizer)
    assert config.vocab_size == 384
    pairs = [(model.get_input_embeddings(), reference.get_input_embeddings()), (model.lm_head, reference.lm_head)]
    for ours, theirs in pairs:
        for token in (config.begin_image_token_id, config.end_image_token_id):
            torch.testing.assert_close(ours.weight[token], theirs.weight.mean(0), rtol=0, atol=1e-6)
    ids = torch.arange(3, 60)[None]
    logits = model(ids).logits
    new = [config.begin_image_token_id, config.end_image_token_id]
    assert not torch.isin(logits.argmax(-1), torch.tensor(new)).any()  # a mean never wins


def test_a_janus_gains_a_path_and_keeps_the_others_to_the_bit(parts, tmp_path):
    before = load_janus(parts / "janus")
    after = assemble(["understanding", "diffusion", "vq"], from_janus=parts / "janus", vae=parts / "vae")
    after.save_pretrained(tmp_path / "start")
    after = load_pipeline(tmp_path / "start")
    assert after.model.config.paths == ("understanding", "diffusion", "vq")
    ours, theirs = after.model.state_dict(), before.model.state_dict()
    assert all(torch.equal(ours[name][: len(value)], value) for name, value in theirs.items())
    for pipeline in (before, after):
        pipeline.set_progress_bar_config(disable=True)
    drawn = [p("a red circle", path="vq", seed=1, guidance_scale=5.0, output_type="latent")[0] for p in (before, after)]
    assert torch.equal(*drawn)
    asked = [p.answer(picture(40, 30), ["what is it?", "why?"], max_new_tokens=6) for p in (before, after)]
    assert asked[0] == asked[1]
    document = [{"role": "user", "content": [{"type": "image", "image": picture()}, {"type": "text", "text": "a"}]}]
    inputs = [p.prompt_inputs([p.processor.prompt(document)]) for p in (before, after)]
    assert torch.equal(inputs[0]["input_ids"], inputs[1]["input_ids"])
    with torch.no_grad():
        logits = [p.model(**given).logits for p, given in zip((before, after), inputs, strict=True)]
    width = before.model.config.vocab_size
    assert torch.equal(logits[0], logits[1][..., :width])
    assert after("a red circle", path="diffusion", num_inference_steps=1).images


def test_parts_of_a_janus_beside_another_backbone(parts):
    janus = load_janus(parts / "janus")
    pipeline = assemble(["understanding", "vq"], from_janus=parts / "janus", backbone=parts / "qwen3")
    ours, theirs = pipeline.model.model, janus.model.model
    tower = theirs.vision_model.state_dict()
    assert all(torch.equal(value, tower[name]) for name, value in ours.vision_model.state_dict().items())
    assert pipeline.processor.image_processor.image_size == janus.processor.image_processor.image_size
    assert pipeline.model.config.text_config.model_type == "qwen3"
    assert not torch.equal(ours.aligner.fc1.weight, theirs.aligner.fc1.weight)
    assert assemble(["understanding"], from_janus=parts / "janus").model.config.paths == ("understanding",)


def test_a_checkpoint_of_ours_gives_its_tower(parts, tmp_path):
    """Of the checkpoint nothing else is taken: another backbone, other paths, and how pictures are prepared."""
    donor = assemble(["understanding", "vq"], from_janus=parts / "janus", backbone=parts / "qwen3")
    donor.processor.image_processor.image_mean = [0.1, 0.2, 0.3]
    donor.save_pretrained(tmp_path / "ours")
    pipeline = assemble(["understanding"], backbone=parts / "llama", vision=tmp_path / "ours")
    ours, theirs = pipeline.model.model, donor.model.model
    tower = theirs.vision_model.state_dict()
    assert all(torch.equal(value, tower[name]) for name, value in ours.vision_model.state_dict().items())
    assert pipeline.processor.image_processor.image_mean == [0.1, 0.2, 0.3]
    assert pipeline.model.config.paths == ("understanding",)
    assemble(["vq"], backbone=parts / "llama", vq=parts / "vq", options=AssemblyOptions(image_size=16)).save_pretrained(
        tmp_path / "blind"
    )
    with pytest.raises(ValueError, match="blind has no understanding path, and so no vision tower to give"):
        assemble(["understanding"], backbone=parts / "llama", vision=tmp_path / "blind")


@pytest.mark.parametrize("vision", ["siglip", "siglip_both", "siglip2"])
def test_towers_see_as_they_did(parts, vision):
    """Oracle: the tower itself, called as its library calls it. No difference was seen."""
    pipeline = all_paths(parts, vision=parts / vision)
    pixels = pipeline.processor.image_processor.understanding([picture(40, 20), picture(16, 16)])
    ours = pipeline.model.get_image_features(pixels).last_hidden_state
    if vision == "siglip2":
        tower = Siglip2VisionModel.from_pretrained(parts / vision)
        patches = pixels.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 4, 5, 1).reshape(2, 4, -1)
        theirs = tower(patches, torch.ones(2, 4, dtype=torch.long), torch.tensor([[2, 2]] * 2)).last_hidden_state
    else:
        theirs = SiglipVisionModel.from_pretrained(parts / vision)(pixels).last_hidden_state
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    assert not any("head" in name for name, _ in pipeline.model.model.vision_model.named_parameters())


@pytest.mark.parametrize("channels", [4, 16])
def test_autoencoders_of_any_channels(parts, channels, tmp_path):
    """16 channels, a shift and no quant_conv are SD3's and Flux'."""
    shape = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    AutoencoderKL(
        block_out_channels=(8, 8), norm_num_groups=4, latent_channels=channels, use_quant_conv=channels == 4,
        use_post_quant_conv=channels == 4, shift_factor=0.06, **shape,
    ).half().save_pretrained(tmp_path / "vae")  # fmt: skip
    pipeline = assemble(
        ["diffusion"], backbone=parts / "llama", vae=tmp_path / "vae", options=AssemblyOptions(image_size=32)
    )
    assert pipeline.model.config.diffusion_config.in_channels == channels
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline("a red circle", num_inference_steps=1).images[0].size == (32, 32)


# ------------------------------------------------------------------------------------------------- what is new


def stage_of(pipeline, tasks, rows: int = 2, length: int = 200):
    config = strict.build(TrainConfig, {"output_dir": "none", "steps": 1, "data": {"sources": []}})
    stage = ModelStage(config, pipeline, RowLoader(Mixture(tasks), pipeline.processor, rows, length, prefetch=0))
    stage.model.train()
    return stage


@pytest.mark.parametrize(("write", "unet"), [("diffusion", None), ("diffusion", [8, 16]), ("vq", None)])
def test_new_heads_are_silent_in_the_first_step(parts, write, unet):
    """Their loss has a value and reaches their own heads, but neither the backbone nor another path."""
    pipeline = all_paths(parts, options=AssemblyOptions(unet_channels=unet))
    stage = stage_of(pipeline, [source_of(drawings(9), name="draw", write=write)])
    stage.weights = {**stage.weights, "text": 0.0}  # that a picture begins is text, and may be learnt
    batch = next(stage.loader)
    counts = {kind: torch.tensor(float(count)) for kind, count in stage.counts(batch).items()}
    total(stage.losses(stage.model, batch), counts, stage.weights).backward()
    own = {"diffusion": ("model.final_layer.linear", "model.final_layer.whole.linear")[: 1 + bool(unet)]}
    own["vq"] = ("model.generation_head.vision_head",)
    moved = {name for name, p in stage.model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert moved
    assert all(name.startswith(own[write]) for name in moved), moved


def test_codes_start_as_the_codebook_and_aligners_as_loud_as_words(parts):
    pipeline = all_paths(parts)
    model, codebook = pipeline.model.model, pipeline.vq_codec.codebook
    embeddings = model.generation_embeddings.weight
    nearest = [torch.cdist(table, table).fill_diagonal_(9e9).argmin(-1) for table in (embeddings, codebook)]
    assert torch.equal(*nearest)
    loudness = model.get_input_embeddings().weight.square().mean().sqrt()
    heard = model.embed_codes(torch.arange(50)).square().mean().sqrt()
    assert 0.2 < heard / loudness < 2


def test_a_seed_is_the_whole_start(parts):
    weights = [all_paths(parts, options=AssemblyOptions(seed=seed)).model.state_dict() for seed in (0, 0, 1)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not torch.equal(*(each["model.patch_embed.proj.weight"] for each in weights[1:]))


def test_what_is_saved_trains_on(parts, tmp_path):
    """`model.from_pretrained` takes the folder; text stays to the bit where the backbone is frozen (LMFusion)."""
    folder = tmp_path / "start"
    all_paths(parts, "llama tied").save_pretrained(folder)
    for number in range(4):
        picture(seed=number).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(f"a red circle {number}")
    source = {"source": f"{tmp_path}/", "weight": 1.0}
    content = {
        "output_dir": str(tmp_path / "run"), "steps": 4, "precision": "fp32", "threads": 1, "save_every": 100,
        "model": {"from_pretrained": str(folder)},
        "groups": [{"match": "model.language_model", "frozen": True}],  # the head is tied to it
        "optimizer": {"lr": 0.01},
        "data": {
            "per_device_batch_size": 2, "sequence_length": 128,
            "sources": [
                {**source, "name": "draw", "write": "diffusion"}, {**source, "name": "codes", "write": "vq"},
                {**source, "name": "read", "order": "image_first"},
            ],
        },
    }  # fmt: skip
    (tmp_path / "config.yaml").write_text(json.dumps(content))
    trained = load_pipeline(train(load_config(tmp_path / "config.yaml")))
    reference = LlamaForCausalLM.from_pretrained(parts / "llama tied").eval()
    ids = torch.arange(3, 60)[None]
    rows = reference.config.vocab_size
    with torch.no_grad():
        assert torch.equal(trained.model(ids).logits[..., :rows], reference(ids).logits)
    start = load_pipeline(folder).model.state_dict()
    moved = {name for name, value in trained.model.state_dict().items() if not torch.equal(value, start[name])}
    assert {"model.aligner.fc1.weight", "model.final_layer.linear.weight"} <= moved
    assert "model.generation_head.vision_head.weight" in moved


# -------------------------------------------------------------------------------------------------- bad input


@pytest.fixture
def run(capsys):
    def call(*arguments) -> tuple[int, str]:
        try:
            code = cli.main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = stop.code
        return code, capsys.readouterr().err

    return call


def test_the_command(parts, tmp_path, run):
    code, _ = run(
        "init", tmp_path / "start", "--backbone", parts / "qwen3", "--vision", parts / "new_tower.json", "--vq",
        parts / "vq", "--paths", "vq,understanding,diffusion", "--patch-size", 4, "--prediction", "sample",
        "--unet-channels", "8,16",
    )  # fmt: skip
    assert code == 0
    check_checkpoint(tmp_path / "start")
    config = load_pipeline(tmp_path / "start").model.config
    assert config.diffusion_config.prediction_type == "sample"
    assert config.diffusion_config.in_channels == 3
    assert config.diffusion_config.unet_channels == [8, 16]
    assert [path.name for path in tmp_path.iterdir()] == ["start"]
    code, error = run("init", tmp_path / "start", "--backbone", parts / "qwen3", "--paths", "diffusion")
    assert code == 2
    assert "start is there already" in error


def break_shard(parts, tmp_path):
    shutil.copytree(parts / "llama", tmp_path / "cut")
    file = tmp_path / "cut" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    return tmp_path / "cut"


def without_tokenizer(parts, tmp_path):
    shutil.copytree(parts / "llama", tmp_path / "mute")
    for file in (tmp_path / "mute").glob("*token*"):
        file.unlink()
    return tmp_path / "mute"


def of_a_larger_tokenizer(parts, tmp_path):
    shutil.copytree(parts / "llama", tmp_path / "larger")
    build_tokenizer([*WORDS, "quite other words that make more merges, and more of them still"], 360).save_pretrained(
        tmp_path / "larger"
    )
    return tmp_path / "larger"


def bert(parts, tmp_path):
    BertModel(BertConfig(vocab_size=20, **{k: v for k, v in TOWER.items() if k != "patch_size"})).save_pretrained(
        tmp_path / "bert"
    )
    return tmp_path / "bert"


def with_code(parts, tmp_path):
    """A pickle that would run a command."""
    shutil.copytree(parts / "llama", tmp_path / "evil")
    (tmp_path / "evil" / "model.safetensors").unlink()
    torch.save({"model.norm.weight": Evil()}, tmp_path / "evil" / "pytorch_model.bin")
    return tmp_path / "evil"


def of_other_sizes(parts, tmp_path, **sizes):
    shutil.copytree(parts / "llama", tmp_path / "sizes")
    change(tmp_path / "sizes" / "config.json", **sizes)
    return tmp_path / "sizes"


def with_half_a_template(parts, tmp_path):
    save_backbone(tmp_path / "half", chat_template="{% if %}")
    return tmp_path / "half"


def rewriting(parts, tmp_path):
    save_backbone(tmp_path / "thinks", chat_template=REWRITING)
    return tmp_path / "thinks"


def lacking(parts, tmp_path):
    """A whole tensor is gone."""
    shutil.copytree(parts / "llama", tmp_path / "lacking")
    file = tmp_path / "lacking" / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, file, {"format": "pt"})
    return tmp_path / "lacking"


@pytest.mark.parametrize(
    ("backbone", "sentence"),
    [
        (lambda parts, _: parts / "nowhere", "backbone .*nowhere does not exist"),
        (lambda parts, _: parts / "siglip", "is a 'siglip_vision_model', no decoder of text"),
        (lambda parts, _: parts / "janus", "is a 'janus', no decoder of text .*; a Janus is given as --from-janus"),
        (bert, "is a 'bert', which has no list of layers"),
        (break_shard, "cut/model.safetensors was cut off or changed"),
        (lacking, "lacks 1 of its weights, such as model.layers.1.mlp.up_proj.weight"),
        (without_tokenizer, "the tokenizer of backbone .*mute"),
        (of_a_larger_tokenizer, "the tokenizer of backbone .*larger has ids up to .* another model's"),
        (with_code, "evil has weights in a pickle that holds more than tensors, so it could run code"),
        (
            lambda *at: of_other_sizes(*at, intermediate_size=48),
            r"down_proj.weight of shape \(32, 64\), but its config",
        ),
        (lambda *at: of_other_sizes(*at, num_attention_heads=5), "sizes cannot be loaded: .* attention heads"),
        (with_half_a_template, r"the chat template cannot be read: .* \(line 1\)"),
        (rewriting, "the chat template writes .* between its generation prompt and an image"),
    ],
)
def test_backbones_that_do_not_fit(parts, tmp_path, run, backbone, sentence):
    made = tmp_path / "made"
    made.mkdir()
    code, error = run(
        "init", made / "x", "--backbone", backbone(parts, tmp_path), "--paths", "diffusion", "--image-size", 16
    )  # noqa: E501
    assert code == 2, error
    lines = [line for line in error.splitlines() if line.startswith("hybridgen:")]
    assert len(lines) == 1
    assert "Traceback" not in error
    assert not list(made.iterdir())
    with pytest.raises(ValueError, match=sentence):
        raise ValueError(lines[0])


@pytest.mark.parametrize(
    ("paths", "given", "sentence"),
    [
        ([], {}, "no path is asked for"),
        (["sound"], {}, "there is no path 'sound'"),
        (["diffusion"], {"backbone": None}, "a hybrid needs a backbone"),
        (["understanding"], {}, "the understanding path needs a pretrained part; give vision or from_janus"),
        (["vq"], {}, "the vq path needs a pretrained part; give vq or from_janus"),
        (["diffusion"], {"vision": "siglip"}, "vision .* is given, but no understanding path is asked for"),
        (["diffusion"], {}, "image_size is needed"),
        (["understanding"], {"vision": "llama"}, "vision tower .* is a 'llama', not one of siglip"),
        (["understanding"], {"vision": "vae"}, "vision tower .* is a None"),
        (["diffusion"], {"vae": "siglip"}, "VAE .* is a None, not an AutoencoderKL"),
        (["vq"], {"vq": "vae"}, "VQ tokenizer .* is a 'AutoencoderKL', not one of JanusVQVAE"),
        (["vq"], {"vq": "llama"}, "VQ tokenizer .* is a 'llama'"),
        (["understanding", "vq"], {"vision": "siglip", "vq": "vq", "from_janus": "janus"}, "nothing is left for the J"),
        (
            ["diffusion"],
            {"vae": "vae", "options": AssemblyOptions(image_size=17)},
            "image_size 17 is not divisible by 2",
        ),
        (
            ["vq"],
            {"vq": "vq", "options": AssemblyOptions(image_size=18)},
            "image_size 18 is not divisible by 4, .* a code",
        ),
        (
            ["diffusion"],
            {"options": AssemblyOptions(image_size=20, patch_size=6)},
            "sample_size 20 is not divisible by patch_size",
        ),
        (["diffusion"], {"options": AssemblyOptions(image_size=16, prediction_type="x0")}, "prediction_type is 'x0'"),
        (["diffusion"], {"gguf_file": "a.gguf"}, "has no file a.gguf"),
        (["understanding"], {"vision": "tower_of_junk"}, "preprocessor_config.json holds no JSON object"),
        (["understanding"], {"vision": "tower_of_other_sizes"}, "has .* of shape .*, but its config makes it"),
        (["understanding"], {"from_janus": "llama", "backbone": None}, "llama"),
    ],
)
def test_requests_that_make_no_sense(parts, paths, given, sentence):
    given = {"backbone": "llama", **given}
    folders = {k: parts / v if isinstance(v, str) and k != "gguf_file" else v for k, v in given.items()}
    with pytest.raises(ValueError, match=sentence):
        assemble(paths, **folders)


def test_a_template_may_be_given_instead(parts, tmp_path):
    folder = rewriting(parts, tmp_path)
    pipeline = assemble(["diffusion"], backbone=folder, options=AssemblyOptions(image_size=16, chat_template=CHATML))
    assert isinstance(pipeline.processor, HybridGenProcessor)
    assert pipeline.processor.chat_template == CHATML


def test_questions_and_pictures_of_a_graft_train(parts):
    """Both in one batch: losses are finite."""
    pipeline = all_paths(parts)
    stage = stage_of(pipeline, [source_of(questions(5), name="ask"), source_of(drawings(5), name="draw", write="vq")])
    batch = next(stage.loader)
    losses = stage.losses(stage.model, batch)
    assert np.isfinite([value.item() for value, _ in losses.values()]).all()
