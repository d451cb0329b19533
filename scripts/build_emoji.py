"""Rebuild hybridgen/data/synthetic/assets/emoji64.parquet from the packages that publish the emoji.

    python -m pip install resvg-py
    python scripts/build_emoji.py --out emoji64.parquet --compare hybridgen/data/synthetic/assets/emoji64.parquet

Needs npm and a package registry, about 150 MB on disk while it runs, and seven minutes of one core (WebP at its most
thorough). A recipe to read, and to run again when the packages move on; nothing imports it, and no one needs it to use
the embedded file. What is rebuilt is not identical: with the versions below and Pillow 13, 7,001 of the 7,012 pictures
come out byte for byte, and all else but about 180 of the main colours; the other eleven are 3-D signs that the package
holds in two near-equal renderings. `--compare` says how it stands.

1. Fetch five npm packages: three sets of SVGs, one of 3-D renderings, one of names.
2. Keep every emoji that has a group (no skin tones, hair or regional letters), in every style that draws it.
3. Draw it at 64x64, encode it as WebP (quality 90), name its main colour.
4. Split: 5 % of the emoji are `new`; of what is left 10 % of the pictures are `combo`, unless the emoji has no other
   style.
5. Write one parquet file whose `image` column `datasets` shows as pictures.
"""

import argparse
import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from PIL import Image

from hybridgen.data.synthetic.emoji.pictures import SIZE, main_colour

SVG_PACKAGES = {  # style -> npm package, licence
    "twitter": ("@iconify-json/twemoji@1.2.5", "Twemoji, CC-BY-4.0"),
    "google": ("@iconify-json/noto@1.2.9", "Noto Emoji, Apache-2.0"),
    "flat": ("@iconify-json/fluent-emoji-flat@1.2.6", "Fluent Emoji flat, MIT"),
}
RENDERINGS = ("@lobehub/fluent-emoji-3d@1.1.0", "Fluent Emoji 3D, MIT")
NAMES = "emojibase-data@17.0.0"
LANGUAGES = ("de", "fr", "es", "ja", "zh", "ru")


def main() -> None:
    arguments = read_arguments()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        drawers = {style: svg_drawer(fetch(package, work)) for style, (package, _) in SVG_PACKAGES.items()}
        drawers["3d"] = rendering_drawer(fetch(RENDERINGS[0], work))
        emoji = read_names(fetch(NAMES, work))
        rows = draw_all(emoji, drawers)
    assign_splits(rows)
    write(rows, arguments.out)
    print(f"{len(rows)} pictures of {len(emoji)} emoji written to {arguments.out}")
    if arguments.compare:
        compare(rows, arguments.compare)


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the parquet file to write")
    parser.add_argument("--compare", type=Path, help="an earlier file: say how many rows are the same")
    arguments = parser.parse_args()
    if shutil.which("npm") is None:
        parser.error("npm is not installed: install Node.js with npm, which fetches the packages that hold the emoji")
    try:
        import resvg_py  # noqa: F401
    except ImportError:
        parser.error("resvg-py is not installed: run `python -m pip install resvg-py`, which draws the SVG emoji")
    return arguments


def fetch(package: str, work: Path) -> Path:
    """Download one npm package with `npm pack` and unpack it; returns the folder with its files."""
    print(f"fetching {package}", flush=True)
    done = subprocess.run(["npm", "pack", "--silent", package], cwd=work, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"npm could not fetch {package}: {done.stderr.strip() or done.stdout.strip()}")
    archive = work / done.stdout.split()[-1]
    folder = archive.with_suffix("")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder / "package"


def read_names(package: Path) -> list[dict]:
    """Every emoji with a group, in Unicode's order: the columns of the parquet that do not depend on the style."""
    read = lambda *path: json.loads(package.joinpath(*path).read_text(encoding="utf-8"))  # noqa: E731
    messages = read("en", "messages.json")
    groups = {group["order"]: group["message"] for group in messages["groups"]}
    subgroups = {group["order"]: group["message"] for group in messages["subgroups"]}
    translated = {code: {e["hexcode"]: e["label"] for e in read(code, "data.json")} for code in LANGUAGES}
    entries = [e for e in read("en", "data.json") if groups.get(e.get("group"), "components") != "components"]
    return [
        {
            "label": entry["label"],
            "group": groups[entry["group"]],
            "subgroup": subgroups[entry["subgroup"]],
            "tags": entry["tags"],
            "codepoint": entry["hexcode"],
            "labels_i18n": json.dumps(
                {code: translated[code][entry["hexcode"]] for code in LANGUAGES}, ensure_ascii=False
            ),
        }
        for entry in sorted(entries, key=lambda entry: entry["order"])
    ]


