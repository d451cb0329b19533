"""The command line: `hybridgen train | sample | replay | chat | ask | ...`.

It reads arguments, calls the library and says what came of it; nothing is computed here. The fact a newcomer gets
wrong: stdout carries results alone (paths written, an answer), because people pipe it. Progress, warnings and
whatever libraries print go to stderr. An error that the user can mend is one sentence there, with exit code 2; an
exception that nobody foresaw keeps its traceback.
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import diffusers
import transformers
from tqdm import tqdm

from hybridgen.bridges.adapters import merge, open_pipeline
from hybridgen.bridges.assemble import Shape, graft
from hybridgen.bridges.checkpoint import open_janus
from hybridgen.bridges.janus import check_conversion, convert
from hybridgen.bridges.report import in_table, lost
from hybridgen.checkpoints.loading import is_adapter, new_folder
from hybridgen.cli import demo
from hybridgen.cli.arguments import parser
from hybridgen.cli.arguments_drawing import OPTIONS, settings_given
from hybridgen.cli.chat import Piece, talk
from hybridgen.cli.data import inspect
from hybridgen.cli.errors import is_for_the_user, sentence
from hybridgen.cli.pictures import folder_to_write, open_picture
from hybridgen.cli.sample import again, sample
from hybridgen.evaluation import suites
from hybridgen.evaluation.generation import DrawSettings
from hybridgen.evaluation.scores import in_lines, save_scores
from hybridgen.pipeline_hybridgen import WRITING_PATHS, HybridGenPipeline
from hybridgen.sampling.settings import OF_PATH, check_belongs
from hybridgen.training.config.checks import load_config
from hybridgen.training.stages.model import train


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
        if not is_for_the_user(error):
            raise
        print(f"hybridgen: {sentence(error)}", file=sys.stderr)
        return 2


def _print_all(lines: Iterator[str], results) -> int:
    """Print what a command yields; returns the exit code that it returns, 0 where it says none."""
    while True:
        try:
            line = next(lines)
        except StopIteration as done:
            return done.value or 0
        print(line, file=results, flush=True, end="" if isinstance(line, Piece) else "\n")


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


def _ask(options: argparse.Namespace) -> Iterator[str]:
    image = open_picture(options.image)
    pipeline = demo.best_device(open_pipeline(options.checkpoint))
    yield from pipeline.answer(image, options.question, path=options.path, max_new_tokens=options.max_new_tokens)


def _evaluate(options: argparse.Namespace) -> Iterator[str]:
    suites.open_suite(options.suite)
    given, drawing = settings_given(options), _those_that_draw(options.paths) if options.draw is None else options.draw
    if drawing is not None:
        check_belongs(given, drawing, OPTIONS)
    out = folder_to_write(options.out)
    pipeline = demo.best_device(open_pipeline(options.checkpoint))
    check_belongs(given, [path for path in pipeline.model.config.paths if path in WRITING_PATHS], OPTIONS)
    with _progress() as report:
        scores = suites.evaluate(
            pipeline,
            options.suite,
            samples=options.samples,
            seed=options.seed,
            draw_paths=drawing,
            answer_paths=options.paths if options.answer is None else options.answer,
            settings={path: _draw_settings(given, pipeline, path) for path in WRITING_PATHS},
            report=report,
        ).scores
    scores["checkpoint"] = str(options.checkpoint)
    yield from in_lines(scores)
    yield str(save_scores(scores, out))


def _draw_settings(given: dict, pipeline: HybridGenPipeline, path: str) -> DrawSettings:
    known = pipeline.sampling_settings(path, **{name: value for name, value in given.items() if name in OF_PATH[path]})
    return DrawSettings(**{name: known[told] for name, told in DrawSettings.names(path).items()})


def _those_that_draw(paths: list[str] | None) -> list[str] | None:
    return None if paths is None else [path for path in paths if path in WRITING_PATHS]


def _demo(options: argparse.Namespace) -> Iterator[str]:
    out = options.out or Path("runs", "demo" if options.dataset == "dolls" else options.dataset)
    with _progress() as report:
        yield from demo.run(options.dataset, out, options.seed, options.samples, options.overrides, report)


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
    "sample": sample,
    "replay": again,
    "chat": talk,
    "ask": _ask,
    "evaluate": _evaluate,
    "demo": _demo,
    "convert": _convert,
    "data": inspect,
}


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
