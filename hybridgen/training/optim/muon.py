"""Muon for matrices and AdamW for the rest, in one optimizer, so that accelerate prepares, steps and saves one object.

Muon (Jordan et al. 2024; scaling after Liu et al., arXiv 2502.16982) orthogonalises the momentum of each matrix. Unlike
`torch.optim.Muon`, matrices of one shape are orthogonalised together: on a GPU, few large launches instead of many
small ones. On a CPU this is no faster, as both run at the peak of bf16 products: on one Zen 4 core, six layers of width
192 take 95 ms per step (torch's 99), four of width 256 beside a small tower 160 ms, which is 9 % of a step of 3.8 M
parameters and 5,600 tokens; AdamW takes 3.

Where weights are sharded (FSDP2), elementwise operations run on the rows that a process holds. Orthogonalising needs
whole matrices: with several processes each does its share of them (`division`).

Shapes: L matrices of one shape, m x n each.
"""

import math
from functools import partial

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from hybridgen.training.distributed.sharding import local
from hybridgen.training.optim.division import divided

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration: steepest at zero


class MuonAdamW(torch.optim.Optimizer):
    """Groups with `muon: True` hold matrices and take Muon's step, all others AdamW's.

    Args:
        params: groups, each with `muon` and `weight_decay`.
        betas, eps: of AdamW.
        momentum, steps, scale: of Muon: Nesterov momentum, iterations, and `match_rms_adamw` or `original`.
    """

    def __init__(self, params: list[dict], betas, eps: float, momentum: float, steps: int, scale: str):
        defaults = {"lr": 1e-3, "muon": False, "weight_decay": 0.0, "betas": betas, "eps": eps, "momentum": momentum}
        # fused: so that torch moves the step counts, too, to the parameters' device when it loads a state
        super().__init__(params, {**defaults, "fused": True, "steps": steps, "scale": scale})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        assert closure is None, "no closure: losses are divided and accumulated by the trainer"
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if parameters:
                (self._muon if group["muon"] else self._adamw)(group, parameters)

    def _adamw(self, group: dict, parameters: list[Tensor]) -> None:
        for parameter in parameters:
            if not self.state[parameter]:
                zeros = [torch.zeros_like(parameter, memory_format=torch.preserve_format) for _ in range(2)]
                step = torch.zeros((), device=parameter.device)
                self.state[parameter] |= {"step": step, "exp_avg": zeros[0], "exp_avg_sq": zeros[1]}
        states = [self.state[parameter] for parameter in parameters]
        adamw(
            [local(parameter) for parameter in parameters],
            [local(parameter.grad) for parameter in parameters],
            [local(state["exp_avg"]) for state in states],
            [local(state["exp_avg_sq"]) for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            amsgrad=False,
            maximize=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
        )

    def _muon(self, group: dict, parameters: list[Tensor]) -> None:
        shapes: dict[torch.Size, list[Tensor]] = {}
        for parameter in parameters:
            shapes.setdefault(parameter.shape, []).append(parameter)
            if "momentum_buffer" not in self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        for shape, alike in shapes.items():
            gradients = [local(parameter.grad) for parameter in alike]
            momenta = [local(self.state[parameter]["momentum_buffer"]) for parameter in alike]
            torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
            nesterov = torch._foreach_lerp(gradients, momenta, group["momentum"])
            updates = divided(partial(orthogonalise, steps=group["steps"]), nesterov, alike[0])
            updates = [update.to(alike[0].dtype) for update in updates]
            weights = [local(parameter) for parameter in alike]
            if group["weight_decay"]:
                torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
            lr = group["lr"] * update_scale(group["scale"], *shape)
            torch._foreach_add_(weights, updates, alpha=-lr)


def update_scale(scale: str, rows: int, columns: int) -> float:
    """The factor of an orthogonal update of this shape, beside the learning rate."""
    if scale == "original":
        return math.sqrt(max(1.0, rows / columns))
    return 0.2 * math.sqrt(max(rows, columns))


def orthogonalise(matrices: Tensor, steps: int, eps: float = 1e-7) -> Tensor:
    """(L, m, n) -> roughly the nearest (semi-)orthogonal matrices: all singular values near 1.

    1. Work on wide matrices, so that the products are of the short side.
    2. Bring every singular value below 1, by the Frobenius norm.
    3. Iterate x <- a x + (b x x^T + c (x x^T)^2) x.
    """
    a, b, c = COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = (matrices.mT if tall else matrices).bfloat16()
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.mT  # L, m, m
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
