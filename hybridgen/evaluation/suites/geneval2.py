"""geneval2: GenEval 2's 800 prompts, drawn, and their questions asked of a model that reads pictures (Soft-TIFA).

Source: Kamath et al., "GenEval 2" (arXiv 2512.16853), github.com/facebookresearch/GenEval2, CC BY-NC 4.0: option `data`
names its `geneval2_data.jsonl` (each line: prompt, atom_count, vqa_list of [question, answer], skills). Written is what
its `evaluation.py` reads:

    OUT/geneval2/PATH-pictures/images.json    {prompt: file of its picture}
                               000000.png

A question's score is the probability that the reader gives the right answer. Soft-TIFA AM is the mean over a prompt's
questions, GM their geometric mean; both are then averaged over the prompts. The reader is the checkpoint itself through
each of its reading paths, or another one (option `vqa`).

How ours differs: the reference asks Qwen3-VL-8B-Instruct and sums the probabilities of the *first tokens* of the right
answer's spellings ("four", "Four", "4"; "Yes", "yes"); ours sums the probabilities of the *whole* spellings with the
end of the turn after them, which does not count "forty" for "four". The words "Answer in one word." stand after each
question as there (option `instruction`; empty for a model that was trained without).
The file itself was read here; the reference's reader was not run.
"""

import math
from pathlib import Path

import numpy as np

from hybridgen.core.values import shown
from hybridgen.evaluation.drawn_files import check_vqa, draw_samples, lay_out, read_lines, taken_evenly, vqa_of
from hybridgen.evaluation.intervals import bootstrap, bootstrap_mean, mean_of_sums
from hybridgen.evaluation.result import Item, Result
from hybridgen.evaluation.work import Work

WHERE = "it is geneval2_data.jsonl of github.com/facebookresearch/GenEval2"
INSTRUCTION = "Answer in one word."
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
LABELS = {"am": "Soft-TIFA, mean of questions", "gm": "Soft-TIFA, geometric mean"}


def check(work: Work) -> None:
    work.require_drawing()
    lines = read_prompts(work.file("data", WHERE))
    work.check_drawing([lines[i]["prompt"] for i in taken_evenly(work, len(lines))], work.side())
    check_vqa(work)


def run(work: Work) -> Result:
    lines = read_prompts(work.file("data", WHERE))
    some, vqa = [lines[i] for i in taken_evenly(work, len(lines))], vqa_of(work)
    facts = {"prompts": len(some), "seed": work.seed, "vqa": work.text("vqa", "the checkpoint itself")}
    result = Result(facts=facts, labels=LABELS, credit="The prompts and questions are GenEval 2's (CC BY-NC 4.0).")
    for path in work.draw_paths:
        drawn = draw_samples(work, path, [line["prompt"] for line in some])
        names = [f"{i:06d}.png" for i in range(len(some))]
        folder = lay_out(work, path, zip(names, drawn, strict=True))
        if folder is not None:
            files = {line["prompt"]: str(folder / name) for line, name in zip(some, names, strict=True)}
            lay_out(work, path, [("images.json", files)])
            result.note(
                f"drawn by {path}, for the official scorer: python evaluation.py --benchmark_data geneval2_data.jsonl "
                f"--image_filepath_data {folder / 'images.json'} --method soft_tifa_gm --output_file scores.json"
            )
        for reader in vqa.answer_paths:
            probabilities = ask(work, vqa, path, reader, drawn, some)
            items = [
                Item(
                    line["prompt"],
                    {path: drawn[i]},
                    verdict={"am": float(np.mean(of_one)), "gm": _geometric_mean(of_one)},
                    wrong=_worst(line, of_one),
                )
                for i, (line, of_one) in enumerate(zip(some, probabilities, strict=True))
            ]
            settings = work.settings_of(path).of_path(path)
            name = f"{path}, asked through {reader}"
            result.add("unified", name, soft_tifa(some, probabilities), items, **settings)
    return result


