#!/usr/bin/env python
"""How fast hybridgen draws, against what one would run instead, and against the floor that matrices alone set.

    python scripts/bench_sampling.py [answers] [codes] [denoise] [linear] [--threads N] [--repeat 5] [--side 8]
                                     [--steps 16] [--batch 1 8] [--compile] [--out FILE]

- answers: greedy text after a prompt, beside transformers' Janus on the same weights, as it is and in its fastest way
  (bf16, a static cache and, with `--compile`, compiled); the words are compared in float32.

- codes: by vq with guidance 5, beside transformers' `JanusForConditionalGeneration.generate` on the same weights; the
  codes are compared. The floor is the time of the linear layers alone, run one after another on the same shapes by
  torch; packed weights are read faster than that, so a share may be above 100 %.
- denoise: by diffusion with guidance 3, beside transfusion-pytorch's `sample_many`, in float32 and in bf16 (autocast;
  with `--compile` its transformer compiled), at the same depth and tokens, and twice: at equal width, each with its
  usual MLP, and at equal parameters, ours in the MLPs (of transfusion-pytorch's, those that condition on time are
  multiplied once an image, not once a token). `pip install transfusion-pytorch`; left out where it is not there. The
  work is not the same a step: `modality_steps` S is S points of time, S - 1 intervals, and its ODE solver (midpoint)
  evaluates the network twice in each, so 2 S - 2 evaluations stand against the S of our Euler, and each is of as many
  guided rows (it runs them one after the other, we at once). Both ratios are given: `times` at equal steps, and
  `times an evaluation`. - linear: time a picture over the number of steps, and over the length of the prompt.

Below the first two: a step beside what its multiplications and its bytes (weights, and the keys and values of the
prefix) need at least on this machine (`bench_floor`), and where the time goes. `hybridgen model` copies no weights;
fp32 and bf16 copy them once, before the clock starts.

Seconds are of CPU time; ratios are of the shortest of `--repeat` runs, taken in turns in one process. Weights are
random, as time does not depend on them. Seconds are of this machine; ratios are what carries over.
"""

import argparse
import copy
import itertools
import json
import platform
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from bench_floor import ITEM, Machine, against, measure, where

from hybridgen import HybridGenConfig, HybridGenForConditionalGeneration
from hybridgen.bridges.janus.configs import hybrid_config
from hybridgen.core.layout import PADDING_DOCUMENT
from hybridgen.core.noise import NoiseProcess
from hybridgen.sampling.codes import CodeSampling, write_codes
from hybridgen.sampling.decoder import PRECISIONS, Decoder
from hybridgen.sampling.denoise import draw_latents
from hybridgen.sampling.prefix import Prefix, prefill
from hybridgen.sampling.seeds import image_generators
from hybridgen.sampling.tasks import run
from hybridgen.sampling.text import TextWriting

WIDTH, DEPTH, HEADS, INNER = 512, 8, 8, 1408
BOS, PAD, BEGIN = 0, 1, 2  # ids in the vocabularies below


def shortest(tasks: dict[str, Callable[[], object]], repeat: int) -> dict[str, float]:
    """CPU seconds of the shortest run of each task, in turns, after one that warms it up."""
    best = dict.fromkeys(tasks, float("inf"))
    for turn in range(repeat + 1):
        for name, task in tasks.items():
            start = time.process_time()
            task()
            if turn:
                best[name] = min(best[name], time.process_time() - start)
    return best


