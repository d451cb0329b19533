"""Recipes at the size of a test: fine-tuning Janus-Pro as docs/finetuning.md says it, a text model that learns to see,
and the paper's settings in the configs."""

import functools
import itertools
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from PIL import Image

from hybridgen import HybridGenForConditionalGeneration
from hybridgen.bridges.adapters import open_pipeline
from hybridgen.bridges.assemble import AssemblyOptions, assemble
from hybridgen.cli import main as cli
from hybridgen.data.formats.json_files import JsonlSource
from hybridgen.data.synthetic import emoji
from hybridgen.pipeline_hybridgen import load_pipeline
from hybridgen.training import load_config
from hybridgen.training.config import strict
from hybridgen.training.config.parts import hybrid_config
from hybridgen.training.config.schema import GroupConfig, ModelConfig, TokenizerConfig
from hybridgen.training.optim.optimization import freeze
from tests.bridges.test_assemble import TOWER, save_backbone
from tests.januses import save_transformers

ROOT = Path(__file__).parents[2]
STAGES = {  # arXiv 2501.17811 (1b, 7b), 2410.13848 (sft): lr, decay, warmup, steps, documents a step, shares, frozen
    **{
        f"{size}_{stage}": settings
        for size, last_steps in (("1b", 80_000), ("7b", 40_000))
        for stage, settings in {
            "stage1": (
                1e-3, 0.0, 600, 20_000, 240, (1, 0, 3), {"language_model", "lm_head", "vision_model", "embeddings"}
            ),
            "stage2": (1e-4, 0.0, 5000, 270_000, 480, (2, 3, 5), {"vision_model"}),
            "stage3": (4e-5, 0.0, 0, last_steps, 144, (5, 1, 4), set()),
        }.items()
    },
    "1b_sft": (2e-5, 0.1, 0, 24_000, 240, (7, 3, 10), set()),
}  # fmt: skip


