"""The adapter for lmms-eval, run by lmms-eval's own command on local tasks, in both forms and all modes.

Oracle: what lmms-eval logs for every document is what the pipeline answers, holds likely or draws when it is asked
directly, and the scores are those that follow from it.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from hybridgen.evaluation.harnesses.requests import cut, reply_settings
from hybridgen.pipeline_hybridgen import load_pipeline
from tests.pipelines import tiny_pipeline

ROOT = Path(__file__).parents[3]
PACKAGES = Path(sys.prefix) / "harnesses"  # the Makefile's
QUESTIONS = [
    "what color is the circle?",
    "is there a square?",
    "draw a red circle",
    "what is in <image 1>?",
    "a b",
]
CHOICES = [" red", " a blue square", " yes"]
UTILS = """
from PIL import Image
import json
def pictures(doc):
    return [doc["image"].convert("RGB"), doc["image"].convert("RGB").rotate(90)][: doc["count"]]
def chain(doc):
    return f"[GEN_PROMPT]draw what '{{question}}' asks[/GEN_PROMPT] [QUESTION]{doc['question']}[/QUESTION]"
def answered(doc, results):
    return {"answered": float(isinstance(results[0], str))}
def drawn(doc, results):
    reply = json.loads(results[0])
    return {"drawn": float([Image.open(file).size for file in reply["images"]] == [(16, 16)])}
"""
COMMON = {
    "dataset_kwargs": {"load_from_disk": True}, "test_split": "test", "doc_to_visual": "!function utils.pictures",
    "doc_to_text": "{{question}}", "doc_to_target": "{{answer}}",
}  # fmt: skip
EXACT = [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}]
DRAWN = {"process_results": "!function utils.drawn", "metric_list": [{**EXACT[0], "metric": "drawn"}]}
SHORT = {"max_new_tokens": 4, "do_sample": False, "temperature": 0, "num_beams": 1}
TASKS = {
    "answer": {"output_type": "generate_until", "generation_kwargs": {**SHORT, "until": ["e"]}, "metric_list": EXACT},
    "sample": {
        "output_type": "generate_until", "metric_list": EXACT,
        "generation_kwargs": {"max_new_tokens": 4, "do_sample": True, "temperature": 1.5, "image_aspect_ratio": "pad"},
    },
    "choose": {
        "output_type": "multiple_choice", "doc_to_choice": CHOICES, "doc_to_target": "{{label}}",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    },
    "chain": {
        "output_type": "generate_visual_cot", "doc_to_text": "!function utils.chain", "generation_kwargs": SHORT,
        "process_results": "!function utils.answered", "metric_list": [{**EXACT[0], "metric": "answered"}],
    },
    "draw": {"output_type": "generate_until", "doc_to_visual": None, "generation_kwargs": SHORT, **DRAWN},
    "talk": {"output_type": "generate_until", "generation_kwargs": SHORT, **DRAWN},
}  # fmt: skip


def noise(number: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (16, 20, 3), dtype=np.uint8))


def write_tasks(folder: Path) -> list[dict]:
    """A data set, and a task file for each of TASKS. Returns the documents."""
    docs = [
        {
            "image": noise(number), "question": question, "answer": "red", "label": number % 3,
            "count": 1 + number % 2,
        }
        for number, question in enumerate(QUESTIONS)
    ]  # fmt: skip
    folder.mkdir()
    rows = datasets.Dataset.from_list(docs, features=None)
    datasets.DatasetDict({"test": rows}).save_to_disk(str(folder / "docs"))
    (folder / "utils.py").write_text(UTILS)
    for name, task in TASKS.items():
        content = json.dumps({"task": f"ours_{name}", "dataset_path": str(folder / "docs"), **COMMON, **task}, indent=1)
        for function in ("pictures", "chain", "answered", "drawn"):  # a tag of YAML, not a text
            content = content.replace(f'"!function utils.{function}"', f"!function utils.{function}")
        (folder / f"{name}.yaml").write_text(content)
    return [dict(row) for row in rows]


RUN = """
import sys
import hybridgen  # first: it mends torchvision beside a CPU build of torch
from lmms_eval.cli.dispatch import main
model = "pretrained=start,path=understanding,seed=7"
for out, tasks, more in (
    ("chat", "ours_answer,ours_sample", []),
    ("simple", "ours_answer,ours_choose", ["--force_simple"]),
    ("chain", "ours_chain", ["--force_simple", ",out=pictures,draw=vq"]),
    ("draw", "ours_draw", [",mode=generation,out=pictures,num_inference_steps=2,guidance_scale=1"]),
    ("talk", "ours_talk", [",mode=interleaved,out=pictures,draw=diffusion,num_inference_steps=2"]),
):
    further = [word for word in more if word.startswith(",")]
    sys.argv = ["lmms_eval", "--model", "hybridgen", "--model_args", model + "".join(further), "--tasks", tasks,
        "--include_path", "tasks", "--batch_size", "2", "--device", "cpu", "--log_samples", "--output_path", out,
        *[word for word in more if word not in further]]
    main()
