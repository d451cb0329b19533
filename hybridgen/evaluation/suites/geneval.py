"""geneval: GenEval's 553 prompts in its official format, drawn and laid out for its official scorer, or scored here.

Source: Ghosh, Hajishirzi, Schmidt, "GenEval" (arXiv 2310.11513), github.com/djghosh13/geneval, MIT licence: option
`data` names its `prompts/evaluation_metadata.jsonl`. Written is what its `evaluation/evaluate_images.py` reads:

    OUT/geneval/PATH-pictures/00000/metadata.jsonl      the prompt's line, with all of its keys
                              00000/samples/00000.png   n_samples of them (4)
                              00000/grid.png

Sample k of every prompt is drawn with seed + k (the reference script seeds each prompt with 42 and draws its samples
one after the other: `--seed 42`).

Option `detector=MODULE:NAME` (or FILE.py:NAME) scores here by the same rule (`core.geneval`): objects surer than 0.3,
when counting 0.9, at most 16 of a class. A detector is a function: picture -> a list of (class, score, (left, top,
right, bottom)), with a mask behind if it has one; with an attribute `colours`: (picture, objects) -> their colours.
Such a number is GenEval's only with its own detectors (Mask2Former of mmdet, CLIP ViT-L/14 for colours), which need a
GPU and were not run here. The rule is the reference's: on 4,424 random sets of finds, drawn for all 553 prompts, its
`evaluate` and ours gave the same verdict. Intervals are over prompts, as the samples of one are not independent.
"""

from collections.abc import Callable
from pathlib import Path

from PIL import Image

from hybridgen.core.geneval import COLOURS, RELATIONS, TAGS, Found, faults
from hybridgen.core.values import shown
from hybridgen.data.synthetic.questions import tally
from hybridgen.evaluation.drawn_files import draw_samples, in_a_grid, lay_out, read_lines, taken_evenly
from hybridgen.evaluation.intervals import mean_of_shares, with_interval
from hybridgen.evaluation.named_objects import load_named
from hybridgen.evaluation.result import Item, Result
from hybridgen.evaluation.work import Work

WHERE = "it is prompts/evaluation_metadata.jsonl of github.com/djghosh13/geneval"
SAMPLES = 4  # of each prompt
SURE, SURE_TO_COUNT = 0.3, 0.9
MOST = 16  # objects of a class
LABELS = {
    "single_object": "single object",
    "two_object": "two objects",
    "colors": "colours",
    "color_attr": "two colours",
    "pictures": "all pictures",
    "prompts": "prompts with a right picture",
    "overall": "overall (mean of the categories)",
}


def check(work: Work) -> None:
    work.require_drawing()
    lines = read_metadata(work.file("data", WHERE))
    work.check_drawing([lines[i]["prompt"] for i in taken_evenly(work, len(lines))], work.side())
    work.number("n_samples", SAMPLES)
    if work.text("detector") is not None:
        detector = _detector(work)
        if any("color" in each for line in lines for each in line["include"]) and not hasattr(detector, "colours"):
            raise ValueError(
                f"the prompts ask for colours, and the detector {work.text('detector')} has no `colours`: give it an "
                "attribute that is a function (picture, objects) -> the colour of each"
            )
    elif work.out is None:
        raise ValueError("without a detector geneval only writes pictures for the official scorer: name a folder (out)")


