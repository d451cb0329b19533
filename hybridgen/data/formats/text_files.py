"""Text files as they come: UTF-8, with or without a byte order mark, lines that end with a line feed and nothing else.

Python's `str.splitlines` also ends a line at U+2028, U+0085 or a form feed, which JSON may hold inside a string; so
files are read as bytes and split at b"\\n".
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

UTF8_MARK = b"\xef\xbb\xbf"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


def decode(content: bytes, where: str) -> str:
    """Bytes of a text file as text, without a byte order mark.

    Raises:
        ValueError: they are not UTF-8; the sentence begins with `where`.
    """
    check_utf8_file(content, where)
    try:
        return content.removeprefix(UTF8_MARK).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: not UTF-8 text (byte {error.start}); save the file as UTF-8") from error


def check_utf8_file(beginning: bytes, where: str) -> None:
    """Raises ValueError if a file's first bytes are the mark of UTF-16."""
    if beginning.startswith(_UTF16_MARKS):
        raise ValueError(f"{where}: the text is UTF-16; save the file as UTF-8")


def read_lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """(number from 1, offset in bytes, line without a byte order mark) of each line that is not blank.

    Raises:
        ValueError: the file is UTF-16.
    """
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            start, offset = offset, offset + len(line)
            if number == 1:
                check_utf8_file(line, str(path))
                line = line.removeprefix(UTF8_MARK)
            if line.strip():
                yield number, start, line


def parse_json(line: bytes, where: str) -> Any:
    """One line of JSON, or a whole file.

    Raises:
        ValueError: it is not JSON or not UTF-8; the sentence begins with `where`.
    """
    text = decode(line, where).rstrip()
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}" if error.lineno > 1 else f"column {error.colno}"
        hint = "; a list over several lines is read without streaming" if text in ("[", "[{") else ""
        raise ValueError(f"{where}: not a JSON object ({error.msg} at {place}){hint}") from error
    except RecursionError:
        raise ValueError(f"{where}: its JSON is nested too deeply to be read") from None
