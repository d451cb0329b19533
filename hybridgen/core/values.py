"""Values as a caller gives them, checked by what they mean and not by their type.

A whole number is one whatever spelling it comes in: Python's, numpy's, or an array or tensor of no dimension; a list
may be a tuple, an array or a tensor. What comes out is plain Python, which JSON can hold. True and False are no
numbers, NaN and infinity none that a setting can have, and 2.0 is no whole number: where a count comes out of a
division, whoever divides says how it is rounded.

Every function raises a ValueError of one sentence: the name, the value, and what it must be.
"""

import re
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Any

_BASE64 = re.compile("(?=[0-9+/]*[A-Za-z])[A-Za-z0-9+/]{80,}={0,2}")  # encoded bytes, not a long number


def shown(value: Any, length: int = 60) -> str:
    """A value as errors show it: on one line, and short."""
    if isinstance(value, bytes) and len(value) > length:
        return f"{len(value)} bytes"
    if isinstance(value, str):
        return repr(shorten(value, length - 2))
    return shorten(" ".join(repr(value).split()), length)


def one_line(error: BaseException | str) -> str:
    """What an error says, on one line."""
    return " ".join(str(error).split())


def shorten(text: str, length: int) -> str:
    """A text as errors show it: cut, and without what encodes a picture (base64)."""
    text = _BASE64.sub(lambda run: f"({len(run[0])} characters)", text)
    return text if len(text) <= length else text[: length - 3] + "..."


def plain(value):
    """A number of no dimension, of numpy or torch, as Python's; anything else as it is."""
    return value.item() if _dimensions(value) == 0 else value


def listed(value) -> list | None:
    """The values of a list, a tuple, or an array or tensor of one dimension; None where it is none of these."""
    if isinstance(value, list | tuple):
        return list(value)
    return value.tolist() if _dimensions(value) == 1 else None


def _dimensions(value) -> int | None:
    """Of an array or tensor, told by what it can do: no library is imported for it. None where it is neither."""
    return getattr(value, "ndim", None) if hasattr(value, "item") and hasattr(value, "tolist") else None


def whole_number(name: str, value, least: int = 1, most: int | None = None, meaning: str = "") -> int:
    """A whole number from `least` to `most`.

    Args:
        meaning: what the error says of it after the bounds, such as "0 for all".
    """
    number = plain(value)
    is_whole = isinstance(number, Integral) and not isinstance(number, bool)
    if is_whole and number >= least and (most is None or number <= most):
        return int(number)
    bounds = f"of at least {least}" if most is None else f"from {least} to {most}"
    raise ValueError(f"{name} is {shown(number)}; it must be a whole number {bounds}{meaning and f' ({meaning})'}")


def number(
    name: str, value, least: float = 0.0, most: float | None = None, meaning: str = "", above: bool = False
) -> float:
    """A finite number from `least` to `most`, as a float; a whole number stays whole.

    Args:
        above: `least` itself is not allowed.
        meaning: what the error says of it after the bounds.
    """
    given = plain(value)
    is_number = isinstance(given, Real) and not isinstance(given, bool)
    if is_number and (given > least if above else given >= least) and given <= (float("inf") if most is None else most):
        if isinstance(given, Integral):
            return int(given)
        if float(given) < float("inf"):
            return float(given)
    bounds = f"above {least:g}" if above else f"of at least {least:g}"
    if most is not None:
        bounds = f"above {least:g} and at most {most:g}" if above else f"from {least:g} to {most:g}"
    raise ValueError(f"{name} is {shown(given)}; it must be a number {bounds}{meaning and f' ({meaning})'}")


def text(name: str, value) -> str:
    """A text."""
    if not isinstance(value, str):
        raise ValueError(f"{name} is {shown(value)}; give a text")
    return value


def texts(name: str, value) -> list[str]:
    """One text or a list of at least one -> a list."""
    several = [value] if isinstance(value, str) else listed(value)
    if not several or not all(isinstance(item, str) for item in several):
        raise ValueError(f"{name} is {shown(value)}; give a text or a list of at least one text")
    return several


def choice(name: str, value, choices: Sequence[str]) -> str:
    """One of some words."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} is {shown(value)}; it must be one of {', '.join(map(repr, choices))}")
    return value


def flag(name: str, value) -> bool:
    """True or False, numpy's and a tensor's too."""
    given = plain(value)
    if not isinstance(given, bool):
        raise ValueError(f"{name} is {shown(value)}; it must be True or False")
    return given


def each(name: str, value, count: int, of: str = "prompts") -> list:
    """One value for each of `count` things: a list as it is, else the same for all.

    Raises:
        ValueError: it is a list of another length.
    """
    several = listed(value)
    if several is None:
        return [value] * count
    if len(several) != count:
        raise ValueError(f"{name} is a list of {len(several)} for {count} {of}; give one for each, or one for all")
    return several


def interval(name: str, value) -> list[float]:
    """Where something begins and ends, as shares from 0 to 1: a list of two."""
    ends = listed(value)
    if ends is None or len(ends) != 2:
        raise ValueError(f"{name} is {shown(value)}; give two shares from 0 to 1, where it begins and where it ends")
    start, stop = (number(name, end, most=1) for end in ends)
    if start > stop:
        raise ValueError(f"{name} is {shown(value)}; it ends before it begins, so give the smaller one first")
    return [start, stop]


def one_or_each(name: str, value, check: Callable):
    """One value, or a list of them, each checked: `check(name, value)`; a list stays one."""
    several = listed(value)
    return check(name, value) if several is None else [check(name, item) for item in several]
