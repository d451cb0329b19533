"""Codes as tokens of the vocabulary (Chameleon): a text model on ids is the oracle of model, loss, and drawing."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F
from transformers import Qwen3Config, Qwen3ForCausalLM

from hybridgen import HybridGenForConditionalGeneration
from hybridgen.bridges.janus.configs import janus_config
from hybridgen.core.layout import IGNORE, ImageSegment, TextSegment, lay_out
from hybridgen.data.loading import RowLoader
from hybridgen.data.mixture import Mixture
from hybridgen.sampling.codes import CodeSampling, commit_codes, write_codes
from hybridgen.sampling.decoder import Decoder
from hybridgen.sampling.seeds import image_generators
from hybridgen.sampling.text import unwritable_tokens
from hybridgen.training.config import strict
from hybridgen.training.config.schema import ModelConfig, TrainConfig
from hybridgen.training.stages.building import build_model
from hybridgen.training.stages.model import ModelStage
from tests.data.in_memory import drawings, questions, source_of
from tests.models import BEGIN, END, IMAGE, TOKENS, VQ, batch_of, inputs_of, text_config, tiny_config
from tests.models import tiny_model as random_model
from tests.pipelines import tiny_pipeline, tiny_vq_model
from tests.processors import tiny_tokenizer
from tests.sampling.prompts import PROMPTS, prefix_of, worst

FIRST, CODES = 100, 50


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def model(request) -> HybridGenForConditionalGeneration:
    shared = {"num_embeddings": CODES, "first_token_id": FIRST, "sample_size": 4}
    tied = request.param
    text = text_config(vocab_size=FIRST + CODES, initializer_range=0.2, tie_word_embeddings=tied)
    model = random_model(tiny_config(text_config=text, vq_config=shared, diffusion_config=None, vision_config=None))
    assert not any("generation" in name for name, _ in model.named_parameters())
    return model


@pytest.fixture(scope="module")
def oracle(model) -> Qwen3ForCausalLM:
    settings = {name: value for name, value in model.config.text_config.to_dict().items() if name != "model_type"}
    oracle = Qwen3ForCausalLM(Qwen3Config(**settings)).eval()
    oracle.model.load_state_dict(model.model.language_model.state_dict())
    oracle.lm_head.load_state_dict(model.lm_head.state_dict())
    return oracle


@pytest.fixture(scope="module")
def row():
    """One document: text, an image of 16 codes that is written, text; and its codes."""
    layout = lay_out(
        [TextSegment([1, 5, 6]), ImageSegment("vq", 16, bidirectional=False, write=True), TextSegment([7, 8, 2])],
        TOKENS,
    )
    return batch_of([[layout]], len(layout)), torch.arange(16) * 3


def as_words(batch, codes) -> torch.Tensor:
    """The ids with each code in place of its placeholder."""
    ids = batch["input_ids"].clone()
    ids[ids == VQ] = codes + FIRST
    return ids


def test_logits_are_those_of_a_text_model_that_reads_codes_as_words(model, oracle, row):
    batch, codes = row
    with torch.no_grad():
        expected = oracle(as_words(batch, codes)).logits
        placed = model(**inputs_of(batch), codes=codes, codes_to_keep=batch["input_ids"] == VQ)
        named = model(as_words(batch, codes)).logits  # codes may also stand as what they are
    assert worst(placed.logits, expected) < 1e-5  # measured 2e-6
    assert torch.equal(named, placed.logits)
    at_codes = expected[batch["input_ids"] == VQ][:, FIRST : FIRST + CODES]
    assert worst(placed.code_logits, at_codes) < 1e-5


def stage_of(tasks: list, length: int = 200) -> ModelStage:
    content = {"output_dir": "none", "steps": 1, "data": {"sources": []}, "objective": {"z_loss": 1e-5}}
    words = len(tiny_pipeline(vq_config=None).processor.tokenizer)
    shared = {"num_embeddings": CODES, "first_token_id": words, "sample_size": 4}
    pipeline = tiny_pipeline(
        text_config=text_config(vocab_size=words + CODES, pad_token_id=None, bos_token_id=None, eos_token_id=None),
        vq_config=shared, diffusion_config=None, vision_config=None,
    )  # fmt: skip
    stage = ModelStage(
        strict.build(TrainConfig, content),
        pipeline,
        RowLoader(Mixture(tasks), pipeline.processor, 2, length, prefetch=0),
    )
    stage.model.train()
    return stage


def test_losses_are_a_text_models_split_by_what_is_said():
    stage = stage_of([source_of(drawings(9), write="vq", read="vq"), source_of(questions(9), name="ask", read="vq")])
    batch = next(stage.loader)
    model, first = stage.model, stage.model.config.vq_config.first_token_id
    losses = stage.losses(model, batch)
    assert set(losses) == {"text", "code", "z"}

    is_code = batch["input_ids"] == model.config.vq_token_id
    words = batch["input_ids"].clone()
    words[is_code] = stage.vq.encode(stage.pixels(batch)["vq_images"]) + first
    with torch.no_grad():
        vectors = {name: batch[name] for name in ("document_ids", "block_ids", "position_ids")}
        logits = model(words, **vectors).logits[:, :-1]
    written = {"text": batch["labels"] != IGNORE, "code": batch["code_labels"] != IGNORE}
    z = 0.0
    for kind, here in written.items():
        here = here[:, 1:]
        assert here.sum() > 0
        expected = F.cross_entropy(logits[here], words[:, 1:][here], reduction="sum")
        assert losses[kind][1] == here.sum()
        torch.testing.assert_close(losses[kind][0], expected, rtol=1e-5, atol=1e-4)
        z += logits[here].logsumexp(-1).square().sum()
    torch.testing.assert_close(losses["z"][0], z, rtol=1e-5, atol=1e-3)


def test_every_weight_learns_from_either_kind():
    for tasks in ([source_of(drawings(9), write="vq", read="vq")], [source_of(questions(9), read="vq")]):
        stage = stage_of(tasks)
        losses = stage.losses(stage.model, next(stage.loader))
        sum(value for value, _ in losses.values()).backward()
        for name, parameter in stage.model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


def test_drawn_codes_are_the_likeliest_of_a_text_model_that_may_only_say_codes(model, oracle):
    prefix = prefix_of(model, [PROMPTS[0]])
    codes = write_codes(model, prefix, 16, image_generators(1, 0), CodeSampling(temperature=0))
    ids = torch.tensor([[*PROMPTS[0], BEGIN]])
    with torch.no_grad():
        for code in codes[0]:
            best = oracle(ids).logits[0, -1, FIRST : FIRST + CODES].argmax()
            assert best == code
            ids = torch.cat([ids, (code + FIRST).view(1, 1)], dim=1)
        states = commit_codes(model, prefix, codes)
        expected = oracle(torch.cat([ids, torch.tensor([[END]])], dim=1)).logits[0, -1]
        assert worst(model.lm_head(states[0, -1]), expected) < 1e-4  # measured 5e-6


@torch.no_grad()
@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_in_fewer_bits_codes_are_scored_by_the_words_head(model, precision):
    """There is no head of codes to copy; the words' stays as it is."""
    few, whole = Decoder(model, precision), Decoder(model)
    states = prefix_of(model, [PROMPTS[0]]).last_state
    assert torch.equal(few.code_logits(states), whole.code_logits(states))
    codes = [
        write_codes(model, prefix_of(model, [PROMPTS[0]]), 16, image_generators(1, 0), CodeSampling(), decoder=few)
        for _ in range(2)
    ]
    assert torch.equal(*codes)


