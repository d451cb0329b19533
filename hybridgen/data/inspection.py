"""What is in the data: counts, sizes, lengths, tokens, the mix, what training and validation share, what is broken.

`inspect_source` reads one source, `measure_mixture` draws from a mixture as a run would, `count_overlap` compares
training with validation; `report_lines` and `plot` show the result. Two records are the same when their words and their
pictures' *pixels* are, whatever their files are called; a picture that is in both sets with other words is counted on
its own.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from hybridgen.core.documents import Document
from hybridgen.core.messages import parts
from hybridgen.core.pictures import pixels_hash
from hybridgen.data.bad_records import BadRecord
from hybridgen.data.document_source import DocumentSource
from hybridgen.data.loading import RowLoader
from hybridgen.data.mixture import Mixture
from hybridgen.data.packing import fit_rows
from hybridgen.image_processing_hybridgen import cropped_share
from hybridgen.processing_hybridgen import HybridGenProcessor

SHOWN = 20  # broken records listed under the table
CROPPED = 0.1  # of a picture, from which on its loss is said
DOCUMENTS = 500  # drawn to measure a mixture; records read of a stream


@dataclass
class SourceReport:
    """What one source holds, as far as it was read.

    Args:
        records: how many it has; None = a stream.
        read: records that were read, broken ones included.
        sizes: (width, height) of pictures -> how many.
        words: of each record.
        tokens: of each document; empty without a processor.
        image_tokens: of all documents, by path.
        record_hashes, picture_hashes: of the contents, to find what is repeated or shared.
        repeated: records whose content was met before.
        without_picture: records of words alone.
        long: documents longer than a row that are cut (`SourceConfig.long`).
        pieces: what these are cut into.
        lost_tokens: what `long: truncate` leaves out.
        cropped: pictures of which more than `CROPPED` is cut off on a path, so that they fill its frame.
    """

    name: str
    records: int | None
    read: int = 0
    sizes: Counter = field(default_factory=Counter)
    words: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    image_tokens: Counter = field(default_factory=Counter)
    record_hashes: set[bytes] = field(default_factory=set)
    picture_hashes: set[bytes] = field(default_factory=set)
    repeated: int = 0
    without_picture: int = 0
    long: int = 0
    pieces: int = 0
    lost_tokens: int = 0
    cropped: int = 0
    bad_records: list[BadRecord] = field(default_factory=list)


def inspect_source(
    source: DocumentSource, limit: int, processor: HybridGenProcessor | None = None, longest: int | None = None
) -> SourceReport:
    """Read the first `limit` records that a run would (0 = all, or `DOCUMENTS` of a stream).

    Args:
        processor: makes documents of the records, so that tokens can be counted.
        longest: a document of more tokens is broken.
    """
    report = SourceReport(source.name, source.records, bad_records=list(source.bad_records))
    count = limit or (DOCUMENTS if source.records is None else source.records)
    for cursor in range(count if source.records is None else min(count, source.records)):
        report.read += 1
        try:
            messages = source.record(cursor)["messages"]
            _count_record(report, messages)
            if processor is not None:
                document = source.document(cursor, processor)
                if longest is not None:
                    _count_pieces(report, document, longest, source, cursor)
                _count_cropped(report, messages, document, processor)
                report.tokens.append(len(document))
                ids = Counter(document.layout.input_ids)
                for path in processor.paths:
                    report.image_tokens[path] += ids[getattr(processor.special_tokens, path)]
        except ValueError as error:
            where = source.where(cursor)
            place = where.removeprefix(f"source {source.name!r}, ")
            bad = BadRecord.of(where, ValueError(str(error).removeprefix(f"{place}: ")))
            if bad not in report.bad_records:  # a stream of few records brings them again
                report.bad_records.append(bad)
    return report


def _count_pieces(report: SourceReport, document: Document, longest: int, source: DocumentSource, cursor: int) -> None:
    """What becomes of a document that is longer than a row. Raises ValueError if it is refused."""
    if len(document) > longest:
        pieces = list(fit_rows(document, longest, source.config.long_for(document.plain), source.where(cursor)))
        report.long, report.pieces = report.long + 1, report.pieces + len(pieces)
        report.lost_tokens += len(document) - sum(map(len, pieces))


def _count_cropped(
    report: SourceReport, messages: list[dict], document: Document, processor: HybridGenProcessor
) -> None:
    sizes = [part["image"].size for message in messages for part in parts(message) if part["type"] == "image"]
    spans = sorted({image.span for image in document.images})  # a picture has one, by however many paths it passes
    cropped = set()
    for image in document.images:
        fills = image.path != "understanding" and (image.write or processor.fit == "crop")
        height, width = image.pixels.shape[-2:]
        if fills and cropped_share(sizes[spans.index(image.span)], height, width) > CROPPED:
            cropped.add(image.span)
    report.cropped += len(cropped)


def _count_record(report: SourceReport, messages: list[dict]) -> None:
    content, words = hashlib.blake2b(digest_size=16), 0
    for message in messages:
        content.update(f"<{message['role']}>".encode())
        for part in parts(message):
            if part["type"] == "text":
                words += len(part["text"].split())
                content.update(part["text"].encode())
                continue
            picture = pixels_hash(part["image"])
            report.sizes[part["image"].size] += 1
            report.picture_hashes.add(picture)
            content.update(picture)
    report.words.append(words)
    report.without_picture += not any(part["type"] == "image" for message in messages for part in parts(message))
    record = content.digest()
    report.repeated += record in report.record_hashes
    report.record_hashes.add(record)


@dataclass
class MixtureReport:
    """What a mixture gives.

    Args:
        expected: share of the tokens of each source, as the weights say at step 0.
        realised: the same, as measured.
        fill: share of the packed rows that is no padding.
        documents: how many were drawn to measure it.
    """

    expected: dict[str, float]
    realised: dict[str, float]
    fill: float
    documents: int


def measure_mixture(mixture: Mixture, processor: HybridGenProcessor, rows: int, length: int) -> MixtureReport:
    """Pack as a run would at step 0 until enough documents were drawn."""
    loader = RowLoader(mixture, processor, rows, length, prefetch=0, batches_per_step=DOCUMENTS)
    while (drawn := sum(stream.drawn for stream in loader.streams)) < DOCUMENTS:
        next(loader)
    loader.close()
    return MixtureReport(mixture.weights_at(0), loader.shares(), loader.fill_rate(), drawn)


def count_overlap(
    training: Iterable[SourceReport], validation: Iterable[SourceReport]
) -> dict[tuple[str, str], tuple[int, int]]:
    """(training source, validation source) -> how many records, and how many pictures, are in both."""
    return {
        (seen.name, held_out.name): (
            len(seen.record_hashes & held_out.record_hashes),
            len(seen.picture_hashes & held_out.picture_hashes),
        )
        for seen in training
        for held_out in validation
    }


# ---------------------------------------------------------------------------------------------------------- showing


def report_lines(
    training: list[SourceReport],
    validation: list[SourceReport] = (),
    mix: MixtureReport | None = None,
    overlap: dict | None = None,
) -> list[str]:
    """Everything as lines of text."""
    heads = ["source", "records", "read", "broken", "repeated", "pictures", "sizes", "words", "tokens", "of images"]
    rows = [["set", *heads] if validation else heads]
    for name_of_set, report in _with_set(training, validation):
        rows.append(
            [
                *([name_of_set] if validation else ()),
                report.name,
                "stream" if report.records is None else f"{report.records:,}",
                f"{report.read:,}",
                f"{len(report.bad_records):,}",
                f"{report.repeated:,}",
                f"{sum(report.sizes.values()):,}",
                _sizes(report.sizes),
                _range(report.words),
                _range(report.tokens),
                " ".join(f"{path} {count:,}" for path, count in report.image_tokens.items() if count) or "-",
            ]
        )
    lines = _aligned(rows)
    for report in (*training, *validation):
        if report.sizes and report.without_picture:
            lines.append(f"{report.name}: {report.without_picture:,} of its records hold no picture, words alone")
        if report.long:
            lost = f", {report.lost_tokens:,} tokens are left out" if report.lost_tokens else ""
            lines.append(
                f"{report.name}: {report.long:,} of its documents are longer than a row and are cut into "
                f"{report.pieces:,} pieces{lost}"
            )
        if report.cropped:
            lines.append(
                f"{report.name}: {report.cropped:,} of its {report.sizes.total():,} pictures lose more than "
                f"{CROPPED:.0%} at their sides; image_tokens keeps their shape, model.fit: pad reads them whole"
            )
    if mix is not None:
        lines += ["", f"shares of the tokens in {mix.documents:,} documents, rows filled to {mix.fill:.1%}"]
        shares = [[name, f"{mix.expected[name]:.1%}", f"{mix.realised[name]:.1%}"] for name in mix.expected]
        lines += _aligned([["source", "expected", "realised"], *shares])
    if overlap is not None:
        lines += ["", "in training and in validation (by content, of what was read)"]
        both = [[*names, f"{records:,}", f"{pictures:,}"] for names, (records, pictures) in overlap.items()]
        lines += _aligned([["training", "validation", "records", "pictures"], *both])
    bad = [each for report in (*training, *validation) for each in report.bad_records]
    if bad:
        lines += ["", f"broken records: {len(bad):,}", *map(str, bad[:SHOWN])]
        lines += [f"... and {len(bad) - SHOWN:,} more"] if len(bad) > SHOWN else []
    return lines


def _with_set(training: list[SourceReport], validation: list[SourceReport]) -> list[tuple[str, SourceReport]]:
    """Each report after the name of its set: both sets may have a source of one name."""
    return [*(("training", report) for report in training), *(("validation", report) for report in validation)]


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
    """Minimum, median and maximum."""
    return "-" if not values else f"{min(values)}..{int(np.median(values))}..{max(values)}"


def plot(training: list[SourceReport], validation: list[SourceReport] = (), mix: MixtureReport | None = None):
    """Everything as a matplotlib figure: sizes, words, tokens, and shares of the mixture."""
    from matplotlib.figure import Figure  # slow to import, and only this needs it

    figure = Figure(figsize=(11, 7), layout="constrained")
    sizes, words, tokens, shares = figure.subplots(2, 2).flat
    for name_of_set, report in _with_set(training, validation):
        label = f"{report.name} ({name_of_set})" if validation else report.name
        if report.sizes:
            points = np.array(list(report.sizes))
            counts = np.array(list(report.sizes.values()))
            area = 10 + 200 * counts / counts.max()
            sizes.scatter(points[:, 0], points[:, 1], s=area, alpha=0.6, label=label)
        for axes, values in ((words, report.words), (tokens, report.tokens)):
            if values:
                axes.hist(values, bins=30, histtype="step", label=label)
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
