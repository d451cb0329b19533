"""Training a mixture of experts: the balancing loss as one more (sum, count), and where routers send words and
pictures."""

import json

import pytest
import torch
from PIL import Image

from hybridgen.cli.main import main
from hybridgen.core.objectives import ObjectiveConfig, total
from hybridgen.data.loading import RowLoader
from hybridgen.data.mixture import Mixture
from hybridgen.training.config import strict
from hybridgen.training.config.schema import TrainConfig
from hybridgen.training.distributed.precision import attention_of
from hybridgen.training.monitor.routing import PLOT, SHARES, RoutingProbe, describe, draw
from hybridgen.training.stages.building import check_fits
from hybridgen.training.stages.model import ModelStage
from tests.data.in_memory import drawings, numbered, questions, source_of
from tests.models import text_config, tiny_config, tiny_model
from tests.pipelines import tiny_pipeline

DIFFUSION = {"patch_size": 4, "sample_size": 16, "frequency_embedding_size": 32}


def stage_of(objective: dict | None = None, backbone: str = "qwen3_moe", experts: bool = False) -> ModelStage:
    content = {"output_dir": "none", "steps": 1, "data": {"sources": []}, "objective": objective or {}}
    config = strict.build(TrainConfig, content)
    pipeline = tiny_pipeline(backbone=backbone, diffusion_config={**DIFFUSION, "modality_experts": experts})
    tasks = [source_of(numbered(20), name="text"), source_of(questions(20), name="ask")]
    tasks += [source_of(drawings(20), name=path, write=path) for path in ("diffusion", "vq")]
    stage = ModelStage(config, pipeline, RowLoader(Mixture(tasks), pipeline.processor, 4, 160, prefetch=0))
    stage.model.train()
    return stage


def test_its_weight():
    """The backbone's, or what is said; 0 leaves it out, and a decoder without experts has none."""
    assert ObjectiveConfig().router_weight is None
    stage = stage_of()
    assert "router" in stage.kinds
    assert stage.weights["router"] == stage.model.config.text_config.router_aux_loss_coef == 0.001
    assert stage_of({"router_weight": 0.5}).weights["router"] == 0.5
    assert "router" not in stage_of({"router_weight": 0.0}).kinds
    assert "router" not in stage_of(backbone="qwen3").kinds
    assert "router" in stage_of(backbone="llama4_text").kinds
    with pytest.raises(ValueError, match="objective.router_weight is 0.1, but the backbone is a 'qwen3', without rout"):
        stage_of({"router_weight": 0.1}, backbone="qwen3")
    with pytest.raises(ValueError, match="objective.router_weight is -1.0; a weight cannot be negative"):
        stage_of({"router_weight": -1})


def test_it_is_refused_before_anything_is_opened():
    text = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    content = {"output_dir": "none", "steps": 1, "data": {"sources": []}, "objective": {"router_weight": 0.1}}
    content["model"] = {"text_config": {**text, "num_attention_heads": 4, "max_position_embeddings": 512}}
    with pytest.raises(ValueError, match="the backbone is a 'llama', without routers that a loss balances; leave"):
        check_fits(strict.build(TrainConfig, content))


@pytest.mark.parametrize("experts", [False, True])
def test_micro_batches_are_weighed_by_their_tokens(experts):
    stage = stage_of({"router_weight": 2.0}, experts=experts)
    batches = [next(stage.loader) for _ in range(2)]
    losses = [stage.losses(stage.model, batch)["router"] for batch in batches]
    counts = [stage.counts(batch)["router"] for batch in batches]
    assert counts == [float(count) for _, count in losses] == [stage.size(batch)[0] for batch in batches]
    means = []
    for batch in batches:
        inputs = stage._inputs(batch, fixed_noise=False)[0]
        means.append(stage.model(**inputs, output_router_logits=True).router_loss)
    expected = sum(mean * count for mean, count in zip(means, counts, strict=True)) / sum(counts)
    ours = total({"router": (losses[0][0] + losses[1][0], None)}, {"router": torch.tensor(sum(counts))}, stage.weights)
    assert abs(ours - 2 * expected) < 1e-5  # measured 0


