"""The real model shared by two processes, whole or in pieces: batches that lack a modality, tied weights, no hang."""

import errno
import os
from pathlib import Path

import accelerate
import pytest
import torch
from safetensors.torch import load_file

from hybridgen.core import cross_entropy
from hybridgen.data.loading import RowLoader
from hybridgen.data.mixture import Mixture
from hybridgen.training.config import strict
from hybridgen.training.config.schema import TrainConfig
from hybridgen.training.distributed.processes import make_accelerator
from hybridgen.training.optim.rows import IMAGE_TOKENS
from hybridgen.training.stages.model import ModelStage
from hybridgen.training.state.checkpointing import find_damage
from hybridgen.training.trainer import Trainer
from tests.data.in_memory import drawings, numbered, questions, source_of
from tests.pipelines import tiny_pipeline
from tests.training.processes import ProcessGroup
from tests.training.test_trainer import metrics_of


class TwoBatches:
    """Rank 0 gets text alone, rank 1 pictures alone; a single process gets both, one after the other."""

    def __init__(self, rank: int | None, **kind):
        pictures = [source_of(drawings(9), write="diffusion"), source_of(questions(9), name="ask")]
        self.stages = [model_stage([source_of(numbered(9), name="text")], **kind), model_stage(pictures, **kind)]
        self.loaders, self.rank, self.turn = [stage.loader for stage in self.stages], rank, 0

    def __iter__(self):
        return self

    def __next__(self):
        self.turn += 1
        return next(self.loaders[(self.turn - 1) % 2 if self.rank is None else self.rank])

    def state_dict(self):
        return {}

    def changes(self, state):
        return []

    def shares(self):
        return {}

    def where(self, record):
        return str(record)

    def close(self):
        pass


CLIP = {
    "model_type": "clip_vision_model", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "image_size": 16, "patch_size": 8,
}  # fmt: skip
RESAMPLER = {"num_latents": 3, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 8}
RESAMPLED = {"vision_config": CLIP, "vision_feature_layer": -2, "aligner": {"type": "perceiver_resampler", **RESAMPLER}}


def model_stage(
    tasks,
    tied: bool = False,
    aligned: bool = False,
    cache: str | None = None,
    experts: bool = False,
    resampled: bool = False,
) -> ModelStage:
    data = {"sources": [], "cache": cache}
    config = strict.build(TrainConfig, {"output_dir": "none", "steps": 1, "data": data, "precision": "fp32"})
    diffusion = {"patch_size": 4, "sample_size": 16, "frequency_embedding_size": 32}
    diffusion |= {"alignment_layer": 1} if aligned else {}
    diffusion |= {"modality_experts": experts}
    backbone = "qwen3_moe" if experts else "qwen3"
    reading = RESAMPLED if resampled else {}
    pipeline = tiny_pipeline(backbone=backbone, tie_word_embeddings=tied, diffusion_config=diffusion, **reading)
    return ModelStage(config, pipeline, RowLoader(Mixture(tasks), pipeline.processor, 2, 80, prefetch=0))


