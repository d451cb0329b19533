"""The papers' recipes: their settings at full size as the configs have them, and each config run at toy size.

The toys are small in width, pictures, rows and steps alone: what makes a recipe itself (codecs, schedules, frozen
parts, losses, paths, order of stages) is the config's own.
"""

import json
import math
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from transformers import AutoModel, AutoModelForCausalLM, SiglipVisionConfig, SiglipVisionModel

from hybridgen import HybridGenForConditionalGeneration
from hybridgen.bridges.janus.flow_names import janusflow_config
from hybridgen.cli import main as cli
from hybridgen.pipeline_hybridgen import load_pipeline
from hybridgen.training import load_config
from hybridgen.training.config import strict
from hybridgen.training.config.parts import hybrid_config
from hybridgen.training.optim.rows import IMAGE_TOKENS
from hybridgen.training.stages.building import build_parts
from tests.bridges.test_assemble import TOWER, save_backbone
from tests.pipelines import tiny_vq_model
from tests.processors import picture, user

CONFIGS = Path(__file__).parents[2] / "configs"
SIDE = 32  # pixels of a picture, by every path

SMALL = [
    "steps=2", "accumulation=1", "log_every=1", "save_every=100", "schedule.warmup_steps=1", "threads=1",
    "precision=fp32", "data.per_device_batch_size=2", "data.sequence_length=256", "data.prefetch=0",
    "data.loader_threads=0",
]  # fmt: skip
WORDS = ["model.tokenizer.vocab_size=320", "model.tokenizer.samples=20"]
BACKBONE = ["num_hidden_layers=2", "hidden_size=32", "intermediate_size=64", "num_attention_heads=4"]
BACKBONE = [f"model.text_config.{word}" for word in [*BACKBONE, "num_key_value_heads=4", "head_dim=8"]]
DIFFUSION = "model.diffusion_config"
TRANSFUSION = [*WORDS, *BACKBONE, "codec.vae={vae8}", f"{DIFFUSION}.sample_size=4"]
PARTS = ["model.language_model={llm}", "model.vision_model={tower}"]
CODES = ["codec.vq={vq}", "model.vq_config.num_embeddings=50", "model.vq_config.sample_size=8"]

# config -> the stage it goes on from, and what makes it small
RECIPES: dict[str, tuple[str | None, list[str]]] = {
    **{f"transfusion_{size}": (None, TRANSFUSION) for size in ("0.16b", "0.37b", "0.76b", "1.4b", "7b")},
    "janus_stage1": (None, [*PARTS, *CODES]),
    "janus_stage2": ("janus_stage1", []),
    "janus_stage3": ("janus_stage2", []),
    "janusflow_stage1": (
        None,
        [
            *PARTS, "codec.vae={vae4}",
            *(f"{DIFFUSION}.{word}" for word in ("sample_size=4", "alignment_layer=1", "convnext_channels=8")),
        ],
    ),
    "janusflow_stage2": ("janusflow_stage1", []),
    "janusflow_stage3": ("janusflow_stage2", []),
    "chameleon": (None, [*WORDS, *BACKBONE[:-1], *CODES]),  # whose heads are as wide as the backbone over their number
    "lmfusion": (None, ["model.language_model={llm}", "codec.vae={vae8}", f"{DIFFUSION}.sample_size=4"]),
    "llava_stage1": (None, PARTS),
    "llava_stage2": ("llava_stage1", []),
    "bagel_style": (
        None,
        [*PARTS, "codec.vae={vae16}", f"{DIFFUSION}.sample_size=4", "data.sources.0.image_tokens=4",
         "data.sources.4.image_tokens=4"],
    ),
}  # fmt: skip
LOSSES = {
    "transfusion": {"text", "diffusion"},
    "janus": {"text", "code", "token"},
    "janusflow": {"text", "diffusion", "alignment"},
    "chameleon": {"text", "code", "token", "z"},
    "lmfusion": {"text", "diffusion"},
    "llava": {"text"},
    "bagel": {"text", "diffusion"},
}
DATA = {
    "text": "text", "pairs": "pairs", "imagenet": "pictures", "questions": "questions", "captions": "questions",
    "instructions": "questions", "interleaved": "interleaved", "quality": "interleaved", "documents": "documents",
}  # fmt: skip


