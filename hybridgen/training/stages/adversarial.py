"""An adversarial term for codecs: a PatchGAN discriminator with hinge losses and VQGAN's adaptive weight.

The loop (`trainer`) knows one optimizer; this second one belongs to the stage. The discriminator's gradients are added
up while the losses of a step are computed, and its step is taken when the next step begins. Until then they are part of
the state, which accelerate saves beside the model's, so a resumed run is the same bit for bit.

The adaptive weight is a ratio of gradients at the decoder's last layer, not of losses. That of a step is measured in
the step before, over all its micro-batches and ranks, so the term depends on neither accumulation nor the number of
processes (public implementations take each batch's own).

Shapes: I pictures, H x W pixels, h x w patches that the discriminator judges.
"""

import math

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from hybridgen.training.config.codec import AdversarialConfig
from hybridgen.training.config.schema import TrainConfig
from hybridgen.training.optim.optimization import lr_factor

MAX_RATIO, EPSILON = 1e4, 1e-4  # of the adaptive weight and its divisor, as in VQGAN


class PatchDiscriminator(nn.Module):
    """Pictures (I, 3, H, W) -> (I, 1, h, w): how real each patch looks (Isola et al., arXiv 1611.07004).

    With group normalisation instead of batch normalisation, so that a picture's output does not depend on the others.
    """

    def __init__(self, channels: int, layers: int):
        super().__init__()
        widths = [channels * min(2**number, 8) for number in range(layers + 1)]
        blocks = [nn.Conv2d(3, channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for number, (before, width) in enumerate(zip(widths, widths[1:], strict=False), start=1):
            stride = 2 if number < layers else 1
            blocks += [nn.Conv2d(before, width, 4, stride=stride, padding=1, bias=False)]
            blocks += [nn.GroupNorm(math.gcd(32, width), width), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*blocks, nn.Conv2d(widths[-1], 1, 4, padding=1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, pictures: Tensor) -> Tensor:
        return self.layers(pictures)


class Adversary:
    """The discriminator with its optimizer, and the weight of the codec's term.

    Args:
        config: of the run; its schedule and `clip` hold for the discriminator, too.
        last_layer: the weight of the decoder's last layer.
    """

    def __init__(
        self, settings: AdversarialConfig, config: TrainConfig, last_layer: nn.Parameter, accelerator: Accelerator
    ):
        self.settings, self.config, self.accelerator = settings, config, accelerator
        self._last_layer, self._device = last_layer, accelerator.device
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            self.discriminator = PatchDiscriminator(settings.channels, settings.layers).to(self._device)
        self._parameters = list(self.discriminator.parameters())
        self._lr = config.optimizer.lr if settings.lr is None else settings.lr
        self._optimizer = torch.optim.Adam(self._parameters, lr=self._lr, betas=tuple(settings.betas))
        self.ratio = 0.0 if settings.adaptive else 1.0  # of the gradients, as last measured
        # gradients of this step: of the errors and of this term at the last layer, and how many pictures they are of
        self._last_layer_gradients = torch.zeros(2, last_layer.numel(), device=self._device)
        self._count = torch.zeros((), device=self._device)
        self._batches, self._active = 0, False
        self._zero()
        accelerator.register_for_checkpointing(self)

    @property
    def weight(self) -> float:
        """The weight of the codec's term in this step; 0 before the discriminator learns."""
        return self.settings.weight * self.ratio if self._active else 0.0

    # ------------------------------------------------------------------------------------------------------ a step

    def begin_step(self, step: int, progress: float) -> None:
        """
        1. Take the discriminator's step with the gradients of the step before, from which this step's weight follows.
        2. Start the sums of this step from zero.
        """
        self._active, self._batches = step >= self.settings.start, 0
        if self._count > 0:
            self._step(lr_factor(self.config.schedule, step, progress))
        self._zero()

    def losses(self, decoded: Tensor, pictures: Tensor, errors: Tensor, training: bool) -> dict[str, Tensor]:
        """The codec's and the discriminator's loss, (I,) each.

        1. The codec's: the discriminator, as it is, should take the decoded pictures for real.
        2. In training, the gradients of it and of the errors at the last layer are added up for the next step's weight.
        3. The discriminator's: hinge on real and decoded pictures. In training its gradient is added up.

        Args:
            decoded, pictures: (I, 3, H, W).
            errors: (I,) the reconstruction losses that the codec's term is weighed against.
        """
        if not self._active:
            return dict.fromkeys(("adversarial", "discriminator"), torch.zeros(len(pictures), device=self._device))
        frozen = {name: value.detach() for name, value in self.discriminator.named_parameters()}
        with self.accelerator.autocast():
            scores = functional_call(self.discriminator, frozen, (decoded,))
        adversarial = -scores.float().flatten(1).mean(1)
        if training and self.settings.adaptive:
            for number, each in enumerate((errors, adversarial)):
                (gradient,) = torch.autograd.grad(each.sum(), self._last_layer, retain_graph=True)
                self._last_layer_gradients[number] += gradient.flatten()
        with self.accelerator.autocast():
            real, fake = (self.discriminator(each).float() for each in (pictures, decoded.detach()))
        hinge = (F.relu(1 - real) + F.relu(1 + fake)).flatten(1).mean(1) / 2
        if training:
            hinge.sum().backward()
            self._count += len(pictures)
            self._batches += 1
            if self._batches == self.config.accumulation:
                self._sum_over_ranks()
        return {"adversarial": adversarial, "discriminator": hinge.detach()}

    def _sum_over_ranks(self) -> None:
        """At the end of a step, so that every process saves the same."""
        local = [*(parameter.grad for parameter in self._parameters), self._last_layer_gradients, self._count]
        flat = self.accelerator.reduce(torch.cat([each.flatten() for each in local]), reduction="sum")
        for each, part in zip(local, flat.split([each.numel() for each in local]), strict=True):
            each.copy_(part.view_as(each))

    def _step(self, factor: float) -> None:
        """One step of Adam; gradients that are not finite change nothing."""
        for parameter in self._parameters:
            parameter.grad /= self._count
        norm = nn.utils.clip_grad_norm_(self._parameters, self.config.clip or math.inf)
        if torch.isfinite(norm):
            for group in self._optimizer.param_groups:
                group["lr"] = self._lr * factor
            self._optimizer.step()
        if self.settings.adaptive:
            errors, adversarial = (self._last_layer_gradients / self._count).norm(dim=1).tolist()
            ratio = errors / (adversarial + EPSILON)
            self.ratio = min(ratio, MAX_RATIO) if math.isfinite(ratio) else self.ratio

    def _zero(self) -> None:
        for parameter in self._parameters:
            parameter.grad = torch.zeros_like(parameter)
        self._last_layer_gradients.zero_()
        self._count.zero_()

    # ------------------------------------------------------------------------------------------------------- state

    def state_dict(self) -> dict:
        """All that the next step depends on; accelerate saves it."""
        return {
            "discriminator": self.discriminator.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "gradients": [parameter.grad for parameter in self._parameters],
            "felt": self._last_layer_gradients,  # a format: states hold this name
            "count": self._count,
            "ratio": self.ratio,
        }

    def load_state_dict(self, state: dict) -> None:
        self.discriminator.load_state_dict(state["discriminator"])
        self._optimizer.load_state_dict(state["optimizer"])
        for parameter, gradient in zip(self._parameters, state["gradients"], strict=True):
            parameter.grad.copy_(gradient)
        self._last_layer_gradients.copy_(state["felt"])
        self._count.copy_(state["count"])
        self.ratio = state["ratio"]
