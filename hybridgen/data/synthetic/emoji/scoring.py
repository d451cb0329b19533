"""Exact scores for drawn emoji: which of the 7,012 pictures is nearest, and is it the one that was asked for?

No network judges here and nothing is learned. The `flat` and `3d` drawings of an emoji are near copies in shape, so
"emoji" (the right one in any style) is the number to read first, "style" and "picture" (both right) after it.

Shapes: n pictures, m = 7,012 candidates, D = 81 shifts, P = 16 * 16 * 3 pooled values.
"""

from collections import Counter
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F

from hybridgen.data.synthetic.emoji.pictures import SIZE, EmojiSpec, look_up, lookalikes, pictures, render_batch
from hybridgen.data.synthetic.questions import Tally, tally

SCORES = ("emoji", "style", "picture")
SHIFT = 4  # pixels in each direction
_POOL = 4  # 64 -> 16
_CHUNK = 8  # pictures at a time: 648 shifted copies against all candidates are 18 MB


def score_pictures(images: np.ndarray, specs: list[EmojiSpec]) -> dict[str, Tally]:
    """How many pictures show what was asked: (n, S, S, 3) uint8 against n specs, S = 64 or 32 or 16.

    Returns a tally {"right", "n", "share"} for "emoji" (in whichever style), "style" and "picture" (both). When the
    nearest picture and the one asked for look the same under two names, all are right. Raises ValueError when
    the counts, the shape or the type do not fit.
    """
    verdicts = judge_pictures(images, specs)
    return {name: tally(sum(verdict[name] for verdict in verdicts), len(specs)) for name in SCORES}


def judge_pictures(images: np.ndarray, specs: list[EmojiSpec]) -> list[dict[str, bool]]:
    """As `score_pictures`, picture by picture: {score: whether it is right}."""
    if len(images) != len(specs):
        raise ValueError(
            f"{len(images)} pictures cannot be compared with {len(specs)} specs: pass one spec for each picture"
        )
    for spec in specs:
        look_up(spec)  # refuses a spec that no picture has
    return [_judge(nearest, wanted) for nearest, wanted in zip(nearest_specs(images), specs, strict=True)]


def _judge(nearest: EmojiSpec, wanted: EmojiSpec) -> dict[str, bool]:
    same_look = wanted in lookalikes().get(nearest, ())
    emoji, style = same_look or nearest.label == wanted.label, same_look or nearest.style == wanted.style
    return {"emoji": emoji, "style": style, "picture": emoji and style}


def majority_pictures(specs: list[EmojiSpec]) -> dict[str, float]:
    """What drawing the commonest emoji in the commonest style would score: shares by the names of `score_pictures`."""
    parts = {"emoji": [spec.label for spec in specs], "style": [spec.style for spec in specs], "picture": specs}
    return {name: Counter(values).most_common(1)[0][1] / len(specs) for name, values in parts.items()}


def nearest_specs(images: np.ndarray) -> list[EmojiSpec]:
    """The nearest picture of all, whatever its split: (n, S, S, 3) uint8, S = 64, 32 or 16 -> n specs.

    Nearest in squared error after area pooling to 16x16, over shifts of the drawn picture by up to 4 pixels each way
    (white moves in). The first call decodes all pictures, 2 to 3 seconds; after that 100 pictures take about 2 seconds
    on one core.
    """
    specs, table = _candidates()
    enlarged = _to_tensor(images)
    nearest = []
    for chunk in enlarged.split(_CHUNK):
        queries = _shifted(chunk)  # (n, D, P)
        # squared distance, less the candidates' part that is common to all: |q|^2 - 2 q.t + |t|^2
        distance = torch.addmm((table**2).sum(1), queries.flatten(0, 1), table.T, alpha=-2)  # (n * D, m)
        distance = distance.unflatten(0, queries.shape[:2]) + (queries**2).sum(-1, keepdim=True)  # (n, D, m)
        nearest += [specs[i] for i in distance.amin(1).argmin(1).tolist()]
    return nearest


def _to_tensor(images: np.ndarray) -> torch.Tensor:
    """(n, S, S, 3) uint8 -> (n, 3, 64, 64) float in 0..1, pixels repeated where S is smaller."""
    images = np.asarray(images)
    side = images.shape[1] if images.ndim == 4 else 0
    if images.dtype != np.uint8 or side not in (64, 32, 16) or images.shape[1:] != (side, side, 3):
        raise ValueError(
            f"pictures must be uint8 of shape (n, S, S, 3) with S = 64, 32 or 16, not {images.dtype} {images.shape}: "
            "resize and convert them first"
        )
    tensor = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255
    return tensor.repeat_interleave(SIZE // side, dim=2).repeat_interleave(SIZE // side, dim=3)


def _shifted(images: torch.Tensor) -> torch.Tensor:
    """(n, 3, 64, 64) -> (n, D, P): pooled copies at every shift."""
    padded = F.pad(images, (SHIFT,) * 4, value=1.0)
    pooled = F.avg_pool2d(padded, _POOL, stride=1)  # (n, 3, 69, 69): every window of 4x4 pixels
    offsets = range(2 * SHIFT + 1)
    span = SIZE - _POOL + 1
    copies = [pooled[:, :, y : y + span : _POOL, x : x + span : _POOL] for y in offsets for x in offsets]
    return torch.stack(copies, dim=1).flatten(2)


@cache
def _candidates() -> tuple[list[EmojiSpec], torch.Tensor]:
    """All specs, and their pictures pooled: (m, P)."""
    specs = list(pictures())
    pooled = [
        F.avg_pool2d(_to_tensor(render_batch(specs[i : i + 256])), _POOL).flatten(1) for i in range(0, len(specs), 256)
    ]
    return specs, torch.cat(pooled)
