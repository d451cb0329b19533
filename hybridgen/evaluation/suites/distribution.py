"""distribution: are drawn pictures distributed as true ones? FID, KID, CMMD, precision and recall, and CLIP score.

Source: prompts and true pictures of a synthetic dataset's held-out split, or of the user's own captioned pictures
(`--option data=FILE`); weights from the user's disk. Nothing is downloaded, and no number is called FID, KID or CMMD
that is not on the network of that name (`evaluation.extractors`).

What differs from the reference harnesses (torch-fidelity, clean-fid, the public code of CMMD): the formulas do not
(`evaluation.distances`). Papers compare 5,000 to 50,000 drawn pictures with all true ones of a set; `--samples` says
how many here, and a Frechet distance of few is too large. KID is over all pictures, not over random subsets. Precision
and recall are on the features at hand, where their paper takes VGG-16's.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image

from hybridgen.core.messages import parts
from hybridgen.core.recognition import user_path
from hybridgen.data.source_config import SourceConfig
from hybridgen.data.sources import open_source
from hybridgen.data.synthetic import DATASETS, open_synthetic
from hybridgen.data.synthetic.questions import tally
from hybridgen.evaluation.distances import CMMD, KID, frechet, inside, kernel_distance
from hybridgen.evaluation.drawn_files import taken_evenly
from hybridgen.evaluation.extractors import (
    AT_ONCE,
    CLIP_FROM,
    INCEPTION_FROM,
    Clip,
    Extractor,
    inception,
    own_extractor,
)
from hybridgen.evaluation.intervals import bootstrap_mean, with_interval
from hybridgen.evaluation.result import Item, Result
from hybridgen.evaluation.synthetic import side_of
from hybridgen.evaluation.work import Values, Work

USUAL_SAMPLES = 1000
LEAST = 4  # pictures, of which each has three neighbours


@dataclass
class Judges:
    """What was named to judge by."""

    extractors: list[Extractor]
    clip: Clip | None


@dataclass
class Truth:
    """What is to be drawn, and the true pictures, each of which is read when it is asked for.

    Args:
        picture: number of a caption -> its picture.
        side: of drawn pictures; None = as the checkpoint draws.
        notes: in sentences, what is left out.
        contents: a hash of captions and pictures; "" of those that are no files.
    """

    captions: list[str]
    picture: Callable[[int], Image.Image]
    side: int | None
    notes: list[str] = field(default_factory=list)
    contents: Callable[[], str] = str


def check(work: Work) -> None:
    work.require_drawing()
    if not {"inception", "clip", "extractor"} & set(work.options):
        raise ValueError(
            f"suite {work.suite} needs weights from your disk: --option inception=FILE ({INCEPTION_FROM}), "
            f"clip=FOLDER ({CLIP_FROM}), or extractor=MODULE:NAME of your own"
        )
    for option, source in (("inception", INCEPTION_FROM), ("clip", CLIP_FROM)):
        if option in work.options:
            work.file(option, source)
    if "resize" in work.options and "inception" not in work.options:
        raise ValueError(f"option resize of suite {work.suite} is of Inception's pictures; give inception=FILE, too")
    _judges(work)  # weights that cannot be loaded are told of before anything is drawn
    truth = _truth(work)
    work.check_drawing(truth.captions, truth.side)


def contents(work: Work) -> str:
    """A hash of the captions and true pictures that are evaluated, without decoding them."""
    return _truth(work).contents()


def run(work: Work) -> Result:
    """
    1. Load what judges, and take prompts and true pictures.
    2. Draw the prompts by each path.
    3. Compare features of drawn and of true pictures, and pictures with their captions.
    """
    judges, truth = _judges(work), _truth(work)
    captions = truth.captions
    facts = {"data": _data(work), "samples": len(captions), "seed": work.seed, "size": truth.side}
    facts |= {key: value for extractor in judges.extractors for key, value in extractor.facts.items()}
    result = Result(facts=facts, labels={"precision": "precision", "recall": "recall"})
    result.note(*truth.notes)
    some = lambda numbers: [truth.picture(i) for i in numbers]  # noqa: E731
    true = work.batches(len(captions), some, "true", "reading true pictures", AT_ONCE)
    of_true = {extractor.name: _features(work, extractor, true, "true") for extractor in judges.extractors}
    fits_of_true = _fits(work, judges.clip, true, captions, "true")
    _note_cut(result, judges.clip, captions)
    for path in work.draw_paths:
        drawn, scores = work.draw(path, captions, size=truth.side), {}
        for extractor in judges.extractors:
            features = _features(work, extractor, drawn, path)
            found, labels = _compare(extractor, features, of_true[extractor.name], judges.clip)
            scores |= found
            result.labels |= labels
        items = [
            Item(caption, {"true picture": true.shown(i), path: drawn.shown(i)}) for i, caption in enumerate(captions)
        ]
        if judges.clip is not None:
            result.labels["clip_score"] = f"CLIP score by {judges.clip.name}"
            fits = _fits(work, judges.clip, drawn, captions, path)
            scores["clip_score"] = bootstrap_mean(fits) | {"true": sum(fits_of_true) / len(fits_of_true)}
        settings = work.settings_of(path).of_path(path)
        result.add("generation", path, scores, items, seconds=work.seconds(f"draw-{path}"), **settings)
    return result


def _features(work: Work, extractor: Extractor, pictures: Values, of: str) -> torch.Tensor:
    """(n, d) features; each process computes some, and what is computed is kept."""

    def rows(number: int) -> np.ndarray:
        return extractor(pictures[number * AT_ONCE : (number + 1) * AT_ONCE]).numpy()

    part, label = f"features-{of}-{extractor.name}", f"features by {extractor.name} ({of}), {AT_ONCE} at a time"
    return torch.from_numpy(np.concatenate(list(work.each(-(-len(pictures) // AT_ONCE), rows, part, label))))


def _note_cut(result: Result, clip: Clip | None, captions: Sequence[str]) -> None:
    """Say how many captions are cut."""
    if clip is not None and (cut := sum(map(clip.is_cut, captions))):
        result.note(
            f"{cut} of {len(captions)} captions are longer than the {clip.context} tokens that {clip.name} reads; what "
            "stands beyond is not in its score"
        )


def _fits(work: Work, clip: Clip | None, pictures: Values, captions: Sequence[str], of: str) -> list[float]:
    """The CLIP score of each picture; none without a CLIP."""
    if clip is None:
        return []

    def fit(numbers: list[int]) -> list[float]:
        return clip.fit([pictures[i] for i in numbers], [captions[i] for i in numbers])

    return list(work.batches(len(captions), fit, f"clip-{of}", f"CLIP score ({of})", AT_ONCE))


def _compare(
    extractor: Extractor, drawn: torch.Tensor, true: torch.Tensor, clip: Clip | None
) -> tuple[dict[str, dict], dict[str, str]]:
    """Scores on one extractor's features, under the names that they may bear, and what these are called in words."""
    is_clip = clip is not None and extractor.name == clip.name
    if is_clip:
        named = ("cmmd", "CMMD") if clip.is_of_cmmd else (f"mmd_{extractor.name}", f"Gaussian MMD on {extractor.name}")
        return {named[0]: kernel_distance(drawn, true, CMMD)}, dict([named])
    suffix, on = ("", "") if extractor.name == "Inception" else (f"_{extractor.name}", f" on {extractor.name}")
    distance, kernel = ("fid", "kid") if not suffix else (f"frechet{suffix}", f"kernel{suffix}")
    labels = {
        distance: "FID" if not suffix else f"Frechet distance{on}",
        kernel: "KID" if not suffix else f"cubic MMD{on}",
        f"precision{suffix}": f"precision{on}",
        f"recall{suffix}": f"recall{on}",
    }
    precise, recalled = inside(drawn, true), inside(true, drawn)
    return {
        distance: frechet(drawn, true),
        kernel: kernel_distance(drawn, true, KID),
        f"precision{suffix}": with_interval(tally(int(precise.sum()), len(precise))),
        f"recall{suffix}": with_interval(tally(int(recalled.sum()), len(recalled))),
    }, labels