def read(model: HybridGenForConditionalGeneration, prompts: list[list[int]], decoder: Decoder | None = None) -> Prefix:
    """Prompts of token ids, one a row, padded on the left."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[PAD] * (longest - len(prompt)) + prompt for prompt in prompts])
    real = torch.tensor([[False] * (longest - len(prompt)) + [True] * len(prompt) for prompt in prompts])
    return prefill(
        model,
        input_ids=ids,
        document_ids=torch.where(real, 0, PADDING_DOCUMENT),
        block_ids=torch.arange(longest).expand_as(ids),
        position_ids=(real.long().cumsum(1) - 1).clamp(min=0),
        decoder=decoder,
    )


def words(count: int, seed: int = 0) -> list[int]:
    """A prompt of so many words."""
    return torch.randint(16, 900, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


# ----------------------------------------------------------------------------------------------------------- answers


def bench_answers(repeat: int, machine: Machine, compiled: bool = False, length: int = 64, new: int = 48) -> dict:
    theirs, ours = janus(8)
    half, prompt = copy.deepcopy(theirs).bfloat16(), [BOS, *words(length - 1)]
    ids, decoders = torch.tensor([prompt]), {precision: Decoder(ours, precision) for precision in PRECISIONS}

    def generate(model, **options) -> list[int]:
        greedy = {"do_sample": False, "min_new_tokens": new, "max_new_tokens": new, "generation_mode": "text"}
        return model.generate(ids, attention_mask=torch.ones_like(ids), **greedy, **options)[0, length:].tolist()

    def answer(precision: str) -> list[int]:
        decoder, nothing = decoders[precision], torch.tensor([3])  # no end before its time, as `min_new_tokens`
        prefix = read(ours, [prompt], decoder)
        writing = TextWriting(ours, prefix, new, lambda logits, rows: logits.argmax(-1), nothing, set(), decoder)
        while not writing.done:
            run(writing.step())
        return writing.written[0]

    static = {"cache_implementation": "static", "disable_compile": not compiled}
    fastest = "transformers bf16, static cache" + ", compiled" * compiled
    tasks = {"transformers": lambda: generate(theirs), fastest: lambda: generate(half, **static)}
    tasks |= {f"hybridgen {precision}": lambda precision=precision: answer(precision) for precision in PRECISIONS}
    seconds, same = shortest(tasks, repeat), answer("model") == generate(theirs)
    quickest = min(value for name, value in seconds.items() if name.startswith("transformers"))
    rows = [
        {"what": name, "seconds": value, "times transformers": seconds["transformers"] / value}
        | {"times its fastest": quickest / value}
        for name, value in seconds.items()
    ]
    table(f"answers: {new} words after {length} tokens, hidden {WIDTH}, {DEPTH} layers, 1,024 words", rows)
    print(f"  the words are transformers': {same}")
    return {"rows": rows, "same words": same}


# ------------------------------------------------------------------------------------------------------------- codes


def janus(side: int):
    """A random Janus of transformers, and ours with its weights."""
    from transformers import JanusConfig, JanusForConditionalGeneration

    torch.manual_seed(0)
    text = {"model_type": "llama", "vocab_size": 1024, "hidden_size": WIDTH, "intermediate_size": INNER}
    text |= {"num_hidden_layers": DEPTH, "num_attention_heads": HEADS, "num_key_value_heads": HEADS}
    text |= {"bos_token_id": BOS, "eos_token_id": 3, "pad_token_id": PAD}
    vision = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "projection_dim": WIDTH}
    vision |= {"image_size": 8 * side, "patch_size": 8, "num_image_tokens": side * side}
    vq = {"embed_dim": 8, "num_embeddings": 16384, "projection_dim": WIDTH, "image_token_embed_dim": WIDTH}
    vq |= {"base_channels": 32, "channel_multiplier": [1, 1], "num_res_blocks": 1, "latent_channels": 32}
    theirs = JanusForConditionalGeneration(JanusConfig(text_config=text, vision_config=vision, vq_config=vq)).eval()
    torch.nn.init.normal_(theirs.model.generation_head.vision_head.weight, std=0.2)  # codes far from a tie
    torch.nn.init.normal_(theirs.model.generation_embeddings.weight)
    generation = theirs.generation_config
    generation.pad_token_id, generation.bos_token_id, generation.eos_token_id = PAD, BOS, 3
    generation.generation_kwargs = {"boi_token_id": BEGIN}
    ours = HybridGenForConditionalGeneration(hybrid_config(theirs.config, {})).eval()
    ours.load_state_dict({k: v for k, v in theirs.state_dict().items() if not k.startswith("model.vqmodel.")})
    return theirs, ours


def linear_floor(model: HybridGenForConditionalGeneration, rows: int, tokens: int) -> Callable[[], None]:
    """The linear layers of `tokens` steps of the code loop, and nothing else."""
    layers = model.model.language_model.layers
    head, aligner = model.model.generation_head, model.model.generation_aligner
    chain = [part for layer in layers for part in (layer.self_attn, layer.mlp)]
    weights = [w.weight for part in chain for w in part.modules() if isinstance(w, torch.nn.Linear)]
    weights += [w.weight for part in (head, aligner) for w in part.modules() if isinstance(w, torch.nn.Linear)]
    inputs = {weight.shape[1]: torch.randn(rows, weight.shape[1]) for weight in weights}

    @torch.no_grad()
    def run() -> None:
        for _ in range(tokens):
            for weight in weights:
                torch.nn.functional.linear(inputs[weight.shape[1]], weight)

    return run


def bench_codes(repeat: int, machine: Machine, side: int = 8) -> dict:
    theirs, ours = janus(side)
    tokens, prompt = side * side, [BOS, *words(30), BEGIN]
    silent = [BOS, *[PAD] * 30, BEGIN]  # transformers' unconditional row
    ids = torch.tensor([prompt])
    decoders = {precision: Decoder(ours, precision) for precision in PRECISIONS}

    def draw(precision: str) -> torch.Tensor:
        generators = image_generators(1, 0)
        return write_codes(
            ours,
            read(ours, [prompt, silent], decoders[precision]),
            tokens,
            generators,
            CodeSampling(temperature=0),
            5.0,
            decoder=decoders[precision],
        )

    def generate() -> torch.Tensor:
        return theirs.generate(
            ids, attention_mask=torch.ones_like(ids), generation_mode="image", do_sample=False, guidance_scale=5.0,
            max_length=ids.shape[1],
        )  # fmt: skip

    tasks = {"transformers": generate, "linear layers alone": linear_floor(ours, 2, tokens)}
    tasks |= {f"hybridgen {precision}": lambda precision=precision: draw(precision) for precision in PRECISIONS}
    seconds = shortest(tasks, repeat)
    base, floor, ours_plain = seconds["transformers"], seconds["linear layers alone"], seconds["hybridgen model"]
    same = {precision: float((draw(precision) == generate()).float().mean()) for precision in PRECISIONS}
    rows = [{"what": name, "seconds": value, "times transformers": base / value} for name, value in seconds.items()]
    table("codes: one picture, guidance 5, " + f"{tokens} codes, hidden {WIDTH}, {DEPTH} layers, 16,384 codes", rows)
    print(f"  of the floor that linear layers set: {floor / ours_plain:.0%}; codes as transformers': {same}")
    weights = inside(ours) + parameters(ours.model.generation_head) + parameters(ours.model.generation_aligner)
    floors = [
        against(machine, name, name, 4 * weights, weights * ITEM[name], seconds[f"hybridgen {name}"] / tokens)
        for name in PRECISIONS
    ]
    table("codes: one code beside what it needs at least (two rows)", floors)
    times = [where(name, lambda name=name: draw(name)) for name in ("model", "fp32")]
    table("codes: where the time goes", times)
    result = {"rows": rows, "share of the linear floor": floor / ours_plain, "same codes": same}
    return result | {"floors": floors, "where": times}


# ----------------------------------------------------------------------------------------------------------- denoise


def hybrid(tokens_side: int, channels: int, inner: int) -> HybridGenForConditionalGeneration:
    torch.manual_seed(0)
    text = {"model_type": "qwen3", "vocab_size": 1024, "hidden_size": WIDTH, "intermediate_size": inner}
    text |= {"num_hidden_layers": DEPTH, "num_attention_heads": HEADS, "num_key_value_heads": HEADS, "head_dim": 64}
    text |= {"max_position_embeddings": 4096, "tie_word_embeddings": True}
    diffusion = {"in_channels": channels, "patch_size": 1, "sample_size": tokens_side}
    model = HybridGenForConditionalGeneration(HybridGenConfig(text_config=text, diffusion_config=diffusion)).eval()
    torch.nn.init.normal_(model.model.final_layer.linear.weight, std=0.02)
    return model


def parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def inside(model: HybridGenForConditionalGeneration) -> int:
    """Weights of the layers' matrices."""
    return sum(p.numel() for p in model.model.language_model.layers.parameters() if p.ndim == 2)


