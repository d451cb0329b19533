"""`hybridgen new`: from a folder of captioned pictures to a config that `hybridgen train` runs as it is.

`data.look` looks at the data, `training.planning.proposal` chooses and `fitting` makes it fit. Here the start is found,
the choices are put into words, and the file is written: last of all, and whole.
"""

import argparse
import json
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jinja2

from hybridgen.bridges.families import convert, find_family
from hybridgen.core.files import write_whole
from hybridgen.core.recognition import (
    INDEX,
    SMALL,
    check_files,
    checkpoint_path,
    is_there,
    require_checkpoint,
    require_folder,
)
from hybridgen.core.utf8 import check_text
from hybridgen.core.values import one_line
from hybridgen.data.inspection import SourceReport
from hybridgen.data.look import DataLook, found, look_at
from hybridgen.evaluation import environment
from hybridgen.training.config import strict
from hybridgen.training.config.checks import load_config
from hybridgen.training.config.parts import hybrid_config
from hybridgen.training.config.schema import ModelConfig
from hybridgen.training.monitor.tracking import say
from hybridgen.training.planning.fitting import HOURS, Proposal, fitted
from hybridgen.training.planning.proposal import Start, device_of, machines_of
from hybridgen.training.planning.report import Machines, amount

STOPPED = "nothing was written"  # after Ctrl-C
CONFIG, RUN, START = "config.yaml", "run", "start"
MADE_BY = "# made by    "
_ASSETS = Path(__file__).parent / "assets"
ABOUT = {  # what stands behind keys of the model
    "tokenizer": "trained on the captions",
    "text_config": "a wider or deeper model learns more and takes longer",
    "diffusion_config": "sample_size: pixels along a side of a picture; patch_size: along a side of a token",
    "embedding_std": "words begin apart from each other",
    "initializer_range": "of heads: 1 / sqrt(width)",
    "from_pretrained": "what the run goes on from",
}


def run(options: argparse.Namespace) -> Iterator[str]:
    """
    1. Look at what DIR holds, at the data, and at what to start from.
    2. Choose, and make it fit.
    3. Write the config. Yields what was found and chosen, a line each, and the command to go on with.
    """
    file = options.folder / CONFIG
    command = command_of(options)
    _check_apart(options.folder, options.data)
    machines = machines_of(options.gpus, options.memory)
    train = _train_of(file, machines.gpus)
    if is_made_already(file, command):
        yield f"{file} is there already, made by the same command; train it: {train}"
        return
    say(f"looking at {options.data}")
    look = look_at(options.data)
    check_text(look.source, "the path of the data")
    with _removed_on_failure(options.folder):
        start = find_start(options.start, options.folder)
        say("choosing what fits; a few steps are tried")
        proposal = fitted(look, start, machines, options.folder.absolute() / RUN)
        words = describe(proposal, look, start, machines)
        text = render(proposal.content, words, look, file=shlex.quote(str(file)), train=train, command=command)
        write_whole(file, text)
        load_config(file)
    for name in ("data", "model", "time", "memory"):
        yield f"{name}: {words[name]}"
    yield f"written: {file}"
    yield f"train it: {train}"


def _check_apart(folder: Path, data: str) -> None:
    """Raises ValueError where the run would lie in the folder of the data, and its pictures be taken for some."""
    source = Path(found(data))
    if source.is_dir() and folder.absolute().resolve().is_relative_to(source.resolve()):
        raise ValueError(f"{folder} is in the folder of the data, {data}; choose a DIR beside it")


def command_of(options: argparse.Namespace) -> str:
    """The command by what decides its result: two that agree in it are the same."""
    words = ["hybridgen", "new", str(options.folder.absolute()), "--data", found(options.data)]
    for name, value in (("--from", options.start), ("--gpus", options.gpus), ("--memory", options.memory)):
        words += [] if value is None else [name, str(value)]
    return one_line(shlex.join(words))


def is_made_already(file: Path, command: str) -> bool:
    """Whether the folder holds the config that this command makes.

    Raises:
        ValueError: it holds something else.
    """
    folder = file.parent
    if not is_there(folder) or not any(folder.iterdir()):
        return False
    if not file.is_file():
        raise ValueError(f"{folder} is not empty and has no {CONFIG} of `hybridgen new`; choose another DIR")
    made_by = [line for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if MADE_BY in line]
    if made_by[:1] == [f"{MADE_BY}{command}"]:
        return True
    raise ValueError(
        f"{file} is there already, made by another command"
        + (f" ({made_by[0].removeprefix(MADE_BY)})" if made_by else "")
        + "; train it as it is, choose another DIR, or delete it"
    )


@contextmanager
def _removed_on_failure(folder: Path) -> Iterator[None]:
    """Inside, what is written to the folder is gone again where something fails."""
    was_there = is_there(folder)
    try:
        yield
    except BaseException:
        if not was_there:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            shutil.rmtree(folder / START, ignore_errors=True)
            (folder / CONFIG).unlink(missing_ok=True)
        raise


# ---------------------------------------------------------------------------------------------------------- the start


