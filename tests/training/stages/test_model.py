"""The model stage: what its losses count, that they depend on nothing else, and whole runs from config to pipeline."""

import errno
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import MethodType

import pytest
import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import convert_outputs_to_fp32
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import Qwen3Config, Qwen3ForCausalLM, SiglipVisionConfig, SiglipVisionModel

from hybridgen.core import cross_entropy
from hybridgen.core.objectives import ObjectiveConfig, total
from hybridgen.data.loading import RowLoader
from hybridgen.data.mixture import Mixture
from hybridgen.pipeline_hybridgen import HybridGenPipeline, load_pipeline
from hybridgen.training import load_config, train
from hybridgen.training.config import strict
from hybridgen.training.config.schema import ModelConfig, TrainConfig
from hybridgen.training.stages import caching
from hybridgen.training.stages.building import build_model, start_from_codebook
from hybridgen.training.stages.model import ModelStage, build_model_stage, draw_batch_noise
from tests.data.in_memory import drawings, numbered, questions, source_of
from tests.models import MODEL_CONTENT, text_config
from tests.pipelines import tiny_pipeline, tiny_vq_model
from tests.processors import tiny_tokenizer

ROOT = Path(__file__).parents[3]
TINY_VQ = ModelConfig(
    text_config={k: v for k, v in text_config().items() if k != "vocab_size"},
    vq_config={"num_embeddings": 64, "embed_dim": 6, "sample_size": 4},
)


def all_tasks(**changes) -> list:
    """Text, both ways of drawing, both ways of being asked."""
    return [
        source_of(numbered(20), name="text"),
        source_of(drawings(20), name="draw", write="diffusion", order=0.5, loss_on="all", **changes),
        source_of(drawings(20), name="code", write="vq"),
        source_of(questions(20), name="ask"),
        source_of(questions(20), name="ask-latents", read="diffusion"),
    ]


def stage_of(
    tasks: list,
    rows: int = 4,
    length: int = 160,
    rank: int = 0,
    world_size: int = 1,
    diffusion: dict | None = None,
    pipeline: HybridGenPipeline | None = None,
    **content,
) -> ModelStage:
    config = strict.build(TrainConfig, {"output_dir": "none", "steps": 1, "data": {"sources": []}, **content})
    changes = {"patch_size": 4, "sample_size": 16, "frequency_embedding_size": 32, **(diffusion or {})}
    pipeline = pipeline or tiny_pipeline(diffusion_config=changes)

    def loader() -> RowLoader:
        return RowLoader(Mixture(tasks), pipeline.processor, rows, length, rank, world_size, prefetch=0)

    stage = ModelStage(config, pipeline, loader(), loader)
    stage.model.train()
    return stage


def sums_of(stage: ModelStage, batch: dict) -> dict[str, tuple[float, float]]:
    with torch.no_grad():
        return {kind: (float(s), float(n)) for kind, (s, n) in stage.losses(stage.model, batch).items()}


# ------------------------------------------------------------------------------------------------------------ losses


def test_counts_are_those_of_the_losses():
    stage = stage_of(all_tasks(), objective={"z_loss": 1e-4})
    assert stage.kinds == ("text", "code", "diffusion", "z")
    for _ in range(3):
        batch = next(stage.loader)
        counted, losses = stage.counts(batch), sums_of(stage, batch)
        assert {kind: losses[kind][1] for kind in stage.kinds} == {kind: counted[kind] for kind in stage.kinds}
        assert min(counted.values()) > 0
        used, places = stage.size(batch)
        assert places == 4 * 160
        assert used == int((batch["document_ids"] >= 0).sum())


