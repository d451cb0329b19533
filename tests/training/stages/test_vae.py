"""The codec stage with a VAE: it learns, its latents are normalised, and every part of it goes on bit for bit."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import AutoencoderKL
from safetensors.torch import load_file
from torch.distributions import Normal, kl_divergence

from hybridgen.codecs.frozen import VAECodec
from hybridgen.data.source_config import SourceConfig
from hybridgen.data.sources import open_source
from hybridgen.pipeline_hybridgen import load_pipeline
from hybridgen.training import load_config, train
from hybridgen.training.config import strict
from hybridgen.training.config.schema import TrainConfig
from hybridgen.training.distributed.processes import make_accelerator
from hybridgen.training.stages.pictures import PictureLoader
from hybridgen.training.stages.vae import VAEStage, VAETrainingModel, build_vae
from tests.data.in_memory import drawings, source_of
from tests.training.processes import ProcessGroup
from tests.training.stages.test_perceptual import resnet
from tests.training.stages.test_vq import metrics_of

ROOT = Path(__file__).parents[3]
SHAPE = {
    "block_out_channels": [8, 16, 16],
    "latent_channels": 8,
    "norm_num_groups": 4,
    "mid_block_add_attention": False,
}


def content_of(folder: Path, **vae) -> dict:
    return {
        "stage": "codec",
        "output_dir": str(folder),
        "steps": 16,
        "threads": 1,
        "precision": "fp32",
        "log_every": 4,
        "save_every": 8,
        "data": {"per_device_batch_size": 4, "sources": [{"source": "dolls", "task": "draw"}]},
        "validation": {"every": 8, "batches": 2, "sources": [{"source": "dolls", "task": "draw", "split": "held_out"}]},
        "sampling": {"every": 16},
        "vae": {"config": SHAPE, "image_size": 32, "kl": 1e-4, "measured_pictures": 10, **vae},
        "optimizer": {"lr": 3e-3, "weight_decay": 0.0},
        "schedule": {"name": "constant"},
        "ema": {"decay": 0.5},
    }


def run(folder: Path, *words: str, **vae) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "given.yaml").write_text(yaml.safe_dump(content_of(folder, **vae)))
    return train(load_config(folder / "given.yaml", words))


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, dict]:
    """With every term there is."""
    folder = tmp_path_factory.mktemp("vae")
    perceptual = {"path": resnet(folder / "resnet"), "weight": 0.2}
    terms = {"perceptual": perceptual, "adversarial": {"start": 4, "channels": 8, "layers": 2, "weight": 0.2}}
    run(folder / "run", **terms)
    return folder / "run", terms


def test_it_learns(trained, tmp_path):
    """Better on held-out pictures than the same run in which nothing learns: measured 10.5 dB instead of 8.8."""
    folder, terms = trained
    run(tmp_path, "optimizer.lr=1e-12", "sampling.every=0", **terms)
    learnt, control = (metrics_of(each)[-1] for each in (folder, tmp_path))
    assert learnt["validation/psnr"] > control["validation/psnr"] + 1
    assert learnt["validation/loss/l1"] < 0.95 * control["validation/loss/l1"]


def test_what_is_logged(trained):
    folder, _ = trained
    records = metrics_of(folder)
    named = {"l1", "l2", "kl", "perceptual", "adversarial", "discriminator"}
    assert {name.removeprefix("loss/") for name in records[-1] if name.startswith("loss/")} == named
    assert records[0]["loss/discriminator"] == records[0]["adversarial_weight"] == 0
    assert records[-1]["loss/discriminator"] > 0
    assert records[-1]["adversarial_weight"] > 0
    assert {"validation/psnr", "validation/ssim"} <= records[-1].keys()
    assert "validation/codebook_use" not in records[-1]
    assert (folder / "samples" / "step_000016.png").exists()


def test_scores_are_those_of_the_last_validation(trained):
    folder, _ = trained
    scores, last = json.loads((folder / "checkpoint" / "scores.json").read_text()), metrics_of(folder)[-1]
    for name in ("psnr", "ssim"):
        assert scores[name] == pytest.approx(last[f"validation/{name}"], rel=1e-6)
    assert scores["l1"] == pytest.approx(last["validation/loss/l1"], rel=1e-5)
    assert (scores["pictures"], scores["held_out"], scores["image_size"]) == (8, True, 32)


def test_latents_of_the_training_pictures_have_mean_0_and_variance_1(trained):
    folder, _ = trained
    vae = AutoencoderKL.from_pretrained(folder / "checkpoint" / "vae").eval()
    sources = load_config(folder / "given.yaml").data.sources
    loader = PictureLoader([open_source(source, 0) for source in sources], 1, 32)
    pictures = torch.cat([next(loader)["pictures"] for _ in range(10)])
    with torch.no_grad():
        modes = vae.encode(pictures).latent_dist.mode()
    assert vae.config.shift_factor == pytest.approx(float(modes.mean()), abs=1e-5)  # measured 1e-8
    assert vae.config.scaling_factor == pytest.approx(1 / float(modes.std(correction=0)), rel=1e-4)
    latents = VAECodec(vae).encode(pictures)
    assert (float(latents.mean()), float(latents.var())) == pytest.approx((0, 1), abs=1e-3)
    decoded = VAECodec(vae).decode(latents)
    with torch.no_grad():
        torch.testing.assert_close(decoded, vae.decode(modes).sample, rtol=0, atol=1e-4)  # measured 5e-7


def test_resumed_is_uninterrupted_discriminator_included(trained, tmp_path):
    folder, terms = trained
    shutil.copytree(folder / "state" / "step_000008", tmp_path / "state" / "step_000008")
    run(tmp_path, **terms)
    for name in ("checkpoint/vae", "state/step_000016"):
        file = next((folder / name).glob("*model.safetensors")).name
        ours, theirs = load_file(tmp_path / name / file), load_file(folder / name / file)
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    ours, theirs = (
        torch.load(each / "state" / "step_000016" / "custom_checkpoint_0.pkl") for each in (tmp_path, folder)
    )
    assert ours["ratio"] == theirs["ratio"] > 0
    assert ours["count"] == theirs["count"] == 4  # the gradients of the last step wait for the next
    for name in theirs["discriminator"]:
        assert torch.equal(ours["discriminator"][name], theirs["discriminator"][name])
    assert all(map(torch.equal, ours["gradients"], theirs["gradients"]))
    assert metrics_of(tmp_path)[-1]["loss/adversarial"] == metrics_of(folder)[-1]["loss/adversarial"]
    with pytest.raises(ValueError, match="whose vae is not this config's .*vae.adversarial.*resume=never to start"):
        run(tmp_path, **{**terms, "adversarial": None})


def test_two_batches_a_step_are_one_of_twice_the_rows(tmp_path):
    """Noise and weights included: the loss depends on neither. The pictures come from a stream, of which batches of any
    size take the next ones; of a file, rows of another number would read them in another order."""
    terms = {"adversarial": {"start": 1, "channels": 8, "layers": 2}}
    words = ["steps=4", "log_every=1", "validation.every=0", "sampling.every=0"]
    dolls, lines = open_source(SourceConfig("dolls", task="draw")), []
    for number in range(20):
        dolls.pictures(number)[0].save(tmp_path / f"{number}.png")
        lines.append(json.dumps({"image": f"{number}.png", "text": "a doll"}))
    (tmp_path / "dolls.jsonl").write_text("\n".join(lines))
    words += [f"data.sources=[{{source: {tmp_path / 'dolls.jsonl'}, streaming: true, shuffle: false}}]"]
    whole = run(tmp_path / "whole", *words, **terms)
    halves = run(tmp_path / "halves", *words, "data.per_device_batch_size=2", "accumulation=2", **terms)
    for ours, theirs in zip(metrics_of(halves.parent), metrics_of(whole.parent), strict=True):
        for name in ("loss", "loss/kl", "loss/discriminator", "adversarial_weight", "grad_norm"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4)  # measured 2e-6
    assert metrics_of(whole.parent)[-1]["adversarial_weight"] > 0


def train_given(file: Path, words: list[str]) -> None:
    train(load_config(file, words))


def test_two_processes_are_one(tmp_path):
    """The second optimizer and the scores included; each process sees half of the pictures."""
    terms = {"adversarial": {"start": 1, "channels": 8, "layers": 2}}
    words = ["steps=4", "log_every=1", "validation.every=4", "sampling.every=0"]
    alone = run(tmp_path / "one", *words, **terms).parent
    two = tmp_path / "two"
    two.mkdir()
    (two / "given.yaml").write_text(yaml.safe_dump(content_of(two, **terms)))
    words += ["data.per_device_batch_size=2"]
    ProcessGroup(tmp_path / "logs", train_given, 2, "ddp", file=two / "given.yaml", words=words).finish()
    names = ["loss", "loss/kl", "loss/adversarial", "loss/discriminator", "adversarial_weight", "psnr"]
    for ours, theirs in zip(metrics_of(two), metrics_of(alone), strict=True):
        more = [name for name in theirs if name.startswith("validation/")]
        for name in names + more:
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-5), name  # measured 2e-6 of either
    scores = [json.loads((each / "checkpoint" / "scores.json").read_text()) for each in (two, alone)]
    assert scores[0] == pytest.approx(scores[1], rel=1e-3)


def test_without_held_out_pictures_those_of_training_are_scored(tmp_path):
    run(tmp_path, "validation={}", "steps=1", "sampling.every=1")
    scores = json.loads((tmp_path / "checkpoint" / "scores.json").read_text())
    assert (scores["held_out"], scores["pictures"]) == (False, 16)


# ------------------------------------------------------------------------------------------------------------- losses


def stage_of(**vae) -> VAEStage:
    config = strict.build(TrainConfig, content_of(Path("none"), **vae))
    loader = PictureLoader([source_of(drawings(12), name="draw")], rows=4, size=32)
    stage = VAEStage(
        config, VAETrainingModel(build_vae(config.vae, 0)), loader, lambda: loader, make_accelerator(config)
    )
    stage.model.train()
    return stage


def test_the_kl_is_that_of_torch_and_of_diffusers():
    stage = stage_of()
    batch = next(stage.loader)
    own = stage.reconstruct(stage.model, batch).losses["kl"] * 3 * 32 * 32
    posterior = stage.model.vae.encode(batch["pictures"]).latent_dist
    torch.testing.assert_close(own, posterior.kl())
    standard = Normal(torch.zeros(()), torch.ones(()))
    expected = kl_divergence(Normal(posterior.mean, posterior.std), standard).flatten(1).sum(1)
    torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-4)


def test_noise_belongs_to_the_picture_and_validation_has_none():
    stage = stage_of()
    batch = next(stage.loader)
    once, again = (stage.reconstruct(stage.model, batch).decoded for _ in range(2))
    assert torch.equal(once, again)
    assert batch["numbers"].tolist() == [0, 1, 2, 3]
    assert next(stage.loader)["numbers"].tolist() == [4, 5, 6, 7]
    last = {name: each[3:] for name, each in batch.items()}
    alone = stage.reconstruct(stage.model, last).decoded
    torch.testing.assert_close(alone, once[3:], rtol=0, atol=1e-4)  # measured 4e-6
    other = {**batch, "numbers": batch["numbers"] + 1}
    assert not torch.equal(stage.reconstruct(stage.model, other).decoded, once)
    stage.model.eval()
    with torch.no_grad():
        mode = stage.model.vae(batch["pictures"]).sample  # diffusers' own forward, which takes the mode
    assert torch.equal(stage.reconstruct(stage.model, other).decoded, mode)


def test_reconstruction_terms_are_weighed_as_the_config_says():
    stage = stage_of(l1=0.0, l2=3.0, kl=0.5)
    assert stage.weights == {"l1": 0.0, "l2": 3.0, "kl": 0.5}
    losses = stage.losses(stage.model, next(stage.loader))
    assert all(float(count) == 4 and math.isfinite(value.item()) for value, count in losses.values())


# ---------------------------------------------------------------------------------------------------- what takes them


def test_a_model_stage_and_a_pipeline_take_the_vae(trained, tmp_path):
    folder, _ = trained
    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = {
        "tokenizer": {"vocab_size": 300, "samples": 20},
        "text_config": {**small, "num_key_value_heads": 1, "head_dim": 16},
        "diffusion_config": {"patch_size": 2, "sample_size": 8, "in_channels": 8, "frequency_embedding_size": 32},
    }
    content = {
        "output_dir": str(tmp_path), "steps": 2, "threads": 1, "precision": "fp32", "model": model,
        "codec": {"vae": str(folder / "checkpoint" / "vae")},
        "data": {
            "per_device_batch_size": 1, "sequence_length": 128,
            "sources": [{"source": "dolls", "task": "draw", "write": "diffusion"}],
        },
    }  # fmt: skip
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    checkpoint = train(load_config(tmp_path / "config.yaml"))
    pipeline = load_pipeline(checkpoint)
    assert pipeline.latent_codec.scale == AutoencoderKL.from_pretrained(folder / "checkpoint/vae").config.scaling_factor
    assert pipeline("a minotaur", path="diffusion", num_inference_steps=2, seed=0).images[0].size == (32, 32)
    content["model"]["diffusion_config"]["in_channels"] = 4
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match="in_channels is 4, but the latents of codec.vae have 8 channels"):
        load_config(tmp_path / "config.yaml")


def test_in_half_precision_every_term_is_finite(tmp_path):
    """The model, the discriminator and the features run under autocast; the losses are float32."""
    terms = {"perceptual": {"path": resnet(tmp_path / "resnet")}, "adversarial": {"channels": 8, "layers": 2}}
    run(tmp_path, "precision=bf16", "steps=3", "log_every=1", "validation.every=3", "sampling.every=0", **terms)
    last = metrics_of(tmp_path)[-1]
    assert all(math.isfinite(value) for value in last.values())
    assert last["adversarial_weight"] > 0


@pytest.mark.parametrize("channels", [4, 16])
def test_any_number_of_latent_channels(tmp_path, channels):
    run(tmp_path, f"vae.config.latent_channels={channels}", "steps=1", "validation.every=0", "sampling.every=0")
    vae = AutoencoderKL.from_pretrained(tmp_path / "checkpoint" / "vae")
    assert VAECodec(vae).encode(torch.zeros(1, 3, 32, 16)).shape == (1, channels, 8, 4)
