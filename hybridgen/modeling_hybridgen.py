"""The model: embeds every path into one sequence, hands the backbone our mask, and reads every head off its output.

This file writes no transformer block (the backbone is any decoder of transformers), draws no noise (`objectives`) and
holds no VAE or VQ tokenizer (`codecs`): the model is a pure function of its inputs. The fact a newcomer gets wrong:
layout vectors cover the *keys*. With P cached positions and N new tokens they have length P + N, and the last N ask.

Shapes: B rows, N new tokens, K = P + N keys, H width, V vocabulary, I images, T tokens of all images of a path.
"""

import torch
from torch import Tensor, nn
from transformers import AutoModel, Cache, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import can_return_tuple

from hybridgen.configuration_hybridgen import HybridGenConfig
from hybridgen.core import layout
from hybridgen.core.hub import part_of
from hybridgen.modeling_embedding import ImageEmbedding
from hybridgen.modeling_generation import ImageExpansion
from hybridgen.modeling_heads import ImageHeads
from hybridgen.modeling_outputs import HybridGenModelOutput, HybridGenOutput, Latents
from hybridgen.paths.alignment import AlignmentHead
from hybridgen.paths.diffusion import FinalLayer, PatchEmbed, TimestepEmbedder
from hybridgen.paths.initial import XavierLinear, ZeroLinear
from hybridgen.paths.modality_experts import add_modality_experts
from hybridgen.paths.understanding import Aligner, build_vision_tower
from hybridgen.paths.unet import UNetDown, UNetUp
from hybridgen.paths.vq import GenerationHead


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
    _can_compile_fullgraph = True  # the steps that write; a prompt with images is counted, and so never compiled
    _skip_keys_device_placement = ["past_key_values"]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """As everywhere in transformers; of a whole checkpoint, its model."""
        return super().from_pretrained(part_of(pretrained_model_name_or_path, "model", **kwargs), *args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ZeroLinear):
            nn.init.zeros_(module.weight)
        elif isinstance(module, XavierLinear):
            nn.init.xavier_uniform_(module.weight)


class HybridGenModel(ImageEmbedding, HybridGenPreTrainedModel):
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
        if (vq := config.vq_config) is not None and vq.first_token_id is None:
            self.generation_embeddings = nn.Embedding(vq.num_embeddings, vq.embed_dim)
            self.generation_aligner = Aligner(vq.embed_dim, vq.projection_dim, vq.num_hidden_layers, vq.hidden_act)
            self.generation_head = GenerationHead(vq)
        if config.diffusion_config is not None:
            entrance, exit_ = (
                (PatchEmbed, FinalLayer) if config.diffusion_config.unet_channels is None else (UNetDown, UNetUp)
            )
            self.patch_embed = entrance(config.diffusion_config, width)
            self.timestep_embedder = TimestepEmbedder(config.diffusion_config, width)
            self.final_layer = exit_(config.diffusion_config, width)
            if config.diffusion_config.alignment_layer is not None:
                self.alignment_head = AlignmentHead(config)
            if config.diffusion_config.modality_experts:
                self.route = add_modality_experts(self.language_model)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    # ------------------------------------------------------------------------------------------------ the forward

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
            document_ids, block_ids, noised_mask: (B, K) layout; inferred from ids and `attention_mask` when absent, and
                from positions that restart when there is no mask either (rows packed by transformers' collators).

        Raises:
            ValueError: image tokens in the text and features provided differ in number, or an absent path is asked.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        input_ids = self.ids_of(inputs_embeds) if input_ids is None else input_ids
        embeds, extra = self._embed(input_ids, inputs_embeds, pixel_values, latents, timesteps, codes)  # B, N, H
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        if attention_mask is None and document_ids is None and position_ids is not None and past_key_values is None:
            document_ids = layout.infer_document_ids(position_ids).expand_as(input_ids)
        mask = self.render_mask(input_ids, attention_mask, document_ids, block_ids, noised_mask, past_key_values)
        if position_ids is None:
            position_ids = self._positions(attention_mask, input_ids, past)
        self.set_modality_routing(input_ids == self.config.diffusion_token_id if "conditioning" in extra else None)
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

    def set_modality_routing(self, is_own: Tensor | None) -> None:
        """Tell own layers, where there are any, which of the tokens (B, N) are theirs; None = none is."""
        if hasattr(self, "route"):
            self.route.set_modality_routing(is_own)

    def render_mask(self, input_ids, attention_mask, document_ids=None, block_ids=None, noised_mask=None, cache=None):
        """Step 3. A 4-D mask, or a dict of them, passes as it is.

        A static cache is longer than what it holds: its empty slots are keys that no token sees.
        """
        if isinstance(attention_mask, dict) or (attention_mask is not None and attention_mask.ndim == 4):
            return attention_mask
        rows, new = input_ids.shape
        past, room = 0, 0
        if cache is not None:
            past = int(cache.get_seq_length())
            room = max(0, cache.get_mask_sizes(new, 0)[0] - past - new)
        keys = past + new
        if document_ids is None:
            if attention_mask is None:
                document_ids = torch.zeros(rows, keys, dtype=torch.long, device=input_ids.device)
            else:
                document_ids = torch.where(attention_mask[:, -keys:].bool(), 0, layout.PADDING_DOCUMENT)
        if block_ids is None:
            block_ids = layout.infer_block_ids(input_ids, self.bidirectional_ids())
            block_ids = nn.functional.pad(block_ids, (past, 0), value=-1)  # what is cached lies before all that is new
        for name, vector in (("document_ids", document_ids), ("block_ids", block_ids), ("noised_mask", noised_mask)):
            if vector is not None and vector.shape != (rows, keys):
                raise ValueError(
                    f"{name} has shape {tuple(vector.shape)}, but {past} cached and {new} new tokens in {rows} rows "
                    f"need {(rows, keys)}"
                )
        implementation = self.language_model.config._attn_implementation
        return layout.attention_mask(implementation, self.dtype, document_ids, block_ids, noised_mask, new, room)

    @staticmethod
    def _positions(attention_mask, input_ids: Tensor, past: int) -> Tensor:
        """Positions of the new tokens, padding not counted."""
        rows, new = input_ids.shape
        if attention_mask is None or isinstance(attention_mask, dict) or attention_mask.ndim != 2:
            return torch.arange(past, past + new, device=input_ids.device).expand(rows, new)
        return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -new:]


