"""Names of the numbers that a run has: held-out losses, as in `metrics.jsonl`, and scores of its suite. A name that no
run will ever have is refused before any run, not found missing after all of them."""

import re

from hybridgen.studies.scoring import trained_paths
from hybridgen.studies.study_config import is_loss
from hybridgen.training.config.schema import TrainConfig


def check_loss(number: str, config: TrainConfig) -> None:
    """Raises ValueError for a held-out loss that no run of this config measures."""
    sources = [source.name for source in config.validation.sources]
    of_source = re.match("validation/source/(.*)/", number)
    if not is_loss(number) or not sources or (of_source and of_source[1] not in sources):
        raise ValueError(
            f"{number!r}, which no run measures; give validation/loss/KIND, or validation/source/NAME/KIND of the "
            f"held-out {', '.join(sources) or 'sources, of which there is none'}"
        )


def check_number(number: str, config: TrainConfig, suite: str | None) -> None:
    """Raises ValueError for a loss, or a score (`SUITE/TASK/PATH/CATEGORY`), that no run of this config has."""
    if is_loss(number):
        check_loss(number, config)
        return
    if suite is None or not number.startswith(f"{suite}/"):
        raise ValueError(f"{number!r}, but runs are scored by {f'suite {suite}' if suite else 'no suite'}")
    task, _, rest = number.removeprefix(f"{suite}/").partition("/")
    trained, path = dict(zip(("generation", "understanding"), trained_paths(config), strict=True)), rest.split("/")[0]
    if path not in trained.get(task, [path]):
        raise ValueError(f"{number!r}, but its config trains {task} by {' and '.join(trained[task]) or 'no path'}")
