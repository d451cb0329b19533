"""The processor: who is taught, what a prompt and a training document share, how pictures become tokens and pixels."""

import copy
import filecmp
import json
import os
import re

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models
from transformers import AutoProcessor, AutoTokenizer, PreTrainedTokenizerFast

from hybridgen import HybridGenConfig
from hybridgen.core.documents import left_pad
from hybridgen.core.layout import IGNORE, PADDING_DOCUMENT
from hybridgen.core.messages import strip_reasoning
from hybridgen.processing_hybridgen import (
    HybridGenImageProcessor,
    HybridGenProcessor,
    add_image_tokens,
    build_tokenizer,
    image_token_ids,
)
from hybridgen.tokenization_hybridgen import IMAGE_TOKENS, PieceTokenizer
from tests.models import text_config, tiny_config, tiny_model
from tests.processors import (
    CHATML,
    JANUS,
    REWRITING,
    TEMPLATES,
    assistant,
    image,
    picture,
    tiny_processor,
    tiny_tokenizer,
    user,
)

DRAW = [user("a red circle"), assistant(image())]
ASK = [user(image(), "what colour is it?"), assistant("red"), user("is it blue?"), assistant("no")]


def decoded(processor: HybridGenProcessor, ids: list[int]) -> str:
    return processor.tokenizer.decode([i for i in ids if i != IGNORE])


# ---------------------------------------------------------------------------------------------- who is taught


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("read", ["understanding", "diffusion", "vq"])
def test_exactly_the_assistants_turns_are_taught(template, read):
    processor = tiny_processor(chat_template=TEMPLATES[template])
    whole = processor.document(ASK, read=read)
    taught = set()
    for k, message in enumerate(ASK):
        if message["role"] == "assistant":
            start = len(processor.prompt(ASK[:k], read=read))
            taught |= set(range(start, len(processor.document(ASK[: k + 1], read=read))))
    labels = whole.layout.labels
    assert {i for i, label in enumerate(labels) if label != IGNORE} == taught
    assert all(label in (IGNORE, token) for label, token in zip(labels, whole.layout.input_ids, strict=True))


def test_what_each_template_teaches_as_text():
    taught = {}
    for name, template in TEMPLATES.items():
        processor = tiny_processor(chat_template=template)
        taught[name] = decoded(processor, processor.document(ASK).layout.labels)
    assert taught == {
        "default": "red<|eos|>no<|eos|>",
        "janus": " red<|eos|> no<|eos|>",
        "chatml": "red<|im_end|>\nno<|im_end|>\n",
    }


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("messages", [DRAW, ASK, ASK[:2]], ids=["draw", "ask", "once"])
def test_a_training_document_begins_with_the_prompts_tokens(template, messages):
    processor = tiny_processor(chat_template=TEMPLATES[template])
    document = processor.document(messages, write="diffusion").layout
    for k, message in enumerate(messages):
        if message["role"] == "assistant":
            prompt = processor.prompt(messages[:k]).layout
            n = len(prompt)
            assert prompt.input_ids == document.input_ids[:n]
            assert prompt.block_ids == document.block_ids[:n]
            assert prompt.position_ids == document.position_ids[:n]
            assert set(prompt.labels) == {IGNORE}
    assert n < len(document)


def test_reasoning_is_taught_before_the_answer_and_prompts_are_as_ever():
    processor = tiny_processor()
    thought = [{**message} for message in ASK]
    thought[3]["reasoning_content"] = "red"
    tokens = processor.tokenizer.tokenize("<think> red</think>no")
    assert (tokens[0], tokens[-2]) == ("<think>", "</think>")
    document = processor.document(thought)
    assert decoded(processor, document.layout.labels) == "red<|eos|><think> red</think>no<|eos|>"
    assert processor.document(ASK).layout.input_ids[:-2] == document.layout.input_ids[: -len(tokens) - 1]
    assert processor.prompt(thought[:3]).layout.input_ids == processor.prompt(ASK[:3]).layout.input_ids
    written = processor.tokenizer(["<think>red</think>no"])["input_ids"]
    assert processor.tokenizer.batch_decode(written, skip_special_tokens=True) == ["<think>red</think>no"]


def test_words_of_the_reasoning_are_the_tokens_that_they_are_in_the_question():
    """Else a model must learn name by name which two tokens are one word, before it can compare them."""
    question = "is there a red circle?"
    processor = tiny_processor(tokenizer=build_tokenizer([question, "red circle"] * 9, 400))
    messages = [user(question), {**assistant("yes"), "reasoning_content": "red circle"}]
    tokens = processor.tokenizer.convert_ids_to_tokens(processor.document(messages).layout.input_ids)
    begins, ends = tokens.index("<think>"), tokens.index("</think>")
    assert tokens[begins + 1 : ends] == tokens[begins - 4 : begins - 2]
    assert tokens[begins - 2 : begins] == ["?", "<|assistant|>"]


