"""Prompts of other people's benchmarks: read from their files, drawn, and laid out as their own scorers read pictures.

Such a suite needs no scorer here: the pictures lie in a folder, and the suite says which command scores them. Where the
benchmark has questions, they can be asked of a checkpoint that reads pictures, this one or another (`vqa_of`).
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from hybridgen.bridges.adapters import open_pipeline
from hybridgen.core.files import whole_file, write_whole
from hybridgen.core.recognition import checkpoint_path, require_checkpoint
from hybridgen.core.values import shown
from hybridgen.evaluation.answers.yes_no import parse_yes_no
from hybridgen.evaluation.work import Values, Work
from hybridgen.sampling.seeds import nth_seed

_TYPES = {str: "a text", list: "a list", int: "a whole number"}
PICTURES = "{path}-pictures"  # the folder of a suite that holds what a path drew, laid out


def draw_samples(work: Work, path: str, prompts: Sequence[str], each: int = 1) -> Values:
    """`each` pictures of every prompt: picture k of prompt i is number i * each + k, and is drawn with seed + k.

    So every prompt is drawn from the same noise, as the reference scripts do, which seed anew for each prompt.
    """
    seeds = [nth_seed(work.seed, k) for _ in prompts for k in range(each)]
    repeated = [prompt for prompt in prompts for _ in range(each)]
    return work.draw(path, repeated, seeds, size=work.side())


def lay_out(work: Work, path: str, files: Iterable[tuple[str, Any]]) -> Path | None:
    """Write pictures, and what goes beside them, into the suite's folder of `path`: (name, picture or JSON value).

    Of several processes the first one writes. What is there already is written again: it is the same.

    Returns:
        the folder; None without one.
    """
    if work.out is None:
        return None
    folder = work.out / PICTURES.format(path=path)
    if work.processes.is_main:
        for name, content in files:
            if isinstance(content, Image.Image):
                with whole_file(folder / name) as aside:
                    content.save(aside)
            else:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                write_whole(folder / name, json.dumps(content, ensure_ascii=False))
    return folder


def in_a_grid(pictures: Sequence[Image.Image], columns: int) -> Image.Image:
    """Pictures of one size side by side, row after row, with nothing between."""
    width, height = pictures[0].size
    grid = Image.new("RGB", (width * min(columns, len(pictures)), height * -(-len(pictures) // columns)))
    for i, picture in enumerate(pictures):
        grid.paste(picture, (i % columns * width, i // columns * height))
    return grid


def taken_evenly(work: Work, there_are: int, usual: int | None = None) -> list[int]:
    """Which of a file's prompts are taken: as many as are asked for, else `usual` of them, else all (`Work.count`),
    from its beginning to its end.

    Such files are often sorted by category: the first ones would be of one alone.
    """
    count = work.count(there_are, usual)
    return [i * there_are // count for i in range(count)]


def check_vqa(work: Work, has_questions: bool = True) -> None:
    """Raises ValueError, before anything is drawn, where the questions could not be asked, or there are none."""
    if work.text("vqa") is not None:
        if not has_questions:
            raise ValueError(f"option vqa of suite {work.suite} is who answers questions; give questions, too")
        require_checkpoint(checkpoint_path(work.text("vqa")))
    elif has_questions:
        work.require_answering()


def vqa_of(work: Work) -> Work:
    """Who answers questions about the pictures: the checkpoint that option `vqa` names, or else the one evaluated."""
    if work.text("vqa") is None:
        return work
    other = open_pipeline(work.text("vqa"))
    other.to(work.pipeline.device)
    other.set_progress_bar_config(disable=True)
    return replace(work, pipeline=other, answer_paths=tuple(other.model.config.paths))


def ask_yes_no(
    vqa: Work, reader: str, drawer: str, pictures: Sequence[Image.Image], questions: Sequence[str]
) -> list[bool | None]:
    """Yes or no to each question about its picture; None where the answer is neither."""
    answers = vqa.answer(reader, pictures, questions, part=f"ask-{drawer}-{reader}")
    return [parse_yes_no(answer) for answer in answers]


def read_lines(file: Path, keys: Mapping[str, type]) -> list[dict]:
    """The lines of a .jsonl file, each a JSON object that has `keys` with values of these types; further keys are kept.

    Raises:
        ValueError: naming the file and the line, what is wrong with it.
    """
    lines = []
    for number, text in enumerate(read_text(file).split("\n"), start=1):
        if text.strip():
            lines.append(_object(text, f"line {number} of {file}", keys))
    if not lines:
        raise ValueError(f"{file} holds no line; is it the benchmark's own file?")
    return lines


def read_list(file: Path, keys: Mapping[str, type]) -> list[dict]:
    """A .json file that holds a list of objects, each with `keys`; as `read_lines`."""
    try:
        entries = json.loads(read_text(file))
    except ValueError:
        raise ValueError(f"{file} is no JSON") from None
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{file} holds no list of prompts")
    return [_object(entry, f"entry {number} of {file}", keys) for number, entry in enumerate(entries, start=1)]


def read_text(file: Path) -> str:
    """Raises ValueError where a file is no text."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{file} is no text in UTF-8") from None


def _object(entry: Any, where: str, keys: Mapping[str, type]) -> dict:
    if isinstance(entry, str):
        try:
            entry = json.loads(entry)
        except ValueError:
            raise ValueError(f"{where} is no JSON") from None
    if not isinstance(entry, dict):
        raise ValueError(f"{where} is no object")
    if missing := [key for key in keys if key not in entry]:
        raise ValueError(f"{where} has no {missing[0]!r}; it has {', '.join(map(repr, entry)) or 'nothing'}")
    for key, kind in keys.items():
        if type(entry[key]) is not kind:
            raise ValueError(f"{where} has the {key} {shown(entry[key])}; it must be {_TYPES[kind]}")
    return entry
