"""The code loop: an image of the vq path, one code per step, each drawn from the model's guided code logits.

`CodeWriting` is its state, `write_codes` the loop. It commits the codes it reads to the prefix (they are final, unlike
noisy patches), and the last code is drawn but never read: `commit_codes` reads it, and the end of the image, for what
follows.

A code is the largest of (logits / temperature + Gumbel noise), with noise from the image's own stream. That is a
sample of their softmax, and one that a rounding error in the logits, of another batch size say, hardly ever changes.

Shapes: I images, R rows (I, or 2 I or 3 I with guidance), V codes to choose from, T codes of one image.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from hybridgen.core.offload import bring
from hybridgen.core.values import number, whole_number
from hybridgen.modeling_hybridgen import HybridGenForConditionalGeneration
from hybridgen.sampling.decoder import Decoder
from hybridgen.sampling.edits import Known
from hybridgen.sampling.finite import FiniteSteps
from hybridgen.sampling.guidance import Guidance, Guide, Scale
from hybridgen.sampling.prefix import Prefix, extend
from hybridgen.sampling.seeds import draw_gumbel
from hybridgen.sampling.tasks import Read, Score, Task, run


@dataclass(frozen=True)
class CodeSampling:
    """How a code is drawn from logits.

    Args:
        temperature: logits are divided by it; 0 takes the likeliest code.
        top_k: only the k likeliest codes can be drawn; 0 = all.
        top_p: only the likeliest codes that together have this probability; 1 = all.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self):
        checked = {
            "temperature": number("temperature", self.temperature, meaning="0 = always the likeliest"),
            "top_k": whole_number("top_k", self.top_k, 0, meaning="0 = all"),
            "top_p": number("top_p", self.top_p, 0, 1, above=True, meaning="1 = all"),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)  # as plain Python, whatever spelling it came in

    def draw(self, logits: Tensor, noise: Iterator[Tensor]) -> Tensor:
        """Logits (I, V) -> codes (I,). Takes one draw of `noise`, unless the temperature is 0."""
        if self.temperature == 0:
            return logits.argmax(-1)
        return (self.filter(logits) + next(noise)).argmax(-1)

    def filter(self, logits: Tensor) -> Tensor:
        """Logits (I, V) over the temperature, -inf where a code cannot be drawn."""
        logits = logits / max(self.temperature, 1e-30)  # below, all logits would be infinite, and none the largest
        if 0 < self.top_k < logits.shape[-1]:
            logits = logits.masked_fill(logits < logits.topk(self.top_k).values[:, -1:], -torch.inf)
        if self.top_p < 1:
            ordered, order = logits.sort(descending=True)
            share = ordered.softmax(-1)
            dropped = share.cumsum(-1) - share >= self.top_p  # the codes before it have that probability already
            logits = logits.masked_fill(dropped.scatter(-1, order, dropped), -torch.inf)
        return logits


GREEDY = CodeSampling(temperature=0)  # the likeliest each time


