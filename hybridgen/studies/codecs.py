"""Codecs that the runs of a study stand on: each is trained once, from a config of its own, before all else.

A config says where it writes, and a run names that folder (`codec: {vq: runs/study/codec/checkpoint/vq_model}`), so
that each of them can be trained alone. In a study the codec lies in the study's folder, and the runs' configs are led
there. Until it is trained, an untrained one of the same shape stands in, so that every config can be checked and every
budget counted before anything long is begun.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from hybridgen.studies.runs import Run, check_folder, make
from hybridgen.training.config.checks import load_config
from hybridgen.training.config.schema import TrainConfig
from hybridgen.training.stages.vae import build_vae
from hybridgen.training.stages.vq import build_vq_model

Moved = dict[str, str]  # the folder that a codec's config says that it writes to -> the one to take


def open_codecs(files: Sequence[Path]) -> dict[str, TrainConfig]:
    """The configs by name. Raises ValueError for one that trains no codec, or two of one name."""
    configs = {}
    for file in files:
        config = load_config(file)
        if config.stage != "codec":
            raise ValueError(f"{file} trains a {config.stage}, but only codecs can come before the runs; take it out")
        if file.stem in configs:
            raise ValueError(f"two configs of codecs are called {file.stem}, as their folders would be; rename one")
        configs[file.stem] = config
    return configs


def stand_ins(files: Sequence[Path], folder: Path) -> Moved:
    """Untrained codecs of the same shapes, in a folder."""
    moved = {}
    for name, config in open_codecs(files).items():
        checkpoint = folder / name / "checkpoint"
        if config.vq_model is not None:
            build_vq_model(config.vq_model, config.seed).save_pretrained(checkpoint / "vq_model")
        else:
            build_vae(config.vae, config.seed).save_pretrained(checkpoint / "vae")
        moved[config.output_dir.rstrip("/")] = str(folder / name)
    return moved


def train_codecs(files: Sequence[Path], out: Path) -> Moved:
    """Train those that are not there yet, into `out`."""
    moved = {}
    for file, (name, config) in zip(files, open_codecs(files).items(), strict=True):
        run = Run(name, config.seed, out / name, file, (f"output_dir={json.dumps(str(out / name))}",))
        check_folder(run)
        make(run)
        moved[config.output_dir.rstrip("/")] = str(out / name)
    return moved


def redirect(content: dict, moved: Moved) -> tuple[str, ...]:
    """Overrides for the codecs of a config that lie in folders of `moved`."""
    words = []
    for key, path in (content.get("codec") or {}).items():
        for declared, folder in moved.items():
            if isinstance(path, str) and re.match(rf"{re.escape(declared)}(/|$)", path):
                words.append(f"codec.{key}={json.dumps(folder + path[len(declared) :])}")
    return tuple(words)
