"""How fast data are read and packed, and whether each process reads no more than it trains on.

    python scripts/bench_data.py [--processes 1 8 64] [--pictures 96] [--size 1024] [--batches 3]

Processes are simulated: the loader of the first of W is run, alone, on one core and without threads, for the rows that
it would have among W. Prints, from one run, so that ratios hold on a busy machine too:

    decoded     pictures decoded for each picture that the process trains on (aim 1.0)
    tokens      tokens a second of packed text rows, at each number of processes (aim: the same)
    pictures    pictures a second and core that are read, decoded, resized to 512 pixels and put into a batch, beside
                Pillow alone: open, decode, resize (aim: at least 0.9 of it)
    opened      microseconds of CPU and bytes of memory for a record of a source that is opened, by format; a tar first
                without an index of it on disk, then with one
"""

import argparse
import io
import json
import random
import statistics
import tarfile
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from hybridgen.core import pictures as reader
from hybridgen.data.loading import RowLoader
from hybridgen.data.mixture import Mixture
from hybridgen.data.source_config import SourceConfig
from hybridgen.data.sources import open_source
from hybridgen.processing_hybridgen import HybridGenImageProcessor, HybridGenProcessor, build_tokenizer

WORDS = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8").split()
SIDE = 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--pictures", type=int, default=96, help="JPEG files that are made and read")
    parser.add_argument("--size", type=int, default=1024, help="pixels along a side of them")
    parser.add_argument("--batches", type=int, default=3, help="of text, for each number of processes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rng = random.Random(0)
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(20, 900))) for _ in range(2000)]
    with tempfile.TemporaryDirectory() as folder:
        processor = make_processor(texts[:300])
        files = make_files(Path(folder), texts, options.pictures, options.size)
        for processes in options.processes:
            decoded, own = count_decoded(Path(folder), processor, processes)
            print(f"decoded   {processes:3} processes: {decoded / own:.2f} pictures for each of its own {own}")
        text_speed(Path(folder), processor, options.processes, options.batches)
        picture_speed(Path(folder), processor, files)
        opening_costs(Path(folder) / "opened", 5000)


def make_processor(texts: list[str]) -> HybridGenProcessor:
    """Of the diffusion path in 512 pixels, and of text."""
    return HybridGenProcessor(
        HybridGenImageProcessor(), build_tokenizer(texts, 4000), diffusion_token_size=32, default_size=(SIDE, SIDE)
    )


def make_files(folder: Path, texts: list[str], pictures: int, size: int) -> list[Path]:
    """`text.jsonl`, and `pairs.jsonl` with the pictures that it names: smooth ones with noise, as photographs are."""
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    files, rng = [folder / f"{number}.jpg" for number in range(pictures)], np.random.default_rng(0)
    for file in files:
        coarse = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).resize((size, size))
        noise = rng.normal(0, 6, (size, size, 3))
        Image.fromarray((np.asarray(coarse) + noise).clip(0, 255).astype(np.uint8)).save(file, quality=90)
    lines = [{"image": file.name, "text": "a picture"} for file in files]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return files


def loader(file: Path, processor: HybridGenProcessor, processes: int, rows: int, length: int, **source) -> RowLoader:
    mixture = Mixture([open_source(SourceConfig(str(file), name=file.stem, **source))])
    return RowLoader(mixture, processor, rows, length, 0, processes, prefetch=0)


def count_decoded(folder: Path, processor: HybridGenProcessor, processes: int) -> tuple[int, int]:
    """Files that were decoded for two batches, and the pictures in these."""
    count, load = [], reader._load

    def counted(image: Image.Image) -> None:
        count.append(getattr(image, "fp", None) is not None)  # what is decoded already has none
        load(image)

    batches = loader(folder / "pairs.jsonl", processor, processes, 2, 1200, write="diffusion")
    reader._load = counted
    try:
        own = sum(len(next(batches)["diffusion_images"]) for _ in range(2))
    finally:
        reader._load = load
    return sum(count), own


def text_speed(folder: Path, processor: HybridGenProcessor, processes: list[int], batches: int) -> None:
    """All numbers of processes in turn, batch by batch, so that each meets the same machine."""
    loaders = [loader(folder / "text.jsonl", processor, count, 4, 4096) for count in processes]
    for each in loaders:
        next(each)
    speeds: list[list[float]] = [[] for _ in loaders]
    for _ in range(batches):
        for each, measured in zip(loaders, speeds, strict=True):
            start = time.perf_counter()
            tokens = int((next(each)["document_ids"] >= 0).sum())
            measured.append(tokens / (time.perf_counter() - start))
    first = statistics.median(speeds[0])
    for count, each, measured in zip(processes, loaders, speeds, strict=True):
        speed = statistics.median(measured)
        line = f"tokens    {count:3} processes: {speed:,.0f} a second, {speed / first:.2f} of the first"
        print(f"{line}; rows {each.fill_rate():.1%} full")


def picture_speed(folder: Path, processor: HybridGenProcessor, files: list[Path]) -> None:
    """Ours and Pillow's in turn."""
    pictures = loader(folder / "pairs.jsonl", processor, 1, 1, 4 * 270, write="diffusion")

    def ours() -> int:
        return len(next(pictures)["diffusion_images"])

    def pillow() -> int:
        for file in files[:4]:
            with Image.open(file) as image:
                np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC))
        return 4

    ours()
    rates: dict[Callable[[], int], list[float]] = {ours: [], pillow: []}
    for _ in range(max(3, len(files) // 4)):
        for make, measured in rates.items():
            start = time.perf_counter()
            measured.append(make() / (time.perf_counter() - start))
    mine, theirs = (statistics.median(measured) for measured in rates.values())
    print(f"pictures  {mine:.1f} a second in batches, Pillow alone {theirs:.1f}: {mine / theirs:.2f} of it")


def opening_costs(folder: Path, count: int) -> None:
    """Of each format, with pictures that are not decoded."""
    for kind in ("folder", "metadata"):
        (folder / kind).mkdir(parents=True)
    words = "what a caption of some length says of the picture that stands beside it"
    with tarfile.open(folder / "a.tar", "w") as tar:
        for number in range(count):
            for suffix, content in ((".jpg", bytes(2000)), (".txt", words.encode())):
                member = tarfile.TarInfo(f"{number:07}{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
                (folder / "folder" / member.name).write_bytes(content)
            (folder / "metadata" / f"{number:07}.jpg").touch()
    rows = [{"file_name": f"{number:07}.jpg", "text": words} for number in range(count)]
    (folder / "metadata" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": words}) + "\n" for _ in rows))
    index = folder / "index"
    for name, source in (
        ("jsonl", "a.jsonl"), ("tar", "a.tar"), ("tar, again", "a.tar"), ("folder of .txt", "folder/"),
        ("folder of metadata", "metadata/"),
    ):  # fmt: skip
        config, start = SourceConfig(f"{folder}/{source}"), time.process_time()
        open_source(config, index=index)
        took = (time.process_time() - start) / count
        tracemalloc.start()
        kept = open_source(config, index=index)
        size = tracemalloc.get_traced_memory()[0] / len(kept)
        tracemalloc.stop()
        print(f"opened    {name:18} {took * 1e6:5.1f} microseconds and {size:3.0f} bytes a record")


if __name__ == "__main__":
    main()