# ------------------------------------------------------------------------------------------------------ at toy size


def save_vae(folder: Path, channels: int) -> None:
    """8x8 pixels a latent, as the papers' are."""
    torch.manual_seed(channels)
    AutoencoderKL(
        block_out_channels=(4,) * 4, norm_num_groups=2, latent_channels=channels, scaling_factor=0.5,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=1,
    ).save_pretrained(folder)  # fmt: skip


def save_data(folder: Path) -> None:
    (folder / "pictures").mkdir()
    captions = [f"picture {number} of many colours" for number in range(6)]
    for number in range(6):
        picture(40, SIDE, number).save(folder / "pictures" / f"{number}.png")

    def write(name: str, conversations: list[list]) -> None:
        lines = []
        for turns in conversations:
            roles = zip(("user", "assistant") * len(turns), turns, strict=False)
            messages = [{"role": role, "content": [part(each) for each in turn]} for role, turn in roles]
            lines.append(json.dumps({"messages": messages}) + "\n")
        (folder / f"{name}.jsonl").write_text("".join(lines))

    def part(content) -> dict:
        if isinstance(content, str):
            return {"type": "text", "text": content}
        return {"type": "image", "image": f"pictures/{content}.png"}

    def write_rows(name: str, rows: list[dict]) -> None:
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    words = " ".join(f"number {i} is red" for i in range(200))  # longer than a row
    write_rows("text", [{"text": words if i == 2 else f"number {i} is red"} for i in range(6)])
    pictures = [f"pictures/{i}.png" for i in range(6)]
    write_rows("documents", [{"texts": ["first", None, "then"], "images": [None, file, None]} for file in pictures])
    write("pairs", [[[captions[i]], [i]] for i in range(6)])
    write("questions", [[[i, "what is it?"], [f"number {i}"]] for i in range(6)])
    write("interleaved", [[["draw"], [i], ["another"], [5 - i, "there"], ["which?"], ["red"]] for i in range(6)])
    named = [json.dumps({"file_name": f"{i}.png", "text": captions[i]}) for i in range(6)]
    (folder / "pictures" / "metadata.jsonl").write_text("\n".join(named) + "\n")


class Recipes:
    """Runs recipes, each once, after the stages they go on from."""

    def __init__(self, folder: Path):
        self.folder, self.done = folder, {}
        save_data(folder)
        save_backbone(folder / "llm", "llama")
        torch.manual_seed(1)
        SiglipVisionModel(SiglipVisionConfig(**{**TOWER, "image_size": SIDE, "patch_size": 16})).save_pretrained(
            folder / "tower"
        )
        for channels in (4, 8, 16):
            save_vae(folder / f"vae{channels}", channels)
        tiny_vq_model().save_pretrained(folder / "vq")

    def words(self, name: str) -> list[str]:
        before, words = RECIPES[name]
        places = {key: self.folder / key for key in ("llm", "tower", "vae4", "vae8", "vae16", "vq")}
        words = [word.format(**places) for word in words]
        if before is not None:
            words.append(f"model.from_pretrained={self.run(before) / 'checkpoint'}")
        for number, source in enumerate(strict.read(CONFIGS / f"{name}.yaml")["data"]["sources"]):
            file = DATA[Path(source["source"]).stem]
            place = self.folder / (file if file == "pictures" else f"{file}.jsonl")
            words.append(f"data.sources.{number}.source={place}{'/' if file == 'pictures' else ''}")
        return [*SMALL, *words, f"output_dir={self.folder / 'runs' / name}"]

    def run(self, name: str) -> Path:
        if name not in self.done:
            assert cli.main(["train", str(CONFIGS / f"{name}.yaml"), *self.words(name)]) == 0, name
            self.done[name] = self.folder / "runs" / name
        return self.done[name]

    def model(self, name: str) -> HybridGenForConditionalGeneration:
        return load_pipeline(self.run(name) / "checkpoint").model

    def changed(self, before: str | None, name: str) -> set[str]:
        """Parts of the model that a stage changed."""
        after = self.model(name).state_dict()
        if before is None:
            parts = build_parts(load_config(CONFIGS / f"{name}.yaml", [*self.words(name), "resume=never"]))
            first = parts.pipeline.model.state_dict()
        else:
            first = self.model(before).state_dict()
        moved = {key for key in after if not torch.equal(first[key], after[key])}
        return {key.removeprefix("model.").split(".")[0] for key in moved}


