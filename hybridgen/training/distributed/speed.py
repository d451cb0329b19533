"""What makes a training step faster and leaves its numbers alone: compiled decoder layers, memory kept between steps.

`precision` chooses the precision. Why memory is kept: on a CPU each step's tensors are freed and allocated again, and
the C library returns large ones to the kernel, which hands out new zeroed pages, with a page fault for every 4 kB:
6,000 faults per step of configs/demo.yaml, 600 where freed memory is kept.
"""

import contextlib
import ctypes
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn
from torch.utils._triton import has_triton
from transformers import PreTrainedModel

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
LARGE = 1 << 30  # bytes


def keep_freed_memory() -> bool:
    """Let freed memory stay in the process, up to 1 GiB per block; returns whether the C library (glibc) does so."""
    if not sys.platform.startswith("linux"):
        return False
    with contextlib.suppress(AttributeError, OSError):  # another C library than glibc has no mallopt
        mallopt = ctypes.CDLL(None).mallopt
        return bool(mallopt(M_MMAP_THRESHOLD, LARGE) and mallopt(M_TRIM_THRESHOLD, LARGE))
    return False


def compiler_found(device: torch.device) -> bool:
    """Whether torch.compile finds what it needs here: Triton on a GPU; on a CPU a C++ compiler and Python's headers."""
    if device.type == "cuda":
        return has_triton()
    headers = Path(sysconfig.get_path("include"), "Python.h").is_file()
    return device.type == "cpu" and headers and any(map(shutil.which, ("g++", "clang++", "c++")))


def compile_layers(backbone: PreTrainedModel) -> None:
    """Compile the decoder layers one by one: layers of one shape share one compilation, so depth costs no time.

    Rows are packed to one length, so shapes are fixed; in evaluation and sampling they are not, so these run eagerly
    (`eagerly`). When the compiler fails, torch warns, and the layers run as written.
    """
    torch._dynamo.config.suppress_errors = True
    for layer in backbone.layers:
        layer.compile(dynamic=False)


@contextlib.contextmanager
def eagerly(model: nn.Module) -> Iterator[None]:
    """Inside, a model's compiled layers run as written.

    Not by a stance of the compiler, which would undo each compilation in the process, transformers' of flex attention
    too: flex attention as written holds the scores of all pairs of tokens (B, heads, N, N) at once.
    """
    # what `Module.compile` sets, and what a module is called by
    compiled = {part: part._compiled_call_impl for part in model.modules() if part._compiled_call_impl is not None}
    for part in compiled:
        part._compiled_call_impl = None
    try:
        yield
    finally:
        for part, call in compiled.items():
            part._compiled_call_impl = call
