"""The command line: `hybridgen train | sample | replay | ask | evaluate | init | convert | merge | data | demo`.

It reads arguments, calls the library and says what came of it; nothing is computed here. The fact a newcomer gets
wrong: stdout carries results alone (paths written, an answer), because people pipe it. Progress, warnings and
whatever libraries print go to stderr. An error that the user can mend is one sentence there, with exit code 2; an
exception that nobody foresaw keeps its traceback.
"""

import argparse
import contextlib
import json
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import diffusers
import transformers
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tqdm import tqdm

from hybridgen import demo
from hybridgen.adapters import is_adapter, merge, open_pipeline
from hybridgen.arguments import parser
from hybridgen.bridges.checkpoint import open_janus
from hybridgen.bridges.grafting import Shape, graft
from hybridgen.bridges.janus import check_conversion, convert
from hybridgen.bridges.report import in_table, lost
from hybridgen.checkpoints import new_folder
from hybridgen.data_command import inspect
from hybridgen.evaluation import suites
from hybridgen.evaluation.generation import DrawSettings
from hybridgen.evaluation.scores import in_lines, save_scores
from hybridgen.manifest import KEY, manifest, origin, replay
from hybridgen.pipeline_hybridgen import WRITING_PATHS, HybridGenPipeline
from hybridgen.sampling.guidance import Guidance
from hybridgen.training.config import load_config
from hybridgen.training.stages import train
from hybridgen.version import __version__

