"""dpg: DPG-Bench's 1,065 long prompts, drawn and laid out for its scorer; its questions asked of a reader, if wanted.

Source: Hu et al., "ELLA" (arXiv 2403.05135), github.com/TencentQQGYLab/ELLA, Apache-2.0: option `data` names its folder
`dpg_bench/prompts` (a .txt for each prompt), option `questions` its `dpg_bench/dpg_bench.csv`. Written is what its
`compute_dpg_bench.py` reads: one picture for each prompt, named as the prompt's file, in which the samples
(`n_samples`, 4) stand in two columns:

    OUT/dpg/PATH-pictures/0.png

With `questions`, each is asked of the checkpoint itself through each of its reading paths, or of another one (option
`vqa`). A yes is right; a question whose parent was answered no counts as wrong. The score is the mean over the samples
and prompts of the share of right questions; a category's is the share of its own questions, parents left aside. What is
counted beside a score, and drawn anew for its interval, are prompts.

How ours differs: the reference asks mPLUG-large of ModelScope, and leaves out the first question of the file (it skips
the first row behind the header); ours asks all. The folder was read here, the .csv was not to be had: its columns are
those that the script reads.
"""

import csv
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hybridgen.evaluation.drawn_files import (
    ask_yes_no,
    check_vqa,
    draw_samples,
    in_a_grid,
    lay_out,
    read_text,
    taken_evenly,
    vqa_of,
)
from hybridgen.evaluation.intervals import bootstrap, mean_of_sums
from hybridgen.evaluation.result import Item, Result
from hybridgen.evaluation.work import Work

WHERE = "it is the folder dpg_bench/prompts of github.com/TencentQQGYLab/ELLA"
WHERE_QUESTIONS = "it is dpg_bench/dpg_bench.csv of github.com/TencentQQGYLab/ELLA"
SAMPLES = 4
LABELS = {"dpg": "DPG (share of right questions, parents first)"}
_COLUMNS = ("item_id", "proposition_id", "dependency", "tuple", "question_natural_language")


@dataclass
class Proposition:
    """A question of one prompt, its category, and the numbers of the questions that must be answered yes before."""

    question: str
    category: str
    parents: list[int] = field(default_factory=list)


def check(work: Work) -> None:
    work.require_drawing()
    prompts = read_prompts(work.file("data", WHERE))
    work.check_drawing([list(prompts.values())[i] for i in taken_evenly(work, len(prompts))], work.side())
    work.number("n_samples", SAMPLES)
    if work.text("questions") is not None:
        asked = read_questions(work.file("questions", WHERE_QUESTIONS))
        if unasked := [name for name in prompts if name not in asked]:
            raise ValueError(
                f"{work.text('questions')} has no question about prompt {unasked[0]}: are they of one bench?"
            )
    check_vqa(work, work.text("questions") is not None)
    if work.text("questions") is None and work.out is None:
        raise ValueError("without questions dpg only writes pictures for its own scorer: name a folder (out)")


def run(work: Work) -> Result:
    prompts, each = read_prompts(work.file("data", WHERE)), work.number("n_samples", SAMPLES)
    names = [list(prompts)[i] for i in taken_evenly(work, len(prompts))]
    asked = read_questions(work.file("questions", WHERE_QUESTIONS)) if work.text("questions") is not None else {}
    vqa = vqa_of(work)
    facts = {"prompts": len(names), "n_samples": each, "seed": work.seed}
    result = Result(facts=facts, labels=LABELS, credit="The prompts are DPG-Bench's (ELLA, Apache-2.0).")
    for path in work.draw_paths:
        drawn = draw_samples(work, path, [prompts[name] for name in names], each)
        grids = ((f"{name}.png", in_a_grid(drawn[i * each : (i + 1) * each], 2)) for i, name in enumerate(names))
        folder, side = lay_out(work, path, grids), drawn[0].width
        if folder is not None:
            result.note(
                f"drawn by {path}, for the official scorer: python dpg_bench/compute_dpg_bench.py --image-root-path "
                f"{folder} --resolution {side} --pic-num {each}"
            )
        settings = {"seconds": work.seconds(f"draw-{path}"), **work.settings_of(path).of_path(path)}
        if not asked:
            shown = (in_a_grid(drawn[i * each : (i + 1) * each], 2) for i in range(len(names)))
            items = [Item(prompts[name], {path: grid}) for name, grid in zip(names, shown, strict=True)]
            result.add("generation", path, {}, items, **settings)
            continue
        for reader in vqa.answer_paths:
            scores, items = _score(vqa, reader, path, {name: prompts[name] for name in names}, drawn, each, asked)
            result.add("unified", f"{path}, asked through {reader}", scores, items, **settings)
    return result


