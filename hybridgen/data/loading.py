"""Loading: packed rows as batches of tensors, in one deterministic stream that any number of ranks share.

A batch is a plain dict: the arguments of `forward`, and what `objectives` needs to make the rest of them. The state is
that of the last batch *handed out*: batches that a thread has prepared ahead are made again after an interruption.

Every rank packs the rows of all ranks and keeps its own, so that W ranks of R rows see what one of W x R would; the
price is that each rank reads everything. With `shard_by_rank` each reads its own part of the records instead.

Shapes: B rows of this rank, N tokens of a row, I images of a path.
"""

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import partial

import numpy as np
import torch
from torch import Tensor

from hybridgen.core.documents import Document, DocumentImage
from hybridgen.core.layout import SequenceLayout, pack
from hybridgen.data.attribution import attribute
from hybridgen.data.bad_records import BadRecord
from hybridgen.data.mixture import DrawnDocument, Mixture
from hybridgen.data.packing import pack_rows
from hybridgen.processing_hybridgen import HybridGenProcessor

Batch = dict[str, Tensor | list[Tensor]]


def collate(rows: list[list[Document]], length: int, pad_id: int, row_numbers: list[int]) -> Batch:
    """Rows of documents as one batch. Keys of a modality that is absent are absent.

    Returns:
        input_ids, document_ids, block_ids, noised_mask, position_ids, labels, code_labels: (B, N), see `core.layout`.
        row_numbers: (B,) the run's number of each row, which seeds its noise.
        pixel_values: (I, 3, h, w) images of the understanding path, in reading order, as all images.
        diffusion_images: (I, 3, H, W), or a list where sizes differ.
        diffusion_noised, diffusion_image_first: (I,) whether each is drawn, and whether it stands before its text.
        diffusion_rows: (I,) the row of the batch that each stands in.
        diffusion_max_timesteps: (I,) cap on the noise of each; absent where no source has one.
        vq_images: (I, 3, H, W), or a list where sizes differ.
    """
    packed = [pack([document.layout for document in row], length, pad_id) for row in rows]
    vectors = {field.name: np.array([getattr(row, field.name) for row in packed]) for field in fields(SequenceLayout)}
    batch: Batch = {name: torch.from_numpy(values) for name, values in vectors.items()}
    batch["row_numbers"] = torch.tensor(row_numbers)
    images = [(number, image) for number, row in enumerate(rows) for document in row for image in document.images]
    by_path: dict[str, list[tuple[int, DocumentImage]]] = {}
    for number, image in images:
        by_path.setdefault(image.path, []).append((number, image))
    for path, numbered in by_path.items():
        name = "pixel_values" if path == "understanding" else f"{path}_images"
        batch[name] = _stack([image.pixels for _, image in numbered])
    if drawn := by_path.get("diffusion"):
        batch["diffusion_noised"] = torch.tensor([image.write for _, image in drawn])
        batch["diffusion_image_first"] = torch.tensor([image.image_first for _, image in drawn])
        batch["diffusion_rows"] = torch.tensor([number for number, _ in drawn])
        caps = [image.max_timestep for _, image in drawn]
        if any(cap is not None for cap in caps):
            batch["diffusion_max_timesteps"] = torch.tensor([1000.0 if cap is None else float(cap) for cap in caps])
    return batch


def _stack(images: list[Tensor]) -> Tensor | list[Tensor]:
    return torch.stack(images) if len({image.shape for image in images}) == 1 else images


