"""Libraries in a process that `accelerate launch` or torchrun started: the first one alone speaks."""

import warnings

import diffusers
import transformers
from huggingface_hub.utils import disable_progress_bars


def quiet_libraries(also_warnings: bool) -> None:
    """No progress bars of libraries; in all processes but the first (`also_warnings`) no warnings of theirs either."""
    disable_progress_bars()
    for library in (transformers, diffusers):
        library.utils.logging.disable_progress_bar()
        if also_warnings:
            library.utils.logging.set_verbosity_error()
    if also_warnings:
        warnings.filterwarnings("ignore")
