"""Work on whole matrices, divided among processes: each does its share, and all get every result.

Shapes: matrices (m, n) of one shape. S processes share the rows of each (FSDP2; 1 = each has all of them), and R
replicas hold the same (the processes of DDP, the nodes of hybrid sharding), so S R processes divide the work:

1. Matrix i is given to replica i mod R; there the j-th of those is given to shard j mod S.
2. Within a replica each process sends its rows of every matrix to the one that has to do it (all-to-all), which so has
   whole matrices, works on them, and sends the rows of the results back.
3. Between replicas the results are gathered.

Matrices travel in bf16. `AT_A_TIME` bounds what a process works on at once (one matrix, if that is larger): its memory
is the same with any number of matrices and processes, and small matrices are still few large products.
"""

from collections.abc import Callable

import torch
from torch import Tensor, distributed
from torch.distributed import ProcessGroup
from torch.distributed.tensor import DTensor

AT_A_TIME = 1 << 27  # numbers in the matrices that a process works on together: 256 MiB of bf16

Work = Callable[[Tensor], Tensor]  # (L, m, n) -> (L, m, n)


def divided(work: Work, rows: list[Tensor], like: Tensor) -> list[Tensor]:
    """The work done on all of these matrices; called by all processes together.

    Args:
        work: on each matrix alone, which rounds it to bf16 first.
        rows: those of each matrix that this process holds, (k, n).
        like: a parameter that is sharded as they are.

    Returns:
        the same rows of the results.
    """
    shards, replicas = process_groups(like)
    processes = _size(shards) * _size(replicas)
    at_once = processes * max(1, AT_A_TIME // like.numel())
    done: list[Tensor] = []
    if processes == 1:
        for start in range(0, len(rows), at_once):
            done += work(torch.stack(rows[start : start + at_once]))
        return done
    for start in range(0, len(rows), at_once):
        some = [each.bfloat16() for each in rows[start : start + at_once]]
        mine = some[_rank(replicas) :: _size(replicas)]
        results = _among_shards(work, mine, like.shape, shards)
        done += _among_replicas(results, some, replicas)
    return done


def process_groups(like: Tensor) -> tuple[ProcessGroup | None, ProcessGroup | None]:
    """The processes that share a parameter's rows with this one, and those that hold the same rows; None = it alone."""
    if isinstance(like, DTensor):
        mesh = like.device_mesh
        return (mesh.get_group(0), None) if mesh.ndim == 1 else (mesh.get_group(1), mesh.get_group(0))
    return None, distributed.group.WORLD if distributed.is_initialized() else None


def _size(group: ProcessGroup | None) -> int:
    return 1 if group is None else distributed.get_world_size(group)


def _rank(group: ProcessGroup | None) -> int:
    return 0 if group is None else distributed.get_rank(group)


def _among_shards(work: Work, rows: list[Tensor], shape: torch.Size, group: ProcessGroup | None) -> list[Tensor]:
    """Step 2: this process' rows of its replica's matrices -> the same rows of the results."""
    size, rank = _size(group), _rank(group)
    if not rows:
        return []
    if size == 1:
        return list(work(torch.stack(rows)))
    height = -(-shape[0] // size)  # DTensor's rule: equal heights, the last ones lower or none
    heights = [min(height, max(0, shape[0] - shard * height)) for shard in range(size)]
    counts = [len(rows[shard::size]) for shard in range(size)]
    ours = [count * heights[rank] * shape[1] for count in counts]  # numbers in our rows, by who works on them
    theirs = [counts[rank] * each * shape[1] for each in heights]  # numbers in what we work on, by whose rows they are
    outgoing = torch.cat([each.flatten() for shard in range(size) for each in rows[shard::size]])
    incoming = outgoing.new_empty(sum(theirs))
    _exchange(incoming, outgoing, theirs, ours, group)
    if counts[rank]:
        parts = [part.view(counts[rank], -1, shape[1]) for part in incoming.split(theirs)]
        results = work(torch.cat(parts, dim=1)).split(heights, dim=1)  # whole matrices in between
        incoming = torch.cat([each.flatten() for each in results])
    _exchange(outgoing, incoming, ours, theirs, group)
    done = list(rows)
    for shard, part in enumerate(outgoing.split(ours)):
        done[shard::size] = list(part.view(counts[shard], heights[rank], shape[1]))
    return done


def _exchange(received: Tensor, sent: Tensor, from_each: list[int], to_each: list[int], group: ProcessGroup) -> None:
    """All to all; as bytes, which every backend knows how to send."""
    as_bytes, size = (received.view(torch.uint8), sent.view(torch.uint8)), sent.element_size()
    splits = ([count * size for count in counts] for counts in (from_each, to_each))
    distributed.all_to_all_single(*as_bytes, *splits, group=group)


def _among_replicas(results: list[Tensor], rows: list[Tensor], group: ProcessGroup | None) -> list[Tensor]:
    """Step 3: the results of this replica's matrices -> of all, in the order of `rows`."""
    size = _size(group)
    if size == 1:
        return results
    most = -(-len(rows) // size)
    mine = rows[0].new_zeros(most, *rows[0].shape)
    for place, result in zip(mine, results, strict=False):
        place.copy_(result)
    gathered = [torch.empty_like(mine) for _ in range(size)]
    distributed.all_gather(gathered, mine, group=group)
    return [gathered[number % size][number // size] for number in range(len(rows))]
