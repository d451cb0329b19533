"""Suites: one file each. What a suite evaluates, it asks a `Work` for, so that it can be stopped, resumed and spread
over processes; what came out, it hands back as a `Result`.

To add a suite, write `suites/NAME.py` and a line in `SUITES` below. The file's docstring names the source, the licence
of the data, and how our number differs from the reference harness, if it does. The file offers

    run(work) -> Result     evaluates; imperative, from top to bottom
    check(work)             optional: raises ValueError, in one sentence, for what can be refused before any long work
    contents(work) -> str   optional: a hash of the pictures that its files name; with others, an evaluation is another.
                            "" where there are none

for example:

    def check(work):
        work.require_answering()

    def run(work):
        records = read_records(work.file("data", "download it from ..."))
        count = work.count(len(records), usual=256)
        result = Result(facts={"questions": count}, credit="...")
        for path in work.answer_paths:
            answers = work.answer(path, pictures, questions, part=f"answer-{path}")
            items = [Item(question, {"shown": picture}, answer, expected, {"all": float(answer == expected)}) ...]
            right = sum(item.verdict["all"] for item in items)
            tallies = {"all": with_interval(tally(right, len(items)))}
            result.add("understanding", path, tallies, items, seconds=work.seconds(f"answer-{path}"))
        return result

A name that ends with `.jsonl`, or is a file, is the suite `own`, of the user's data. Names and options stand here, in a
module without libraries, because the command line knows them before any is loaded.
"""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from hybridgen.core.recognition import is_there, user_path

OWN = "own"  # the file of the suite of own data


@dataclass(frozen=True)
class Suite:
    """What is known of a suite before anything is loaded.

    Args:
        about: what it is, for the help, in half a sentence.
        options: what `--option KEY=VALUE` may set -> what it is, in half a sentence.
    """

    about: str
    options: dict[str, str] = field(default_factory=dict)


_CHATS = {"chats": "prompts that conversations are about, two each (24)"}
_SIZE = {"size": "side of the pictures in pixels (as the checkpoint draws, where that can be scored)"}
_DRAWN = {"data": "the benchmark's own file or folder of prompts", "size": "side of the pictures in pixels"}
_VQA = {"vqa": "a checkpoint that answers the questions (the one evaluated)"}
_EACH = {"n_samples": "pictures of each prompt (4)"}
SUITES = {
    "dolls": Suite("held-out dolls: seven parts of a picture, drawn and asked about", _CHATS | _SIZE),
    "emoji": Suite("emoji in a style that they were not trained in, drawn and asked about", _CHATS | _SIZE),
    "shapes": Suite("plain shapes in GenEval's six categories, drawn and asked about", _CHATS | _SIZE),
    "geneval": Suite(
        "GenEval's prompts, laid out for its scorer, or scored with a detector",
        _DRAWN | _EACH | {"detector": "MODULE:NAME of an object detector"},
    ),
    "geneval2": Suite(
        "GenEval 2: questions about drawn pictures (Soft-TIFA)",
        _DRAWN | _VQA | {"instruction": "what stands after each question (Answer in one word.)"},
    ),
    "dpg": Suite("DPG-Bench's long prompts and questions", _DRAWN | _EACH | _VQA | {"questions": "dpg_bench.csv"}),
    "tiif": Suite("TIIF-Bench's prompts and questions", _DRAWN | _VQA | {"questions": "the folder of eval prompts"}),
    "wise": Suite("WISE's prompts, laid out for its judge", _DRAWN),
    "words": Suite(
        "words that were not trained on, drawn and read back by OCR, and asked about",
        {"reader": "what reads them: rapidocr (the default), MODULE:NAME of your own, or none"} | _CHATS | _SIZE,
    ),
    "distribution": Suite(
        "FID, KID, CMMD, precision and recall, CLIP score, with weights from your disk",
        {
            "data": "captioned pictures: a synthetic dataset (dolls), or a file or folder of your own",
            "inception": "weights of FID's network",
            "clip": "folder of a CLIP",
            "extractor": "features of your own, MODULE:NAME",
            "resize": "to Inception's size: original (the default) or antialiased",
        }
        | _SIZE,
    ),
    "unified": Suite(
        "does it recognise what it drew: draws a world's captions and asks about the drawn pictures",
        {"world": "dolls, emoji, ...: whose captions and questions (dolls)"} | _CHATS | _SIZE,
    ),
    "text": Suite(
        "bits per byte of plain texts",
        {
            "text": "the texts: .txt or .jsonl files, between commas; * stands for many",
            "stride": "tokens that each window of a long text predicts after the first (as many as it can)",
        },
    ),
    "easy_vqa": Suite("the test questions of easy-VQA (PyPI, MIT) about pictures of one coloured shape"),
}
OWN_DATA = Suite(
    "your own data: chat records with prompts to draw, or pictures with questions and answers",
    {
        "max_new_tokens": "of an answer to a question of own data (64)",
        "choose": "how a choice is made: answer (what is written, the default) or likelihood (the likeliest choice)",
    },
)


OF_FILES = frozenset(  # options that name files, folders, checkpoints or code, by whose content an evaluation is known
    ("data", "questions", "vqa", "detector", "reader", "inception", "clip", "extractor", "text")
)


def find_suite(name: str) -> Suite:
    """What is known of the suite of that name. Raises ValueError naming those there are."""
    if is_own(name):
        return OWN_DATA
    if name not in SUITES:
        raise ValueError(
            f"there is no suite {name!r}; choose {' or '.join(SUITES)}, or name a .jsonl file of chat records"
        )
    return SUITES[name]


def is_own(name: str) -> bool:
    """Whether it names the user's own data, not a suite."""
    if not name or name in SUITES:
        return False
    return name.endswith(".jsonl") or (is_there(user_path(name)) and user_path(name).is_file())


def open_suite(name: str) -> ModuleType:
    """The module of a suite, with its `run`. Raises ValueError naming those there are."""
    find_suite(name)
    return importlib.import_module(f"{__name__}.{OWN if is_own(name) else name}")


def options_by_suite(suites: Sequence[str], options: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The options of each suite among those given for all.

    Raises:
        ValueError: no suite knows one.
    """
    shares: dict[str, dict] = {name: {} for name in suites}
    for word, value in options.items():
        suite, _, key = word.rpartition(":")
        knowing = [name for name in suites if key in find_suite(name).options and suite in ("", name)]
        if not knowing:
            known = [f"{key} ({about})" for name in suites for key, about in find_suite(name).options.items()]
            raise ValueError(
                f"no suite of {', '.join(suites)} has an option {word!r}; there are: {', '.join(known) or 'none'}"
            )
        for name in knowing:
            shares[name][key] = value
    return shares