@pytest.mark.parametrize(
    ("written", "answer"),
    [("no", "no"), ("<think>red</think> no", "no"), ("<think>\n\n</think>\n\nno", "no"), ("<think>a", "<think>a")],
)
def test_the_answer_is_what_stands_after_the_reasoning(written, answer):
    assert strip_reasoning(written) == answer


def test_the_first_token_has_no_label_even_if_everything_is_taught():
    processor = tiny_processor()
    layout = processor.document([user("red"), assistant("blue")], loss_on="everything").layout
    assert layout.labels == [IGNORE, *layout.input_ids[1:]]
    without_user = processor.document([assistant("blue")]).layout
    assert without_user.labels[0] == IGNORE


def test_images_of_taught_turns_are_written_and_others_read():
    processor = tiny_processor()
    edit = [user(image(1), "make it red"), assistant("here:", image(2)), user("and blue"), assistant(image(3))]
    document = processor.document(edit, read="understanding", write="diffusion")
    assert [(x.path, x.write) for x in document.images] == [
        ("understanding", False),
        ("diffusion", True),
        ("diffusion", True),
    ]
    everything = processor.document(edit, read="understanding", write="vq", loss_on="all")
    assert [(x.path, x.write) for x in everything.images] == [("vq", True)] * 3
    read_only = processor.document(edit, read="vq")
    assert [(x.path, x.write) for x in read_only.images] == [("vq", False)] * 3


def test_a_message_of_weight_0_is_read_and_not_learnt():
    """Its pictures by the path of `read`, whatever `write` and `loss_on` say; its words have no labels."""
    processor = tiny_processor()
    plain = [user("red"), assistant(image(1)), user("and blue"), assistant("no"), user("do"), assistant(image(2))]
    weighted = [message | {"weight": 0} if place in (1, 3) else message for place, message in enumerate(plain)]
    for loss_on in ("assistant", "all"):
        document = processor.document(weighted, read="understanding", write="vq", loss_on=loss_on)
        assert [(x.path, x.write) for x in document.images] == [("understanding", False), ("vq", True)]
        asked = {"read": "understanding", "write": "vq", "loss_on": loss_on}
        without = processor.document([{**m, "weight": 1} if m["role"] == "assistant" else m for m in plain], **asked)
        assert without.layout == processor.document(plain, **asked).layout
        tokens = processor.tokenizer
        labels = [label for label in document.layout.labels if label != IGNORE]
        assert tokens.convert_tokens_to_ids("no") not in labels
        assert ("red" in tokens.decode(labels)) == (loss_on == "all")


def test_codes_are_labelled_where_they_are_written():
    processor = tiny_processor()
    layout = processor.document([user(image(1)), assistant(image(2))], read="vq", write="vq").layout
    vq = processor.special_tokens.vq
    places = [i for i, token in enumerate(layout.input_ids) if token == vq]
    assert [layout.code_labels[i] for i in places] == [IGNORE] * 4 + [0] * 4
    begin = processor.special_tokens.begin_image
    assert [label for label in layout.labels if label == begin] == [begin]  # the drawn one's


# --------------------------------------------------------------------------------------------------- placeholders


@pytest.mark.parametrize(
    ("path", "size", "tokens"),
    [
        ("understanding", (None, None), 4),
        ("understanding", (64, 32), 4),
        ("diffusion", (None, None), 16),
        ("diffusion", (8, 24), 12),
        ("vq", (None, None), 4),
        ("vq", (16, 40), 10),
    ],
)
def test_an_image_takes_as_many_placeholders_as_its_path_and_size_say(path, size, tokens):
    processor = tiny_processor()
    height, width = size
    document = processor.document([user(image(), "?"), assistant("red")], read=path, height=height, width=width)
    placeholder = processor.special_tokens.placeholder(path)
    assert document.layout.input_ids.count(placeholder) == tokens == processor.count_tokens(path, height, width)
    side = 16 if path == "understanding" else None
    assert document.images[0].pixels.shape == (3, side or height or 16, side or width or 16)
    blocks = {
        b for b, token in zip(document.layout.block_ids, document.layout.input_ids, strict=True) if token == placeholder
    }
    assert len(blocks) == (1 if path == "diffusion" else tokens)


