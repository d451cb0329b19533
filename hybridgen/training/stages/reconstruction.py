"""The half of the codec stage that is the same for every codec: reconstruct pictures, compare, show, score.

`codec_stage.CodecStage` (VQ) and `vae_stage.VAEStage` add what lies between encoder and decoder. The fact a newcomer
gets wrong: validation decodes what the saved codec will decode, codes or the posterior's mode, without noise; so its
PSNR and SSIM are those of the result, and `scores.json` beside the codec says the same numbers again.

Shapes: I pictures, H x W pixels.
"""

import itertools
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from PIL import Image
from torch import Tensor, nn

from hybridgen.core.figures import grid, side_by_side
from hybridgen.core.objectives import Loss
from hybridgen.image_processing_hybridgen import HybridGenImageProcessor
from hybridgen.training.stages.adversarial import Adversary
from hybridgen.training.stages.fidelity import Tally
from hybridgen.training.stages.perceptual import FeatureDistance
from hybridgen.training.stages.pictures import PictureLoader

SHOWN = 8  # pictures on a sample sheet


class Reconstruction(NamedTuple):
    """What a codec makes of pictures.

    Args:
        decoded: (I, 3, H, W).
        losses: of its own, by kind, (I,) each.
        codes: what was chosen, if it chooses.
    """

    decoded: Tensor
    losses: dict[str, Tensor]
    codes: Tensor | None = None


class ReconstructionStage:
    """Reconstruction losses on pictures, with perceptual and adversarial ones if asked for (`protocols.Stage`).

    Args:
        config: a `TrainConfig`.
        settings: its `vq_model` or `vae` section.
        weights: of the codec's own losses.
        model: the codec, with all that has to be saved with it.
        validation: makes a loader of held-out pictures, anew at each call.
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
        self._compared = [kind for kind in ("l1", "l2", "perceptual") if kind in self.weights]
        if settings.adversarial is not None:
            self.adversary = Adversary(settings.adversarial, config, last_layer, accelerator)
            self.weights |= {"adversarial": 0.0, "discriminator": 0.0}  # the second is logged, its own optimizer's
        self.kinds = tuple(self.weights)
        self._tally: Tally | None = None  # while a validation goes on

    def reconstruct(self, model: nn.Module, batch: dict) -> Reconstruction:
        """A batch through the codec, as it is trained, or as it will be used when `model.training` is false."""
        raise NotImplementedError

    def keep(self, model: nn.Module, folder: Path) -> dict[str, float]:
        """Save the codec; returns what else there is to say of it."""
        raise NotImplementedError

    # ------------------------------------------------------------------------------------------------------- losses

    def losses(self, model: nn.Module, batch: dict) -> dict[str, Loss]:
        """Each is a mean over a picture, summed over pictures."""
        pictures = batch["pictures"]
        decoded, each, codes = self.reconstruct(model, batch)
        error = decoded - pictures
        each |= {"l1": error.abs().flatten(1).mean(1), "l2": error.pow(2).flatten(1).mean(1)}
        if self.features is not None:
            with self._accelerator.autocast():
                each["perceptual"] = self.features(decoded, pictures)
        if self.adversary is not None:
            errors = sum(self.weights[kind] * each[kind] for kind in self._compared)
            each |= self.adversary.losses(decoded, pictures, errors, model.training)
        if not model.training and self._tally is not None:
            self._tally.add(pictures, decoded, codes)
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

    # ------------------------------------------------------------------------------------------------- what it tells

    def validation_batches(self) -> Iterable[dict]:
        self._tally = self._new_tally()
        return itertools.islice(self._validation(), self.config.validation.batches)

    def describe(self, means: dict[str, float]) -> dict[str, float]:
        """After a validation its scores (`fidelity`); of training batches the PSNR of the mean error in decibels (peak
        to peak is 2)."""
        if self._tally is not None:
            tally, self._tally = self._tally, None
            tally.reduce(self._accelerator)
            return tally.scores()
        made = {"psnr": float(10 * torch.log10(4 / torch.tensor(means["l2"]).clamp(min=1e-10)))}
        return made if self.adversary is None else {**made, "adversarial_weight": self.adversary.weight}

    @torch.no_grad()
    def sample(self, model: nn.Module) -> Image.Image:
        """Pictures beside what becomes of them."""
        batch = next(self._pictures(SHOWN))
        pictures = batch["pictures"]
        decoded = self.reconstruct(model, batch).decoded
        processor = HybridGenImageProcessor()
        drawn = {"picture": processor.postprocess(pictures), "decoded": processor.postprocess(decoded)}
        return grid(side_by_side([""] * len(pictures), drawn), columns=2)

    def save(self, model: nn.Module, folder: Path) -> None:
        """The codec, and `scores.json`: what it does with held-out pictures, or with those of training."""
        told = self.keep(model, folder)
        scores = self.score(model) | told
        (folder / "scores.json").write_text(json.dumps(scores, indent=1), encoding="utf-8")

    @torch.no_grad()
    def score(self, model: nn.Module) -> dict:
        """The last validation again, in this process alone, so that it can be had of any state."""
        tally, rows = self._new_tally(), self.config.data.per_device_batch_size
        batches = self.config.validation.batches * self._accelerator.num_processes
        errors = torch.zeros(2, dtype=torch.float64)
        for batch in itertools.islice(self._pictures(rows), batches):
            decoded, _, codes = self.reconstruct(model, batch)
            tally.add(batch["pictures"], decoded, codes)
            error = (decoded - batch["pictures"]).double()
            errors += torch.stack([error.abs().mean(), error.pow(2).mean()]).cpu() * len(decoded)
        seen = int(tally.sums[0])
        told = {"pictures": seen, "held_out": bool(self.config.validation.sources)}
        told |= {"image_size": self.settings.image_size, "l1": float(errors[0]) / seen, "l2": float(errors[1]) / seen}
        return told | tally.scores()

    def _new_tally(self) -> Tally:
        return Tally(self._accelerator.device, self.codebook_size)

    def _pictures(self, rows: int, training: bool = False) -> Iterable[dict]:
        """Held-out pictures, or where there are none those of training, from the first, in this process alone."""
        held_out = bool(self.config.validation.sources) and not training
        tasks = (self._validation() if held_out else self.loader).tasks
        loader = PictureLoader(tasks, rows, self.settings.image_size, max_broken=self.config.data.max_broken)
        return (send_to_device(batch, self._accelerator.device) for batch in loader)