@torch.no_grad()
def write_codes(
    model: HybridGenForConditionalGeneration,
    prefix: Prefix,
    count: int,
    generators: list[Generator],
    sampling: CodeSampling,
    guidance: Guidance | Scale = 1.0,
    on_step: Callable[[int, Tensor], Tensor] | None = None,
    on_logits: Callable[[int, Tensor], None] | None = None,
    decoder: Decoder | None = None,
    window: int = 1,
    stop: Callable[[], bool] | None = None,
    known: Known | None = None,
) -> Tensor:
    """The codes (I, count) that follow a prefix whose rows end with the begin-of-image token; the prefix grows by them.

    With a window of W, W codes are read at once: the next one, and guesses of those behind it. A guess that equals the
    code then drawn at its position has saved a step; from the first that does not, all is read again, with the codes
    drawn as the new guesses (Jacobi decoding, arXiv 2305.10427, 2410.01699). Each position keeps its own noise, so the
    codes are those of a window of 1. Where few guesses are right, fewer are read (`_Width`).

    Args:
        generators: one per image; their number is I. The prefix has I, 2 I or 3 I rows, as `guidance` orders them.
        on_step: called with the codes so far (I, t) after each code; the loop goes on with those that it returns.
        on_logits: called with the guided logits (I, V) of each code, before temperature and filters.
        decoder: the model's, in another precision; None = in its own.
        window: codes read at once, at most; pays for few images, whose guesses must all be right.
        stop: asked after each forward, whether to end there: the codes are then fewer, and the prefix is of no use.
        known: codes that stay where they are not redrawn. They are read in their turn, so that a code is drawn after
            those that stand before it, whether known or drawn; of what stands after it, a causal path sees nothing.

    Raises:
        ValueError: a window of several codes with a guidance that averages over steps.
    """
    options = guidance, on_step, on_logits, decoder, window, known
    writing = CodeWriting(model, prefix, count, generators, sampling, *options)
    while not writing.done:
        run(writing.step())
        if stop is not None and stop():
            break
    return writing.codes


