"""Configs of both stages: what is accepted, and each combination that cannot work, refused before any loading."""

import copy
import json
from pathlib import Path

import pytest
import yaml
from transformers import Qwen3Config

from hybridgen.training import load_config
from hybridgen.training.config.parts import hybrid_config
from tests.models import MODEL_CONTENT, text_config

CONFIGS = Path(__file__).parents[3] / "configs"
JANUS = {
    "num_embeddings": 50, "embed_dim": 8, "latent_channels": 32, "base_channels": 32, "channel_multiplier": [1, 1, 1],
    "num_res_blocks": 1,
}  # fmt: skip


@pytest.fixture
def vq_folder(tmp_path) -> Path:
    """All that checks read of a VQ tokenizer: its JSON."""
    folder = tmp_path / "vq_model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "janus_vqgan", **JANUS}))
    return folder


@pytest.fixture
def model_content(tmp_path, vq_folder) -> dict:
    """A model stage with all three paths on 16x16 pictures."""
    return {
        "output_dir": str(tmp_path / "run"),
        "steps": 10,
        "data": {
            "sequence_length": 64,
            "sources": [
                {"source": "dolls", "task": "draw", "write": "diffusion"},
                {"source": "dolls", "task": "draw", "write": "vq"},
                {"source": "dolls", "task": "answer"},
            ],
        },
        "codec": {"vq": str(vq_folder)},
        "model": copy.deepcopy(MODEL_CONTENT),
    }  # fmt: skip


@pytest.fixture
def codec_content(tmp_path) -> dict:
    return {
        "stage": "codec",
        "output_dir": str(tmp_path / "run"),
        "steps": 10,
        "data": {"per_device_batch_size": 4, "sources": [{"source": "dolls", "task": "draw"}]},
        "vq_model": {"image_size": 16, "config": dict(JANUS)},
    }


@pytest.fixture
def load(tmp_path):
    def loaded(content: dict, *words: str):
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(content))
        return load_config(path, list(words))

    return loaded


def test_model_stage(load, model_content):
    config = load(model_content, "optimizer.lr=1e-4", "data.sources.0.weight=2", "ema.decay=0.99")
    assert config.optimizer.lr == 1e-4
    assert [source.weight for source in config.data.sources] == [2.0, 1.0, 1.0]
    assert config.ema.decay == 0.99
    assert config.objective.weights["diffusion"] == 1.0


