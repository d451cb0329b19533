"""What FSDP2 sends and holds: bf16 where the run is, weights that are whole in one process alone, none twice."""

import gc
import json
import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Qwen3Config, Qwen3ForCausalLM

from hybridgen.training import load_config, train
from hybridgen.training.config import strict
from hybridgen.training.config.schema import ModelConfig, TrainConfig
from hybridgen.training.distributed.processes import make_accelerator
from hybridgen.training.stages import building
from hybridgen.training.stages.model import build_model_stage
from hybridgen.training.trainer import Trainer
from tests.processors import tiny_tokenizer
from tests.training.distributed.test_sharding import TwoBatches
from tests.training.processes import ProcessGroup
from tests.training.test_trainer import metrics_of

# ---------------------------------------------------------------------------------------------------------- precision


def train_bf16(folder: Path, sharding: dict, every: int = 0, compile_: bool = False) -> None:
    """4 steps of the real model in bf16; says the types that weights and residual stream had in the last of them."""
    content = {"output_dir": str(folder), "steps": 4, "data": {"sources": []}, "log_every": 1, "precision": "bf16"}
    content |= {"validation": {"every": 0}, "save_every": 99, "optimizer": {"name": "adamw", "lr": 1e-3}}
    content |= {"sharding": sharding, "diagnostics": {"every": every, "peak_tflops": 1.0}, "accumulation": 2}
    config = strict.build(TrainConfig, content)
    accelerator = make_accelerator(config)
    batches = TwoBatches(accelerator.process_index)
    stage = batches.stages[1]
    stage.loader = batches
    trainer = Trainer(config, stage, accelerator)
    model = accelerator.unwrap_model(trainer.model)
    layer, seen = model.model.language_model.layers[0], {}
    query = layer.self_attn.q_proj
    query.register_forward_pre_hook(lambda *_: seen.update(weight=str(query.weight.dtype)))
    layer.register_forward_hook(lambda _, __, output: seen.update(stream=str(output.dtype)))
    embedder = model.model.timestep_embedder
    embedder.register_forward_pre_hook(lambda *_: seen.update(timesteps=str(next(embedder.parameters()).dtype)))
    assert trainer.run()
    seen["kept"] = str({weight.dtype for weight in model.parameters()})
    if accelerator.is_main_process:
        (folder / "seen.json").write_text(json.dumps(seen))


@pytest.fixture(scope="module")
def ddp(tmp_path_factory) -> Path:
    """Two processes under bf16 autocast, weights in fp32."""
    folder = tmp_path_factory.mktemp("ddp")
    ProcessGroup(folder / "logs", train_bf16, 2, "ddp", folder=folder / "run", sharding={}).finish()
    return folder / "run"


def differences(ours: Path, theirs: Path) -> tuple[float, float]:
    """The largest of a loss, and of a gradient's norm, relative."""
    pairs = list(zip(metrics_of(ours), metrics_of(theirs), strict=True))
    return tuple(max(abs(a[key] / b[key] - 1) for a, b in pairs) for key in ("loss", "grad_norm"))


@pytest.mark.parametrize(
    ("sharding", "gathered", "loss", "norm"),
    [
        ({}, "bfloat16", 1e-4, 3e-3),
        ({"reduce_dtype": "fp32"}, "bfloat16", 1e-4, 3e-3),
        ({"param_dtype": "fp32"}, "float32", 1e-6, 1e-6),
    ],
)
def test_bf16_is_sent_where_the_run_is_bf16(tmp_path, ddp, sharding, gathered, loss, norm):
    """Layers only, and only on their way: the residual stream, the timesteps' embedder and what is kept stay fp32.
    Worst relative difference from DDP seen: of a loss 2.2e-5, of a gradient's norm 1e-3; gathered in fp32: 0, 8e-8."""
    ProcessGroup(tmp_path / "logs", train_bf16, 2, "fsdp2", folder=tmp_path / "run", sharding=sharding).finish()
    seen = json.loads((tmp_path / "run/seen.json").read_text())
    assert seen["weight"] == f"torch.{gathered}"
    assert seen["stream"] == seen["timesteps"] == "torch.float32"
    assert seen["kept"] == "{torch.float32}"
    of_loss, of_norm = differences(tmp_path / "run", ddp)
    assert of_loss <= loss
    assert of_norm <= norm


