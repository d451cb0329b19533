"""The model `hybridgen` of lmms-eval (0.7): it reads pictures, answers, weighs choices, and draws.

    python -m lmms_eval --model hybridgen --model_args pretrained=CHECKPOINT,path=understanding --tasks pope,mme

lmms-eval finds it by the entry point `lmms_eval.models` (`hybridgen_lmms_eval` beside the package). Tasks come in two
forms: as chat messages, which lmms-eval prefers, and simple ones (`--force_simple`), which alone have multiple choice
and visual chains of thought; hence two classes over one.

A model that draws returns {"text": ..., "images": [files]} as JSON, which the suites that judge pictures read (WISE,
UEval, Uni-MMMU). What is drawn or written for a document depends on its number and the seed, not on batches and
processes: with n processes, number r does every n-th document, as lmms-eval deals them out.

Two things of lmms-eval 0.7 that one would not guess: multiple choice takes the smallest value, so that a likelihood is
returned as a loss (the mean over its tokens, as its other models do); and a bare pair (loss, greedy) would be made a
text, so it is wrapped.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from lmms_eval.api.instance import GenerationResult, Instance
from lmms_eval.api.model import lmms
from loguru import logger as eval_logger
from PIL import Image
from tqdm import tqdm

from hybridgen.bridges.adapters import open_pipeline
from hybridgen.chat.events import ImageDone, TextDelta
from hybridgen.chat.settings import TurnSettings
from hybridgen.core.files import whole_file
from hybridgen.core.messages import strip_reasoning
from hybridgen.core.names import DEFAULTS
from hybridgen.core.recognition import user_path
from hybridgen.core.values import choice, listed, shown, whole_number
from hybridgen.evaluation.harnesses.requests import ReplySettings, cut, reply_settings
from hybridgen.sampling.seeds import nth_seed

MODES = ("understanding", "generation", "interleaved")
DRAWING = (*DEFAULTS, "height", "width", "negative_prompt")  # settings of pictures that --model_args may have
REPEAT = 1 << 32  # from the seed of a document to that of its next repetition: more than a task has documents
TAGS = re.compile(r"\[GEN_PROMPT\](.*?)\[/GEN_PROMPT\].*?\[QUESTION\](.*?)\[/QUESTION\]", re.DOTALL)


class HarnessRequest(NamedTuple):
    """One request: the conversation to reply to, how, which document of which task it is about, and its seed."""

    messages: list[dict]
    settings: dict
    task: str
    split: str
    document: Any
    seed: int = 0


class _HybridGen(lmms):
    """
    Args:
        pretrained: a checkpoint of hybridgen, or an adapter.
        path: by which pictures are read; several as `diffusion+understanding`. None = understanding, or the first that
            the model has.
        mode: `understanding` (replies in words), `generation` (the request is a prompt, the reply a picture),
            `interleaved` (the model decides itself what it writes and draws, as in a chat).
        draw: path by which pictures are drawn; None = the first that draws.
        out: folder for drawn pictures, which `generation` and `interleaved` need; those of an older run are replaced.
        system: what a system message says before every request.
        seed: document i is drawn, and its words where they are drawn, with `seed + i`.
        batch_size: requests at a time.
        device: None = the best of this machine; with several processes that of each.
        drawing: settings of pictures, named as in a call of the pipeline: num_inference_steps, guidance_scale, ...

    Raises:
        ValueError: in one sentence, what is wrong.
    """

    def __init__(
        self,
        pretrained: str | None = None,
        path: str | None = None,
        mode: str = "understanding",
        draw: str | None = None,
        out: str | None = None,
        system: str | None = None,
        seed: int = 0,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        device: str | None = None,
        **drawing,
    ):
        super().__init__()
        if unknown := sorted(set(drawing) - set(DRAWING)):
            known = ", ".join(["pretrained", "path", "mode", "draw", "out", "system", "seed", "device", *DRAWING])
            raise ValueError(f"--model_args has {unknown[0]!r}, which is not known to hybridgen; there are {known}")
        if pretrained is None:
            raise ValueError("--model_args names no checkpoint; add pretrained=FOLDER")
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise ValueError(f"--batch_size is {batch_size}; give a whole number of at least 1")
        self.mode, self.batch_size = choice("mode", mode, MODES), int(batch_size)
        if self.mode != "understanding" and out is None:
            raise ValueError(f"mode={mode} draws pictures; add out=FOLDER to --model_args, where they are written")
        if mode == "interleaved" and (unfit := sorted(set(drawing) - {one.name for one in fields(TurnSettings)})):
            raise ValueError(f"{unfit[0]} is no setting of chats, and mode=interleaved is one; leave it out")
        self.seed, self.system = whole_number("seed", seed, 0), None if system is None else str(system)
        self.accelerator = Accelerator()
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        self._device = self.accelerator.device if self._world_size > 1 or device is None else torch.device(device)
        self.pipeline = open_pipeline(str(pretrained)).to(self._device)
        self.pipeline.set_progress_bar_config(disable=True)
        self.out = None if out is None else user_path(str(out))
        paths = self.pipeline.model.config.paths
        first = "understanding" if "understanding" in paths else next(iter(paths), "understanding")
        self.path = first if path is None else str(path).split("+") if "+" in str(path) else str(path)
        self.pipeline.reading_path(self.path)
        self.drawing, self.draw = drawing, draw
        if self.mode != "understanding":
            self._check_drawing()
        self._asked, self._saved, self._told = Counter(), Counter(), set()

    def _check_drawing(self) -> None:
        """Raises ValueError where no picture could be drawn so."""
        self.draw = self.pipeline.writing_path(self.draw)
        self.pipeline.check_call(["a prompt"], self.draw, **{"height": None, "width": None, **self.drawing})

    # ---------------------------------------------------------------------------------- what lmms-eval asks for by name

    @property
    def device(self):
        return self._device

    @property
    def model(self):
        return self.pipeline.model

    @property
    def tokenizer(self):
        return self.pipeline.processor.tokenizer

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_token_id

    def clean(self) -> None:
        """The model is given back before answers are judged."""
        self.pipeline = None
        super().clean()

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """A reply to each request: words, or (modes that draw) JSON with words and the files of pictures."""
        how = {"understanding": self._reply, "generation": self._draw, "interleaved": self._talk}[self.mode]
        return self._in_batches(requests, how)

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        raise NotImplementedError("hybridgen answers tasks of one round; leave tasks of several rounds out")

    def generate_visual_cot(self, requests: list[Instance]) -> list[str]:
        """Think with a picture: draw what the prompt's [GEN_PROMPT] says, then answer its [QUESTION] about both."""
        if self.out is None:
            raise ValueError("a visual chain of thought draws a picture; add out=FOLDER to --model_args")
        self._check_drawing()
        return self._in_batches(requests, self._think_with_a_picture)

    def loglikelihood(self, requests: list[Instance]) -> list[GenerationResult]:
        """(mean loss of the continuation's tokens, whether each is the likeliest), as the assistant's reply."""

        def weigh(asked: list[HarnessRequest]) -> list[tuple[float, bool]]:
            scored = self.pipeline.score_replies(
                [one.messages for one in asked],
                [one.settings["continuation"] for one in asked],
                path=self.path,
                max_batch=self.batch_size,
                with_greedy=True,
            )
            return [(-one.mean, one.greedy) for one in scored]

        return [GenerationResult(text=pair) for pair in self._in_batches(requests, weigh)]

    # -------------------------------------------------------------------------------------------------- how it is done

    def _in_batches(self, requests: list[Instance], function) -> list:
        """function(requests, as they are asked) -> replies, `batch_size` at a time; those that only fill up a process'
        share get none."""
        asks = [not (one.metadata or {}).get("__padding_only__") for one in requests]
        wanted = [one for one, asked in zip(requests, asks, strict=True) if asked]
        replies, bar = [], tqdm(total=len(wanted), disable=self.rank != 0, desc="hybridgen")
        for start in range(0, len(wanted), self.batch_size):
            batch = [self._with_seed(self._read(one)) for one in wanted[start : start + self.batch_size]]
            replies += function(batch)
            bar.update(len(batch))
        bar.close()
        of_wanted = iter(replies)
        return [next(of_wanted) if asked else "" for asked in asks]

    def _read(self, request: Instance) -> HarnessRequest:
        """A request of this class' form, pictures opened. Raises ValueError for what cannot be shown."""
        raise NotImplementedError

    def _with_system(self, messages: list[dict]) -> list[dict]:
        return [{"role": "system", "content": self.system}, *messages] if self.system else messages

    def _with_seed(self, one: HarnessRequest) -> HarnessRequest:
        """Each document has its own seed, and each of its repetitions."""
        key = (one.task, one.split, one.document)
        seed = nth_seed(nth_seed(self.seed, int(one.document)), REPEAT * self._asked[key])
        self._asked[key] += 1
        return one._replace(seed=seed)

    def _settings(self, one: HarnessRequest) -> ReplySettings:
        """Where a task asks for more tokens than there is room for, as many as there is room for."""
        settings = reply_settings(one.settings, one.task, self._tell)
        room = self.pipeline.context - len(self.pipeline.processor.prompt(one.messages, read=self.path))
        return settings._replace(max_new_tokens=int(max(1, min(settings.max_new_tokens, room))))

    def _tell(self, words: str) -> None:
        """In lmms-eval's log (it silences Python's warnings), once."""
        if words not in self._told:
            self._told.add(words)
            eval_logger.warning(words)

    def _reply(self, asked: list[HarnessRequest]) -> list[str]:
        """In words."""
        groups: dict[ReplySettings, list[int]] = {}
        for number, one in enumerate(asked):
            groups.setdefault(self._settings(one), []).append(number)
        replies = [""] * len(asked)
        for settings, numbers in groups.items():
            written = self.pipeline.reply(
                [asked[number].messages for number in numbers],
                path=self.path,
                max_new_tokens=settings.max_new_tokens,
                seed=[asked[number].seed for number in numbers],
                **dict(settings.sampling),
            )
            for number, text in zip(numbers, written, strict=True):
                replies[number] = cut(text, settings.until)
        return replies

    def _draw(self, asked: list[HarnessRequest]) -> list[str]:
        """The words of a request as a prompt; a picture that it shows stands before."""
        prompts, pictures = [_words(one.messages) for one in asked], [_only_picture(one) for one in asked]
        drawn = self._pictures_of(asked, prompts, pictures)
        return [_reply_with("", [file]) for file in drawn]

    def _pictures_of(self, asked: list[HarnessRequest], prompts: list[str], conditions: list) -> list[Path]:
        shown_any = any(picture is not None for picture in conditions)
        condition = {"image": conditions, "read": self.path} if shown_any else {}
        how = {"path": self.draw, "seed": [one.seed for one in asked], "max_batch": 2 * self.batch_size}
        images = self.pipeline(prompts, **how, **condition, **self.drawing).images
        return [self._save(one, image) for one, image in zip(asked, images, strict=True)]

    def _talk(self, asked: list[HarnessRequest]) -> list[str]:
        """As the model decides: words, pictures, or both."""
        replies = []
        for one in asked:
            settings, text, files = self._settings(one), "", []
            words = {f"text_{name}": value for name, value in settings.sampling if name != "do_sample"}
            if settings.sampling and not words:
                words = {"text_temperature": 1.0}
            how = {"path": self.draw, "read": self._one_path(), "max_new_tokens": settings.max_new_tokens}
            for event in self.pipeline.stream(one.messages, seed=one.seed, **how, **words, **self.drawing):
                if isinstance(event, TextDelta):
                    text += event.text
                elif isinstance(event, ImageDone):
                    files.append(self._save(one, event.image))
            replies.append(_reply_with(cut(strip_reasoning(text), settings.until), files))
        return replies

    def _one_path(self) -> str:
        return self.path if isinstance(self.path, str) else self.path[0]

    def _think_with_a_picture(self, asked: list[HarnessRequest]) -> list[str]:
        parts = []
        for one in asked:
            if (found := TAGS.search(_words(one.messages))) is None:
                raise ValueError(
                    f"document {one.document} of task {one.task} has no [GEN_PROMPT] with a [QUESTION] after it"
                )
            parts.append([part.strip() for part in found.groups()])
        shown = [_pictures(one.messages) for one in asked]
        prompts = [prompt.replace("{question}", question) for prompt, question in parts]
        files = self._pictures_of(asked, prompts, [pictures[0] if pictures else None for pictures in shown])
        both = [
            one._replace(messages=self._with_system(_asked_about([*pictures, file], question)))
            for one, pictures, file, (_, question) in zip(asked, shown, files, parts, strict=True)
        ]
        return self._reply(both)

    def _save(self, one: HarnessRequest, image: Image.Image) -> Path:
        """The n-th picture of a document of a task -> OUT/TASK/SPLIT_DOCUMENT_n.png."""
        key = (one.task, one.split, one.document)
        name = f"{one.split}_{one.document}_{self._saved[key]}.png"
        self._saved[key] += 1
        file = (self.out / one.task.replace("/", "_") / name).absolute()
        with whole_file(file) as aside:
            image.save(aside)
        return file


