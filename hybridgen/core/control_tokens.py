"""Control tokens in texts: told apart by who wrote them, the chat template or a user.

A user may type `<|eos|>`; only a template may mean it. A template joins both into one text, where they look alike. So
what a user wrote is marked before (`marked`): a private character, which occurs nowhere else, is put before every
character of a control token, and of a beginning or end of one at the edge of a text, which could be made whole by what
the template writes beside it. In the rendered text the control tokens that hold no mark are the template's (`found`).

    typed "a<|eos|>"  ->  marked "a*<*|*e*o*s*|*>"  ->  rendered "<|user|>a*<*|*e*o*s*|*><|assistant|>"
    ->  text "<|user|>a<|eos|><|assistant|>" and the spans (0, 8), (16, 29)

Nothing else is marked, so a template sees every other text as it is.
"""

import itertools
import re
from collections.abc import Callable, Iterable
from typing import Any

Spans = tuple[tuple[int, int], ...]  # (begin, end) of the control tokens in a text that are tokens, in order

_MARKS = range(0xE000, 0xF900)  # private use: no tokenizer gives these characters a meaning
_NAMES = ("role", "type")  # keys of a message whose values are names, and no user's words
_MEDIA = ("image", "image_url", "video", "audio")  # parts that name files


class RenderedText(str):
    """A rendered conversation that knows which of its control tokens the template wrote (`controls`)."""

    controls: Spans = ()

    def __new__(cls, text: str, controls: Spans) -> "RenderedText":
        rendered = super().__new__(cls, text)
        rendered.controls = controls
        return rendered

    def __getnewargs__(self) -> tuple[str, Spans]:
        return str(self), self.controls


class ControlTokens:
    """The control tokens of a tokenizer, as they are spelled.

    Args:
        names: in any order; longer ones are found before those that they contain.
    """

    def __init__(self, names: Iterable[str]):
        self.names = tuple(sorted({name for name in names if name}, key=lambda name: (-len(name), name)))
        self._any = "|".join(map(re.escape, self.names)) or r"(?!)"
        self._pattern = re.compile(self._any)
        self._heads = {name[:end] for name in self.names for end in range(1, len(name))}
        self._tails = {name[begin:] for name in self.names for begin in range(1, len(name))}
        self._longest = max(map(len, self.names), default=0)

    def found(self, text: str, mark: str | None = None) -> tuple[str, Spans]:
        """A text without its marks, and where its control tokens stand that hold none."""
        if mark is None or mark not in text:
            return text, tuple(match.span() for match in self._pattern.finditer(text))
        spans = []
        for match in re.finditer(f"(?<!{mark})(?:{self._any})", text):
            begin = match.start() - text.count(mark, 0, match.start())
            spans.append((begin, begin + len(match[0])))
        return text.replace(mark, ""), tuple(spans)

    def marked(self, value: Any, beside: str = "") -> tuple[Any, str | None]:
        """A value with the control tokens in its texts marked, and the mark; None: no text needs one.

        Args:
            value: a text, or a list or dictionary of values (messages, tools), which is copied. Keys, names of roles,
                and parts that are no text (the file of a picture) stay.
            beside: a text that must not hold the mark either.

        Raises:
            ValueError: the texts hold every character that could be the mark.
        """
        if not any(self._risky(text) for text in _texts(value)):
            return value, None
        (mark,) = unused_characters(value, beside)
        return _changed(value, lambda text: self._with_marks(text, mark)), mark

    def _risky(self, text: str) -> list[tuple[int, int]]:
        """The stretches of a text that are a control token, or could become one beside other text."""
        stretches = [match.span() for match in self._pattern.finditer(text)]
        for length in range(1, min(self._longest, len(text)) + 1):
            if text[-length:] in self._heads:
                stretches.append((len(text) - length, len(text)))
            if text[:length] in self._tails:
                stretches.append((0, length))
        if 0 < len(text) < self._longest and any(text in name for name in self.names):
            stretches.append((0, len(text)))
        return stretches

    def _with_marks(self, text: str, mark: str) -> str:
        places = {place for begin, end in self._risky(text) for place in range(begin, end)}
        return "".join(mark + letter if place in places else letter for place, letter in enumerate(text))


def unused_characters(value: Any, beside: str = "", count: int = 1) -> tuple[str, ...]:
    """Characters for private use that no text in a value holds, nor the text beside it.

    Raises:
        ValueError: there are none left.
    """
    used = set(beside).union(*_texts(value))
    unused = tuple(itertools.islice((chr(code) for code in _MARKS if chr(code) not in used), count))
    if len(unused) < count:
        raise ValueError(f"the texts hold all {len(_MARKS)} characters for private use; leave one out")
    return unused


def _texts(value: Any) -> Iterable[str]:
    """All texts in a nested value that a user may have written."""
    found: list[str] = []
    _changed(value, lambda text: found.append(text) or text)
    return found


def _changed(value: Any, change: Callable[[str], str]) -> Any:
    """A nested value with `change(text)` in place of each of those texts."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict) and value.get("type") not in _MEDIA:
        return {key: inner if key in _NAMES else _changed(inner, change) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_changed(inner, change) for inner in value]
    return value
