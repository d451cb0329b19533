"""What a config says of one source: where its records are and how they become documents, with every check of it.

Nothing is opened here (`sources.open_source`). Without a `format`, the name alone decides what a source is: a bare word
is a synthetic dataset, a known suffix a file, and `owner/name` that is no folder here the name of a data set.
"""

import re
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from hybridgen.core.names import PATHS
from hybridgen.core.recognition import FilePath, expand
from hybridgen.data.formats.fields import PICTURES, USUAL_COLUMNS
from hybridgen.data.formats.image_folder import METADATA, is_litter
from hybridgen.data.formats.rows import FORMS, PLAIN_FORMS
from hybridgen.data.synthetic import DATASETS
from hybridgen.processing_hybridgen import LOSS_ON

LARGEST_BUFFER = 1_000_000
_OF_PROMPTS = ("prompt_dropout", "order")  # keys that concern what a user says
_OF_PICTURES = ("write", "clean_copy", "height", "width", "image_tokens", "max_timestep", "images")
LONG = ("split", "truncate", "refuse")
ORDERS = {"caption_first": 1.0, "image_first": 0.0}
RENAMED_FORMATS = {"world": "synthetic"}  # old value of `format` -> what it is called now
FORMATS = ("synthetic", "jsonl", "json", "csv", "folder", "webdataset", "parquet", "dataset", "txt")
ROWS = ("jsonl", "json", "csv", "folder", "webdataset", "parquet", "dataset", "txt")
STREAMED = ("jsonl", "webdataset", "parquet", "dataset")
SUFFIXES = {
    ".jsonl": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet",
    ".tar": "webdataset", ".tgz": "webdataset", ".txt": "txt",
}  # fmt: skip

FORMATS_OF_KEY = {  # keys that not every format has
    "task": ("synthetic",),
    "questions_per_picture": ("synthetic",),
    "yes_no_questions": ("synthetic",),
    "categories": ("synthetic",),
    "reasoning": ("synthetic",),
    "open_captions": ("synthetic",),
    "oversampling": ("synthetic",),
    "size": ("synthetic",),
    "seed": ("synthetic",),
    "split": ("synthetic", "dataset", "folder"),
    "subset": ("dataset",),
    "form": ROWS,
    "columns": ROWS,
    "images": ("jsonl", "json", "csv", "parquet", "dataset"),
    "streaming": STREAMED,
    "part": ROWS,
}