class CodeWriting:
    """The codes of I images being written, forward by forward; the arguments are those of `write_codes`.

    1. Draw the first code from the state in which the prefix ends.
    2. Read the last code and, with a window, guesses of those behind it, without committing them.
    3. Draw the code behind each of them. Those up to the first wrong guess are final: what they were drawn from is.
    4. Commit what was read of final codes. The codes drawn behind a wrong guess are the next guesses.

    The prefix is complete only once it is `done`.
    """

    @torch.no_grad()
    def __init__(
        self,
        model: HybridGenForConditionalGeneration,
        prefix: Prefix,
        count: int,
        generators: list[Generator],
        sampling: CodeSampling,
        guidance: Guidance | Scale = 1.0,
        on_step: Callable[[int, Tensor], Tensor] | None = None,
        on_logits: Callable[[int, Tensor], None] | None = None,
        decoder: Decoder | None = None,
        window: int = 1,
        known: Known | None = None,
    ):
        images, device = len(generators), prefix.last_state.device
        self.model, self.prefix, self.count = model, prefix, count
        self.sampling, self.on_step, self.on_logits = sampling, on_step, on_logits
        self.rows_per_image = prefix.rows // images
        self.decoder = decoder = Decoder(model) if decoder is None else decoder
        self.guide = Guide(guidance, images, count)
        check_window(window, self.guide.guidance)
        places = torch.arange(count, device=device)
        self.forward = decoder.continue_from(prefix, places, causal=True, is_image=True)
        self._width = _Width(window, self.forward.cost_of_a_guess)
        self._noise = _PositionNoise(draw_gumbel(generators, count, model.config.vq_config.num_embeddings, device))
        self._codes = torch.zeros(images, count, dtype=torch.long, device=device)
        self._known = known
        if known is not None:
            self._codes = known.keep(self._codes, known.clean)
        self._guesses = self._codes.new_zeros(images, 0)
        self._finite = FiniteSteps(device)
        self.written = 0  # codes that are final

    @property
    def steps_done(self) -> int:
        """Codes that are final; a step may add several."""
        return self.written

    @property
    def codes(self) -> Tensor:
        """Those that there are, (I, t)."""
        return self._codes[:, : self.written]

    @property
    def done(self) -> bool:
        return self.written == self.count

    def step(self) -> Task[None]:
        """One forward on: one code more, or several with a window."""
        bring(self.model)
        if not self.written:
            states = self.prefix.last_state[:, None]  # R, 1, H
            logits, drawn = yield from self._draw(states, 0)
            self._finish(logits[0], drawn[0])
        else:
            states = yield from self._read_and_draw()
        if self.done:
            self._finite.check("the vq path", self.count)
            self.prefix.add(self.count - 1, states[:, -1], is_image=True)

    def _read_and_draw(self) -> Task[Tensor]:
        """Steps 2 to 4. Returns the backbone's output (R, n, H) at the n codes that were committed."""
        last = self.written - 1
        inputs_at_once = min(self._width.best(), self.count - self.written)
        guesses = self._guess(last, max(inputs_at_once, self._width.watched) - 1)
        inputs = torch.cat([self._codes[:, last : last + 1], guesses[:, : inputs_at_once - 1]], dim=1)  # I, n
        embeds = self.model.model.embed_codes(inputs).repeat(self.rows_per_image, 1, 1)  # R, n, H
        states = yield Read(self.forward, embeds, last, commit=False)  # R, n, H
        logits, drawn = yield from self._draw(states, last + 1)
        for accepted in range(1, inputs_at_once + 1):  # inputs that are final: the last code, and the right guesses
            self._finish(logits[accepted - 1], drawn[accepted - 1])
            if accepted == inputs_at_once or not torch.equal(inputs[:, accepted], self._codes[:, last + accepted]):
                break
        if self._width.watched > inputs_at_once == 1:
            self._width.note(int(torch.equal(guesses[:, 0], self._codes[:, last + 1])), 1)
        self._width.note(accepted - 1, min(accepted, inputs_at_once - 1))
        self.prefix.cache.advance(accepted)
        self._guesses = drawn[accepted:].T
        self._noise.drop_until(last + accepted)
        return states[:, :accepted]

    def _guess(self, last: int, count: int) -> Tensor:
        """Guesses (I, count) of the codes after position `last`, the last that is final; what is known is no guess."""
        guesses = _guess_codes(self._codes, last, self._guesses, count)
        if self._known is None:
            return guesses
        of_picture = self._codes[:, last + 1 : last + 1 + count]
        drawn = self._known.redrawn[:, last + 1 : last + 1 + count]
        within = of_picture.shape[1]  # the end of the picture may be nearer
        return torch.cat([torch.where(drawn, guesses[:, :within], of_picture), guesses[:, within:]], dim=1)

    def _draw(self, states: Tensor, first: int) -> Task[tuple[Tensor, Tensor]]:
        """Output (R, n, H) -> guided logits (n, I, V) and codes (n, I) of position `first` and those after it."""
        logits = (yield Score(self.decoder.code_logits, states)).transpose(0, 1)  # n, R, V
        if self.guide.guidance.method != "cfg":
            logits = logits - logits.mean(-1, keepdim=True)
        guided = [self.guide(scores, first + number) for number, scores in enumerate(logits)]
        drawn = [self.sampling.draw(scores, self._noise.at(first + number)) for number, scores in enumerate(guided)]
        return torch.stack(guided), torch.stack(drawn)

    def _finish(self, logits: Tensor, drawn: Tensor) -> None:
        """The next code of each image (I,) is final, drawn by its logits (I, V)."""
        step = self.written
        self._finite.add(logits)
        if self.on_logits is not None:
            self.on_logits(step, logits)
        if self._known is not None:
            drawn = torch.where(self._known.redrawn[:, step], drawn, self._codes[:, step])
        self._codes[:, step] = drawn
        if self.on_step is not None:
            self._codes[:, : step + 1] = self.on_step(step, self._codes[:, : step + 1])
        self.written += 1


class CodeDrawing(CodeWriting):
    """Pictures of the vq path that come next in the rows of a prefix, code by code, with the verbs of
    `denoise.LatentDrawing`.

    Args:
        size: h rows and w columns of codes; in place of their number. All else as in `CodeWriting`.
    """

    def __init__(
        self, model: HybridGenForConditionalGeneration, prefix: Prefix, size: tuple[int, int], *args, **kwargs
    ):
        super().__init__(model, prefix, size[0] * size[1], *args, **kwargs)
        self.size = size

    def drawn(self) -> Tensor:
        """The codes (I, h, w) that there are, known ones among them, and 0 where none is yet."""
        return self._codes.clone().view(-1, *self.size)

    def preview(self) -> Tensor | None:
        """The rows of codes (I, h', w) that are whole; None = not one."""
        height, width = self.written // self.size[1], self.size[1]
        return self.codes[:, : height * width].view(-1, height, width) if height else None


