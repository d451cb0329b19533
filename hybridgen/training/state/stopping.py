"""SIGTERM and Ctrl-C: the step that is running is finished, the state saved, and the process ends.

Signals reach the main thread of one process only: in another thread this does nothing, and of several processes the one
that got the signal has to tell the others (the trainer does, in each step's all-reduce). After a Ctrl-C the next signal
ends the process at once, whatever it is doing: what is half written then has no name yet.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

CAUSES = ("SIGTERM", "Ctrl-C")
STOPPING = "\nhybridgen: stopping after this step and saving it; Ctrl-C once more ends at once\n"


class StopSignal:
    """Whether this process got a signal to stop, and which: `cause` is one of CAUSES or None."""

    def __init__(self):
        self.cause: str | None = None

    @property
    def requested(self) -> bool:
        return self.cause is not None

    def request(self, cause: str = "SIGTERM") -> None:
        self.cause = self.cause or cause

    @contextlib.contextmanager
    def listening(self, aloud: bool = True) -> Iterator[None]:
        """Inside, neither SIGTERM nor the first Ctrl-C ends anything; they are remembered.

        Args:
            aloud: say at a Ctrl-C what happens.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def interrupted(*_) -> None:
            self.request("Ctrl-C")
            # a launcher passes a second Ctrl-C on as SIGTERM
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            if aloud:
                os.write(2, STOPPING.encode())  # not print: the signal may have come while something prints

        handlers = {signal.SIGTERM: lambda *_: self.request(), signal.SIGINT: interrupted}
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
