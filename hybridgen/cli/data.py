"""`hybridgen data inspect`: what a source, or the data of a config, holds, before a run is spent on it.

`data.inspection` reads and counts. Tokens are counted for a config only: a source alone has no tokenizer. No weight of
a model is made or loaded for it.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from hybridgen.core.figures import save
from hybridgen.core.files import write_whole
from hybridgen.data.inspection import count_overlap, inspect_source, measure_mixture, plot, report_lines
from hybridgen.data.mixture import Mixture
from hybridgen.data.source_config import SourceConfig
from hybridgen.data.sources import open_source
from hybridgen.training.config import strict
from hybridgen.training.config.checks import load_config
from hybridgen.training.monitor.tracking import say
from hybridgen.training.stages.building import build_processor, require_template

STOPPED = "nothing was written"  # after Ctrl-C


def run(options: argparse.Namespace) -> Iterator[str]:
    """
    1. Open the sources, and the processor where there is a config.
    2. Read records, draw from the mixture, compare training with validation.
    3. Print the table; write it, a picture and the list of what is broken. Yields the table and the picture's path.
    """
    config = None
    if Path(options.what).suffix in (".yaml", ".yml"):
        config = load_config(options.what, options.overrides)
        sources = [open_source(source, config.seed) for source in config.data.sources]
        held_out = [open_source(source, config.seed) for source in config.validation.sources]
    else:
        sources, held_out = [open_source(source_config(options.what, options.overrides))], []
    processor = None if config is None or config.stage == "codec" else build_processor(config, sources)
    if processor is not None:
        require_template(processor.chat_template, config, [*sources, *held_out])
    sequence_length = None if config is None else config.data.sequence_length
    training = [inspect_source(source, options.limit, processor, sequence_length) for source in sources]
    validation = [inspect_source(source, options.limit, processor, sequence_length) for source in held_out]
    mix = None
    if processor is not None and all(report.tokens for report in training):
        mixture = Mixture(sources, None, config.data.temperature, max_broken=float("inf"))
        mix = measure_mixture(mixture, processor, config.data.per_device_batch_size, config.data.sequence_length)
    lines = report_lines(training, validation, mix, count_overlap(training, validation) if held_out else None)
    yield from lines
    broken = [record._asdict() for report in (*training, *validation) for record in report.bad_records]
    out = options.out
    write_whole(out / "inspect.txt", "".join(f"{line}\n" for line in lines))
    write_whole(out / "broken.jsonl", "".join(f"{json.dumps(record)}\n" for record in broken))
    save(plot(training, validation, mix), out / "inspect.png")
    say(f"inspect.txt, inspect.png and broken.jsonl are in {out}")
    yield ""
    yield str(out / "inspect.png")


def source_config(source: str, overrides: list[str]) -> SourceConfig:
    """A source as the command line names it, with the settings that a config would give it."""
    content = {"source": source}
    for override in overrides:
        strict.override(content, override)
    return strict.build(SourceConfig, content)
