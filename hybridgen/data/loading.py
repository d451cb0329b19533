"""Loading: packed rows as batches of tensors, the same for any number of ranks that share the rows of a batch.

A batch is a plain dict: the arguments of `forward`, and what `objectives` needs to make the rest of them. The state is
that of the last batch *handed out*: batches that a thread has prepared ahead are made again after an interruption.

Each row of the global batch is a stream of its own (`row_stream`), and each rank makes its own rows: W ranks of R rows
see what one of W x R would, and none reads what another needs. With `shard_by_rank` each has its own part of the files
or records besides.

Shapes: B rows of this rank, N tokens of a row, I images of a path.
"""

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import fields

import numpy as np
import torch
from torch import Tensor

from hybridgen.core.documents import Document, DocumentImage
from hybridgen.core.layout import SequenceLayout, pack
from hybridgen.core.threads import compute_alone
from hybridgen.data.attribution import attribute
from hybridgen.data.bad_records import BadRecord, BadRecordLog, Met
from hybridgen.data.document_source import DocumentSource
from hybridgen.data.formats.streaming import merged_states
from hybridgen.data.mixture import Mixture
from hybridgen.data.older_positions import LABELS_CHANGED, ROWS_DIVIDED, divided_among_rows, is_of_one_mixture
from hybridgen.data.row_stream import RowStream
from hybridgen.processing_hybridgen import HybridGenProcessor

Batch = dict[str, Tensor | list[Tensor]]


def collate(rows: list[list[Document]], length: int, pad_id: int, row_numbers: list[int]) -> Batch:
    """Rows of documents as one batch. Keys of a modality that is absent are absent.

    Returns:
        input_ids, document_ids, block_ids, noised_mask, position_ids, labels, code_labels: (B, N), see `core.layout`.
        row_numbers: (B,) the run's number of each row, which seeds its noise.
        pixel_values: (I, 3, h, w) images of the understanding path, or a list where sizes differ, in reading order, as
            all images; their levels of 8 bits where they are those of training rows
            (`HybridGenProcessor.pixel_values` makes values of them).
        diffusion_images: (I, 3, H, W), or a list where sizes differ; levels likewise.
        diffusion_noised, diffusion_image_first: (I,) whether each is drawn, and whether it stands before its text.
        diffusion_rows: (I,) the row of the batch that each stands in.
        diffusion_max_timesteps: (I,) cap on the noise of each; absent where no source has one.
        vq_images: (I, 3, H, W), or a list where sizes differ; levels likewise.
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

    A subclass gives `_build`, `_snapshot` and `load_state_dict`; it calls `_begin` last in its constructor.

    Each of several processes meets the broken records of what it reads. `unshared`, `met_since_shared` and
    `agree_on_bad_records` are for those who bring their lists together (`training.distributed.agreement`), so that the
    limit holds for all.
    """

    world_size = 1

    def _begin(
        self, prefetch: int, met: BadRecordLog, on_bad_records: Callable[[list[BadRecord]], None] | None
    ) -> None:
        self.prefetch = prefetch
        self._thread: _PrefetchThread | None = None
        self._is_ahead = False  # of the last batch handed out, since the thread was stopped
        self._met = met  # by what makes batches, so maybe after the last one handed out
        self._known = BadRecordLog(met.limit)  # up to the last batch handed out, and in other processes
        self._on_bad_records = on_bad_records
        self._handed_on = self._shared = 0  # how many of `_met` are in `_known`, and were given to other processes
        self._agreed = 0  # how many of `_known` all processes know, in the same order
        self._state = self._snapshot()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._is_ahead:
            self.load_state_dict(self.state_dict())
        if self.prefetch and self._thread is None:
            self._thread = _PrefetchThread(self._make, self.prefetch)
        batch, self._state, count = self._thread.get() if self.prefetch else self._make()
        met, self._handed_on = self._met.since(self._handed_on, count), count
        self._know(met, tell=self.world_size == 1)
        return batch

    def _make(self) -> tuple[Batch, dict, int]:
        """The next batch, the state after it, and how many broken records were met up to there."""
        batch = self._build()
        return batch, self._snapshot(), len(self._met)

    def bad_records(self) -> list[BadRecord]:
        """The broken records met up to the last batch handed out."""
        return self._known.entries()

    @property
    def unshared(self) -> int:
        """How many broken records this process has met of which the others do not know."""
        return self._handed_on - self._shared

    def met_since_shared(self) -> list[Met]:
        """Those; from now on they count as shared."""
        met, self._shared = self._met.since(self._shared, self._handed_on), self._handed_on
        return met

    def agree_on_bad_records(self, met: list[Met]) -> None:
        """What all processes met since they last agreed, in the same order in each.

        Raises:
            ValueError: together they are more than the limit allows.
        """
        self._known.load_state_dict(self._known.state_dict()[: self._agreed])
        try:
            self._know(met, tell=True)
        finally:
            self._agreed = len(self._known)

    def _know(self, met: list[Met], tell: bool) -> None:
        before = len(self._known)
        for each in met:
            self._known.add(*each)
        if tell and self._on_bad_records is not None and len(self._known) > before:
            self._on_bad_records(self.bad_records())

    def _load_bad_records(self, state: list[list[str]]) -> None:
        for log in (self._met, self._known):
            log.load_state_dict(state)
        self._handed_on = self._shared = self._agreed = len(self._met)

    def state_dict(self) -> dict:
        """The position after the last batch handed out; JSON-able."""
        return self._state | {"broken": self._known.state_dict()}

    def close(self) -> None:
        """Stop preparing batches. The next one asked for is again the one after the last handed out."""
        if self._thread is not None:
            self._stop_thread()
            self._is_ahead = True

    def _stop_thread(self) -> None:
        """For `load_state_dict`, before the position is set."""
        self._is_ahead = False
        if self._thread is not None:
            self._thread.stop()
            self._thread = None

    def load_state_dict(self, state: dict) -> list[str]:
        raise NotImplementedError

    def _build(self) -> Batch:
        """The next batch of this rank."""
        raise NotImplementedError

    def _snapshot(self) -> dict:
        """The state without broken records."""
        raise NotImplementedError


