"""Weight-only int8, where the optional packages run: pictures and answers come out, close to those of float32."""

import warnings

import pytest
import torch
from transformers import BitsAndBytesConfig

from hybridgen.modeling_hybridgen import HybridGenForConditionalGeneration
from hybridgen.pipeline_hybridgen import HybridGenPipeline, load_pipeline
from tests.pipelines import tiny_pipeline
from tests.processors import picture


@pytest.fixture
def folder(tmp_path):
    tiny_pipeline(backbone="llama").save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@torch.no_grad()
def assert_works(int8: HybridGenPipeline, folder, layer: torch.nn.Module) -> None:
    """Worst difference of a logit seen, of a largest logit of 0.41: 0.0026 (torchao), 0.0044 (bitsandbytes)."""
    assert layer.weight.element_size() == 1 or "Int8" in type(layer.weight).__name__
    ids = torch.arange(3, 40)[None]
    expected, seen = load_pipeline(folder).model(ids).logits, int8.model(ids).logits.float()
    assert 0 < (seen - expected).abs().max() < 0.05 * expected.abs().max()
    int8.set_progress_bar_config(disable=True)
    for how in ({"path": "diffusion", "num_inference_steps": 2}, {"path": "vq"}):
        assert int8("a red circle", seed=0, **how).images[0].size == (16, 16)
    assert isinstance(int8.answer(picture(), "what?", max_new_tokens=3)[0], str)


def test_torchao(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantization = pytest.importorskip("torchao.quantization", reason="torchao is an optional extra")
    pipeline = HybridGenPipeline.from_pretrained(folder)
    quantization.quantize_(pipeline.model.model.language_model, quantization.Int8WeightOnlyConfig())
    assert_works(pipeline, folder, pipeline.model.model.language_model.layers[0].mlp.up_proj)


def test_bitsandbytes(folder):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not among the extras")
    settings = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["lm_head", "final_layer", "vision_head"])
    model = HybridGenForConditionalGeneration.from_pretrained(folder / "model", quantization_config=settings)
    pipeline = HybridGenPipeline.from_pretrained(folder, model=model)
    assert_works(pipeline, folder, model.model.language_model.layers[0].mlp.up_proj)
