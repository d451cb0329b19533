"""What several commands do while they run: put a pipeline on the best device, tell of its steps on the live line."""

import contextlib
from collections.abc import Callable, Iterator

from hybridgen.core import devices
from hybridgen.pipeline_hybridgen import HybridGenPipeline
from hybridgen.sampling.guidance import Guidance

APG = {"eta": 0.0, "momentum": -0.5}  # the paper's: nothing along the prediction, against the last update
TRUNCATED = "the answer was cut off where its tokens ran out; --max-new-tokens sets how many"


def best_device(pipeline: HybridGenPipeline) -> HybridGenPipeline:
    """On the accelerator of this machine, where it has one."""
    return pipeline.to(devices.best_device())


def guidance_named(method: str | None, path: str) -> Guidance | None:
    """What `--guider` names; None = plain guidance."""
    if method is None:
        return None
    apg = {name: value for name, value in APG.items() if method == "apg" and (path != "vq" or name != "momentum")}
    return Guidance(method=method, **apg)


def tell_steps(pipeline: HybridGenPipeline, tell: Callable[[int, int], None]) -> None:
    """Let the steps of each drawing call be told as `tell(done, total)`, instead of by a bar of the pipeline's own."""

    @contextlib.contextmanager
    def progress_bar(iterable=None, total: int | None = None) -> Iterator["_Steps"]:
        yield _Steps(tell, total)

    pipeline.progress_bar = progress_bar


class _Steps:
    """What a pipeline takes for its bar."""

    def __init__(self, tell: Callable[[int, int], None], total: int):
        self._tell, self._done, self._total = tell, 0, total

    def update(self, count: int = 1) -> None:
        self._done += count
        self._tell(self._done, self._total)
