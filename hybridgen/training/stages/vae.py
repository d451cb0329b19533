"""Training a VAE, which `codec.vae` of a model stage loads.

The model is diffusers' `AutoencoderKL`, saved as diffusers saves it, with the mean and the standard deviation of its
latents in its config (`codecs.frozen.measure_latents`), so that scaled latents have mean 0 and variance 1. In training
a latent is drawn from the posterior, everywhere else it is the posterior's mode; so validation is better than training,
and what is measured is the modes' standard deviation.

Shapes: I pictures, H x W pixels, C channels and h x w places of a latent.
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from hybridgen.codecs.frozen import measure_latents
from hybridgen.core.objectives import row_generator
from hybridgen.training.config.codec import VAETrainingConfig
from hybridgen.training.config.parts import vae_config
from hybridgen.training.monitor.tracking import say
from hybridgen.training.stages.pictures import PictureLoader
from hybridgen.training.stages.reconstruction import Reconstruction, ReconstructionStage

COLLAPSED = 1e-3  # a standard deviation of latents below which they hold nothing


class VAETrainingModel(nn.Module):
    """The autoencoder as one forward from pictures to pictures, so that accelerate can wrap it."""

    def __init__(self, vae: AutoencoderKL):
        super().__init__()
        self.vae = vae

    def forward(self, pictures: Tensor, seeds: tuple[int, Tensor] | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Pictures (I, 3, H, W) -> decoded ones, and the posterior's mean and log variance (I, C, h, w).

        Args:
            seeds: the run's seed and the number of each picture (I,), which decide the posterior's noise; None = no
                noise.
        """
        posterior = self.vae.encode(pictures).latent_dist
        mean, log_variance = posterior.mean.float(), posterior.logvar.float()
        z = mean
        if seeds is not None:
            seed, numbers = seeds
            noise = [torch.randn(mean.shape[1:], generator=row_generator(seed, number)) for number in numbers.tolist()]
            z = mean + torch.exp(log_variance / 2) * torch.stack(noise).to(mean)
        return self.vae.decode(z).sample.float(), mean, log_variance


class VAEStage(ReconstructionStage):
    """Reconstruction and KL losses on pictures (`protocols.Stage`)."""

    def __init__(self, config, model: VAETrainingModel, loader: PictureLoader, validation, accelerator):
        weights, last_layer = {"kl": config.vae.kl}, model.vae.decoder.conv_out.weight
        super().__init__(config, config.vae, weights, model, loader, validation, accelerator, last_layer)

    def reconstruct(self, model: nn.Module, batch: dict) -> Reconstruction:
        pictures = batch["pictures"]
        seeds = (self.config.seed, batch["numbers"]) if model.training else None
        decoded, mean, log_variance = model(pictures, seeds)
        divergence = (mean.pow(2) + log_variance.exp() - 1 - log_variance).flatten(1).sum(1) / 2  # nats per picture
        return Reconstruction(decoded, {"kl": divergence / pictures[0].numel()})

    def save_codec(self, model: VAETrainingModel, folder: Path) -> dict[str, float]:
        """Write `vae/`, with its latents' mean and standard deviation over pictures of the training data."""
        mean, std = measure_latents(model.vae, self._pictures_to_measure())
        if std < COLLAPSED:
            say(f"the latents' spread is {std:.1e}: the posterior says next to nothing; lower vae.kl")
        model.vae.register_to_config(shift_factor=mean, scaling_factor=1 / max(std, 1e-12))
        model.vae.save_pretrained(folder / "vae")
        return {"latent_mean": mean, "latent_std": std, "scaling_factor": model.vae.config.scaling_factor}

    def _pictures_to_measure(self) -> Iterator[Tensor]:
        """The first pictures of the training data, in batches. They are read one by one, as rows of a batch of another
        size would be other pictures: what is measured must not depend on the number of processes."""
        one_by_one = (batch["pictures"] for batch in self._pictures(1, training=True))
        measured = islice(one_by_one, self.settings.measured_pictures)
        while some := list(islice(measured, self.config.data.per_device_batch_size)):
            yield torch.cat(some)


def build_vae(settings: VAETrainingConfig, seed: int) -> AutoencoderKL:
    """An autoencoder with random weights of this seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoencoderKL(**vae_config(settings))
