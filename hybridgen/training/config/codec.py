"""Settings of the codec stage: which codec is trained, on pictures of which size, and by which losses.

`schema` holds everything else of a run; which combinations cannot work is `checks`. All losses are means over a
picture's values (the KL's sum is divided by their number), so no weight depends on the size of the pictures or batch.
"""

from dataclasses import dataclass, field
from typing import Literal

from hybridgen.core.recognition import FilePath


@dataclass
class PerceptualConfig:
    """Distance between the features of a picture and of its reconstruction (`perceptual.FeatureDistance`).

    It is not LPIPS: the layers of LPIPS carry weights that were fitted to human judgement, these do not.

    Args:
        path: folder of a transformers vision model (its `AutoModel`), such as a ResNet, EfficientNet, ConvNeXt or ViT.
        weight: of the distance, beside `l1` and `l2`.
        layers: which of its hidden states, by index; null = all.
        size: side that pictures are resized to first; null = as they are.
    """

    path: FilePath
    weight: float = 1.0
    layers: list[int] | None = None
    size: int | None = None


@dataclass
class AdversarialConfig:
    """A PatchGAN discriminator with hinge losses, as in VQGAN (arXiv 2012.09841); see `adversarial.Adversary`.

    Args:
        weight: of the codec's term.
        start: optimizer step at which the discriminator begins to learn; before, there is none of this.
        adaptive: multiply `weight` by the ratio of gradient norms at the decoder's last layer (reconstruction over
            this term).
        channels, layers: width of its first layer, and how many of its layers halve the picture.
        lr: of its own Adam; null = optimizer.lr. The run's schedule and `clip` hold for it as well.
        betas: of its own Adam.
    """

    weight: float = 0.5
    start: int = 0
    adaptive: bool = True
    channels: int = 64
    layers: int = 3
    lr: float | None = None
    betas: list[float] = field(default_factory=lambda: [0.5, 0.9])

    @property
    def smallest_side(self) -> int:
        """The least side of pictures that the discriminator can judge in at least one place."""
        return 3 * 2**self.layers


@dataclass
class CodecTrainingConfig:
    """What both codecs are trained by.

    Args:
        config: arguments of the codec's class.
        image_size: side of the pictures: each is resized to fill this square, and what sticks out on two sides is cut
            off. Smaller ones are enlarged.
        l1, l2: weights of the reconstruction errors.
        perceptual, adversarial: null = none.
    """

    config: dict
    image_size: int
    l1: float = 1.0
    l2: float = 1.0
    perceptual: PerceptualConfig | None = None
    adversarial: AdversarialConfig | None = None


@dataclass
class VQTrainingConfig(CodecTrainingConfig):
    """Stage `codec`: the VQ tokenizer that is trained, and its losses (means over pixels and latents, summed).

    Args:
        kind: `janus` is transformers' `JanusVQVAE`; `patch` is `PatchVQ`, for small pictures that repeat themselves.
        commitment, codebook: weights of the latents' pull to their codes, and of the codes' to their latents.
        codebook_decay: the codes are moving averages of the latents that chose them, with this decay, and not trained
            by gradient (`codebook` is not used then); null = by gradient.
        continuous_steps: first steps without quantization; then the codes start from k-means on latents.
        restart_every: every so many steps, codes used less than `restart_below` of their fair share move to latents
            of the current batch (0 = never).
        restart_until: share of the run after which no code moves any more.
    """

    kind: Literal["janus", "patch"] = "janus"
    commitment: float = 0.25
    codebook: float = 1.0
    codebook_decay: float | None = None
    continuous_steps: int = 0
    restart_every: int = 0
    restart_below: float = 0.1
    restart_until: float = 0.8


@dataclass
class VAETrainingConfig(CodecTrainingConfig):
    """Stage `codec`: the VAE that is trained, diffusers' `AutoencoderKL`, and its losses.

    Args:
        config: arguments of `AutoencoderKL`; block types may be left out. `scaling_factor` and `shift_factor` are
            measured at the end.
        kl: weight of the posterior's divergence from a standard normal, in nats over a picture's 3 H W values. That
            makes 1e-6 mean what it means in latent diffusion (arXiv 2112.10752), where both errors are sums.
        measured_pictures: of the training data, whose latents `scaling_factor` and `shift_factor` are measured on.
    """

    kl: float = 1e-6
    measured_pictures: int = 1024