def train_hybrid(folder: Path, of: int, gradient_checkpointing: bool = False, tiled: bool = False, **kind) -> None:
    if tiled:  # as if the vocabulary were too large for whole logits
        cross_entropy.WHOLE, cross_entropy.TILE = 0, 2000
    content = {"output_dir": str(folder), "steps": 3, "data": {"sources": []}, "ema": {"decay": 0.5}, "log_every": 1}
    content |= {"accumulation": 2 // of, "precision": "fp32", "validation": {"every": 2}, "save_every": 99}
    content |= {"optimizer": {"name": "muon", "lr": 1e-3}}
    if kind.get("cache"):
        held = {"match": "lm_head", "rows": "image_tokens"}
        content |= {"groups": [{"match": "model.vision_model", "frozen": True}, held]}
    config = strict.build(TrainConfig, content)
    accelerator = make_accelerator(config)
    rank = accelerator.process_index if of == 2 else None
    batches = TwoBatches(rank, **kind)
    stage = batches.stages[1]  # it knows the names of all entries
    if gradient_checkpointing:
        stage.model.gradient_checkpointing_enable({"use_reentrant": False})
    stage.loader, held_out = batches, TwoBatches(batches.rank, **kind)
    stage.validation_batches = lambda: [next(held_out) for _ in range(config.accumulation)]
    assert Trainer(config, stage, accelerator).run()


@pytest.mark.parametrize(
    ("form", "kind"),
    [
        ("ddp", {"tiled": True}),
        ("fsdp2", {}),
        ("fsdp2", {"tiled": True}),
        ("fsdp2", {"tied": True, "tiled": True}),
        ("fsdp2", {"aligned": True, "cache": True}),
        ("ddp", {"experts": True}),
        ("fsdp2", {"experts": True}),
        ("ddp", {"resampled": True}),
        ("fsdp2", {"resampled": True}),
    ],
)
def test_one_with_text_and_one_with_pictures(tmp_path, form, kind):
    """No process waits for the other, in training or validation, and the weights are those of one process that saw
    both. Worst difference of a weight seen after 3 steps of Muon (bf16 inside): DDP 0, FSDP2 3e-6, with alignment 2e-5;
    of a loss: 2e-7. With mixtures of experts, to whose experts for images no token of one of the two comes, and a loss
    that balances them. With a tower whose last layer no feature comes from, and a resampler behind it. In the two,
    activations are recomputed, and logits may be made in tiles, which adds no more."""
    kind = kind | ({"cache": str(tmp_path / "cache")} if "cache" in kind else {})
    train_hybrid(tmp_path / "one", of=1, **{name: value for name, value in kind.items() if name != "tiled"})
    arguments = {"folder": tmp_path / "two", "of": 2, "gradient_checkpointing": True, **kind}
    ProcessGroup(tmp_path / "2", train_hybrid, 2, form, **arguments).finish()
    ours, theirs = (load_file(tmp_path / run / "checkpoint/model/model.safetensors") for run in ("two", "one"))
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=5e-5, msg=lambda text: f"{name}: {text}")  # noqa: B023
    if "cache" in kind:  # where the rows of words are held
        start = model_stage([source_of(numbered(1))], aligned=True).model
        same = (ours["lm_head.weight"] == start.lm_head.weight).all(-1)
        learnt = {getattr(start.config, field) for field in IMAGE_TOKENS}
        assert set(map(int, (~same).nonzero()[:, 0])) == learnt
    for mine, other in zip(metrics_of(tmp_path / "two"), metrics_of(tmp_path / "one"), strict=True):
        assert mine["loss"] == pytest.approx(other["loss"], abs=1e-5)
        assert {"loss/text", "loss/diffusion"} <= mine.keys()
        assert ("loss/router" in mine) == ("experts" in kind)


def train_probed(folder: Path, every: int, frozen: bool) -> None:
    """4 steps with probes at every `every`-th, 0 for none."""
    content = {"output_dir": str(folder), "steps": 4, "data": {"sources": []}, "log_every": 1, "precision": "fp32"}
    content |= {"validation": {"every": 0}, "save_every": 99, "optimizer": {"name": "adamw", "lr": 1e-2}}
    content |= {"diagnostics": {"every": every, "peak_tflops": 1.0}}
    content |= {"groups": [{"match": "model.vision_model", "frozen": True}]} if frozen else {}
    config = strict.build(TrainConfig, content)
    accelerator = make_accelerator(config)
    batches = TwoBatches(accelerator.process_index)
    stage = batches.stages[1]
    stage.loader = batches
    assert Trainer(config, stage, accelerator).run()


