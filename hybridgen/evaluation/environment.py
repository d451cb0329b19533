"""Where numbers come from: the machine, the versions and the command, so that a score can be understood and made again.

It only describes; it measures nothing. The number of cores is of those that this process may use, which can be fewer
than the machine has.
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

_LIBRARIES = ("torch", "transformers", "diffusers", "accelerate", "datasets", "numpy", "pillow")


def versions() -> dict[str, str]:
    """hybridgen, Python, and the libraries that decide numbers; those that are not installed are left out."""
    numbers = {"hybridgen": __version__, "python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            numbers[name] = version(name)
        except PackageNotFoundError:
            continue
    return numbers


def hardware() -> dict[str, str | int]:
    """Processor, cores that this process may use, torch's threads, memory, and the GPU where there is one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    machine = {"processor": _processor(), "cores": cores, "threads": torch.get_num_threads()}
    machine["system"] = platform.system()
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        machine["memory_gib"] = round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30)
    if torch.cuda.is_available():
        machine["gpu"] = torch.cuda.get_device_name()
    return machine


def _processor() -> str:
    """The processor's own name on Linux, the architecture elsewhere."""
    cpuinfo = Path("/proc/cpuinfo")
    match = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text(encoding="utf-8")) if cpuinfo.exists() else None
    return " ".join(match[1].split()) if match else platform.processor() or platform.machine()


def command() -> str:
    """The command line as one would type it again."""
    program = Path(sys.argv[0])
    words = ["python", "-m", program.parent.name] if program.name == "__main__.py" else [program.name]
    return shlex.join([*words, *sys.argv[1:]])


def describe(machine: dict[str, str | int]) -> str:
    """`hardware()` as half a sentence."""
    memory = f", {machine['memory_gib']} GiB of memory" if "memory_gib" in machine else ""
    gpu = f", {machine['gpu']}" if "gpu" in machine else ""
    return f"{machine['processor']}, {machine['cores']} cores{memory}{gpu}"