def find_start(named: str | None, folder: Path) -> Start:
    """What `--from` names; another model's is converted into the folder.

    Raises:
        ValueError: it is nothing to start from.
    """
    if named is None:
        named = SMALL if checkpoint_path(SMALL).is_dir() else "none"
    if named == "none":
        return Start(None, named)
    checkpoint = checkpoint_path(named)
    if named == SMALL and not checkpoint.is_dir():
        raise ValueError(f"{SMALL} is not in this installation; give the folder of a checkpoint, or --from none")
    otherwise = f"give the folder of a checkpoint, that of a Janus or a Chameleon, {SMALL}, or none"
    require_folder("--from", checkpoint, otherwise)
    if (checkpoint / INDEX).is_file() or not (checkpoint / "config.json").is_file():
        require_checkpoint(checkpoint, otherwise)
        if not (checkpoint / INDEX).is_file():
            raise ValueError(f"--from {named} is an adapter; merge it first (`hybridgen merge {named} DIR`)")
        check_files(checkpoint / "model")
        return Start(checkpoint.absolute(), named)
    say(f"converting {named} ({find_family(checkpoint, 'hybridgen').name}) into {folder / START}")
    convert(checkpoint, folder / START)
    return Start((folder / START).absolute(), named)


# ----------------------------------------------------------------------------------------------------------- in words


def describe(proposal: Proposal, look: DataLook, start: Start, machines: Machines) -> dict[str, str]:
    """What was found and chosen, a sentence each, by what it is about."""
    content = proposal.content
    hybrid = hybrid_config(strict.build(ModelConfig, content["model"]))
    data, longest = content["data"], HOURS[device_of(machines)]
    met = f"each record is met about {proposal.met:,.0f} times"
    if proposal.shorter:
        met += f", as the first run is to take no more than {longest:g} hours; more steps make it better"
    seconds = f"{content['steps']:,} steps of {proposal.step_seconds:.3g} s, {proposal.basis}"
    processes = f"{machines.gpus} GPUs" if machines.gpus > 1 else "one GPU" if machines.gpus else "this machine's CPU"
    held_out = "no record is held out"
    if look.held_out:
        held_out = f"the folder {look.held_out} validates"
    elif content["validation"]["sources"]:
        first = content["validation"]["sources"][0]["part"][0]
        held_out = f"{round((1 - first) * look.records):,} of them are held out to validate"
    described = len(data["sources"]) > 1
    return {
        "title": f"Learns to {_learnt(look, described)}: {look.records:,} records of {look.source}",
        "data": f"{look.records:,} records, {_records(look.report)}; {held_out}",
        "model": _model(proposal, start, hybrid),
        "time": f"about {roughly(proposal.seconds)} on {processes} ({seconds})",
        "memory": f"{amount(proposal.peak)} of {amount(proposal.memory)} on {processes}",
        "hardware": f"{processes}{'' if machines.gpus else ': ' + environment.describe(environment.hardware())}",
        "steps": met,
        "adapter": "they are many, and an adapter fits and keeps what the model knows",
        "row": "the longest document fits",
        "batch": "more are steadier and take more memory",
        "sources": "Pictures are drawn from captions; captions are written from pictures" if described else "",
    }


def roughly(seconds: float) -> str:
    """A time as one says it before a run."""
    for unit, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.0f} {name}" if seconds >= 10 * unit else f"{seconds / unit:.1f} {name}"
    return f"{seconds:.0f} seconds"


def _learnt(look: DataLook, described: bool) -> str:
    if not look.kinds["draw"]:
        return "answer questions about pictures"
    return "draw pictures from captions, and to describe them" if described else "draw pictures, and to answer"


def _records(report: SourceReport) -> str:
    """Sizes, words, and what is broken, of the records that were read."""
    sides = [side for size in report.sizes for side in size]
    sizes = f"pictures of {min(sides)} to {max(sides)} pixels a side" if len(set(sides)) > 1 else (
        f"pictures of {sides[0]} pixels a side"
    )  # fmt: skip
    words = f"texts of {min(report.words)} to {max(report.words)} words"
    repeated = f", {report.repeated:,} are there twice" if report.repeated else ""
    broken = f", {len(report.bad_records):,} are broken ({report.bad_records[0]})" if report.bad_records else ""
    read = "" if report.read == report.records else f" (of the first {report.read:,})"
    return f"{sizes}, {words}{read}{repeated}{broken}"


def _model(proposal: Proposal, start: Start, hybrid) -> str:
    text, diffusion = hybrid.text_config, hybrid.diffusion_config
    size = f"{proposal.parameters / 1e6:,.1f} M parameters, {text.num_hidden_layers} layers of width {text.hidden_size}"
    if start.folder is not None:
        drawn = ""
        if diffusion is not None and diffusion.in_channels == 3:
            drawn = f"; pictures of {diffusion.sample_size}x{diffusion.sample_size} pixels"
        return f"{start.named} ({size}; paths {', '.join(hybrid.paths)}{drawn})"
    side, patch = diffusion.sample_size, diffusion.patch_size
    return (
        f"from random weights: {size}; pictures of {side}x{side} pixels, {(side // patch) ** 2} tokens of "
        f"{patch}x{patch} pixels each"
    )


def _train_of(file: Path, gpus: int) -> str:
    launcher = f"accelerate launch --num_processes {gpus} -m " if gpus > 1 else ""
    return f"{launcher}hybridgen train {shlex.quote(str(file))}"


def render(content: dict, words: dict[str, str], look: DataLook, **names: str) -> str:
    """The file: YAML with a reason beside each choice."""
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_ASSETS), undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True, autoescape=False,
    )  # fmt: skip
    templates.filters["json"] = lambda value: json.dumps(value, ensure_ascii=False)
    why = {name: one_line(text) for name, text in words.items()}
    template = templates.get_template("new.yaml.jinja")
    return template.render(c=content, why=why, about=ABOUT, records=look.records, out=content["output_dir"], **names)
