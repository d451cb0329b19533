"""FLOPs against torch's own counter, pairs against the mask itself, and what a frozen part costs."""

import re

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hybridgen.core.layout import dense_mask
from hybridgen.core.objectives import total
from hybridgen.training.distributed.precision import set_attention
from hybridgen.training.monitor import flops
from tests.data.in_memory import drawings, questions, source_of
from tests.models import text_config
from tests.paths.test_shared_vocabulary import stage_of as shared_vocabulary
from tests.pipelines import tiny_pipeline
from tests.training.stages.test_model import all_tasks, stage_of

FROZEN = {
    "nothing": "$^",
    "the backbone": r"model\.language_model|lm_head",
    "the tower": r"model\.vision_model",
    "all but heads": r"model\.(?!generation_head|final_layer)",
    "all that comes before the backbone": r"model\.(?!language_model\.(layers|norm)|generation_head|final_layer)",
}


@pytest.mark.parametrize("bidirectional", [True, False])
def test_pairs_are_those_of_the_mask(bidirectional):
    """Padding attends to itself in the mask; it is no work that counts."""
    stage = stage_of(all_tasks(clean_copy=True), rows=5, length=200, diffusion={"bidirectional": bidirectional})
    for _ in range(3):
        batch = next(stage.loader)
        vectors = [batch[name] for name in ("document_ids", "block_ids", "noised_mask")]
        allowed = dense_mask(*vectors)[:, 0] & (vectors[0] >= 0)[:, None]
        assert flops.pairs(*vectors) == int(allowed.sum())
    assert any(batch["noised_mask"].flatten())
    nothing = torch.full((2, 8), -1)
    assert flops.pairs(nothing, torch.arange(8).expand(2, -1), torch.zeros(2, 8, dtype=torch.bool)) == 0


@pytest.mark.parametrize("around", [{}, {"unet_channels": [8, 16]}, {"convnext_channels": 8, "time_token": True}])
@pytest.mark.parametrize("frozen", FROZEN)
def test_costs_are_what_torch_counts(frozen, around):
    """A forward and a backward of all paths. torch counts every pair of eager attention and each padding token, so the
    formula is given those amounts. No difference was seen."""
    stage = stage_of(all_tasks(), rows=3, length=120, diffusion=around)
    model = stage.model
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not re.match(FROZEN[frozen], name))
    assert_as_counted(stage)


def grouped_excess(model, batch) -> int:
    """What torch counts too much: the gradient of a depthwise kernel as often as there are channels."""
    patches = 16 * len(batch.get("diffusion_noised", ()))
    kernels = [m.weight for m in model.modules() if isinstance(m, torch.nn.Conv2d) and m.groups > 1]
    return sum(2 * patches * k.numel() * (len(k) - 1) for k in kernels if k.requires_grad)


def assert_as_counted(stage) -> None:
    """A forward and a backward of one batch, against torch's count of them."""
    model = stage.model
    set_attention(model, "eager")
    batch = next(stage.loader)
    tokens, length = batch["input_ids"].numel(), batch["input_ids"].shape[1]
    counts = {kind: torch.tensor(float(count)) for kind, count in stage.counts(batch).items()}
    with FlopCounterMode(display=False) as codec:
        stage.vq.encode(batch["vq_images"])
    with FlopCounterMode(display=False) as counter:
        total(stage.losses(model, batch), counts, stage.weights).backward()
    counts = flops.units(batch, model.model.placeholders())
    counts |= {"tokens": tokens, "pairs": tokens * length}
    expected = sum(cost * counts[unit] for unit, cost in flops.costs(model).items())
    counted = counter.get_total_flops() - codec.get_total_flops() - grouped_excess(model, batch)
    assert expected == pytest.approx(counted, rel=1e-3)


def test_codes_that_are_words_cost_what_words_do():
    assert_as_counted(
        shared_vocabulary(
            [source_of(drawings(9), write="vq", read="vq"), source_of(questions(9), name="ask", read="vq")]
        )
    )


@pytest.mark.parametrize("frozen", ["$^", r"model\.language_model\.(?!.*\.own\.)|lm_head"], ids=["none", "words"])
def test_a_token_passes_through_its_own_weights_alone(frozen):
    """No difference was seen; counting both sets for every token was half as much again."""
    stage = stage_of(all_tasks(), rows=3, length=120, diffusion={"modality_experts": True})
    for name, parameter in stage.model.named_parameters():
        parameter.requires_grad_(not re.match(frozen, name))
    assert_as_counted(stage)


def test_padding_and_masked_pairs_cost_nothing():
    stage = stage_of(all_tasks(), rows=2, length=120)
    batch = next(stage.loader)
    count = flops.FlopCount(stage.model)
    longer = {name: batch[name] for name in ("input_ids", "noised_mask", "labels", "code_labels", "diffusion_noised")}
    longer |= {"document_ids": batch["document_ids"], "block_ids": batch["block_ids"]}
    padded = {**longer}
    for name, filling in (("input_ids", 0), ("noised_mask", False), ("labels", -100), ("code_labels", -100)):
        padded[name] = torch.nn.functional.pad(longer[name], (0, 50), value=filling)
    padded["document_ids"] = torch.nn.functional.pad(longer["document_ids"], (0, 50), value=-1)
    last = longer["block_ids"][:, -1:] + 1 + torch.arange(50)
    padded["block_ids"] = torch.cat([longer["block_ids"], last], dim=1)
    assert count.of(padded) == count.of(longer) > 0


def test_a_tower_whose_features_are_kept_does_not_run():
    model = tiny_pipeline().model
    whole = flops.costs(model, cached=True)["understanding"]
    assert whole == flops.costs(model)["understanding"]  # trained, it does
    model.model.vision_model.requires_grad_(False)
    kept, run = (flops.costs(model, cached)["understanding"] for cached in (True, False))
    assert kept == flops.matrix_flops(model.model.aligner, False)[0] < run < whole


def test_only_the_experts_that_see_a_token_cost():
    """Two of four experts: half of their weights."""
    model = tiny_pipeline(backbone="qwen3_moe").model
    config = text_config("qwen3_moe")
    experts = 3 * 4 * config["hidden_size"] * config["moe_intermediate_size"]
    layer = model.model.language_model.layers[0]
    whole = sum(parameter.numel() for parameter in layer.parameters() if parameter.ndim > 1)
    assert flops.matrix_flops(layer, True, flops.share_of_experts(model.config.text_config))[0] == 6 * (
        whole - experts / 2
    )


def test_a_peak_is_measured():
    """No wall clock is held to a number; but it is that of a machine that computes."""
    assert 1e8 < flops.measured_peak(torch.device("cpu"), torch.float32, seconds=0.01) < 1e15
