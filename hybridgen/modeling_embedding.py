"""Embedding: ids, pixels, latents and codes -> one sequence of embeddings, each image where its placeholders stand.

The part of `HybridGenModel` before the backbone, one method a path. The fact a newcomer gets wrong: what the embedding
table says of a placeholder does not matter (it may lie outside of it). It is counted, and then overwritten.

Shapes: B rows, N tokens, H width, I images, T tokens of all images of a path.
"""

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import can_return_tuple

from hybridgen.core.layout import PATHS
from hybridgen.modeling_outputs import Latents
from hybridgen.paths.patches import by_size
from hybridgen.paths.understanding import look

NO_TOKEN = -1  # stands for an embedding of which no id is known


class ImageEmbedding:
    """Mixed into the model, whose config says which paths there are and whose parts do the work."""

    every_path = False  # absent modalities take part outside of training, too: sharded weights are fetched by all ranks

    @can_return_tuple
    def get_image_features(self, pixel_values: Tensor, **kwargs) -> BaseModelOutputWithPooling:
        """Understanding: pixels (I, 3, h, w) -> tower output whose `pooler_output` is aligned, (I, tokens, H).

        What has three dimensions, (I, tokens, width), is taken for the tower's last hidden states.
        """
        if pixel_values.ndim == 3:
            aligned = self.aligner(pixel_values)
            return BaseModelOutputWithPooling(last_hidden_state=pixel_values, pooler_output=aligned)
        outputs = look(self.vision_model, pixel_values.to(self.vision_model.dtype), **kwargs)
        outputs.pooler_output = self.aligner(outputs.last_hidden_state)
        return outputs

    def embed_codes(self, codes: Tensor) -> Tensor:
        """vq: codes (T,) -> (T, H)."""
        if (first := self.config.vq_config.first_token_id) is not None:
            return self.get_input_embeddings()(codes + first)
        return self.generation_aligner(self.generation_embeddings(codes))

    def embed_latents(self, latents: Latents, timesteps: Tensor) -> tuple[Tensor, Tensor, list[list[Tensor]]]:
        """diffusion: I images, timesteps (I,) -> embeddings (T, H) in reading order, conditioning (I, H), and the skips
        of each group of `by_size`."""
        vectors = self.timestep_embedder(timesteps)  # I, H
        if not len(latents):  # nothing to embed, but the weights stay in the graph
            config = self.config.diffusion_config
            latents = vectors.new_zeros(0, config.in_channels, config.sample_size, config.sample_size)
        tokens, all_skips = {}, []
        for which, images in by_size(latents):
            made, skips = self.patch_embed(images, vectors[which])  # I, T, H
            tokens |= dict(zip(which, made, strict=True)) if len(which) else {0: made.flatten(0, 1)}
            all_skips.append(skips)
        return torch.cat([tokens[i] for i in sorted(tokens)]), vectors, all_skips

    def bidirectional_ids(self) -> tuple[int, ...]:
        """Placeholders of which a run is one image whose tokens see each other."""
        return tuple(self.placeholders()[path] for path in self.placeholders() if self.config.is_bidirectional(path))

    def placeholders(self) -> dict[str, int]:
        """The placeholder id of each path that has one."""
        ids = {path: self.config.placeholder(path) for path in PATHS if path in self.config.paths}
        return {path: placeholder for path, placeholder in ids.items() if placeholder is not None}

    # ------------------------------------------------------------------------------------------------ all together

    def ids_of(self, inputs_embeds: Tensor) -> Tensor:
        """Ids (B, N) of embeddings that came without: those of the placeholders, told by their rows of the table."""
        ids = torch.full(inputs_embeds.shape[:2], NO_TOKEN, device=inputs_embeds.device)
        table = self.get_input_embeddings()
        for placeholder in self.placeholders().values():
            if placeholder < table.num_embeddings:
                row = table(torch.tensor([placeholder], device=inputs_embeds.device))  # 1, H
                ids = ids.masked_fill((inputs_embeds == row).all(-1), placeholder)
        return ids

    def _embed(self, input_ids, inputs_embeds, pixel_values, latents, timesteps, codes) -> tuple[Tensor, dict]:
        """Embeddings (B, N, H), and what of `HybridGenModelOutput` is known by now.

        In training, and with `every_path`, an absent modality passes as zero images, so that its weights stay in the
        graph with zero gradient and no rank of DDP or FSDP waits for them.
        """
        idle = self.training or self.every_path
        given = {"understanding": pixel_values, "diffusion": latents, "vq": codes}
        for path, value in given.items():
            if value is not None and path not in self.config.paths:
                raise ValueError(
                    f"input for the {path} path, but this model has: {', '.join(self.config.paths) or 'none'}"
                )
        masks = {path: input_ids == placeholder for path, placeholder in self.placeholders().items()}
        embeds = inputs_embeds
        if embeds is None:
            table = self.get_input_embeddings()
            beyond = [mask & (input_ids >= table.num_embeddings) for mask in masks.values()]
            embeds = table(input_ids.masked_fill(torch.stack(beyond).any(0), 0) if beyond else input_ids)
        extra = {}
        if "understanding" in masks and (pixel_values is not None or idle):
            if pixel_values is None:  # towers take no empty batch: one blank image, of which nothing is kept
                features = self.get_image_features(self._blank_image(embeds), return_dict=True).pooler_output[:0]
            else:
                features = self.get_image_features(pixel_values, return_dict=True).pooler_output  # I, tokens, H
            extra["image_hidden_states"] = features
            embeds = scatter(embeds, masks["understanding"], features.flatten(0, 1), "understanding")
        if "vq" in masks and (codes is not None or idle):
            codes = input_ids.new_zeros(0) if codes is None else codes
            embeds = scatter(embeds, masks["vq"], self.embed_codes(codes), "vq")
        if "diffusion" in masks and (latents is not None or idle):
            if latents is None:
                latents, timesteps = [], embeds.new_zeros(0)
            if timesteps is None:
                timesteps = torch.zeros(len(latents), device=embeds.device)  # read as clean
            tokens, conditioning, skips = self.embed_latents(latents, timesteps)
            extra |= {"conditioning": conditioning, "skips": skips, "diffusion_mask": masks["diffusion"]}
            embeds = scatter(embeds, masks["diffusion"], tokens, "diffusion")
        return embeds, extra

    def _blank_image(self, like: Tensor) -> Tensor:
        vision = self.config.vision_config
        return like.new_zeros(1, vision.num_channels, vision.image_size, vision.image_size)


def scatter(embeds: Tensor, mask: Tensor, features: Tensor, path: str) -> Tensor:
    """Put features (T, H) where `mask` (B, N) is true, in reading order.

    Raises:
        ValueError: with both numbers, when they differ.
    """
    expected = int(mask.sum())
    if expected != len(features):
        raise ValueError(
            f"{expected} {path} tokens stand in the text, but the images given make {len(features)}; "
            "each image needs exactly as many placeholders as it has tokens"
        )
    return embeds.masked_scatter(mask[..., None], features.to(embeds.dtype))
