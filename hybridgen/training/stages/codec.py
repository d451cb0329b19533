"""The codec stage of a config, VQ or VAE, with its loaders (the model stage is built in `stages.model`)."""

from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import DistributedType

from hybridgen.data.document_source import DocumentSource
from hybridgen.training.config.schema import TrainConfig
from hybridgen.training.distributed.agreement import caught, raise_together
from hybridgen.training.monitor.tracking import BrokenList
from hybridgen.training.stages.building import open_sources
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
    sources, held_out = open_sources(config)

    data, rank = config.data, accelerator.process_index

    def loader(sources: list[DocumentSource], training: bool) -> PictureLoader:
        own_files, name = data.shard_by_rank and training, "broken" if training else "broken_validation"
        on_bad_records = BrokenList(Path(config.output_dir) / f"{name}.jsonl") if rank == 0 else None
        ahead = (data.prefetch, data.loader_threads) if training else (0, 0)
        shape = (data.per_device_batch_size, settings.image_size, rank, accelerator.num_processes)
        return PictureLoader(sources, *shape, data.max_broken, on_bad_records, *ahead, own_files)

    def validation_loader() -> PictureLoader:
        return loader(held_out, training=False)

    if config.vq_model is None:
        kind, model = VAEStage, VAETrainingModel(build_vae(config.vae, config.seed))
        if config.gradient_checkpointing:
            model.vae.enable_gradient_checkpointing()
    else:
        kind, model = VQStage, VQTrainingModel(build_vq_model(config.vq_model, config.seed))
    stage = kind(config, model, loader(sources, training=True), validation_loader, accelerator)
    if held_out:
        # so that errors in these data are raised now, not hours later
        _, error = caught(lambda: next(validation_loader()))
        raise_together(accelerator, error)
    return stage