"""


def environment(tmp_path: Path) -> dict[str, str]:
    if not (PACKAGES / "lmms_eval").is_dir() and importlib.util.find_spec("lmms_eval") is None:
        pytest.skip(f"lmms-eval is installed by `make test` alone, into {PACKAGES.name}/ of its environment")
    paths = os.pathsep.join([str(ROOT), str(PACKAGES), str(plugin(tmp_path))])
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    return {**os.environ, **offline, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}


def plugin(tmp_path: Path) -> Path:
    """The entry point as pyproject.toml declares it, as an installed distribution: an environment that was made before
    knows no new ones."""
    declared = next(line for line in (ROOT / "pyproject.toml").read_text().splitlines() if "manifest" in line)
    name, _, target = declared.partition(" = ")
    folder = tmp_path / "plugin" / "entry_of_hybridgen-1.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: entry-of-hybridgen\nVersion: 1\n")
    (folder / "entry_points.txt").write_text(f"[lmms_eval.models]\n{name} = {json.loads(target)}\n")
    return folder.parent


def samples(folder: Path, task: str) -> list[dict]:
    (file,) = folder.rglob(f"*samples_ours_{task}.jsonl")
    return sorted(map(json.loads, file.read_text().splitlines()), key=lambda line: line["doc_id"])


def replies(lines: list[dict]) -> list[str]:
    return [line["filtered_resps"] for line in lines]


def score(folder: Path, task: str, metric: str) -> float:
    (file,) = folder.rglob("*results.json")
    return json.loads(file.read_text())["results"][f"ours_{task}"][f"{metric},none"]


def shown_in(doc: dict) -> list[Image.Image]:
    return [doc["image"].convert("RGB"), doc["image"].convert("RGB").rotate(90)][: doc["count"]]


def conversation(pictures: list, text: str) -> list[dict]:
    images = [{"type": "image", "image": one} for one in pictures]
    return [{"role": "user", "content": [*images, {"type": "text", "text": text}]}]


@pytest.mark.slow
def test_lmms_eval_asks_the_pipeline(tmp_path):
    tiny_pipeline().save_pretrained(tmp_path / "start")
    docs, settings = write_tasks(tmp_path / "tasks"), environment(tmp_path)
    done = subprocess.run([sys.executable, "-c", RUN], env=settings, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    assert (
        "image_aspect_ratio of task ours_sample's generation_kwargs says nothing to hybridgen"
        in done.stdout + done.stderr
    )
    pipe = load_pipeline(tmp_path / "start")
    pipe.set_progress_bar_config(disable=True)
    asked = [conversation(shown_in(doc), doc["question"]) for doc in docs]
    # words, in both forms
    expected = [cut(reply, ("e",)) for reply in pipe.reply(asked, max_new_tokens=4)]
    assert len(set(expected)) > 1
    for form in ("chat", "simple"):
        assert replies(samples(tmp_path / form, "answer")) == expected
        right = [float(one.strip() == "red") for one in expected]
        assert score(tmp_path / form, "answer", "exact_match") == pytest.approx(np.mean(right))
    drawn = pipe.reply(asked, max_new_tokens=4, temperature=1.5, seed=7)
    assert replies(samples(tmp_path / "chat", "sample")) == drawn
    # choices: the likeliest by the mean over its tokens
    scored = [
        pipe.score_replies([messages] * 3, [choice.strip() for choice in CHOICES], with_greedy=True)
        for messages in asked
    ]
    for line, of_one in zip(samples(tmp_path / "simple", "choose"), scored, strict=True):
        assert [float(loss) for loss, _ in line["filtered_resps"]] == pytest.approx(
            [-one.mean for one in of_one], abs=1e-5
        )
        assert [greedy for _, greedy in line["filtered_resps"]] == [str(one.greedy) for one in of_one]
    for choose, is_the_rule in ((max, True), (min, False)):  # the loss is to be small
        chosen = [choose(range(3), key=lambda place, of_one=of_one: of_one[place].mean) for of_one in scored]
        right = np.mean([choice == doc["label"] for choice, doc in zip(chosen, docs, strict=True)])
        assert (score(tmp_path / "simple", "choose", "acc") == pytest.approx(right)) == is_the_rule
    # pictures
    how = {"path": "diffusion", "num_inference_steps": 2, "guidance_scale": 1, "seed": 7}
    images = pipe([doc["question"] for doc in docs], **how).images
    for line, image in zip(samples(tmp_path / "draw", "draw"), images, strict=True):
        reply = json.loads(line["filtered_resps"])
        assert reply["text"] == ""
        assert [np.array(Image.open(file)).tolist() for file in reply["images"]] == [np.array(image).tolist()]
    assert score(tmp_path / "draw", "draw", "drawn") == 1
    # a picture drawn first, then read beside those of the document
    prompts = [f"draw what '{doc['question']}' asks" for doc in docs]
    first = [pictures[0] for pictures in map(shown_in, docs)]
    aids = pipe(prompts, path="vq", seed=7, image=first, read="understanding").images
    both = [conversation([*shown_in(doc), aid], doc["question"]) for doc, aid in zip(docs, aids, strict=True)]
    expected = pipe.reply(both, max_new_tokens=4)
    assert replies(samples(tmp_path / "chain", "chain")) == expected
    # as the model decides
    for line in samples(tmp_path / "talk", "talk"):
        reply = json.loads(line["filtered_resps"])
        assert reply.keys() == {"text", "images"}
        assert all(Image.open(file).size == (16, 16) for file in reply["images"])


FAULTS = """
import json, sys
import hybridgen
from hybridgen.evaluation.harnesses.lmms_eval import HybridGenChat, HybridGenSimple
from lmms_eval.api.instance import Instance
faults = []
def refused(function, *given, **named):
    try:
        function(*given, **named)
    except (ValueError, NotImplementedError) as error:
        faults.append(str(error))
    else:
        faults.append("taken")