def denoiser(model, prompt: list[int], side: int, steps: int, images: int, decoder: Decoder | None = None):
    scheduler = NoiseProcess.of(model.config.diffusion_config).default_scheduler("velocity")

    def run() -> torch.Tensor:
        prefix = read(model, [prompt, [BOS, BEGIN]], decoder)
        prefix = prefix.select(torch.arange(2).repeat_interleave(images))
        generators = image_generators(images, 0)
        return draw_latents(model, prefix, scheduler, steps, (side, side), generators, 3.0, decoder=decoder)

    return run


def bench_denoise(
    repeat: int,
    machine: Machine,
    side: int = 8,
    steps: int = 16,
    batches: tuple[int, ...] = (1, 8),
    channels: int = 16,
    compiled: bool = False,
) -> dict | None:
    try:
        from transfusion_pytorch import Transfusion
    except ImportError as error:
        print(f"denoise: left out, transfusion-pytorch cannot be imported ({error})")
        return None
    torch.manual_seed(0)
    transformer = {"dim": WIDTH, "depth": DEPTH, "dim_head": 64, "heads": HEADS}
    shape, precisions = (side, side), ("model", "fp32", "bf16")
    theirs = Transfusion(
        num_text_tokens=1024, transformer=transformer, dim_latent=channels, modality_default_shape=shape
    ).eval()
    spare = parameters(theirs) - parameters(hybrid(side, channels, 64))
    inner = 64 + round(spare / (3 * WIDTH * DEPTH) / 64) * 64  # ours gets as many parameters, in its MLPs
    if compiled:
        theirs.transformer = torch.compile(theirs.transformer)
    prompt, results = words(30), {}
    for images, (equal, size) in itertools.product(batches, (("parameters", inner), ("width", INNER))):
        ours = hybrid(side, channels, size)
        decoders = {precision: Decoder(ours, precision) for precision in precisions}
        prompts = [torch.tensor(prompt) for _ in range(images)]

        def sample_many(prompts=prompts):
            return theirs.sample_many(
                prompts, max_length=len(prompt), fixed_modality_shape=shape, force_modality_at_start=(0, shape),
                modality_steps=steps, cfg_scale=3.0,
            )  # fmt: skip

        def in_half():
            with torch.autocast("cpu", torch.bfloat16):
                return sample_many()

        tasks = {"transfusion-pytorch": sample_many, "transfusion-pytorch bf16": in_half}
        evaluations = dict.fromkeys(tasks, 2 * (steps - 1))
        for precision in precisions:
            tasks[precision] = denoiser(ours, [BOS, *prompt, BEGIN], side, steps, images, decoders[precision])
        seconds = shortest(tasks, repeat)
        base, fastest = seconds["transfusion-pytorch"], min(seconds[name] for name in evaluations)
        rows = [
            {"what": name, "seconds": value, "evaluations": evaluations.get(name, steps), "times": base / value}
            | {"times an evaluation": base / value * evaluations.get(name, steps) / (2 * (steps - 1))}
            | {"times its fastest": fastest / value}
            for name, value in seconds.items()
        ]
        sizes = f"{parameters(theirs) / 1e6:.1f} M and {parameters(ours) / 1e6:.1f} M parameters"
        what = (
            f"denoise: {images} picture(s) of {side * side} tokens, {steps} steps, guidance 3, equal {equal}, {sizes}"
        )
        table(what, rows)
        tokens, keys = 2 * images * side * side, 2 * images * (side * side + 32)
        flop = 2 * tokens * inside(ours) + 4 * DEPTH * WIDTH * tokens * keys / (2 * images)
        floors = [
            against(
                machine, name, name, flop, inside(ours) * ITEM[name] + 8 * DEPTH * WIDTH * keys, seconds[name] / steps
            )
            for name in precisions
        ]
        table("denoise: a step beside what it needs at least (its share of the first pass included)", floors)
        times = [where(name, tasks[name]) for name in precisions]
        table("denoise: where the time goes (the first pass included)", times)
        results[f"batch {images}, equal {equal}"] = {"rows": rows, "floors": floors, "where": times}
    return results


