"""Fixtures that every test may use. hybridgen is imported first: it mends torchvision beside a CPU build of torch."""

import hybridgen  # noqa: F401
