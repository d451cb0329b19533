"""What of the common tests does not fit hybridgen, and why. Everything else must pass.

hybridgen is imported before the libraries' tests: it mends torchvision beside a CPU build of torch.
"""

import pytest

import hybridgen  # noqa: F401

# class -> test (without the parameters' part of its name) -> reason
REASONS: dict[str, dict[str, str]] = {}


def pytest_collection_modifyitems(items):
    for item in items:
        for name, reason in REASONS.get(item.cls.__name__ if item.cls else "", {}).items():
            if item.originalname == name or item.name.split("[")[0].startswith(name):
                item.add_marker(pytest.mark.skip(reason=reason))
