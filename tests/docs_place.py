"""The folder in which the blocks of the README and of docs/ are run: what they name, small and untrained. Not a test
itself.

`runs/demo` is the demo's folder as it is before the first step of training; folders of pretrained models hold tiny
random ones under the names that the pages use; data files hold a few records of each form.
"""

import io
import json
import os
import shutil
import tarfile
from pathlib import Path

import pyarrow
import pyarrow.parquet
import torch
from diffusers import AutoencoderKL
from transformers import Siglip2VisionConfig, Siglip2VisionModel

from hybridgen.cli.demo import save_untrained_pipeline
from tests import chameleons, januses, llavas
from tests.bridges.test_assemble import TOWER, save_backbone
from tests.pipelines import tiny_pipeline, tiny_vae
from tests.processors import picture

ROOT = Path(__file__).parents[1]
SIDE, RECORDS = 32, 4


def make(folder: Path) -> Path:
    """Everything that the pages name. About fifteen seconds on a core."""
    _repository(folder)
    save_untrained_pipeline(folder / "runs" / "demo")
    januses.save_transformers(folder / "Janus-Pro-1B")
    chameleons.save_transformers(folder / "chameleon-7b")
    torch.save({"state_dict": chameleons.tiny_decoder()}, folder / "vqgan.ckpt")
    llavas.save_transformers(folder / "llava-1.5-7b-hf")
    tiny_pipeline(diffusion_config=None, vq_config=None).save_pretrained(folder / "runs" / "reader" / "checkpoint")
    save_backbone(folder / "Qwen3-0.6B", "qwen3")
    save_backbone(folder / "Llama-3.2-1B", "llama")
    torch.manual_seed(6)
    Siglip2VisionModel(Siglip2VisionConfig(**TOWER, num_patches=4)).save_pretrained(folder / "siglip2-base-patch16-384")
    for name in ("sd3/vae", "sdxl/vae"):
        tiny_vae().save_pretrained(folder / name)
    vae = {"block_out_channels": (4,) * 4, "norm_num_groups": 2, "latent_channels": 8, "layers_per_block": 1}
    vae |= {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    AutoencoderKL(**vae).save_pretrained(folder / "my_vae")
    _data(folder)
    return folder


def copy(place: Path, folder: Path) -> Path:
    """A place of its own for one page. Files are hard links: whoever changes one writes a new file in its stead."""
    return Path(shutil.copytree(place, folder, symlinks=True, copy_function=os.link))


def _repository(folder: Path) -> None:
    """The repository's own files, as links; configs one by one, so that a page may put its own beside them."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "constraints-oldest.txt", "scripts", "hybridgen"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "configs").mkdir()
    for file in (ROOT / "configs").iterdir():
        (folder / "configs" / file.name).symlink_to(file)


def _data(folder: Path) -> None:
    images = {f"{number:04}.png": picture(SIDE, SIDE, number) for number in range(1, RECORDS + 1)}
    for place in (folder, folder / "pictures"):
        place.mkdir(exist_ok=True)
        for name, image in images.items():
            image.save(place / name)
    captions = {name: f"picture {name} of many colours" for name in images}
    _lines(folder / "pictures" / "metadata.jsonl", [{"file_name": n, "text": t} for n, t in captions.items()])

    line = {
        "tag": "colors",
        "prompt": "a photo of a red dog",
        "include": [{"class": "dog", "count": 1, "color": "red"}],
    }
    _lines(folder / "evaluation_metadata.jsonl", [line] * RECORDS)

    def turns(asked, answered) -> dict:
        return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]}

    def image(name: str) -> dict:
        return {"type": "image", "image": name}

    pairs = [turns(text, [image(name)]) for name, text in captions.items()]
    questions = [turns([image(name), {"type": "text", "text": "which colour?"}], "red") for name in images]
    for file, rows in {
        "pairs.jsonl": pairs,
        "held_out.jsonl": pairs,
        "questions.jsonl": questions,
        "chats.jsonl": questions,
        "text.jsonl": [{"text": f"the largest city is number {number}"} for number in range(RECORDS)],
        "mmc4.jsonl": [
            {"text_list": ["one", "two"], "image_info": [{"image_name": name, "matched_text_index": 1}]}
            for name in images
        ],
    }.items():
        _lines(folder / file, rows)
    table = "".join(f"{name},{text}\n" for name, text in captions.items())
    (folder / "pairs.csv").write_text(f"image,words\n{table}", encoding="utf-8")
    turn = [{"from": "human", "value": "<image>\nwhat is it?"}, {"from": "gpt", "value": "a circle"}]
    llava = [{"image": name, "conversations": turn} for name in images]
    for file in ("llava_v1_5_mix665k.json", "blip_laion_cc_sbu_558k.json"):
        (folder / file).write_text(json.dumps(llava))
    (folder / "corpus").mkdir()
    for number in range(RECORDS):
        (folder / "corpus" / f"{number}.txt").write_text(f"the largest city\nis number {number}\n")
    _table(
        folder / "web" / "0.parquet", [{"text": f"the largest city is number {number}"} for number in range(RECORDS)]
    )
    encoded = {name: _png(image) for name, image in images.items()}
    _table(folder / "rows" / "0.parquet", [{"picture": encoded[n], "words": t} for n, t in captions.items()])
    _table(folder / "obelics" / "0.parquet", [{"texts": ["one", None], "images": [None, encoded[n]]} for n in images])
    _table(folder / "owner/name/train.parquet", [{"image": encoded[n], "text": t} for n, t in captions.items()])
    for shard in range(8):
        _shard(folder / "shards" / f"{shard:03}.tar", encoded, captions)


def _lines(file: Path, rows: list[dict]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _png(image) -> bytes:
    file = io.BytesIO()
    image.save(file, format="png")
    return file.getvalue()


def _table(file: Path, rows: list[dict]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)


def _shard(file: Path, encoded: dict[str, bytes], captions: dict[str, str]) -> None:
    file.parent.mkdir(exist_ok=True)
    with tarfile.open(file, "w") as tar:
        for name, data in encoded.items():
            key = Path(name).stem
            for member, content in (
                (f"{key}.png", data),
                (f"{key}.json", json.dumps({"caption": captions[name]}).encode()),
            ):
                entry = tarfile.TarInfo(member)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
