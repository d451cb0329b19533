"""Weight-only int8, with the optional packages: pictures and answers come out, close to those of float32.

transformers and diffusers import torchao and bitsandbytes wherever they are installed, which costs every start three
seconds. So `make test` installs them into a folder of their own, and each test is a process that has it on its path.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import BitsAndBytesConfig

from hybridgen.modeling_hybridgen import HybridGenForConditionalGeneration
from hybridgen.pipeline_hybridgen import HybridGenPipeline, load_pipeline
from tests.pipelines import tiny_pipeline
from tests.processors import picture

ROOT = Path(__file__).parents[2]
PACKAGES = Path(sys.prefix) / "int8"  # the Makefile's


@torch.no_grad()
def check_pipeline(int8: HybridGenPipeline, folder: Path, layer: torch.nn.Module) -> None:
    """Worst difference of a logit seen, of a largest logit of 0.41: 0.0026 (torchao), 0.0044 (bitsandbytes)."""
    assert layer.weight.element_size() == 1 or "Int8" in type(layer.weight).__name__
    placeholders = int8.model.model.placeholders().values()
    ids = torch.tensor([[token for token in range(3, 40) if token not in placeholders]])
    expected, seen = load_pipeline(folder).model(ids).logits, int8.model(ids).logits.float()
    assert 0 < (seen - expected).abs().max() < 0.05 * expected.abs().max()
    int8.set_progress_bar_config(disable=True)
    for settings in ({"path": "diffusion", "num_inference_steps": 2}, {"path": "vq"}):
        assert int8("a red circle", seed=0, **settings).images[0].size == (16, 16)
    assert isinstance(int8.answer(picture(), "what?", max_new_tokens=3)[0], str)


def check_torchao(folder: Path) -> None:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    pipeline = HybridGenPipeline.from_pretrained(folder)
    quantize_(pipeline.model.model.language_model, Int8WeightOnlyConfig())
    check_pipeline(pipeline, folder, pipeline.model.model.language_model.layers[0].mlp.up_proj)


def check_bitsandbytes(folder: Path) -> None:
    settings = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["lm_head", "final_layer", "vision_head"])
    model = HybridGenForConditionalGeneration.from_pretrained(folder / "model", quantization_config=settings)
    pipeline = HybridGenPipeline.from_pretrained(folder, model=model)
    check_pipeline(pipeline, folder, model.model.language_model.layers[0].mlp.up_proj)


@pytest.mark.parametrize("package", ["torchao", "bitsandbytes"])
def test_int8(package, tmp_path):
    if not (PACKAGES / package).is_dir() and importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is installed by `make test` alone, into {PACKAGES.name}/ of its environment")
    tiny_pipeline(backbone="llama").save_pretrained(tmp_path)
    check = f"from tests.sampling.test_int8 import *; check_{package}(Path({str(tmp_path)!r}))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, PACKAGES)))}
    done = subprocess.run([sys.executable, "-c", check], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
