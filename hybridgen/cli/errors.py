"""Errors that the user of a command can mend, told apart from faults of ours, and printed as one line: of several
processes by the first alone, and in the launcher's report."""

import os
import sys
from collections.abc import Callable

from hybridgen.cli import console
from hybridgen.core import values
from hybridgen.core.faults import is_for_the_user
from hybridgen.core.launched import is_first, report_failure

OUT_OF_MEMORY = ("out of memory", "can't allocate memory")  # what torch's RuntimeErrors say, on GPUs and CPUs


def exit_code(run: Callable[[], int]) -> int:
    """What `run` returns, or 2 after one line about what the user can mend, 130 after Ctrl-C.

    Raises:
        Exception: what nobody foresaw, with its traceback.
    """
    console.settle()
    try:
        return run()
    except KeyboardInterrupt as stop:
        _say(stop.args[0] if stop.args else "stopped before anything was done")
        return 130
    except BrokenPipeError:  # whoever read our results went away, as `head` does
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (the interpreter flushes stdout once more at its end)
        return 0
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(words in str(error) for words in OUT_OF_MEMORY):
            raise
        reason = f" ({one_line(error)[:200]})" if str(error) else ""
        _say(f"not enough memory{reason}; ask for less at a time, or take a larger machine")
        return 2
    except (ValueError, OSError) as error:
        if not is_for_the_user(error):
            raise
        _say(one_line(error))
        return 2


def _say(sentence: str) -> None:
    report_failure(f"hybridgen: {sentence}")
    if is_first():
        print(f"hybridgen: {sentence}", file=sys.stderr)


def one_line(error: Exception) -> str:
    """What went wrong, on one line."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return values.one_line(error)
