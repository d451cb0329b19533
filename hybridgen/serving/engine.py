"""The engine: jobs of many clients on one model, joined step by step.

A job is a task (`sampling.tasks`): it yields the work that it waits for, and events. The engine's thread goes through
ticks:

1. Jobs that were cancelled, or whose time is over, leave. Jobs that wait enter, the oldest first, while there is room.
2. Each task is sent the result that it waits for and goes on to its next work; its events go to its client.
3. While any of them waits for a head, heads are computed, so that all of them come to the backbone together.
   Then the backbone reads what all of them want read, at once.

So a job that comes while others are drawn enters at the next step, whatever the others are: pictures of other sizes,
steps and guidance, codes, text. What is computed of one job has the same shapes as alone (`sampling.decoder`), and the
job is the same to the bit wherever a product of more rows rounds like one of fewer (see docs/serving.md).

Everything public may be called from any thread.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import torch

from hybridgen.sampling.tasks import Read, Task, Work, compute

_MOST_GUESSED_WAIT = 60.0  # seconds that a client is told to wait before it tries again, at most
_RECENT = 32  # finished jobs that the guess of a wait is made from


class QueueFull(Exception):
    """So many jobs wait already that no other is taken.

    Args:
        retry_after: whole seconds after which to try again, guessed from the jobs that finished last.
    """

    def __init__(self, retry_after: int):
        super().__init__(f"too many requests wait already; try again in {retry_after} s")
        self.retry_after = retry_after


class EngineClosed(Exception):
    """The engine takes no more jobs, or ended before this one was done."""


class DeadlinePassed(Exception):
    """A job's time was over before it was done."""


@dataclass(frozen=True)
class Finished:
    """The last that a job delivers: what its task returned."""

    result: Any


@dataclass(frozen=True)
class Failed:
    """The last that a job delivers where it has no result: why."""

    error: BaseException


@dataclass
class Counts:
    """What an engine has done so far, and does now."""

    running: int = 0
    waiting: int = 0
    rows: int = 0  # of the backbone, of the jobs that run
    finished: int = 0
    failed: int = 0
    cancelled: int = 0
    late: int = 0
    refused: int = 0
    steps: int = 0  # forwards of the backbone
    joined: int = 0  # jobs that took part in them, summed
    busy_seconds: float = 0.0


class Job:
    """One request on its way; made by `Engine.submit`.

    Args:
        task: makes it.
        rows: of the backbone that it takes while it runs.
        deadline: of `time.monotonic`, after which nobody waits for it any more; None = none.
        deliver: called in the engine's thread with every event, and last with a `Finished` or a `Failed`, unless it was
            cancelled; must return at once.
    """

    def __init__(self, task: Task, rows: int, deadline: float | None, deliver: Callable[[Any], None]):
        self.task, self.rows, self.deadline, self.deliver = task, rows, deadline, deliver
        self.work: Work | None = None  # that it waits for
        self.result: Any = None  # of that
        self.entered: float | None = None  # of time.monotonic; None = it waits
        self._cancelled = False

    def cancel(self) -> None:
        """Nobody waits for it any more: it leaves before the next step, and delivers nothing from now on."""
        self._cancelled = True

    @property
    def cancelled(self) -> bool:
        return self._cancelled