def test_codec_stage(load, codec_content):
    assert load(codec_content).vq_model.config["num_embeddings"] == 50


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("steps=0", "steps is 0; it must be at least 1"),
        ("accumulation=0", "accumulation is 0; it must be at least 1"),
        ("optimizer.lr=0", "optimizer.lr is 0.0; it must be above 0"),
        ("optimizer.betas=[0.9]", r"optimizer.betas is \[0.9\]; it must be two in \[0, 1\)"),
        ("clip=0", "clip is 0.0; it must be above 0, or null"),
        ("ema.decay=1", "ema.decay is 1.0; it must be from 0 to below 1"),
        ("schedule.min_ratio=2", "schedule.min_ratio is 2.0; it must be from 0 to 1"),
        ("schedule.warmup_steps=11", "warmup_steps 11 is more than the run's steps 10; shorten the warmup"),
        ("schedule={name: exponential}", "schedule.min_ratio is 0.0; it must be above 0, as nothing decays to 0"),
        ("sampling.steps=0", "sampling.steps is 0; it must be from 1 to 1000"),
        ("sampling.guidance_vq=-1", "sampling.guidance_vq is -1.0; it must be 0 or more"),
        ("sampling.diffusion={shfit: 3}", r"unknown key 'sampling.diffusion.shfit' \(value 3\); did you mean 'shift'"),
        ("sampling.diffusion={shift: 0}", "sampling.diffusion.shift is 0; it must be a number above 0"),
        ("sampling.diffusion={guidance_interval: [0.5, 0.2]}", r"guidance_interval is \[0.5, 0.2\]; it ends before"),
        ("sampling.diffusion={num_inference_steps: 1001}", "num_inference_steps is 1001; it must be from 1 to 1000"),
        ("sampling.vq={shift: 3}", "unknown key 'sampling.vq.shift'"),
        ("sampling.scheduler=DDPMSchduler", "sampling.scheduler: diffusers has no scheduler 'DDPMSchduler'; name a"),
        ("sampling.scheduler=DDPMScheduler", "sampling.scheduler: DDPMScheduler samples a DDPM process, but the model"),
        ("validation.batches=0", "validation.batches is 0; it must be at least 1"),
        ("dropout=1", "dropout is 1.0; it must be from 0 to below 1"),
        ("precision=fp16", "precision is 'fp16'; it must be one of 'auto', 'fp32', 'bf16'"),
        ("attention=flash_attention_2", "'flash_attention_2' cannot express a mask that is causal over text"),
        ("resume=elsewhere", "resume is 'elsewhere'; it must be 'auto', 'never' or the folder of a saved state"),
        ("groups=[{match: '('}]", r"groups.0.match '\(' is not a regular expression"),
        ("groups=[{match: lm_head, rows: image_tokens, weight_decay: 0.1}]", "groups.0.rows is 'image_tokens', wh"),
        ("groups=[{match: lm_head, rows: new}]", "groups.0.rows is 'new'; it must be one of 'all', 'image_tokens'"),
        ("model.unconditional=pads", "model.unconditional: unconditional is 'pads'; it must be one of empty, janus-"),
        ("data.sources=[]", "data.sources is empty; name at least one source"),
        ("validation.every=5", "validation.every is 5, but validation.sources is empty"),
        ("sampling.every=5", "sampling.every is 5, but there is nothing to draw; give sampling.prompts"),
        ("sampling.paths=[understanding]", "sampling.paths has 'understanding'; this model writes by: diffusion, vq"),
        ("model=null", "stage is 'model', but model is missing"),
        ("vq_model={config: {}, image_size: 16}", "stage is 'model', but vq_model is given"),
        ("stage=codec", "stage is 'codec', but vq_model is missing"),
        ("objective.diffusion_weight=-1", "objective.diffusion_weight is -1.0; a weight cannot be negative"),
        ("objective.lambda=5", r"unknown key 'objective.lambda' \(value 5\)"),
    ],
)  # fmt: skip
def test_refused(load, model_content, word, message):
    with pytest.raises(ValueError, match=message):
        load(model_content, word)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.diffusion_config=null"], "data.sources.0.write is 'diffusion', but the model has no diffusion_config"),
        (["model.vq_config=null"], "data.sources.1.write is 'vq', but the model has no vq_config"),
        (["model.vision_config=null"], "data.sources.2.read is 'understanding', but the model has no vision_config"),
        (["data.sources.0.write=understanding"], "write is 'understanding'; images are written by 'diffusion' or 'vq'"),
        (["model.vq_config=null", "model.codes_from_codebook=true"], "codes_from_codebook is true, but the model"),
        (["model.vq_config=null", "model.shared_vocabulary=true"], "shared_vocabulary is true, but the model has"),
        (["model.shared_vocabulary=true", "model.codes_from_codebook=true"], "codes are tokens of the vocabulary here"),
        (["model.embedding_std=0"], "model.embedding_std is 0.0; it must be above 0"),
        (["model.embedding_std=1", "model.tie_word_embeddings=true"], "std is 1.0, but embeddings and head are one"),
        (["model.vision_config=null", "model.diffusion_config.alignment_layer=1"], "there is no vision tower to align"),
        (["data.sources.2.read=[understanding, understanding]"], "read is .*; name each path by which images are read"),
        (["data.sources.2.read=[diffusion, siglip]"], "read is .siglip.; it must be one of understanding"),
        (["codec.vq=null"], "model.vq_config is given, but codec.vq is not; name the folder of a VQ tokenizer"),
        (["codec.vq=nowhere"], "codec.vq: folder nowhere does not exist"),
        (["codec.vae=nowhere"], "codec.vae: folder nowhere does not exist"),
        (["model.vq_config.num_embeddings=64"], "num_embeddings is 64, but codec.vq has 50 codes; make them equal"),
        (["model.diffusion_config.in_channels=8"], r"in_channels is 8, but pixels \(no codec.vae\) have 3 channels"),
        (["model.diffusion_config.sample_size=18"], "sample_size 18 is not divisible by patch_size 4"),
        (["model.diffusion_config.sample_size=32"], r"different sides \(diffusion 32, vq 16 pixels\)"),
        (
            ["data.sources.0.height=18", "data.sources.0.width=16"],
            r"data.sources.0 \(diffusion path\): size 18x16 is not divisible by the patch size 4; .*20x16|16x16",
        ),
        (["model.text_config.max_position_embeddings=17"], "16 tokens and its two frames, more than the 17 pos"),
        (["sampling.guidance=2", "sampling.diffusion={guidance_scale: 3}"], "and so is sampling.guidance, which is"),
        (["model.vq_config=null", "data.sources.1.write=diffusion", "sampling.vq={top_k: 5}"], "sampling.vq is given"),
        (
            ["model.diffusion_config.noise_schedule=cosine", "model.diffusion_config.prediction_type=epsilon",
             "sampling.diffusion={shift: 3}"],
            "sampling.diffusion: shift moves the noise levels of flow matching, but DDPMScheduler has none",
        ),
        (["sampling.steps=300", "model.diffusion_config.num_train_timesteps=200"], "it must be from 1 to 200"),
        (["data.sequence_length=17"], "an image of the diffusion path has 16 tokens and its two frames, .* 17"),
        (["model.text_config=null"], "one of from_pretrained, language_model and text_config; none is given"),
        (["model.text_config.hiden_size=8"], "unknown key 'model.text_config.hiden_size' .*did you mean 'hidden_size'"),
        (["model.text_config.hidden_size=wide"], "model.text_config.*expected int, got str"),
        (["model.text_config.model_type=qwen33"], "is 'qwen33', which transformers does not know; did you mean 'qwen"),
        (["model.text_config.num_attention_heads=5"], "num_attention_heads 5 is not divisible by num_key_value_heads"),
        (["model.vision_config.num_attention_heads=3"], "vision_config.hidden_size 16 is not divisible by num_attent"),
        (["model.text_config.vocab_size=9"], "vocab_size is 9, but the vocabulary's size comes from the tokenizer"),
        (["model.diffusion_config.prediction_type=x1"], "prediction_type is 'x1'; it must be one of 'velocity'"),
        (["model.vision_model=x"], "model.vision_config is given and so is a pretrained part 'x'"),
        (["model.from_pretrained=x"], "model.from_pretrained is given and so is model.text_config"),
        (["model={from_pretrained: x}"], "model.from_pretrained: checkpoint x does not exist"),
    ],
)  # fmt: skip
def test_impossible_models_are_refused(load, model_content, words, message):
    with pytest.raises(ValueError, match=message):
        load(model_content, *words)