refused(HybridGenChat)
refused(HybridGenChat, pretrained="nowhere")
refused(HybridGenChat, pretrained="start", dtype="bf16")
refused(HybridGenChat, pretrained="start", mode="drawing")
refused(HybridGenChat, pretrained="start", mode="generation")
refused(HybridGenChat, pretrained="start", mode="generation", out="x", num_inference_steps=0)
refused(HybridGenChat, pretrained="start", batch_size="auto")
refused(HybridGenChat, pretrained="start", path="vision")
refused(HybridGenChat, pretrained="start", seed=-1)
chat, simple = HybridGenChat(pretrained="start", device="cpu"), HybridGenSimple(pretrained="start", device="cpu")
meta = {"task": "films", "doc_id": 0, "repeats": 1}
for model in (chat, simple):
    model.task_dict["films"] = {"test": [{}]}
film = lambda doc: [{"role": "user", "content": [{"type": "video", "url": "a.mp4"}]}]
refused(chat.generate_until, [Instance("generate_until", ("", film, {}, 0, "films", "test"), 0, meta)])
sound = lambda doc: [{"array": [0.0], "sampling_rate": 1}]
refused(simple.generate_until, [Instance("generate_until", ("hear", {}, sound, 0, "films", "test"), 0, meta)])
refused(simple.loglikelihood, [Instance("loglikelihood", ("", "red"), 0, meta)])
refused(simple.generate_visual_cot, [Instance("generate_visual_cot", ("hear", {}, None, 0, "films", "test"), 0, meta)])
refused(chat.generate_until_multi_round, [])
fill = Instance("generate_until", ("", film, {}, 0, "films", "test"), 0, {**meta, "__padding_only__": True})
print(json.dumps([faults, chat.generate_until([fill]), [chat.rank, chat.world_size, str(chat.device)]]))
"""


def test_what_cannot_be_asked_is_refused_in_one_sentence(tmp_path):
    tiny_pipeline().save_pretrained(tmp_path / "start")
    settings = environment(tmp_path)
    done = subprocess.run([sys.executable, "-c", FAULTS], env=settings, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    faults, filled, where = json.loads(done.stdout.strip().splitlines()[-1])
    wanted = [
        "--model_args names no checkpoint; add pretrained=FOLDER",
        "nowhere",
        "--model_args has 'dtype', which is not known to hybridgen; there are pretrained, path, mode",
        "mode is 'drawing'; it must be one of 'understanding', 'generation', 'interleaved'",
        "mode=generation draws pictures; add out=FOLDER to --model_args",
        "num_inference_steps",
        "--batch_size is auto; give a whole number of at least 1",
        "vision",
        "seed is -1",
        "task films shows a video, and hybridgen reads pictures only; leave it out",
        "task films shows ",
        "acc_mutual_info",
        "a visual chain of thought draws a picture; add out=FOLDER to --model_args",
        "tasks of several rounds",
    ]
    assert len(faults) == len(wanted)
    for fault, words in zip(faults, wanted, strict=True):
        assert words in fault
        assert "\n" not in fault
    assert filled == [""]
    assert where == [0, 1, "cpu"]


@pytest.mark.parametrize(
    ("given", "limit", "sampling"),
    [
        ({}, 256, {}),
        ({"max_gen_toks": 3, "temperature": 0, "do_sample": True}, 3, {}),
        ({"max_new_tokens": 5, "max_gen_toks": 3, "temperature": 0.7}, 5, {"temperature": 0.7, "do_sample": True}),
        ({"temperature": 0.7, "do_sample": False, "top_p": None}, 256, {}),
        ({"do_sample": True, "top_p": 0.9}, 256, {"top_p": 0.9, "do_sample": True}),
        ({"num_beams": 1, "use_cache": True, "top_p": 1.0, "temperature": 0.0}, 256, {}),
    ],
)
def test_what_settings_of_a_task_mean(given, limit, sampling):
    settings = reply_settings(given, "task", pytest.fail)
    assert (settings.max_new_tokens, dict(settings.sampling), settings.until) == (limit, sampling, ())


def test_settings_that_are_not_obeyed_are_refused_or_named():
    with pytest.raises(
        ValueError, match="task t asks for num_beams 4, which is not done here; .* --gen_kwargs num_beams=1"
    ):
        reply_settings({"num_beams": 4}, "t", pytest.fail)
    with pytest.raises(ValueError, match=r"task t asks to write until \[3\]; give a text"):
        reply_settings({"until": [3]}, "t", pytest.fail)
    told = []
    reply_settings({"no_repeat_ngram_size": 2}, "t", told.append)
    assert told == ["no_repeat_ngram_size of task t's generation_kwargs says nothing to hybridgen; ignored"]
    assert reply_settings({"until": "x"}, "t", pytest.fail).until == ("x",)
    assert cut("a red circle", ("circle", " r", "")) == ""
    assert cut("a red circle", ("circle", " r")) == "a"
    assert cut("a red circle", ()) == "a red circle"
