"""Bits per byte against transformers' own loss on the same weights."""

import json
import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from hybridgen.evaluation.run import evaluate
from hybridgen.pipeline_hybridgen import load_pipeline
from hybridgen.sampling.likelihood import rolling_windows

TEXTS = ["an orc wearing a red robe, black background", "a man\nholding a gold tower shield. é", "a " * 30]


@pytest.fixture(scope="module")
def pipe(tiny_checkpoint):
    return load_pipeline(tiny_checkpoint)


def oracle_nats(pipe, text: str, context: int, stride: int) -> float:
    """By the bare language model, window by window as transformers' guide to perplexity has it."""
    oracle = AutoModelForCausalLM.from_config(pipe.model.config.text_config).eval()
    oracle.model.load_state_dict(pipe.model.model.language_model.state_dict())
    oracle.lm_head.load_state_dict(pipe.model.lm_head.state_dict())
    line = torch.tensor(
        [[pipe.processor.begin_of_text(), *pipe.processor.tokenizer(text, add_special_tokens=False).input_ids]]
    )
    total, done, end = 0.0, 1, min(context, line.shape[1])
    while True:
        window = line[:, max(0, end - context) : end]
        labels = window.clone()
        labels[:, : window.shape[1] - (end - done)] = -100
        with torch.no_grad():
            total += float(oracle(window, labels=labels).loss) * (end - done)
        if end == line.shape[1]:
            return total
        done, end = end, min(end + stride, line.shape[1])


@pytest.mark.parametrize("stride", [None, 3])
@pytest.mark.parametrize("context", [512, 9])
def test_equals_transformers_losses_by_bytes(pipe, context, stride, tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text(TEXTS[0])
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS[1:]))
    monkeypatch.setattr(pipe.model.config.text_config, "max_position_embeddings", context)
    options = {"text": f"{tmp_path}/a.txt,{tmp_path}/b.jsonl"} | ({} if stride is None else {"stride": stride})
    result = evaluate(pipe, "text", options=options)
    scores = result.scores["text"]["text"]["scores"]
    nats = [oracle_nats(pipe, text, context, stride or context - 1) for text in TEXTS]
    sizes = [len(text.encode()) for text in TEXTS]
    assert scores["all"]["value"] == pytest.approx(sum(nats) / math.log(2) / sum(sizes), rel=1e-5)  # worst 3e-7
    assert scores[f"{tmp_path}/a.txt"]["value"] == pytest.approx(nats[0] / math.log(2) / sizes[0], rel=1e-5)
    assert scores["all"]["n"] == 3
    assert scores["all"]["low"] <= scores["all"]["value"] <= scores["all"]["high"]
    assert scores[f"{tmp_path}/a.txt"]["low"] is None  # one document
    assert result.facts["bytes"] == sum(sizes)


@pytest.mark.parametrize(
    ("count", "context", "stride"), [(20, 6, None), (20, 6, 2), (5, 6, None), (6, 6, None), (1, 6, 3)]
)
def test_windows_predict_each_token_once_after_as_much_as_there_is_room_for(pipe, count, context, stride):
    ids = list(range(10, 10 + count))
    windows = rolling_windows(ids, 3, context, pipe.processor.special_tokens, stride)
    predicted = [label for window in windows for label in window.layout.labels if label != -100]
    assert predicted == ids
    assert all(len(window) <= context for window in windows)
    assert all(len(window) == context for window in windows[1:])
    assert windows[0].layout.input_ids == [3, *ids][:context]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "suite text needs --option text=FILE"),
        ({"text": "nowhere.txt"}, "there is no file nowhere.txt"),
        ({"text": "{0}/empty.txt"}, "empty"),
        ({"text": "{0}/other.jsonl"}, "holds no text: .*it is no plain text"),
        ({"text": "{0}/a.txt", "stride": 0}, "option stride of suite text is 0"),
        ({"text": "{0}/a.txt", "stride": 512}, "must be below the model's context, 512"),
    ],
)
def test_refusals(pipe, tmp_path, options, words):
    (tmp_path / "a.txt").write_text("a man")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "other.jsonl").write_text('{"question": "what?", "answer": "a man"}\n')
    options = {key: value.format(tmp_path) if isinstance(value, str) else value for key, value in options.items()}
    with pytest.raises(ValueError, match=words):
        evaluate(pipe, "text", options=options)


def test_broken_records_are_listed(pipe, tmp_path):
    file = tmp_path / "texts.jsonl"
    file.write_text('{"text": "a man"}\n{"question": "what?", "answer": "a man"}\n{"text": ""}\n')
    result = evaluate(pipe, "text", options={"text": str(file)})
    assert result.facts["texts"] == 1
    assert result.facts["notes"][0].startswith("2 broken records are left out: ")
