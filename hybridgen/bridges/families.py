"""The bridges by the models that they bring in: which of them a folder is for, and a conversion by it.

Each bridge is a folder beside this file. What a command or a script asks of any of them is here: open a checkpoint, say
what a conversion would do and lose, and write it.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from hybridgen.bridges.chameleon import checkpoint as chameleon_checkpoint
from hybridgen.bridges.chameleon import conversion as chameleon_conversion
from hybridgen.bridges.chameleon import report as chameleon_report
from hybridgen.bridges.folders import config_of, kind_of
from hybridgen.bridges.janus import checkpoint as janus_checkpoint
from hybridgen.bridges.janus import conversion as janus_conversion
from hybridgen.bridges.janus import report as janus_report
from hybridgen.bridges.layouts import LAYOUTS, SHARD_SIZE
from hybridgen.bridges.llava import checkpoint as llava_checkpoint
from hybridgen.bridges.llava import conversion as llava_conversion
from hybridgen.bridges.llava import report as llava_report
from hybridgen.checkpoints.loading import new_folder
from hybridgen.core.files import read_json
from hybridgen.core.recognition import user_path
from hybridgen.paths.chameleon_decoder import ChameleonDecoderConfig


class Family(NamedTuple):
    """A bridge.

    Args:
        knows: whether a config.json in another library's layout is of such a model.
        options: names of the arguments of `open` beside the folder.
        open: (folder, **options) -> a description of the checkpoint.
        check: (checkpoint, layout); raises ValueError where it cannot be written so.
        report, lost: (checkpoint, layout) -> lines: the dry run, and what the new layout cannot carry.
        writers: layout -> (checkpoint, folder, max_shard_size).
    """

    name: str
    knows: Callable[[dict], bool]
    options: tuple[str, ...]
    open: Callable[..., Any]
    check: Callable[[Any, str], None]
    report: Callable[[Any, str], Iterator[str]]
    lost: Callable[[Any, str], Iterator[str]]
    writers: dict[str, Callable]


def _janus_knows(config: dict) -> bool:
    return config.get("model_type") in ("janus", "multi_modality")


FAMILIES = (
    Family(
        "Janus", _janus_knows, ("style",), janus_checkpoint.open_janus, janus_conversion.check_conversion,
        janus_report.report_lines, janus_report.lost, janus_conversion.WRITERS,
    ),
    Family(
        "Chameleon", chameleon_checkpoint.is_chameleon, ("vq_decoder",), chameleon_checkpoint.open_chameleon,
        chameleon_conversion.check_conversion, chameleon_report.report_lines, chameleon_report.lost,
        chameleon_conversion.WRITERS,
    ),
    Family(
        "LLaVA", llava_checkpoint.is_llava, (), llava_checkpoint.open_llava, llava_conversion.check_conversion,
        llava_report.report_lines, llava_report.lost, llava_conversion.WRITERS,
    ),
)  # fmt: skip


class Conversion(NamedTuple):
    """A checkpoint that was opened by its bridge, to be written in a layout."""

    family: Family
    checkpoint: Any
    to: str

    def report(self) -> Iterator[str]:
        """The lines of a dry run. Raises ValueError behind them where nothing could be written."""
        yield from self.family.report(self.checkpoint, self.to)
        self.family.check(self.checkpoint, self.to)

    def lost(self) -> Iterator[str]:
        """What the new layout cannot carry, one per line."""
        return self.family.lost(self.checkpoint, self.to)


def find_family(folder: Path, to: str) -> Family:
    """The bridge for a folder that is to be written in a layout.

    Raises:
        ValueError: no bridge knows the model, or there is no such layout.
    """
    if to not in LAYOUTS:
        raise ValueError(f"there is no layout {to!r}; choose among {', '.join(LAYOUTS)}")
    if (config := config_of(folder)) is None:
        if to != "hybridgen":
            return next(family for family in FAMILIES if to in family.writers)
        return _family_of_ours(read_json(folder / "model" / "config.json"))
    if (family := next((family for family in FAMILIES if family.knows(config)), None)) is None:
        names = ", a ".join(family.name for family in FAMILIES)
        raise ValueError(
            f"{folder} holds a {kind_of(config)}, not a {names} or a checkpoint of hybridgen, which are those that can "
            "be converted"
        )
    if to not in family.writers:
        raise ValueError(
            f"{folder} holds a {kind_of(config)}, which cannot be written as {to}; a {family.name} can as "
            f"{' or '.join(family.writers)}"
        )
    return family


def _family_of_ours(config: dict) -> Family:
    """The bridge by which a checkpoint of ours is written anew."""
    by_name = {family.name: family for family in FAMILIES}
    if (config.get("text_config") or {}).get("model_type") == ChameleonDecoderConfig.model_type:
        return by_name["Chameleon"]
    reads_only = not (config.get("vq_config") or config.get("diffusion_config"))
    return by_name["LLaVA" if reads_only else "Janus"]


def open_conversion(folder: str | Path, to: str = "hybridgen", **options) -> Conversion:
    """A checkpoint, opened and checked without reading its weights, for what it is to be written as.

    Args:
        options: what the model's bridge can be told (`Family.options`); None = not given.

    Raises:
        ValueError: in one sentence, what the folder is or lacks, or which option is not for it.
    """
    folder = user_path(folder)
    family = find_family(folder, to)
    given = {name: value for name, value in options.items() if value is not None}
    if wrong := [name for name in given if name not in family.options]:
        raise ValueError(f"--{wrong[0].replace('_', '-')} is not for a {family.name}, which {folder} is; leave it out")
    return Conversion(family, family.open(folder, **given), to)


def convert(
    source: str | Path,
    destination: str | Path,
    to: str = "hybridgen",
    max_shard_size: int | str = SHARD_SIZE,
    **options,
) -> Conversion:
    """Write a checkpoint of any bridge in another layout.

    Args:
        destination: a folder that is not there yet, or empty. It appears when all is written.
        to: one of `layouts.LAYOUTS`.
        max_shard_size: of a file of weights, in bytes or as "5GB"; how the source was cut does not matter.
        options: see `open_conversion`.

    Raises:
        ValueError: what is wrong, in one sentence; nothing is written then.
    """
    with new_folder(destination) as unfinished:
        conversion = open_conversion(source, to, **options)
        conversion.family.check(conversion.checkpoint, to)
        conversion.family.writers[to](conversion.checkpoint, unfinished, max_shard_size)
    return conversion
