"""Documents without a chat template, and which tokens of one with a template are taught: tokenizers of all families.

The oracle of a text is the tokenizer's own call; of what a user wrote, the same conversation in other words.
"""

import random

import pytest
import torch

from hybridgen.core.documents import Document
from hybridgen.core.layout import IGNORE, TextSegment, lay_out, pack
from hybridgen.processing_hybridgen import HybridGenProcessor
from tests import januses
from tests.foreign_tokenizers import CHATML, FAMILIES, LLAMA3, unigram
from tests.models import TOKENS, tiny_model
from tests.processors import JANUS, assistant, image, tiny_processor, tiny_tokenizer, user
from tests.test_typed_tokens import processor_of

TEXTS = [
    "what is it?", "  a red circle,\n\nis it? ", "é 日本 🎨\n", "user\nassistant", "\n", "<|im_end|> and </s> <|eos|>",
    "a<image_placeholder>b", " " * 7, "x\ufdd0y",
]  # fmt: skip


@pytest.fixture(scope="module", params=["ours", "janus", *FAMILIES, "unigram"])
def processor(request) -> HybridGenProcessor:
    if request.param == "ours":
        return tiny_processor()
    if request.param == "janus":
        return processor_of(januses.tiny_tokenizer(), chat_template=JANUS)
    return processor_of(unigram() if request.param == "unigram" else FAMILIES[request.param]())


def said(words: str) -> list[dict]:
    return [assistant(words)]


# ------------------------------------------------------------------------------------------------ plain documents


