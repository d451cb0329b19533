"""The model: embeds every path into one sequence, hands the backbone our mask, and reads every head off its output.

In this order: what forwards return, the base class, `HybridGenModel` (embed, mask, backbone),
`HybridGenForConditionalGeneration` (heads, loss, `generate`), helpers. This file writes no transformer block (the
backbone is any decoder of transformers), draws no noise (`core.objectives`) and holds no VAE or VQ tokenizer
(`codecs`): the model is a pure function of its inputs.

Layout vectors cover the *keys*: with P cached positions and N new tokens they have length P + N, and the last N are
the queries.

Shapes: B rows, N new tokens, K = P + N keys, H width, V vocabulary, I images, T tokens of all images of a path.
"""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import (
    AutoModel,
    Cache,
    DynamicCache,
    GenerationMixin,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
)
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer, StaticLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling
from transformers.utils import ModelOutput, can_return_tuple

from hybridgen.configuration_hybridgen import HybridGenConfig, HybridGenDiffusionConfig
from hybridgen.core import layout
from hybridgen.core.cross_entropy import head_losses
from hybridgen.core.hub import part_of
from hybridgen.core.layout import IGNORE
from hybridgen.core.names import PATHS
from hybridgen.core.objectives import predict_at, shift_labels
from hybridgen.core.sizes import by_size
from hybridgen.core.text_head import build_text_head, scaled_as
from hybridgen.paths.alignment import AlignmentHead, similarities
from hybridgen.paths.connectors.building import build_connector
from hybridgen.paths.connectors.mlp import Aligner
from hybridgen.paths.connectors.perceiver_resampler import PerceiverResampler
from hybridgen.paths.connectors.q_former import QFormer
from hybridgen.paths.convnext import ConvNextDecoder, ConvNextEncoder, GlobalResponseNorm
from hybridgen.paths.decoders import layer_windows
from hybridgen.paths.diffusion import FinalLayer, PatchEmbed, TimestepEmbedder
from hybridgen.paths.initial import XavierConv2d, XavierLinear, ZeroConv2d, ZeroLinear
from hybridgen.paths.modality_experts import add_modality_experts
from hybridgen.paths.moe import RouterOutput, balancing_loss, experts_per_token, router_class, router_outputs
from hybridgen.paths.temperature import scale_by_position
from hybridgen.paths.understanding import build_vision_tower, encode_features, encode_pixels, freeze_unused
from hybridgen.paths.unet import UNetDown, UNetUp
from hybridgen.paths.vq import GenerationHead, index_of_codes, logits_of_codes, tokens_of

Latents = Tensor | list[Tensor]  # (I, C, H, W), or I of (C, H, W) where sizes differ

IMAGE_INPUTS = ("pixel_values", "latents", "timesteps", "codes")
NO_TOKEN = -1  # the id of an embedding that came without one and is no placeholder


# ------------------------------------------------------------------------------------------------------- outputs


@dataclass
class HybridGenModelOutput(BaseModelOutputWithPast):
    """The backbone's output, and what the diffusion head needs of the input.

    Args:
        conditioning: (I, H) timestep embedding of each image of the diffusion path, in reading order.
        skips: of each group of images of one size, what goes around the backbone (`paths.unet`).
        diffusion_mask: (B, N) true on diffusion tokens.
        image_hidden_states: (I, tokens, H) aligned features of the understanding path, or I of (tokens, H).
        router_logits: (n, E) of each layer with a mixture of experts, as transformers returns them.
        router_loss: what balances them, a mean over tokens (`paths.moe`).
    """

    conditioning: Tensor | None = None
    skips: list[list[Tensor]] | None = None
    diffusion_mask: Tensor | None = None
    image_hidden_states: Tensor | None = None
    router_logits: tuple[Tensor, ...] | None = None
    router_loss: Tensor | None = None


