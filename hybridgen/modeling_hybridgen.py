"""The model: embeds every path into one sequence, hands the backbone our mask, and reads every head off its output.

This file writes no transformer block (the backbone is any decoder of transformers), draws no noise (`objectives`) and
holds no VAE or VQ tokenizer (`codecs`): the model is a pure function of its inputs. The fact a newcomer gets wrong:
layout vectors cover the *keys*. With P cached positions and N new tokens they have length P + N, and the last N ask.

Shapes: B rows, N new tokens, K = P + N keys, H width, V vocabulary, I images, T tokens of all images of a path.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import AutoModel, Cache, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling
from transformers.utils import ModelOutput

from hybridgen import layout
from hybridgen.configuration_hybridgen import HybridGenConfig
from hybridgen.paths.diffusion import FinalLayer, PatchEmbed, TimestepEmbedder
from hybridgen.paths.initial import XavierLinear, ZeroLinear
from hybridgen.paths.patches import patch_positions, patchify, unpatchify
from hybridgen.paths.understanding import Aligner, build_vision_tower, look
from hybridgen.paths.vq import GenerationHead

Latents = Tensor | list[Tensor]  # (I, C, H, W), or I of (C, H, W) where sizes differ


@dataclass
class HybridGenModelOutput(BaseModelOutputWithPast):
    """What the backbone made of a sequence, and what the diffusion head needs of the input.

    Args:
        conditioning: (T, H) timestep embedding of each diffusion token, in reading order.
        diffusion_mask: (B, N) true on diffusion tokens.
        image_hidden_states: (I, tokens, H) aligned features of the understanding path.
    """

    conditioning: Tensor | None = None
    diffusion_mask: Tensor | None = None
    image_hidden_states: Tensor | None = None


@dataclass
class HybridGenOutput(ModelOutput):
    """
    Args:
        loss: mean next-token cross-entropy, when `labels` were given.
        logits: (B, kept, V) text logits; (kept, V) when `logits_to_keep` is a boolean mask.
        code_logits: (kept, num_embeddings) where `codes_to_keep` says.
        prediction: the diffusion head's output for every image of `latents`, in the same form as `latents`.
        past_key_values, hidden_states, attentions, image_hidden_states: as everywhere in transformers.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    code_logits: Tensor | None = None
    prediction: Latents | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    image_hidden_states: Tensor | None = None


class HybridGenPreTrainedModel(PreTrainedModel):
    config: HybridGenConfig
    config_class = HybridGenConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_flash_attn = False  # cannot express the mask (layout.attention_mask says so)
    _supports_attention_backend = True
    _skip_keys_device_placement = ["past_key_values"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ZeroLinear):
            nn.init.zeros_(module.weight)
        elif isinstance(module, XavierLinear):
            nn.init.xavier_uniform_(module.weight)


