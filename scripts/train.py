"""Train: `accelerate launch scripts/train.py CONFIG.yaml [key=value ...]`, on as many processes as accelerate starts.

`python scripts/train.py` and `hybridgen train` do the same in one process. Of several, the first one alone speaks: the
paths of the checkpoint and of the report on stdout, all else on stderr. What one of them fails at also goes into the
launcher's report.
"""

import sys
from pathlib import Path

from hybridgen.cli import console
from hybridgen.cli.errors import is_for_the_user, one_line
from hybridgen.cli.train_report import write_report
from hybridgen.core.launched import is_first, report_failure
from hybridgen.training import load_config, train
from hybridgen.training.distributed.launched import quiet_libraries


def main(arguments: list[str]) -> int:
    """Returns the exit code: 0, 2 for what the user can mend, 130 after a Ctrl-C before training began."""
    if not arguments:
        print("usage: train.py CONFIG.yaml [key=value ...]", file=sys.stderr)
        return 2
    console.settle()
    quiet_libraries(also_warnings=not is_first())
    try:
        config = load_config(arguments[0], arguments[1:])
        checkpoint = train(config)
        page = write_report(config, Path(arguments[0])) if is_first() else None
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError) as error:
        if not is_for_the_user(error):
            raise
        sentence = f"train.py: {one_line(error)}"
        if not report_failure(sentence) or is_first():
            print(sentence, file=sys.stderr)
        return 2
    if is_first():
        print(checkpoint, page, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
