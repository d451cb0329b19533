"""Conversations in any dialect -> chat messages, each picture in its place.

    {"role": "user", "content": ...}          transformers, TRL, OpenAI
    {"from": "human", "value": ...}           sharegpt, LLaVA

Where pictures come beside the messages (LlamaFactory, ms-swift, TRL, LLaVA), each `<image>` in a text and each image
part without a file takes the next of them, in reading order. A number that differs is an error: which picture belongs
where would be a guess. Videos and sounds are refused, not left out.
"""

import json
from typing import Any

from hybridgen.core.values import shown
from hybridgen.data.records import image_part, picture_value, text_part

ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system",
}  # fmt: skip
_OWN_ROLES = ("user", "assistant", "system")  # those that are called as ours are
IMAGE_TAG = "<image>"
OTHER_MEDIA = {"<video>": "video", "<audio>": "audio"}  # tags of what is not read
_IMAGE_TYPES = ("image", "image_url", "input_image")
# where an image part may name its picture
_FILE_KEYS = ("image", "image_url", "url", "path", "base64", "bytes", "source", "file")


def conversation(turns: Any, pictures: list, where: str, *, system: Any = None, lead: bool = False) -> list[dict]:
    """Chat messages of the turns, with the pictures put into their places.

    Args:
        turns: a list of messages of either dialect, or that list as JSON.
        pictures: those beside the messages, in order.
        system: a system message beside the messages.
        lead: pictures that no place waits for stand before the first words of the user.

    Raises:
        ValueError: a turn is of no known kind, or pictures and places differ in number.
    """
    if not pictures and not system and _says_all(turns):
        return turns
    messages = [_message(turn, f"{where}: message {number}") for number, turn in enumerate(_listed(turns, where))]
    messages = [message for message in messages if message["role"] != "system" or message["content"]]
    if system:
        messages = _with_system(messages, system, where)
    places = sum(map(_places, messages))
    if lead and pictures and not places:
        return _with_lead(messages, pictures, where)
    if places != len(pictures):
        raise ValueError(
            f"{where}: {_counted(places, 'place')} for pictures ({IMAGE_TAG} in a text, or an image part without its "
            f"image), but {_counted(len(pictures), 'picture')} in image or images; give as many as there are places"
        )
    rest = list(enumerate(pictures))
    return [_filled(message, rest, where) for message in messages]


def _says_all(turns: Any) -> bool:
    """Whether turns are messages already, plain words without any tag: most rows of a chat are, and are read fast."""
    return (
        isinstance(turns, list)
        and bool(turns)
        and all(
            isinstance(turn, dict)
            and len(turn) == 2
            and isinstance(content := turn.get("content"), str)
            and bool(content)
            and "<" not in content
            and turn.get("role") in _OWN_ROLES
            for turn in turns
        )
    )


def _counted(count: int, thing: str) -> str:
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


def _listed(turns: Any, where: str) -> list:
    if isinstance(turns, str) and turns.lstrip().startswith("["):  # a column of a table that holds JSON
        try:
            turns = json.loads(turns)
        except ValueError as error:
            raise ValueError(f"{where}: the conversation is a text, and no JSON ({error})") from error
    if isinstance(turns, dict) and turns and all(isinstance(column, list) for column in turns.values()):
        turns = [dict(zip(turns, row, strict=True)) for row in zip(*turns.values(), strict=True)]  # a table of turns
    if not isinstance(turns, list) or not turns:
        raise ValueError(f"{where}: messages must be a list of at least one message, not {shown(turns)}")
    return turns


def _message(turn: Any, here: str) -> dict:
    """A turn of either dialect as {"role", "content", ...}."""
    if not isinstance(turn, dict):
        raise ValueError(f"{here} must be an object with role and content, not {shown(turn)}")
    turn = {name: value for name, value in turn.items() if value is not None}
    role = turn.pop("from", None) if "role" not in turn else turn["role"]
    content = turn.pop("value", None) if "content" not in turn else turn["content"]
    if not isinstance(role, str) or role not in ROLES:
        raise ValueError(f"{here} has role {shown(role)}; use one of {', '.join(ROLES)}")
    if isinstance(content, dict):
        content = [content]
    if isinstance(content, list):
        content = [_part(part, here) for part in content]
    elif not isinstance(content, str):
        raise ValueError(f"{here} has content {shown(content)}; use a text or a list of at least one part")
    for text in [content] if isinstance(content, str) else [part["text"] for part in content if part["type"] == "text"]:
        for tag, medium in OTHER_MEDIA.items():
            if tag in text:
                raise ValueError(f"{here} holds {tag}; {medium} is not read, leave the record out")
    return {**turn, "role": ROLES[role], "content": content}