def test_one_mean_over_text_and_codes():
    """Chameleon's loss: 300 tokens at 2 nats and 100 codes at 6 are 3 nats a token. Then of a stage, over two
    micro-batches: the gradient is that of all sums over all counts. Worst relative difference seen: 2e-7."""
    numbers = {"text": (600.0, 300.0), "code": (600.0, 100.0), "token": (1200.0, 400.0)}
    losses = {kind: tuple(map(torch.tensor, pair)) for kind, pair in numbers.items()}
    counts = {kind: pair[1] for kind, pair in losses.items()}
    means = {
        way: float(total(losses, counts, ObjectiveConfig(token_mean=way).weights)) for way in ("joint", "separate")
    }
    assert means == {"joint": 3.0, "separate": 8.0}

    stage = stage_of(all_tasks(), objective={"token_mean": "joint", "z_loss": 1e-3, "diffusion_weight": 0.0})
    assert stage.kinds == ("text", "code", "diffusion", "z", "token")
    batches = [next(stage.loader) for _ in range(2)]
    counts = {kind: sum(torch.tensor(stage.counts(batch)[kind]) for batch in batches) for kind in stage.kinds}
    assert counts["token"] == counts["text"] + counts["code"] > counts["code"] > 0

    def gradient(loss_of) -> torch.Tensor:
        stage.model.zero_grad()
        for batch in batches:
            loss_of(stage.losses(stage.model, batch)).backward()
        return torch.cat([p.grad.flatten() for p in stage.model.parameters() if p.grad is not None])

    made = gradient(lambda losses: total(losses, counts, stage.weights))
    by_hand = gradient(
        lambda losses: (
            (losses["text"][0] + losses["code"][0] + 1e-3 * losses["z"][0]) / counts["token"]
            + 0 * losses["diffusion"][0]
        )
    )
    torch.testing.assert_close(made, by_hand, rtol=1e-4, atol=1e-7)
    with pytest.raises(ValueError, match="text_weight 1.0 and code_weight 2.0 differ; make them equal"):
        stage_of(all_tasks(), objective={"token_mean": "joint", "code_weight": 2.0})


def test_kinds_follow_the_model():
    stage = stage_of([source_of(numbered(9))], rows=1, length=64)
    assert stage.kinds == ("text", "code", "diffusion")
    assert ModelStage(stage.config, tiny_pipeline(vq_config=None), stage.loader).kinds == ("text", "diffusion")


def test_rows_of_two_ranks_make_the_loss_of_one():
    """Also the noise: it belongs to rows. Worst relative difference seen: 6e-8."""
    whole = stage_of(all_tasks(), rows=4)
    halves = [stage_of(all_tasks(), rows=2, rank=rank, world_size=2) for rank in (0, 1)]
    for _ in range(2):
        expected = sums_of(whole, next(whole.loader))
        parts = [sums_of(half, next(half.loader)) for half in halves]
        for kind, (value, count) in expected.items():
            assert sum(part[kind][1] for part in parts) == count
            assert sum(part[kind][0] for part in parts) == pytest.approx(value, rel=1e-5)


def test_packing_does_not_change_a_loss():
    """The same documents in one long row and in short ones. No difference was seen."""
    tasks = [source_of(questions(6), name="ask", shuffle=False)]
    length = len(tasks[0].document(0, tiny_pipeline().processor).layout)
    six_rows, one_row = stage_of(tasks, 6, length), stage_of(tasks, 1, 6 * length)
    expected, seen = (sums_of(each, next(each.loader)) for each in (six_rows, one_row))
    assert seen["text"][1] == expected["text"][1] > 0
    assert seen["text"][0] == pytest.approx(expected["text"][0], rel=1e-5)


