"""What is in the data: counts, sizes, lengths, tokens, the mix, what training and validation share, what is broken.

`look_at` reads one task, `mix_of` draws from a mixture as a run would, `shared` compares; `table` and `draw` show it.
The fact a newcomer gets wrong: two records are the same when their words and their pictures' *pixels* are, whatever
their files are called; and a picture that stands in both sets with other words is counted on its own.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from hybridgen.core.messages import parts
from hybridgen.data.broken import Broken
from hybridgen.data.loading import RowLoader
from hybridgen.data.mixture import Mixture
from hybridgen.data.tasks import Task
from hybridgen.processing_hybridgen import HybridGenProcessor

SHOWN = 20  # broken records in the table; the picture's longest lists
DOCUMENTS = 500  # drawn to see what the mix comes to


@dataclass
class Report:
    """One task, as far as it was looked at.

    Args:
        records: how many it has; None = a stream.
        looked: records that were read, broken ones among them.
        sizes: (width, height) of pictures -> how many.
        words: of each record.
        tokens: of each document, where there is a processor to make it.
        image_tokens: of all documents, by path.
        contents, pictures: what identifies records and pictures.
    """

    name: str
    records: int | None
    looked: int = 0
    sizes: Counter = field(default_factory=Counter)
    words: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    image_tokens: Counter = field(default_factory=Counter)
    contents: set[bytes] = field(default_factory=set)
    pictures: set[bytes] = field(default_factory=set)
    repeated: int = 0
    broken: list[Broken] = field(default_factory=list)


def look_at(task: Task, limit: int, processor: HybridGenProcessor | None = None, longest: int | None = None) -> Report:
    """Read the first `limit` records that a run would (0 = all; of a stream, `DOCUMENTS`).

    Args:
        processor: makes documents of them, so that tokens are counted.
        longest: a document of more tokens is broken.
    """
    report = Report(task.name, task.records, broken=list(task.broken))
    count = limit or (DOCUMENTS if task.records is None else task.records)
    for cursor in range(count if task.records is None else min(count, task.records)):
        report.looked += 1
        try:
            _take_in(report, task[task.index(cursor)]["messages"])
            if processor is not None:
                document = task.document(cursor, processor)
                if longest is not None and len(document) > longest:
                    raise ValueError(f"{task.where(cursor)}: {len(document)} tokens are more than a row's {longest}")
                report.tokens.append(len(document))
                ids = Counter(document.layout.input_ids)
                for path in processor.paths:
                    report.image_tokens[path] += ids[getattr(processor.special_tokens, path)]
        except ValueError as error:
            where = task.where(cursor)
            plain = str(error).removeprefix(where.removeprefix(f"source {task.name!r}, ") + ": ")
            report.broken.append(Broken.of(where, ValueError(plain)))
    return report


def _take_in(report: Report, messages: list[dict]) -> None:
    content, words = hashlib.blake2b(digest_size=16), 0
    for message in messages:
        content.update(f"<{message['role']}>".encode())
        for part in parts(message):
            if part["type"] == "text":
                words += len(part["text"].split())
                content.update(part["text"].encode())
                continue
            picture = picture_key(part["image"])
            report.sizes[part["image"].size] += 1
            report.pictures.add(picture)
            content.update(picture)
    report.words.append(words)
    key = content.digest()
    report.repeated += key in report.contents
    report.contents.add(key)


def picture_key(image: Image.Image) -> bytes:
    """What identifies a picture: its pixels, whatever file they came from."""
    rgb = image.convert("RGB")
    return hashlib.blake2b(repr(rgb.size).encode() + rgb.tobytes(), digest_size=16).digest()


@dataclass
class Mix:
    """Shares of the tokens: as the weights say at step 0, and as they came out of `documents` documents."""

    expected: dict[str, float]
    realised: dict[str, float]
    fill: float
    documents: int


def mix_of(mixture: Mixture, processor: HybridGenProcessor, rows: int, length: int) -> Mix:
    """Pack as a run would until enough documents were drawn."""
    loader = RowLoader(mixture, processor, rows, length, prefetch=0)
    while sum(mixture.cursors.values()) < DOCUMENTS:
        next(loader)
    drawn = sum(mixture.cursors.values())
    return Mix(mixture.weights_at(0), loader.shares(), loader.fill_rate(), drawn)


def shared(training: Iterable[Report], validation: Iterable[Report]) -> dict[tuple[str, str], tuple[int, int]]:
    """(training task, validation task) -> how many records, and how many pictures, stand in both."""
    return {
        (ours.name, theirs.name): (len(ours.contents & theirs.contents), len(ours.pictures & theirs.pictures))
        for ours in training
        for theirs in validation
    }


# ---------------------------------------------------------------------------------------------------------- showing


def table(
    training: list[Report], validation: list[Report] = (), mix: Mix | None = None, overlap: dict | None = None
) -> list[str]:
    """All of it, as lines."""
    heads = ["task", "records", "read", "broken", "repeated", "pictures", "sizes", "words", "tokens", "of images"]
    rows = [heads]
    for report in (*training, *validation):
        rows.append(
            [
                report.name,
                "stream" if report.records is None else f"{report.records:,}",
                f"{report.looked:,}",
                f"{len(report.broken):,}",
                f"{report.repeated:,}",
                f"{sum(report.sizes.values()):,}",
                _sizes(report.sizes),
                _range(report.words),
                _range(report.tokens),
                " ".join(f"{path} {count:,}" for path, count in report.image_tokens.items() if count) or "-",
            ]
        )
    lines = _aligned(rows)
    if mix is not None:
        lines += ["", f"shares of the tokens in {mix.documents:,} documents, rows filled to {mix.fill:.1%}"]
        shares = [[name, f"{mix.expected[name]:.1%}", f"{mix.realised[name]:.1%}"] for name in mix.expected]
        lines += _aligned([["task", "expected", "realised"], *shares])
    if overlap is not None:
        lines += ["", "in training and in validation (by content, of what was read)"]
        both = [[*names, f"{records:,}", f"{pictures:,}"] for names, (records, pictures) in overlap.items()]
        lines += _aligned([["training", "validation", "records", "pictures"], *both])
    broken = [each for report in (*training, *validation) for each in report.broken]
    if broken:
        lines += ["", f"broken records: {len(broken):,}", *map(str, broken[:SHOWN])]
        lines += [f"... and {len(broken) - SHOWN:,} more"] if len(broken) > SHOWN else []
    return lines


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _sizes(sizes: Counter) -> str:
    if not sizes:
        return "-"
    (width, height), count = sizes.most_common(1)[0]
    share = count / sizes.total()
    return f"{width}x{height}" if len(sizes) == 1 else f"{len(sizes)} sizes, {width}x{height} {share:.0%}"


def _range(values: list[int]) -> str:
    """Least, median and most."""
    return "-" if not values else f"{min(values)}..{int(np.median(values))}..{max(values)}"


def draw(training: list[Report], validation: list[Report] = (), mix: Mix | None = None):
    """All of it, as a matplotlib figure: sizes, words, tokens, and the mix."""
    from matplotlib.figure import Figure  # slow to import, and only pictures need it

    figure = Figure(figsize=(11, 7), layout="constrained")
    sizes, words, tokens, shares = figure.subplots(2, 2).flat
    for report in (*training, *validation):
        if report.sizes:
            points = np.array(list(report.sizes))
            counts = np.array(list(report.sizes.values()))
            area = 10 + 200 * counts / counts.max()
            sizes.scatter(points[:, 0], points[:, 1], s=area, alpha=0.6, label=report.name)
        for axes, values in ((words, report.words), (tokens, report.tokens)):
            if values:
                axes.hist(values, bins=30, histtype="step", label=report.name)
    named = (sizes, "pictures: width and height"), (words, "words of a record"), (tokens, "tokens of a document")
    for axes, title in named:
        axes.set_title(title, loc="left", fontsize=10)
        if axes.has_data():
            axes.legend(fontsize=8, frameon=False)
    shares.set_title("shares of the tokens", loc="left", fontsize=10)
    if mix is not None:
        places = np.arange(len(mix.expected))
        shares.barh(places - 0.2, list(mix.expected.values()), 0.4, label="expected")
        shares.barh(places + 0.2, [mix.realised[name] for name in mix.expected], 0.4, label="realised")
        shares.set_yticks(places, list(mix.expected))
        shares.invert_yaxis()
        shares.legend(fontsize=8, frameon=False)
    return figure