class HybridGenChat(_HybridGen):
    """Requests as chat messages: (context, doc_to_messages, generation_kwargs, document, task, split)."""

    is_simple = False

    def _read(self, request: Instance) -> HarnessRequest:
        _, doc_to_messages, settings, document, task, split = request.args
        messages = doc_to_messages(self.task_dict[task][split][document])
        return HarnessRequest(
            self._with_system([_message(one, task) for one in messages]), settings, task, split, document
        )


class HybridGenSimple(_HybridGen):
    """Requests as a text and the pictures before it: (context, generation_kwargs, doc_to_visual, document, task,
    split), of likelihoods (context, continuation, doc_to_visual, ...)."""

    is_simple = True

    def _read(self, request: Instance) -> HarnessRequest:
        if len(request.args) != 6:
            raise ValueError(
                f"task {request.task_name} asks for the likelihood of a choice by itself (acc_mutual_info), which "
                "lmms-eval compares with the wrong sign; leave that metric out"
            )
        context, settings, doc_to_visual, document, task, split = request.args
        doc = self.task_dict[task][split][document]
        if request.request_type == "loglikelihood":
            continuation = settings(doc) if callable(settings) else settings
            settings = {"continuation": str(continuation).strip()}
        visuals = [] if doc_to_visual is None else _flat(doc_to_visual(doc))
        for visual in visuals:
            _check_picture(visual, task)
        return HarnessRequest(self._with_system(_asked_about(visuals, context)), settings, task, split, document)


