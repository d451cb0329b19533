"""`hybridgen study`: compare configs at equal cost, over seeds (`studies.study`)."""

import argparse
from collections.abc import Iterator

from hybridgen.studies.study import run_study

STOPPED = "the same command goes on from what was saved last"  # after Ctrl-C


def run(options: argparse.Namespace) -> Iterator[str]:
    """Yields what came out, then the report's path; with --plan what each run will take."""
    yield from run_study(
        options.study, options.out, options.overrides, options.seeds, options.only, options.jobs, options.plan
    )
