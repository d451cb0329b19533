"""wise: WISE's 1,000 prompts that take knowledge of the world, drawn and laid out for its judges.

Source: Niu et al., "WISE" (arXiv 2503.07265), github.com/PKU-YuanGroup/WISE (no licence file in the repository): option
`data` names its `data_verified/merge.json` or any other of its .json files (a list of objects with Prompt, Explanation,
Category, Subcategory, prompt_id). Written is what its `vllm_eval.py` and the older `gpt_eval.py` read:

    OUT/wise/PATH-pictures/1.png    named by prompt_id

There is no score here: WISE's is the verdict of a large judge (Qwen3.5-35B-A3B, or GPT-4o before), which is asked
whether the picture shows what the explanation says. Through lmms-eval the same prompts can be drawn by its own task.
"""

from hybridgen.core.values import shown
from hybridgen.evaluation.drawn_files import draw_samples, lay_out, read_list, taken_evenly
from hybridgen.evaluation.result import Item, Result
from hybridgen.evaluation.work import Work

WHERE = "it is data_verified/merge.json of github.com/PKU-YuanGroup/WISE"


def check(work: Work) -> None:
    work.require_drawing()
    entries = _prompts(work)
    work.check_drawing([entries[i]["Prompt"] for i in taken_evenly(work, len(entries))], work.side())
    if work.out is None:
        raise ValueError("wise only writes pictures for its own judge: name a folder (out)")


def run(work: Work) -> Result:
    entries = _prompts(work)
    some = [entries[i] for i in taken_evenly(work, len(entries))]
    facts = {"prompts": len(some), "seed": work.seed}
    result = Result(facts=facts, credit="The prompts are those of WISE (Niu et al.).")
    for path in work.draw_paths:
        drawn = draw_samples(work, path, [entry["Prompt"] for entry in some])
        named = ((f"{entry['prompt_id']}.png", picture) for entry, picture in zip(some, drawn, strict=True))
        folder = lay_out(work, path, named)
        result.note(f"drawn by {path}, for WISE's own judge: IMAGE_DIR={folder} bash eval_qwen.sh")
        settings = work.settings_of(path).of_path(path)
        items = [Item(entry["Prompt"], {path: picture}) for entry, picture in zip(some, drawn, strict=True)]
        result.add("generation", path, {}, items, seconds=work.seconds(f"draw-{path}"), **settings)
    return result


def _prompts(work: Work) -> list[dict]:
    file = work.file("data", WHERE)
    entries = read_list(file, {"Prompt": str, "prompt_id": int})
    numbers = [entry["prompt_id"] for entry in entries]
    if wrong := [number for number in numbers if number < 0]:
        raise ValueError(f"{file} has the prompt_id {shown(wrong[0])}; it names a picture, and must be a whole number")
    if twice := [number for number in numbers if numbers.count(number) > 1]:
        raise ValueError(f"{file} has two prompts with the prompt_id {twice[0]}")
    return entries
