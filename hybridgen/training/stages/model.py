"""Training a model: the stage that turns a batch into losses.

The loop is in `trainer`, noise and losses are in `core.objectives`, parts are made in `building`; codecs are trained by
`vq` and `vae`. Batches hold pixels: frozen codecs turn them into latents or codes here, just before the forward, so one
kind of batch serves every path.
"""

import itertools
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from PIL import Image
from torch import Tensor, nn

from hybridgen.bridges.adapters import add_lora
from hybridgen.core.figures import grid, side_by_side
from hybridgen.core.layout import IGNORE, PADDING_DOCUMENT
from hybridgen.core.loss_kernels import installed_kernel
from hybridgen.core.objectives import (
    DiffusionTargets,
    Loss,
    add_drawn_noise,
    alignment_loss,
    draw_noise,
    image_losses,
    place_codes,
    predict_at,
    sum_images,
    sum_tokens,
    z_loss,
)
from hybridgen.core.sizes import Images
from hybridgen.data.document_source import DocumentSource
from hybridgen.data.loading import Batch, RowLoader
from hybridgen.data.mixture import Mixture
from hybridgen.paths.alignment import tower_pixels
from hybridgen.paths.moe import router_weight
from hybridgen.paths.understanding import encode_features
from hybridgen.pipeline_hybridgen import HybridGenPipeline
from hybridgen.processing_hybridgen import HybridGenProcessor
from hybridgen.training.config.schema import TrainConfig
from hybridgen.training.distributed.agreement import caught, raise_together
from hybridgen.training.distributed.fsdp import makes_weights
from hybridgen.training.distributed.precision import attention_of, choose_attention, choose_precision, set_attention
from hybridgen.training.distributed.speed import compile_layers, compiler_found
from hybridgen.training.monitor.breakdown import Breakdown
from hybridgen.training.monitor.tracking import BrokenList, say
from hybridgen.training.stages.building import build_parts
from hybridgen.training.stages.caching import CachedInputs, with_keys
from hybridgen.training.stages.dropout import add_dropout

# what the forward takes from a batch as it is
FORWARD = ("input_ids", "position_ids", "document_ids", "block_ids", "noised_mask", "pixel_values")


