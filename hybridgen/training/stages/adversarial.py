"""An adversarial term for codecs: a PatchGAN discriminator with hinge losses and VQGAN's adaptive weight.

The one loop (`trainer`) knows one optimizer; this second one belongs to the stage. Its gradients are gathered while the
losses of a step are computed, and its step is taken as the next step begins; what waits meanwhile is part of the state,
which accelerate saves beside the model's, so a resumed run is the same bit for bit. The fact a newcomer gets wrong: the
adaptive weight is a ratio of *gradients* at the decoder's last layer, not of losses. That of a step is measured in the
step before, over all its batches and ranks: so the term depends on neither accumulation nor the number of processes
(public implementations take each batch's own).

Shapes: I pictures, H x W pixels, h x w places that the discriminator judges.
"""

import math

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from hybridgen.training.config.codec import AdversarialConfig
from hybridgen.training.optim.optimization import lr_factor

MOST = 1e4  # of the adaptive weight, and its divisor's least: both VQGAN's
LEAST = 1e-4


class PatchDiscriminator(nn.Module):
    """Pictures (I, 3, H, W) -> (I, 1, h, w): how real each place looks (Isola et al., arXiv 1611.07004).

    With group normalisation instead of batch normalisation: what it says of a picture does not depend on the pictures
    beside it.
    """

    def __init__(self, channels: int, layers: int):
        super().__init__()
        widths = [channels * min(2**number, 8) for number in range(layers + 1)]
        made = [nn.Conv2d(3, channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for number, (before, width) in enumerate(zip(widths, widths[1:], strict=False), start=1):
            stride = 2 if number < layers else 1
            made += [nn.Conv2d(before, width, 4, stride=stride, padding=1, bias=False)]
            made += [nn.GroupNorm(math.gcd(32, width), width), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*made, nn.Conv2d(widths[-1], 1, 4, padding=1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, pictures: Tensor) -> Tensor:
        return self.layers(pictures)


class Adversary:
    """The discriminator with its optimizer, and the weight of the codec's term.

    Args:
        config: a `TrainConfig`.
        last_layer: the weight of the decoder's last layer.
    """

    def __init__(self, settings: AdversarialConfig, config, last_layer: nn.Parameter, accelerator: Accelerator):
        self.settings, self.config, self.accelerator = settings, config, accelerator
        self._last_layer, self._device = last_layer, accelerator.device
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            self.discriminator = PatchDiscriminator(settings.channels, settings.layers).to(self._device)
        self._parameters = list(self.discriminator.parameters())
        self._lr = config.optimizer.lr if settings.lr is None else settings.lr
        self._optimizer = torch.optim.Adam(self._parameters, lr=self._lr, betas=tuple(settings.betas))
        self.ratio = 0.0 if settings.adaptive else 1.0  # of the gradients, as last measured
        # of this step: gradients at the last layer of the errors and of this term, and how many pictures are in them
        self._felt = torch.zeros(2, last_layer.numel(), device=self._device)
        self._count = torch.zeros((), device=self._device)
        self._batches, self._learns = 0, False
        self._zero()
        accelerator.register_for_checkpointing(self)

    @property
    def weight(self) -> float:
        """Of the codec's term in this step; 0 before there is something to weigh."""
        return self.settings.weight * self.ratio if self._learns else 0.0

    # ------------------------------------------------------------------------------------------------------ a step

    def begin_step(self, step: int, progress: float) -> None:
        """Take the discriminator's step with the gradients of the step before, and weigh this step's term."""
        self._learns, self._batches = step >= self.settings.start, 0
        if self._count > 0:
            self._learn(lr_factor(self.config.schedule, step, progress))
        self._zero()

    def losses(self, decoded: Tensor, pictures: Tensor, errors: Tensor, training: bool) -> dict[str, Tensor]:
        """Both losses, (I,) each. Of decoded and real pictures (I, 3, H, W), and what is to be weighed against, (I,).

        1. The codec's: the discriminator, as it is, should take the decoded pictures for real.
        2. In training, what the last layer feels of it and of the errors is kept for the next step's weight.
        3. The discriminator's: hinge on real and decoded pictures. In training its gradient is added up.
        """
        if not self._learns:
            return dict.fromkeys(("adversarial", "discriminator"), torch.zeros(len(pictures), device=self._device))
        frozen = {name: value.detach() for name, value in self.discriminator.named_parameters()}
        with self.accelerator.autocast():
            judged = functional_call(self.discriminator, frozen, (decoded,))
        fooling = -judged.float().flatten(1).mean(1)
        if training and self.settings.adaptive:
            for number, each in enumerate((errors, fooling)):
                (felt,) = torch.autograd.grad(each.sum(), self._last_layer, retain_graph=True)
                self._felt[number] += felt.flatten()
        with self.accelerator.autocast():
            real, made = (self.discriminator(each).float() for each in (pictures, decoded.detach()))
        told_apart = (F.relu(1 - real) + F.relu(1 + made)).flatten(1).mean(1) / 2
        if training:
            told_apart.sum().backward()
            self._count += len(pictures)
            self._batches += 1
            if self._batches == self.config.accumulation:
                self._gather()
        return {"adversarial": fooling, "discriminator": told_apart.detach()}

    def _gather(self) -> None:
        """Sums over all ranks, at the end of a step, so that what is saved is whole in every process."""
        waiting = [*(parameter.grad for parameter in self._parameters), self._felt, self._count]
        flat = self.accelerator.reduce(torch.cat([each.flatten() for each in waiting]), reduction="sum")
        for each, part in zip(waiting, flat.split([each.numel() for each in waiting]), strict=True):
            each.copy_(part.view_as(each))

    def _learn(self, factor: float) -> None:
        """One step of Adam; gradients that are not finite change nothing."""
        for parameter in self._parameters:
            parameter.grad /= self._count
        norm = nn.utils.clip_grad_norm_(self._parameters, self.config.clip or math.inf)
        if torch.isfinite(norm):
            for group in self._optimizer.param_groups:
                group["lr"] = self._lr * factor
            self._optimizer.step()
        if self.settings.adaptive:
            errors, fooling = (self._felt / self._count).norm(dim=1).tolist()
            ratio = errors / (fooling + LEAST)
            self.ratio = min(ratio, MOST) if math.isfinite(ratio) else self.ratio

    def _zero(self) -> None:
        for parameter in self._parameters:
            parameter.grad = torch.zeros_like(parameter)
        self._felt.zero_()
        self._count.zero_()

    # ------------------------------------------------------------------------------------------------------- state

    def state_dict(self) -> dict:
        """All that the next step depends on."""
        return {
            "discriminator": self.discriminator.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "gradients": [parameter.grad for parameter in self._parameters],
            "felt": self._felt,
            "count": self._count,
            "ratio": self.ratio,
        }

    def load_state_dict(self, state: dict) -> None:
        self.discriminator.load_state_dict(state["discriminator"])
        self._optimizer.load_state_dict(state["optimizer"])
        for parameter, gradient in zip(self._parameters, state["gradients"], strict=True):
            parameter.grad.copy_(gradient)
        self._felt.copy_(state["felt"])
        self._count.copy_(state["count"])
        self.ratio = state["ratio"]
