"""Tiny Januses built and saved by transformers' own code, brought in by the bridge: the same model, by every path.

Differences are of the sum's order at most; where two libraries disagree on what is right (nearest code, short side of a
picture), the official rules of `tests.official` decide, and the difference is stated.
"""

import copy

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch.nn import functional as F

from hybridgen.bridges.janus.conversion import load_janus
from hybridgen.codecs.frozen import quantize
from hybridgen.core.documents import left_pad
from hybridgen.sampling.codes import CodeSampling, write_codes
from hybridgen.sampling.prefix import read_prompts
from hybridgen.sampling.seeds import image_generators
from tests.januses import VARIANTS, save_transformers, tiny_janus, tiny_processor, tiny_tokenizer
from tests.official import official_codes, official_encode, official_picture, official_pixels, official_prompt
from tests.processors import picture
from tests.sampling.prompts import worst

PROMPTS = ["a red circle", "is it blue?", "a circle on a blue ground, red"]
SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)
PRO, FIRST = ("<|User|>", "<|Assistant|>"), ("User", "Assistant")


@pytest.fixture(scope="module", params=VARIANTS)
def pair(request, tmp_path_factory):
    """transformers' model, its processor, and our pipeline of the same folder."""
    folder = save_transformers(tmp_path_factory.mktemp("janus") / request.param, request.param)
    pipeline = load_janus(folder)
    pipeline.set_progress_bar_config(disable=True)
    return tiny_janus(request.param), pipeline


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = save_transformers(tmp_path_factory.mktemp("janus") / "plain")
    pipeline = load_janus(folder)
    pipeline.set_progress_bar_config(disable=True)
    return tiny_janus(), pipeline, folder


