"""Compiled layers and kept memory: the numbers of a step stay, evaluation is not compiled, faults go away."""

import copy
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses import FakeTensor

from hybridgen.core.objectives import total
from hybridgen.training.distributed.precision import choose_attention, set_attention
from hybridgen.training.distributed.speed import compile_layers, compiler_found, eagerly
from tests.training.processes import ProcessGroup
from tests.training.stages.test_model import all_tasks, stage_of

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[3]


def gradients_of(stage, batch) -> dict[str, torch.Tensor]:
    stage.model.zero_grad()
    losses = stage.losses(stage.model, batch)
    total(losses, {kind: count for kind, (_, count) in losses.items()}, stage.weights).backward()
    return {name: p.grad.clone() for name, p in stage.model.named_parameters() if p.grad is not None}


def deepen(backbone: torch.nn.Module, layers: int) -> None:
    """Further layers like the last one."""
    while len(backbone.layers) < layers:
        backbone.layers.append(copy.deepcopy(backbone.layers[-1]))
        backbone.layers[-1].self_attn.layer_idx += 1  # its place in a cache
    backbone.config.num_hidden_layers = layers
    backbone.config.layer_types = backbone.config.layer_types[:1] * layers


@pytest.mark.skipif(not compiler_found(CPU), reason="no C++ compiler")
def test_compiled_layers_have_the_same_gradients_and_evaluation_is_eager():
    """And depth costs no time: 12 layers are one graph. Largest difference seen: 4.6e-5, of gradients up to 62."""
    stage = stage_of(all_tasks())
    deepen(stage.model.model.language_model, 12)
    set_attention(stage.model, choose_attention("auto", "fp32", CPU))
    batch = next(stage.loader)
    stage.model.train()
    eager = gradients_of(stage, batch)
    compile_layers(stage.model.model.language_model)
    frames = torch._dynamo.utils.counters["stats"]
    before = frames["unique_graphs"]
    compiled = gradients_of(stage, batch)
    graphs = frames["unique_graphs"] - before
    assert graphs == 1
    assert compiled.keys() == eager.keys()
    for name, gradient in eager.items():
        torch.testing.assert_close(compiled[name], gradient, rtol=1e-4, atol=1e-4)
    with eagerly(stage.model), torch.no_grad():
        stage.losses(stage.model, batch)
        short = torch.ones(1, 7, dtype=torch.long)
        stage.model(input_ids=short)
    assert frames["unique_graphs"] - before == graphs
    assert gradients_of(stage, batch).keys() == eager.keys()
    assert frames["unique_graphs"] - before == graphs  # the compiled layers are there again


def check_flex_attention_stays_compiled() -> None:
    flex_attention = importlib.import_module("torch._higher_order_ops.flex_attention")
    written, calls = flex_attention.math_attention, []
    flex_attention.math_attention = lambda *args: calls.append(args) or written(*args)
    stage = stage_of(all_tasks(), length=130)
    batch, model = next(stage.loader), stage.model.eval()
    with torch.no_grad():
        expected = stage.losses(model, batch)
        set_attention(model, "flex_attention")
        compile_layers(model.model.language_model)
        with eagerly(model):
            losses = stage.losses(model, batch)
    assert not [args for args in calls if not isinstance(args[0], FakeTensor)]  # those are the compiler's
    for kind, (loss, _) in expected.items():
        torch.testing.assert_close(losses[kind][0], loss, rtol=1e-4, atol=1e-4)
    compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    with eagerly(model), torch.no_grad():
        stage.losses(model, next(stage.loader))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == compiled  # other masks, the same kernel


@pytest.mark.skipif(not compiler_found(CPU), reason="no C++ compiler")
def test_flex_attention_stays_compiled_where_layers_run_as_written(tmp_path):
    """As written it makes all scores (B, heads, N, N), in float32: 25 GB of a row of 8,192 tokens and 32 heads.

    In a process of its own: after other shapes torch compiles for any, which flex attention on a CPU cannot (2.13).
    """
    ProcessGroup(tmp_path, check_flex_attention_stays_compiled).finish()


@pytest.mark.skipif(not compiler_found(CPU), reason="no C++ compiler")
def test_a_compiler_that_fails_is_done_without(tmp_path):
    program = """if True:
        import torch
        from tests.training.distributed.test_speed import gradients_of
        from tests.training.stages.test_model import all_tasks, stage_of
        from hybridgen.training.distributed.speed import compile_layers
        stage = stage_of(all_tasks())
        stage.model.train()
        batch = next(stage.loader)
        eager = gradients_of(stage, batch)
        compile_layers(stage.model.model.language_model)
        assert all(torch.equal(value, eager[name]) for name, value in gradients_of(stage, batch).items())
    """
    broken = {"CXX": "/bin/false", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", program], check=True, env={**os.environ, **broken}, cwd=ROOT)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="page faults are counted on Linux only")
def test_memory_that_is_kept_is_not_faulted_in_again():
    """24 MB tensors: about 11,700 faults for 20 of them, and none."""
    program = """if True:
        import resource, torch
        from hybridgen.training.distributed.speed import keep_freed_memory
        def faults():
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            for _ in range(20):
                torch.ones(6_000_000)
            return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
        first = faults()
        kept = keep_freed_memory()
        faults()
        print(int(kept), first, faults())
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    kept, before, after = map(int, done.stdout.split())
    if not kept:
        pytest.skip("this C library has no mallopt")
    assert after < before / 10
