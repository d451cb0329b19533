"""distribution: are drawn pictures distributed as true ones? FID, KID, CMMD, precision and recall, and CLIP score.

Source: prompts and true pictures of a synthetic dataset's held-out split, or of the user's own captioned pictures
(`--option data=FILE`); weights from the user's disk. Nothing is downloaded, and no number is called FID, KID or CMMD
that is not on the network of that name (`evaluation.extractors`).

What differs from the reference harnesses (torch-fidelity, clean-fid, the public code of CMMD): the formulas do not
(`evaluation.distances`). Papers compare 5,000 to 50,000 drawn pictures with all true ones of a set; `--samples` says
how many here, and a Frechet distance of few is too large. KID is over all pictures, not over random subsets. Precision
and recall are on the features at hand, where their paper takes VGG-16's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from hybridgen.core.recognition import user_path
from hybridgen.data.source_config import SourceConfig
from hybridgen.data.sources import open_source
from hybridgen.data.synthetic import DATASETS, open_synthetic
from hybridgen.data.synthetic.questions import tally
from hybridgen.evaluation import generation
from hybridgen.evaluation.distances import CMMD, KID, frechet, inside, kernel_distance
from hybridgen.evaluation.extractors import CLIP_FROM, INCEPTION_FROM, Clip, Extractor, inception, own_extractor
from hybridgen.evaluation.intervals import bootstrap_mean, with_interval
from hybridgen.evaluation.result import Item, Result
from hybridgen.evaluation.synthetic import side_of
from hybridgen.evaluation.work import Work

USUAL_SAMPLES = 1000
LEAST = 4  # pictures, of which each has three neighbours


@dataclass
class Judges:
    """What was named to judge by."""

    extractors: list[Extractor]
    clip: Clip | None


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
    if (count := work.count(*_there_are(work))) < LEAST:
        raise ValueError(f"{count} pictures are too few for suite {work.suite}; take {LEAST} or more")


def run(work: Work) -> Result:
    """
    1. Load what judges, and take prompts and true pictures.
    2. Draw the prompts by each path.
    3. Compare features of drawn and of true pictures, and pictures with their captions.
    """
    judges = _judges(work)
    captions, true, side, left_out = _prompts(work)
    facts = {"data": _data(work), "samples": len(captions), "seed": work.seed, "size": side}
    facts |= {key: value for extractor in judges.extractors for key, value in extractor.facts.items()}
    result = Result(facts=facts, labels={"precision": "precision", "recall": "recall"})
    if left_out:
        result.note(f"{left_out} records are left out: each must be words of the user and one picture after them")
    of_true = {extractor.name: extractor(true) for extractor in judges.extractors}
    for path in work.draw_paths:
        drawn = list(work.draw(path, captions, size=side))
        scores = {}
        for extractor in judges.extractors:
            found, labels = _compare(extractor, extractor(drawn), of_true[extractor.name], judges.clip)
            scores |= found
            result.labels |= labels
        items = [
            Item(caption, {"true picture": one, path: other})
            for caption, one, other in zip(captions, true, drawn, strict=True)
        ]
        if judges.clip is not None:
            result.labels["clip_score"] = f"CLIP score by {judges.clip.name}"
            fits, best = judges.clip.fit(drawn, captions), judges.clip.fit(true, captions)
            scores["clip_score"] = bootstrap_mean(fits) | {"true": sum(best) / len(best)}
        settings = work.settings_of(path).of_path(path)
        result.add("generation", path, scores, items, seconds=work.seconds(f"draw-{path}"), **settings)
    return result


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


def _there_are(work: Work) -> tuple[int, int]:
    """How many captioned pictures there are, and how many are usual."""
    name = _data(work)
    if name in DATASETS:
        dataset = open_synthetic(name)
        return len(dataset.Source(dataset.SPLITS[1], "draw", work.seed)), USUAL_SAMPLES
    if not user_path(name).exists():
        raise ValueError(
            f"option data of suite {work.suite}: there is neither a dataset nor a file {name}; the datasets are "
            f"{', '.join(DATASETS)}"
        )
    count = len(_captioned(user_path(name))[0])
    if count < LEAST:
        raise ValueError(f"{name} holds {count} captioned pictures; give {LEAST} or more")
    return count, min(count, USUAL_SAMPLES)


def _prompts(work: Work) -> tuple[list[str], list[Image.Image], int | None, int]:
    """Captions, the true pictures, the size to draw at, and how many records have no such pair."""
    name, samples = _data(work), work.count(*_there_are(work))
    if name in DATASETS:
        dataset = open_synthetic(name)
        side = side_of(work, dataset)
        prompts = generation.held_out_prompts(dataset, dataset.SPLITS[1], samples, work.seed, side)
        return prompts.captions, prompts.pictures, side, 0
    pairs, left_out = _captioned(user_path(name))
    pairs = pairs[:samples]
    side = work.number("size", 1) if "size" in work.options else None  # None: as the checkpoint draws
    return [caption for caption, _ in pairs], [picture.convert("RGB") for _, picture in pairs], side, left_out


def _captioned(file: Path) -> tuple[Sequence[tuple[str, Image.Image]], int]:
    """The captions and pictures of chat records in which one picture is written after words, and how many records are
    others."""
    source = open_source(SourceConfig(str(file), write="diffusion")).record_source
    pairs = []
    for index in range(len(source)):
        words, pictures = "", []
        for message in source[index]["messages"]:
            for part in message["content"]:
                words += part["text"] if part["type"] == "text" and message["role"] == "user" else ""
                pictures += [part["image"]] if part["type"] == "image" and message["role"] == "assistant" else []
        if words and len(pictures) == 1:
            pairs.append((words, pictures[0]))
    return pairs, len(source) - len(pairs)