class RowLoader(PrefetchingLoader):
    """An endless iterator of batches of packed rows.

    Args:
        rows: rows of a batch, on each rank.
        length: tokens of a row.
        rank, world_size: this process makes rows rank * rows and following of the world_size * rows of all ranks.
        prefetch: batches prepared ahead by a thread; 0 = each is prepared when it is asked for.
        batches_per_step: micro-batches of an optimizer step; weights that change do so by optimizer steps.
        shard_by_rank: each rank reads its own part of the records, as if its rows were all there are. What the ranks
            see together is then no longer what one process would.
        on_bad_records: called with all broken records so far whenever there are more of them.
        prepare: makes the batch that is handed out of a finished one, where batches are made: in the prefetching
            thread, if there is one. A function of the batch alone, as batches are made again after an interruption.
        pin: batches are put into memory from which a GPU reads while other work goes on.

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
        pin: bool = False,
    ):
        for name, value, least in (("rows", rows, 1), ("length", length, 1), ("prefetch", prefetch, 0)):
            if value < least:
                raise ValueError(f"{name} is {value}; it must be at least {least}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} does not exist among {world_size}; ranks count from 0")
        self._shard = [rank, world_size] if shard_by_rank else None
        for source in mixture.sources.values() if shard_by_rank else ():
            source.use_shard(rank, world_size)
        first, total = (0, rows) if shard_by_rank else (rank * rows, world_size * rows)
        mixture.use_rows(first, rows, total)
        try:
            mixture.check(processor, length)
        except BaseException:
            mixture.close()  # nobody else will: there is no loader
            raise
        self.mixture, self.processor = mixture, processor
        self.rows, self.length, self.rank, self.world_size = rows, length, rank, world_size
        self.batches_per_step, self._prepare, self._pin = batches_per_step, prepare, pin
        self.streams = [RowStream(mixture, processor, row, total, length) for row in range(first, first + rows)]
        self._batches = 0  # made so far
        self._begin(prefetch, mixture.bad_records, on_bad_records)

    def load_state_dict(self, state: dict) -> list[str]:
        """Go on from there: the next batch is the one that followed. Returns what there is to say of it.

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
        notes = []
        if is_of_one_mixture(state):
            state, notes = divided_among_rows(state, self.streams[0].rows), [ROWS_DIVIDED]
            if any(map(reads_otherwise_now, self.mixture.sources.values())):
                notes.append(LABELS_CHANGED)
        rows = state["row_streams"]
        self._check_sources(rows)
        self._stop_thread()
        self.mixture.load_state_dict(state)
        self._load_bad_records(state["broken"])
        for stream in self.streams:
            stream.load_state_dict(rows[str(stream.row)])
        self._batches = state["batches"]
        self._state = self._snapshot()
        return notes

    def _check_sources(self, rows: dict[str, dict]) -> None:
        missing = [stream.row for stream in self.streams if str(stream.row) not in rows]
        if missing:
            raise ValueError(
                f"the saved position lacks row {missing[0]} of {self.rows * self.world_size}; the file of each process "
                "that saved it is needed"
            )
        saved = next(iter(rows.values()))["cursors"]
        if set(saved) != set(self.mixture.sources):
            raise ValueError(
                f"the saved position is of the sources {', '.join(saved)}, but the config names "
                f"{', '.join(self.mixture.sources)}; go on with the same sources, or start anew"
            )

    def changes(self, state: dict) -> list[str]:
        """What of the data is not as it was when this state was saved, in a few words each."""
        return self.mixture.changes(state.get("mixture", state))

    def where(self, record: tuple[str, int]) -> str:
        """What to call one of a batch's `records`, (source, cursor), in an error."""
        name, cursor = record
        return self.mixture.sources[name].where(cursor)

    def totals(self) -> dict[str, float]:
        """Counts of this rank's rows up to the last batch handed out, to be summed over ranks: the tokens of each
        source; documents that were longer than a row, and tokens of those that were left out."""
        streams = self._state["row_streams"].values()
        tokens = {f"given/{name}": sum(each["tokens"][name] for each in streams) for name in self.mixture.sources}
        return tokens | {name: sum(each[name] for each in streams) for name in ("cut", "dropped")}

    def shares(self) -> dict[str, float]:
        """The realised share of the tokens of each source in this rank's rows, up to the last batch handed out."""
        return shares_of(self.totals())

    def fill_rate(self) -> float:
        """The share of this rank's rows so far that is documents, not padding."""
        places = self._state["batches"] * self.rows * self.length
        return sum(each["placed"] for each in self._state["row_streams"].values()) / places if places else 0.0

    def close(self) -> None:
        """Stop preparing batches and documents, see `PrefetchingLoader.close`."""
        super().close()
        self.mixture.close()

    def _build(self) -> Batch:
        step = self._batches // self.batches_per_step
        for stream in self.streams:  # so that threads decode the pictures of all rows at once
            stream.begin(step)
        rows = [stream.fill(step) for stream in self.streams]
        first = (self._batches * self.world_size + self.rank) * self.rows
        self._batches += 1
        documents = [[drawn.document for drawn in row] for row in rows]
        numbers = list(range(first, first + self.rows))
        batch = collate(documents, self.length, self.processor.special_tokens.pad, numbers)
        batch |= attribute(rows, list(self.mixture.sources), self.processor, self.length)
        batch["records"] = [(drawn.source.name, drawn.cursor) for row in rows for drawn in row]
        batch = batch if self._prepare is None else self._prepare(batch)
        return pinned(batch) if self._pin else batch

    def _snapshot(self) -> dict:
        return {
            "rows": self.rows * self.world_size,
            "length": self.length,
            "part": self._shard,  # the names here are a format: states hold them
            "batches": self._batches,
            "row_streams": {str(stream.row): stream.state_dict() for stream in self.streams},
            **self.mixture.state_dict(),
        }


