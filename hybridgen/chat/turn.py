"""One turn of the assistant: text and pictures as the model or a plan decides, event by event.

`Turn` is made of a conversation and of settings, and checks all of them before the first forward; `events` does the
work. The loops are `sampling.interleaved`'s. The fact a newcomer gets wrong: a turn changes nothing that it was given.
What was said and read is in its `conversation` when the last event was asked for; a turn that is dropped before leaves
no trace.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from hybridgen.chat.events import Event, ImageDone, ImagePreview, ImageStarted, TextDelta, Usage
from hybridgen.chat.settings import MOST_IMAGES, MOST_TOKENS, Drawing, TurnSettings
from hybridgen.checkpoints.manifest import manifest
from hybridgen.configuration_hybridgen import require_path
from hybridgen.core.messages import check_messages, parts, without_prompt
from hybridgen.pipeline_checks import WRITING_PATHS
from hybridgen.sampling.codes import code_steps
from hybridgen.sampling.interleaved import (
    Picture,
    Row,
    Token,
    begin,
    commit,
    common,
    latent_steps,
    read,
    side_by_side,
    token_steps,
)
from hybridgen.sampling.prefix import Prefix
from hybridgen.sampling.seeds import draw_gumbel, image_generators, new_seed
from hybridgen.sampling.text import StableText, no_words

if TYPE_CHECKING:
    from hybridgen.pipeline_hybridgen import HybridGenPipeline


@dataclass(frozen=True)
class Conversation:
    """What was said, and what of it was read.

    Args:
        messages: in the chat format.
        pictures: those of the messages in reading order, as they are read.
        full: the row that text goes on from; None = nothing was read yet.
        without: what guidance leads away from; read only when a picture is drawn.
    """

    messages: list[dict] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    full: Row | None = None
    without: Row | None = None


class Turn:
    """
    Args:
        conversation: as far as it was read.
        messages: what the user says now (or all that was said, where nothing was read).

    Raises:
        ValueError: in one sentence, what is wrong, or what there is no room for.
    """

    def __init__(
        self, pipe: "HybridGenPipeline", conversation: Conversation, messages: list[dict], asked: TurnSettings
    ):
        self.pipe, self.model, self.asked = pipe, pipe.model, asked
        self.special, self.tokenizer = pipe.processor.special_tokens, pipe.processor.tokenizer
        asked.check()
        self.seed = new_seed() if asked.seed is None else asked.seed
        self.drawing = Drawing.of(pipe, asked)
        self.messages = [*conversation.messages, *check_messages(messages)]
        if self.messages[-1]["role"] == "assistant":
            raise ValueError("the last message is the assistant's, so there is nothing to answer; end with the user's")
        self.pictures = [*conversation.pictures, *self._look(messages)]
        self.prompt = self._tokens(self.messages)
        self.instead = self._instead() if self.drawing is not None and self.drawing.guided else []
        self.full, self.without = conversation.full, conversation.without
        self.cached = 0 if self.full is None else min(common(self.full.tokens, self.prompt), len(self.prompt) - 1)
        self.max_new_tokens = self._room_for_text()
        self.content: list[dict] = []  # of the assistant's message
        self.text_tokens = self.images = self.steps = 0

    @property
    def conversation(self) -> Conversation:
        """With this turn in it."""
        content = self.content if self.content else ""
        messages = [*self.messages, {"role": "assistant", "content": content}]
        return Conversation(messages, self.pictures, self.full, self.without)

    # --------------------------------------------------------------------------------------------------- what is asked

    def _look(self, messages: list[dict]) -> list[Picture]:
        """The pictures of messages, as they are read."""
        paths, asked = self.model.config.paths, self.asked
        if asked.read is not None:
            require_path(paths, asked.read)
        by_user = next(iter(paths), "understanding") if asked.read is None else asked.read
        by_assistant = next((path for path in (asked.path, *WRITING_PATHS) if path in paths), by_user)
        found = []
        for message in messages:
            by = by_assistant if message["role"] == "assistant" else by_user
            for part in parts(message):
                if part["type"] == "image":
                    require_path(paths, by)
                    self.pipe.check_codec(by)
                    found.append(self._seen(part["image"], by))
        return found

    def _seen(self, image, path: str) -> Picture:
        look, batch = (
            self.pipe.processor.image_processor,
            {"pixel_values": None, "diffusion_images": [], "vq_images": []},
        )
        size = self.asked.height, self.asked.width
        length = self.pipe.processor.count_tokens(path, *size)
        if path == "understanding":
            batch["pixel_values"] = look.understanding([image])
        else:
            batch[f"{path}_images"] = [look.generation(image, *self.pipe.processor.size_of(*size))]
        return self._picture(path, length, self.pipe._media(batch))

    def _picture(self, path: str, length: int, media: dict[str, Tensor]) -> Picture:
        return Picture(path, length, self.model.config.is_bidirectional(path), media)

    def _tokens(self, messages: list[dict], unconditional: bool = False) -> list[Token]:
        """A conversation as a document, the assistant's turn open."""
        pictures, found = iter(self.pictures), []
        for ids in self.pipe.processor.prompt_ids(messages, unconditional):
            framed = self.special.begin_image, self.special.end_image
            found += next(pictures).tokens(*framed) if ids is None else ids
        return found

    def _instead(self) -> list[Token]:
        """What guidance leads away from: the same conversation, with nothing said by the user or, at last, the negative
        prompt."""
        negative = self.asked.negative_prompt
        if negative is None:
            return self._tokens(self.messages, unconditional=True)
        said = [part for part in parts(self.messages[-1]) if part["type"] == "image"]
        last = {**self.messages[-1], "content": [*said, {"type": "text", "text": negative}]}
        return self._tokens([*without_prompt(self.messages[:-1]), last])

    # ------------------------------------------------------------------------------------------------ what has room

    @property
    def _context(self) -> float:
        return getattr(self.model.config.text_config, "max_position_embeddings", None) or float("inf")

    def _room_for_text(self) -> int:
        """How many tokens a text may have. Raises ValueError if what was asked for does not fit."""
        asked, framed = self.asked, 0 if self.drawing is None else self.drawing.tokens + 2
        plan = ["text"] + ["image"] * (asked.max_images or 0) if asked.plan is None else list(asked.plan)
        images, texts = plan.count("image"), plan.count("text")
        left = self._context - max(len(self.prompt), len(self.instead)) - images * framed
        count = (
            min(MOST_TOKENS, left // texts if texts else 0) if asked.max_new_tokens is None else asked.max_new_tokens
        )
        if left < texts * count or (texts and count < 1):
            needs = [f"{images} images of {framed} tokens"] if images else []
            needs += [f"{texts * max(count, 1):.0f} tokens of text"] if texts else []
            raise ValueError(
                f"the conversation has {max(len(self.prompt), len(self.instead))} tokens and the turn may need "
                f"{' and '.join(needs)}, but the model's context is {self._context} (max_position_embeddings); ask for "
                "less, or begin another conversation"
            )
        return int(count)

    def _may_draw(self, text_left: int) -> bool:
        """Whether the model may decide to."""
        if self.drawing is None:
            return False
        longest = max(len(self.full.tokens), len(self.instead) + len(self.full.tokens) - len(self.prompt))
        fits = longest + self.drawing.tokens + 2 + text_left <= self._context
        return fits and self.images < (MOST_IMAGES if self.asked.max_images is None else self.asked.max_images)

    # -------------------------------------------------------------------------------------------------------- the work

    def events(self) -> Iterator[Event]:
        """Make the turn. To stop, stop asking."""
        started = time.perf_counter()
        self.full = read(self.model, self.full, self.prompt, self.special.pad, len(self.instead))
        self._noise = self._word_noise()
        yield from self._decided() if self.asked.plan is None else self._planned()
        tokens = 0 if self.drawing is None else self.images * self.drawing.tokens
        counts = len(self.prompt), self.cached, self.text_tokens, tokens, self.steps
        yield Usage(*counts, time.perf_counter() - started)

    def _decided(self) -> Iterator[Event]:
        while (left := self.max_new_tokens - self.text_tokens) > 0:
            drawn = yield from self._write(left, self._may_draw(left))
            if not drawn:
                return
            yield from self._draw()

    def _planned(self) -> Iterator[Event]:
        plan = list(self.asked.plan)
        for item, after in zip(plan, [*plan[1:], None], strict=True):
            if item == "image":
                yield from self._draw()
            else:
                yield from self._write(self.max_new_tokens, after == "image")

    def _word_noise(self) -> Iterator[Tensor]:
        generators, vocabulary = image_generators(1, self.seed), self.model.lm_head.out_features
        return draw_gumbel(generators, 1 << 62, vocabulary, self.model.device)  # as many as are asked for

    def _write(self, count: int, may_draw: bool) -> Iterator[Event]:
        """At most so many tokens. Returns whether the model wrote that an image begins."""
        begins, ended = self.special.begin_image, self.tokenizer.eos_token_id
        never, words = no_words(self.model, self.special, (begins,) if may_draw else ()), self.asked.words
        prefix, ids = self.full.until(len(self.full.tokens)), []
        text, drawn = StableText(self.tokenizer, first=not self.content), False

        def choose(logits: Tensor) -> int:
            return int(words.draw(logits.index_fill(-1, never, -torch.inf), self._noise))

        for token in token_steps(self.model, prefix, count, choose, {begins, ended}):
            drawn = token == begins
            if token not in (begins, ended):
                ids.append(token)
                self.text_tokens += 1
                if more := text.add(token):
                    yield TextDelta(more)
        if more := text.rest(last=not (drawn or (may_draw and self.asked.plan is not None))):
            yield TextDelta(more)
        if text.said:
            self.content.append({"type": "text", "text": text.said})
        if ids:
            self.full = Row(self.full.tokens + ids, prefix)
        return drawn

    def _draw(self) -> Iterator[Event]:
        asked, drawing, index = self.asked, self.drawing, self.images
        yield ImageStarted(index, drawing.path, *drawing.size)
        self.full = replace(self.full, begun=begin(self.model, self.full))
        rows = [self.full.begun]
        if drawing.guided:
            tokens = self.instead + self.full.tokens[len(self.prompt) :]  # what the assistant said stands in both
            self.without = read(self.model, self.without, tokens, self.special.pad, len(self.full.tokens))
            rows.append(self.without.begun)
        prefix, begun_at = side_by_side(rows), self.steps
        for made, sketch in self._steps(prefix, image_generators(1, self.seed + index)):  # noqa: B007
            self.steps += 1
            step = self.steps - begun_at
            if asked.preview_every is not None and step % asked.preview_every == 0 and (shown := sketch()) is not None:
                yield ImagePreview(index, step, self._image(shown))
        media = {"codes": made.flatten()}
        if drawing.path == "diffusion":
            media = {"latents": made, "timesteps": made.new_zeros(1)}
        image, picture = self._image(made), self._picture(drawing.path, drawing.tokens, media)
        exact = drawing.decoder.precision == "model"
        self.full = commit(self.model, self.full, prefix if exact else None, picture)
        self.images += 1
        self.pictures = [*self.pictures, picture]
        self.content.append({"type": "image", "image": image})
        said = [part["text"] for part in parts(self.messages[-1]) if part["type"] == "text"]
        others = len(self.messages) - 1 + len(self.content) - 1 + len(parts(self.messages[-1])) - len(said)
        guider = None if asked.guider is None else drawing.guidance
        made = manifest(
            self.pipe, self.pipe.origin, drawing.path, "".join(said), self.seed + index, drawing.size, drawing.settings,
            negative_prompt=asked.negative_prompt, guidance=guider, prior_messages=others,
        )  # fmt: skip
        yield ImageDone(index, image, made)

    def _steps(self, prefix: Prefix, generators: list) -> Iterator[tuple]:
        """The picture after each step, and a function that makes what can be shown of it."""
        drawing, pipe = self.drawing, self.pipe
        if drawing.path == "diffusion":
            steps, size = drawing.settings["num_inference_steps"], pipe.latent_size(drawing.size)
            given = pipe.scheduler, steps, size, generators[0], drawing.guidance, drawing.settings["shift"]
            yield from latent_steps(self.model, prefix, *given, drawing.decoder)
            return
        height, width = (side // pipe.processor.vq_token_size for side in drawing.size)
        given = generators, drawing.sampling, drawing.guidance, None, None, drawing.decoder, drawing.settings["window"]
        for codes in code_steps(self.model, prefix, height * width, *given):  # 1, t
            whole = codes.shape[1] // width  # rows of the picture

            def rows_so_far(codes=codes, whole=whole) -> Tensor | None:
                return codes[:, : whole * width].view(1, whole, width) if whole else None

            yield codes.view(1, height, width) if whole == height else codes, rows_so_far

    def _image(self, made: Tensor) -> Image.Image:
        return self.pipe.processor.postprocess(self.pipe._decode(made, self.drawing.path))[0]
