"""What the stages of all codecs share: reconstruct pictures, compare, show, score.

`vq.VQStage` and `vae.VAEStage` add what lies between encoder and decoder. Validation decodes what the saved codec will
decode, codes or the posterior's mode, without noise; so its PSNR and SSIM are those of the result, and `scores.json`
beside the codec has the same numbers.

Shapes: I pictures, H x W pixels.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from PIL import Image
from torch import Tensor, nn

from hybridgen.core.devices import sum_dtype
from hybridgen.core.figures import grid, side_by_side
from hybridgen.core.files import write_json
from hybridgen.core.objectives import Loss
from hybridgen.image_processing_hybridgen import HybridGenImageProcessor
from hybridgen.training.stages.adversarial import Adversary
from hybridgen.training.stages.fidelity import ReconstructionScores
from hybridgen.training.stages.perceptual import FeatureDistance
from hybridgen.training.stages.pictures import PictureLoader

SHOWN = 8  # pictures on a sample sheet


class Reconstruction(NamedTuple):
    """Pictures after encoding and decoding.

    Args:
        decoded: (I, 3, H, W).
        losses: the codec's own by kind, (I,) each.
        codes: the chosen codes; None for a codec without a codebook.
    """

    decoded: Tensor
    losses: dict[str, Tensor]
    codes: Tensor | None = None


class ReconstructionStage:
    """Reconstruction losses on pictures, with perceptual and adversarial ones by config (`protocols.Stage`).

    Args:
        config: a `TrainConfig`.
        settings: its `vq_model` or `vae` section.
        weights: of the codec's own losses.
        model: the codec, with everything that has to be saved with it.
        validation: makes a new loader of held-out pictures at each call.
        last_layer: the weight of the decoder's last layer.
    """

    unit = "pictures"
    codebook_size: int | None = None

    def __init__(
        self, config, settings, weights: dict[str, float], model: nn.Module, loader: PictureLoader,
        validation: Callable[[], PictureLoader], accelerator: Accelerator, last_layer: nn.Parameter,
    ):  # fmt: skip
        self.config, self.settings, self.model, self.loader = config, settings, model, loader
        self._validation, self._accelerator = validation, accelerator
        self.weights = {"l1": settings.l1, "l2": settings.l2, **weights}
        self.features = self.adversary = None
        if settings.perceptual is not None:
            self.features = FeatureDistance(settings.perceptual, settings.image_size, accelerator.device)
            self.weights["perceptual"] = settings.perceptual.weight
        self._reconstruction_kinds = [kind for kind in ("l1", "l2", "perceptual") if kind in self.weights]
        if settings.adversarial is not None:
            self.adversary = Adversary(settings.adversarial, config, last_layer, accelerator)
            self.weights |= {"adversarial": 0.0, "discriminator": 0.0}  # the second is only logged
        self.kinds = tuple(self.weights)
        self._scores: ReconstructionScores | None = None  # while a validation goes on

    def reconstruct(self, model: nn.Module, batch: dict) -> Reconstruction:
        """Encode and decode a batch: as in training, or, when `model.training` is false, as the saved codec does."""
        raise NotImplementedError

    def save_codec(self, model: nn.Module, folder: Path) -> dict[str, float]:
        """Write the codec; returns further numbers for `scores.json`."""
        raise NotImplementedError

    # ------------------------------------------------------------------------------------------------------- losses

    def losses(self, model: nn.Module, batch: dict) -> dict[str, Loss]:
        """The sum of each kind of loss over pictures, each picture's being a mean over its values."""
        pictures = batch["pictures"]
        decoded, each, codes = self.reconstruct(model, batch)
        error = decoded - pictures
        each |= {"l1": error.abs().flatten(1).mean(1), "l2": error.pow(2).flatten(1).mean(1)}
        if self.features is not None:
            with self._accelerator.autocast():
                each["perceptual"] = self.features(decoded, pictures)
        if self.adversary is not None:
            errors = sum(self.weights[kind] * each[kind] for kind in self._reconstruction_kinds)
            each |= self.adversary.losses(decoded, pictures, errors, model.training)
        if not model.training and self._scores is not None:
            self._scores.add(pictures, decoded, codes)
        count = torch.tensor(float(len(pictures)), device=pictures.device)
        return {kind: (each[kind].sum(), count) for kind in self.kinds}

    def counts(self, batch: dict) -> dict[str, float]:
        return dict.fromkeys(self.kinds, float(len(batch["pictures"])))

    def size(self, batch: dict) -> tuple[int, int]:
        return len(batch["pictures"]), len(batch["pictures"])

    def begin_step(self, step: int, progress: float) -> None:
        if self.adversary is not None:
            self.adversary.begin_step(step, progress)
            self.weights["adversarial"] = self.adversary.weight

    # ------------------------------------------------------------------------------- validation, samples, the result

    def validation_batches(self) -> Iterable[dict]:
        self._scores = self._new_scores()
        self.validation_loader = self._validation()
        return itertools.islice(self.validation_loader, self.config.validation.batches)

    def describe(self, means: dict[str, float]) -> dict[str, float]:
        """After a validation its scores (`fidelity`); of training batches the PSNR of the mean error in decibels, where
        values span 2."""
        if self._scores is not None:
            scores, self._scores = self._scores, None
            scores.reduce(self._accelerator)
            return scores.scores()
        numbers = {"psnr": float(10 * torch.log10(4 / torch.tensor(means["l2"]).clamp(min=1e-10)))}
        return numbers if self.adversary is None else {**numbers, "adversarial_weight": self.adversary.weight}

    @torch.no_grad()
    def sample(self, model: nn.Module) -> Image.Image:
        """Pictures beside their reconstructions."""
        batch = next(self._pictures(SHOWN))
        pictures = batch["pictures"]
        decoded = self.reconstruct(model, batch).decoded
        processor = HybridGenImageProcessor()
        drawn = {"picture": processor.postprocess(pictures), "decoded": processor.postprocess(decoded)}
        return grid(side_by_side([""] * len(pictures), drawn), columns=2)

    def save(self, model: nn.Module, folder: Path) -> None:
        """The codec, and `scores.json`: how it does on held-out pictures, or on those of training if there are none."""
        further = self.save_codec(model, folder)
        write_json(folder / "scores.json", self.score(model) | further)

    @torch.no_grad()
    def score(self, model: nn.Module) -> dict:
        """The last validation again, in this process alone."""
        summed, rows, ranks = (
            self._new_scores(),
            self.config.data.per_device_batch_size,
            self._accelerator.num_processes,
        )
        errors = torch.zeros(2, dtype=torch.float64)
        of_ranks = [
            itertools.islice(self._pictures(rows, rank, ranks), self.config.validation.batches) for rank in range(ranks)
        ]
        for batch in itertools.chain.from_iterable(zip(*of_ranks, strict=True)):
            decoded, _, codes = self.reconstruct(model, batch)
            summed.add(batch["pictures"], decoded, codes)
            error = (decoded - batch["pictures"]).to(sum_dtype(decoded.device))
            errors += torch.stack([error.abs().mean(), error.pow(2).mean()]).cpu() * len(decoded)
        count = int(summed.sums[0])
        scores = {"pictures": count, "held_out": bool(self.config.validation.sources)}
        scores |= {"image_size": self.settings.image_size}
        scores |= {"l1": float(errors[0]) / count, "l2": float(errors[1]) / count}
        return scores | summed.scores()

    def _new_scores(self) -> ReconstructionScores:
        return ReconstructionScores(self.codebook_size)

    def _pictures(self, rows: int, rank: int = 0, ranks: int = 1, training: bool = False) -> Iterator[dict]:
        """Batches of held-out pictures, or of training pictures if there are none, from the first, for this process:
        those of one of several ranks."""
        held_out = bool(self.config.validation.sources) and not training
        sources = [source.anew() for source in (self._validation() if held_out else self.loader).sources]
        size, max_broken = self.settings.image_size, self.config.data.max_broken
        with contextlib.closing(PictureLoader(sources, rows, size, rank, ranks, max_broken)) as loader:
            for batch in loader:
                yield send_to_device(batch, self._accelerator.device)
