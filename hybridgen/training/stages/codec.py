"""The codec stage of a config, VQ or VAE, with its loaders (the model stage is built in `stages.model`)."""

from functools import partial
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import DistributedType

from hybridgen.data.document_source import DocumentSource
from hybridgen.data.sources import open_source
from hybridgen.training.config.schema import TrainConfig
from hybridgen.training.monitor.tracking import list_broken
from hybridgen.training.stages.pictures import PictureLoader
from hybridgen.training.stages.reconstruction import ReconstructionStage
from hybridgen.training.stages.vae import VAEStage, VAETrainingModel, build_vae
from hybridgen.training.stages.vq import VQStage, VQTrainingModel, build_vq_model

SHARDING_ENGINES = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)


def build_codec_stage(config: TrainConfig, accelerator: Accelerator) -> ReconstructionStage:
    """The stage of the config's codec, VQ or VAE.

    Raises:
        ValueError: sources that cannot be opened, a perceptual model that cannot be used, or sharded training.
    """
    if accelerator.distributed_type in SHARDING_ENGINES:
        raise ValueError(
            f"stage is 'codec', which needs its weights whole in every process, but accelerate shards them "
            f"({accelerator.distributed_type.value}); use configs/accelerate/single.yaml or plain data parallelism"
        )
    settings = config.vae if config.vq_model is None else config.vq_model
    sources = [open_source(source, config.seed) for source in config.data.sources]
    held_out = [open_source(source, config.seed) for source in config.validation.sources]

    def loader(sources: list[DocumentSource], broken_file: str, **ahead: int) -> PictureLoader:
        rank, world_size = accelerator.process_index, accelerator.num_processes
        on_broken = partial(list_broken, Path(config.output_dir) / broken_file) if rank == 0 else None
        shape = (config.data.per_device_batch_size, settings.image_size, rank, world_size)
        return PictureLoader(sources, *shape, config.data.max_broken, on_broken, **ahead)

    def validation_loader() -> PictureLoader:
        return loader(held_out, "broken_validation.jsonl")

    if config.vq_model is None:
        kind, model = VAEStage, VAETrainingModel(build_vae(config.vae, config.seed))
        if config.gradient_checkpointing:
            model.vae.enable_gradient_checkpointing()
    else:
        kind, model = VQStage, VQTrainingModel(build_vq_model(config.vq_model, config.seed))
    ahead = {"prefetch": config.data.prefetch, "loader_threads": config.data.loader_threads}
    stage = kind(config, model, loader(sources, "broken.jsonl", **ahead), validation_loader, accelerator)
    if held_out:
        next(validation_loader())  # so that errors in these data are raised now, not hours later
    return stage
