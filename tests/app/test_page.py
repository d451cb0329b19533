"""The web page in a real headless browser, and by plain HTTP: it draws, answers, replays, and asks nobody else."""

import json
import re
import time
import urllib.request
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from hybridgen.app.page import create_page
from hybridgen.app.studio import Studio
from hybridgen.serving.limits import Limits
from tests.pipelines import tiny_pipeline

PROMPT, QUESTION = "an elf wearing a green robe, sand background", "what creature is this?"
PHONE = {"width": 360, "height": 740}


def get(address: str) -> str:
    with urllib.request.urlopen(address, timeout=60) as answer:
        return answer.read().decode()


class Loaded(HTMLParser):
    """Addresses that a browser loads by itself."""

    def __init__(self):
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag, attributes) -> None:
        named = dict(attributes)
        if tag in ("script", "img", "iframe", "source", "video", "audio"):
            self.addresses += filter(None, [named.get("src")])
        if tag == "link":
            self.addresses += filter(None, [named.get("href")])


def test_what_is_served_loads_nothing_from_elsewhere(page):
    """Neither scripts nor styles nor fonts; the browser's test sees what they would load in turn."""
    address = page[0]
    parser = Loaded()
    parser.feed(get(address))
    assert parser.addresses
    assert [one for one in parser.addresses if re.match(r"(?:\w+:)?//", one)] == []
    for sheet in ["/theme.css", *(one.lstrip(".") for one in parser.addresses if one.endswith(".css"))]:
        assert re.findall(r"(?:url\(|@import)\s*['\"]?(?:https?:)?//[^)]*", get(address + sheet)) == [], sheet
    assert "system-ui" in get(f"{address}/theme.css")
    config = json.loads(get(f"{address}/config"))
    assert not config.get("analytics_enabled")
    assert not config.get("run_history")


@pytest.mark.parametrize(
    ("lacks", "tabs"),
    [
        ({}, ["Draw", "Edit", "Ask", "Chat", "Replay"]),
        ({"vq_config": None}, ["Draw", "Edit", "Ask", "Chat", "Replay"]),
        ({"diffusion_config": None, "vq_config": None}, ["Ask", "Chat"]),
    ],
)
def test_a_tab_is_there_where_the_checkpoint_can_do_it(lacks, tabs):
    pytest.importorskip("gradio", reason="the extra 'app' is not installed")
    pipe = tiny_pipeline(**lacks)
    config = create_page(Studio(pipe, "tiny", None, Limits())).get_config_file()
    labels = [one["props"].get("label") for one in config["components"]]
    assert [label for label in labels if label in ("Draw", "Edit", "Ask", "Chat", "Replay")] == tabs
    drawn = [label for label in labels if label in ("diffusion", "vq") and f"How {label} draws" in labels]
    assert set(drawn) == set(pipe.model.config.paths) & {"diffusion", "vq"}


def test_the_servers_routes_are_there_too(page):
    assert json.loads(get(f"{page[0]}/health")) == {"status": "ok"}
    assert json.loads(get(f"{page[0]}/v1/models"))["data"][0]["id"] == "tiny"


def call(address: str, target: str, data: list) -> list[dict]:
    """What the page does when something is clicked: a call of the function behind it; its messages."""
    config = json.loads(get(f"{address}/config"))
    ids = {one["id"]: one["props"].get("elem_id") for one in config["components"]}
    function = next(one for one in config["dependencies"] if any(ids.get(to) == target for to, _ in one["targets"]))
    body = json.dumps({"data": data, "fn_index": function["id"], "session_hash": target}).encode()
    request = urllib.request.Request(f"{address}/gradio_api/queue/join", body, {"content-type": "application/json"})
    urllib.request.urlopen(request, timeout=60).read()
    events = []
    with urllib.request.urlopen(f"{address}/gradio_api/queue/data?session_hash={target}", timeout=60) as lines:
        for line in lines:
            if line.startswith(b"data:"):
                events.append(json.loads(line[5:]))
    return events


