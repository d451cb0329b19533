"""YAML and `key=value` words -> dataclasses, strictly: an unknown key or a value of the wrong type is refused by name.

It knows types, not meanings: what the keys are for stands in `schema`, which combinations are impossible in `checks`.
PyYAML reads YAML 1.1, where `1e-3` is a string, `off` is false and of a key given twice the last one wins. Here numbers
are numbers, only true and false are booleans, and a key given twice is refused.

No library does it: `huggingface_hub.dataclasses.strict` checks one dataclass' types, but builds no nested ones and
does not know under which key they stand; pydantic does both, in errors of several lines each that suggest no key and
know no new names. Either would replace `build` and `convert`, 60 lines; reading, bases and overrides would stay.
"""

import difflib
import re
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

import yaml

from hybridgen.core.recognition import FilePath, expand, refuse_impostor, require_file, user_path
from hybridgen.core.utf8 import read_text
from hybridgen.core.values import shown
from hybridgen.training.config.renamed import new_name

T = TypeVar("T")
MOST_VALUES = 100_000  # of a config, every anchor written out


class _Loader(yaml.SafeLoader):
    """YAML 1.2's numbers and booleans; a key given twice in one mapping is an error."""

    def construct_mapping(self, node, deep=False):
        lines: dict[Any, int] = {}
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge" or not isinstance(key_node, yaml.ScalarNode):
                continue
            key, line = self.construct_object(key_node), key_node.start_mark.line + 1
            if key in lines:
                raise ValueError(
                    f"key {key!r} is given twice, in line {lines[key]} and in line {line}; keep one of them"
                )
            lines[key] = line
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":bool", ":float", ":timestamp"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("^(true|True|TRUE|false|False|FALSE)$"), "tTfF")
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?((\d+\.\d*|\.\d+)([eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.(inf|Inf|INF))$|^\.(nan|NaN|NAN)$"),
    "-+0123456789.",
)


def parse(text: str, where: str) -> Any:
    """One YAML document. Raises ValueError, with the place, for what is not YAML, or is too much of it."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check_size(node, {})
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise ValueError(f"{where} is not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise ValueError(f"{where} is nested too deeply; a config has a few levels") from None
    except ValueError as error:  # of ours, above and below
        raise ValueError(f"{where}: {error}") from None


def _check_size(node: yaml.Node, sizes: dict[int, int | None]) -> int:
    """The number of values in a node once every alias is written out. Raises ValueError where that explodes."""
    if id(node) in sizes:
        if (size := sizes[id(node)]) is None:
            raise ValueError(f"the anchor in line {node.start_mark.line + 1} contains itself; write its values out")
        return size
    sizes[id(node)] = None  # while its own values are counted
    children = [] if isinstance(node, yaml.ScalarNode) else node.value
    flat = [child for pair in children for child in pair] if isinstance(node, yaml.MappingNode) else children
    size = 1 + sum(_check_size(child, sizes) for child in flat)
    if size > MOST_VALUES:
        raise ValueError(f"its anchors, written out, are more than {MOST_VALUES} values; that is no config")
    sizes[id(node)] = size
    return size


def _text_of(path: Path) -> str:
    refuse_impostor(path, what="config ")
    return read_text(path, "config")


def read(path: str | Path) -> dict:
    """A YAML file that holds a mapping. With `base: OTHER.yaml`, a file beside it, it holds only what is different:
    mappings are merged into the base's mappings, and everything else, lists as well, replaces the base's value."""
    path = user_path(path)
    require_file("config", path, "give the path of a YAML file")
    content = parse(_text_of(path), str(path))
    if not isinstance(content, dict):
        raise ValueError(f"config {path} holds {_type_of(content)}; it must hold `key: value` lines")
    if "base" not in content:
        return content
    base = content.pop("base")
    if not isinstance(base, str) or not base or not (path.parent / user_path(base)).is_file():
        raise ValueError(f"base of {path} is {base!r}; it must name a YAML file beside it")
    base_file = path.parent / user_path(base)
    base_content = parse(_text_of(base_file), str(base_file))
    if not isinstance(base_content, dict) or "base" in base_content:
        raise ValueError(
            f"base of {path} is {base!r}, which is no mapping or has a base itself; name one without a base"
        )
    return _merged(base_content, content)


def _merged(below: dict, above: dict) -> dict:
    merged = {**below, **above}
    for key in below.keys() & above.keys():
        if isinstance(below[key], dict) and isinstance(above[key], dict):
            merged[key] = _merged(below[key], above[key])
    return merged


def override(content: dict, word: str) -> None:
    """Apply one `a.b.0.c=value` to nested mappings and lists, in place. The value is YAML; numbers index lists."""
    key, equals, value = word.partition("=")
    if not equals or not key:
        raise ValueError(f"override {word!r} is not of the form key=value, as in optimizer.lr=1e-3")
    *parents, last = key.split(".")
    place: Any = content
    for depth, part in enumerate(parents):
        if isinstance(place, dict) and place.get(part) is None:
            place[part] = {}
        place = place[_step(place, part, ".".join(parents[:depth]), word)]
    place[_step(place, last, ".".join(parents), word)] = parse(value, f"the value of {word!r}")


def _step(place: Any, part: str, so_far: str, word: str) -> str | int:
    """`part` as a key of `place`: a name of a mapping, or an index of a list that is long enough."""
    if isinstance(place, dict):
        return part
    if not isinstance(place, list):
        raise ValueError(f"override {word!r}: {so_far!r} is {shown(place, 200)}, which has nothing inside to set")
    if not part.isdigit() or int(part) >= len(place):
        raise ValueError(f"override {word!r}: {so_far!r} is a list of {len(place)}; use an index from 0 below that")
    return int(part)


# --------------------------------------------------------------------------------------------- mapping -> dataclass


def build(kind: type[T], content: Mapping, where: str = "") -> T:
    """A dataclass from a mapping, and nested ones from nested mappings: every key known, every value of its type.

    Raises:
        ValueError: one sentence with the key's full name, its value, and what it must be.
    """
    if not isinstance(content, Mapping):
        raise ValueError(f"{where or 'the config'} is {shown(content, 200)}; it must be `key: value` lines")
    hints = typing.get_type_hints(kind)
    known = {field.name: field for field in fields(kind) if field.init}
    for key, value in content.items():
        if key not in known:
            raise unknown_key(_join(where, key), value, known)
    for name, field in known.items():
        if name not in content and field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"missing key {_join(where, name)!r}; it must be {_in_words(hints[name])}")
    return kind(**{key: convert(value, hints[key], _join(where, key)) for key, value in content.items()})


def convert(value: Any, hint: Any, where: str) -> Any:
    """`value` as the type `hint`. Raises ValueError with what `where`, its full key, must be."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        return _convert_union(value, arguments, where)
    if origin is Literal:
        if value in arguments and not isinstance(value, bool):
            return value
        raise ValueError(f"{where} is {shown(value, 200)}; it must be {_in_words(hint)}")
    if is_dataclass(hint):
        return build(hint, value, where)
    if hint is FilePath:
        return _convert_path(value, where)
    if origin is list and isinstance(value, list | tuple):
        return [convert(item, arguments[0], f"{where}.{number}") for number, item in enumerate(value)]
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is dict or origin is dict:
        matches = isinstance(value, dict)
    else:
        matches = isinstance(value, hint if origin is None else origin)
    if not matches or (isinstance(value, bool) and hint is not bool):
        raise ValueError(f"{where} is {shown(value, 200)}; it must be {_in_words(hint)}")
    return value


def _convert_path(value: Any, where: str) -> str:
    """A path as the config says it, `~` resolved."""
    if not isinstance(value, str):
        raise ValueError(f"{where} is {shown(value, 200)}; it must be {_in_words(FilePath)}")
    try:
        return expand(value)
    except ValueError:
        raise ValueError(f"{where} is {value!r}; it must be {_in_words(FilePath)}") from None


def _convert_union(value: Any, hints: tuple, where: str) -> Any:
    if value is None and type(None) in hints:
        return None
    hints = tuple(hint for hint in hints if hint is not type(None))
    if len(hints) == 1:
        return convert(value, hints[0], where)
    for hint in hints:
        if isinstance(value, hint) and not isinstance(value, bool):
            return value
    for hint in hints:
        if hint is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
    raise ValueError(f"{where} is {shown(value, 200)}; it must be {' or '.join(_in_words(hint) for hint in hints)}")


def unknown_key(key: str, value: Any, known: Iterable[str]) -> ValueError:
    """The error of a full key that is none of the `known` names: what it is called now, or the nearest of them."""
    if (now := new_name(key)) is not None:
        return ValueError(f"{key} is called {now} now (value {shown(value, 200)}); rename it")
    return ValueError(f"unknown key {key!r} (value {shown(value, 200)}); {suggest(key.rpartition('.')[2], known)}")


def suggest(word: str, known: Iterable[str]) -> str:
    """The way out for an unknown name: the nearest known one, or all of them."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"


_NAMES = {
    int: "a whole number",
    float: "a number",
    str: "a string",
    FilePath: "the name of a file or folder",
    bool: "true or false",
    dict: "a mapping",
}


def _in_words(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join("null" if kind is type(None) else _in_words(kind) for kind in arguments)
    if origin is Literal:
        return "one of " + ", ".join(map(repr, arguments))
    if origin is list:
        return f"a list, each entry {_in_words(arguments[0])}"
    return _NAMES.get(origin or hint, "`key: value` lines")


def _type_of(content: Any) -> str:
    kinds = {type(None): "nothing", list: "a list", str: "a text", bool: "true or false", int: "a number"}
    return kinds.get(type(content), "a number" if isinstance(content, float) else f"a {type(content).__name__}")


def _join(where: str, key: Any) -> str:
    return f"{where}.{key}" if where else str(key)
