"""What the command line takes, and the help that it gives: arguments are checked here, before anything is loaded.

Nothing runs here (`cli`). The fact a newcomer gets wrong: that `diffusion`, `vq` and `understanding` are paths is known
here, but whether a checkpoint has one only once the checkpoint is open.
"""

import argparse
from pathlib import Path

from hybridgen.cli.argument_kinds import KeepLines, Parser, add_checkpoint, command_of, path_name, whole
from hybridgen.cli.arguments_drawing import add_chat, add_drawing, add_replay, add_sample
from hybridgen.cli.arguments_parts import add_convert, add_init, add_merge
from hybridgen.core.layout import PATHS
from hybridgen.evaluation.suites import SUITES
from hybridgen.version import __version__

_ABOUT = """\
One transformer for text and images. It reads pictures through three paths and draws them by two:

  understanding   reads, through a vision tower
  diffusion       reads clean patches, draws by denoising
  vq              reads codes of a tokenizer, draws code by code
"""
_EXAMPLES = """\
examples:
  hybridgen demo
  hybridgen sample runs/demo/checkpoint --prompt "a minotaur wearing a gray robe, black background" --out pictures
  hybridgen ask runs/demo/checkpoint --image minotaur.png --question "what creature is this?"
  hybridgen evaluate runs/demo/checkpoint --suite dolls --out scores

Results go to stdout, everything else to stderr. Exit codes: 0 done, 1 a replay that differs, 2 something that you can
mend (one sentence says what), 130 stopped with Ctrl-C. `hybridgen COMMAND --help` tells more.
"""
_OVERRIDES = "settings that replace those of the file, such as steps=100 or optimizer.lr=1e-3"


def parser() -> argparse.ArgumentParser:
    """Everything the command line takes."""
    top = Parser(prog="hybridgen", description=_ABOUT, epilog=_EXAMPLES, formatter_class=KeepLines)
    top.add_argument("--version", action="version", version=f"hybridgen {__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True)
    parts = (add_init, add_convert, add_merge)
    drawing = (add_sample, add_replay, add_chat)
    for add in (_add_demo, *parts, _add_data, _add_train, *drawing, _add_ask, _add_evaluate):
        add(commands)
    return top


# ------------------------------------------------------------------------------------------------------- commands


def _add_demo(commands) -> None:
    command = command_of(
        commands,
        "demo",
        "train, draw, answer and report, from nothing, on two cores",
        """\
        Train a VQ tokenizer, then one small model that draws by two paths and answers through two; score it on
        pictures of kinds it never saw, and write report.html. A demo that was interrupted goes on where it was; one
        that is finished says so.

        examples:
          hybridgen demo
          hybridgen demo --seed 1 --out runs/seed1
          hybridgen demo --out runs/quick steps=50 codec:steps=20
          hybridgen demo --dataset emoji
        """,
    )
    what = command.add_argument_group("what to do")
    what.add_argument("--dataset", default="dolls", help=f"{' or '.join(SUITES)} (default: dolls)")
    what.add_argument("--seed", type=whole(0), default=0, help="of training and evaluation (default: 0)")
    what.add_argument("--samples", type=whole(1), default=256, help="pictures to draw and to ask about (default: 256)")
    what.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help=f"{_OVERRIDES}; codec:KEY=VALUE replaces one of the codec's file",
    )
    command.add_argument("--out", type=Path, metavar="DIR", help="default: runs/demo, or runs/DATASET")


def _add_train(commands) -> None:
    command = command_of(
        commands,
        "train",
        "train a model or a codec from a config file",
        """\
        Train what a config file describes. A run that was interrupted goes on from its last saved state. For several
        processes, start `accelerate launch scripts/train.py CONFIG` instead.

        examples:
          hybridgen train configs/demo.yaml
          hybridgen train configs/demo.yaml output_dir=runs/wide optimizer.lr=1e-3
        """,
    )
    command.add_argument("config", type=Path, metavar="CONFIG", help="YAML file")
    command.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=_OVERRIDES)


def _add_data(commands) -> None:
    command = command_of(
        commands,
        "data",
        "look at data before a run is spent on them",
        """\
        Count records, pictures, sizes, words and tokens; draw from the mixture and say what share of the tokens each
        task gets; find what training and validation share, and what is broken. The table goes to stdout; a picture,
        the table and the broken records are written to --out.

        examples:
          hybridgen data inspect configs/demo_codec.yaml
          hybridgen data inspect pictures/
          hybridgen data inspect 'shards/{000..007}.tar' columns.text=json.caption streaming=true
        """,
    )
    command.add_argument("action", choices=("inspect",), help="the one thing that there is to do")
    command.add_argument("what", metavar="SOURCE|CONFIG", help="a source as configs name it, or a config (.yaml)")
    command.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings of the source, or of the config")
    command.add_argument("--limit", type=whole(0), default=1000, help="records of each task; 0 = all (default: 1000)")
    command.add_argument("--out", type=Path, default=Path("inspected"), metavar="DIR", help="default: inspected")


def _add_ask(commands) -> None:
    command = command_of(
        commands,
        "ask",
        "ask a question about a picture",
        """\
        Print the answer to a question about a picture, and nothing else.

        examples:
          hybridgen ask runs/demo/checkpoint --image orc.png --question "what is worn on the body?"
          hybridgen ask runs/demo/checkpoint --image orc.png --question "is there a crossbow?" --path diffusion
        """,
    )
    add_checkpoint(command)
    command.add_argument("--image", type=Path, required=True, metavar="FILE", help="the picture")
    command.add_argument("--question", required=True, metavar="TEXT", help="what to ask")
    paths = ", ".join(PATHS)
    command.add_argument("--path", type=path_name, default=PATHS[0], help=f"one of {paths} (default: {PATHS[0]})")
    command.add_argument("--max-new-tokens", type=whole(1), default=32, help="length of the answer (default: 32)")


def _add_evaluate(commands) -> None:
    command = command_of(
        commands,
        "evaluate",
        "score a checkpoint on held-out pictures",
        """\
        Draw held-out captions, answer held-out questions, score both exactly, and write scores.json: for each path
        and category the share that is right, with counts and a 95 % interval, beside what a constant answer, a blank
        picture and the true pictures score. An older scores.json in the folder is replaced, once all is done.

        examples:
          hybridgen evaluate runs/demo/checkpoint --suite dolls --out scores
          hybridgen evaluate runs/demo/checkpoint --suite dolls --draw diffusion --answer --guidance 2 --out guidance2
        """,
    )
    add_checkpoint(command)
    what = command.add_argument_group("what to evaluate")
    what.add_argument("--suite", required=True, help=" or ".join(SUITES))
    paths = {"type": path_name, "metavar": "PATH"}
    what.add_argument("--paths", nargs="+", help="paths to draw by and to answer through (default: all)", **paths)
    what.add_argument("--draw", nargs="*", help="paths to draw by, if not --paths; none named = do not draw", **paths)
    what.add_argument("--answer", nargs="*", help="paths to answer through, likewise", **paths)
    what.add_argument("--samples", type=whole(1), default=256, help="pictures drawn and asked about (default: 256)")
    what.add_argument("--seed", type=whole(0), default=0, help="of the samples and of the drawing (default: 0)")
    add_drawing(command.add_argument_group("how to draw"))
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for scores.json")
