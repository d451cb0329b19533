#!/usr/bin/env python
"""How good a model is after so many seconds of one core: hybridgen beside transfusion-pytorch, and without its parts.

    python scripts/bench_quality.py tune  --out DIR --peer FOLDER [--worlds dolls shapes] [--seconds 150]
    python scripts/bench_quality.py race  --out DIR --peer FOLDER [--worlds dolls shapes] [--seconds 150 300 600]
    python scripts/bench_quality.py parts --out DIR [--peer FOLDER] [--seconds 150] [--seeds 0 1 2] [--only LINE ...]

Both learn to draw the same captions and pictures by diffusion alone, as many pictures a step, with as many parameters
(within 10 %), and draw the same held-out captions, which the world's own exact scorer judges.

- `tune` finds transfusion-pytorch's best settings of a few, one after the other (`TUNING`), on other held-out captions;
  `race` and `parts` use them where DIR has them. Ours are those of `configs/draw_only.yaml`, in every world.
- `race`: theirs and ours in turns, one process after the other, one thread each, for each number of seconds anew, as
  the learning rate falls to the end.
- `parts`: our recipe with single parts of it put back to what is usual (`PARTS`), all of them, and theirs with ours.

Seconds are of the processor (`time.process_time`), all threads of the process, so that others may use the machine; what
compiles is not counted, and stands apart (two steps of ours are in it). Guidance (and, of theirs, its rule, and whether
the average or the last weights) is chosen for each model on 32 held-out captions that are not scored. FOLDER is where
`pip install --no-deps --target FOLDER transfusion-pytorch` and what it lacks here went (axial-positional-embedding
beartype einops einx ema-pytorch frozendict jaxtyping loguru rotary-embedding-torch torch-einops-utils torchdiffeq
wadler-lindig, and adam-atan2-pytorch for its Muon); what is its own and what is not says `bench_peer`.

DIR gets `runs/NAME/` for each run, and what is finished there is not done again; and, after each run, all numbers, a
table and (race) a plot, as `race.json`, `race.md`, `race.png` and so on.
"""

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from importlib.machinery import PathFinder
from pathlib import Path

import bench_peer
import numpy as np
import torch
from bench_peer import NULLS, Peer, PeerSettings
from PIL import Image
from transformers import AutoTokenizer

from hybridgen.core.figures import Card, grid, save
from hybridgen.core.files import read_json, write_json, write_whole
from hybridgen.data.synthetic import open_synthetic
from hybridgen.evaluation import generation
from hybridgen.evaluation.environment import hardware, versions
from hybridgen.evaluation.intervals import with_interval
from hybridgen.pipeline_hybridgen import load_pipeline
from hybridgen.processing_hybridgen import build_tokenizer
from hybridgen.training.config.checks import load_config
from hybridgen.training.config.schema import TrainConfig
from hybridgen.training.distributed.processes import make_accelerator, seed_dropout
from hybridgen.training.distributed.speed import compiler_found, keep_freed_memory
from hybridgen.training.optim.optimization import lr_factor
from hybridgen.training.planning.batches import planned_loader
from hybridgen.training.stages.building import empty_model
from hybridgen.training.stages.model import build_model_stage
from hybridgen.training.trainer import Trainer

CONFIG = Path(__file__).parents[1] / "configs" / "draw_only.yaml"
PATCH = 4
WARM = 2  # steps of ours before the clock starts: they compile
GUIDANCE = (1.0, 1.5, 3.0)
CHOOSING, CHOOSING_SEED, DRAWING_SEED = 32, 7, 100  # captions on which guidance is chosen; seeds of captions, of noise
SHOWN = 6
TOKENIZED = 3000  # captions that their tokenizer is made of
LARGER = 1.1  # so many times as many parameters may one of two have
QUIET = {"TQDM_DISABLE": "1", "LOGURU_LEVEL": "WARNING"}


@dataclass(frozen=True)
class World:
    """What is drawn: the split that training never showed, and two of the scorer's names, the milder one first.

    Args:
        parts, whole: names of tallies.
        titles: what these two are, in words.
        side: pixels.
        pictures: a step, of theirs: so many documents fill the rows of ours.
        room: tokens of the longest document, for rows of one document each.
    """

    split: str
    parts: str
    whole: str
    titles: tuple[str, str]
    side: int = 32
    pictures: int = 28
    room: int = 128


