"""Tests mirror the package. A package of its own: some libraries bring a folder `tests` too, which would hide this one."""
