"""A converted LLaVA beside transformers' own, on tiny random weights of transformers' making: the same words in, the
same logits and answers out."""

from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from transformers import LlavaForConditionalGeneration, LlavaProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from hybridgen.bridges.llava.conversion import load_llava
from hybridgen.chat.events import TextDelta
from tests.llavas import IMAGE, VARIANTS, save_transformers
from tests.sampling.prompts import worst


@pytest.fixture(scope="module", params=VARIANTS)
def both(request, tmp_path_factory) -> SimpleNamespace:
    """transformers' model and processor, and our pipeline, of one folder."""
    folder = save_transformers(tmp_path_factory.mktemp("hf") / request.param, request.param)
    processor = LlavaProcessor.from_pretrained(folder)
    processor.image_processor = CLIPImageProcessorPil.from_pretrained(folder)  # torchvision resizes a little otherwise
    theirs = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    return SimpleNamespace(theirs=theirs, processor=processor, pipe=load_llava(folder))


def picture(width: int = 24, height: int = 24, seed: int = 3) -> Image.Image:
    torch.manual_seed(seed)
    return Image.fromarray(torch.randint(0, 256, (height, width, 3), dtype=torch.uint8).numpy())


def asked(*texts: str, pictures: int = 1, answers: tuple[str, ...] = ()) -> list[dict]:
    """A conversation in transformers' form: pictures before the first text, an answer after each but the last."""
    messages = []
    for number, text in enumerate(texts):
        images = [{"type": "image"}] * pictures if number == 0 else []
        messages.append({"role": "user", "content": [*images, {"type": "text", "text": text}]})
        if number < len(answers):
            messages.append({"role": "assistant", "content": [{"type": "text", "text": answers[number]}]})
    return messages


def inputs_of(both, messages: list[dict], images: list[Image.Image]):
    text = both.processor.apply_chat_template(messages, add_generation_prompt=True)
    return both.processor(text=text, images=images, return_tensors="pt")


def with_images(messages: list[dict], images: list[Image.Image]) -> list[dict]:
    given = iter(images)
    return [
        {**m, "content": [{"type": "image", "image": next(given)} if p["type"] == "image" else p for p in m["content"]]}
        for m in messages
    ]


def test_prompts_are_the_tokens_of_transformers_processor(both):
    """Also of several pictures and of turns before."""
    for messages, count in (
        (asked("what colour is it?"), 1),
        (asked("first or second?", pictures=2), 2),
        (asked("what?", "and now?", answers=("a circle",)), 1),
    ):
        images = [picture(seed=number) for number in range(count)]
        expected = inputs_of(both, messages, images)["input_ids"][0].tolist()
        document = both.pipe.processor.prompt(with_images(messages, images))
        assert list(document.layout.input_ids) == expected
        assert expected.count(both.theirs.config.image_token_id) == 9 * count


@pytest.mark.parametrize("size", [(24, 24), (60, 31), (25, 40), (9, 14)])
def test_pictures_are_cut_as_clips_processor_cuts_them(both, size):
    expected = both.processor.image_processor(picture(*size), return_tensors="pt")["pixel_values"]
    ours = both.pipe.processor.image_processor.understanding([picture(*size)])
    assert (ours - expected).abs().max() < 1e-5  # measured 0


def test_logits_of_words_and_pictures(both):
    messages = [asked("what colour is it?"), asked("first or second?", pictures=2)]
    texts = [both.processor.apply_chat_template(each, add_generation_prompt=True) for each in messages]
    images = [picture(seed=number) for number in range(3)]
    inputs = both.processor(text=texts, images=images, return_tensors="pt", padding=True)
    mask = inputs["attention_mask"].bool()
    with torch.no_grad():
        expected, ours = both.theirs(**inputs).logits, both.pipe.model(**inputs).logits
        blank = both.pipe.model(**{**inputs, "pixel_values": torch.zeros_like(inputs["pixel_values"])}).logits
    assert worst(ours[mask], expected[mask]) < 1e-5  # measured 2.5e-6
    assert worst(blank[mask], expected[mask]) > 1e-2


def test_answers_are_those_of_transformers(both):
    one, two = picture(60, 31), picture(25, 40, seed=5)
    for messages, images in (
        (asked("what colour is it?"), [one]),
        (asked("first or second?", pictures=2), [one, two]),
        (asked("what?", "and now?", answers=("a circle",)), [two]),
    ):
        inputs = inputs_of(both, messages, images)
        image = [both.theirs.config.image_token_id]
        written = both.theirs.generate(**inputs, max_new_tokens=8, do_sample=False, suppress_tokens=image)
        new = written[0, inputs["input_ids"].shape[1] :]
        expected = both.processor.tokenizer.decode(new, skip_special_tokens=True).strip()
        assert both.pipe.reply([with_images(messages, images)], max_new_tokens=8) == [expected]
    assert both.pipe.answer([[one, two]], "first or second?", max_new_tokens=8) == both.pipe.reply(
        [with_images(asked("first or second?", pictures=2), [one, two])], max_new_tokens=8
    )


def test_it_converses(both):
    """A chat reads turn by turn what `reply` reads at once; nothing frames its pictures."""
    messages = with_images(asked("what colour is it?"), [picture()])
    events = [*both.pipe.stream(messages, plan=["text"], max_new_tokens=6)]
    said = "".join(event.text for event in events if isinstance(event, TextDelta)).strip()
    assert [said] == both.pipe.reply([messages], max_new_tokens=6)


def test_it_draws_nothing(both):
    assert both.pipe.model.config.paths == ("understanding",)
    with pytest.raises(ValueError, match="no path that writes images"):
        both.pipe("a red circle")
    assert IMAGE in both.pipe.processor.tokenizer.get_vocab()