def test_a_twin_follows_the_noised_image_hidden_from_what_comes_after():
    processor = tiny_processor()
    document = processor.document([user("red"), assistant(image(), "red")], write="diffusion", clean_copy=True)
    assert [(x.path, x.write) for x in document.images] == [("diffusion", True), ("diffusion", False)]
    assert document.images[0].pixels is document.images[1].pixels
    layout, placeholder = document.layout, processor.special_tokens.diffusion
    places = [i for i, token in enumerate(layout.input_ids) if token == placeholder]
    assert [layout.noised_mask[i] for i in places] == [True] * 16 + [False] * 16
    assert layout.position_ids[places[0]] == layout.position_ids[places[16]]


def test_image_first_means_that_no_text_stands_before_it():
    processor = tiny_processor()

    def flags(messages, **how):
        return [x.image_first for x in processor.document(messages, write="diffusion", loss_on="all", **how).images]

    assert flags([user("red"), assistant(image())]) == [False]
    assert flags([user(image()), assistant("red")]) == [True]
    assert flags([user(" "), assistant(image(), "and", image(1))]) == [True, False]
    assert flags([user(image(), image(1), "?"), assistant("red")]) == [True, True]
    # a prompt that was dropped was there: unconditional drawings are trained at every noise level
    assert flags([user("red"), assistant(image())], prompt_dropout=True) == [False]


@pytest.mark.parametrize("template", TEMPLATES)
def test_prompt_dropout_is_the_empty_prompt(template):
    processor = tiny_processor(chat_template=TEMPLATES[template])
    dropped = processor.document(DRAW, write="vq", prompt_dropout=True)
    assert dropped.layout == processor.document([user(""), DRAW[1]], write="vq").layout
    unconditional = processor.prompt([user("")]).layout.input_ids
    assert dropped.layout.input_ids[: len(unconditional)] == unconditional
    edit = [user(image(), "red"), assistant(image())]
    assert len(processor.document(edit, write="vq", prompt_dropout=True).images) == 2  # images stay


# ------------------------------------------------------------------------------------------------ together with HF


def test_saved_loaded_and_saved_again_is_the_same_to_the_byte(tmp_path):
    processor = tiny_processor(default_size=(8, 24), chat_template=TEMPLATES["janus"])
    processor.save_pretrained(tmp_path / "one")
    loaded = HybridGenProcessor.from_pretrained(tmp_path / "one")
    loaded.save_pretrained(tmp_path / "two")
    names = sorted(os.listdir(tmp_path / "one"))
    assert names == sorted(os.listdir(tmp_path / "two"))
    assert filecmp.cmpfiles(tmp_path / "one", tmp_path / "two", names, shallow=False)[0] == names
    assert loaded.document(DRAW, write="diffusion").layout == processor.document(DRAW, write="diffusion").layout
    assert isinstance(AutoProcessor.from_pretrained(tmp_path / "one"), HybridGenProcessor)
    assert isinstance(loaded.image_processor, HybridGenImageProcessor)


