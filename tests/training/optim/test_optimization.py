"""Parameter groups, schedules, and the update rules against torch's own."""

import copy

import pytest
import torch
from torch import nn

from hybridgen.paths.convnext import GlobalResponseNorm
from hybridgen.training.config.schema import GroupConfig, OptimizerConfig, ScheduleConfig
from hybridgen.training.optim.muon import MuonAdamW, orthogonalise, update_scale
from hybridgen.training.optim.optimization import build_optimizer, freeze, lr_factor, parameter_groups
from tests.training.toy import ToyModel


def settings_of(model: nn.Module, groups: list[dict]) -> dict[str, dict]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    settings = [{key: value for key, value in group.items() if key != "params"} for group in groups]
    return {names[id(p)]: each for group, each in zip(groups, settings, strict=True) for p in group["params"]}


# ------------------------------------------------------------------------------------------------------------ groups


def test_every_trainable_parameter_is_in_one_group():
    model = ToyModel()
    groups = parameter_groups(model, OptimizerConfig(name="muon"), [])
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in model.parameters())


def test_decay_is_for_matrices_only():
    settings = settings_of(model := ToyModel(), parameter_groups(model, OptimizerConfig(weight_decay=0.1), []))
    decaying = {name for name, group in settings.items() if group["weight_decay"]}
    assert decaying == {name for name, p in model.named_parameters() if p.ndim == 2 and "embedding" not in name}


def test_all_decay_where_the_config_says_so():
    config = OptimizerConfig(weight_decay=0.1, decay_all=True)
    settings = settings_of(model := ToyModel(), parameter_groups(model, config, []))
    assert {group["weight_decay"] for group in settings.values()} == {0.1}
    assert set(settings) == {name for name, _ in model.named_parameters()}


def test_a_response_norm_does_not_decay_though_it_has_four_axes():
    norm = GlobalResponseNorm(4)
    settings = settings_of(norm, parameter_groups(norm, OptimizerConfig(weight_decay=0.1), []))
    assert {name: group["weight_decay"] for name, group in settings.items()} == {"gamma": 0.0, "beta": 0.0}


def test_muon_is_for_matrices_inside_stacks():
    config = OptimizerConfig(name="muon", lr=1.0, muon_lr=2.0, weight_decay=0.1, muon_weight_decay=0.0)
    settings = settings_of(model := ToyModel(), parameter_groups(model, config, []))
    by_muon = {name for name, group in settings.items() if group["muon"]}
    assert by_muon == {name for name, p in model.named_parameters() if "layers" in name and p.ndim == 2}
    assert all(settings[name]["base_lr"] == 2.0 and settings[name]["weight_decay"] == 0.0 for name in by_muon)
    assert settings["heads.a.weight"]["base_lr"] == 1.0


def test_the_first_matching_group_holds():
    groups = [
        GroupConfig("stack.layers.1", lr_scale=0.1, weight_decay=0.5),
        GroupConfig(r"stack\.layers\.\d", lr_scale=3.0),
        GroupConfig("heads.b", frozen=True),
    ]
    model = ToyModel()
    freeze(model, groups)
    settings = settings_of(model, parameter_groups(model, OptimizerConfig(lr=1.0, weight_decay=0.1), groups))
    assert settings["stack.layers.1.layers.0.weight"] == {"muon": False, "base_lr": 0.1, "weight_decay": 0.5, "lr": 0.1}
    assert settings["stack.layers.1.layers.0.bias"]["weight_decay"] == 0.0
    assert settings["stack.layers.0.layers.0.weight"]["base_lr"] == 3.0
    assert settings["heads.a.weight"]["base_lr"] == 1.0
    assert not any(name.startswith("heads.b") for name in settings)


def test_groups_refused():
    with pytest.raises(ValueError, match=r"groups.1.match 'model.vision' matches no parameter; .*heads.a, heads.b"):
        freeze(ToyModel(), [GroupConfig("heads"), GroupConfig("model.vision")])
    with pytest.raises(ValueError, match="every parameter is frozen"):
        freeze(ToyModel(), [GroupConfig("", frozen=True)])
    with pytest.raises(ValueError, match="no trainable matrix stands inside a transformer stack; use 'adamw'"):
        build_optimizer(nn.Linear(2, 2), OptimizerConfig(name="muon"), [])


# -------------------------------------------------------------------------------------------------------- update rules


