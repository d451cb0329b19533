"""Training a model: the stage that turns a batch into losses, and `train`, which runs either stage.

The loop is `trainer`'s, noise and losses are `objectives`', parts are made in `building`, tokenizers are trained in
`codec_stage`. The fact a newcomer gets wrong: batches hold *pixels*. What a picture is for the backbone, latents or
codes, is decided here, by frozen codecs, at the last moment; so one batch serves every path.
"""

import itertools
from collections.abc import Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import set_seed
from PIL import Image
from torch import Tensor, nn

from hybridgen.bridges.adapters import add_lora
from hybridgen.core.figures import grid, side_by_side
from hybridgen.core.files import write_whole
from hybridgen.core.layout import IGNORE, PADDING_DOCUMENT
from hybridgen.core.objectives import (
    DiffusionTargets,
    Loss,
    alignment_loss,
    corrupt,
    image_losses,
    place_codes,
    shift,
    summed,
    token_losses,
    z_loss,
)
from hybridgen.data.loading import RowLoader
from hybridgen.data.mixture import Mixture
from hybridgen.paths.alignment import tower_pixels
from hybridgen.paths.understanding import encode_pixels
from hybridgen.pipeline_hybridgen import HybridGenPipeline
from hybridgen.training.config.schema import TrainConfig
from hybridgen.training.distributed.precision import choose_attention, set_attention
from hybridgen.training.distributed.processes import make_accelerator
from hybridgen.training.distributed.speed import compile_layers, compiler_found, keep_freed_memory
from hybridgen.training.monitor.breakdown import Breakdown
from hybridgen.training.monitor.tracking import list_broken, say
from hybridgen.training.stages.building import build_parts
from hybridgen.training.stages.caching import CachedInputs
from hybridgen.training.stages.dropout import add_dropout
from hybridgen.training.stages.vq import build_codec_stage
from hybridgen.training.trainer import Trainer

FORWARD = (
    "input_ids",
    "position_ids",
    "document_ids",
    "block_ids",
    "noised_mask",
    "pixel_values",
)  # batch keys as they are