@pytest.fixture(scope="module")
def janus(tmp_path_factory) -> Path:
    """A tiny Janus as transformers saves one, and as `hybridgen convert` makes ours of it."""
    folder = tmp_path_factory.mktemp("janus")
    save_transformers(folder / "Janus-Pro-1B")
    assert cli.main(["convert", str(folder / "Janus-Pro-1B"), str(folder / "start")]) == 0
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Real pictures with real captions, written out as people keep them."""
    folder = tmp_path_factory.mktemp("data") / "pictures"
    folder.mkdir()
    source = emoji.Emoji("train", "draw", 0)
    lines = []
    for number in range(12):
        source.picture(number).save(folder / f"{number}.png")
        lines.append(json.dumps({"file_name": f"{number}.png", "text": emoji.caption(source.spec(number))}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def codes_loss(metrics: Path) -> list[float]:
    return [json.loads(line)["loss/code"] for line in metrics.read_text().splitlines() if "loss/code" in line]


def test_the_three_commands_of_the_docs(janus, pictures, tmp_path, capsys, monkeypatch):
    """The loss of codes falls; what is answered stays, to the bit."""
    pytest.importorskip("peft", reason="LoRA is an optional extra: pip install 'hybridgen[peft]'")
    page = (ROOT / "docs" / "finetuning.md").read_text(encoding="utf-8")
    section = page.split("## Janus-Pro, with image generation")[1]
    commands = [shlex.split(line) for line in re.search(r"```sh\n(.*?)```", section, re.DOTALL)[1].splitlines()]
    assert [command[:2] for command in commands] == [["hybridgen", name] for name in ("convert", "train", "sample")]
    os.symlink(janus / "Janus-Pro-1B", tmp_path / "Janus-Pro-1B")
    os.symlink(pictures, tmp_path / "pictures")
    os.symlink(ROOT / "configs", tmp_path / "configs")
    monkeypatch.chdir(tmp_path)
    smaller = ["steps=30", "accumulation=1", "log_every=5", "schedule.warmup_steps=0", "optimizer.lr=0.02", "threads=1"]
    smaller += ["precision=fp32", "data.sequence_length=256", "save_every=100", "lora.rank=8"]
    for command, more in zip(commands, ([], smaller, []), strict=True):
        assert cli.main([*command[1:], *more]) == 0, capsys.readouterr().err
    losses = codes_loss(tmp_path / "runs" / "janus_pro_1b_lora" / "metrics.jsonl")
    assert losses[-1] < 0.8 * losses[0], losses
    assert [Image.open(file).size for file in (tmp_path / "drawn").iterdir()] == [(8, 8)]

    before, after = load_pipeline("runs/janus_pro_1b"), open_pipeline("runs/janus_pro_1b_lora/checkpoint")
    image = Image.open(pictures / "3.png")
    questions = ["what is this?", "is it red?"]
    assert before.answer(image, questions, max_new_tokens=8) == after.answer(image, questions, max_new_tokens=8)
    messages = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "what?"}]}]
    with torch.no_grad():
        logits = [
            each.model(**each.prompt_inputs([each.processor.prompt(messages)])).logits for each in (before, after)
        ]
    assert torch.equal(*logits)
    files = {file.name for file in Path("runs/janus_pro_1b_lora/checkpoint").iterdir()}
    assert "adapter_model.safetensors" in files
    assert "model_index.json" not in files
    assert cli.main(["merge", "runs/janus_pro_1b_lora/checkpoint", "merged"]) == 0
    assert before.answer(image, questions, max_new_tokens=8) == load_pipeline("merged").answer(
        image, questions, max_new_tokens=8
    )
    assert cli.main(["merge", "merged", "again"]) == 2
    assert "merged is no adapter" in capsys.readouterr().err


@pytest.mark.parametrize("stage", STAGES)
def test_the_papers_settings(janus, stage):
    lr, decay, warmup, steps, documents, shares, frozen = STAGES[stage]
    file = ROOT / "configs" / f"janus_pro_{stage}.yaml"
    config = load_config(file, [f"model.from_pretrained={json.dumps(str(janus / 'start'))}"])
    optimizer, schedule = config.optimizer, config.schedule
    assert (optimizer.name, optimizer.lr, optimizer.betas, optimizer.weight_decay) == ("adamw", lr, [0.9, 0.95], decay)
    assert (schedule.name, schedule.warmup_steps, config.steps, config.clip) == ("constant", warmup, steps, 1.0)
    # the papers' 256, 512 and 128 samples, in rows of 4,096 tokens that hold six of about 680
    assert config.data.per_device_batch_size * config.accumulation * 8 * 6 == documents
    assert (config.data.sequence_length, config.objective.token_mean) == (4096, "joint")
    assert config.sampling.of_path("vq") == {"guidance_scale": 5.0, "temperature": 1.0}
    by_name = {source.name: source for source in config.data.sources}
    weights = tuple(by_name[name].weight if name in by_name else 0 for name in ("understanding", "text", "generation"))
    assert weights == shares
    drawn, read = by_name["generation"], by_name["understanding"]
    assert (drawn.write, drawn.prompt_dropout, drawn.loss_on) == ("vq", 0.1, "assistant")
    assert (read.read, read.loss_on) == ("understanding", "assistant")
    named = {group.match.removeprefix("model.").removeprefix("generation_") for group in config.groups if group.frozen}
    assert named == frozen


def test_a_text_model_learns_to_see(tmp_path, capsys, monkeypatch):
    """The path of scripts/graft_smollm.sh with its own configs, on a tiny random decoder; the script's options."""
    monkeypatch.chdir(ROOT)
    script = (ROOT / "scripts" / "graft_smollm.sh").read_text(encoding="utf-8").replace("\\\n", " ")
    options = re.search(r"--paths \S+ .*", script)[0].split()
    small = ["steps=3", "threads=1", "precision=fp32", "data.per_device_batch_size=1", "schedule.warmup_steps=0"]
    small += ["data.sequence_length=512"]  # the tiny decoder's tokens are bytes

    def learn(stage: str, *words: str) -> Path:
        words = [f"output_dir={tmp_path / stage}", *words, *small]
        assert cli.main(["train", f"configs/smollm_{stage}.yaml", *words]) == 0, capsys.readouterr().err
        return tmp_path / stage / "checkpoint"

    tower = learn("tower", "model.tokenizer.samples=50")
    save_backbone(tmp_path / "backbone", "llama tied")
    start = tmp_path / "start"
    arguments = ["--backbone", str(tmp_path / "backbone"), "--vision", str(tower), *options]
    assert cli.main(["init", str(start), *arguments]) == 0

    def same_text(checkpoint: Path) -> int:
        arguments = ["same_text.py", str(tmp_path / "backbone"), str(checkpoint), "--new-tokens", "4"]
        monkeypatch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(ROOT / "scripts" / "same_text.py"), run_name="__main__")
        return stopped.value.code

    assert same_text(start) == 0
    spell = runpy.run_path("scripts/spell_names.py")["spell"]
    spell(start, tmp_path / "spelled", steps=2)
    assert same_text(tmp_path / "spelled") == 0
    stage1 = learn("stage1", f"model.from_pretrained={tmp_path / 'spelled'}")
    stage2 = learn("stage2", f"model.from_pretrained={stage1}")
    assert same_text(stage1) == 0  # frozen: not by a bit after any number of steps
    assert same_text(stage2) == 1
    weights = [
        load_pipeline(folder).model.state_dict() for folder in (tower, start, tmp_path / "spelled", stage1, stage2)
    ]

    def moved(before: dict, after: dict) -> set[str]:
        return {name.split(".")[1] for name in after if name in before and not torch.equal(before[name], after[name])}

    assert "vision_model" not in moved(weights[0], weights[1])  # the tower is the tiny hybrid's
    assert moved(weights[1], weights[2]) == {"vision_model", "aligner"}
    assert moved(weights[2], weights[3]) == {"aligner", "patch_embed", "timestep_embedder", "final_layer"}
    assert "vision_model" not in moved(weights[3], weights[4])
    out = capsys.readouterr().out
    assert out.count("same to the bit") == 12
    assert "DIFFERENT" in out


