"""A process that `accelerate launch` or torchrun started: which one it is, and what its launcher reports of it.

The launcher prints a report of each process that failed after all of them have ended, so what they printed themselves
stands above it, or is lost among 64 processes. It ends with what the process that failed first wrote into a file whose
name is in its environment. No library is imported here: a command line is checked before any is.
"""

import json
import os
import time
from pathlib import Path

ERROR_FILE = "TORCHELASTIC_ERROR_FILE"


def is_first() -> bool:
    """Whether this process is the one that speaks: alone, or the first of several."""
    return os.environ.get("RANK", "0") == "0"


def report_failure(sentence: str) -> bool:
    """Let the launcher's report end with this sentence; returns whether there is a launcher that reports."""
    file = os.environ.get(ERROR_FILE)
    if not file:
        return False
    try:
        Path(file).write_text(json.dumps({"message": sentence, "timestamp": int(time.time())}), encoding="utf-8")
    except OSError:  # a full disk, perhaps the very failure to be reported
        return False
    return True