class PrefetchingLoader:
    """An endless iterator of batches that a thread makes ahead; its state is that of the last batch handed out.

    A subclass gives `_build`, `_snapshot`, `load_state_dict` and, of a state, `_bad_records_in`; it calls `_begin` last
    in its constructor.
    """

    def _begin(self, prefetch: int, on_bad_records: Callable[[list[BadRecord]], None] | None) -> None:
        self.prefetch = prefetch
        self._thread: _PrefetchThread | None = None
        self._on_bad_records, self._listed = on_bad_records, 0
        self._state = self._snapshot()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if not self.prefetch:
            batch, self._state = self._build()
        else:
            if self._thread is None:
                self._thread = _PrefetchThread(self._build, self.prefetch)
            batch, self._state = self._thread.get()
        if self._on_bad_records is not None and (count := len(self._bad_records_in(self._state))) > self._listed:
            self._listed = count
            self._on_bad_records(self.bad_records())
        return batch

    def bad_records(self) -> list[BadRecord]:
        """The broken records met up to the last batch handed out."""
        return [BadRecord(where, reason) for where, _, reason in self._bad_records_in(self._state)]

    def state_dict(self) -> dict:
        """The position after the last batch handed out; JSON-able."""
        return self._state

    def close(self) -> None:
        """Stop preparing batches. The next one asked for is again the one after the last handed out."""
        if self._thread is not None:
            self.load_state_dict(self._state)

    def _stop_thread(self) -> None:
        """For `load_state_dict`, before the position is set."""
        if self._thread is not None:
            self._thread.stop()
            self._thread = None

    def load_state_dict(self, state: dict) -> None:
        raise NotImplementedError

    def _build(self) -> tuple[Batch, dict]:
        """The next batch of this rank, and the state after it."""
        raise NotImplementedError

    def _snapshot(self) -> dict:
        raise NotImplementedError

    def _bad_records_in(self, state: dict) -> list[list[str]]:
        raise NotImplementedError


class RowLoader(PrefetchingLoader):
    """An endless iterator of batches of packed rows.

    Args:
        rows: rows of a batch, on each rank.
        length: tokens of a row.
        rank, world_size: this process takes rows rank * rows and following of the world_size * rows of all ranks.
        prefetch: batches prepared ahead by a thread; 0 = each is prepared when it is asked for.
        batches_per_step: micro-batches of an optimizer step; weights that change do so by optimizer steps.
        shard_by_rank: each rank reads its own part of the records, with a mixture and a position of its own. What the
            ranks see together is then no longer what one process would.
        on_bad_records: called with all broken records so far whenever there are more of them.
        prepare: makes the batch that is handed out of a finished one, where batches are made: in the prefetching
            thread, if there is one. A function of the batch alone, as batches are made again after an interruption.

    Raises:
        ValueError: the processor cannot serve a source of the mixture, or a number makes no sense.
    """

    def __init__(
        self,
        mixture: Mixture,
        processor: HybridGenProcessor,
        rows: int,
        length: int,
        rank: int = 0,
        world_size: int = 1,
        prefetch: int = 2,
        batches_per_step: int = 1,
        shard_by_rank: bool = False,
        on_bad_records: Callable[[list[BadRecord]], None] | None = None,
        prepare: Callable[[Batch], Batch] | None = None,
    ):
        for name, value, least in (("rows", rows, 1), ("length", length, 1), ("prefetch", prefetch, 0)):
            if value < least:
                raise ValueError(f"{name} is {value}; it must be at least {least}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} does not exist among {world_size}; ranks count from 0")
        self._shard = [rank, world_size] if shard_by_rank else None
        for source in mixture.sources.values() if shard_by_rank else ():
            source.use_shard(rank, world_size)
        self._longest = min(length, mixture.max_positions or length)  # document
        mixture.check(processor, self._longest)
        self.mixture, self.processor = mixture, processor
        self.rows, self.length, self.rank, self.world_size = rows, length, rank, world_size
        self.batches_per_step, self._prepare = batches_per_step, prepare
        self._pending: list[DrawnDocument] = []
        self._batches = self._tokens = 0  # made so far, and tokens of documents in them, over all ranks
        self._begin(prefetch, on_bad_records)

    def load_state_dict(self, state: dict) -> None:
        """Go on from there: the next batch is the one that followed.

        Raises:
            ValueError: the state is that of other sources, or of another number (over all ranks) or length of rows.
        """
        shape = {"rows": self.rows * self.world_size, "length": self.length}
        saved = {name: state[name] for name in shape}
        if saved != shape:
            raise ValueError(
                f"the saved position is of batches of {saved['rows']} rows of {saved['length']} tokens, but now "
                f"{shape['rows']} rows of {shape['length']} are asked for; keep both, or start anew"
            )
        check_shard(state.get("part"), self._shard)
        self._stop_thread()
        self.mixture.load_state_dict(state["mixture"])
        self._pending = [self.mixture.rebuild(name, cursor, self.processor) for name, cursor in state["pending"]]
        self._batches, self._tokens = state["batches"], state["used"]
        self._state = self._snapshot()

    def changes(self, state: dict) -> list[str]:
        """What of the data is not as it was when this state was saved, in a few words each."""
        return self.mixture.changes(state["mixture"])

    def where(self, record: tuple[str, int]) -> str:
        """What to call one of a batch's `records`, (source, cursor), in an error."""
        name, cursor = record
        return self.mixture.sources[name].where(cursor)

    def shares(self) -> dict[str, float]:
        """The realised share of the tokens of each source, up to the last batch handed out."""
        tokens = self._state["mixture"]["tokens"]
        total = sum(tokens.values())
        return {name: count / total if total else 0.0 for name, count in tokens.items()}

    def fill_rate(self) -> float:
        """The share of all rows so far that is documents, not padding."""
        ranks = self.world_size if self._shard is None else 1  # whose rows this rank packs
        places = self._state["batches"] * self.rows * ranks * self.length
        return self._state["used"] / places if places else 0.0

    def close(self) -> None:
        """Stop preparing batches and documents, see `PrefetchingLoader.close`."""
        self.mixture.cancel_prefetch()
        super().close()

    def _bad_records_in(self, state: dict) -> list[list[str]]:
        return state["mixture"]["broken"]

    def _build(self) -> tuple[Batch, dict]:
        """The next batch of this rank, and the state after it."""
        count, step = self.rows * self.world_size, self._batches // self.batches_per_step
        draw = partial(self.mixture.draw, self.processor, step, self._longest)
        packed = count if self._shard is None else self.rows
        rows, self._pending = pack_rows(draw, packed, self.length, self._pending)
        numbers = range(self._batches * count, (self._batches + 1) * count)
        self._batches += 1
        self._tokens += sum(len(document) for row in rows for document in row)
        mine = slice(self.rank * self.rows, (self.rank + 1) * self.rows)
        local_rows = rows[mine] if self._shard is None else rows
        documents = [[drawn.document for drawn in row] for row in local_rows]
        batch = collate(documents, self.length, self.processor.special_tokens.pad, list(numbers[mine]))
        batch |= attribute(local_rows, list(self.mixture.sources), self.processor, self.length)
        batch["records"] = [(drawn.source.name, drawn.cursor) for row in local_rows for drawn in row]
        return batch if self._prepare is None else self._prepare(batch), self._snapshot()

    def _snapshot(self) -> dict:
        return {
            "rows": self.rows * self.world_size,
            "length": self.length,
            "part": self._shard,  # this name and `used` are a format: states hold them
            "batches": self._batches,
            "used": self._tokens,
            "mixture": self.mixture.state_dict(),
            "pending": [[drawn.source.name, drawn.cursor] for drawn in self._pending],
        }