@pytest.fixture(scope="module")
def recipes(tmp_path_factory) -> Recipes:
    return Recipes(tmp_path_factory.mktemp("recipes"))


@pytest.mark.parametrize("name", RECIPES)
def test_each_config_trains_draws_and_answers(recipes, name):
    out = recipes.run(name)
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    seen: dict[str, float] = {}
    for record in records:
        seen |= {key.removeprefix("loss/"): value for key, value in record.items() if key.startswith("loss/")}
    assert set(seen) - {"total"} == LOSSES[name.split("_")[0]], seen
    assert all(math.isfinite(value) for value in seen.values())

    pipeline = load_pipeline(out / "checkpoint")
    pipeline.set_progress_bar_config(disable=True)
    for path in pipeline.model.config.paths:
        if path != "understanding":
            how = {"num_inference_steps": 2} if path == "diffusion" else {}
            image = pipeline("a picture", path=path, guidance_scale=2.0, seed=0, **how).images[0]
            assert image.size == (SIDE, SIDE)
        assert isinstance(pipeline.answer(picture(SIDE, SIDE), "what is it?", path=path, max_new_tokens=3)[0], str)


DRAWN = {  # recipe: how the paper draws (and where it says so), and by which scheduler of diffusers
    "transfusion": (  # arXiv 2408.11039, 4.1: 250 steps, guidance 5 in the controlled comparison
        {"diffusion": {"num_inference_steps": 250, "guidance_scale": 5.0}}, "DDPMScheduler",
    ),
    "lmfusion": (  # arXiv 2412.15188, table 2: FID 8.75 with 1.55; steps as Transfusion's
        {"diffusion": {"num_inference_steps": 250, "guidance_scale": 1.55}}, "DDPMScheduler",
    ),
    "janusflow": (  # deepseek-ai/Janus, demo/app_janusflow.py: `generate`'s 30 Euler steps, cfg_weight 2
        {"diffusion": {"num_inference_steps": 30, "guidance_scale": 2.0}}, "FlowMatchEulerDiscreteScheduler",
    ),
    "bagel": (  # ByteDance-Seed/Bagel, inference.ipynb: 50 steps, timestep_shift 3, cfg_text_scale 4, cfg_interval
        # .4 to 1, in noise levels: of 50 shifted ones, 41 are above .4
        {
            "diffusion": {
                "num_inference_steps": 50, "guidance_scale": 4.0, "shift": 3.0, "guidance_interval": [0.0, 0.82],
            },
        },
        "FlowMatchEulerDiscreteScheduler",
    ),
    # arXiv 2410.13848, 3.4, and deepseek-ai/Janus, generation_inference.py: guidance 5, temperature 1
    "janus": ({"vq": {"guidance_scale": 5.0, "temperature": 1.0}}, None),
    # facebookresearch/chameleon, chameleon/inference/chameleon.py: Options.Image; the paper gives none
    "chameleon": ({"vq": {"guidance_scale": 3.0, "temperature": 0.7, "top_p": 0.9}}, None),
    "llava": (None, None),
}  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_a_checkpoint_draws_as_its_paper_does(recipes, name):
    """Without a setting in the call; also a stage that goes on from another checkpoint."""
    defaults, scheduler = DRAWN[name.split("_")[0]]
    index = json.loads((recipes.run(name) / "checkpoint" / "model_index.json").read_text())
    assert index.get("sampling_defaults") == defaults
    assert index["scheduler"][1] == scheduler
    pipeline = load_pipeline(recipes.run(name) / "checkpoint")
    for path, settings in (defaults or {}).items():
        assert pipeline.sampling_settings(path).items() >= settings.items()


