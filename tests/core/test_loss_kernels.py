"""Which package's kernels compute losses, and what they are asked for, by packages of this test that have the
signatures of liger-kernel 0.8.5 and cut-cross-entropy 25.1.1 and compute with torch (the real ones need a GPU)."""

import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hybridgen.core import loss_kernels
from hybridgen.core.loss_kernels import fused_kernel, installed_kernel

LIGER = """
import torch
from torch.nn import functional as F
class LigerFusedLinearCrossEntropyLoss(torch.nn.Module):
    def __init__(self, ce_weight=None, ignore_index=-100, lse_square_scale=0.0, label_smoothing=0.0, reduction="mean",
                 softcap=None, return_z_loss=False, accum_dtype=None, use_token_scaling=False,
                 return_token_accuracy=False, return_predicted_tokens=False):
        super().__init__()
        assert accum_dtype == torch.float32
        self.reduction, self.softcap = reduction, softcap
    def forward(self, lin_weight, _input, target, bias=None):
        logits = F.linear(_input, lin_weight, bias)
        logits = logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)
        return F.cross_entropy(logits, target, reduction=self.reduction)
"""
CUT = """
import torch
from torch.nn import functional as F
def linear_cross_entropy(e, c, targets, ignore_index=-100, softcap=None, reduction="mean", shift=False,
                         filter_eps="high", impl="cce"):
    assert filter_eps is None and e.dtype == c.dtype
    logits = (e @ c.T).float()
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    return F.cross_entropy(logits, targets, reduction=reduction)
"""
OPS = "def fused_linear_cross_entropy_forward(_input, weight, target, {}): ...\n"


@pytest.fixture
def install(tmp_path, monkeypatch):
    """A function that installs stand-ins by name: `liger`, `old liger`, `cut`."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(tmp_path)

    def install(*names: str) -> None:
        for name in names:
            if name == "cut":
                (tmp_path / "cut_cross_entropy.py").write_text(CUT)
                continue
            for folder in ("liger_kernel", "liger_kernel/ops", "liger_kernel/transformers"):
                (tmp_path / folder).mkdir(exist_ok=True)
                (tmp_path / folder / "__init__.py").write_text("")
            argument = "token_grad_output=None" if name == "liger" else "reduction='mean'"
            (tmp_path / "liger_kernel/ops/fused_linear_cross_entropy.py").write_text(OPS.format(argument))
            (tmp_path / "liger_kernel/transformers/fused_linear_cross_entropy.py").write_text(LIGER)
        installed_kernel.cache_clear()

    installed_kernel.cache_clear()
    yield install
    installed_kernel.cache_clear()
    for module in set(sys.modules) - before:
        if module.split(".")[0] in loss_kernels.KERNELS:
            del sys.modules[module]


@pytest.mark.parametrize(
    ("there", "chosen"),
    [
        ([], None),
        (["cut"], "cut_cross_entropy"),
        (["cut", "liger"], "liger_kernel"),
        (["old liger"], None),  # whose gradients are those of the first token
        (["old liger", "cut"], "cut_cross_entropy"),
    ],
)
def test_the_first_that_can(install, there, chosen):
    install(*there)
    assert installed_kernel() == chosen


def test_only_in_half_precision_on_a_gpu(install):
    """And a head with a bias not by cut-cross-entropy, which takes none."""
    install("cut")
    on_gpu = SimpleNamespace(device=torch.device("cuda"))
    half, full = (nn.Linear(8, 9, bias=False, dtype=dtype) for dtype in (torch.bfloat16, torch.float32))
    assert fused_kernel(on_gpu, half) is loss_kernels.KERNELS["cut_cross_entropy"]
    assert fused_kernel(on_gpu, full) is None
    assert fused_kernel(on_gpu, nn.Linear(8, 9, dtype=torch.bfloat16)) is None
    assert fused_kernel(torch.zeros(2, 8), half) is None
    install("liger")
    assert fused_kernel(on_gpu, nn.Linear(8, 9, dtype=torch.bfloat16)) is loss_kernels.KERNELS["liger_kernel"]


@pytest.mark.parametrize("name", ["liger_kernel", "cut_cross_entropy"])
@pytest.mark.parametrize("cap", [None, 2.0])
def test_what_they_are_asked_for_is_a_loss_a_token(install, name, cap):
    install("liger", "cut")
    generator = torch.Generator().manual_seed(0)
    states, weight = (torch.randn(rows, 8, generator=generator) for rows in (5, 11))
    targets = torch.randint(0, 11, (5,), generator=generator)
    logits = states @ weight.T
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    found = loss_kernels.KERNELS[name](states, weight, None, targets, cap)
    torch.testing.assert_close(found, F.cross_entropy(logits, targets, reduction="none"))
