"""`hybridgen chat`: a conversation with a checkpoint, typed at a terminal or read from a pipe.

The conversation is `pipeline_chat.Chat`'s. The fact a newcomer gets wrong: what cannot be done is said at a terminal,
and the conversation goes on; from a pipe, where nobody watches, it is the end, with exit code 2.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from PIL import Image

from hybridgen.bridges.adapters import open_pipeline
from hybridgen.chat.events import ImageDone, TextDelta
from hybridgen.chat.session import Chat
from hybridgen.cli import demo
from hybridgen.cli.arguments_drawing import OPTIONS, settings_given
from hybridgen.cli.errors import is_for_the_user, sentence
from hybridgen.cli.pictures import folder_to_write, in_png, new_file, open_picture, save_png, slug
from hybridgen.core.messages import parts
from hybridgen.pipeline_hybridgen import WRITING_PATHS, HybridGenPipeline
from hybridgen.sampling.settings import OF_PATH, check_belongs

COMMANDS = """\
  /image FILE   say a picture before the words that come next
  /draw TEXT    have a picture drawn, and nothing written
  /undo [N]     take back the last turn, or the last N
  /save         write the conversation so far to the --out folder, as a record to train on
  /help         show these
  /quit         end; so does the end of the input"""


class Piece(str):
    """Text that is printed as it comes: no line ends after it."""


def talk(options: argparse.Namespace) -> Iterator[str]:
    """
    1. Open the checkpoint, and check every setting before anything is said.
    2. Line by line: a command, or the user's words. Yields the answer as it comes, and files of pictures.
    """
    given = settings_given(options)
    if options.path in OF_PATH:
        check_belongs(given, [options.path], OPTIONS)
    out = folder_to_write(options.out)
    pipeline = demo.best_device(open_pipeline(options.checkpoint))
    talked = Conversation(_chat(pipeline, options, given), out, options.seed)
    at_terminal = sys.stdin.isatty()
    if at_terminal:
        print(COMMANDS, file=sys.stderr)
    while True:
        if at_terminal:
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line or line.strip() == "/quit":
            return
        try:
            yield from talked.hear(line.strip())
        except KeyboardInterrupt:
            if not at_terminal:
                raise
            print("\nstopped; the conversation is as it was before", file=sys.stderr)
        except (ValueError, OSError) as error:
            if not at_terminal or not is_for_the_user(error):
                raise
            print(sentence(error), file=sys.stderr)


def _chat(pipeline: HybridGenPipeline, options: argparse.Namespace, given: dict) -> Chat:
    """Raises ValueError for settings by which no turn could be made."""
    drawing = [path for path in WRITING_PATHS if path in pipeline.model.config.paths]
    if options.path is not None or drawing:
        drawing = [pipeline.writing_path(options.path)]
    check_belongs(given, drawing, OPTIONS)
    opening = [] if options.system is None else [{"role": "system", "content": options.system}]
    named = ("path", "read", "height", "width", "max_new_tokens", "text_temperature")
    chat = pipeline.chat(opening, **{name: getattr(options, name) for name in named}, **given)
    chat.send()  # checks everything and does nothing, until its events are asked for
    return chat


class Conversation:
    """A chat with the files of its pictures.

    Args:
        out: folder for what is drawn and saved.
        seed: of the first turn, and one more for each that follows; None = another each time.
    """

    def __init__(self, chat: Chat, out: Path, seed: int | None):
        self.chat, self.out, self.seed = chat, out, seed
        self.waiting: list[Image.Image] = []  # to be said before the next words
        self.files: list[tuple[Image.Image, Path]] = []

    def hear(self, line: str) -> Iterator[str]:
        """A line of the user. Raises ValueError for what cannot be done; the conversation is then as it was."""
        if not line:
            return
        command, _, rest = line.partition(" ")
        if not command.startswith("/"):
            yield from self._answer(line)
        elif command == "/image":
            image, file = open_picture(Path(rest)), Path(rest).resolve()
            self.waiting.append(image)
            self.files.append((image, file))
        elif command == "/draw":
            yield from self._answer(rest, plan=["image"])
        elif command == "/undo":
            self._undo(rest)
        elif command == "/save":
            yield str(self._save())
        elif command == "/help":
            print(COMMANDS, file=sys.stderr)
        else:
            raise ValueError(f"there is no {command}; /help shows what there is")

    def _answer(self, text: str, **how) -> Iterator[str]:
        if self.seed is not None:
            how["seed"] = self.seed + self.chat.turns
        line_is_open = False
        with closing(self.chat.send(text, self.waiting, **how)) as events:
            for event in events:
                if isinstance(event, TextDelta):
                    line_is_open = True
                    yield Piece(event.text)
                elif isinstance(event, ImageDone):
                    if line_is_open:
                        yield ""
                    line_is_open = False
                    yield str(self._keep(event))
        if line_is_open:
            yield ""
        self.waiting = []

    def _keep(self, drawn: ImageDone) -> Path:
        made = drawn.manifest
        file = save_png(
            drawn.image, self.out, f"{slug(made['prompt'])}-{made['path']}-seed{made['seed']}", in_png(made)
        )
        self.files.append((drawn.image, file.resolve()))
        return file

    def _undo(self, turns: str) -> None:
        if turns and not turns.isdecimal():
            raise ValueError(f"/undo takes a number of turns, not {turns!r}")
        self.chat.rollback(int(turns or 1))

    def _save(self) -> Path:
        """One record, as JSONL files of data have them; pictures are named as seen from there."""
        if not self.chat.turns:
            raise ValueError("nothing was said yet, so there is nothing to save")
        messages = [
            {**message, "content": [self._named(part) for part in parts(message)]} for message in self.chat.messages
        ]
        with new_file(self.out, "conversation", ".jsonl") as opened:
            opened.write((json.dumps({"messages": messages}, ensure_ascii=False) + "\n").encode())
        return Path(opened.name)

    def _named(self, part: dict) -> dict:
        if part["type"] != "image":
            return part
        file = next(file for image, file in self.files if image is part["image"])
        beside = file.parent == self.out.resolve()
        return {"type": "image", "image": file.name if beside else str(file)}