class Shapes(TorchDispatchMode):
    """The shapes of all tensors that are made inside."""

    def __init__(self):
        super().__init__()
        self.seen: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        self.seen |= {tuple(each.shape) for each in tree_leaves(made) if isinstance(each, torch.Tensor)}
        return made


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_many_logits_are_never_whole(precision, monkeypatch):
    """Of text and codes, forward and backward, behind accelerate's copy of outputs to fp32: no tensor as large as a
    tenth of the logits. Losses and gradients are those of whole ones: measured 4e-7 and, in bf16, 4e-3."""
    stage = stage_of(all_tasks(), rows=8, objective={"z_loss": 1e-4})
    batch, model = next(stage.loader), stage.model
    counts = {kind: torch.tensor(float(count)) for kind, count in stage.counts(batch).items()}
    sizes = {"text": model.lm_head.out_features, "code": model.config.vq_config.num_embeddings}
    if precision == "bf16":
        wrapped = convert_outputs_to_fp32(torch.autocast("cpu", torch.bfloat16)(model.forward.__func__))
        model.forward = MethodType(wrapped, model)

    def step() -> tuple[dict, list[torch.Tensor], set]:
        model.zero_grad()
        with Shapes() as shapes:
            losses = stage.losses(model, batch)
            total(losses, counts, stage.weights).backward()
        sums = {kind: float(loss.detach()) for kind, (loss, _) in losses.items()}
        return sums, [parameter.grad.clone() for parameter in model.parameters()], shapes.seen

    expected, gradients, whole = step()
    assert {(int(counts[kind]), words) for kind, words in sizes.items()} <= whole
    monkeypatch.setattr(cross_entropy, "WHOLE", 0)
    monkeypatch.setattr(cross_entropy, "TILE", 500)
    seen, of_tiles, shapes = step()
    large = {(int(counts[kind]) * words) // 10 for kind, words in sizes.items()}
    with Shapes() as of_codecs:  # the tokenizer's distances to its codebook
        stage._inputs(batch, fixed_noise=False)
    others = of_codecs.seen | {tuple(each.shape) for each in model.parameters()}
    logits = [shape for shape in shapes - others if len(shape) == 2 and shape[-1] in sizes.values()]
    assert all(torch.Size(shape).numel() < min(large) for shape in logits), logits
    assert seen == pytest.approx(expected, rel=1e-6 if precision == "fp32" else 2e-3)
    for found, grad in zip(of_tiles, gradients, strict=True):
        bound = (1e-6 if precision == "fp32" else 2e-2) * max(float(grad.abs().max()), 1e-3)
        assert (found - grad).abs().max() < bound


@pytest.mark.parametrize("kept", [["text"], ["draw"], ["code"], ["ask"], ["ask-latents"]])
def test_a_batch_may_lack_any_modality(kept):
    """Every parameter takes part, so that no rank waits for another, and is finite."""
    tasks = [each for each in all_tasks() if each.name in kept]
    stage = stage_of(tasks, rows=2, length=80)
    batch = next(stage.loader)
    counts = {kind: torch.tensor(float(count)) for kind, count in stage.counts(batch).items()}
    total(stage.losses(stage.model, batch), counts, stage.weights).backward()
    for name, parameter in stage.model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_validation_is_the_same_each_time():
    stage = stage_of(all_tasks(), validation={"batches": 3, "levels": 4})
    stage.model.eval()
    first, second = ([sums_of(stage, batch) for batch in stage.validation_batches()] for _ in range(2))
    assert first == second
    assert len(first) == 3
    batch = next(iter(stage.validation_batches()))
    _, targets = stage._noised(batch, fixed=True)
    grid = [125.0, 375.0, 625.0, 875.0]
    drawn = [t for t, noised in zip(targets.timesteps.tolist(), batch["diffusion_noised"], strict=True) if noised]
    assert len(drawn) > 2
    assert set(drawn) <= set(grid)


def test_a_twin_is_read_clean():
    stage = stage_of([source_of(drawings(9), name="twins", write="diffusion", clean_copy=True)], rows=1, length=120)
    batch = next(stage.loader)
    latents, targets = stage._noised(batch, fixed=False)
    clean = batch["diffusion_noised"].logical_not()
    assert clean.any()
    assert torch.equal(latents[clean], stage.pixels(batch)["diffusion_images"][clean])
    assert targets.timesteps[clean].eq(0).all()
    assert stage.counts(batch)["diffusion"] == int((~clean).sum())


# ------------------------------------------------------------------------------------------------------------- parts


def test_pretrained_parts_are_taken_over(tmp_path):
    torch.manual_seed(3)
    tokenizer = tiny_tokenizer()
    backbone = Qwen3ForCausalLM(Qwen3Config(**{**text_config(), "vocab_size": len(tokenizer)}))
    backbone.save_pretrained(tmp_path)
    model = build_model(ModelConfig(language_model=str(tmp_path)), tokenizer, seed=0)
    ours, theirs = model.model.language_model.state_dict(), backbone.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    ids = torch.randint(0, 200, (1, 9), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model.eval()(ids).logits, backbone.eval()(ids).logits, rtol=0, atol=1e-5)
    assert model.config.text_config.eos_token_id == tokenizer.eos_token_id


def test_a_pretrained_tower_is_taken_over_without_its_pooling_head(tmp_path):
    """The head would get no gradient, and ranks of DDP would wait for it."""
    torch.manual_seed(4)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    tower = SiglipVisionModel(SiglipVisionConfig(**shape, image_size=16, patch_size=8)).eval()
    assert tower.use_head
    tower.save_pretrained(tmp_path)
    text = {k: v for k, v in text_config().items() if k != "vocab_size"}
    model = build_model(ModelConfig(text_config=text, vision_model=str(tmp_path)), tiny_tokenizer(), seed=0)
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    features = model.eval().get_image_features(pixels)
    assert torch.equal(features.last_hidden_state, tower(pixels).last_hidden_state)
    features.pooler_output.sum().backward()
    assert all(parameter.grad is not None for parameter in model.model.vision_model.parameters())


def test_the_tower_of_a_checkpoint_serves_another_model(tmp_path):
    """One that was trained on questions alone, say; a checkpoint without a tower is refused."""
    pipe = tiny_pipeline()
    pipe.save_pretrained(tmp_path / "whole")
    text = {k: v for k, v in text_config().items() if k != "vocab_size"}
    named = ModelConfig(text_config=text, vision_model=str(tmp_path / "whole"))
    model = build_model(named, tiny_tokenizer(), seed=0)
    ours, theirs = (each.model.vision_model.state_dict() for each in (model, pipe.model))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert model.config.vision_config.to_dict() == pipe.model.config.vision_config.to_dict()
    tiny_pipeline(vision_config=None).save_pretrained(tmp_path / "blind")
    with pytest.raises(ValueError, match="model.vision_model: .*blind.*has no vision tower; give the folder of one"):
        build_model(ModelConfig(text_config=text, vision_model=str(tmp_path / "blind")), tiny_tokenizer(), seed=0)


def test_codes_that_look_alike_start_alike():
    model = build_model(TINY_VQ, tiny_tokenizer(), seed=0)
    codebook = torch.randn(model.config.vq_config.num_embeddings, 4, generator=torch.Generator().manual_seed(1))
    codebook[1] = codebook[0] + 1e-3  # two codes that look alike among ones that do not
    start_from_codebook(model, codebook, seed=0)
    for weight in (model.model.generation_embeddings.weight, model.model.generation_head.vision_head.weight):
        distances = torch.cdist(weight[:1], weight[1:])[0]
        assert distances.argmin() == 0
        assert distances[0] < 0.01 * distances[1:].mean()
    assert abs(weight.std().item() / model.config.initializer_range - 1) < 0.01
    again = build_model(TINY_VQ, tiny_tokenizer(), seed=0)
    start_from_codebook(again, codebook, seed=0)
    assert torch.equal(again.model.generation_head.vision_head.weight, weight)


def test_text_embeddings_start_as_far_apart_as_asked_and_nothing_else_changes():
    plain, wide = (build_model(replace(TINY_VQ, embedding_std=std), tiny_tokenizer(), seed=0) for std in (None, 0.7))
    name = "model.language_model.embed_tokens.weight"
    before, after = plain.state_dict(), wide.state_dict()
    assert 0.019 < before[name].std() < 0.021  # the backbone's own
    torch.testing.assert_close(after[name].std(), torch.tensor(0.7), rtol=1e-5, atol=0)
    assert [key for key in before if not torch.equal(before[key], after[key])] == [name]


# -------------------------------------------------------------------------------------------------------- whole runs


@pytest.fixture(scope="module")
def config_file(tmp_path_factory) -> Path:
    """All paths on dolls at 16x16 pixels, with everything random that a run can have."""
    folder = tmp_path_factory.mktemp("model_stage")
    tiny_vq_model().save_pretrained(folder / "vq_model")
    size = {"height": 16, "width": 16}
    content = {
        "output_dir": str(folder / "run"),
        "steps": 6,
        "threads": 1,
        "precision": "fp32",
        "log_every": 2,
        "save_every": 3,
        "accumulation": 2,
        "data": {
            "per_device_batch_size": 2,
            "sequence_length": 96,
            "sources": [
                {"source": "dolls", "task": "draw", "write": "diffusion", "prompt_dropout": 0.2, "clean_copy": True,
                 **size},
                {"source": "dolls", "task": "draw", "write": "vq", **size},
                {"source": "dolls", "task": "answer", "questions_per_picture": 2},
            ],
        },
        "validation": {
            "every": 3,
            "batches": 1,
            "sources": [{"source": "dolls", "task": "draw", "write": "vq", "split": "held_out", **size}],
        },
        "sampling": {"every": 6, "prompts": ["an elf"], "steps": 2},
        "codec": {"vq": str(folder / "vq_model")},
        "model": MODEL_CONTENT,
        "objective": {"timestep_sampling": "logit_normal"},
        "optimizer": {"name": "muon", "lr": 1e-3},
        "groups": [{"match": "model.vision_model", "lr_scale": 0.5}],
        "ema": {"decay": 0.9},
    }  # fmt: skip
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(scope="module")
def run(config_file) -> Path:
    """An uninterrupted run."""
    config = load_config(config_file)
    assert train(config) == Path(config.output_dir) / "checkpoint"
    return Path(config.output_dir)


def test_keys_of_a_cache_are_made_where_batches_are(config_file, tmp_path, monkeypatch):
    """A step hashes nothing, and reads no picture back from the device; what is cached has those keys."""
    threads, key = [], caching.picture_key
    monkeypatch.setattr(
        caching, "picture_key", lambda picture: threads.append(threading.current_thread().name) or key(picture)
    )
    config = load_config(config_file, [f"output_dir={tmp_path}/run", f"data.cache={tmp_path}/cache", "data.prefetch=2"])
    stage = build_model_stage(config, Accelerator(cpu=True))
    threads.clear()  # of the first validation batch, which nobody waits for
    for _ in range(3):
        batch = next(stage.loader)
        stage.losses(stage.model, batch)
    stage.loader.close()
    assert set(threads) == {"hybridgen-loader"}
    assert set(batch["cache_keys"]) == {"diffusion_images", "vq_images", "pixel_values"} & set(batch)
    for name, keys in batch["cache_keys"].items():
        assert keys == list(map(key, batch[name]))
    assert set(batch["cache_keys"]["vq_images"]) <= set(stage.inputs._caches["codes"]._unwritten)


def metrics_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_same_results(first: Path, second: Path) -> None:
    for name in ("checkpoint/model/model.safetensors", "state/step_000006/ema.safetensors"):
        ours, theirs = load_file(first / name), load_file(second / name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    clocks = ("seconds", "tokens_per_second", "data_wait", "peak_memory_gb", "tflops", "mfu")
    ours, theirs = (
        [{key: value for key, value in record.items() if key not in clocks} for record in metrics_of(folder)]
        for folder in (first, second)
    )
    assert ours == theirs


def test_a_run_ends_in_a_pipeline(run):
    pipeline = load_pipeline(run / "checkpoint")
    pipeline.set_progress_bar_config(disable=True)
    for how in ({"path": "diffusion", "num_inference_steps": 2}, {"path": "vq"}):
        assert pipeline("an elf", seed=0, **how).images[0].size == (16, 16)
    picture = pipeline("an elf", path="vq", seed=0).images[0]
    assert isinstance(pipeline.answer([picture], ["what creature is it?"], max_new_tokens=2)[0], str)
    assert pipeline.model.config._attn_implementation == "sdpa"
    records = metrics_of(run)
    assert [record["step"] for record in records] == [2, 3, 4, 6]
    kinds = {"loss/text", "loss/code", "loss/diffusion"}
    assert set(records[0]) > {"loss", *kinds, "lr", "grad_norm", "fill", "data_wait", "tokens_per_second"}
    assert sum(value for key, value in records[0].items() if key.startswith("share/")) == pytest.approx(1)
    assert "validation/loss/code" in records[1]
    assert (run / "samples" / "step_000006.png").exists()
    assert yaml.safe_load((run / "config.yaml").read_text())["steps"] == 6


def start(config_file: Path, folder: Path, *words: str, launcher: tuple[str, ...] = ()) -> subprocess.Popen:
    script = str(ROOT / "scripts" / "train.py")
    command = [sys.executable, *launcher, script, str(config_file), f"output_dir={folder}", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True)


@pytest.mark.slow
def test_killed_and_resumed_is_uninterrupted(config_file, run, tmp_path):
    """SIGKILL as soon as there is a state; `accelerate launch` finishes the run."""
    process = start(config_file, tmp_path)
    while not (tmp_path / "state" / "step_000003").exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    accelerate = ("-m", "accelerate.commands.launch", "--config_file", "configs/accelerate/single.yaml")
    process = start(config_file, tmp_path, launcher=accelerate)
    _, error = process.communicate(timeout=200)
    assert process.returncode == 0, error
    assert "going on from" in error
    assert_same_results(tmp_path, run)


def test_resumed_is_uninterrupted(config_file, run, tmp_path):
    """In one process, from a copy of the state half way."""
    shutil.copytree(run / "state" / "step_000003", tmp_path / "state" / "step_000003")
    shutil.copytree(run / "tokenizer", tmp_path / "tokenizer")
    shutil.copy(run / "metrics.jsonl", tmp_path)
    train(load_config(config_file, [f"output_dir={tmp_path}"]))
    assert_same_results(tmp_path, run)


def test_going_on_from_a_pipeline(config_file, run, tmp_path):
    """`model.from_pretrained` brings tokenizer and codecs along; a frozen backbone stays as it was."""
    words = [f"model={{from_pretrained: {run / 'checkpoint'}}}", "codec.vq=null", f"output_dir={tmp_path}", "steps=2"]
    words += ["groups=[{match: model.language_model, frozen: true}]", "optimizer.name=adamw", "sampling.every=0"]
    train(load_config(config_file, words))
    before = load_file(run / "checkpoint" / "model" / "model.safetensors")
    after = load_file(tmp_path / "checkpoint" / "model" / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert not any(name.startswith("model.language_model") for name in changed)
    assert "model.patch_embed.proj.weight" in changed
    assert load_pipeline(tmp_path / "checkpoint").vq_model is not None


def test_bf16_keeps_weights_in_fp32(config_file, tmp_path):
    train(load_config(config_file, [f"output_dir={tmp_path}", "precision=bf16", "steps=2", "sampling.every=0"]))
    weights = load_file(tmp_path / "checkpoint" / "model" / "model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float32}
    assert all(value.isfinite().all() for value in weights.values())


def test_a_users_error_is_one_sentence_and_exit_2(config_file, tmp_path, monkeypatch, capfd):
    words = [f"output_dir={tmp_path / 'run'}", "optimizer.learning_rate=1"]
    monkeypatch.setattr(sys, "argv", ["train.py", str(config_file), *words])
    with pytest.raises(SystemExit) as raised:
        runpy.run_path(str(ROOT / "scripts" / "train.py"), run_name="__main__")
    assert raised.value.code == 2
    out, error = capfd.readouterr()
    assert error.startswith("train.py: unknown key 'optimizer.learning_rate' (value 1)")
    assert len(error.splitlines()) == 1
    assert not out
    assert not (tmp_path / "run").exists()


def of_a_library(config):
    torch.zeros(3).numpy().reshape(2, 2)


def full_disk(config):
    raise OSError(errno.ENOSPC, "No space left on device", "runs/metrics.jsonl")


def test_a_fault_of_ours_keeps_its_traceback(config_file, monkeypatch, capfd):
    """A ValueError from inside a library is nothing that a user can mend by reading one line; a full disk is."""
    monkeypatch.setattr(sys, "argv", ["train.py", str(config_file)])
    monkeypatch.setattr("hybridgen.training.train", of_a_library)
    with pytest.raises(ValueError, match="cannot reshape array of size 3"):
        runpy.run_path(str(ROOT / "scripts" / "train.py"), run_name="__main__")
    monkeypatch.setattr("hybridgen.training.train", full_disk)
    with pytest.raises(SystemExit) as raised:
        runpy.run_path(str(ROOT / "scripts" / "train.py"), run_name="__main__")
    assert raised.value.code == 2
    assert capfd.readouterr().err == "train.py: runs/metrics.jsonl: No space left on device\n"


def test_noise_that_was_drawn_where_the_batch_was_made_is_that_of_the_step():
    """Losses to the bit, in training and at validation's fixed levels."""
    for fixed in (False, True):
        stage = stage_of(all_tasks())
        stage.model.train(not fixed)
        batch = next(stage.loader)
        settings = stage.model.config.diffusion_config, stage.latent_codec.downsample_factor, stage.config
        ahead = draw_batch_noise(batch, *settings, fixed)
        assert ahead.keys() - batch.keys() == {"diffusion_noise", "diffusion_timesteps"}
        assert sums_of(stage, ahead) == sums_of(stage, batch)
        other = ahead | {"diffusion_noise": ahead["diffusion_noise"] + 1}
        assert sums_of(stage, other)["diffusion"] != sums_of(stage, batch)["diffusion"]
