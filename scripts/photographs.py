"""Real photographs with captions, and how many held-out ones a model sorts rightly.

    python scripts/photographs.py fetch FOLDER [--stamps UNPACKED]
    python scripts/photographs.py score CHECKPOINT FOLDER

`fetch` takes Debian's `tuxpaint-stamps-default` (161 MB, GPL-2+, people's cut-out photographs of animals, food and
plants with captions), by apt-get and dpkg-deb, and writes train.jsonl, held_out.jsonl and pictures/ on white. `score`
asks of each held-out one what kind of thing it is, of eight: nearly every picture is the only one of its name, so a
name that was held out was never learnt.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from hybridgen.bridges.adapters import open_pipeline
from hybridgen.checkpoints.loading import new_folder
from hybridgen.data.formats.json_files import JsonlSource
from hybridgen.data.keyed_random import hash_uniform
from hybridgen.data.synthetic.questions import Question, score_answers
from hybridgen.evaluation import understanding
from hybridgen.evaluation.understanding import Quiz
from hybridgen.evaluation.work import Work

PACKAGE = "tuxpaint-stamps-default"
STAMPS = "usr/share/tuxpaint/stamps"
KINDS = {  # folders of the package with at least seven photographs -> what they hold
    "animals/birds": "bird",
    "animals/fish": "fish",
    "animals/insects": "insect",
    "animals/mammals": "mammal",
    "food/fruit": "fruit",
    "food/vegetables": "vegetable",
    "plants/flowers": "flower",
    "plants/trees": "tree",
}
QUESTION = f"is this a {', '.join(sorted(KINDS.values())[:-1])} or {max(KINDS.values())}?"
HELD_OUT = 0.25
SIZE = 128  # pixels, more than the small towers here look at


def fetch(folder: Path, stamps: Path | None) -> None:
    """Raises ValueError when the package cannot be had or holds no such pictures."""
    with tempfile.TemporaryDirectory() as scratch:
        stamps = unpack(Path(scratch)) if stamps is None else stamps
        with new_folder(folder) as aside:
            (aside / "pictures").mkdir()
            records = {"train": [], "held_out": []}
            for file, kind in photographs(stamps):
                name = str(file.relative_to(stamps).with_suffix("")).replace("/", "_") + ".png"
                on_white(file).save(aside / "pictures" / name)
                split = "held_out" if hash_uniform(f"photographs/{name}") < HELD_OUT else "train"
                records[split].append(record(f"pictures/{name}", kind, caption(file)))
            for split, lines in records.items():
                text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
                (aside / f"{split}.jsonl").write_text(text, encoding="utf-8")
    print(f"{folder}: {len(records['train'])} photographs to learn from, {len(records['held_out'])} held out")


def unpack(scratch: Path) -> Path:
    """The package's pictures, fetched into a folder."""
    try:
        subprocess.run(["apt-get", "download", PACKAGE], cwd=scratch, check=True, capture_output=True)
        archive = next(scratch.glob("*.deb"))
        subprocess.run(["dpkg-deb", "-x", archive, scratch / "unpacked"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError, StopIteration) as error:
        reason = (getattr(error, "stderr", b"") or str(error).encode()).decode().strip().split("\n")[0]
        raise ValueError(f"{PACKAGE} cannot be had by apt-get ({reason}); unpack it and name it as --stamps") from error
    return scratch / "unpacked" / STAMPS


def photographs(stamps: Path) -> list[tuple[Path, str]]:
    """(file, kind) of each photograph with a caption, in the order of names; drawings are left out."""
    files = [
        (file, kind)
        for place, kind in KINDS.items()
        for file in sorted((stamps / place).rglob("*.png"))
        if "cartoon" not in file.parts and file.with_suffix(".txt").is_file()
    ]
    if not files:
        raise ValueError(f"{stamps} holds no photograph of {', '.join(KINDS)}; give the folder stamps/ of {PACKAGE}")
    return files


def caption(file: Path) -> str:
    """The English caption: the first line, as in "A moon wrasse."."""
    return file.with_suffix(".txt").read_text(encoding="utf-8").splitlines()[0].strip().rstrip(".").lower()


def on_white(file: Path) -> Image.Image:
    """The cut-out in the middle of a white square of `SIZE`."""
    picture = Image.open(file).convert("RGBA")
    picture.thumbnail((SIZE, SIZE), Image.Resampling.LANCZOS)
    square = Image.new("RGBA", (SIZE, SIZE), "white")
    square.alpha_composite(picture, ((SIZE - picture.width) // 2, (SIZE - picture.height) // 2))
    return square.convert("RGB")


def record(picture: str, kind: str, caption: str) -> dict:
    """A chat record: what kind of thing it is, and its caption."""
    question = [{"type": "image", "image": picture}, {"type": "text", "text": QUESTION}]
    turns = [("user", question), ("assistant", kind), ("user", "what do you see?"), ("assistant", caption)]
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def score(checkpoint: Path, folder: Path) -> dict:
    """How many held-out photographs are named by their kind, with a 95 % interval, and what blind answers score."""
    pipeline, source = open_pipeline(checkpoint), JsonlSource(folder / "held_out.jsonl")
    quiz = Quiz()
    for index in range(len(source)):
        question, kind = source[index]["messages"][:2]
        quiz.pictures.append(question["content"][0]["image"])
        quiz.questions.append(Question("kind", QUESTION, kind["content"][0]["text"]))
    return understanding.answer(Work(pipeline), quiz, "understanding", score_answers).tallies["kind"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True)
    fetching = steps.add_parser("fetch")
    fetching.add_argument("folder", type=Path)
    fetching.add_argument("--stamps", type=Path, help="usr/share/tuxpaint/stamps of the unpacked package")
    scoring = steps.add_parser("score")
    scoring.add_argument("checkpoint", type=Path)
    scoring.add_argument("folder", type=Path)
    options = parser.parse_args()
    try:
        if options.step == "fetch":
            fetch(options.folder, options.stamps)
        else:
            print(json.dumps(score(options.checkpoint, options.folder)))
    except ValueError as error:
        print(f"photographs.py: {error}", file=sys.stderr)
        sys.exit(2)
