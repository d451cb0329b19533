"""YAML and words -> dataclasses: what is taken, and in which words the rest is refused."""

from dataclasses import dataclass, field
from typing import Literal

import pytest

from hybridgen.training.config import strict


@dataclass
class Inner:
    lr: float = 1e-3
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    name: Literal["adamw", "muon"] = "adamw"


@dataclass
class Outer:
    steps: int
    optimizer: Inner = field(default_factory=Inner)
    ema: Inner | None = None
    order: str | float = "caption_first"
    threads: int | None = None
    compile: bool = False
    model: dict | None = None
    parts: list[Inner] = field(default_factory=list)


def built(text: str) -> Outer:
    return strict.build(Outer, strict.parse(text, "test"))


def test_every_type_is_taken():
    config = built(
        "steps: 3\noptimizer: {lr: 1e-3, betas: [0, .5], name: muon}\nema: {lr: 2}\norder: 0.8\nthreads: null\n"
        "compile: true\nmodel: {a: 1}\nparts: [{}, {lr: 5.}]"
    )
    assert config.optimizer == Inner(1e-3, [0.0, 0.5], "muon")
    assert config.ema == Inner(2.0)
    assert (config.order, config.threads, config.compile, config.model) == (0.8, None, True, {"a": 1})
    assert config.parts == [Inner(), Inner(5.0)]


@pytest.mark.parametrize(("text", "value"), [("1e-3", 0.001), ("2.5E4", 25000.0), ("-.5", -0.5), ("12", 12)])
def test_numbers_are_numbers(text, value):
    """PyYAML alone reads 1e-3 as a string."""
    parsed = strict.parse(text, "test")
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize("text", ["off", "yes", "2024-01-01", "1e", "step"])
def test_words_are_words(text):
    assert strict.parse(text, "test") == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps: 3\noptimzer: {}", r"unknown key 'optimzer' \(value {}\); did you mean 'optimizer'\?"),
        ("steps: 3\noptimizer: {rate: 1}", "unknown key 'optimizer.rate' .*known here: lr, betas, name"),
        ("optimizer: {}", "missing key 'steps'; it must be a whole number"),
        ("steps: '3'", "steps is '3'; it must be a whole number"),
        ("steps: true", "steps is True; it must be a whole number"),
        ("steps: 3.5", "steps is 3.5; it must be a whole number"),
        ("steps: 3\noptimizer: {lr: fast}", "optimizer.lr is 'fast'; it must be a number"),
        ("steps: 3\noptimizer: {lr: true}", "optimizer.lr is True; it must be a number"),
        ("steps: 3\noptimizer: {betas: [0.9, x]}", "optimizer.betas.1 is 'x'; it must be a number"),
        ("steps: 3\noptimizer: {betas: 0.9}", "optimizer.betas is 0.9; it must be a list"),
        ("steps: 3\noptimizer: {name: lion}", "optimizer.name is 'lion'; it must be one of 'adamw', 'muon'"),
        ("steps: 3\noptimizer: 5", "optimizer is 5; it must be `key: value` lines"),
        ("steps: 3\ncompile: 1", "compile is 1; it must be true or false"),
        ("steps: 3\norder: [1]", r"order is \[1\]; it must be a string or a number"),
        ("steps: 3\nthreads: two", "threads is 'two'; it must be a whole number"),
        ("steps: 3\nmodel: x", "model is 'x'; it must be a mapping"),
        ("steps: 3\nsteps: 4", "key 'steps' is given twice"),
        ("steps: [3", "test is not valid YAML"),
    ],
)
def test_refused(text, message):
    with pytest.raises(ValueError, match=message):
        built(text)


def test_overrides():
    content = {"data": {"sources": [{"weight": 1}, {"weight": 1}]}}
    for word in ("data.sources.1.weight=2.5", "optimizer.lr=1e-3", "model.a.b=[1, x]", "name=a=b", "ema=null"):
        strict.override(content, word)
    assert content == {
        "data": {"sources": [{"weight": 1}, {"weight": 2.5}]},
        "optimizer": {"lr": 0.001},
        "model": {"a": {"b": [1, "x"]}},
        "name": "a=b",
        "ema": None,
    }


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("steps", "override 'steps' is not of the form key=value"),
        ("=3", "not of the form key=value"),
        ("data.sources.2.weight=1", "'data.sources' is a list of 2; use an index from 0 below that"),
        ("data.sources.x=1", "'data.sources' is a list of 2"),
        ("steps.more=1", "'steps' is 5, which has nothing inside to set"),
        ("steps=[", "the value of 'steps=\\[' is not valid YAML"),
    ],
)
def test_overrides_refused(word, message):
    with pytest.raises(ValueError, match=message):
        strict.override({"steps": 5, "data": {"sources": [{}, {}]}}, word)


def test_files_refused(tmp_path):
    with pytest.raises(ValueError, match="absent.yaml does not exist"):
        strict.read(tmp_path / "absent.yaml")
    empty = tmp_path / "empty.yaml"
    empty.write_text("")
    with pytest.raises(ValueError, match="empty.yaml is empty; it was cut off"):
        strict.read(empty)


def test_a_file_says_only_what_is_different_from_its_base(tmp_path):
    (tmp_path / "whole.yaml").write_text("steps: 3\nmodel: {a: {x: 1, y: 2}, b: 1}\nsources: [1, 2]\nkept: 0.5\n")
    (tmp_path / "more.yaml").write_text("base: whole.yaml\nmodel: {a: {y: 5}, b: null, c: 7}\nsources: [3]\n")
    assert strict.read(tmp_path / "more.yaml") == {
        "steps": 3,
        "model": {"a": {"x": 1, "y": 5}, "b": None, "c": 7},
        "sources": [3],
        "kept": 0.5,
    }


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("nowhere.yaml", "base of .*more.yaml is 'nowhere.yaml'; it must name a YAML file beside it"),
        ("3", "is 3; it must name a YAML file"),
        ("more.yaml", "'more.yaml', which is no mapping or has a base itself; name one without a base"),
        ("list.yaml", "'list.yaml', which is no mapping or has a base itself"),
    ],
)
def test_a_base_that_is_none_is_refused(tmp_path, base, message):
    (tmp_path / "list.yaml").write_text("[1, 2]\n")
    (tmp_path / "more.yaml").write_text(f"base: {base}\nsteps: 3\n")
    with pytest.raises(ValueError, match=message):
        strict.read(tmp_path / "more.yaml")
