"""What is drawn together: the images of a call, each with the rows it takes, cut into batches of one shape.

Images of other sizes, other lengths of prompt or another number of rows stand in other batches, but in the same result.
So the work on an image has the same shape whatever is drawn beside it, but for the number of rows, and the image is the
same to the bit wherever the kernels of a row do not depend on the others (on a CPU they do not).

Shapes: h x w pixels.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from hybridgen.core.documents import Document
from hybridgen.core.pictures import read_pictures
from hybridgen.core.values import listed, shown
from hybridgen.sampling.edits import Edit
from hybridgen.sampling.prefix import PAD_MULTIPLE


@dataclass(frozen=True)
class ImageRequest:
    """One image to draw.

    Args:
        rows: what the backbone reads: the prompt and, guided, the unconditional prompts (`sampling.guidance`).
        size: height and width in pixels.
        scale, image_scale: of guidance.
        edit: the picture of which it redraws a region; None = it is drawn as a whole.
    """

    rows: tuple[Document, ...]
    size: tuple[int, int]
    scale: float
    image_scale: float
    edit: Edit | None = None

    @property
    def shape(self) -> tuple:
        """What must be equal in a batch."""
        return self.size, len(self.rows), math.ceil(max(map(len, self.rows)) / PAD_MULTIPLE), self.edit is None


def batches(requests: Sequence[ImageRequest], max_batch: int) -> list[list[int]]:
    """Numbers of the images that are drawn together, at most `max_batch` rows each (but at least one image)."""
    alike: dict[tuple, list[int]] = {}
    for number, request in enumerate(requests):
        alike.setdefault(request.shape, []).append(number)
    cut = []
    for (_, rows, *_), numbers in alike.items():
        at_once = max(1, max_batch // rows)
        cut += [numbers[start : start + at_once] for start in range(0, len(numbers), at_once)]
    return cut


def expand_requests(
    prompts: list[str],
    negative_prompts: list[str | None],
    images: list,
    sizes: list[tuple[int, int]],
    scales: list[float],
    image_scales: list[float],
    edits: list[Edit | None],
    prompt_document: Callable[..., Document],
) -> list[ImageRequest]:
    """What the backbone reads for each prompt. All lists hold one value per prompt.

    Args:
        negative_prompts: None = the processor's unconditional prompt.
        images: that stand before the prompts, or None.
        prompt_document: (text, image or None, size, unconditional) -> its document.
    """
    documents: dict[tuple, Document] = {}

    def read(text: str, image, size: tuple[int, int], unconditional: bool = False) -> Document:
        """Equal documents are one object, by which `read_prompts` knows to read them once."""
        document = prompt_document(text, image, size, unconditional)
        source = None if image is None else (id(image), size)
        return documents.setdefault((source, *document.layout.input_ids), document)

    requests = []
    values = prompts, negative_prompts, images, sizes, scales, image_scales, edits
    for text, negative, image, size, scale, image_scale, edit in zip(*values, strict=True):
        rows = [read(text, image, size)]
        uncond, unconditional = (text, True) if negative is None else (negative, False)
        if scale != 1 or image_scale != 1:
            rows.append(read(uncond, image, size, unconditional))
        if image_scale != 1:
            rows.append(read(uncond, None, size, unconditional))
        requests.append(ImageRequest(tuple(rows), size, scale, image_scale, edit))
    return requests


def pair_questions(images, questions: str | list[str]) -> list[tuple[list, str]]:
    """The pictures of each question, and the question; one of either stands beside all of the other.

    Args:
        images: a picture, or a list of what belongs to one question each: a picture, or a list of several. An array or
            tensor of four dimensions is a list of pictures. None in a list: that question has no picture.

    Raises:
        ValueError: there are none, or they do not pair.
    """
    if images is None:
        raise ValueError("images is None; give a picture, or a list with one, several or None for each question")
    without = []
    if isinstance(images, list | tuple):
        without = [place for place, of_question in enumerate(images) if of_question is None]
        images = [[] if of_question is None else read_pictures(of_question) for of_question in images]
    else:
        images = [[image] for image in read_pictures(images)]
    given = questions
    questions = [given] if isinstance(given, str) else listed(given)
    if questions is None or not all(isinstance(question, str) for question in questions):
        raise ValueError(f"questions is {shown(given)}; give a text or a list of texts")
    if not images or not questions:
        raise ValueError(
            f"{len(images)} images and {len(questions)} questions leave nothing to answer; give at least one of each"
        )
    if len(images) != len(questions) and 1 not in (len(images), len(questions)):
        raise ValueError(
            f"{len(images)} images and {len(questions)} questions do not pair; give equally many, or one of either"
        )
    for place, of_question in enumerate(images):
        if not of_question and place not in without:
            raise ValueError(f"question {place + 1} has no picture; give each at least one, or None")
    count = max(len(images), len(questions))
    images = images * count if len(images) == 1 else images
    questions = questions * count if len(questions) == 1 else questions
    return list(zip(images, questions, strict=True))


def _pictures(images) -> list:
    """The items of a list, or of a batch as an array or tensor; a picture alone is a list of one."""
    is_batch = isinstance(images, np.ndarray | Tensor) and images.ndim == 4
    return list(images) if is_batch or isinstance(images, list | tuple) else [images]
