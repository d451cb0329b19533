"""Muon's matrices divided among processes: each does its share, and the results are those of one that does all."""

import json
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from hybridgen.training.optim import division
from hybridgen.training.optim.muon import orthogonalise
from tests.training.processes import ProcessGroup

SHAPES = [(5, (6, 4)), (3, (4, 6)), (1, (5, 3)), (4, (1, 4))]  # of an odd number, of rows that processes share unevenly


def matrices() -> list[list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [[torch.randn(shape, generator=generator) for _ in range(count)] for count, shape in SHAPES]


def divide(folder: Path, form: str, at_a_time: int) -> None:
    """In each process: the results, gathered, beside those of one process, and how many matrices were its own."""
    PartialState(cpu=True)
    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    division.AT_A_TIME = at_a_time
    mesh, placements = init_device_mesh("cpu", (size,)), [Shard(0)]
    if form == "hybrid":
        mesh, placements = init_device_mesh("cpu", (2, size // 2)), [Replicate(), Shard(0)]
    done, most, worst = [], [], 0.0

    def work(stack):
        done.append(len(stack))
        most.append(stack.numel())
        return orthogonalise(stack, 5)

    for whole in matrices():
        parts = whole if form == "ddp" else [distribute_tensor(each, mesh, placements) for each in whole]
        local = [getattr(each, "_local_tensor", each) for each in parts]
        results = division.divided(work, local, parts[0])
        expected = orthogonalise(torch.stack(whole), 5)
        for result, right in zip(results, expected, strict=True):
            if form != "ddp":
                right = distribute_tensor(right, mesh, placements).to_local()
            assert result.shape == right.shape
            worst = max(worst, float((result - right).abs().max())) if right.numel() else worst
    (folder / f"{rank}.json").write_text(json.dumps({"done": sum(done), "most": max(most), "worst": worst}))


@pytest.mark.parametrize(("form", "processes"), [("ddp", 2), ("shards", 2), ("hybrid", 4)])
@pytest.mark.parametrize("at_a_time", [1, 1 << 27])
def test_each_does_its_share(tmp_path, form, processes, at_a_time):
    """One matrix at a time, or all together: equal to one process' to the bit, and every matrix done once."""
    ProcessGroup(tmp_path, divide, processes, "ddp", folder=tmp_path, form=form, at_a_time=at_a_time).finish()
    told = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(processes)]
    assert max(each["worst"] for each in told) == 0.0
    shares = [each["done"] for each in told]
    count = sum(number for number, _ in SHAPES)
    assert sum(shares) == count
    assert max(shares) <= sum(-(-number // processes) for number, _ in SHAPES)
    largest = max(rows * columns for _, (rows, columns) in SHAPES)
    assert max(each["most"] for each in told) <= (largest if at_a_time == 1 else 3 * largest)


def test_one_process_does_all_at_once():
    """One product for all matrices of a shape, as long as they are within AT_A_TIME."""
    calls = []

    def work(stack):
        calls.append(len(stack))
        return orthogonalise(stack, 5)

    for whole in matrices():
        results = division.divided(work, whole, whole[0])
        assert torch.equal(torch.stack(results), orthogonalise(torch.stack(whole), 5))
    assert calls == [count for count, _ in SHAPES]


def test_one_process_has_a_bound_too(monkeypatch):
    monkeypatch.setattr(division, "AT_A_TIME", 1)
    calls = []

    def work(stack):
        calls.append(len(stack))
        return orthogonalise(stack, 5)

    for whole in matrices():
        results = division.divided(work, whole, whole[0])
        torch.testing.assert_close(torch.stack(results), orthogonalise(torch.stack(whole), 5))
    assert calls == [1] * sum(count for count, _ in SHAPES)
