"""Threads that read ahead for a loader: there once they are asked for work, and gone when it is closed."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from hybridgen.core.threads import compute_alone


class ReadingThreads:
    """Up to `count` threads; none are there before the first work, and after `close` until the next.

    Args:
        count: 0 = there are none, and nothing may be submitted.
    """

    def __init__(self, count: int):
        self.count = count
        self._pool: ThreadPoolExecutor | None = None

    def submit(self, work: Callable, *arguments) -> Future:
        """Begin work in one of them."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.count, "hybridgen-data", compute_alone)
        return self._pool.submit(work, *arguments)

    def close(self) -> None:
        """Drop work that has not begun, wait for what has, and end the threads."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None