class Engine:
    """A thread in which jobs go on together.

    Args:
        max_rows: of the backbone at a time; a guided picture takes two, a text one. A job with more runs alone.
        max_waiting: jobs that may wait; further ones are refused.
    """

    def __init__(self, max_rows: int = 64, max_waiting: int = 256):
        self.max_rows, self.max_waiting = max_rows, max_waiting
        self._waiting: deque[Job] = deque()
        self._running: list[Job] = []
        self._changed = threading.Condition()  # guards `_waiting` and the two flags
        self._closing = self._aborting = False
        self._counts, self._seconds = Counts(), deque([1.0], maxlen=_RECENT)
        self._thread = threading.Thread(target=self._work, name="hybridgen-engine", daemon=True)
        self._thread.start()

    # ---------------------------------------------------------------------------------------------- for the clients

    def submit(self, task: Task, rows: int, deliver: Callable[[Any], None], deadline: float | None = None) -> Job:
        """Have a task made; see `Job`.

        Raises:
            QueueFull: too many wait already.
            EngineClosed: it was closed.
        """
        job = Job(task, rows, deadline, deliver)
        with self._changed:
            if self._closing:
                raise EngineClosed("the server is shutting down; try another, or later")
            if len(self._waiting) >= self.max_waiting:
                self._counts.refused += 1
                raise QueueFull(self._guessed_wait())
            self._waiting.append(job)
            self._changed.notify()
        return job

    def stream(self, task: Task, rows: int = 1, timeout: float | None = None) -> Iterator:
        """`submit` for a thread of its own: the task's events, and what it returns. To stop it, close this."""
        box: SimpleQueue = SimpleQueue()
        job = self.submit(task, rows, box.put, None if timeout is None else time.monotonic() + timeout)
        try:
            while not isinstance(item := box.get(), Finished | Failed):
                yield item
        finally:
            job.cancel()
        if isinstance(item, Failed):
            raise item.error
        return item.result

    def make(self, task: Task, rows: int = 1, timeout: float | None = None) -> Any:
        """`stream` for what the task returns alone."""
        events = self.stream(task, rows, timeout)
        while True:
            try:
                next(events)
            except StopIteration as end:
                return end.value

    def counts(self) -> Counts:
        """As they are now."""
        with self._changed:
            running, counts = list(self._running), self._counts
            now = {"running": len(running), "waiting": len(self._waiting), "rows": sum(job.rows for job in running)}
            return Counts(**{**vars(counts), **now})

    def close(self, grace: float = 0.0) -> None:
        """Take no more jobs, give those that run or wait `grace` seconds, then end the rest (`EngineClosed`)."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(max(0.0, grace))
        with self._changed:
            self._aborting = True
            self._changed.notify()
        self._thread.join()

    @property
    def is_alive(self) -> bool:
        """Whether it still takes and makes jobs."""
        return self._thread.is_alive() and not self._closing

    def _guessed_wait(self) -> int:
        """Seconds until there may be room: the time that recent jobs took, for each round of those that wait."""
        mean = sum(self._seconds) / len(self._seconds)
        rounds = 1 + len(self._waiting) / max(1, len(self._running))
        return max(1, round(min(_MOST_GUESSED_WAIT, mean * rounds)))

    # ------------------------------------------------------------------------------------------ the engine's thread

    @torch.no_grad()
    def _work(self) -> None:
        try:
            while self._wait_for_jobs():
                started = time.monotonic()
                self._drop_the_unwanted()
                self._let_in()
                self._tick()
                self._counts.busy_seconds += time.monotonic() - started
        finally:  # also after a fault of ours: nobody is to wait for what will not come
            with self._changed:
                self._closing = True
                left, self._running = [*self._running, *self._waiting], []
                self._waiting.clear()
            for job in left:
                self._end(job, Failed(EngineClosed("the server was shut down before this request was done")))

    def _wait_for_jobs(self) -> bool:
        """Sleep until there is one. Returns False where none will come, or none is to be made any more."""
        with self._changed:
            while not (self._running or self._waiting or self._closing or self._aborting):
                self._changed.wait()
            return not self._aborting and bool(self._running or self._waiting)

    def _drop_the_unwanted(self) -> None:
        """Those that were cancelled, or are late."""
        now = time.monotonic()
        with self._changed:
            jobs = [*self._running, *self._waiting]
            unwanted = [job for job in jobs if job.cancelled or (job.deadline is not None and now >= job.deadline)]
            if not unwanted:
                return
            self._running = [job for job in self._running if job not in unwanted]
            self._waiting = deque(job for job in self._waiting if job not in unwanted)
        for job in unwanted:
            if job.cancelled:
                job.task.close()
                self._counts.cancelled += 1
            else:
                self._end(job, Failed(DeadlinePassed("the time of this request was over before it was done")))

    def _let_in(self) -> None:
        """Those that wait enter in the order in which they came, while there is room for their rows."""
        with self._changed:
            rows = sum(job.rows for job in self._running)
            while self._waiting and (not self._running or rows + self._waiting[0].rows <= self.max_rows):
                job = self._waiting.popleft()
                job.entered, rows = time.monotonic(), rows + job.rows
                self._running.append(job)

    def _tick(self) -> None:
        """Every running job one forward of the backbone on."""
        self._go_on([job for job in self._running if job.work is None])
        while jobs := [job for job in self._running if not isinstance(job.work, Read)]:
            self._compute(jobs)
        if self._running:
            self._counts.steps += 1
            self._counts.joined += len(self._running)
            self._compute(list(self._running))

    def _compute(self, jobs: list[Job]) -> None:
        """What these jobs wait for; then they go on to the next work."""
        try:
            results = compute([job.work for job in jobs])
        except Exception as error:  # of memory, say: whose it was cannot be told, and caches may be half-written
            for job in jobs:
                self._leave(job, Failed(error))
            return
        for job, job.result in zip(jobs, results, strict=True):
            job.work = None
        self._go_on(jobs)

    def _go_on(self, jobs: list[Job]) -> None:
        """Each of them until it waits for work, or has ended."""
        for job in jobs:
            result, job.result = job.result, None
            try:
                while not isinstance(item := job.task.send(result), Work):
                    result = None
                    self._deliver(job, item)
                job.work = item
            except StopIteration as end:
                self._leave(job, Finished(end.value))
            except Exception as error:
                self._leave(job, Failed(error))

    def _leave(self, job: Job, last: Finished | Failed) -> None:
        with self._changed:
            self._running.remove(job)
        if isinstance(last, Finished):
            self._seconds.append(time.monotonic() - job.entered)
        self._end(job, last)

    def _end(self, job: Job, last: Finished | Failed) -> None:
        job.task.close()
        if isinstance(last, Finished):
            self._counts.finished += 1
        elif isinstance(last.error, DeadlinePassed):
            self._counts.late += 1
        else:
            self._counts.failed += 1
        job.work = job.result = None
        self._deliver(job, last)

    def _deliver(self, job: Job, item: Any) -> None:
        """To its client; one that cannot take it any more (its loop has ended) has hung up."""
        if job.cancelled:
            return
        try:
            job.deliver(item)
        except Exception:
            job.cancel()
