"""stdin, stdout and stderr of a command: a character that a console does not know ends nothing.

A console or a pipe may know few letters (`PYTHONIOENCODING=cp1252`, `ascii`). What is printed comes after the work, so
an error there would make a picture that is written look like a failure. Letters that cannot be printed are escaped, as
`\\u0440`; the bytes of a file name that is no UTF-8 are printed as they are.
"""

import codecs
import sys

_ESCAPED = "hybridgen.escaped"


def _escaped(error: UnicodeError) -> tuple[str | bytes, int]:
    text = error.object[error.start : error.end]
    if isinstance(text, str) and all("\udc80" <= letter <= "\udcff" for letter in text):  # bytes of a file name
        return bytes(ord(letter) - 0xDC00 for letter in text), error.end
    return codecs.backslashreplace_errors(error)


codecs.register_error(_ESCAPED, _escaped)


def settle() -> None:
    """Make the three streams take everything; streams that something else put in their place stay as they are."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=_ESCAPED)
    if hasattr(sys.stdin, "reconfigure"):
        # a file or a pipe is UTF-8 whatever the console; bytes that are not are refused by who reads the text
        encoding = None if sys.stdin.isatty() else "utf-8"
        sys.stdin.reconfigure(encoding=encoding, errors="surrogateescape")
