"""Steps that are skipped: gradients that are not finite, losses that jump.

A skipped step leaves the weights as they were, and the data moves on. A run that goes on from its last state meets the
same records again, so the records of every skipped step are named, to be looked at first.
"""

import math
import statistics
from collections import Counter
from pathlib import Path

from hybridgen.training.config.schema import SpikeConfig
from hybridgen.training.monitor.tracking import StepLog

NAMED = 8  # records named in a sentence, at most


class Guard:
    """Judges every step from numbers that are the same in all processes.

    Args:
        file: gets a line for each skipped step, with all its records; None in all but the main process.
        step: the run goes on from this step.
    """

    def __init__(self, config: SpikeConfig, file: Path | None, step: int):
        self.config, self._file = config, None if file is None else StepLog(file, step)
        self.losses: list[float] = []  # of the last `window` steps that were taken
        self.skipped: list[dict] = []  # the skipped ones of the last `window` steps: step, reason, records
        self.total = 0  # steps skipped in the whole run

    def skip_reason(self, loss: float, norm: float) -> str | None:
        """Why a step of this loss and gradient norm is to be skipped; None if it is not, and its loss is remembered."""
        if not (math.isfinite(norm) and math.isfinite(loss)):
            return f"the {'gradient' if math.isfinite(loss) else 'loss'} is not finite"
        config = self.config
        if config.factor is not None and len(self.losses) >= config.window:
            usual = statistics.median(self.losses)
            if loss > config.factor * usual:
                return f"the loss {loss:.4g} is more than {config.factor:g} times the usual {usual:.4g}"
        self.losses = [*self.losses, loss][-config.window :] if config.factor is not None else []
        return None

    def skip(self, step: int, reason: str, records: list[str]) -> str:
        """Remember a skipped step. Returns the sentence to print.

        Raises:
            ValueError: too many were skipped; it names the records that are in most of them.
        """
        self.total += 1
        entry = {"step": step, "reason": reason, "records": records}
        self.skipped = [each for each in self.skipped if each["step"] > step - self.config.window] + [entry]
        if self._file is not None:
            self._file.write(entry)
        if len(self.skipped) >= self.config.limit:
            raise ValueError(
                f"{len(self.skipped)} of the last {self.config.window} steps were skipped, up to step {step}, where "
                f"{reason}; look at {self._suspects()} (all are in skipped.jsonl), lower the learning rate, or set "
                "precision=fp32; the same command goes on from the last saved state"
            )
        return f"{reason} in step {step}: the step is skipped ({_listed(records)})"

    def _suspects(self) -> str:
        """The records that are in most of the skipped steps; of those that are in equally many, the last."""
        counts = Counter(record for entry in reversed(self.skipped) for record in dict.fromkeys(entry["records"]))
        return _listed([record for record, _ in counts.most_common()])

    def state_dict(self) -> dict:
        return {"losses": self.losses, "skipped": self.skipped, "total": self.total}

    def load_state_dict(self, state: dict) -> None:
        self.losses, self.skipped, self.total = state["losses"], state["skipped"], state["total"]


def _listed(records: list[str]) -> str:
    more = f" and {len(records) - NAMED} more" if len(records) > NAMED else ""
    return ", ".join(records[:NAMED]) + more if records else "its records are not known"