def test_called_as_transformers_does_it_gives_what_prompt_gives():
    processor = tiny_processor()
    conversation = [user(image(3), "what colour is it?")]
    prompt = processor.prompt(conversation)
    inputs = processor.apply_chat_template(
        conversation, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert inputs["input_ids"][0].tolist() == prompt.layout.input_ids
    torch.testing.assert_close(inputs["pixel_values"][0], prompt.images[0].pixels, rtol=0, atol=0)


def test_call_pads_on_the_left_and_expands_images():
    processor = tiny_processor()
    inputs = processor(
        images=[picture(), picture(seed=1)], text=["<image_placeholder>red", "<image_placeholder> red blue"]
    )
    assert [len(row) for row in inputs["input_ids"]] == [len(inputs["input_ids"][0])] * 2
    assert inputs["attention_mask"][0][0] == 0
    assert inputs["attention_mask"][0][-1] == 1
    assert [row.count(processor.special_tokens.understanding) for row in inputs["input_ids"]] == [4, 4]
    assert inputs["pixel_values"].shape == (2, 3, 16, 16)
    with pytest.raises(ValueError, match="'<image_placeholder>' tokens in the prompts .* there are 2, and 1 images"):
        processor(images=picture(), text="<image_placeholder> <image_placeholder>")
    texts, pictures = ["<image_placeholder>red", "red <image_placeholder>"], [picture(), picture(seed=1)]
    with pytest.raises(ValueError, match=r"there are \[1, 1\], and \[2, 0\] images"):
        processor(images=[pictures, []], text=texts)
    assert processor(images=[[], pictures[:1]], text=["red", texts[1]])["pixel_values"].shape[0] == 1


def test_a_processor_made_for_a_config_feeds_its_model():
    tokenizer = tiny_tokenizer()
    config = tiny_config(text_config=text_config(vocab_size=len(tokenizer)), **image_token_ids(tokenizer))
    processor = HybridGenProcessor.for_config(config, tokenizer, vq_factor=4)
    assert processor.paths == ("understanding", "diffusion", "vq")
    batch = left_pad(
        [processor.prompt([user("red")]), processor.prompt([user(image(), "red?")])], tokenizer.pad_token_id
    )
    model = tiny_model(config)
    names = ("input_ids", "document_ids", "block_ids", "position_ids", "pixel_values")
    logits = model(**{name: batch[name] for name in names}).logits
    alone = processor.prompt([user(image(), "red?")])
    single = model(pixel_values=alone.images[0].pixels[None], input_ids=torch.tensor([alone.layout.input_ids])).logits
    torch.testing.assert_close(logits[1:, -1], single[:, -1], rtol=1e-4, atol=1e-5)  # seen: equal
    for path, name in (("diffusion", "latents"), ("vq", "codes")):
        document = processor.prompt([user(image(), "?")], read=path)
        value = document.images[0].pixels[None] if path == "diffusion" else torch.zeros(16, dtype=torch.long)
        model(input_ids=torch.tensor([document.layout.input_ids]), **{name: value})  # counts agree, or it raises


def test_left_pad_ends_flush_and_keeps_every_image_in_order():
    processor = tiny_processor()
    short = processor.prompt([user("red")])
    long = processor.prompt([user(image(1), "red", image(2), "blue")])
    batch = left_pad([short, long], 0)
    pad = len(long) - len(short)
    assert batch["input_ids"][0].tolist() == [0] * pad + short.layout.input_ids
    assert batch["attention_mask"].sum(1).tolist() == [len(short), len(long)]
    assert batch["document_ids"][0, :pad].eq(PADDING_DOCUMENT).all()
    assert (batch["block_ids"].diff(dim=1) >= 0).all()
    assert batch["position_ids"][0, pad:].tolist() == short.layout.position_ids
    assert torch.equal(batch["pixel_values"], torch.stack(long.pixels("understanding")))
    assert batch["diffusion_images"] == []
    assert left_pad([short], 0)["pixel_values"] is None
    by_diffusion = left_pad([processor.prompt([user(image(1), "?")], read="diffusion")], 0)
    assert len(by_diffusion["diffusion_images"]) == 1
    assert by_diffusion["pixel_values"] is None
    with pytest.raises(ValueError, match="no documents"):
        left_pad([], 0)


# ----------------------------------------------------------------------------------------------------- tokenizers


def test_a_tokenizer_without_bos_or_pad_will_do():
    tokenizer = tiny_tokenizer()
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|eos|>")
    assert bare.bos_token is None
    processor = tiny_processor(tokenizer=bare)
    document = processor.document(DRAW, write="diffusion").layout
    assert bare.decode(document.input_ids).startswith("<|user|>a red circle<|assistant|><begin_of_image>")
    assert document.labels[0] == IGNORE
    assert processor.special_tokens.pad == bare.eos_token_id


def test_any_tokenizer_gains_the_tokens_of_images():
    words = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "red": 2}, unk_token="<unk>"))
    plain = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", unk_token="<unk>")
    with pytest.raises(ValueError, match="the tokenizer has no <begin_of_image>, .*call .*add_image_tokens"):
        tiny_processor(tokenizer=plain)
    with pytest.raises(ValueError, match="the tokenizer has no <begin_of_image>"):
        image_token_ids(plain)
    assert add_image_tokens(plain) == 5
    assert add_image_tokens(plain) == 0
    assert image_token_ids(plain)["begin_image_token_id"] == 3
    document = tiny_processor(tokenizer=plain, chat_template=CHATML).document(DRAW, write="vq")
    assert document.layout.input_ids.count(7) == 4


def test_the_tokens_of_images_may_have_other_names():
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<img>"], special_tokens=True)
    processor = tiny_processor(tokenizer=tokenizer, image_token="<img>")
    assert processor.special_tokens.understanding == tokenizer.convert_tokens_to_ids("<img>")
    assert processor.document(ASK).layout.input_ids.count(processor.special_tokens.understanding) == 4


def test_pieces_are_tokenised_as_the_tokenizer_does():
    tokenizer = tiny_tokenizer()
    encode = PieceTokenizer(tokenizer, cache_size=3)
    samples = ["a red circle", " red", "Ünïcode 🎨\n\n", "<|user|>red<|assistant|>", "", "<|eos|>", "a red circle"]
    assert [encode(sample) for sample in samples] == [
        tokenizer(sample, add_special_tokens=False)["input_ids"] for sample in samples
    ]
    tokenizer(["red", "a red circle"], padding="max_length", max_length=9, truncation=True)  # leaves its backend set so
    assert encode("red blue yes") == tokenizer("red blue yes", add_special_tokens=False)["input_ids"]