@pytest.mark.parametrize(
    "how", [{}, {"do_sample": True, "top_k": 0}, {"num_beams": 3}], ids=["greedy", "drawn", "beams"]
)
def test_text_never_holds_a_code(model, how):
    """Of a model that would rather say codes; with the processors of the caller at work as well."""
    with torch.no_grad():
        scale = model.lm_head.weight[FIRST:].mul_(20)
    try:
        ids = torch.tensor([PROMPTS[0]])
        torch.manual_seed(0)
        written = model.generate(ids, max_new_tokens=12, min_new_tokens=12, suppress_tokens=[3], **how)[
            0, ids.shape[1] :
        ]
        assert len(written) == 12
        assert (written < FIRST).all()
        assert (written != 3).all()
    finally:
        with torch.no_grad():
            scale.div_(20)


def test_no_code_is_a_word_of_an_answer(model):
    silent = unwritable_tokens(model, TOKENS).tolist()
    assert silent == [IMAGE, *sorted({TOKENS.diffusion, VQ, BEGIN, END}), *range(FIRST, FIRST + CODES)]
    assert BEGIN not in unwritable_tokens(model, TOKENS, (BEGIN,))
    assert unwritable_tokens(model, replace(TOKENS, vq=FIRST + CODES + 7)).max() < FIRST + CODES  # what it cannot score


def test_save_and_load(model, tmp_path):
    model.save_pretrained(tmp_path)
    again = HybridGenForConditionalGeneration.from_pretrained(tmp_path)
    assert again.config.vq_config.first_token_id == FIRST
    codes = torch.arange(5)
    assert torch.equal(again.model.embed_codes(codes), model.model.embed_codes(codes))


