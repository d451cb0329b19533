#!/usr/bin/env python
"""How fast hybridgen trains, against transfusion-pytorch at the same sizes, and against what this machine can multiply.

    python scripts/bench_training.py [--threads N] [--repeat 5] [--documents 8] [--out bench_training.json]

A step is forward, backward and AdamW on the same documents, half of them text and a picture that is drawn, half text
alone: transfusion-pytorch takes them as a list, hybridgen packed into rows, each at the same width and depth and with
as many parameters (`pip install transfusion-pytorch`; left out where it is not installed). hybridgen runs as its
trainer runs it: fp32 and bf16 (autocast), with and without compiled layers.

The floor is the longer of a step's multiplications over what a large matrix product reaches here in the same dtype, and
of its bytes (weights, gradients and AdamW's two moments, as often as they are read or written) over what a copy reaches
(`bench_floor`); below it, where the time goes. Ratios are of the shortest of `--repeat` runs, taken in turns in one
process.
"""

import argparse
import contextlib
import json
from collections.abc import Callable
from pathlib import Path

import torch
from bench_floor import against, measure, where
from bench_sampling import (
    BEGIN,
    BOS,
    DEPTH,
    HEADS,
    PAD,
    WIDTH,
    hybrid,
    parameters,
    shortest,
    surroundings,
    table,
    words,
)

from hybridgen.core.layout import ImageSegment, SpecialTokens, TextSegment, lay_out, pack
from hybridgen.core.objectives import (
    ObjectiveConfig,
    corrupt,
    image_losses,
    sum_images,
    sum_tokens,
    total,
)
from hybridgen.training.distributed.precision import choose_attention, set_attention
from hybridgen.training.distributed.speed import compile_layers, compiler_found, keep_freed_memory

SIDE, CHANNELS, CAPTION, TEXT = 16, 16, 30, 256  # tokens a side of a picture, values a token, words of either document
END, DRAWN = 3, 4


def documents(count: int) -> list[tuple[list[int], torch.Tensor | None]]:
    """Text and, every second time, a picture after it (C, h, w)."""
    generator = torch.Generator().manual_seed(0)
    pictures = [torch.randn(CHANNELS, SIDE, SIDE, generator=generator) for _ in range(count)]
    return [
        (words(CAPTION, number), picture) if number % 2 == 0 else (words(TEXT, number), None)
        for number, picture in enumerate(pictures)
    ]


