"""What libraries print while a command runs: of their warnings nothing, as whoever types a command can act on none.

Ours stay, each as one sentence. Whoever wants the others asks Python or the library for them: `PYTHONWARNINGS=default`,
`TRANSFORMERS_VERBOSITY=info`.
"""

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator

import diffusers
import transformers

from hybridgen.core.values import one_line

LOGGERS = {  # name -> lowest level that is shown, and the variable by which a user asks for another
    "transformers": (logging.ERROR, "TRANSFORMERS_VERBOSITY"),
    "diffusers": (logging.ERROR, "DIFFUSERS_VERBOSITY"),
    "datasets": (logging.ERROR, "DATASETS_VERBOSITY"),
    "huggingface_hub": (logging.ERROR, "HF_HUB_VERBOSITY"),
    "accelerate": (logging.ERROR, "ACCELERATE_LOG_LEVEL"),
    "peft": (logging.ERROR, None),
    "torch": (logging.ERROR, "TORCH_LOGS"),
    "PIL": (logging.CRITICAL, None),  # of damaged and huge pictures our own sentences tell
}


@contextlib.contextmanager
def libraries_quiet() -> Iterator[None]:
    """Inside, libraries show no warnings and no bars; afterwards all is as it was, but for the bars."""
    for library in (transformers, diffusers):
        library.utils.logging.disable_progress_bar()  # they load in seconds, and fill the screen with bars
    before = {name: logging.getLogger(name).level for name in LOGGERS}
    for name, (level, variable) in LOGGERS.items():
        if variable is None or variable not in os.environ:
            logging.getLogger(name).setLevel(level)
    try:
        with warnings.catch_warnings():
            if not sys.warnoptions:
                warnings.simplefilter("ignore")
                warnings.filterwarnings("default", module=r"hybridgen\b")
                warnings.showwarning = _show
            yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


def _show(message, category, filename, lineno, file=None, line=None) -> None:
    print(f"hybridgen: {one_line(message)}", file=sys.stderr, flush=True)
