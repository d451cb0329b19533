"""Prompts from a file, one a row, each with settings of its own: what `hybridgen sample --prompts` draws.

    .txt       a line is a prompt
    .jsonl     {"prompt": "an orc", "path": "vq", "seed": 7, "guidance": 2, "size": 32}
    .parquet   the same as columns; a null is a setting that is not given

A setting that a row does not give is the command line's, else the checkpoint's.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.lib
import pyarrow.parquet

from hybridgen.cli.arguments.types import DRAWING_OPTIONS, check_image
from hybridgen.core.names import MOST_IMAGES, OF_PATH, PATHS, check_belongs, check_values
from hybridgen.core.recognition import refuse_impostor, user_path
from hybridgen.core.utf8 import check_text
from hybridgen.core.values import choice, one_line, shown, whole_number
from hybridgen.core.values import number as checked_number
from hybridgen.data.formats.text_files import decode, parse_json, read_lines
from hybridgen.sampling.guidance import METHODS

LARGEST_SEED, LARGEST_SIDE = 2**64 - 1, 65_536
SETTINGS = {  # keys of a row -> settings as the pipeline calls them
    option.removeprefix("--").replace("-", "_"): name for name, option in DRAWING_OPTIONS.items()
}
SIDES = ("size", "height", "width")
OTHERS = ("prompt", "negative_prompt", "image", "read", "edit", "mask", "strength", "path", "seed", "num_images",
          "size", "height", "width", "guider")  # fmt: skip
KEYS = (*OTHERS, *SETTINGS)


@dataclass(frozen=True)
class PromptRow:
    """What one row asks for.

    Args:
        where: the file and the row, for errors.
        edit, mask: the picture that is redrawn, and where.
        height, width: in pixels; None = as trained, or as `edit` is.
        path: by which it is drawn; None = the first that the checkpoint has.
        seed: of its first picture; None = that of the picture before, plus 1.
        settings: of drawing that the row itself gives, as the pipeline calls them.
    """

    where: str
    prompt: str
    negative_prompt: str | None
    image: Path | None
    read: str | None
    edit: Path | None
    mask: Path | None
    strength: float | None
    height: int | None
    width: int | None
    path: str | None
    seed: int | None
    num_images: int
    guider: str | None
    settings: dict[str, Any]


def read_prompts(file: Path, options: argparse.Namespace) -> list[PromptRow]:
    """The rows of a file.

    Args:
        options: of the command line, what holds where a row says nothing.

    Raises:
        ValueError: with the file and the row, what a row holds that means nothing; or there is none.
        OSError: the file cannot be read.
    """
    read = {".txt": _lines, ".jsonl": _objects, ".parquet": _table}[file.suffix.lower()]
    rows = [_row(where, content, file, options) for where, content in read(file)]
    if not rows:
        raise ValueError(f"{file} holds no prompt; give a file with one a row")
    return rows


def _lines(file: Path) -> Iterator[tuple[str, dict]]:
    """Blank lines are no prompts."""
    refuse_impostor(file)
    for number, _, line in read_lines(file):
        where = f"{file}:{number}"
        yield where, {"prompt": decode(line, where).strip()}


def _objects(file: Path) -> Iterator[tuple[str, dict]]:
    refuse_impostor(file)
    for number, _, line in read_lines(file):
        where = f"{file}:{number}"
        yield where, parse_json(line, where)


def _table(file: Path) -> Iterator[tuple[str, dict]]:
    refuse_impostor(file, ("parquet",))
    try:
        table = pyarrow.parquet.read_table(file)
    except (pyarrow.lib.ArrowException, OSError) as error:
        raise ValueError(f"{file} cannot be read as parquet ({one_line(error)[:200]}); write it again") from None
    for number, row in enumerate(table.to_pylist(), start=1):
        yield f"{file}, row {number}", row


def _row(where: str, content: Any, file: Path, options: argparse.Namespace) -> PromptRow:
    if not isinstance(content, dict):
        raise ValueError(f'{where}: {shown(content)} is no object; write {{"prompt": "..."}}')
    given = {key: value for key, value in content.items() if value is not None}
    if unknown := [key for key in given if key not in KEYS]:
        raise ValueError(f"{where}: unknown key {shown(unknown[0])}; a row has {', '.join(KEYS)}")
    if "prompt" not in given:
        raise ValueError(f"{where}: there is no prompt; give one")
    try:
        return _checked(where, given, file, options)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _checked(where: str, given: dict, file: Path, options: argparse.Namespace) -> PromptRow:
    for key in ("prompt", "negative_prompt", "image", "edit", "mask"):
        if key in given and not isinstance(given[key], str):
            raise ValueError(f"{key} is {shown(given[key])}; give a text")
    if not given["prompt"].strip():  # the folder is a data set of captioned pictures
        raise ValueError(f"prompt is {shown(given['prompt'])}; give words (`sample --prompt ''` draws without any)")
    for key in ("prompt", "negative_prompt"):
        check_text(given.get(key, ""), key)
    for key, choices in (("path", tuple(OF_PATH)), ("read", PATHS), ("guider", tuple(METHODS.values()))):
        if key in given:
            choice(key, given[key], choices)
    if "size" in given and {"height", "width"} & given.keys():
        raise ValueError("size is given, and so are height or width; keep one of them")
    sides = {
        key: whole_number(key, given[key], most=LARGEST_SIDE) for key in ("size", "height", "width") if key in given
    }
    files = {
        key: file.parent / user_path(given[key]) if key in given else _only(getattr(options, key))
        for key in ("image", "edit", "mask")
    }
    path = given.get("path", options.path)
    names = {name: key for key, name in SETTINGS.items()}
    if lists := [key for key in given if isinstance(given[key], list) and key != "guidance_interval"]:
        raise ValueError(f"{lists[0]} is {shown(given[lists[0]])}; a row has one")
    settings = check_values({SETTINGS[key]: value for key, value in given.items() if key in SETTINGS}, names)
    if path is not None:
        check_belongs(settings, [path], names)
    row = PromptRow(
        where,
        prompt=given["prompt"],
        negative_prompt=given.get("negative_prompt", _only(options.negative_prompt)),
        image=files["image"],
        read=given.get("read", options.read),
        edit=files["edit"],
        mask=files["mask"],
        strength=_strength(given.get("strength")) or options.strength,
        height=sides.get("height", sides.get("size", _only(options.height))),
        width=sides.get("width", sides.get("size", _only(options.width))),
        path=path,
        seed=whole_number("seed", given["seed"], 0, LARGEST_SEED) if "seed" in given else None,
        num_images=whole_number("num_images", given.get("num_images", options.num_images), most=MOST_IMAGES),
        guider=given.get("guider", options.guider),
        settings=settings,
    )
    for key, named in files.items():
        if named is not None:
            check_image(key, named)
    if row.edit is None and not (row.mask is None and row.strength is None):
        what = "strength" if row.mask is None else "mask"
        raise ValueError(f"{what} is about the picture that is redrawn, but there is no edit; give both")
    if row.image is not None:
        return row
    if "read" in given or settings.get("image_guidance_scale", 1) != 1:
        what = "read" if "read" in given else "image_guidance"
        raise ValueError(f"{what} is about the picture before the prompt, but no image is given; leave it out")
    return row


def _strength(given: Any) -> float | None:
    return None if given is None else checked_number("strength", given, most=1, above=True)


def _only(given: list | None) -> Any:
    """What the command line gives once, for all rows."""
    return given[0] if given else None