def test_probes_change_nothing_of_a_bf16_run(tmp_path):
    """Diagnostics at each step and at none: the same losses and weights, to the bit."""
    for every in (0, 1):
        arguments = {"folder": tmp_path / str(every), "sharding": {}, "every": every}
        ProcessGroup(tmp_path / f"logs_{every}", train_bf16, 2, "fsdp2", **arguments).finish()
    without, probed = (metrics_of(tmp_path / run) for run in ("0", "1"))
    assert [(row["loss"], row["grad_norm"]) for row in probed] == [(row["loss"], row["grad_norm"]) for row in without]
    assert all("gradient_cosine/all" in row for row in probed)
    ours, theirs = (load_file(tmp_path / run / "checkpoint/model/model.safetensors") for run in ("1", "0"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


# -------------------------------------------------------------------------------------------------------------- start


class LiveBytes(TorchDispatchMode):
    """How many bytes of tensors that were made inside are there at the same time, at most; none of the meta device."""

    def __init__(self):
        super().__init__()
        self.now, self.most, self._storages = 0, 0, set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for each in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(each, torch.Tensor) and not each.is_meta and type(each) in (torch.Tensor, torch.nn.Parameter):
                self._count(each.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        place, size = storage._cdata, storage.nbytes()
        if place not in self._storages:
            self._storages.add(place)
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._gone, place, size)

    def _gone(self, place: int, size: int) -> None:
        self._storages.discard(place)
        self.now -= size


def live_parameters() -> int:
    """Bytes of all parameters that exist in this process, each storage once."""
    gc.collect()
    alive = [each for each in gc.get_objects() if isinstance(each, torch.nn.Parameter) and not each.is_meta]
    return sum({each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in alive}.values())


DECODER = {"hidden_size": 96, "intermediate_size": 128, "num_hidden_layers": 6, "num_attention_heads": 2}
DECODER |= {"num_key_value_heads": 2, "head_dim": 48}


def decoder_in(folder: Path, tied: bool) -> str:
    torch.manual_seed(3)
    tokenizer = tiny_tokenizer()
    config = Qwen3Config(vocab_size=len(tokenizer), tie_word_embeddings=tied, max_position_embeddings=128, **DECODER)
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("experts", [False, True])
def test_a_pretrained_backbone_takes_the_place_of_random_weights(tmp_path, monkeypatch, tied, experts):
    """When it has just been read, no other backbone is there: 1.0 to 1.3 models are in memory, where it was 2."""
    folder = decoder_in(tmp_path, tied)
    counted, read = [], building.AutoModelForCausalLM.from_pretrained

    def counting(*args, **kwargs):
        model = read(*args, **kwargs)
        counted.append(live_parameters() - before)
        return model

    monkeypatch.setattr(building.AutoModelForCausalLM, "from_pretrained", counting)
    diffusion = {"patch_size": 4, "sample_size": 16, "modality_experts": experts}
    before = live_parameters()
    model = building.build_model(
        ModelConfig(language_model=folder, diffusion_config=diffusion), tiny_tokenizer(), seed=0
    )
    pretrained = Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    size = sum(weight.numel() * 4 for weight in pretrained.parameters())
    assert counted[0] < 1.4 * size
    ours = model.model.language_model.state_dict()
    for name, weight in pretrained.model.state_dict().items():
        assert torch.equal(ours[name][: len(weight)], weight), name
    storages = {}
    for name, weight in model.named_parameters():
        assert not weight.is_meta
        assert storages.setdefault(weight.data_ptr(), name) == name  # no two share their memory, experts neither
    assert torch.equal(model.lm_head.weight[: pretrained.vocab_size], pretrained.lm_head.weight)


CONFIG = """
output_dir: {folder}/run
steps: 1
precision: fp32
threads: 1
model: {{{model}}}
data: {{sequence_length: 64, per_device_batch_size: 1, prefetch: 0, sources: [{{source: {data}, loss_on: all}}]}}
diagnostics: {{peak_tflops: 1.0}}
{more}
"""
SCRATCH = "tokenizer: {vocab_size: 300, samples: 20}, text_config: {model_type: qwen3, max_position_embeddings: 128"
SCRATCH += "".join(f", {name}: {value}" for name, value in DECODER.items()) + "}"
LORA = "lora: {rank: 2, parts: [backbone]}"


def start(folder: Path, configs: dict[str, str]) -> None:
    """In each process and for each config: build, then shard. Says how much was in memory, and saves what there is."""
    told = {}
    for kind, path in configs.items():
        config = load_config(path)
        accelerator = make_accelerator(config)
        with LiveBytes() as live:
            stage = build_model_stage(config, accelerator)
            empty = all(weight.is_meta for name, weight in stage.model.named_parameters() if "lora" not in name)
            trainer = Trainer(config, stage, accelerator)
            weights = list(trainer.model.parameters())
            local = sum(weight.to_local().numel() * 4 for weight in weights)
            largest = max(weight.numel() * 4 for weight in weights)
            whole = sum(weight.numel() * 4 for weight in weights)
        told[kind] = {"empty": empty, "local": local, "largest": largest, "whole": whole, "most": live.most}
        model = trainer.weights.gather()
        if model is not None:
            torch.save(model.state_dict(), folder / f"{kind}.pt")
        assert trainer.run()
    (folder / f"{accelerator.process_index}.json").write_text(json.dumps(told))


def test_a_sharded_model_starts_whole_in_one_process_only(tmp_path):
    """From scratch, with a pretrained backbone, from a pipeline, an adapter on that, and twice its layers: the others
    hold their rows and one tensor more, or two (gloo's thread may let go of one only after the next has begun), and the
    weights are those of one process, to the bit."""
    data = tmp_path / "lines.jsonl"
    data.write_text("".join(f'{{"text": "line {k}"}}\n' for k in range(20)))
    models = {"scratch": SCRATCH, "backbone": f"language_model: {decoder_in(tmp_path / 'decoder', tied=False)}"}
    models |= dict.fromkeys(("pipeline", "adapter"), f"from_pretrained: {tmp_path / 'alone/checkpoint'}")
    models["grown"] = f"grow_from: {tmp_path / 'alone/checkpoint'}, text_config: {{num_hidden_layers: 12}}"
    configs = {}
    for kind, model in models.items():
        folder = tmp_path / kind
        more = LORA if kind == "adapter" else ""
        configs[kind] = str(tmp_path / f"{kind}.yaml")
        Path(configs[kind]).write_text(CONFIG.format(folder=folder, model=model, data=data, more=more))
    train(load_config(configs["backbone"], [f"output_dir={tmp_path / 'alone'}"]))
    ProcessGroup(tmp_path / "logs", start, 2, "fsdp2", folder=tmp_path, configs=configs).finish()
    main, other = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    for kind, path in configs.items():
        assert not main[kind]["empty"]
        assert other[kind]["empty"]
        spare = 0.01 * other[kind]["whole"]  # buffers, and what the attention's check sees
        assert other[kind]["most"] < other[kind]["local"] + 2 * other[kind]["largest"] + spare
        assert main[kind]["most"] < main[kind]["whole"] + main[kind]["local"] + spare
        config = load_config(path, ["resume=never", f"output_dir={tmp_path / 'again'}"])
        expected = build_model_stage(config, make_accelerator(config)).model.state_dict()
        got = torch.load(tmp_path / f"{kind}.pt")
        assert got.keys() == expected.keys()
        assert all(torch.equal(got[name], expected[name]) for name in expected), kind
