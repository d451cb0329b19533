"""A converted Janus under transformers' own names: Auto classes and `generate` give what transformers' Janus gives, and
what that gets wrong (REFERENCES.md 3.3) is right."""

import pytest
import torch
import transformers
from transformers import AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoProcessor, pipeline

from hybridgen.bridges.janus.conversion import convert
from tests.bridges.janus.test_pipeline import PRO, PROMPTS
from tests.januses import VARIANTS, save_transformers, tiny_janus, tiny_processor
from tests.official import official_codes, official_prompt
from tests.processors import picture
from tests.sampling.prompts import worst

DRAW = {"generation_mode": "image", "path": "vq", "do_sample": False}
ASK = [{"role": "user", "content": [{"type": "image", "image": picture(40, 30)}, {"type": "text", "text": "red?"}]}]


@pytest.fixture(scope="module", params=VARIANTS)
def pair(request, tmp_path_factory):
    """transformers' model and processor; ours of the converted folder, by the Auto classes; that folder."""
    folder = tmp_path_factory.mktemp("home") / request.param
    convert(save_transformers(folder / "hf", request.param), folder / "ours")
    janus = tiny_janus(request.param)
    ours = AutoModelForMultimodalLM.from_pretrained(folder / "ours")
    return janus, tiny_processor(janus), ours, AutoProcessor.from_pretrained(folder / "ours"), folder / "ours"


def prompts_of(processor, texts=PROMPTS) -> dict:
    written = [official_prompt(text, PRO) for text in texts]
    return dict(processor(text=written, generation_mode="image", padding=True, return_tensors="pt"))


def test_ids_that_janus_processor_makes_are_drawn_as_janus_draws_them(pair, monkeypatch):
    """Guided by 5, in both arrangements of the unconditional row."""
    janus, processor, ours, _, _ = pair
    given = prompts_of(processor)
    codes = ours.generate(**given, **DRAW, guidance_scale=5.0)
    for ids, mask, made in zip(given["input_ids"], given["attention_mask"], codes, strict=True):
        prompt = ids[mask.bool()].tolist()
        assert torch.equal(made[None], official_codes(janus, prompt, 2, len(made), 5.0))
    monkeypatch.setattr(ours.pipeline.processor, "unconditional", "janus-hf")
    made = ours.generate(**given, **DRAW, guidance_scale=5.0)
    try:
        settings = {"do_sample": False, "guidance_scale": 5, "max_length": given["input_ids"].shape[1]}
        expected = janus.generate(**given, generation_mode="image", **settings)
    except TypeError as error:  # 5.17 calls a helper of its own with too few arguments
        pytest.skip(f"transformers {transformers.__version__} cannot draw with its own Janus: {error}")
    assert torch.equal(made, expected)
    pixels = janus.decode_image_tokens(expected).permute(0, 3, 1, 2)
    assert worst(ours.decode_image_tokens(made), pixels) < 1e-5  # measured 0


