"""Conversations against whole forwards, calls of the pipeline and `generate`; forks, rollbacks and stops leave no
trace."""

import json

import pytest
import torch
from diffusers.guiders import AdaptiveProjectedGuidance

from hybridgen.chat.events import ImageDone, ImagePreview, ImageStarted, TextDelta, Usage
from hybridgen.chat.session import Chat
from hybridgen.chat.settings import TurnSettings
from hybridgen.chat.turn import Conversation, Turn
from hybridgen.checkpoints.hashes import checkpoint_hashes
from hybridgen.core.layout import ImageSegment, TextSegment, lay_out
from hybridgen.pipeline_hybridgen import HybridGenPipeline, load_pipeline
from hybridgen.sampling.guidance import Guidance
from hybridgen.sampling.interleaved import read_document
from hybridgen.sampling.text import write_text
from tests.pipelines import tiny_pipeline, tiny_vae
from tests.processors import JANUS, picture
from tests.sampling.prompts import worst

SHORT, LONG = (
    "a red circle",
    "draw a blue square on a red circle, twice, and yes, draw another square on a blue circle, no",
)
FEW = {"diffusion": {"num_inference_steps": 3}, "vq": {}}  # settings of each path
QUICK = {"num_inference_steps": 3, "max_new_tokens": 5}
DRAWING = ("diffusion", "vq")


@pytest.fixture(scope="module")
def pipe() -> HybridGenPipeline:
    return tiny_pipeline()


@pytest.fixture(scope="module")
def with_vae() -> HybridGenPipeline:
    return tiny_pipeline(tiny_vae())


NO_BOUND = {"adaptive_projected_guidance_rescale": 0.0}  # which there is none of on codes


def said(text: str) -> list[dict]:
    return [{"role": "user", "content": text}]


def of(kind: type, events) -> list:
    return [event for event in events if isinstance(event, kind)]


def text_of(events) -> str:
    return "".join(event.text for event in of(TextDelta, events))


def drawn(chat: Chat, number: int = -1) -> torch.Tensor:
    """Latents or codes of a picture of a chat."""
    media = chat._conversation.images[number].media
    return media["codes"] if "codes" in media else media["latents"]


# ---------------------------------------------------------------------------------------- the same as a single call


@pytest.mark.parametrize("prompt", [SHORT, LONG])
@pytest.mark.parametrize(
    "settings",
    [
        {"guidance_scale": 1.0},
        {"guidance_scale": 3.0},
        {"guidance_scale": 2.0, "negative_prompt": f"{LONG} {LONG}", "guidance_rescale": 0.5},
        {"guider": AdaptiveProjectedGuidance(3.0, **NO_BOUND, eta=0.5, stop=0.7), "height": 16, "width": 24},
    ],
)
@pytest.mark.parametrize("path", DRAWING)
def test_a_picture_is_that_of_a_call_to_the_bit(with_vae, path, settings, prompt):
    given = {"path": path, "seed": 3, **FEW[path], **settings}
    chat = with_vae.chat(plan=["image", "text"], max_new_tokens=3)
    events = list(chat.send(prompt, **given))
    expected = with_vae(prompt, **given, output_type="latent").images
    assert torch.equal(drawn(chat), expected.flatten() if path == "vq" else expected)
    assert of(ImageDone, events)[0].image.tobytes() == with_vae(prompt, **given).images[0].tobytes()


@pytest.mark.parametrize(
    "settings", [{"path": "vq", "window": 4}, {"path": "vq", "precision": "bf16"}, {"precision": "bf16"}]
)
def test_a_faster_picture_is_that_of_a_call_and_committed_in_its_precision(pipe, settings):
    given = {"seed": 1, "guidance_scale": 2.0, **FEW[settings.get("path", "diffusion")], **settings}
    chat = pipe.chat(plan=["image"])
    image = chat.draw(SHORT, **given)
    assert image.tobytes() == pipe(SHORT, **given).images[0].tobytes()
    pad, decoder = pipe.processor.special_tokens.pad, pipe.decoder(settings.get("precision", "model"))
    row = read_document(pipe.model, None, chat._conversation.cond.tokens, pad, decoder=decoder)
    near = 1e-5 if "precision" not in settings else 0.03  # measured 4e-7, 0.006
    assert worst(chat._conversation.cond.prefix.last_state, row.prefix.last_state) < near


