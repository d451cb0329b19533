"""Arguments of the commands that draw: sample, replay, chat; and the settings of drawing, which `evaluate` takes, too.

Nothing runs here (`drawing_commands`, `chat_command`). The fact a newcomer gets wrong: an option that is not given is
None and not its default, for the checkpoint may have a default of its own.
"""

import argparse
from pathlib import Path

from hybridgen.cli.argument_kinds import add_checkpoint, command_of, path_name, real, whole

# settings of drawing, as the pipeline calls them -> options
OPTIONS = {
    "num_inference_steps": "--steps",
    "guidance_scale": "--guidance",
    "guidance_rescale": "--guidance-rescale",
    "image_guidance_scale": "--image-guidance",
    "shift": "--shift",
    "temperature": "--temperature",
    "top_k": "--top-k",
    "top_p": "--top-p",
    "precision": "--precision",
    "window": "--window",
}


def settings_given(options: argparse.Namespace) -> dict:
    """The settings of drawing that a command was given, as the pipeline calls them."""
    named = {name: option.removeprefix("--").replace("-", "_") for name, option in OPTIONS.items()}
    said = {name: getattr(options, attribute, None) for name, attribute in named.items()}
    return {name: value for name, value in said.items() if value is not None}


def add_sample(commands) -> None:
    command = command_of(
        commands,
        "sample",
        "draw pictures from prompts",
        """\
        Draw pictures and print the paths of the PNG files. Each carries its prompt, path, seed and settings as text,
        and no file is ever written over. Picture i is drawn with seed + i, whatever is drawn beside it.

        examples:
          hybridgen sample runs/demo/checkpoint --prompt "an orc wearing a purple robe, blue background" --out pictures
          hybridgen sample runs/demo/checkpoint --prompt "an elf, sand background" --path vq --num-images 8 --out elves
        """,
    )
    add_checkpoint(command)
    what = command.add_argument_group("what to draw")
    what.add_argument("--prompt", action="append", required=True, help="what to draw; give it again for more prompts")
    what.add_argument("--negative-prompt", help="what guidance leads away from (default: the empty prompt)")
    what.add_argument("--num-images", type=whole(1), default=1, help="pictures of each prompt (default: 1)")
    sides = {
        "type": whole(1),
        "action": "append",
        "help": "in pixels, one or one a prompt (default: as trained)",
    }
    what.add_argument("--height", **sides)
    what.add_argument("--width", **sides)
    what.add_argument("--image", type=Path, metavar="FILE", help="a picture that stands before the prompt")
    what.add_argument(
        "--read", type=path_name, metavar="PATH", help="path to read it by (default: the first that there is)"
    )
    how = command.add_argument_group("how to draw")
    how.add_argument("--path", type=path_name, help="diffusion or vq (default: the first that the checkpoint has)")
    how.add_argument("--seed", type=whole(0), default=0, help="of the first picture (default: 0)")
    add_drawing(how)
    _add_guidance(command.add_argument_group("how to guide"))
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the PNG files")


def add_replay(commands) -> None:
    command = command_of(
        commands,
        "replay",
        "draw a picture again from what its PNG says",
        """\
        Draw a picture of `hybridgen sample` again, from the manifest in its PNG, and print whether every pixel is as it
        was or what differs. Exit code 0 if it is identical, 1 if it differs. A checkpoint of other weights is refused.

        examples:
          hybridgen replay pictures/an-elf-diffusion-seed0.png
          hybridgen replay pictures/an-elf-diffusion-seed0.png runs/demo/checkpoint --out again
        """,
    )
    command.add_argument("picture", metavar="PNG", type=Path, help="a picture that hybridgen drew")
    command.add_argument(
        "checkpoint", metavar="CHECKPOINT", type=Path, nargs="?", help="that drew it (default: the folder it names)"
    )
    command.add_argument("--out", type=Path, metavar="DIR", help="folder for the picture drawn again")


def add_chat(commands) -> None:
    command = command_of(
        commands,
        "chat",
        "talk with a checkpoint, which answers and draws",
        """\
        Read what you say from stdin, line by line, and print the answer as it is written. Pictures are written to
        --out, each with a manifest, and their paths printed. The model decides whether it draws, unless you say /draw.
        Lines that begin with / are commands:

          /image FILE   say a picture before the words that come next
          /draw TEXT    have a picture drawn, and nothing written
          /undo [N]     take back the last turn, or the last N
          /save         write the conversation so far to the --out folder, as a record to train on
          /help         show these
          /quit         end; so does the end of the input

        At a terminal Ctrl-C stops an answer, and a mistake is said. From a pipe a mistake ends it with exit code 2.

        examples:
          hybridgen chat runs/demo/checkpoint
          hybridgen chat runs/demo/checkpoint --path vq --seed 0 --out talk
        """,
    )
    add_checkpoint(command)
    said = command.add_argument_group("what is said")
    said.add_argument("--system", metavar="TEXT", help="what the conversation begins with (default: nothing)")
    said.add_argument("--read", type=path_name, metavar="PATH", help="path to read pictures by (default: the first)")
    said.add_argument("--max-new-tokens", type=whole(1), metavar="N", help="of an answer (default: 256, or what fits)")
    said.add_argument(
        "--text-temperature", type=real, default=0.0, metavar="X", help="of words; 0 = the likeliest (default)"
    )
    how = command.add_argument_group("how to draw")
    how.add_argument("--path", type=path_name, help="diffusion or vq (default: the first that the checkpoint has)")
    how.add_argument("--seed", type=whole(0), help="of the first turn, the next has one more (default: by chance)")
    how.add_argument("--height", type=whole(1), help="in pixels (default: as trained)")
    how.add_argument("--width", type=whole(1), help="in pixels (default: as trained)")
    add_drawing(how)
    command.add_argument("--out", type=Path, default=Path("chat"), metavar="DIR", help="default: chat")


def add_drawing(group) -> None:
    """Where the checkpoint has defaults of its own, they hold before those named here."""
    group.add_argument("--steps", type=whole(1), help="denoising steps, diffusion path (default: 30)")
    group.add_argument("--guidance", type=real, help="1 = none, more = closer to the prompt (default: 3)")
    group.add_argument("--temperature", type=real, help="vq path; 0 = the likeliest codes (default: 1)")
    group.add_argument("--top-k", type=whole(0), help="vq path: among the k likeliest; 0 = all (default)")
    group.add_argument("--top-p", type=real, help="vq path: among this much probability (default: 1)")
    group.add_argument(
        "--precision",
        choices=("model", "fp32", "bf16", "int8"),
        help="of the inner loop's weights (default: model, as saved)",
    )
    group.add_argument("--window", type=whole(1), help="vq path: codes read at once, guessing ahead (default: 1)")


def _add_guidance(group) -> None:
    group.add_argument("--guider", choices=("cfg", "apg", "zero_star"), help="plain, projected, or CFG-Zero* guidance")
    group.add_argument("--guidance-rescale", type=real, metavar="X", help="0 to 1, against glare (default: 0)")
    interval = {"nargs": 2, "type": real, "metavar": ("START", "STOP")}
    group.add_argument("--guidance-interval", help="shares of the steps that are guided (default: 0 1)", **interval)
    group.add_argument("--image-guidance", type=real, metavar="X", help="how closely to follow --image (default: 1)")
    group.add_argument("--shift", type=real, metavar="X", help="flow matching: above 1, more steps in the noise")
