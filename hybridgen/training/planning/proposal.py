"""A config for data that were looked at, and a machine: which model, pictures, rows and batch.

The rules are starting points, which a person reads in the config and changes. Whether it fits, and how many steps it
takes, is found in `fitting`.
"""

import statistics
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from hybridgen.bridges.adapters import require_peft
from hybridgen.configuration_hybridgen import HybridGenConfig
from hybridgen.core.names import WRITING_PATHS
from hybridgen.data.document_source import DocumentSource
from hybridgen.data.look import LIMIT, DataLook, prompt_of
from hybridgen.data.source_config import SourceConfig
from hybridgen.data.sources import open_source
from hybridgen.training.config import strict
from hybridgen.training.config.parts import hybrid_config
from hybridgen.training.config.schema import ModelConfig, TrainConfig
from hybridgen.training.planning.report import GB, Machines
from hybridgen.training.stages.building import build_processor

# width, feed-forward, layers, heads of 64, and from how many pictures on such a model is worth it on a GPU
SHAPES = ((192, 512, 4, 3, 0), (256, 640, 6, 4, 0), (512, 1376, 8, 8, 5_000), (768, 2048, 12, 12, 50_000),
          (1024, 2816, 24, 16, 500_000))  # fmt: skip
CPU_PICTURES = 1_000  # from so many on, the larger of them
SIDES = {"cpu": (16, 32, 64), "cuda": (16, 32, 64, 128, 256)}  # of pictures, in pixels
GRID = {"cpu": 8, "cuda": 16}  # patches along a side
TOKENS_A_STEP = {"cpu": 4_096, "cuda": 32_768}
MARGIN = 1.25  # by so much the longest document may be longer than the longest that was looked at
ROUND = 64  # rows are a multiple of so many tokens
EVERY = 500  # steps, until it is known how many there are
HELD_OUT, HELD_OUT_RECORDS = 0.05, 500  # the share that validates, and at most so many
ENOUGH = 20  # records, with fewer none is held out
ADAPTED = 300e6  # parameters, from which on an adapter is trained instead of all weights
PROMPTS = 4
GPU_MEMORY = 80.0  # GB, of a GPU that is not here
UTILISATION = 0.35  # the share of what a matrix product reaches that training reaches


@dataclass(frozen=True)
class Start:
    """What the run starts from.

    Args:
        folder: a checkpoint of hybridgen; None = nothing, weights are random.
        named: what the user calls it.
    """

    folder: Path | None
    named: str

    @property
    def kind(self) -> str:
        return "scratch" if self.folder is None else "pretrained"


def machines_of(gpus: int | None, memory: float | None) -> Machines:
    """The machine that the run is for.

    Args:
        gpus: None = those of this machine, 0 = its CPU.
        memory: of each in GB; None = as it is here, and `GPU_MEMORY` of GPUs that are elsewhere.
    """
    here = torch.cuda.device_count()
    gpus = here if gpus is None else gpus
    if memory is not None:
        size = memory * GB
    elif not gpus:
        size = float(psutil.virtual_memory().available)
    else:
        size = torch.cuda.get_device_properties(0).total_memory if here else GPU_MEMORY * GB
    return Machines(gpus, float(size), "ddp", None, UTILISATION)


def device_of(machines: Machines) -> str:
    return "cuda" if machines.gpus else "cpu"