@pytest.mark.parametrize("unconditional", ["empty", "janus-official", "janus-hf"])
def test_a_picture_of_another_template_and_unconditional_prompt(unconditional):
    pipe = tiny_pipeline()
    pipe.processor.chat_template, pipe.processor.unconditional = JANUS, unconditional
    given = {"path": "vq", "seed": 1, "guidance_scale": 4.0}
    chat = pipe.chat(plan=["image"])
    chat.draw(SHORT, **given)
    assert torch.equal(drawn(chat), pipe(SHORT, **given, output_type="latent").images.flatten())


class Decides:
    """Lets a random model decide: the token that begins an image is the likeliest after these numbers of tokens."""

    def __init__(self, pipe, after: list[int]):
        self.pipe, self.after, self.asked = pipe, after, 0

    def __enter__(self):
        def prefer(head, args, logits):
            if self.asked in self.after:
                logits[..., self.pipe.model.config.begin_image_token_id] = 1e4
            self.asked += 1
            return logits

        self.handle = self.pipe.model.lm_head.register_forward_hook(prefer)
        return self

    def __exit__(self, *error):
        self.handle.remove()


@pytest.mark.parametrize("path", DRAWING)
def test_the_model_decides_to_draw_at_once(pipe, path):
    given = {"path": path, "seed": 5, "guidance_scale": 2.0, **FEW[path]}
    chat = pipe.chat(max_new_tokens=4)
    with Decides(pipe, [0]):
        events = list(chat.send(SHORT, **given))
    assert torch.equal(drawn(chat).flatten(), pipe(SHORT, **given, output_type="latent").images.flatten())
    kinds = [type(event) for event in events if not isinstance(event, TextDelta)]
    assert kinds == [ImageStarted, ImageDone, Usage]
    assert events[0] == ImageStarted(0, path, 16, 16)
    assert events[-1].text_tokens == 4


def test_the_model_decides_in_the_middle_and_again(pipe):
    """Text, picture, text, picture, text: in that order in the message, and no more than `max_images`."""
    chat = pipe.chat(max_new_tokens=6, num_inference_steps=2, seed=0, max_images=2)
    with Decides(pipe, [2, 4, 5, 6, 7]):
        events = list(chat.send(SHORT))
    content = chat.messages[-1]["content"]
    assert len(of(ImageDone, events)) == 2
    assert [event.manifest["seed"] for event in of(ImageDone, events)] == [0, 1]
    assert [part["type"] for part in content if part["type"] == "image"] == ["image"] * 2
    assert "".join(part["text"] for part in content if part["type"] == "text") == text_of(events)
    assert events[-1].text_tokens == 6
    assert events[-1].image_tokens == 32


@pytest.mark.parametrize("path", ["understanding", "diffusion", "vq"])
def test_the_first_answer_is_that_of_answer(pipe, path):
    for seed in range(4):
        for question in (SHORT, LONG):
            expected = pipe.answer(picture(seed=seed), question, path=path, max_new_tokens=12)[0]
            assert pipe.chat(read=path).ask(question, [picture(seed=seed)], max_new_tokens=12) == expected


