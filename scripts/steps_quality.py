"""Steps against quality: `python scripts/steps_quality.py CHECKPOINT --out DIR [--steps 2 4 6 8 12 20] [--samples 48]`.

The same held-out captions from the same seeds, drawn by the diffusion path in fewer and fewer steps, scored by the
dataset's own scorer. Prints a table, with the seconds a picture took and the share of right ones in each category with
its 95 % interval; writes it as steps_quality.json with versions and hardware, and the first pictures side by side as
steps_quality.png. Several schedulers (class names of diffusers) make several tables.
"""

import argparse
import inspect
import itertools
import sys
from datetime import date
from pathlib import Path

import diffusers
from tqdm import tqdm

import hybridgen  # noqa: F401  first: it mends torchvision beside a CPU build of torch
from hybridgen.bridges.adapters import open_pipeline
from hybridgen.checkpoints.hashes import weights_hash
from hybridgen.cli.running import best_device
from hybridgen.core.figures import grid, save, side_by_side
from hybridgen.core.files import write_json
from hybridgen.data.synthetic import open_synthetic
from hybridgen.evaluation import environment, generation
from hybridgen.evaluation.generation import DrawSettings
from hybridgen.evaluation.suites import open_suite
from hybridgen.evaluation.work import Work
from hybridgen.pipeline_hybridgen import HybridGenPipeline
from hybridgen.sampling.denoise import check_schedule_draws, prepare

SHOWN = 6  # pictures of each number of steps on the sheet


def set_scheduler(pipeline: HybridGenPipeline, name: str | None, steps: list[int], shift: float | None) -> None:
    """A scheduler of diffusers by the name of its class, refused before anything is drawn if it does not fit."""
    config = pipeline.model.config.diffusion_config
    if name is not None:
        if not hasattr(diffusers, name):
            raise ValueError(f"diffusers has no scheduler {name!r}")
        scheduler = getattr(diffusers, name)
        parameters = inspect.signature(scheduler.__init__).parameters
        flow = config.noise_schedule == "flow" and "use_flow_sigmas" in parameters
        options = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"} if flow else {}
        pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config, **options)
    for count in steps:
        check_schedule_draws(prepare(pipeline.scheduler, count, config, shift=shift), config.prediction_type)


def measure(pipeline: HybridGenPipeline, options: argparse.Namespace, steps: int) -> tuple[dict, list]:
    """One line of the table, and its pictures."""
    dataset = open_synthetic(options.suite)
    prompts = generation.held_out_prompts(dataset, open_suite(options.suite).SPLIT, options.samples, options.seed)
    asked = {"num_inference_steps": steps, "guidance_scale": options.guidance}
    settings = {"diffusion": DrawSettings.of("diffusion", pipeline.sampling_settings("diffusion", **asked))}
    work = Work(pipeline, options.suite, seed=options.seed, settings=settings)
    images = list(work.draw("diffusion", prompts.captions, size=dataset.SIZE))
    line = {
        "scheduler": type(pipeline.scheduler).__name__,
        "steps": steps,
        "evaluations": len(prepare(pipeline.scheduler, steps, pipeline.model.config.diffusion_config)),
        "seconds_per_picture": round(work.seconds() / len(images), 4),
        "scores": generation.score(dataset, images, prompts.specs),
    }
    return line, list(zip(prompts.captions, images, strict=True))[:SHOWN]


def short_names(names: list[str | None]) -> dict[str | None, str]:
    """Names of schedulers for headings over small pictures: as few letters, but at least 9, as tell them apart."""
    given = {name for name in names if name is not None}
    letters = next(count for count in itertools.count(9) if len({name[:count] for name in given}) == len(given))
    return {name: "" if name is None else name[:letters] for name in names}


def in_table(lines: list[dict]) -> list[str]:
    names = list(lines[0]["scores"])
    rows = [["scheduler", "steps", "s/picture", *names]]
    for line in lines:
        shares = [f"{100 * line['scores'][name]['share']:.1f}" for name in names]
        rows.append([line["scheduler"], str(line["steps"]), f"{line['seconds_per_picture']:.3f}", *shares])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--suite", default="dolls")
    parser.add_argument("--samples", type=int, default=48)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, nargs="+", default=[2, 4, 6, 8, 12, 20])
    parser.add_argument("--guidance", type=float, help="default: as the checkpoint says")
    parser.add_argument("--schedulers", nargs="+", default=[None], metavar="CLASS", help="default: the checkpoint's")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    lines, drawn, captions, names = [], {}, [], short_names(options.schedulers)
    try:
        pipeline = best_device(open_pipeline(options.checkpoint))
        pipeline.set_progress_bar_config(disable=True)
        if options.guidance is None:
            options.guidance = pipeline.sampling_settings("diffusion")["guidance_scale"]
        for name in options.schedulers:
            set_scheduler(pipeline, name, options.steps, pipeline.sampling_settings("diffusion")["shift"])
            for steps in tqdm(options.steps, desc=type(pipeline.scheduler).__name__):
                line, shown = measure(pipeline, options, steps)
                lines.append(line)
                captions = [caption for caption, _ in shown]
                heading = f"{steps} steps" if name is None else f"{names[name]} {steps}"
                drawn[heading] = [image for _, image in shown]
    except ValueError as error:
        print(f"steps_quality: {error}", file=sys.stderr)
        return 2
    result = {
        "suite": options.suite, "samples": options.samples, "seed": options.seed, "guidance": options.guidance,
        "checkpoint": str(options.checkpoint), "weights": weights_hash(options.checkpoint),
        "command": environment.command(), "date": date.today().isoformat(), "versions": environment.versions(),
        "hardware": environment.hardware(), "lines": lines,
    }  # fmt: skip
    write_json(options.out / "steps_quality.json", result, indent=2)
    save(grid(side_by_side(captions, drawn), columns=1), options.out / "steps_quality.png")
    print("\n".join(in_table(lines)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