class ModelStage:
    """The joint objective over text, codes and diffusion images (`protocols.Stage`).

    Args:
        pipeline: model, processor and codecs, as they will be saved.
        loader: training rows.
        validation: a loader of its rows, made anew at each call; None = no validation.
    """

    unit = "tokens"
    sides = {"text": ("text",), "image": ("code", "diffusion")}  # whose gradients diagnostics compare

    def __init__(self, config: TrainConfig, pipeline, loader: RowLoader, validation=None):
        self.config, self.pipeline, self.loader, self._validation = config, pipeline, loader, validation
        self.model, self.paths = pipeline.model, pipeline.model.config.paths
        self.vq = pipeline.vq_codec if "vq" in self.paths else None
        self.latents = pipeline.latent_codec
        tower = getattr(self.model.model, "vision_model", None)
        self.inputs = CachedInputs(config.data.cache, self.latents, self.vq, tower)
        self.weights = config.objective.weights
        present = {"text": True, "code": "vq" in self.paths, "diffusion": "diffusion" in self.paths}
        self.aligned = "diffusion" in self.paths and self.model.config.diffusion_config.alignment_layer is not None
        self.first_code = self.model.config.vq_config.first_token_id if "vq" in self.paths else None
        present |= {"alignment": self.aligned, "z": config.objective.z_loss > 0}
        self.kinds = tuple(kind for kind, here in present.items() if here)
        levels = config.validation.levels
        self._levels = (torch.arange(levels) + 0.5) / levels  # the middle of each of `levels` equal bins
        self.breakdown = self._breakdown(loader)
        self.validation_breakdown: Breakdown | None = None

    def _breakdown(self, loader: RowLoader) -> Breakdown:
        return Breakdown(list(loader.shares()), self.weights)

    # ------------------------------------------------------------------------------------------------------- losses

    def losses(self, model: nn.Module, batch: dict) -> dict[str, Loss]:
        """
        1. Pictures of the diffusion path become latents; those that are to be drawn are noised.
        2. Pictures of the vq path become codes, in the forward and as labels.
        3. One forward; logits only where a label waits for them. Codes that are tokens of the vocabulary are told
           apart from all of it, as text is.
        4. Each head's loss as (sum, count).
        """
        inputs = {name: batch[name] for name in FORWARD if name in batch}
        targets = DiffusionTargets([], torch.zeros(0, device=batch["input_ids"].device), torch.zeros(0))
        if "pixel_values" in batch and not self.model.model.run_absent_modalities:  # a sharded tower runs on all ranks
            inputs["pixel_values"] = self.inputs.features(batch["pixel_values"], self._look)
        if "diffusion_images" in batch:
            inputs["latents"], targets = self._noised(batch, fixed=not model.training)
            inputs["timesteps"] = targets.timesteps
        code_labels = batch["code_labels"]
        if "vq_images" in batch:
            inputs["codes"] = self.inputs.codes(batch["vq_images"])
            is_code = batch["input_ids"] == self.model.config.placeholder("vq")
            code_labels = place_codes(code_labels, inputs["codes"], is_code)
        text_at, text_targets = shift(batch["labels"])
        code_at, code_targets = shift(code_labels)
        shared = self.first_code is not None
        if self.aligned:
            inputs["alignment_pixels"] = self._as_seen(batch.get("diffusion_images", []))
        codes_to_keep = code_at if "vq" in self.paths and not shared else None
        logits_to_keep = text_at | code_at if shared else text_at
        outputs = model(**inputs, logits_to_keep=logits_to_keep, codes_to_keep=codes_to_keep, use_cache=False)

        logits = {"text": (outputs.logits, text_targets)}
        if shared:
            is_code = code_at[logits_to_keep]
            logits["text"] = (outputs.logits[~is_code], text_targets)
            logits["code"] = (outputs.logits[is_code], code_targets + self.first_code)
        elif "code" in self.kinds:
            logits["code"] = (outputs.code_logits, code_targets)
        each = {kind: token_losses(*pair) for kind, pair in logits.items()}
        losses, images = {kind: summed(values) for kind, values in each.items()}, None
        if "diffusion" in self.kinds:
            prediction = outputs.logits.new_zeros(0) if outputs.prediction is None else outputs.prediction
            images = image_losses(prediction, targets)
            losses["diffusion"] = images.sum(), (targets.weights > 0).sum().float()
        if self.aligned:
            losses["alignment"] = alignment_loss(outputs.alignment, targets)
        places = {"text": text_at, "code": code_at}
        breakdown = self.breakdown if model.training else self.validation_breakdown
        if breakdown is not None:
            breakdown.add(batch, {kind: (places[kind], values) for kind, values in each.items()}, images, targets)
        if "z" in self.kinds:
            losses["z"] = tuple(map(sum, zip(*(z_loss(scores) for scores, _ in logits.values()), strict=True)))
        return losses

    def _noised(self, batch: dict, fixed: bool) -> tuple[Tensor | list[Tensor], DiffusionTargets]:
        return corrupt(
            self.inputs.latents(batch["diffusion_images"]),
            batch["diffusion_noised"],
            batch["diffusion_rows"],
            batch["row_numbers"],
            batch["diffusion_image_first"],
            self.model.config.diffusion_config,
            self.config.objective,
            self.config.seed,
            fixed_levels=self._levels if fixed else None,
            max_timesteps=batch.get("diffusion_max_timesteps"),
        )

    def _look(self, pixels: Tensor) -> Tensor:
        """Pixels (1, 3, h, w) -> the tower's last hidden states (1, tokens, width)."""
        tower = self.model.model.vision_model
        training = tower.training
        seen = encode_pixels(tower.eval(), pixels.to(tower.dtype)).last_hidden_state  # what is kept has no dropout
        tower.train(training)
        return seen

    def _as_seen(self, pictures: Tensor | list[Tensor]) -> Tensor:
        images = self.pipeline.processor.image_processor
        if not len(pictures):
            return torch.zeros(0, 3, images.image_size, images.image_size, device=self.model.device)
        return tower_pixels(pictures, images.image_size, images.image_mean, images.image_std)

    def counts(self, batch: dict) -> dict[str, float]:
        """As `losses` counts, from the labels alone."""
        text, code = (int((batch[name][:, 1:] != IGNORE).sum()) for name in ("labels", "code_labels"))
        drawn = int(batch["diffusion_noised"].sum()) if "diffusion_noised" in batch else 0
        return {"text": text, "code": code, "diffusion": drawn, "alignment": drawn, "z": text + code}

    # ---------------------------------------------------------------------------------------------- what else it does

    def size(self, batch: dict) -> tuple[int, int]:
        """Tokens of documents, and places for them."""
        documents = batch["document_ids"]
        return int((documents != PADDING_DOCUMENT).sum()), documents.numel()

    def begin_step(self, step: int, progress: float) -> None:
        """Nothing changes over a run."""

    def validation_batches(self) -> Iterable[dict]:
        loader = self._validation()
        self.validation_breakdown = self._breakdown(loader)
        return itertools.islice(loader, self.config.validation.batches)

    def describe(self, means: dict[str, float]) -> dict[str, float]:
        return {}

    def sample(self, model: nn.Module) -> Image.Image:
        """Every prompt drawn by every path, from the same seeds each time."""
        settings, pipeline = self.config.sampling, self._with(model)
        pipeline.set_progress_bar_config(disable=True)
        drawn = {}
        for path in settings.paths or [path for path in self.paths if path != "understanding"]:
            drawn[path] = pipeline(settings.prompts, path=path, seed=0, **settings.of_path(path)).images
        return grid(side_by_side(settings.prompts, drawn), columns=2)

    def save(self, model: nn.Module, folder: Path) -> None:
        """The pipeline, or the adapter alone where one was trained."""
        self.inputs.flush()
        (self._with(model) if self.config.lora is None else model).save_pretrained(folder)

    def _with(self, model: nn.Module) -> HybridGenPipeline:
        """The pipeline around these weights: the stage's own model, or a whole one where that is sharded."""
        own = self.pipeline
        if model is own.model:
            return own
        return HybridGenPipeline(model, own.processor, own.scheduler, own.vae, own.vq_model, own.sampling_defaults)


