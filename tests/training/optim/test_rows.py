"""Rows of a table that are held: whatever the gradient says, whole or sharded, they stay to the bit."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from hybridgen.training.config.schema import GroupConfig, OptimizerConfig
from hybridgen.training.optim.optimization import build_optimizer, freeze
from hybridgen.training.optim.rows import HeldRows

IDS = {
    "begin_image_token_id": 6, "end_image_token_id": 4, "image_token_id": None, "diffusion_token_id": 12,
    "vq_token_id": None,
}  # fmt: skip


class Tables(nn.Module):
    def __init__(self):
        super().__init__()
        self.config = SimpleNamespace(text_config=SimpleNamespace(vocab_size=8), **IDS)
        self.embed, self.lm_head, self.inner = nn.Embedding(8, 4), nn.Linear(4, 8, bias=False), nn.Linear(4, 4)


def test_rows_of_words_stay_through_any_number_of_steps():
    """With decay for everything else, and a gradient everywhere, also one that is not finite. 12 lies beyond."""
    torch.manual_seed(0)
    model, groups = Tables(), [GroupConfig("embed", rows="image_tokens"), GroupConfig("lm_head", rows="image_tokens")]
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    optimizer = build_optimizer(model, OptimizerConfig(weight_decay=0.1, decay_all=True), groups)
    held = HeldRows(model, groups)
    for step in range(5):
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        model.embed.weight.grad[0] = float("nan") if step == 3 else 1e6
        held.drop_gradients()
        optimizer.step()
    for name in ("embed.weight", "lm_head.weight"):
        same = (dict(model.named_parameters())[name] == before[name]).all(-1)
        assert [row for row in range(8) if not same[row]] == [4, 6]
    assert not (model.inner.weight == before["inner.weight"]).any()


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (
            [GroupConfig("inner", rows="image_tokens")],
            "groups.0.rows is 'image_tokens', but inner.weight has",
        ),
        (
            [GroupConfig("inner", frozen=True), GroupConfig("embed", rows="image_tokens")],
            "groups.1.rows is 'image_tokens', but embed.weight is frozen; leave rows out",
        ),
    ],
)
def test_what_has_no_such_rows_is_refused(groups, message):
    model = Tables()
    model.embed.weight.requires_grad_(False)
    freeze(model, groups)
    with pytest.raises(ValueError, match=message):
        HeldRows(model, groups)
