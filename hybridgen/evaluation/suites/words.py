"""words: pictures of short words that training never showed, read by the world's own scorer and by an OCR reader.

Source: `data.synthetic.words`, words of SCOWL in the fonts of matplotlib; `held_out` holds words that training
never draws. There is no reference harness: papers report the accuracy of words read by some OCR system on prompts of
their own, mostly in pictures of 512 pixels and more. Ours are 64 pixels by default, and a picture is right when all its
letters are read in order, whatever their case, accents and spaces (`evaluation.readers`).

Two judges: `text`, `letters`, `picture` and the like are of the exact scorer, which knows the fonts; `read` (all words
of a picture), `read_letters` (letters wanted less the edits to what is read) and `read_1` to `read_8` (pictures of one
word of so many letters) are of the reader, and beside them stands what it reads in the true pictures.
"""

from collections import Counter
from collections.abc import Sequence

from PIL import Image

from hybridgen.data.synthetic import words
from hybridgen.data.synthetic.questions import tally
from hybridgen.evaluation.intervals import with_interval
from hybridgen.evaluation.readers import Reader, letters_only, open_reader
from hybridgen.evaluation.result import Item, Result
from hybridgen.evaluation.synthetic import USUAL_SAMPLES, check_synthetic, evaluate_synthetic, held_out_of
from hybridgen.evaluation.work import Work

SPLIT = "held_out"
LABELS = {
    "text": "what is written",
    "letters": "letters",
    "word_count": "how many words",
    "letter_count": "how many letters",
    "picture": "words, font and colours",
    "read": "words as read by OCR",
    "read_letters": "letters as read by OCR",
    **{f"read_{n}": f"words of {n} letters as read by OCR" for n in range(1, 9)},
    "yes_no": "yes or no",
    "all": "all questions",
}
CREDIT = "The words are of SCOWL (Kevin Atkinson), the fonts DejaVu and STIX, as matplotlib ships them."
_AT_ONCE = 16  # pictures read between two files of an evaluation


def check(work: Work) -> None:
    check_synthetic(work, "words", SPLIT)
    if work.draw_paths:
        _reader(work)


def run(work: Work) -> Result:
    """
    1. Draw, answer and talk as every synthetic dataset, scored exactly.
    2. Read the true pictures, and those drawn by each path, and count what was read right.
    """
    result = evaluate_synthetic(work, "words", SPLIT, LABELS, CREDIT)
    reader = _reader(work) if work.draw_paths else None
    if reader is None:
        return result
    result.facts["reader"] = work.text("reader", "rapidocr")
    prompts = held_out_of(work, words, SPLIT, USUAL_SAMPLES)
    wanted = ["".join(spec.lines) for spec in prompts.specs]
    lone = [len(spec.lines) == 1 for spec in prompts.specs]
    beside = {
        "majority": _shares([Counter(wanted).most_common(1)[0][0]] * len(wanted), wanted, lone),
        "true": _shares(read(work, reader, prompts.pictures, "read-true", "reading true pictures"), wanted, lone),
    }
    for path in work.draw_paths:
        items, of_path = result.items["generation"][path], dict(beside)
        if path == "vq":
            decoded = [item.pictures["as codes"] for item in items]
            of_path["codec"] = _shares(read(work, reader, decoded, "read-codec", "reading true codes"), wanted, lone)
        drawn = [item.pictures[path] for item in items]
        texts = read(work, reader, drawn, f"read-{path}", f"reading what {path} drew")
        for name, found in score(texts, wanted, lone).items():
            others = {baseline: shares[name] for baseline, shares in of_path.items()}
            result.scores["generation"][path]["scores"][name] = {**found, **others}
        for item, text, word, alone in zip(items, texts, wanted, lone, strict=True):
            _note(item, text, word, alone)
    return result


def read(work: Work, reader: Reader, pictures: Sequence[Image.Image], part: str, label: str) -> list[str]:
    """The letters that a reader finds in each picture."""

    def of_some(numbers: list[int]) -> list[str]:
        texts = reader([pictures[i] for i in numbers])
        if len(texts) != len(numbers) or not all(isinstance(text, str) for text in texts):
            raise ValueError(
                f"the reader of suite {work.suite} must return one text for each picture; it returned "
                f"{len(texts)} for {len(numbers)}, of {', '.join({type(text).__name__ for text in texts}) or 'nothing'}"
            )
        return list(map(letters_only, texts))

    return list(work.batches(len(pictures), of_some, part, label, _AT_ONCE))


def score(texts: Sequence[str], wanted: Sequence[str], lone: Sequence[bool]) -> dict[str, dict]:
    """Tallies of letters read against letters wanted, in order, with intervals over pictures.

    Args:
        lone: whether the picture holds one word, and so counts among the words of its length.
    """
    right = [text == word for text, word in zip(texts, wanted, strict=True)]
    letters = [words.right_letters((text,), (word,)) for text, word in zip(texts, wanted, strict=True)]
    of_letters = tally(sum(hit for hit, _ in letters), sum(n for _, n in letters))
    tallies = {
        "read": with_interval(tally(sum(right), len(right))),
        "read_letters": with_interval(of_letters, letters),
    }
    for length in sorted({len(word) for word, alone in zip(wanted, lone, strict=True) if alone}):
        hits = [hit for hit, word, alone in zip(right, wanted, lone, strict=True) if alone and len(word) == length]
        tallies[f"read_{length}"] = with_interval(tally(sum(hits), len(hits)))
    return tallies


def _shares(texts: Sequence[str], wanted: Sequence[str], lone: Sequence[bool]) -> dict[str, float]:
    return {name: found["share"] for name, found in score(texts, wanted, lone).items()}


def _note(item: Item, text: str, word: str, alone: bool) -> None:
    """What the reader says of a picture, added to its item."""
    hit = float(text == word)
    right, n = words.right_letters((text,), (word,))
    item.verdict |= {"read": hit, "read_letters": right / n}
    if alone:
        item.verdict[f"read_{len(word)}"] = hit
    if not hit:
        reads = f'OCR reads "{text}"' if text else "OCR reads nothing"
        item.wrong = ", ".join(filter(None, (item.wrong, reads)))


def _reader(work: Work) -> Reader | None:
    """The reader that was asked for, loaded once; None where none is wanted."""
    name = work.text("reader", "rapidocr")
    return None if name == "none" else work.once("reader", lambda: open_reader(name))
