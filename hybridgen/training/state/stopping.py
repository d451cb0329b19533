"""SIGTERM: the step that is running is finished, the state saved, and the process ends with 0.

The fact a newcomer gets wrong: signals reach the main thread of one process only. Inside other threads nothing is
listened to, and with several processes one must tell the others (the trainer does, with each step's counts).
"""

import contextlib
import signal
import threading
from collections.abc import Iterator


class StopSignal:
    """Whether this process was asked to stop."""

    def __init__(self):
        self._asked = threading.Event()

    @property
    def asked(self) -> bool:
        return self._asked.is_set()

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Inside, SIGTERM is only remembered."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGTERM, lambda *_: self._asked.set())
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)