@pytest.mark.parametrize(
    "path",
    ["http://127.0.0.1:9/x.png", "https://example.com/x.png", "/etc/passwd", "../../etc/passwd", "file:///etc/passwd"],
)
def test_a_picture_is_no_address_and_no_file_of_the_server(page, path, monkeypatch):
    """Even where a request of the page's own is written by hand."""
    from gradio import processing_utils

    fetched = []
    monkeypatch.setattr(
        processing_utils, "async_ssrf_protected_download", lambda *words, **named: fetched.append(words)
    )
    picture = {"path": path, "meta": {"_type": "gradio.FileData"}}
    events = call(page[0], "ask", [picture, QUESTION, ["vq"], 5])
    assert fetched == []
    assert "root:" not in json.dumps(events)
    last = next(event for event in events if event["msg"] == "process_completed")
    assert not last["success"] or "alert" in json.dumps(last)


def opened(browser, address: str, viewport: dict):
    """A tab, and what went wrong in it: errors of the console, requests to others."""
    tab, wrong = browser.new_page(viewport=viewport), []
    tab.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    ours = (address, "data:", "blob:")
    tab.on("request", lambda asked: None if asked.url.startswith(ours) else wrong.append(asked.url))
    tab.set_default_timeout(60_000)
    tab.goto(address)
    tab.wait_for_selector("#prompt textarea")
    return tab, wrong


def says(tab, selector: str, words: str) -> str:
    """Waits until an element has these words; returns all of its own."""
    look = "([where, words]) => [...document.querySelectorAll(where)].some(one => one.innerText.includes(words))"
    tab.wait_for_function(look, arg=[selector, words])
    return tab.locator(selector).filter(has_text=words).first.inner_text()


def test_type_draw_see_ask_chat_and_replay(page, browser, tmp_path):
    """A stranger's way through the page; pixels and words are the pipeline's."""
    address, engine, pipe = page
    tab, wrong = opened(browser, address, {"width": 1200, "height": 900})

    tab.fill("#seed textarea, #seed input", "x")
    tab.fill("#prompt textarea", PROMPT)
    tab.click("#draw")
    assert says(tab, ".notice", "seed").strip() == "the seed is 'x'; give a whole number, or leave it empty"
    tab.fill("#seed textarea, #seed input", "3")
    tab.press("#prompt textarea", "Enter")  # by keyboard alone
    drawn = {}
    for path in ("diffusion", "vq"):
        says(tab, f"#words-{path}", "seed 3 ·")
        with tab.expect_download() as download:
            tab.click(f"#picture-{path} [aria-label=Download]")
        drawn[path] = tmp_path / download.value.suggested_filename
        download.value.save_as(drawn[path])
        expected = pipe(PROMPT, path=path, seed=3).images[0]
        assert np.array_equal(np.asarray(Image.open(drawn[path]).convert("RGB")), np.asarray(expected))
        shown = tab.locator(f"#picture-{path} img")
        assert shown.evaluate("img => [img.naturalWidth, img.naturalHeight]") == [32, 32]
        assert shown.bounding_box()["width"] > 200
    assert tab.locator(".notice").first.inner_text().strip() == ""

    tab.get_by_role("tab", name="Edit").click()
    tab.fill("#edit-prompt textarea", PROMPT)
    tab.fill("#edit-seed textarea, #edit-seed input", "4")
    tab.set_input_files("#edit-picture input[type=file]", drawn["vq"])
    tab.wait_for_selector("#edit-picture img")
    tab.click("button#edit")
    says(tab, ".notice", "nothing is painted")
    half = Image.new("1", (32, 32))
    half.paste(1, (16, 0, 32, 32))
    half.save(tmp_path / "half.png")
    tab.set_input_files("#edit-mask input[type=file]", tmp_path / "half.png")  # nothing needs a mouse
    tab.wait_for_selector("#edit-mask img")
    tab.press("#edit-prompt textarea", "Enter")
    for path in ("diffusion", "vq"):
        says(tab, f"#edited-words-{path}", "seed 4 ·")
        with tab.expect_download() as download:
            tab.click(f"#edited-{path} [aria-label=Download]")
        download.value.save_as(tmp_path / "edited.png")
        expected = pipe(PROMPT, path=path, seed=4, edit_image=Image.open(drawn["vq"]), mask_image=half).images[0]
        assert np.array_equal(np.asarray(Image.open(tmp_path / "edited.png").convert("RGB")), np.asarray(expected))

    tab.get_by_role("tab", name="Ask").click()
    tab.fill("#question textarea", QUESTION)
    tab.click("#ask")
    says(tab, ".notice", "there is no picture yet")
    tab.set_input_files("#ask-picture input[type=file]", drawn["vq"])
    tab.wait_for_selector("#ask-picture img")
    tab.click("#ask")
    for path in pipe.model.config.paths:
        field = tab.locator(f"#answer-{path} textarea")
        (answer,) = pipe.answer(Image.open(drawn["vq"]), QUESTION, path=path, max_new_tokens=64)
        done = "field => field.value.includes('ran out')" if answer.truncated else "field => field.value"
        tab.wait_for_function(done, arg=field.element_handle())
        assert field.input_value()[:5] == str(answer)[:5] or "</think>" in field.input_value()

    tab.get_by_role("tab", name="Replay").click()
    tab.set_input_files("#replay-picture input[type=file]", drawn["diffusion"])
    says(tab, "#replay-said", PROMPT)
    tab.click("#replay")
    says(tab, "#verdict", "identical: all 32x32 pixels are as they were")
    tab.click("#take")
    tab.wait_for_selector("#prompt textarea:visible")

    settings = tab.get_by_role("button", name="How it answers")
    while not settings.is_visible():  # gradio repeats a handler's last outputs, so Draw may be chosen once more
        tab.get_by_role("tab", name="Chat").click()
        tab.wait_for_timeout(1000)
    settings.click()
    tab.get_by_label("Answer with").click()
    tab.get_by_role("option", name="a picture").click()
    tab.fill("#message textarea", PROMPT)
    tab.press("#message textarea", "Enter")
    tab.wait_for_selector("#talk [aria-label=Download]")
    assert tab.locator("#talk img").last.evaluate("img => img.naturalWidth") == 32
    assert not tab.locator("#talk [aria-label=Share]").first.is_visible()
    tab.get_by_label("Answer with").click()
    tab.get_by_role("option", name="words").click()
    tab.set_input_files("#message input[type=file]", drawn["vq"])
    tab.wait_for_selector("#message img")
    tab.fill("#message textarea", QUESTION)
    tab.press("#message textarea", "Enter")
    tab.wait_for_function("document.querySelectorAll('#talk .bot').length == 2")
    while engine.counts().running:
        tab.wait_for_timeout(50)
    assert tab.locator("#talk .user img").evaluate("img => img.naturalWidth") == 32
    tab.get_by_role("button", name="Begin anew").click()
    tab.wait_for_function("!document.querySelector('#talk .bot')")

    assert wrong == []
    tab.close()


