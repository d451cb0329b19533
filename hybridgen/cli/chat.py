"""`hybridgen chat`: a conversation with a checkpoint, typed at a terminal or read from a pipe.

The conversation itself is a `chat.session.Chat`. At a terminal a mistake is printed and the conversation goes on; from
a pipe, where nobody watches, it ends the command with exit code 2.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from PIL import Image

from hybridgen.bridges.adapters import open_pipeline
from hybridgen.chat.events import ImageDone, TextDelta, Usage
from hybridgen.chat.session import Chat
from hybridgen.checkpoints.png import png_text, slug
from hybridgen.cli.arguments.chat import SLASH_COMMANDS
from hybridgen.cli.arguments.types import DRAWING_OPTIONS, drawing_settings
from hybridgen.cli.errors import is_for_the_user, one_line
from hybridgen.cli.pictures import open_picture, save_png, write_new
from hybridgen.cli.running import TRUNCATED, best_device
from hybridgen.core.messages import parts
from hybridgen.core.names import WRITING_PATHS, check_belongs
from hybridgen.core.recognition import dropped_path
from hybridgen.pipeline_hybridgen import HybridGenPipeline
from hybridgen.sampling.seeds import nth_seed

STOPPED = "the pictures whose paths were printed are written"  # after Ctrl-C


class StreamedText(str):
    """A piece of an answer, printed as it comes: no line ends after it."""


def run(options: argparse.Namespace) -> Iterator[str]:
    """
    1. Open the checkpoint, and check every setting before the first turn.
    2. Line by line: a command, or the user's words. Yields the answer as it comes, and files of pictures.
    """
    settings = drawing_settings(options)
    pipeline = best_device(open_pipeline(options.checkpoint))
    terminal = ChatTerminal(_chat(pipeline, options, settings), options.out, options.seed)
    at_terminal, begun = sys.stdin.isatty(), False
    if at_terminal:
        print(SLASH_COMMANDS, file=sys.stderr)
    while True:
        if at_terminal:
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        line, begun = line if begun else line.removeprefix("\ufeff"), True  # PowerShell's pipes begin with this mark
        if not line or line.split()[:1] == ["/quit"]:
            return
        try:
            yield from terminal.read_line(line.strip())
        except KeyboardInterrupt:
            if not at_terminal:
                raise
            print("\nstopped; the conversation is as it was before", file=sys.stderr)
        except (ValueError, OSError) as error:
            if not at_terminal or not is_for_the_user(error):
                raise
            print(one_line(error), file=sys.stderr)


def _chat(pipeline: HybridGenPipeline, options: argparse.Namespace, settings: dict) -> Chat:
    """A chat with all settings checked. Raises ValueError for settings that no turn can have."""
    drawing = [path for path in WRITING_PATHS if path in pipeline.model.config.paths]
    if options.path is not None or drawing:
        drawing = [pipeline.writing_path(options.path)]
    of_pictures = {name: value for name, value in settings.items() if name != "precision"}  # which is of words too
    check_belongs(of_pictures, drawing, DRAWING_OPTIONS)
    opening = [] if options.system is None else [{"role": "system", "content": options.system}]
    named = ("path", "read", "reread", "height", "width", "max_new_tokens")
    named += ("text_temperature", "text_top_k", "text_top_p")
    chat = pipeline.chat(opening, **{name: getattr(options, name) for name in named}, **settings)
    chat.send()  # checks everything; it does nothing until its events are iterated
    return chat


class ChatTerminal:
    """A chat that is steered by lines of text, and keeps the files of its pictures.

    Args:
        out: folder for what is drawn and saved.
        seed: of the first turn, and one more for each that follows; None = a random one each turn.
    """

    def __init__(self, chat: Chat, out: Path, seed: int | None):
        self.chat, self.out, self.seed = chat, out, seed
        self.pending_images: list[Image.Image] = []  # sent before the next words
        self.files: list[tuple[Image.Image, Path]] = []

    def read_line(self, line: str) -> Iterator[str]:
        """Act on a line of the user. Raises ValueError for what cannot be done; the conversation is then as it was."""
        if not line:
            return
        command, _, rest = line.partition(" ")
        if not command.startswith("/"):
            yield from self._answer(line)
        elif command == "/image":
            if not rest.strip():
                raise ValueError("/image needs the name of a file, as in /image photo.png")
            image = open_picture(file := dropped_path(rest.strip()))
            self.pending_images.append(image)
            self.files.append((image, file.resolve()))
        elif command == "/draw":
            if not rest.strip():
                raise ValueError("/draw needs words to draw, as in /draw an elf")
            yield from self._answer(rest, plan=["image"])
        elif command == "/undo":
            self._undo(rest)
        elif command == "/save":
            yield str(self._save_record())
        elif command == "/help":
            print(SLASH_COMMANDS, file=sys.stderr)
        else:
            raise ValueError(f"there is no {command}; /help shows what there is")

    def _answer(self, text: str, **settings) -> Iterator[str]:
        if self.seed is not None:
            settings["seed"] = nth_seed(self.seed, self.chat.turns)
        line_is_open = truncated = False
        with closing(self.chat.send(text, self.pending_images, **settings)) as events:
            for event in events:
                if isinstance(event, TextDelta):
                    line_is_open = True
                    yield StreamedText(event.text)
                elif isinstance(event, ImageDone):
                    if line_is_open:
                        yield ""
                    line_is_open = False
                    yield str(self._save_picture(event))
                elif isinstance(event, Usage):
                    truncated = event.truncated
        if line_is_open:
            yield ""
        if truncated:
            print(TRUNCATED, file=sys.stderr)
        self.pending_images = []

    def _save_picture(self, drawn: ImageDone) -> Path:
        manifest = drawn.manifest
        name = f"{slug(manifest['prompt'])}-{manifest['path']}-seed{manifest['seed']}"
        file = save_png(drawn.image, self.out, name, png_text(manifest))
        self.files.append((drawn.image, file.resolve()))
        return file

    def _undo(self, turns: str) -> None:
        if turns and not turns.isdecimal():
            raise ValueError(f"/undo takes a number of turns, not {turns!r}")
        self.chat.rollback(int(turns or 1))

    def _save_record(self) -> Path:
        """One record, as JSONL files of data have them; pictures are named as seen from there."""
        if not self.chat.turns:
            raise ValueError("nothing was said yet, so there is nothing to save")
        messages = [
            {**message, "content": [self._with_file_name(part) for part in parts(message)]}
            for message in self.chat.messages
        ]
        line = json.dumps({"messages": messages}, ensure_ascii=False) + "\n"
        return write_new(self.out, "conversation", ".jsonl", line.encode(errors="backslashreplace"))

    def _with_file_name(self, part: dict) -> dict:
        if part["type"] != "image":
            return part
        file = next(file for image, file in self.files if image is part["image"])
        is_beside = file.parent == self.out.resolve()
        return {"type": "image", "image": file.name if is_beside else str(file)}