def _part(part: Any, here: str) -> dict:
    """A part as {"type": "text", "text"} or {"type": "image", "image"}; the image is None where it comes beside."""
    if isinstance(part, str):
        return text_part(part)
    part = {name: value for name, value in part.items() if value is not None} if isinstance(part, dict) else part
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in _IMAGE_TYPES:
        image = picture_value(next((part[key] for key in _FILE_KEYS if part.get(key) not in (None, "", [])), None))
        number = {"index": part["index"]} if isinstance(part.get("index"), int) else {}
        return {**image_part(image), **number}
    if kind == "text" and isinstance(part.get("text"), str):
        return {name: value for name, value in part.items() if name != "index"}
    if kind == "text":
        raise ValueError(f"{here} has a text part without its text; give {{'type': 'text', 'text': ...}}")
    if kind in ("video", "video_url", "audio", "audio_url", "input_audio"):
        raise ValueError(f"{here} has a part of type {kind!r}; only texts and images are read, leave the record out")
    raise ValueError(f"{here} has a part {shown(part)}; a part is an object whose type is 'text' or 'image'")


def _with_system(messages: list[dict], system: Any, where: str) -> list[dict]:
    if not isinstance(system, str):
        raise ValueError(f"{where}: the system message beside the messages is {shown(system)}; it must be a text")
    if messages and messages[0]["role"] == "system":
        if messages[0]["content"] == system:
            return messages
        raise ValueError(f"{where}: one system message stands in the conversation and another beside it; keep one")
    return [{"role": "system", "content": system}, *messages]


# ------------------------------------------------------------------------------------------------------------ pictures


def _is_empty(part: dict) -> bool:
    return part["type"] == "image" and part["image"] is None


def _places(message: dict) -> int:
    """How many pictures a message waits for."""
    content = message["content"]
    if isinstance(content, str):
        return content.count(IMAGE_TAG)
    return sum(part["text"].count(IMAGE_TAG) if part["type"] == "text" else _is_empty(part) for part in content)


def _filled(message: dict, rest: list[tuple[int, Any]], where: str) -> dict:
    """The message with its places filled; pictures that are used leave `rest`, a list of (number, picture)."""
    if not _places(message):
        return message
    content = message["content"]
    filled: list[dict] = []
    for part in [text_part(content)] if isinstance(content, str) else content:
        if _is_empty(part):
            filled.append(image_part(_taken(part, rest, where)))
        elif part["type"] == "image":
            filled.append(part)
        else:
            for number, words in enumerate(part["text"].split(IMAGE_TAG)):
                if number:
                    filled.append(image_part(rest.pop(0)[1]))
                if words := words.strip("\n"):
                    filled.append(text_part(words))
    return {**message, "content": filled}


def _taken(part: dict, rest: list[tuple[int, Any]], where: str) -> Any:
    """The next picture; a part that names the number of one (`index`, as TRL has it) takes that."""
    wanted = part.get("index", rest[0][0])
    place = next((place for place, (number, _) in enumerate(rest) if number == wanted), None)
    if place is None:
        raise ValueError(f"{where}: an image part has the index {wanted}, but no such picture is left in images")
    return rest.pop(place)[1]


def _with_lead(messages: list[dict], pictures: list, where: str) -> list[dict]:
    """The pictures before the first words of the user."""
    number = next((number for number, message in enumerate(messages) if message["role"] == "user"), None)
    if number is None:
        raise ValueError(f"{where}: the record has pictures, but no turn of the user to show them in")
    content = messages[number]["content"]
    words = [text_part(content)] if isinstance(content, str) else content
    first = {**messages[number], "content": [*map(image_part, pictures), *words]}
    return [*messages[:number], first, *messages[number + 1 :]]