def test_on_a_phone_by_keyboard_and_gone_in_between(page, browser, unhurried):
    """Nothing is wider than the screen; each tab is reached without a mouse; who leaves is not drawn for."""
    address, engine, _ = page
    tab, wrong = opened(browser, address, PHONE)
    tabs = ["Draw", "Edit", "Ask", "Chat", "Replay"]
    tab.get_by_role("tab", name="Draw").focus()
    for name, following in zip(tabs, [*tabs[1:], None], strict=True):
        chosen = tab.get_by_role("tab", name=name)
        assert chosen.get_attribute("aria-selected") == "true", name
        assert tab.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], name
        for button in tab.locator("button:visible").all():
            box = button.bounding_box()
            assert box is None or box["x"] + box["width"] <= PHONE["width"] + 1, (name, button.inner_text())
        if following is not None:
            reach(tab, following)
    tab.get_by_role("tab", name="Draw").click()
    tab.get_by_role("button", name="How diffusion draws").click()
    tab.fill("#diffusion-num_inference_steps input", "200")
    tab.fill("#prompt textarea", PROMPT)
    unhurried(0.1)
    tab.press("#prompt textarea", "Enter")
    says(tab, "#words-diffusion", "step")
    before = engine.counts().cancelled
    assert wrong == []
    tab.close()
    while engine.counts().running:  # the test's own time limit ends it
        time.sleep(0.05)
    assert engine.counts().cancelled > before


def reach(tab, name: str) -> None:
    """Press Tab until the tab of this name has the focus, then Enter."""
    for _ in range(8):
        tab.keyboard.press("Tab")
        focused = tab.evaluate("[document.activeElement.getAttribute('role'), document.activeElement.innerText.trim()]")
        if focused == ["tab", name]:
            tab.keyboard.press("Enter")
            return
    raise AssertionError(f"the tab {name} is not reached by the keyboard")