def test_what_a_later_stage_says_of_drawing_holds(recipes):
    """Over what it goes on from; what it does not say stays."""
    words = [*recipes.words("janusflow_stage2"), "sampling.steps=null", "sampling.guidance=3.5", "resume=never"]
    words += ["sampling.diffusion.shift=2", "sampling.scheduler=UniPCMultistepScheduler"]
    pipeline = build_parts(load_config(CONFIGS / "janusflow_stage2.yaml", words)).pipeline
    assert pipeline.sampling_defaults == {"diffusion": {"num_inference_steps": 30, "guidance_scale": 3.5, "shift": 2}}
    assert type(pipeline.scheduler).__name__ == "UniPCMultistepScheduler"
    assert pipeline.scheduler.config.use_flow_sigmas
    assert pipeline.scheduler.config.prediction_type == "flow_prediction"


def test_every_paper_config_is_run_here():
    known = {"demo", "demo_codec", "small", "small_codec", "small_tower", "smollm_stage1", "smollm_stage2"}
    papers = {"transfusion", "janus", "janusflow", "chameleon", "lmfusion", "llava", "bagel"}
    there = {file.stem for file in CONFIGS.glob("*.yaml") if not file.stem.startswith("janus_pro_")} - known
    assert {name for name in there if name.split("_")[0] in papers} == set(RECIPES)


ADAPTERS = {"aligner", "generation_aligner", "generation_head"}
DRAWING = {"patch_embed", "timestep_embedder", "final_layer", "alignment_head"}


@pytest.mark.parametrize(
    ("before", "name", "trained"),
    [
        (None, "janus_stage1", ADAPTERS),
        ("janus_stage1", "janus_stage2", {*ADAPTERS, "generation_embeddings", "language_model", "lm_head"}),
        (
            "janus_stage2", "janus_stage3",
            {*ADAPTERS, "generation_embeddings", "language_model", "lm_head", "vision_model"},
        ),
        (None, "janusflow_stage1", {"aligner", *DRAWING}),
        ("janusflow_stage1", "janusflow_stage2", {"aligner", *DRAWING, "language_model", "lm_head"}),
        ("janusflow_stage2", "janusflow_stage3", {"aligner", *DRAWING, "language_model", "lm_head", "vision_model"}),
        (None, "lmfusion", {"language_model", "lm_head", *DRAWING} - {"alignment_head"}),
        (None, "llava_stage1", {"aligner"}),
        ("llava_stage1", "llava_stage2", {"aligner", "language_model", "lm_head"}),
    ],
)  # fmt: skip
def test_a_stage_trains_what_the_paper_trains(recipes, before, name, trained):
    assert recipes.changed(before, name) == trained


