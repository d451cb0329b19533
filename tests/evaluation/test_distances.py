"""Distances of distributions, against torchmetrics, torch-fidelity, scipy and the formulas spelled out in numpy."""

import numpy as np
import pytest
import scipy.linalg
import torch

from hybridgen.evaluation.distances import CMMD, GROUPS, KID, frechet, inside, kernel_distance
from tests.metrics import calculate_precision_recall_part, compute_fid, poly_mmd


def clouds(n, m, d, seed=0):
    """Two clouds of points whose means and covariances differ."""
    rng = np.random.default_rng(seed)
    spread = np.random.default_rng(d).normal(size=(d, d)) / np.sqrt(d)
    return torch.from_numpy(rng.normal(size=(n, d)) @ spread + 0.3), torch.from_numpy(rng.normal(size=(m, d)))


# in two of them there are fewer points than features
@pytest.mark.parametrize(("n", "m", "d"), [(200, 300, 8), (30, 40, 64), (50, 500, 64)])
def test_frechet_is_that_of_torchmetrics_and_of_the_root_of_the_product(n, m, d):
    drawn, true = clouds(n, m, d)
    found = frechet(drawn, true)
    gaussians = [(x.mean(0), torch.cov(x.T)) for x in (drawn, true)]
    assert found["value"] == pytest.approx(float(compute_fid(*gaussians[0], *gaussians[1])), rel=1e-6)
    root = scipy.linalg.sqrtm((gaussians[0][1] @ gaussians[1][1]).numpy()).real
    squares = float(((gaussians[0][0] - gaussians[1][0]) ** 2).sum())
    direct = squares + float(gaussians[0][1].trace() + gaussians[1][1].trace()) - 2 * np.trace(root)
    assert found["value"] == pytest.approx(direct, rel=1e-6)  # worst seen 2e-8, with fewer points than features
    assert found["n"] == n
    assert frechet(true, true)["value"] == pytest.approx(0, abs=1e-9)


def test_kid_is_that_of_torchmetrics():
    drawn, true = clouds(60, 80, 12)
    assert poly_mmd(true[:60], drawn) == pytest.approx(kernel_distance(drawn, true[:60], KID)["value"], rel=1e-9)
    rng = np.random.default_rng(1)  # the usual mean over random subsets tends to the same
    subsets = [float(poly_mmd(true[rng.permutation(80)[:30]], drawn[rng.permutation(60)[:30]])) for _ in range(800)]
    error = np.std(subsets) / np.sqrt(len(subsets))
    assert abs(np.mean(subsets) - kernel_distance(drawn, true, KID)["value"]) < 4 * error


def test_cmmd_is_the_formula_with_each_point_close_to_itself():
    drawn, true = (torch.nn.functional.normalize(x, dim=1) for x in clouds(50, 70, 16))

    def mean_kernel(x, y):
        return np.exp(-((x[:, None] - y[None]) ** 2).sum(-1) / 200).mean()

    x, y = drawn.numpy(), true.numpy()
    direct = 1000 * (mean_kernel(x, x) + mean_kernel(y, y) - 2 * mean_kernel(x, y))
    assert kernel_distance(drawn, true, CMMD)["value"] == pytest.approx(direct, rel=1e-8)


def test_precision_and_recall_are_those_of_torch_fidelity():
    drawn, true = clouds(120, 150, 3)
    drawn = drawn + 1
    precision, recall = calculate_precision_recall_part(drawn, true)
    assert inside(drawn, true).double().mean() == pytest.approx(precision, abs=1e-6)
    assert inside(true, drawn).double().mean() == pytest.approx(recall, abs=1e-6)
    assert 0.05 < precision < 0.95
    assert inside(true, true).all()
    assert not inside(drawn + 100, true).any()


@pytest.mark.parametrize("distance", [frechet, lambda a, b: kernel_distance(a, b, KID)])
def test_intervals_hold_what_other_drawings_of_as_many_pictures_give(distance):
    """Of 40 repetitions, the interval holds the mean of all in most: 95 % of them if it were exact; 38 and 37 seen."""
    runs = [distance(clouds(100, 2, 4, seed)[0], clouds(2, 400, 4, 999)[1]) for seed in range(40)]
    middle = np.mean([run["value"] for run in runs])
    assert sum(run["low"] <= middle <= run["high"] for run in runs) >= 33


def test_few_pictures_have_no_interval():
    drawn, true = clouds(2 * GROUPS - 1, 50, 4)
    for found in (frechet(drawn, true), kernel_distance(drawn, true, KID)):
        assert found["low"] is found["high"] is None
        assert np.isfinite(found["value"])
    assert np.isfinite(kernel_distance(drawn[:3], true, CMMD)["value"])


@pytest.mark.parametrize(
    ("drawn", "true", "fault"),
    [
        (torch.zeros(1, 3), torch.zeros(9, 3), r"drawn pictures have the shape \(1, 3\)"),
        (torch.zeros(9, 3), torch.zeros(9), r"true pictures have the shape \(9,\)"),
        (torch.zeros(9, 3), torch.zeros(9, 4), "3 features of drawn pictures cannot be compared with 4"),
        (torch.full((9, 3), torch.nan), torch.zeros(9, 3), "drawn pictures are not all finite"),
    ],
)
def test_features_that_cannot_be_compared_are_refused(drawn, true, fault):
    for measure in (frechet, inside, lambda a, b: kernel_distance(a, b, KID)):
        with pytest.raises(ValueError, match=fault):
            measure(drawn, true)


def test_neighbours_must_be_there():
    with pytest.raises(ValueError, match="3 pictures have no 3 neighbours each"):
        inside(torch.zeros(9, 3), torch.zeros(3, 3))
