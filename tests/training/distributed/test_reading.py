"""Two processes that read different records: one list of what is broken, one limit, one sentence, one position."""

import json
from pathlib import Path

import pytest

from hybridgen.data.loading import RowLoader
from hybridgen.data.mixture import Mixture
from hybridgen.training.distributed.processes import make_accelerator
from hybridgen.training.monitor.tracking import BrokenList
from hybridgen.training.trainer import Trainer
from tests.data.in_memory import Listed, numbered, source_of
from tests.processors import assistant, tiny_processor, user
from tests.training.processes import ProcessGroup
from tests.training.toy import ToyLoader, ToyStage, config_of

LONG = (1, 6, 8, 13, 19)  # of 24 records: too long for a row, so broken
CHANGES = {"log_every": 1, "steps": 8, "save_every": 4, "validation": {"every": 0}, "sampling": {"every": 0}}


class Reading(ToyLoader):
    """The toy's batches, and packed rows beside them, whose texts are written down by row and step."""

    def __init__(self, folder: Path, rank: int, world_size: int, max_broken: float, gone_at: int):
        super().__init__(2 // world_size, rank, world_size)
        words = [f"<{number}>" + " red" * (90 if number in LONG else number % 7) for number in range(24)]
        sources = [
            source_of(Listed([[user("what?"), assistant(each)] for each in words]), 1, "texts", shuffle=False),
            source_of(numbered(9), 1, "numbers", weight=0.5),
        ]
        on_bad = BrokenList(folder / "broken.jsonl") if rank == 0 else None
        mixture = Mixture(sources, max_broken=max_broken)
        shape = (2 // world_size, 48, rank, world_size)
        self.packed = RowLoader(mixture, tiny_processor(), *shape, prefetch=1, on_bad_records=on_bad)
        self.file, self.gone_at = folder / "read.jsonl", gone_at
        self.totals, self.met_since_shared = self.packed.totals, self.packed.met_since_shared
        self.agree_on_bad_records, self.shares = self.packed.agree_on_bad_records, self.packed.shares

    @property
    def unshared(self) -> int:
        return self.packed.unshared

    def __next__(self):
        if self.number == self.gone_at and self.rank == 1:
            raise FileNotFoundError(2, "No such file or directory", "shard.tar")
        batch = next(self.packed)
        with self.file.open("a") as file:
            for row, ids in zip(batch["row_numbers"].tolist(), batch["input_ids"].tolist(), strict=True):
                file.write(json.dumps([row, ids]) + "\n")
        return super().__next__()

    def state_dict(self):
        return super().state_dict() | self.packed.state_dict()

    def load_state_dict(self, state):
        super().load_state_dict(state)
        return self.packed.load_state_dict(state)


def train_reading(folder: Path, max_broken: float = 99, gone_at: int = -1, **changes) -> None:
    config = config_of(folder, **CHANGES | changes)
    folder.mkdir(parents=True, exist_ok=True)
    accelerator = make_accelerator(config)
    loader = Reading(folder, accelerator.process_index, accelerator.num_processes, max_broken, gone_at)
    Trainer(config, ToyStage(loader, dropout=0.0), accelerator).run()


def read_rows(folder: Path) -> dict[int, list[int]]:
    return dict(json.loads(line) for line in (folder / "read.jsonl").read_text().splitlines())


def broken(folder: Path) -> list[str]:
    return [json.loads(line)["where"] for line in (folder / "broken.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    train_reading(folder)
    return folder


def test_two_read_what_one_reads_and_know_the_same_of_it(tmp_path, alone):
    """Rows, broken records and logged shares; then one process goes on from the states of both."""
    where = {"folder": tmp_path / "run"}
    ProcessGroup(tmp_path / "logs", train_reading, 2, "ddp", **where, steps=4).finish()
    shares = [
        [{k: v for k, v in json.loads(line).items() if k.startswith("share/")} for line in lines.splitlines()[:4]]
        for lines in ((folder / "metrics.jsonl").read_text() for folder in (tmp_path / "run", alone))
    ]
    assert shares[0] == shares[1]
    assert len(shares[0][0]) == 2
    parts = [json.loads((tmp_path / f"run/state/step_000004/rank_{rank}.json").read_text()) for rank in (0, 1)]
    assert [list(part["loader"]["row_streams"]) for part in parts] == [["0"], ["1"]]
    assert ["broken" in part["loader"] for part in parts] == [True, False]
    train_reading(**where)  # one process, from both files
    assert read_rows(tmp_path / "run") == read_rows(alone)
    assert sorted(broken(tmp_path / "run")) == sorted(broken(alone))
    assert len(broken(alone)) == len(LONG)


def test_the_limit_is_over_all_processes(tmp_path):
    """Neither meets more than three broken records, both together five."""
    group = ProcessGroup(tmp_path / "logs", train_reading, 2, "ddp", folder=tmp_path / "run", max_broken=3, steps=30)
    assert group.wait() == [2, 2], group.output()
    said = [[line for line in group.output(rank).splitlines() if line.startswith("hybridgen: ")][-1] for rank in (0, 1)]
    assert said[0] == said[1]
    assert "4 broken records are more than data.max_broken 3 allows: source 'texts', record" in said[0]
    assert "Traceback" not in group.output()


def test_a_file_that_is_gone_for_one_ends_both_with_its_sentence(tmp_path):
    group = ProcessGroup(tmp_path / "logs", train_reading, 2, "ddp", folder=tmp_path / "run", gone_at=2)
    assert group.wait() == [2, 2], group.output()
    for rank in (0, 1):
        assert "the data of step 2 cannot be read (shard.tar: No such file or directory)" in group.output(rank)
        assert "Traceback" not in group.output(rank)


def test_a_list_that_cannot_be_written_ends_both(tmp_path):
    """The main process alone writes it: the other would wait in the next step's all-reduce."""
    (tmp_path / "run/broken.jsonl").mkdir(parents=True)
    group = ProcessGroup(tmp_path / "logs", train_reading, 2, "ddp", folder=tmp_path / "run", steps=30)
    assert group.wait() == [2, 2], group.output()
    for rank in (0, 1):
        assert "broken.jsonl" in group.output(rank)
        assert "Is a directory" in group.output(rank)
        assert "Traceback" not in group.output(rank)