def our_step(model, docs, bf16: bool, compiled: bool) -> Callable[[], None]:
    """A step on the documents, packed into as many rows as pictures."""
    tokens = SpecialTokens(begin_image=BEGIN, end_image=END, pad=PAD, diffusion=DRAWN)
    layouts = []
    for text, picture in docs:
        segments = [TextSegment([BOS, *text])]
        if picture is not None:
            segments.append(ImageSegment("diffusion", SIDE * SIDE, True, write=True))
        layouts.append(lay_out(segments, tokens))
    pairs = [layouts[at : at + 2] for at in range(0, len(layouts), 2)]
    length = max(sum(map(len, pair)) for pair in pairs)
    rows = [pack(pair, length, PAD).tensors() for pair in pairs]
    batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    pictures = torch.stack([picture for _, picture in docs if picture is not None])
    labels = batch.pop("labels")
    batch.pop("code_labels")
    model.config.diffusion_token_id = model.model.config.diffusion_token_id = DRAWN
    precision = "bf16" if bf16 else "fp32"
    set_attention(model, choose_attention("auto", precision, torch.device("cpu"), compiled))
    if compiled:
        compile_layers(model.model.language_model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    objective, everything = ObjectiveConfig(), torch.ones(len(pictures), dtype=torch.bool)
    rows_of = torch.arange(len(pictures))
    model.train()

    def step() -> None:
        noisy, targets = corrupt(
            pictures, everything, rows_of, rows_of, ~everything, model.config.diffusion_config, objective, seed=0
        )
        autocast = torch.autocast("cpu", torch.bfloat16) if bf16 else contextlib.nullcontext()
        with autocast:
            outputs = model(**batch, latents=noisy, timesteps=targets.timesteps, text_labels=labels, use_cache=False)
        losses = {"text": sum_tokens(outputs.text_losses)}
        losses["diffusion"] = sum_images(image_losses(outputs.prediction, targets), targets)
        counts = {name: count for name, (_, count) in losses.items()}
        total(losses, counts, objective.weights).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def their_step(model, docs) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    samples = [
        [torch.tensor(text)] if picture is None else [torch.tensor(text), picture.permute(1, 2, 0)]
        for text, picture in docs
    ]
    model.train()

    def step() -> None:
        model([list(sample) for sample in samples]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def flops(model, docs) -> float:
    """Multiplications and additions of a step: 6 a weight and token, and attention within each document."""
    inside = sum(p.numel() for name, p in model.named_parameters() if "layers." in name and p.ndim == 2)
    head = model.lm_head.weight.numel()
    count = 0.0
    for text, picture in docs:
        tokens = 1 + len(text) + (SIDE * SIDE + 2 if picture is not None else 0)
        count += 6 * (tokens * inside + len(text) * head) + 12 * DEPTH * HEADS * 64 * tokens * tokens
    return count


def moved(count: int) -> float:
    """Bytes of weights and what belongs to them in a step: weights read forward and twice backward, gradients written,
    measured, scaled and read, weights and both moments read and written."""
    return 4 * count * (1 + 2 + 1 + 1 + 2 + 1 + 6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--documents", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("bench_training.json"))
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    keep_freed_memory()
    docs, tasks, inner, sizes = documents(args.documents), {}, 1408, {}
    try:
        from transfusion_pytorch import Transfusion

        torch.manual_seed(0)
        transformer = {"dim": WIDTH, "depth": DEPTH, "dim_head": 64, "heads": HEADS}
        theirs = Transfusion(
            num_text_tokens=1024, transformer=transformer, dim_latent=CHANNELS, modality_default_shape=(SIDE, SIDE)
        )
        spare = parameters(theirs) - parameters(hybrid(SIDE, CHANNELS, 64))
        inner = 64 + round(spare / (3 * WIDTH * DEPTH) / 64) * 64
        tasks["transfusion-pytorch fp32"], sizes["transfusion-pytorch"] = their_step(theirs, docs), parameters(theirs)
    except ImportError as error:
        print(f"transfusion-pytorch cannot be imported ({error}): it is left out")
    ways = [("fp32", False, False), ("bf16", True, False)]
    if compiler_found(torch.device("cpu")):
        ways += [("fp32, compiled layers", False, True), ("bf16, compiled layers", True, True)]
    for name, bf16, compiled in ways:
        model = hybrid(SIDE, CHANNELS, inner)
        tasks[f"hybridgen {name}"], sizes["hybridgen"] = our_step(model, docs, bf16, compiled), parameters(model)
    seconds = shortest(tasks, args.repeat)
    work, base = flops(model, docs), next(iter(seconds.values()))
    rows = [{"what": name, "seconds": value, "times the first": base / value} for name, value in seconds.items()]
    machine, ours = measure(args.repeat), [name for name in tasks if name.startswith("hybridgen")]
    precisions = {name: "bf16" if "bf16" in name else "fp32" for name in ours}
    moving = moved(sizes["hybridgen"])
    floors = [against(machine, name, precisions[name], work, moving, seconds[name]) for name in ours]
    times = [where(name, tasks[name]) for name in ours]
    counted = ", ".join(f"{name} {count / 1e6:.1f} M parameters" for name, count in sizes.items())
    table(f"a training step on {len(docs)} documents; {counted}; {work / 1e9:.0f} GFLOP", rows)
    table("a training step beside what it needs at least", floors)
    table("where the time goes", times)
    result = {"surroundings": surroundings(), "machine": vars(machine), "parameters": sizes, "rows": rows}
    result |= {"floors": floors, "where": times}
    args.out.write_text(json.dumps(result, indent=2) + "\n")
    print(f"\nwritten to {args.out}")


if __name__ == "__main__":
    main()
