"""SIGTERM: the step that is running is finished, the state saved, and the process ends with 0.

Signals reach the main thread of one process only: in another thread this does nothing, and of several processes the one
that got the signal has to tell the others (the trainer does, in each step's all-reduce).
"""

import contextlib
import signal
import threading
from collections.abc import Iterator


class StopSignal:
    """Whether this process got a SIGTERM."""

    def __init__(self):
        self.requested = False

    def request(self) -> None:
        self.requested = True

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Inside, SIGTERM ends nothing; it is remembered."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGTERM, lambda *_: self.request())
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)