def svg_drawer(package: Path):
    """A function from a code point ("1F451") to a 64x64 RGBA picture, or None where the set lacks it."""
    import resvg_py

    icons = json.loads((package / "icons.json").read_text(encoding="utf-8"))
    names = json.loads((package / "chars.json").read_text(encoding="utf-8"))

    def draw(codepoint: str) -> Image.Image | None:
        name = next((names[code] for code in spellings(codepoint) if code in names), None)
        if name is None:
            return None
        icon = icons["icons"].get(name) or icons["icons"][icons["aliases"][name]["parent"]]
        width, height = (icon.get(side, icons[side]) for side in ("width", "height"))
        svg = (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'width="{width}" height="{height}" viewBox="0 0 {width} {height}">{icon["body"]}</svg>'
        )
        return to_size(Image.open(io.BytesIO(resvg_py.svg_to_bytes(svg_string=svg, width=SIZE, height=SIZE))))

    return draw


def rendering_drawer(package: Path):
    """As `svg_drawer`, for a folder of 256x256 WebP files."""

    def draw(codepoint: str) -> Image.Image | None:
        files = [package / "assets" / f"{code}.webp" for code in spellings(codepoint)]
        file = next((file for file in files if file.exists()), None)
        return to_size(Image.open(file)) if file else None

    return draw


def to_size(picture: Image.Image) -> Image.Image:
    """64x64 RGBA; the three emoji that are not square are stretched."""
    return picture.convert("RGBA").resize((SIZE, SIZE), Image.LANCZOS)


def spellings(codepoint: str) -> list[str]:
    """The sets do not agree where the variation selector fe0f belongs."""
    code = codepoint.lower()
    return [code, f"{code}-fe0f", code.replace("-fe0f", "")]


def draw_all(emoji: list[dict], drawers: dict) -> list[dict]:
    licences = {style: licence for style, (_, licence) in SVG_PACKAGES.items()} | {"3d": RENDERINGS[1]}
    rows = []
    for style, draw in drawers.items():
        print(f"drawing {style}", flush=True)
        for entry in emoji:
            picture = draw(entry["codepoint"])
            if picture is None:
                continue
            encoded = io.BytesIO()
            picture.save(encoded, "WEBP", quality=90, method=6)
            image = {"bytes": encoded.getvalue(), "path": f"{entry['codepoint']}_{style}.webp"}
            colour, _ = main_colour(picture)
            rows.append({"image": image, "style": style, **entry, "main_colour": colour, "licence": licences[style]})
    return rows


def assign_splits(rows: list[dict]) -> None:
    """By hash, so that an emoji keeps its split when others come and go."""
    for row in rows:
        combo = hash_uniform(f"combo|{row['codepoint']}|{row['style']}") < 0.1
        row["split"] = "new" if hash_uniform(f"new|{row['label']}") < 0.05 else "combo" if combo else "train"
    seen = {row["label"] for row in rows if row["split"] == "train"}
    for row in rows:
        if row["split"] == "combo" and row["label"] not in seen:
            row["split"] = "train"


def hash_uniform(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.sha1(text.encode()).digest()[:8], "big") / 2**64


def write(rows: list[dict], path: Path) -> None:
    from datasets import Dataset, Features, Image, List, Value

    columns = (
        "label",
        "style",
        "group",
        "subgroup",
        "tags",
        "codepoint",
        "labels_i18n",
        "main_colour",
        "split",
        "licence",
    )
    features = {"image": Image()} | {
        name: List(Value("string")) if name == "tags" else Value("string") for name in columns
    }
    table = {name: [row[name] for row in rows] for name in features}
    Dataset.from_dict(table, features=Features(features)).to_parquet(path)


def compare(rows: list[dict], path: Path) -> None:
    import pyarrow.parquet

    earlier = {(row["codepoint"], row["style"]): row for row in pyarrow.parquet.read_table(path).to_pylist()}
    both = [(row, earlier[key]) for row in rows if (key := (row["codepoint"], row["style"])) in earlier]
    print(
        f"{len(both)} of {len(earlier)} pictures in {path} are there again, of {len(rows)} in all; the same among them:"
    )
    for name in rows[0]:
        print(f"  {name}: {sum(row[name] == old[name] for row, old in both)}")


if __name__ == "__main__":
    main()