def test_lmfusion_says_what_its_text_model_says_to_the_bit(recipes):
    """And has learnt, in rows of its own, when to draw: whatever the words, those rows alone have moved."""
    ours, theirs = recipes.model("lmfusion"), AutoModelForCausalLM.from_pretrained(recipes.folder / "llm")
    words = theirs.config.vocab_size
    ids = torch.randint(3, words, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(ours(ids).logits[..., :words], theirs(ids).logits)
    pretrained = theirs.model.state_dict()
    for name, weight in ours.model.language_model.state_dict().items():
        if name != "embed_tokens.weight":  # which has rows for the tokens of images
            assert torch.equal(weight, pretrained[name.replace(".own.", ".")]) != (".own." in name), name
    config = load_config(CONFIGS / "lmfusion.yaml", [*recipes.words("lmfusion"), "resume=never"])
    before = build_parts(config).pipeline.model.state_dict()
    for name in ("model.language_model.embed_tokens.weight", "lm_head.weight"):
        moved = {row for row, same in enumerate((ours.state_dict()[name] == before[name]).all(-1)) if not same}
        assert ours.config.begin_image_token_id in moved
        assert moved <= {getattr(ours.config, field) for field in IMAGE_TOKENS}
        assert min(moved) >= words


def test_janus_leads_away_from_pads_in_every_stage(recipes):
    """Table of traps, CFG row: pads in place of all tokens but the first, attended to; JanusFlow's differs, as said."""
    for name, kind in (
        ("janus_stage1", "janus-official"),
        ("janus_stage3", "janus-official"),
        ("janusflow_stage2", "empty"),
    ):
        assert load_pipeline(recipes.run(name) / "checkpoint").processor.unconditional == kind
    pipeline = load_pipeline(recipes.run("janus_stage2") / "checkpoint")
    row = pipeline.processor.prompt([user("a red circle")], unconditional=True).layout.input_ids
    words = pipeline.processor.prompt([user("a red circle")]).layout.input_ids
    assert (len(row), row[0], set(row[1:])) == (len(words), words[0], {pipeline.processor.special_tokens.pad})


def test_janusflow_is_causal_inside_a_picture_and_keeps_siglip(recipes):
    model = recipes.model("janusflow_stage2")
    assert model.model.bidirectional_ids() == ()
    tower = AutoModel.from_pretrained(recipes.folder / "tower").state_dict()
    mine = model.model.vision_model.state_dict()
    assert all(torch.equal(mine[key], tower[key.removeprefix("vision_model.")]) for key in mine if key in tower)


def test_chameleon_has_one_table_one_head_and_normalised_queries(recipes):
    model = recipes.model("chameleon")
    names = {name for name, _ in model.named_parameters()}
    assert not {name for name in names if "generation_" in name}
    assert "model.language_model.layers.0.self_attn.q_norm.weight" in names
    first = model.config.vq_config.first_token_id
    assert model.get_input_embeddings().num_embeddings == first + 50
    started = build_parts(load_config(CONFIGS / "chameleon.yaml", recipes.words("chameleon"))).pipeline.model
    for table in ("model.language_model.embed_tokens.weight", "lm_head.weight"):
        moved = (model.state_dict()[table] != started.state_dict()[table]).any(-1)
        assert moved[first:].any()
        assert moved[:first].any()


def test_bagel_reads_clean_copies_and_what_the_tower_sees(recipes):
    config = load_config(CONFIGS / "bagel_style.yaml", recipes.words("bagel_style"))
    parts = build_parts(config)
    interleaved = next(task for task in parts.sources if task.config.clean_copy)
    document = interleaved.document(0, parts.pipeline.processor)
    wanted = [("diffusion", True), ("diffusion", False), ("understanding", False)]
    assert [(each.path, each.write) for each in document.images] == wanted * 2
    assert any(document.layout.noised_mask)
    pipeline = load_pipeline(recipes.run("bagel_style") / "checkpoint")
    answer = pipeline.answer(picture(SIDE, SIDE), "what?", path=["diffusion", "understanding"], max_new_tokens=3)
    assert len(answer) == 1


# ----------------------------------------------------------------------------------------------------- at full size


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """A config as it stands, beside the JSON files of what it needs."""
    folder = tmp_path_factory.mktemp("full")
    files = {
        "llm": {"model_type": "llama", "hidden_size": 2048, "num_hidden_layers": 24, "num_attention_heads": 16},
        "tower": {
            "model_type": "siglip_vision_model",
            "hidden_size": 1024,
            "num_attention_heads": 16,
            "image_size": 384,
            "patch_size": 16,
        },
        **{f"vae{n}": {"latent_channels": n, "block_out_channels": [1] * 4} for n in (4, 8, 16)},
        **{
            f"vq{n}": {"model_type": "janus_vqgan", "num_embeddings": n, "channel_multiplier": [1, 1, 2, 2, 4]}
            for n in (8192, 16384)
        },
    }
    for name, content in files.items():
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(content))

    def load(name: str, **places: str):
        return load_config(CONFIGS / f"{name}.yaml", [f"{key}={folder / place}" for key, place in places.items()])

    return load


