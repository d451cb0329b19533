"""The adapter for lm-eval, run by lm-eval's own command on local tasks.

Oracle: lm-eval's own model for transformers (`hf`) on the weights that a hybrid was grafted from scores the same,
likelihoods to 1e-4 and texts exactly, whatever image tokens the hybrid's vocabulary has gained.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hybridgen.bridges.assemble import AssemblyOptions, assemble
from tests.bridges.test_assemble import save_backbone

ROOT = Path(__file__).parents[3]
PACKAGES = Path(sys.prefix) / "harnesses"  # the Makefile's
MODULE = "hybridgen.evaluation.harnesses.lm_eval"

TASKS = {
    "choose": {
        "output_type": "multiple_choice", "doc_to_text": "{{question}}", "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{label}}",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "roll": {
        "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte"}, {"metric": "word_perplexity"}],
    },
    "write": {
        "output_type": "generate_until", "doc_to_text": "{{question}}", "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["e"], "max_gen_toks": 12, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    },
}  # fmt: skip
DOCS = [
    {
        "question": question,
        "choices": [" red", " a blue square", " yes"],
        "label": number % 3,
        "answer": "red",
        "text": f"{question} the capital of a country is its largest city, mostly " * 14,  # longer than the context
    }
    for number, question in enumerate(
        ["what color is the circle?", "is there a square?", "draw a red circle", "a country"]
    )
]


def write_tasks(folder: Path) -> None:
    folder.mkdir()
    (folder / "docs.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in DOCS))
    for name, task in TASKS.items():
        data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder / "docs.jsonl")}}}
        written = {"task": f"ours_{name}", **data, "test_split": "test", **task}
        (folder / f"{name}.yaml").write_text(json.dumps(written))  # JSON is YAML


def run(code: str, tmp_path: Path) -> str:
    """A process that has the harness on its path; what it printed last."""
    if not (PACKAGES / "lm_eval").is_dir() and importlib.util.find_spec("lm_eval") is None:
        pytest.skip(f"lm-eval is installed by `make test` alone, into {PACKAGES.name}/ of its environment")
    paths = os.pathsep.join([str(ROOT), str(PACKAGES)])
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf"), "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **offline}, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return done.stdout.strip().splitlines()[-1]


COMPARE = """
import json, sys
import hybridgen  # first: it mends torchvision beside a CPU build of torch
from {module} import main, register
import lm_eval
from lm_eval.tasks import TaskManager
tasks = ["ours_choose", "ours_roll", "ours_write"]
manager = TaskManager(include_path="tasks")
common = dict(tasks=tasks, task_manager=manager, batch_size=2, device="cpu", bootstrap_iters=0)
register()
seen = {{}}
for kind in ("llama", "qwen3"):
    ours = lm_eval.simple_evaluate("hybridgen", "pretrained=hybrid_" + kind, **common)
    plain = lm_eval.simple_evaluate("hf", "pretrained=" + kind + ",dtype=float32", **common)
    for name in tasks:
        for one, other in zip(ours["samples"][name], plain["samples"][name], strict=True):
            seen.setdefault(kind + " " + name, []).append([one["filtered_resps"], other["filtered_resps"]])
    seen[kind] = [ours["results"], plain["results"]]
sys.argv = ["lm_eval", "--model", "hybridgen", "--model_args", "pretrained=hybrid_llama", "--tasks", "ours_write",
            "--include_path", "tasks", "--device", "cpu", "--output_path", "out", "--apply_chat_template"]
main()
faults = []
for arguments in ({{}}, {{"pretrained": "hybrid_llama", "dtype": "float16"}}, {{"pretrained": "nowhere"}}):
    try:
        lm_eval.simple_evaluate("hybridgen", arguments, **common)
    except ValueError as error:
        faults.append(str(error))
print(json.dumps([seen, faults]))
"""


@pytest.mark.slow
def test_scores_what_the_backbone_scores_alone(tmp_path):
    for kind in ("llama", "qwen3"):
        save_backbone(tmp_path / kind, kind)
        hybrid = assemble(["diffusion"], backbone=tmp_path / kind, options=AssemblyOptions(image_size=16))
        hybrid.save_pretrained(tmp_path / f"hybrid_{kind}")
    write_tasks(tmp_path / "tasks")
    seen, faults = json.loads(run(COMPARE.format(module=MODULE), tmp_path))
    for kind in ("llama", "qwen3"):
        for ours, plain in seen[f"{kind} ours_choose"]:
            assert [greedy for _, greedy in ours] == [greedy for _, greedy in plain]
            assert [value for value, _ in ours] == pytest.approx([value for value, _ in plain], abs=1e-4)
        for ours, plain in seen[f"{kind} ours_roll"]:
            assert ours == pytest.approx(plain, abs=1e-4 * abs(plain[0]))
            assert plain[0] < -1000  # several windows
        for ours, plain in seen[f"{kind} ours_write"]:
            assert ours == plain
            assert "e" not in ours[0]
        assert seen[kind][0].keys() == seen[kind][1].keys()
    assert len(list((tmp_path / "out").rglob("results*.json"))) == 1
    assert "--model_args names no checkpoint" in faults[0]
    assert "--model_args has 'dtype', which is not known to hybridgen; there are pretrained, " in faults[1]
    assert "nowhere" in faults[2]
    assert len(faults) == 3
