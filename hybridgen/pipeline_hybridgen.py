"""The pipeline: prompts -> pictures by any path that writes, pictures and questions -> answers by any path that reads.

It joins processor, model, scheduler and codecs, checks what a user can get wrong before the first forward, and cuts the
work into batches; the loops are in `sampling`, conversations in `chat`. `max_batch` changes memory and speed, never a
picture, for every image has a random stream of its own. Several threads may use one pipeline at once: what a call
changes as it goes lives in its `CallState`.

diffusers looks for `PreTrainedModel`, `ProcessorMixin`, `ModelMixin` or `SchedulerMixin` in the module of each
component; do not remove those seemingly unused imports there.
"""

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from weakref import WeakKeyDictionary

import torch
from accelerate.utils import send_to_device
from diffusers import DiffusionPipeline, ImagePipelineOutput
from PIL import Image
from torch import Generator, Tensor

from hybridgen.chat.events import Event
from hybridgen.chat.session import Chat, stream
from hybridgen.checkpoints import adapters
from hybridgen.checkpoints.loading import (
    WEIGHTS,
    check_checkpoint,
    check_codec_weights,
    forget_origin,
    friendly_errors,
    load_model,
    quiet,
)
from hybridgen.checkpoints.manifest import Provenance
from hybridgen.checkpoints.model_card import model_card
from hybridgen.codecs.frozen import PixelCodec, VAECodec, VQCodec
from hybridgen.configuration_hybridgen import require_path
from hybridgen.core.devices import best_device
from hybridgen.core.documents import Document, by_padded_length, left_pad
from hybridgen.core.files import write_whole
from hybridgen.core.hub import upload
from hybridgen.core.messages import check_messages, parts, strip_reasoning
from hybridgen.core.names import MOST_IMAGES, WRITING_PATHS, check_values
from hybridgen.core.noise import NoiseProcess
from hybridgen.core.offload import offload_layers, offloaded_by, take_turns
from hybridgen.core.pictures import read_picture, read_pictures, with_pictures
from hybridgen.core.recognition import checkpoint_path, looks_like_folder, require_checkpoint, user_path
from hybridgen.core.values import choice, each, flag, listed, shorten, shown, texts, whole_number
from hybridgen.core.values import number as checked_number
from hybridgen.image_processing_hybridgen import to_range
from hybridgen.modeling_hybridgen import HybridGenForConditionalGeneration
from hybridgen.processing_hybridgen import HybridGenProcessor
from hybridgen.sampling.codes import CodeDrawing, CodeSampling
from hybridgen.sampling.decoder import Decoder
from hybridgen.sampling.denoise import LatentDrawing, OnStep, check_schedule_draws, prepare
from hybridgen.sampling.edits import Edit, Known, read_edits, sides_of
from hybridgen.sampling.guidance import Guidance
from hybridgen.sampling.likelihood import Likelihood, log_likelihoods, rolling_windows
from hybridgen.sampling.prefix import Prefix, read_prompts
from hybridgen.sampling.requests import ImageRequest, batches, expand_requests, pair_questions
from hybridgen.sampling.schedules import LIBRARY_ERRORS, in_a_line, state_of
from hybridgen.sampling.seeds import image_generators
from hybridgen.sampling.settings import (
    DrawingSetup,
    check_defaults,
    code_sampling,
    guidance_of,
    precision_of,
    scales_of,
    settings_of,
    text_sampling,
    window_of,
    with_scales_of,
)
from hybridgen.sampling.tasks import run
from hybridgen.sampling.text import Answer, unwritable_tokens, write_text

__all__ = ["CallState", "HybridGenPipeline", "load_pipeline"]

MOST_TOKENS = 8192  # of an answer, where neither a call nor the model's context says how long it may become
_ANSWER_PAD_MULTIPLE = 8  # tokens; prompts of answers are padded to a multiple of it
_LORA_SCALES = -100, 100  # what an adapter may be multiplied by
OUTPUT_TYPES = ("pil", "np", "pt", "latent")
_HUB_SETTINGS = ("commit_message", "private", "token", "create_pr")  # of `push_to_hub`, handed on to the hub


@dataclass
class CallState:
    """What changes in the course of one call, and what its callback may read and set through the pipeline.

    Args:
        guidance_scale: one, or one per prompt; a callback may set another, which holds from the next step on.
        num_timesteps: steps of the batch that is drawn.
        is_running: whether the call has not returned yet.
        interrupt: set by a callback, or by another thread, to stop the call after its running step.
    """

    guidance_scale: float | list[float] | None = None
    num_timesteps: int = 0
    is_running: bool = False
    interrupt: bool = False

    def scale_at(self, prompt_numbers: list[int]) -> Callable[[int], float | Tensor]:
        """Guidance of a batch as a function of the step: one scale, or one per image.

        Args:
            prompt_numbers: prompt_numbers[i] is the number of image i's prompt.
        """

        def scale(step: int) -> float | Tensor:
            if not isinstance(self.guidance_scale, list | tuple):
                return self.guidance_scale
            return torch.tensor([self.guidance_scale[number] for number in prompt_numbers])

        return scale


class _CallsOfThread(threading.local):
    """The running, or else the last, call of each pipeline in this thread."""

    def __init__(self):
        self.states: WeakKeyDictionary[HybridGenPipeline, CallState] = WeakKeyDictionary()


_CALLS = _CallsOfThread()


