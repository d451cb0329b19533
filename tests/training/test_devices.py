"""Training on an accelerator, pretended: one that has no float64, as Apple's has not."""

import pytest
import torch

from hybridgen.codecs.frozen import measure_latents
from hybridgen.core import devices
from hybridgen.core.objectives import total
from hybridgen.sampling.guidance import Guidance, Guide
from hybridgen.training.distributed.processes import make_accelerator
from hybridgen.training.stages.fidelity import ReconstructionScores, ssim
from hybridgen.training.trainer import Trainer
from tests.pipelines import tiny_vae
from tests.pretended_device import DEVICE, PretendedTensor, pretended_device, put_on
from tests.training.stages.test_model import all_tasks, stage_of
from tests.training.toy import ToyLoader, ToyStage, config_of


@pytest.fixture
def no_float64():
    with pretended_device(float64=False):
        yield


def moved(value):
    """A batch on the device, but for the names of its records."""
    if isinstance(value, dict):
        return {key: each if key == "records" else moved(each) for key, each in value.items()}
    return [moved(each) for each in value] if isinstance(value, list) else value.to(DEVICE)


def test_the_pretended_device_has_no_float64(no_float64):
    with pytest.raises(TypeError, match="no float64"):
        torch.ones(2).to(DEVICE).double()
    assert devices.sum_dtype(DEVICE) == torch.float32
    assert devices.sum_dtype(torch.device("cpu")) == torch.float64


def test_the_losses_of_all_paths_and_their_breakdown():
    stage = stage_of(all_tasks())
    with pretended_device(float64=False):
        for part in (stage.model, stage.pipeline.vae, stage.pipeline.vq_model):
            if part is not None:
                put_on(part)
        batch = moved(next(stage.loader))
        losses = stage.losses(stage.model, batch)
        total(losses, {kind: count for kind, (_, count) in losses.items()}, stage.weights).backward()
        stage.breakdown.settle()
        sums = stage.breakdown.pop()
    assert sums.dtype == torch.float64
    assert not isinstance(sums, PretendedTensor)
    assert {"source/text/text", "source/draw/diffusion", "source/code/code"} <= stage.breakdown.describe(sums).keys()


def test_the_sums_of_a_step_and_of_a_validation(tmp_path):
    config = config_of(tmp_path, ema=None)
    trainer = Trainer(config, ToyStage(ToyLoader(4), dropout=0.0), make_accelerator(config))
    trainer._restore()
    batches = trainer._fetch()
    counts, _ = trainer._global_counts(batches)
    expected = trainer._sum(trainer._forward_backward(batches, counts))
    validated = trainer._validate()
    with pretended_device(float64=False):
        put_on(trainer.model)
        trainer.device = DEVICE
        sums = trainer._sum(trainer._forward_backward(batches, counts))
        assert trainer._validate() == pytest.approx(validated, rel=1e-6)
    assert sums.dtype == torch.float64
    torch.testing.assert_close(sums, expected, rtol=1e-6, atol=0)


def test_scores_of_reconstructions(no_float64):
    pictures, others = (torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(k)) for k in (0, 1))
    codes = torch.arange(8)
    scores = {}
    for device in (torch.device("cpu"), DEVICE):
        summed = ReconstructionScores(8)
        summed.add(pictures.to(device), others.to(device), codes.to(device))
        scores[device] = summed.scores()
        assert ssim(pictures.to(device), others.to(device)).dtype == torch.float32
    assert scores[DEVICE] == pytest.approx(scores[torch.device("cpu")], rel=1e-5)


def test_the_spread_of_latents():
    vae = tiny_vae()
    pictures = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    expected = measure_latents(vae, [pictures])
    with pretended_device(float64=False):
        assert measure_latents(put_on(vae), [pictures.to(DEVICE)]) == pytest.approx(expected, rel=1e-5)


def test_one_best_device(monkeypatch):
    """Whatever torch calls this machine's accelerator; training asks torch, too."""
    for accelerator in (None, torch.device("mps"), torch.device("cuda")):
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: accelerator)  # noqa: B023
        assert devices.best_device() == (accelerator or torch.device("cpu"))


def test_guidance_that_looks_along_the_prediction():
    """APG's projection, which a CPU computes in float64."""
    rows = torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    expected = Guide(Guidance(scale=3.0, method="apg", eta=0.5), images=2)(rows, step=0)
    with pretended_device(float64=False):
        guided = Guide(Guidance(scale=3.0, method="apg", eta=0.5), images=2)(rows.to(DEVICE), step=0).cpu()
    torch.testing.assert_close(guided, expected, rtol=1e-5, atol=1e-5)
