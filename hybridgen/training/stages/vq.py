"""Training a VQ tokenizer, which `codec.vq` of a model stage loads.

The quantization itself is `codecs.frozen.quantize`, shared with `VQCodec`, so that codes mean the same in both.

Codes die: a code that no latent chooses gets no gradient, and most of a codebook can be lost in the first hundred
steps. Three things prevent it, each with a key of the config:
- `continuous_steps`: steps without quantization, and then codes from k-means
- `codebook_decay`: codes follow the latents that chose them (arXiv 1711.00937, appendix A.1)
- `restart_every`: unused codes are moved

Shapes: I pictures, H x W pixels, h x w codes of a picture, D width of the codebook, V codes, T latents of a batch.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from accelerate.utils import broadcast
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.janus.configuration_janus import JanusVQVAEConfig
from transformers.models.janus.modeling_janus import JanusVQVAE

from hybridgen.codecs.frozen import Quantized, compares_directions, quantize, to_latents, to_pixels
from hybridgen.codecs.patch_vq import PatchVQ
from hybridgen.core.objectives import row_generator
from hybridgen.training.config.parts import vq_config
from hybridgen.training.config.schema import TrainConfig, VQTrainingConfig
from hybridgen.training.stages.clustering import choose_far, kmeans
from hybridgen.training.stages.fidelity import perplexity
from hybridgen.training.stages.pictures import PictureLoader
from hybridgen.training.stages.reconstruction import Reconstruction, ReconstructionStage

RECENT = 32768  # latents remembered, for k-means and for moving codes
USAGE_DECAY = 0.99  # of the usage counts, where `codebook_decay` is null
OLD_BUFFERS = {"step_usage": "seen_usage", "step_sums": "seen_sums", "num_recent": "filled"}  # names in older states


class VQTrainingModel(nn.Module):
    """The tokenizer, and statistics of its codebook as buffers, which are saved and restored with it.

    `usage` (V,) and `sums` (V, D) are moving averages of how often a code is chosen and of the latents that choose it;
    `step_*` are the counts and sums of the current step alone; `recent` (RECENT, D) are the last latents,
    `num_recent` so far.
    """

    def __init__(self, vq_model: nn.Module):
        super().__init__()
        self.vq_model, self.directions = vq_model, compares_directions(vq_model)
        codes, width = vq_model.quantize.embedding.weight.shape
        for name, shape in {
            "usage": (codes,), "sums": (codes, width), "step_usage": (codes,), "step_sums": (codes, width),
            "recent": (RECENT, width), "num_recent": (),
        }.items():  # fmt: skip
            self.register_buffer(name, torch.zeros(shape))

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *arguments) -> None:
        """As torch's, and it reads older states."""
        for name, old in OLD_BUFFERS.items():
            if prefix + old in state_dict:
                state_dict[prefix + name] = state_dict.pop(prefix + old)
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def forward(self, pictures: Tensor, quantized: bool) -> tuple[Tensor, Tensor, Quantized]:
        """Pictures (I, 3, H, W) -> decoded ones, latents (I, D, h, w) as compared with codes, the codes chosen."""
        z = to_latents(self.vq_model, pictures).float()
        z = F.normalize(z, dim=1) if self.directions else z
        with torch.autocast(z.device.type, enabled=False):
            chosen = quantize(z, self.codebook.float(), self.directions)
        decoded = to_pixels(self.vq_model, chosen.vectors if quantized else z)
        return decoded.float(), z, chosen

    @property
    def codebook(self) -> Tensor:
        """(V, D)."""
        return self.vq_model.quantize.embedding.weight


