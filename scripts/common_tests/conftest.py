"""hybridgen is imported before the libraries' tests: it mends torchvision beside a CPU build of torch."""

import hybridgen  # noqa: F401
