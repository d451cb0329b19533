"""The web page, in gradio (extra `app`): what stands on it, and which function of `studio` stands behind it.

Values go to and from gradio as the browser has them (`preprocess=False`): a picture is a file that was uploaded, read
within the server's bounds, or a `data:` URL, so that nothing that is drawn lies in a file of the server. Fonts are the
system's, and nothing is loaded from elsewhere.
"""

import base64
import functools
import html
import io
import os
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import ImageChops

from hybridgen.app.studio import File, Shown, Studio, seed_in
from hybridgen.chat.turn import Conversation
from hybridgen.core.names import OF_PATH
from hybridgen.core.pictures import transparent_pixels
from hybridgen.serving.errors import as_api_error, bad
from hybridgen.serving.limits import Limits, take_picture

if TYPE_CHECKING:  # the extra, which is imported where it is needed
    from fastapi import FastAPI
    from gradio import Blocks
    from gradio.themes import Base

ASSETS = Path(__file__).parent / "assets"
STYLE = "page.css"
FIELDS = {  # settings that a path's column has: label, step
    "num_inference_steps": ("Steps", 1),
    "guidance_scale": ("Guidance", 0.1),
    "temperature": ("Temperature", 0.05),
    "top_p": ("Top p", 0.05),
}
WISHES = {"as the model decides": None, "words": ["text"], "a picture": ["image"]}  # of an answer in the chat
SESSIONS = 500  # open tabs whose conversations are remembered; the oldest is forgotten
DAY, HOUR = 86_400, 3_600  # how long an upload lies on the server at most, and how often that is looked at


def mount(app: "FastAPI", studio: Studio, uploads: Path) -> "FastAPI":
    """Put the page before a server: at its root, where the server itself has no route.

    Args:
        uploads: a folder for what is uploaded. Gradio takes it from the environment alone, so that a process has one.
    """
    import gradio

    os.environ["GRADIO_TEMP_DIR"] = str(uploads.resolve())
    return gradio.mount_gradio_app(
        app, create_page(studio), "/", show_error=False, max_file_size=studio.limits.image_bytes, ssr_mode=False,
        footer_links=[], run_history=False, enable_monitoring=False, pwa=False, mcp_server=False, theme=_theme(),
        css_paths=ASSETS / STYLE,
    )  # fmt: skip


def mounted(app: "FastAPI"):
    """Gradio's own application below a server that it was mounted on."""
    return next(
        route.app for route in app.routes if getattr(route, "path", None) == "" and hasattr(route.app, "blocks")
    )


def _theme() -> "Base":
    """Gradio's plain one, in the fonts that a system has."""
    from gradio import themes

    plain = themes.utils.fonts.Font
    words = tuple(map(plain, ("system-ui", "sans-serif")))
    return themes.Base(
        primary_hue="indigo", neutral_hue="slate", font=words, font_mono=(plain("ui-monospace"), plain("monospace"))
    )


def create_page(studio: Studio) -> "Blocks":
    """The page: a tab for each thing that the model can do."""
    import gradio as gr

    reads, draws = studio.reading_paths, studio.writing_paths
    with gr.Blocks(
        title=f"hybridgen · {studio.name}", analytics_enabled=False, delete_cache=(HOUR, DAY), fill_width=False
    ) as page:
        paths = " · ".join(reads)
        gr.HTML(f"<h1>{html.escape(studio.name)}</h1><p>{html.escape(paths)}</p>", elem_id="head")
        with gr.Tabs() as tabs:
            fields = None
            if draws:
                with gr.Tab("Draw", id="draw"):
                    fields = _draw_tab(gr, studio)
                with gr.Tab("Edit", id="edit"):
                    _edit_tab(gr, studio)
            if reads:
                with gr.Tab("Ask", id="ask"):
                    _ask_tab(gr, studio)
            with gr.Tab("Chat", id="chat"):
                _chat_tab(gr, studio)
            if draws:
                with gr.Tab("Replay", id="replay"):
                    _replay_tab(gr, studio, tabs, fields)
    for block in page.blocks.values():
        block.async_move_resource_to_block_cache = _only_what_was_uploaded
    page.api_open, page.state_session_capacity = False, SESSIONS
    return page


