"""`hybridgen scale`: a scaling law of a ladder of runs (`studies.scaling`)."""

import argparse
from collections.abc import Iterator

from hybridgen.studies.scaling import run_scaling

STOPPED = "the same command goes on from what was saved last"  # after Ctrl-C


def run(options: argparse.Namespace) -> Iterator[str]:
    """Yields the laws and what follows, then the report's path; with --plan what each run will take."""
    yield from run_scaling(
        options.configs, options.out, options.parameters == "all", options.bootstrap, options.jobs, options.plan
    )
