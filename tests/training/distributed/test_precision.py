"""bf16 on a CPU: attention in fp32, and nothing of it in what is saved."""

import pytest
import torch

from hybridgen import HybridGenForConditionalGeneration
from hybridgen.core import layout
from hybridgen.core.layout import TextSegment, lay_out
from hybridgen.core.loss_kernels import autocast_dtype
from hybridgen.training.distributed import precision as precision_module
from hybridgen.training.distributed.precision import FP32_ATTENTION, choose_attention, choose_precision, set_attention
from tests.live_bytes import LiveBytes
from tests.models import TOKENS, batch_of, inputs_of, text_config, tiny_config, tiny_model

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


def sdpa_calls(monkeypatch) -> list[tuple[torch.dtype, bool]]:
    """Of each call of SDPA from now on, the query's type, and whether autocast is on, which would cast it to bf16."""
    calls, original = [], torch.nn.functional.scaled_dot_product_attention

    def recording(query, *arguments, **kwargs):
        calls.append((query.dtype, torch.is_autocast_enabled("cpu")))
        return original(query, *arguments, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", recording)
    return calls


def test_sdpa_never_runs_in_bf16_on_a_cpu(inputs, monkeypatch):
    """Unless the config says so: what `auto` chooses keeps it in fp32, or, in compiled layers, does without it."""
    calls = sdpa_calls(monkeypatch)
    expected = {"auto": {(torch.float32, False)}, "auto compiled": set(), "sdpa": {(torch.float32, True)}}
    for case, seen in expected.items():
        attention, *compiled = case.split()
        model = tiny_model()
        set_attention(model, choose_attention(attention, "bf16", CPU, compiled=bool(compiled)))
        calls.clear()
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(**inputs).logits
        assert {(torch.float32 if on else dtype, on) for dtype, on in calls} == seen, case
        assert logits.dtype == torch.bfloat16


def test_no_trace_is_saved(tmp_path, inputs):
    model = tiny_model()
    set_attention(model, FP32_ATTENTION)
    model.save_pretrained(tmp_path)
    assert FP32_ATTENTION not in (tmp_path / "config.json").read_text()
    loaded = HybridGenForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded.model.language_model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("amx", [False, True])
def test_auto_is_bf16_where_the_processor_multiplies_it(monkeypatch, amx):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert choose_precision("auto", CPU) == ("bf16" if amx else "fp32")
    for said in ("fp32", "bf16"):
        assert choose_precision(said, CPU) == said


def test_sdpa_runs_wherever_its_bf16_is_no_loss():
    assert choose_attention("auto", "fp32", CPU) == "sdpa"
    assert choose_attention("auto", "bf16", torch.device("mps")) == "sdpa"
    assert choose_attention("eager", "bf16", CPU) == "eager"
    with pytest.raises(ValueError, match="attention is 'flex_attention', which torch does not train on a CPU; use 'a"):
        choose_attention("flex_attention", "fp32", CPU)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("compiled", [False, True])
def test_on_cuda_auto_is_flex_attention_where_it_can_be_compiled(monkeypatch, precision, compiled):
    cuda = torch.device("cuda")
    for found, dropout, expected in ((True, 0.0, "flex_attention"), (False, 0.0, "sdpa"), (True, 0.1, "sdpa")):
        monkeypatch.setattr(precision_module, "compiler_found", lambda device, found=found: found)
        assert choose_attention("auto", precision, cuda, compiled, dropout) == expected
        assert choose_attention("sdpa", precision, cuda, compiled, dropout) == "sdpa"


def test_a_tower_has_no_flex_attention():
    model = tiny_model()
    set_attention(model, "flex_attention")
    assert model.model.language_model.config._attn_implementation == "flex_attention"
    assert model.model.vision_model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("attention", "precision"), [("sdpa", "fp32"), ("sdpa", "bf16"), ("sdpa_fp32", "bf16")])
def test_one_mask_a_step(monkeypatch, attention, precision, checkpointing):
    """For all layers, kept for the backward pass and what is recomputed there: SDPA makes one of a boolean mask in each
    layer, and keeps them all."""
    model, length = tiny_model(tiny_config(text_config={**text_config(), "num_hidden_layers": 4})), 512
    set_attention(model.train(), attention)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    rendered, rendering = [], layout.attention_mask
    monkeypatch.setattr(layout, "attention_mask", lambda *args: rendered.append(rendering(*args)) or rendered[-1])
    ids = torch.randint(3, 90, (1, length), generator=torch.Generator().manual_seed(0))
    documents = (torch.arange(length) // 100)[None]
    with LiveBytes() as counted, torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        logits = model(input_ids=ids, document_ids=documents, block_ids=torch.arange(length)[None]).logits
        (mask,) = rendered
        assert mask.dtype == (torch.bfloat16 if (attention, precision) == ("sdpa", "bf16") else torch.float32)
        assert counted.storages_of(length * length * mask.element_size()) == 1
        logits.float().square().mean().backward()
    assert len(rendered) == 1
    assert model.model.language_model.layers[0].self_attn.q_proj.weight.grad.abs().sum() > 0


def test_flex_attention_gets_all_in_one_type(monkeypatch):
    """Under autocast rotary positions make queries and keys fp32 beside values in bf16, which some versions of torch
    refuse. Outside of it nothing is cast."""
    taken, original = [], precision_module.flex_attention_forward

    def recording(module, query, key, value, mask, **kwargs):
        taken.append({each.dtype for each in (query, key, value)})
        return original(module, query, key, value, mask, **kwargs)

    monkeypatch.setattr(precision_module, "flex_attention_forward", recording)
    model = tiny_model().eval()
    set_attention(model, "flex_attention")
    ids = torch.randint(3, 90, (1, 128), generator=torch.Generator().manual_seed(0))
    for precision, expected in ((torch.bfloat16, torch.bfloat16), (None, torch.float32)):
        taken.clear()
        with torch.no_grad(), torch.autocast("cpu", precision, enabled=precision is not None):
            model(ids, use_cache=False)
        assert taken == [{expected}] * 2


def test_a_compiled_layer_is_not_broken_by_asking_for_autocasts_type():
    def double(x: torch.Tensor) -> torch.Tensor:
        return x.to(autocast_dtype(x.device.type) or x.dtype) * 2

    compiled = torch.compile(double, fullgraph=True, backend="eager")
    with torch.autocast("cpu", torch.bfloat16):
        assert compiled(torch.ones(2)).dtype == torch.bfloat16
    assert compiled(torch.ones(2)).dtype == torch.float32