SIZES = {  # table 1 of arXiv 2408.11039: layers, width, heads
    "0.16b": (16, 768, 12), "0.37b": (24, 1024, 16), "0.76b": (24, 1536, 24), "1.4b": (24, 2048, 16),
    "7b": (32, 4096, 32),
}  # fmt: skip


@pytest.mark.parametrize("size", SIZES)
def test_transfusion_is_of_the_size_it_is_called(full, size):
    config = full(f"transfusion_{size}", **{"codec.vae": "vae8"})
    shape = config.model.text_config
    assert (shape["num_hidden_layers"], shape["hidden_size"], shape["num_attention_heads"]) == SIZES[size]
    assert shape["head_dim"] * shape["num_attention_heads"] == shape["hidden_size"]
    assert config.objective.diffusion_weight == 5.0
    assert (config.steps, config.optimizer.lr, config.schedule.warmup_steps) == (250_000, 3e-4, 4000)
    assert (config.optimizer.weight_decay, config.optimizer.decay_all) == (0.1, True)
    rows = config.data.per_device_batch_size * config.accumulation * (64 if size == "7b" else 8)
    assert rows * config.data.sequence_length == 2**21
    hybrid = hybrid_config(config.model, vocab_size=config.model.tokenizer.vocab_size)
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in HybridGenForConditionalGeneration(hybrid).parameters())
    assert count / 1e9 == pytest.approx(float(size[:-1]), rel=0.07)


def documents_a_step(config) -> int:
    """On 8 processes: six documents of a picture of 576 tokens and its words to a row, two of LLaVA's with 729."""
    a_row = {4096: 6, 2048: 2}[config.data.sequence_length]
    return config.data.per_device_batch_size * config.accumulation * 8 * a_row


JANUS = {"model.language_model": "llm", "model.vision_model": "tower", "codec.vq": "vq16384"}


def test_janus_stage1(full):
    """Table 1 of arXiv 2410.13848; stages II and III go on from checkpoints, and are read in the toys below."""
    config = full("janus_stage1", **JANUS)
    assert (config.optimizer.lr, config.optimizer.weight_decay, config.optimizer.betas) == (1e-3, 0.0, [0.9, 0.95])
    assert (config.schedule.name, config.schedule.warmup_steps, config.steps, config.clip) == ("cosine", 300, 10_000, 1)
    assert documents_a_step(config) == 240  # the paper's 256, in rows of six
    assert config.objective.token_mean == "joint"
    assert [source.weight for source in config.data.sources] == [1, 1]


STAGES = {  # config: lr, decay, schedule, warmup, steps, documents a step on 8 processes, shares by source and step
    "janus_stage2": (1e-4, 0.0, "constant", 5000, 180_000, 480, [2, 3, {0: 5, 120_000: 0}, {0: 0, 120_000: 5}]),
    "janus_stage3": (2e-5, 0.1, "constant", 0, 24_000, 240, [7, 10, 3]),
    "janusflow_stage2": (
        1e-4, 0.0, "constant", 2000, 390_000, 480, [{0: 30, 10_000: 14}, {0: 50, 10_000: 80}, {0: 20, 10_000: 6}],
    ),
    "janusflow_stage3": (2e-5, 0.0, "constant", 1000, 26_000, 240, [21, 70, 9]),
    "llava_stage2": (2e-5, 0.0, "cosine", 156, 5197, 128, [1]),
}  # fmt: skip


@pytest.mark.parametrize("name", STAGES)
def test_stages_that_go_on(recipes, name):
    lr, decay, schedule, warmup, steps, documents, shares = STAGES[name]
    before = recipes.run(RECIPES[name][0]) / "checkpoint"
    config = load_config(CONFIGS / f"{name}.yaml", [f"model.from_pretrained={before}"])
    assert (config.optimizer.lr, config.optimizer.weight_decay, config.schedule.name) == (lr, decay, schedule)
    assert (config.schedule.warmup_steps, config.steps) == (warmup, steps)
    assert documents_a_step(config) == documents
    assert [source.weight for source in config.data.sources] == shares