@pytest.mark.parametrize("frozen", [False, True])
def test_probes_change_no_weight_of_a_sharded_model(tmp_path, frozen):
    """A forward without a backward, which the probes end with, leaves FSDP2's weights gathered: the next clipping
    failed where nothing was frozen, and the next step used old weights where something was."""
    for every in (0, 1):
        arguments = {"folder": tmp_path / str(every), "every": every, "frozen": frozen}
        ProcessGroup(tmp_path / f"logs_{every}", train_probed, 2, "fsdp2", **arguments).finish()
    without, probed = metrics_of(tmp_path / "0"), metrics_of(tmp_path / "1")
    assert [row["loss"] for row in probed] == [row["loss"] for row in without]
    assert [row["grad_norm"] for row in probed] == [row["grad_norm"] for row in without]
    assert all("gradient_cosine/all" in row and "output_rms/layer_00" in row for row in probed)
    ours, theirs = (load_file(tmp_path / run / "checkpoint/model/model.safetensors") for run in ("1", "0"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def save_on_full_disk(folder: Path, full_for: int) -> None:
    """From step 2 on, the disk is full for one process when it comes to the files of its own: its random streams."""
    content = {"output_dir": str(folder), "steps": 3, "data": {"sources": []}, "ema": {"decay": 0.5}, "log_every": 99}
    content |= {"precision": "fp32", "validation": {"every": 0}, "save_every": 1}
    config = strict.build(TrainConfig, content | {"diagnostics": {"peak_tflops": 1.0}})
    accelerator = make_accelerator(config)
    batches = TwoBatches(accelerator.process_index)
    stage = batches.stages[1]
    stage.loader = batches
    save = accelerate.accelerator.save_accelerator_state

    def save_until_full(output_dir: str, *args, **kwargs):
        if accelerator.process_index == full_for and "step_000001" not in str(output_dir):
            raise OSError(errno.ENOSPC, "No space left on device")
        return save(output_dir, *args, **kwargs)

    accelerate.accelerator.save_accelerator_state = save_until_full
    Trainer(config, stage, accelerator).run()


def save_where_one_makes_no_folders(folder: Path) -> None:
    """Process 1 can write into folders that are there, but make none, as on a disk without free inodes."""
    content = {"output_dir": str(folder), "steps": 2, "data": {"sources": []}, "ema": {"decay": 0.5}, "log_every": 99}
    content |= {"precision": "fp32", "validation": {"every": 0}, "save_every": 1}
    config = strict.build(TrainConfig, content | {"diagnostics": {"peak_tflops": 1.0}})
    accelerator = make_accelerator(config)
    batches = TwoBatches(accelerator.process_index)
    stage = batches.stages[1]
    stage.loader = batches
    mkdir = os.mkdir

    def no_new_folder(path, *arguments, **keywords):
        if not os.path.exists(path):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return mkdir(path, *arguments, **keywords)

    if accelerator.process_index == 1:
        os.mkdir = no_new_folder
    assert Trainer(config, stage, accelerator).run()


def test_folders_of_shards_are_made_before_all_write_together(tmp_path):
    """One that could not make them would leave the others waiting in the save's collectives."""
    group = ProcessGroup(tmp_path / "logs", save_where_one_makes_no_folders, 2, "fsdp2", folder=tmp_path / "run")
    assert group.wait(100) == [0, 0], group.output()
    assert sorted(path.name for path in (tmp_path / "run/state").iterdir()) == ["step_000001", "step_000002"]
    state = tmp_path / "run/state/step_000002"
    assert all(list((state / name).glob("*.distcp")) for name in ("pytorch_model_fsdp_0", "optimizer_0", "ema"))


@pytest.mark.parametrize(("form", "full_for"), [("ddp", 0), ("ddp", 1), ("fsdp2", 1)])
def test_a_disk_that_is_full_for_one_while_the_real_model_is_saved(tmp_path, form, full_for):
    """No process waits in a collective of the save (sums of the diagnostics, shards of the average) that the other
    never reaches: both end with the sentence about the disk."""
    arguments = {"folder": tmp_path / "run", "full_for": full_for}
    group = ProcessGroup(tmp_path / "logs", save_on_full_disk, 2, form, **arguments)
    assert group.wait(60) == [2, 2], group.output()
    for rank in (0, 1):
        assert "step_000002 (" in group.output(rank)
        assert "everything saved before it is intact: free some space" in group.output(rank)
        assert "Traceback" not in group.output(rank)
    assert "No space left on device" in group.output(full_for)
    assert [path.name for path in (tmp_path / "run/state").iterdir()] == ["step_000001"]
    assert find_damage(tmp_path / "run/state/step_000001") is None