def trained(model: nn.Module, optimizer, steps: int = 5) -> dict[str, torch.Tensor]:
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_adamw_is_torchs():
    model = ToyModel()
    other = copy.deepcopy(model)
    config = OptimizerConfig(lr=0.01, weight_decay=0.1)
    ours = trained(model, build_optimizer(model, config, []))
    decay, rest = parameter_groups(other, config, []), []
    for group in decay:
        rest.append({"params": group["params"], "weight_decay": group["weight_decay"]})
    theirs = trained(other, torch.optim.AdamW(rest, lr=0.01, betas=(0.9, 0.95), eps=1e-8, fused=True))
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("scale", ["match_rms_adamw", "original"])
def test_muon_is_torchs(scale):
    """No difference was seen; another BLAS may sum bf16 products in another order. The weights move by 0.06."""
    torch.manual_seed(0)
    shapes = [(24, 24), (24, 24), (48, 24), (48, 24), (24, 48)]
    ours = nn.ParameterList([nn.Parameter(torch.randn(shape)) for shape in shapes])
    theirs = copy.deepcopy(ours)
    start = copy.deepcopy(ours)
    muon = {"params": list(ours), "muon": True, "lr": 0.02, "weight_decay": 0.1}
    trained(ours, MuonAdamW([muon], betas=(0.9, 0.95), eps=1e-8, momentum=0.95, steps=5, scale=scale))
    trained(theirs, torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn=scale))
    for mine, other, before in zip(ours, theirs, start, strict=True):
        assert (other - before).abs().max() > 0.05
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-3)


def test_orthogonal_updates():
    """The quintic iteration ends with singular values around 1; seen: 0.68 to 1.14."""
    matrices = torch.randn(3, 16, 40, generator=torch.Generator().manual_seed(0))
    for made in (orthogonalise(matrices, 5), orthogonalise(matrices.mT, 5).mT):
        values = torch.linalg.svdvals(made.float())
        assert values.min() > 0.6
        assert values.max() < 1.25
    assert update_scale("match_rms_adamw", 16, 25) == 1.0
    assert update_scale("original", 32, 8) == 2.0
    assert update_scale("original", 8, 32) == 1.0


def test_an_optimizer_goes_on_from_its_state():
    config = OptimizerConfig(name="muon", lr=0.01)
    model = ToyModel()
    optimizer = build_optimizer(model, config, [])
    trained(model, optimizer, 3)
    other = copy.deepcopy(model)
    restored = build_optimizer(other, config, [])
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    ours, theirs = trained(model, optimizer, 2), trained(other, restored, 2)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


# ------------------------------------------------------------------------------------------------------------ schedule


def factors(config: ScheduleConfig, steps: int) -> list[float]:
    return [lr_factor(config, step, step / steps) for step in range(steps)]


def test_schedules():
    constant = factors(ScheduleConfig("constant", warmup_steps=4), 10)
    assert constant == [0.25, 0.5, 0.75, 1.0] + [1.0] * 6
    cosine = factors(ScheduleConfig("cosine", min_ratio=0.1), 1000)
    assert cosine[0] == 1.0
    assert cosine[500] == pytest.approx(0.55)
    assert cosine[-1] == pytest.approx(0.1, abs=1e-4)
    assert all(later <= earlier for earlier, later in zip(cosine, cosine[1:], strict=False))
    exponential = factors(ScheduleConfig("exponential", min_ratio=0.01), 1000)
    assert exponential[0] == 1.0
    assert exponential[500] == pytest.approx(0.1)
    assert exponential[-1] == pytest.approx(0.01, rel=0.01)
    wsd = factors(ScheduleConfig("wsd", decay_fraction=0.4), 10)
    assert wsd == pytest.approx([1] * 7 + [0.75, 0.5, 0.25])


@pytest.mark.parametrize("name", ["constant", "cosine", "exponential", "wsd"])
@pytest.mark.parametrize("pace", [0.5, 1.0])
def test_a_schedule_goes_on_from_where_the_warmup_ends(name, pace):
    """100 of 1,000 steps warm up: the step after them has the full rate, and no two neighbours are further apart than
    the warmup's steps. Also where the clock ends the run after half as many steps (`max_seconds`)."""
    config = ScheduleConfig(name, warmup_steps=100, min_ratio=0.01, decay_fraction=0.95)
    steps = int(1000 * pace)
    rates = [lr_factor(config, step, step / steps) for step in range(steps)]
    assert rates[99] == 1.0
    assert rates[100] == pytest.approx(1.0, abs=1e-12)
    assert max(abs(later - earlier) for earlier, later in zip(rates, rates[1:], strict=False)) < 0.0125
    assert rates[100:] == sorted(rates[100:], reverse=True)
    assert lr_factor(config, steps, 1.0) == pytest.approx(1.0 if name == "constant" else 0.01)


def test_a_warmup_as_long_as_the_run():
    config = ScheduleConfig("cosine", warmup_steps=4)
    assert factors(config, 4) == [0.25, 0.5, 0.75, 1.0]
    assert lr_factor(config, 4, 1.0) == 0.0