class HybridGenForConditionalGeneration(ImageHeads, ImageExpansion, HybridGenPreTrainedModel, GenerationMixin):
    """The model with its heads: text logits, code logits, denoising prediction."""

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}  # and no _pp_plan: images enter between two parts of the backbone
    output_modalities = ("text",)

    def __init__(self, config: HybridGenConfig):
        super().__init__(config)
        self.model = HybridGenModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.set_input_embeddings(value)

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
        logits_to_keep: int | Tensor = 0,
        codes_to_keep: Tensor | None = None,
        alignment_pixels: Tensor | None = None,
        pixel_values: Tensor | None = None,
        latents: Latents | None = None,
        timesteps: Tensor | None = None,
        codes: Tensor | None = None,
        document_ids: Tensor | None = None,
        block_ids: Tensor | None = None,
        noised_mask: Tensor | None = None,
        **kwargs,
    ) -> HybridGenOutput:
        """See `HybridGenModel.forward` for the inputs that are not listed here.

        Args:
            labels: (B, N) text targets, unshifted, IGNORE where there is none; fills `loss`.
            logits_to_keep: the last n positions (0 = all), or positions (n,), or a boolean mask (B, N).
            codes_to_keep: boolean mask (B, N) of the positions whose code logits are wanted; None = none.
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
            **kwargs,
        )
        states = outputs.last_hidden_state  # B, N, H
        logits = self.lm_head(_keep(states, logits_to_keep))
        code_logits = None if codes_to_keep is None else self.code_logits(states[codes_to_keep])
        prediction = None if outputs.conditioning is None else self._predict(states, outputs, latents)
        alignment = None
        if alignment_pixels is not None:
            alignment = self._align(outputs, latents, alignment_pixels)
        loss = None
        if labels is not None:
            vocab_size = self.config.text_config.vocab_size
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=vocab_size, **kwargs)
            loss = loss + self._idle_heads(states, outputs, prediction) if self.training else loss
        return HybridGenOutput(
            loss=loss,
            logits=logits,
            code_logits=code_logits,
            prediction=prediction,
            alignment=alignment,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=outputs.image_hidden_states,
        )

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
        if not is_first_iteration and kwargs.get("use_cache", True):
            for name in ("pixel_values", "latents", "timesteps", "codes"):
                inputs.pop(name, None)
        if isinstance(past_key_values, Cache) and past_key_values.is_compileable:
            ids = inputs["input_ids"] if inputs["input_ids"] is not None else self.model.ids_of(inputs["inputs_embeds"])
            inputs["attention_mask"] = self.model.render_mask(ids, inputs.get("attention_mask"), cache=past_key_values)
        return inputs

    @staticmethod
    def create_masks_for_generate(attention_mask, **kwargs):
        """Asked for a static cache, and not told the tokens, which decide; see `prepare_inputs_for_generation`."""
        return attention_mask


def _keep(states: Tensor, keep: int | Tensor) -> Tensor:
    """The positions whose logits are wanted: the last `keep` (0 = all), the listed ones, or those of a boolean mask."""
    if isinstance(keep, Tensor):
        return states[keep] if keep.dtype == torch.bool else states[:, keep]
    return states[:, -keep:] if keep else states
