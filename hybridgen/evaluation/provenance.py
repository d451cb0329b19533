"""Where numbers come from: the machine, the versions and the command, so that a score can be understood and made again.

It only describes; it measures nothing. The fact a newcomer gets wrong: the cores that a machine has are not the cores
that a process may use, so the number told is that of the process.
"""

import os
import platform
import re
import shlex
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from hybridgen.version import __version__

_SHOWN = ("torch", "transformers", "diffusers", "accelerate", "datasets", "numpy", "pillow")


def versions() -> dict[str, str]:
    """hybridgen, Python, and the libraries that decide numbers; those that are not installed are left out."""
    found = {"hybridgen": __version__, "python": platform.python_version()}
    for name in _SHOWN:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, str | int]:
    """Processor, cores that this process may use, torch's threads, memory, and the GPU where there is one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found = {"processor": _processor(), "cores": cores, "threads": torch.get_num_threads(), "system": platform.system()}
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        found["memory_gib"] = round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30)
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def _processor() -> str:
    """The processor's own name on Linux, the architecture elsewhere."""
    listed = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*:\s*(.+)", listed.read_text(encoding="utf-8")) if listed.exists() else None
    return " ".join(named[1].split()) if named else platform.processor() or platform.machine()


def command() -> str:
    """The command line as one would type it again."""
    program = Path(sys.argv[0])
    typed = ["python", "-m", program.parent.name] if program.name == "__main__.py" else [program.name]
    return shlex.join([*typed, *sys.argv[1:]])


def in_words(machine: dict[str, str | int]) -> str:
    """`hardware()` as half a sentence."""
    memory = f", {machine['memory_gib']} GiB of memory" if "memory_gib" in machine else ""
    gpu = f", {machine['gpu']}" if "gpu" in machine else ""
    return f"{machine['processor']}, {machine['cores']} cores{memory}{gpu}"