def check_shard(saved: list[int] | None, shard: list[int] | None) -> None:
    """Raises ValueError if a state is of another part of the data, as [rank, world size]; None = of all."""
    if saved != shard:
        raise ValueError(
            f"the saved position is of part {_shard_name(saved)} of the data, but this is {_shard_name(shard)}; go on "
            "with data.shard_by_rank and the number of processes as they were, or start anew"
        )


def _shard_name(part: list[int] | None) -> str:
    return "all" if part is None else f"{part[0]} of {part[1]}"


class _PrefetchThread:
    """Calls a function again and again in a thread and keeps up to `count` results; its errors are raised by `get`."""

    def __init__(self, make: Callable, count: int):
        self._make, self._results = make, queue.Queue(count)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="hybridgen-loader", daemon=True)
        self._thread.start()

    def get(self):
        result, error = self._results.get()
        if error is not None:
            self._results.put((None, error))  # for the next call, which is to raise it too
            raise error
        return result

    def stop(self) -> None:
        self._stopped.set()
        while self._thread.is_alive():
            try:
                self._results.get(timeout=0.01)  # makes room, in case the thread waits to put a result
            except queue.Empty:
                continue
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                result = self._make(), None
            except Exception as error:  # not swallowed: raised where the next batch is asked for
                result = None, error
            self._results.put(result)
            if result[1] is not None:
                return