def test_a_trained_tokenizer_keeps_whole_words_and_loses_nothing():
    texts = ["a minotaur wearing a gray robe", "what is the colour of the robe?", "gray"] * 3
    tokenizer = build_tokenizer(texts, 600)
    assert len(tokenizer(" minotaur wearing gray robe")["input_ids"]) == 4
    assert build_tokenizer(texts, 600).get_vocab() == tokenizer.get_vocab()
    odd = "naïve 日本 \t x\n"
    assert tokenizer.decode(tokenizer(odd)["input_ids"]) == odd
    assert all(token in tokenizer.get_vocab() for token in IMAGE_TOKENS)
    with pytest.raises(ValueError, match="a vocabulary of 100 is too small: 256 bytes and 13 tokens with a meaning"):
        build_tokenizer(texts, 100)


# ------------------------------------------------------------------------------------------------------- pixels


@pytest.mark.parametrize(("width", "height"), [(500, 333), (333, 777), (383, 200), (10, 1000), (384, 384), (50, 50)])
def test_understanding_resizes_by_int_and_pads_with_127(width, height):
    """DeepSeek's rule, computed here a second time: int() of the short side, at least 14, centred on 127."""
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    pixels = HybridGenImageProcessor(384).understanding([Image.fromarray(noise)])[0]
    long = max(width, height)
    w, h = max(int(width / long * 384), 14), max(int(height / long * 384), 14)
    inner = np.array(Image.fromarray(noise).resize((w, h), Image.Resampling.BICUBIC))
    expected = np.full((384, 384, 3), 127, np.uint8)
    top, left = (384 - h) // 2, (384 - w) // 2
    expected[top : top + h, left : left + w] = inner
    levels = (pixels.permute(1, 2, 0).numpy() + 1) * 127.5
    assert np.abs(levels - expected).max() < 1e-4  # worst seen 4e-6


def test_a_picture_of_the_right_size_is_untouched_and_comes_back():
    processor, original = HybridGenImageProcessor(16), picture()
    for pixels in (processor.understanding([original]), processor.generation(original, 16, 16)[None]):
        assert np.array_equal(np.array(processor.postprocess(pixels)[0]), np.array(original))
        assert pixels.dtype == torch.float32
        assert pixels.min() >= -1
        assert pixels.max() <= 1
    assert np.array_equal(np.array(processor.postprocess(torch.full((1, 3, 2, 2), 9.0))[0]), np.full((2, 2, 3), 255))


def test_generation_fills_the_frame_and_crops_the_middle():
    wide = Image.new("RGB", (60, 20), "red")
    wide.paste("blue", (20, 0, 40, 20))
    pixels = HybridGenImageProcessor(16).generation(wide, 20, 20)
    assert torch.equal(pixels, torch.tensor([-1.0, -1.0, 1.0]).view(3, 1, 1).expand(3, 20, 20))
    assert HybridGenImageProcessor(16).generation(picture(31, 7), 8, 24).shape == (3, 8, 24)


def test_what_is_transparent_shows_white_and_other_forms_of_pictures_are_taken():
    processor = HybridGenImageProcessor(16)
    clear = Image.new("RGBA", (16, 16), (255, 0, 0, 0))
    assert torch.equal(processor.generation(clear, 16, 16), torch.ones(3, 16, 16))
    assert torch.equal(processor.generation(clear.convert("LA"), 16, 16), torch.ones(3, 16, 16))
    original = picture()
    array, tensor = np.array(original), torch.from_numpy(np.array(original)).permute(2, 0, 1)
    same = processor.understanding([original, array, tensor, array / 255])
    assert all(torch.equal(same[0], other) for other in same[1:])
    assert torch.equal(processor(original)["pixel_values"], same[:1])
    with pytest.raises(ValueError, match="there is no image picture.png"):
        processor.understanding(["picture.png"])


# ------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        (
            {"read": "understandign"},
            "no path 'understandign' to read images by; the paths are understanding, diffusion, vq",
        ),
        ({"write": "pixels"}, "no path 'pixels' here; this model has: understanding, diffusion, vq"),
        ({"write": "understanding"}, "the understanding path only reads"),
        ({"loss_on": "user"}, "loss_on is 'user'; it must be one of 'assistant', 'all', 'everything'"),
        ({"write": "vq", "clean_copy": True}, "clean_copy belongs to images written by 'diffusion', not by 'vq'"),
        ({"write": "diffusion", "height": 18, "width": 16}, "size 18x16 is not divisible by the patch size 4"),
        ({"write": "diffusion", "height": 18}, "size 18x16 is not divisible"),
    ],
)
def test_settings_that_cannot_be_are_refused(how, sentence):
    with pytest.raises(ValueError, match=sentence):
        tiny_processor().document(DRAW, **how)