class ModelStage:
    """The joint objective over text, codes and diffusion images (`protocols.Stage`).

    Args:
        pipeline: model, processor and codecs, as they will be saved.
        loader: of training rows.
        validation: makes a new loader of validation rows at each call; None = no validation.
    """

    unit = "tokens"
    gradient_groups = {"text": ("text",), "image": ("code", "diffusion")}  # whose gradients diagnostics compare

    def __init__(self, config: TrainConfig, pipeline, loader: RowLoader, validation=None):
        self.config, self.pipeline, self.loader, self._validation = config, pipeline, loader, validation
        self.model, self.paths = pipeline.model, pipeline.model.config.paths
        self.vq = pipeline.vq_codec if "vq" in self.paths else None
        self.latent_codec = pipeline.latent_codec
        tower = getattr(self.model.model, "vision_model", None)
        layers = self.model.config.feature_layers
        self.inputs = CachedInputs(config.data.cache, self.latent_codec, self.vq, tower, layers)
        balance = router_weight(self.model.config.text_config, config.objective.router_weight)
        balance = balance if self.model.model.has_routers else 0.0
        self.weights = config.objective.weights | {"router": balance}
        diffusion, vq = self.model.config.diffusion_config, self.model.config.vq_config
        self.has_alignment = diffusion is not None and diffusion.alignment_layer is not None
        present = {"text": True, "code": vq is not None, "diffusion": diffusion is not None}
        present |= {"alignment": self.has_alignment, "z": config.objective.z_loss > 0}
        present["router"] = balance > 0
        present["token"] = config.objective.has_joint_mean
        self.part_of = {kind: "token" for kind in ("text", "code") if present["token"] and present[kind]}
        self.kinds = tuple(kind for kind, is_present in present.items() if is_present)
        self.breakdown = self._breakdown(loader)
        self.validation_breakdown: Breakdown | None = None
        self.validation_loader: RowLoader | None = None

    def _breakdown(self, loader: RowLoader) -> Breakdown:
        diffusion = self.model.config.diffusion_config
        timesteps = {} if diffusion is None else {"timesteps": diffusion.num_train_timesteps}
        return Breakdown(list(loader.shares()), self.weights, joint=self.config.objective.has_joint_mean, **timesteps)

    # ------------------------------------------------------------------------------------------------------- losses

    def losses(self, model: nn.Module, batch: dict) -> dict[str, Loss]:
        """
        1. Pictures become inputs of the model: features, noised latents, codes (which are labels as well).
        2. One forward, which gives the loss of each token that has a label: logits stay inside.
        3. Each head's loss as (sum, count).
        4. The losses of single tokens and images go to the breakdown.
        """
        inputs, targets, code_labels = self._inputs(batch, fixed_noise=not model.training)
        labels = {"text": batch["labels"]} | ({"code": code_labels} if "code" in self.kinds else {})
        inputs |= {f"{kind}_labels": values for kind, values in labels.items()}
        if "router" in self.kinds:
            inputs["output_router_logits"] = True
        outputs = model(**inputs, with_log_z="z" in self.kinds, use_cache=False)

        of_tokens = {kind: outputs[f"{kind}_losses"] for kind in labels}
        losses, of_images = {kind: sum_tokens(values) for kind, values in of_tokens.items()}, None
        if "diffusion" in self.kinds:
            prediction = outputs.text_losses.new_zeros(0) if outputs.prediction is None else outputs.prediction
            of_images = image_losses(prediction, targets)
            losses["diffusion"] = sum_images(of_images, targets)
        if self.has_alignment:
            losses["alignment"] = alignment_loss(outputs.alignment, targets)
        if "z" in self.kinds:
            of_kinds = [z_loss(outputs[f"{kind}_log_z"]) for kind in labels]
            losses["z"] = tuple(map(sum, zip(*of_kinds, strict=True)))
        if "router" in self.kinds:
            tokens = (batch["document_ids"] != PADDING_DOCUMENT).sum().float()
            losses["router"] = outputs.router_loss * tokens, tokens
        if "token" in self.kinds:
            losses["token"] = tuple(map(sum, zip(*(losses[kind] for kind in self.part_of), strict=True)))

        breakdown = self.breakdown if model.training else self.validation_breakdown
        if breakdown is not None:
            tokens = {kind: (predict_at(labels[kind]), values) for kind, values in of_tokens.items()}
            breakdown.add(batch, tokens, of_images, targets)
        return losses

    def _inputs(self, batch: dict, fixed_noise: bool) -> tuple[dict, DiffusionTargets, Tensor]:
        """The forward's arguments, what the diffusion head should predict, and the labels of codes (B, N)."""
        batch = batch | self.pixels(batch)
        inputs = {name: batch[name] for name in FORWARD if name in batch}
        targets = DiffusionTargets([], torch.zeros(0, device=batch["input_ids"].device), torch.zeros(0))
        kept = not self.model.config.native_aspect and not self.model.model.run_absent_modalities
        if (
            "pixel_values" in batch and kept
        ):  # features of a grid of their own are not; a sharded tower runs on all ranks
            with self._autocast(batch["pixel_values"].device):  # as the forward, of which a tower is a part
                inputs["pixel_values"] = self.inputs.features(batch, self._tower_features)
        if "diffusion_images" in batch:
            inputs["latents"], targets = self._noised(batch, fixed_noise)
            inputs["timesteps"] = targets.timesteps
        code_labels = batch["code_labels"]
        if "vq_images" in batch:
            inputs["codes"] = self.inputs.codes(batch)
            is_code = batch["input_ids"] == self.model.config.placeholder("vq")
            code_labels = place_codes(code_labels, inputs["codes"], is_code)
        if self.has_alignment:
            inputs["alignment_pixels"] = self._alignment_pixels(batch.get("diffusion_images", []))
        return inputs, targets, code_labels

    def pixels(self, batch: dict) -> dict[str, Images]:
        """The pictures of a batch as values: they travel as levels, a quarter of the bytes."""
        of_paths = {"understanding": "pixel_values", "diffusion": "diffusion_images", "vq": "vq_images"}
        values = self.pipeline.processor.pixel_values
        return {name: values(batch[name], path) for path, name in of_paths.items() if name in batch}

    def _autocast(self, device: torch.device) -> torch.autocast:
        """What the accelerator wraps the model's forward in."""
        bf16 = choose_precision(self.config.precision, device) == "bf16"
        return torch.autocast(device.type, torch.bfloat16, enabled=bf16)

    def _noised(self, batch: dict, fixed: bool) -> tuple[Images, DiffusionTargets]:
        """Of the noise that was drawn where the batch was made; else it is drawn now."""
        latents, device = self.inputs.latents(batch), batch["input_ids"].device
        if "diffusion_noise" not in batch:
            settings = self.model.config.diffusion_config, self.latent_codec.downsample_factor, self.config
            batch = send_to_device(draw_batch_noise(batch, *settings, fixed), device)
        drawn = [batch[f"diffusion_{name}"] for name in ("noise", "timesteps", "noised")]
        return add_drawn_noise(latents, *drawn, self.model.config.diffusion_config, self.config.objective)

    def _tower_features(self, pixels: Tensor) -> Tensor:
        """Pixels (1, 3, h, w) -> the tower's features (1, T, width), without dropout, to be cached."""
        tower = self.model.model.vision_model
        training = tower.training
        features, _ = encode_features(tower.eval(), pixels, self.model.config.feature_layers)
        tower.train(training)
        return features

    def _alignment_pixels(self, pictures: Tensor | list[Tensor]) -> Tensor:
        """Pictures of the diffusion path as the tower reads them: (I, 3, side, side)."""
        images = self.pipeline.processor.image_processor
        if not len(pictures):
            return torch.zeros(0, 3, images.image_size, images.image_size, device=self.model.device)
        return tower_pixels(pictures, images.image_size, images.image_mean, images.image_std)

    def counts(self, batch: dict) -> dict[str, float]:
        """The counts of `losses`, from the labels alone."""
        text, code = (int((batch[name][:, 1:] != IGNORE).sum()) for name in ("labels", "code_labels"))
        noised = int(batch["diffusion_noised"].sum()) if "diffusion_noised" in batch else 0
        both = {"token": text + code, "z": text + code, "router": self.size(batch)[0]}
        return {"text": text, "code": code, "diffusion": noised, "alignment": noised, **both}

    # -------------------------------------------------------------------------------- validation, samples, the result

    def size(self, batch: dict) -> tuple[int, int]:
        """Tokens of documents, and tokens of the rows, padding included."""
        documents = batch["document_ids"]
        return int((documents != PADDING_DOCUMENT).sum()), documents.numel()

    def begin_step(self, step: int, progress: float) -> None:
        """Nothing of this stage changes over a run."""

    def validation_batches(self) -> Iterable[dict]:
        self.validation_loader = self._validation()
        self.validation_breakdown = self._breakdown(self.validation_loader)
        return itertools.islice(self.validation_loader, self.config.validation.batches)

    def describe(self, means: dict[str, float]) -> dict[str, float]:
        return {}

    def sample(self, model: nn.Module) -> Image.Image:
        """Every prompt drawn by every path, from the same seeds each time."""
        settings, pipeline = self.config.sampling, self._pipeline_of(model)
        pipeline.set_progress_bar_config(disable=True)
        drawn = {}
        for path in settings.paths or [path for path in self.paths if path != "understanding"]:
            drawn[path] = pipeline(settings.prompts, path=path, seed=0).images  # by the sampling defaults
        return grid(side_by_side(settings.prompts, drawn), columns=2)

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the pipeline, or only the adapter where one was trained."""
        self.inputs.flush()
        (self._pipeline_of(model) if self.config.lora is None else model).save_pretrained(folder)

    def _pipeline_of(self, model: nn.Module) -> HybridGenPipeline:
        """The pipeline with the stage's own model or, where that is sharded, with a whole copy."""
        ours = self.pipeline
        if model is ours.model:
            return ours
        return HybridGenPipeline(model, ours.processor, ours.scheduler, ours.vae, ours.vq_model, ours.sampling_defaults)


