"""Training a VQ tokenizer by the same loop: what `codec.vq` of a model stage loads is written here.

The quantization itself is `codecs.quantize`, shared with `VQCodec`, so that codes mean the same in both. The fact a
newcomer gets wrong: codes die. A code that no latent chooses gets no gradient, and most of a codebook can be lost in
the first hundred steps. Three things are against that here, each in the config: steps without quantization and then
codes from k-means, codes that follow the latents that chose them (arXiv 1711.00937, appendix A.1), and moving those
that are not used.

Shapes: I pictures, H x W pixels, h x w codes of a picture, D width of the codebook, V codes, T latents of a batch.
"""

from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, broadcast
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.janus.configuration_janus import JanusVQVAEConfig
from transformers.models.janus.modeling_janus import JanusVQVAE

from hybridgen.codecs.frozen import Quantized, compares_directions, quantize, to_latents, to_pixels
from hybridgen.codecs.patch_vq import PatchVQ
from hybridgen.core.objectives import row_generator
from hybridgen.data.sources import open_source
from hybridgen.training.config.parts import vq_config
from hybridgen.training.config.schema import TrainConfig, VQTrainingConfig
from hybridgen.training.monitor.tracking import list_broken
from hybridgen.training.stages.clustering import choose_far, kmeans
from hybridgen.training.stages.fidelity import perplexity
from hybridgen.training.stages.pictures import PictureLoader
from hybridgen.training.stages.reconstruction import Reconstruction, ReconstructionStage
from hybridgen.training.stages.vae import VAEModel, VAEStage, build_vae

RECENT = 32768  # latents remembered, for k-means and for codes that move
USAGE_DECAY = 0.99  # of the usage counts, where `codebook_decay` does not say
SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)


class CodecModel(nn.Module):
    """The tokenizer, and what its codebook's upkeep remembers, as buffers: they are saved and restored with it.

    `usage` (V,) and `sums` (V, D) are moving averages of how often a code is chosen and of the latents that choose it;
    `seen_*` the same of the current step alone; `recent` (RECENT, D) the last latents, `filled` of them so far.
    """

    def __init__(self, vq_model: nn.Module):
        super().__init__()
        self.vq_model, self.directions = vq_model, compares_directions(vq_model)
        codes, width = vq_model.quantize.embedding.weight.shape
        for name, shape in {
            "usage": (codes,), "sums": (codes, width), "seen_usage": (codes,), "seen_sums": (codes, width),
            "recent": (RECENT, width), "filled": (),
        }.items():  # fmt: skip
            self.register_buffer(name, torch.zeros(shape))

    def forward(self, pictures: Tensor, quantized: bool) -> tuple[Tensor, Tensor, Quantized]:
        """Pictures (I, 3, H, W) -> decoded ones, latents (I, D, h, w) as they are compared with codes, their codes."""
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