@pytest.mark.parametrize(
    ("messages", "sentence"),
    [
        ([], "messages must be a list of at least one message, not "),
        ([{"role": "robot", "content": "hi"}], "message 0 has role 'robot'; use one of system, user, assistant"),
        ([user("hi"), {"role": "assistant"}], "message 1 has content None"),
        ([{"role": "user", "content": [{"type": "sound"}]}], "message 0 has a part .*'sound'.*'text' or 'image'"),
        ([{"role": "user", "content": [{"type": "image"}]}], "message 0 has an image part without its image"),
        ([{"role": "user", "content": [{"type": "text"}]}], "message 0 has a text part without its text"),
        ([user("a"), {**assistant("b"), "reasoning_content": 3}], "message 1 has reasoning_content 3; it must be"),
        ([{**user("a"), "reasoning_content": "b"}], "message 0 has reasoning_content, but role user; only"),
        ([user("a"), {**assistant("b"), "reasoning_content": "<vq_placeholder>"}], "'<vq_placeholder>', which stands"),
        ([user("a <vq_placeholder>"), assistant("b")], "a text contains '<vq_placeholder>', which stands for images"),
        ([user("hi")], "no message of the assistant, so nothing to learn"),
        ([user("hi"), {**assistant("b"), "weight": 0}], "nothing to learn .one of weight 0 is only read."),
        ([user("hi"), {**assistant("b"), "weight": 0.5}], "message 1 has weight 0.5; it must be 0 .not learnt. or 1"),
        ([user("hi"), {**assistant("b"), "weight": None}], "message 1 has weight None; it must be 0"),
        ([{**user("hi"), "weight": 0}, assistant("b")], "message 0 has a weight, but role user; only the assistant's"),
    ],
)
def test_messages_that_are_no_conversation_are_refused(messages, sentence):
    with pytest.raises(ValueError, match=sentence):
        tiny_processor().document(messages)


def test_templates_that_cannot_be_trained_with_are_refused():
    with pytest.raises(ValueError, match="the chat template does not write '<image_placeholder>' for an image part"):
        tiny_processor(chat_template="{% for message in messages %}hello{% endfor %}")
    with pytest.raises(ValueError, match="the chat template rewrites earlier turns: with 3 messages"):
        tiny_processor(chat_template=REWRITING).document(ASK)
    spaced = (
        "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
        "{{ 'assistant:' if add_generation_prompt }}"
    )
    with pytest.raises(ValueError, match="writes ' ' between its generation prompt and an image"):
        tiny_processor(chat_template=spaced).document(DRAW, write="vq")


def test_paths_that_are_not_there_are_refused_when_needed():
    drawing_only = tiny_processor(num_image_tokens=None, vq_token_size=None)
    assert drawing_only.paths == ("diffusion",)
    drawing_only.document(DRAW, write="diffusion")  # nothing is read, so the default to read by need not exist
    with pytest.raises(ValueError, match="no path 'understanding' here; this model has: diffusion"):
        drawing_only.document(ASK)
    with pytest.raises(ValueError, match="no path 'vq' here; this model has: diffusion"):
        drawing_only.prompt(ASK[:1], read="vq")
    with pytest.raises(ValueError, match="no path 'vq' here; this model has: diffusion"):
        drawing_only.document(ASK, read="vq", image_tokens=4)
    with pytest.raises(ValueError, match="no path 'understanding' here; this model has: diffusion"):
        drawing_only.document(ASK, image_tokens=4)


def test_a_config_of_other_tokens_or_sizes_is_refused():
    tokenizer = tiny_tokenizer()
    ids = image_token_ids(tokenizer)
    with pytest.raises(ValueError, match="the model's vq_token_id is 3, but the tokenizer says"):
        HybridGenProcessor.for_config(tiny_config(**{**ids, "vq_token_id": 3}), tokenizer, vq_factor=4)
    with pytest.raises(ValueError, match="give vq_factor"):
        HybridGenProcessor.for_config(tiny_config(**ids), tokenizer)
    with pytest.raises(ValueError, match=r"different sides \(diffusion 16, vq 32 pixels\)"):
        HybridGenProcessor.for_config(tiny_config(**ids), tokenizer, vq_factor=8)
    text_only = HybridGenProcessor.for_config(HybridGenConfig(text_config=text_config(), **ids), tokenizer)
    assert text_only.paths == ()
    assert text_only.default_size is None
    assert len(text_only.document([user("red"), assistant("blue")]).images) == 0


def test_a_copy_works_and_a_new_template_takes_effect():
    processor = copy.deepcopy(tiny_processor())
    before = processor.document(ASK).layout.input_ids
    processor.chat_template = TEMPLATES["chatml"]
    assert processor.document(ASK).layout.input_ids != before