# ------------------------------------------------------------------------------------------ where routers send tokens


@pytest.mark.parametrize("experts", [False, True])
@torch.no_grad()
def test_shares_are_counted_by_modality(experts):
    """Against the choices of each token, written out; routers of the images' own see diffusion tokens alone."""
    stage = stage_of(experts=experts)
    stage.model.eval()
    batch = next(stage.loader)
    model, seen = stage.model.model, []
    with RoutingProbe(model, batch) as probe:
        seen = stage.model(**stage._inputs(batch, fixed_noise=True)[0], output_router_logits=True).router_logits
    shares = probe.shares()
    assert list(shares) == ["text", "understanding", "diffusion", "vq"]
    ids, real = batch["input_ids"].flatten(), (batch["document_ids"] >= 0).flatten()
    is_own = (ids == model.config.diffusion_token_id) & experts
    for name, of_modality in shares.items():
        where = real & (ids == model.config.placeholder(name)) if name != "text" else real
        for other in shares:
            if name == "text" and other != "text":
                where = where & (ids != model.config.placeholder(other))
        own = int(experts and name == "diffusion")
        for layer, share in enumerate(of_modality):
            scores = seen[layer * (1 + experts) + own][where[is_own if own else ~is_own]]
            expected = torch.bincount(scores.topk(2, -1).indices.flatten(), minlength=4) / (2 * int(where.sum()))
            assert torch.allclose(torch.tensor(share), expected, atol=1e-6)
            assert abs(sum(share) - 1) < 1e-6


def test_what_shares_say(tmp_path):
    shares = {"text": [[0.5, 0.5, 0.0, 0.0]], "vq": [[0.0, 0.25, 0.5, 0.25]], "diffusion": [[0.0, 0.0, 1.0, 0.0]]}
    numbers = describe(shares)
    assert numbers["experts_used/text/layer_00"] == pytest.approx(2)
    assert numbers["experts_used/diffusion/layer_00"] == pytest.approx(1)
    assert numbers["routing_overlap/vq/layer_00"] == pytest.approx(0.25)
    assert numbers["routing_overlap/diffusion/layer_00"] == 0
    assert "routing_overlap/text/layer_00" not in numbers
    draw(shares, tmp_path)
    assert json.loads((tmp_path / SHARES).read_text()) == shares
    with Image.open(tmp_path / PLOT) as picture:
        assert min(picture.size) > 100


def test_a_backbone_without_experts_has_no_shares():
    stage = stage_of(backbone="qwen3")
    batch = next(stage.loader)
    with RoutingProbe(stage.model.model, batch) as probe:
        stage.losses(stage.model, batch)
    assert probe.shares() == {}


# ------------------------------------------------------------------------------------------------------- attention


def test_backbones_that_attend_in_their_own_way_keep_to_it():
    """Sinks of attention are in no kernel: `auto` leaves them to the decoder's own function, and others are refused."""
    sizes = {"vocab_size": 100, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 8}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2}
    sinks = tiny_model(tiny_config(text_config={"model_type": "gpt_oss", **sizes})).model.language_model
    plain = tiny_model().model.language_model
    assert attention_of(plain, "sdpa", "auto") == "sdpa"
    assert attention_of(sinks, "sdpa", "auto") == attention_of(sinks, "eager", "eager") == "eager"
    with pytest.raises(ValueError, match="attention is 'sdpa', which the backbone, a 'gpt_oss', does not have; use"):
        attention_of(sinks, "sdpa", "sdpa")


def test_narrow_heads_leave_flex_attention_to_those_who_ask_for_it():
    """Its kernel for CUDA takes heads of 16 numbers and more; `auto` there would end in the first step."""
    for width, chosen in ((8, "sdpa"), (16, "flex_attention")):
        sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": width}
        backbone = tiny_model(tiny_config(text_config={**text_config("qwen3"), **sizes})).model.language_model
        assert attention_of(backbone, "flex_attention", "auto") == chosen
        assert attention_of(backbone, "flex_attention", "flex_attention") == "flex_attention"


def test_a_mixture_is_planned(capsys):
    assert main(["plan", "configs/moe.yaml", "--memory", "16"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "it fits"