# -------------------------------------------------------------------------------------------------------------- tabs


def _draw_tab(gr, studio: Studio) -> list:
    """One prompt by every path that draws, side by side. Returns the fields that say how."""
    prompt = gr.Textbox(label="Prompt", lines=1, max_lines=6, autofocus=True, elem_id="prompt", submit_btn=False)
    with gr.Row():
        seed = gr.Textbox(label="Seed", placeholder="another each time", elem_id="seed", min_width=120)
        size = gr.Textbox(label="Size", value=studio.size, placeholder="WIDTHxHEIGHT", elem_id="size", min_width=120)
        negative = gr.Textbox(label="Not in the picture", elem_id="negative", min_width=240, scale=2)
    with gr.Row():
        draw = gr.Button("Draw", variant="primary", elem_id="draw")
        stop = gr.Button("Stop", elem_id="stop-drawing", scale=0, min_width=120)
    notice = gr.HTML(elem_classes="notice")
    ticks, given, shown = [], [], []
    with gr.Row(equal_height=False):
        for path in studio.writing_paths:
            with gr.Column(min_width=280):
                shown.append(_picture(gr, path, f"picture-{path}"))
                shown.append(gr.HTML(elem_classes="words", elem_id=f"words-{path}"))
                with gr.Accordion(f"How {path} draws", open=False):
                    ticks.append(gr.Checkbox(label=f"draw by {path}", value=True))
                    given += _fields(gr, path, studio.settings(path), path)
    inputs = [prompt, negative, seed, size, *ticks, *given]
    event = _on(gr, [draw.click, prompt.submit], functools.partial(_draw, studio), inputs, [notice, *shown])
    stop.click(None, cancels=[event])
    return [prompt, negative, seed, size, *given]


async def _draw(studio: Studio, prompt: str, negative: str, seed: str, size: str, *values) -> AsyncIterator[list]:
    prompt, negative, seed, size = map(_text, (prompt, negative, seed, size))
    columns = {path: [None, ""] for path in studio.writing_paths}
    async with aclosing(studio.draw(prompt, negative, seed, size, _chosen(studio, values))) as shown:
        async for path, picture in shown:
            columns[path] = _column(picture)
            yield [value for column in columns.values() for value in column]


def _chosen(studio: Studio, values) -> dict[str, dict]:
    """The settings of the paths that are ticked.

    Args:
        values: a tick for each path, and then the fields of each.
    """
    paths, fields = studio.writing_paths, list(values[len(studio.writing_paths) :])
    settings = {path: {name: fields.pop(0) for name in _names_of(path)} for path in paths}
    return {path: settings[path] for path, tick in zip(paths, values, strict=False) if tick}


def _edit_tab(gr, studio: Studio) -> None:
    """A region of a picture is redrawn: painted, or as a mask that is uploaded says."""
    with gr.Row(equal_height=False):
        with gr.Column(min_width=280):
            picture = _upload(gr, "Picture", "edit-picture")
            mask = _upload(gr, "Mask, white where it is redrawn", "edit-mask")
        with gr.Column(min_width=280):
            painted = gr.ImageEditor(
                label="or paint what is redrawn", sources=(), transforms=(), layers=False, buttons=[], format="png",
                brush=gr.Brush(default_size=_brush(studio), colors=["#ff00ff"], color_mode="fixed"), height=360,
                elem_id="edit-paint",
            )  # fmt: skip
            painted.blob_storage = _KeepsNothing()
            used = _picture(gr, "mask that was used", "edit-used")
    prompt = gr.Textbox(label="The whole picture, as it is to be", lines=1, max_lines=6, elem_id="edit-prompt")
    with gr.Row():
        seed = gr.Textbox(label="Seed", placeholder="another each time", elem_id="edit-seed", min_width=120)
        strength = gr.Number(1, label="Strength (diffusion)", minimum=0, maximum=1, step=0.05, elem_id="edit-strength")
        negative = gr.Textbox(label="Not in the picture", min_width=240, scale=2)
    with gr.Row():
        edit = gr.Button("Redraw", variant="primary", elem_id="edit")
        stop = gr.Button("Stop", scale=0, min_width=120)
    notice = gr.HTML(elem_classes="notice")
    ticks, given, shown = [], [], []
    with gr.Row(equal_height=False):
        for path in studio.writing_paths:
            with gr.Column(min_width=280):
                shown.append(_picture(gr, path, f"edited-{path}"))
                shown.append(gr.HTML(elem_classes="words", elem_id=f"edited-words-{path}"))
                with gr.Accordion(f"How {path} redraws", open=False):
                    ticks.append(gr.Checkbox(label=f"redraw by {path}", value=True))
                    given += _fields(gr, path, studio.settings(path), f"edit-{path}")
    _on(gr, [picture.upload, picture.clear], _canvas, [picture], [notice, painted])
    inputs = [picture, mask, painted, prompt, negative, seed, strength, *ticks, *given]
    event = _on(gr, [edit.click, prompt.submit], functools.partial(_edit, studio), inputs, [notice, used, *shown])
    stop.click(None, cancels=[event])