def bench_linear(repeat: int, machine: Machine, side: int = 16, channels: int = 16) -> dict:
    """Time over steps, and over the prompt's length: the first pass apart from the steps."""
    model, results = hybrid(side, channels, INNER), {"steps": [], "prompt": []}
    for steps in (4, 8, 16, 32, 64):
        seconds = shortest({"": denoiser(model, [BOS, *words(30), BEGIN], side, steps, 1)}, repeat)[""]
        results["steps"].append({"steps": steps, "seconds": seconds, "seconds a step": seconds / steps})
    table("linear: one picture over its steps", results["steps"])
    for length in (16, 128, 512, 2048):
        prompt = [BOS, *words(length - 2), BEGIN]
        tasks = {"first": lambda prompt=prompt: read(model, [prompt, [BOS, BEGIN]])}
        tasks |= {steps: denoiser(model, prompt, side, steps, 1) for steps in (4, 20)}
        seconds = shortest(tasks, repeat)
        a_step = (seconds[20] - seconds[4]) / 16
        results["prompt"].append({"prompt tokens": length, "first pass": seconds["first"], "seconds a step": a_step})
    table("linear: a step over the prompt's length", results["prompt"])
    return results


# ------------------------------------------------------------------------------------------------------------ report


def table(title: str, rows: list[dict]) -> None:
    print(f"\n{title}")
    widths = {name: max(len(name), *(len(_cell(row[name])) for row in rows)) for name in rows[0]}
    print("  " + "  ".join(name.ljust(width) for name, width in widths.items()))
    for row in rows:
        print("  " + "  ".join(_cell(row[name]).ljust(width) for name, width in widths.items()), flush=True)


