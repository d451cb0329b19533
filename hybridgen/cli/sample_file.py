"""`hybridgen sample --prompts`: the pictures of a file of prompts, in a folder that is a data set once it is done.

    OUT/manifest.json     what is drawn there: checkpoint, file and settings; nothing else may be mixed with it
    OUT/000012.png        a picture, by its number, with a manifest of its own
    OUT/metadata.jsonl    a line for each picture, with its prompt; written last, when all are there

Pictures are drawn in batches that are the same ones however often the work is stopped and by however many processes it
is done: number r of n draws batches r, r + n, r + 2 n, ... A batch that lacks a picture is drawn again as a whole, as
pictures of one batch may decide each other's rounding (bf16, a GPU). So what was killed and goes on ends as it would
have.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybridgen.bridges.adapters import open_pipeline
from hybridgen.checkpoints.hashes import file_hash
from hybridgen.checkpoints.manifest import edit_origin, image_origin, make_manifest, versions
from hybridgen.checkpoints.png import png_bytes, png_text
from hybridgen.cli.arguments.types import DRAWING_OPTIONS, drawing_settings
from hybridgen.cli.pictures import open_picture
from hybridgen.cli.prompt_file import SETTINGS, PromptRow, read_prompts
from hybridgen.cli.running import best_device, guidance_named, tell_steps
from hybridgen.core.files import read_json, write_json, write_whole
from hybridgen.core.names import OF_PATH, check_belongs
from hybridgen.core.progress import task_line
from hybridgen.core.recognition import is_there
from hybridgen.core.values import shown
from hybridgen.evaluation.folder import checkpoint_identity, differences
from hybridgen.evaluation.processes import Processes
from hybridgen.pipeline_hybridgen import HybridGenPipeline
from hybridgen.sampling.guidance import Guidance
from hybridgen.sampling.seeds import nth_seed
from hybridgen.training.distributed.launched import quiet_libraries
from hybridgen.training.monitor.tracking import say

MANIFEST, METADATA = "manifest.json", "metadata.jsonl"
_NAMES = {name: key for key, name in SETTINGS.items()}


@dataclass(frozen=True)
class Picture:
    """One to draw.

    Args:
        number: of all, which names its file.
    """

    number: int
    row: PromptRow
    path: str
    seed: int
    settings: dict[str, Any]

    @property
    def name(self) -> str:
        return f"{self.number:06d}.png"

    @property
    def kind(self) -> str:
        """What pictures of one call have in common."""
        row = self.row
        edited = row.edit is None, row.mask is None, row.strength
        return json.dumps([self.path, row.guider, row.read, row.image is None, edited, self.settings], sort_keys=True)


def run(options: argparse.Namespace, batch: int) -> Iterator[str]:
    """
    1. Read the file and open the checkpoint; check every row.
    2. Draw batch by batch what is not there yet, this process its share.
    3. Write the metadata. Yields its path, in the first process alone.
    """
    with Processes.launched() as processes, task_line(processes.is_main) as tell:
        if not processes.is_main:
            quiet_libraries(also_warnings=True)
        rows = read_prompts(options.prompts, options)
        pipeline = best_device(open_pipeline(options.checkpoint))
        pictures = list(_pictures(rows, pipeline, options))
        batches = _batches(pictures, batch)
        for each in batches:
            _check(each, pipeline)
        _open_folder(options.out, _identity(options, pipeline, len(pictures)), processes)
        _draw_all(batches[processes.rank :: processes.count], pipeline, options.out, processes, tell)
        if not processes.is_main:
            return
        write_whole(options.out / METADATA, "".join(_line(picture) for picture in pictures))
    say(f"{len(pictures):,} pictures of {len(rows):,} prompts are in {options.out}, a data set as it is")
    yield str(options.out / METADATA)


def _pictures(rows: list[PromptRow], pipeline: HybridGenPipeline, options: argparse.Namespace) -> Iterator[Picture]:
    """All pictures in the order of the rows."""
    of_all, seed, number = drawing_settings(options), options.seed, 0
    paths = {row.path: _of_row(row, lambda row: pipeline.writing_path(row.path)) for row in rows}
    check_belongs(of_all, list(dict.fromkeys(paths.values())), DRAWING_OPTIONS)
    for row in rows:
        path = paths[row.path]
        settings = {name: value for name, value in of_all.items() if name in OF_PATH[path]} | row.settings

        def complete(row: PromptRow, path=path, settings=settings) -> dict:
            check_belongs(row.settings, [path], _NAMES)
            return pipeline.sampling_settings(path, **settings)

        settings = _of_row(row, complete)
        seed = seed if row.seed is None else row.seed
        for _ in range(row.num_images):
            yield Picture(number, row, path, seed, settings)
            number, seed = number + 1, nth_seed(seed, 1)


def _of_row(row: PromptRow, function: Callable[[PromptRow], Any]) -> Any:
    """What the function gives. Raises ValueError with the row's place."""
    try:
        return function(row)
    except ValueError as error:
        raise ValueError(f"{row.where}: {error}") from None


def _batches(pictures: list[Picture], size: int) -> list[list[Picture]]:
    """Pictures that one call can draw, at most `size` together, in the order of the first of each."""
    by_kind: dict[str, list[Picture]] = {}
    for picture in pictures:
        by_kind.setdefault(picture.kind, []).append(picture)
    batches = [of_one[first : first + size] for of_one in by_kind.values() for first in range(0, len(of_one), size)]
    return sorted(batches, key=lambda batch: batch[0].number)


