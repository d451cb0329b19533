"""`hybridgen demo`: from nothing to a report in one process. Trains a codec, trains a model, scores both tasks.

It only puts the parts of the library one after another; settings are in `configs/`. Running it again never starts
over: a stage that is complete is skipped, one that was interrupted goes on from its last saved state, and a folder that
holds something else is refused.

    OUT/demo.json   the demo's settings     OUT/codec/   the VQ tokenizer's run     OUT/checkpoint/   the pipeline
    OUT/first.png   what the model that comes with hybridgen draws and answers, before anything is trained
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from hybridgen.cli import demo_first, demo_report
from hybridgen.cli.running import best_device
from hybridgen.core.files import read_json, write_json
from hybridgen.core.progress import task_line
from hybridgen.evaluation.generation import DrawSettings, denoising_frames
from hybridgen.evaluation.result import Result
from hybridgen.evaluation.run import evaluate, scores_of
from hybridgen.evaluation.scores import load_scores
from hybridgen.evaluation.work import TaskProgress
from hybridgen.pipeline_hybridgen import HybridGenPipeline, load_pipeline
from hybridgen.training.config.checks import load_config
from hybridgen.training.config.renamed import with_new_names
from hybridgen.training.config.schema import CodecPaths, TrainConfig
from hybridgen.training.monitor.tracking import say
from hybridgen.training.run import train
from hybridgen.training.stages.building import build_parts
from hybridgen.training.stages.vq import build_vq_model
from hybridgen.training.state.saving import with_defaults

STOPPED = "the same command goes on from what was saved last"  # after Ctrl-C
DATASET = "dolls"  # what it trains on, and the suite that scores it
CONFIGS = {"codec": "demo_codec.yaml", "model": "demo.yaml"}
# keys that may differ when a demo is continued
_NOT_COMPARED = ("output_dir", "codec", "resume", "threads", "wandb", "trackers")


def run(options: argparse.Namespace) -> Iterator[str]:
    """Yields the paths of what a person wants to open."""
    with task_line() as progress:
        yield from run_demo(options.out, options.seed, options.samples, options.overrides, progress)


@dataclass
class DemoPlan:
    """Everything that is decided before the first step.

    Args:
        samples: pictures to draw and to ask about by each path.
        codec, model: configs of the two trainings.
        settings: how each path draws when it is scored.
        draw_paths, answer_paths, chat_paths: what the model is trained for.
    """

    out: Path
    seed: int
    samples: int
    codec: TrainConfig
    model: TrainConfig
    settings: dict[str, DrawSettings]
    draw_paths: list[str]
    answer_paths: list[str]
    chat_paths: list[str]


def run_demo(out: Path, seed: int, samples: int, overrides: list[str], progress: TaskProgress) -> Iterator[str]:
    """
    1. Check every setting of both trainings, and what the folder holds.
    2. Show what the model that comes with hybridgen draws and answers.
    3. Train the codec, then the model; what is complete is not trained again.
    4. Draw and answer what is held out, and score it.
    5. Write scores, pictures and the report. Yields the paths of what a person wants to open.

    Raises:
        ValueError: a setting is wrong, or the folder holds something else.
    """
    plan = make_plan(Path(out), seed, samples, overrides)
    seconds = _open_folder(plan)
    page = plan.out / demo_report.PAGE
    if _is_finished(plan, page):
        say(f"{plan.out} is finished; delete its scores.json to score again, or all of it to train again")
        yield str(page)
        return
    if not (plan.out / demo_first.SHEET).is_file():
        yield from demo_first.show(plan.out)
    for name, config in (("codec", plan.codec), ("model", plan.model)):
        if (Path(config.output_dir) / "checkpoint").is_dir():
            say(f"the {name} is trained already")
            continue
        say(f"training the {name} into {config.output_dir}")
        _train(plan, config, name, seconds)
    pipeline = best_device(load_pipeline(plan.out / "checkpoint"))
    result, scores = _evaluate(plan, pipeline, seconds, progress)
    frames = {
        path: denoising_frames(pipeline, items[0].prompt, path, result.facts["size"], seed, plan.settings[path])
        for path, items in result.items.get("generation", {}).items()
    }
    yield from demo_report.write(plan.out, result, scores, frames)


def _evaluate(
    plan: DemoPlan, pipeline: HybridGenPipeline, seconds: dict[str, float], progress: TaskProgress
) -> tuple[Result, dict]:
    """Scores, with the seconds of each stage, the sizes of the models and the targets beside them."""
    started = time.perf_counter()
    result = evaluate(
        pipeline,
        DATASET,
        samples=plan.samples,
        seed=plan.seed,
        draw_paths=plan.draw_paths,
        answer_paths=plan.answer_paths,
        chat_paths=plan.chat_paths,
        settings=plan.settings,
        progress=progress,
    )
    parts = {"model": pipeline.model, "VQ tokenizer": pipeline.vq_model}
    return result, scores_of({DATASET: result}, plan.seed) | {
        "seconds": {**seconds, "evaluation": time.perf_counter() - started},
        "parameters": {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()},
        "targets": [asdict(target) for target in demo_report.TARGETS],
    }


def make_plan(out: Path, seed: int, samples: int, overrides: list[str]) -> DemoPlan:
    """Both configs, checked in full.

    The codec that the model will use is not trained yet, so an untrained codec of the same shape is saved to a
    temporary folder for the checks.

    Raises:
        ValueError: one sentence about what is wrong.
    """
    codec_file, model_file = (config_file(name) for name in CONFIGS.values())
    for_codec = [word.removeprefix("codec:") for word in overrides if word.startswith("codec:")]
    for_model = [word for word in overrides if not word.startswith("codec:")]
    codec = load_config(codec_file, [f"seed={seed}", f"output_dir={_quoted(out / 'codec')}", *for_codec])
    with tempfile.TemporaryDirectory() as stand_in:
        build_vq_model(codec.vq_model, seed).save_pretrained(stand_in)
        folders = [f"output_dir={_quoted(out)}", f"codec.vq={_quoted(stand_in)}"]
        model = load_config(model_file, [f"seed={seed}", *folders, *for_model])
    model = replace(model, codec=CodecPaths(vq=str(out / "codec" / "checkpoint" / "vq_model")))
    settings = {path: DrawSettings.of(path, model.sampling.of_path(path)) for path in ("diffusion", "vq")}
    draw = [source.write for source in model.data.sources if source.task == "draw" and source.write]
    answer = [source.read for source in model.data.sources if source.task == "answer"]
    chat = [source.write for source in model.data.sources if source.task == "chat" and source.write]
    paths = map(_unique, (draw, answer, chat))
    return DemoPlan(out, seed, samples, codec, model, settings, *paths)


def _unique(paths: list[str]) -> list[str]:
    return list(dict.fromkeys(paths))


def config_file(name: str) -> Path:
    """A config that comes with hybridgen. In an installed package, `configs/` lies inside it."""
    package = Path(__file__).parents[1]
    for folder in (package / "configs", package.parent / "configs"):
        if (folder / name).is_file():
            return folder / name
    raise ValueError(f"{name} is not among the configs of this installation; install hybridgen again")


def save_untrained_pipeline(folder: Path, seed: int = 0) -> Path:
    """The pipeline that the demo starts from, random weights throughout, saved in a folder: to try code on, in seconds.

    Returns:
        the folder of the checkpoint.
    """
    plan = make_plan(Path(folder), seed, 1, [])
    build_vq_model(plan.codec.vq_model, seed).save_pretrained(plan.model.codec.vq)
    build_parts(plan.model).pipeline.save_pretrained(plan.out / "checkpoint")
    return plan.out / "checkpoint"


def _quoted(path: Path | str) -> str:
    return json.dumps(str(path))  # overrides are YAML, where `runs/1: a` is a mapping and `1` a number


# ---------------------------------------------------------------------------------------- the folder of the demo


def _open_folder(plan: DemoPlan) -> dict[str, float]:
    """The seconds that each stage took so far. A new folder gets its `demo.json`.

    Raises:
        ValueError: it holds a run with other settings, or something else.
    """
    file = plan.out / "demo.json"
    settings = {"dataset": DATASET, "seed": plan.seed, "codec": asdict(plan.codec), "model": asdict(plan.model)}
    settings = json.loads(json.dumps(settings))  # as they are saved, where a tuple is a list
    if file.is_file():
        saved = read_json(file)
        for key, then, now in _differences(_with_new_names(saved["settings"]), _with_new_names(settings)):
            raise ValueError(
                f"{plan.out} holds a demo with {key} {then!r}, not {now!r}; give the same settings to go on with it, "
                "another --out to start a second one, or delete it"
            )
        return saved["seconds"]
    if plan.out.exists() and (not plan.out.is_dir() or any(plan.out.iterdir())):
        raise ValueError(f"{plan.out} holds something that the demo did not write; choose another --out")
    write_json(file, {"settings": settings, "seconds": {}})
    return {}


def _with_new_names(settings: dict) -> dict:
    """Settings of a `demo.json` as keys are called now, and all of them: an older one says `world`, and its configs are
    older than some of their settings."""
    renamed = {"dataset" if key == "world" else key: value for key, value in settings.items()}
    return renamed | {config: with_defaults(with_new_names(renamed[config])) for config in ("codec", "model")}


def _differences(then: dict, now: dict, parent: str = "") -> Iterator[tuple[str, object, object]]:
    """Every key whose values differ, with both."""
    for key in sorted(set(then) | set(now)):
        if parent in ("codec.", "model.") and key in _NOT_COMPARED:
            continue
        old, new = then.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(old, new, f"{parent}{key}.")
        elif old != new:
            yield f"{parent}{key}", old, new


def _train(plan: DemoPlan, config: TrainConfig, name: str, seconds: dict[str, float]) -> None:
    """Train, and record how long it took, also where it is stopped or fails."""
    started = time.perf_counter()
    try:
        train(config)
    finally:
        taken = seconds.get(name, 0.0) + time.perf_counter() - started
        seconds[name] = max(taken, _logged_seconds(config))
        file = plan.out / "demo.json"
        write_json(file, {**read_json(file), "seconds": seconds})


def _logged_seconds(config: TrainConfig) -> float:
    """What the run itself logged, which counts processes that were killed before they could write `demo.json`."""
    file = Path(config.output_dir) / "metrics.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return max((json.loads(line).get("seconds", 0.0) for line in lines), default=0.0)


def _is_finished(plan: DemoPlan, page: Path) -> bool:
    scores = plan.out / "scores.json"
    if not page.is_file() or not scores.is_file():
        return False
    return load_scores(scores)["suites"][DATASET]["samples"] == plan.samples
