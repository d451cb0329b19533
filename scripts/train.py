"""Train: `accelerate launch scripts/train.py CONFIG.yaml [key=value ...]`, on as many processes as accelerate starts.

`python scripts/train.py` and `hybridgen train` do the same in one process.
"""

import sys

from hybridgen.cli.errors import is_for_the_user, one_line
from hybridgen.training import load_config, train

if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: train.py CONFIG.yaml [key=value ...]")
    try:
        train(load_config(sys.argv[1], sys.argv[2:]))
    except (ValueError, OSError) as error:
        if not is_for_the_user(error):
            raise
        print(f"train.py: {one_line(error)}", file=sys.stderr)
        sys.exit(2)
