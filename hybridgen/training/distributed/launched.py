"""A process that `accelerate launch` or torchrun started: what its launcher reports of it, and who speaks.

The launcher prints a report of each process that failed after all of them have ended, so what they printed themselves
stands above it, or is lost among 64 processes. It ends with what the process that failed first wrote into a file whose
name is in its environment.
"""

import json
import os
import time
import warnings
from pathlib import Path

import diffusers
import transformers
from huggingface_hub.utils import disable_progress_bars

ERROR_FILE = "TORCHELASTIC_ERROR_FILE"


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


def quiet_libraries(also_warnings: bool) -> None:
    """No progress bars of libraries; in all processes but the first (`also_warnings`) no warnings of theirs either."""
    disable_progress_bars()
    for library in (transformers, diffusers):
        library.utils.logging.disable_progress_bar()
        if also_warnings:
            library.utils.logging.set_verbosity_error()
    if also_warnings:
        warnings.filterwarnings("ignore")