def build_model_stage(config: TrainConfig, accelerator: Accelerator) -> ModelStage:
    """Raises ValueError for files that are missing or of another kind."""
    parts = build_parts(config)
    pipeline, model = parts.pipeline, parts.pipeline.model
    if config.lora is not None:
        add_lora(model, config.lora, config.seed)
    precision = "bf16" if accelerator.mixed_precision == "bf16" else "fp32"
    compiled = config.compile and compiler_found(accelerator.device)
    set_attention(model, choose_attention(config.attention, precision, accelerator.device, compiled))
    if config.dropout:
        add_dropout(model.model.language_model, config.dropout)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if compiled:
        compile_layers(model.model.language_model)
    elif config.compile and accelerator.is_main_process:
        say("compile: no C++ compiler (on a GPU: no Triton) with Python's headers is here, so layers run as written")
    for codec in (pipeline.vae, pipeline.vq_model):
        if codec is not None:
            codec.to(accelerator.device)

    def loader(tasks, prefetch: int) -> RowLoader:
        rank, world = accelerator.process_index, accelerator.num_processes
        shape = (
            config.data.per_device_batch_size,
            config.data.sequence_length,
            rank,
            world,
            prefetch,
            config.accumulation,
        )
        training, data = tasks is parts.tasks, config.data
        mixture = Mixture(tasks, None, data.temperature, data.max_broken, data.loader_threads if training else 0)
        kind = "broken" if training else "broken_validation"
        name = f"{kind}_{rank}.jsonl" if data.shard_by_rank and training else f"{kind}.jsonl"
        listing = partial(list_broken, Path(config.output_dir) / name)
        listing = listing if rank == 0 or data.shard_by_rank and training else None
        return RowLoader(mixture, pipeline.processor, *shape, data.shard_by_rank and training, listing)

    validation = (lambda: loader(parts.validation, prefetch=0)) if parts.validation else None
    stage = ModelStage(config, pipeline, loader(parts.tasks, config.data.prefetch), validation)
    if validation is not None:
        next(iter(stage.validation_batches()))  # what is wrong with these data is said now, not hours later
    return stage


# ------------------------------------------------------------------------------------------------------------ train


def train(config: TrainConfig) -> Path:
    """Run a stage to its end and return `<output_dir>/checkpoint`; ends the process with 0 after SIGTERM.

    Raises:
        ValueError, OSError: what a user can mend, in one sentence.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    keep_freed_memory()
    folder = Path(config.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    accelerator = make_accelerator(config)
    if accelerator.is_main_process:
        write_whole(folder / "config.yaml", yaml.safe_dump(asdict(config), sort_keys=False))
    build = build_codec_stage if config.stage == "codec" else build_model_stage
    stage = build(config, accelerator)
    set_seed(config.seed, device_specific=True)  # dropout's: everything else is drawn from generators of its own
    if not Trainer(config, stage, accelerator).run():
        raise SystemExit(0)
    return folder / "checkpoint"