class VQStage(ReconstructionStage):
    """Reconstruction, commitment and codebook losses on pictures (`protocols.Stage`)."""

    def __init__(self, config: TrainConfig, model: VQTrainingModel, loader: PictureLoader, validation, accelerator):
        settings = config.vq_model
        weights = {"commitment": settings.commitment}
        if settings.codebook_decay is None:
            weights["codebook"] = settings.codebook
        else:
            model.codebook.requires_grad_(False)
        decoder = model.vq_model.decoder
        last_layer = getattr(decoder, "inner", decoder).conv_out.weight  # PatchVQ's is in `inner`
        super().__init__(config, settings, weights, model, loader, validation, accelerator, last_layer)
        self.codebook_size = len(model.codebook)
        self.quantized = True

    def reconstruct(self, model: nn.Module, batch: dict) -> Reconstruction:
        quantized = self.quantized or not model.training
        decoded, z, chosen = model(batch["pictures"], quantized)
        if model.training:
            self._count_codes(z.detach(), chosen.codes)
        losses = {"commitment": chosen.commitment_error * quantized, "codebook": chosen.codebook_error * quantized}
        return Reconstruction(decoded, losses, chosen.codes)

    # ------------------------------------------------------------------------------------------------- the codebook

    @torch.no_grad()
    def _count_codes(self, z: Tensor, codes: Tensor) -> None:
        """Count which codes were chosen, over all ranks, and remember the latents."""
        model = self.model
        flat, codes = z.permute(0, 2, 3, 1).reshape(-1, z.shape[1]), codes.flatten()  # T, D
        usage = torch.bincount(codes, minlength=len(model.usage)).float()
        sums = torch.zeros_like(model.sums).index_add_(0, codes, flat)
        model.step_usage += self._accelerator.reduce(usage, reduction="sum")
        model.step_sums += self._accelerator.reduce(sums, reduction="sum")
        flat = flat[-RECENT:]
        model.recent.copy_(torch.cat([model.recent[len(flat) :], flat]))
        model.num_recent.add_(len(flat)).clamp_(max=RECENT)

    @torch.no_grad()
    def begin_step(self, step: int, progress: float) -> None:
        """
        1. Update the moving averages with the last step's counts and sums. With a `codebook_decay`, each used code
           becomes the mean of the latents that chose it.
        2. After `continuous_steps` steps, the codes become the means of clusters of latents (k-means).
        3. Every `restart_every` steps, codes that are hardly used move to latents that are far from their code.
        """
        super().begin_step(step, progress)
        model, settings = self.model, self.settings
        self.quantized = step >= settings.continuous_steps
        decay = USAGE_DECAY if settings.codebook_decay is None else settings.codebook_decay
        model.usage.lerp_(model.step_usage, 1 - decay)
        model.sums.lerp_(model.step_sums, 1 - decay)
        model.step_usage.zero_()
        model.step_sums.zero_()
        codebook = model.codebook
        if settings.codebook_decay is not None and self.quantized and step > settings.continuous_steps:
            used = model.usage > 1e-3
            codebook[used] = self._as_codes(model.sums[used] / model.usage[used, None])
        if not self.quantized or model.num_recent == 0:
            return
        generator = row_generator(self.config.seed, step)
        if step == settings.continuous_steps:
            centres, sizes = self._chosen_once(len(codebook), lambda latents: kmeans(latents, len(codebook), generator))
            self._move_codes(torch.arange(len(codebook)), centres, sizes / sizes.mean())
        elif settings.restart_every and step % settings.restart_every == 0 and progress < settings.restart_until:
            fair_share = model.usage.mean()
            dead = (model.usage < settings.restart_below * fair_share).nonzero()[:, 0]
            ones, codes = codebook.new_ones(len(dead)), self._as_codes(codebook)
            if len(dead):
                far, shares = self._chosen_once(len(dead), lambda z: (choose_far(z, codes, len(dead), generator), ones))
                self._move_codes(dead, far, shares)

    def _chosen_once(self, count: int, choose: Callable[[Tensor], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """What the main process chooses among its recent latents, (count, D) and (count,), in all processes: sums and
        distances on GPUs differ in their last bits from one to the next, and codebooks would stay apart."""
        model = self.model
        if self._accelerator.is_main_process:
            codes, numbers = choose(model.recent[RECENT - int(model.num_recent) :])
        else:
            codes, numbers = model.recent.new_empty(count, model.recent.shape[1]), model.recent.new_empty(count)
        return broadcast(codes), broadcast(numbers.to(codes))

    def _move_codes(self, numbers: Tensor, centres: Tensor, shares: Tensor) -> None:
        """Move codes to centres, as if each had been chosen `shares` times its fair share."""
        model = self.model
        numbers, centres = numbers.to(centres.device), self._as_codes(centres)
        fair_share = model.usage.mean()
        model.codebook[numbers] = centres
        model.usage[numbers] = shares.to(centres) * fair_share
        model.sums[numbers] = centres * model.usage[numbers, None]

    def _as_codes(self, points: Tensor) -> Tensor:
        """Points (T, D) as codes: on the unit sphere, if codes are compared by direction."""
        return F.normalize(points, dim=-1) if self.model.directions else points

    # ----------------------------------------------------------------------------------------------- logs, the result

    def describe(self, means: dict[str, float]) -> dict[str, float]:
        """Also the share of codes that are used, and their perplexity.

        In training both come from the moving averages, and a code is used if it is chosen more than a tenth as often as
        the mean. After a validation they come from its choices, and a code that was chosen once is used.
        """
        usage = self.model.usage
        codebook_numbers = {"codebook_use": float((usage > 0.1 * usage.mean()).float().mean())}
        codebook_numbers["codebook_perplexity"] = perplexity(usage)
        return codebook_numbers | super().describe(means)

    def save_codec(self, model: VQTrainingModel, folder: Path) -> dict[str, float]:
        """Write `vq_model/`."""
        model.vq_model.save_pretrained(folder / "vq_model")
        return {}


def build_vq_model(settings: VQTrainingConfig, seed: int) -> nn.Module:
    """A tokenizer with random weights of this seed."""
    config = vq_config(settings)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return PatchVQ(**config) if settings.kind == "patch" else JanusVQVAE(JanusVQVAEConfig.from_dict(config))
