"""What several commands do while they run: put a pipeline on the best device, show progress."""

import contextlib
import sys
from collections.abc import Callable, Iterator

from tqdm import tqdm

from hybridgen.core import devices
from hybridgen.pipeline_hybridgen import HybridGenPipeline

TRUNCATED = "the answer was cut off where its tokens ran out; --max-new-tokens sets how many"


def best_device(pipeline: HybridGenPipeline) -> HybridGenPipeline:
    """On the accelerator of this machine, where it has one."""
    return pipeline.to(devices.best_device())


@contextlib.contextmanager
def progress_bars(shown: bool = True) -> Iterator[Callable[[str, int, int], None]]:
    """Yields a function of (what, done, total) that shows a bar on stderr, a new one for each `what`; or none."""
    bar: tqdm | None = None

    def report(what: str, done: int, total: int) -> None:
        nonlocal bar
        if not shown:
            return
        if bar is None or bar.desc != what:
            if bar is not None:
                bar.close()
            bar = tqdm(desc=what, total=total, file=sys.stderr, dynamic_ncols=True)
        bar.update(done - bar.n)

    try:
        yield report
    finally:
        if bar is not None:
            bar.close()
