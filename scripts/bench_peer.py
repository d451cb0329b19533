"""transfusion-pytorch as one would use it, for `bench_quality`: its model, its step, its sampler, batched.

What is its own: model and losses, guidance and its null text, AdamW or its Muon (MuonAdamAtan2 of adam-atan2-pytorch,
over `muon_parameters()`), its EMA (`create_ema`), flow matching solved by midpoint at 16 times. What is the user's, and
here as in hybridgen: learning rate with warmup and decay, clipping, captions in tokens of the same tokenizer, pictures
cut into the same patches, bf16 by autocast, its blocks compiled.

Three things are set so that it is not slower than need be, or wrong:

- `modality_processing="grouped"`: all pictures are of one shape. The default, `auto`, measures five ways anew for each
  new number of tokens in a batch, which is nearly every batch.
- Batches are padded to one length, that of the longest caption, which is compiled before the clock starts.
- `sample_many` leaves out `add_pos_emb`, with which the model was trained; so pictures are drawn by the rule of
  `sample_one`, for many prompts at once (`draw`), and `check_draw` holds the two equal before anything is scored.

Its guidance replaces all text by the null token, the size of the picture ("8,8") and the sign before it too, which
dropped prompts of training keep. `draw` can do both (`nulls`), and the better is scored.
"""

import contextlib
import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

SOLVER_TIMES = 16  # its default `modality_steps`: 15 intervals, two evaluations each
NULLS = ("all text", "the caption")  # what guidance leads away from: its own rule, and what training drops


@dataclass(frozen=True)
class PeerSettings:
    """What can be chosen, and is tuned.

    Args:
        dim, depth: of its transformer; heads are of 32.
        optimizer: `adamw` (torch's, fused) or `muon` (its own).
        lr: of both.
        caption_loss: whether captions are learnt as text, as by default, or only read.
        clean: its `model_output_clean`.
        noise: mean and spread of a logit-normal noise level; None = its own, uniform.
    """

    dim: int = 96
    depth: int = 4
    optimizer: str = "adamw"
    lr: float = 1e-3
    caption_loss: bool = True
    clean: bool = False
    noise: tuple[float, float] | None = None