def _judges(work: Work) -> Judges:
    """Those that were named, loaded once."""
    return work.once("judges", lambda: _load_judges(work))


def _load_judges(work: Work) -> Judges:
    device, extractors, clip = work.pipeline.device, [], None
    if "inception" in work.options:
        resize = work.text("resize", "original")
        extractors.append(inception(work.file("inception", INCEPTION_FROM), resize, device))
    if "clip" in work.options:
        clip = Clip(work.file("clip", CLIP_FROM), device)
        extractors.append(clip.extractor())
    if "extractor" in work.options:
        extractors.append(own := own_extractor(work.text("extractor")))
        if own.name in (taken := ("Inception", clip.name if clip else "Inception")):
            raise ValueError(
                f"option extractor of suite {work.suite} is called {own.name}, as {' or '.join(dict.fromkeys(taken))} "
                "is, whose numbers have names of their own; give it another name"
            )
    return Judges(extractors, clip)


def _data(work: Work) -> str:
    return work.text("data", "dolls")


def _truth(work: Work) -> Truth:
    """What is to be drawn, looked up once.

    Raises:
        ValueError: there is no such dataset or file, or it holds too few pictures with captions.
    """
    return work.once("truth", lambda: (_of_dataset if _data(work) in DATASETS else _of_files)(work))


