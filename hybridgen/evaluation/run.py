"""`evaluate`: one suite on one pipeline; `evaluate_suites`: several, into a folder.

OUT/evaluation.json   what is evaluated, which another evaluation into the folder must not contradict (`folder`)
OUT/SUITE/...         what was drawn and answered so far (`work`)
OUT/scores.json       the scores, once all is done
"""

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from hybridgen.configuration_hybridgen import require_path
from hybridgen.core.names import WRITING_PATHS
from hybridgen.core.recognition import user_path
from hybridgen.data.synthetic import DATASETS
from hybridgen.evaluation import environment
from hybridgen.evaluation.folder import checkpoint_identity, known_as, open_folder, save_items
from hybridgen.evaluation.generation import DrawSettings
from hybridgen.evaluation.processes import Processes
from hybridgen.evaluation.result import Result
from hybridgen.evaluation.suites import OF_FILES, is_own, open_suite, options_by_suite
from hybridgen.evaluation.work import TaskProgress, Work
from hybridgen.pipeline_hybridgen import HybridGenPipeline


def evaluate(pipeline: HybridGenPipeline, suite: str, **how) -> Result:
    """One suite; arguments as of `evaluate_suites`. Its scores are `result.scores[task][path]["scores"][category]`."""
    return evaluate_suites(pipeline, [suite], **how)[suite]


def evaluate_suites(
    pipeline: HybridGenPipeline,
    suites: Sequence[str],
    samples: int | None = None,
    seed: int = 0,
    draw_paths: Sequence[str] | None = None,
    answer_paths: Sequence[str] | None = None,
    chat_paths: Sequence[str] = (),
    settings: dict[str, DrawSettings] | None = None,
    options: dict[str, Any] | None = None,
    out: str | Path | None = None,
    progress: TaskProgress = lambda what, done, of: None,
) -> dict[str, Result]:
    """
    1. Check all that can be checked before any long work, of all suites.
    2. Begin a folder, or go on with it.
    3. Run one suite after the other.

    Args:
        suites: names of `suites.SUITES`, or files of own data.
        samples: how many items of each; None = as many as is usual for the suite.
        seed: of the samples, and of the drawing (picture i is drawn with seed + i).
        draw_paths, answer_paths: None = every path of the model that can.
        chat_paths: by which conversations draw; none, unless they are named: only a model that was trained on
            conversations can hold them.
        settings: how to draw, by path; of a path that is not named, as the checkpoint draws.
        options: of the suites: {"KEY": value}, or {"SUITE:KEY": value} for one alone.
        out: folder to which finished pieces are written, so that the same call goes on after a stop; None = memory.

    Raises:
        ValueError: an unknown suite or option, a path that the model lacks or that cannot draw, more samples than there
            are, what a suite refuses, or a folder that holds another evaluation.
        OSError: the folder cannot be written to.
    """
    out, processes, settings = None if out is None else user_path(out).absolute(), Processes.running(), settings or {}
    if twice := [name for name in suites if sum(folder_name(name) == folder_name(other) for other in suites) > 1]:
        raise ValueError(f"two suites are called {folder_name(twice[0])!r}; evaluate them one after the other")
    draw_paths, answer_paths = _paths(tuple(pipeline.model.config.paths), draw_paths, answer_paths, chat_paths)
    shares = options_by_suite(suites, options or {})
    works = {
        name: Work(
            pipeline, name, draw_paths, answer_paths, list(chat_paths), samples, seed, settings, shares[name],
            None if out is None else out / folder_name(name), progress, processes,
        )
        for name in suites
    }  # fmt: skip
    modules = {name: open_suite(name) for name in suites}
    for name, module in modules.items():
        getattr(module, "check", lambda work: None)(works[name])
    if out is not None:
        paths = {"draw": draw_paths, "answer": answer_paths, "chat": list(chat_paths)}
        drawn = [path for path in WRITING_PATHS if path in (*draw_paths, *chat_paths)]
        settings = {path: works[suites[0]].settings_of(path).of_path(path) for path in drawn}
        known = identity(pipeline, suites, samples, seed, paths, settings, options or {})
        holding = {name: module for name, module in modules.items() if hasattr(module, "contents")}
        contents = {folder_name(name): module.contents(works[name]) for name, module in holding.items()}
        contents = {name: found for name, found in contents.items() if found}
        open_folder(out, known | ({"contents": contents} if contents else {}), processes)
    pipeline.set_progress_bar_config(disable=True)  # `progress` tells more
    return {name: _run(module, works[name]) for name, module in modules.items()}


def _run(module: ModuleType, work: Work) -> Result:
    result = module.run(work)
    if work.out is not None:
        error = None
        if work.processes.is_main:
            try:
                save_items(work.out, result.items)
            except OSError as raised:
                error = raised
        work.processes.agree(error)
    return result


def identity(
    pipeline: HybridGenPipeline,
    suites: Sequence[str],
    samples: int | None,
    seed: int,
    paths: dict[str, list[str]],
    settings: dict[str, dict],
    options: dict[str, Any],
) -> dict:
    """What the numbers of an evaluation depend on, as JSON."""
    return {
        "format": 1,
        "suites": [folder_name(name) for name in suites],
        "samples": samples,
        "seed": seed,
        "options": {name: _known(name, value) for name, value in options.items()},
        "files": {folder_name(name): known_as(name) for name in suites if is_own(name)},
        "paths": paths,
        "settings": settings,
        "checkpoint": checkpoint_identity(pipeline),
    }


def _known(option: str, value: Any) -> str:
    """The value of an option; of one that names files, what is in them."""
    is_of_files = option.rpartition(":")[2] in OF_FILES and value not in DATASETS  # `data` may name one of them, too
    return known_as(value) if is_of_files else str(value)


def folder_name(suite: str) -> str:
    """The folder of a suite: its name; of own data, the file's without its suffix."""
    return Path(suite).stem if suite.endswith(".jsonl") else Path(suite).name


def scores_of(results: dict[str, Result], seed: int, processes: int = 1) -> dict:
    """What `scores.json` holds of these results, that so many processes came to."""
    return {
        "suites": {folder_name(name): result.as_json() for name, result in results.items()},
        "seed": seed,
        "versions": environment.versions(),
        "hardware": environment.hardware(),
        "processes": processes,
    }


def _paths(
    of_model: tuple[str, ...], draw: Sequence[str] | None, answer: Sequence[str] | None, chat: Sequence[str]
) -> tuple[list[str], list[str]]:
    """The paths to draw by and to answer through, checked."""
    draw = [path for path in of_model if path in WRITING_PATHS] if draw is None else list(draw)
    answer = list(of_model) if answer is None else list(answer)
    for path in (*draw, *answer, *chat):
        require_path(of_model, path)
    for path in (*draw, *chat):
        if path not in WRITING_PATHS:
            raise ValueError(f"the {path} path reads and cannot draw; draw by {' or '.join(WRITING_PATHS)}")
    if not draw and not answer and not chat:
        raise ValueError("there is nothing to evaluate; name a path to draw by or to answer through")
    return draw, answer