def _score(
    vqa: Work, reader: str, path: str, prompts: dict[str, str], drawn, each: int, asked: dict[str, dict]
) -> tuple[dict[str, dict], list[Item]]:
    """Ask all questions of all samples; the tallies, and an item for each prompt."""
    names = [name for name in prompts for _ in range(each)]  # of each picture
    pictures = [drawn[i] for i, name in enumerate(names) for _ in asked[name]]
    questions = [proposition.question for name in names for proposition in asked[name].values()]
    said = iter(ask_yes_no(vqa, reader, path, pictures, questions))
    sums: dict[str, list[tuple[float, int]]] = {}  # of a category's verdicts, and how many, prompt by prompt
    items = []
    for i, (name, prompt) in enumerate(prompts.items()):
        verdicts: dict[str, list[float]] = {}
        for _ in range(each):
            yes = {number: next(said) is True for number in asked[name]}
            for number, proposition in asked[name].items():
                verdicts.setdefault(proposition.category, []).append(float(yes[number]))
            verdicts.setdefault("dpg", []).append(share_of_right(asked[name], yes))
        for category, values in verdicts.items():
            sums.setdefault(category, []).append((100 * sum(values), len(values)))
        means = {category: float(np.mean(values)) for category, values in verdicts.items()}
        items.append(Item(prompt, {path: in_a_grid(drawn[i * each : (i + 1) * each], 2)}, verdict=means))
    ordered = sorted(sums, key=lambda category: (category == "dpg", category))
    # drawn anew by prompt: its samples, and questions about one picture, are not independent
    return {name: bootstrap(np.array(sums[name]), mean_of_sums, "%") for name in ordered}, items


def share_of_right(asked: dict[int, Proposition], yes: dict[int, bool]) -> float:
    """The share of questions answered yes whose parents are right, too, in the order of the file."""
    right = dict(yes)
    for number, proposition in asked.items():
        right[number] = right[number] and all(right[parent] for parent in proposition.parents)
    return sum(right.values()) / len(right)


def read_prompts(folder: Path) -> dict[str, str]:
    """Name of the file, without its ending -> prompt.

    Raises:
        ValueError: the folder holds no prompt, or an empty one.
    """
    files = sorted(folder.glob("*.txt"), key=lambda file: (not file.stem.isdecimal(), len(file.stem), file.stem))
    if not files:
        raise ValueError(f"{folder} holds no .txt file; {WHERE}")
    prompts = {file.stem: read_text(file).strip() for file in files}
    if empty := [name for name, prompt in prompts.items() if not prompt]:
        raise ValueError(f"{folder / empty[0]}.txt is empty")
    return prompts


def read_questions(file: Path) -> dict[str, dict[int, Proposition]]:
    """Prompt's name -> number of a question -> what is asked.

    Raises:
        ValueError: a column is missing, a number is none, or a parent is not asked about.
    """
    asked: dict[str, dict[int, Proposition]] = {}
    with file.open(encoding="utf-8-sig", newline="") as lines:
        table = csv.DictReader(lines)
        if missing := [column for column in _COLUMNS if column not in (table.fieldnames or ())]:
            raise ValueError(f"{file} has no column {missing[0]!r}; {WHERE_QUESTIONS}")
        for row in table:
            if empty := [column for column in _COLUMNS if row[column] is None]:
                raise ValueError(f"line {table.line_num} of {file} ends before its {empty[0]}")
            try:
                number, parents = int(row["proposition_id"]), [int(word) for word in row["dependency"].split(",")]
            except ValueError:
                raise ValueError(
                    f"line {table.line_num} of {file}: proposition_id or dependency is no number"
                ) from None
            category = row["tuple"].split("(")[0].strip()
            proposition = Proposition(row["question_natural_language"], category, [one for one in parents if one])
            asked.setdefault(row["item_id"], {})[number] = proposition
    for name, of_one in asked.items():
        for number, proposition in of_one.items():
            if strange := set(proposition.parents) - of_one.keys():
                raise ValueError(
                    f"{file}: question {number} of prompt {name} follows from {min(strange)}, which is not asked"
                )
    return asked
