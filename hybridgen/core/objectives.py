"""Training objectives: the only randomness of training, and the losses, each as (sum, count).

`draw_noise` draws a timestep and noise for every image that is to be drawn, from one generator per row, seeded by the
run's seed and the row's number: the draw depends on neither batch size, nor rank, nor what was drawn before. It needs
sizes alone, so it runs on the CPU where batches are made; `add_drawn_noise` is what is left to the device.
No loss divides: the trainer divides once, by counts summed over micro-batches and ranks, so a loss does not depend on
packing, accumulation or world size. Text is counted per token and codes per code, but the diffusion loss per image
(Transfusion, arXiv 2408.11039, sec. 3.3), so that its weight lambda does not change with the size of images.

Shapes: B rows, N tokens, I images of the diffusion path, T codes.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from hybridgen.core.layout import IGNORE
from hybridgen.core.noise import NoiseProcess, add_noise, target
from hybridgen.core.sizes import Images, by_size

Loss = tuple[Tensor, Tensor]


@dataclass
class ObjectiveConfig:
    """Weights and distributions of the joint loss.

    Args:
        text_weight, code_weight, diffusion_weight: lambda of each mean loss (Transfusion: 1 and 5).
        token_mean: `separate`, a mean over text and one over codes; or `joint`, one mean over both, so that a loss is
            weighed by its tokens (Chameleon, Janus), which `text_weight` and `code_weight` then weigh alike.
        alignment_weight: lambda of the alignment loss, where the model has an `alignment_layer` (JanusFlow: 1).
        z_loss: weight of log^2 Z on text and code logits (Chameleon: 1e-5).
        router_weight: weight of the loss that keeps the experts of a mixture evenly used (`paths.moe`); None = the
            backbone's `router_aux_loss_coef`.
        timestep_sampling: `uniform`, or `logit_normal` with `logit_mean` and `logit_std` (SD3, arXiv 2403.03206).
        timestep_shift: s -> shift s / (1 + (shift - 1) s): above 1, more noise.
        loss_weighting: `none`, `velocity` (x0 or epsilon error weighted as if the velocity's), or `min_snr`
            (arXiv 2303.09556, with `min_snr_gamma`).
        max_weight: bound of the per-image loss weight.
        image_first_max_timestep: cap on t for images that stand before their text (Transfusion: 500), in thousandths of
            the noise process, whatever its num_train_timesteps; 1000 = none.
    """

    text_weight: float = 1.0
    code_weight: float = 1.0
    token_mean: str = "separate"
    diffusion_weight: float = 1.0
    alignment_weight: float = 1.0
    z_loss: float = 0.0
    router_weight: float | None = None
    timestep_sampling: str = "uniform"
    logit_mean: float = 0.0
    logit_std: float = 1.0
    timestep_shift: float = 1.0
    loss_weighting: str = "none"
    min_snr_gamma: float = 5.0
    max_weight: float = 100.0
    image_first_max_timestep: float = 1000.0

    def __post_init__(self):
        for name, value in vars(self).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"objective.{name} is {value}; it must be a finite number")
        for name in ("text_weight", "code_weight", "diffusion_weight", "alignment_weight", "z_loss", "router_weight"):
            if (getattr(self, name) or 0.0) < 0:
                raise ValueError(f"objective.{name} is {getattr(self, name)}; a weight cannot be negative")
        if self.token_mean not in ("separate", "joint"):
            raise ValueError(f"objective.token_mean is {self.token_mean!r}; use 'separate' or 'joint'")
        if self.token_mean == "joint" and self.text_weight != self.code_weight:
            raise ValueError(
                f"objective.token_mean is 'joint', one mean over text and codes, but text_weight {self.text_weight} "
                f"and code_weight {self.code_weight} differ; make them equal, or say 'separate'"
            )
        if self.timestep_sampling not in ("uniform", "logit_normal"):
            raise ValueError(
                f"objective.timestep_sampling is {self.timestep_sampling!r}; use 'uniform' or 'logit_normal'"
            )
        if self.loss_weighting not in ("none", "velocity", "min_snr"):
            raise ValueError(
                f"objective.loss_weighting is {self.loss_weighting!r}; use 'none', 'velocity' or 'min_snr'"
            )
        if self.timestep_shift <= 0 or self.logit_std <= 0:
            raise ValueError("objective.timestep_shift and objective.logit_std must be above 0")
        if not 0 < self.image_first_max_timestep <= 1000:
            raise ValueError(
                f"objective.image_first_max_timestep is {self.image_first_max_timestep}; it must be in (0, 1000]"
            )

    @property
    def has_joint_mean(self) -> bool:
        return self.token_mean == "joint"

    @property
    def weights(self) -> dict[str, float]:
        """Of each kind's mean. Under a joint mean, text and codes count as `token`, and are but logged themselves."""
        joint = self.has_joint_mean
        return {
            "text": 0.0 if joint else self.text_weight,
            "code": 0.0 if joint else self.code_weight,
            "token": self.text_weight if joint else 0.0,
            "diffusion": self.diffusion_weight,
            "alignment": self.alignment_weight,
            "z": self.z_loss,
            "router": self.router_weight or 0.0,
        }


# ------------------------------------------------------------------------------------------------ drawing noise


def row_generator(seed: int, row: int) -> torch.Generator:
    """The random stream of one row: a function of (seed, row) alone. torch takes but the low 32 bits of a seed, so the
    high ones are put into these."""
    mixed = seed * 0x9E3779B97F4A7C15 + row * 0xBF58476D1CE4E5B9 + (seed >> 32) * 0x94D049BB133111EB + 1
    return torch.Generator().manual_seed(mixed % (1 << 63))


def draw_noise_levels(count: int, config: ObjectiveConfig, generator: torch.Generator) -> Tensor:
    """(count,) noise levels s in (0, 1)."""
    if config.timestep_sampling == "uniform":
        s = torch.rand(count, generator=generator)
    else:
        s = torch.sigmoid(config.logit_mean + config.logit_std * torch.randn(count, generator=generator))
    shift = config.timestep_shift
    return shift * s / (1 + (shift - 1) * s)


@dataclass
class DiffusionTargets:
    """Targets of the diffusion head, one entry per image, also for those that are read clean.

    Args:
        values: targets, in the same form as the model's `prediction`.
        weights: (I,) loss weight; 0 on images that are read clean.
        timesteps: (I,) the model's input.
    """

    values: Tensor | list[Tensor]
    weights: Tensor
    timesteps: Tensor


def draw_noise(
    shapes: list[tuple[int, ...]],
    noised: Tensor,
    image_rows: Tensor,
    row_numbers: Tensor,
    image_first: Tensor,
    diffusion_config,
    config: ObjectiveConfig,
    seed: int,
    fixed_levels: Tensor | None = None,
    max_timesteps: Tensor | None = None,
) -> tuple[Images, Tensor]:
    """All that is random for the I images of a batch, drawn on the CPU: of each row's generator in reading order, for
    each image that is drawn first its level, then its noise.

    Args:
        shapes: (C, H, W) of each image's latents, in reading order.
        noised: (I,) whether the image is drawn.
        image_rows: (I,) index in the batch of the row each image stands in.
        row_numbers: (B,) the number of each row in the run, which seeds its random stream.
        image_first: (I,) whether it stands before its text, and so under `image_first_max_timestep`.
        fixed_levels: noise levels to go round instead of drawing (validation): the drawn images of a row take one after
            the other, and each row begins one level later, so that rows of one image see all of them, too.
        max_timesteps: (I,) further caps on t, set by the images' sources, likewise in thousandths; None = none.

    Returns:
        noise, (I, C, H, W) or a list where sizes differ, and timesteps (I,); both 0 for images that are read clean.
    """
    rows, is_drawn, stands_first = row_numbers[image_rows].tolist(), noised.tolist(), image_first.tolist()
    caps = [1000.0] * len(shapes) if max_timesteps is None else max_timesteps.tolist()
    generators = {row: row_generator(seed, row) for row in set(rows)}
    drawn_in = dict.fromkeys(rows, 0)  # images of each row so far
    noise, levels = [torch.zeros(0)] * len(shapes), [torch.zeros(())] * len(shapes)
    if len(set(shapes)) == 1:
        noise = torch.zeros(len(shapes), *shapes[0])
    for i, shape in enumerate(shapes):
        if not is_drawn[i]:
            noise[i] = torch.zeros(shape)
            continue
        generator = generators[rows[i]]
        s = draw_noise_levels(1, config, generator)[0]  # drawn also where it is fixed: the noise below stays the same
        if fixed_levels is not None:
            s = fixed_levels[(rows[i] + drawn_in[rows[i]]) % len(fixed_levels)]
        drawn_in[rows[i]] += 1
        cap = min(caps[i], config.image_first_max_timestep) if stands_first[i] else caps[i]
        # scale also when the cap is 1000: the rounding of s * 1000 / 1000 is part of what older runs computed
        levels[i] = s * cap / 1000 if stands_first[i] or cap < 1000 else s
        noise[i] = torch.randn(shape, generator=generator)
    process = NoiseProcess.of(diffusion_config)
    return noise, process.timesteps(torch.stack(levels)) if levels else torch.zeros(0)


def add_drawn_noise(
    latents: Images,
    noise: Images,
    timesteps: Tensor,
    noised: Tensor,
    diffusion_config,
    config: ObjectiveConfig,
) -> tuple[Images, DiffusionTargets]:
    """Noise the images that are drawn; images that are read stay as they are, at timestep 0.

    All images of a size at once, on the device of the latents, from which nothing is read back.

    Args:
        latents: I clean images (C, H, W), in reading order.
        noise, timesteps: of `draw_noise`.
        noised: (I,) whether the image is drawn.

    Returns:
        noisy latents in the form of `latents`, and their targets.
    """
    process, kind = NoiseProcess.of(diffusion_config), diffusion_config.prediction_type
    weights = loss_weights(timesteps, process, kind, config) * noised
    coefficients = [*process.coefficients(timesteps), noised]  # I each

    def of_size(clean: Tensor, drawn: Tensor, *coefficients: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma, is_drawn = (values.view(-1, 1, 1, 1) for values in coefficients)
        drawn = drawn.to(clean.dtype)
        noisy = add_noise(clean, drawn, alpha.to(clean.dtype), sigma.to(clean.dtype))
        values = target(kind, clean, drawn, alpha, sigma).to(clean.dtype)
        return torch.where(is_drawn, noisy, clean), torch.where(is_drawn, values, 0)

    if isinstance(latents, Tensor):
        noisy, values = of_size(latents, noise, *coefficients)
        return noisy, DiffusionTargets(values, weights, timesteps)
    noisy, values = [None] * len(latents), [None] * len(latents)
    for indices, clean in by_size(latents):
        at = torch.tensor(indices, device=timesteps.device)
        group = of_size(clean, torch.stack([noise[i] for i in indices]), *(of_all[at] for of_all in coefficients))
        for i, image, value in zip(indices, *group, strict=True):
            noisy[i], values[i] = image, value
    return noisy, DiffusionTargets(values, weights, timesteps)


def corrupt(
    latents: Images,
    noised: Tensor,
    image_rows: Tensor,
    row_numbers: Tensor,
    image_first: Tensor,
    diffusion_config,
    config: ObjectiveConfig,
    seed: int,
    fixed_levels: Tensor | None = None,
    max_timesteps: Tensor | None = None,
) -> tuple[Images, DiffusionTargets]:
    """`draw_noise` and `add_drawn_noise` in one, where the noise was not drawn ahead."""
    shapes = [tuple(image.shape) for image in latents]
    given = noised, image_rows, row_numbers, image_first, diffusion_config, config, seed, fixed_levels, max_timesteps
    noise, timesteps = draw_noise(shapes, *given)
    device = row_numbers.device
    noise = noise.to(device) if isinstance(noise, Tensor) else [image.to(device) for image in noise]
    return add_drawn_noise(latents, noise, timesteps.to(device), noised.to(device), diffusion_config, config)


def loss_weights(timesteps: Tensor, process: NoiseProcess, prediction_type: str, config: ObjectiveConfig) -> Tensor:
    """(I,) weight of an image's squared error at its timestep."""
    if config.loss_weighting == "none":
        return torch.ones_like(timesteps, dtype=torch.float32)
    alpha, sigma = process.coefficients(timesteps)
    snr = (alpha / sigma.clamp(min=1e-6)) ** 2
    # d(x0) = sigma d(velocity) for flow (arXiv 2403.03206); d(x0) = (sigma / alpha) d(epsilon) = sigma d(v) for DDPM
    to_x0 = {
        "sample": torch.ones_like(snr),
        "epsilon": 1 / snr.clamp(min=1e-12),
        "velocity": sigma**2,
        "v_prediction": sigma**2,
    }
    if config.loss_weighting == "velocity":
        weight = to_x0[prediction_type] / sigma.clamp(min=1e-6) ** 2
    else:
        weight = to_x0[prediction_type] * snr.clamp(max=config.min_snr_gamma)
    return weight.clamp(max=config.max_weight)


# ------------------------------------------------------------------------------------------------------ losses


def place_codes(code_labels: Tensor, codes: Tensor, is_code: Tensor) -> Tensor:
    """(B, N) labels: the code at each position of the vq path that has a loss, IGNORE elsewhere.

    Args:
        code_labels: (B, N) 0 where a code is to be predicted, IGNORE elsewhere (layout).
        codes: (T,) codes in reading order.
        is_code: (B, N) true on vq placeholders.
    """
    all_codes = torch.zeros_like(code_labels).masked_scatter(is_code, codes.to(code_labels.dtype))
    return torch.where(code_labels == IGNORE, code_labels, all_codes)


def shift_labels(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Unshifted labels (B, N) -> mask (B, N) of the positions that predict, and their targets (kept,)."""
    keep = predict_at(labels)
    return keep, labels.roll(-1, dims=1)[keep]


def predict_at(labels: Tensor) -> Tensor:
    """Unshifted labels (B, N) -> mask (B, N) of the positions that predict: each stands before its target."""
    return F.pad(labels[:, 1:] != IGNORE, (0, 1))


def sum_tokens(losses: Tensor) -> Loss:
    """(kept,) losses of tokens (`cross_entropy.head_losses`) -> their sum, and their number."""
    return losses.sum(), torch.tensor(float(len(losses)), device=losses.device)


def z_loss(log_z: Tensor) -> Loss:
    """(kept,) log Z -> summed log^2 Z, which keeps logits from drifting (PaLM, Chameleon), and their number."""
    return sum_tokens(log_z.square())


def image_losses(prediction: Tensor | list[Tensor], targets: DiffusionTargets) -> Tensor:
    """(I,) weighted mean squared error of each image over its latent values; 0 for images that are read clean."""
    if not len(targets.weights):
        return prediction.float().flatten()  # no image, but the head is in the graph
    if isinstance(prediction, Tensor):
        errors = (prediction.float() - targets.values.float()).pow(2).flatten(1).mean(1)  # I
    else:
        pairs = zip(prediction, targets.values, strict=True)
        errors = torch.stack([F.mse_loss(image.float(), value.float()) for image, value in pairs])
    return errors * targets.weights


def sum_images(losses: Tensor, targets: DiffusionTargets) -> Loss:
    """(I,) `image_losses` -> their sum, and the number of drawn images."""
    return losses.sum(), (targets.weights > 0).sum().float()


def alignment_loss(alignment: Tensor, targets: DiffusionTargets) -> Loss:
    """One minus the mean cosine (I,) of each drawn image, summed; the count is the number of drawn images."""
    drawn = targets.weights.to(alignment.device) > 0
    return ((1 - alignment) * drawn).sum(), drawn.sum().float()


def total(losses: dict[str, Loss], counts: dict[str, Tensor], weights: dict[str, float]) -> Tensor:
    """The weighted sum of mean losses, each divided by its *global* count (0 where nothing was counted)."""
    terms = [weights.get(name, 1.0) * loss / counts[name].clamp(min=1) for name, (loss, _) in losses.items()]
    return torch.stack(terms).sum()


def bits(nats: float) -> float:
    """Nats as bits."""
    return nats / math.log(2)
