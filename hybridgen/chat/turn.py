"""One turn of the assistant: text and pictures as the model or a plan decides, event by event.

`Turn` is made of a conversation and of settings, and checks all of them before the first forward; `events` does the
work. The loops are in `sampling.interleaved`. A turn changes none of its arguments: once the last event has come, its
`conversation` is the one that includes it, and a turn that is dropped before leaves no trace.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from PIL import Image
from torch import Tensor

from hybridgen.chat.events import Event, ImageDone, ImagePreview, ImageStarted, TextDelta, Usage
from hybridgen.chat.settings import DEFAULT_MAX_IMAGES, DEFAULT_MAX_TOKENS, TurnImages, TurnSettings
from hybridgen.checkpoints.manifest import make_manifest
from hybridgen.configuration_hybridgen import require_path
from hybridgen.core.messages import check_messages, drop_user_texts, parts
from hybridgen.core.names import WRITING_PATHS
from hybridgen.core.offload import device_of
from hybridgen.core.pictures import with_pictures
from hybridgen.sampling.interleaved import (
    ImageBlock,
    ReadTokens,
    Token,
    commit_block,
    read_document,
    shared_length,
    side_by_side,
    start_image,
)
from hybridgen.sampling.prefix import Prefix
from hybridgen.sampling.seeds import draw_gumbel, image_generators, new_seed, nth_seed
from hybridgen.sampling.settings import precision_of, reread_of
from hybridgen.sampling.tasks import Task, events_of
from hybridgen.sampling.text import StableText, TextWriting, unwritable_tokens


@dataclass(frozen=True)
class Conversation:
    """The messages so far, and what the backbone has read of them.

    Args:
        messages: in the chat format.
        images: the pictures of the messages in reading order, as the backbone reads them.
        cond: what text goes on from; None = nothing was read yet.
        uncond: what guidance leads away from; read only when a picture is drawn.
    """

    messages: list[dict] = field(default_factory=list)
    images: list[ImageBlock] = field(default_factory=list)
    cond: ReadTokens | None = None
    uncond: ReadTokens | None = None


class Turn:
    """
    Args:
        pipe: the `HybridGenPipeline` that answers.
        conversation: as far as it was read.
        messages: the user's new ones (or all, where nothing was read).
        request: how the turn is to be made: path, plan, limits, seed and how pictures are drawn.

    Raises:
        ValueError: in one sentence, what is wrong, or what there is no room for.
    """

    def __init__(self, pipe, conversation: Conversation, messages: list[dict], request: TurnSettings):
        self.pipe, self.model, self.request = pipe, pipe.model, request
        self.special, self.tokenizer = pipe.processor.special_tokens, pipe.processor.tokenizer
        self.reread = reread_of(pipe.sampling_defaults, request.reread)
        self.seed = new_seed() if request.seed is None else request.seed
        self.drawing = TurnImages.of(pipe, request)
        precision = precision_of(pipe.sampling_defaults, request.precision)
        self.decoder = pipe.decoder(precision) if self.drawing is None else self.drawing.setup.decoder
        messages = with_pictures(check_messages(messages))
        self.messages = [*conversation.messages, *messages]
        if self.messages[-1]["role"] == "assistant":
            raise ValueError("the last message is the assistant's, so there is nothing to answer; end with the user's")
        self.images = [*conversation.images, *self._encoded_images(messages)]
        self.prompt_tokens = self._tokens(self.messages)
        self.uncond_tokens = self._uncond_tokens() if self.drawing is not None and self.drawing.guided else []
        self.cond, self.uncond = conversation.cond, conversation.uncond
        self.cached = min(shared_length(self.cond, self.prompt_tokens, self.decoder), len(self.prompt_tokens) - 1)
        self.max_new_tokens = self._room_for_text()
        self.content: list[dict] = []  # of the assistant's message
        self.text_tokens = self.drawn_images = self.steps = 0
        self.truncated = False

    @property
    def conversation(self) -> Conversation:
        """The conversation that includes this turn."""
        content = self.content if self.content else ""
        messages = [*self.messages, {"role": "assistant", "content": content}]
        return Conversation(messages, self.images, self.cond, self.uncond)

    # ------------------------------------------------------------------------------------------------- the prompt

    def _encoded_images(self, messages: list[dict]) -> list[ImageBlock]:
        """The pictures of messages, as the backbone reads them."""
        paths, request = self.model.config.paths, self.request
        if request.read is not None:
            require_path(paths, request.read)
        if self.reread is not None:
            require_path(paths, self.reread)
        user_path = next(iter(paths), "understanding") if request.read is None else request.read
        of_assistant = (self.reread, request.path, *WRITING_PATHS)
        assistant_path = next((path for path in of_assistant if path in paths), user_path)
        blocks = []
        for message in messages:
            path = assistant_path if message["role"] == "assistant" else user_path
            for part in parts(message):
                if part["type"] == "image":
                    require_path(paths, path)
                    self.pipe.check_codec(path)
                    blocks.append(self._encoded(part["image"], path))
        return blocks

    def _encoded(self, image, path: str) -> ImageBlock:
        processor, size = self.pipe.processor, (self.request.height, self.request.width)
        batch = {"pixel_values": None, "diffusion_images": [], "vq_images": []}
        pixels, length = processor.read(image, path, *size)
        if path == "understanding":
            batch["pixel_values"] = pixels[None]
        else:
            batch[f"{path}_images"] = [pixels]
        return self._block(path, length, self.pipe.encode_images(batch))

    def _block(self, path: str, length: int, media: dict[str, Tensor]) -> ImageBlock:
        return ImageBlock(path, length, self.model.config.is_bidirectional(path), media)

    def _tokens(self, messages: list[dict], unconditional: bool = False) -> list[Token]:
        """A conversation as a document, the assistant's turn open."""
        images, tokens = iter(self.images), []
        frame = self.special.begin_image, self.special.end_image
        for ids in self.pipe.processor.prompt_ids(messages, unconditional):
            tokens += next(images).tokens(*frame) if ids is None else ids
        return tokens

    def _uncond_tokens(self) -> list[Token]:
        """What guidance leads away from: the same conversation without the user's words or, where there is a negative
        prompt, with it as the last of them."""
        negative = self.request.negative_prompt
        if negative is None:
            return self._tokens(self.messages, unconditional=True)
        images = [part for part in parts(self.messages[-1]) if part["type"] == "image"]
        last = {**self.messages[-1], "content": [*images, {"type": "text", "text": negative}]}
        return self._tokens([*drop_user_texts(self.messages[:-1]), last])

    # ------------------------------------------------------------------------------------------------ what has room

    @property
    def _image_room(self) -> int:
        """Tokens that a picture needs with its frame, while it is drawn or once it is read again."""
        if self.drawing is None:
            return 0
        size = self.drawing.size
        read_again = 0 if self.reread is None else self.pipe.processor.count_tokens(self.reread, *size)
        return max(self.drawing.tokens, read_again) + 2

    def _room_for_text(self) -> int:
        """How many tokens a text may have. Raises ValueError if the turn that is requested does not fit."""
        request, framed = self.request, self._image_room
        plan = ["text"] + ["image"] * (request.max_images or 0) if request.plan is None else list(request.plan)
        images, texts = plan.count("image"), plan.count("text")
        prompt = max(len(self.prompt_tokens), len(self.uncond_tokens))
        left = self.pipe.context - prompt - images * framed
        count = request.max_new_tokens
        if count is None:
            count = min(DEFAULT_MAX_TOKENS, left // texts if texts else 0)
        if left < texts * count or (texts and count < 1):
            needs = [f"{images} images of {framed} tokens"] if images else []
            needs += [f"{texts * max(count, 1):.0f} tokens of text"] if texts else []
            raise ValueError(
                f"the conversation has {prompt} tokens and the turn may need "
                f"{' and '.join(needs)}, but the model's context is {self.pipe.context} (max_position_embeddings); ask "
                "for less, or begin another conversation"
            )
        return int(count)

    def _may_draw(self, text_left: int) -> bool:
        """Whether the model may decide to draw: there is room for a picture and `text_left` tokens of text."""
        if self.drawing is None:
            return False
        written = len(self.cond.tokens) - len(self.prompt_tokens)
        longest = max(len(self.prompt_tokens), len(self.uncond_tokens)) + written
        fits = longest + self._image_room + text_left <= self.pipe.context
        most = DEFAULT_MAX_IMAGES if self.request.max_images is None else self.request.max_images
        return fits and self.drawn_images < most

    # -------------------------------------------------------------------------------------------------------- the work

    def events(self) -> Iterator[Event]:
        """Make the turn. To stop, stop asking."""
        with self.pipe.at_work():
            yield from events_of(self.task())

    def task(self) -> Task[None]:
        """Make the turn as a task (`sampling.tasks`), which yields its events beside its work."""
        started = time.perf_counter()
        self.cond = self._read(self.cond, self.prompt_tokens, beside=len(self.uncond_tokens))
        self._noise = self._text_noise()
        yield from self._as_the_model_decides() if self.request.plan is None else self._as_planned()
        image_tokens = 0 if self.drawing is None else self.drawn_images * self.drawing.tokens
        counts = len(self.prompt_tokens), self.cached, self.text_tokens, image_tokens, self.steps
        yield Usage(*counts, time.perf_counter() - started, self.truncated)

    def _read(self, earlier: ReadTokens | None, tokens: list[Token], beside: int) -> ReadTokens:
        """A row that is to stand beside one of so many tokens."""
        return read_document(self.model, earlier, tokens, self.special.pad, beside, self.decoder)

    def _as_the_model_decides(self) -> Task[None]:
        while (left := self.max_new_tokens - self.text_tokens) > 0:
            image_begins = yield from self._write(left, self._may_draw(left))
            if not image_begins:
                return
            yield from self._draw()

    def _as_planned(self) -> Task[None]:
        plan = list(self.request.plan)
        for item, after in zip(plan, [*plan[1:], None], strict=True):
            if item == "image":
                yield from self._draw()
            else:
                yield from self._write(self.max_new_tokens, after == "image")

    def _text_noise(self) -> Iterator[Tensor]:
        generators, vocabulary = image_generators(1, self.seed), self.model.lm_head.out_features
        return draw_gumbel(generators, 1 << 62, vocabulary, device_of(self.model))  # without end; drawn as it is needed

    def _write(self, count: int, may_draw: bool) -> Task[bool]:
        """At most so many tokens. Returns whether the model wrote that an image begins."""
        begin, end = self.special.begin_image, self.tokenizer.eos_token_id
        suppressed = unwritable_tokens(self.model, self.special, (begin,) if may_draw else ())
        sampling, text = self.request.text_sampling, StableText(self.tokenizer, first=not self.content)

        def choose(logits: Tensor, rows: list[int]) -> Tensor:
            return sampling.draw(logits, self._noise)

        prefix = self.cond.until(len(self.cond.tokens))
        writing = TextWriting(self.model, prefix, count, choose, suppressed, {begin, end}, self.decoder)
        while not writing.done:
            yield from writing.step()
            if (token := writing.written[0][-1]) not in (begin, end):
                self.text_tokens += 1
                if more := text.add(token):
                    yield TextDelta(more)
        image_begins = token == begin
        self.truncated = self.truncated or token not in (begin, end)
        if more := text.rest(last=not (image_begins or (may_draw and self.request.plan is not None))):
            yield TextDelta(more)
        if text.text:
            self.content.append({"type": "text", "text": text.text})
        if ids := [token for token in writing.written[0] if token not in (begin, end)]:
            read = yield from writing.finish()
            self.cond = replace(self.cond, tokens=self.cond.tokens + ids, prefix=read, image_start=None)
        return image_begins

    def _draw(self) -> Task[None]:
        """
        1. Read what guidance leads away from, as far as the conversation has come.
        2. Draw against both rows, with previews.
        3. Commit the picture to the conditional row, as it is read from now on: as drawn, or by the path `reread`.
        """
        drawing, index, every = self.drawing, self.drawn_images, self.request.preview_every
        yield ImageStarted(index, drawing.path, *drawing.size)
        prefix = self._drawing_prefix()
        picture = self.pipe.drawing(
            prefix, drawing.setup, drawing.size, image_generators(1, nth_seed(self.seed, index))
        )
        before = 0
        while not picture.done:
            yield from picture.step()
            step = picture.steps_done
            self.steps += step - before
            due = every is not None and step // every > before // every
            if due and (shown := picture.preview()) is not None:
                yield ImagePreview(index, step, self._decoded(shown))
            before = step
        drawn = picture.drawn()
        image = self._decoded(drawn)
        block = self._drawn_block(drawn) if self.reread is None else self._encoded(image, self.reread)
        as_drawn = prefix if self.reread is None else None
        self.cond = commit_block(self.model, self.cond, as_drawn, block, self.decoder)
        self.drawn_images += 1
        self.images = [*self.images, block]
        self.content.append({"type": "image", "image": image})
        yield ImageDone(index, image, self._manifest(nth_seed(self.seed, index)))

    def _drawn_block(self, drawn: Tensor) -> ImageBlock:
        """A picture of latents (1, C, h, w) or codes (1, h, w), as it was drawn."""
        media = {"codes": drawn.flatten()}
        if self.drawing.path == "diffusion":
            media = {"latents": drawn, "timesteps": drawn.new_zeros(1)}
        return self._block(self.drawing.path, self.drawing.tokens, media)

    def _drawing_prefix(self) -> Prefix:
        """The conversation as far as it has come and, guided, the unconditional row below it."""
        self.cond = replace(self.cond, image_start=start_image(self.model, self.cond, self.decoder))
        rows = [self.cond.image_start]
        if self.drawing.guided:
            written = self.cond.tokens[len(self.prompt_tokens) :]  # by the assistant: it stands in both rows
            self.uncond = self._read(self.uncond, self.uncond_tokens + written, beside=len(self.cond.tokens))
            rows.append(self.uncond.image_start)
        return side_by_side(rows)

    def _decoded(self, latents: Tensor) -> Image.Image:
        """Latents (1, C, h, w) or codes (1, h, w) -> a picture."""
        return self.pipe.processor.postprocess(self.pipe.decode_images(latents, self.drawing.path))[0]

    def _manifest(self, seed: int) -> dict:
        """What made the picture that was drawn last."""
        drawing, request, prompt = self.drawing, self.request, parts(self.messages[-1])
        texts = [part["text"] for part in prompt if part["type"] == "text"]
        prior = len(self.messages) - 1 + len(self.content) - 1 + len(prompt) - len(texts)
        return make_manifest(
            self.pipe, self.pipe.origin, drawing.path, "".join(texts), seed, drawing.size, drawing.setup.settings,
            negative_prompt=request.negative_prompt,
            guidance=None if request.guider is None else drawing.setup.guidance,
            prior_messages=prior,
        )  # fmt: skip