def test_spelling_is_learnt_in_the_decoders_own_words(tmp_path):
    """A spelling, and that some steps bring the tokens of training pictures nearer to it."""
    script = runpy.run_path(str(ROOT / "scripts" / "spell_names.py"))
    save_backbone(tmp_path / "backbone", "llama tied")
    (tmp_path / "tower.json").write_text(
        json.dumps({"model_type": "siglip_vision_model", **TOWER, "image_size": 64, "patch_size": 16})
    )
    pipeline = assemble(["understanding"], backbone=tmp_path / "backbone", vision=tmp_path / "tower.json")
    pipeline.save_pretrained(tmp_path / "start")
    tokenizer = pipeline.processor.tokenizer
    ids = script["spelling"](emoji.EmojiSpec("crown", "flat"), tokenizer, 60)
    assert len(ids) == 60
    assert tokenizer.decode(ids[:56]).startswith(" crown crown crown")
    pixels, _ = (each[:64] for each in script["prepared"](pipeline, "train", 16))

    def nearness(folder: Path) -> float:
        """The mean cosine of tokens with their words."""
        model, targets = load_pipeline(folder).model, script["prepared"](pipeline, "train", 16)[1][:64]
        with torch.no_grad():
            tokens = model.model.get_image_features(pixels).pooler_output.view(64, 16, -1)
            words = model.get_input_embeddings()(targets)
            return torch.cosine_similarity(tokens, words, dim=-1).mean().item()

    script["spell"](tmp_path / "start", tmp_path / "out", steps=30)
    assert nearness(tmp_path / "out") > nearness(tmp_path / "start") + 0.03  # measured: 0.055
    assemble(["diffusion"], backbone=tmp_path / "backbone", options=AssemblyOptions(image_size=64)).save_pretrained(
        tmp_path / "blind"
    )
    with pytest.raises(ValueError, match="has no understanding path, and so nothing that could learn to spell"):
        script["spell"](tmp_path / "blind", tmp_path / "none", steps=1)
    assert not (tmp_path / "none").exists()


def test_photographs_are_split_and_scored(tmp_path, pipeline, tiny_checkpoint):
    """On stamps as the package keeps them. Oracle of the score: the pipeline asked about each file by hand."""
    script = runpy.run_path(str(ROOT / "scripts" / "photographs.py"))
    stamps = tmp_path / "stamps"
    for number in range(24):
        folder = (
            stamps / ("animals/birds" if number % 2 else "food/fruit/tropical") / ("cartoon" if number > 20 else "")
        )
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGBA", (20, 30), (9 * number, 0, 0, 255)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"A thing {number}.\nde.utf8=Ein Ding.\n", encoding="utf-8")
    out = tmp_path / "out"
    script["fetch"](out, stamps)
    splits = [JsonlSource(out / f"{split}.jsonl") for split in ("train", "held_out")]
    captions = [[each[index]["messages"][-1]["content"][0]["text"] for index in range(len(each))] for each in splits]
    assert sorted(captions[0] + captions[1]) == sorted(f"a thing {number}" for number in range(21))  # no cartoons
    assert min(map(len, captions)) > 0
    for source in splits:
        for index in range(len(source)):
            question, kind, _, caption = (message["content"] for message in source[index]["messages"])
            assert kind[0]["text"] == ("bird" if int(caption[0]["text"].split()[-1]) % 2 else "fruit")
            assert question[0]["image"].getpixel((0, 64)) == (255, 255, 255)
            assert question[0]["image"].getpixel((64, 64))[1] == 0

    scores = script["score"](tiny_checkpoint, out)
    turns = [splits[1][index]["messages"] for index in range(len(splits[1]))]
    kinds = [messages[1]["content"][0]["text"] for messages in turns]
    shown = [messages[0]["content"][0]["image"] for messages in turns]
    answers = pipeline.answer(shown, [script["QUESTION"]] * len(shown), path="understanding", max_new_tokens=16)
    assert scores["n"] == len(kinds)
    assert scores["right"] == sum(one.strip().lower() == other for one, other in zip(answers, kinds, strict=True))
    assert scores["majority"] == max(map(kinds.count, kinds)) / len(kinds)

    with pytest.raises(ValueError, match="holds no photograph of animals/birds"):
        script["fetch"](tmp_path / "none", tmp_path)
    assert not (tmp_path / "none").exists()