def test_a_later_answer_is_that_of_generate_on_the_whole_conversation(pipe):
    """The conversation holds what the model itself said, in the tokenizer's own tokens, and a picture."""
    chat = pipe.chat(max_new_tokens=6)
    chat.ask(SHORT, [picture(seed=1)])
    for question in ("is there a square?", "yes, no", LONG):
        answer = chat.ask(question)
        prompt = pipe.prompt_inputs([pipe.processor.prompt(chat.messages[:-1])])
        assert answer == write_text(pipe.model, pipe.processor.tokenizer, pipe.processor.special_tokens, prompt, 6)[0]


# -------------------------------------------------------------------------------------------- teacher-forced


def whole_cache(pipe, chat: Chat, messages: list[dict], unconditional: bool = False):
    """Keys and values of a conversation, and the state after it, from one forward of one document."""
    pictures, segments = iter(chat._conversation.images), []
    for ids in pipe.processor.prompt_ids(messages, unconditional):
        if ids is not None:
            segments.append(TextSegment(ids))
            continue
        seen = next(pictures)
        segments.append(ImageSegment(seen.path, seen.length, pipe.model.config.is_bidirectional(seen.path)))
    media: dict[str, list] = {}
    for seen in chat._conversation.images:
        for name, value in seen.media.items():
            media.setdefault(name, []).append(value)
    vectors = {name: value[None] for name, value in lay_out(segments, pipe.processor.special_tokens).tensors().items()}
    names = ("input_ids", "document_ids", "block_ids", "position_ids")
    with torch.no_grad():
        return pipe.model.model(
            **{name: vectors[name] for name in names},
            **{name: torch.cat(values) for name, values in media.items()},
            use_cache=True,
        )


@pytest.mark.parametrize("backbone", ["qwen3", "llama4_text"])
@pytest.mark.parametrize("path", DRAWING)
@pytest.mark.parametrize("by", ["understanding", "diffusion", "vq"])
def test_what_was_read_and_drawn_piece_by_piece_is_one_forward(by, path, backbone):
    """Every key and value, and the state that the next text is predicted from: of the conversation, and of what
    guidance leads away from."""
    pipe = tiny_pipeline(backbone=backbone)
    chat = pipe.chat(read=by, path=path, seed=0, guidance_scale=2.0, **QUICK)
    list(chat.send(SHORT, plan=["image", "text"]))
    list(chat.send("what color is it?", [picture(seed=1)], plan=["text"]))
    list(chat.send("draw ", plan=["text", "image"]))
    messages = [*chat.messages, *said("no")]
    turn = Turn(pipe, chat._conversation, said("no"), TurnSettings(read=by, path=path, guidance_scale=2.0))
    assert turn.cached > 50
    pad = pipe.processor.special_tokens.pad
    for row, tokens, unconditional in (
        (chat._conversation.cond, turn.prompt_tokens, False),
        (chat._conversation.uncond, turn.uncond_tokens, True),
    ):
        now, expected = read_document(pipe.model, row, tokens, pad), whole_cache(pipe, chat, messages, unconditional)
        assert worst(now.prefix.last_state, expected.last_hidden_state[:, -1]) < 1e-5  # measured 8e-7
        front = len(now.prefix) - len(tokens)
        for mine, reference in zip(now.prefix.cache.layers, expected.past_key_values.layers, strict=True):
            assert worst(mine.keys[:, :, front : mine.length], reference.keys) < 1e-5  # measured 1.4e-6
            assert worst(mine.values[:, :, front : mine.length], reference.values) < 1e-5  # measured 2e-7