def test_settings_of_one_call_hold_for_it_alone():
    images = HybridGenImageProcessor(image_size=16)
    usual = images([picture(16, 16)], return_tensors="pt")["pixel_values"]
    raw = images([[picture(16, 16)]], return_tensors="pt", do_rescale=False, do_normalize=False)["pixel_values"]
    torch.testing.assert_close((raw / 255 - 0.5) / 0.5, usual, rtol=0, atol=1e-6)
    assert images(picture(16, 16), image_size=8)["pixel_values"].shape == (1, 3, 8, 8)
    assert torch.equal(images(picture(16, 16))["pixel_values"], usual)
    processor = tiny_processor()
    texts = {"text": "<image_placeholder>", "return_tensors": "pt"}
    plain = processor(images=picture(16, 16), **texts, images_kwargs={"image_mean": [0.0] * 3, "image_std": [1.0] * 3})
    torch.testing.assert_close((plain["pixel_values"] - 0.5) / 0.5, usual, rtol=0, atol=1e-6)


# --------------------------------------------------------------------------------------- one image by several paths


def kinds_of(document) -> list[str]:
    """Each image of the layout in order, as the path of its placeholders and `hidden` where it is."""
    tokens, layout = tiny_processor().special_tokens, document.layout
    names = {tokens.placeholder(path): path for path in ("understanding", "diffusion", "vq")}
    entries = []
    for token, hidden, block in zip(layout.input_ids, layout.noised_mask, layout.block_ids, strict=True):
        name = names.get(token)
        entry = None if name is None else (f"{name}, hidden" if hidden else name, block if name == "diffusion" else 0)
        if entry is not None and (not entries or entries[-1] != entry):
            entries.append(entry)
        elif entry is None:
            entries.append(None)
    return [entry[0] for entry in entries if entry is not None]


def test_an_image_is_read_by_each_path_in_turn():
    processor = tiny_processor()
    messages = [user(image(1), "what?"), assistant("red")]
    document = processor.document(messages, read=["diffusion", "understanding"])
    assert kinds_of(document) == ["diffusion", "understanding"]
    assert [(each.path, each.write) for each in document.images] == [("diffusion", False), ("understanding", False)]
    for path in ("diffusion", "understanding"):
        alone = processor.document(messages, read=path)
        assert torch.equal(document.pixels(path)[0], alone.pixels(path)[0])
    assert len(document) == sum(
        len(processor.document(messages, read=path)) for path in ("diffusion", "understanding")
    ) - (len(processor.document([user("what?"), assistant("red")])))
    assert (
        processor.document(messages, read=["diffusion"]).layout == processor.document(messages, read="diffusion").layout
    )
    prompt = processor.prompt(messages[:1], read=["diffusion", "understanding"])
    assert document.layout.input_ids[: len(prompt)] == prompt.layout.input_ids


def test_what_follows_a_written_image_reads_its_twin_and_what_the_tower_sees():
    processor = tiny_processor()
    messages = [user("a dog"), assistant(image(2)), user("now red"), assistant(image(3))]
    settings = {"write": "diffusion", "clean_copy": True}
    document = processor.document(messages, read=["diffusion", "understanding"], **settings)
    once = ["diffusion, hidden", "diffusion", "understanding"]
    assert kinds_of(document) == [*once, *once]
    assert [each.write for each in document.images] == [True, False, False] * 2
    assert kinds_of(processor.document(messages, read="understanding", **settings)) == [*once[:2], *once[:2]]
    assert (
        kinds_of(processor.document(messages, read=["diffusion", "understanding"], write="diffusion"))
        == ["diffusion"] * 2
    )


@pytest.mark.parametrize("read", [[], ["diffusion", "diffusion"]])
def test_paths_to_read_by_are_named_once(read):
    with pytest.raises(ValueError, match="name each path by which images are read once"):
        tiny_processor().document([user(image(1)), assistant("red")], read=read)


def test_a_path_to_read_by_is_known():
    with pytest.raises(
        ValueError, match="no path 'siglip' to read images by; the paths are understanding, diffusion, vq"
    ):
        tiny_processor().document([user(image(1)), assistant("red")], read=["diffusion", "siglip"])


# ------------------------------------------------------------------------------------------ several chat templates

NAMED = {"default": CHATML, "secondary": CHATML.replace("im_start", "im_begin"), "tool_use": JANUS}


