#!/usr/bin/env python
"""How fast one GPU trains a hybrid of 1.2 B parameters at 4 k and 32 k packed tokens, beside what a plan says.

    python scripts/bench_gpu.py [--steps 12] [--peak-tflops N]      a CUDA GPU of 80 GB, at most ten minutes
    python scripts/bench_gpu.py --toy                               the same steps on tiny models, on a CPU too

Of each size: the trainer's own steps (bf16, flex attention and layers compiled, AdamW, clipping) on the batch that
`hybridgen plan` assumes, half words and half drawn pictures of 256 tokens, without data on a disk. Printed are tokens a
second, model FLOPs utilisation (of `--peak-tflops`, or of the fastest matrix product that is measured), the most bytes
that tensors took beside the plan's, and a line for a config's header. The first steps, which compile, do not count.
"""

import argparse
import gc
import platform
import sys
import tempfile
import time

import torch

from hybridgen import HybridGenForConditionalGeneration
from hybridgen.training.config import strict
from hybridgen.training.config.schema import TrainConfig
from hybridgen.training.distributed.processes import make_accelerator
from hybridgen.training.distributed.speed import keep_freed_memory
from hybridgen.training.planning.batches import PlannedData, planned_data
from hybridgen.training.planning.report import Machines, bytes_of_process
from hybridgen.training.planning.simulation import precision_on, simulate
from hybridgen.training.stages.model import ModelStage, prepare_model
from hybridgen.training.trainer import Trainer

WARMUP = 3  # steps that compile, and find what memory they need
ONE_BILLION = {  # the shape of Llama 3.2 1B
    "model_type": "qwen3", "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "tie_word_embeddings": True,
}  # fmt: skip
TOY = {
    "model_type": "qwen3", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "tie_word_embeddings": True,
}  # fmt: skip
# rows, tokens of a row
SIZES, TOY_SIZES = [(8, 4096), (1, 32_768)], [(2, 128), (1, 256)]


class Repeated:
    """A loader of one batch, again and again: no data is waited for (`protocols.Loader`)."""

    def __init__(self, data: PlannedData):
        self.data = data

    def __iter__(self):
        return self

    def __next__(self) -> dict:
        return self.data.batch

    def state_dict(self) -> dict:
        return {}

    def shares(self) -> dict[str, float]:
        return self.data.shares()

    def close(self) -> None:
        pass


def config_of(rows: int, length: int, steps: int, toy: bool, peak: float | None, folder: str) -> TrainConfig:
    """One size as a training config. Its sources are not there, so a batch of their shares is assumed."""
    side = 16 if toy else 256  # pixels; 16 or 256 tokens
    pictures = {"source": "pairs.jsonl", "name": "pairs", "read": "diffusion", "write": "diffusion", "loss_on": "all"}
    return strict.build(
        TrainConfig,
        {
            "output_dir": folder, "steps": WARMUP + steps, "log_every": WARMUP + steps, "compile": not toy,
            "gradient_checkpointing": rows * length > 2**14,
            "diagnostics": {"every": 0, "peak_tflops": peak},
            "model": {
                "tokenizer": {"vocab_size": 500 if toy else 128_256},
                "text_config": {**(TOY if toy else ONE_BILLION), "max_position_embeddings": length},
                "diffusion_config": {"in_channels": 3, "patch_size": 4 if toy else 16, "sample_size": side},
            },
            "data": {
                "sources": [{"source": "text.jsonl", "name": "text", "form": "text"}, pictures],
                "sequence_length": length, "per_device_batch_size": rows,
            },
        },
    )  # fmt: skip


def measure(config: TrainConfig, data: PlannedData) -> dict[str, float]:
    """The trainer's numbers of the steps behind the first ones."""
    accelerator = make_accelerator(config)
    torch.manual_seed(config.seed)
    with accelerator.device:
        model = HybridGenForConditionalGeneration(data.model_config)
    prepare_model(model, config, accelerator)
    trainer = Trainer(config, ModelStage(config, data.pipeline(model), Repeated(data)), accelerator)
    trainer._restore()
    trainer.model.train()
    try:
        for _ in range(WARMUP):
            trainer._train_step()
        trainer.meter.read()  # from here on
        trainer.diagnostics.numbers(1.0)
        trainer.meter.since = time.monotonic()
        for _ in range(config.steps - WARMUP):
            record = trainer._train_step()
    finally:
        trainer.tracker.close()
    return record


def planned_bytes(config: TrainConfig, data: PlannedData, device: torch.device) -> float:
    """What `hybridgen plan` says one process holds at its peak."""
    on_gpu = device.type == "cuda"
    machines = Machines(int(on_gpu), float("inf"), "ddp", None, 1.0)
    simulated = simulate(config, data, "cuda" if on_gpu else "cpu")
    half = precision_on(config, "cuda" if on_gpu else "cpu") == "bf16"
    return float(sum(bytes_of_process(simulated, machines, half).values()))


def run_size(rows: int, length: int, args: argparse.Namespace) -> str:
    """The header's line of one size."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as folder:
        config = config_of(rows, length, args.steps, args.toy, args.peak_tflops, folder)
        data = planned_data(config, 1)
        planned = planned_bytes(config, data, device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        record = measure(config, data)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    on = torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.machine()} CPU"
    memory = "peak memory" if device.type == "cuda" else "peak memory of the process"
    return (
        f"# measured   {time.strftime('%Y-%m-%d')}, {on}, torch {torch.__version__}, {rows} x {length:,} tokens: "
        f"{record['tokens_per_second']:,.0f} tokens a second, MFU {record['mfu']:.1%}, "
        f"{memory} {record['peak_memory_gb']:.2f} GB (plan: {planned / 1e9:.2f})"
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--toy", action="store_true", help="tiny models, on a CPU where there is no GPU")
    parser.add_argument("--steps", type=int, default=12, help=f"behind {WARMUP} that do not count (default: 12)")
    parser.add_argument("--peak-tflops", type=float, default=None, help="of the GPU in bf16, as its maker states it")
    args = parser.parse_args(arguments)
    if not (args.toy or torch.cuda.is_available()):
        print("no CUDA GPU is here; --toy runs the same steps on a CPU", file=sys.stderr)
        return 2
    keep_freed_memory()
    for rows, length in TOY_SIZES if args.toy else SIZES:
        print(run_size(rows, length, args), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
