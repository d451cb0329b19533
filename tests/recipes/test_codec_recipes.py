"""The codec configs: the papers' settings at full size, and each run at the size of a test."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from transformers import AutoModel

from hybridgen.cli import main as cli
from hybridgen.codecs.frozen import VAECodec, VQCodec, load_vq
from hybridgen.data.synthetic import emoji
from hybridgen.training import load_config
from hybridgen.training.stages.vae import build_vae
from hybridgen.training.stages.vq import build_vq_model
from tests.training.stages.test_perceptual import resnet

CONFIGS = Path(__file__).parents[2] / "configs"
SMALL = [
    "steps=3", "threads=1", "precision=fp32", "data.per_device_batch_size=2", "log_every=1", "save_every=100",
    "validation.every=3", "validation.batches=1", "sampling.every=3", "schedule.warmup_steps=0",
]  # fmt: skip
VQ16 = "{num_embeddings: 32, embed_dim: 8, latent_channels: 32, base_channels: 32, channel_multiplier: [1, 1, 1]}"
TOYS = {  # what is made smaller
    "vae_emoji": ["vae.measured_pictures=4"],
    "codec_vq16": ["vq_model.image_size=32", f"vq_model.config={VQ16}", "vq_model.adversarial.start=1"],
    "codec_vae_f8": [
        "vae.image_size=32", "vae.config={block_out_channels: [8, 8, 8, 8], norm_num_groups: 4}",
        "vae.adversarial.start=1", "vae.measured_pictures=4",
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Real pictures of several sizes in chat records: captioned ones, and one in a question."""
    folder = tmp_path_factory.mktemp("pictures")
    source = emoji.Emoji("train", "draw", 0)
    lines = []
    for number, size in enumerate([(64, 64), (40, 70), (20, 16), (128, 30)]):
        source.picture(number).convert("RGB").resize(size, Image.Resampling.BICUBIC).save(folder / f"{number}.png")
        turns = ("an emoji", {"type": "image", "image": f"{number}.png"})
        parts = [[{"type": "text", "text": turns[0]}], [turns[1]]]
        if number % 2:
            parts = [[turns[1], {"type": "text", "text": "what is this?"}], [{"type": "text", "text": turns[0]}]]
        roles = zip(("user", "assistant"), parts, strict=True)
        lines.append(json.dumps({"messages": [{"role": role, "content": content} for role, content in roles]}))
    (folder / "records.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def words_of(name: str, pictures: Path, folder: Path) -> list[str]:
    words = [f"output_dir={folder}", *SMALL, *TOYS[name]]
    if name != "vae_emoji":
        kind = "vq_model" if name == "codec_vq16" else "vae"
        words += [f"{kind}.perceptual.path={resnet(folder / 'classifier')}", f"{kind}.adversarial.channels=8"]
        words += [f"{key}.sources.0.source={pictures / 'records.jsonl'}" for key in ("data", "validation")]
    return words


@pytest.mark.parametrize("name", TOYS)
def test_each_config_runs_and_saves_what_other_stages_load(name, pictures, tmp_path, capsys):
    words = words_of(name, pictures, tmp_path / "run")
    assert cli.main(["train", str(CONFIGS / f"{name}.yaml"), *words]) == 0, capsys.readouterr().err
    checkpoint = tmp_path / "run" / "checkpoint"
    side = 64 if name == "vae_emoji" else 32
    images = torch.zeros(1, 3, side, side)
    if name == "codec_vq16":
        codec = VQCodec(load_vq(checkpoint / "vq_model"))
        assert codec.encode(images).shape == ((side // codec.downsample_factor) ** 2,)
    else:
        vae = AutoencoderKL.from_pretrained(checkpoint / "vae")
        channels = 16 if name == "vae_emoji" else 4
        assert VAECodec(vae).encode(images).shape == (1, channels, side // 8, side // 8)
    scores = json.loads((checkpoint / "scores.json").read_text())
    assert {"psnr", "ssim", "l1", "l2", "pictures"} <= scores.keys()
    assert Image.open(tmp_path / "run" / "samples" / "step_000003.png").width > 2 * 96
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert ("loss/adversarial" in last) == ("loss/perceptual" in last) == (name != "vae_emoji")


def test_broken_records_are_passed_over_to_the_end(pictures, tmp_path, capsys):
    """By samples, scores and the measuring of latents as well; streamed records alike."""
    lines = (pictures / "records.jsonl").read_text(encoding="utf-8").splitlines()
    broken = lines[0].replace("0.png", "none.png")
    (pictures / "some.jsonl").write_text("\n".join([broken, *lines]), encoding="utf-8")
    for streaming in ("false", "true"):
        folder = tmp_path / streaming
        words = [word for word in words_of("codec_vae_f8", pictures, folder) if ".sources.0.source=" not in word]
        for key in ("data", "validation"):
            words += [f"{key}.sources.0.source={pictures / 'some.jsonl'}", f"{key}.sources.0.streaming={streaming}"]
            words += [f"{key}.sources.0.shuffle=false"]  # the broken one comes first
        assert cli.main(["train", str(CONFIGS / "codec_vae_f8.yaml"), *words]) == 0, capsys.readouterr().err
        assert (folder / "checkpoint" / "scores.json").exists()
        assert "none.png" in (folder / "broken.jsonl").read_text()


def test_llamagens_settings(tmp_path):
    """arXiv 2406.06525 and its code."""
    path = resnet(tmp_path)
    config = load_config(CONFIGS / "codec_vq16.yaml", [f"vq_model.perceptual.path={path}"])
    vq, optimizer = config.vq_model, config.optimizer
    with torch.device("meta"):
        model = build_vq_model(vq, 0)
    assert (vq.image_size, model.quantize.embedding.weight.shape) == (256, (16384, 8))
    assert 2 ** (len(model.config.channel_multiplier) - 1) == 16
    assert 70e6 < sum(each.numel() for each in model.parameters()) < 73e6  # theirs: 72 million
    assert (vq.l1, vq.l2, vq.commitment, vq.codebook, vq.codebook_decay) == (0.0, 1.0, 0.25, 1.0, None)
    judge = vq.adversarial
    assert (judge.start, judge.weight, judge.adaptive, judge.betas) == (20_000, 0.5, False, [0.9, 0.95])
    assert (optimizer.name, optimizer.lr, optimizer.betas, config.clip) == ("adamw", 1e-4, [0.9, 0.95], 1.0)
    assert config.data.per_device_batch_size * 8 == 128
    assert config.steps * 128 == pytest.approx(40 * 1_281_167, rel=0.01)


def test_latent_diffusions_settings(tmp_path):
    """arXiv 2112.10752 and its code."""
    config = load_config(CONFIGS / "codec_vae_f8.yaml", [f"vae.perceptual.path={resnet(tmp_path)}"])
    vae, optimizer = config.vae, config.optimizer
    with torch.device("meta"):
        model = build_vae(vae, 0)
    assert sum(each.numel() for each in model.parameters()) == 83_653_863  # Stable Diffusion's
    assert (vae.image_size, VAECodec(model).downsample_factor, model.config.latent_channels) == (256, 8, 4)
    assert (vae.l1, vae.l2, vae.kl, vae.perceptual.weight) == (1.0, 0.0, 1e-6, 1.0)
    judge = vae.adversarial
    assert (judge.start, judge.weight, judge.adaptive, judge.betas) == (50_001, 0.5, True, [0.5, 0.9])
    assert optimizer.lr == pytest.approx(4.5e-6 * config.data.per_device_batch_size * 8)
    assert (optimizer.betas, optimizer.weight_decay, config.clip) == ([0.5, 0.9], 0.0, None)


def test_a_full_size_config_says_what_is_to_be_named(capsys):
    assert cli.main(["train", str(CONFIGS / "codec_vq16.yaml")]) == 2
    error = capsys.readouterr().err.strip()
    assert "vq_model.perceptual.path 'CLASSIFIER' is no folder; name the folder of a vision model" in error
    assert len(error.splitlines()) == 1


def test_a_perceptual_model_that_cannot_read_the_pictures_stops_before_the_first_step(pictures, tmp_path, capsys):
    words = words_of("codec_vae_f8", pictures, tmp_path / "run")
    assert cli.main(["train", str(CONFIGS / "codec_vae_f8.yaml"), *words, "vae.perceptual.layers=[9]"]) == 2
    assert "perceptual.layers has 9, but" in capsys.readouterr().err
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    assert AutoModel.from_pretrained(tmp_path / "run" / "classifier") is not None  # it is a model, as such