def propose(look: DataLook, start: Start, machines: Machines, output_dir: Path, shape: int | None = None) -> dict:
    """The content of a config, before it is known whether it fits.

    Args:
        shape: which of `SHAPES`; None = by the data.

    Raises:
        ValueError: the start cannot learn from such data.
    """
    device = device_of(machines)
    content = {"output_dir": str(output_dir), "seed": 0, "steps": EVERY, "precision": "auto"}
    if start.folder is None:
        content |= _from_scratch(look, device, largest_shape(look, device) if shape is None else shape)
    else:
        content |= _from_checkpoint(start, look)
    hybrid = hybrid_config(strict.build(ModelConfig, content["model"], "model"))
    content["data"] = {"sources": _sources(look, content, hybrid), "max_broken": _max_broken(look)}
    content["validation"] = {"every": 0, "sources": []}
    if held_out := _held_out(look, content["data"]["sources"]):
        content["validation"] = {"every": EVERY, "batches": 4, "sources": held_out}
    content["sampling"] |= _samples(look, held_out)
    content["data"] |= _rows(look, content, device, machines.processes)
    if start.folder is None:
        longest = max(512, 2 * content["data"]["sequence_length"])
        content["model"]["text_config"]["max_position_embeddings"] = longest
    return content


# ---------------------------------------------------------------------------------------------------------- the model


def largest_shape(look: DataLook, device: str) -> int:
    """Which of `SHAPES` the data are enough for."""
    if device == "cpu":
        return int(look.records >= CPU_PICTURES)
    return max(1, max(number for number, shape in enumerate(SHAPES) if look.records >= shape[-1]))