def pinned(batch: Batch) -> Batch:
    """The batch with its tensors in pinned memory."""

    def pin(value):
        if isinstance(value, Tensor):
            return value.pin_memory()
        is_pictures = isinstance(value, list) and value and isinstance(value[0], Tensor)
        return [each.pin_memory() for each in value] if is_pictures else value

    return {name: pin(value) for name, value in batch.items()}


def reads_otherwise_now(source: DocumentSource) -> bool:
    """Whether documents of its config may be another since `older_positions`."""
    config = source.config
    return config.loss_on == "all" or (config.kind != "synthetic" and config.form in (None, "text"))


def shares_of(totals: dict[str, float]) -> dict[str, float]:
    """The share of each source, of `totals`."""
    given = {name.removeprefix("given/"): count for name, count in totals.items() if name.startswith("given/")}
    total = sum(given.values())
    return {name: count / total if total else 0.0 for name, count in given.items()}


# -------------------------------------------------------------------------------------------------------- positions


def merge_positions(states: list[dict], own: int = 0) -> dict:
    """The states that the processes of a run saved, as one that any number of processes with as many rows may go on
    from. Where each read its own part of the data, it is that of process `own`."""
    if states[own].get("part") is not None or "row_streams" not in states[0]:
        return {**({"broken": states[0]["broken"]} if "broken" in states[0] else {}), **states[own]}
    merged = dict(states[0])
    for state in states[1:]:
        merged["row_streams"] = merged["row_streams"] | state["row_streams"]
    merged["streams"] = {
        name: merged_states([state["streams"][name] for state in states]) for name in merged["streams"]
    }
    return merged


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
        compute_alone()
        while not self._stopped.is_set():
            try:
                result = self._make(), None
            except Exception as error:  # not swallowed: raised where the next batch is asked for
                result = None, error
            self._results.put(result)
            if result[1] is not None:
                return