_PACKAGE = Path(__file__).parent
_GUIDERS = {"apg": {"eta": 0.0, "momentum": -0.5}}  # the paper's: nothing along the prediction, against the last update


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 2 for what the user can mend, 130 after Ctrl-C."""
    try:
        options = parser().parse_args(arguments)
        for library in (transformers, diffusers):
            library.utils.logging.disable_progress_bar()  # they load in seconds, and fill the screen with bars
        run = _COMMANDS[options.command]
        results = sys.stdout
        with contextlib.redirect_stdout(sys.stderr):  # libraries print; results go to the real stdout
            return _print_all(run(options), results)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read our results went away, as `head` does
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (the interpreter flushes stdout once more at its end)
        return 0
    except (ValueError, OSError) as error:
        if not _is_for_the_user(error):
            raise
        print(f"hybridgen: {_sentence(error)}", file=sys.stderr)
        return 2


def _print_all(lines: Iterator[str], results) -> int:
    """Print what a command yields; returns the exit code that it returns, 0 where it says none."""
    while True:
        try:
            line = next(lines)
        except StopIteration as done:
            return done.value or 0
        print(line, file=results, flush=True)


def _is_for_the_user(error: Exception) -> bool:
    """Whether the user can mend it: a file that is missing or a disk that is full always, a ValueError if we raised it.

    A ValueError from inside another library is a fault of ours, and keeps its traceback.
    """
    if isinstance(error, OSError):
        return True
    return _PACKAGE in Path(traceback.extract_tb(error.__traceback__)[-1].filename).parents


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())


# ------------------------------------------------------------------------------------------------------ commands
# Each takes the options and yields the lines of its result.


def _init(options: argparse.Namespace) -> Iterator[str]:
    file = options.chat_template
    shape = Shape(
        image_size=options.image_size,
        patch_size=options.patch_size,
        unet_channels=options.unet_channels,
        prediction_type=options.prediction,
        understanding_bidirectional=options.bidirectional,
        chat_template=None if file is None else file.read_text(encoding="utf-8"),
        seed=options.seed,
    )
    with new_folder(options.folder) as aside:
        graft(
            options.paths,
            backbone=options.backbone,
            gguf_file=options.gguf_file,
            vision=options.vision,
            vae=options.vae,
            vq=options.vq,
            from_janus=options.from_janus,
            shape=shape,
        ).save_pretrained(aside)
    yield str(options.folder)


def _merge(options: argparse.Namespace) -> Iterator[str]:
    if not is_adapter(options.adapter):
        raise ValueError(f"{options.adapter} is no adapter; give the checkpoint/ of a run with lora")
    with new_folder(options.folder) as aside:
        merge(open_pipeline(options.adapter)).save_pretrained(aside)
    yield str(options.folder)


def _train(options: argparse.Namespace) -> Iterator[str]:
    yield str(train(load_config(options.config, options.overrides)))


def _sample(options: argparse.Namespace) -> Iterator[str]:
    out = _folder_to_write(options.out)
    guidance = _guidance(options)
    condition = {} if options.image is None else {"image": open_picture(options.image)}
    pipeline = demo.best_device(open_pipeline(options.checkpoint))
    drawn_by, path = origin(options.checkpoint), pipeline.writing_path(options.path)
    settings = pipeline.sampling_settings(
        path,
        num_inference_steps=options.steps,
        guidance_scale=options.guidance,
        guidance_rescale=options.guidance_rescale,
        image_guidance_scale=options.image_guidance,
        shift=options.shift,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        precision=options.precision,
        window=options.window,
    )
    if options.image is not None:
        condition["read"] = options.read or pipeline.model.config.paths[0]
    images = pipeline(
        options.prompt,
        path=path,
        seed=options.seed,
        negative_prompt=options.negative_prompt,
        num_images_per_prompt=options.num_images,
        height=_one_or_each(options.height),
        width=_one_or_each(options.width),
        guider=guidance,
        **condition,
        **settings,
    ).images
    for number, image in enumerate(images):
        prompt, seed = options.prompt[number // options.num_images], options.seed + number
        made = manifest(
            pipeline,
            drawn_by,
            path,
            prompt,
            seed,
            (image.height, image.width),
            settings,
            negative_prompt=options.negative_prompt,
            guidance=guidance,
            image=options.image,
            read=condition.get("read"),
        )
        yield str(save_png(image, out, f"{slug(prompt)}-{path}-seed{seed}", in_png(made)))


def _replay(options: argparse.Namespace) -> Iterator[str]:
    picture = open_picture(options.picture)
    out = None if options.out is None else _folder_to_write(options.out)
    again = replay(options.picture, picture, options.checkpoint)
    if out is not None:
        yield str(save_png(again.image, out, options.picture.stem, in_png(again.facts)))
    yield again.verdict
    return 0 if again.identical else 1


def _guidance(options: argparse.Namespace) -> Guidance | None:
    if options.guider is None and options.guidance_interval is None:
        return None
    method, (start, stop) = options.guider or "cfg", options.guidance_interval or (0.0, 1.0)
    return Guidance(method=method, start=start, stop=stop, **_GUIDERS.get(method, {}))


def _one_or_each(values: list[int] | None) -> int | list[int] | None:
    return values[0] if values is not None and len(values) == 1 else values


def _ask(options: argparse.Namespace) -> Iterator[str]:
    image = open_picture(options.image)
    pipeline = demo.best_device(open_pipeline(options.checkpoint))
    yield from pipeline.answer(image, options.question, path=options.path, max_new_tokens=options.max_new_tokens)


def _evaluate(options: argparse.Namespace) -> Iterator[str]:
    suites.open_suite(options.suite)
    out = _folder_to_write(options.out)
    pipeline = demo.best_device(open_pipeline(options.checkpoint))
    with _progress() as report:
        scores = suites.evaluate(
            pipeline,
            options.suite,
            samples=options.samples,
            seed=options.seed,
            draw_paths=_those_that_draw(options.paths) if options.draw is None else options.draw,
            answer_paths=options.paths if options.answer is None else options.answer,
            settings={path: _draw_settings(options, pipeline, path) for path in WRITING_PATHS},
            report=report,
        ).scores
    scores["checkpoint"] = str(options.checkpoint)
    yield from in_lines(scores)
    yield str(save_scores(scores, out))


def _draw_settings(options: argparse.Namespace, pipeline: HybridGenPipeline, path: str) -> DrawSettings:
    given = {"num_inference_steps": options.steps, "guidance_scale": options.guidance}
    given |= {"temperature": options.temperature, "top_k": options.top_k, "top_p": options.top_p}
    given |= {"precision": options.precision, "window": options.window}
    known = pipeline.sampling_settings(path, **given)
    named = {"steps": "num_inference_steps", "guidance": "guidance_scale"}
    names = {name: named.get(name, name) for name in DrawSettings().of_path(path)}
    return DrawSettings(**{name: known[told] for name, told in names.items()})


def _those_that_draw(paths: list[str] | None) -> list[str] | None:
    return None if paths is None else [path for path in paths if path in WRITING_PATHS]


def _demo(options: argparse.Namespace) -> Iterator[str]:
    out = options.out or Path("runs", "demo" if options.world == "dolls" else options.world)
    with _progress() as report:
        yield from demo.run(options.world, out, options.seed, options.samples, options.overrides, report)


def _convert(options: argparse.Namespace) -> Iterator[str]:
    if options.dry_run:
        janus = open_janus(options.source, options.style)
        yield from in_table(janus, options.to)
        check_conversion(janus, options.to)
        return
    if options.destination is None:
        raise ValueError("no folder to write to; name one after the source, or say --dry-run")
    janus = convert(options.source, options.destination, options.to, options.style, options.max_shard_size)
    for name in janus.dropped:
        print(f"left out: {name}", file=sys.stderr)
    for what in lost(janus, options.to):
        print(f"lost: {what}", file=sys.stderr)
    yield str(options.destination)


_COMMANDS = {
    "init": _init,
    "merge": _merge,
    "train": _train,
    "sample": _sample,
    "replay": _replay,
    "ask": _ask,
    "evaluate": _evaluate,
    "demo": _demo,
    "convert": _convert,
    "data": inspect,
}


# ------------------------------------------------------------------------------------------------------- pictures


def open_picture(file: Path) -> Image.Image:
    """A picture from disk, read whole. Raises ValueError naming the file when it is missing or no picture."""
    try:
        with Image.open(file) as image:
            image.load()
            return image
    except FileNotFoundError as error:
        raise ValueError(f"there is no image {file}") from error
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # what Pillow raises on broken files
        raise ValueError(f"{file} cannot be read as an image: {error}") from error


def in_png(made: dict) -> dict:
    """What a PNG says of itself: its manifest, and the most of it in plain words."""
    settings, named = made["settings"], {"num_inference_steps": "steps", "guidance_scale": "guidance"}
    shown = DrawSettings().of_path(made["path"]).keys() - {"precision", "window"}  # how fast, not what
    plain = {named.get(name, name): value for name, value in settings.items() if named.get(name, name) in shown}
    return {
        "prompt": made["prompt"],
        "negative prompt": made["negative_prompt"],
        "path": made["path"],
        "seed": made["seed"],
        **plain,
        "size": f"{made['width']}x{made['height']}",
        "checkpoint": made["checkpoint"],
        KEY: json.dumps(made),
    }


def slug(prompt: str) -> str:
    """A prompt as a file name: its first words, lower case."""
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:48].rstrip("-") or "picture"


def save_png(image: Image.Image, folder: Path, name: str, facts: dict) -> Path:
    """Write `name`.png with `facts` as its text, under another number where there is such a file; returns the path."""
    text = PngInfo()
    for key, value in {**facts, "hybridgen": __version__}.items():
        if value is not None:
            text.add_itxt(key, str(value))
    number = 1
    while True:
        file = folder / (f"{name}.png" if number == 1 else f"{name}-{number}.png")
        try:
            with open(file, "xb") as opened:  # x: never over another file, also when two commands run at once
                image.save(opened, "PNG", pnginfo=text)
            return file
        except FileExistsError:
            number += 1


def _folder_to_write(folder: Path) -> Path:
    """The folder, made if need be, before anything long begins. Raises ValueError when it cannot be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(f"{folder} cannot be a folder for results: a file is in its place") from error
    if not os.access(folder, os.W_OK):
        raise ValueError(f"{folder} cannot be written to; choose another --out")
    return folder


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """A function that shows "what, done of how many" as a bar on stderr."""
    bar: tqdm | None = None

    def report(what: str, done: int, of: int) -> None:
        nonlocal bar
        if bar is None or bar.desc != what:
            if bar is not None:
                bar.close()
            bar = tqdm(desc=what, total=of, file=sys.stderr, dynamic_ncols=True)
        bar.update(done - bar.n)

    try:
        yield report
    finally:
        if bar is not None:
            bar.close()