class _Width:
    """How many codes to read at once, at most `most`: as many as pay, by how many guesses were right lately.

    If a share p of guesses is right, n codes read at once make 1 + p + ... + p^(n - 1) codes final, and take
    1 + cost (n - 1) times as long as one. It depends on codes alone, not on a clock: a call goes the same way again.

    Args:
        cost: of a guess that is read, as a share of a forward of one code.
    """

    def __init__(self, most: int, cost: float):
        self.most, self.cost = most, cost
        self._right, self._tested = 4.0, 4.5  # a good opinion at first, that a few guesses change

    @property
    def watched(self) -> int:
        """How many codes to have guesses for, also where one is read at a time, so as to see whether more would pay."""
        return min(2, self.most)

    def best(self) -> int:
        share, best, most_a_time, final = self._right / self._tested, 1, 0.0, 0.0
        for count in range(1, self.most + 1):
            final += share ** (count - 1)
            if (a_time := final / (1 + self.cost * (count - 1))) > most_a_time:
                best, most_a_time = count, a_time
        return best

    def note(self, right: int, tested: int) -> None:
        """So many of the guesses that were tested were right."""
        if tested:
            self._right, self._tested = 0.9 * self._right + right, 0.9 * self._tested + tested


def check_window(window: int, guidance: Guidance) -> None:
    """Raises ValueError for a window that means nothing, or does not go with a guidance."""
    window = whole_number("window", window, meaning="1 = a code at a time")
    if window > 1 and guidance.method == "apg" and guidance.momentum:
        raise ValueError(
            f"a window of {window} codes does not go with the momentum of APG, which averages over steps that were "
            "taken; use window 1, or momentum 0"
        )


def _guess_codes(codes: Tensor, last: int, drawn: Tensor, count: int) -> Tensor:
    """Guesses (I, count) of the codes after position `last`, the last that is final: those `drawn` there behind wrong
    inputs, then, where none were, the codes of the row above, or the code before."""
    side = math.isqrt(codes.shape[1])  # as if the picture were square: where it is not, only the guesses suffer
    guesses = [drawn[:, number] for number in range(min(count, drawn.shape[1]))]
    for position in range(last + 1 + len(guesses), last + 1 + count):
        above, before = position - side, guesses[-1] if guesses else codes[:, last]
        guesses.append(codes[:, above] if 0 <= above <= last else before)
    return torch.stack(guesses, dim=1) if guesses else codes[:, :0]


class _PositionNoise:
    """The noise of each position, drawn once, in order, and kept until the position is final."""

    def __init__(self, stream: Iterator[Tensor]):
        self._stream, self._drawn, self._next = stream, {}, 0

    def at(self, position: int) -> Iterator[Tensor]:
        """Lazy: no noise is drawn at temperature 0."""
        while self._next <= position:
            self._drawn[self._next] = next(self._stream)
            self._next += 1
        yield self._drawn[position]

    def drop_until(self, position: int) -> None:
        """Drop that of all positions up to this one."""
        self._drawn = {number: noise for number, noise in self._drawn.items() if number > position}


@torch.no_grad()
def commit_codes(
    model: HybridGenForConditionalGeneration, prefix: Prefix, codes: Tensor, decoder: Decoder | None = None
) -> Tensor:
    """Read the last of the codes (I, T) that `write_codes` wrote, and the end of the image, into every row.

    Args:
        decoder: the model's, in the precision to read in; None = in its own.

    Returns:
        the backbone's output (R, 2, H).
    """
    ids = torch.tensor([model.config.vq_token_id, model.config.end_image_token_id], device=codes.device)
    return extend(model, prefix, ids, decoder=decoder, codes=codes[:, -1].repeat(prefix.rows // len(codes)))
