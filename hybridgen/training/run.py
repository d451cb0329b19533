"""`train`: one run from its config to its checkpoint, whatever its stage.

The loop is in `trainer`, what is trained in `stages`; what a terminal shows of errors is in `cli`.
"""

from pathlib import Path

import torch

from hybridgen.training.config.schema import TrainConfig
from hybridgen.training.distributed.processes import make_accelerator, peers_lost, seed_dropout
from hybridgen.training.distributed.speed import keep_freed_memory
from hybridgen.training.stages.building import check_fits
from hybridgen.training.stages.codec import build_codec_stage
from hybridgen.training.stages.model import build_model_stage
from hybridgen.training.trainer import Trainer


def train(config: TrainConfig) -> Path:
    """Run a stage to its end and return `<output_dir>/checkpoint`; ends the process with 0 after SIGTERM, with
    130 after Ctrl-C, once the state is saved.

    Raises:
        ValueError, OSError: in one sentence, what the user can change.
    """
    if config.stage == "model":
        check_fits(config)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    keep_freed_memory()
    folder = Path(config.output_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"output_dir {str(folder)!r} cannot be made ({error.strerror}); name another folder") from error
    accelerator = make_accelerator(config)
    build = build_codec_stage if config.stage == "codec" else build_model_stage
    stage = build(config, accelerator)
    seed_dropout(config.seed)
    with peers_lost(accelerator, folder):  # where weights are shared, they are dealt out here
        trainer = Trainer(config, stage, accelerator)
    if not trainer.run():
        raise SystemExit(130 if trainer.stopped_by == "Ctrl-C" else 0)
    return folder / "checkpoint"
