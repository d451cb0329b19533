"""What a user names as MODULE:NAME or FILE.py:NAME: a detector, a reader, an extractor of one's own."""

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from hybridgen.core.recognition import user_path
from hybridgen.core.values import shown


def file_of(name: str) -> Path | None:
    """The file of FILE.py:NAME; None of anything else."""
    module, _, attribute = name.rpartition(":")
    return user_path(module) if attribute and module.endswith(".py") and "://" not in module else None


def source_of(name: str) -> Path | None:
    """The file that holds the code of FILE.py:NAME or MODULE:NAME; None where there is none."""
    if file_of(name) is not None:
        return file_of(name)
    module, _, attribute = name.rpartition(":")
    try:
        spec = importlib.util.find_spec(module) if module and attribute.isidentifier() else None
    except (ImportError, ValueError, AttributeError, SyntaxError):  # no name of a module that can be loaded
        return None
    return Path(spec.origin) if spec is not None and spec.has_location else None


def load_named(what: str, name: str, must_be: str) -> Callable:
    """The function that a name means; of a class, what it makes without arguments.

    Args:
        what: of the user's, such as "detector"; for errors.
        must_be: what it must be, in words.

    Raises:
        ValueError: there is none of that name, its code cannot be loaded, or it cannot be called.
    """
    module, _, attribute = name.rpartition(":")
    if not module or not attribute:
        raise ValueError(f"{what} {shown(name)} is no MODULE:NAME and no FILE.py:NAME")
    try:
        file = file_of(name)
        found = getattr(importlib.import_module(module) if file is None else _loaded(file), attribute)
    except (ImportError, OSError, AttributeError, SyntaxError, NameError, ValueError) as error:
        raise ValueError(f"{what} {name} cannot be loaded: {error}") from error
    if not callable(found):
        raise ValueError(f"{what} {name} is of type {type(found).__name__}; it must be {must_be}")
    return found() if isinstance(found, type) else found


def _loaded(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