def run(work: Work) -> Result:
    lines, each = read_metadata(work.file("data", WHERE)), work.number("n_samples", SAMPLES)
    numbers = taken_evenly(work, len(lines))
    some = [lines[i] for i in numbers]
    facts = {"prompts": len(some), "n_samples": each, "seed": work.seed}
    result = Result(facts=facts, labels=LABELS, credit="The prompts are GenEval's (Ghosh et al., MIT licence).")
    for path in work.draw_paths:
        drawn = draw_samples(work, path, [line["prompt"] for line in some], each)
        files = (
            file
            for i, (number, line) in enumerate(zip(numbers, some, strict=True))
            for file in _files(number, line, drawn[i * each : (i + 1) * each])
        )
        folder = lay_out(work, path, files)
        if folder is not None:
            result.note(
                f"drawn by {path}, for the official scorer: python evaluation/evaluate_images.py {folder} --outfile "
                "results.jsonl --model-path MODELS, then python evaluation/summary_scores.py results.jsonl"
            )
        scores, items = {}, [Item(some[i // each]["prompt"], {path: picture}) for i, picture in enumerate(drawn)]
        if work.text("detector") is not None:
            scores, items = _score(work, path, some, drawn, each)
        settings = work.settings_of(path).of_path(path)
        result.add("generation", path, scores, items, seconds=work.seconds(f"draw-{path}"), **settings)
    return result


def _files(number: int, line: dict, pictures: list[Image.Image]):
    """What the official scorer reads of one prompt, by name; `number`: of its line in the file."""
    yield f"{number:05d}/metadata.jsonl", line
    for k, picture in enumerate(pictures):
        yield f"{number:05d}/samples/{k:05d}.png", picture
    yield f"{number:05d}/grid.png", in_a_grid(pictures, 2)


def _score(work: Work, path: str, lines: list[dict], drawn, each: int) -> tuple[dict[str, dict], list[Item]]:
    detector = _detector(work)

    def judge(numbers: list[int]) -> list[list[str]]:
        return [picture_faults(detector, drawn[i], lines[i // each]) for i in numbers]

    wrong = work.batches(len(drawn), judge, f"detect-{path}", f"judging what was drawn by {path}")
    rights = [not sentences for sentences in wrong]
    counts = [sum(rights[i * each : (i + 1) * each]) for i in range(len(lines))]  # of each prompt

    def over_prompts(tag: str | None = None) -> dict:
        of_tag = [(count, each) for count, line in zip(counts, lines, strict=True) if tag in (None, line["tag"])]
        return with_interval(tally(sum(count for count, _ in of_tag), each * len(of_tag)), of_tag)

    scores = {tag: over_prompts(tag) for tag in dict.fromkeys(line["tag"] for line in lines)}
    overall = mean_of_shares(list(scores.values()))
    scores["pictures"] = over_prompts()
    scores["prompts"] = with_interval(tally(sum(map(bool, counts)), len(counts)))
    scores["overall"] = overall
    items = [
        Item(
            lines[i // each]["prompt"],
            {path: drawn[i]},
            verdict={lines[i // each]["tag"]: float(right), "pictures": float(right)},
            wrong="; ".join(wrong[i]),
            group=f"prompt {i // each}",
        )
        for i, right in enumerate(rights)
    ]
    return scores, items


def _detector(work: Work) -> Callable:
    """The detector that was asked for, loaded once."""
    return work.once("detector", lambda: load_named("detector", work.text("detector"), "a function of a picture"))


def picture_faults(detector: Callable, picture: Image.Image, line: dict) -> list[str]:
    """What is wrong with a picture by GenEval's rule, as `detector` sees it; nothing where it is right."""
    least = SURE_TO_COUNT if line["tag"] == "counting" else SURE
    objects: dict[str, list[Found]] = {}
    for found in sorted((Found(*found) for found in detector(picture)), key=lambda found: -found.score):
        of_class = objects.setdefault(found.name, [])
        if found.score > least and len(of_class) < MOST:
            of_class.append(found)
    return faults(objects, line, lambda name, some: list(detector.colours(picture, some)))


def read_metadata(file: Path) -> list[dict]:
    """The lines of `evaluation_metadata.jsonl`, each with all of its keys.

    Raises:
        ValueError: naming the line, what is wrong with it.
    """
    lines = read_lines(file, {"tag": str, "prompt": str, "include": list})
    for number, line in enumerate(lines, start=1):
        if fault := _fault_of(line):
            raise ValueError(f"prompt {number} of {file} {fault}")
    return lines


def _fault_of(line: dict) -> str:
    """What is wrong with a line; "" if nothing is."""
    if line["tag"] not in TAGS:
        return f"has the tag {shown(line['tag'])}; GenEval's are {', '.join(TAGS)}"
    for key in ("include", "exclude"):
        if not isinstance(line.get(key, []), list):
            return f"has the {key} {shown(line[key])}; give a list"
        for place, each in enumerate(line.get(key, [])):
            if not isinstance(each, dict) or not isinstance(each.get("class"), str):
                return f"has an {key} without a class"
            if not isinstance(each.get("count"), int) or each["count"] < 1:
                return f"has an {key} of {each['class']} whose count is {shown(each.get('count'))}; give 1 or more"
            if each.get("color", COLOURS[0]) not in COLOURS:
                return f"asks for the colour {shown(each['color'])}; GenEval's are {', '.join(COLOURS)}"
            if "position" in each and not _is_position(each["position"], place):
                return (
                    f"has the position {shown(each['position'])}; it is [{' | '.join(RELATIONS)}, an earlier include]"
                )
    return ""


def _is_position(value: object, place: int) -> bool:
    """Whether it names a relation, and an include that stands before number `place`."""
    if not isinstance(value, list) or len(value) != 2 or type(value[1]) is not int:
        return False
    return value[0] in RELATIONS and 0 <= value[1] < place