class CodecStage(ReconstructionStage):
    """Reconstruction, commitment and codebook losses on pictures (`protocols.Stage`)."""

    def __init__(self, config: TrainConfig, model: CodecModel, loader: PictureLoader, validation, accelerator):
        settings = config.vq_model
        weights = {"commitment": settings.commitment}
        if settings.codebook_decay is None:
            weights["codebook"] = settings.codebook
        else:
            model.codebook.requires_grad_(False)
        decoder = model.vq_model.decoder
        last_layer = getattr(decoder, "inner", decoder).conv_out.weight  # PatchVQ's stands inside
        super().__init__(config, settings, weights, model, loader, validation, accelerator, last_layer)
        self.codebook_size = len(model.codebook)
        self.quantized = True

    def reconstruct(self, model: nn.Module, batch: dict) -> Reconstruction:
        quantized = self.quantized or not model.training
        decoded, z, chosen = model(batch["pictures"], quantized)
        if model.training:
            self._remember(z.detach(), chosen.codes)
        own = {"commitment": chosen.commitment_error * quantized, "codebook": chosen.codebook_error * quantized}
        return Reconstruction(decoded, own, chosen.codes)

    # --------------------------------------------------------------------------------------------- codebook's upkeep

    @torch.no_grad()
    def _remember(self, z: Tensor, codes: Tensor) -> None:
        """Count which codes were chosen, over all ranks, and keep the latents."""
        model = self.model
        flat, codes = z.permute(0, 2, 3, 1).reshape(-1, z.shape[1]), codes.flatten()  # T, D
        usage = torch.bincount(codes, minlength=len(model.usage)).float()
        sums = torch.zeros_like(model.sums).index_add_(0, codes, flat)
        model.seen_usage += self._accelerator.reduce(usage, reduction="sum")
        model.seen_sums += self._accelerator.reduce(sums, reduction="sum")
        flat = flat[-RECENT:]
        model.recent.copy_(torch.cat([model.recent[len(flat) :], flat]))
        model.filled.add_(len(flat)).clamp_(max=RECENT)

    @torch.no_grad()
    def begin_step(self, step: int, progress: float) -> None:
        """
        1. Take in what the last step saw; codes that are moving averages move.
        2. After the last continuous step, the codes become the means of clusters of latents.
        3. Now and then, codes that are hardly used move to latents that are far from their code.
        """
        super().begin_step(step, progress)
        model, settings = self.model, self.settings
        self.quantized = step >= settings.continuous_steps
        decay = USAGE_DECAY if settings.codebook_decay is None else settings.codebook_decay
        model.usage.lerp_(model.seen_usage, 1 - decay)
        model.sums.lerp_(model.seen_sums, 1 - decay)
        model.seen_usage.zero_()
        model.seen_sums.zero_()
        codebook = model.codebook
        if settings.codebook_decay is not None and self.quantized and step > settings.continuous_steps:
            used = model.usage > 1e-3
            codebook[used] = self._code_at(model.sums[used] / model.usage[used, None])
        if not self.quantized or model.filled == 0:
            return
        generator = row_generator(self.config.seed, step)
        if step == settings.continuous_steps:
            latents = broadcast(model.recent[RECENT - int(model.filled) :])
            centres, sizes = kmeans(latents, len(codebook), generator)
            self._place(torch.arange(len(codebook)), centres, sizes / sizes.mean())
        elif settings.restart_every and step % settings.restart_every == 0 and progress < settings.restart_until:
            fair = model.usage.mean()
            dead = (model.usage < settings.restart_below * fair).nonzero()[:, 0]
            latents = broadcast(model.recent[RECENT - int(model.filled) :])
            far = choose_far(latents, self._code_at(codebook), len(dead), generator)
            self._place(dead, far, torch.ones(len(dead)))

    def _place(self, numbers: Tensor, centres: Tensor, shares: Tensor) -> None:
        """Put codes at centres, as if each had been chosen `shares` times its fair share."""
        model = self.model
        numbers, centres = numbers.to(centres.device), self._code_at(centres)
        fair = model.usage.mean()
        model.codebook[numbers] = centres
        model.usage[numbers] = shares.to(centres) * fair
        model.sums[numbers] = centres * model.usage[numbers, None]

    def _code_at(self, points: Tensor) -> Tensor:
        """Points (T, D) as codes: on the unit sphere, where codes are directions."""
        return F.normalize(points, dim=-1) if self.model.directions else points

    # ---------------------------------------------------------------------------------------------- what else it does

    def describe(self, means: dict[str, float]) -> dict[str, float]:
        """Besides: of late, the share of codes chosen at least a tenth as often as is fair, and their perplexity; of a
        validation, the share of codes that were chosen at all, and the perplexity of those choices."""
        usage = self.model.usage
        of_late = {"codebook_use": float((usage > 0.1 * usage.mean()).float().mean())}
        of_late["codebook_perplexity"] = perplexity(usage)
        return of_late | super().describe(means)

    def keep(self, model: CodecModel, folder: Path) -> dict[str, float]:
        """What `codec.vq` takes: `vq_model/`."""
        model.vq_model.save_pretrained(folder / "vq_model")
        return {}


def build_codec_stage(config: TrainConfig, accelerator: Accelerator) -> ReconstructionStage:
    """The stage of whichever codec the config has.

    Raises:
        ValueError: sources that cannot be opened, a perceptual model that cannot be used, or sharded training.
    """
    if accelerator.distributed_type in SHARDED:
        raise ValueError(
            f"stage is 'codec', which needs its weights whole in every process, but accelerate shards them "
            f"({accelerator.distributed_type.value}); use configs/accelerate/single.yaml or plain data parallelism"
        )
    settings = config.vae if config.vq_model is None else config.vq_model
    tasks = [open_source(source, config.seed) for source in config.data.sources]
    held_out = [open_source(source, config.seed) for source in config.validation.sources]

    def loader(of: list) -> PictureLoader:
        rank, world = accelerator.process_index, accelerator.num_processes
        name = "broken.jsonl" if of is tasks else "broken_validation.jsonl"
        listing = partial(list_broken, Path(config.output_dir) / name) if rank == 0 else None
        shape = (config.data.per_device_batch_size, settings.image_size, rank, world)
        return PictureLoader(of, *shape, config.data.max_broken, listing)

    if config.vq_model is None:
        kind, model = VAEStage, VAEModel(build_vae(config.vae, config.seed))
        if config.gradient_checkpointing:
            model.vae.enable_gradient_checkpointing()
    else:
        kind, model = CodecStage, CodecModel(build_vq_model(config.vq_model, config.seed))
    stage = kind(config, model, loader(tasks), lambda: loader(held_out), accelerator)
    if held_out:
        next(loader(held_out))  # what is wrong with these data is said now, not hours later
    return stage


def build_vq_model(settings: VQTrainingConfig, seed: int) -> nn.Module:
    """A tokenizer with random weights of this seed."""
    config = vq_config(settings)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return PatchVQ(**config) if settings.kind == "patch" else JanusVQVAE(JanusVQVAEConfig.from_dict(config))
