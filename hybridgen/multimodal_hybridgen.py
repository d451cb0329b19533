"""The model as transformers' any-to-any classes know it: `generate(generation_mode="text")`, and `"image"`.

`AutoModelForMultimodalLM` and `pipeline("any-to-any")` load this class. It is the plain model together with the
pipeline of its checkpoint, which has what drawing needs: codecs, scheduler, the empty prompt of guidance. The loops are
in `sampling`. The codecs are no part of the model: `state_dict` and `save_pretrained` know nothing of them, and a model
that was loaded without a checkpoint around it can only write text.

Shapes: B prompts, N tokens, I = B * num_return_sequences images, T codes of an image, C x h x w a latent.
"""

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import GenerationMixin
from transformers.generation import GenerateDecoderOnlyOutput

from hybridgen.core import layout
from hybridgen.core.hub import whole_around
from hybridgen.core.names import MOST_IMAGES, check_values
from hybridgen.core.values import choice, flag, shown, whole_number
from hybridgen.modeling_hybridgen import HybridGenForConditionalGeneration
from hybridgen.pipeline_hybridgen import HybridGenPipeline
from hybridgen.processing_hybridgen import check_unconditional
from hybridgen.sampling.codes import GREEDY, CodeSampling, write_codes
from hybridgen.sampling.decoder import Decoder
from hybridgen.sampling.denoise import draw_latents
from hybridgen.sampling.guidance import is_guided
from hybridgen.sampling.prefix import Prefix, begin_image, prefill
from hybridgen.sampling.seeds import further_generators, image_generators

MODES = ("text", "image")
_PROMPT_IMAGES = ("pixel_values", "latents", "timesteps", "codes")  # images of the prompt, as `forward` takes them
_KNOWN = (  # settings of a generation config that pictures heed, or that say nothing about them
    "guidance_scale", "num_beams", "num_return_sequences", "do_sample", "temperature", "top_k", "top_p",
    "output_logits", "return_dict_in_generate", "max_length", "max_new_tokens", "min_length", "min_new_tokens",
    "use_cache", "bos_token_id", "eos_token_id", "pad_token_id",
)  # fmt: skip


_TENSORS = {  # arguments -> their dimensions, and whether they hold whole numbers
    **dict.fromkeys(("input_ids", "negative_prompt_ids"), ((2,), True)),
    **dict.fromkeys(("attention_mask", "negative_prompt_attention_mask"), ((2,), False)),
    "pixel_values": ((4,), False), "latents": ((4,), False), "timesteps": ((1,), False), "codes": ((1, 2), True),
}  # fmt: skip
_COUNTS = ("num_return_sequences", "num_beams", "max_length", "max_new_tokens", "min_length", "min_new_tokens")
_FLAGS = ("do_sample", "return_dict_in_generate", "output_logits")

Rows = tuple[Tensor, Tensor]  # ids and mask (B, N)