@dataclass
class SourceConfig:
    """One source of the mixture.

    Args:
        source: a synthetic dataset (`dolls`), a folder of captioned pictures (`formats.image_folder`), .jsonl,
            .json, .csv, .parquet, .tar or .txt files (a pattern with * or {000..007} for many), or a data set's name or
            folder.
        name: what it is called in logs and checkpoints; None = made of source, task and path.
        task: synthetic datasets only: `draw`, `answer` or `chat` (conversations of several turns).
        split: of a synthetic dataset or a data set (None = `train`), or a folder of this name inside the source.
        subset: of a data set: what the datasets library calls its configuration.
        format: one of `FORMATS`; None = found by the source's name.
        form: what every row is (`formats.rows`); None = told by the columns of each.
        columns: names of columns that are not the usual, as in {image: picture, text: json.caption}.
        images: the folder that paths of images are relative to; None = that of the file.
        streaming: read from front to end, and shuffle within `buffer` records; nothing is counted or copied before.
        buffer: records of a chunk of a stream, within which it is shuffled.
        part: of its records only those between two shares, as in [0, 0.95] for training and [0.95, 1] for validation:
            no record is in both, whatever the seed (`data.part`).
        weight: its share of the tokens is this over the sum of all weights. One that changes is a mapping from the
            optimizer step on which it begins to hold, the first 0: `{0: 0.5, 1000: 0.1}`.
        read, write, loss_on, clean_copy, height, width: see `HybridGenProcessor.document`; `read` may be a list of
            paths.
        prompt_dropout: share of the documents that lose what the user says (0.1 is usual where guidance is wanted).
        image_tokens: images are drawn (or read by a path that draws) at their own aspect ratio, in the size that is
            nearest to it and has at most so many tokens; instead of height and width.
        max_timestep: cap on the noise of pictures that are drawn, of 1000; None = no other than the objective's.
        long: what becomes of a document of more tokens than a row: `split` cuts it into pieces that follow one another,
            `truncate` keeps the first of them, `refuse` makes it a broken record; None = `split` for what has no chat
            template, `refuse` for conversations.
        order: `caption_first`, `image_first`, or the share of documents that are caption first (Transfusion: 0.8).
            Concerns records of a caption by the user and a picture by the assistant; `image_first` exchanges the two.
            With loss_on `all` the picture is still written (Transfusion), with `assistant` it is then only read.
        questions_per_picture: synthetic datasets' `answer` and `chat` only, as the next three; None = all that apply.
        yes_no_questions: how many of those that apply are yes/no questions; None = 1.
        categories: which of the dataset's CATEGORIES are asked about; None = all.
        reasoning: the assistant first writes what a yes or no follows from, between `<think>` and `</think>`;
            `HybridGenPipeline.answer` leaves that out.
        open_captions: synthetic datasets only: the share of captions that leave something open, by which several
            pictures are right; None = 0.
        oversampling: synthetic datasets only: how much more often than others of their kind things are shown, as in
            {dwarf: 2.5, elf: 2}.
        size: synthetic datasets only: pixels a side of their pictures; None = the dataset's own (dolls 32, emoji 64).
        shuffle: a new order in each epoch; False = as they stand.
        seed: synthetic datasets only: added to the run's, for pictures other than another source's.
    """

    source: FilePath
    name: str | None = None
    task: str | None = None
    split: str | None = None
    subset: str | None = None
    format: str | None = None
    form: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    images: FilePath | None = None
    streaming: bool = False
    buffer: int = 1000
    part: list[float] | None = None
    weight: float | dict = 1.0
    read: str | list = "understanding"
    write: str | None = None
    loss_on: str = "assistant"
    prompt_dropout: float = 0.0
    clean_copy: bool = False
    order: str | float = "caption_first"
    height: int | None = None
    width: int | None = None
    image_tokens: int | None = None
    max_timestep: float | None = None
    long: str | None = None
    questions_per_picture: int | None = None
    yes_no_questions: int | None = None
    categories: list[str] | None = None
    reasoning: bool = False
    open_captions: float | None = None
    oversampling: dict[str, float] = field(default_factory=dict)
    size: int | None = None
    shuffle: bool = True
    seed: int = 0

    def __post_init__(self):
        self.source = expand(self.source)
        self.images = None if self.images is None else expand(self.images)
        if self.name is None:
            read = self.read if isinstance(self.read, str) else "+".join(map(str, self.read))
            words = (_name_of_files(self.source) if self.is_file else self.source, self.task, self.write or read)
            self.name = "-".join(word for word in words if word)
        self._check_weight()
        if not 0 <= self.prompt_dropout <= 1:
            raise ValueError(f"{self.name}: prompt_dropout is {self.prompt_dropout}; it must lie between 0 and 1")
        if self.order not in ORDERS and not (isinstance(self.order, int | float) and 0 <= self.order <= 1):
            raise ValueError(
                f"{self.name}: order is {self.order!r}; use 'caption_first', 'image_first' or a share from 0 to 1"
            )
        for key, value, allowed in (
            *(("read", path, PATHS) for path in self.reads),
            ("write", self.write, (None, *PATHS)),
            ("loss_on", self.loss_on, LOSS_ON),
            ("long", self.long, (None, *LONG)),
        ):
            if value not in allowed:
                known = ", ".join(str(each) for each in allowed if each is not None or key == "write")
                raise ValueError(f"{self.name}: {key} is {value!r}; it must be one of {known}")
        if not self.reads or len(set(self.reads)) < len(self.reads):
            raise ValueError(f"{self.name}: read is {self.read!r}; name each path by which images are read once")
        if self.open_captions is not None and not 0 <= self.open_captions <= 1:
            raise ValueError(f"{self.name}: open_captions is {self.open_captions}; it must lie between 0 and 1")
        self._check_images()
        self._check_format()

    def _check_images(self) -> None:
        if self.image_tokens is not None:
            if self.image_tokens < 1:
                raise ValueError(f"{self.name}: image_tokens is {self.image_tokens}; it must be at least 1")
            if self.height is not None or self.width is not None:
                raise ValueError(f"{self.name}: image_tokens is given, and so are height or width; keep one of them")
            if not {*self.reads, self.write} & {"diffusion", "vq"}:
                raise ValueError(f"{self.name}: image_tokens belongs to the paths diffusion and vq; leave it out")
        if self.max_timestep is not None and not 0 < self.max_timestep <= 1000:
            raise ValueError(f"{self.name}: max_timestep is {self.max_timestep}; it must be in (0, 1000]")
        if self.max_timestep is not None and self.write != "diffusion":
            raise ValueError(f"{self.name}: max_timestep belongs to write: diffusion, not {self.write}; leave it out")

    def _check_format(self) -> None:
        if self.format in RENAMED_FORMATS:
            raise ValueError(
                f"{self.name}: format {self.format!r} is called {RENAMED_FORMATS[self.format]!r} now; rename it"
            )
        for key, value, allowed in (("format", self.format, FORMATS), ("form", self.form, FORMS)):
            if value not in (None, *allowed):
                raise ValueError(f"{self.name}: {key} is {value!r}; it must be one of {', '.join(allowed)}")
        kind = self.kind
        if kind == "synthetic" and self.task is None:
            raise ValueError(
                f"{self.name}: task is missing; {self.source!r} is read as the name of a synthetic dataset, which "
                f"needs 'draw', 'answer' or 'chat' (a folder is written with a slash: {self.source + '/'!r})"
            )
        if kind == "synthetic" and self.source not in DATASETS:
            raise ValueError(
                f"{self.name}: there is no synthetic dataset {self.source!r}, only {', '.join(DATASETS)}; a folder "
                f"is written with a slash ({self.source + '/'!r}), a file with its suffix"
            )
        self._check_form()
        for key, kinds in FORMATS_OF_KEY.items():
            if getattr(self, key) not in (None, {}, False) and kind not in kinds:
                belongs = "synthetic datasets" if kinds[0] == "synthetic" else " and ".join(kinds)
                what = "synthetic dataset" if kind == "synthetic" else kind
                lines = ", or say format: jsonl if it holds lines" if (key, kind) == ("streaming", "json") else ""
                raise ValueError(f"{self.name}: {key} belongs to {belongs}; a {what} has none, leave it out{lines}")
        for thing, factor in self.oversampling.items():
            if not isinstance(thing, str):
                raise ValueError(f"{self.name}: oversampling has {thing!r}; its keys are names, as in {{dwarf: 2.5}}")
            if not isinstance(factor, int | float) or not 0 < factor < float("inf"):
                raise ValueError(f"{self.name}: oversampling has {factor!r} for {thing!r}; it must be a number above 0")
        self._check_part()
        if self.buffer < 1:
            raise ValueError(f"{self.name}: buffer is {self.buffer}; it must be at least 1")
        if self.buffer > LARGEST_BUFFER:
            raise ValueError(
                f"{self.name}: buffer is {self.buffer}; it must be at most {LARGEST_BUFFER:,}, as a few times as many "
                "records are kept in memory"
            )
        if unknown := sorted(map(str, set(self.columns) - set(USUAL_COLUMNS))):
            known = ", ".join(USUAL_COLUMNS)
            raise ValueError(f"{self.name}: columns says what {unknown[0]!r} is, but the parts of a row are {known}")
        if unknown := [name for name in self.columns.values() if not isinstance(name, str)]:
            raise ValueError(f"{self.name}: columns has {unknown[0]!r}; each must be the name of a column")

    def _check_part(self) -> None:
        if self.part is None:
            return
        if len(self.part) != 2 or not 0 <= self.part[0] < self.part[1] <= 1:
            raise ValueError(
                f"{self.name}: part is {self.part}; give two shares in order, from 0 to 1, as in [0, 0.95]"
            )
        if self.streaming:
            raise ValueError(
                f"{self.name}: part is {self.part}, but the records of a stream are not counted; leave one of part and "
                "streaming out, or stream other files for validation"
            )

    def _check_form(self) -> None:
        """Raises ValueError for keys that mean nothing for records of the form, which would be ignored."""
        ignored = _OF_PROMPTS if self.form in PLAIN_FORMS else ()
        ignored = (*ignored, *_OF_PICTURES) if self.form == "text" else ignored
        for key in ignored:
            if (value := getattr(self, key)) != type(self).__dataclass_fields__[key].default:
                what = "a text alone" if self.form == "text" else "a document without a prompt"
                raise ValueError(
                    f"{self.name}: {key} is {value!r}, but records of form {self.form!r} are {what}; leave it out"
                )

    def _check_weight(self) -> None:
        by_step = self.weight if isinstance(self.weight, dict) else {0: self.weight}
        if 0 not in by_step or any(not isinstance(step, int) or step < 0 for step in by_step):
            raise ValueError(
                f"{self.name}: weight is {self.weight}; one that changes is a mapping from optimizer steps, the first "
                "of them 0, as in {0: 0.5, 1000: 0.1}"
            )
        for weight in by_step.values():
            if not isinstance(weight, int | float) or not 0 <= weight < float("inf"):
                raise ValueError(f"{self.name}: weight is {weight}; it must be a finite number of at least 0")

    @property
    def is_file(self) -> bool:
        """Whether the source is a file or folder, and not the name of a synthetic dataset."""
        return self.kind != "synthetic"

    @property
    def kind(self) -> str:
        """Its format: the one given, else the one that its name tells."""
        if self.format is not None:
            return self.format
        path = Path(self.source)
        suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in (".gz", ".zst", ".bz2", ".xz")]
        if suffixes and suffixes[-1] in SUFFIXES:
            return SUFFIXES[suffixes[-1]]
        if path.is_dir() and ("/" in self.source or path.suffix):
            return "dataset" if _is_hf_dataset(path, path.stat().st_mtime_ns) else "folder"
        if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", self.source) and not path.suffix:
            return "dataset"  # owner/name
        return "jsonl" if path.suffix or "/" in self.source else "synthetic"

    def long_for(self, plain: bool) -> str:
        """What becomes of a document longer than a row; `plain`: it has no chat template."""
        return self.long or ("split" if plain else "refuse")

    @property
    def reads(self) -> list[str]:
        """The paths by which images are read."""
        return [self.read] if isinstance(self.read, str) else list(self.read)

    @property
    def caption_first(self) -> float:
        """The share of documents that are caption first."""
        return ORDERS[self.order] if isinstance(self.order, str) else float(self.order)


def _name_of_files(source: str) -> str:
    """A file's name without its pattern: `train` for `shards/train-{000..007}.tar`, `shards` for `shards/*.tar`."""
    path = Path(source)
    stem = re.sub(r"\{[^}]*\}|\[[^]]*\]|[*?]+", "", path.stem)
    stem = path.stem if stem == path.stem else re.sub(r"[-_.]{2,}", "-", stem).strip("-_.")
    return stem or path.parent.name


@lru_cache(100)
def _is_hf_dataset(folder: Path, changed: int) -> bool:
    """Whether a folder is one of the datasets library: it holds files of data, no picture and no link to a folder.

    Args:
        changed: when the folder was last; as long as it stays the same, what is in it is not looked at again.
    """
    if (folder / METADATA[0]).is_file():
        return False
    has_data = False
    for file in folder.rglob("*"):
        if any(map(is_litter, file.relative_to(folder).parts)):
            continue
        if file.suffix.lower() in PICTURES or (file.is_symlink() and file.is_dir()):
            return False
        has_data = has_data or file.suffix in (".parquet", ".arrow", ".jsonl", ".csv", ".tar")
    return has_data