def _from_scratch(look: DataLook, device: str, shape: int) -> dict:
    width, inner, layers, heads, _ = SHAPES[shape]
    side = max((each for each in SIDES[device] if each <= look.side), default=SIDES[device][0])
    patch = max(1, side // GRID[device])
    text = {"model_type": "qwen3", "hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers,
            "num_attention_heads": heads, "num_key_value_heads": heads, "head_dim": 64}  # fmt: skip
    return {
        "model": {
            "tokenizer": {"vocab_size": 2048 if look.records < 20_000 else 8192},
            "text_config": text,
            "diffusion_config": {
                "patch_size": patch, "sample_size": side, "prediction_type": "sample", "noise_schedule": "flow",
            },
            "embedding_std": 1.0,
            "initializer_range": round(width**-0.5, 4),
        },
        "objective": {"loss_weighting": "velocity", "max_weight": 25, "timestep_sampling": "logit_normal",
                      "logit_mean": 1.0, "logit_std": 1.6, "diffusion_weight": 3.0},
        "optimizer": {"name": "muon", "lr": 2e-3, "muon_lr": 3e-3, "weight_decay": 0.0},
        "schedule": {"name": "wsd", "warmup_steps": 50, "decay_fraction": 0.4},
        "ema": {"decay": 0.999},
        "sampling": {"steps": 20, "guidance": 1.5, "diffusion": {"shift": 3.0, "guidance_interval": [0.0, 0.6]}},
    }  # fmt: skip


def _from_checkpoint(start: Start, look: DataLook) -> dict:
    model = {"from_pretrained": str(start.folder)}
    hybrid = hybrid_config(strict.build(ModelConfig, model, "model"))
    paths = hybrid.paths
    if look.kinds["draw"] and not set(paths) & set(WRITING_PATHS):
        raise ValueError(
            f"--from {start.named} has no path that draws (it has {', '.join(paths)}), and the data have pictures to "
            "be drawn; give a checkpoint with diffusion or vq, or --from none"
        )
    text = hybrid.text_config
    size = 12 * text.num_hidden_layers * text.hidden_size**2 + text.vocab_size * text.hidden_size  # near enough
    content = {
        "model": model,
        "optimizer": {"name": "adamw", "lr": 1e-4, "weight_decay": 0.0},
        "schedule": {"name": "cosine", "warmup_steps": 50, "min_ratio": 0.1},
        "ema": {"decay": 0.999},
        "sampling": {},
    }
    if size > ADAPTED:
        content = adapted(content, _writing(paths))
    return content


def adapted(content: dict, write: str | None) -> dict:
    """The same run with an adapter in place of all weights.

    Raises:
        ValueError: peft is not installed.
    """
    require_peft()
    content = {name: value for name, value in content.items() if name != "ema"}
    parts = ["backbone", *([write] if write else [])]
    return content | {
        "lora": {"parts": parts, "rank": 32, "alpha": 32},
        "optimizer": {**content["optimizer"], "lr": 3e-4},
    }


def _writing(paths: tuple[str, ...]) -> str | None:
    return next((path for path in WRITING_PATHS if path in paths), None)


# ----------------------------------------------------------------------------------------------------------- the data


def _sources(look: DataLook, content: dict, hybrid: HybridGenConfig) -> list[dict]:
    """Draw by the first path that writes; where records are captioned pictures, describe them as well."""
    reads, place = hybrid.paths[0], {"source": look.source}
    place |= {"split": look.split} if look.split else {}
    if share := held_out_share(look):
        place["part"] = [0, round(1 - share, 4)]
    if not look.kinds["draw"]:
        return [{**place, "name": "answer", "read": reads}]
    write = {"write": _writing(hybrid.paths), "prompt_dropout": 0.1}
    if look.kinds["answer"] or look.kinds["words"]:
        return [{**place, "name": "draw and answer", "read": reads, **write}]
    describe = {**place, "name": "describe", "order": "image_first", "read": reads, "weight": 0.2}
    return [{**place, "name": "draw", **write, "weight": 0.8}, describe]


def held_out_share(look: DataLook) -> float:
    """The share of the records that validates; 0 = a folder of its own does, or they are too few."""
    if look.held_out or look.records < ENOUGH:
        return 0.0
    return max(min(HELD_OUT, HELD_OUT_RECORDS / look.records), 1 / look.records)


def _held_out(look: DataLook, sources: list[dict]) -> list[dict]:
    """The same sources on records that are not trained on."""
    held_out = []
    for source in deepcopy(sources):
        if look.held_out:
            held_out.append(source | {"split": look.held_out})
        elif "part" in source:
            held_out.append(source | {"part": [source["part"][1], 1]})
    return [{name: value for name, value in each.items() if name != "prompt_dropout"} for each in held_out]


def _samples(look: DataLook, held_out: list[dict]) -> dict:
    """What is drawn on the way: captions that are held out, else the first."""
    if not look.kinds["draw"]:
        return {"every": 0}
    prompts = look.prompts
    if held_out:
        source = open_source(SourceConfig(**held_out[0]))
        prompts = list(_first_prompts(source)) or prompts
    return {"every": EVERY, "prompts": prompts[:PROMPTS]}


def _first_prompts(source: DocumentSource) -> Iterator[str]:
    """Each once."""
    seen = {""}
    for index in range(min(10 * PROMPTS, len(source))):
        try:
            said = prompt_of(source.record_source.record(index)["messages"])
        except ValueError:  # broken
            continue
        if said not in seen:
            seen.add(said)
            yield said


def _max_broken(look: DataLook) -> float:
    """Twice the share that was found, and at least 100 records."""
    share = 2 * look.broken_share
    return round(share, 3) if share * look.records > 100 else 100


def _rows(look: DataLook, content: dict, device: str, processes: int) -> dict:
    """Tokens of a row, in which the longest document fits and little is left empty; and rows that make up a step."""
    tokens = document_tokens(content)
    longest = max(tokens) * (1.0 if look.records <= LIMIT else MARGIN)
    shortest, mean = -(-int(longest) // ROUND) * ROUND, statistics.mean(tokens)
    length = max(range(shortest, 4 * shortest, ROUND), key=lambda row: row // mean * mean / row)
    rows = max(1, TOKENS_A_STEP[device] // length // processes)
    return {"sequence_length": length, "per_device_batch_size": rows}


def document_tokens(content: dict) -> list[int]:
    """Tokens of documents: of the first `LIMIT` of the first source, which has the records of all."""
    config = strict.build(TrainConfig, {**content, "data": content["data"] | {"sequence_length": 1_000_000}})
    source, tokens = open_source(config.data.sources[0]), []
    processor = build_processor(config, [source])
    for cursor in range(min(LIMIT, len(source))):
        try:
            tokens.append(len(source.document(cursor, processor, decode=False)))
        except ValueError:  # broken, and in the report
            continue
    return tokens