def questions(pipeline, texts=PROMPTS, **sizes):
    """Each text asked about a picture of its own; left-padded inputs."""
    documents = []
    for seed, text in enumerate(texts):
        content = [{"type": "image", "image": picture(40, 30, seed)}, {"type": "text", "text": text}]
        documents.append(pipeline.processor.prompt([{"role": "user", "content": content}]))
    batch = left_pad(documents, pipeline.processor.special_tokens.pad)
    return {name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values")}


# -------------------------------------------------------------------------------------------------- understanding


@torch.no_grad()
def test_understanding_logits_are_janus(pair):
    janus, pipeline = pair
    given = questions(pipeline)
    real = given["attention_mask"].bool()  # what stands on padding means nothing
    ours, theirs = (model(**given).logits[real] for model in (pipeline.model, janus))
    assert worst(ours, theirs) < 1e-4  # measured 2e-6


@torch.no_grad()
def test_greedy_answers_are_janus(pair):
    janus, pipeline = pair
    given = questions(pipeline)
    settings = {"max_new_tokens": 12, "do_sample": False}
    assert torch.equal(pipeline.model.generate(**given, **settings), janus.generate(**given, **settings))


@torch.no_grad()
def test_tower_and_aligner_are_janus(pair):
    janus, pipeline = pair
    pixels = questions(pipeline)["pixel_values"]
    ours, theirs = (model.get_image_features(pixels, return_dict=True) for model in (pipeline.model, janus.model))
    assert worst(ours.last_hidden_state, theirs.last_hidden_state) == 0
    assert worst(ours.pooler_output, theirs.pooler_output) == 0


@torch.no_grad()
def test_no_attention_mask_is_needed(pair):
    """transformers' Janus raises AttributeError when it draws without one."""
    _, pipeline = pair
    given = questions(pipeline, PROMPTS[:1])
    with_mask = pipeline.model(**given).logits
    given.pop("attention_mask")
    assert torch.equal(pipeline.model(**given).logits, with_mask)


# ----------------------------------------------------------------------------------------------------- generation


def drawn(pipeline, prompts, guidance=5.0, **settings):
    """The likeliest codes (I, T)."""
    images = pipeline(prompts, path="vq", guidance_scale=guidance, temperature=0, output_type="latent", **settings)
    return images.images.flatten(1)


def ids_of(pipeline, prompt: str) -> list[int]:
    """The prompt of a drawing as DeepSeek writes it, tokenised as a whole."""
    return pipeline.processor.tokenizer(official_prompt(prompt, PRO) + "<begin_of_image>")["input_ids"]


@pytest.mark.parametrize("guidance", [5.0, 1.5])
def test_guided_codes_are_the_official_ones(pair, guidance):
    janus, pipeline = pair
    assert pipeline.processor.unconditional == "janus-official"
    codes = drawn(pipeline, PROMPTS, guidance)
    pad, count = pipeline.processor.special_tokens.pad, codes.shape[1]
    for prompt, made in zip(PROMPTS, codes, strict=True):
        expected = official_codes(janus, ids_of(pipeline, prompt), pad, count, guidance)
        assert torch.equal(made[None], expected)
    assert len(codes.unique()) > count // 3


def test_guided_codes_are_transformers_with_its_arrangement(pair, monkeypatch):
    janus, pipeline = pair
    monkeypatch.setattr(pipeline.processor, "unconditional", "janus-hf")
    processor = tiny_processor(janus)
    texts = [official_prompt(prompt, PRO) for prompt in PROMPTS]
    given = processor(text=texts, generation_mode="image", padding=True, return_tensors="pt")
    try:
        expected = janus.generate(
            **given, generation_mode="image", do_sample=False, guidance_scale=5, max_length=given["input_ids"].shape[1]
        )
    except TypeError as error:  # 5.17 calls a helper of its own with too few arguments
        pytest.skip(f"transformers {transformers.__version__} cannot draw with its own Janus: {error}")
    assert torch.equal(drawn(pipeline, PROMPTS), expected)


def test_the_two_arrangements_differ_where_a_text_begins_inside(plain, monkeypatch):
    """As the template says: what a user types begins none."""
    _, pipeline, _ = plain
    ask = [{"role": "user", "content": "a <｜begin▁of▁sentence｜> circle"}]
    monkeypatch.setattr(pipeline.processor, "chat_template", "{{ bos_token }}" + pipeline.processor.chat_template)
    tokens = pipeline.processor.special_tokens
    official = pipeline.processor.prompt(ask, unconditional=True).layout.input_ids
    monkeypatch.setattr(pipeline.processor, "unconditional", "janus-hf")
    by_id = pipeline.processor.prompt(ask, unconditional=True).layout.input_ids
    bos = pipeline.processor.tokenizer.bos_token_id
    assert official == [bos] + [tokens.pad] * (len(official) - 1)
    assert [token for token in by_id if token != tokens.pad] == [bos, bos]
    monkeypatch.setattr(pipeline.processor, "unconditional", "emptyish")
    with pytest.raises(ValueError, match="unconditional is 'emptyish'; it must be one of empty, janus-official"):
        pipeline.processor.prompt(ask, unconditional=True)


def test_dropped_prompts_are_taught_as_they_are_drawn(plain):
    """Prompt dropout pads what was said, as Janus was trained; the picture and what follows stay."""
    _, pipeline, _ = plain
    picture_part = {"type": "image", "image": picture(8, 8)}
    task = [{"role": "user", "content": "a red circle"}, {"role": "assistant", "content": [picture_part]}]
    whole = pipeline.processor.document(task, write="vq").layout
    dropped = pipeline.processor.document(task, write="vq", prompt_dropout=True).layout
    start = pipeline.processor.prompt(task[:1], unconditional=True).layout
    assert dropped.input_ids[: len(start)] == start.input_ids
    assert dropped.input_ids[len(start) :] == whole.input_ids[len(start) :]
    assert dropped.labels == whole.labels
    assert dropped.code_labels == whole.code_labels


def test_guidance_1_costs_one_row(plain, monkeypatch):
    """transformers' Janus dies of it: inputs doubled, logits not halved."""
    janus, pipeline, _ = plain
    rows = []
    backbone = pipeline.model.model.language_model
    hook = backbone.register_forward_hook(lambda module, args, kwargs, out: rows.append(len(out[0])), with_kwargs=True)
    codes = drawn(pipeline, PROMPTS[:1], guidance=1)
    hook.remove()
    assert set(rows) == {1}
    pad = pipeline.processor.special_tokens.pad
    assert torch.equal(codes, official_codes(janus, ids_of(pipeline, PROMPTS[0]), pad, codes.shape[1], 1.0))


def test_a_seed_gives_the_same_picture_in_any_batch(plain):
    _, pipeline, _ = plain
    settings = {"path": "vq", "guidance_scale": 5.0, "output_type": "latent"}
    together = pipeline(PROMPTS, seed=[3, 4, 5], **settings).images
    for prompt, seed, codes in zip(PROMPTS, (3, 4, 5), together, strict=True):
        assert torch.equal(pipeline(prompt, seed=seed, **settings).images[0], codes)


@torch.no_grad()
def test_logits_are_logits_and_of_every_step(plain):
    """transformers' Janus gives hidden states under the name `output_logits`, of the last step only."""
    janus, pipeline, _ = plain
    tokens, model = pipeline.processor.special_tokens, pipeline.model
    document = pipeline.processor.prompt([{"role": "user", "content": PROMPTS[0]}])
    prefix = read_prompts(model, [document], tokens.pad, tokens.begin_image, torch.device("cpu"))
    logits: list[torch.Tensor] = []
    codes = write_codes(
        model, prefix, 16, image_generators(1, 0), CodeSampling(temperature=0),
        on_logits=lambda step, value: logits.append(value),
    )  # fmt: skip
    embeds = janus.get_input_embeddings()(torch.tensor([ids_of(pipeline, PROMPTS[0])]))
    embeds = torch.cat([embeds, janus.prepare_embeddings_for_image_generation(codes)], dim=1)
    states = janus.model.language_model(inputs_embeds=embeds).last_hidden_state[:, -17:-1]
    assert worst(torch.stack(logits, dim=1), janus.model.generation_head(states)) < 1e-4  # measured 6e-6


# ---------------------------------------------------------------------------------------------------- VQ tokenizer


def test_codes_of_pictures_are_the_official_ones(pair):
    janus, pipeline = pair
    side = pipeline.processor.default_size[0]
    images = [pipeline.processor.image_processor.generation(picture(40, 30, seed), side, side) for seed in (0, 9)]
    images = torch.stack(images)
    codes = pipeline.vq_codec.encode(images)
    assert torch.equal(codes, official_encode(janus.model.vqmodel, images))
    # transformers compares points, not directions: with these random codebooks it agrees on 3, 6 and 3 % of the codes
    theirs = janus.model.vqmodel.encode(images).image_tokens
    assert (codes == theirs).float().mean() < 0.5


def test_the_difference_from_transformers_is_the_normalisation(plain):
    """Its nearest code and ours are one where latents and codebook have length one."""
    janus, _, _ = plain
    quantizer = copy.deepcopy(janus.model.vqmodel.quantize)
    quantizer.embedding.weight.data = F.normalize(quantizer.embedding.weight.data, dim=-1)
    z = torch.randn(2, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    _, _, theirs = quantizer(F.normalize(z, dim=1))
    assert torch.equal(quantize(z, quantizer.embedding.weight, directions=True).codes.flatten(), theirs)
    _, _, theirs = janus.model.vqmodel.quantize(z)
    ours = quantize(z, janus.model.vqmodel.quantize.embedding.weight, directions=True).codes.flatten()
    assert (ours == theirs).float().mean() < 0.9  # measured 0.56


@torch.no_grad()
def test_pixels_are_janus(pair):
    janus, pipeline = pair
    codes = drawn(pipeline, PROMPTS)
    side = int(codes.shape[1] ** 0.5)
    expected = janus.decode_image_tokens(codes).permute(0, 3, 1, 2)
    made = pipeline.vq_codec.decode(codes.view(-1, side, side))
    assert worst(made, expected) < 1e-5  # measured 0
    for image, pixels in zip(pipeline.processor.postprocess(made), expected, strict=True):
        assert np.array_equal(np.asarray(image), official_picture(pixels))


@torch.no_grad()
def test_half_precision_decodes(plain):
    """DeepSeek's own code raises in float16: it casts to bfloat16 between two convolutions."""
    _, _, folder = plain
    whole, half = load_janus(folder), load_janus(folder, dtype=torch.float16)
    assert half.model.dtype == half.vq_model.dtype == torch.float16
    codes = torch.arange(16).view(1, 4, 4)
    made = half.vq_codec.decode(codes)
    assert made.isfinite().all()
    assert worst(made, whole.vq_codec.decode(codes)) < 0.02  # measured 0.002: weights rounded to float16
    half.set_progress_bar_config(disable=True)
    assert half("a red circle", path="vq", guidance_scale=5.0, seed=0).images[0].size == (8, 8)


# -------------------------------------------------------------------------------------------------------- pictures


@pytest.mark.parametrize("size", [(500, 333), (333, 777), (383, 200), (64, 64), (7, 300), (30, 40)])
def test_pictures_are_prepared_the_official_way(plain, size):
    _, pipeline, _ = plain
    processor = type(pipeline.processor.image_processor)(
        **{**pipeline.processor.image_processor.to_dict(), "image_size": 384}
    )
    made = processor.understanding([picture(*size)])[0]
    assert worst(made, official_pixels(picture(*size), 384)) < 1e-6  # measured 6e-8


def test_transformers_rounds_the_short_side_where_deepseek_cuts(plain):
    janus, _, _ = plain
    theirs = tiny_processor(janus).image_processor
    image, differ = Image.new("RGB", (500, 333), (255, 0, 0)), 0
    theirs = theirs(image, size={"height": 384, "width": 384}, return_tensors="pt")["pixel_values"][0]
    ours = official_pixels(image, 384)
    differ = (torch.as_tensor(theirs) - ours).abs().amax((0, 2)) > 0.5
    assert differ.sum() == 1  # 255.74 rows of red: 256 there, 255 here


# --------------------------------------------------------------------------------------------------------- prompts


def test_the_question_is_the_official_prompt(pair):
    _, pipeline = pair
    given = questions(pipeline, ["what colour is it?"])
    count = pipeline.processor.num_image_tokens
    image = "<begin_of_image>" + "<image_placeholder>" * count + "<end_of_image>"
    text = official_prompt(f"{image}\nwhat colour is it?", PRO, SYSTEM)
    assert given["input_ids"][0].tolist() == tiny_tokenizer()(text)["input_ids"]


def test_the_question_is_what_transformers_processor_makes_of_it(pair):
    janus, pipeline = pair
    content = [{"type": "image", "image": picture(32, 32)}, {"type": "text", "text": " what colour is it? "}]
    processor = tiny_processor(janus)
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    theirs = processor(text=text, images=[content[0]["image"]], return_tensors="pt")
    if "<|Assistant|>" not in processor.tokenizer.decode(theirs["input_ids"][0]):
        pytest.skip(f"transformers {transformers.__version__} cuts the text off behind its own system prompt")
    ours = pipeline.processor.prompt([{"role": "user", "content": content}])
    assert ours.layout.input_ids == theirs["input_ids"][0].tolist()


@pytest.mark.parametrize(("style", "roles"), [("janus", FIRST), ("janus-pro", PRO)])
def test_both_generations_have_their_prompts(plain, style, roles):
    _, _, folder = plain
    processor = load_janus(folder, style=style).processor
    tokenizer = tiny_tokenizer()

    def text(messages, **settings):
        ids = processor.prompt(messages, **settings).layout.input_ids
        return tokenizer.decode([token for token in ids if token != processor.special_tokens.understanding])

    bos, eos = tokenizer.bos_token, tokenizer.eos_token
    ask = {"role": "user", "content": [{"type": "image", "image": picture()}, {"type": "text", "text": "red?"}]}
    frame = "<begin_of_image><end_of_image>"
    assert text([{"role": "user", "content": "a circle"}]) == bos + official_prompt("a circle", roles)
    assert text([ask]) == bos + official_prompt(f"{frame}\nred?", roles, SYSTEM)
    more = [ask, {"role": "assistant", "content": "yes"}, {"role": "user", "content": "blue?"}]
    start = official_prompt(f"{frame}\nred?", roles, SYSTEM)
    assert text(more) == f"{bos}{start} yes{eos}" + official_prompt("blue?", roles)
    system = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "red?"}]
    assert text(system) == bos + official_prompt("red?", roles, "Be short.")
