"""text: how many bits a byte of plain text costs the model, in total and by file.

Source and licence: the user's texts (`--option text=FILE`): a .txt file is one document, of a .jsonl file each record
{"text": ...}; * and {000..007} stand for many files. What training would read as a text is read, by its readers, and
scored without a chat template.

Bits per byte is -log2 of a text's likelihood over its length in UTF-8, so that models with different tokenizers can be
compared. As in lm-evaluation-harness (`bits_per_byte`), the first token is predicted from the token that begins a text,
no end is predicted, and a text longer than the model's context is read in windows that follow one another, each of
which predicts as many tokens as it can; `--option stride=N` lets each further window predict only N, after more text.
The interval is by bootstrap over documents.
"""

import math
from typing import NamedTuple

import numpy as np

from hybridgen.core.messages import parts
from hybridgen.core.recognition import expand
from hybridgen.core.values import shorten
from hybridgen.data.bad_records import SHOWN, BadRecord
from hybridgen.data.formats.json_files import json_source
from hybridgen.data.formats.rows import RowSource
from hybridgen.data.formats.txt_files import TxtSource
from hybridgen.data.sources import files_named
from hybridgen.evaluation.intervals import bootstrap
from hybridgen.evaluation.result import Item, Result
from hybridgen.evaluation.work import Work

UNIT = "bits per byte"


class _Text(NamedTuple):
    file: str
    where: str
    words: str


def check(work: Work) -> None:
    work.count(len(_read(work)[0]))
    _stride(work)


def run(work: Work) -> Result:
    texts, bad = _read(work)
    texts = texts[: work.count(len(texts))]
    nats = work.score_text([text.words for text in texts], stride=_stride(work))
    # bits and bytes of each document
    sizes = np.array([[-nat / math.log(2), len(text.words.encode())] for nat, text in zip(nats, texts, strict=True)])
    tallies = {"all": bootstrap(sizes, _ratio, UNIT)}
    files = list(dict.fromkeys(text.file for text in texts))
    for file in files if len(files) > 1 else ():
        places = [place for place, text in enumerate(texts) if text.file == file]
        tallies[file] = bootstrap(sizes[places], _ratio, UNIT)
    items = [
        Item(shorten(text.words, 200), answer=f"{bits / length:.3f} {UNIT}", wrong=text.where)
        for text, (bits, length) in zip(texts, sizes, strict=True)
    ]
    facts = {"texts": len(texts), "bytes": int(sizes[:, 1].sum()), "stride": _stride(work)}
    result = Result(facts=facts, labels={"all": "all texts"} | {file: file for file in files})
    result.note(*_notes(bad))
    result.add("text", "text", tallies, items, seconds=work.seconds("text"))
    return result


def _ratio(sums: np.ndarray) -> np.ndarray:
    """(R, 2) sums of bits and bytes -> (R,) bits per byte."""
    return sums[:, 0] / sums[:, 1]


def _stride(work: Work) -> int | None:
    """Tokens that each further window predicts; None = as many as it can. Raises ValueError where none would fit."""
    if "stride" not in work.options:
        return None
    stride, context = work.number("stride", 1), work.pipeline.context
    if stride >= context:
        raise ValueError(
            f"option stride of suite {work.suite} is {stride}; it must be below the model's context, {context}"
        )
    return stride


def _read(work: Work) -> tuple[list[_Text], list[BadRecord]]:
    """The documents of all files, and what is broken among them.

    Raises:
        ValueError: no file is named, there is none, or it holds no text.
    """
    given = work.text("text")
    if given is None:
        raise ValueError(
            f"suite {work.suite} needs --option text=FILE: a .txt file, or a .jsonl file of records with a text each"
        )
    texts, bad = [], []
    for pattern in given.split(","):
        for file in files_named(expand(pattern.strip())):
            texts += _texts_of(file, bad)
    if not texts:
        raise ValueError(f"option text of suite {work.suite}: {given} holds no text: {bad[0]}")
    return texts, bad


def _texts_of(file: str, bad: list[BadRecord]) -> list[_Text]:
    if file.lower().endswith((".jsonl", ".json")):
        source: RowSource = json_source(file, bad_records=bad)
    else:
        source = TxtSource(file, [file])
    texts = []
    for index in range(len(source)):
        where = source.where(index)
        try:
            record = source.record(index)
            if not record.get("plain") or any(part["type"] != "text" for part in parts(record["messages"][0])):
                raise ValueError("it is no plain text; give {'text': ...}")
            texts.append(_Text(file, where, parts(record["messages"][0])[0]["text"]))
        except ValueError as error:
            bad.append(BadRecord.of(where, error))
    return texts


def _notes(bad: list[BadRecord]) -> list[str]:
    if not bad:
        return []
    more = f"; and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
    return [f"{len(bad)} broken records are left out: {'; '.join(map(str, bad[:SHOWN]))}{more}"]
