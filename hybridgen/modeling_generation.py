"""What `generate` of transformers must be told about images: which of them belong to which row.

Beams and several answers a prompt repeat every row; its images must be repeated with it. The fact a newcomer gets
wrong: images come as one list for the whole batch, in reading order, so what is repeated is a row's *run* of images and
not each image.

Shapes: B rows, N tokens, I images, T codes.
"""

import torch
from torch import Tensor

from hybridgen.paths.understanding import tokens_per_image


class ImageExpansion:
    """Mixed into a model that generates, before transformers' own mixin."""

    def _expand_inputs_for_generation(self, expand_size: int = 1, input_ids: Tensor | None = None, **kwargs):
        """Every row `expand_size` times, one copy below the other, with its images."""
        images = {name: kwargs.pop(name) for name in _IMAGES if kwargs.get(name) is not None and expand_size > 1}
        if images:
            known = input_ids is not None and input_ids.shape[1] > 0
            counts = self._tokens_a_row(input_ids if known else self.model.ids_of(kwargs["inputs_embeds"]))
        input_ids, kwargs = super()._expand_inputs_for_generation(expand_size, input_ids=input_ids, **kwargs)
        for name, value in images.items():
            path, sizes = self._sizes(name, images)
            kwargs[name] = _repeated(value, _runs(counts[path], sizes), expand_size)
        return input_ids, kwargs

    def _tokens_a_row(self, input_ids: Tensor) -> dict[str, list[int]]:
        """Path -> how many tokens of its images each row has."""
        return {path: (input_ids == token).sum(1).tolist() for path, token in self.model.placeholders().items()}

    def _sizes(self, name: str, images: dict) -> tuple[str, list[int]]:
        """The path of an input, and the tokens of each thing in it."""
        if name == "pixel_values":
            return "understanding", [tokens_per_image(self.config.vision_config)] * len(images[name])
        if name == "codes":
            return "vq", [1] * len(images[name])
        side = self.config.diffusion_config.patch_size
        sizes = [image.shape[-2] // side * (image.shape[-1] // side) for image in images["latents"]]
        return "diffusion", sizes


_IMAGES = ("pixel_values", "codes", "latents", "timesteps")


def _runs(tokens: list[int], sizes: list[int]) -> list[range]:
    """Which things each row has, of things of these sizes in reading order, when it has so many tokens of them."""
    runs, first = [], 0
    for wanted in tokens:
        last = first
        while last < len(sizes) and sum(sizes[first:last]) < wanted:
            last += 1
        runs.append(range(first, last))
        first = last
    return runs


def _repeated(value: Tensor | list, runs: list[range], times: int) -> Tensor | list:
    """Each run so many times. What no row has a place for is left where it is, for `forward` to count."""
    order = [index for run in runs for _ in range(times) for index in run]
    order += range(runs[-1].stop, len(value))
    return value[torch.tensor(order, device=value.device)] if isinstance(value, Tensor) else [value[i] for i in order]
