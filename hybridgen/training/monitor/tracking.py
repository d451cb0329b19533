"""Where a run's numbers go: `metrics.jsonl` always, a live line, Weights & Biases if it is available, and other
trackers that the config names (`others`).

The trainer computes the numbers; only the time left is computed here. A tracker never stops or slows a run: without a
key wandb is left out with one sentence, without a network it logs offline, to be sent later. Where stderr is no
terminal, the live line becomes one line each log step.
"""

import json
import netrc
import os
import sys
import time
from pathlib import Path
from typing import get_args, get_type_hints

from PIL import Image

from hybridgen.core.figures import save
from hybridgen.core.files import write_whole
from hybridgen.core.progress import LiveLine, clock
from hybridgen.data.bad_records import BadRecord
from hybridgen.training.config.schema import WandbConfig
from hybridgen.training.monitor.others import OtherTrackers

OLD_MODES = {"dryrun": "offline", "run": "online"}  # of WANDB_MODE
WANDB_START_SECONDS, WANDB_FINISH_SECONDS = 20.0, 60.0  # how long wandb may take to connect, and to upload at the end


def say(sentence: str) -> None:
    """Print one sentence to stderr; a live line that stands there comes back below it."""
    print(f"hybridgen: {sentence}", file=sys.stderr, flush=True)


class BrokenList:
    """The file of the broken records, one a line. What was written is added to, so that ten thousand of them are not
    written ten thousand times; where the list is another one (a run that goes on from an earlier state), it is anew."""

    def __init__(self, file: Path):
        self.file = file
        self._written: list[BadRecord] = []

    def __call__(self, broken: list[BadRecord]) -> None:
        """Write them, and print how many there are; nothing where the file says so already."""
        count = len(self._written)
        if count and broken[:count] == self._written:
            with self.file.open("a", encoding="utf-8") as file:
                file.write(_lines(broken[count:]))
        elif self.file.is_file() and self.file.read_text(encoding="utf-8") == _lines(broken):
            self._written = broken
            return
        else:
            write_whole(self.file, _lines(broken))
        self._written = broken
        say(f"{len(broken)} broken record{'s are' if len(broken) > 1 else ' is'} skipped, see {self.file}")


def _lines(broken: list[BadRecord]) -> str:
    return "".join(json.dumps(each._asdict()) + "\n" for each in broken)


class StepLog:
    """A file of one JSON object a line, each of a step: `metrics.jsonl`, `skipped.jsonl`.

    Args:
        step: the run goes on from this step; lines that an interrupted run wrote after it are removed.
    """

    def __init__(self, path: Path, step: int):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            lines = path.read_text(encoding="utf-8").splitlines()
            write_whole(path, "".join(line + "\n" for line in lines if _step_of(line) <= step))

    def write(self, record: dict) -> None:
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise OSError(f"could not write {self.path} ({error.strerror}); saved states are intact") from error


def _step_of(line: str) -> float:
    """The step of a line; infinite for a line cut short by a kill, which is removed."""
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return float("inf")