@pytest.mark.parametrize("kind", ["qwen3_moe", "granite"])
def test_a_width_of_heads_that_a_decoder_reads_and_its_config_does_not_declare(load, model_content, kind):
    config = load(model_content, f"model.text_config.model_type={kind}", "model.text_config.head_dim=16")
    assert hybrid_config(config.model, vocab_size=99).text_config.head_dim == 16
    with pytest.raises(ValueError, match=r"unknown key 'model.text_config.head_dim' \(value 16\)"):
        load(model_content, "model.text_config.model_type=stablelm", "model.text_config.head_dim=16")


def test_trained_embeddings_keep_their_spread(load, model_content, tmp_path):
    Qwen3Config(**text_config()).save_pretrained(tmp_path)
    words = ["model.text_config=null", f"model.language_model={tmp_path}", "model.embedding_std=1"]
    with pytest.raises(ValueError, match="embedding_std is 1.0, but the embeddings come trained with"):
        load(model_content, *words)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("vq_model.image_size=18", "vq_model.image_size 18 is not divisible by 4"),
        ("vq_model.config.base_channels=24", "must be divisible by 32, the groups of JanusVQVAE's normalisation"),
        ("vq_model.config.codes=5", "unknown key 'vq_model.config.codes'"),
        ("vq_model.continuous_steps=10", "continuous_steps 10 leaves none of the 10 steps to learn codes in"),
        ("model={}", "stage is 'codec', but model is given; remove it"),
    ],
)
def test_impossible_codecs_are_refused(load, codec_content, word, message):
    with pytest.raises(ValueError, match=message):
        load(codec_content, word)