def test_janusflow(full):
    """Section 3 of arXiv 2411.07975."""
    places = {"model.language_model": "llm", "model.vision_model": "tower", "codec.vae": "vae4"}
    config = full("janusflow_stage1", **places)
    diffusion, objective = config.model.diffusion_config, config.objective
    assert (diffusion["prediction_type"], diffusion["noise_schedule"]) == ("velocity", "flow")
    assert (diffusion["in_channels"], diffusion["sample_size"], diffusion["bidirectional"]) == (4, 48, False)
    assert (diffusion["alignment_layer"], objective.alignment_weight) == (6, 1.0)
    published = janusflow_config().diffusion_config
    assert all(getattr(published, name) == value for name, value in diffusion.items() if "alignment" not in name)
    assert objective.timestep_sampling == "logit_normal"
    assert (config.ema.decay, config.optimizer.lr, config.steps) == (0.99, 1e-4, 10_000)
    assert documents_a_step(config) == 480  # the paper's 512, in rows of six
    assert [source.weight for source in config.data.sources] == [50, 50]


def test_chameleon(full):
    """Section 2.3 of arXiv 2405.09818, the 7B."""
    config = full("chameleon", **{"codec.vq": "vq8192"})
    hybrid = hybrid_config(config.model, vocab_size=config.model.tokenizer.vocab_size)
    assert hybrid.vocab_size == 65_536
    assert hybrid.vq_config.first_token_id == 65_536 - 8192
    assert (config.dropout, config.objective.z_loss, config.clip) == (0.1, 1e-5, 1.0)
    assert (config.objective.token_mean, config.optimizer.decay_all) == ("joint", True)
    optimizer = config.optimizer
    assert (optimizer.lr, optimizer.betas, optimizer.eps, optimizer.weight_decay) == (1e-4, [0.9, 0.95], 1e-5, 0.1)
    assert (config.schedule.name, config.schedule.warmup_steps) == ("exponential", 4000)
    tokens = config.data.per_device_batch_size * config.accumulation * 64 * config.data.sequence_length * config.steps
    assert tokens == pytest.approx(9.2e12, rel=0.01)
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in HybridGenForConditionalGeneration(hybrid).parameters())
    assert count / 1e9 == pytest.approx(7, rel=0.03)


def test_lmfusion(full):
    """Section 4 of arXiv 2412.15188."""
    config = full("lmfusion", **{"model.language_model": "llm", "codec.vae": "vae8"})
    assert (config.optimizer.lr, config.schedule.warmup_steps, config.data.sequence_length) == (1e-4, 4000, 4096)
    assert config.schedule.min_ratio * config.optimizer.lr == pytest.approx(1.5e-5)
    assert config.data.sources[0].order == 0.8


def test_llava(full):
    """Table 9 of arXiv 2310.03744."""
    config = full("llava_stage1", **{"model.language_model": "llm", "model.vision_model": "tower"})
    assert (config.optimizer.lr, config.optimizer.weight_decay, config.schedule.name) == (1e-3, 0.0, "cosine")
    assert config.schedule.warmup_steps == round(0.03 * config.steps)
    assert documents_a_step(config) == 256
    assert config.model.aligner_depth == 2


def test_bagel(full):
    """Table 3 of arXiv 2505.14683, its pretraining stage."""
    places = {"model.language_model": "llm", "model.vision_model": "tower", "codec.vae": "vae16"}
    config = full("bagel_style", **places)
    assert (config.objective.text_weight, config.objective.diffusion_weight) == (0.25, 1.0)
    assert (config.optimizer.lr, config.optimizer.eps, config.optimizer.weight_decay) == (1e-4, 1e-15, 0.0)
    assert (config.schedule.name, config.schedule.warmup_steps, config.steps) == ("constant", 2500, 200_000)
    assert config.ema.decay == 0.9999
    assert sum(source.weight for source in config.data.sources) == pytest.approx(1.0)
    assert config.model.understanding_bidirectional
