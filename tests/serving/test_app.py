"""The server, by the real client of OpenAI on loopback: answers that are the pipeline's own, and errors that help."""

import base64
import contextlib
import ctypes
import gc
import io
import json
import logging
import os
import random
import re
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="the extra 'serve' is not installed")
openai = pytest.importorskip("openai", reason="the client of OpenAI is not installed")
httpx = pytest.importorskip("httpx")

from hybridgen.serving.limits import Limits  # noqa: E402
from tests.serving.conftest import KEY, NAME, served  # noqa: E402

PROMPT = "a red circle on a blue square"


def png(size=(16, 16), seed=0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def url_of(content: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def pixels(encoded: str) -> bytes:
    return Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB").tobytes()


# ---------------------------------------------------------------------------------------------------------- pictures


def test_pictures_are_those_of_the_pipeline(pipe, client):
    made = client.images.generate(model=NAME, prompt=PROMPT, n=2, size="16x16", extra_body={"seed": 7, "path": "vq"})
    expected = pipe(PROMPT, path="vq", seed=7, num_images_per_prompt=2).images
    assert [pixels(one.b64_json) for one in made.data] == [one.tobytes() for one in expected]
    assert made.usage.output_tokens == 2 * 16
    assert made.usage.input_tokens == len(pipe.processor.prompt([{"role": "user", "content": PROMPT}]))
    assert [one.seed for one in made.data] == [7, 8]
    settings = {"path": "diffusion", "num_inference_steps": 3, "guidance_scale": 2.0, "negative_prompt": "a square"}
    body = {"seed": 2**64 - 1, "guidance_interval": [0, 0.5], **settings}
    made = client.images.generate(prompt=PROMPT, size="24x8", extra_body=body)
    expected = pipe(PROMPT, height=8, width=24, seed=2**64 - 1, guidance_interval=(0, 0.5), **settings).images[0]
    assert pixels(made.data[0].b64_json) == expected.tobytes()
    assert made.size == "24x8"


def test_the_seed_of_a_picture_draws_it_again(pipe, client):
    """Also where none was given."""
    body = {"path": "vq", "guidance_scale": 1.0}
    first = client.images.generate(prompt=PROMPT, extra_body=body).data[0]
    again = client.images.generate(prompt=PROMPT, extra_body={**body, "seed": first.seed}).data[0]
    assert first.b64_json == again.b64_json
    assert client.images.generate(prompt=PROMPT, extra_body=body).data[0].seed != first.seed


def test_previews_are_streamed(pipe, client):
    body = {"seed": 3, "path": "diffusion", "num_inference_steps": 9, "guidance_scale": 1.0}
    events = list(client.images.generate(prompt=PROMPT, stream=True, partial_images=2, extra_body=body))
    assert [event.type for event in events] == ["image_generation.partial_image"] * 2 + ["image_generation.completed"]
    assert [event.partial_image_index for event in events[:2]] == [0, 1]
    expected = pipe(PROMPT, path="diffusion", seed=3, num_inference_steps=9, guidance_scale=1.0).images[0]
    assert pixels(events[-1].b64_json) == expected.tobytes()
    assert events[-1].usage.output_tokens == 16
    assert len({event.b64_json for event in events}) == 3


@pytest.mark.parametrize("form", ["jpeg", "webp"])
def test_other_files(client, form):
    made = client.images.generate(prompt=PROMPT, output_format=form, output_compression=50, extra_body={"path": "vq"})
    assert Image.open(io.BytesIO(base64.b64decode(made.data[0].b64_json))).format == form.upper()


def test_edits_put_the_picture_before_the_prompt(pipe, client):
    content = png((20, 30))
    body = {
        "seed": 4,
        "path": "diffusion",
        "num_inference_steps": 2,
        "guidance_scale": 1.5,
        "image_guidance_scale": 1.2,
    }
    made = client.images.edit(image=("a.png", content), prompt=PROMPT, size="16x16", extra_body=body)
    expected = pipe(PROMPT, image=Image.open(io.BytesIO(content)), **body).images[0]
    assert pixels(made.data[0].b64_json) == expected.tobytes()
    with pytest.raises(openai.BadRequestError, match="an edit is of one image, but 2 were sent"):
        client.images.edit(image=[("a.png", content), ("b.png", content)], prompt=PROMPT)


def hole(size=(16, 16), mode="RGBA", box=(4, 4, 12, 16)) -> tuple[bytes, Image.Image]:
    """A mask as the API has it, and as the pipeline does."""
    mask, white = Image.new("RGBA", size, (200, 30, 60, 255)), Image.new("1", size)
    if box is not None:
        mask.paste((9, 9, 9, 0), box)
        white.paste(1, box)
    file = io.BytesIO()
    mask.convert(mode).save(file, "png")
    return file.getvalue(), white


@pytest.mark.parametrize("path", ["diffusion", "vq"])
def test_edits_with_a_mask_redraw_what_is_transparent(pipe, client, path):
    content, (mask, white) = png(), hole()
    body = {
        "seed": 4,
        "path": path,
        "guidance_scale": 1.5,
        **({"num_inference_steps": 4} if path == "diffusion" else {}),
    }
    before = Image.open(io.BytesIO(content))
    files = {"image": ("a.png", content), "mask": ("m.png", mask), "prompt": PROMPT}
    made = client.images.edit(**files, n=2, extra_body=body)
    expected = pipe(PROMPT, edit_image=before, mask_image=white, num_images_per_prompt=2, **body).images
    assert [pixels(one.b64_json) for one in made.data] == [one.tobytes() for one in expected]
    made = client.images.edit(
        **files, size="16x16", extra_body=body | {"read": "vq"}
    )  # it stands before the prompt too
    both = pipe(PROMPT, edit_image=before, mask_image=white, image=before, read="vq", **body).images[0]
    assert pixels(made.data[0].b64_json) == both.tobytes()
    events = list(client.images.edit(**files, stream=True, partial_images=2, extra_body=body))
    assert pixels(events[-1].b64_json) == expected[0].tobytes()
    for event in events:  # previews too
        left = Image.open(io.BytesIO(base64.b64decode(event.b64_json))).crop((0, 0, 4, 16))
        assert left.tobytes() == before.crop((0, 0, 4, 16)).tobytes()
    if path == "diffusion":
        made = client.images.edit(image=("a.png", content), prompt=PROMPT, extra_body=body | {"strength": 0.5})
        assert (
            pixels(made.data[0].b64_json) == pipe(PROMPT, edit_image=before, strength=0.5, **body).images[0].tobytes()
        )


def test_a_mask_that_is_none_is_told_in_one_sentence(http):
    for files, fields, words in (
        (
            {"mask": hole((8, 16))[0]},
            {},
            "mask is 8x16 pixels, but the image is 16x16; send a mask of the image's size",
        ),
        ({"mask": hole(box=None)[0]}, {}, "mask has no transparent pixel"),
        ({"mask": hole(mode="RGB")[0]}, {}, "mask has no transparent pixel"),
        ({"mask": b"x"}, {}, "mask is no picture that can be read"),
        ({"mask": png()[:-30]}, {}, "mask cannot be read"),
        ({"mask": hole()[0]}, {"size": "32x32"}, "height is 32, but edit_image is 16x16 pixels and stays so"),
        ({"mask": hole()[0]}, {"strength": "2"}, "strength is 2; it must be a number above 0 and at most 1"),
        ({"mask": hole()[0]}, {"strength": "0.5", "path": "vq"}, "the vq path has no noise to begin in"),
        ({}, {"strength": "1"}, "edit_image has no mask_image"),
    ):
        files = {name: (f"{name}.png", content) for name, content in {"image": png(), **files}.items()}
        answer = http.post("/v1/images/edits", files=files, data={"prompt": "a", **fields})
        assert answer.status_code == 400, answer.text
        assert words in answer.json()["error"]["message"]
    twice = [("image", png()), ("mask", hole()[0]), ("mask", hole()[0])]
    answer = http.post(
        "/v1/images/edits", files=[(name, (name, content)) for name, content in twice], data={"prompt": "a"}
    )
    assert "an edit has one mask, but 2 were sent" in answer.json()["error"]["message"]
    answer = http.post("/v1/images/generations", json={"prompt": "a", "strength": 0.5})
    assert "strength is about the picture of an edit" in answer.json()["error"]["message"]


# ------------------------------------------------------------------------------------------------------ conversations


def test_words_are_those_of_the_pipeline(pipe, client):
    """Whole and streamed, greedy and drawn."""
    from hybridgen.chat.events import TextDelta

    messages = [{"role": "system", "content": "a"}, {"role": "user", "content": "what color is the circle?"}]
    for settings, theirs in (
        ({}, {}),
        ({"text_temperature": 2.0, "text_top_p": 0.9}, {"temperature": 2.0, "top_p": 0.9}),
    ):
        events = list(pipe.stream(messages, plan=["text"], max_new_tokens=20, seed=5, **settings))
        words = "".join(event.text for event in events if isinstance(event, TextDelta))
        options = {"messages": messages, "model": NAME, "max_tokens": 20, "seed": 5, "modalities": ["text"], **theirs}
        made = client.chat.completions.create(**options)
        assert made.choices[0].message.content == words
        assert made.choices[0].finish_reason == ("length" if events[-1].truncated else "stop")
        assert made.usage.completion_tokens == events[-1].text_tokens
        assert made.usage.prompt_tokens == events[-1].prompt_tokens
        chunks = list(client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == words
        assert chunks[-1].usage.completion_tokens == events[-1].text_tokens
        assert len(chunks) > 4


def test_pictures_go_in_and_out(pipe, client):
    """A picture is asked about and another drawn, and the answer is taken back as it was sent."""
    from hybridgen.chat.events import ImageDone

    content = png()
    parts = [{"type": "image_url", "image_url": {"url": url_of(content)}}, {"type": "text", "text": "draw a square"}]
    body = {"plan": ["text", "image"], "read": "diffusion", "drawing": {"path": "vq", "guidance_scale": 2.0}}
    options = {"model": NAME, "max_tokens": 8, "seed": 1, "extra_body": body}
    message = (
        client.chat.completions.create(messages=[{"role": "user", "content": parts}], **options).choices[0].message
    )
    ours = [{"role": "user", "content": [{"type": "image", "image": content}, parts[1]]}]
    settings = {"plan": ["text", "image"], "read": "diffusion", "path": "vq", "guidance_scale": 2.0}
    events = list(pipe.stream(ours, max_new_tokens=8, seed=1, **settings))
    drawn = next(event.image for event in events if isinstance(event, ImageDone))
    assert pixels(message.images[0]["image_url"]["url"].partition(",")[2]) == drawn.tobytes()
    chunks = list(client.chat.completions.create(messages=[{"role": "user", "content": parts}], stream=True, **options))
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert [delta.images[0]["image_url"]["url"] for delta in deltas if getattr(delta, "images", None)] == [
        message.images[0]["image_url"]["url"]
    ]
    assert "".join(delta.content or "" for delta in deltas) == message.content
    more = [{"role": "user", "content": parts}, message.to_dict(), {"role": "user", "content": "what color is it?"}]
    made = client.chat.completions.create(messages=more, model=NAME, max_tokens=4, modalities=["text"])
    assert made.usage.prompt_tokens > events[-1].prompt_tokens + 16


# ------------------------------------------------------------------------------------------------- what is refused


def test_models_health_and_metrics(client, http):
    assert [model.id for model in client.models.list()] == [NAME]
    assert client.models.retrieve(NAME).id == NAME
    with pytest.raises(openai.NotFoundError, match=f"only '{NAME}'"):
        client.models.retrieve("gpt-4o/mini")
    with pytest.raises(openai.NotFoundError):
        client.images.generate(model="gpt-image-1", prompt=PROMPT)
    assert httpx.get(http.base_url.join("/health")).json() == {"status": "ok"}  # without a key
    client.images.generate(prompt=PROMPT, extra_body={"path": "vq"})
    page = http.get("/metrics").text
    assert 'hybridgen_requests_total{route="/v1/images/generations",status="200"}' in page
    assert "hybridgen_engine_steps_total" in page
    assert "hybridgen_engine_running 0.0" in page
    assert PROMPT not in page


@pytest.mark.parametrize("key", [None, "", "wrong", KEY + "x", KEY[:-1]])
def test_a_wrong_key_reaches_nothing(address, key):
    headers = {} if key is None else {"authorization": f"Bearer {key}".strip()}
    for method, path in (
        ("GET", "/v1/models"),
        ("POST", "/v1/images/generations"),
        ("GET", "/metrics"),
        ("GET", "/no"),
    ):
        answer = httpx.request(method, f"{address}{path}", headers=headers, content=b"{")
        assert answer.status_code == 401
        assert answer.json()["error"]["code"] == "invalid_api_key"
        assert "bearer" in answer.headers["www-authenticate"].lower()


IMAGE = {"prompt": PROMPT}
CHAT = {"messages": [{"role": "user", "content": "a"}]}
SHOWN = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


def asked(part) -> dict:
    return {"messages": [{"role": "user", "content": [part]}]}


def address_of(url) -> dict:
    return asked({"type": "image_url", "image_url": {"url": url}})


@pytest.mark.parametrize(
    ("route", "body", "words"),
    [
        ("images/generations", {}, "prompt is missing"),
        ("images/generations", {"prompt": 3}, "prompt is 3; give a text"),
        ("images/generations", {"prompt": "\ud800"}, "prompt is not UTF-8 text"),
        ("images/generations", {"prompt": ""}, None),
        ("images/generations", {"prompt": "x" * 200_000}, "prompt is 200000; this server allows at most 100000"),
        ("images/generations", {"prompt": "circle " * 2000}, "max_position_embeddings"),
        ("images/generations", IMAGE | {"n": 0}, "n is 0; it must be a whole number of at least 1"),
        ("images/generations", IMAGE | {"n": 10**30}, "n is 1000000"),
        ("images/generations", IMAGE | {"n": 9}, "n is 9; this server allows at most 8"),
        ("images/generations", IMAGE | {"size": "10x10"}, "10x10"),
        ("images/generations", IMAGE | {"size": "99996x99996"}, "size in tokens is [0-9]+; this server allows at most"),
        ("images/generations", IMAGE | {"size": "0x16"}, "size 16x0 is not divisible|0"),
        ("images/generations", IMAGE | {"size": "big"}, "WIDTHxHEIGHT"),
        ("images/generations", IMAGE | {"num_inference_steps": 10**9}, "at most 200"),
        ("images/generations", IMAGE | {"num_inference_steps": "3"}, "num_inference_steps is '3'"),
        ("images/generations", IMAGE | {"guidance_scale": [1, 2]}, "guidance_scale"),
        ("images/generations", IMAGE | {"guidance_interval": [3]}, "guidance_interval"),
        ("images/generations", IMAGE | {"window": 1000}, "window is 1000; this server allows at most 16"),
        ("images/generations", IMAGE | {"seed": -1}, "seed is -1"),
        ("images/generations", IMAGE | {"seed": [1]}, "seed"),
        ("images/generations", IMAGE | {"path": "understanding"}, "only reads images"),
        ("images/generations", IMAGE | {"path": "x"}, "path"),
        ("images/generations", IMAGE | {"read": "vq"}, "none is given"),
        ("images/generations", IMAGE | {"image": "/etc/passwd"}, "no parameter 'image'"),
        ("images/generations", IMAGE | {"precision": "int8"}, "precision is set for all requests"),
        ("images/generations", IMAGE | {"response_format": "url"}, "keeps no files"),
        ("images/generations", IMAGE | {"quality": "hd"}, "quality is 'hd'"),
        ("images/generations", IMAGE | {"partial_images": 2}, "set stream to true"),
        ("images/generations", IMAGE | {"\ud800": 2}, "no parameter"),
        ("images/generations", IMAGE | {"model": ["x"]}, None),
        ("chat/completions", {}, "messages are missing"),
        ("chat/completions", {"messages": []}, "at least one"),
        ("chat/completions", {"messages": "hello"}, "at least one"),
        ("chat/completions", {"messages": [3]}, r"messages\[0\] is 3"),
        ("chat/completions", {"messages": [{"role": "tool", "content": "a"}]}, "a message has a role"),
        ("chat/completions", {"messages": [{"role": "assistant", "content": "a"}]}, "last message must be the user's"),
        ("chat/completions", {"messages": [{"role": "user"}]}, "has content None"),
        ("chat/completions", {"messages": [{"role": "user", "content": "\udfff"}]}, "not UTF-8"),
        ("chat/completions", {"messages": CHAT["messages"] * 201}, "number of messages is 201"),
        ("chat/completions", CHAT | {"max_tokens": 10**6}, "max_tokens is 1000000; this server allows at most 4096"),
        ("chat/completions", CHAT | {"max_tokens": 4000}, "max_position_embeddings"),
        ("chat/completions", CHAT | {"temperature": -1}, "temperature"),
        ("chat/completions", CHAT | {"n": 2}, "n is 2, which this server does not do"),
        ("chat/completions", CHAT | {"tools": [{}]}, "tools is"),
        ("chat/completions", CHAT | {"modalities": ["audio"]}, "modalities"),
        ("chat/completions", CHAT | {"plan": ["image"] * 9}, "at most 8"),
        ("chat/completions", CHAT | {"plan": ["movie"]}, "plan is"),
        ("chat/completions", CHAT | {"drawing": {"image": "x"}}, "drawing has 'image'"),
        ("chat/completions", CHAT | {"drawing": {"height": 99996, "width": 99996}}, "size in tokens"),
        ("chat/completions", address_of("/etc/passwd"), "no file or address is read"),
        ("chat/completions", address_of("file:///etc/passwd"), "no file or address is read"),
        ("chat/completions", address_of("http://127.0.0.1:1/a.png"), "no file or address is read"),
        ("chat/completions", address_of("data:image/png,AAAA"), "a data: URL of a picture is"),
        ("chat/completions", address_of("data:image/png;base64,A A"), "not base64"),
        ("chat/completions", address_of("data:image/png;base64,AAAA"), "no picture that can be read"),
        ("chat/completions", address_of(3), "no file or address is read"),
        ("chat/completions", asked({"type": "image", "image": "/etc/passwd"}), "type must be text or image_url"),
        ("chat/completions", asked({"type": "file"}), "type must be text or image_url"),
        ("chat/completions", {"messages": CHAT["messages"], "messages ": 1}, "no parameter"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_told_in_one_sentence(http, route, body, words):
    answer = http.post(f"/v1/{route}", content=json.dumps(body))
    if words is None:  # not an error, or not of this kind
        assert answer.status_code in (200, 404)
        return
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert "\n" not in error["message"]
    assert len(error["message"]) < 500
    assert re.search(words, error["message"]), error["message"]


def test_requests_that_are_no_json(http):
    for content in (b"", b"{", b"[]", b'"x"', b"\xff\xfe", b'{"prompt": NaN}', b'{"prompt": "a", "prompt": "b"}',
                    b"[" * 100_000, b'{"a":' * 100_000, b'{"n": ' + b"9" * 10_000 + b"}", b"null"):  # fmt: skip
        for route in ("images/generations", "chat/completions"):
            answer = http.post(f"/v1/{route}", content=content)
            assert answer.status_code == 400, content[:20]
            assert answer.json()["error"]["message"]
    assert http.post("/v1/images/edits", content=b"{}").status_code == 400
    broken = {"content-type": "multipart/form-data; boundary=x"}
    assert http.post("/v1/images/edits", content=b"--x\r\nnonsense", headers=broken).status_code == 400
    assert http.get("/v1/nothing").json()["error"]["code"] == "not_found"
    assert http.get("/v1/images/edits").status_code == 405


def test_fuzzed_requests_never_break_anything(http):
    """Random changes of good requests: an answer or a sentence, never a fault of the server."""
    draws, seen = random.Random(0), set()
    values = [None, True, -1, 0, 1e308, 2**70, "", "x", "\x00", "\ud83d", [], [[]], {}, {"url": []}, [None], "auto"]
    small = {"num_inference_steps": 1, "path": "diffusion", "guidance_scale": 1.0, "size": "8x8"}
    good = [
        ("images/generations", {**IMAGE, **small, "n": 1, "seed": 0, "stream": False}),
        ("chat/completions", {**asked(SHOWN), "max_tokens": 2, "modalities": ["text"], "stream": False}),
        ("chat/completions", {**CHAT, "max_tokens": 2, "modalities": ["text"], "drawing": {"path": "vq"}}),
    ]

    def change(item):
        if draws.random() < 0.3:
            return draws.choice(values)
        if isinstance(item, dict) and item:
            name = draws.choice(list(item))
            return {**item, name: change(item[name])}
        if isinstance(item, list) and item:
            place = draws.randrange(len(item))
            return [*item[:place], change(item[place]), *item[place + 1 :]]
        return draws.choice(values)

    for _ in range(150):
        route, body = draws.choice(good)
        answer = http.post(f"/v1/{route}", content=json.dumps(change(body)))
        seen.add(answer.status_code)
        assert answer.status_code in (200, 400, 404), (answer.status_code, answer.text)
    assert {200, 400} <= seen


# ------------------------------------------------------------------------------------------- pictures that are sent


def huge_png(width: int, height: int) -> bytes:
    """A few bytes that say that they are very many pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")

    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def test_pictures_are_measured_before_they_are_decoded(http, monkeypatch):
    good = png((64, 64))
    for content, words in (
        (huge_png(40_000, 40_000), "image has 40000x40000 pixels; this server reads at most|no picture"),
        (huge_png(5_000, 5_000), "has 5000x5000 pixels; this server reads at most 16777216"),
        (good[: len(good) // 2], "cannot be read"),
        (good[:20], "no picture that can be read"),
        (b"", "no picture that can be read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "no picture that can be read"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no picture that can be read"),
    ):
        answer = http.post("/v1/images/edits", files={"image": content}, data=IMAGE)
        assert answer.status_code == 400
        assert re.search(words, answer.json()["error"]["message"]), answer.text
        answer = http.post("/v1/chat/completions", json=address_of(url_of(content)))
        assert answer.status_code == 400
        assert re.search(words, answer.json()["error"]["message"]), answer.text


def test_requests_have_a_size_and_a_time(pipe):
    limits = Limits(body_bytes=5000, image_bytes=3000, upload_seconds=0.5)
    with served(pipe, limits=limits, key=None) as address:
        answer = httpx.post(f"{address}/v1/images/generations", json={"prompt": "x" * 6000})
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")
        parts = iter([b'{"prompt": "', *[b"x" * 1000] * 9])  # without its length
        answer = httpx.post(f"{address}/v1/images/generations", content=parts)
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")
        answer = httpx.post(f"{address}/v1/chat/completions", json=address_of(url_of(bytes(3100))))
        assert answer.json()["error"]["code"] == "limit_exceeded"

        def slow():
            yield b'{"prompt":'
            time.sleep(1.5)
            yield b'"a"}'

        answer = httpx.post(f"{address}/v1/images/generations", content=slow())
        assert (answer.status_code, answer.json()["error"]["code"]) == (408, "request_too_slow")


# ------------------------------------------------------------------------------------------------------- many clients


def test_64_clients_at_once_get_what_they_would_get_alone(pipe, address):
    """Pictures by both paths, streamed words, pictures in conversations, and mistakes between them."""

    def ask(number: int):
        with openai.OpenAI(base_url=f"{address}/v1", api_key=KEY, max_retries=0, timeout=240) as client:
            if number % 4 == 0:
                body = {"path": "vq", "seed": number % 3, "guidance_scale": 1.5}
                return pixels(client.images.generate(prompt=PROMPT, extra_body=body).data[0].b64_json)
            if number % 4 == 1:
                body = {"path": "diffusion", "seed": number % 3, "num_inference_steps": 2 + number % 2}
                made = client.images.generate(prompt=PROMPT, size="8x16", extra_body=body)
                return pixels(made.data[0].b64_json)
            if number % 4 == 2:
                options = {"messages": CHAT["messages"], "model": NAME, "max_tokens": 12, "stream": True}
                chunks = client.chat.completions.create(**options, modalities=["text"])
                return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
            with pytest.raises(openai.BadRequestError):
                client.images.generate(prompt=PROMPT, size="1x1")
            return None

    with ThreadPoolExecutor(64) as pool:
        made = list(pool.map(ask, range(64)))
    vq = {seed: pipe(PROMPT, path="vq", seed=seed, guidance_scale=1.5).images[0].tobytes() for seed in range(3)}
    words = pipe.chat().ask("a", max_new_tokens=12)
    for number, one in enumerate(made):
        if number % 4 == 0:
            assert one == vq[number % 3]
        elif number % 4 == 1:
            settings = {"path": "diffusion", "seed": number % 3, "num_inference_steps": 2 + number % 2}
            assert one == pipe(PROMPT, height=16, width=8, **settings).images[0].tobytes()
        elif number % 4 == 2:
            assert one.strip() == words.strip()


def engine_figure(http, name: str) -> float:
    page = http.get("/metrics").text
    return float(next(line.split()[1] for line in page.splitlines() if line.startswith(f"hybridgen_engine_{name} ")))


def wait_for(condition, seconds: float = 60) -> bool:
    end = time.monotonic() + seconds
    while not (met := condition()) and time.monotonic() < end:
        time.sleep(0.05)
    return met


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_hangs_up_frees_its_place(http, address, unhurried, stream):
    unhurried(0.01)
    body = {"prompt": PROMPT, "path": "diffusion", "num_inference_steps": 200, "n": 8, "stream": stream}
    cancelled = engine_figure(http, "cancelled_total")
    with pytest.raises(httpx.TimeoutException):
        httpx.post(
            f"{address}/v1/images/generations", json=body, headers={"authorization": f"Bearer {KEY}"}, timeout=0.5
        )
    assert wait_for(lambda: engine_figure(http, "cancelled_total") == cancelled + 1)
    assert engine_figure(http, "running") == 0


def test_a_full_queue_says_when_to_come_again(pipe, unhurried):
    unhurried(0.003)
    with served(pipe, key=None, max_rows=2, max_waiting=1) as address:
        body = {"prompt": PROMPT, "path": "diffusion", "num_inference_steps": 200, "size": "64x64"}

        def post(_):
            return httpx.post(f"{address}/v1/images/generations", json=body, timeout=120)

        with ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(post, range(6)))
        codes = sorted(answer.status_code for answer in answers)
        assert codes.count(200) >= 2
        assert codes[-1] == 429
        told = next(answer for answer in answers if answer.status_code == 429)
        assert int(told.headers["retry-after"]) >= 1
        assert told.json()["error"]["code"] == "queue_full"


def test_a_deadline(pipe, unhurried):
    unhurried(0.01)
    with served(pipe, key=None, limits=Limits(seconds=0.3)) as address:
        body = {"prompt": PROMPT, "path": "diffusion", "num_inference_steps": 200, "size": "64x64"}
        answer = httpx.post(f"{address}/v1/images/generations", json=body, timeout=60)
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_passed")


def test_the_end_waits_for_what_runs(pipe, unhurried):
    """A request that is being made when the server is told to end is answered; threads are gone behind."""
    unhurried(0.01)
    before, answers = threading.active_count(), []
    with served(pipe, key=None, grace=30) as address:
        body = {"prompt": PROMPT, "path": "diffusion", "num_inference_steps": 40}

        def post():
            answers.append(httpx.post(f"{address}/v1/images/generations", json=body, timeout=60).status_code)

        thread = threading.Thread(target=post)
        thread.start()
        assert wait_for(lambda: "hybridgen_engine_running 1.0" in httpx.get(f"{address}/metrics").text)
    thread.join()
    assert answers == [200]
    assert wait_for(lambda: threading.active_count() <= before + 2)  # anyio keeps idle threads for a while


def test_nothing_of_a_request_is_logged(pipe, caplog, monkeypatch):
    """Not where it is wrong, and not where we fail."""
    from hybridgen.serving import drawing

    def fail(call):
        raise RuntimeError(f"no picture of {PROMPT}")
        yield

    with served(pipe, key=None) as address, caplog.at_level(logging.DEBUG):
        httpx.post(f"{address}/v1/images/generations", json={"prompt": PROMPT, "size": "1x1"})
        monkeypatch.setattr(drawing.PictureCall, "task", fail)
        answer = httpx.post(f"{address}/v1/images/generations", json={"prompt": PROMPT})
    assert answer.status_code == 500
    assert "its log says where" in answer.json()["error"]["message"]
    assert PROMPT not in answer.text
    assert PROMPT not in caplog.text
    assert "RuntimeError in the making of a request" in caplog.text
    assert "test_app.py" in caplog.text


@pytest.mark.slow
def test_memory_and_handles_stay_flat(pipe, address):
    """Over 2,000 requests of all kinds, some of which hang up."""
    process, body = psutil.Process(os.getpid()), {"path": "vq", "size": "8x8", "guidance_scale": 1.0}
    headers = {"authorization": f"Bearer {KEY}"}
    chat = {**CHAT, "max_tokens": 2, "modalities": ["text"]}

    def ask(number: int) -> None:
        with httpx.Client(base_url=address, headers=headers, timeout=120) as client:
            for turn in range(10):
                kind = (number + turn) % 5
                if kind < 2:
                    assert (
                        client.post("/v1/images/generations", json={**IMAGE, **body, "seed": number}).status_code == 200
                    )
                elif kind == 2:
                    assert client.post("/v1/chat/completions", json={**chat, "stream": True}).status_code == 200
                elif kind == 3:
                    assert client.post("/v1/chat/completions", json=address_of("x")).status_code == 400
                else:
                    with contextlib.suppress(httpx.TimeoutException):
                        client.post("/v1/chat/completions", json=chat, timeout=0.001)

    def round_of(requests: int) -> tuple[int, float]:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(ask, range(requests // 10)))
        time.sleep(0.5)
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):  # what is free, but kept by the C library, is no leak
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        return process.num_fds(), process.memory_info().rss / 2**20

    round_of(400)  # what is made once is made
    handles, memory = round_of(200)
    after_handles, after_memory = round_of(1400)
    assert after_handles <= handles + 3
    assert after_memory <= memory + 30, (memory, after_memory)