class Tracker:
    """`metrics.jsonl`, the live line, wandb and other trackers together; silent in every process but the main one.

    Args:
        steps: of the whole run; `step` of them are done.
        run_id: of an earlier wandb run to continue.
        others: trackers beside wandb.
    """

    def __init__(
        self, folder: Path, settings: WandbConfig, config: dict, steps: int, step: int, is_main: bool, run_id=None,
        others: list[str] = (),
    ):  # fmt: skip
        self.is_main = is_main
        self.steps = steps
        if not is_main:
            self._metrics = self._run = None
            return
        self._metrics = StepLog(folder / "metrics.jsonl", step)
        self._line, self._shown = LiveLine(), ""
        self._run = start_wandb(folder, settings, config, run_id)
        self._others = OtherTrackers(others, folder, config, step, say)
        self._first = None  # when the first step was done that this process took, and the progress then

    @property
    def run_id(self) -> str | None:
        return self._run.id if self._run else None

    def advance(self, step: int, progress: float) -> None:
        """One more step is done."""
        if self.is_main and self._line.is_live:
            left = self._left(progress)
            self._line.show(f"step {step:,}/{self.steps:,}", f"{progress:.0%}", *left, *self._shown.split("  "))

    def log(self, record: dict, progress: float) -> None:
        """A step's numbers, under their names in `metrics.jsonl`."""
        if not self.is_main:
            return
        self._metrics.write(record)
        self._others.log(record)
        if self._run:
            self._run.log({key: value for key, value in record.items() if key != "step"}, step=record["step"])
        if "lr" not in record:  # a validation alone
            return
        self._shown = summary(record)
        if not self._line.is_live:
            parts = (f"step {record['step']}/{self.steps}", self._shown, *self._left(progress))
            print("  ".join(parts), file=sys.stderr, flush=True)

    def picture(self, step: int, path: Path, image: Image.Image) -> None:
        """Save a picture of samples, and send it to wandb and the others."""
        if self.is_main:
            save(image, path)
            self._others.picture(step, path, image)
            if self._run:
                import wandb  # imported already, as there is a run

                self._run.log({"samples": wandb.Image(image)}, step=step)

    def close(self) -> None:
        if self.is_main:
            self._line.close()
            self._others.close()
            if self._run:
                self._run.finish()

    def _left(self, progress: float) -> list[str]:
        """Time left at this process' pace so far; nothing at the first call, which has no pace yet."""
        if self._first is None:
            self._first = (time.monotonic(), progress)
            return []
        seconds, gained = time.monotonic() - self._first[0], progress - self._first[1]
        return [f"left {clock((1 - progress) * seconds / gained)}"] if gained > 0 else []


def summary(record: dict) -> str:
    """`loss 1.234 (text 0.500, diffusion 0.734)  lr 3.0e-04  12,345 tokens/s`; by source where the record has such
    losses."""
    by_source = {
        key[7:-5]: value for key, value in record.items() if key.startswith("source/") and key.endswith("/loss")
    }
    kinds = {key[5:]: value for key, value in record.items() if key.startswith("loss/")}
    parts = [f"{name} {value:.3f}" for name, value in (by_source or kinds).items()]
    pace = next((f"  {value:,.0f} {key[:-11]}/s" for key, value in record.items() if key.endswith("_per_second")), "")
    loss = f"loss {record['loss']:.3f} ({', '.join(parts)})" if "loss" in record else "no loss, the step was skipped"
    return f"{loss}  lr {record['lr']:.1e}{pace}"


def start_wandb(folder: Path, settings: WandbConfig, config: dict, run_id: str | None):
    """A wandb run, offline if it cannot be online, or None and a sentence: neither is a reason not to train."""
    mode = _mode(settings)
    if mode == "disabled":
        return None
    if mode == "online" and not _has_key():
        say("wandb.mode is 'online', but there is no API key (WANDB_API_KEY or `wandb login`): logging locally only")
        return None
    import wandb  # takes most of a second, so only where it is used

    limits = {"init_timeout": WANDB_START_SECONDS}
    if "finish_timeout" in wandb.Settings.model_fields:  # versions that have it would else wait for ever at the end
        limits["finish_timeout"] = WANDB_FINISH_SECONDS
    for attempt in dict.fromkeys((mode, "offline")):
        try:
            return wandb.init(
                mode=attempt,
                project=settings.project,
                name=settings.name,
                dir=str(folder),
                config=config,
                id=run_id,
                resume="allow" if attempt == "online" else None,
                settings=wandb.Settings(silent=True, console="off", **limits),
            )
        except wandb.Error as error:
            then = "logging offline, `wandb sync` sends it later" if attempt == "online" else "logging locally only"
            say(f"wandb does not answer ({' '.join(str(error).split())}): {then}")
    return None


def _mode(settings: WandbConfig) -> str:
    """The config's mode; where it asks for a run, WANDB_MODE and WANDB_DISABLED of the environment say how."""
    if settings.mode == "disabled" or os.environ.get("WANDB_DISABLED", "").lower() in ("true", "1", "yes", "on"):
        return "disabled"
    asked = os.environ.get("WANDB_MODE", "").lower()
    mode = OLD_MODES.get(asked, asked) or settings.mode
    if mode not in get_args(get_type_hints(WandbConfig)["mode"]):
        say(f"WANDB_MODE is {asked!r}, which is none of online, offline, disabled: wandb is left out")
        return "disabled"
    return mode


def _has_key() -> bool:
    """Whether wandb would find an API key. Its own login function would prompt for one on a terminal."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").partition("://")[2].partition("/")[0]
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
