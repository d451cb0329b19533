"""A stage small enough to train in milliseconds: two losses, dropout, batches that may lack either modality.

Run as a program it trains, so that tests can kill it: `python toy.py OUTPUT_DIR key=value ...`.
"""

import sys
import time
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from hybridgen.training.config import strict
from hybridgen.training.config.schema import TrainConfig
from hybridgen.training.distributed.processes import make_accelerator
from hybridgen.training.trainer import Trainer

WIDTH = 8


class Block(nn.Module):
    """One layer of a stack, under the names that parameter groups look for."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(WIDTH, WIDTH) for _ in range(2)])

    def forward(self, x):
        for layer in self.layers:
            x = x + torch.tanh(layer(x))
        return x


class ToyModel(nn.Module):
    _no_split_modules = ["Block", "NotHere"]  # what FSDP2 shards together

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(16, WIDTH)
        self.stack = nn.ModuleDict({"layers": nn.ModuleList([Block(), Block()])})
        self.norm = nn.LayerNorm(WIDTH)
        self.dropout = nn.Dropout(0.1)
        self.heads = nn.ModuleDict({kind: nn.Linear(WIDTH, 1) for kind in ("a", "b")})

    def forward(self, ids):
        x = self.embedding(ids)
        for block in self.stack["layers"]:
            x = block(x)
        x = self.dropout(self.norm(x))
        return {kind: head(x)[..., 0] for kind, head in self.heads.items()}


class ToyLoader:
    """Batches that are functions of their number; number 2 of every 4 lacks kind b, number 3 lacks kind a."""

    def __init__(self, rows: int, rank: int = 0, world_size: int = 1, both: bool = False):
        self.rows, self.rank, self.world_size, self.both, self.number = rows, rank, world_size, both, 0

    def __iter__(self):
        return self

    def __next__(self):
        batch = self.batch(self.number * self.world_size + self.rank)
        self.number += 1
        return batch

    def batch(self, number: int) -> dict:
        rows = []
        for row in range(number * self.rows, (number + 1) * self.rows):
            generator = torch.Generator().manual_seed(row)
            ids = torch.randint(0, 16, (6,), generator=generator)
            labelled = {kind: torch.rand(6, generator=generator) < 0.5 for kind in ("a", "b")}
            if not self.both and row % 4 == 2:
                labelled["b"][:] = False
            if not self.both and row % 4 == 3:
                labelled["a"][:] = False
            rows.append({"ids": ids, **labelled})
        records = list(range(number * self.rows, (number + 1) * self.rows))
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]} | {"records": records}

    def where(self, record):
        return f"toy.jsonl:{record}"

    def state_dict(self):
        return {"number": self.number}

    def load_state_dict(self, state):
        self.number = state["number"]

    def changes(self, state):
        return []

    def shares(self):
        return {"toy": 1.0}

    def close(self):
        pass


class ToyStage:
    kinds = ("a", "b")
    weights = {"a": 1.0, "b": 0.5}
    unit = "tokens"

    def __init__(self, loader: ToyLoader, seed: int = 0, dropout: float = 0.1, pause: float = 0.0):
        torch.manual_seed(seed)
        self.model, self.loader, self.pause = ToyModel(), loader, pause
        self.model.dropout.p = dropout
        self.seen: list[dict] = []

    def begin_step(self, step, progress):
        time.sleep(self.pause)

    def counts(self, batch):
        return {kind: float(batch[kind].sum()) for kind in self.kinds}

    def size(self, batch):
        return int((batch["a"] | batch["b"]).sum()), batch["ids"].numel()

    def losses(self, model, batch):
        predicted = model(batch["ids"])
        targets = {"a": (batch["ids"] % 5).float(), "b": (batch["ids"] % 3).float()}
        return {
            kind: (((predicted[kind] - targets[kind]) ** 2 * batch[kind]).sum(), batch[kind].sum().float())
            for kind in self.kinds
        }

    def validation_batches(self):
        loader = self.loader
        return [loader.batch(number * loader.world_size + loader.rank) for number in (1000, 1001)]

    def describe(self, means):
        return {"twice_a": 2 * means["a"]} if "a" in means else {}

    def sample(self, model):
        return Image.new("RGB", (4, 4))

    def save(self, model, folder):
        save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / "toy.safetensors")


class WaitingStage(ToyStage):
    """In step `at` (from 0) it makes a file and waits until its process has got a SIGTERM, so that a test knows in
    which step the signal comes.

    Args:
        ready: the file.
        stop: the trainer's, once there is one.
    """

    def __init__(self, loader: ToyLoader, at: int, ready: Path, **stage):
        super().__init__(loader, **stage)
        self.at, self.ready, self.stop = at, ready, None

    def begin_step(self, step, progress):
        if step == self.at:
            self.wait()

    def wait(self):
        self.ready.touch()
        while not self.stop.requested:
            time.sleep(0.01)


def run_waiting(config: TrainConfig, at: int, ranks: tuple[int, ...] = (0,), **stage) -> None:
    """Train; the processes of these ranks wait for a SIGTERM in step `at`."""
    accelerator = make_accelerator(config)
    loader = ToyLoader(config.data.per_device_batch_size, accelerator.process_index, accelerator.num_processes)
    at = at if accelerator.process_index in ranks else -1
    waiting = WaitingStage(loader, at, Path(config.output_dir) / "ready", **stage)
    trainer = Trainer(config, waiting, accelerator)
    waiting.stop = trainer._stop
    assert not trainer.run()


def config_of(folder: Path, **changes) -> TrainConfig:
    """A toy run's config: 12 steps, every feature on."""
    content = {
        "output_dir": str(folder),
        "steps": 12,
        "data": {"sources": [], "per_device_batch_size": 4},
        "optimizer": {"name": "muon", "lr": 0.01},
        "schedule": {"warmup_steps": 3},
        "ema": {"decay": 0.9},
        "validation": {"every": 4},
        "sampling": {"every": 6},
        "log_every": 2,
        "save_every": 4,
        "accumulation": 2,
        "precision": "fp32",
    }
    return strict.build(TrainConfig, {**content, **changes})


def train(config: TrainConfig, **stage) -> Trainer:
    """With one thread, as in a `ProcessGroup`: two add up in another order, and runs are compared to the bit."""
    torch.set_num_threads(1)
    torch.manual_seed(7)
    accelerator = make_accelerator(config)
    loader = ToyLoader(
        config.data.per_device_batch_size,
        accelerator.process_index,
        accelerator.num_processes,
        stage.pop("both", False),
    )
    trainer = Trainer(config, ToyStage(loader, **stage), accelerator)
    trainer.finished = trainer.run()
    return trainer


if __name__ == "__main__":
    words = [word.split("=") for word in sys.argv[2:]]
    changes = {key: strict.parse(value, key) for key, value in words}
    stage = {name: changes.pop(name) for name in ("pause", "dropout") if name in changes}
    train(config_of(Path(sys.argv[1]), **changes), **stage)