def _arguments(batch: list[Picture], guidance: Guidance | None) -> dict:
    """Of the call that draws a batch, but for its seeds."""
    first = batch[0]
    arguments = {
        "prompt": [picture.row.prompt for picture in batch],
        "negative_prompt": [picture.row.negative_prompt for picture in batch],
        "height": [picture.row.height for picture in batch],
        "width": [picture.row.width for picture in batch],
        "path": first.path,
        "guider": guidance,
        **first.settings,
    }
    if first.row.image is not None:
        arguments |= {"image": [open_picture(picture.row.image) for picture in batch], "read": first.row.read}
    if first.row.edit is not None:
        arguments |= {
            "edit_image": [open_picture(picture.row.edit) for picture in batch],
            "strength": first.row.strength,
        }
    if first.row.mask is not None:
        arguments["mask_image"] = [open_picture(picture.row.mask) for picture in batch]
    return arguments


def _check(batch: list[Picture], pipeline: HybridGenPipeline) -> None:
    """Raises ValueError, with the row, for what a call with this batch refuses."""
    guidance = guidance_named(batch[0].row.guider, batch[0].path)
    try:
        pipeline.check_call(**_arguments(batch, guidance))
    except ValueError:
        for picture in batch:  # which of them it was
            _of_row(picture.row, lambda _, picture=picture: pipeline.check_call(**_arguments([picture], guidance)))
        raise


def _draw_all(
    batches: list[list[Picture]],
    pipeline: HybridGenPipeline,
    out: Path,
    processes: Processes,
    tell: Callable[[str, int, int], None],
) -> None:
    """Raises ValueError, OSError: what one process meets, in all of them."""
    error, done, total = None, 0, sum(map(len, batches))
    tell_steps(pipeline, lambda step, of: tell("drawing", min(total, done + len(batch) * step // of), total))
    try:
        for batch in batches:
            if not all((out / picture.name).is_file() for picture in batch):
                _draw(batch, pipeline, out)
            done += len(batch)
            tell("drawing", done, total)
    except (ValueError, OSError) as raised:
        error = raised
    processes.agree(error)


def _draw(batch: list[Picture], pipeline: HybridGenPipeline, out: Path) -> None:
    guidance = guidance_named(batch[0].row.guider, batch[0].path)
    arguments = _arguments(batch, guidance)
    images = pipeline(seed=[picture.seed for picture in batch], **arguments).images
    read = None if batch[0].row.image is None else batch[0].row.read or pipeline.model.config.paths[0]
    for number, (picture, image) in enumerate(zip(batch, images, strict=True)):
        row, origin, edited = picture.row, None, None
        if row.image is not None:
            origin = image_origin(row.image, arguments["image"][number], read)
        if row.edit is not None:
            mask = None if row.mask is None else arguments["mask_image"][number]
            edited = edit_origin(row.edit, arguments["edit_image"][number], row.mask, mask, row.strength)
        made_by = make_manifest(
            pipeline, pipeline.origin, picture.path, row.prompt, picture.seed, (image.height, image.width),
            picture.settings, negative_prompt=row.negative_prompt, guidance=guidance, image=origin,
            edit=edited,
        )  # fmt: skip
        write_whole(out / picture.name, png_bytes(image, png_text(made_by)))


def _line(picture: Picture) -> str:
    """A picture in the metadata: a captioned picture to whoever reads the folder, and how it was drawn."""
    drawn = {"path": picture.path, "seed": picture.seed, "from": picture.row.where, **picture.settings}
    if picture.row.edit is not None:
        files = {"edit": str(picture.row.edit), "mask": picture.row.mask and str(picture.row.mask)}
        drawn |= {**files, "strength": picture.row.strength or 1.0}
    line = {"file_name": picture.name, "text": picture.row.prompt, "drawn": drawn}
    return json.dumps(line, ensure_ascii=False) + "\n"


# ------------------------------------------------------------------------------------------------------ the folder


def _identity(options: argparse.Namespace, pipeline: HybridGenPipeline, count: int) -> dict:
    """What the pictures depend on."""
    given = {name: getattr(options, name) for name in ("path", "seed", "num_images", "negative_prompt", "height",
             "width", "read", "guider")}  # fmt: skip
    files = {name: getattr(options, name) for name in ("image", "edit", "mask")}
    hashes = {name: [file_hash(file) for file in named or ()] for name, named in files.items()}
    edited = {name: hashes[name] for name in ("edit", "mask") if hashes[name]}  # nothing new where nothing is edited
    edited |= {} if options.strength is None else {"strength": options.strength}
    return {
        "pictures": count,
        "prompts": {"file": options.prompts.name, "sha256": file_hash(options.prompts)},
        "checkpoint": checkpoint_identity(pipeline),
        "options": {**given, "image": hashes["image"], **edited, **drawing_settings(options)},
        "versions": versions(),
    }


def _open_folder(out: Path, identity: dict, processes: Processes) -> None:
    """Begin or go on in a folder.

    Raises:
        ValueError: it holds pictures of other prompts or settings, or something else.
        OSError: it cannot be written to.
    """
    error = None
    if processes.is_main:
        try:
            _open(out, json.loads(json.dumps(identity)))  # as it is saved
        except (ValueError, OSError) as raised:
            error = raised
    processes.agree(error)


def _open(out: Path, identity: dict) -> None:
    if (out / MANIFEST).is_file():
        for key, then, now in differences(read_json(out / MANIFEST), identity):
            raise ValueError(
                f"{out} holds pictures with {key} {shown(then)}, not {shown(now)}; give the same prompts and settings "
                "to go on, another --out for others, or delete it"
            )
        for left in out.glob(f".*.{'[0-9a-f]' * 8}.*"):  # what a process that was killed was writing
            left.unlink(missing_ok=True)
    elif is_there(out) and any(out.iterdir()):
        raise ValueError(f"{out} holds something that `sample --prompts` did not write; choose another --out")
    else:
        write_json(out / MANIFEST, identity)