class HybridGenForMultimodalLM(HybridGenForConditionalGeneration, GenerationMixin):
    """The model with the pipeline of its checkpoint, which draws.

    `pipeline` is a `HybridGenPipeline` around this very model; None = it can only write text.
    """

    output_modalities = ("image", "text")
    pipeline: HybridGenPipeline | None = None

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """As everywhere in transformers; the rest of the checkpoint is loaded with the model, when there is one: `name`
        is a whole checkpoint, or its folder `model/`."""
        hub = {key: kwargs[key] for key in ("cache_dir", "revision", "token", "local_files_only") if key in kwargs}
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if (whole := whole_around(pretrained_model_name_or_path, **hub)) is not None:
            model.pipeline = HybridGenPipeline.from_pretrained(whole, model=model, **hub)
        return loaded

    def generate(self, inputs: Tensor | None = None, generation_mode: str = "text", **kwargs):
        """As everywhere in transformers; `generation_mode="image"` draws.

        Args:
            inputs: (B, N) `input_ids`, padded on the left.
            generation_mode: `text`, or `image`; what follows is for images.
            attention_mask, pixel_values, latents, codes: of the prompt, as `forward` takes them.
            path: `diffusion` or `vq`; None = the first of them that the model has.
            height, width: None = the processor's default size.
            num_inference_steps: denoising steps (diffusion); None = as the pipeline's folder says.
            seed, generator: as in `HybridGenPipeline`; with neither, torch's global stream seeds each image.
            guidance_scale: 1 = none; None = as the pipeline's folder says.
            negative_prompt_ids, negative_prompt_attention_mask: (1, n) or (B, n); None = the empty prompt, or what the
                processor's `unconditional` makes of the prompt.
            num_return_sequences: images of a prompt stand together. Codes that are the likeliest each time make one
                picture, so several by vq need `do_sample`.
            do_sample, temperature, top_k, top_p: of the codes (vq); without `do_sample` the likeliest each time.
                Settings of one path are ignored on the other, as in `HybridGenPipeline`.
            return_dict_in_generate, output_logits: `sequences`, and the guided logits (I, V) of each code (vq).

        Returns:
            codes (I, T) by vq, latents (I, C, h, w) by diffusion; `decode_image_tokens` makes pixels of either.

        Raises:
            ValueError: in one sentence, what cannot be drawn.
        """
        if choice("generation_mode", generation_mode, MODES) == "text":
            return super().generate(inputs, **kwargs)
        inputs = kwargs.pop("input_ids", inputs)
        if inputs is None:
            raise ValueError("an image is drawn after a prompt; give input_ids (B, N)")
        return self._draw(**_checked({"input_ids": inputs, **kwargs}))

    @torch.no_grad()
    def decode_image_tokens(self, image_tokens: Tensor, height: int | None = None, width: int | None = None) -> Tensor:
        """What `generate` drew -> pixels (I, 3, H, W) in [-1, 1], as `processor.postprocess` takes them.

        Args:
            image_tokens: codes (I, T), or latents (I, C, h, w).
            height, width: of the picture, for codes of one that is not square.

        Raises:
            ValueError: there is no codec, or the codes are not as many as the size says.
        """
        pipeline = self._require_pipeline()
        if image_tokens.is_floating_point():
            if pipeline.vae is not None:
                pipeline.vae.to(self.device)
            return pipeline.latent_codec.decode(image_tokens.to(self.device))
        pipeline.check_codec("vq")
        pipeline.vq_model.to(self.device)
        count, side = image_tokens.shape[1], pipeline.processor.vq_token_size
        square = round(count**0.5) * side
        if height is None and width is None:
            height, width = square, square
        height, width = pipeline.processor.size_of(height, width)
        if pipeline.processor.count_tokens("vq", height, width) != count:
            raise ValueError(f"{count} codes make no picture of {height}x{width}; give its height and width")
        return pipeline.vq_codec.decode(image_tokens.to(self.device).view(-1, height // side, width // side))

    def _require_pipeline(self) -> HybridGenPipeline:
        if self.pipeline is None:
            raise ValueError(
                "this model was loaded without its codecs, so it can only write text; load the whole checkpoint, or "
                "set model.pipeline = HybridGenPipeline(model, processor, vae=..., vq_model=...)"
            )
        return self.pipeline

    @torch.no_grad()
    def _draw(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        path: str | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        seed: int | list[int] | None = None,
        generator=None,
        negative_prompt_ids: Tensor | None = None,
        negative_prompt_attention_mask: Tensor | None = None,
        generation_config=None,
        **kwargs,
    ) -> Tensor | GenerateDecoderOnlyOutput:
        """
        1. Check everything that needs no forward.
        2. Read the prompts, and what guidance leads away from, into a prefix: B rows and, guided, one or B more.
        3. Draw against one row per image, two where it is guided.
        """
        pipeline = self._require_pipeline()
        copies = kwargs.pop("num_return_sequences", None)  # transformers' own check knows texts alone
        config, rest = self._prepare_generation_config(generation_config, **kwargs)
        copies = config.num_return_sequences or 1 if copies is None else copies
        copies = whole_number("num_return_sequences", copies, most=MOST_IMAGES)
        images = {name: rest.pop(name) for name in _PROMPT_IMAGES if rest.get(name) is not None}
        _check_arguments(config, kwargs, rest)
        path = pipeline.writing_path(path)
        if config.output_logits and path != "vq":
            raise ValueError(f"output_logits is for codes, and the {path} path draws without any; leave it out")
        setup = pipeline.drawing_setup(
            path, num_inference_steps=num_inference_steps, guidance_scale=config.guidance_scale
        )
        scale, sampling = setup.settings["guidance_scale"], _sampling_of(config, path, copies)
        size = pipeline.check_sizes([height], [width], path)[0]
        count = len(input_ids) * copies
        if seed is None and generator is None:
            generators = further_generators(count, torch.default_generator)
        else:
            generators = image_generators(count, seed, generator)

        negative = None
        prompts = self._prompts(input_ids, attention_mask)
        length = int(prompts[1].sum(-1).max())
        needed = 1 + pipeline.processor.count_tokens(path, *size)
        pipeline.check_length("input_ids", length, needed, "the picture", "draw a smaller picture")
        if is_guided(scale):
            negative = self._negative(prompts, negative_prompt_ids, negative_prompt_attention_mask)
        prefix = self._prefix(prompts, negative, images, copies, setup.decoder)

        guidance, options = replace(setup.guidance, scale=scale), {"decoder": setup.decoder}
        logits: list[Tensor] = []
        if path == "vq":
            length = pipeline.processor.count_tokens(path, *size)
            keep_logits = (lambda step, scores: logits.append(scores)) if config.output_logits else None
            options |= {"on_logits": keep_logits, "window": setup.window}
            drawn = write_codes(self, prefix, length, generators, sampling, guidance, **options)
        else:
            steps, latent_size = setup.num_inference_steps, pipeline.latent_size(size)
            drawn = draw_latents(
                self,
                prefix,
                pipeline.scheduler,
                steps,
                latent_size,
                generators,
                guidance,
                shift=setup.shift,
                forecast=setup.forecast,
                **options,
            )
        if config.return_dict_in_generate:
            return GenerateDecoderOnlyOutput(sequences=drawn, logits=tuple(logits) or None)
        return drawn

    def _prompts(self, input_ids: Tensor, attention_mask: Tensor | None) -> Rows:
        """Ids and mask (B, N) on the model's device, the token that begins an image taken off where it stands last."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if mask.shape != input_ids.shape:
            fit = f"a mask of {tuple(mask.shape)} does not fit prompts of {tuple(input_ids.shape)}"
            raise ValueError(f"{fit}; give one 0 or 1 for each token")
        if not mask[:, -1].all():
            raise ValueError("the prompts are padded on the right, but an image is drawn after their end; pad left")
        opened = input_ids[:, -1] == self.config.begin_image_token_id
        if opened.any() and not opened.all():
            raise ValueError("some prompts end with the token that begins an image and others do not; end all alike")
        end = -1 if opened.all() else None
        return input_ids[:, :end].to(self.device), mask[:, :end].to(self.device)

    def _negative(self, prompts: Rows, ids: Tensor | None, mask: Tensor | None) -> Rows:
        """What guidance leads away from: one row for all prompts, or one each. See `check_unconditional`."""
        processor = self.pipeline.processor
        if ids is None and processor.unconditional == "empty":
            ids = torch.tensor([processor.prompt([{"role": "user", "content": ""}]).layout.input_ids])
        if ids is not None:
            if len(ids) not in (1, len(prompts[0])):
                raise ValueError(
                    f"negative_prompt_ids has {len(ids)} rows for {len(prompts[0])} prompts; give one for each, or one "
                    "for all"
                )
            return self._prompts(ids, mask)
        ids, mask = prompts
        keep = mask.cumsum(-1) == 1  # the first token, as DeepSeek's code does
        if check_unconditional(processor.unconditional) == "janus-hf":
            named = (processor.tokenizer.bos_token_id, processor.special_tokens.begin_image)
            keep = torch.isin(ids, torch.tensor([token for token in named if token is not None], device=ids.device))
        return ids.masked_fill((mask == 1) & ~keep, processor.special_tokens.pad), mask

    def _prefix(self, prompts: Rows, negative: Rows | None, images: dict, copies: int, decoder: Decoder) -> Prefix:
        """B prompts, and what guidance leads away from, read once; then `copies` rows of each: I rows, guided 2 I."""
        count = len(prompts[0])
        rows = torch.arange(count, device=self.device).repeat_interleave(copies)  # I
        if negative is not None:
            beyond = torch.arange(len(negative[0]), device=self.device) + count
            rows = torch.cat([rows, beyond.expand(count).repeat_interleave(copies)])  # 2 I
            prompts = _one_below_the_other(prompts, negative, self.pipeline.processor.special_tokens.pad)
        return self._read(*prompts, images, decoder).select(rows)

    def _read(self, input_ids: Tensor, mask: Tensor, images: dict, decoder: Decoder) -> Prefix:
        vectors = {
            "input_ids": input_ids,
            "document_ids": torch.where(mask.bool(), 0, layout.PADDING_DOCUMENT),
            "block_ids": layout.infer_block_ids(input_ids, self.model.bidirectional_ids()),
            "position_ids": (mask.long().cumsum(-1) - 1).clamp(min=0),
        }
        begun = begin_image(vectors, self.config.begin_image_token_id)
        return prefill(self, **begun, decoder=decoder, **images)


def _checked(arguments: dict) -> dict:
    """Arguments of `generate` for pictures, numbers as plain Python; None = not given. Raises ValueError for a value
    that means nothing."""
    checked = arguments | check_values(arguments)
    for name, value in arguments.items():
        if value is None:
            continue
        if name in _FLAGS:
            checked[name] = flag(name, value)
        elif name in _COUNTS:
            checked[name] = whole_number(name, value, 0 if name.startswith("min") else 1)
        elif name == "guidance_scale" and isinstance(checked[name], list):
            raise ValueError(f"{name} is {shown(value)}; generate takes one for all prompts, the pipeline one each")
        elif (wanted := _TENSORS.get(name)) is not None and not _is_tensor(value, *wanted):
            raise ValueError(
                f"{name} is {shown(value)}; give a tensor of {' or '.join(map(str, wanted[0]))} dimensions and of "
                f"{'whole numbers' if wanted[1] else 'numbers'}, as the processor and `forward` have it"
            )
    return checked


def _sampling_of(config, path: str, copies: int) -> CodeSampling:
    """How codes are drawn. Raises ValueError for several pictures that could only be the same."""
    if path == "vq" and config.do_sample:
        return CodeSampling(config.temperature, config.top_k or 0, config.top_p)
    if path == "vq" and copies > 1:
        raise ValueError(
            f"num_return_sequences is {copies}, but the likeliest codes make the same picture each time; set "
            "do_sample=True"
        )
    return GREEDY


def _is_tensor(value, dimensions: tuple[int, ...], whole: bool) -> bool:
    return isinstance(value, Tensor) and value.ndim in dimensions and not (whole and value.is_floating_point())


def _check_arguments(config, arguments: dict, rest: dict) -> None:
    """Raises ValueError for arguments of `generate` that a picture cannot heed.

    Args:
        config: the generation config that they were put into.
        rest: those of them that are neither in it nor images.
    """
    unknown = (arguments.keys() - rest.keys() - set(_KNOWN) - set(_PROMPT_IMAGES)) | rest.keys()
    if unknown := sorted(name for name in unknown if arguments.get(name) is not None):
        raise ValueError(f"generate(generation_mode='image') does not know {', '.join(unknown)}")
    if (config.num_beams or 1) > 1:
        raise ValueError(f"num_beams is {config.num_beams}, but images are drawn without beams; leave it out")


def _one_below_the_other(first: Rows, second: Rows, pad: int) -> Rows:
    """Both as one, the shorter padded on the left."""
    longest = max(len(first[0][0]), len(second[0][0]))
    ids, masks = (
        [F.pad(tensor, (longest - tensor.shape[1], 0), value=value) for tensor in pair]
        for pair, value in zip(zip(first, second, strict=True), (pad, 0), strict=True)
    )
    return torch.cat(ids), torch.cat(masks)
