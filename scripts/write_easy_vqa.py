"""easy-VQA as files: 48,248 questions about 5,000 pictures of one coloured shape, with the split that its author made.

    python scripts/write_easy_vqa.py FOLDER

writes pictures/, train.jsonl (chat records for `configs/easy_vqa.yaml`) and test.jsonl (records for `hybridgen evaluate
CHECKPOINT --suite FOLDER/test.jsonl`; `--suite easy_vqa` reads the same questions from the package itself). The data
are PyPI's easy-vqa 1.0 (MIT, Victor Zhou): `pip install hybridgen[easy-vqa]`.

A record of training is a picture with a few of its own questions. What it thinks before a yes or no comes from the
training questions about that picture alone: "what color is the shape?" has told the colour, "what shape is present?"
the shape. Where they told nothing, nothing is thought. Nothing of the test split is looked at.
"""

import argparse
import json
import random
import shutil
import sys
from pathlib import Path

from hybridgen.checkpoints.loading import new_folder
from hybridgen.data.easy_vqa import EasyQuestion, read_split
from hybridgen.data.records import chat_record, image_part, text_part

QUESTIONS = 3  # of one record; a picture has about nine
PASSES = 4  # over the questions, each in another order and grouped otherwise


def write(folder: Path) -> None:
    """Raises ValueError where the package is missing, OSError where the folder cannot be written."""
    with new_folder(folder) as aside:
        for split, records in (("train", training_records), ("test", test_records)):
            items = read_split(split)
            pictures = aside / "pictures" / split
            pictures.mkdir(parents=True)
            for picture in {item.picture for item in items}:
                shutil.copyfile(picture, pictures / picture.name)
            lines = [json.dumps(record) + "\n" for record in records(items)]
            (aside / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
            print(f"{folder / split}.jsonl: {len(lines)} records, {len(items)} questions")


def training_records(items: list[EasyQuestion]) -> list[dict]:
    """Each question `PASSES` times, `QUESTIONS` about one picture in a record."""
    of_picture: dict[Path, list[EasyQuestion]] = {}
    for item in items:
        of_picture.setdefault(item.picture, []).append(item)
    rng, records = random.Random(0), []
    for _ in range(PASSES):
        for picture, asked in of_picture.items():
            shuffled = rng.sample(asked, len(asked))
            for start in range(0, len(shuffled), QUESTIONS):
                records.append(conversation(picture, shuffled[start : start + QUESTIONS], seen(asked)))
    return records


def test_records(items: list[EasyQuestion]) -> list[dict]:
    """Each question alone."""
    return [conversation(item.picture, [item], "", split="test") for item in items]


def seen(asked: list[EasyQuestion]) -> str:
    """What the training questions about a picture say that it shows: "blue rectangle"; empty where they do not."""
    told = {kind: answer for kind, answer in ((item.kind, item.answer) for item in asked) if kind != "yes_no"}
    return f"{told['color']} {told['shape']}" if {"color", "shape"} <= set(told) else ""


def conversation(picture: Path, asked: list[EasyQuestion], thought: str, split: str = "train") -> dict:
    turns = []
    for number, item in enumerate(asked):
        shown = [] if number else [image_part(f"pictures/{split}/{picture.name}")]
        turns += [("user", [*shown, text_part(item.question)]), ("assistant", [text_part(item.answer)])]
    record = chat_record(*turns)
    for message, item in zip(record["messages"][1::2], asked, strict=True):
        if thought and item.kind == "yes_no":
            message["reasoning_content"] = thought
    return record


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="a new folder")
    try:
        write(parser.parse_args(arguments).folder)
    except (ValueError, OSError) as error:
        print(f"write_easy_vqa: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
