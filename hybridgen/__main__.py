"""`python -m hybridgen`: the command line where the `hybridgen` script is not on the path."""

import sys

from hybridgen_command import main

if __name__ == "__main__":
    sys.exit(main())
