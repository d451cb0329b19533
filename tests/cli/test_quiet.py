"""Warnings of libraries do not show while a command runs, ours are sentences, and who asks for the others gets them."""

import logging
import sys
import types
import warnings

import pytest
import transformers

from hybridgen.cli.quiet import LOGGERS, libraries_quiet


def module(name: str) -> types.ModuleType:
    """A module of that name that warns."""
    made = types.ModuleType(name)
    exec("import warnings\ndef warn(text): warnings.warn(text)", made.__dict__)
    return made


def test_libraries_are_silent_and_ours_are_one_sentence(capsys):
    with libraries_quiet():
        module("torch.nn.functional").warn("of torch")
        module("hybridgens").warn("of another package")
        warnings.warn("of a test", FutureWarning, stacklevel=1)
        transformers.utils.logging.get_logger("transformers.tokenization_utils").warning("of a logger")
        logging.getLogger("datasets.builder").warning("of another logger")
        module("hybridgen.data.formats.tar_index").warn("an index\nis made anew")
    assert capsys.readouterr().err == "hybridgen: an index is made anew\n"


def test_errors_of_libraries_show(caplog):
    with libraries_quiet():
        logger = logging.getLogger("torch.something")
        assert logger.isEnabledFor(logging.ERROR)
        assert not logger.isEnabledFor(logging.WARNING)


def state() -> tuple:
    return {name: logging.getLogger(name).level for name in LOGGERS}, warnings.filters[:], warnings.showwarning


def test_afterwards_all_is_as_it_was():
    before = state()
    with pytest.raises(ValueError, match="stop"), libraries_quiet():
        raise ValueError("stop")
    assert state() == before


def test_who_asks_for_them_gets_them(monkeypatch):
    monkeypatch.setattr(sys, "warnoptions", ["default"])
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "warning")
    before = state()
    with libraries_quiet():
        assert state()[1:] == before[1:]
        assert logging.getLogger("transformers").level == before[0]["transformers"]
        assert logging.getLogger("diffusers").level == logging.ERROR