class HybridGenPipeline(DiffusionPipeline):
    """Draws pictures, answers questions about them, and holds conversations, with one model.

    Args:
        model, processor: what reads and writes.
        scheduler: any scheduler of diffusers that samples the model's noise process; None = the process' own.
        vae: autoencoder under the diffusion path; None = it works on pixels.
        vq_model: tokenizer of the vq path; None = that path cannot be used.
        sampling_defaults: how it draws unless a call says otherwise, {path: {setting: value}}, such as {"vq":
            {"guidance_scale": 5.0}}, and how chats read their own pictures, {"chat": {"reread": path}}; saved with it.
    """

    _optional_components = ["scheduler", "vae", "vq_model"]
    _callback_tensor_inputs = ["latents"]
    model_cpu_offload_seq = "model->vae->vq_model"  # which are offloaded; our hooks know no order

    def __init__(
        self,
        model: HybridGenForConditionalGeneration,
        processor: HybridGenProcessor,
        scheduler=None,
        vae=None,
        vq_model=None,
        sampling_defaults: dict[str, dict] | None = None,
    ):
        super().__init__()
        check_defaults(sampling_defaults)
        if sampling_defaults is not None:
            self.register_to_config(sampling_defaults=sampling_defaults)
        diffusion = model.config.diffusion_config
        if scheduler is None and diffusion is not None:
            scheduler = NoiseProcess.of(diffusion).default_scheduler(diffusion.prediction_type)
        self.register_modules(model=model, processor=processor, scheduler=scheduler, vae=vae, vq_model=vq_model)
        self._last_call = CallState()
        self._decoders: dict[bool, Decoder] = {}  # by whether weights were copied for it
        self._drawn_in_trial: tuple = ()  # the schedule of the last trial that went well
        self._provenance: Provenance | None = None
        self._worker: tuple[int, int] | None = None  # the thread whose call computes while offloaded, and calls in it

    # ------------------------------------------------------------------------------------------------ what it has

    @property
    def sampling_defaults(self) -> dict[str, dict] | None:
        """How to draw unless a call says otherwise, as saved in its folder."""
        return self.config.get("sampling_defaults")

    def sampling_settings(self, path: str, **overrides) -> dict:
        """Every setting that matters to a path (`sampling.settings`): of `overrides` or, where None, as by default."""
        return settings_of(path, self.sampling_defaults, overrides)

    @property
    def latent_codec(self) -> PixelCodec | VAECodec:
        """Between pixels and what the diffusion path reads and writes."""
        return PixelCodec() if self.vae is None else VAECodec(self.vae)

    @property
    def vq_codec(self) -> VQCodec:
        """Between pixels and codes."""
        return VQCodec(self.vq_model)

    def __getstate__(self) -> dict:
        """To be copied or pickled: without weights that were copied for a precision, which can be neither and are made
        again, and without the call that runs."""
        return self.__dict__ | {"_decoders": {}, "_drawn_in_trial": (), "_last_call": CallState()}

    def decoder(self, precision: str = "model") -> Decoder:
        """The model's decoder in a precision, kept from call to call until the model's weights, parts or hooks change:
        one that copies nothing, and of those that copy weights the last.

        Raises:
            ValueError: there is no such precision, or it cannot be had with this model.
        """
        copies = precision != "model"
        if copies and (verb := offloaded_by(self.model)) is not None:
            raise ValueError(
                f"precision {precision!r} keeps a copy of the weights, which {verb} is there to avoid; use precision "
                "'model', and load the model in bfloat16 for half the size"
            )
        decoder = self._decoders.get(copies)
        if decoder is None or not (
            decoder.precision == precision and decoder.model is self.model and decoder.is_current()
        ):
            self._decoders.pop(copies, None)  # before the next copy is made: there is room for one
            decoder = self._decoders[copies] = Decoder(self.model, precision)
        return decoder

    def drop_decoders(self) -> None:
        """Forget what is kept of the model between calls. A change of weights, parts, hooks, device or dtype is noticed
        by itself; for changes that leave all of these as they are."""
        self._decoders.clear()

    def latent_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width in pixels -> in latents of the diffusion path."""
        patch = self.model.config.diffusion_config.patch_size
        return tuple(side // self.processor.diffusion_token_size * patch for side in size)

    # --------------------------------------------------------------------------------------------- the running call

    @property
    def _call(self) -> CallState:
        """The running, or else the last, call of this thread; of another thread where this one has made none."""
        return _CALLS.states.get(self, self._last_call)

    @contextmanager
    def _running(self, call: CallState) -> Iterator[None]:
        """Inside, `call` is what a callback in this thread reads and changes."""
        outer = _CALLS.states.get(self)
        _CALLS.states[self] = self._last_call = call
        call.is_running = True
        try:
            yield
        finally:
            call.is_running = False
            if outer is not None and outer.is_running:  # this call was made in the callback of another
                _CALLS.states[self] = outer

    @property
    def guidance_scale(self) -> float | list[float] | None:
        """That of the running call, or of the last one. As in diffusers, a callback changes it by `_guidance_scale`."""
        return self._call.guidance_scale

    @property
    def _guidance_scale(self) -> float | list[float] | None:
        return self._call.guidance_scale

    @_guidance_scale.setter
    def _guidance_scale(self, scale: float | list[float]) -> None:
        self._call.guidance_scale = check_values({"guidance_scale": scale}).get("guidance_scale")

    @property
    def interrupt(self) -> bool:
        """Whether the running call was told to stop. As in diffusers, a callback, or another thread such as that of a
        button, tells it by `pipe._interrupt = True`; every call begins with False."""
        return self._call.interrupt

    @property
    def _interrupt(self) -> bool:
        return self._call.interrupt

    @_interrupt.setter
    def _interrupt(self, stop: bool) -> None:
        call = self._call if self._call.is_running else self._last_call
        call.interrupt = bool(stop)

    @property
    def num_timesteps(self) -> int:
        """Steps of the batch that the running call draws, or that the last one drew."""
        return self._call.num_timesteps

    # ---------------------------------------------------------------------------------------------------- drawing

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str],
        path: str | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | list[float] | None = None,
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        height: int | list[int] | None = None,
        width: int | list[int] | None = None,
        generator: Generator | list[Generator] | None = None,
        seed: int | list[int] | None = None,
        latents: Tensor | list[Tensor] | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        max_batch: int = 64,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
        guider=None,
        guidance_rescale: float | None = None,
        guidance_interval: list[float] | tuple[float, float] | None = None,
        shift: float | None = None,
        image=None,
        image_guidance_scale: float | list[float] | None = None,
        read: str | None = None,
        precision: str | None = None,
        window: int | None = None,
        forecast: int | None = None,
        edit_image=None,
        mask_image=None,
        strength: float | None = None,
    ) -> ImagePipelineOutput | tuple:
        """Draw.

        1. Fill in settings that are None, and check everything that needs no forward.
        2. Cut the images into batches that are alike (`sampling.requests`).
        3. For each batch: read its prompts into a prefix, denoise or write codes against it, decode.

        Args:
            prompt: any number of prompts.
            path: `diffusion` or `vq`; None = the first of them that the model has.
            num_inference_steps: denoising steps (diffusion). This and other settings of drawing: None = as the folder's
                `sampling_defaults` say, or 30 steps, guidance 3, temperature 1. Those marked as of one path are
                ignored on the other.
            guidance_scale: one, or one per prompt: 1 = no guidance, which costs half; above 1 = closer to the prompt,
                0 = the negative prompt alone.
            negative_prompt: what guidance leads away from; None = as the processor's `unconditional` says.
            num_images_per_prompt: images of a prompt stand together in the result.
            height, width: one, or one per prompt: any multiple of a token's side. None = that side as in the
                processor's default size, whatever the other is.
            generator: one per image; a single one seeds one for each of several images.
            seed: image i is drawn with `seed + i`, or with `seed[i]`, whatever is drawn beside it.
            latents: (I, C, h, w), or a list of (C, h, w): standard normal noise to start from; None = drawn from the
                seeds. Of the diffusion path alone, and refused on the other.
            temperature, top_k, top_p: of the codes (vq); temperature 0 takes the likeliest code each time.
            max_batch: rows of the backbone at a time; a guided image takes two, or three.
            output_type: `pil`, `np` (I, H, W, 3) or `pt` (I, 3, H, W) in [0, 1], or `latent`: latents (I, C, h, w),
                codes (I, h, w); lists where sizes differ.
            callback_on_step_end: called with (pipeline, step, timestep, {"latents": ...}) in every batch; on the vq
                path with (pipeline, step, step, ...) and the codes so far. What it returns under "latents" is gone on
                with. `pipeline._interrupt = True` ends the call after the step: pictures are decoded from what there is
                (latents with the noise that is left, codes with 0 where none is yet), and those of batches that had not
                begun are left out.
            guider: another way to guide than plain guidance: one of `diffusers.guiders` (ClassifierFreeGuidance,
                AdaptiveProjectedGuidance, ClassifierFreeZeroStarGuidance), or a `Guidance`. Its scale, rescale and
                interval hold where the call gives none.
            guidance_rescale: 0 to 1, against the glare of strong guidance.
            guidance_interval: shares of the steps (of the codes) from which and to which guidance is on; elsewhere an
                image costs one row. (0, 0.5) guides in the noise alone, which keeps grain out of what is nearly done.
            shift: of flow matching's noise levels; above 1 = more steps in the noise. None = as the scheduler has it.
            image: one, or one per prompt, that stands before the prompt and is read: whatever `core.pictures` reads.
                Not a picture that is redrawn, as in diffusers' inpainting: that is `edit_image`.
            image_guidance_scale: one, or one per prompt: how closely to follow `image`; other than 1 costs a third row.
            read: path by which `image` is read; None = the first that the model has.
            precision: of the weights in the inner loop: `model` (as loaded), `fp32` (packed once for the processor:
                sooner where few tokens are read at once), `bf16`, or `int8` (CPU): two to five times as fast, and no
                longer the same picture to the bit.
            window: codes read at once, at most, all but one of them guessed (vq): the same codes, sooner where many
                guesses are right, and fewer at once where few are. None = 8 on a CPU, 1 elsewhere.
            forecast: compute every so manieth denoising step, and forecast those between (diffusion): 2 is nearly twice
                as fast, 3 three times; another picture, as of fewer steps. 1 = all are computed.
            edit_image: one, or one per prompt: a picture of which a region is redrawn, in its own size; all pixels
                outside of the region stay what they are (`sampling.edits`). It is not read; for a model that was
                trained to edit what stands before the prompt, give it as `image` too.
            mask_image: of the size of `edit_image`; white where that is redrawn, black where it stays.
            strength: with `edit_image`, the share of the denoising steps that are taken, so that less than 1 begins in
                the noised picture and stays nearer to it (diffusion); below 1 there may be no mask. None = 1.

        Raises:
            ValueError: in one sentence, what is wrong.
        """
        path = self.writing_path(path)
        prompts = texts("prompt", prompt)
        num_images_per_prompt = whole_number("num_images_per_prompt", num_images_per_prompt, most=MOST_IMAGES)
        max_batch = whole_number("max_batch", max_batch)
        choice("output_type", output_type, OUTPUT_TYPES)
        return_dict = flag("return_dict", return_dict)
        self.check_callback(callback_on_step_end, callback_on_step_end_tensor_inputs)
        edits, strength = read_edits(edit_image, mask_image, strength, path, len(prompts))
        setup = self.drawing_setup(
            path, guider, strength, num_inference_steps=num_inference_steps, guidance_scale=guidance_scale, shift=shift,
            guidance_rescale=guidance_rescale, guidance_interval=guidance_interval,
            image_guidance_scale=image_guidance_scale, temperature=temperature, top_k=top_k, top_p=top_p,
            precision=precision, window=window, forecast=forecast, decoded=output_type != "latent",
        )  # fmt: skip
        sizes = self.check_sizes(each("height", height, len(prompts)), each("width", width, len(prompts)), path, edits)
        requests = self.image_requests(setup, prompts, negative_prompt, sizes, image, read, edits)
        requests = [request for request in requests for _ in range(num_images_per_prompt)]
        generators = image_generators(len(requests), seed, generator)
        latents = self.check_noise(latents, path, [request.size for request in requests])

        call, groups = CallState(setup.settings["guidance_scale"]), batches(requests, max_batch)
        timesteps = {size: self._callback_timesteps(setup, size) for size in set(sizes)}
        total = sum(len(timesteps[requests[group[0]].size]) for group in groups)
        drawn: list[Tensor | None] = [None] * len(requests)
        with self._running(call), self.at_work(), self.progress_bar(total=total) as progress:
            for group in groups:
                if call.interrupt:
                    break
                batch = [requests[number] for number in group]
                batch_timesteps = timesteps[batch[0].size]
                call.num_timesteps = len(batch_timesteps)
                guidance = replace(
                    setup.guidance,
                    scale=call.scale_at([number // num_images_per_prompt for number in group]),
                    image_scale=torch.tensor([request.image_scale for request in batch]),
                )
                drawing = self.drawing(
                    self.read_requests(batch, setup.decoder),
                    setup,
                    batch[0].size,
                    [generators[number] for number in group],
                    guidance,
                    self._make_on_step(batch_timesteps, callback_on_step_end, progress),
                    None if latents is None else torch.stack([latents[number] for number in group]),
                    self.known_of(batch, path),
                )
                while not (drawing.done or call.interrupt):
                    run(drawing.step())
                drawn_batch = drawing.drawn()
                if output_type != "latent":
                    drawn_batch = self.decode_images(drawn_batch, path)
                for number, image in zip(group, drawn_batch, strict=True):
                    drawn[number] = image
        done = [number for number, image in enumerate(drawn) if image is not None]
        images = self._as_output([drawn[number] for number in done], output_type, [requests[n].edit for n in done])
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def check_call(
        self, prompt: list[str], path: str, height, width, negative_prompt=None, guider=None, image=None, read=None,
        edit_image=None, mask_image=None, strength=None, **settings,
    ) -> None:  # fmt: skip
        """Raises ValueError for what a call with these arguments refuses before its first forward."""
        path, prompts = self.writing_path(path), prompt
        edits, strength = read_edits(edit_image, mask_image, strength, path, len(prompts))
        setup = self.drawing_setup(path, guider, strength, **settings)
        sizes = self.check_sizes(each("height", height, len(prompts)), each("width", width, len(prompts)), path, edits)
        self.image_requests(setup, prompts, negative_prompt, sizes, image, read, edits)

    def drawing_setup(
        self, path: str, guider=None, strength: float = 1.0, decoded: bool = True, **overrides
    ) -> DrawingSetup:
        """How images are drawn by a path, everything filled in and checked that does not depend on prompt and size.

        Args:
            guider: as in a call; the scales in `overrides` that are None are its own.
            strength: the share of the denoising steps that are taken.
            decoded: what is drawn is made pixels; false = latents or codes are all that is wanted.
            overrides: settings by name; None = as by default.

        Raises:
            ValueError: no picture could be drawn so.
        """
        guidance = guidance_of(guider)
        if guider is not None:
            overrides = with_scales_of(guidance, overrides)
        settings = self.sampling_settings(path, **overrides)
        start, stop = settings["guidance_interval"]
        guidance = replace(guidance, guidance_rescale=settings["guidance_rescale"], start=start, stop=stop)
        decoder = self.decoder(settings["precision"])
        if path == "vq":
            settings["window"] = window_of(settings, decoder)
        setup = DrawingSetup(path, settings, guidance, code_sampling(settings), decoder, strength)
        self.check_drawing(path, setup.num_inference_steps, guidance, setup.shift, strength, decoded)
        return setup

    def image_requests(
        self, setup: DrawingSetup, prompts: list[str], negative_prompt, sizes: list[tuple[int, int]], image,
        read: str | None, edits: list[Edit | None] | None = None,
    ) -> list[ImageRequest]:  # fmt: skip
        """What the backbone reads for each prompt. Raises ValueError for what cannot be read, or guided so."""
        count = len(prompts)
        scales = scales_of("guidance_scale", setup.settings["guidance_scale"], count)
        image_scales = scales_of("image_guidance_scale", setup.settings["image_guidance_scale"], count)
        negatives = each("negative_prompt", negative_prompt, count)
        if not all(text is None or isinstance(text, str) for text in negatives):
            raise ValueError(f"negative_prompt is {shown(negative_prompt)}; give a text, or one per prompt")
        images, read = self.check_conditions(image, read, image_scales, count)

        def prompt_document(text: str, image, size: tuple[int, int], unconditional: bool) -> Document:
            content, options = text, {}
            if image is not None:
                content = [{"type": "image", "image": image}, {"type": "text", "text": text}]
                options = {"read": read, "height": size[0], "width": size[1]}
            messages = [{"role": "user", "content": content}]
            document = self.processor.prompt(messages, unconditional=unconditional, **options)
            needed = 1 + self.processor.count_tokens(setup.path, *size)
            self.check_length(text, len(document), needed, "the picture", "draw a smaller picture")
            return document

        edits = [None] * count if edits is None else edits
        requests = expand_requests(prompts, negatives, images, sizes, scales, image_scales, edits, prompt_document)
        setup.guidance.check_rows(max(len(request.rows) for request in requests))
        return requests

    def read_requests(self, requests: list[ImageRequest], decoder: Decoder | None = None) -> Prefix:
        """The prompts of a batch, read: all conditional rows, then all unconditional ones (see `sampling.guidance`).

        Args:
            decoder: the model's, in the precision to read in; None = in its own.
        """
        rows = [request.rows[row] for row in range(len(requests[0].rows)) for request in requests]
        tokens, device = self.processor.special_tokens, self._execution_device
        encode = partial(self.encode_images, device=device)
        return read_prompts(self.model, rows, tokens.pad, tokens.begin_image, device, encode, decoder)

    def _callback_timesteps(self, setup: DrawingSetup, size: tuple[int, int]) -> list:
        """What a callback is given at each step: the scheduler's timestep, or the number of the code."""
        if setup.path == "vq":
            return list(range(self.processor.count_tokens("vq", *size)))
        diffusion = self.model.config.diffusion_config
        schedule = prepare(
            self.scheduler, setup.num_inference_steps, diffusion, shift=setup.shift, strength=setup.strength
        )
        return list(schedule.scheduler.timesteps[schedule.first :])

    def _make_on_step(self, timesteps: list, callback: Callable | None, progress) -> OnStep:
        """What the loop calls after each step of a batch."""

        def on_step(step: int, latents: Tensor) -> Tensor:
            if callback is not None:
                returned = callback(self, step, timesteps[step], {"latents": latents})
                if not isinstance(returned, dict | None):
                    raise ValueError(
                        f"callback_on_step_end returned {shown(returned)}; return the dict that it was given, or None"
                    )
                latents = _returned_latents((returned or {}).get("latents", latents), latents)
            progress.update()
            return latents

        return on_step

    def drawing(
        self,
        prefix: Prefix,
        setup: DrawingSetup,
        size: tuple[int, int],
        generators: list[Generator],
        guidance: Guidance | None = None,
        on_step: OnStep | None = None,
        noise: Tensor | None = None,
        known: Known | None = None,
    ) -> LatentDrawing | CodeDrawing:
        """The pictures that come next in a prefix, to be drawn step by step; in the end `drawn()` are latents
        (I, C, h, w), or codes (I, h, w).

        Args:
            prefix: I rows or, guided, 2 I or 3 I; each ends with the token that begins an image.
            size: height and width in pixels.
            generators: one per image; their number is I.
            guidance: None = as in `setup`.
            noise: to start from (diffusion); None = drawn from the generators.
            known: what the drawing keeps, where pictures are edited.
        """
        guidance = setup.guidance if guidance is None else guidance
        if setup.path == "vq":
            codes = tuple(side // self.processor.vq_token_size for side in size)
            options = {"decoder": setup.decoder, "window": setup.window, "known": known}
            return CodeDrawing(self.model, prefix, codes, generators, setup.sampling, guidance, on_step, **options)
        return LatentDrawing(
            self.model, prefix, self.scheduler, setup.num_inference_steps, self.latent_size(size), generators, guidance,
            on_step, noise, setup.shift, setup.decoder, setup.forecast, known, setup.strength,
        )  # fmt: skip

    def known_of(self, requests: list[ImageRequest], path: str) -> Known | None:
        """What the drawing of a batch keeps of the pictures that it edits; None = it edits none. Each is encoded alone,
        as a codec's sums differ in their last bits where several are together."""
        edits = [request.edit for request in requests]
        if edits[0] is None:
            return None
        size = requests[0].size
        if path == "vq":
            codec, cells = self.vq_codec, tuple(side // self.processor.vq_token_size for side in size)
        else:
            codec, cells = self.latent_codec, self.latent_size(size)
        device, known = self._execution_device, {}
        for edit in set(edits):
            redrawn = edit.redrawn_cells(cells).to(device)
            clean = codec.encode(to_range(edit.pixels[None].to(device)))  # 1, C, h, w, or T
            known[edit] = (clean, redrawn.flatten()) if path == "vq" else (clean[0].float(), redrawn[None])
        return Known(*(torch.stack([known[edit][number] for edit in edits]) for number in (0, 1)))

    def decode_images(self, latents: Tensor, path: str) -> Tensor:
        """Latents (I, C, h, w) or codes (I, h, w) -> pixels (I, 3, H, W) in [-1, 1], on the CPU.

        Raises:
            ValueError: the codec made pixels that are not finite.
        """
        codec = self.vq_codec if path == "vq" else self.latent_codec
        pixels = codec.decode(latents).float().cpu()
        if not pixels.isfinite().all():
            raise ValueError(f"a picture of the {path} path has pixels that are not finite; load its codec in float32")
        return pixels

    def as_pictures(self, drawn: list[Tensor], edits: list[Edit | None]) -> list[Image.Image]:
        """Pixels (3, H, W) in [-1, 1] -> pictures, what is not redrawn of those that are edited as it was."""
        pictures = self.processor.postprocess(drawn)
        return [edit.paste(one) if edit else one for edit, one in zip(edits, pictures, strict=True)]

    def _as_output(self, drawn: list[Tensor], output_type: str, edits: list[Edit | None]):
        """One tensor, or a list of them where sizes differ."""
        if output_type == "pil":
            return self.as_pictures(drawn, edits)
        if output_type != "latent":
            drawn = [((picture + 1) / 2).clamp(0, 1) for picture in drawn]
            drawn = [edit.paste_values(one) if edit else one for edit, one in zip(edits, drawn, strict=True)]
        if output_type == "np":
            drawn = [picture.permute(1, 2, 0) for picture in drawn]
        if len({picture.shape for picture in drawn}) == 1:
            drawn = torch.stack(drawn)
            return drawn.numpy() if output_type == "np" else drawn
        return [picture.numpy() for picture in drawn] if output_type == "np" else drawn

    # -------------------------------------------------------------------------------------------------- answering

    @torch.no_grad()
    def answer(
        self,
        images,
        questions: str | list[str],
        path: str | list[str] = "understanding",
        max_new_tokens: int | None = None,
        max_batch: int = 64,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        do_sample: bool | None = None,
        seed: int | list[int] | None = None,
        precision: str | None = None,
    ) -> list[Answer]:
        """Answer questions about images: unless it is told to draw its words, with the likeliest, so the same every
        time. The reasoning of a model that reasons first is left out.

        Args:
            images, questions: equally many, or one of either for all of the other. Where a question has several
                pictures, a list of them: `[[a, b], c]` are those of two questions. An image is whatever `core.pictures`
                reads; an array of four axes is several.
            path: by which the images are read: `understanding`, `diffusion` (clean) or `vq`; or several, one after the
                other, where the model was trained so (BAGEL).
            max_new_tokens: of each answer, its reasoning included; where that does not end in time, it is the answer.
                None = as many as there is room for in the model's context.
            max_batch: questions at a time.
            temperature, top_k, top_p, do_sample: how words are drawn (`sampling.settings.text_sampling`): with any of
                the first three (and no temperature of 0) they are drawn, and `do_sample` overrules that.
            seed: the words of question i are drawn with `seed + i`, or with `seed[i]`, whatever is asked beside it.
            precision: of the weights that read and write, as in a call that draws; with fewer bits than the model's
                another word may be the likeliest where two nearly are. None = as the folder says (`sampling_defaults`,
                under `chat`), else `model`.

        Returns:
            texts, each of which knows whether it was cut off where its tokens ran out: `answer.truncated`.

        Raises:
            ValueError: in one sentence, what is wrong.
        """
        path = self.reading_path(path)
        conversations = [[_asked(*pair)] for pair in pair_questions(images, questions)]
        sampling = text_sampling(do_sample, temperature, top_k, top_p)
        generators = image_generators(len(conversations), seed, of="questions are asked: give one per question")
        return self._replies(conversations, path, max_new_tokens, max_batch, sampling, generators, precision)

    @torch.no_grad()
    def reply(
        self,
        conversations: list[list[dict]],
        path: str | list[str] = "understanding",
        max_new_tokens: int | None = None,
        max_batch: int = 64,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        do_sample: bool | None = None,
        seed: int | list[int] | None = None,
        precision: str | None = None,
    ) -> list[Answer]:
        """The assistant's next words in each of several conversations, as `answer` writes them: with any number of
        turns before and of pictures, also none.

        Args:
            conversations: chat messages each, whose image parts hold pictures (see `core.pictures`), a user's last.
            path: by which pictures are read, the assistant's earlier ones too. This and the rest as in `answer`.

        Raises:
            ValueError: in one sentence, what is wrong.
        """
        path = self.reading_path(path)
        conversations = _checked_conversations(conversations)
        sampling = text_sampling(do_sample, temperature, top_k, top_p)
        generators = image_generators(len(conversations), seed, of="conversations are given: give one per conversation")
        return self._replies(conversations, path, max_new_tokens, max_batch, sampling, generators, precision)

    def reading_path(self, path: str | list[str]) -> str | list[str]:
        """The path, or paths, to read by. Raises ValueError for one that the model or its codecs lack."""
        path = path if isinstance(path, str) or listed(path) is None else listed(path)
        if isinstance(path, list) and not path:
            raise ValueError("path is []; name a path by which images are read, or several")
        for one in path if isinstance(path, list) else [path]:
            require_path(self.model.config.paths, one)
            self.check_codec(one)
        return path

    def _replies(
        self, conversations: list[list[dict]], path: str | list[str], max_new_tokens: int | None, max_batch: int,
        sampling: CodeSampling, generators: list[Generator], precision: str | None,
    ) -> list[Answer]:  # fmt: skip
        """What the assistant says next, `max_batch` conversations at a time, those of equally long prompts together."""
        if max_new_tokens is not None:
            max_new_tokens = whole_number("max_new_tokens", max_new_tokens)
        max_batch = whole_number("max_batch", max_batch)
        decoder = self.decoder(precision_of(self.sampling_defaults, precision))
        answers: list[Answer] = []
        with self.at_work():
            for start in range(0, len(conversations), max_batch):
                some = slice(start, start + max_batch)
                chunk = conversations[some], path, max_new_tokens, sampling, generators[some]
                answers += self._replies_at_once(*chunk, decoder)
        return answers

    def _replies_at_once(
        self, conversations: list[list[dict]], path: str | list[str], max_new_tokens: int | None,
        sampling: CodeSampling, generators: list[Generator], decoder: Decoder,
    ) -> list[Answer]:  # fmt: skip
        documents, limits = [], []
        for messages in conversations:
            documents.append(document := self.processor.prompt(messages, read=path))
            pictures = sum(part["type"] == "image" for message in messages for part in parts(message))
            fewer = "ask for fewer new tokens" if (max_new_tokens or 1) > 1 else None
            fewer = "show fewer pictures" if fewer is None and pictures > 1 else fewer
            asked = " ".join(part["text"] for part in parts(messages[-1]) if part["type"] == "text")
            self.check_length(asked, len(document), max_new_tokens or 1, "the answer", fewer)
            limits.append(max_new_tokens or int(min(self.context - len(document), MOST_TOKENS)))
        answers: list[Answer | None] = [None] * len(conversations)
        for group in by_padded_length(documents, _ANSWER_PAD_MULTIPLE):
            written = write_text(
                self.model,
                self.processor.tokenizer,
                self.processor.special_tokens,
                self.prompt_inputs([documents[number] for number in group], _ANSWER_PAD_MULTIPLE),
                [limits[number] for number in group],
                sampling,
                [generators[number] for number in group],
                decoder,
            )
            for number, text in zip(group, written, strict=True):
                answers[number] = Answer(strip_reasoning(text), text.truncated)
        return answers

    # ------------------------------------------------------------------------------------------------- likelihoods

    def score_answers(
        self,
        images,
        questions: str | list[str],
        answers: list[str],
        path: str | list[str] = "understanding",
        max_batch: int = 64,
    ) -> list[Likelihood]:
        """How likely the model holds given answers: of each, the log-likelihood of its words and of the end of the
        assistant's turn, after the images and the question as in `answer`.

        Args:
            images, questions, path: as in `answer`.
            answers: one for each question.

        Raises:
            ValueError: in one sentence, what is wrong.
        """
        pairs, answers = pair_questions(images, questions), texts("answers", answers)
        if len(answers) != len(pairs):
            raise ValueError(f"{len(pairs)} questions have {len(answers)} answers; give one for each")
        return self.score_replies([[_asked(*pair)] for pair in pairs], answers, path, max_batch)

    def score_replies(
        self,
        conversations: list[list[dict]],
        replies: list[str],
        path: str | list[str] = "understanding",
        max_batch: int = 64,
        with_greedy: bool = False,
    ) -> list[Likelihood]:
        """How likely the model holds given replies, the end of the assistant's turn counted, in conversations as in
        `reply`.

        Args:
            conversations, path: as in `reply`.
            replies: one for each conversation.
            with_greedy: say also whether each token is the likeliest, so that `reply` would write this reply.

        Raises:
            ValueError: in one sentence, what is wrong.
        """
        path, replies = self.reading_path(path), texts("replies", replies)
        conversations = _checked_conversations(conversations)
        if len(replies) != len(conversations):
            raise ValueError(f"{len(conversations)} conversations have {len(replies)} replies; give one for each")
        documents = []
        for messages, reply in zip(conversations, replies, strict=True):
            read_only = [{**one, "weight": 0} if one["role"] == "assistant" else one for one in messages]
            documents.append(self.processor.document([*read_only, {"role": "assistant", "content": reply}], read=path))
            self.check_length(reply, len(documents[-1]), 0, "the reply", "give a shorter reply")
        unwritable = None
        if flag("with_greedy", with_greedy):
            unwritable = unwritable_tokens(self.model, self.processor.special_tokens)
        return self._likelihoods(documents, whole_number("max_batch", max_batch), unwritable)

    def score_texts(self, text: str | list[str], max_batch: int = 16, stride: int | None = None) -> list[Likelihood]:
        """How likely the model holds texts as such, without a chat template: of each, the log-likelihood of all of its
        tokens. The first is predicted from the tokenizer's begin of text (or end, where it has none); a text longer
        than the model's context is read in windows (`sampling.likelihood.rolling_windows`).

        Args:
            max_batch: windows at a time.
            stride: tokens that each window after the first predicts; None = as many as it can.

        Raises:
            ValueError: in one sentence, what is wrong.
        """
        given, max_batch = texts("text", text), whole_number("max_batch", max_batch)
        if stride is not None:
            stride = whole_number("stride", stride, most=None if self.context == float("inf") else self.context - 1)
        begin = self.processor.begin_of_text()
        windows = []
        for one in given:
            ids = self.processor.text_ids(one)
            longest = int(min(self.context, len(ids) + 1))
            windows.append(rolling_windows(ids, begin, longest, self.processor.special_tokens, stride))
        scored = iter(self._likelihoods([window for each in windows for window in each], max_batch))
        sums = [[next(scored) for _ in each] for each in windows]
        return [Likelihood(sum(part.nats for part in each), sum(part.tokens for part in each)) for each in sums]

    def _likelihoods(
        self, documents: list[Document], max_batch: int, unwritable: Tensor | None = None
    ) -> list[Likelihood]:
        """Those of documents' labels, equally long documents together."""
        scored: list[Likelihood | None] = [None] * len(documents)
        groups = by_padded_length(documents, _ANSWER_PAD_MULTIPLE)
        with self.at_work():
            for numbers in (group[at : at + max_batch] for group in groups for at in range(0, len(group), max_batch)):
                some = [documents[number] for number in numbers]
                inputs = self.prompt_inputs(some, _ANSWER_PAD_MULTIPLE)
                of_some = log_likelihoods(self.model, some, inputs, unwritable)
                for number, likelihood in zip(numbers, of_some, strict=True):
                    scored[number] = likelihood
        return scored

    @property
    def context(self) -> float:
        """How many tokens the model may read and write in all; infinity where its config does not say."""
        return getattr(self.model.config.text_config, "max_position_embeddings", None) or float("inf")

    def prompt_inputs(self, documents: list[Document], multiple: int = 1) -> dict:
        """Documents with images -> what `prefill` takes, padded on the left to a whole multiple of tokens."""
        batch, device = left_pad(documents, self.processor.special_tokens.pad, multiple), self._execution_device
        vectors = ("input_ids", "document_ids", "block_ids", "position_ids")
        inputs = {name: batch[name].to(device) for name in vectors}
        return inputs | self.encode_images(batch, device)

    def encode_images(self, batch: dict, device: torch.device | None = None) -> dict[str, Tensor]:
        """The images of a batch as `left_pad` makes it -> as `forward` takes them.

        Args:
            device: to compute on, where it was looked up already.
        """
        media, device = {}, self._execution_device if device is None else device
        if batch["pixel_values"] is not None:
            media["pixel_values"] = send_to_device(batch["pixel_values"], device)
        if batch["diffusion_images"]:
            media["latents"] = self.latent_codec.encode(torch.stack(batch["diffusion_images"]).to(device))
            media["timesteps"] = torch.zeros(len(media["latents"]), device=device)  # clean
        if batch["vq_images"]:
            media["codes"] = self.vq_codec.encode(torch.stack(batch["vq_images"]).to(device))
        return media

    # ------------------------------------------------------------------------------------------------ conversations

    def stream(self, messages: list[dict], **settings) -> Iterator[Event]:
        """The assistant's next turn, event by event (`chat.events`). To stop, stop asking, or close the iterator.

        Args:
            messages: chat messages whose image parts hold pictures (see `core.pictures`), the user's last.
            settings: those of `chat.settings.TurnSettings`: path, plan, seed, preview_every, max_new_tokens, ...

        Raises:
            ValueError: in one sentence, what is wrong; at once, before anything is computed.
        """
        return stream(self, messages, **settings)

    def chat(self, messages: list[dict] | tuple = (), **settings) -> Chat:
        """A conversation of many turns; see `Chat`."""
        return Chat(self, messages, **settings)

    # ------------------------------------------------------------------------------------------------------ adapters

    def load_lora_weights(self, pretrained_model_name_or_path_or_dict: str | Path, adapter_name: str | None = None):
        """As everywhere in diffusers: put an adapter on the model, from the checkpoint/ of a run with lora. It alone is
        active then, at scale 1; `set_adapters` combines several.

        Args:
            adapter_name: None = `default_0`, `default_1`, ... in the order of loading.

        Raises:
            ValueError: peft is missing, the name is taken, or the adapter is another model's.
        """
        given = pretrained_model_name_or_path_or_dict
        if not isinstance(given, str | Path):
            raise ValueError(f"load_lora_weights takes the folder of an adapter, not {shown(given)}; save it first")
        if adapter_name is None:
            names = (f"default_{number}" for number in range(len(self._adapters()) + 1))
            adapter_name = next(name for name in names if name not in self._adapters())
        elif not isinstance(adapter_name, str) or not adapter_name or "." in adapter_name:
            raise ValueError(f"adapter_name is {shown(adapter_name)}; give a word without a dot")
        with self._changing_adapters("load_lora_weights"):
            adapters.load(self.model, given, adapter_name)

    def unload_lora_weights(self) -> None:
        """As everywhere in diffusers: all adapters leave. What is fused stays in the weights."""
        with self._changing_adapters("unload_lora_weights", fused=None):
            adapters.unload(self.model)

    def set_adapters(self, adapter_names: str | list[str], adapter_weights: float | list[float] | None = None) -> None:
        """As everywhere in diffusers: let these adapters alone have an effect, each times its weight.

        Raises:
            ValueError: there is no such adapter, or no such weight.
        """
        names = self._checked_adapters(adapter_names)
        scales = each("adapter_weights", adapter_weights, len(names), of="adapters")
        scales = [1.0 if one is None else checked_number("adapter_weights", one, *_LORA_SCALES) for one in scales]
        with self._changing_adapters("set_adapters"):
            adapters.activate(self.model, dict(zip(names, scales, strict=True)))

    def get_active_adapters(self) -> list[str]:
        """Names of the adapters that have an effect now."""
        return adapters.active(self.model)

    def get_list_adapters(self) -> dict[str, list[str]]:
        """As everywhere in diffusers: names of all adapters, by component."""
        return {"model": self._adapters()} if self._adapters() else {}

    def delete_adapters(self, adapter_names: str | list[str]) -> None:
        """As everywhere in diffusers: some adapters leave, the others stay as they are.

        Raises:
            ValueError: there is no such adapter.
        """
        names = self._checked_adapters(adapter_names)
        with self._changing_adapters("delete_adapters"):
            adapters.delete(self.model, names)

    def disable_lora(self) -> None:
        """As everywhere in diffusers: no adapter has an effect, until `enable_lora`."""
        with self._changing_adapters("disable_lora"):
            adapters.enable(self.model, False)

    def enable_lora(self) -> None:
        """Undoes `disable_lora`."""
        with self._changing_adapters("enable_lora"):
            adapters.enable(self.model, True)

    def fuse_lora(
        self, components: list[str] | None = None, lora_scale: float = 1.0, safe_fusing: bool = False,
        adapter_names: list[str] | None = None,
    ) -> None:  # fmt: skip
        """As everywhere in diffusers: add adapters to the weights, so that they cost nothing more, and every precision
        can be had; `unload_lora_weights` afterwards makes it an ordinary pipeline, to be saved.

        Args:
            components: the model alone has adapters.
            lora_scale: multiplies all of them.
            safe_fusing: refuse adapters whose weights are not finite.
            adapter_names: None = those that are active, with the weights that `set_adapters` gave them.

        Raises:
            ValueError: there is nothing to fuse, or it is fused already.
        """
        if components is not None and listed(components) != ["model"]:
            raise ValueError(f"components is {shown(components)}; only the model has adapters, leave it out")
        scale = checked_number("lora_scale", lora_scale, *_LORA_SCALES)
        names = self.get_active_adapters() if adapter_names is None else self._checked_adapters(adapter_names)
        if not names:
            raise ValueError("no adapter is active, so there is nothing to fuse; call load_lora_weights() first")
        scales = {name: scale * adapters.scale_of(self.model, name) for name in names}
        with self._changing_adapters("fuse_lora"):
            adapters.fuse(self.model, scales, safe=flag("safe_fusing", safe_fusing))

    def unfuse_lora(self) -> None:
        """As everywhere in diffusers: undoes `fuse_lora`, up to rounding."""
        with self._changing_adapters("unfuse_lora", fused=True):
            adapters.unfuse(self.model)

    def _adapters(self) -> list[str]:
        return adapters.loaded(self.model)

    def _checked_adapters(self, names: str | list[str]) -> list[str]:
        """Raises ValueError for names that are none of the adapters', or that stand there twice."""
        names = texts("adapter_names", names)
        known = ", ".join(self._adapters())
        if unknown := [name for name in names if name not in self._adapters()]:
            there = f"there are: {known}" if known else "none is loaded"
            raise ValueError(f"adapter_names has {unknown[0]!r}, but {there}; load_lora_weights() loads one")
        if len(set(names)) < len(names):
            raise ValueError(f"adapter_names is {names}, which names one twice; give each once")
        return names

    @contextmanager
    def _changing_adapters(self, verb: str, fused: bool | None = False) -> Iterator[None]:
        """Inside, adapters change: weights that were copied are copied again, and what was drawn is no longer drawn by
        the folder's weights alone.

        Args:
            fused: whether they must be fused before; None = no matter.
        """
        adapters.require_peft()
        if offloaded_by(self.model) == "enable_sequential_cpu_offload":
            raise ValueError(f"{verb} needs whole weights, but they are offloaded; call remove_all_hooks() before")
        if fused is not None and adapters.fused(self.model) is not fused:
            way = "unfuse_lora() first" if not fused else "nothing is to be undone"
            raise ValueError(f"{verb}: adapters are {'' if not fused else 'not '}fused into the weights; {way}")
        self.drop_decoders()
        origin = self._provenance
        described = origin is not None and origin.holds(self._weighted_components())
        if verb == "fuse_lora" or (described and (verb != "load_lora_weights" or self._adapters())):
            self._provenance = None  # its folder is no longer what draws; without adapters it would be again
        yield

    # ---------------------------------------------------------------------------------------------- where it computes

    def to(self, *args, **kwargs) -> "HybridGenPipeline":
        """As everywhere in diffusers: a device, a dtype, or both.

        Raises:
            ValueError: there is no such device or dtype, or the pipeline is offloaded.
        """
        if (verb := self._offloaded()) is not None:
            raise ValueError(
                f"this pipeline is offloaded ({verb}), so its components move by themselves; call remove_all_hooks() "
                "before to()"
            )
        try:
            return super().to(*args, **kwargs)
        except (*LIBRARY_ERRORS, AssertionError) as error:
            given = ", ".join(map(str, [*args, *kwargs.values()]))
            raise ValueError(f"this pipeline cannot be moved to {given}: {in_a_line(error)}") from error

    def enable_model_cpu_offload(self, gpu_id: int | None = None, device: torch.device | str | None = None) -> None:
        """As everywhere in diffusers: model, vae and vq_model wait on the CPU, and each is on the device while it runs.
        What is drawn and answered does not change by a bit.

        Raises:
            ValueError: this machine has no accelerator, or a component cannot be offloaded.
        """
        self._begin_offload("enable_model_cpu_offload", gpu_id, device)
        with self._moving():
            self._all_hooks = take_turns(self._weighted_components(), self._offload_device)

    def enable_sequential_cpu_offload(
        self, gpu_id: int | None = None, device: torch.device | str | None = None
    ) -> None:
        """As everywhere in diffusers: each layer is on the device while it runs. The least memory, and much slower.

        Raises:
            ValueError: this machine has no accelerator, or a component cannot be offloaded.
        """
        self._begin_offload("enable_sequential_cpu_offload", gpu_id, device)
        with self._moving():
            for component in self._weighted_components():
                offload_layers(component, self._offload_device)

    def remove_all_hooks(self) -> None:
        """As everywhere in diffusers: what is offloaded is so no longer, and on the CPU."""
        self.maybe_free_model_hooks()
        with self._moving():
            super().remove_all_hooks()

    def maybe_free_model_hooks(self) -> None:
        """Offloaded components that are on the device leave it."""
        for hook in getattr(self, "_all_hooks", ()):
            hook.offload()

    def enable_group_offload(self, *args, **kwargs) -> None:
        """Raises ValueError: our loops run parts of layers, which diffusers' groups do not see."""
        raise ValueError("enable_group_offload is not for this pipeline; use enable_sequential_cpu_offload()")

    def enable_attention_slicing(self, slice_size: str | int | None = "auto") -> None:
        """Raises ValueError, but for None: there is nothing to slice."""
        if slice_size is not None:
            raise ValueError(
                "enable_attention_slicing would save nothing: attention never holds its whole matrix here (torch's "
                "scaled_dot_product_attention); for less memory give a smaller max_batch, or enable_model_cpu_offload()"
            )

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Inside, a call computes; at its end, components that take turns on a device leave it.

        Raises:
            ValueError: the pipeline is offloaded, and a call of another thread computes.
        """
        if self._offloaded() is None:
            yield
            return
        thread, calls = self._worker or (threading.get_ident(), 0)
        if thread != threading.get_ident():
            raise ValueError(
                "this pipeline is offloaded, and a call in another thread computes with it; offloaded components "
                "serve one call at a time: wait for it to end, or close its stream"
            )
        self._worker = thread, calls + 1
        try:
            yield
        finally:
            self._worker = (thread, calls) if calls else None
            self.maybe_free_model_hooks()

    def _moving(self):
        """Inside, components are put elsewhere, and stay those of the folder that they were loaded from."""
        return nullcontext() if self._provenance is None else self._provenance.moving(self._weighted_components())

    def _offloaded(self) -> str | None:
        """The verb that offloaded it; None = it is not."""
        return next(filter(None, map(offloaded_by, self._weighted_components())), None)

    def _begin_offload(self, verb: str, gpu_id: int | None, device: torch.device | str | None) -> None:
        """Put all on the CPU, without hooks, and note the device as diffusers does. Raises ValueError."""
        try:
            chosen = best_device() if device is None else torch.device(device)
        except (RuntimeError, TypeError) as error:
            raise ValueError(f"{verb}: device is {shown(device)}; give one such as 'cuda' or 'cuda:1'") from error
        if device is None and chosen.type == "cpu":
            raise ValueError(f"{verb} needs an accelerator, and this machine has none; without it all runs on the CPU")
        if gpu_id is not None and device is not None and chosen.index is not None:
            raise ValueError(f"{verb}: gpu_id is {gpu_id} and device is {device}, which has a number too; give one")
        index = chosen.index if gpu_id is None else whole_number("gpu_id", gpu_id, 0)
        for name in ("vae", "vq_model"):
            codec = getattr(self, name)
            if codec is not None and codec.dtype == torch.float16:
                raise ValueError(
                    f"{verb}: {name} is in float16, in which decoders overflow, so that a copy in float32 would stay "
                    f"on the device; first call pipe.{name}.to(torch.float32)"
                )
        self.remove_all_hooks()
        self.to("cpu", silence_dtype_warnings=True)
        self.drop_decoders()
        self._offload_gpu_id = index or 0
        self._offload_device = chosen if chosen.type == "cpu" else torch.device(chosen.type, self._offload_gpu_id)

    # ------------------------------------------------------------------------------------- what it was loaded from

    def record_origin(self, folder: str | Path) -> None:
        """Record that all weights are now those of this folder."""
        self._provenance = Provenance(folder, self._weighted_components())

    @property
    def origin(self) -> dict[str, str]:
        """The folder and its hashes; empty where it was put together of components, or these or files have changed."""
        return {} if self._provenance is None else self._provenance.origin(self._weighted_components())

    def _weighted_components(self) -> list[torch.nn.Module]:
        """Its components with weights."""
        return [part for name in WEIGHTS if (part := getattr(self, name, None)) is not None]

    # ------------------------------------------------------------------------- what a user can get wrong (ValueError)

    def check_callback(self, callback, tensor_inputs) -> None:
        """Raises ValueError for a callback that cannot be called, or cannot be given what it wants."""
        if callback is not None and not callable(callback):
            raise ValueError(f"callback_on_step_end is {shown(callback)}; give a function, or None")
        if tensor_inputs is not None and set(listed(tensor_inputs) or [""]) - set(self._callback_tensor_inputs):
            raise ValueError(
                f"callback_on_step_end_tensor_inputs is {shown(tensor_inputs)}; only 'latents' can be handed over"
            )

    def check_sizes(
        self, heights: list, widths: list, path: str, edits: list[Edit | None] | None = None
    ) -> list[tuple[int, int]]:
        """Heights and widths in pixels, one per prompt -> sizes; None = that side of the processor's default size, or
        of the picture that is edited.

        Raises:
            ValueError: a path cannot draw one of them, or an edited picture has another.
        """
        if edits is not None:
            heights, widths = sides_of(edits, heights, widths)
        sizes = []
        for height, width in zip(heights, widths, strict=True):
            height = None if height is None else whole_number("height", height)
            width = None if width is None else whole_number("width", width)
            self.processor.count_tokens(path, height, width)  # raises for those that are no whole number of tokens
            sizes.append(self.processor.size_of(height, width))
        return sizes

    def check_drawing(
        self, path: str, num_inference_steps: int, guidance: Guidance | float, shift: float | None = None,
        strength: float = 1.0, decoded: bool = True,
    ) -> None:  # fmt: skip
        """Raises ValueError if no picture could be drawn so, whatever the prompt and the size.

        Args:
            decoded: its codes are made pixels.
        """
        num_inference_steps = whole_number("num_inference_steps", num_inference_steps)
        diffusion = self.model.config.diffusion_config
        Guidance.of(guidance).check_path(path, getattr(diffusion, "noise_schedule", None))
        self.check_codec(path)
        if path == "vq" and decoded:
            self.vq_codec.check_decodes()
        if path == "diffusion":
            process = NoiseProcess.of(diffusion), diffusion.prediction_type
            tried = state_of(self.scheduler), num_inference_steps, shift, strength, process
            if tried == self._drawn_in_trial:
                return
            schedule = prepare(self.scheduler, num_inference_steps, diffusion, shift=shift, strength=strength)
            check_schedule_draws(schedule, diffusion.prediction_type)
            self._drawn_in_trial = tried

    def check_conditions(
        self, image, read: str | None, image_scales: list[float], count: int
    ) -> tuple[list, str | None]:
        """Images that stand before the prompts, one per prompt or None, and the path by which they are read.

        Raises:
            ValueError: they cannot be read, or guided by.
        """
        if image is None:
            if read is not None:
                raise ValueError(f"read is {shown(read)}, a path to read an image by, but none is given; leave it out")
            if any(scale != 1 for scale in image_scales):
                raise ValueError(
                    "image_guidance_scale leads to an image, but none is given; give image=..., or leave it out"
                )
            return [None] * count, None
        paths = self.model.config.paths
        read = paths[0] if read is None else read
        require_path(paths, read)
        self.check_codec(read)
        if not isinstance(image, list | tuple):
            image = read_pictures(image)
            image = image[0] if len(image) == 1 else image
        images = each("image", image, count)
        return [None if one is None else read_picture(one) for one in images], read

    def check_noise(self, latents, path: str, sizes: list[tuple[int, int]]):
        """The noise of a call, if its shapes are those of these images' latents; else raises ValueError."""
        if latents is None:
            return None
        if path != "diffusion":
            raise ValueError(f"latents are noise to denoise, but the {path} path starts from none; leave them out")
        if not isinstance(latents, Tensor) and not (
            isinstance(latents, list | tuple) and latents and all(isinstance(noise, Tensor) for noise in latents)
        ):
            raise ValueError(
                f"latents is {shown(latents)}; give a tensor (images, channels, height, width), or a list of them"
            )
        channels, images = self.model.config.diffusion_config.in_channels, len(sizes)
        shapes = [(channels, *self.latent_size(size)) for size in sizes]
        if [tuple(noise.shape) for noise in latents] != shapes:
            has = tuple(latents.shape) if isinstance(latents, Tensor) else [tuple(noise.shape) for noise in latents]
            wanted = (images, *shapes[0]) if len(set(shapes)) == 1 else shapes
            raise ValueError(f"latents have shape {has}, but {images} images need noise of {wanted}")
        if not all(noise.isfinite().all() for noise in latents):
            raise ValueError("latents hold values that are NaN or infinite; give standard normal noise")
        return latents

    def writing_path(self, path: str | None) -> str:
        """The path to draw by: `path`, or where None the first that there is. Raises ValueError if it cannot draw."""
        writing = [name for name in WRITING_PATHS if name in self.model.config.paths]
        if not writing:
            raise ValueError("this model has no path that writes images: it can only answer")
        path = writing[0] if path is None else path
        if isinstance(path, str) and path == "understanding" and path in self.model.config.paths:
            raise ValueError(f"the understanding path only reads images; to draw, this model has: {', '.join(writing)}")
        require_path(self.model.config.paths, path)
        return path

    def check_codec(self, path: str) -> None:
        """Raises ValueError if a path lacks its codec."""
        if path == "vq" and self.vq_model is None:
            raise ValueError(
                "the vq path needs a tokenizer, but this pipeline has no vq_model; load one with vq_model=..."
            )
        channels = self.model.config.diffusion_config.in_channels if path == "diffusion" else None
        if path == "diffusion" and self.vae is None and channels != 3:
            raise ValueError(
                f"the diffusion path works on {channels} channels, but this pipeline has no vae; load one with vae=..."
            )

    def check_length(self, text: str, length: int, more: int, what: str, otherwise: str | None = None) -> None:
        """Raises ValueError if a prompt of `length` tokens leaves no room in the context for `more` of them.

        Args:
            otherwise: another way out than a shorter prompt, and the only one where no prompt is short enough.
        """
        if (over := length + more - self.context) > 0:
            ways = [f"shorten it by {over} tokens"] if over < length or otherwise is None else []
            ways += [] if otherwise is None else [otherwise]
            raise ValueError(
                f"prompt {shorten(text, 40)!r} has {length} tokens and {what} needs {more} more, but the model's "
                f"context is {self.context} (max_position_embeddings); {', or '.join(ways)}"
            )

    # ------------------------------------------------------------------------------------------------ saved, loaded

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs):
        """As everywhere in diffusers; a local folder is checked first, so that an error names what is missing."""
        folder = checkpoint_path(pretrained_model_name_or_path)
        if not folder.is_dir():
            if folder.is_absolute() or looks_like_folder(pretrained_model_name_or_path):
                require_checkpoint(folder)
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        check_checkpoint(folder, components=tuple(kwargs))
        with quiet():
            pipeline = super().from_pretrained(folder, **kwargs)
        if not {*WEIGHTS, "processor"} & set(kwargs):
            pipeline.record_origin(folder)
        return pipeline

    def save_pretrained(
        self, save_directory: str | Path, safe_serialization: bool = True, push_to_hub: bool = False, **kwargs
    ) -> None:
        """As everywhere in diffusers, with a model card and what the Auto classes of transformers know the folder by.
        To save what was loaded changes no byte. Weights are safetensors always, also with `safe_serialization=False`,
        which says so in a warning: a pickle can run code where it is loaded.
        """
        if not safe_serialization:
            warnings.warn("safe_serialization=False asks for pickles; safetensors are written instead", stacklevel=2)
        if self._adapters():
            raise ValueError(
                f"a saved pipeline holds no adapters, but the model has {', '.join(self._adapters())}; fuse_lora() and "
                "then unload_lora_weights() put them into the weights, model.save_pretrained() saves one alone"
            )
        folder = user_path(save_directory)
        hub = {name: kwargs.pop(name) for name in (*_HUB_SETTINGS, "repo_id") if name in kwargs}
        super().save_pretrained(folder, **kwargs)
        self.save_index_files(folder)
        if push_to_hub:
            upload(folder, **{"repo_id": folder.name} | hub)

    def save_index_files(self, folder: Path) -> None:
        """Write what says, beside the components of a saved pipeline, what it is: a copy of the model's config, and a
        model card where there is none."""
        forget_origin(folder)
        write_whole(folder / "config.json", (folder / "model" / "config.json").read_bytes())
        if not (folder / "README.md").exists():
            write_whole(folder / "README.md", model_card(self.model.config, self.model.num_parameters()))

    def push_to_hub(self, repo_id: str, **kwargs) -> str:
        """As everywhere in diffusers; a model card that the repository has already stays. Returns the commit's URL."""
        hub = {name: kwargs.pop(name) for name in _HUB_SETTINGS if name in kwargs}
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder, **kwargs)
            return upload(Path(folder), repo_id, **hub)


