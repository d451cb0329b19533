"""The breakdown: its sums are the losses', each entry's is that of its documents, and bins are those of the noise."""

import math

import pytest
import torch
from torch.nn import functional as F

from hybridgen.core.objectives import DiffusionTargets, ObjectiveConfig
from hybridgen.training.monitor.breakdown import BINS, KINDS, Breakdown
from tests.data.in_memory import numbered, source_of
from tests.training.stages.test_model import all_tasks, stage_of


def told(stage, batches: int = 2) -> tuple[dict, dict[str, tuple[float, float]], list[dict]]:
    """The breakdown's parts after some batches, and the losses' own sums and counts."""
    seen = [next(stage.loader) for _ in range(batches)]
    losses = [stage.losses(stage.model, batch) for batch in seen]
    stage.breakdown.settle()
    sums = {kind: [sum(each[kind][part].item() for each in losses) for part in (0, 1)] for kind in stage.kinds}
    return stage.breakdown._parts(stage.breakdown.sums), sums, seen


def test_sums_of_entries_are_the_losses():
    """Counts exactly; worst relative difference of a sum seen: 6e-8 (float32 sums beside float64)."""
    stage = stage_of(all_tasks(), objective={"z_loss": 1e-4, "loss_weighting": "velocity"})
    parts, sums, _ = told(stage)
    for kind, (loss, count) in zip(KINDS, parts["losses"].sum(-1).T.tolist(), strict=True):
        assert loss == pytest.approx(sums[kind][0], rel=1e-6)
        assert count == sums[kind][1] > 0
    loss, count = parts["bins"].sum(-1).tolist()
    assert loss == pytest.approx(sums["diffusion"][0], rel=1e-6)
    assert count == sums["diffusion"][1]


def test_the_loss_of_an_entry_under_a_joint_mean():
    """600 nats in 300 tokens and 600 in 100 codes are 3 nats each; weights as `ObjectiveConfig` gives them."""
    sums = dict.fromkeys(("joint", "separate"))
    for way in sums:
        breakdown = Breakdown(["all"], ObjectiveConfig(token_mean=way).weights, joint=way == "joint")
        losses = breakdown._parts(breakdown.sums)["losses"]
        losses[:, KINDS.index("text"), 0] = torch.tensor([600.0, 300.0])
        losses[:, KINDS.index("code"), 0] = torch.tensor([600.0, 100.0])
        sums[way] = breakdown.describe(breakdown.sums)["source/all/loss"]
    assert sums == {"joint": 3.0, "separate": 8.0}


@torch.no_grad()
def test_an_entry_is_its_documents():
    """Against a whole forward and torch's own cross-entropy, document by document."""
    names = ("first", "second")
    stage = stage_of([source_of(numbered(20, name), name=name) for name in names], rows=3)
    parts, _, (batch,) = told(stage, batches=1)
    inputs = {name: batch[name] for name in ("input_ids", "position_ids", "document_ids", "block_ids", "noised_mask")}
    logits = stage.model(**inputs).logits
    expected, tokens = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0)
    for row, documents in enumerate(batch["document_ids"]):
        for document in range(int(documents.max()) + 1):
            places = (documents == document).nonzero()[:, 0]
            text = stage.pipeline.processor.tokenizer.decode(batch["input_ids"][row, places])
            name = names[0] if "<first" in text else names[1]
            labels = batch["labels"][row, places[1:]]
            expected[name] += float(F.cross_entropy(logits[row, places[:-1]], labels, reduction="sum"))
            tokens[name] += int((labels >= 0).sum())
    assert parts["losses"][0, 0].tolist() == pytest.approx(list(expected.values()), rel=1e-5)
    assert parts["losses"][1, 0].tolist() == list(tokens.values())


def test_bins_are_those_of_the_timesteps():
    """Each drawn picture's loss by hand, put into its bin by its timestep."""
    stage = stage_of(all_tasks(), rows=8)
    batch = next(stage.loader)
    latents, targets = stage._noised(batch, fixed=False)
    stage.losses(stage.model, batch)
    stage.breakdown.settle()
    found = stage.breakdown._parts(stage.breakdown.sums)["bins"][1]
    drawn = targets.timesteps[batch["diffusion_noised"]]
    expected = [int(((drawn >= 100 * place) & (drawn < 100 * (place + 1))).sum()) for place in range(BINS)]
    assert found.tolist() == expected
    assert sum(expected) == int(batch["diffusion_noised"].sum()) < len(latents)


