"""Every fenced block of the README, of CONTRIBUTING and of docs/ is run, page by page, in a folder where `make demo`
might have ended.

    python   in one process a page, one block after another, names kept
    sh       each line: `hybridgen` in this process; of make, pip and scripts that train long, all but the work itself
    yaml     a config by the config's reader; a part of one beside the least that a config needs; sources are opened.
             One that begins with `# NAME.yaml` is then there for the commands
    json     records by the checker of records, rows by the form that they have
    text     drawings and trees: nothing to run, and no command among them

What is run is smaller than what is printed only by `SMALLER`. A block after `<!-- not run: REASON -->` is left out, one
after `<!-- needs: MODULE -->` where that module is not installed; both are counted.
"""

import ast
import io
import json
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
import urllib.request
from argparse import Namespace
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser

import tests.web  # noqa: F401
from hybridgen.cli import main as cli
from hybridgen.cli.arguments.parser import parse
from hybridgen.data.formats.rows import record_of
from hybridgen.data.records import check_record
from hybridgen.data.source_config import SourceConfig
from hybridgen.data.sources import open_source
from hybridgen.pipeline_hybridgen import load_pipeline
from hybridgen.sampling.settings import check_defaults
from hybridgen.studies.scaling import read_ladder
from hybridgen.studies.study_config import read_study
from hybridgen.training import load_config
from hybridgen.training.config import strict
from hybridgen.training.config.schema import TrainConfig
from tests import docs_place
from tests.app.conftest import paged
from tests.serving.conftest import served

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
LANGUAGES = ("python", "sh", "yaml", "json", "text")
SERVED_AT = "127.0.0.1:8000"
SERVERS, ADDRESSES = ExitStack(), []  # of `hybridgen serve` on the page that is run
NOT_RUN = 2  # blocks, at most, that are marked so
FENCE = re.compile(r"(?:^<!-- (not run|needs): ([^\n]+) -->\n)?^```(\S*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)

TRAINING = ["steps=2", "compile=false", "threads=1", "precision=fp32", "data.per_device_batch_size=1", "log_every=1"]
TRAINING += ["schedule.warmup_steps=0", "data.prefetch=0"]
WIDTHS = ["num_hidden_layers=2", "hidden_size=32", "intermediate_size=64", "num_attention_heads=4"]
WIDTHS = [f"model.text_config.{word}" for word in [*WIDTHS, "num_key_value_heads=4", "head_dim=8"]]
SMALLER = {  # what a command is about -> what is put behind it
    "configs/demo.yaml": TRAINING,
    "configs/vae_emoji.yaml": [*TRAINING, "max_seconds=null", "validation.every=0", "vae.measured_pictures=4"],
    "configs/transfusion_0.16b.yaml": [
        *TRAINING, *WIDTHS, "accumulation=1", "model.tokenizer.vocab_size=320", "model.tokenizer.samples=4",
        "model.diffusion_config.sample_size=4", "data.sequence_length=256",
    ],
    "configs/janus_pro_1b_lora.yaml": [*TRAINING, "accumulation=1", "data.sequence_length=256"],
    "configs/easy_vqa.yaml": [*TRAINING, *WIDTHS, "model.tokenizer.samples=4"],
    "my_run.yaml": [*TRAINING, *WIDTHS, "model.tokenizer.samples=4", "validation.every=0"],
    "mine/config.yaml": [*TRAINING, "sampling.steps=2"],
    "my_lora.yaml": [*TRAINING],
    "go_on.yaml": [*TRAINING],
    "evaluate": ["--samples", "2"],
    "scripts/steps_quality.py": ["--steps", "2", "3", "--samples", "2"],
}  # fmt: skip


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    language: str
    text: str
    mark: str | None = None
    reason: str | None = None

    @property
    def where(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = [
        Block(page, text[: fence.start(4)].count("\n") + 1, fence[3], fence[4], fence[1], fence[2])
        for fence in FENCE.finditer(text)
    ]
    assert 2 * len(found) == len(re.findall(r"^```", text, re.MULTILINE)), f"{page.name}: a fence does not close"
    return found


BLOCKS = {page: blocks_of(page) for page in PAGES}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return docs_place.make(tmp_path_factory.mktemp("docs"))


# ------------------------------------------------------------------------------------------------------- the test


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_runs(page, place, tmp_path, monkeypatch):
    monkeypatch.chdir(docs_place.copy(place, tmp_path / "here"))
    names: dict = {"__name__": "__main__"}
    with SERVERS:
        for block in BLOCKS[page]:
            if block.mark == "not run" or (block.mark == "needs" and find_spec(block.reason) is None):
                continue
            run(block, names, monkeypatch)


def run(block: Block, names: dict, monkeypatch) -> None:
    try:
        if block.language == "python":
            run_python(block, names)
        elif block.language == "sh":
            for line in commands(block):
                run_command(line, monkeypatch)
        elif block.language == "yaml":
            read_yaml(block)
        elif block.language == "json":
            read_json(block)
    except (Exception, SystemExit) as error:
        raise AssertionError(f"{block.where}: {type(error).__name__}: {error}") from error


@pytest.mark.parametrize(
    ("language", "text", "message"),
    [
        ("python", "nobody", "name 'nobody' is not defined"),
        ("sh", "hybridgen sample --world here", "SystemExit: 2"),
        ("sh", "hybridgen train configs/new.yaml", "trains at full size"),
        ("sh", "make cake", "no target cake"),
        ("sh", 'pip install -e ".[cake]"', "no extra cake"),
        ("sh", "scripts/graft_smollm.sh cake", "no step cake"),
        ("sh", "curl cake", "nobody knows how to run 'curl'"),
        ("yaml", "- {source: cake.jsonl}", "cake.jsonl"),
        ("yaml", "data: {rows: 8, sources: []}", "per_device_batch_size"),
        ("yaml", "output_dir: cake", "missing key"),
        ("json", '{"messages": [{"role": "cook", "content": "cake"}]}', "role 'cook'"),
        ("json", '{"cake": 1}', "none of the forms"),
    ],
)
def test_a_wrong_block_fails(language, text, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("configs", "scripts"):
        (tmp_path / name).mkdir()
    (tmp_path / "scripts" / "graft_smollm.sh").symlink_to(ROOT / "scripts" / "graft_smollm.sh")
    with pytest.raises(AssertionError, match=message):
        run(Block(Path("page.md"), 3, language, text), {}, monkeypatch)


def test_what_is_not_run_is_little_and_has_a_reason():
    marked = [block for blocks in BLOCKS.values() for block in blocks if block.mark]
    for block in marked:
        print(f"{block.where}: {block.mark}: {block.reason}")
    assert sum(block.mark == "not run" for block in marked) <= NOT_RUN
    for page, blocks in BLOCKS.items():
        text = page.read_text(encoding="utf-8")
        marks = len(re.findall("<!-- (?:not run|needs)", text))
        assert marks == sum(block.mark is not None for block in blocks), f"{page.name}: a mark stands before no block"


def test_every_block_says_its_language():
    for block in (block for blocks in BLOCKS.values() for block in blocks):
        assert block.language in LANGUAGES, f"{block.where}: {block.language!r} is none of {LANGUAGES}"
        if block.language == "text":
            command = re.search(r"^(?:\$ )?(hybridgen |make |pip |python |accelerate )", block.text, re.MULTILINE)
            assert not command, f"{block.where}: a command in a block of text is not run; make it sh"


# --------------------------------------------------------------------------------------------------------- python


def run_python(block: Block, names: dict) -> None:
    padded = "\n" * (block.line - 1) + block.text  # so that a traceback names the page's line
    padded = padded.replace(SERVED_AT, ADDRESSES[-1] if ADDRESSES else SERVED_AT)
    exec(compile(padded, str(block.page), "exec"), names)


# ---------------------------------------------------------------------------------------------------------- shell


def commands(block: Block) -> list[list[str]]:
    """Each line as words, comments left out."""
    lines = [shlex.split(line, comments=True) for line in block.text.replace("\\\n", " ").splitlines()]
    return [words for words in lines if words]


def run_command(words: list[str], monkeypatch) -> None:
    said = ""
    if "|" in words:
        assert words[0] == "echo", "of pipes, only what echo says is run"
        said, words = " ".join(words[1 : words.index("|")]) + "\n", words[words.index("|") + 1 :]
    monkeypatch.setattr(sys, "stdin", io.StringIO(said))
    program, arguments = words[0], words[1:]
    if program == "hybridgen":
        run_hybridgen(arguments)
    elif program == "make":
        check_make(arguments)
    elif program == "pip":
        check_pip(arguments)
    elif "-m" in words and words[words.index("-m") + 1] != "hybridgen":
        check_harness(words)
    elif program == "accelerate":
        run_accelerate(arguments, monkeypatch)
    elif program == "python":
        run_script(arguments[0], [*arguments[1:], *SMALLER.get(arguments[0], [])], monkeypatch)
    elif program.endswith(".sh"):
        check_shell_script(program, arguments)
    else:
        raise AssertionError(f"nobody knows how to run {program!r}")


def run_hybridgen(arguments: list[str]) -> None:
    if {"--help", "--version"} & set(arguments):
        with pytest.raises(SystemExit) as done:
            cli.main(arguments)
        assert done.value.code == 0
        return
    if arguments[0] in ("serve", "app"):
        {"serve": serve, "app": open_page}[arguments[0]](parse(arguments))
        return
    key = arguments[1] if arguments[0] == "train" else arguments[0]
    if arguments[0] == "train":
        assert key in SMALLER, f"{key} trains at full size; say in SMALLER what makes it small"
    assert cli.main([*arguments, *SMALLER.get(key, [])]) == 0, f"hybridgen {shlex.join(arguments)} failed (see stderr)"


def serve(options: Namespace) -> None:
    """Until the page ends, in a thread, at a free port; blocks of Python that name the usual one find it there."""
    name = options.name or options.checkpoint.name
    server = served(load_pipeline(options.checkpoint), key=None, name=name)
    ADDRESSES.append(SERVERS.enter_context(server).removeprefix("http://"))
    SERVERS.callback(ADDRESSES.pop)


def open_page(options: Namespace) -> None:
    """Until it was looked at."""
    with TemporaryDirectory() as uploads, paged(load_pipeline(options.checkpoint), Path(uploads)) as (address, _):
        assert urllib.request.urlopen(address, timeout=60).status == 200


def check_make(arguments: list[str]) -> None:
    """The target is there, and so is the demo that it stands for. Not made: the demo trains for minutes, the tests are
    these."""
    targets = [word for word in arguments if "=" not in word]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"the Makefile has no target {target}"
    variables = dict(word.split("=", 1) for word in arguments if "=" in word)
    assert set(variables) <= {"ARGS", "PYTHON"}
    if targets == ["demo"]:
        demo_plan(shlex.split(variables.get("ARGS", "")))


def demo_plan(arguments: list[str]) -> None:
    """`hybridgen demo` with these arguments, up to its first step of training."""
    from hybridgen.cli import demo

    options: Namespace = parse(["demo", *arguments])
    demo.make_plan(Path("runs/plan"), options.seed, options.samples, options.overrides)


def check_pip(arguments: list[str]) -> None:
    """Not installed: it would change the environment under the tests. What is named exists."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert arguments[0] == "install"
    if "-c" in arguments:
        assert Path(arguments[arguments.index("-c") + 1]).is_file()
    wanted = [word for word in arguments[1:] if re.match(r"(\.|hybridgen)(\[|$)", word)]
    assert wanted, f"pip install of nothing of ours: {arguments}"
    for extra in re.findall(r"\[(.+)\]", " ".join(wanted)):
        assert set(extra.split(",")) <= set(project["optional-dependencies"]), f"there is no extra {extra}"


def run_accelerate(arguments: list[str], monkeypatch) -> None:
    """One process is run in this one. Of several, everything is read and nothing started: that takes a minute, and
    tests/training/distributed and tests/cli/test_evaluate.py do it."""
    assert arguments[0] == "launch"
    options = launch_command_parser().parse_args(arguments[1:])
    processes = options.num_processes or load_config_from_file(options.config_file).num_processes
    if options.module:
        assert options.training_script == "hybridgen"
        parse([*options.training_script_args, *SMALLER.get(options.training_script_args[0], [])])
        return
    assert options.training_script == "scripts/train.py"
    config, *overrides = options.training_script_args
    if processes > 1:
        load_config(config, overrides)
    else:
        run_script(options.training_script, [config, *overrides, *SMALLER[config]], monkeypatch)


def check_harness(words: list[str]) -> None:
    """Not run: the data sets of lmms-eval and lm-eval are on the hub (tests/evaluation/harnesses runs them on local
    ones). The adapter, its arguments, and where the harness is installed its tasks are there."""
    module, *rest = words[words.index("-m") + 1 :]
    name = module.rpartition(".")[2]
    assert name in ("lmms_eval", "lm_eval"), f"nobody knows how to run the module {module}"
    options = dict(zip(rest, rest[1:], strict=False))
    assert options["--model"] == "hybridgen"
    given = dict(argument.split("=", 1) for argument in options["--model_args"].split(","))
    source = (ROOT / "hybridgen" / "evaluation" / "harnesses" / f"{name}.py").read_text(encoding="utf-8")
    made = next(node for node in ast.walk(ast.parse(source)) if getattr(node, "name", "") == "__init__")
    assert set(given) <= {argument.arg for argument in made.args.args}, f"{name}.py does not know all of {given}"
    tasks = Path(sys.prefix) / "harnesses" / name / "tasks"
    if tasks.is_dir():
        wanted = options["--tasks"].split(",")
        found = {task for task in wanted if any(defines(file, task) for file in tasks.rglob("*.yaml"))}
        assert found == set(wanted), f"{name} has no task {set(wanted) - found}"


def defines(file: Path, task: str) -> bool:
    if task.split("_")[0].lower() not in str(file).lower():
        return False
    return (
        re.search(rf"^(task|group): [\"']?{task}[\"']?\s*$", file.read_text(encoding="utf-8"), re.MULTILINE) is not None
    )


def run_script(script: str, arguments: list[str], monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as done:
        if done.code:
            raise AssertionError(f"{script} ended with {done.code}") from done


def check_shell_script(script: str, arguments: list[str]) -> None:
    """Its syntax and its steps. Not run: it fetches a model and trains for an hour; tests/recipes runs it small."""
    subprocess.run(["bash", "-n", script], check=True)
    text = Path(script).read_text(encoding="utf-8")
    for step in arguments:
        assert re.search(rf"^    {step}\)", text, re.MULTILINE), f"{script} has no step {step}"


# ------------------------------------------------------------------------------------------------- configs, records


def read_yaml(block: Block) -> None:
    content = strict.parse(block.text, block.where)
    if isinstance(content, list):
        for entry in content:
            open_first(strict.build(SourceConfig, entry))
        return
    if "variants" in content or "base" in content or "output_dir" in content:
        named = re.match(r"# (\S+\.yaml)\n", block.text)
        file = Path(named[1] if named else f"configs/{block.page.stem}_{block.line}.yaml")
        file.parent.mkdir(exist_ok=True)
        file.write_text(block.text, encoding="utf-8")
        if "variants" in content:
            read_study(file.parent)
        elif "ladder" in content:
            read_ladder(file)
        elif "base" in content:  # its data are the base's, and not here
            strict.build(TrainConfig, strict.read(file))
        else:
            load_config(file)
        return
    least = {"output_dir": "runs/part", "steps": 1, "data": {"sources": [{"source": "pairs.jsonl"}]}}
    for source in strict.build(TrainConfig, {**least, **content}).data.sources:
        open_first(source)


def open_first(source: SourceConfig) -> None:
    documents = open_source(source)
    assert not documents.bad_records, documents.bad_records
    check_record(documents[0], source.name)


def read_json(block: Block) -> None:
    text, decoder = block.text.strip(), json.JSONDecoder()
    while text:
        entry, end = decoder.raw_decode(text)
        text = text[end:].strip()
        if "sampling_defaults" in entry:
            check_defaults(entry["sampling_defaults"])
            continue
        check_record(record_of(entry, None, {}, block.where), block.where)