def _message(message: dict, task: str) -> dict:
    """A message of lmms-eval as one of ours. Raises ValueError for videos and sounds."""
    content = message["content"]
    if isinstance(content, str):
        return {"role": message["role"], "content": content}
    parts = []
    for part in content:
        if part["type"] == "text":
            parts.append({"type": "text", "text": part["text"]})
            continue
        if part["type"] != "image":
            raise ValueError(f"task {task} shows a {part['type']}, and hybridgen reads pictures only; leave it out")
        _check_picture(part["url"], task)
        parts.append({"type": "image", "image": part["url"]})
    return {"role": message["role"], "content": parts}


def _check_picture(visual: Any, task: str) -> None:
    if not isinstance(visual, Image.Image | str | Path):
        raise ValueError(f"task {task} shows {shown(visual)}, and hybridgen reads pictures only; leave it out")


def _asked_about(pictures: list, text: str) -> list[dict]:
    images = [{"type": "image", "image": picture} for picture in pictures]
    return [{"role": "user", "content": [*images, {"type": "text", "text": text}]}]


def _flat(visuals) -> list:
    """lmms-eval's tasks return pictures, lists of them, or None."""
    if visuals is None:
        return []
    nested = listed(visuals)
    return [visuals] if nested is None else [one for item in nested for one in _flat(item)]


def _parts(messages: list[dict]) -> Iterator[dict]:
    for message in messages:
        if message["role"] != "system":
            content = message["content"]
            yield from [{"type": "text", "text": content}] if isinstance(content, str) else content


def _words(messages: list[dict]) -> str:
    return "\n".join(part["text"] for part in _parts(messages) if part["type"] == "text")


def _pictures(messages: list[dict]) -> list:
    return [part["image"] for part in _parts(messages) if part["type"] == "image"]


def _only_picture(one: HarnessRequest):
    """The picture that stands before a prompt, or None. Raises ValueError for several."""
    pictures = _pictures(one.messages)
    if len(pictures) > 1:
        raise ValueError(
            f"document {one.document} of task {one.task} shows {len(pictures)} pictures, and a picture is drawn after "
            "one at most; use mode=interleaved, or leave the task out"
        )
    return pictures[0] if pictures else None


def _reply_with(text: str, files: list[Path]) -> str:
    return json.dumps({"text": text, "images": [str(file) for file in files]}, ensure_ascii=False)
