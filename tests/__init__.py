"""Tests mirror the package. They are a package, as some libraries bring one named `tests`, which would hide them."""
