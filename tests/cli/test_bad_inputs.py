"""Bad inputs of every command, each with the one sentence it must print.

A row is a name, the words of a command line ({tmp} a new folder, {ck} a tiny checkpoint, {good} a config that works,
...), a regular expression of the sentence, and how the input is made. Of every row it is held that

- the exit code is 2, stdout is empty, stderr is exactly one line, which begins with "hybridgen: ";
- no library warned or logged anything before it;
- nothing heavy was begun: no model is built or loaded where the mistake is in an argument, a config or a file beside it
  (`loads` = the mistake shows only in the weights or once the checkpoint is known);
- nothing was written where results go.
"""

import gc
import io
import json
import logging
import os
import pickle
import re
import shutil
import struct
import sys
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from PIL import Image, PngImagePlugin
from safetensors.torch import save_file

from hybridgen import HybridGenForConditionalGeneration
from tests.models import MODEL_CONTENT

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 4178928912\n"
HTML = "<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>\n"
SAMPLE = "--prompt elf --steps 1 --out {tmp}/out"
ASK = "ask {tmp}/ck --image {doll} --question what"


@dataclass
class Bad:
    """Args: words: of the command line, separated by spaces. sentence: a regular expression. make: called with the new
    folder, which it fills. loads: whether a model may be loaded before the mistake shows."""

    words: str
    sentence: str
    make: Callable[[Path], None] = lambda tmp: None
    loads: bool = False
    stdin: bytes | None = None


# fmt: off
# --------------------------------------------------------------------------------------------------- arguments

ARGUMENTS = {
    "no command": Bad("", "required: COMMAND"),
    "an unknown command": Bad("draw", "invalid choice: 'draw'"),
    "an unknown option": Bad("ask {ck} --image {doll} --question x --colour red", "unrecognized arguments: --colour"),
    "a missing option": Bad("sample {ck} --out {tmp}/out", "give --prompt, or --prompts FILE with one a row"),
    "an option without its value": Bad("sample {ck} --out {tmp}/out --prompt", "--prompt: expected one argument"),
    "steps 0": Bad("sample {ck} {sample} --steps 0", "--steps: '0' is not a whole number of at least 1"),
    "steps -1": Bad("sample {ck} {sample} --steps=-1", "--steps: '-1' is not a whole number of at least 1"),
    "steps 2.5": Bad("sample {ck} {sample} --steps 2.5", "--steps: '2.5' is not a whole number"),
    "steps 1e3": Bad("sample {ck} {sample} --steps 1e3", "--steps: '1e3' is not a whole number"),
    "steps in other digits": Bad("sample {ck} {sample} --steps ٣", "--steps: '٣' is not a whole number"),
    "steps of a hundred digits": Bad(f"sample {{ck}} {{sample}} --steps {'9' * 100}", r"--steps: '999+\.\.\.' is not"),
    "guidance nan": Bad("sample {ck} {sample} --guidance nan", "--guidance: 'nan' is not a number of at least 0"),
    "guidance inf": Bad("sample {ck} {sample} --guidance inf", "--guidance: 'inf' is not a number of at least 0"),
    "guidance 1e400": Bad("sample {ck} {sample} --guidance 1e400", "--guidance: '1e400' is not a number"),
    "guidance -1": Bad("sample {ck} {sample} --guidance=-1", "--guidance: '-1' is not a number of at least 0"),
    "guidance in words": Bad("sample {ck} {sample} --guidance high", "--guidance: 'high' is not a number"),
    "rescale 2": Bad("sample {ck} {sample} --guidance-rescale 2", "--guidance-rescale: '2' is not a number from 0 to 1"),
    "interval beyond 1": Bad("sample {ck} {sample} --guidance-interval 0 1.5", "'1.5' is not a number from 0 to 1"),
    "interval backwards": Bad("sample {ck} {sample} --guidance-interval .8 .2", r"--guidance-interval is \[0.8, 0.2\]; it ends before"),
    "top-p 2": Bad("sample {ck} --prompt elf --path vq --out {tmp}/out --top-p 2", "--top-p: '2' is not a number above 0 and at most 1"),
    "top-p 0": Bad("sample {ck} --prompt elf --path vq --out {tmp}/out --top-p 0", "--top-p: '0' is not a number above"),
    "height 1000000": Bad("sample {ck} {sample} --height 1000000", "--height: '1000000' is not a whole number from 1 to"),
    "width 0": Bad("sample {ck} {sample} --width 0", "--width: '0' is not a whole number from 1"),
    "three heights for one prompt": Bad(
        "sample {ck} {sample} --height 32 --height 64 --height 32", "--height is given 3 times for 1 prompts"
    ),
    "num-images 1e9": Bad("sample {ck} {sample} --num-images 1000000000", "--num-images: '1000000000' is not .* to 1000000"),
    "num-images 0": Bad("sample {ck} {sample} --num-images 0", "--num-images: '0' is not a whole number from 1"),
    "samples 1e9": Bad("evaluate {ck} --suite dolls --out {tmp}/out --samples 1000000000", "--samples: '1000000000' is"),
    "demo samples 1e9": Bad("demo --out {tmp}/out --samples 1000000000", "--samples: '1000000000' is not"),
    "seed -1": Bad("sample {ck} {sample} --seed=-1", "--seed: '-1' is not a whole number from 0"),
    "seed 2^64": Bad("sample {ck} {sample} --seed 18446744073709551616", "--seed: '18446744073709551616' is not"),
    "an unknown path": Bad("sample {ck} {sample} --path sound", "there is no path 'sound'; choose among understanding"),
    "a path in capitals": Bad("ask {ck} --image {doll} --question x --path VQ", "there is no path 'VQ'"),
    "steps by vq": Bad("sample {ck} {sample} --path vq", "--steps is for the diffusion path"),
    "a window by diffusion": Bad("sample {ck} {sample} --path diffusion --window 4", "--window is for the vq path"),
    "read without an image": Bad("sample {ck} {sample} --read vq", "--read says how to read --image, but none is given"),
    "image guidance without an image": Bad("sample {ck} {sample} --image-guidance 2", "--image-guidance .* --image"),
    "an unknown guider": Bad("sample {ck} {sample} --guider best", "--guider: invalid choice: 'best'"),
    "an unknown precision": Bad("sample {ck} {sample} --precision fp8", "--precision: invalid choice: 'fp8'"),
    "an option twice": Bad("sample {ck} {sample} --seed 1 --seed 2", "--seed is given twice"),
    "an out twice": Bad("sample {ck} {sample} --out {tmp}/other", "--out is given twice"),
    "an empty prompt list": Bad("sample {ck} --out {tmp}/out --prompt --steps 1", "--prompt: expected one argument"),
    "distances without weights": Bad("evaluate {ck} --suite distribution --out {tmp}/out", "suite distribution needs weights from your disk: --option inception=FILE .weights-inception-2015-12-05", loads=True),
    "weights that are not there": Bad("evaluate {ck} --suite distribution --option inception={tmp}/no.pth --out {tmp}/out", "there is no {tmp}/no.pth; weights-inception-2015-12-05", loads=True),
    "an unknown reader": Bad("evaluate {ck} --suite words --option reader=tess --out {tmp}/out", "there is no reader 'tess'; choose rapidocr, or name your own as MODULE:NAME", loads=True),
    "an unknown suite": Bad("evaluate {ck} --suite cats --out {tmp}/out", "there is no suite 'cats'; choose dolls or emoji or"),
    "steps where codes are scored": Bad(
        "evaluate {ck} --suite dolls --out {tmp}/out --draw vq --steps 2", "--steps is for the diffusion path"
    ),
    "a window where nothing is drawn": Bad(
        "evaluate {ck} --suite dolls --draw --window 2 --out {tmp}/out", "--window is for the vq path, but no picture is drawn"
    ),
    "nothing to evaluate": Bad("evaluate {ck} --suite dolls --out {tmp}/out --draw --answer", "nothing .* --draw"),
    "max-new-tokens 0": Bad("ask {ck} --image {doll} --question x --max-new-tokens 0", "--max-new-tokens: '0' is not"),
    "a text temperature below 0": Bad("chat {ck} --out {tmp}/out --text-temperature=-1", "--text-temperature: '-1' is"),
    "a chat by another path": Bad("chat {ck} --out {tmp}/out --path vq --steps 3", "--steps is for the diffusion path"),
    "data that is not inspected": Bad("data count {good}", "invalid choice: 'count'"),
    "a limit of -1": Bad("data inspect {good} --limit=-1", "--limit: '-1' is not a whole number of at least 0"),
    "an unknown layout": Bad("convert {ck} {tmp}/out --to onnx", "--to: invalid choice: 'onnx'"),
    "nowhere to convert to": Bad("convert {ck}", "no folder to write to; name one after the source"),
    "a shard size without a unit": Bad("convert {ck} {tmp}/out --max-shard-size 5", "'5' is no size such as 500MB"),
    "a shard size of 0": Bad("convert {ck} {tmp}/out --max-shard-size 0GB", "'0GB' is no size such as 500MB"),
    "init with an unknown path": Bad("init {tmp}/out --paths sight", "there is no path 'sight'"),
    "init with an empty path": Bad("init {tmp}/out --paths vq,", "there is no path ''"),
    "init without parts": Bad("init {tmp}/out --paths diffusion", "backbone"),
    "init with channels in words": Bad("init {tmp}/out --paths vq --unet-channels wide", "'wide' is not a whole number"),
    "init of an unknown prediction": Bad(
        "init {tmp}/out --paths diffusion --backbone {tmp} --prediction noise", "--prediction: invalid choice: 'noise'"
    ),
    "init with a gguf file and no folder": Bad("init {tmp}/out --paths vq --gguf-file a.gguf", "--gguf-file .*--backbone"),
    "an override without a value": Bad("train {good} steps", "'steps' is not of the form key=value"),
    "an override of a list's end": Bad("train {good} data.sources.7.weight=1", "is a list of 1; use an index from 0"),
    "an override inside a number": Bad("train {good} steps.more=1", "'steps' is 10, which has nothing inside to set"),
    "an override that is no yaml": Bad("train {good} model={a", "the value of 'model={a' is not valid YAML"),
}