WORLDS = {
    "dolls": World("held_out", "slots", "all_seven", ("parts right", "all seven parts of a picture right")),
    "shapes": World(
        "held_out", "pictures", "exact", ("prompts right (GenEval's rule)", "and nothing besides"), room=96
    ),
}

# what changes in our config: a list of words for its command line, or settings of theirs
PARTS: dict[str, list[str] | PeerSettings] = {
    "ours": [],
    "velocity instead of x0": ["model.diffusion_config.prediction_type=velocity"],
    "uniform noise levels": ["objective.timestep_sampling=uniform"],
    "noise levels logit-normal (0, 1)": ["objective.logit_mean=0.0", "objective.logit_std=1.0"],
    "noise levels logit-normal (1, 1)": ["objective.logit_mean=1.0", "objective.logit_std=1.0"],
    "AdamW at 1e-3": ["optimizer.name=adamw", "optimizer.lr=1e-3", "optimizer.muon_lr=null"],
    "AdamW at 3e-3": ["optimizer.name=adamw", "optimizer.lr=3e-3", "optimizer.muon_lr=null"],
    "embeddings start at 0.02": ["model.embedding_std=0.02"],
    "one document a row": ["data.sequence_length=ROOM", "data.per_device_batch_size=PICTURES"],
    "no average": ["ema=null"],
    "rate does not fall": ["schedule.name=constant"],
    "diffusion weighs 1": ["objective.diffusion_weight=1.0"],
}
ALL_OFF = ("velocity instead of x0", "uniform noise levels", "AdamW at 1e-3", "embeddings start at 0.02",
           "one document a row", "no average")  # fmt: skip
PARTS["all of these"] = [word for name in ALL_OFF for word in PARTS[name]]
OF_THEIRS = {
    "theirs": {},
    "theirs, clean output": {"clean": True},
    "theirs, our noise levels": {"noise": (1.7, 1.4)},
    "theirs, both": {"clean": True, "noise": (1.7, 1.4)},
}
# one after the other: the best of each line goes into the next
TUNING = (
    ("rate and optimizer", [{"optimizer": name, "lr": lr} for name in ("adamw", "muon") for lr in (1e-3, 3e-3)]),
    ("clean output", [{"clean": False}, {"clean": True}]),
    ("loss of captions", [{"caption_loss": True}, {"caption_loss": False}]),
    ("shape", [{"dim": 96, "depth": 4}, {"dim": 64, "depth": 9}]),
)


@dataclass(frozen=True)
class Run:
    """One training, and its score.

    Args:
        name: of its folder.
        what: `ours`, or `theirs`.
        words: of ours, what changes in the config.
        settings: of theirs, the fields of `PeerSettings`.
    """

    name: str
    label: str
    what: str
    world: str
    seconds: float
    seed: int
    samples: int
    words: list[str] = field(default_factory=list)
    settings: dict = field(default_factory=dict)


# ------------------------------------------------------------------------------------------------------------- data


@dataclass
class Captioned:
    """Captions, pictures (n, S, S, 3) uint8, and what they show."""

    captions: list[str]
    pictures: np.ndarray
    specs: list


def captioned(world: str, split: str, seed: int, start: int, count: int) -> Captioned:
    """Drawing records of a world, `count` of them from number `start` on."""
    dataset = open_synthetic(world)
    source = dataset.Source(split, "draw", seed, size=WORLDS[world].side)
    records = [source[start + number] for number in range(count)]
    messages = [record["messages"] for record in records]
    return Captioned(
        [said["content"][0]["text"] for said, _ in messages],
        np.stack([np.asarray(drawn["content"][0]["image"].convert("RGB")) for _, drawn in messages]),
        [dataset.spec_of(record) for record in records],
    )


# --------------------------------------------------------------------------------------------------------- training


class TimedTrainer(Trainer):
    """The trainer, for so many seconds of the processor after its first `WARM` steps, which compile."""

    seconds: float = 0.0
    compiling: float = 0.0
    pictures: int = 0  # seen since
    _begun: float | None = None

    def run(self) -> bool:
        self._loaded = processor_seconds()
        return super().run()

    @property
    def progress(self) -> float:
        if self.step < WARM:
            return 0.0
        if self._begun is None:
            self._begun = time.process_time()
            self.compiling = processor_seconds() - self._loaded
        return min(1.0, (time.process_time() - self._begun) / self.seconds)

    def _forward_backward(self, batches, counts):
        if self._begun is not None:
            self.pictures += int(counts[self.stage.kinds.index("diffusion")])
        return super()._forward_backward(batches, counts)


