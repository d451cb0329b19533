"""What is drawn together: the images of a call, each with the rows it takes, cut into batches of one shape.

The fact a newcomer gets wrong: images of other sizes, other lengths of prompt or another number of rows stand in other
batches, but in the same result. So the work on an image has the same shape whatever is drawn beside it, but for the
number of rows, and the image is the same to the bit wherever the kernels of a row do not depend on the others (on a CPU
they do not).

Shapes: h x w pixels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from hybridgen.documents import Document
from hybridgen.sampling.prefix import SHELF


@dataclass(frozen=True)
class Order:
    """One image to draw.

    Args:
        rows: what the backbone reads: the prompt and, guided, what stands in its place (`sampling.guidance`).
        size: height and width in pixels.
        scale, image_scale: of guidance.
    """

    rows: tuple[Document, ...]
    size: tuple[int, int]
    scale: float
    image_scale: float

    @property
    def shape(self) -> tuple:
        """What must be equal in a batch."""
        return self.size, len(self.rows), math.ceil(max(map(len, self.rows)) / SHELF)


def batches(orders: Sequence[Order], max_batch: int) -> list[list[int]]:
    """Numbers of the images that are drawn together, at most `max_batch` rows each (but at least one image)."""
    alike: dict[tuple, list[int]] = {}
    for number, order in enumerate(orders):
        alike.setdefault(order.shape, []).append(number)
    cut = []
    for (_, rows, _), numbers in alike.items():
        at_once = max(1, max_batch // rows)
        cut += [numbers[start : start + at_once] for start in range(0, len(numbers), at_once)]
    return cut
