"""Makes hybridgen/small, the checkpoint that comes with the package, of a finished run of configs/small.yaml.

    python scripts/package_small.py RUN                               writes weights, settings, log and licences
    hybridgen evaluate hybridgen/small --suite ... --out SCORES       measures what was written
    python scripts/package_small.py RUN --scores SCORES/scores.json   puts the scores beside it

The model's weights are rounded to bf16, which halves the file; its config says float32, so that they are computed with
in float32 wherever no other precision is asked for. The codec, which is small, stays float32. Everything is a function
of the run and of the scores: made twice, it is the same to the byte.
"""

import argparse
import csv
import io
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import hybridgen  # noqa: F401  first: it mends torchvision beside a CPU build of torch
from hybridgen.checkpoints.model_card import model_card
from hybridgen.configuration_hybridgen import HybridGenConfig
from hybridgen.core.files import put_in_place, read_json, write_json, write_whole
from hybridgen.evaluation.scores import in_lines

ROOT = Path(__file__).parents[1]
CONFIGS = ("small.yaml", "small_codec.yaml", "small_tower.yaml")
WEIGHTS = "model/model.safetensors"
EMPTY = "To be added by those who trained it.\n"  # of a card that says nothing of training yet
TRAINED_ON = """Trained from random weights in three stages, `training/small_codec.yaml`, `small_tower.yaml` and
`small.yaml` beside it (all with seed 0), whose headers state command, hardware, time and figures; `training/log.csv` is
the loss of every source in the last.

All of its data comes with the package and is drawn by it, at 64x64 pixels: dolls, emoji, shapes and words
(`hybridgen.data.synthetic`). It knows no photographs, and no English but the prompts, questions and answers of these
four. It is there to try the library with and to test it, not to be used for anything else.

### Licences of the data

| data | made by | licence |
|---|---|---|
| dolls | contributors of Dungeon Crawl Stone Soup; RLTiles | mostly CC0; base tiles public domain |
| emoji, `twitter` | Twemoji, Twitter, Inc. and other contributors | CC-BY-4.0 |
| emoji, `google` | Noto Emoji, Google | Apache-2.0 |
| emoji, `flat` and `3d` | Fluent Emoji, Microsoft | MIT |
| emoji, names and tags | emojibase-data (Miles Johnson and contributors), on Unicode CLDR | MIT; Unicode licence v3 |
| words, list | SCOWL, Kevin Atkinson and others | permission for any purpose, with its notice |
| words, fonts | DejaVu, as matplotlib ships it | Bitstream Vera licence; changes in the public domain |
| words, fonts | STIX, as matplotlib ships it | STIX Font General Public License |
| shapes | drawn by the package | the package's |

The whole notices: `hybridgen/data/synthetic/assets/ATTRIBUTION.md`. The weights are under the package's licence.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path, help="output_dir of configs/small.yaml, trained to its end")
    parser.add_argument("--out", type=Path, default=ROOT / "hybridgen" / "small")
    parser.add_argument("--scores", type=Path, help="scores.json of an evaluation of OUT, to be put beside it")
    options = parser.parse_args()
    aside = options.out.with_name(f".{options.out.name}.new")
    shutil.rmtree(aside, ignore_errors=True)
    shutil.copytree(options.run / "checkpoint", aside)
    halve(aside)
    training = aside / "training"
    training.mkdir()
    for name in CONFIGS:
        shutil.copyfile(ROOT / "configs" / name, training / name)
    write_whole(training / "log.csv", log(options.run / "metrics.jsonl"))
    scores = read_json(options.scores) if options.scores else None
    if scores is not None:
        write_json(aside / "scores.json", scores)
    write_whole(aside / "README.md", card(aside, scores))
    for file in aside.rglob("*"):
        file.chmod(0o755 if file.is_dir() else 0o644)  # safetensors keeps what it writes to its owner
    shutil.rmtree(options.out, ignore_errors=True)
    put_in_place(aside, options.out)
    size = sum(file.stat().st_size for file in options.out.rglob("*") if file.is_file())
    print(f"{options.out}: {size / 1e6:.1f} MB")


def halve(folder: Path) -> None:
    """Round the model's weights to bf16, in place, and have them loaded as float32."""
    weights = load_file(folder / WEIGHTS)
    halved = {name: weight.bfloat16() if weight.dtype == torch.float32 else weight for name, weight in weights.items()}
    save_file(halved, folder / WEIGHTS, metadata={"format": "pt"})
    config = read_json(folder / "model" / "config.json")
    if config["dtype"] != "float32":
        raise ValueError(f"{folder} was saved in {config['dtype']}; give a run with float32 weights")


def log(metrics: Path) -> str:
    """The losses of a run as CSV: a row for each logged step, a column for each source."""
    rows = [row for row in map(json.loads, metrics.read_text().splitlines()) if "loss" in row]
    ends = ("/loss", "/text", "/code", "/diffusion")
    sources = [name for name in rows[-1] if name.startswith("source/") and name.endswith(ends[1:])]
    columns = ["step", "tokens", "lr", "loss", "loss/text", "loss/code", "loss/diffusion", *sources]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow(
            [f"{row[name]:.4g}" if isinstance(row.get(name), float) else row.get(name, "") for name in columns]
        )
    return text.getvalue()


def card(folder: Path, scores: dict | None) -> str:
    """The model card: what every checkpoint's says, then what this one was trained on and how well it does."""
    weights = load_file(folder / WEIGHTS)
    config = HybridGenConfig.from_pretrained(folder / "model")
    text = model_card(config, sum(weight.numel() for weight in weights.values()), title="hybridgen/small")
    if EMPTY not in text:
        raise ValueError("the model card has no place for training data and results any more; mend this script")
    text = text.replace('from_pretrained("PATH OR NAME")', 'from_pretrained("hybridgen/small")')
    text = text.replace(EMPTY, TRAINED_ON)
    if scores is not None:
        lines = "\n".join(in_lines(scores))
        text += "\n### Results\n\nOf `hybridgen evaluate hybridgen/small`; `scores.json` has all of it.\n\n"
        text += f"```\n{lines}\n```\n"
    return text


if __name__ == "__main__":
    main()