def _cell(value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def surroundings() -> dict:
    packages = ("hybridgen", "torch", "transformers", "diffusers", "transfusion-pytorch")
    cpu = next((x.split(":")[1].strip() for x in _lines("/proc/cpuinfo") if x.startswith("model name")), "")
    return {
        "date": time.strftime("%Y-%m-%d"), "python": platform.python_version(), "cpu": cpu or platform.processor(),
        "threads": torch.get_num_threads(), "versions": {name: installed(name) for name in packages},
    }  # fmt: skip


def _lines(file: str) -> list[str]:
    return Path(file).read_text().splitlines() if Path(file).exists() else []


BENCHES = {"answers": bench_answers, "codes": bench_codes, "denoise": bench_denoise, "linear": bench_linear}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", help=f"any of {', '.join(BENCHES)}; all when none is named")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--side", type=int, default=8, help="tokens a side of a denoised picture (default: 8)")
    parser.add_argument("--steps", type=int, default=16, help="of denoising (default: 16)")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8], help="pictures at once (default: 1 8)")
    parser.add_argument("--compile", action="store_true", help="compile the others' models (minutes)")
    parser.add_argument("--out", type=Path, default=Path("bench_sampling.json"))
    args = parser.parse_args()
    if unknown := [name for name in args.what if name not in BENCHES]:
        sys.exit(f"there is no bench {unknown[0]!r}; choose among {', '.join(BENCHES)}")
    if args.threads:
        torch.set_num_threads(args.threads)
    machine = measure(args.repeat)
    result = {"surroundings": surroundings(), "machine": vars(machine)}
    options = {"denoise": {"side": args.side, "steps": args.steps, "batches": args.batch, "compiled": args.compile}}
    options["answers"] = {"compiled": args.compile}
    for name in args.what or BENCHES:
        result[name] = BENCHES[name](args.repeat, machine, **options.get(name, {}))
    args.out.write_text(json.dumps(result, indent=2) + "\n")
    print(f"\nwritten to {args.out}")


if __name__ == "__main__":
    main()
