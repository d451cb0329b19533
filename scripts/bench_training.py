#!/usr/bin/env python
"""How fast hybridgen trains, against transfusion-pytorch at the same sizes, and against what this machine can multiply.

    python scripts/bench_training.py [--threads N] [--repeat 7] [--rows 16] [--width 256] [--depth 8] [--ways bf16 ...]

A step is forward, backward, clipping and AdamW on the same rows, each of 32 words and a drawn picture of 64 tokens:
transfusion-pytorch takes them as a list, hybridgen packed, each at the same width, depth and heads and with as many
parameters (`pip install transfusion-pytorch`; left out where it is not installed). Both run every way that they have:
fp32, and bf16 by autocast, each as written and compiled. hybridgen does what its trainer does (`compile_model`,
`build_optimizer`, whose AdamW is torch's fused one); for transfusion-pytorch, whose trainer is the user's, AdamW is
fused as well, and its transformer's blocks are compiled. The headline is the fastest way against the fastest way.

The floor is the longer of a step's multiplications over what a large matrix product reaches here in the same dtype, and
of its bytes (weights, gradients and AdamW's two moments, as often as they are read or written) over what a copy reaches
(`bench_floor`); below it, where the time goes. Times are medians of `--repeat` runs, taken in turns in one process, of
the processor's clock on one thread (others may use the machine), of the wall's on several.
"""

import argparse
import contextlib
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from bench_floor import against, clock, measure, where
from bench_sampling import BEGIN, BOS, PAD, parameters, surroundings, table, words

from hybridgen import HybridGenConfig, HybridGenForConditionalGeneration
from hybridgen.core.layout import ImageSegment, SpecialTokens, TextSegment, lay_out, pack
from hybridgen.core.objectives import ObjectiveConfig, corrupt, image_losses, sum_images, sum_tokens, total
from hybridgen.training.config.schema import OptimizerConfig
from hybridgen.training.distributed.precision import choose_attention, set_attention
from hybridgen.training.distributed.speed import compile_layers, compiler_found, keep_freed_memory
from hybridgen.training.optim.optimization import build_optimizer

SIDE, CHANNELS, TEXT, WORDS, HEAD = 8, 16, 31, 2048, 64  # tokens a side, values a token, words a row, vocabulary
END, DRAWN = 3, 4
WAYS = ("fp32", "bf16", "fp32 compiled", "bf16 compiled")


def rows_of(count: int) -> list[tuple[list[int], torch.Tensor]]:
    """Words and a picture (C, h, w) each."""
    generator = torch.Generator().manual_seed(0)
    return [(words(TEXT, row), torch.randn(CHANNELS, SIDE, SIDE, generator=generator)) for row in range(count)]


def hybrid(width: int, depth: int, inner: int) -> HybridGenForConditionalGeneration:
    torch.manual_seed(0)
    heads = width // HEAD
    text = {"model_type": "qwen3", "vocab_size": WORDS, "hidden_size": width, "intermediate_size": inner}
    text |= {"num_hidden_layers": depth, "num_attention_heads": heads, "num_key_value_heads": heads, "head_dim": HEAD}
    text |= {"tie_word_embeddings": False}
    diffusion = {"in_channels": CHANNELS, "patch_size": 1, "sample_size": SIDE}
    model = HybridGenForConditionalGeneration(
        HybridGenConfig(text_config=text, diffusion_config=diffusion, diffusion_token_id=DRAWN)
    )
    torch.nn.init.normal_(model.model.final_layer.linear.weight, std=0.02)
    return model.train()


