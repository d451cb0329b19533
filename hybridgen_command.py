"""The `hybridgen` script: arguments first, libraries after.

`import hybridgen` imports torch, transformers and diffusers and registers its classes with them, which takes seconds;
it has to, because both look for classes by name later. So this module stands beside the package: it puts the package
into `sys.modules` without running its `__init__`, parses the command line (`hybridgen.cli.arguments` needs the standard
library alone), and lets `__init__` run once the arguments are known to be right.
"""

import importlib.util
import sys
from collections.abc import Sequence


def main(words: Sequence[str] | None = None) -> int:
    """Run one command (None = the words of `sys.argv`); returns its exit code."""
    spec = importlib.util.find_spec("hybridgen")
    is_loaded = "hybridgen" in sys.modules
    if not is_loaded:
        sys.modules["hybridgen"] = importlib.util.module_from_spec(spec)
    errors = importlib.import_module("hybridgen.cli.errors")
    parser = importlib.import_module("hybridgen.cli.arguments.parser")

    def run() -> int:
        options = parser.parse(words)
        if not is_loaded:
            spec.loader.exec_module(sys.modules["hybridgen"])
        return importlib.import_module("hybridgen.cli.main").run(options)

    return errors.exit_code(run)