@pytest.fixture
def vae_content(codec_content) -> dict:
    del codec_content["vq_model"]
    shape = {"block_out_channels": [8, 8, 8], "norm_num_groups": 4, "latent_channels": 4}
    return {**codec_content, "vae": {"image_size": 16, "config": shape}}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["vae=null"], "stage is 'codec', but vq_model is missing and so is vae; say which of them is to be trained"),
        (["vq_model={image_size: 16, config: {}}"], "but vq_model and vae are both given; a run trains one codec"),
        (["stage=model", "model={from_pretrained: x}"], "stage is 'model', but vae is given; remove it, or set stage"),
        (["vae.image_size=18"], "vae.image_size 18 is not divisible by 4, the pixels .* of a latent .*; 16 would be"),
        (["vae.image_size=0"], "vae.image_size is 0; it must be at least 1"),
        (["vae.config.latent_channels=0"], "vae.config.latent_channels is 0; it must be an integer of at least 1"),
        (["vae.config.latent_channels=4.5"], "vae.config.latent_channels is 4.5; it must be an integer of at least 1"),
        (["vae.config.in_channels=4"], "vae.config.in_channels is 4, but pictures have 3 channels; leave it out"),
        (["vae.config.block_out_channels=null"], "block_out_channels is None; give the width of each level"),
        (["vae.config.block_out_channels=[8, 0]"], "block_out_channels.1 is 0; it must be an integer of at least 1"),
        (["vae.config.norm_num_groups=3"], r"block_out_channels \[8, 8, 8\] must be divisible by norm_num_groups 3"),
        (["vae.config.down_block_types=[DownEncoderBlock2D]"], "down_block_types is .* has 3 levels; give one"),
        (["vae.config.up_block_types=[Up, Up, Up]"], "vae.config: Up does not exist"),
        (["vae.config.act_fn=jump"], "vae.config: .*jump"),
        (["vae.config.scaling_factor=0.5"], "vae.config.scaling_factor is given, but it is measured when training"),
        (["vae.config.latent_chanels=4"], "unknown key 'vae.config.latent_chanels' .*did you mean 'latent_channels'"),
        (["vae.kl=-1"], "vae.kl is -1.0; it must be 0 or more"),
        (["vae.l1=0", "vae.l2=0"], "vae.l1 and vae.l2 are 0, so nothing asks for pictures to come back; raise one"),
        (["vae.measured_pictures=0"], "vae.measured_pictures is 0; it must be at least 1"),
        (["vae.perceptual={path: nowhere}"], "vae.perceptual.path 'nowhere' is no folder; name the folder of a vision"),
        (["vae.perceptual={path: .}"], "vae.perceptual.path: . has no config.json"),
        (["vae.perceptual={weight: 1}"], "missing key 'vae.perceptual.path'"),
        (["vae.perceptual={path: ., weight: -1}"], "vae.perceptual.weight is -1.0; it must be 0 or more"),
        (["vae.perceptual={path: ., layers: []}"], "vae.perceptual.layers is empty; name at least one"),
        (["vae.adversarial={start: 10}"], "vae.adversarial.start is 10; it must be a step of the run, from 0 to 9"),
        (["vae.adversarial={}"], "adversarial.layers is 3, which needs pictures of side 24 at least, but image_size"),
        (["vae.adversarial={layers: 2, betas: [0.5]}"], r"vae.adversarial.betas is \[0.5\]; it must be two in"),
        (["vae.adversarial={layers: 2, lr: 0}"], "vae.adversarial.lr is 0.0; it must be above 0, or null"),
        (["data.sources.0.weight={0: 1, 5: 2}"], "in the codec stage shares do not change over the run"),
        (["data.temperature=2"], "data.temperature is 2.0, but the codec stage has no such thing; leave it out"),
        (["data.sequence_length=64"], "data.sequence_length is 64, but the codec stage has no such"),
        (["data.sources.0.weight=0"], "every weight of data.sources is 0; give at least one of them a share"),
    ],
)  # fmt: skip
def test_impossible_vaes_are_refused(load, vae_content, words, message):
    load(vae_content)
    with pytest.raises(ValueError, match=message):
        load(vae_content, *words)


def test_the_transfusion_recipe(tmp_path):
    """Every figure of REFERENCES.md 2.1 that a config can hold."""
    vae = tmp_path / "vae"
    vae.mkdir()
    (vae / "config.json").write_text(json.dumps({"latent_channels": 8, "block_out_channels": [1, 1, 1, 1]}))
    config = load_config(CONFIGS / "transfusion_0.16b.yaml", [f"codec.vae={vae}"])
    diffusion, optimizer = config.model.diffusion_config, config.optimizer
    assert (diffusion["prediction_type"], diffusion["noise_schedule"]) == ("epsilon", "cosine")
    assert (diffusion["patch_size"], diffusion["sample_size"] * 8) == (2, 256)
    assert (config.objective.diffusion_weight, config.objective.image_first_max_timestep) == (5.0, 500.0)
    assert (optimizer.name, optimizer.lr, optimizer.betas, optimizer.weight_decay) == ("adamw", 3e-4, [0.9, 0.95], 0.1)
    assert (optimizer.eps, config.clip) == (1e-8, 1.0)
    assert (config.schedule.name, config.schedule.warmup_steps) == ("cosine", 4000)
    assert config.schedule.min_ratio * optimizer.lr == pytest.approx(1.5e-5)
    pairs = next(source for source in config.data.sources if source.write == "diffusion")
    assert (pairs.order, pairs.loss_on) == (0.8, "all")
    text = next(source for source in config.data.sources if source.write is None)
    assert text.weight == pairs.weight
    shape = config.model.text_config
    assert (shape["num_hidden_layers"], shape["hidden_size"], shape["num_attention_heads"]) == (16, 768, 12)
    assert config.data.sequence_length == 4096


def test_home_is_found_in_paths(load, model_content, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    words = ["output_dir=~/run", "data.cache=~/cache", "data.sources=[{source: ~/a.jsonl, name: text}]"]
    config = load(model_content | {"codec": {"vq": "~/vq_model"}}, *words)
    assert config.output_dir == str(tmp_path / "run")
    assert config.data.cache == str(tmp_path / "cache")
    assert config.codec.vq == str(tmp_path / "vq_model")
    assert config.data.sources[0].source == str(tmp_path / "a.jsonl")
