"""The pictures of the emoji dataset: one row per picture, read from the embedded parquet, shown on white.

Pixels and facts only: words about a picture are in `language`, exact scores in `scoring`, chat records in the package's
`__init__`. An emoji is up to four pictures, one per style. Some pictures are the same as another under another name
("flag: Spain", "flag: Ceuta & Melilla"): scores must not hold that against a model, and questions must not ask for it
(`lookalikes`).

The file opens with `datasets.load_dataset("parquet", data_files=...)` as well; `scripts/build_emoji.py` rebuilds it.
"""

import io
import json
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from hybridgen.data.synthetic.sizes import picture_of_side

SIZE = 64
STYLES = ("twitter", "google", "flat", "3d")
SPLITS = ("train", "combo", "new")  # combo: emoji and style seen, the pair not; new: the emoji not seen in any style

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "gray")
# where the first seven colours end, in hues of 0..255 as Pillow counts them; what lies above the last is red again
_HUE_ENDS = (10, 30, 48, 116, 183, 207, 240)

_FILE = Path(__file__).parents[1] / "assets" / "emoji64.parquet"


class EmojiSpec(NamedTuple):
    """Which picture: the emoji's name in Unicode's words, and the style it is drawn in."""

    label: str
    style: str


# two pictures that differ by 7 grey levels at most
_NEARLY_EQUAL = (EmojiSpec("black medium square", "flat"), EmojiSpec("white square button", "flat"))


class EmojiPicture(NamedTuple):
    """What is known about one picture; `names` maps language codes to names, `webp` holds the file (RGBA, 64x64)."""

    spec: EmojiSpec
    group: str
    subgroup: str
    tags: tuple[str, ...]
    names: dict[str, str]
    main_colour: str
    split: str
    webp: bytes


@cache
def pictures() -> dict[EmojiSpec, EmojiPicture]:
    """All 7,012 pictures in the order of the file."""
    # the reader that `datasets` stands on: through `datasets` itself, first use would write a copy to the user's cache
    import pyarrow.parquet

    return {
        EmojiSpec(row["label"], row["style"]): _picture(row) for row in pyarrow.parquet.read_table(_FILE).to_pylist()
    }


@cache
def specs_of_split(split: str) -> tuple[EmojiSpec, ...]:
    """The pictures of a split, less those of `combo` and `new` that training shows under another name."""
    chosen = [spec for spec, picture in pictures().items() if picture.split == split]
    if split == "train":
        return tuple(chosen)
    seen = set(specs_of_split("train"))
    return tuple(spec for spec in chosen if seen.isdisjoint(lookalikes().get(spec, ())))


@cache
def lookalikes() -> dict[EmojiSpec, frozenset[EmojiSpec]]:
    """For each picture that looks the same as others, all of them: for these the name is no exact answer.

    They are byte for byte the same, but for one pair of look-alikes; the next pair is more than one grey level apart
    after pooling to 16x16.
    """
    groups = {}
    for spec, picture in pictures().items():
        looks = _NEARLY_EQUAL if spec in _NEARLY_EQUAL else picture.webp
        groups.setdefault(looks, []).append(spec)
    return {spec: frozenset(group) for group in groups.values() if len(group) > 1 for spec in group}


def look_up(spec: EmojiSpec) -> EmojiPicture:
    """The picture of a spec; raises ValueError when there is none."""
    if spec not in pictures():
        drawn = [style for style in STYLES if (spec.label, style) in pictures()]
        known = f"{spec.label!r} is drawn in {', '.join(drawn)}" if drawn else "no emoji has that name"
        raise ValueError(f"there is no {spec.label!r} in {spec.style} style: {known}")
    return pictures()[spec]


def render(spec: EmojiSpec, size: int = SIZE) -> Image.Image:
    """The picture on white: RGB, `size` pixels a side (`sizes`)."""
    picture = _rgba(look_up(spec))
    on_white = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    return picture_of_side(on_white, size)


def render_batch(specs: list[EmojiSpec], size: int = SIZE) -> np.ndarray:
    """Pictures on white: (n, size, size, 3) uint8."""
    pictures = [np.asarray(render(spec, size)) for spec in specs]
    return np.stack(pictures) if specs else np.empty((0, size, size, 3), np.uint8)


def main_colour(picture: Image.Image) -> tuple[str, float]:
    """The colour name that covers most of an RGBA picture, and the share of its opaque pixels that it covers.

    Black, white and gray go by value and saturation, the rest by hue; light red is pink, dark red and dark orange are
    brown.
    """
    opaque = np.asarray(picture.getchannel("A")) > 199
    hue, saturation, value = np.asarray(picture.convert("RGB").convert("HSV"))[opaque].T.astype(int)
    names = np.searchsorted(_HUE_ENDS, hue, side="right") % len(_HUE_ENDS)
    names[(names == COLOURS.index("red")) & (saturation < 140) & (value > 177)] = COLOURS.index("pink")
    names[(names <= COLOURS.index("orange")) & (hue < 70) & (value < 184)] = COLOURS.index("brown")
    colourless = saturation < 33
    names[colourless] = np.where(value > 224, COLOURS.index("white"), COLOURS.index("gray"))[colourless]
    names[value < 62] = COLOURS.index("black")
    counts = np.bincount(names, minlength=len(COLOURS))
    return COLOURS[counts.argmax()], float(counts.max() / max(counts.sum(), 1))


@cache
def colour_is_plain(spec: EmojiSpec) -> bool:
    """Whether the stored main colour covers at least 60 % of the picture, so that nobody would name another."""
    picture = look_up(spec)
    colour, share = main_colour(_rgba(picture))
    return colour == picture.main_colour and share >= 0.6


def _rgba(picture: EmojiPicture) -> Image.Image:
    return Image.open(io.BytesIO(picture.webp)).convert("RGBA")


def _picture(row: dict) -> EmojiPicture:
    return EmojiPicture(
        spec=EmojiSpec(row["label"], row["style"]),
        group=row["group"],
        subgroup=row["subgroup"],
        tags=tuple(row["tags"]),
        names=json.loads(row["labels_i18n"]),
        main_colour=row["main_colour"],
        split=row["split"],
        webp=row["image"]["bytes"],
    )