# ------------------------------------------------------------------------------------ files and folders not there


def _touch(name: str, content: str | bytes = "x") -> Callable[[Path], None]:
    def make(tmp: Path) -> None:
        (tmp / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return make


def _run_folder(tmp: Path) -> None:
    checkpoint(tmp)
    (tmp / "runs" / "demo" / "state" / "step_000010").mkdir(parents=True)
    (tmp / "ck").rename(tmp / "runs" / "demo" / "checkpoint")
    (tmp / "runs/demo/metrics.jsonl").write_text("{}\n")


def _locked(name: str) -> Callable[[Path], None]:
    def make(tmp: Path) -> None:
        (tmp / name).mkdir()
        (tmp / name).chmod(0o500)

    return make


PLACES = {
    "no checkpoint": Bad("ask {tmp}/none --image {doll} --question x", "checkpoint {tmp}/none does not exist; give a folder"),
    "a mistyped checkpoint": Bad(
        "ask {tmp}/runs/dmo/checkpoint --image {doll} --question x",
        r"checkpoint {tmp}/runs/dmo/checkpoint does not exist; did you mean {tmp}/runs/demo/checkpoint\?",
        _run_folder,
    ),
    "the folder of a run": Bad(
        "sample {tmp}/runs/demo {sample}",
        r"{tmp}/runs/demo has no model_index.json.* the folder of a run; did you mean {tmp}/runs/demo/checkpoint\?",
        _run_folder,
    ),
    "a mistyped run": Bad(
        "chat {tmp}/runs/demmo --out {tmp}/out", r"runs/demmo does not exist; did you mean {tmp}/runs/demo/checkpoint", _run_folder
    ),
    "a state for a checkpoint": Bad(
        "ask {tmp}/runs/demo/state/step_000010 --image {doll} --question x",
        r"did you mean {tmp}/runs/demo/checkpoint\?",
        _run_folder,
    ),
    "a component for a checkpoint": Bad(
        "ask {tmp}/runs/demo/checkpoint/model --image {doll} --question x",
        r"'hybridgen'; did you mean {tmp}/runs/demo/checkpoint\?",
        _run_folder,
    ),
    "a file for a checkpoint": Bad("ask {doll} --image {doll} --question x", "checkpoint {doll} is a file, not a folder"),
    "weights for a checkpoint": Bad(
        "evaluate {ck}/model/model.safetensors --suite dolls --out {tmp}/out", "model.safetensors is a file, not a folder"
    ),
    "an empty folder for a checkpoint": Bad("ask {tmp} --image {doll} --question x", "{tmp} has no .* it is an empty folder"),
    "a data set for a checkpoint": Bad("ask {tmp} --image {doll} --question x", "a folder of data", _touch("a.jsonl")),
    "a hub name for a checkpoint": Bad("ask deepseek-ai/Janus-Pro-1B --image {doll} --question x", "does not exist"),
    "an empty checkpoint": Bad(["ask", "", "--image", "{doll}", "--question", "x"], "CHECKPOINT: '' is no path"),
    "a name of 5000 letters": Bad(f"ask {'a' * 5000} --image {{doll}} --question x", "does not exist"),
    "no image": Bad("ask {ck} --image {tmp}/none.png --question x", "there is no image {tmp}/none.png"),
    "a mistyped image": Bad(
        "ask {ck} --image {tmp}/dol.png --question x", r"there is no image {tmp}/dol.png; did you mean {tmp}/doll.png\?", _touch("doll.png")
    ),
    "a folder for an image": Bad("ask {ck} --image {tmp} --question x", "--image {tmp} is a folder, not a picture"),
    "an address for a picture": Bad("ask {ck} --image https://example.com/x.png --question x", "'https://example.com/x.png' is an address, not a path"),
    "an address for a checkpoint": Bad(["ask", "https://example.com/ck", "--image", "{doll}", "--question", "x"], "'https://example.com/ck' is an address"),
    "a link to no picture": Bad(
        "ask {ck} --image {tmp}/dangling.png --question x", "{tmp}/dangling.png is a link to gone.png, which is not there",
        lambda tmp: (tmp / "dangling.png").symlink_to("gone.png"),
    ),
    "no image to draw from": Bad("sample {ck} {sample} --image {tmp}/none.png", "there is no image {tmp}/none.png"),
    "no picture to replay": Bad("replay {tmp}/none.png", "there is no image {tmp}/none.png"),
    "no config": Bad("train {tmp}/none.yaml", "config {tmp}/none.yaml does not exist; give the path of a YAML file"),
    "a mistyped config": Bad("train {tmp}/demmo.yaml", r"did you mean {tmp}/demo.yaml\?", _touch("demo.yaml")),
    "a folder for a config": Bad("train {tmp}", "config {tmp} is a folder, not a file"),
    "no config to inspect": Bad("data inspect {tmp}/none.yaml --out {tmp}/out", "config {tmp}/none.yaml does not exist"),
    "no source to inspect": Bad("data inspect {tmp}/none.jsonl --out {tmp}/out", "none.jsonl"),
    "no adapter": Bad("merge {tmp}/none {tmp}/out", "adapter {tmp}/none does not exist"),
    "a checkpoint for an adapter": Bad("merge {ck} {tmp}/out", "is no adapter but a HybridGenPipeline; give the checkpoint/"),
    "no source to convert": Bad("convert {tmp}/none {tmp}/out", "checkpoint {tmp}/none does not exist"),
    "a file to convert": Bad("convert {doll} {tmp}/out", "{doll} is a file, not a folder"),
    "no backbone": Bad("init {tmp}/out --paths diffusion --backbone {tmp}/none", "backbone {tmp}/none does not exist"),
    "no vae": Bad("init {tmp}/out --paths diffusion --backbone {tmp} --vae {tmp}/none", "VAE {tmp}/none does not exist"),
    "no vq": Bad("init {tmp}/out --paths vq --backbone {tmp} --vq {tmp}/none", "VQ tokenizer {tmp}/none does not exist"),
    "no tower": Bad("init {tmp}/out --paths understanding --backbone {tmp} --vision {tmp}/n.json", "vision tower {tmp}/n.json"),
    "no janus": Bad("init {tmp}/out --paths vq --from-janus {tmp}/none", "Janus {tmp}/none does not exist"),
    "no chat template": Bad(
        "init {tmp}/out --paths vq --from-janus {tmp} --chat-template {tmp}/none", "'{tmp}/none' is no file that is there, and no name of a template; .* hybridgen, b"
    ),
    "an out that is a file": Bad(
        "sample {ck} --prompt a --out {doll}", "{doll} cannot be a folder for results: a file is in its place"
    ),
    "an out below a file": Bad("sample {ck} --prompt a --out {doll}/x/y", "a file is in its way .{doll}."),
    "an out of scores that is a file": Bad("evaluate {ck} --suite dolls --out {doll}", "a file is in its place"),
    "an out of a chat that is a file": Bad("chat {ck} --out {doll}", "a file is in its place"),
    "an out of a demo that is a file": Bad("demo --out {doll}", "a file is in its place"),
    "an out of an inspection that is a file": Bad("data inspect dolls --out {doll}", "a file is in its place"),
    "an out of a replay that is a file": Bad("replay {doll} --out {doll}", "a file is in its place"),
    "an empty out": Bad(["sample", "{ck}", "--prompt", "a", "--out", ""], "--out: '' is no path"),
    "a folder that is there to convert to": Bad("convert {ck} {tmp}", "{tmp} is there already", _touch("mine")),
    "a folder that is there to init": Bad("init {tmp} --paths vq", "{tmp} is there already", _touch("mine")),
    "a folder that is there to merge to": Bad("merge {tmp}/lora {tmp}/full", "full is there already", lambda tmp: (_touch("full/mine")(tmp), _touch("lora/adapter_config.json", "{}")(tmp))),
    "a file to init into": Bad("init {doll} --paths vq", "{doll} is there already"),
    "a demo where something else is": Bad("demo --out {tmp}/full", "full holds something that the demo did not", _touch("full/mine")),
}
if os.geteuid() != 0:  # root may write everywhere
    PLACES |= {
        "an out that is locked": Bad("sample {ck} --prompt a --out {tmp}/locked/x", "locked/x cannot be written", _locked("locked")),
    }

# -------------------------------------------------------------------------------------------------- checkpoints


def checkpoint(tmp: Path) -> Path:
    """A copy of the tiny checkpoint, to be damaged."""
    return Path(shutil.copytree(_TINY["ck"], tmp / "ck"))


_TINY: dict[str, Path] = {}


def spoil(name: str, content: str | bytes | None) -> Callable[[Path], None]:
    """A checkpoint of which a file holds something else; None = it is not there."""

    def make(tmp: Path) -> None:
        file = checkpoint(tmp) / name
        if content is None:
            shutil.rmtree(file) if file.is_dir() else file.unlink()
        else:
            file.write_bytes(content if isinstance(content, bytes) else content.encode())

    return make


def change(name: str, **settings) -> Callable[[Path], None]:
    """A checkpoint of which a JSON file says something else; keys may be `a__b` for nested ones."""

    def make(tmp: Path) -> None:
        file = checkpoint(tmp) / name
        content = json.loads(file.read_text())
        for key, value in settings.items():
            *parents, last = key.split("__")
            place = content
            for parent in parents:
                place = place[parent]
            place[last] = value
        file.write_text(json.dumps(content))

    return make


def cut(name: str, keep: float) -> Callable[[Path], None]:
    def make(tmp: Path) -> None:
        file = checkpoint(tmp) / name
        file.write_bytes(file.read_bytes()[: int(file.stat().st_size * keep)])

    return make


def lack_tensor(tmp: Path) -> None:
    from safetensors.torch import load_file

    file = checkpoint(tmp) / "model" / "model.safetensors"
    tensors = load_file(file)
    tensors.pop("lm_head.weight")
    save_file(tensors, file, {"format": "pt"})


WEIGHTS = "model/model.safetensors"
CHECKPOINTS = {
    "a git-lfs pointer for weights": Bad(ASK, f"ck/{WEIGHTS} is a pointer of git lfs, not the file itself; run", spoil(WEIGHTS, LFS)),
    "a web page for weights": Bad(ASK, rf"ck/{WEIGHTS} is an HTML page", spoil(WEIGHTS, HTML)),
    "an empty file of weights": Bad(ASK, f"ck/{WEIGHTS} is empty", spoil(WEIGHTS, "")),
    "half the weights": Bad(ASK, f"ck/{WEIGHTS} was cut off .* bytes, its header says", cut(WEIGHTS, 0.5)),
    "four bytes of weights": Bad(ASK, rf"ck/{WEIGHTS} .*cut off \(4 bytes\)", spoil(WEIGHTS, b"abcd")),
    "words for weights": Bad(ASK, f"ck/{WEIGHTS} is no safetensors file", spoil(WEIGHTS, "no weights at all, but words")),
    "a picture for weights": Bad(ASK, f"ck/{WEIGHTS} is a PNG picture", spoil(WEIGHTS, b"\x89PNG\r\n\x1a\n" + b"0" * 99)),
    "a zip for weights": Bad(ASK, f"ck/{WEIGHTS} is a zip archive", spoil(WEIGHTS, b"PK\x03\x04" + b"0" * 99)),
    "a pointer for the codec's weights": Bad(
        ASK, "vq_model/model.safetensors is a pointer of git lfs", spoil("vq_model/model.safetensors", LFS)
    ),
    "a pointer for the config": Bad(ASK, "ck/model/config.json is a pointer of git lfs", spoil("model/config.json", LFS)),
    "a pointer for the index": Bad(ASK, "ck/model_index.json is a pointer of git lfs", spoil("model_index.json", LFS)),
    "a pointer for the tokenizer": Bad(
        ASK, "processor/tokenizer.json is a pointer of git lfs", spoil("processor/tokenizer.json", LFS)
    ),
    "a web page for the tokenizer": Bad(ASK, "tokenizer.json is an HTML page", spoil("processor/tokenizer.json", HTML)),
    "an empty tokenizer": Bad(ASK, "tokenizer.json is empty", spoil("processor/tokenizer.json", "")),
    "a cut tokenizer": Bad(ASK, "tokenizer.json is not valid JSON", cut("processor/tokenizer.json", 0.5)),
    "a tokenizer of another kind": Bad(ASK, "checkpoint {tmp}/ck cannot be loaded: one of its files lacks '", spoil("processor/tokenizer.json", "{}"), loads=True),
    "no tokenizer": Bad(ASK, "checkpoint {tmp}/ck is missing processor/tokenizer.json; copy it again", spoil("processor/tokenizer.json", None)),
    "no settings of the tokenizer": Bad(ASK, "is missing processor/tokenizer_config.json", spoil("processor/tokenizer_config.json", None)),
    "no settings of the processor": Bad(ASK, "is missing processor/processor_config.json", spoil("processor/processor_config.json", None)),
    **{
        f"{name} that is {content}": Bad(ASK, f"ck/{name} holds no JSON object", spoil(name, content))
        for content in ("null", "[]")
        for name in (
            "processor/tokenizer.json", "processor/tokenizer_config.json", "processor/processor_config.json", "model/generation_config.json",
            "vq_model/config.json",
        )
    },
    "a backbone that is a list": Bad(ASK, r"text_config is \[1\]; it must be an object of settings", change("model/config.json", text_config=[1])),
    "a backbone that nobody knows": Bad(
        ASK, "text_config.model_type is 'gpt9', which this transformers does not know", change("model/config.json", text_config__model_type="gpt9")
    ),
    "a scheduler that is a list": Bad(ASK, "scheduler_config.json holds no JSON object", spoil("scheduler/scheduler_config.json", "[1]")),
    "an unknown scheduler": Bad(
        ASK, "Nothing|scheduler", change("model_index.json", scheduler=["diffusers", "NothingScheduler"]), loads=True
    ),
    "an index that is a list": Bad(ASK, "ck/model_index.json holds no JSON object", spoil("model_index.json", "[]")),
    "an index that is cut": Bad(ASK, "ck/model_index.json is not valid JSON", cut("model_index.json", 0.5)),
    "an index of another pipeline": Bad(
        ASK, "is a StableDiffusionPipeline, not a HybridGenPipeline", change("model_index.json", _class_name="StableDiffusionPipeline")
    ),
    "an index without a model": Bad(ASK, "names no model in model_index.json", change("model_index.json", model=None)),
    "an index with a number for a part": Bad(ASK, "model_index.json", change("model_index.json", vae=7), loads=True),
    "an index with an empty part": Bad(ASK, "model_index.json", change("model_index.json", vq_model=[]), loads=True),
    "sampling defaults of no path": Bad(
        ASK, "sampling_defaults has 'paint'", change("model_index.json", sampling_defaults={"paint": {}}), loads=True
    ),
    "sampling defaults that are a list": Bad(
        ASK, "sampling_defaults", change("model_index.json", sampling_defaults=[1]), loads=True
    ),
    "no model folder": Bad(ASK, "missing its folder model/", spoil("model", None)),
    "no weights": Bad(ASK, "missing the weights model/", spoil(WEIGHTS, None)),
    "no config": Bad(ASK, "ck/model has no config.json", spoil("model/config.json", None)),
    "no codec": Bad(ASK, "missing its folder vq_model/", spoil("vq_model", None)),
    "a config that is a list": Bad(ASK, "model/config.json holds no JSON object", spoil("model/config.json", "[1, 2]")),
    "a config that is no json": Bad(ASK, "model/config.json is not valid JSON", spoil("model/config.json", "{hidden_size:")),
    "a config in UTF-16": Bad(ASK, "model/config.json is not valid JSON", spoil("model/config.json", "{}".encode("utf-16"))),
    "a config of another model": Bad(
        ASK, "model.*'llama'", change("model/config.json", model_type="llama"), loads=True
    ),
    "a model of a billion": Bad(
        ASK, "hidden_size|GB", change("model/config.json", text_config__hidden_size=1_000_000_000), loads=True
    ),
    "no attention heads": Bad(ASK, "num_attention_heads", change("model/config.json", text_config__num_attention_heads=0), loads=True),
    "minus two layers": Bad(ASK, "num_hidden_layers", change("model/config.json", text_config__num_hidden_layers=-2), loads=True),
    "a width in words": Bad(ASK, "hidden_size", change("model/config.json", text_config__hidden_size="wide"), loads=True),
    "another width": Bad(ASK, "of shape|hidden_size", change("model/config.json", text_config__intermediate_size=128), loads=True),
    "a missing tensor": Bad(ASK, "lacks 1 weights of its model, such as lm_head.weight", lack_tensor, loads=True),
    "an index of shards that are not there": Bad(
        ASK, "missing model/model-00002-of-00002.safetensors",
        spoil("model/model.safetensors.index.json", json.dumps({"weight_map": {"a": "model-00002-of-00002.safetensors"}})),
    ),
    "an index of shards without a map": Bad(ASK, "index.json", spoil("model/model.safetensors.index.json", "{}")),
    "no processor": Bad(ASK, "missing its folder processor/", spoil("processor", None)),
    "an answer by a path that is not there": Bad(
        "ask {tmp}/ck --image {doll} --question x --path vq", "no path 'vq' here|vq_model", change("model_index.json", vq_model=[None, None]), loads=True
    ),
    "an adapter without a base": Bad(
        "ask {tmp} --image {doll} --question x", "names no base_model_name_or_path", _touch("adapter_config.json", "{}")
    ),
    "an adapter whose base is gone": Bad(
        "ask {tmp} --image {doll} --question x", "belongs to the model /no/where/model, which is not there",
        _touch("adapter_config.json", json.dumps({"base_model_name_or_path": "/no/where/model"})),
    ),
    "an adapter that is a pointer": Bad("ask {tmp} --image {doll} --question x", "pointer of git lfs", _touch("adapter_config.json", LFS)),
    "an adapter whose weights are a pointer": Bad(
        "ask {tmp}/lora --image {doll} --question x", "adapter_model.safetensors is a pointer of git lfs",
        lambda tmp: (_touch("lora/adapter_model.safetensors", LFS)(tmp), _touch("lora/adapter_config.json", json.dumps({"base_model_name_or_path": str(_TINY["ck"] / "model")}))(tmp)), loads=True,
    ),
}

# ----------------------------------------------------------------------------------- other people's checkpoints


def model_folder(name: str, config: dict | str | bytes, **files) -> Callable[[Path], None]:
    def make(tmp: Path) -> None:
        folder = tmp / name
        folder.mkdir(parents=True)
        raw = config if isinstance(config, bytes) else (config if isinstance(config, str) else json.dumps(config)).encode()
        (folder / "config.json").write_bytes(raw)
        for file, content in files.items():
            (folder / file.replace("__", ".")).write_bytes(content if isinstance(content, bytes) else content.encode())

    return make


JANUS = {"model_type": "janus"}
DIFFUSION = "init {tmp}/out --paths diffusion --backbone {tmp}/b"
FOREIGN = {
    "convert a pointer": Bad("convert {tmp}/j {tmp}/out", "j/pytorch_model.bin is a pointer of git lfs", model_folder("j", JANUS, pytorch_model__bin=LFS)),
    "convert a web page": Bad("convert {tmp}/j {tmp}/out", "pytorch_model.bin is an HTML page", model_folder("j", JANUS, pytorch_model__bin=HTML)),
    "convert words": Bad("convert {tmp}/j {tmp}/out", "pytorch_model.bin is no file of torch|cannot be read", model_folder("j", JANUS, pytorch_model__bin="no pickle at all")),
    "convert a pickle of code": Bad(
        "convert {tmp}/j {tmp}/out", "pytorch_model.bin is a pickle that holds more than tensors",
        model_folder("j", JANUS, pytorch_model__bin=pickle.dumps(Path("x"), protocol=2)),
    ),
    "convert an empty bin": Bad("convert {tmp}/j {tmp}/out", "pytorch_model.bin is empty", model_folder("j", JANUS, pytorch_model__bin="")),
    "convert a pointer to safetensors": Bad("convert {tmp}/j {tmp}/out", "j/model.safetensors is a pointer of git lfs", model_folder("j", JANUS, model__safetensors=LFS)),
    "convert without weights": Bad("convert {tmp}/j {tmp}/out", "j has no weights", model_folder("j", JANUS)),
    "convert another model": Bad("convert {tmp}/j {tmp}/out", "j holds a llama, not a Janus", model_folder("j", {"model_type": "llama"})),
    "convert a config that is a list": Bad("convert {tmp}/j {tmp}/out", "config.json holds no JSON object", model_folder("j", "[]")),
    "convert a config that is a pointer": Bad("convert {tmp}/j {tmp}/out", "config.json is a pointer of git lfs", model_folder("j", LFS)),
    "convert an empty folder": Bad("convert {tmp}/j {tmp}/out", "j has no config.json", lambda tmp: (tmp / "j").mkdir()),
    "init from a tower": Bad(DIFFUSION, "b is a 'siglip', no decoder of text", model_folder("b", {"model_type": "siglip"})),
    "init from a janus": Bad(DIFFUSION, "a Janus is given as --from-janus", model_folder("b", {"model_type": "multi_modality"})),
    "init from a pointer": Bad(DIFFUSION, "b/model.safetensors is a pointer of git lfs", model_folder("b", {"model_type": "llama"}, model__safetensors=LFS)),
    "init from an empty folder": Bad(DIFFUSION, "b has no config.json", lambda tmp: (tmp / "b").mkdir()),
    "init from a quantized one": Bad(DIFFUSION, "b is quantized", model_folder("b", {"model_type": "llama", "quantization_config": {}})),
    "init from a config without a kind": Bad(DIFFUSION, "no decoder of text", model_folder("b", {})),
    "init without its gguf file": Bad(DIFFUSION + " --gguf-file q4.gguf", "has no file q4.gguf", lambda tmp: (tmp / "b").mkdir()),
    "init from a gguf that is a pointer": Bad(
        DIFFUSION + " --gguf-file q4.gguf", "q4.gguf is a pointer of git lfs", model_folder("b", {}, q4__gguf=LFS)
    ),
    "init from a gguf that is words": Bad(DIFFUSION + " --gguf-file q4.gguf", "q4.gguf is no GGUF", model_folder("b", {}, q4__gguf="words")),
    "a vae of another kind": Bad(
        "init {tmp}/out --paths diffusion --backbone {tmp}/b --vae {tmp}/v", "VAE {tmp}/v is a 'UNet2DModel', not an AutoencoderKL",
        lambda tmp: (model_folder("b", {"model_type": "llama"})(tmp), model_folder("v", {"_class_name": "UNet2DModel"})(tmp)),
    ),
}

# ------------------------------------------------------------------------------------------------------ configs

GOOD = {
    "output_dir": "{tmp}/run",
    "steps": 10,
    "data": {"sequence_length": 64, "sources": [{"source": "dolls", "task": "draw", "write": "diffusion"}]},
    "model": {name: part for name, part in MODEL_CONTENT.items() if name != "vq_config"},
}


def config(content: str | bytes, name: str = "c.yaml") -> Callable[[Path], None]:
    return _touch(name, content)


TRAIN = "train {tmp}/c.yaml"
MINIMAL = "output_dir: x\nsteps: 3\ndata: {sources: [{source: dolls, task: draw, write: diffusion}]}\n"


def bomb(tmp: Path) -> None:
    lines = ["a: &a0 [1, 2, 3, 4, 5, 6, 7, 8, 9]"]
    lines += [f"b{n}: &a{n + 1} [{', '.join([f'*a{n}'] * 9)}]" for n in range(9)]
    (tmp / "c.yaml").write_text("\n".join(lines))


CONFIGS = {
    "a picture": Bad("train {tmp}/c.yaml", "config {tmp}/c.yaml is a PNG picture; give another file", config(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")),
    "a git-lfs pointer": Bad(TRAIN, "c.yaml is a pointer of git lfs", config(LFS)),
    "a web page": Bad(TRAIN, "c.yaml is an HTML page", config(HTML)),
    "bytes that are no UTF-8": Bad(TRAIN, "config {tmp}/c.yaml is not UTF-8 text: line 2 holds the byte 0xe9; save it as UTF-8", config(b"steps: 3\nname: caf\xe9\n")),
    "UTF-16": Bad(TRAIN, "c.yaml is not UTF-8", config("steps: 3\n".encode("utf-16"))),
    "zero bytes": Bad(TRAIN, "c.yaml is not valid YAML", config(b"\0\0\0\0")),
    "an empty config": Bad(TRAIN, "c.yaml is empty", config("")),
    "a config of comments": Bad(TRAIN, "c.yaml holds nothing; it must hold `key: value` lines", config("# steps: 3\n")),
    "a list": Bad(TRAIN, "c.yaml holds a list; it must hold", config("- steps\n- 3\n")),
    "a number": Bad(TRAIN, "c.yaml holds a number", config("7\n")),
    "a text": Bad(TRAIN, "c.yaml holds a text", config("just words\n")),
    "tabs": Bad(TRAIN, "c.yaml is not valid YAML: .*line 2", config("data:\n\tsources: []\n")),
    "an open bracket": Bad(TRAIN, "c.yaml is not valid YAML", config("data: {sources: [\n")),
    "two documents": Bad(TRAIN, "c.yaml is not valid YAML", config("steps: 3\n---\nsteps: 4\n")),
    "a tag of python": Bad(TRAIN, "c.yaml is not valid YAML", config("steps: !!python/object/apply:os.getpid []\n")),
    "a key twice": Bad(TRAIN, r"c.yaml: key 'steps' is given twice, in line 1 and in line 3; keep one", config("steps: 3\noutput_dir: x\nsteps: 4\n")),
    "a nested key twice": Bad(TRAIN, "c.yaml: key 'lr' is given twice, in line 2 and in line 3", config("optimizer:\n  lr: 1e-3\n  lr: 1e-4\n")),
    "a bomb of anchors": Bad(TRAIN, "c.yaml.*(anchor|alias)", bomb),
    "an anchor in itself": Bad(TRAIN, "c.yaml.*(anchor|alias|itself)", config("data: &a\n  sources: *a\n")),
    "nested a thousand deep": Bad(TRAIN, "c.yaml is nested too deeply", config("a: " + "[" * 3000 + "]" * 3000)),
    "a base that is not there": Bad(TRAIN, "base of {tmp}/c.yaml is 'none.yaml'", config("base: none.yaml\n")),
    "a base in a circle": Bad(TRAIN, "base of {tmp}/c.yaml is 'c.yaml'", config("base: c.yaml\n")),
    "a base that is a number": Bad(TRAIN, "base of {tmp}/c.yaml is 7", config("base: 7\n")),
    "an unknown key": Bad("train {good} stpes=3", r"unknown key 'stpes' \(value 3\); did you mean 'steps'"),
    "a key that is a number": Bad(TRAIN, "unknown key '7'", config(MINIMAL + "7: 8\n")),
    "a key that is a list": Bad(TRAIN, "c.yaml is not valid YAML|unknown key", config("? [1, 2]\n: 3\n")),
    "a missing key": Bad(TRAIN, "missing key 'data'", config("output_dir: x\nsteps: 3\n")),
    "data that is null": Bad("train {good} data=null", "data is None; it must be `key: value` lines"),
    "a source that is a word": Bad("train {good} data.sources=[dolls]", "data.sources.0 is 'dolls'; it must be"),
    "sources that are a mapping": Bad(["train", "{good}", "data.sources={a: 1}"], "data.sources is .*; it must be a list"),
    "steps 0": Bad("train {good} steps=0", "steps is 0; it must be at least 1"),
    "steps 1.5": Bad("train {good} steps=1.5", "steps is 1.5; it must be a whole number"),
    "steps 1e9999": Bad("train {good} steps=1e9999", "steps is inf; it must be a whole number"),
    "steps in words": Bad("train {good} steps=many", "steps is 'many'; it must be a whole number"),
    "steps in quotes": Bad(["train", "{good}", "steps='10'"], "steps is '10'; it must be a whole number"),
    "steps yes": Bad("train {good} steps=true", "steps is True; it must be a whole number"),
    "compile yes": Bad("train {good} compile=yes", "compile is 'yes'; it must be true or false"),
    "compile 1": Bad("train {good} compile=1", "compile is 1; it must be true or false"),
    "lr nan": Bad("train {good} optimizer.lr=.nan", "optimizer.lr is nan; it must be above 0"),
    "lr inf": Bad("train {good} optimizer.lr=.inf", "optimizer.lr is inf; it must be .*finite"),
    "lr in words": Bad("train {good} optimizer.lr=fast", "optimizer.lr is 'fast'; it must be a number"),
    "clip nan": Bad("train {good} clip=.nan", "clip is nan"),
    "weight decay nan": Bad("train {good} optimizer.weight_decay=.nan", "optimizer.weight_decay is nan"),
    "decay 2": Bad("train {good} ema.decay=2", "ema.decay is 2.0; it must be from 0 to below 1"),
    "seed -1": Bad("train {good} seed=-1", "seed is -1; it must be"),
    "seed 2^64": Bad("train {good} seed=18446744073709551616", "seed is 18446744073709551616; it must be"),
    "an empty output_dir": Bad("train {good} output_dir=''", "output_dir is ''"),
    "an output_dir that is a file": Bad("train {good} output_dir={doll}", "output_dir.*{doll}.*a file is in its place"),
    "an output_dir with a zero byte": Bad(["train", "{good}", 'output_dir="a\\0b"'], "output_dir is 'a.x00b'"),
    "a negative prefetch": Bad("train {good} data.prefetch=-1", "data.prefetch is -1; it must be 0 or more"),
    "rows of 0 tokens": Bad("train {good} data.sequence_length=0", "data.sequence_length is 0; it must be at least 1"),
    "rows of 1e12 tokens": Bad("train {good} data.sequence_length=1000000000000", "data.sequence_length .*GB"),
    "a batch of 1e12 rows": Bad("train {good} data.per_device_batch_size=1000000000000", "per_device_batch_size .*GB"),
    "a billion threads": Bad("train {good} data.loader_threads=1000000000", "data.loader_threads is 1000000000"),
    "threads of torch": Bad("train {good} threads=100000000", "threads is 100000000; it must be at most 1024, or null"),
    "an unknown attention": Bad("train {good} attention=fast", "attention is 'fast'; it must be one of"),
    "a text config that is a list": Bad("train {good} model.text_config=[1]", "model.text_config is .*; it must be"),
    "hidden_size 1e9": Bad("train {good} model.text_config.hidden_size=1000000000", r"model has at least [0-9,]+ weights, which are [0-9,]+ GB in memory, but this machine has"),
    "a billion layers": Bad("train {good} model.text_config.num_hidden_layers=1000000000", "num_hidden_layers is 1000000000; it must be at most 10000"),
    "hidden_size 0": Bad("train {good} model.text_config.hidden_size=0", "text_config.hidden_size is 0; it must be"),
    "no heads": Bad("train {good} model.text_config.num_attention_heads=0", "text_config.num_attention_heads is 0; it must"),
    "no key heads": Bad("train {good} model.text_config.num_key_value_heads=0", "num_key_value_heads is 0; it must be"),
    "minus two layers": Bad("train {good} model.text_config.num_hidden_layers=-2", "num_hidden_layers is -2; it must be"),
    "heads that do not divide": Bad("train {good} model.text_config.num_attention_heads=5", "num_attention_heads 5 is not"),
    "an odd head": Bad("train {good} model.text_config.head_dim=7", "head_dim.*7"),
    "a context of 0": Bad("train {good} model.text_config.max_position_embeddings=0", "max_position_embeddings is 0"),
    "a vocabulary of 0": Bad("train {good} model.tokenizer.vocab_size=0", "model.tokenizer.vocab_size is 0; it must be"),
    "a vocabulary of -5": Bad("train {good} model.tokenizer.vocab_size=-5", "model.tokenizer.vocab_size is -5; it must"),
    "no samples for the tokenizer": Bad("train {good} model.tokenizer.samples=0", "model.tokenizer.samples is 0; it must"),
    "a tokenizer that is nowhere": Bad("train {good} model.tokenizer.path={tmp}/none", "model.tokenizer.path.*none does not exist"),
    "a tower of no width": Bad("train {good} model.vision_config.hidden_size=0", "vision_config.hidden_size is 0"),
    "a tower of patches of 0": Bad("train {good} model.vision_config.patch_size=0", "vision_config.patch_size is 0"),
    "a tower of patches beyond its side": Bad("train {good} model.vision_config.patch_size=64", "vision_config.patch_size 64"),
    "a tower of no layers": Bad("train {good} model.vision_config.num_hidden_layers=0", "vision_config.num_hidden_layers is 0"),
    "patches of 0": Bad("train {good} model.diffusion_config.patch_size=0", "diffusion_config.patch_size is 0"),
    "an activation that is none": Bad("train {good} model.text_config.hidden_act=jump", "text_config.hidden_act is 'jump'"),
    "an initializer of -1": Bad("train {good} model.initializer_range=-1", "initializer_range is -1.0; it must be above 0"),
    "an unknown model type": Bad("train {good} model.text_config.model_type=gpt9", "is 'gpt9', which transformers does not"),
    "a pretrained that is nowhere": Bad(
        ["train", "{good}", "model={from_pretrained: {tmp}/none}"], "model.from_pretrained.*{tmp}/none does not exist"
    ),
    "a pretrained that is a run": Bad(
        ["train", "{good}", "model={from_pretrained: {tmp}/runs/demo}"], r"did you mean {tmp}/runs/demo/checkpoint\?", _run_folder
    ),
    "a pretrained whose config is a pointer": Bad(
        ["train", "{good}", "model={from_pretrained: {tmp}/ck}"], "model/config.json is a pointer of git lfs", spoil("model/config.json", LFS)
    ),
    "a pretrained whose weights are a pointer": Bad(
        ["train", "{good}", "model={from_pretrained: {tmp}/ck}"], f"{WEIGHTS} is a pointer of git lfs", spoil(WEIGHTS, LFS)
    ),
    "a language model that is nowhere": Bad(
        "train {good} model.text_config=null model.language_model={tmp}/none", "model.language_model.*none does not exist"
    ),
    "a language model that is a pointer": Bad(
        "train {good} model.text_config=null model.language_model={tmp}/b", "b/model.safetensors is a pointer of git lfs",
        model_folder("b", {"model_type": "llama", "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 64}, model__safetensors=LFS),
    ),
    "a vision model that is a decoder": Bad(
        "train {good} model.vision_config=null model.vision_model={tmp}/b", "model.vision_model.*'llama'", model_folder("b", {"model_type": "llama"})
    ),
    "a codec that is nowhere": Bad("train {good} codec.vae={tmp}/none", "codec.vae.*{tmp}/none does not exist"),
    "a codec that is a list": Bad("train {good} codec.vae={tmp}/v", "config.json holds no JSON object", model_folder("v", "[]")),
    "a codec of another kind": Bad("train {good} codec.vae={tmp}/v", "codec.vae.*'UNet2DModel'", model_folder("v", {"_class_name": "UNet2DModel"})),
    "a codec whose weights are a pointer": Bad(
        "train {good} codec.vae={tmp}/v model.diffusion_config.in_channels=4", "v/diffusion_pytorch_model.safetensors is a pointer of git lfs",
        model_folder("v", {"_class_name": "AutoencoderKL", "latent_channels": 4, "block_out_channels": [8]}, diffusion_pytorch_model__safetensors=LFS),
    ),
    "a codec without weights": Bad(
        "train {good} codec.vae={tmp}/v model.diffusion_config.in_channels=4", "codec.vae.*v has no weights",
        model_folder("v", {"_class_name": "AutoencoderKL", "latent_channels": 4, "block_out_channels": [8]}),
    ),
    "a state to resume that is nowhere": Bad("train {good} resume={tmp}/none", "resume is .*none"),
    "a state to resume that is a checkpoint": Bad("train {good} resume={ck}", "resume .*{ck}.*(manifest|HybridGenPipeline)"),
    "a regular expression that is none": Bad(["train", "{good}", "groups=[{match: '('}]"], "groups.0.match '\\(' is not a regular"),
    "a group that scales by nan": Bad(["train", "{good}", "groups=[{match: model, lr_scale: .nan}]"], "groups.0.lr_scale is nan"),
    "a cache that is a file": Bad("train {good} data.cache={doll}", "data.cache.*{doll}.*a file is in its place"),
    "an unknown source": Bad("train {good} data.sources.0.source=cats", "cats"),
    "a source's unknown key": Bad("train {good} data.sources.0.wieght=2", "unknown key 'data.sources.0.wieght'.*'weight'"),
    "a weight of -1": Bad("train {good} data.sources.0.weight=-1", "weight.*-1"),
    "a weight of nan": Bad("train {good} data.sources.0.weight=.nan", "weight.*nan"),
    "no weight at all": Bad("train {good} data.sources.0.weight=0", "weight.*0"),
    "an old key": Bad("train {good} data.rows=3", "data.rows is called data.per_device_batch_size now"),
    "betas of 1": Bad("train {good} optimizer.betas=[1,1]", r"optimizer.betas is \[1.0, 1.0\]; it must be"),
    "muon without steps": Bad("train {good} optimizer.name=muon optimizer.muon_steps=0", "optimizer.muon_steps is 0"),
    "a momentum of 2": Bad("train {good} optimizer.name=muon optimizer.muon_momentum=2", "optimizer.muon_momentum is 2.0"),
    "a demo of a wrong key": Bad("demo --out {tmp}/out stpes=3", "unknown key 'stpes'"),
    "a demo of a wrong codec key": Bad("demo --out {tmp}/out codec:stpes=3", "unknown key 'stpes'"),
    "a config to inspect that is a picture": Bad("data inspect {tmp}/c.yaml --out {tmp}/out", "c.yaml is a PNG picture", config(b"\x89PNG\r\n\x1a\n")),
}

# -------------------------------------------------------------------------------------------- pictures and records


def picture(name: str, content: bytes) -> Callable[[Path], None]:
    return _touch(name, content)


PNG = io.BytesIO()
Image.new("RGB", (32, 32), "red").save(PNG, "PNG")
PNG = PNG.getvalue()
LOOK = "ask {ck} --image {tmp}/p.png --question what"
PICTURES = {
    "a pointer for a picture": Bad(LOOK, "p.png.*pointer of git lfs", picture("p.png", LFS.encode())),
    "a web page for a picture": Bad(LOOK, "p.png.*HTML page", picture("p.png", HTML.encode())),
    "an empty picture": Bad(LOOK, "p.png.*empty", picture("p.png", b"")),
    "words for a picture": Bad(LOOK, "p.png", picture("p.png", b"no picture")),
    "half a picture": Bad(LOOK, "p.png.*(cut|truncated)", picture("p.png", PNG[:60])),
    "a picture that is a bomb": Bad(
        LOOK, "p.png.*(pixels|cannot be decoded)", picture("p.png", PNG[:16] + struct.pack(">II", 100_000, 100_000) + PNG[24:])
    ),
    "a video for a picture": Bad(LOOK, "p.png is a video; save one of its frames", picture("p.png", b"\0\0\0\x18ftypisom\0\0\0\0mp42isom")),
    "an array for a picture": Bad(LOOK, "p.png is an array of numpy; save what is in it", picture("p.png", b"\x93NUMPY\1\0")),
    "a zip for a picture": Bad(LOOK, "p.png", picture("p.png", b"PK\x03\x04" + b"0" * 40)),
    "a pointer to draw from": Bad("sample {ck} {sample} --image {tmp}/p.png", "p.png.*pointer of git lfs", picture("p.png", LFS.encode())),
    "a pointer to replay": Bad("replay {tmp}/p.png", "p.png.*pointer of git lfs", picture("p.png", LFS.encode())),
    "a picture to talk of that is not there": Bad(
        "chat {ck} --out {tmp}/out", "none.png", stdin=b"/image none.png\n", loads=True
    ),
}
INSPECT = "data inspect {tmp}/r.jsonl --out {tmp}/out"
RECORDS = {
    "no records": Bad(INSPECT, "r.jsonl", _touch("r.jsonl", "")),
    "records that are a pointer": Bad(INSPECT, "r.jsonl is a pointer of git lfs", _touch("r.jsonl", LFS)),
    "records that are a web page": Bad(INSPECT, "r.jsonl.*HTML page", _touch("r.jsonl", HTML)),
    "parquet that is a pointer": Bad("data inspect {tmp}/r.parquet --out {tmp}/out", "r.parquet.*pointer of git lfs", _touch("r.parquet", LFS)),
    "parquet that is empty": Bad("data inspect {tmp}/r.parquet --out {tmp}/out", "r.parquet.*empty", _touch("r.parquet", "")),
    "parquet that is words": Bad("data inspect {tmp}/r.parquet --out {tmp}/out", "r.parquet", _touch("r.parquet", "words and words")),
    "a tar that is a pointer": Bad("data inspect {tmp}/r.tar --out {tmp}/out", "r.tar.*pointer of git lfs", _touch("r.tar", LFS)),
    "a tar that is words": Bad("data inspect {tmp}/r.tar --out {tmp}/out", "r.tar", _touch("r.tar", "words and words")),
    "json that is no list": Bad("data inspect {tmp}/r.json --out {tmp}/out", "r.json", _touch("r.json", '"text"')),
    "json that is cut": Bad("data inspect {tmp}/r.json --out {tmp}/out", "r.json", _touch("r.json", '[{"messages": ')),
    "an empty folder of pictures": Bad("data inspect {tmp}/p --out {tmp}/out", "{tmp}/p", lambda tmp: (tmp / "p").mkdir()),
    "shards that match nothing": Bad("data inspect {tmp}/a-{000..003}.tar --out {tmp}/out", "a-"),
    "a source's unknown setting": Bad("data inspect dolls tsak=draw --out {tmp}/out", "unknown key 'tsak'.*'task'"),
    "a source of an unknown task": Bad("data inspect dolls task=dance --out {tmp}/out", "task.*'dance'"),
    "a source of an unknown split": Bad("data inspect dolls task=draw split=moon --out {tmp}/out", "'moon'"),
    "an unknown synthetic data set": Bad("data inspect cats --out {tmp}/out", "'?cats'?"),
}

# -------------------------------------------------------------------------------------------- manifests of pictures


def manifest_of(tmp: Path) -> dict:
    from hybridgen.checkpoints.hashes import checkpoint_hashes

    settings = {
        "num_inference_steps": 1, "guidance_scale": 1.0, "guidance_rescale": 0.0, "image_guidance_scale": 1.0, "shift": None,
        "precision": "model",
    }  # fmt: skip
    return {
        "format": 1, "prompt": "an elf", "negative_prompt": None, "prior_messages": 0, "path": "diffusion", "seed": 0,
        "height": 32, "width": 32, "settings": settings, "guider": None, "image": None, "scheduler": None,
        **checkpoint_hashes(_TINY["ck"]), "dtype": "float32", "device": "cpu", "versions": {},
    }  # fmt: skip


def drawn(change: Callable[[dict], object] | None = None, text: str | None = None) -> Callable[[Path], None]:
    """A PNG whose manifest was changed, or is `text`."""

    def make(tmp: Path) -> None:
        manifest = manifest_of(tmp)
        if change is not None:
            replaced = change(manifest)
            manifest = replaced if replaced is not None else manifest
        info = PngImagePlugin.PngInfo()
        info.add_itxt("manifest", json.dumps(manifest) if text is None else text)
        Image.new("RGB", (32, 32)).save(tmp / "p.png", pnginfo=info)

    return make


def _set(*keys_and_value) -> Callable[[dict], None]:
    *keys, value = keys_and_value

    def change(manifest: dict) -> None:
        place = manifest
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value

    return change


REPLAY = "replay {tmp}/p.png"
MANIFESTS = {
    "no manifest": Bad("replay {doll}", "{doll} carries no manifest, so nobody knows how it was drawn"),
    "a jpeg": Bad("replay {tmp}/p.jpg", "p.jpg carries no manifest", lambda tmp: Image.new("RGB", (8, 8)).save(tmp / "p.jpg")),
    "no json": Bad(REPLAY, "a manifest that is not valid JSON", drawn(text="{seed: 1")),
    "a list": Bad(REPLAY, "a manifest", drawn(lambda m: [1])),
    "deep nesting": Bad(REPLAY, "a manifest that is not valid JSON", drawn(text="[" * 100_000)),
    "without a prompt": Bad(REPLAY, "a manifest without prompt", drawn(lambda m: m.pop("prompt") and None)),
    "drawn by unknown weights": Bad(REPLAY, "weights that no checkpoint was known", drawn(lambda m: [m.pop(k) for k in ("checkpoint", "config", "weights")] and None)),
    "in a conversation": Bad(REPLAY, "drawn in a conversation, after 3 messages", drawn(_set("prior_messages", 3))),
    "of a later hybridgen": Bad(REPLAY, r"a manifest of a later hybridgen \(format 9\); update", drawn(_set("format", 9))),
    "of a later hybridgen with other fields": Bad(
        REPLAY, r"a manifest of a later hybridgen \(format 9\)", drawn(lambda m: {"format": 9, "picture": {"of": "another kind"}})
    ),
    "a format in words": Bad(REPLAY, "format 'new'", drawn(_set("format", "new"))),
    "settings that are a number": Bad(REPLAY, "settings 7", drawn(_set("settings", 7))),
    "settings that are a list": Bad(REPLAY, "settings", drawn(_set("settings", ["precision"]))),
    "settings of another path": Bad(REPLAY, "'top_k'", drawn(_set("settings", "top_k", 3))),
    "a setting of another type": Bad(REPLAY, "num_inference_steps", drawn(_set("settings", "num_inference_steps", "many")), loads=True),
    "a path that is a list": Bad(REPLAY, r"path \['diffusion'\]", drawn(_set("path", ["diffusion"]))),
    "a path that is none": Bad(REPLAY, "path 'sound'", drawn(_set("path", "sound"))),
    "a path that only reads": Bad(REPLAY, "path 'understanding'", drawn(_set("path", "understanding"))),
    "a prompt that is a number": Bad(REPLAY, "prompt 7", drawn(_set("prompt", 7))),
    "a seed in words": Bad(REPLAY, "seed 'x'", drawn(_set("seed", "x"))),
    "a seed below 0": Bad(REPLAY, "seed -1", drawn(_set("seed", -1))),
    "a height of 0": Bad(REPLAY, "height 0", drawn(_set("height", 0))),
    "a height of null": Bad(REPLAY, "height None", drawn(_set("height", None))),
    "a width of a million": Bad(REPLAY, "width 1000000", drawn(_set("width", 1_000_000))),
    "a checkpoint that is a number": Bad(REPLAY, "checkpoint 7", drawn(_set("checkpoint", 7))),
    "a checkpoint that is gone": Bad(REPLAY, "checkpoint /no/where does not exist; name the one", drawn(_set("checkpoint", "/no/where"))),
    "weights that are a number": Bad(REPLAY, "weights 7", drawn(_set("weights", 7))),
    "other weights": Bad(REPLAY, "drawn by other weights than those", drawn(_set("weights", "0" * 64))),
    "other settings": Bad(REPLAY, "drawn by other settings", drawn(_set("config", "0" * 64))),
    "a guider that is a word": Bad(REPLAY, "guider 'cfg'", drawn(_set("guider", "cfg"))),
    "a guider of unknown fields": Bad(REPLAY, "'strength'", drawn(_set("guider", {"strength": 2}))),
    "an image that is a word": Bad(REPLAY, "image 'x.png'", drawn(_set("image", "x.png"))),
    "an image without a hash": Bad(REPLAY, "image", drawn(_set("image", {"file": "x.png"}))),
    "an image that is gone": Bad(REPLAY, "no longer there", drawn(_set("image", {"file": "/no/x.png", "sha256": "0", "read": "vq"})), loads=True),
    "a scheduler that is a word": Bad(REPLAY, "scheduler 'euler'", drawn(_set("scheduler", "euler"))),
    "a scheduler whose config is a list": Bad(REPLAY, "scheduler", drawn(_set("scheduler", {"class": "DDIMScheduler", "config": [1]}))),
    "a scheduler of later diffusers": Bad(
        REPLAY, "drawn by QuantumScheduler, which this diffusers does not have", drawn(_set("scheduler", {"class": "QuantumScheduler", "config": {}})), loads=True
    ),
    "a scheduler that is no scheduler": Bad(
        REPLAY, "drawn by AutoencoderKL", drawn(_set("scheduler", {"class": "AutoencoderKL", "config": {}})), loads=True
    ),
    "a dtype that is none": Bad(REPLAY, "dtype 'nn'", drawn(_set("dtype", "nn"))),
    "a dtype that is a number": Bad(REPLAY, "dtype 7", drawn(_set("dtype", 7))),
    "versions that are a list": Bad(REPLAY, "versions", drawn(_set("versions", [1]))),
}

# ------------------------------------------------------------------------------------------------ prompts and pipes

TALK = "chat {ck} --out {tmp}/out --max-new-tokens 4"
PROMPTS = {
    "a prompt longer than the context": Bad(
        ["sample", "{ck}", "--prompt", "an orc " * 600, "--out", "{tmp}/out"], "has .* tokens .* context is 512", loads=True
    ),
    "the second of two prompts is too long": Bad(
        ["sample", "{ck}", "--prompt", "elf", "--prompt", "an orc " * 600, "--num-images", "40", "--steps", "1", "--out", "{tmp}/out"],
        "context is 512", loads=True,
    ),
    "a question longer than the context": Bad(
        ["ask", "{ck}", "--image", "{doll}", "--question", "orc " * 600], "context", loads=True
    ),
    "a size that no patch divides": Bad("sample {ck} {sample} --height 30 --width 30", "size 30x30 is not divisible", loads=True),
    "a lone height that no patch divides": Bad("sample {ck} {sample} --height 30", "size 30x32 is not divisible", loads=True),
    "a size beyond the context": Bad("sample {ck} {sample} --height 800 --width 800", "context is 512", loads=True),
    "a size of 65536": Bad("sample {ck} {sample} --height 65536 --width 65536", "context is 512", loads=True),
    "more steps than there are": Bad("sample {ck} --prompt elf --out {tmp}/out --steps 1001", "the process has 1000 timesteps", loads=True),
    "a path that only reads": Bad("sample {ck} {sample} --path understanding", "only reads", loads=True),
    "an unknown slash command": Bad(TALK, "there is no /draws; /help shows", stdin=b"/draws an elf\n", loads=True),
    "an undo of nothing": Bad(TALK, "undo|take back|turn", stdin=b"/undo\n", loads=True),
    "an undo of words": Bad(TALK, "/undo takes a number of turns, not 'all'", stdin=b"/undo all\n", loads=True),
    "a save of nothing": Bad(TALK, "nothing was said yet", stdin=b"/save\n", loads=True),
    "an image without a name": Bad(TALK, "/image needs the name of a file", stdin=b"/image\n", loads=True),
    "a drawing of nothing": Bad(TALK, "/draw needs", stdin=b"/draw\n", loads=True),
}

# fmt: on

TABLE = {
    f"{kind}: {name}": row
    for kind, rows in (
        ("arguments", ARGUMENTS), ("places", PLACES), ("checkpoints", CHECKPOINTS), ("foreign", FOREIGN), ("configs", CONFIGS),
        ("pictures", PICTURES), ("records", RECORDS), ("manifests", MANIFESTS), ("prompts", PROMPTS),
    )
    for name, row in rows.items()
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def tiny(tiny_checkpoint):
    _TINY["ck"] = tiny_checkpoint


@pytest.fixture
def said_by_libraries():
    """What libraries log or warn."""
    records: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: records.append(f"{record.name}: {record.getMessage()}")
    names = ("", "transformers", "diffusers", "huggingface_hub", "datasets", "accelerate", "PIL", "torch", "matplotlib")
    for name in names:
        logging.getLogger(name).addHandler(handler)
    gc.collect()  # what earlier tests left open is not said here
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        yield records, warned
    for name in names:
        logging.getLogger(name).removeHandler(handler)


@pytest.mark.parametrize("name", TABLE)
def test_one_sentence(run, doll, tmp_path, tiny_checkpoint, monkeypatch, said_by_libraries, name):
    row, new = TABLE[name], tmp_path / "new"
    new.mkdir()
    row.make(new)
    before = {str(file) for file in new.rglob("*")}
    good = tmp_path / "good.yaml"
    good.write_text(yaml.safe_dump(GOOD).replace("{tmp}", str(tmp_path)))
    places = {"tmp": new, "ck": tiny_checkpoint, "doll": doll, "good": good, "sample": SAMPLE}
    words = row.words.split(" ") if isinstance(row.words, str) else row.words

    def filled(text: str) -> str:
        for _ in range(2):
            for key, value in places.items():
                text = text.replace("{" + key + "}", str(value))
        return text

    words = [part for word in words for part in (filled(word).split(" ") if word == "{sample}" else [filled(word)])]
    words = [] if words == [""] and row.words == "" else words
    if not row.loads:
        monkeypatch.setattr(HybridGenForConditionalGeneration, "__init__", _heavy)
    if row.stdin is not None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(row.stdin), encoding="utf-8"))
    code, lines, error = run(*words)
    assert (code, lines) == (2, []), error
    assert len(error.splitlines()) == 1, error
    assert error.startswith("hybridgen: ")
    assert re.search(
        re.sub(r"\{(tmp|ck|doll|good)\}", lambda found: re.escape(str(places[found[1]])), row.sentence), error
    ), error
    logged, warned = said_by_libraries
    assert not logged, logged
    assert not warned, [str(warning.message) for warning in warned]
    after = {str(file) for file in new.rglob("*")} - before
    assert not after, after
    assert not (tmp_path / "run").exists()


_make = HybridGenForConditionalGeneration.__init__


def _heavy(*args, **kwargs):
    """Whatever makes a model but the trial of a tiny decoder, which is part of reading a config."""
    if any(frame.filename.endswith("bridges/backbones.py") for frame in traceback.extract_stack()):
        return _make(*args, **kwargs)
    raise AssertionError("a model was made or loaded before the mistake was told")


def test_the_table_is_long():
    assert len(TABLE) >= 150