@pytest.mark.parametrize("reread", ["understanding", "diffusion", "vq"])
@pytest.mark.parametrize("path", DRAWING)
def test_what_is_read_again_is_the_conversation_read_by_that_path(path, reread):
    """Every key and value after two drawings are those of the record read by `reread`, as the processor lays it, up to
    the eight bits of its pictures; the pictures themselves are those of a chat that keeps them as drawn."""
    pipe, settings = tiny_pipeline(), {"path": path, "seed": 0, "guidance_scale": 2.0, **QUICK}
    chat, as_drawn = pipe.chat(reread=reread, **settings), pipe.chat(**settings)
    assert chat.draw(SHORT).tobytes() == as_drawn.draw(SHORT).tobytes()
    chat.draw("draw a blue square")
    messages = [*chat.messages, *said("what color is it?")]
    document = pipe.processor.prompt(messages, read=reread)
    inputs = pipe.prompt_inputs([document])
    with torch.no_grad():
        whole = pipe.model.model(**inputs, use_cache=True)
    turn = Turn(pipe, chat._conversation, said("what color is it?"), TurnSettings(reread=reread, path=path))
    now = read_document(pipe.model, chat._conversation.cond, turn.prompt_tokens, pipe.processor.special_tokens.pad)
    assert turn.cached > len(turn.prompt_tokens) / 2
    assert len(turn.prompt_tokens) == len(document)
    assert worst(now.prefix.last_state, whole.last_hidden_state[:, -1]) < 1e-4
    assert [seen.path for seen in chat._conversation.images] == [reread, reread]


def test_a_checkpoint_says_how_its_chats_read_what_they_drew(tmp_path):
    pipe = tiny_pipeline()
    pipe.register_to_config(sampling_defaults={"chat": {"reread": "understanding"}})
    pipe.save_pretrained(tmp_path)
    loaded = load_pipeline(tmp_path)
    for settings, expected in (
        ({}, "understanding"),
        ({"reread": "drawn"}, "vq"),
        ({"reread": "diffusion"}, "diffusion"),
    ):
        chat = loaded.chat(path="vq", seed=0, **QUICK, **settings)
        chat.draw(SHORT)
        assert chat._conversation.images[0].path == expected
        again = Turn(loaded, Conversation(), [*chat.messages, *said("no")], TurnSettings(path="vq", **settings))
        assert [seen.path for seen in again.images] == [expected]


def test_room_is_kept_for_what_is_read_again():
    """A picture of one patch is read again in the tower's 4 tokens, and two for its frame."""
    chat = tiny_pipeline().chat(path="diffusion", height=4, width=4, num_inference_steps=2)
    for reread, tokens in (("drawn", 3), ("understanding", 6)):
        with pytest.raises(ValueError, match=f"200 images of {tokens} tokens, but the model's context is 512"):
            chat.send(SHORT, plan=["image"] * 200, reread=reread)


def test_a_turn_computes_only_what_is_new(pipe):
    chat = pipe.chat(plan=["text"], max_new_tokens=5)
    computed = []
    backbone = pipe.model.model.language_model

    def count(module, args, kwargs):
        computed.append(kwargs["inputs_embeds"].shape[1])

    handle = backbone.register_forward_pre_hook(count, with_kwargs=True)  # and no fused decoder, which goes around it
    try:
        list(chat.send(LONG, [picture()]))
        first = sum(computed)
        computed.clear()
        usage = list(chat.send("no"))[-1]
    finally:
        handle.remove()
    assert usage.cached_tokens > 30
    assert sum(computed) == usage.prompt_tokens - usage.cached_tokens + 1 + usage.text_tokens < first / 2


# ------------------------------------------------------------------------------------------- forks, rollbacks, stops


def plain(events) -> list:
    """Events without what a clock says."""
    return [event for event in events if not isinstance(event, Usage)]


def three_turns(pipe, path: str) -> Chat:
    chat = pipe.chat(path=path, seed=0, guidance_scale=2.0, **QUICK)
    list(chat.send(SHORT, [picture(seed=2)], plan=["image", "text"]))
    list(chat.send("draw a blue square", plan=["text", "image"]))
    return chat


LAST = {"plan": ["image", "text"], "seed": 9}