@pytest.mark.parametrize("form", ["dict", "list", "list in tokenizer_config.json"])
def test_of_several_chat_templates_the_default_is_used_and_all_are_kept(tmp_path, form):
    tokenizer = tiny_tokenizer()
    listed = [{"name": name, "template": template} for name, template in NAMED.items()]
    tokenizer.chat_template = NAMED if form == "dict" else listed
    if form == "list in tokenizer_config.json":
        tokenizer.chat_template = None
        tokenizer.save_pretrained(tmp_path / "tokenizer")
        file = tmp_path / "tokenizer" / "tokenizer_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "chat_template": listed}))
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    processor = tiny_processor(tokenizer=tokenizer)
    ids = processor.prompt([user("red")]).layout.input_ids
    assert ids == tiny_processor(chat_template=CHATML).prompt([user("red")]).layout.input_ids
    processor.save_pretrained(tmp_path / "saved")
    loaded = HybridGenProcessor.from_pretrained(tmp_path / "saved")
    assert loaded.chat_template == processor.chat_template == NAMED
    assert loaded.prompt([user("red")]).layout.input_ids == ids
    loaded.save_pretrained(tmp_path / "again")
    for file in ("chat_template.jinja", "additional_chat_templates/secondary.jinja", "tokenizer.json"):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "saved" / file).read_bytes()
    text = {"role": "user", "content": "red"}
    assert loaded.apply_chat_template([text], chat_template="secondary").startswith("<|im_begin|>")
    assert loaded.apply_chat_template([text]).startswith("<|im_start|>")


@pytest.mark.parametrize(
    ("templates", "message"),
    [
        ({"other": CHATML, "rag": CHATML}, "several chat templates, 'other', 'rag', and none is called 'default'"),
        ([{"name": "rag", "template": CHATML}], "several chat templates, 'rag', and none is called 'default'"),
        ({"default": 3}, "chat_template is {'default': 3}"),
        (7, "chat_template is 7"),
    ],
)
def test_chat_templates_without_a_default_are_refused_by_name(templates, message):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = templates
    with pytest.raises(ValueError, match=re.escape(message)):
        tiny_processor(tokenizer=tokenizer)


def test_one_template_of_several_names_is_that_template():
    assert tiny_processor(chat_template={"default": CHATML}).chat_template == CHATML


@pytest.mark.parametrize(
    ("conversation", "sentence"),
    [
        ([{"role": "user", "content": [{"type": "video", "video": "a.mp4"}]}], "message 0 has a part {'type': 'video'"),
        ([{"role": "user", "content": ["x"]}], "message 0 has a part 'x'; only texts and images are read"),
        ([{"role": "user", "content": [{"type": "text"}]}], "message 0 has a text part without its text"),
        ([{"role": "user"}], "message 0 has content None; use a text or a list of parts"),
        ([{"role": "bot", "content": "x"}], "message 0 has role 'bot'; use one of system, user, assistant"),
        ([{"role": "user", "content": "caf\udce9"}], "message 0's text is not UTF-8 text"),
        ([[{"role": "user", "content": "x"}], [{"content": "x"}]], "message 0 has role None"),
        ([], r"must be a list of at least one message, not \[\]"),
        ("hello", "must be a list of at least one message, not 'hello'"),
    ],
)
def test_what_a_template_would_leave_out_is_refused(conversation, sentence):
    with pytest.raises(ValueError, match=sentence):
        tiny_processor().apply_chat_template(conversation, tokenize=False)


def test_text_of_a_call_is_utf8():
    with pytest.raises(ValueError, match="the text is not UTF-8 text: character 4"):
        tiny_processor()(text="caf\udce9")


@pytest.mark.parametrize("clean_copy", [False, True])
@pytest.mark.parametrize("read", ["understanding", ["diffusion", "understanding", "vq"]])
def test_a_long_conversation_is_cut_between_its_pictures(read, clean_copy):
    processor = tiny_processor()
    turns = [user("a red circle"), assistant(image()), user(image(), "what colour is it?"), assistant("red", image())]
    whole = processor.document(turns * 3, read=read, write="diffusion", clean_copy=clean_copy)
    longest = max(image.span[1] - image.span[0] for image in whole.images)
    pieces = list(whole.pieces(longest + 3))
    assert len(pieces) > 3
    assert [i for piece in pieces for i in piece.layout.input_ids] == whole.layout.input_ids
    assert [image.pixels.data_ptr() for piece in pieces for image in piece.images] == [
        image.pixels.data_ptr() for image in whole.images
    ]
    begin, end = processor.special_tokens.begin_image, processor.special_tokens.end_image
    for piece in pieces:
        ids = piece.layout.input_ids
        assert ids.count(begin) == ids.count(end) == len({(i.span, i.path) for i in piece.images})
        for each in piece.images:
            assert ids[each.span[0]] == begin
            assert ids[each.span[1] - 1] == end
    with pytest.raises(ValueError, match=f"picture of {longest} tokens.* a row of {longest - 1}"):
        list(whole.pieces(longest - 1))
