"""The average: its formula, what it leaves alone, and that applying it leaves no trace."""

import torch

from hybridgen.training.optim.ema import WeightAverage
from tests.training.toy import ToyModel


def moved(model: ToyModel, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator))


def test_formula_and_state():
    model = ToyModel()
    model.heads["b"].requires_grad_(False)
    average = WeightAverage(model, decay=0.5)
    expected = None
    for step in range(8):
        moved(model, step)
        average.update()
        weight = model.norm.weight.detach().clone()
        decay = 0.0 if step == 0 else min(0.5, (1 + step) / (10 + step))
        expected = weight if expected is None else decay * expected + (1 - decay) * weight
    own = {name: value.clone() for name, value in model.state_dict().items()}
    with average.applied():
        torch.testing.assert_close(model.norm.weight.detach(), expected)
        assert torch.equal(model.heads["b"].weight, own["heads.b.weight"])
        inside = {name: value.clone() for name, value in model.state_dict().items()}
    assert all(torch.equal(value, own[name]) for name, value in model.state_dict().items())

    assert average.updates == 8
    again = WeightAverage(model, decay=0.5, on_cpu=True)
    again.load_state_dict(average.state_dict(), average.updates)
    for each in (average, again):
        moved(model, 99)
        each.update()
        model.load_state_dict(own)
    with average.applied():
        first = {name: value.clone() for name, value in model.state_dict().items()}
    with again.applied():
        assert all(torch.equal(value, first[name]) for name, value in model.state_dict().items())
    assert not torch.equal(first["norm.weight"], inside["norm.weight"])