@pytest.mark.parametrize("path", DRAWING)
def test_rollback_restores_exactly(pipe, path):
    chat = three_turns(pipe, path)
    before = chat.messages
    first = plain(chat.send("draw a circle", **LAST))
    codes = drawn(chat)
    chat.rollback()
    assert chat.messages == before
    assert chat.turns == 2
    again = plain(chat.send("draw a circle", **LAST))
    assert torch.equal(drawn(chat), codes)
    assert text_of(again) == text_of(first)
    chat.rollback(3)
    assert chat.messages == []
    fresh = pipe.chat(path=path, guidance_scale=2.0, **QUICK)
    list(chat.send(SHORT, **LAST)), list(fresh.send(SHORT, **LAST))
    assert torch.equal(drawn(chat), drawn(fresh))


@pytest.mark.parametrize("path", DRAWING)
def test_a_fork_is_independent_and_shares_what_was_read(pipe, path):
    chat, other = three_turns(pipe, path), three_turns(pipe, path)
    fork = chat.fork()
    usage = list(fork.send("no, draw a red square", **LAST))[-1]
    assert usage.cached_tokens > 40
    assert (chat.turns, fork.turns) == (2, 3)
    ours, alone = list(chat.send("yes", **LAST)), list(other.send("yes", **LAST))
    assert torch.equal(drawn(chat), drawn(other))
    assert text_of(ours) == text_of(alone)
    assert not torch.equal(drawn(chat), drawn(fork))
    shared = three_turns(pipe, path)
    keys = shared.fork()._conversation.cond.prefix.cache.layers[0].keys
    assert keys.data_ptr() == shared._conversation.cond.prefix.cache.layers[0].keys.data_ptr()


@pytest.mark.parametrize("path", DRAWING)
@pytest.mark.parametrize("taken", [1, 2, 5])
def test_a_stop_in_the_middle_leaves_the_last_whole_turn(pipe, path, taken):
    chat, other = three_turns(pipe, path), three_turns(pipe, path)
    before = chat.messages
    events = chat.send("draw a circle", preview_every=1, **LAST)
    seen = [next(events) for _ in range(taken)]
    assert not of(Usage, seen)
    events.close()
    assert chat.messages == before
    assert chat.turns == 2
    list(chat.send("draw a circle", **LAST)), list(other.send("draw a circle", **LAST))
    assert torch.equal(drawn(chat), drawn(other))
    assert chat.messages[-1]["content"][1:] == other.messages[-1]["content"][1:]


def test_a_stop_computes_nothing_more(pipe):
    """Between two steps: no forward after the last event."""
    calls = []
    handle = pipe.model.model.patch_embed.register_forward_hook(lambda *_: calls.append(1))
    events = pipe.stream(said(SHORT), plan=["image"], num_inference_steps=8, preview_every=1, seed=0)
    while not isinstance(next(events), ImagePreview):
        pass
    events.close()
    handle.remove()
    assert len(calls) == 1


def test_two_turns_at_once_are_refused(pipe):
    chat = pipe.chat(plan=["text"], max_new_tokens=3)
    slow, fast = chat.send(SHORT), chat.send(LONG)
    next(slow), list(fast)
    with pytest.raises(ValueError, match="fork"):
        list(slow)
    assert chat.turns == 1


# ---------------------------------------------------------------------------------------------- previews, manifests


def test_the_last_preview_of_denoising_is_the_picture(pipe):
    """Flow matching ends where the model says that it ends."""
    events = list(pipe.stream(said(SHORT), path="diffusion", plan=["image"], preview_every=2, num_inference_steps=4))
    assert [event.step for event in of(ImagePreview, events)] == [2, 4]
    done = of(ImageDone, events)[0].image
    seen = [torch.tensor(list(image.tobytes())).int() for image in (of(ImagePreview, events)[-1].image, done)]
    assert (seen[0] - seen[1]).abs().max() <= 1  # levels of 255


