"""Text is UTF-8, wherever it comes from: what is not is refused in one sentence, before anything is made of it.

Python keeps a byte of an argument or a file name that is no UTF-8 as half of a surrogate pair (`"caf\\udce9"`), and
JSON may hold such halves (`"\\ud83d"`). They look like text, but no tokenizer and no file takes them.
"""

from pathlib import Path


def check_text(text: str, what: str) -> str:
    """The text itself.

    Args:
        what: begins the error, such as `the question`.

    Raises:
        ValueError: it holds half of a surrogate pair.
    """
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError as error:
        around = ascii(text[max(0, error.start - 20) : error.start + 20])
        raise ValueError(
            f"{what} is not UTF-8 text: character {error.start + 1} is a lone byte or half a pair, "
            f"{ascii(text[error.start])[1:-1]}, in {around}; write it in UTF-8"
        ) from None
    return text


def read_text(file: str | Path, what: str = "") -> str:
    """A text file, without the byte order mark that some programs put first.

    Args:
        what: stands before the file's name in errors, such as `config`.

    Raises:
        ValueError: it is not UTF-8.
        OSError: it cannot be read.
    """
    content = Path(file).read_bytes()
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{what}{' ' if what else ''}{file} is not UTF-8 text: line {line} holds the byte "
            f"0x{content[error.start]:02x}; save it as UTF-8"
        ) from None