def test_what_is_written_is_drawn_is_what_the_pipeline_draws(pair):
    """Our own processor and template, guided as the checkpoint was trained."""
    _, _, ours, processor, _ = pair
    conversations = [[{"role": "user", "content": [{"type": "text", "text": text}]}] for text in PROMPTS]
    given = processor.apply_chat_template(
        conversations, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    settings = {"guidance_scale": 5.0, "seed": [7, 8, 9]}
    made = ours.generate(**given, **DRAW | {"do_sample": True, "top_k": 0}, **settings)
    ours.pipeline.set_progress_bar_config(disable=True)
    expected = ours.pipeline(PROMPTS, path="vq", output_type="latent", **settings).images
    assert torch.equal(made, expected.flatten(1))


def test_guidance_1_costs_one_row_and_needs_no_mask(pair):
    janus, processor, ours, _, _ = pair
    given, rows = prompts_of(processor, PROMPTS[:1]), []
    hook = ours.model.language_model.register_forward_hook(lambda _, args, out: rows.append(len(out[0])))
    codes = ours.generate(given["input_ids"], **DRAW, guidance_scale=1.0)
    hook.remove()
    assert set(rows) == {1}
    assert torch.equal(codes, official_codes(janus, given["input_ids"][0].tolist(), 2, codes.shape[1], 1.0))


def test_output_logits_are_logits_of_every_code(pair):
    janus, processor, ours, _, _ = pair
    given = prompts_of(processor)
    asked = {"output_logits": True, "return_dict_in_generate": True}
    made = ours.generate(**given, **DRAW, **asked, guidance_scale=5.0)
    assert len(made.logits) == made.sequences.shape[1]
    assert {logits.shape for logits in made.logits} == {(3, janus.config.vq_config.num_embeddings)}
    assert torch.equal(torch.stack(made.logits, 1).argmax(-1), made.sequences)
    plain = ours.generate(**given, **DRAW, **asked, guidance_scale=1.0)
    ids = given["input_ids"][2:]
    embeds = janus.get_input_embeddings()(ids)
    embeds = torch.cat([embeds, janus.prepare_embeddings_for_image_generation(plain.sequences[2:])], 1)
    with torch.no_grad():
        states = janus.model.language_model(inputs_embeds=embeds, attention_mask=None).last_hidden_state
        expected = janus.model.generation_head(states[:, ids.shape[1] - 1 : -1])
    if given["attention_mask"][2].all():
        assert worst(torch.stack(plain.logits, 1)[2:], expected) < 1e-4


def test_a_seed_gives_the_same_codes_in_any_batch(pair):
    _, processor, ours, _, _ = pair
    settings = {**DRAW, "do_sample": True, "guidance_scale": 5.0}
    together = ours.generate(**prompts_of(processor), **settings, seed=[3, 4, 5])
    for text, seed, codes in zip(PROMPTS, (3, 4, 5), together, strict=True):
        assert torch.equal(ours.generate(**prompts_of(processor, [text]), **settings, seed=seed)[0], codes)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_draws_and_answers(pair, dtype):
    _, processor, _, ours, folder = pair
    half = AutoModelForMultimodalLM.from_pretrained(folder, dtype=dtype, device_map="cpu", low_cpu_mem_usage=True)
    codes = half.generate(**prompts_of(processor), **DRAW, guidance_scale=5.0)
    pixels = half.decode_image_tokens(codes)
    assert pixels.isfinite().all()
    assert len(ours.post_process_multimodal_output(pixels, generation_mode="image")) == 3
    given = ours.apply_chat_template(
        ASK, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    ).to(dtype)
    assert half.generate(**given, max_new_tokens=3, do_sample=False).shape[1] > given["input_ids"].shape[1]


def test_answers_through_the_pipelines_are_janus(pair):
    janus, processor, _, _, folder = pair
    settings = {"max_new_tokens": 6, "do_sample": False}
    text = processor.apply_chat_template(ASK, add_generation_prompt=True)
    # a list: 5.17's processor takes a single text apart
    given = processor(text=[text], images=[ASK[0]["content"][0]["image"]], return_tensors="pt")
    written = janus.generate(**given, **settings)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    assert torch.equal(model.generate(**given, **settings), written)
    expected = processor.tokenizer.decode(written[0, given["input_ids"].shape[1] :], skip_special_tokens=True)
    for task in ("image-text-to-text", "any-to-any"):
        made = pipeline(task, model=str(folder))(text=ASK, generate_kwargs=settings, return_full_text=False)
        assert made[0]["generated_text"] == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"repetition_penalty": 2.0}, "does not know repetition_penalty"),
        ({"output_scores": True}, "does not know output_scores"),
        ({"input_ids": None}, "give input_ids"),
        ({"path": "diffusion"}, "no path 'diffusion'"),
    ],
)
def test_what_is_not_heeded_is_refused(pair, settings, message):
    with pytest.raises(ValueError, match=message):
        pair[2].generate(**{"input_ids": torch.tensor([[0, 9, 10]]), **DRAW, **settings})