def our_step(model, rows, way: str) -> Callable[[], None]:
    """A step of the trainer on the rows, packed."""
    bf16, compiled = "bf16" in way, "compiled" in way
    tokens = SpecialTokens(begin_image=BEGIN, end_image=END, pad=PAD, diffusion=DRAWN)
    layouts = [
        lay_out([TextSegment([BOS, *text]), ImageSegment("diffusion", SIDE * SIDE, True, write=True)], tokens)
        for text, _ in rows
    ]
    packed = [pack([layout], len(layout), PAD).tensors() for layout in layouts]
    batch = {name: torch.stack([row[name] for row in packed]) for name in packed[0]}
    pictures = torch.stack([picture for _, picture in rows])
    batch["text_labels"] = batch.pop("labels")
    batch.pop("code_labels")
    set_attention(model, choose_attention("auto", "bf16" if bf16 else "fp32", torch.device("cpu"), compiled))
    if compiled:
        compile_layers(model.model.language_model)
    optimizer = build_optimizer(model, OptimizerConfig(name="adamw", lr=1e-4), [])
    objective, everything = ObjectiveConfig(), torch.ones(len(rows), dtype=torch.bool)
    rows_at = torch.arange(len(rows))

    def step() -> None:
        noisy, targets = corrupt(
            pictures, everything, rows_at, rows_at, ~everything, model.config.diffusion_config, objective, seed=0
        )
        with torch.autocast("cpu", torch.bfloat16) if bf16 else contextlib.nullcontext():
            outputs = model(**batch, latents=noisy, timesteps=targets.timesteps, use_cache=False)
        losses = {"text": sum_tokens(outputs.text_losses)}
        losses["diffusion"] = sum_images(image_losses(outputs.prediction, targets), targets)
        counts = {name: count for name, (_, count) in losses.items()}
        total(losses, counts, objective.weights).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def peer(width: int, depth: int):
    """transfusion-pytorch's model, or None."""
    try:
        from transfusion_pytorch import Transfusion
    except ImportError as error:
        print(f"transfusion-pytorch cannot be imported ({error}): it is left out")
        return None
    torch.manual_seed(0)
    transformer = {"dim": width, "depth": depth, "dim_head": HEAD, "heads": width // HEAD}
    shape = (SIDE, SIDE)
    return Transfusion(
        num_text_tokens=WORDS, transformer=transformer, dim_latent=CHANNELS, modality_default_shape=shape
    ).train()


def their_step(model, rows, way: str) -> Callable[[], None]:
    bf16 = "bf16" in way
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    samples = [[torch.tensor(text), picture.permute(1, 2, 0).contiguous()] for text, picture in rows]
    if "compiled" in way:
        torch._dynamo.config.suppress_errors = True
        for block in model.transformer.layers:
            for part in block:
                if part is not None:
                    part.compile(dynamic=False)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16) if bf16 else contextlib.nullcontext():
            loss = model([list(sample) for sample in samples])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def medians(tasks: dict[str, Callable[[], object]], repeat: int) -> dict[str, float]:
    """Seconds of each task, the median of so many runs in turns, after two that warm it up (and compile it)."""
    seen: dict[str, list[float]] = {name: [] for name in tasks}
    for turn in range(repeat + 2):
        for name, task in tasks.items():
            start = clock()
            task()
            if turn > 1:
                seen[name].append(clock() - start)
    return {name: statistics.median(times) for name, times in seen.items()}


def flops(model, rows) -> float:
    """Multiplications and additions of a step: 6 a weight and token, and attention within each row."""
    inside = sum(p.numel() for name, p in model.named_parameters() if "layers." in name and p.ndim == 2)
    text, image = TEXT + 1, SIDE * SIDE + 2
    of_row = 6 * ((text + image) * inside + text * model.lm_head.weight.numel())
    config = model.config.text_config
    pairs = text * (text + 1) / 2 + image * (text + image)
    return len(rows) * (of_row + 12 * config.num_hidden_layers * config.hidden_size * pairs)


def moved(count: int) -> float:
    """Bytes of weights and what belongs to them in a step: weights read forward and twice backward, gradients written,
    measured, scaled and read, weights and both moments read and written."""
    return 4 * count * (1 + 2 + 1 + 1 + 2 + 1 + 6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--depth", type=int, default=8)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--out", type=Path, default=Path("bench_training.json"))
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    keep_freed_memory()
    rows, tasks, sizes, inner = rows_of(args.rows), {}, {}, 4 * args.width
    ways = [way for way in args.ways if "compiled" not in way or compiler_found(torch.device("cpu"))]
    for way in ways:
        if (theirs := peer(args.width, args.depth)) is None:
            break
        tasks[f"transfusion-pytorch {way}"] = their_step(theirs, rows, way)
        sizes["transfusion-pytorch"] = parameters(theirs)
    if sizes:  # ours gets as many parameters, in its MLPs
        spare = sizes["transfusion-pytorch"] - parameters(hybrid(args.width, args.depth, 64))
        inner = 64 + round(spare / (3 * args.width * args.depth) / 64) * 64
    for way in ways:
        model = hybrid(args.width, args.depth, inner)
        tasks[f"hybridgen {way}"], sizes["hybridgen"] = our_step(model, rows, way), parameters(model)
    seconds = medians(tasks, args.repeat)
    best = {
        name: min(value for task, value in seconds.items() if task.startswith(name)) for name in sizes
    }  # fastest way
    base, work = best.get("transfusion-pytorch", best["hybridgen"]), flops(model, rows)
    lines = [
        {"what": name, "seconds": value, "times the peer's fastest": base / value} for name, value in seconds.items()
    ]
    machine, ours = measure(args.repeat), [name for name in tasks if name.startswith("hybridgen")]
    precisions = {name: "bf16" if "bf16" in name else "fp32" for name in ours}
    moving = moved(sizes["hybridgen"])
    floors = [against(machine, name, precisions[name], work, moving, seconds[name]) for name in ours]
    times = [where(name, tasks[name]) for name in ours]
    counted = ", ".join(f"{name} {count / 1e6:.1f} M parameters" for name, count in sizes.items())
    table(f"a training step of {len(rows)} rows; {counted}; {work / 1e9:.0f} GFLOP", lines)
    print(f"\nfastest against fastest: hybridgen is {base / best['hybridgen']:.2f} times as fast")
    table("a training step beside what it needs at least", floors)
    table("where the time goes", times)
    result = {"surroundings": surroundings(), "machine": vars(machine), "parameters": sizes, "rows": lines}
    result |= {"floors": floors, "where": times}
    args.out.write_text(json.dumps(result, indent=2) + "\n")
    print(f"\nwritten to {args.out}")


if __name__ == "__main__":
    main()
