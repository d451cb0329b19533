"""Alignment with the tower: the cosine itself, what learns of it, and the loss in a stage."""

import pytest
import torch
from torch.nn import functional as F

from hybridgen.core.layout import ImageSegment, TextSegment, lay_out
from hybridgen.core.objectives import DiffusionTargets, alignment_loss, total
from hybridgen.data.loading import RowLoader
from hybridgen.data.mixture import Mixture
from hybridgen.paths.alignment import resize, similarities, tower_pixels
from hybridgen.paths.understanding import encode_pixels
from hybridgen.training.config import strict
from hybridgen.training.config.schema import TrainConfig
from hybridgen.training.stages.model import ModelStage
from tests.data.in_memory import drawings, numbered, questions, source_of
from tests.models import TOKENS, batch_of, inputs_of, tiny_config, tiny_model
from tests.pipelines import tiny_pipeline

DIFFUSION = {"patch_size": 4, "sample_size": 16, "frequency_embedding_size": 32, "bidirectional": False}
LAYER = 1


def aligned(**changes):
    return tiny_model(tiny_config(diffusion_config={**DIFFUSION, "alignment_layer": LAYER, **changes}))


def test_of_one_grid_it_is_the_mean_cosine():
    generator = torch.Generator().manual_seed(0)
    projected, features = torch.randn(18, 5, generator=generator), torch.randn(2, 9, 5, generator=generator)
    cosines = F.cosine_similarity(projected, features.flatten(0, 1), dim=-1).view(2, 9)
    torch.testing.assert_close(similarities(projected, features, [(3, 3), (3, 3)]), cosines.mean(1))
    torch.testing.assert_close(similarities(features.flatten(0, 1), features, [(3, 3)] * 2), torch.ones(2))


def test_features_are_resampled_to_the_tokens_where_they_stand():
    """Left and right of a picture differ: so they do on another grid, and rows are not taken for columns."""
    left, right = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    features = torch.stack([left, left, right, right]).repeat(4, 1)[None]  # 1, 4 x 4, 2
    wide = torch.stack([left, right]).repeat(3, 1)  # 3 rows, 2 columns
    tall = torch.stack([left, left, left, right, right, right])  # the same read as 2 rows, 3 columns
    assert (
        similarities(wide, features, [(3, 2)]).item() > 0.95
    )  # measured 0.986: the middle row mixes nothing, the columns do
    assert similarities(tall, features, [(3, 2)]).item() < 0.8


def test_pictures_as_the_tower_takes_them():
    pictures = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    assert torch.equal(tower_pixels(pictures, 16, [0.5] * 3, [0.5] * 3), pictures)
    torch.testing.assert_close(
        tower_pixels(pictures, 16, [0.4, 0.5, 0.6], [0.2, 0.3, 0.4])[:, 1], ((pictures + 1) / 2 - 0.5)[:, 1] / 0.3
    )
    assert tower_pixels([pictures[0], pictures[1, :, :8]], 32, [0.5] * 3, [0.5] * 3).shape == (2, 3, 32, 32)
    assert resize(pictures, (16, 16)) is pictures


def row(images: int = 2):
    segments = [TextSegment([1, 5, 6])]
    for _ in range(images):
        segments += [ImageSegment("diffusion", 16, bidirectional=False, write=True), TextSegment([7])]
    layout = lay_out(segments, TOKENS)
    return batch_of([[layout]], len(layout))


def test_it_is_the_states_of_that_layer_against_the_tower():
    model, batch = aligned(), row()
    generator = torch.Generator().manual_seed(2)
    pixels = torch.rand(2, 3, 16, 16, generator=generator) * 2 - 1
    media = {"latents": torch.randn(2, 3, 16, 16, generator=generator), "timesteps": torch.tensor([300.0, 800.0])}
    with torch.no_grad():
        outputs = model(**inputs_of(batch), **media, alignment_pixels=pixels)
        plain = model(**inputs_of(batch), **media, output_hidden_states=True)
        assert torch.equal(outputs.prediction, plain.prediction)
        assert plain.alignment is None
        states = plain.hidden_states[LAYER][batch["input_ids"] == TOKENS.diffusion]
        features = encode_pixels(model.model.vision_model, pixels).last_hidden_state
        expected = similarities(model.model.alignment_head(states), features, [(4, 4)] * 2)
    assert outputs.alignment.shape == (2,)
    assert torch.equal(outputs.alignment, expected)