def test_previews_of_codes_are_the_rows_that_are_there(pipe):
    events = list(pipe.stream(said(SHORT), path="vq", plan=["image"], preview_every=3))
    previews = of(ImagePreview, events)
    assert [event.step for event in previews] == [6, 9, 12, 15]  # none before there is a row of four codes
    assert [event.image.size for event in previews] == [(16, 4), (16, 8), (16, 12), (16, 12)]
    assert not of(ImagePreview, pipe.stream(said(SHORT), path="vq", plan=["image"]))


@pytest.mark.parametrize("path", DRAWING)
def test_the_manifest_draws_the_picture_again(pipe, path):
    done = of(ImageDone, pipe.stream(said(SHORT), path=path, plan=["image"], guidance_scale=2.0, **FEW[path]))
    facts = json.loads(json.dumps(done[0].manifest))
    assert facts["prior_messages"] == 0
    size = {"height": facts["height"], "width": facts["width"]}
    again = pipe(facts["prompt"], path=facts["path"], seed=facts["seed"], **size, **facts["settings"]).images[0]
    assert again.tobytes() == done[0].image.tobytes()


def test_the_manifest_names_the_weights_for_as_long_as_they_are_known(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "tiny")
    loaded = load_pipeline(tmp_path / "tiny")
    quick = {"plan": ["image"], "num_inference_steps": 1, "seed": 0}
    facts = lambda: of(ImageDone, loaded.stream(said(SHORT), **quick))[0].manifest  # noqa: E731
    expected = checkpoint_hashes(tmp_path / "tiny")
    assert expected["weights"]
    assert {name: facts().get(name) for name in expected} == expected
    assert HybridGenPipeline.from_pretrained(tmp_path / "tiny").origin == expected
    assert not {"weights", "config", "checkpoint"} & set(of(ImageDone, pipe.stream(said(SHORT), **quick))[0].manifest)
    loaded.to(torch.float64)
    assert loaded.origin == expected
    loaded.to(torch.float32)
    assert loaded.origin == expected  # nothing was rounded
    loaded.to(torch.bfloat16)
    assert loaded.origin == expected  # rounded as a replay in bfloat16 rounds it
    loaded.to(torch.float32)
    assert loaded.origin == {}
    loaded = load_pipeline(tmp_path / "tiny")
    with torch.no_grad():
        next(loaded.model.parameters()).add_(1)
    assert "weights" not in facts()


def test_an_image_scale_of_a_guider_is_refused(pipe):
    """A conversation has no rows without its pictures."""
    with pytest.raises(ValueError, match="image_guidance_scale leads to an image, but none is given"):
        pipe.stream(said(SHORT), plan=["image"], guider=Guidance(3.0, image_scale=2.0))


def test_a_schedulers_config_stands_in_the_same_order_in_each_process(pipe):
    manifest = of(ImageDone, pipe.stream(said(SHORT), plan=["image"], path="diffusion", num_inference_steps=1))[
        0
    ].manifest
    filled_in = manifest["scheduler"]["config"]["_use_default_values"]
    assert len(filled_in) > 2
    assert filled_in == sorted(filled_in)


def test_a_folder_that_was_trained_on_is_not_what_drew(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "tiny")
    loaded = load_pipeline(tmp_path / "tiny")
    pipe.save_pretrained(tmp_path / "tiny")  # written again; nobody has looked into the files
    assert loaded.origin == {}


@pytest.mark.parametrize("path", DRAWING)
def test_the_record_is_a_training_document(pipe, path):
    chat = three_turns(pipe, path)
    document = pipe.processor.document(chat.messages, read="understanding", write=path)
    assert [image.path for image in document.images] == ["understanding", path, path]
    assert json.dumps([message["role"] for message in chat.messages]) == json.dumps(["user", "assistant"] * 2)


def test_words_by_chance_are_those_of_their_seed(pipe):
    ask = lambda seed, heat: pipe.chat().ask(SHORT, seed=seed, text_temperature=heat, max_new_tokens=8)  # noqa: E731
    assert ask(1, 2.0) == ask(1, 2.0)
    assert len({ask(seed, 2.0) for seed in range(4)}) == 4
    assert ask(1, 0.0) == ask(2, 0.0)


