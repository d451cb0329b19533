"""The work of a suite: pictures drawn, questions answered, texts scored, each item once whatever happens.

Items are done in chunks, which are the same ones however many processes there are and however often they are stopped.
A finished chunk is a file, written whole or not at all; so an evaluation that was killed goes on where it was, and what
comes out is what would have come out. Of several processes, number r of n does chunks r, r + n, r + 2 n, ...; then all
know all results.

    OUT/SUITE/PART/000064.json   the values of items 64 to 95, and the seconds they took
    OUT/SUITE/PART/000064.png    the picture of item 64; an array is 000064.npy

Without a folder everything stays in memory.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hybridgen.core.files import read_json, whole_file, write_json
from hybridgen.core.recognition import user_path
from hybridgen.core.values import shown
from hybridgen.evaluation.generation import DrawSettings
from hybridgen.evaluation.processes import Processes
from hybridgen.pipeline_hybridgen import HybridGenPipeline
from hybridgen.sampling.likelihood import Likelihood
from hybridgen.sampling.seeds import nth_seed

DRAWN_AT_ONCE = 32  # pictures in a chunk: guided, they are the 64 rows that the pipeline computes at once
CHUNK = 64  # other items in a chunk
MAX_NEW_TOKENS = 32  # of an answer, where a suite says nothing: more than the longest answer of any synthetic dataset
TaskProgress = Callable[[str, int, int], None]  # what is being done, how many are done, of how many
_PICTURE, _ARRAY = "$picture", "$array"  # in a chunk's file, what stands for a picture or an array


@dataclass
class Work:
    """What a suite asks a pipeline for, and what it is told by the command line.

    Args:
        suite: its name, for errors and the folder.
        draw_paths, answer_paths, chat_paths: the paths of the checkpoint that were asked for.
        samples: how many items were asked for; None = as many as is usual for the suite.
        seed: of samples and drawing: picture i is drawn with seed + i.
        settings: how to draw, by path; see `settings_of`.
        options: of this suite, as given; see `number`, `text` and `file`.
        out: folder of this suite; None = everything stays in memory.
    """

    pipeline: HybridGenPipeline
    suite: str = "suite"
    draw_paths: Sequence[str] = ()
    answer_paths: Sequence[str] = ()
    chat_paths: Sequence[str] = ()
    samples: int | None = None
    seed: int = 0
    settings: dict[str, DrawSettings] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    out: Path | None = None
    progress: TaskProgress = lambda what, done, of: None
    processes: Processes = field(default_factory=Processes.running)
    _seconds: dict[str, float] = field(default_factory=dict)
    _made: dict[str, Any] = field(default_factory=dict)

    # ---------------------------------------------------------------------------------------------------- what to do

    def draw(
        self,
        path: str,
        prompts: Sequence[str],
        seeds: Sequence[int] | None = None,
        part: str | None = None,
        size: int | tuple[int, int] | None = None,
        label: str | None = None,
        **arguments,
    ) -> "Values":
        """One picture for each prompt.

        Args:
            seeds: of each picture; None = seed + i.
            part: the name of this work within the suite.
            size: the side of the pictures, or height and width; None = as the checkpoint draws.
            label: what the progress bar says.
            arguments: further ones of the pipeline's call.
        """
        seeds = [nth_seed(self.seed, i) for i in range(len(prompts))] if seeds is None else list(seeds)
        height, width = (size, size) if isinstance(size, int) else size or (None, None)
        how = {"path": path, "height": height, "width": width, **self.settings_of(path).arguments(path), **arguments}

        def draw(numbers: list[int]) -> list[Image.Image]:
            return self.pipeline([prompts[i] for i in numbers], seed=[seeds[i] for i in numbers], **how).images

        label = label or f"drawing by {path}"
        return self.batches(len(prompts), draw, part or f"draw-{path}", label, DRAWN_AT_ONCE)

    def answer(
        self,
        path: str,
        images: Sequence,
        questions: Sequence[str],
        part: str | None = None,
        max_new_tokens: int = MAX_NEW_TOKENS,
        label: str | None = None,
    ) -> "Values":
        """One answer for each question, the likeliest.

        Args:
            images: of each question: a picture, a tuple of several, or None for no picture.
        """

        def answer(numbers: list[int]) -> list[str]:
            seen, asked = [_as_list(images[i]) for i in numbers], [questions[i] for i in numbers]
            answers = self.pipeline.answer(seen, asked, path=path, max_new_tokens=max_new_tokens)
            return [str(one) for one in answers]

        return self.batches(
            len(questions), answer, part or f"answer-{path}", label or f"answering through {path}", CHUNK
        )

    def likelihoods(
        self,
        path: str,
        images: Sequence,
        questions: Sequence[str],
        answers: Sequence[str],
        part: str | None = None,
        label: str | None = None,
    ) -> list[Likelihood]:
        """How likely each given answer is after its images and question (`HybridGenPipeline.score_answers`)."""

        def score(numbers: list[int]) -> list[list]:
            seen, asked = [_as_list(images[i]) for i in numbers], [questions[i] for i in numbers]
            return list(map(list, self.pipeline.score_answers(seen, asked, [answers[i] for i in numbers], path)))

        label = label or f"weighing answers through {path}"
        return [Likelihood(*one) for one in self.batches(len(questions), score, part or f"weigh-{path}", label, CHUNK)]

    def choose(
        self,
        path: str,
        images: Sequence,
        questions: Sequence[str],
        choices: Sequence[Sequence[str]],
        part: str | None = None,
        label: str | None = None,
    ) -> list[int]:
        """For each question, which of its choices is the likeliest, by the mean log-likelihood of its tokens."""
        pairs = [(i, choice) for i, of_one in enumerate(choices) for choice in of_one]
        seen, asked = [images[i] for i, _ in pairs], [questions[i] for i, _ in pairs]
        given = [choice for _, choice in pairs]
        scored = iter(self.likelihoods(path, seen, asked, given, part or f"choose-{path}", label))
        means = [[next(scored).mean for _ in of_one] for of_one in choices]
        return [max(range(len(of_one)), key=of_one.__getitem__) for of_one in means]

    def score_text(
        self, texts: Sequence[str], part: str = "text", label: str = "reading texts", stride: int | None = None
    ) -> list[float]:
        """The log-likelihood of each text in nats, at most 0 (`HybridGenPipeline.score_texts`)."""

        def score(numbers: list[int]) -> list[float]:
            return [one.nats for one in self.pipeline.score_texts([texts[i] for i in numbers], stride=stride)]

        return list(self.batches(len(texts), score, part, label, DRAWN_AT_ONCE))

    def each(self, count: int, function: Callable[[int], Any], part: str, label: str | None = None) -> "Values":
        """function(i) for i from 0 to count - 1: what JSON can hold, and PIL images and numpy arrays anywhere in it."""
        return self.batches(count, lambda numbers: list(map(function, numbers)), part, label or part, 1)

    def batches(
        self, count: int, function: Callable[[list[int]], list], part: str, label: str, size: int = CHUNK
    ) -> "Values":
        """The base of all: function(numbers of items) -> their values, for `size` items at a time.

        Raises:
            ValueError, OSError: what one process meets, in all of them.
        """
        if part in self._seconds:
            raise ValueError(f"suite {self.suite} does {part!r} twice; name its parts differently")
        chunks = [list(range(start, min(start + size, count))) for start in range(0, count, size)]
        store, error = _Store(None if self.out is None else self.out / part), None
        mine, done = chunks[self.processes.rank :: self.processes.count], 0
        try:
            for numbers in mine:
                if not store.has(numbers):
                    started = time.perf_counter()
                    store.put(numbers, function(numbers), time.perf_counter() - started)
                done += len(numbers)
                self.progress(label, done, sum(map(len, mine)))
        except (ValueError, OSError) as raised:
            error = raised
        self.processes.agree(error)
        store.share(self.processes, chunks)
        self._seconds[part] = store.seconds
        return Values(store.values, store.kept, store.file)

    def seconds(self, *parts: str) -> float:
        """How long parts took, of all processes together; of all parts where none is named."""
        return round(sum(self._seconds[part] for part in parts or self._seconds), 2)

    # ------------------------------------------------------------------------------------------ what it was told to do

    def settings_of(self, path: str) -> DrawSettings:
        """How to draw by a path: as it was told to, else as the checkpoint draws."""
        if path in self.settings:
            return self.settings[path]
        return DrawSettings.of(path, self.pipeline.sampling_settings(path))

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths of the checkpoint."""
        return tuple(self.pipeline.model.config.paths)

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """What `make()` gives, made the first time: what `check` has read or loaded, `run` takes again."""
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]

    def count(self, there_are: int, usual: int | None = None) -> int:
        """How many items to take of those that there are: as many as were asked for, else `usual` of them, else all.

        Raises:
            ValueError: more were asked for than there are, or none.
        """
        if self.samples is None:
            return there_are if usual is None else min(usual, there_are)
        if not 1 <= self.samples <= there_are:
            raise ValueError(
                f"{self.samples} samples cannot be taken of suite {self.suite}, which has {there_are}; take 1 to "
                f"{there_are}"
            )
        return self.samples

    def side(self) -> int | None:
        """The option `size`; None = as the checkpoint draws."""
        return self.number("size", 1) if "size" in self.options else None

    def check_drawing(self, prompts: Sequence[str], side: int | None) -> None:
        """Raises ValueError, before any picture is drawn, where a path that is to draw cannot draw these prompts at
        that size (None = as the checkpoint draws): it is no whole number of patches, or does not fit the context."""
        for path in dict.fromkeys((*self.draw_paths, *self.chat_paths)):
            how = {"height": side, "width": side, **self.settings_of(path).arguments(path)}
            try:
                self.pipeline.check_call(list(prompts), path, **how)
            except ValueError as error:
                raise ValueError(f"suite {self.suite} cannot be drawn by {path}: {error}") from error

    def require_drawing(self) -> None:
        """Raises ValueError where no path is to be drawn by."""
        if not self.draw_paths:
            raise ValueError(
                f"suite {self.suite} draws pictures, but there is no path to draw by{self._of_checkpoint()}"
            )

    def require_answering(self) -> None:
        """Raises ValueError where no path is to be answered through."""
        if not self.answer_paths:
            raise ValueError(
                f"suite {self.suite} asks questions, but there is no path to answer through{self._of_checkpoint()}"
            )

    def _of_checkpoint(self) -> str:
        return f"; the checkpoint has {', '.join(self.paths)}, and --paths, --draw and --answer choose among them"

    def number(self, option: str, usual: int) -> int:
        """An option that is a whole number of at least 1. Raises ValueError for anything else."""
        given = self.options.get(option, usual)
        if not str(given).isdecimal() or int(given) < 1:
            raise ValueError(
                f"option {option} of suite {self.suite} is {shown(given)}; give a whole number of at least 1"
            )
        return int(given)

    def text(self, option: str, usual: str | None = None) -> str | None:
        """An option that is a text."""
        given = self.options.get(option, usual)
        return given if given is None else str(given)

    def file(self, option: str, where_from: str) -> Path:
        """An option that names a file, or a folder, on this machine.

        Args:
            where_from: where one gets it, for who has it not.

        Raises:
            ValueError: it is not given, or is not there.
        """
        given = self.options.get(option)
        if given is None:
            raise ValueError(f"suite {self.suite} needs --option {option}=FILE: {where_from}")
        path = user_path(given)
        if not path.exists():
            raise ValueError(f"option {option} of suite {self.suite}: there is no {path}; {where_from}")
        return path