def _of_dataset(work: Work) -> Truth:
    """The first records of a synthetic dataset's held-out split."""
    dataset = open_synthetic(_data(work))
    side = side_of(work, dataset)
    source = dataset.Source(dataset.SPLITS[1], "draw", work.seed, size=side)
    count = _enough(work, work.count(len(source), USUAL_SAMPLES))
    work.check_drawing(["a picture"], side)  # before pictures are made of a size that nothing can draw
    captions = [source[i]["messages"][0]["content"][0]["text"] for i in range(count)]
    return Truth(captions, source.picture, side)


def _of_files(work: Work) -> Truth:
    """Pictures with captions of the user's own, taken evenly from the beginning to the end."""
    name, file = _data(work), user_path(_data(work))
    if not file.exists():
        raise ValueError(
            f"option data of suite {work.suite}: there is neither a dataset nor a file {name}; the datasets are "
            f"{', '.join(DATASETS)}"
        )
    opened = open_source(SourceConfig(str(file), write="diffusion"))
    source, broken = opened.record_source, len(opened.bad_records)
    there, others = [], 0
    for index in range(len(source)):
        try:
            found = _caption_and_picture(source.read(index, unread=True))
        except ValueError:  # of the record
            broken += 1
            continue
        if found is None:
            others += 1
        else:
            there.append(index)
    if len(there) < LEAST:
        raise ValueError(f"{name} holds {len(there)} captioned pictures; give {LEAST} or more")
    taken = [there[i] for i in taken_evenly(work, len(there), USUAL_SAMPLES)]
    _enough(work, len(taken))
    captions = []
    for index in taken:
        caption, unread = _caption_and_picture(source.read(index, unread=True))
        unread.size  # noqa: B018 - raises for what is no picture, and decodes nothing
        captions.append(caption)
    notes = [f"{others} records are left out: each must be words of the user and one picture after them"] * bool(others)
    notes += [f"{broken} records are broken, and left out"] * bool(broken)

    def picture(i: int) -> Image.Image:
        return _caption_and_picture(source[taken[i]])[1].convert("RGB")

    def contents() -> str:
        digest = hashlib.blake2b(repr(captions).encode(), digest_size=16)
        for index in taken:
            digest.update(_caption_and_picture(source.read(index, unread=True))[1].content_hash())
        return digest.hexdigest()

    return Truth(captions, picture, work.side(), notes, contents)


def _caption_and_picture(record: dict) -> tuple[str, Image.Image] | None:
    """Of a record in which one picture is written after words; None of any other."""
    words, pictures = "", []
    for message in record["messages"]:
        for part in parts(message):
            words += part["text"] if part["type"] == "text" and message["role"] == "user" else ""
            pictures += [part["image"]] if part["type"] == "image" and message["role"] == "assistant" else []
    return (words, pictures[0]) if words and len(pictures) == 1 else None


def _enough(work: Work, count: int) -> int:
    if count < LEAST:
        raise ValueError(f"{count} pictures are too few for suite {work.suite}; take {LEAST} or more")
    return count