def ask(work: Work, vqa: Work, path: str, reader: str, drawn, lines: list[dict]) -> list[list[float]]:
    """The probability of each question's right answer, prompt by prompt."""
    instruction = work.text("instruction", INSTRUCTION)
    asked = [
        (i, f"{question} {instruction}".strip(), spelling)
        for i, line in enumerate(lines)
        for question, answer in line["vqa_list"]
        for spelling in spellings(question, answer)
    ]
    pictures, questions, answers = [drawn[i] for i, _, _ in asked], [q for _, q, _ in asked], [a for _, _, a in asked]
    weighed = iter(vqa.likelihoods(reader, pictures, questions, answers, part=f"weigh-{path}-{reader}"))
    return [
        [
            min(1.0, math.fsum(math.exp(next(weighed).nats) for _ in spellings(question, answer)))
            for question, answer in line["vqa_list"]
        ]
        for line in lines
    ]


def spellings(question: str, answer: str) -> list[str]:
    """What counts as the right answer: a number as a word, a capitalised one and digits; else any "yes".

    As in the reference, every question but "How many" has the answer yes (`read_prompts` refuses others).
    """
    if not question.startswith("How many"):
        return ["Yes", "yes"]
    digits = [str(NUMBERS.index(answer))] if answer in NUMBERS else []
    return list(dict.fromkeys([answer, answer.capitalize(), *digits]))  # each once: their probabilities are added


def soft_tifa(lines: list[dict], probabilities: list[list[float]]) -> dict[str, dict]:
    """Both means over the prompts, the mean of each skill over its questions, and the geometric mean of the prompts of
    each atomicity: values in percent."""
    am = [100 * math.fsum(of_one) / len(of_one) for of_one in probabilities]
    gm = [100 * _geometric_mean(of_one) for of_one in probabilities]
    scores = {"am": bootstrap_mean(am, "%"), "gm": bootstrap_mean(gm, "%")}
    skills: dict[str, list[tuple[float, int]]] = {}  # sums over a prompt's questions: they are not independent
    atoms: dict[int, list[float]] = {}
    for line, of_one, mean in zip(lines, probabilities, gm, strict=True):
        atoms.setdefault(line["atom_count"], []).append(mean)
        for skill in dict.fromkeys(line["skills"]):
            own = [100 * one for one, of in zip(of_one, line["skills"], strict=True) if of == skill]
            skills.setdefault(skill, []).append((math.fsum(own), len(own)))
    scores |= {f"am, {skill}": bootstrap(np.array(sums), mean_of_sums, "%") for skill, sums in skills.items()}
    return scores | {f"gm, {count} atoms": bootstrap_mean(atoms[count], "%") for count in sorted(atoms)}


def _geometric_mean(values: list[float]) -> float:
    if min(values) <= 0:
        return 0.0
    return math.exp(math.fsum(map(math.log, values)) / len(values))


def _worst(line: dict, probabilities: list[float]) -> str:
    """The question that is answered rightly least, with its probability."""
    least = min(range(len(probabilities)), key=probabilities.__getitem__)
    question, answer = line["vqa_list"][least]
    return f"{question} {answer}: {100 * probabilities[least]:.0f} %"


def read_prompts(file: Path) -> list[dict]:
    """The lines of `geneval2_data.jsonl`.

    Raises:
        ValueError: naming the line, what is wrong with it.
    """
    lines = read_lines(file, {"prompt": str, "atom_count": int, "vqa_list": list, "skills": list})
    for number, line in enumerate(lines, start=1):
        where, pairs = f"line {number} of {file}", line["vqa_list"]
        if not pairs or not all(isinstance(pair, list) and list(map(type, pair)) == [str, str] for pair in pairs):
            raise ValueError(f"{where}: vqa_list is {shown(pairs)}; it is a list of [question, answer]")
        if not all(isinstance(skill, str) for skill in line["skills"]):
            raise ValueError(f"{where}: skills is {shown(line['skills'])}; it is a list of texts")
        if len(line["skills"]) != len(pairs):
            raise ValueError(f"{where} has {len(pairs)} questions and {len(line['skills'])} skills; give one for each")
        for question, answer in pairs:
            if not question.startswith("How many") and answer.lower() != "yes":
                raise ValueError(f"{where}: {question!r} has the answer {answer!r}; Soft-TIFA knows numbers and Yes")
    return lines
