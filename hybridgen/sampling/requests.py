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

from hybridgen.core.documents import Document
from hybridgen.sampling.prefix import PAD_MULTIPLE
from hybridgen.sampling.settings import check_scales, each


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
        return self.size, len(self.rows), math.ceil(max(map(len, self.rows)) / PAD_MULTIPLE)


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


class Planning:
    """Mixed into the pipeline: what a call asks for, prompt by prompt."""

    def plan(
        self, prompts: list[str], negative, sizes, guidance_scale, image_guidance_scale, image, read: str | None,
        path: str,
    ) -> list[Order]:  # fmt: skip
        """What the backbone reads for each prompt; equal documents are one, so that they are read once."""
        scales = check_scales("guidance_scale", guidance_scale, len(prompts))
        image_scales = check_scales("image_guidance_scale", image_guidance_scale, len(prompts))
        negatives = each("negative_prompt", negative, len(prompts))
        pictures, read = self.check_conditions(image, read, image_scales, len(prompts))
        documents: dict[tuple, Document] = {}

        def read_in(text: str, picture, size: tuple[int, int], silent: bool = False) -> Document:
            content = [] if picture is None else [{"type": "image", "image": picture}]
            content = [*content, {"type": "text", "text": text}] if content else text
            where = {} if picture is None else {"read": read, "height": size[0], "width": size[1]}
            document = self.processor.prompt([{"role": "user", "content": content}], unconditional=silent, **where)
            self.check_length(text, len(document), 1 + self.processor.count_tokens(path, *size), "the picture")
            seen = None if picture is None else (id(picture), size)
            return documents.setdefault((seen, *document.layout.input_ids), document)

        orders = []
        for each_one in zip(prompts, negatives, pictures, sizes, scales, image_scales, strict=True):
            text, other, picture, size, scale, image_scale = each_one
            rows = [read_in(text, picture, size)]
            instead = (text, True) if other is None else (other, False)
            if scale != 1 or image_scale != 1:
                rows.append(read_in(instead[0], picture, size, instead[1]))
            if image_scale != 1:
                rows.append(read_in(instead[0], None, size, instead[1]))
            orders.append(Order(tuple(rows), size, scale, image_scale))
        return orders