@pytest.mark.parametrize(
    ("timesteps", "names"), [(1000, ["000", "900"]), (4000, ["000", "3600"]), (50, ["000", "045"])]
)
def test_the_bins_are_of_the_process_timesteps(timesteps, names):
    """The first and the last tenth of them, whatever their number."""
    breakdown = Breakdown(["draw"], {}, timesteps)
    batch = {"source_ids": torch.tensor([[0]]), "text_bytes": torch.tensor([[0]])}
    batch["diffusion_sources"] = torch.tensor([0, 0])
    targets = DiffusionTargets([], torch.ones(2), torch.tensor([0.09, 0.91]) * timesteps)
    breakdown.add(batch, {}, torch.tensor([2.0, 1.0]), targets)
    breakdown.settle()
    told = breakdown.describe(breakdown.pop())
    assert {name: value for name, value in told.items() if "diffusion_at" in name} == {
        f"diffusion_at/{names[0]}": 2.0,
        f"diffusion_at/{names[1]}": 1.0,
    }


def test_what_is_told_is_means_and_bits():
    """By hand: two tokens of 3 and 5 nats spell 4 bytes; two codes of 1 and 2 nats; pictures at t = 50, 950, 999."""
    breakdown = Breakdown(["say", "draw", "idle"], {"diffusion": 5.0})
    batch = {
        "source_ids": torch.tensor([[0, 0, 1, 1, 1]]),
        "text_bytes": torch.tensor([[4, 0, 0]]),
        "diffusion_sources": torch.tensor([1, 1, 1, 1]),
    }
    text = torch.tensor([[True, True, True, False, False]]), torch.tensor([3.0, 5.0, 0.5])
    code = torch.tensor([[False, False, False, True, True]]), torch.tensor([1.0, 2.0])
    targets = DiffusionTargets([], torch.tensor([1.0, 1.0, 0.0, 1.0]), torch.tensor([50.0, 950.0, 0.0, 999.0]))
    breakdown.add(batch, {"text": text, "code": code}, torch.tensor([2.0, 1.0, 0.0, 3.0]), targets)
    breakdown.settle()
    found = breakdown.describe(breakdown.pop())
    expected = {
        "source/say/loss": 4.0,
        "source/say/text": 4.0,
        "source/say/bits_per_byte": 8 / math.log(2) / 4,
        "source/draw/loss": 0.5 + 1.5 + 5.0 * 2.0,
        "source/draw/text": 0.5,
        "source/draw/code": 1.5,
        "source/draw/diffusion": 2.0,
        "source/draw/bits_per_code": 1.5 / math.log(2),
        "bits_per_byte": 8 / math.log(2) / 4,
        "bits_per_code": 1.5 / math.log(2),
        "diffusion_at/000": 2.0,
        "diffusion_at/900": 2.0,
    }
    assert found == pytest.approx(expected)
    assert breakdown.describe(breakdown.pop()) == {}


def test_bits_per_byte_of_a_run_by_hand():
    """Of whole batches: nats of the text loss over the bytes of the answers, as the tokenizer decodes them."""
    stage = stage_of([source_of(numbered(20), name="text")], rows=2)
    _, sums, batches = told(stage)
    tokenizer, size = stage.pipeline.processor.tokenizer, 0
    for batch in batches:
        for labels in batch["labels"]:
            size += len(tokenizer.decode(labels[labels >= 0], skip_special_tokens=True).encode())
    found = stage.breakdown.describe(stage.breakdown.pop())
    assert found["source/text/bits_per_byte"] == pytest.approx(sums["text"][0] / math.log(2) / size, rel=1e-6)


def test_a_skipped_step_and_a_look_do_not_count():
    stage = stage_of(all_tasks())
    batch = next(stage.loader)
    stage.losses(stage.model, batch)
    stage.breakdown.settle(taken=False)
    with stage.breakdown.paused():
        stage.losses(stage.model, batch)
    stage.model.eval()
    stage.losses(stage.model, batch)
    stage.breakdown.settle()
    assert not stage.breakdown.sums.any()


def test_a_batch_that_does_not_say_where_it_came_from_is_left_out():
    stage = stage_of(all_tasks())
    batch = {name: value for name, value in next(stage.loader).items() if name != "source_ids"}
    losses = stage.losses(stage.model, batch)
    stage.breakdown.settle()
    assert losses["text"][0].item() > 0
    assert not stage.breakdown.sums.any()