@dataclass
class HybridGenOutput(ModelOutput):
    """
    Args:
        loss: mean next-token cross-entropy, when `labels` were given.
        logits: (B, kept, V) text logits; (kept, V) when `logits_to_keep` is a boolean mask. None with `text_labels`,
            unless `logits_to_keep` asks for some.
        text_losses, code_losses: (kept,) negative log-likelihoods of the `text_labels` and `code_labels`, in nats.
        text_log_z, code_log_z: (kept,) log of the sum of exponentials of the logits behind each of them.
        code_logits: (kept, num_embeddings) at the positions of `codes_to_keep`.
        prediction: the diffusion head's output for every image of `latents`, in the same form as `latents`.
        alignment: (I,) cosine between the states of each image of `latents` and the vision tower's features (-1 to 1).
        router_loss: what balances the experts of a mixture (`paths.moe`), with `output_router_logits`; `loss` then has
            it in it, weighed by the backbone's `router_aux_loss_coef`.
        past_key_values, hidden_states, attentions, image_hidden_states, router_logits: as everywhere in transformers.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    text_losses: Tensor | None = None
    code_losses: Tensor | None = None
    text_log_z: Tensor | None = None
    code_log_z: Tensor | None = None
    code_logits: Tensor | None = None
    prediction: Latents | None = None
    alignment: Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    image_hidden_states: Tensor | None = None
    router_logits: tuple[Tensor, ...] | None = None
    router_loss: Tensor | None = None


# ---------------------------------------------------------------------------------------------------- base class


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
    _can_compile_fullgraph = True  # decoding steps; a prompt with images is counted on the host, and never compiled
    _skip_keys_device_placement = ["past_key_values"]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """As everywhere in transformers. Given a whole checkpoint (a saved pipeline), it loads the model in it."""
        made = super().from_pretrained(part_of(pretrained_model_name_or_path, "model", **kwargs), *args, **kwargs)
        model = made[0] if isinstance(made, tuple) else made  # with `output_loading_info`
        getattr(model, model.base_model_prefix, model).freeze_unused()  # loading makes every weight learn
        return made

    def _set_gradient_checkpointing(
        self, enable: bool = True, gradient_checkpointing_func=checkpoint, **kwargs
    ) -> None:
        """As everywhere in transformers; recomputed layers route tokens to modality experts as their forward did."""
        routing = getattr(getattr(self, "model", self), "modality_routing", None)
        keywords = getattr(gradient_checkpointing_func, "keywords", {})
        if routing is not None and not keywords.get("use_reentrant", True) and "context_fn" not in keywords:
            recompute = functools.partial(gradient_checkpointing_func, context_fn=routing.for_recomputation)
            gradient_checkpointing_func = recompute
        super()._set_gradient_checkpointing(enable, gradient_checkpointing_func, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ZeroLinear | ZeroConv2d):
            nn.init.zeros_(module.weight)
        elif isinstance(module, XavierLinear):
            nn.init.xavier_uniform_(module.weight)
        elif isinstance(module, XavierConv2d):
            nn.init.xavier_uniform_(module.weight.flatten(1))
        elif isinstance(module, GlobalResponseNorm):  # at first, no channel is raised above the others
            nn.init.zeros_(module.gamma)
            nn.init.zeros_(module.beta)
        elif isinstance(module, PerceiverResampler):
            nn.init.normal_(module.latents)
        elif isinstance(module, QFormer):
            nn.init.normal_(module.query_tokens, std=self.config.initializer_range)


# --------------------------------------------------------------------------------------- embed, mask, backbone


class HybridGenModel(HybridGenPreTrainedModel):
    """Embeds, masks, and runs the backbone. Parts of absent paths do not exist."""

    # absent modalities pass through their weights outside of training, too: every rank must fetch sharded weights
    run_absent_modalities = False

    def __init__(self, config: HybridGenConfig):
        super().__init__(config)
        width = config.text_config.hidden_size
        self.windows = layer_windows(config.text_config)
        self.language_model = AutoModel.from_config(config.text_config)
        if (vision := config.vision_config) is not None:
            self.vision_model = build_vision_tower(vision)
            self.aligner = build_connector(config)
        if (vq := config.vq_config) is not None and vq.code_tokens is None:
            self.generation_embeddings = nn.Embedding(vq.num_embeddings, vq.embed_dim)
            self.generation_aligner = Aligner(vq.embed_dim, vq.projection_dim, vq.num_hidden_layers, vq.hidden_act)
            self.generation_head = GenerationHead(vq)
        if (diffusion := config.diffusion_config) is not None:
            way_in, way_out = _ways_of(diffusion)
            self.patch_embed = way_in(diffusion, width)
            self.timestep_embedder = TimestepEmbedder(diffusion, width)
            self.final_layer = way_out(diffusion, width)
            if diffusion.alignment_layer is not None:
                self.alignment_head = AlignmentHead(config)
            if diffusion.modality_experts:
                self.modality_routing = add_modality_experts(self.language_model)
        scale_by_position(self.language_model)
        self.post_init()
        self.freeze_unused()

    def freeze_unused(self) -> None:
        """Freeze the weights of the tower that none of its features comes from."""
        if self.config.vision_config is not None:
            freeze_unused(self.vision_model, self.config.feature_layers)

    @property
    def has_windows(self) -> bool:
        """Whether some layers of the backbone do not see back to the beginning."""
        return any(self.windows.values())

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    @can_return_tuple
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
        noised_mask: Tensor | None = None,
        image_mask: Tensor | None = None,
        **kwargs,
    ) -> HybridGenModelOutput:
        """
        1. Embed the text ids (B, N), and put each path's embeddings where its placeholder stands, in reading order.
        2. Render the layout as the mask of the backbone's attention.
        3. Run the backbone.

        Args:
            input_ids: (B, N) token ids; a path's placeholder where a token of an image stands.
            attention_mask: (B, K) 0 on padding, when no `document_ids` are given; or a ready 4-D mask.
            position_ids: (B, N); default counts real tokens.
            pixel_values: (I, 3, h, w) images of the understanding path, or I of (3, h, w) where sizes differ.
            latents, timesteps: images of the diffusion path, noised or clean, and their timesteps (I,); 0 is clean.
            codes: (T,) codes of the vq path.
            document_ids, block_ids, noised_mask: (B, K) layout; inferred from ids and `attention_mask` when absent, and
                from positions that restart when there is no mask either (rows packed by transformers' collators).
            image_mask: (B, K) true on tokens of images, which windows of the backbone's layers do not cut; inferred
                from ids and `block_ids` when absent, and for cached tokens from what the cache has seen in these rows.

        Raises:
            ValueError: image tokens in the text and features provided differ in number, the model has no path for an
                input, a layout vector has another shape than (B, K), or the cache drops what its windows leave behind.
            TypeError: `noised_mask` is given under its old name.
        """
        if "hidden" in kwargs:  # the backbone would ignore it without a word
            raise TypeError("hidden is called noised_mask now; rename it")
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        input_ids = self.infer_input_ids(inputs_embeds) if input_ids is None else input_ids  # B, N
        is_step = past_key_values is not None and (input_ids.shape[1] == 1 or int(past_key_values.get_seq_length()) > 0)
        embeds, images = self._embed(
            input_ids, inputs_embeds, pixel_values, latents, timesteps, codes, is_step
        )  # B, N, H
        if attention_mask is None and document_ids is None and position_ids is not None and past_key_values is None:
            document_ids = layout.infer_document_ids(position_ids).expand_as(input_ids)  # B, N
        past_key_values = self._whole_cache(past_key_values, use_cache)
        mask = self.render_mask(
            input_ids, attention_mask, document_ids, block_ids, noised_mask, past_key_values, embeds, image_mask
        )  # B, 1, N, K, of each kind of layers where they differ
        if position_ids is None:
            past = 0 if past_key_values is None else past_key_values.get_seq_length()
            position_ids = _count_positions(attention_mask, input_ids, past)  # B, N
        diffusion_ran = "conditioning" in images  # in training, also without any image
        self.set_modality_routing(input_ids == self.config.diffusion_token_id if diffusion_ran else None)
        outputs = self.language_model(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **kwargs,
        )
        router_logits = getattr(outputs, "router_logits", None)
        router_loss = None
        if router_logits:
            real = _real_tokens(input_ids, attention_mask, document_ids)
            router_loss = balancing_loss(self.routers_of(router_logits), real, self.experts_per_token)
        return HybridGenModelOutput(
            last_hidden_state=outputs.last_hidden_state,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            router_logits=router_logits,
            router_loss=router_loss,
            **images,
        )

    @property
    def has_routers(self) -> bool:
        """Whether the backbone has mixtures of experts, whose routers' scores can be had."""
        return router_class(self.language_model) is not None

    @property
    def experts_per_token(self) -> int:
        return experts_per_token(self.config.text_config)

    def routers_of(self, router_logits: tuple[Tensor, ...]) -> list[list[RouterOutput]]:
        """The router scores of the forward that has just run, for each set of routers: one, or those of text and those
        of the modality experts."""
        routing = getattr(self, "modality_routing", None)
        indices = None if routing is None else routing.get()
        if indices is not None and not all(map(len, indices)):  # a set that no token came to did not run
            at = 0 if len(indices.text_index) else 1
            return [[RouterOutput(*of_layer[:1], indices[at]) for of_layer in router_outputs(router_logits, None)[0]]]
        return router_outputs(router_logits, indices)

    def set_modality_routing(self, is_image: Tensor | None) -> None:
        """Say which tokens (B, N) of the next pass through the backbone go to the modality experts, where there are
        any; None = none of them."""
        if hasattr(self, "modality_routing"):
            self.modality_routing.set(is_image)

    # ------------------------------------------------------------------------------------------------- 1. embedding

    def embed(
        self, input_ids: Tensor, pixel_values=None, latents=None, timesteps=None, codes=None, is_step: bool = False
    ) -> Tensor:
        """What the backbone reads, (B, N, H): the embeddings of ids (B, N), and those of images where they stand. The
        arguments are those of `forward`; `is_step`: they follow what was read."""
        return self._embed(input_ids, None, pixel_values, latents, timesteps, codes, is_step)[0]

    def _embed(
        self, input_ids, inputs_embeds, pixel_values, latents, timesteps, codes, is_step: bool = False
    ) -> tuple[Tensor, dict]:
        """Embeddings (B, N, H), and what of `HybridGenModelOutput` is known before the backbone runs.

        In training, and with `run_absent_modalities`, an absent modality passes as zero images, so that its weights
        stay in the graph with zero gradient and no rank of DDP or FSDP waits for them.

        Args:
            is_step: the tokens follow what was read. A placeholder among them is one that a model wrote as text, as
                an untrained one does; it stands for no image, and is no error.
        """
        run_absent = self.training or self.run_absent_modalities
        if timesteps is not None and latents is None:
            raise ValueError("timesteps are given without the latents that they are of")
        given = {"understanding": pixel_values, "diffusion": latents, "vq": codes}
        self._check_paths(given)
        masks = {path: input_ids == placeholder for path, placeholder in self.placeholders().items()}  # B, N each
        if not run_absent and not is_step and not torch.compiler.is_compiling():
            self.check_images_given(input_ids, given)
        embeds = self._embed_text(input_ids, masks) if inputs_embeds is None else inputs_embeds  # B, N, H
        outputs = {}
        if "understanding" in masks and (pixel_values is not None or run_absent):
            if pixel_values is None:  # towers take no empty batch: one blank image, whose features are dropped
                features = self.get_image_features(self.blank_image(embeds), return_dict=True).pooler_output[:0]
            else:
                features = self._align_images(pixel_values)  # I, tokens, H
            outputs["image_hidden_states"] = features
            features = features.flatten(0, 1) if isinstance(features, Tensor) else torch.cat(features)  # T, H
            embeds = scatter(embeds, masks["understanding"], features, "understanding")
        if "vq" in masks and (codes is not None or run_absent):
            codes = input_ids.new_zeros(0) if codes is None else codes
            embeds = scatter(embeds, masks["vq"], self.embed_codes(codes), "vq")
        if "diffusion" in masks and (latents is not None or run_absent):
            if latents is None:
                latents, timesteps = [], embeds.new_zeros(0)
            if timesteps is None:
                timesteps = torch.zeros(len(latents), device=embeds.device)  # clean images
            tokens, conditioning, skips = self.embed_latents(latents, timesteps)
            outputs |= {"conditioning": conditioning, "skips": skips, "diffusion_mask": masks["diffusion"]}
            embeds = scatter(embeds, masks["diffusion"], tokens, "diffusion")
        return embeds, outputs

    def check_images_given(self, input_ids: Tensor, given: dict[str, Latents | None]) -> None:
        """Raises ValueError if placeholders of a path stand in the ids, and there is no image of that path."""
        for path, placeholder in self.placeholders().items():
            if given[path] is None:
                _check_count(input_ids == placeholder, 0, path)

    def _check_paths(self, inputs: dict[str, Latents | None]) -> None:
        for path, value in inputs.items():
            if value is not None and path not in self.config.paths:
                raise ValueError(
                    f"input for the {path} path, but this model has: {', '.join(self.config.paths) or 'none'}"
                )

    def _embed_text(self, input_ids: Tensor, placeholder_masks: dict[str, Tensor]) -> Tensor:
        """(B, N) -> (B, N, H). A placeholder may lie beyond the table: its embedding is overwritten by an image's."""
        table = self.get_input_embeddings()
        beyond = [mask & (input_ids >= table.num_embeddings) for mask in placeholder_masks.values()]
        return table(input_ids.masked_fill(torch.stack(beyond).any(0), 0) if beyond else input_ids)

    @can_return_tuple
    def get_image_features(self, pixel_values: Tensor, **kwargs) -> BaseModelOutputWithPooling:
        """Understanding: pixels (I, 3, h, w) -> tower output whose `pooler_output` is aligned, (I, tokens, H).

        An input of three dimensions, (I, features, width), is taken for the tower's features: one a patch, of those of
        its layers that the config takes.
        """
        if pixel_values.ndim == 3:
            aligned = self.aligner(pixel_values)
            return BaseModelOutputWithPooling(last_hidden_state=pixel_values, pooler_output=aligned)
        features, outputs = encode_features(self.vision_model, pixel_values, self.config.feature_layers, **kwargs)
        patch = self.vision_model.config.patch_size
        grid = tuple(side // (patch if isinstance(patch, int) else patch[0]) for side in pixel_values.shape[-2:])
        outputs.pooler_output = self.aligner(features, grid)
        return outputs

    def _align_images(self, pixel_values: Latents) -> Tensor | list[Tensor]:
        """Pixels or features -> (I, tokens, H), or I of (tokens, H) where pictures are of several sizes."""
        if isinstance(pixel_values, Tensor):
            return self.get_image_features(pixel_values, return_dict=True).pooler_output
        aligned: dict[int, Tensor] = {}
        for indices, pixels in by_size(pixel_values):
            of_a_size = self.get_image_features(pixels, return_dict=True).pooler_output
            aligned |= dict(zip(indices, of_a_size, strict=True))
        return [aligned[i] for i in range(len(pixel_values))]

    def blank_image(self, like: Tensor) -> Tensor:
        """(1, C, h, w) zeros of the tower's size, of the dtype and on the device of `like`."""
        side = self.config.tower_size
        return like.new_zeros(1, self.config.vision_config.num_channels, side, side)

    def embed_codes(self, codes: Tensor) -> Tensor:
        """vq: codes (T,) -> (T, H)."""
        if self.config.vq_config.code_tokens is not None:
            return self.get_input_embeddings()(tokens_of(codes, self.config.vq_config))
        return self.generation_aligner(self.generation_embeddings(codes))

    def embed_latents(self, latents: Latents, timesteps: Tensor) -> tuple[Tensor, Tensor, list[list[Tensor]]]:
        """diffusion: I images, timesteps (I,) -> embeddings (T, H) in reading order, conditioning (I, H), and the skips
        of each group of `by_size`.

        Raises:
            ValueError: there are not as many timesteps as images, or an image has other channels than the model's.
        """
        _check_latents(latents, timesteps, self.config.diffusion_config.in_channels)
        conditioning = self.timestep_embedder(timesteps)  # I, H
        if not len(latents):  # nothing to embed, but the weights stay in the graph
            config = self.config.diffusion_config
            latents = conditioning.new_zeros(0, config.in_channels, config.sample_size, config.sample_size)
        tokens, all_skips = {}, []
        for indices, images in by_size(latents):
            at = torch.tensor(indices, dtype=torch.long, device=conditioning.device)
            embedded, skips = self.embed_images(images, conditioning[at])  # images of this size, tokens, H
            tokens |= dict(zip(indices, embedded, strict=True)) if len(indices) else {0: embedded.flatten(0, 1)}
            all_skips.append(skips)
        return torch.cat([tokens[i] for i in sorted(tokens)]), conditioning, all_skips

    def embed_images(self, images: Tensor, vectors: Tensor) -> tuple[Tensor, list[Tensor]]:
        """diffusion: I images (I, C, h, w) of one size and timestep vectors (I or 1, H) -> tokens (I, T, H), skips."""
        tokens, skips = self.patch_embed(images, vectors)
        if self.config.diffusion_config.time_token:
            vectors = vectors[:, None].expand(len(tokens), -1, -1)  # I, 1, H
            tokens = torch.cat([vectors.to(tokens.dtype), tokens], dim=1)
        return tokens, skips

    def predict_images(self, states: Tensor, vectors: Tensor, skips: list[Tensor], size: tuple[int, int]) -> Tensor:
        """diffusion: the backbone's output (I, T, H) at I images' tokens -> predictions (I, C, h, w)."""
        patches = states[:, int(self.config.diffusion_config.time_token) :]
        return self.final_layer(patches, vectors, skips, size)

    def placeholders(self) -> dict[str, int]:
        """The placeholder id of each path that has one."""
        ids = {path: self.config.placeholder(path) for path in PATHS if path in self.config.paths}
        return {path: placeholder for path, placeholder in ids.items() if placeholder is not None}

    def bidirectional_ids(self) -> tuple[int, ...]:
        """Placeholders of paths on which the tokens of an image see each other."""
        return tuple(token for path, token in self.placeholders().items() if self.config.is_bidirectional(path))

    def infer_input_ids(self, inputs_embeds: Tensor) -> Tensor:
        """Ids (B, N) of embeddings that came without: placeholders are told by their rows of the table, all else is
        NO_TOKEN."""
        ids = torch.full(inputs_embeds.shape[:2], NO_TOKEN, device=inputs_embeds.device)
        table = self.get_input_embeddings()
        for placeholder in self.placeholders().values():
            if placeholder < table.num_embeddings:
                row = table(torch.tensor([placeholder], device=inputs_embeds.device))  # 1, H
                ids = ids.masked_fill((inputs_embeds == row).all(-1), placeholder)
        return ids

    # ------------------------------------------------------------------------------------------------------ 2. mask

    def render_mask(
        self,
        input_ids: Tensor,
        attention_mask,
        document_ids: Tensor | None = None,
        block_ids: Tensor | None = None,
        noised_mask: Tensor | None = None,
        cache: Cache | None = None,
        embeds: Tensor | None = None,
        image_mask: Tensor | None = None,
    ):
        """The mask in the form that the backbone takes (`layer_masks`), made once, for all layers and their
        recomputation. A 4-D mask, or a dict of them, passes as it is.

        A static cache is longer than what it holds: its empty slots are keys that no token sees.

        Args:
            embeds: (B, N, H) of the new tokens, whose dtype a mask of numbers takes; None = the weights'.
        """
        if isinstance(attention_mask, dict) or (attention_mask is not None and attention_mask.ndim == 4):
            return attention_mask
        rows, new = input_ids.shape
        past, empty_slots = 0, 0
        if cache is not None:
            past = int(cache.get_seq_length())
            empty_slots = max(0, cache.get_mask_sizes(new, 0)[0] - past - new)
        keys = past + new
        documents = "document_ids" if document_ids is not None else "attention_mask"  # what says where they end
        if document_ids is None:
            if attention_mask is None:
                document_ids = torch.zeros(rows, keys, dtype=torch.long, device=input_ids.device)
            else:
                document_ids = torch.where(attention_mask[:, -keys:].bool(), 0, layout.PADDING_DOCUMENT)
        if block_ids is None:
            block_ids = layout.infer_block_ids(input_ids, self.bidirectional_ids())
            block_ids = nn.functional.pad(block_ids, (past, 0), value=-1)  # the cache lies before all that is new
        if image_mask is None and self.has_windows:
            image_mask = torch.cat([_images_in(cache, rows, past, input_ids), self.find_images(input_ids)], dim=1)
        if cache is not None and self.has_windows:
            cache.image_mask = image_mask
        vectors = {
            documents: document_ids, "block_ids": block_ids, "noised_mask": noised_mask, "image_mask": image_mask,
        }  # fmt: skip
        for name, vector in vectors.items():
            if vector is not None and vector.shape != (rows, keys):
                raise ValueError(
                    f"{name} has shape {tuple(vector.shape)}, but {past} cached and {new} new tokens in {rows} rows "
                    f"need {(rows, keys)}"
                )
        dtype = self.dtype if embeds is None else _dtype_of_scores(embeds)
        return self.layer_masks(document_ids, block_ids, noised_mask, image_mask, new, empty_slots, dtype=dtype)

    def find_images(self, input_ids: Tensor) -> Tensor:
        """(B, N) true on placeholders."""
        is_image = torch.zeros_like(input_ids, dtype=torch.bool)
        for placeholder in self.placeholders().values():
            is_image |= input_ids == placeholder
        return is_image

    def layer_masks(
        self,
        document_ids: Tensor,
        block_ids: Tensor,
        noised_mask: Tensor | None = None,
        image_mask: Tensor | None = None,
        queries: int | None = None,
        empty_slots: int = 0,
        dtype: torch.dtype | None = None,
        implementation: str | None = None,
    ):
        """The mask of the last `queries` of the tokens (B, K) in the form that the backbone takes: one (B, 1, N, K), or
        one for each kind of its layers where they see differently far back.

        Args:
            image_mask: (B, K), only for layers with a window; see `forward`.
            empty_slots: see `layout.attention_mask`.
            dtype: of a mask of numbers; None = the weights'.
            implementation: of attention; None = the backbone's.
        """
        implementation = implementation or self.language_model.config._attn_implementation
        keys, image_ids, rendered = document_ids.shape[1], None, {}
        for window in self.windows.values():
            key = None if window is None or window.size >= keys else window  # such a window cuts nothing
            if key in rendered:
                continue
            if key is not None and image_ids is None:
                image_ids = layout.infer_image_ids(block_ids, image_mask, noised_mask)
            reach = None if key is None else layout.find_reach(key, document_ids, image_ids, noised_mask)
            rendered[key] = layout.attention_mask(
                implementation, dtype or self.dtype,
                document_ids, block_ids, noised_mask, queries, empty_slots, reach,
            )  # fmt: skip
        if len(rendered) == 1:
            return next(iter(rendered.values()))
        fits = {kind: window is None or window.size >= keys for kind, window in self.windows.items()}
        return {kind: rendered[None if fits[kind] else window] for kind, window in self.windows.items()}

    def _whole_cache(self, cache: Cache | None, use_cache: bool | None) -> Cache | None:
        """A cache whose layers keep every token, as masks and whole pictures need them; transformers' own would drop
        what lies behind a layer's window. Raises ValueError for one that has dropped some already."""
        if not self.has_windows:
            return cache
        if cache is None:
            use_cache = getattr(self.language_model.config, "use_cache", False) if use_cache is None else use_cache
            return DynamicCache() if use_cache else None
        keep_every_token(cache)
        return cache


# -------------------------------------------------------------------------------------- heads, loss, generation


class HybridGenForConditionalGeneration(HybridGenPreTrainedModel, GenerationMixin):
    """The model with its heads: text logits, code logits, denoising prediction."""

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}  # and no _pp_plan: images enter between two parts of the backbone
    output_modalities = ("text",)

    def __init__(self, config: HybridGenConfig):
        super().__init__(config)
        self.model = HybridGenModel(config)
        self.lm_head = build_text_head(config.text_config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.set_input_embeddings(value)

    def _get_resized_lm_head(self, old_lm_head: nn.Linear, *args, **kwargs) -> nn.Linear:
        return scaled_as(old_lm_head, super()._get_resized_lm_head(old_lm_head, *args, **kwargs))

    def get_image_features(self, pixel_values: Tensor, **kwargs) -> BaseModelOutputWithPooling | tuple:
        """See `HybridGenModel.get_image_features`."""
        return self.model.get_image_features(pixel_values, **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor | None = None,
        codes_to_keep: Tensor | None = None,
        text_labels: Tensor | None = None,
        code_labels: Tensor | None = None,
        with_log_z: bool = False,
        alignment_pixels: Tensor | None = None,
        pixel_values: Tensor | None = None,
        latents: Latents | None = None,
        timesteps: Tensor | None = None,
        codes: Tensor | None = None,
        document_ids: Tensor | None = None,
        block_ids: Tensor | None = None,
        noised_mask: Tensor | None = None,
        image_mask: Tensor | None = None,
        **kwargs,
    ) -> HybridGenOutput:
        """
        1. Embed, mask, and run the backbone: see `HybridGenModel.forward`, also for the inputs not listed here.
        2. Text logits, code logits, and a prediction and an alignment for each image of the diffusion path.
        3. The loss of text, where there are labels. (Training sums all losses itself, of single tokens, whose logits
           are never held whole: `core.cross_entropy`, `core.objectives`.)

        Args:
            labels: (B, N) text targets, unshifted, IGNORE where there is none; fills `loss`.
            logits_to_keep: the last n positions (0 = all), or positions (n,), or a boolean mask (B, N); None = all, or
                none where there are `text_labels`.
            codes_to_keep: boolean mask (B, N) of the positions whose code logits are wanted; None = none.
            text_labels, code_labels: (B, N) targets as `labels`; fill `text_losses` and `code_losses`.
            with_log_z: whether `text_log_z` and `code_log_z` are wanted with them.
            alignment_pixels: (I, 3, h, w) the clean pictures of `latents` as the tower takes them; fills `alignment`.
        """
        if alignment_pixels is not None:
            kwargs["output_hidden_states"] = True
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
            noised_mask=noised_mask,
            image_mask=image_mask,
            **kwargs,
        )
        states = outputs.last_hidden_state  # B, N, H
        wanted = logits_to_keep is not None or text_labels is None or labels is not None
        logits = self.lm_head(_select(states, logits_to_keep)) if wanted else None  # B, kept, V
        losses = self._token_losses(states, text_labels, code_labels, with_log_z)  # kept, each
        code_logits = None if codes_to_keep is None else self.code_logits(states[codes_to_keep])  # kept, codes
        prediction = None if outputs.conditioning is None else self._predict(states, outputs, latents)  # as latents
        alignment = None if alignment_pixels is None else self._align(outputs, latents, alignment_pixels)  # I
        loss = None if labels is None else self._text_loss(logits, labels, states, prediction, **kwargs)
        if loss is not None and outputs.router_loss is not None:
            weight = getattr(self.config.text_config, "router_aux_loss_coef", 0.0)
            loss = loss + weight * outputs.router_loss
        return HybridGenOutput(
            loss=loss,
            logits=logits,
            **losses,
            code_logits=code_logits,
            prediction=prediction,
            alignment=alignment,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=outputs.image_hidden_states,
            router_logits=outputs.router_logits,
            router_loss=outputs.router_loss,
        )

    # -------------------------------------------------------------------------------------------------------- heads
    #
    # A head for which there is no input is called all the same, with no token: so its weights stay in the graph, and no
    # rank of DDP or FSDP waits for them.

    def code_logits(self, hidden_states: Tensor) -> Tensor:
        """(..., H) -> (..., num_embeddings): the state at a position scores the code that comes next."""
        if self.config.vq_config.code_tokens is not None:
            return logits_of_codes(self.lm_head(hidden_states), self.config.vq_config)
        return self.model.generation_head(hidden_states)

    def _token_losses(
        self, states: Tensor, text_labels: Tensor | None, code_labels: Tensor | None, with_log_z: bool
    ) -> dict[str, Tensor | None]:
        """The losses (kept,) of the labels (B, N) that there are, and log Z. Codes that are tokens are predicted from
        the whole vocabulary, as text is, and by one call of the head."""
        losses: dict[str, Tensor | None] = {}
        how = {"with_log_z": with_log_z, "places": states[..., 0].numel()}
        if code_labels is not None and self.config.vq_config.code_tokens is not None:
            words = code_labels.new_tensor(IGNORE) if text_labels is None else text_labels
            tokens = tokens_of(code_labels.clamp(min=0), self.config.vq_config)
            labels = torch.where(code_labels == IGNORE, words, tokens)
            keep, targets = shift_labels(labels)
            of_code = predict_at(code_labels)[keep]
            both = head_losses(self.lm_head, states[keep], targets, **how)
            for kind, where in (("text", ~of_code), ("code", of_code)):
                losses[f"{kind}_losses"], losses[f"{kind}_log_z"] = (x if x is None else x[where] for x in both)
            return losses
        if text_labels is not None:
            keep, targets = shift_labels(text_labels)
            losses["text_losses"], losses["text_log_z"] = head_losses(self.lm_head, states[keep], targets, **how)
        if code_labels is not None:
            keep, targets = shift_labels(code_labels)
            head = self.model.generation_head
            features = head.features(states[keep])  # kept, projection_dim
            losses["code_losses"], losses["code_log_z"] = head_losses(head.vision_head, features, targets, **how)
        return losses

    def _predict(self, states: Tensor, outputs: HybridGenModelOutput, latents: Latents | None) -> Latents:
        """The diffusion head's output in the form of `latents`; without images, an empty tensor."""
        config, head = self.config.diffusion_config, self.model.predict_images
        states, conditioning = states[outputs.diffusion_mask], outputs.conditioning  # T, H; I, H
        if latents is None or not len(latents):
            side = config.sample_size
            states = states.view(0, config.tokens(side, side), states.shape[-1])  # no images, tokens, H
            return head(states, conditioning, outputs.skips[0], (side, side))
        sizes = [tuple(image.shape[-2:]) for image in latents]
        parts = states.split([config.tokens(*size) for size in sizes])  # tokens, H each
        predicted: list = [None] * len(latents)
        for (indices, _), skips in zip(by_size(latents), outputs.skips, strict=True):
            group = torch.stack([parts[i] for i in indices])  # images of one size, tokens, H
            at = torch.tensor(indices, device=conditioning.device)
            images = head(group, conditioning[at], skips, sizes[indices[0]])  # images of one size, C, h, w
            for i, image in zip(indices, images, strict=True):
                predicted[i] = image
        return torch.stack(predicted) if isinstance(latents, Tensor) else predicted

    def _align(self, outputs: HybridGenModelOutput, latents: Latents, pixels: Tensor) -> Tensor:
        """(I,) cosines between a layer's states and the tower's features (`paths.alignment`)."""
        config = self.config.diffusion_config
        if config is None or config.alignment_layer is None:
            raise ValueError("alignment_pixels are given, but the model has no diffusion_config.alignment_layer")
        tower = self.model.vision_model
        if not len(pixels):
            if self.model.run_absent_modalities:  # other ranks run their tower, and would wait for this one
                with torch.no_grad():
                    encode_pixels(tower, self.model.blank_image(outputs.last_hidden_state))
            return self.model.alignment_head(outputs.last_hidden_state.flatten(0, 1)[:0]).sum(-1)
        states = outputs.hidden_states[config.alignment_layer][outputs.diffusion_mask]  # T, H
        with torch.no_grad():
            features, _ = encode_features(tower, pixels)  # I, T, E
        grids = [tuple(side // config.patch_size for side in image.shape[-2:]) for image in latents]
        if config.time_token:  # shows nothing of the picture
            states = torch.cat([image[1:] for image in states.split([1 + h * w for h, w in grids])])
        return similarities(self.model.alignment_head(states), features, grids)

    def _text_loss(
        self, logits: Tensor, labels: Tensor, states: Tensor, prediction: Latents | None, **kwargs
    ) -> Tensor:
        """Next-token cross-entropy; in training with a zero from every head that it does not reach."""
        vocab_size = self.config.text_config.vocab_size
        loss = self.loss_function(logits=logits, labels=labels, vocab_size=vocab_size, **kwargs)
        if not self.training:
            return loss
        no_tokens = states.flatten(0, 1)[:0]  # 0, H
        zero = no_tokens.sum()
        if self.config.vq_config is not None:
            zero = zero + self.code_logits(no_tokens).sum()
        if prediction is not None:
            zero = zero + torch.cat([image.flatten()[:0] for image in prediction] or [prediction.flatten()]).sum()
            if self.config.diffusion_config.alignment_layer is not None:
                zero = zero + self.model.alignment_head(no_tokens).sum()
        return loss + zero

    # --------------------------------------------------------------------------------------------------- generation

    def generate(self, *args, **kwargs):
        """As everywhere in transformers. Codes that are tokens of the vocabulary are no text, and are never written."""
        vq = self.config.vq_config
        if vq is not None and vq.code_tokens is not None:
            suppress = _Suppress(index_of_codes(vq))
            kwargs["logits_processor"] = LogitsProcessorList([*(kwargs.get("logits_processor") or []), suppress])
        return super().generate(*args, **kwargs)

    def prepare_inputs_for_generation(
        self,
        input_ids,
        past_key_values=None,
        attention_mask=None,
        inputs_embeds=None,
        is_first_iteration: bool = False,
        **kwargs,
    ):
        """Images enter with the prompt; afterwards their keys and values are in the cache. Masks for a static cache are
        ours as well, rendered before the forward, which may be compiled."""
        inputs = super().prepare_inputs_for_generation(
            input_ids,
            past_key_values=past_key_values,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            is_first_iteration=is_first_iteration,
            **kwargs,
        )
        has_read = isinstance(past_key_values, Cache) and int(past_key_values.get_seq_length()) > 0
        if has_read and is_first_iteration and inputs.get("input_ids") is not None:  # a later turn of the user's
            given = {"understanding": "pixel_values", "diffusion": "latents", "vq": "codes"}
            self.model.check_images_given(inputs["input_ids"], {path: kwargs.get(name) for path, name in given.items()})
        for name in IMAGE_INPUTS:
            if has_read and not is_first_iteration:
                inputs.pop(name, None)
            elif kwargs.get(name) is not None:  # which transformers drops where an assistant reads the prompt
                inputs[name] = kwargs[name]
        ids = inputs["input_ids"]
        ids = self.model.infer_input_ids(inputs["inputs_embeds"]) if ids is None else ids
        images = None
        if self.model.has_windows:  # only here all ids are known, those of cached tokens, too
            images = self.model.find_images(input_ids)
            if inputs_embeds is not None:
                images = torch.cat([self.model.find_images(self.model.infer_input_ids(inputs_embeds)), images], dim=1)
            inputs["image_mask"] = images
        if isinstance(past_key_values, Cache) and past_key_values.is_compileable:
            inputs["attention_mask"] = self.model.render_mask(
                ids, inputs.get("attention_mask"), cache=past_key_values, image_mask=images
            )
        return inputs

    def _prepare_cache_for_generation(self, generation_config, model_kwargs, mode, batch_size, max_cache_length):
        """As everywhere in transformers, but no cache drops what lies behind a window (`HybridGenModel.forward`)."""
        super()._prepare_cache_for_generation(generation_config, model_kwargs, mode, batch_size, max_cache_length)
        if self.model.has_windows and isinstance(cache := model_kwargs.get("past_key_values"), Cache):
            keep_every_token(cache, max_cache_length)

    @staticmethod
    def create_masks_for_generate(attention_mask, **kwargs):
        """transformers calls this for a static cache, without the token ids that decide a mask here: it stays as it is
        until `prepare_inputs_for_generation`."""
        return attention_mask

    def _expand_inputs_for_generation(self, expand_size: int = 1, input_ids: Tensor | None = None, **kwargs):
        """Every row `expand_size` times (beams, several answers per prompt), with its images.

        Images come as one list for the whole batch, in reading order, so what is repeated is a row's run of images.
        """
        images = {name: kwargs.pop(name) for name in IMAGE_INPUTS if kwargs.get(name) is not None and expand_size > 1}
        if images:
            has_ids = input_ids is not None and input_ids.shape[1] > 0
            ids = input_ids if has_ids else self.model.infer_input_ids(kwargs["inputs_embeds"])
            counts = {path: (ids == token).sum(1).tolist() for path, token in self.model.placeholders().items()}
        input_ids, kwargs = super()._expand_inputs_for_generation(expand_size, input_ids=input_ids, **kwargs)
        for name, value in images.items():
            path, lengths = self._token_counts(name, images)
            kwargs[name] = _repeat_runs(value, _runs_of_rows(counts[path], lengths), expand_size)
        return input_ids, kwargs

    def _token_counts(self, name: str, images: dict) -> tuple[str, list[int]]:
        """The path of an image input, and how many tokens each of its entries has in the text."""
        if name == "pixel_values":
            native = self.config.native_sizes
            sizes = [image.shape[-2:] for image in images[name]]
            fixed = [self.config.image_tokens] * len(sizes)
            return "understanding", fixed if native is None else [native.count(*size) for size in sizes]
        if name == "codes":
            return "vq", [1] * len(images[name])
        return "diffusion", [self.config.diffusion_config.tokens(*image.shape[-2:]) for image in images["latents"]]


# ------------------------------------------------------------------------------------------------------- helpers


def _ways_of(config: HybridGenDiffusionConfig) -> tuple[type[nn.Module], type[nn.Module]]:
    """The classes that lead an image into the backbone, and a prediction out of it."""
    if config.unet_channels is not None:
        return UNetDown, UNetUp
    return (PatchEmbed, FinalLayer) if config.convnext_channels is None else (ConvNextEncoder, ConvNextDecoder)


def scatter(embeds: Tensor, mask: Tensor, features: Tensor, path: str) -> Tensor:
    """Put features (T, H) where `mask` (B, N) is true, in reading order.

    Raises:
        ValueError: with both numbers, when they differ.
    """
    _check_count(mask, len(features), path)
    return embeds.masked_scatter(mask[..., None], features.to(embeds.dtype))


def _check_count(mask: Tensor, made: int, path: str) -> None:
    """Raises ValueError, with both numbers, if `mask` is true on another number of tokens than images make."""
    if (expected := int(mask.sum())) != made:
        raise ValueError(
            f"{expected} {path} tokens stand in the text, but the images given make {made}; "
            "each image needs exactly as many placeholders as it has tokens"
        )


def _check_latents(latents: Latents, timesteps: Tensor, channels: int) -> None:
    if tuple(timesteps.shape) != (len(latents),):
        raise ValueError(
            f"timesteps have shape {tuple(timesteps.shape)} for {len(latents)} latents; give one for each, (I,)"
        )
    for image in latents[:1] if isinstance(latents, Tensor) else latents:
        if image.ndim != 3 or image.shape[0] != channels:
            raise ValueError(
                f"latents have an image of shape {tuple(image.shape)}; the model's have {channels} channels"
            )


def _dtype_of_scores(states: Tensor) -> torch.dtype:
    """In which attention's products of these states come out: autocast's, or their own."""
    device = states.device.type
    autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if autocast else states.dtype


def _images_in(cache: Cache | None, rows: int, past: int, like: Tensor) -> Tensor:
    """(B, P) which cached tokens are of images, as the forward that read them noted; none where nothing did."""
    noted = getattr(cache, "image_mask", None)
    if noted is not None and noted.shape[0] == rows and noted.shape[1] >= past:
        return noted[:, :past]
    return torch.zeros(rows, past, dtype=torch.bool, device=like.device)


def keep_every_token(cache: Cache, room: int | None = None) -> None:
    """Make the layers of a cache that drop what lies behind a window such that do not.

    Args:
        room: tokens that a static layer holds; None = as many as other layers do.

    Raises:
        ValueError: some are dropped already, or nothing says how many a static layer holds.
    """
    if room is None:
        static = [layer for layer in cache.layers if isinstance(layer, StaticLayer) and not layer.is_sliding]
        room = max((layer.max_cache_len for layer in static), default=None)
    for number, layer in enumerate(cache.layers):
        if not getattr(layer, "is_sliding", False):
            continue
        length = int(layer.get_seq_length())
        if isinstance(layer, DynamicSlidingWindowLayer) and length == (layer.keys.shape[-2] if length else 0):
            whole = DynamicLayer()
            if length:
                whole.update(layer.keys, layer.values)
        elif room is not None and not length and not isinstance(layer, DynamicSlidingWindowLayer):
            whole = StaticLayer(max_cache_len=room)
        else:
            raise ValueError(
                f"past_key_values is a {type(cache).__name__} whose layers drop what lies behind a window of the "
                "backbone, but pictures are seen whole; give an empty DynamicCache() of no config, or none"
            )
        cache.layers[number] = whole


def _real_tokens(input_ids: Tensor, attention_mask, document_ids: Tensor | None) -> Tensor:
    """(B, N) true on new tokens that are no padding, as far as anything says so."""
    new = input_ids.shape[1]
    if document_ids is not None:
        return document_ids[:, -new:] != layout.PADDING_DOCUMENT
    if isinstance(attention_mask, Tensor) and attention_mask.ndim == 2:
        return attention_mask[:, -new:].bool()
    return torch.ones_like(input_ids, dtype=torch.bool)


def _count_positions(attention_mask, input_ids: Tensor, past: int) -> Tensor:
    """(B, N) positions of the new tokens, padding not counted."""
    rows, new = input_ids.shape
    if attention_mask is None or isinstance(attention_mask, dict) or attention_mask.ndim != 2:
        return torch.arange(past, past + new, device=input_ids.device).expand(rows, new)
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -new:]


def _select(states: Tensor, keep: int | Tensor | None) -> Tensor:
    """The positions whose logits are wanted: the last `keep` (0 or None = all), the listed ones, or those of a boolean
    mask."""
    if isinstance(keep, Tensor):
        return states[keep] if keep.dtype == torch.bool else states[:, keep]
    return states[:, -keep:] if keep else states


def _runs_of_rows(tokens: list[int], lengths: list[int]) -> list[range]:
    """Which entries each row has, of entries of these lengths in reading order, when it has so many tokens of them."""
    runs, first = [], 0
    for count in tokens:
        last = first
        while last < len(lengths) and sum(lengths[first:last]) < count:
            last += 1
        runs.append(range(first, last))
        first = last
    return runs


def _repeat_runs(value: Tensor | list, runs: list[range], times: int) -> Tensor | list:
    """Each run so many times. Entries that belong to no row stay at the end, and `forward` finds them in its count."""
    order = [index for run in runs for _ in range(times) for index in run]
    order += range(runs[-1].stop, len(value))
    return value[torch.tensor(order, device=value.device)] if isinstance(value, Tensor) else [value[i] for i in order]


class _Suppress(LogitsProcessor):
    """None of these tokens is written.

    Not a `SuppressTokensLogitsProcessor`: of one class, `generate` keeps a single processor, ours or the caller's.
    """

    def __init__(self, tokens: slice | list[int]):
        self.tokens = tokens

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores.clone()
        scores[:, self.tokens] = -torch.inf
        return scores
