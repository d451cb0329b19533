"""`python -m hybridgen`: the command line where the `hybridgen` script is not on the path."""

import sys

from hybridgen.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