def test_a_model_built_of_a_config_has_its_codes_behind_its_words():
    tokenizer = tiny_tokenizer()
    text = {name: value for name, value in text_config().items() if name != "vocab_size"}
    config = ModelConfig(text_config=text, vq_config={"num_embeddings": 64, "sample_size": 4}, shared_vocabulary=True)
    built = build_model(config, tokenizer, seed=0)
    assert built.config.vq_config.first_token_id == len(tokenizer)
    assert built.lm_head.out_features == built.get_input_embeddings().num_embeddings == len(tokenizer) + 64


def test_codes_may_stand_anywhere_in_the_vocabulary(model, row):
    """With `token_ids`, what `first_token_id` makes of the same rows of the tables in another order."""
    places = [FIRST + 7 * code % CODES for code in range(CODES)]
    shared = {"num_embeddings": CODES, "token_ids": places, "sample_size": 4}
    text = model.config.text_config
    settings = {"text_config": text, "vq_config": shared, "diffusion_config": None, "vision_config": None}
    scattered = HybridGenForConditionalGeneration(tiny_config(**settings)).eval()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name in ("model.language_model.embed_tokens.weight", "lm_head.weight"):
        weights[name][places] = weights[name][FIRST:].clone()
    scattered.load_state_dict(weights)
    batch, codes = row
    code_labels = batch["code_labels"].clone()
    code_labels[code_labels != IGNORE] = codes
    with torch.no_grad():
        first, other = (
            one(**inputs_of(batch), codes=codes, codes_to_keep=batch["input_ids"] == VQ, text_labels=batch["labels"],
                code_labels=code_labels)
            for one in (model, scattered)
        )  # fmt: skip
    assert torch.equal(other.code_logits, first.code_logits)
    assert worst(other.code_losses, first.code_losses) < 1e-5  # measured 1e-6: Z is summed in another order
    assert worst(other.text_losses, first.text_losses) < 1e-5
    assert unwritable_tokens(scattered, TOKENS).tolist() == unwritable_tokens(model, TOKENS).tolist()
    written = scattered.generate(torch.tensor([[1, 5, 6]]), max_new_tokens=8, do_sample=False)
    assert not set(written[0].tolist()) & set(places)


@pytest.mark.parametrize(
    ("vq", "message"),
    [
        ({"token_ids": [1, 2]}, "token_ids has 2 ids, 2 of them different, but there are 50 codes"),
        ({"token_ids": [7] * CODES}, "token_ids has 50 ids, 1 of them different"),
        ({"token_ids": "all"}, "token_ids is 'all'; it must be a list of ids"),
        ({"token_ids": [*range(60, 110)]}, "token_ids and 50 codes need the tokens 60 to 109, but the vocabulary has"),
        ({"token_ids": [*range(20, 70)], "first_token_id": 20}, "has first_token_id 20 and token_ids; both say"),
        ({"token_ids": [*range(45, 95)]}, "image_token_id 90 lies among the codes"),
    ],
)
def test_places_of_codes_that_cannot_be_are_refused(vq, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(vq_config={"num_embeddings": CODES, **vq})


@pytest.mark.parametrize(
    ("vq", "ids", "message"),
    [
        ({"first_token_id": 60}, {}, "60 and 50 codes need the tokens 60 to 109, but the vocabulary has 100; enlarge"),
        ({"first_token_id": -1}, {}, "need the tokens -1 to 48"),
        ({"first_token_id": 50}, {"image_token_id": IMAGE}, "image_token_id 90 lies among the codes, .* 50 to 99"),
        ({"first_token_id": 0}, {"begin_image_token_id": 7, "image_token_id": 60}, "begin_image_token_id 7 lies among"),
    ],
)
def test_codes_that_have_no_place_are_refused(vq, ids, message):
    placed = {"image_token_id": None, "diffusion_token_id": None, "vq_token_id": None, "begin_image_token_id": None}
    with pytest.raises(ValueError, match=message):
        tiny_config(vq_config={"num_embeddings": CODES, **vq}, **{**placed, "end_image_token_id": None, **ids})


def test_it_is_no_janus():
    shared = {"num_embeddings": CODES, "first_token_id": 40}
    tower = {"model_type": "janus_vision_model", "hidden_size": 16, "image_size": 16, "patch_size": 8}
    placed = {"image_token_id": 30, "diffusion_token_id": 31, "vq_token_id": 32, "begin_image_token_id": 33}
    hybrid = tiny_config(vq_config=shared, vision_config=tower, **placed, end_image_token_id=34)
    with pytest.raises(ValueError, match="a Janus has a table and a head for codes, but this model's codes are tokens"):
        janus_config(hybrid, tiny_vq_model().config)
