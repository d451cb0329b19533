"""What a person sees of `accelerate launch` with two processes: one voice, the path at the end, and of a mistake a
sentence below the launcher's report. Each launch costs its seconds of imports, so there are few of them."""

import os
import subprocess
import sys
from pathlib import Path

from tests.training.processes import ROOT

TINY = """
output_dir: OUT
steps: 4
precision: fp32
threads: 1
log_every: 1
save_every: 2
model:
  tokenizer: {vocab_size: 300, samples: 20}
  text_config: {model_type: qwen3, hidden_size: 16, intermediate_size: 16, num_hidden_layers: 1, num_attention_heads: 1,
    num_key_value_heads: 1, head_dim: 16, max_position_embeddings: 64}
data:
  sequence_length: 64
  per_device_batch_size: 1
  prefetch: 0
  sources: [{source: OUT.jsonl, loss_on: all}]
"""


def config_in(folder: Path) -> Path:
    out = folder / "run"
    (folder / "run.jsonl").write_text("".join(f'{{"text": "line {k}"}}\n' for k in range(20)))
    config = folder / "tiny.yaml"
    config.write_text(TINY.replace("OUT", str(out)))
    return config


def launched(config: Path, *words: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    command += ["--config_file", str(ROOT / "configs/accelerate/ddp.yaml"), "--num_processes", "2"]
    command += ["--main_process_port", "0", str(ROOT / "scripts/train.py"), str(config), *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled", "PYTHONUNBUFFERED": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, cwd=ROOT, start_new_session=True, **pipes)


def test_two_processes_speak_with_one_voice_and_end_with_the_path(tmp_path):
    process = launched(config_in(tmp_path))
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert out.splitlines() == [str(tmp_path / "run" / name) for name in ("checkpoint", "report.html")]
    lines = [line for line in err.splitlines() if line.strip()]
    assert [line.split()[1] for line in lines] == ["1/4", "2/4", "3/4", "4/4"], err
    states = tmp_path / "run" / "state" / "step_000004"
    assert {file.name for file in states.glob("random_states_*")} == {"random_states_0.pkl", "random_states_1.pkl"}


def test_a_mistake_ends_in_its_sentence(tmp_path):
    """In the launcher's report, which is the last thing it prints, and once above it."""
    process = launched(config_in(tmp_path), "optimizer.lr=-1")
    out, err = process.communicate(timeout=300)
    sentence = "train.py: optimizer.lr is -1.0; it must be above 0, and finite"
    assert process.returncode != 0
    assert out == ""
    assert err.startswith(sentence), err  # nothing of a library before it
    last = [line for line in err.splitlines() if line.strip("=-") and line.strip()]
    assert last[-1].endswith(sentence), err
    assert not (tmp_path / "run").exists()