def _checked_conversations(conversations) -> list[list[dict]]:
    """Conversations to reply to, their pictures read. Raises ValueError for what is none, or where it is not the
    assistant's turn."""
    if not isinstance(conversations, list | tuple) or not conversations:
        raise ValueError(f"conversations is {shown(conversations)}; give a list of at least one list of messages")
    for number, messages in enumerate(conversations):
        if check_messages(messages, f"conversation {number}")[-1]["role"] != "user":
            raise ValueError(
                f"conversation {number} ends with a turn of the {messages[-1]['role']}; the user's "
                "must be the last, for the assistant to reply to"
            )
    return [with_pictures(messages) for messages in conversations]


def _asked(pictures: list, question: str) -> dict:
    """A question after its pictures as the user's message."""
    images = [{"type": "image", "image": picture} for picture in pictures]
    return {"role": "user", "content": [*images, {"type": "text", "text": question}]}


def _returned_latents(returned, given: Tensor) -> Tensor:
    """What a callback returned in place of latents or codes. Raises ValueError where a loop cannot go on with it."""
    fits = isinstance(returned, Tensor) and returned.shape == given.shape
    if not fits or returned.is_floating_point() != given.is_floating_point():
        kind = "floats" if given.is_floating_point() else "whole numbers"
        has = f"shape {tuple(returned.shape)} and {returned.dtype}" if isinstance(returned, Tensor) else shown(returned)
        raise ValueError(
            f"callback_on_step_end returned latents of {has}; return {kind} of shape {tuple(given.shape)}, as given"
        )
    return returned


def load_pipeline(checkpoint: str | Path, model: HybridGenForConditionalGeneration | None = None) -> HybridGenPipeline:
    """A pipeline from a folder on disk, every weight accounted for.

    Args:
        model: instead of the folder's, whose weights then stay unread.

    Raises:
        ValueError: in one sentence, what the folder is or lacks.
    """
    folder = checkpoint_path(checkpoint)
    check_checkpoint(folder)
    with friendly_errors(folder):
        pipeline = HybridGenPipeline.from_pretrained(folder, model=model or load_model(folder / "model"))
        for name in ("vae", "vq_model"):
            if (codec := getattr(pipeline, name)) is not None:
                check_codec_weights(folder / name, codec)
    if model is None:
        pipeline.record_origin(folder)
    return pipeline