def draw_batch_noise(
    batch: dict, diffusion_config, downsample_factor: int, config: TrainConfig, fixed: bool = False
) -> dict:
    """A batch of a loader with all that is random of its images, `diffusion_noise` and `diffusion_timesteps`: drawn
    where batches are made, so that no step waits for it, and sent to the device with the rest.

    Args:
        downsample_factor: pixels along one side of a latent.
        fixed: the noise levels of validation: the middle of each of `validation.levels` equal bins.
    """
    if "diffusion_images" not in batch or diffusion_config is None:
        return batch
    channels, levels = diffusion_config.in_channels, config.validation.levels
    sizes = [[side // downsample_factor for side in image.shape[-2:]] for image in batch["diffusion_images"]]
    noise, timesteps = draw_noise(
        [(channels, *size) for size in sizes],
        batch["diffusion_noised"],
        batch["diffusion_rows"],
        batch["row_numbers"],
        batch["diffusion_image_first"],
        diffusion_config,
        config.objective,
        config.seed,
        fixed_levels=(torch.arange(levels) + 0.5) / levels if fixed else None,
        max_timesteps=batch.get("diffusion_max_timesteps"),
    )
    return batch | {"diffusion_noise": noise, "diffusion_timesteps": timesteps}


def build_model_stage(config: TrainConfig, accelerator: Accelerator) -> ModelStage:
    """The stage of a config, its model ready to be trained and its codecs on the device.

    Raises:
        ValueError: files are missing or of another kind.
    """
    parts = build_parts(config, weights=makes_weights(accelerator))
    processor, text_config = parts.pipeline.processor, parts.pipeline.model.config.text_config
    max_positions = getattr(text_config, "max_position_embeddings", None)
    prepare_model(parts.pipeline.model, config, accelerator)
    for codec in (parts.pipeline.vae, parts.pipeline.vq_model):
        if codec is not None:
            codec.to(accelerator.device)

    draw = partial(
        draw_batch_noise,
        diffusion_config=parts.pipeline.model.config.diffusion_config,
        downsample_factor=parts.pipeline.latent_codec.downsample_factor,
        config=config,
    )

    def prepare(batch: Batch, fixed: bool = False) -> Batch:
        batch = draw(batch, fixed=fixed)
        return batch if config.data.cache is None else with_keys(batch)

    def validation_loader() -> RowLoader:
        return row_loader(
            config, accelerator, processor, parts.validation, max_positions, False, partial(prepare, fixed=True)
        )

    loader = row_loader(config, accelerator, processor, parts.sources, max_positions, True, prepare)
    stage = ModelStage(config, parts.pipeline, loader, validation_loader if parts.validation else None)
    if parts.validation:
        # so that errors in these data are raised now, not hours later
        _, error = caught(lambda: next(iter(stage.validation_batches())))
        raise_together(accelerator, error)
    return stage


def prepare_model(model: nn.Module, config: TrainConfig, accelerator: Accelerator) -> None:
    """Adapter, attention, dropout, gradient checkpointing and compilation, as the config says."""
    if config.lora is not None:
        add_lora(model, config.lora, config.seed)
    precision = choose_precision(config.precision, accelerator.device)
    compiled = config.compile and compiler_found(accelerator.device)
    dropped = getattr(model.config.text_config, "attention_dropout", None) or 0.0
    attention = choose_attention(config.attention, precision, accelerator.device, compiled, dropped)
    set_attention(model, attention_of(model.model.language_model, attention, config.attention))
    if config.dropout:
        add_dropout(model.model.language_model, config.dropout)
    if config.gradient_checkpointing:
        # the newer name of the same, since transformers 5.20 or so, where the older one warns
        enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
        enable({"use_reentrant": False})
    if compiled:
        compile_layers(model.model.language_model)
    elif config.compile and accelerator.is_main_process:
        say("compile: no C++ compiler (on a GPU: no Triton) with Python's headers is here, so layers run as written")
    if accelerator.device.type == "cuda" and accelerator.is_main_process and (kernel := installed_kernel()):
        say(f"losses of tokens: by {kernel}, which is installed, wherever its kernels take the head")


def row_loader(
    config: TrainConfig,
    accelerator: Accelerator,
    processor: HybridGenProcessor,
    sources: list[DocumentSource],
    max_positions: int | None,
    training: bool,
    prepare: Callable[[Batch], Batch] | None = None,
) -> RowLoader:
    """Rows of this process; in training made ahead by threads, and of files of its own if `data.shard_by_rank`. The
    main process lists the broken records of all."""
    data, rank = config.data, accelerator.process_index
    threads = data.loader_threads if training else 0
    mixture = Mixture(sources, None, data.temperature, data.max_broken, threads, max_positions)
    name = "broken" if training else "broken_validation"
    on_broken = BrokenList(Path(config.output_dir) / f"{name}.jsonl") if rank == 0 else None
    shape = (data.per_device_batch_size, data.sequence_length, rank, accelerator.num_processes)
    prefetch = data.prefetch if training else 0
    own_files = data.shard_by_rank and training
    how = (prefetch, config.accumulation, own_files, on_broken, prepare, accelerator.device.type == "cuda")
    loader, error = caught(lambda: RowLoader(mixture, processor, *shape, *how))
    if training:  # in a validation, `read_together` does it
        raise_together(accelerator, error)
    return loader
