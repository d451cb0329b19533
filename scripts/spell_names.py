"""Teach a small tower and its projector to spell: `python scripts/spell_names.py START OUT [--steps N]`.

The decoder of a hybrid is frozen in LLaVA's first stage, and costs nearly all of it. A projector that starts from
nothing needs more pictures than one CPU core can show it that way: 6,000 taught SmolLM2 no name. Here the decoder
takes no part. Each of a picture's tokens learns to be the embedding of a word: most of them spell the emoji's name,
the last four its style and kind, by cross-entropy of the cosine with the decoder's own (frozen) table. So the decoder
sees words, which it can read from the first step on. This is no caption model, as each token answers alone; the stages
after it teach the decoder to answer.

Shapes: B pictures, T tokens of a picture, H width of the decoder, W words that occur in any spelling.
"""

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from hybridgen.bridges.adapters import open_pipeline
from hybridgen.checkpoints.loading import new_folder
from hybridgen.data.synthetic.emoji.pictures import EmojiSpec, look_up, lookalikes, render, specs_of_split
from hybridgen.training.distributed.precision import bf16_pays
from hybridgen.training.optim.muon import MuonAdamW
from hybridgen.training.optim.optimization import is_hidden_matrix

BATCH, SHIFT, WARMUP = 96, 3, 20  # pictures a step; pixels a picture is moved by at most; steps
SHARPNESS = 30.0  # what cosines are multiplied by


def spelling(spec: EmojiSpec, tokenizer, length: int) -> list[int]:
    """`length` token ids: the name again and again, then two of the style and two of the kind."""

    def tokens(words: str) -> list[int]:
        return tokenizer(f" {words}", add_special_tokens=False).input_ids

    name, rest = tokens(spec.label), [tokens(words) for words in (spec.style, look_up(spec).group)]
    ends = [(ids * 2)[:2] for ids in rest]
    return [*(name * length)[: length - 4], *ends[0], *ends[1]]


def moved(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Each picture shifted by up to `SHIFT` pixels; what comes in is white."""
    side = pixels.shape[-1]
    padded = F.pad(pixels, (SHIFT,) * 4, value=1.0)
    at = torch.randint(2 * SHIFT + 1, (len(pixels), 2), generator=generator).tolist()
    return torch.stack([each[:, y : y + side, x : x + side] for each, (y, x) in zip(padded, at, strict=True)])


def prepared(pipeline, split: str, length: int) -> tuple[Tensor, Tensor]:
    """(N, 3, h, w) pictures of a split that have one name, and (N, T) their spellings."""
    specs = [spec for spec in specs_of_split(split) if spec not in lookalikes()]
    pixels = pipeline.processor.image_processor.understanding([render(spec) for spec in specs])
    return pixels, torch.tensor([spelling(spec, pipeline.processor.tokenizer, length) for spec in specs])


def spell(start: Path, out: Path, steps: int, seed: int = 0) -> None:
    """Raises ValueError when START is no checkpoint with an understanding path, or OUT is there."""
    pipeline = open_pipeline(start)
    model = pipeline.model.float()
    if "understanding" not in model.config.paths:
        raise ValueError(f"checkpoint {start} has no understanding path, and so nothing that could learn to spell")
    length = pipeline.processor.num_image_tokens
    with new_folder(out) as aside:
        pixels, targets = prepared(pipeline, "train", length)
        words, targets = torch.unique(targets, return_inverse=True)
        table = model.get_input_embeddings().weight.detach()[words]  # W, H
        directions, loudness = F.normalize(table, dim=-1), table.norm(dim=-1).mean()
        optimizer = learner(model)
        rates = [group["lr"] for group in optimizer.param_groups]
        generator = torch.Generator().manual_seed(seed)
        for step in range(steps):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * min(1.0, (step + 1) / WARMUP) * (1 - step / steps)
            chosen = torch.randint(len(pixels), (BATCH,), generator=generator)
            shown = moved(pixels[chosen], generator)
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16_pays(torch.device("cpu"))):
                tokens = model.model.get_image_features(shown).pooler_output.view(BATCH, length, -1)  # B, T, H
                scores = SHARPNESS * F.normalize(tokens.float(), dim=-1) @ directions.T  # B, T, W
            loss = F.cross_entropy(scores.float().flatten(0, 1), targets[chosen].flatten())
            quiet = (tokens.float().norm(dim=-1) / loudness - 1).square().mean()  # as loud as words are
            (loss + quiet).backward()
            optimizer.step()
            optimizer.zero_grad()
            if step % 25 == 0 or step == steps - 1:
                print(f"step {step + 1}/{steps}  loss {loss.item():.3f}", file=sys.stderr, flush=True)
        print(f"held-out names spelled in full: {spelled(pipeline, words, directions, length):.1%}")
        pipeline.save_pretrained(aside)


def learner(model) -> MuonAdamW:
    """An optimizer of the tower and the projector; everything else is frozen."""
    model.requires_grad_(False)
    parts = [*model.model.vision_model.named_parameters(), *model.model.aligner.named_parameters()]
    groups = {True: [], False: []}
    for name, parameter in parts:
        groups[is_hidden_matrix(f".{name}", parameter)].append(parameter.requires_grad_(True))
    settings = [{"params": groups[muon], "muon": muon, "lr": 2e-3, "weight_decay": 0.02} for muon in (True, False)]
    return MuonAdamW(settings, betas=(0.9, 0.95), eps=1e-8, momentum=0.95, steps=5, scale="match_rms_adamw")


@torch.no_grad()
def spelled(pipeline, words: Tensor, directions: Tensor, length: int) -> float:
    """The share of `combo` pictures whose tokens are nearest to exactly the words of the name."""
    pixels, targets = prepared(pipeline, "combo", length)
    nearest = []
    for part in pixels.split(128):
        tokens = pipeline.model.model.get_image_features(part).pooler_output.view(len(part), length, -1)
        nearest.append(words[(F.normalize(tokens, dim=-1) @ directions.T).argmax(-1)])
    return (torch.cat(nearest) == targets)[:, : length - 4].all(1).float().mean().item()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("start", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=1400)
    options = parser.parse_args()
    try:
        spell(options.start, options.out, options.steps)
    except ValueError as error:
        print(f"spell_names.py: {error}", file=sys.stderr)
        sys.exit(2)