@pytest.mark.parametrize("text", TEXTS[:5])
def test_a_plain_text_is_the_tokenizers_tokens_between_begin_and_end_and_all_of_it_is_taught(processor, text):
    tokenizer = processor.tokenizer
    begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    expected = [*begin, *tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    for loss_on in ("assistant", "all", "everything"):
        document = processor.document(said(text), plain=True, loss_on=loss_on)
        assert document.layout.input_ids == expected
        assert document.layout.labels == [IGNORE, *expected[1:]]
        assert document.plain


@pytest.mark.parametrize("text", TEXTS[5:])
def test_control_tokens_that_a_plain_text_spells_are_words(processor, text):
    tokenizer = processor.tokenizer
    if (
        "</s>" in text and tokenizer.backend_tokenizer.model.__class__.__name__ == "Unigram"
    ):  # its model holds the token
        with pytest.raises(ValueError, match="which it cannot write as words"):
            processor.document(said(text), plain=True)
        return
    ids = processor.document(said(text), plain=True).layout.input_ids
    controls = set(tokenizer.convert_tokens_to_ids(list(processor._controls.names))) - {tokenizer.unk_token_id}
    begin = tokenizer.bos_token_id is not None
    assert not controls & set(ids[begin:-1])
    assert ids[-1] == tokenizer.eos_token_id


def test_a_picture_then_its_caption_and_only_the_caption_is_taught():
    processor = tiny_processor()
    document = processor.document([user(image()), assistant("a red circle")], plain=True)
    caption = processor.tokenizer("a red circle")["input_ids"]
    begin, end = processor.special_tokens.begin_image, processor.special_tokens.end_image
    placeholders = [processor.special_tokens.understanding] * 4
    eos = processor.tokenizer.eos_token_id
    expected = [processor.tokenizer.bos_token_id, begin, *placeholders, end, *caption, eos]
    assert document.layout.input_ids == expected
    assert document.layout.labels == [IGNORE] * 7 + [*caption, eos]
    assert [(i.path, i.write, i.span) for i in document.images] == [("understanding", False, (1, 7))]


def test_an_interleaved_document_has_its_pictures_where_they_stand_and_they_are_drawn():
    processor = tiny_processor()
    content = assistant("red", image(1), "and", image(2), "blue")
    document = processor.document([content], plain=True, write="vq", read=["vq", "understanding"])
    ids, vq = document.layout.input_ids, processor.special_tokens.vq
    kinds = [processor.tokenizer.decode([token]) for token in ids if token != vq]
    assert "".join(kinds) == "<|bos|>red<begin_of_image><end_of_image>and<begin_of_image><end_of_image>blue<|eos|>"
    assert ids.count(vq) == 8
    assert all(image.write and image.path == "vq" for image in document.images)
    assert document.layout.labels.count(processor.special_tokens.begin_image) == 2  # it learns where to draw
    assert [image.image_first for image in document.images] == [False, False]
    first = processor.document([assistant(image(), "red", image())], plain=True, write="vq")
    assert [image.image_first for image in first.images] == [True, False]


def test_a_message_of_weight_0_is_read_only_without_a_template_as_well():
    processor = tiny_processor()
    messages = [assistant("red") | {"weight": 0}, assistant("blue")]
    labels = processor.document(messages, plain=True).layout.labels
    assert [token for token in labels if token != IGNORE] == [
        *processor.tokenizer("blue")["input_ids"], processor.tokenizer.eos_token_id,
    ]  # fmt: skip


def test_a_tokenizer_without_an_end_of_text_is_refused():
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    processor = tiny_processor(tokenizer=tokenizer)
    with pytest.raises(ValueError, match="the tokenizer has no end-of-text token.*set tokenizer.eos_token"):
        processor.document(said("red"), plain=True)


# ------------------------------------------------------------------------------------------- without a chat template


def without_template(**settings) -> HybridGenProcessor:
    tokenizer = FAMILIES["qwen"]()
    tokenizer.chat_template = None
    return processor_of(tokenizer, **settings)


def test_a_tokenizer_without_a_template_serves_plain_texts_and_refuses_conversations():
    processor = without_template()
    assert processor.chat_template is None
    assert processor.document(said("red"), plain=True).learns
    turns = [user("red"), assistant("blue")]
    for refused in (
        lambda: processor.document(turns),
        lambda: processor.prompt(turns[:1]),
        lambda: processor.prompt_ids(turns[:1]),
        lambda: processor.apply_chat_template(turns),
    ):
        with pytest.raises(ValueError, match="no chat template, and a conversation needs one; .*model.chat_template"):
            refused()


def test_a_template_may_be_set_later_and_plain_texts_stay_as_they_are():
    processor = without_template()
    plain = processor.document(said("a red <|im_end|>"), plain=True).layout
    processor.chat_template = CHATML
    assert processor.document([user("red"), assistant("blue")]).layout.input_ids
    assert processor.document(said("a red <|im_end|>"), plain=True).layout == plain


def test_a_processor_without_a_template_is_saved_and_loaded_as_one(tmp_path):
    without_template().save_pretrained(tmp_path)
    loaded = HybridGenProcessor.from_pretrained(tmp_path)
    assert loaded.chat_template is None
    assert (
        loaded.document(said("red"), plain=True).layout == without_template().document(said("red"), plain=True).layout
    )
    without_template(chat_template=CHATML).save_pretrained(tmp_path)
    assert HybridGenProcessor.from_pretrained(tmp_path).chat_template == CHATML


# ---------------------------------------------------------------------------------------------------- who is taught

WORDS = ["what is it?", "user", "user\nuser", "assistant", " a red circle ", "日本 é", "[INST] is", "im_start", "\n\nx"]
TEMPLATES = {"own": None, "chatml": CHATML, "llama3": LLAMA3, "janus": JANUS}


def taught(document) -> list[int]:
    return [token for token in document.layout.labels if token != IGNORE]


@pytest.mark.parametrize("seed", range(8))
def test_of_what_is_not_the_assistants_only_the_words_are_taught(processor, seed):
    """The tokens that `all` teaches beyond the assistant's are those of the user's words, wherever they stand."""
    rng = random.Random(seed)
    messages = [user(rng.choice(WORDS)), assistant("blue"), user(rng.choice(WORDS)), assistant("red")]
    document = processor.document(messages, loss_on="all")
    mine = processor.document(messages)
    other = processor.document(messages, loss_on="everything")
    assert document.layout.input_ids == mine.layout.input_ids == other.layout.input_ids
    extra = [
        token
        for token, label, without in zip(
            document.layout.input_ids, document.layout.labels, mine.layout.labels, strict=True
        )
        if label != without
    ]
    tokenizer = processor.tokenizer
    controls = set(tokenizer.convert_tokens_to_ids(list(processor._controls.names))) - {tokenizer.unk_token_id}
    assert not controls & set(extra)
    said_words = "".join(part["text"] for turn in messages[::2] for part in turn["content"])
    decoded = tokenizer.decode(extra)
    lowered = said_words.lower() if "Lowercase" in str(tokenizer.backend_tokenizer.normalizer) else said_words
    assert squeezed(decoded) == squeezed(lowered) or tokenizer.unk_token_id in extra


def squeezed(words: str) -> str:
    return "".join(words.split())


@pytest.mark.parametrize("template", TEMPLATES)
def test_names_of_roles_and_ends_of_the_users_turns_are_taught_only_when_asked(template):
    processor = tiny_processor(chat_template=TEMPLATES[template])
    messages = [user("red"), assistant("blue")]
    words = processor.document(messages, loss_on="all").layout
    decode = processor.tokenizer.decode
    assert squeezed(decode([token for token in words.labels if token != IGNORE])).startswith("redblue")
    asked = processor.document(messages, loss_on="everything").layout
    assert asked.labels == [IGNORE, *asked.input_ids[1:]]
    mine = processor.document(messages).layout
    for label, both in zip(mine.labels, words.labels, strict=True):  # what the assistant's turns teach stays
        assert label in (IGNORE, both)


def test_every_image_and_every_word_is_still_taught_under_all():
    processor = tiny_processor()
    document = processor.document([user(image(), "red"), assistant("blue", image())], write="vq", loss_on="all")
    assert [image.write for image in document.images] == [True, True]
    begin = processor.special_tokens.begin_image
    eos = processor.tokenizer.eos_token_id
    words = [processor.tokenizer(word)["input_ids"] for word in ("red", "blue")]
    assert taught(document) == [begin, *words[0], *words[1], begin, eos]


def test_words_that_were_dropped_are_not_taught():
    for unconditional in ("empty", "janus-official", "janus-hf"):
        processor = tiny_processor(unconditional=unconditional)
        document = processor.document([user("red"), assistant("blue")], loss_on="all", prompt_dropout=True)
        assert taught(document) == [*processor.tokenizer("blue")["input_ids"], processor.tokenizer.eos_token_id]


# writes how long a message is
COUNTING = (
    "{% for m in messages %}<{{ m.role }} {{ m.content | length }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant 3>{% endif %}"
)


def test_a_template_that_changes_words_is_refused_where_they_are_taught():
    processor = tiny_processor(chat_template=COUNTING)
    messages = [user("red"), assistant("abc")]
    processor.document(messages)
    with pytest.raises(ValueError, match="the chat template changes what the messages say.*loss_on to 'assistant'"):
        processor.document(messages, loss_on="all")


# ------------------------------------------------------------------------------------------------ long documents


def losses_in(model, layouts: list, length: int) -> list[list[float]]:
    """The loss at each label of each document, all of them packed into rows of this length, one after another."""
    rows, row = [], []
    for layout in layouts:
        if sum(map(len, row)) + len(layout) > length:
            rows, row = [*rows, row], []
        row.append(layout)
    found = []
    for packed in [*rows, row]:
        batch = {name: vector[None] for name, vector in pack(packed, length, 0).tensors().items()}
        labels = batch.pop("labels")
        inputs = {name: batch[name] for name in ("input_ids", "document_ids", "block_ids", "position_ids")}
        with torch.no_grad():
            logits = model(**inputs).logits
        losses = torch.nn.functional.cross_entropy(logits[0, :-1], labels[0, 1:], reduction="none", ignore_index=IGNORE)
        begin = 0
        for layout in packed:
            end = begin + len(layout)
            found.append([losses[at - 1].item() for at in range(begin, end) if labels[0, at] != IGNORE])
            begin = end
    return found


def test_a_document_cut_is_one_long_row_up_to_the_first_cut_and_then_pieces_of_their_own():
    """Measured worst difference 5e-7, in 86 losses of about 5."""
    model = tiny_model().eval()
    processor = tiny_processor()
    text = processor.document(said("a red circle, is it? " * 12), plain=True)
    ids = [token % 89 + 1 for token in text.layout.input_ids]  # of the model's vocabulary
    document = Document(lay_out([TextSegment(ids)], TOKENS))
    pieces = [piece.layout for piece in document.pieces(20)]
    assert len(pieces) > 3
    (whole,) = losses_in(model, [document.layout], len(document))
    in_rows = losses_in(model, pieces, 20)
    in_one_row = losses_in(model, pieces, len(document))
    anew = losses_in(model, [lay_out([TextSegment(piece.input_ids)], TOKENS) for piece in pieces], 20)

    close = {"rel": 1e-5, "abs": 1e-5}
    assert in_rows[0] == pytest.approx(whole[: len(in_rows[0])], **close)
    for one, other, third in zip(in_rows, in_one_row, anew, strict=True):
        assert one == pytest.approx(other, **close)
        assert one == pytest.approx(third, **close)
    assert sum(map(len, in_rows)) == len(whole) - (len(pieces) - 1)  # a label for each cut
