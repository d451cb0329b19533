"""tiif: TIIF-Bench's prompts, short and long, drawn and laid out for its scorer; its questions asked of a reader.

Source: Wei et al., "TIIF-Bench" (arXiv 2506.02161), github.com/A113N-W3I/TIIF-Bench (no licence file there): option
`data` names its folder `data/test_prompts` or `data/testmini_prompts` (.jsonl files of type, short_description,
long_description), option `questions` the folder `data/test_eval_prompts` or `data/testmini_eval_prompts` (type,
yn_question_list, yn_answer_list, line for line). Written is what its `eval/eval_with_vlm.py` reads:

    OUT/tiif/PATH-pictures/TYPE/PATH/short_description/0.png    and long_description, numbered by line

With `questions`, each is asked of the checkpoint itself through each of its reading paths, or of another one (option
`vqa`); the score is the share of questions answered as expected, all of them and by type, its interval over prompts.

How ours differs: the reference asks GPT-4o (or Qwen2.5-VL-72B) all questions of a picture at once, weighs the types in
groups, and reads rendered text by PaddleOCR; ours asks one question at a time and groups nothing.
"""

from pathlib import Path

import numpy as np

from hybridgen.core.values import shown
from hybridgen.data.synthetic.questions import tally
from hybridgen.evaluation.drawn_files import (
    ask_yes_no,
    check_vqa,
    draw_samples,
    lay_out,
    read_lines,
    taken_evenly,
    vqa_of,
)
from hybridgen.evaluation.intervals import with_interval
from hybridgen.evaluation.result import Item, Result
from hybridgen.evaluation.work import Work

WHERE = "it is the folder data/testmini_prompts of github.com/A113N-W3I/TIIF-Bench"
WHERE_QUESTIONS = "it is the folder data/testmini_eval_prompts of github.com/A113N-W3I/TIIF-Bench"
LENGTHS = ("short_description", "long_description")


def check(work: Work) -> None:
    work.require_drawing()
    prompts = read_folder(work.file("data", WHERE), dict.fromkeys(LENGTHS, str), WHERE)
    some = [list(prompts.values())[i] for i in taken_evenly(work, len(prompts))]
    work.check_drawing([prompt[length] for prompt in some for length in LENGTHS], work.side())
    if work.text("questions") is not None:
        _questions(work, prompts)
    check_vqa(work, work.text("questions") is not None)
    if work.text("questions") is None and work.out is None:
        raise ValueError("without questions tiif only writes pictures for its own judge: name a folder (out)")


def run(work: Work) -> Result:
    prompts = read_folder(work.file("data", WHERE), dict.fromkeys(LENGTHS, str), WHERE)
    keys = [list(prompts)[i] for i in taken_evenly(work, len(prompts))]
    asked = _questions(work, prompts) if work.text("questions") is not None else {}
    vqa, facts = vqa_of(work), {"prompts": len(keys), "seed": work.seed}
    result = Result(facts=facts, labels={"all": "all questions"}, credit="The prompts are TIIF-Bench's (Wei et al.).")
    wordings = [(key, length) for key in keys for length in LENGTHS]
    for path in work.draw_paths:
        drawn = draw_samples(work, path, [prompts[key][length] for key, length in wordings])
        named = (
            (f"{kind}/{path}/{length}/{line}.png", picture)
            for ((kind, line), length), picture in zip(wordings, drawn, strict=True)
        )
        folder = lay_out(work, path, named)
        if folder is not None:
            result.note(
                f"drawn by {path}, for TIIF-Bench's own judge: python eval/eval_with_vlm.py --jsonl_dir "
                f"{work.text('questions', 'EVAL_PROMPTS')} --image_dir {folder} --eval_model {path} --output_dir "
                "eval_results"
            )
        settings = {"seconds": work.seconds(f"draw-{path}"), **work.settings_of(path).of_path(path)}
        if not asked:
            pairs = zip(wordings, drawn, strict=True)
            items = [Item(prompts[key][length], {path: picture}) for (key, length), picture in pairs]
            result.add("generation", path, {}, items, **settings)
        for reader in vqa.answer_paths if asked else ():
            scores, items = _score(vqa, reader, path, wordings, prompts, drawn, asked)
            result.add("unified", f"{path}, asked through {reader}", scores, items, **settings)
    return result