def test_the_tower_teaches_and_layers_above_are_left_alone():
    model, batch = aligned(), row()
    model.train()
    pixels = torch.rand(2, 3, 16, 16)
    media = {"latents": torch.randn(2, 3, 16, 16), "timesteps": torch.tensor([300.0, 800.0])}
    model(**inputs_of(batch), **media, alignment_pixels=pixels).alignment.sum().backward()
    seen = {name for name, parameter in model.named_parameters() if parameter.grad is not None and parameter.grad.any()}
    assert {name for name in seen if "vision_model" in name} == set()
    assert {name for name in seen if ".layers.0." in name}
    assert {name for name in seen if ".layers.1." in name} == set()
    assert {name for name in seen if "alignment_head" in name}
    assert {name for name in seen if "patch_embed" in name}


def test_only_drawn_pictures_count():
    targets = DiffusionTargets([], torch.tensor([0.5, 0.0, 2.0]), torch.zeros(3))
    value, count = alignment_loss(torch.tensor([0.25, -1.0, 0.5]), targets)
    assert (value.item(), count.item()) == (1.25, 2.0)


def stage_of(tasks: list) -> ModelStage:
    pipeline = tiny_pipeline(diffusion_config={**DIFFUSION, "alignment_layer": LAYER})
    content = {"output_dir": "none", "steps": 1, "data": {"sources": []}, "objective": {"alignment_weight": 0.5}}
    loader = RowLoader(Mixture(tasks), pipeline.processor, 2, 160, prefetch=0)
    stage = ModelStage(strict.build(TrainConfig, content), pipeline, loader)
    stage.model.train()
    return stage


TASKS = {
    "drawn": lambda: source_of(drawings(9), name="drawn", write="diffusion"),
    "read": lambda: source_of(questions(9), name="read", read="diffusion"),
    "text": lambda: source_of(numbered(9), name="text"),
}


@pytest.mark.parametrize("kinds", [["drawn", "read", "text"], ["read"], ["text"]])
def test_a_stage_has_the_loss_whatever_is_in_the_batch(kinds):
    stage = stage_of([TASKS[kind]() for kind in kinds])
    assert stage.kinds == ("text", "code", "diffusion", "alignment")
    assert stage.weights["alignment"] == 0.5
    batch = next(stage.loader)
    losses, counts = stage.losses(stage.model, batch), stage.counts(batch)
    value, count = losses["alignment"]
    assert count == counts["alignment"] == counts["diffusion"]
    assert (count > 0) == ("drawn" in kinds)
    assert value == 0 if count == 0 else 0 < value < 2 * count
    counts = {kind: torch.tensor(float(count)) for kind, count in counts.items()}
    total(losses, counts, stage.weights).backward()
    for name, parameter in stage.model.named_parameters():
        assert parameter.grad is not None, name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"diffusion_config": {**DIFFUSION, "alignment_layer": 3}}, "layer is 3, but the backbone has 2 layers"),
        ({"diffusion_config": {**DIFFUSION, "alignment_layer": 0}}, "layer is 0; it must be an integer"),
        (
            {"diffusion_config": {**DIFFUSION, "alignment_layer": 1}, "vision_config": None, "image_token_id": None},
            "alignment_layer is 1, but there is no vision tower to align with; give vision_config, or leave it out",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_aligned_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**changes)


def test_pictures_for_a_model_without_the_head_are_refused():
    model, batch = tiny_model(), row()
    media = {"latents": torch.randn(2, 3, 16, 16), "timesteps": torch.zeros(2)}
    with pytest.raises(
        ValueError, match="alignment_pixels are given, but the model has no diffusion_config.alignment_l"
    ):
        model(**inputs_of(batch), **media, alignment_pixels=torch.zeros(2, 3, 16, 16))