def build(settings: PeerSettings, vocabulary: int, side: int, channels: int, seed: int):
    """Its model for pictures of `side` x `side` tokens.

    Raises:
        ImportError: transfusion-pytorch is not installed.
    """
    from transfusion_pytorch import Transfusion

    torch.manual_seed(seed)
    random.seed(seed)
    return Transfusion(
        num_text_tokens=vocabulary,
        dim_latent=channels,
        modality_default_shape=(side, side),
        modality_num_dim=2,
        add_pos_emb=True,
        model_output_clean=settings.clean,
        modality_processing="grouped",
        transformer={"dim": settings.dim, "depth": settings.depth, "dim_head": 32, "heads": settings.dim // 32},
    )


def patches(pictures: np.ndarray, patch: int) -> Tensor:
    """(n, S, S, 3) uint8 -> (n, S / patch, S / patch, 3 patch^2) in [-1, 1]."""
    n, side = pictures.shape[:2]
    rows = side // patch
    values = torch.from_numpy(pictures).float().div(127.5).sub(1)
    return values.view(n, rows, patch, rows, patch, 3).permute(0, 1, 3, 2, 4, 5).reshape(n, rows, rows, -1)


def pixels(tokens: Tensor, patch: int) -> np.ndarray:
    """The inverse of `patches`, rounded."""
    n, rows = tokens.shape[:2]
    values = tokens.view(n, rows, rows, patch, patch, 3).permute(0, 1, 3, 2, 4, 5).reshape(n, rows * patch, -1, 3)
    return values.add(1).mul(127.5).round().clamp(0, 255).byte().numpy()


class Peer:
    """A model with what trains it.

    Args:
        longest: tokens of a caption, to which batches are padded, so that shapes are fixed.
    """

    def __init__(self, model, settings: PeerSettings, longest: int, bf16: bool, compiled: bool):
        self.model, self.settings, self.longest, self.bf16 = model.train(), settings, longest, bf16
        if settings.optimizer == "muon":
            from adam_atan2_pytorch import MuonAdamAtan2

            self.optimizer = MuonAdamAtan2(
                model.muon_parameters(), model.parameters(), lr=settings.lr, betas=(0.9, 0.95), decoupled_wd=True
            )
        else:
            self.optimizer = torch.optim.AdamW(
                model.parameters(), lr=settings.lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True
            )
        self.ema = model.create_ema()
        if compiled:
            torch._dynamo.config.suppress_errors = True
            torch._dynamo.config.recompile_limit = 64  # a graph for each kind of block
            for block in model.transformer.layers:
                for part in block:
                    if part is not None:
                        part.compile(dynamic=False)

    def loss(self, captions: list[list[int]], pictures: Tensor) -> Tensor:
        """Its loss of captions and their pictures (n, h, w, C)."""
        samples = [self._sample(caption, picture) for caption, picture in zip(captions, pictures, strict=True)]
        longest = max(range(len(captions)), key=lambda place: len(captions[place]))
        if (spare := self.longest - len(captions[longest])) > 0:
            samples[longest].append((torch.zeros(spare, dtype=torch.long), 0.0))  # behind the picture, without loss
        with torch.autocast("cpu", torch.bfloat16) if self.bf16 else contextlib.nullcontext():
            return self.model(samples, num_modalities_to_times_fn=self._times)

    def _sample(self, caption: list[int], picture: Tensor) -> list:
        text = torch.tensor(caption)
        return [text if self.settings.caption_loss else (text, 0.0), picture]

    @property
    def _times(self):
        """Noise levels of a batch; None = its own. Its time is 1 where a picture is clean."""
        if self.settings.noise is None:
            return None
        mean, spread = self.settings.noise
        return lambda counts: 1 - torch.sigmoid(mean + spread * torch.randn(len(counts), int(counts.max())))

    def warm_up(self, captions: list[list[int]], pictures: Tensor) -> None:
        """Compile; nothing is learnt."""
        for _ in range(2):
            self.loss(captions, pictures).backward()
            self.optimizer.zero_grad()

    def step(self, captions: list[list[int]], pictures: Tensor, factor: float) -> None:
        """A step at `factor` of the learning rate."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.lr * factor
        self.loss(captions, pictures).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update()


def _null(model, prompt: Tensor, nulls: str) -> Tensor:
    """A prompt (sos, caption, meta, shape, som) as the unconditional one."""
    nulled = torch.full_like(prompt, model.null_text_id)
    if nulls == "all text":
        return nulled
    kept = int((prompt == model.meta_id).nonzero()[-1])
    return torch.cat([nulled[:kept], prompt[kept:]])


@torch.no_grad()
def draw(
    model, captions: list[list[int]], noise: Tensor, guidance: float, nulls: str = NULLS[0], chunk: int = 64
) -> Tensor:
    """Pictures (n, h, w, C) by the rule of `sample_one`, many at once: midpoint steps over `SOLVER_TIMES` times.

    Args:
        noise: (n, h, w, C).
        guidance: 1 = none.
    """
    if len(captions) > chunk:
        parts = range(0, len(captions), chunk)
        return torch.cat(
            [draw(model, captions[at : at + chunk], noise[at : at + chunk], guidance, nulls, chunk) for at in parts]
        )
    shape = tuple(noise.shape[1:3])
    prompts = [model.prepare_prompt_sample(torch.tensor(caption), (0, shape))[0][0] for caption in captions]
    times = torch.linspace(0, 1, SOLVER_TIMES)

    def flow(time: Tensor, state: Tensor) -> Tensor:
        cond = _flow(model, prompts, time, state)
        if guidance == 1:
            return cond
        uncond = _flow(model, [_null(model, prompt, nulls) for prompt in prompts], time, state)
        return uncond + guidance * (cond - uncond)

    state = noise
    for begin, end in zip(times[:-1], times[1:], strict=True):
        halfway = state + (end - begin) / 2 * flow(begin, state)
        state = state + (end - begin) * flow((begin + end) / 2, halfway)
    return state


def _flow(model, prompts: list[Tensor], time: Tensor, state: Tensor) -> Tensor:
    """What the model says of noisy pictures (n, h, w, C) after their prompts."""
    embeds, of_pictures = model.forward(
        [[prompt, (0, picture)] for prompt, picture in zip(prompts, state, strict=True)],
        times=time.expand(len(prompts), 1),
        return_embed=True,
        decoding_text_or_modality="modality",
    )
    return torch.stack([model.model_to_latent_projs[0](of(embeds)[None])[0] for of in of_pictures[0]])


@contextlib.contextmanager
def drawing(model) -> Iterator[None]:
    """Inside, the model is in eval mode and its blocks run as written, as drawing has other shapes."""
    compiled = {part: part._compiled_call_impl for part in model.modules() if part._compiled_call_impl is not None}
    was = model.training
    model.eval()
    for part in compiled:
        part._compiled_call_impl = None
    try:
        yield
    finally:
        model.train(was)
        for part, call in compiled.items():
            part._compiled_call_impl = call


@torch.no_grad()
def check_draw(model, captions: list[list[int]], noise: Tensor, guidance: float = 3.0, bound: float = 1e-3) -> float:
    """The largest difference between `draw` and its own `sample_one`, from the same noise.

    Raises:
        ValueError: they differ by more than `bound`, so what would be scored is not what its library draws.
    """
    ours, largest = draw(model, captions, noise, guidance), 0.0
    for caption, start, picture in zip(captions, noise, ours, strict=True):
        (theirs,) = model.sample_one(
            torch.tensor(caption),
            max_length=1,
            force_modality_at_start=(0, tuple(start.shape[:2])),
            init_modality_noise=start.flatten(0, 1),
            modality_steps=SOLVER_TIMES,
            cfg_scale=guidance,
            return_without_prompt=True,
        )
        largest = max(largest, float((theirs.tensor - picture).abs().max()))
    if not largest <= bound:
        raise ValueError(
            f"drawn in a batch, a picture differs by {largest:.2g} from that of sample_one; at most {bound}"
        )
    return largest
