"""Evaluation with the model on another device than the pictures, which a machine without a GPU can only pretend."""

import numpy as np
import pytest
import torch

from hybridgen.evaluation import generation
from hybridgen.evaluation.generation import DrawSettings
from hybridgen.evaluation.run import evaluate
from tests.dolls import tiny_dolls_pipeline
from tests.pretended_device import DEVICE, PretendedTensor, pretended_device, put_on

FAST = dict.fromkeys(("diffusion", "vq"), DrawSettings(steps=2, guidance=2.0))


def test_the_pretended_device_refuses_cpu_tensors():
    with pretended_device():
        weight = put_on(torch.nn.Linear(3, 2)).weight
        assert weight.device == DEVICE
        with pytest.raises(RuntimeError, match="tensors on the CPU"):
            torch.nn.functional.linear(torch.ones(1, 3), weight)
        there = torch.nn.functional.linear(torch.ones(1, 3).to(DEVICE), weight)
        assert isinstance(there, PretendedTensor)
        assert not isinstance(there.cpu(), PretendedTensor)
        with pytest.raises(TypeError, match="use Tensor.cpu"):
            there.numpy()


def test_a_whole_evaluation_runs_on_another_device():
    """Drawing by both paths, answering by all three, what the codec keeps, and frames.

    Attention is another kernel there, so codes and letters of random weights may differ; pixels by diffusion do not.
    """
    here, there = tiny_dolls_pipeline(), tiny_dolls_pipeline()
    expected = evaluate(here, "dolls", samples=1, seed=0, settings=FAST)
    with pretended_device():
        put_on(there.model)
        put_on(there.vq_model)
        assert there.device == DEVICE
        done = evaluate(there, "dolls", samples=1, seed=0, settings=FAST)
        frames = {path: generation.denoising_frames(there, "an orc", path, 32, 0, FAST[path], 2) for path in FAST}
    for task in ("generation", "understanding"):
        counts = [{path: len(items) for path, items in each.items[task].items()} for each in (done, expected)]
        assert counts[0] == counts[1]
    assert {path: len(images) for path, images in frames.items()} == {"diffusion": 2, "vq": 2}
    for path, heading in (("vq", "vq"), ("vq", "as codes"), ("diffusion", "diffusion")):
        for item, other in zip(done.items["generation"][path], expected.items["generation"][path], strict=True):
            assert item.pictures[heading].size == (32, 32)
            if heading != "vq":
                one, two = (np.asarray(each.pictures[heading], int) for each in (item, other))
                assert np.abs(one - two).max() <= 1