# --------------------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"plan": ["image"] * 40}, "40 images of 18 tokens, but the model's context is 512"),
        ({"plan": ["image", "text"], "max_new_tokens": 600}, "600 tokens of text, but the model's context is 512"),
        ({"max_images": 28, "max_new_tokens": 5}, "28 images of 18 tokens and 5 tokens of text"),
        ({"plan": "image"}, "plan is 'image'"),
        ({"plan": []}, "plan is"),
        ({"plan": ["picture"]}, "plan is"),
        ({"plan": ["image"], "max_images": 2}, "leave max_images out"),
        ({"path": "understanding"}, "only reads"),
        ({"path": "pixels"}, "pixels"),
        ({"path": "pixels", "plan": ["text"]}, "pixels"),
        ({"read": "pixels"}, "pixels"),
        ({"reread": "pixels"}, "reread is 'pixels'; it must be one of 'drawn', 'understanding', 'diffusion', 'vq'"),
        ({"height": 17, "width": 16}, "17"),
        ({"num_inference_steps": 0}, "num_inference_steps is 0"),
        ({"guidance_scale": -1}, "guidance_scale is -1"),
        ({"guidance_scale": [1.0, 2.0]}, "guidance_scale is a list of 2"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": [1]}, "seed is"),
        ({"preview_every": 0}, "preview_every is 0"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"text_temperature": -1}, "text_temperature is -1"),
        ({"top_p": 0, "path": "vq"}, "top_p is 0"),
        ({"negative_prompt": 3}, "negative_prompt is 3"),
    ],
)
def test_what_cannot_be_is_refused_at_once(pipe, settings, sentence):
    """By the call itself, before anything is asked for."""
    chat = pipe.chat()
    with pytest.raises(ValueError, match=sentence) as error:
        chat.send(SHORT, **settings)
    assert "\n" not in str(error.value)
    assert chat.turns == 0


def test_settings_of_a_chat_hold_for_the_turns_they_matter_to(pipe):
    chat = pipe.chat(num_inference_steps=2, temperature=0.0, plan=["image"])
    assert [list(chat.send(SHORT, path=path))[-1].steps for path in DRAWING] == [2, 16]


def test_messages_that_cannot_be_answered(pipe):
    with pytest.raises(ValueError, match="messages must be a list"):
        pipe.stream([])
    with pytest.raises(ValueError, match="the last message is the assistant's"):
        pipe.stream([*said(SHORT), {"role": "assistant", "content": "no"}])
    with pytest.raises(ValueError, match="there is no image a.png"):
        pipe.chat().send(SHORT, ["a.png"])
    with pytest.raises(ValueError, match="turns is 2, but this chat has 0"):
        pipe.chat().rollback(2)


def test_a_model_that_only_answers(pipe):
    reads = tiny_pipeline(diffusion_config=None, vq_config=None, diffusion_token_id=None, vq_token_id=None)
    chat = reads.chat(max_new_tokens=4)
    chat.ask(SHORT, [picture()])
    assert chat.turns == 1
    with pytest.raises(ValueError, match="no path that writes images"):
        chat.send(SHORT, plan=["image"])


def test_pictures_of_an_earlier_conversation_are_read(pipe):
    """By `stream` from the record, as the chat that drew them read them; their pixels were rounded to 8 bits since."""
    chat = pipe.chat(path="vq", seed=0, **QUICK)
    list(chat.send(SHORT, plan=["image"]))
    messages = [*chat.messages, *said("what color is it?")]
    usage = list(pipe.stream(messages, path="vq", plan=["text"], max_new_tokens=3))[-1]
    assert usage.prompt_tokens == list(chat.send("what color is it?", plan=["text"]))[-1].prompt_tokens