class Values(Sequence):
    """The values of all items; pictures and arrays are read from their files when they are asked for."""

    def __init__(self, encoded: list, kept: Callable[[str], Any], file: Callable[[str], Path | None]):
        self._encoded, self._kept, self._file = encoded, kept, file

    def __len__(self) -> int:
        return len(self._encoded)

    def __getitem__(self, place):
        if isinstance(place, slice):
            return [self._decoded(value) for value in self._encoded[place]]
        return self._decoded(self._encoded[place])

    def __eq__(self, other) -> bool:
        return list(self) == list(other)

    __hash__ = None

    def shown(self, place: int) -> Image.Image | Path:
        """The picture that a value is, as an `Item` takes it: its file, where it has one, needs no memory."""
        return self._file(self._encoded[place][_PICTURE]) or self[place]

    def _decoded(self, value):
        if isinstance(value, dict):
            if len(value) == 1 and (name := value.get(_PICTURE) or value.get(_ARRAY)):
                return self._kept(name)
            return {key: self._decoded(inner) for key, inner in value.items()}
        return [self._decoded(inner) for inner in value] if isinstance(value, list) else value


class _Store:
    """The finished chunks of a part, in a folder or (None) in memory."""

    def __init__(self, folder: Path | None):
        self._folder = folder
        self._chunks: dict[int, dict] = {}
        self._aside: dict[str, Image.Image | np.ndarray] = {}

    def has(self, numbers: list[int]) -> bool:
        return self._folder is not None and self._file(numbers).is_file()

    def put(self, numbers: list[int], values: list, seconds: float) -> None:
        """Pictures and arrays first: where a chunk's file is, all that it names is there."""
        encoded = [self._encoded(value, f"{number:06d}", [0]) for number, value in zip(numbers, values, strict=True)]
        chunk = {"seconds": round(seconds, 3), "values": encoded}
        if self._folder is None:
            self._chunks[numbers[0]] = chunk
        else:
            write_json(self._file(numbers), chunk)

    def share(self, processes: Processes, chunks: list[list[int]]) -> None:
        """All chunks, in every process: through the folder, or through messages where there is none."""
        if self._folder is not None:
            self._chunks = {numbers[0]: self._read(numbers) for numbers in chunks}
        else:
            for others, aside in processes.gather((self._chunks, self._aside)):
                self._chunks, self._aside = self._chunks | others, self._aside | aside
        self._chunks = dict(sorted(self._chunks.items()))

    @property
    def values(self) -> list:
        return [value for chunk in self._chunks.values() for value in chunk["values"]]

    @property
    def seconds(self) -> float:
        return sum(chunk["seconds"] for chunk in self._chunks.values())

    def file(self, name: str) -> Path | None:
        return None if self._folder is None else self._folder / name

    def kept(self, name: str) -> Image.Image | np.ndarray:
        if self._folder is None:
            return self._aside[name]
        if name.endswith(".npy"):
            return np.load(self._folder / name, allow_pickle=False)
        picture = Image.open(self._folder / name)
        picture.load()  # and its file is closed; it still knows its name
        return picture

    def _read(self, numbers: list[int]) -> dict:
        """A finished chunk. Raises ValueError where its file was changed: it was written whole."""
        file, chunk = self._file(numbers), {}
        with suppress(ValueError):
            chunk = read_json(file)
        if not isinstance(chunk.get("values"), list) or len(chunk["values"]) != len(numbers):
            raise ValueError(
                f"{file} does not hold the {len(numbers)} finished items that it should; delete it, and the same "
                "command does them again"
            )
        return chunk

    def _file(self, numbers: list[int]) -> Path:
        return self._folder / f"{numbers[0]:06d}.json"

    def _encoded(self, value: Any, name: str, taken: list[int]) -> Any:
        """A value as JSON holds it, whether it is written or not; pictures and arrays are put aside under names that
        begin so."""
        if isinstance(value, Image.Image | np.ndarray):
            is_array = isinstance(value, np.ndarray)
            name, taken[0] = f"{name}-{taken[0]}" if taken[0] else name, taken[0] + 1
            name += ".npy" if is_array else ".png"
            if self._folder is None:
                self._aside[name] = value
            else:
                with whole_file(self._folder / name) as aside:
                    np.save(aside, value, allow_pickle=False) if is_array else value.save(aside)
            return {_ARRAY if is_array else _PICTURE: name}
        if isinstance(value, dict):
            return {str(key): self._encoded(inner, name, taken) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [self._encoded(inner, name, taken) for inner in value]
        return value


def _as_list(images) -> Any:
    return list(images) if isinstance(images, list | tuple) else images