def test_the_script_says_its_steps():
    script = ROOT / "scripts" / "graft_smollm.sh"
    done = subprocess.run(["bash", script, "fly"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (
        2,
        "graft_smollm.sh: there is no step 'fly'; say tower, graft, spell, train, score, photographs or all\n",
    )


def test_the_configs_of_smollm_are_read():
    frozen = {}
    for stage in ("stage1", "stage2", "photographs"):
        content = yaml.safe_load((ROOT / "configs" / f"smollm_{stage}.yaml").read_text(encoding="utf-8"))
        frozen[stage] = [group["match"] for group in content["groups"] if group.get("frozen")]
    tower = "model.vision_model"
    assert frozen == {
        "stage1": ["model.language_model", tower],
        "stage2": ["model.language_model.embed_tokens", tower],
        "photographs": ["model.language_model.embed_tokens"],
    }


def header_of(config: Path) -> str:
    """The comments at the head of a recipe, without their marks and continuation lines."""
    lines = config.read_text(encoding="utf-8").splitlines()
    comments = itertools.takewhile(lambda line: line.startswith("#"), lines)
    return re.sub(r"\\?\n\s+", " ", "\n".join(line[2:] for line in comments))


LAUNCHED = [file for file in sorted((ROOT / "configs").glob("*.yaml")) if "accelerate launch" in header_of(file)]
BATCH = (
    r"batch +([\d,]+) (?:rows of ([\d,]+) tokens|pictures) a step: (\d+) of each process x accumulation (\d+) x (\d+)"
)


def launch_of(file: Path):
    """The options of the launch command in a header, and what its launch file says."""
    command = re.search(r"accelerate launch.*?scripts/train\.py", header_of(file))[0]
    options = launch_command_parser().parse_args(shlex.split(command.replace("RANK", "0"))[2:])
    return options, load_config_from_file(str(ROOT / options.config_file))


@pytest.mark.parametrize("file", LAUNCHED, ids=lambda file: file.stem)
def test_the_command_makes_the_batch_that_the_header_states(file):
    """Rows x accumulation x processes, with the processes of the command and its launch file as they stand there."""
    header, content = header_of(file), strict.read(file)
    total, tokens, rows, accumulation, processes = re.search(BATCH, header).groups()
    options, form = launch_of(file)
    assert (options.num_processes or form.num_processes) == int(processes)
    assert content["data"]["per_device_batch_size"] == int(rows)
    assert content.get("accumulation", 1) == int(accumulation)
    assert int(rows) * int(accumulation) * int(processes) == int(total.replace(",", ""))
    assert tokens is None or content["data"]["sequence_length"] == int(tokens.replace(",", ""))
    assert form.distributed_type != "NO"  # which starts one process, whatever --num_processes says
    several = form.num_machines > 1
    assert several == ("--machine_rank RANK" in header)
    assert several == ("--main_process_ip IP" in header)
    if stated := re.search(r"the paper's: .*?([\d,]{7,}) here", header):  # in tokens
        assert int(total.replace(",", "")) * int(tokens.replace(",", "")) == int(stated[1].replace(",", ""))


def llama(layers: int, width: int, inner: int, heads: int, words: int, groups: int | None = None, kind="llama") -> dict:
    return {
        "model_type": kind, "num_hidden_layers": layers, "hidden_size": width, "intermediate_size": inner,
        "num_attention_heads": heads, "num_key_value_heads": groups or heads, "head_dim": width // heads,
        "words": words,
    }  # fmt: skip


def siglip(layers: int, width: int, inner: int, patch: int) -> dict:
    return {
        "num_hidden_layers": layers, "hidden_size": width, "intermediate_size": inner, "num_attention_heads": 16,
        "image_size": 384, "patch_size": patch, "vision_use_head": False,
    }  # fmt: skip


PARTS = {  # what the configs name, in its published size
    "deepseek-llm-1.3b-base": llama(24, 2048, 5632, 16, 102_400),
    "vicuna-7b-v1.5": llama(32, 4096, 11_008, 32, 32_000),
    "Meta-Llama-3-8B": llama(32, 4096, 14_336, 32, 128_256, 8),
    "Qwen3-8B": llama(36, 4096, 12_288, 32, 151_936, 8, "qwen3"),
    "siglip-large-patch16-384": siglip(24, 1024, 4096, 16),
    "siglip-so400m-patch14-384": siglip(27, 1152, 4304, 14),
    "siglip2-so400m-patch14-384": siglip(27, 1152, 4304, 14),
    "janus_pro_7b": llama(30, 4096, 11_008, 32, 102_400),
}
CODES = {"num_embeddings": 16_384, "embed_dim": 8, "sample_size": 24}
STARTS = {  # what `runs/NAME` holds before the first stage: Janus-Pro as it was downloaded
    f"janus_pro_{size}": {"language_model": backbone, "vision_model": "siglip-large-patch16-384", "vq_config": CODES}
    for size, backbone in (("1b", "deepseek-llm-1.3b-base"), ("7b", "janus_pro_7b"))
}


def model_section(content: dict) -> dict:
    """What a config's model is made of: of a stage that goes on, what its first stage says."""
    section = content["model"]
    if section.get("from_pretrained") is None:
        return section
    before = section["from_pretrained"].split("/")[1]
    return STARTS.get(before) or model_section(strict.read(ROOT / "configs" / f"{before}.yaml"))


@functools.cache
def on_meta(section: str):
    """A model of this section (as JSON) without memory."""
    section = json.loads(section)
    text = dict(PARTS[section.pop("language_model")]) if section.get("language_model") else section.pop("text_config")
    words = text.pop("words", None) or section["tokenizer"]["vocab_size"]
    section |= {"text_config": text, "tokenizer": TokenizerConfig()}
    if section.get("vision_model"):
        section["vision_config"] = dict(PARTS[section.pop("vision_model")])
    section.pop("from_pretrained", None)
    hybrid = hybrid_config(ModelConfig(**section), vocab_size=words)
    with torch.device("meta"):
        return HybridGenForConditionalGeneration(hybrid)


@pytest.mark.parametrize("file", LAUNCHED, ids=lambda file: file.stem)
def test_weights_and_moments_fit_the_gpus_that_the_header_names(file):
    """Weights 4 bytes, gradients 4, moments 8, an average 4; shared by the processes of a shard. Three quarters of a
    GPU, so that activations have room. The header's own figure is right to 3 %."""
    content, header = strict.read(file), header_of(file)
    if content.get("stage") == "codec":
        return  # of 100 M parameters
    model = on_meta(json.dumps(model_section(content)))
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    freeze(model, [GroupConfig(**group) for group in content.get("groups", [])])
    learning = sum(p.numel() for p in model.parameters() if p.requires_grad)
    whole = 4 * sum(p.numel() for p in model.parameters()) + (16 if content.get("ema") else 12) * learning
    _, form = launch_of(file)
    processes = int(re.search(BATCH, header)[5])
    shards = 1 if form.distributed_type == "MULTI_GPU" else processes
    if "replicate_size" in str(form.parallelism_config):
        shards = form.parallelism_config["parallelism_config_dp_shard_size"]
        assert shards * form.parallelism_config["parallelism_config_dp_replicate_size"] == processes
    gpu = float(re.search(r"(\d+) GPUs of (\d+) GB", header)[2]) * 1e9
    assert int(re.search(r"(\d+) GPUs of", header)[1]) == processes
    assert whole / shards < 0.75 * gpu
    stated = re.search(r"([\d.]+) GB on each", header)
    assert float(stated[1]) == pytest.approx(whole / shards / 1e9, rel=0.03)


def test_recipes_for_several_processes_are_known():
    assert len(LAUNCHED) == 25