class HybridGenModel(HybridGenPreTrainedModel):
    """Embeds, masks, and runs the backbone. Parts of absent paths do not exist."""

    def __init__(self, config: HybridGenConfig):
        super().__init__(config)
        width = config.text_config.hidden_size
        self.language_model = AutoModel.from_config(config.text_config)
        if config.vision_config is not None:
            self.vision_model = build_vision_tower(config.vision_config)
            self.aligner = Aligner(
                config.vision_config.hidden_size, width, config.aligner_depth, config.aligner_hidden_act
            )
        if (vq := config.vq_config) is not None:
            self.generation_embeddings = nn.Embedding(vq.num_embeddings, vq.embed_dim)
            self.generation_aligner = Aligner(vq.embed_dim, vq.projection_dim, vq.num_hidden_layers, vq.hidden_act)
            self.generation_head = GenerationHead(vq)
        if config.diffusion_config is not None:
            self.patch_embed = PatchEmbed(config.diffusion_config, width)
            self.timestep_embedder = TimestepEmbedder(config.diffusion_config, width)
            self.final_layer = FinalLayer(config.diffusion_config, width)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    # ------------------------------------------------------------------------------------------ one method a path

    def get_image_features(self, pixel_values: Tensor, **kwargs) -> BaseModelOutputWithPooling:
        """Understanding: pixels (I, 3, h, w) -> tower output whose `pooler_output` is aligned, (I, tokens, H)."""
        outputs = look(self.vision_model, pixel_values.to(self.vision_model.dtype))
        outputs.pooler_output = self.aligner(outputs.last_hidden_state)
        return outputs

    def embed_codes(self, codes: Tensor) -> Tensor:
        """vq: codes (T,) -> (T, H)."""
        return self.generation_aligner(self.generation_embeddings(codes))

    def embed_latents(self, latents: Latents, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """diffusion: I images, timesteps (I,) -> embeddings (T, H) and conditioning (T, H), in reading order."""
        p = self.config.diffusion_config.patch_size
        patches = [patchify(image, p) for image in latents]  # h * w, D each
        counts = torch.tensor([len(image) for image in patches], device=timesteps.device, dtype=torch.long)
        positions = [patch_positions(*image.shape[-2:], p, device=image.device) for image in latents]
        vectors = self.timestep_embedder(timesteps)  # I, H
        conditioning = torch.repeat_interleave(vectors, counts, dim=0)  # T, H
        dim = self.patch_embed.proj.in_features
        flat = torch.cat(patches) if patches else timesteps.new_zeros(0, dim, dtype=vectors.dtype)
        where = torch.cat(positions) if positions else timesteps.new_zeros(0, 2, dtype=torch.long)
        return self.patch_embed(flat.to(self.patch_embed.proj.bias.dtype), where) + conditioning, conditioning

    # ------------------------------------------------------------------------------------------------ the forward

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        pixel_values: Tensor | None = None,
        latents: Latents | None = None,
        timesteps: Tensor | None = None,
        codes: Tensor | None = None,
        document_ids: Tensor | None = None,
        block_ids: Tensor | None = None,
        hidden: Tensor | None = None,
        **kwargs,
    ) -> HybridGenModelOutput:
        """
        1. Embed the text ids (B, N).
        2. Put each path's embeddings where its placeholder stands, images in reading order.
        3. Render the layout as the mask of the backbone's attention.
        4. Run the backbone.

        Args:
            input_ids: (B, N) token ids; a path's placeholder where a token of an image stands.
            attention_mask: (B, K) 0 on padding, when no `document_ids` are given; or a ready 4-D mask.
            position_ids: (B, N); default counts real tokens.
            pixel_values: (I, 3, h, w) images of the understanding path.
            latents, timesteps: images of the diffusion path, noised or clean, and their timesteps (I,); 0 is clean.
            codes: (T,) codes of the vq path.
            document_ids, block_ids, hidden: (B, K) layout; inferred from ids and `attention_mask` when absent.

        Raises:
            ValueError: image tokens in the text and features provided differ in number, or an absent path is asked.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        embeds, extra = self._embed(input_ids, inputs_embeds, pixel_values, latents, timesteps, codes)  # B, N, H
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        mask = self._mask(input_ids, embeds, attention_mask, document_ids, block_ids, hidden, past)
        if position_ids is None:
            position_ids = self._positions(attention_mask, embeds, past)
        outputs = self.language_model(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **kwargs,
        )
        return HybridGenModelOutput(
            last_hidden_state=outputs.last_hidden_state,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **extra,
        )

    def _embed(self, input_ids, inputs_embeds, pixel_values, latents, timesteps, codes) -> tuple[Tensor, dict]:
        """Steps 1 and 2. In training an absent modality passes as zero images, so that its weights stay in the graph
        with zero gradient and no rank of DDP or FSDP waits for them."""
        given = {"understanding": pixel_values, "diffusion": latents, "vq": codes}
        for path, value in given.items():
            if value is not None and path not in self.config.paths:
                raise ValueError(
                    f"input for the {path} path, but this model has: {', '.join(self.config.paths) or 'none'}"
                )
        if inputs_embeds is not None:
            return inputs_embeds, {}
        masks = {path: input_ids == self.config.placeholder(path) for path in self.config.paths if self._has(path)}
        # A placeholder may lie outside the vocabulary. One inside that stands for no image is a word like any other:
        # nothing keeps a model from writing it, and transformers' Janus reads it so.
        outside = input_ids >= self.config.text_config.vocab_size
        embeds = self.get_input_embeddings()(input_ids.masked_fill(outside, 0))
        extra = {}
        if "understanding" in masks and (pixel_values is not None or self.training):
            if pixel_values is None:  # towers take no empty batch: one blank image, of which nothing is kept
                features = self.get_image_features(self._blank_image(embeds)).pooler_output[:0]
            else:
                features = self.get_image_features(pixel_values).pooler_output  # I, tokens, H
            extra["image_hidden_states"] = features
            embeds = scatter(embeds, masks["understanding"], features.flatten(0, 1), "understanding")
        if "vq" in masks and (codes is not None or self.training):
            codes = input_ids.new_zeros(0) if codes is None else codes
            embeds = scatter(embeds, masks["vq"], self.embed_codes(codes), "vq")
        if "diffusion" in masks and (latents is not None or self.training):
            if latents is None:
                latents, timesteps = [], embeds.new_zeros(0)
            if timesteps is None:
                timesteps = torch.zeros(len(latents), device=embeds.device)  # read as clean
            tokens, conditioning = self.embed_latents(latents, timesteps)
            extra |= {"conditioning": conditioning, "diffusion_mask": masks["diffusion"]}
            embeds = scatter(embeds, masks["diffusion"], tokens, "diffusion")
        return embeds, extra

    def _blank_image(self, like: Tensor) -> Tensor:
        vision = self.config.vision_config
        return like.new_zeros(1, vision.num_channels, vision.image_size, vision.image_size)

    def _has(self, path: str) -> bool:
        return self.config.placeholder(path) is not None

    def _mask(self, input_ids, embeds, attention_mask, document_ids, block_ids, hidden, past: int):
        """Step 3. A 4-D mask (or the dict of masks that transformers prepares for static caches) passes as it is."""
        if isinstance(attention_mask, dict) or (attention_mask is not None and attention_mask.ndim == 4):
            return attention_mask
        rows, new = embeds.shape[:2]
        keys = past + new
        if document_ids is None:
            if attention_mask is None:
                document_ids = torch.zeros(rows, keys, dtype=torch.long, device=embeds.device)
            else:
                document_ids = torch.where(attention_mask[:, -keys:].bool(), 0, layout.PADDING_DOCUMENT)
        if block_ids is None:
            if input_ids is None:
                block_ids = torch.arange(new, device=embeds.device).expand(rows, new)
            else:
                block_ids = layout.infer_block_ids(input_ids, self._bidirectional_ids())
            block_ids = nn.functional.pad(block_ids, (past, 0), value=-1)  # what is cached lies before all that is new
        for name, vector in (("document_ids", document_ids), ("block_ids", block_ids), ("hidden", hidden)):
            if vector is not None and vector.shape != (rows, keys):
                raise ValueError(
                    f"{name} has shape {tuple(vector.shape)}, but {past} cached and {new} new tokens in {rows} rows "
                    f"need {(rows, keys)}"
                )
        implementation = self.language_model.config._attn_implementation
        return layout.attention_mask(implementation, embeds.dtype, document_ids, block_ids, hidden, queries=new)

    def _bidirectional_ids(self) -> tuple[int, ...]:
        paths = [path for path in self.config.paths if self.config.is_bidirectional(path) and self._has(path)]
        return tuple(self.config.placeholder(path) for path in paths)

    @staticmethod
    def _positions(attention_mask, embeds: Tensor, past: int) -> Tensor:
        """Positions of the new tokens, padding not counted."""
        rows, new = embeds.shape[:2]
        if attention_mask is None or isinstance(attention_mask, dict) or attention_mask.ndim != 2:
            return torch.arange(past, past + new, device=embeds.device).expand(rows, new)
        return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -new:]


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


class HybridGenForConditionalGeneration(HybridGenPreTrainedModel, GenerationMixin):
    """The model with its heads: text logits, code logits, denoising prediction."""

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}
    output_modalities = ("image", "text")

    def __init__(self, config: HybridGenConfig):
        super().__init__(config)
        self.model = HybridGenModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.set_input_embeddings(value)

    def get_image_features(self, pixel_values: Tensor, **kwargs) -> BaseModelOutputWithPooling:
        """See `HybridGenModel.get_image_features`."""
        return self.model.get_image_features(pixel_values, **kwargs)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        codes_to_keep: Tensor | None = None,
        pixel_values: Tensor | None = None,
        latents: Latents | None = None,
        timesteps: Tensor | None = None,
        codes: Tensor | None = None,
        document_ids: Tensor | None = None,
        block_ids: Tensor | None = None,
        hidden: Tensor | None = None,
        **kwargs,
    ) -> HybridGenOutput:
        """See `HybridGenModel.forward` for the inputs that are not listed here.

        Args:
            labels: (B, N) text targets, unshifted, IGNORE where there is none; fills `loss`.
            logits_to_keep: the last n positions (0 = all), or positions (n,), or a boolean mask (B, N).
            codes_to_keep: boolean mask (B, N) of the positions whose code logits are wanted; None = none.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            pixel_values=pixel_values,
            latents=latents,
            timesteps=timesteps,
            codes=codes,
            document_ids=document_ids,
            block_ids=block_ids,
            hidden=hidden,
            **kwargs,
        )
        states = outputs.last_hidden_state  # B, N, H
        logits = self.lm_head(_keep(states, logits_to_keep))
        code_logits = None if codes_to_keep is None else self.code_logits(states[codes_to_keep])
        prediction = None if outputs.conditioning is None else self._predict(states, outputs, latents)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.text_config.vocab_size)
        return HybridGenOutput(
            loss=loss,
            logits=logits,
            code_logits=code_logits,
            prediction=prediction,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=outputs.image_hidden_states,
        )

    def code_logits(self, hidden_states: Tensor) -> Tensor:
        """(..., H) -> (..., num_embeddings): the state at a position scores the code that comes next."""
        return self.model.generation_head(hidden_states)

    def _predict(self, states: Tensor, outputs: HybridGenModelOutput, latents: Latents | None) -> Latents:
        p = self.config.diffusion_config.patch_size
        patches = self.model.final_layer(states[outputs.diffusion_mask], outputs.conditioning)  # T, D
        if latents is None or len(latents) == 0:
            return patches  # 0, D: no image, but the head is in the graph
        if isinstance(latents, Tensor):
            return unpatchify(patches.view(len(latents), -1, patches.shape[-1]), p, *latents.shape[-2:])
        sizes = [image.shape[-2:] for image in latents]
        parts = patches.split([height // p * (width // p) for height, width in sizes])
        return [unpatchify(part, p, *size) for part, size in zip(parts, sizes, strict=True)]

    def prepare_inputs_for_generation(self, input_ids, is_first_iteration: bool = False, **kwargs):
        """Images enter with the prompt; afterwards their keys and values are in the cache."""
        inputs = super().prepare_inputs_for_generation(input_ids, is_first_iteration=is_first_iteration, **kwargs)
        if not is_first_iteration and kwargs.get("use_cache", True):
            for name in ("pixel_values", "latents", "timesteps", "codes"):
                inputs.pop(name, None)
        return inputs


def _keep(states: Tensor, keep: int | Tensor) -> Tensor:
    """The positions whose logits are wanted: the last `keep` (0 = all), the listed ones, or those of a boolean mask."""
    if isinstance(keep, Tensor):
        return states[keep] if keep.dtype == torch.bool else states[:, keep]
    return states[:, -keep:] if keep else states
