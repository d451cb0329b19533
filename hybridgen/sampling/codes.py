"""The code loop: an image of the vq path, one code a step, each drawn from the model's guided code logits.

The fact a newcomer gets wrong: the loop keeps the codes it reads in the prefix (they are final, unlike noisy patches),
and the last code is drawn but never read. `commit_codes` reads it, and the end of the image, for what follows.

A code is the largest of (logits / temperature + Gumbel noise), with noise from the image's own stream. That is a
sample of their softmax, and one that a rounding error in the logits, of another batch size say, hardly ever changes.

Shapes: I images, R rows (I, or 2 I or 3 I with guidance), V codes to choose from, T codes of one image.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from hybridgen.modeling_hybridgen import HybridGenForConditionalGeneration
from hybridgen.sampling.decoder import Decoder
from hybridgen.sampling.guidance import Guidance, Guide, Scale
from hybridgen.sampling.prefix import Prefix, extend
from hybridgen.sampling.seeds import draw_gumbel


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
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(
                f"temperature is {self.temperature!r}; it must be at least 0 (0 = always the likeliest code)"
            )
        if isinstance(self.top_k, bool) or not isinstance(self.top_k, int) or self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k!r}; it must be a whole number, 0 for all codes")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p!r}; it must be above 0 and at most 1 (1 = all codes)")

    def draw(self, logits: Tensor, noise: Iterator[Tensor]) -> Tensor:
        """Logits (I, V) -> codes (I,). Takes one draw of `noise`, unless the temperature is 0."""
        if self.temperature == 0:
            return logits.argmax(-1)
        return (self.filter(logits) + next(noise)).argmax(-1)

    def filter(self, logits: Tensor) -> Tensor:
        """Logits (I, V) over the temperature, -inf where a code cannot be drawn."""
        logits = logits / self.temperature
        if 0 < self.top_k < logits.shape[-1]:
            logits = logits.masked_fill(logits < logits.topk(self.top_k).values[:, -1:], -torch.inf)
        if self.top_p < 1:
            ordered, order = logits.sort(descending=True)
            share = ordered.softmax(-1)
            dropped = share.cumsum(-1) - share >= self.top_p  # the likelier codes have that much without it
            logits = logits.masked_fill(dropped.scatter(-1, order, dropped), -torch.inf)
        return logits


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
) -> Tensor:
    """The codes (I, count) that follow a prefix whose rows end with the begin-of-image token; the prefix grows by them.

    Args:
        generators: one an image; their number is I. The prefix has I, 2 I or 3 I rows, as `guidance` orders
            them.
        on_step: told the codes so far (I, t) after each step; what it returns is gone on with.
        on_logits: told the guided logits (I, V) of each step, before temperature and filters.
        decoder: the model's, in another precision; None = in its own.
    """
    images, device = len(generators), prefix.last_state.device
    copies = prefix.rows // images
    decoder = Decoder(model) if decoder is None else decoder
    read = decoder.after(prefix, torch.arange(count, device=device), causal=True)
    noise = draw_gumbel(generators, count, model.config.vq_config.num_embeddings, device)
    codes = torch.zeros(images, count, dtype=torch.long, device=device)
    guide = Guide(guidance, images, count)
    states = prefix.last_state  # R, H
    for step in range(count):
        logits = decoder.code_logits(states)  # R, V
        if guide.guidance.method != "cfg":
            logits = logits - logits.mean(-1, keepdim=True)
        logits = guide(logits, step)  # I, V
        if on_logits is not None:
            on_logits(step, logits)
        codes[:, step] = sampling.draw(logits, noise)
        if on_step is not None:
            codes[:, : step + 1] = on_step(step, codes[:, : step + 1])
        if step + 1 < count:
            embeds = model.model.embed_codes(codes[:, step]).repeat(copies, 1)[:, None]  # R, 1, H
            states = read(embeds, step)[:, 0]
    prefix.document_ids = torch.nn.functional.pad(prefix.document_ids, (0, count - 1))
    prefix.positions = prefix.positions + count - 1
    prefix.last_state = states
    return codes


@torch.no_grad()
def commit_codes(model: HybridGenForConditionalGeneration, prefix: Prefix, codes: Tensor) -> Tensor:
    """Read the last of the codes (I, T) that `write_codes` wrote, and the end of the image, into every row.

    Returns:
        the backbone's output (R, 2, H).
    """
    ids = torch.tensor([model.config.vq_token_id, model.config.end_image_token_id], device=codes.device)
    return extend(model, prefix, ids, codes=codes[:, -1].repeat(prefix.rows // len(codes)))