class _KeepsNothing(dict):
    """In place of what gradio's editor keeps for good, whatever its size, of those who send to it by hand; the page
    sends what was painted as files."""

    def __setitem__(self, name: str, blobs: Any) -> None:
        pass


def _brush(studio: Studio) -> int:
    """The width of the brush at first, in pixels of the picture."""
    size = studio.pipe.processor.default_size
    return 32 if size is None else max(2, studio.pipe.processor.size_of(None, None)[1] // 10)


async def _canvas(picture) -> AsyncIterator[list]:
    """The picture that was chosen, to be painted on."""
    yield [None if picture is None else {"background": picture, "layers": [], "composite": None, "id": None}]


async def _edit(
    studio: Studio, picture, mask, painted, prompt: str, negative: str, seed: str, strength, *values
) -> AsyncIterator[list]:
    prompt, negative, seed = map(_text, (prompt, negative, seed))
    before = File(_name_of(picture, "picture.png"), _uploaded(studio, picture))
    layers = (painted.get("layers") if isinstance(painted, dict) else None) or ()
    strokes = painted_mask([_uploaded(studio, layer) for layer in layers], studio.limits)
    if (mask is None) == (strokes is None):
        if mask is None:
            raise bad("nothing is painted; paint over what is to be redrawn, or choose a mask", "mask")
        raise bad("a mask is chosen, and something is painted too; clear one of them", "mask")
    mask = File("mask.png", strokes) if mask is None else File(_name_of(mask, "mask.png"), _uploaded(studio, mask))
    chosen = _chosen(studio, values)
    if "diffusion" in chosen:
        chosen["diffusion"]["strength"] = strength
    columns = {path: [None, ""] for path in studio.writing_paths}
    used = _file(Shown("mask", mask.content), mask.name)
    async with aclosing(studio.draw(prompt, negative, seed, "", chosen, (before, mask))) as shown:
        async for path, drawn in shown:
            columns[path] = _column(drawn)
            yield [used, *(value for column in columns.values() for value in column)]


def _ask_tab(gr, studio: Studio) -> None:
    """One question about a picture, through every path that reads, side by side."""
    with gr.Row(equal_height=False):
        with gr.Column(min_width=280):
            picture = _upload(gr, "Picture", "ask-picture")
        with gr.Column(min_width=280):
            question = gr.Textbox(label="Question", lines=1, max_lines=6, elem_id="question")
            paths = gr.CheckboxGroup(studio.reading_paths, value=studio.reading_paths, label="Look through")
            tokens = gr.Number(64, label="Tokens of an answer, at most", precision=0, minimum=1)
            with gr.Row():
                ask = gr.Button("Ask", variant="primary", elem_id="ask")
                stop = gr.Button("Stop", scale=0, min_width=120)
    notice = gr.HTML(elem_classes="notice")
    with gr.Row(equal_height=False):
        answers = [gr.Textbox(label=path, interactive=False, elem_id=f"answer-{path}") for path in studio.reading_paths]
    inputs = [picture, question, paths, tokens]
    event = _on(gr, [ask.click, question.submit], functools.partial(_ask, studio), inputs, [notice, *answers])
    stop.click(None, cancels=[event])


async def _ask(studio: Studio, picture, question: str, paths: list[str], tokens) -> AsyncIterator[list]:
    png = _uploaded(studio, picture)
    answers = dict.fromkeys(studio.reading_paths, "")
    yield list(answers.values())
    async with aclosing(studio.ask(png, _text(question), paths, tokens)) as texts:
        async for path, text in texts:
            answers[path] = text
            yield list(answers.values())


def _chat_tab(gr, studio: Studio) -> None:
    """A conversation with pictures in and out."""
    talk = gr.Chatbot(
        label="Conversation", height="60vh", buttons=["copy"], group_consecutive_messages=False, elem_id="talk",
        feedback_options=None, latex_delimiters=[], render_markdown=False, layout="bubble",
    )  # fmt: skip
    notice = gr.HTML(elem_classes="notice")
    words = gr.MultimodalTextbox(
        label="Message", show_label=False, placeholder="Write, or add a picture", file_types=["image"],
        file_count="multiple", sources=["upload"], elem_id="message",
        max_plain_text_length=studio.limits.text_characters,
    )  # fmt: skip
    with gr.Row():
        stop, new = (gr.Button(label, scale=0, min_width=size) for label, size in (("Stop", 120), ("Begin anew", 160)))
    with gr.Accordion("How it answers", open=False), gr.Row():
        wish = _one_of(gr, "Answer with", list(WISHES))
        read = _one_of(gr, "Look through", studio.reading_paths)
        path = _one_of(gr, "Draw by", studio.writing_paths)
        seed = gr.Textbox(label="Seed", placeholder="another each time", min_width=200)
    conversation, past = gr.State(Conversation()), gr.State([])
    inputs = [conversation, past, words, wish, read, path, seed]
    outputs = [notice, conversation, past, talk, words]
    event = _on(gr, [words.submit], functools.partial(_chat, studio), inputs, outputs)
    _on(gr, [stop.click], _stopped, [conversation, past], outputs, cancels=[event])
    _on(gr, [new.click, talk.clear], _forget, [], outputs, cancels=[event])


async def _chat(
    studio: Studio, before: Conversation, past: list[dict], words, wish: str, read: str, path: str, seed: str
) -> AsyncIterator[list]:
    """The conversation is as it was until the whole answer is there."""
    empty = {"text": "", "files": []}
    try:
        text, files = _text(words.get("text")), words.get("files") or []
        pictures = [_uploaded(studio, file) for file in files]
        settings = {"plan": WISHES.get(wish), "read": read, "seed": seed_in(_text(seed))}
        settings["drawing"] = {} if path is None else {"path": path}
        asked = [_part_of_upload(file) for file in files] + ([_part_of_text(text)] if text else [])
        now = [*past, _message("user", asked)]
        yield [before, past, now, empty]
        async with aclosing(studio.reply(before, text, pictures, settings)) as turn:
            async for parts, conversation in turn:
                shown = [*now, _message("assistant", [_part_of(part) for part in parts] or [_part_of_text("…")])]
                yield [before, past, shown, empty] if conversation is None else [conversation, shown, shown, empty]
    except Exception:
        yield [before, past, past, words]  # what was written is there to be changed
        raise


async def _stopped(before: Conversation, past: list[dict]) -> AsyncIterator[list]:
    """The conversation as it was before the turn that was stopped."""
    yield [before, past, past, {"text": "", "files": []}]


async def _forget() -> AsyncIterator[list]:
    yield [Conversation(), [], [], {"text": "", "files": []}]


def _replay_tab(gr, studio: Studio, tabs, fields: list) -> None:
    """A picture that hybridgen drew is drawn again, or its settings are taken over."""
    with gr.Row(equal_height=False):
        with gr.Column(min_width=280):
            picture = _upload(gr, "A PNG that hybridgen drew", "replay-picture")
            said = gr.HTML(elem_classes="words", elem_id="replay-said")
        with gr.Column(min_width=280):
            again = _picture(gr, "drawn again", "replay-again")
            verdict = gr.HTML(elem_classes="words", elem_id="verdict")
    notice = gr.HTML(elem_classes="notice")
    with gr.Row():
        draw = gr.Button("Draw it again", variant="primary", elem_id="replay")
        take = gr.Button("Take its settings to Draw", elem_id="take")
        stop = gr.Button("Stop", scale=0, min_width=120)
    _on(gr, [picture.upload], functools.partial(_read, studio), [picture], [notice, said])
    event = _on(gr, [draw.click], functools.partial(_replay, studio), [picture], [notice, again, verdict])
    _on(gr, [take.click], functools.partial(_take, studio), [picture, *fields], [notice, *fields, tabs])
    stop.click(None, cancels=[event])


async def _read(studio: Studio, picture) -> AsyncIterator[list]:
    """What a picture says of itself."""
    yield [""]
    manifest = studio.manifest_of(_uploaded(studio, picture))
    rows = {"prompt": manifest["prompt"], "not in the picture": manifest.get("negative_prompt")}
    rows |= {"path": manifest["path"], "seed": manifest["seed"], "size": f"{manifest['width']}x{manifest['height']}"}
    rows |= manifest["settings"] | {"checkpoint": Path(manifest["checkpoint"]).name}
    shown = {str(name).replace("_", " "): str(value)[:500] for name, value in rows.items() if value is not None}
    cells = [f"<tr><th scope=row>{html.escape(name)}<td>{html.escape(value)}" for name, value in shown.items()]
    yield [f"<table>{''.join(cells)}</table>"]


async def _replay(studio: Studio, picture) -> AsyncIterator[list]:
    yield [None, ""]
    async with aclosing(studio.replay(_uploaded(studio, picture))) as shown:
        async for drawn in shown:
            yield _column(drawn)


async def _take(studio: Studio, picture, *values) -> AsyncIterator[list]:
    """The fields of the tab that draws, with what the picture says of those of its path."""
    import gradio as gr

    manifest = studio.manifest_of(_uploaded(studio, picture))
    values = list(values[4:])
    named = [(path, name) for path in studio.writing_paths for name in _names_of(path)]
    for place, (path, name) in enumerate(named):
        if path == manifest["path"]:
            values[place] = manifest["settings"].get(name, values[place])
    size = f"{manifest['width']}x{manifest['height']}"
    first = [manifest["prompt"], manifest.get("negative_prompt") or "", str(manifest["seed"]), size]
    yield [*first, *values, gr.update(selected="draw")]


# ------------------------------------------------------------------------------------------------------------- parts


def _picture(gr, label: str, name: str):
    """A picture that is shown."""
    return gr.Image(
        label=label, interactive=False, format="png", elem_id=name, elem_classes="picture", alt_text=label,
        buttons=["download", "fullscreen"],
    )  # fmt: skip


def _upload(gr, label: str, name: str):
    """A picture that is given: chosen, dropped or pasted."""
    return gr.Image(
        label=label, sources=["upload", "clipboard"], type="filepath", image_mode=None, elem_id=name,
        elem_classes="picture", alt_text=label, buttons=[],
    )  # fmt: skip


def _one_of(gr, label: str, choices: list[str]):
    return gr.Dropdown(choices, value=(choices or [None])[0], label=label, filterable=False, min_width=200)


def _text(value: Any) -> str:
    """What stands in a field; one that nobody has opened yet has nothing."""
    return value if isinstance(value, str) else ""


def _names_of(path: str) -> list[str]:
    return [name for name in FIELDS if name in OF_PATH[path]]


def _fields(gr, path: str, settings: dict, prefix: str) -> list:
    """A field for each of the settings of a path that the page has; `prefix`: of their ids."""
    return [
        gr.Number(settings[name], label=FIELDS[name][0], step=FIELDS[name][1], elem_id=f"{prefix}-{name}")
        for name in _names_of(path)
    ]


def _on(gr, triggers: list, handler: Callable[..., AsyncIterator[list]], inputs: list, outputs: list, cancels=None):
    """Let a handler run at each of some events.

    Args:
        outputs: the first is not the handler's: it shows the sentence that says what is wrong, or nothing.
        cancels: events whose handlers are stopped before.
    """

    async def told(*values) -> AsyncIterator[list]:
        shown = [gr.skip()] * (len(outputs) - 1)
        try:
            async with aclosing(handler(*values)) as steps:
                async for shown in steps:
                    yield ["", *shown]
        except Exception as error:
            yield [f'<p role="alert">{html.escape(as_api_error(error).message)}</p>', *shown]

    return gr.on(
        triggers, told, inputs, outputs, preprocess=False, postprocess=False, show_progress="hidden",
        concurrency_limit=None, api_visibility="private", cancels=cancels,
    )  # fmt: skip


def _column(shown: Shown) -> list:
    return [_file(shown), f'<p role="status">{html.escape(shown.words)}</p>']


def _file(shown: Shown, name: str | None = None) -> dict | None:
    """A picture as the browser gets it; under its own name where it has no other."""
    if shown.png is None:
        return None
    name = shown.name if name is None else name
    url = f"data:image/png;base64,{base64.b64encode(shown.png).decode()}"
    return {"path": name, "url": url, "orig_name": name, "mime_type": "image/png"}


def _message(role: str, content: list[dict]) -> dict:
    return {"role": role, "content": content, "metadata": None, "options": None}


def _part_of(part: str | Shown) -> dict:
    return _part_of_text(part) if isinstance(part, str) else _part_of_picture(part)


def _part_of_text(text: str) -> dict:
    return {"type": "text", "text": text}


def _part_of_upload(file: dict) -> dict:
    """A picture of the user's, as it lies on the server."""
    named = {name: file.get(name) for name in ("path", "url", "orig_name")}
    return {"type": "file", "file": {**named, "mime_type": "image/png"}, "alt_text": "sent"}


def _part_of_picture(shown: Shown) -> dict:
    file = _file(shown)
    return _part_of_text(shown.words) if file is None else {"type": "file", "file": file, "alt_text": shown.words}


def _name_of(value: Any, otherwise: str) -> str:
    """That an uploaded file had on the user's machine."""
    name = value.get("orig_name") if isinstance(value, dict) else None
    return Path(name).name[:200] if isinstance(name, str) and Path(name).name else otherwise


def painted_mask(layers: list[bytes], limits: Limits) -> bytes | None:
    """A mask of what was painted on a picture: white where any layer is not transparent; None = nothing was painted.
    Raises ApiError for what cannot be read.

    Args:
        layers: pictures of the picture's size.
    """
    mask = None
    for layer in layers:
        clear = take_picture("what was painted", layer, limits, transparent_pixels)
        mask = clear if mask is None or mask.size != clear.size else ImageChops.logical_and(mask, clear)
    if mask is None or mask.getextrema() == (255, 255):
        return None
    file = io.BytesIO()
    ImageChops.invert(mask.convert("L")).save(file, "png")
    return file.getvalue()


def _uploaded(studio: Studio, value: Any) -> bytes:
    """The bytes of a picture that was uploaded. Raises ApiError where there is none, or it is too large."""
    from gradio.utils import get_upload_folder

    path = value.get("path") if isinstance(value, dict) else None
    if not isinstance(path, str):
        raise bad("there is no picture yet; choose one, drop it here, or paste it", "image")
    file = Path(path).resolve()
    if not (file.is_relative_to(Path(get_upload_folder()).resolve()) and file.is_file()):
        raise bad("the picture is not there any more; choose it again", "image")
    studio.limits.check("image_bytes", os.path.getsize(file), "the picture")
    return file.read_bytes()


async def _only_what_was_uploaded(path: str | Path | None) -> str | None:
    """In place of gradio's own, which also fetches addresses: here only files come in that were uploaded."""
    if path is not None and "://" in str(path):
        raise bad("a picture is uploaded, no address is read", "image")
    return None if path is None else str(path)
