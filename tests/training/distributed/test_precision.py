"""bf16 on a CPU: attention in fp32, and nothing of it in what is saved."""

import pytest
import torch

from hybridgen import HybridGenForConditionalGeneration
from hybridgen.core.layout import TextSegment, lay_out
from hybridgen.training.distributed.precision import FP32_ATTENTION, choose_attention, choose_precision, set_attention
from tests.models import TOKENS, batch_of, inputs_of, tiny_model

CPU = torch.device("cpu")


@pytest.fixture
def inputs() -> dict[str, torch.Tensor]:
    documents = [lay_out([TextSegment(list(range(1, n)))], TOKENS) for n in (7, 12, 20)]
    return inputs_of(batch_of([documents[:2], documents[2:]], 24))


def test_in_fp32_it_is_sdpa(inputs):
    model = tiny_model()
    expected = model(**inputs).logits
    set_attention(model, FP32_ATTENTION)
    assert model.model.language_model.config._attn_implementation == FP32_ATTENTION
    assert model.model.vision_model.config._attn_implementation == FP32_ATTENTION
    assert torch.equal(model(**inputs).logits, expected)


def test_under_autocast_attention_stays_fp32(inputs, monkeypatch):
    model = tiny_model()
    seen = []
    original = torch.nn.functional.scaled_dot_product_attention

    def watched(query, *arguments, **kwargs):
        seen.append((query.dtype, torch.is_autocast_enabled("cpu")))  # where autocast is on, SDPA casts to bf16 itself
        return original(query, *arguments, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    with torch.autocast("cpu", torch.bfloat16):
        model(**inputs)
        set_attention(model, FP32_ATTENTION)
        logits = model(**inputs).logits
    assert {cast for _, cast in seen[: len(seen) // 2]} == {True}
    assert set(seen[len(seen) // 2 :]) == {(torch.float32, False)}
    assert logits.dtype == torch.bfloat16


def test_no_trace_is_saved(tmp_path, inputs):
    model = tiny_model()
    set_attention(model, FP32_ATTENTION)
    model.save_pretrained(tmp_path)
    assert FP32_ATTENTION not in (tmp_path / "config.json").read_text()
    loaded = HybridGenForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded.model.language_model.config._attn_implementation == "sdpa"


def test_choices():
    assert choose_precision("fp32", CPU) == "fp32"
    assert choose_precision("auto", CPU) in ("fp32", "bf16")
    assert choose_attention("auto", "bf16", CPU) == FP32_ATTENTION
    assert choose_attention("auto", "bf16", CPU, compiled=True) == "eager"
    assert choose_attention("auto", "fp32", CPU) == "sdpa"
    assert choose_attention("auto", "bf16", torch.device("cuda")) == "sdpa"
    assert choose_attention("eager", "bf16", CPU) == "eager"
