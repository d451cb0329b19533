"""Heads: the backbone's output -> code logits, a prediction for each image, and how it resembles what the tower sees.

The part of `HybridGenForConditionalGeneration` behind the backbone, one method a head; text logits are a line of its
forward. The fact a newcomer gets wrong: a head that nothing was asked of is called all the same, with no token, so that
its weights stay in the graph and no rank of DDP or FSDP waits for them.

Shapes: B rows, N tokens, H width, I images, T tokens of all images of a path.
"""

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from hybridgen.modeling_outputs import HybridGenModelOutput, Latents
from hybridgen.paths.alignment import similarities
from hybridgen.paths.patches import by_size
from hybridgen.paths.understanding import look


class ImageHeads:
    """Mixed into the model, whose config says which heads there are."""

    def generate(self, *args, **kwargs):
        """As everywhere in transformers. Codes that are tokens of the vocabulary are no text, and are never written."""
        vq = self.config.vq_config
        if vq is not None and (first := vq.first_token_id) is not None:
            without = _Without(first, first + vq.num_embeddings)
            kwargs["logits_processor"] = LogitsProcessorList([*(kwargs.get("logits_processor") or []), without])
        return super().generate(*args, **kwargs)

    def code_logits(self, hidden_states: Tensor) -> Tensor:
        """(..., H) -> (..., num_embeddings): the state at a position scores the code that comes next."""
        if (first := self.config.vq_config.first_token_id) is not None:
            return self.lm_head(hidden_states)[..., first : first + self.config.vq_config.num_embeddings]
        return self.model.generation_head(hidden_states)

    def _idle_heads(self, states: Tensor, outputs: HybridGenModelOutput, prediction: Latents | None) -> Tensor:
        """Zero, from the heads that a loss of text alone does not reach: no rank of DDP or FSDP waits for them."""
        nothing = states.flatten(0, 1)[:0]  # 0, H
        zero = nothing.sum()
        if self.config.vq_config is not None:
            zero = zero + self.code_logits(nothing).sum()
        if prediction is not None:
            zero = zero + torch.cat([image.flatten()[:0] for image in prediction] or [prediction.flatten()]).sum()
            if self.config.diffusion_config.alignment_layer is not None:
                zero = zero + self.model.alignment_head(nothing).sum()
        return zero

    def _align(self, outputs: HybridGenModelOutput, latents: Latents, pixels: Tensor) -> Tensor:
        """(I,); of no image, an empty one that keeps the head in the graph, and the tower's sharded weights fetched."""
        config = self.config.diffusion_config
        if config is None or config.alignment_layer is None:
            raise ValueError("alignment_pixels are given, but the model has no diffusion_config.alignment_layer")
        if not len(pixels):
            if self.model.every_path:  # other ranks look at theirs, and would wait for this one
                with torch.no_grad():
                    look(self.model.vision_model, self.model._blank_image(outputs.last_hidden_state))
            return self.model.alignment_head(outputs.last_hidden_state.flatten(0, 1)[:0]).sum(-1)
        states = outputs.hidden_states[config.alignment_layer][outputs.diffusion_mask]  # T, H
        with torch.no_grad():
            features = look(self.model.vision_model, pixels.to(self.model.vision_model.dtype)).last_hidden_state
        grids = [tuple(side // config.patch_size for side in image.shape[-2:]) for image in latents]
        return similarities(self.model.alignment_head(states), features, grids)

    def _predict(self, states: Tensor, outputs: HybridGenModelOutput, latents: Latents | None) -> Latents:
        """In the form of `latents`; of no image, an empty tensor that keeps the head in the graph."""
        p, head = self.config.diffusion_config.patch_size, self.model.final_layer
        states, vectors = states[outputs.diffusion_mask], outputs.conditioning  # T, H; I, H
        if latents is None or not len(latents):
            side = self.config.diffusion_config.sample_size
            return head(states.view(0, (side // p) ** 2, states.shape[-1]), vectors, outputs.skips[0], (side, side))
        sizes = [tuple(image.shape[-2:]) for image in latents]
        parts = states.split([height // p * (width // p) for height, width in sizes])  # T, H each
        made: list = [None] * len(latents)
        for (which, _), skips in zip(by_size(latents), outputs.skips, strict=True):
            images = head(torch.stack([parts[i] for i in which]), vectors[which], skips, sizes[which[0]])
            for i, image in zip(which, images, strict=True):
                made[i] = image
        return torch.stack(made) if isinstance(latents, Tensor) else made


class _Without(LogitsProcessor):
    """No token from `start` to before `end` is written. (Of one class, `generate` heeds a single processor: the
    caller's, or ours if it were `SuppressTokensLogitsProcessor`.)"""

    def __init__(self, start: int, end: int):
        self.start, self.end = start, end

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores.clone()
        scores[:, self.start : self.end] = -torch.inf
        return scores