def config_of(run: Run, folder: Path) -> TrainConfig:
    """Ours, with the run's changes."""
    world = WORLDS[run.world]
    words = [word.replace("ROOM", str(world.room)).replace("PICTURES", str(world.pictures)) for word in run.words]
    return load_config(
        CONFIG,
        [
            f"output_dir={json.dumps(str(folder / 'ours'))}",
            f"seed={run.seed}",
            f"data.sources.0.source={run.world}",
            f"data.sources.0.size={world.side}",
            f"model.diffusion_config.sample_size={world.side}",
            "steps=1000000",
            "save_every=1000000",
            "resume=never",
            f"compile={json.dumps(compiler_found(torch.device('cpu')))}",
            *words,
        ],
    )


def train_ours(run: Run, folder: Path) -> dict:
    """Train by the config with the run's changes. Returns what there is to say of it."""
    config = config_of(run, folder)
    accelerator = make_accelerator(config)
    stage = build_model_stage(config, accelerator)
    seed_dropout(config.seed)
    trainer = TimedTrainer(config, stage, accelerator)
    trainer.seconds = run.seconds
    if not trainer.run():
        raise KeyboardInterrupt
    told = {"steps": trainer.step - WARM, "pictures": trainer.pictures, "compiling": trainer.compiling}
    return told | {"parameters": parameters(trainer.model)}


def train_theirs(run: Run, folder: Path) -> dict:
    """Train transfusion-pytorch on the same records, with the config's warmup and decay of the rate."""
    world, config = WORLDS[run.world], load_config(CONFIG)
    settings = peer_settings(run.settings)
    some = captioned(run.world, "train", run.seed, 0, TOKENIZED)
    tokenizer = build_tokenizer(some.captions, config.model.tokenizer.vocab_size)
    tokenizer.save_pretrained(folder / "tokenizer")
    side, count = world.side // PATCH, world.pictures
    model = bench_peer.build(settings, len(tokenizer), side, 3 * PATCH**2, run.seed)
    longest = max(len(ids) for ids in encoded(tokenizer, some.captions))
    peer = Peer(model, settings, longest, bf16=True, compiled=compiler_found(torch.device("cpu")))
    told, loaded = {"parameters": parameters(model)}, processor_seconds()
    peer.warm_up(encoded(tokenizer, some.captions[:count]), bench_peer.patches(some.pictures[:count], PATCH))
    told["compiling"] = processor_seconds() - loaded
    step, begun = 0, time.process_time()
    while (progress := (time.process_time() - begun) / run.seconds) < 1:
        batch = captioned(run.world, "train", run.seed, step * count, count)
        factor = lr_factor(config.schedule, step, progress)
        peer.step(encoded(tokenizer, batch.captions), bench_peer.patches(batch.pictures, PATCH), factor)
        step += 1
    weights = {"last": model.state_dict(), "average": peer.ema.ema_model.state_dict()}
    torch.save(weights, folder / "theirs.pt")
    return told | {"steps": step, "pictures": step * count}


def encoded(tokenizer, captions: list[str]) -> list[list[int]]:
    return tokenizer(captions, add_special_tokens=False)["input_ids"]


def peer_settings(settings: dict) -> PeerSettings:
    """From JSON, where a pair is a list."""
    noise = settings.get("noise")
    return PeerSettings(**{**settings, "noise": None if noise is None else tuple(noise)})


def processor_seconds() -> float:
    """Of this process and of those that it has waited for: compilers are such."""
    return sum(os.times()[:4])


def parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def parameters_of(run: Run) -> int:
    """How many a run's model will have; nothing is trained but the tokenizer, on which it depends."""
    if run.what == "ours":
        loader, hybrid, _ = planned_loader(config_of(run, Path("unused")))
        loader.close()
        return parameters(empty_model(hybrid))
    some, world = captioned(run.world, "train", run.seed, 0, TOKENIZED), WORLDS[run.world]
    tokenizer = build_tokenizer(some.captions, load_config(CONFIG).model.tokenizer.vocab_size)
    settings = peer_settings(run.settings)
    return parameters(bench_peer.build(settings, len(tokenizer), world.side // PATCH, 3 * PATCH**2, run.seed))


# ---------------------------------------------------------------------------------------------------------- drawing


def drawers_of_ours(run: Run, folder: Path) -> Iterator[tuple[dict, object]]:
    """Each way to draw, and a function of captions to pictures (n, S, S, 3)."""
    pipeline = load_pipeline(folder / "ours" / "checkpoint")
    pipeline.set_progress_bar_config(disable=True)
    side = WORLDS[run.world].side

    def drawer(guidance: float):
        def draw(captions: list[str]) -> np.ndarray:
            drawn = []
            for at in range(0, len(captions), 64):
                call = {"seed": DRAWING_SEED + at, "guidance_scale": guidance, "height": side, "width": side}
                drawn += pipeline(captions[at : at + 64], path="diffusion", **call).images
            return np.stack([np.asarray(image.convert("RGB")) for image in drawn])

        return draw

    for guidance in GUIDANCE:
        yield {"guidance": guidance}, drawer(guidance)


def drawers_of_theirs(run: Run, folder: Path) -> Iterator[tuple[dict, object]]:
    """As `drawers_of_ours`; first `draw` is held against the library's own `sample_one`."""
    side, settings = WORLDS[run.world].side // PATCH, peer_settings(run.settings)
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    weights = torch.load(folder / "theirs.pt")

    def noise(count: int) -> torch.Tensor:
        each = [torch.Generator().manual_seed(DRAWING_SEED + number) for number in range(count)]
        return torch.stack([torch.randn(side, side, 3 * PATCH**2, generator=generator) for generator in each])

    def drawer(model, guidance: float, nulls: str):
        def draw(captions: list[str]) -> np.ndarray:
            ids = encoded(tokenizer, captions)
            return bench_peer.pixels(bench_peer.draw(model, ids, noise(len(ids)), guidance, nulls), PATCH)

        return draw

    for name, state in weights.items():
        model = bench_peer.build(settings, len(tokenizer), side, 3 * PATCH**2, run.seed).eval()
        model.load_state_dict(state)
        two = captioned(run.world, WORLDS[run.world].split, CHOOSING_SEED, 0, 2)
        bench_peer.check_draw(model, encoded(tokenizer, two.captions), noise(2))
        for guidance in GUIDANCE:
            for nulls in NULLS if guidance != 1 else NULLS[:1]:
                yield {"guidance": guidance, "nulls": nulls, "weights": name}, drawer(model, guidance, nulls)


def score_run(run: Run, folder: Path) -> dict:
    """Choose the way to draw, draw what is scored by it (and without guidance), and score it."""
    world, dataset = WORLDS[run.world], open_synthetic(run.world)
    choosing = captioned(run.world, world.split, CHOOSING_SEED, 0, CHOOSING)
    scored = captioned(run.world, world.split, 0, 0, run.samples)
    drawers, tried = list((drawers_of_ours if run.what == "ours" else drawers_of_theirs)(run, folder)), []
    for way, draw in drawers:
        tallies = dataset.score_pictures(draw(choosing.captions), choosing.specs)
        tried.append(way | {"parts": tallies[world.parts]["share"], "whole": tallies[world.whole]["share"]})
    way, draw = drawers[best_of(tried)]
    drawn = draw(scored.captions)
    sheet(scored, drawn, folder / "drawn.png")
    scores = {"chosen": way, "tried": tried, "scores": shares(dataset, world, drawn, scored.specs)}
    if run.what == "ours":  # what guidance is worth
        without = next(draw for way, draw in drawers if way["guidance"] == 1)
        scores["without_guidance"] = shares(dataset, world, without(scored.captions), scored.specs)
    return scores


def best_of(tried: list[dict]) -> int:
    """The place of the way with most parts right, and of several such of that with most whole pictures."""
    return max(range(len(tried)), key=lambda place: (tried[place]["parts"], tried[place]["whole"]))


def shares(dataset, world: World, drawn: np.ndarray, specs: list) -> dict[str, dict]:
    """Tallies with intervals over pictures; "each" is [right, n] of each picture, by which seeds are pooled."""
    pictures = list(map(Image.fromarray, drawn))
    verdicts = generation.judge(dataset, pictures, specs)
    tallies = generation.score(dataset, pictures, specs, verdicts)
    return {
        name: tallies[of] | {"each": [list(verdict.counts[of]) for verdict in verdicts]}
        for name, of in (("parts", world.parts), ("whole", world.whole))
    }


def sheet(scored: Captioned, drawn: np.ndarray, file: Path) -> None:
    pairs = list(zip(scored.captions, scored.pictures, drawn, strict=True))[:SHOWN]
    cards = [Card({"true": Image.fromarray(a), "drawn": Image.fromarray(b)}, (text,)) for text, a, b in pairs]
    save(grid(cards, columns=2), file)


# ---------------------------------------------------------------------------------------------------------- driving


def do(run: Run, folder: Path) -> None:
    """Train, unless it is trained already, and score: in a process of its own."""
    torch.set_num_threads(1)
    keep_freed_memory()
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "trained.json").is_file():
        told = (train_ours if run.what == "ours" else train_theirs)(run, folder)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        write_json(folder / "trained.json", told | {"memory_mib": round(memory)})
    told = read_json(folder / "trained.json")
    write_json(folder / "result.json", {**asdict(run), **told, **score_run(run, folder)})


def in_a_process(run: Run, folder: Path, peer: Path | None) -> dict:
    """The run's result, from its folder where it is finished.

    Raises:
        ValueError: it failed; what it printed says why.
    """
    result = folder / "result.json"
    if not is_scored(result):
        print(f"{run.name}: {run.seconds:g} CPU seconds", flush=True)
        if process(run, folder, peer, "run").returncode:
            raise ValueError(f"the run {run.name} failed; what it printed stands above, and the same command goes on")
    return read_json(result) | {"label": run.label}


def is_scored(result: Path) -> bool:
    """Whether a run is finished; one that was scored before pictures were counted singly is only scored again."""
    scores = read_json(result).get("scores", {}) if result.is_file() else None
    return scores is not None and all("each" in tally for tally in scores.values())


def process(run: Run, folder: Path, peer: Path | None, what: str, **how) -> subprocess.CompletedProcess:
    """This script in a process of its own, on one core."""
    one_core = {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"} | QUIET
    paths = [str(Path(__file__).parents[1]), *([str(peer)] if peer else []), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, **one_core, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [sys.executable, __file__, what, "--out", str(folder), "--spec", json.dumps(asdict(run))]
    return subprocess.run(command, env=environment, **how)


def counted(run: Run, folder: Path, peer: Path | None) -> int:
    """The parameters of a run's model, before the run.

    Raises:
        ValueError: it cannot be built; what it printed says why.
    """
    if (folder / "result.json").is_file():
        return read_json(folder / "result.json")["parameters"]
    done = process(run, folder, peer, "count", stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise ValueError(f"the model of {run.name} cannot be built; what it printed stands above")
    return int(done.stdout.split()[-1])


def check_planned(options: argparse.Namespace, runs: list[Run]) -> None:
    """Raises ValueError, before any run, if models of a world are of unequal size; each kind of run is counted once."""
    kinds = {(run.world, json.dumps([run.what, run.words, run.settings], sort_keys=True)): run for run in runs}
    check_sizes(
        [
            {"world": run.world, "parameters": counted(run, options.out / "runs" / run.name, options.peer)}
            for run in kinds.values()
        ]
    )


def require_peer(folder: Path | None) -> None:
    """Raises ValueError where transfusion-pytorch can be imported from neither the folder nor the environment."""
    places = ([] if folder is None else [str(folder)]) + sys.path
    if PathFinder.find_spec("transfusion_pytorch", places) is None:
        raise ValueError(
            f"transfusion-pytorch is not in {folder or 'this environment'}: pip install --no-deps --target FOLDER "
            "transfusion-pytorch (and what it needs, see --help), and say --peer FOLDER"
        )


def check_sizes(results: list[dict]) -> None:
    """Raises ValueError if models of a world differ by more than `LARGER` in their parameters."""
    for world in worlds_of(results):
        sizes = [result["parameters"] for result in results if result["world"] == world]
        if max(sizes) > LARGER * min(sizes):
            raise ValueError(
                f"in {world} models of {min(sizes):,} and of {max(sizes):,} parameters would race; they may differ by "
                f"a factor of {LARGER}: change dim or depth of `PeerSettings`"
            )


def named(options: argparse.Namespace, what: str, world: str, seconds: float, seed: int, label: str, **changes) -> Run:
    """A run; its folder is named by all that decides it, so that tables share what they have in common."""
    usual = asdict(PeerSettings())
    settings = [f"{key}={value}" for key, value in changes.get("settings", {}).items() if value != usual[key]]
    details = re.sub(r"[^\w.=+]+", "_", "+".join(changes.get("words", settings)))
    if len(details) > 100:
        details = f"{details[:100]}.{zlib.crc32(details.encode()):08x}"
    name = "-".join([world, what, *filter(None, [details]), f"{seconds:g}s", f"seed{seed}", f"{options.samples}"])
    return Run(name, label, what, world, seconds, seed, options.samples, **changes)


def tuned(options: argparse.Namespace, world: str) -> dict:
    """Settings of theirs in a world, where `tune` has found some."""
    file = options.out / "tune.json"
    chosen = read_json(file)["chosen"] if file.is_file() else {}
    return chosen.get(world, {})


def race(options: argparse.Namespace) -> list[Run]:
    runs = []
    for world in options.worlds:
        for seconds in options.seconds:
            for seed in options.seeds:
                settings = asdict(PeerSettings(**tuned(options, world)))
                runs.append(named(options, "theirs", world, seconds, seed, "transfusion-pytorch", settings=settings))
                runs.append(named(options, "ours", world, seconds, seed, "hybridgen"))
    return runs


def parts(options: argparse.Namespace) -> list[Run]:
    runs = []
    for world in options.worlds:
        for seconds in options.seconds:
            for seed in options.seeds:
                for label, words in PARTS.items():
                    runs.append(named(options, "ours", world, seconds, seed, label, words=words))
                for label, changes in OF_THEIRS.items() if options.peer else ():
                    settings = asdict(PeerSettings(**{**tuned(options, world), **changes}))
                    runs.append(named(options, "theirs", world, seconds, seed, label, settings=settings))
    chosen = set(options.only or [run.label for run in runs])
    if unknown := chosen - {run.label for run in runs}:
        known = "; ".join(dict.fromkeys(run.label for run in runs))
        raise ValueError(f"--only has {min(unknown)!r}; the lines are: {known}")
    return [run for run in runs if run.label in chosen]


def tune(options: argparse.Namespace) -> list[dict]:
    """The best of `TUNING` in each world, kept in tune.json. Returns the results of all runs."""
    chosen, results = {}, []
    for world in options.worlds:
        best, best_share = {}, -1.0
        for line, ways in TUNING:
            for way in ways:
                settings = asdict(PeerSettings(**{**best, **way}))
                label = f"theirs {' '.join(f'{key} {value}' for key, value in settings.items() if value is not None)}"
                run = named(options, "theirs", world, options.seconds[0], 0, label, settings=settings)
                result = in_a_process(run, options.out / "runs" / run.name, options.peer)
                results.append(result | {"line": line})
                share = max(tried["parts"] for tried in result["tried"])  # of the captions that are not scored
                if share > best_share:
                    found, best_share = {**best, **way}, share
            best = found
        chosen[world] = best
        write_json(options.out / "tune.json", {"chosen": chosen, "runs": results})
    return results


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("race", "tune", "parts", "run", "count"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--peer", type=Path, default=None, help="where transfusion-pytorch is, if it is not installed")
    parser.add_argument("--worlds", nargs="+", choices=list(WORLDS), default=["dolls"])
    parser.add_argument("--seconds", nargs="+", type=float, default=[150.0, 300.0, 600.0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--only", nargs="+", default=None, help="parts: these lines of the table alone")
    parser.add_argument("--spec", default=None, help="run, count: what the others hand to a process of its own")
    options = parser.parse_args(arguments)
    if options.what == "run":
        do(Run(**json.loads(options.spec)), options.out)
        return 0
    if options.what == "count":
        print(parameters_of(Run(**json.loads(options.spec))))
        return 0
    try:
        if options.what != "parts" or options.peer:
            require_peer(options.peer)
        if options.what == "tune":
            write(options, tune(options))
            return 0
        runs, results = {"race": race, "parts": parts}[options.what](options), []
        if options.what == "race":
            check_planned(options, runs)
        for run in runs:
            results.append(in_a_process(run, options.out / "runs" / run.name, options.peer))
            write(options, results)
    except (ValueError, OSError) as error:
        print(f"bench_quality.py: {error}", file=sys.stderr)
        return 2
    return 0


# ---------------------------------------------------------------------------------------------------------- writing


def write(options: argparse.Namespace, results: list[dict]) -> None:
    """What there is so far, as JSON, a table and (race) a plot."""
    surroundings = {"versions": versions(), "hardware": hardware()}
    if options.what != "tune":
        write_json(options.out / f"{options.what}.json", surroundings | {"runs": results})
    lines = in_table(results)
    write_whole(options.out / f"{options.what}.md", "\n".join(lines) + "\n")
    print("\n".join(lines), flush=True)
    if options.what == "race":
        save(plotted(results), options.out / "race.png")


def pooled(results: list[dict], score: str) -> dict:
    """The tally over seeds, with its interval over captions, which are the same for all seeds, and the lowest and
    highest share of a seed."""
    tallies = [result["scores"][score] for result in results]
    right, n = sum(tally["right"] for tally in tallies), sum(tally["n"] for tally in tallies)
    shares = [tally["share"] for tally in tallies]
    captions = np.sum([tally["each"] for tally in tallies], axis=0)
    tally = with_interval({"right": right, "n": n, "share": right / n}, captions)
    return tally | {"least": min(shares), "most": max(shares)}


def grouped(results: list[dict]) -> dict[tuple, list[dict]]:
    """Runs that differ in the seed alone."""
    groups: dict[tuple, list[dict]] = {}
    for result in results:
        groups.setdefault((result["world"], result["label"], result["seconds"]), []).append(result)
    return groups


def worlds_of(results: list[dict]) -> list[str]:
    return list(dict.fromkeys(result["world"] for result in results))


def in_table(results: list[dict]) -> list[str]:
    """Markdown: parts and whole pictures with their intervals over all seeds, and the spread of seeds."""
    head = ["world", "what", "CPU s", "seeds", "parts", "whole", "seeds' parts", "steps", "compiling s",
            "parameters", "guidance"]  # fmt: skip
    lines = [f"- {world}: parts = {'; whole = '.join(WORLDS[world].titles)}" for world in worlds_of(results)]
    lines += ["", f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for (world, label, seconds), runs in grouped(results).items():
        of_parts, of_whole = pooled(runs, "parts"), pooled(runs, "whole")
        ranges = [
            f"{100 * tally['share']:.1f} % ({100 * tally['low']:.1f} to {100 * tally['high']:.1f})"
            for tally in (of_parts, of_whole)
        ]
        mean = {key: sum(run[key] for run in runs) / len(runs) for key in ("steps", "compiling", "parameters")}
        guidance = ", ".join(sorted({f"{run['chosen']['guidance']:g}" for run in runs}))
        cells = [world, label, f"{seconds:g}", str(len(runs)), *ranges]
        cells += [f"{100 * of_parts['least']:.1f} to {100 * of_parts['most']:.1f}", f"{mean['steps']:.0f}"]
        cells += [f"{mean['compiling']:.0f}", f"{mean['parameters'] / 1e6:.2f} M", guidance]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def plotted(results: list[dict]):
    """Parts and whole pictures over seconds, a row for each world."""
    from matplotlib.figure import Figure

    worlds = worlds_of(results)
    figure = Figure(figsize=(8, 3 * len(worlds)), layout="constrained")
    axes = figure.subplots(len(worlds), 2, squeeze=False)
    colours = {"hybridgen": "#2563a8", "transfusion-pytorch": "#b4541a"}
    for row, world in zip(axes, worlds, strict=True):
        for panel, score in zip(row, ("parts", "whole"), strict=True):
            for label, colour in colours.items():
                groups = {key[2]: runs for key, runs in grouped(results).items() if key[:2] == (world, label)}
                points = [(seconds, pooled(groups[seconds], score)) for seconds in sorted(groups)]
                at, middle = [seconds for seconds, _ in points], [100 * tally["share"] for _, tally in points]
                bars = [[100 * abs(tally["share"] - tally[end]) for _, tally in points] for end in ("low", "high")]
                panel.errorbar(at, middle, bars, color=colour, label=label, marker="o", capsize=3, linewidth=1.3)
            title = WORLDS[world].titles[score == "whole"]
            panel.set_title(f"{world}, held out: {title}", fontsize=10, loc="left")
            panel.set(xlabel="CPU seconds of training on one core", ylabel="%", ylim=(-2, 102))
            panel.grid(color="#dfe2e6", linewidth=0.6)
            panel.legend(fontsize=8, frameon=False)
    return figure


if __name__ == "__main__":
    sys.exit(main())