def _score(vqa: Work, reader: str, path: str, wordings: list, prompts: dict, drawn, asked: dict) -> tuple:
    places = [i for i, (key, _) in enumerate(wordings) for _ in asked[key]]
    questions = [question for key, _ in wordings for question, _ in asked[key]]
    said = iter(ask_yes_no(vqa, reader, path, [drawn[place] for place in places], questions))
    counts: dict[str, dict[tuple, list[int]]] = {}  # category -> prompt -> right, n: both of its pictures
    items = []
    for i, (key, length) in enumerate(wordings):
        right = [next(said) is expected for _, expected in asked[key]]
        categories = (key[0], length.split("_")[0], "all")
        for name in categories:
            of_prompt = counts.setdefault(name, {}).setdefault(key, [0, 0])
            of_prompt[0] += sum(right)
            of_prompt[1] += len(right)
        wrong = "; ".join(question for (question, _), hit in zip(asked[key], right, strict=True) if not hit)
        verdict = dict.fromkeys(categories, sum(right) / len(right))
        group = f"{key[0]}, line {key[1]}"
        items.append(Item(prompts[key][length], {path: drawn[i]}, verdict=verdict, wrong=wrong, group=group))
    totals = {name: np.sum(list(of_prompt.values()), axis=0) for name, of_prompt in counts.items()}
    return {name: with_interval(tally(*totals[name]), list(counts[name].values())) for name in counts}, items


def _questions(work: Work, prompts: dict) -> dict[tuple[str, int], list[tuple[str, bool]]]:
    """(type, line) -> its questions, and whether yes is expected."""
    folder = work.file("questions", WHERE_QUESTIONS)
    entries = read_folder(folder, {"yn_question_list": list, "yn_answer_list": list}, WHERE_QUESTIONS)
    if missing := [key for key in prompts if key not in entries]:
        raise ValueError(f"{folder} has no questions about line {missing[0][1]} of type {missing[0][0]}")
    asked = {}
    for (kind, line), entry in entries.items():
        questions, answers = entry["yn_question_list"], entry["yn_answer_list"]
        if not questions or len(questions) != len(answers):
            raise ValueError(
                f"{folder}: line {line} of type {kind} has {len(questions)} questions and {len(answers)} answers"
            )
        if strange := [text for text in (*questions, *answers) if not isinstance(text, str)]:
            raise ValueError(f"{folder}: line {line} of type {kind} has {shown(strange[0])}, which is no text")
        if strange := [answer for answer in answers if answer.strip().lower() not in ("yes", "no")]:
            raise ValueError(f"{folder}: line {line} of type {kind} has the answer {shown(strange[0])}, not yes or no")
        asked[kind, line] = [
            (question.strip(), answer.strip().lower() == "yes")
            for question, answer in zip(questions, answers, strict=True)
        ]
    return asked


def read_folder(folder: Path, keys: dict[str, type], where: str) -> dict[tuple[str, int], dict]:
    """(type, number of the line, from 0) -> the line, of all .jsonl files of a folder, or of one file.

    Raises:
        ValueError: there is none, two files are of one type, or a line lacks a key or has another kind of value.
    """
    files = sorted(folder.glob("*.jsonl")) if folder.is_dir() else [folder]
    if not files:
        raise ValueError(f"{folder} holds no .jsonl file; {where}")
    lines: dict[tuple[str, int], dict] = {}
    for file in files:
        of_file = read_lines(file, {"type": str, **keys})
        kinds = {line["type"] for line in of_file}
        if len(kinds) > 1 or any(kind == next(iter(kinds)) for kind, _ in lines):
            raise ValueError(
                f"{file} has lines of type {', '.join(sorted(kinds))}; a type has one file, and a file one type"
            )
        if strange := [kind for kind in kinds if Path(kind).name != kind]:
            raise ValueError(f"{file} has lines of type {shown(strange[0])}, which cannot name a folder")
        lines |= {(line["type"], number): line for number, line in enumerate(of_file)}
    return lines
