"""Log-likelihoods: those of the model's own teacher-forced forward, whatever is beside a text, however long it is."""

import numpy as np
import pytest
import torch
from PIL import Image

from hybridgen.sampling.likelihood import rolling_windows
from tests.pipelines import tiny_pipeline

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


@pytest.mark.parametrize("path", ["understanding", "diffusion", "vq"])
def test_an_answer_is_as_likely_as_its_loss_says(pipe, path):
    """The mean loss of the same document, trained on; alone and in a batch. Measured worst case: 5e-7 nats a token."""
    questions, answers = ["what is this?", "and what is that, next to it?"], ["a red circle", "blue"]
    together = pipe.score_answers([PICTURE, None], questions, answers, path)
    for image, question, answer, likelihood in zip([PICTURE, None], questions, answers, together, strict=True):
        content = [{"type": "text", "text": question}]
        content = content if image is None else [{"type": "image", "image": image}, *content]
        messages = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
        document = pipe.processor.document(messages, read=path)
        labels = torch.tensor([document.layout.labels])
        with torch.no_grad():
            loss = pipe.model(**pipe.prompt_inputs([document]), labels=labels).loss
        assert likelihood.tokens == int((labels != -100).sum())
        assert likelihood.mean == pytest.approx(-float(loss), abs=1e-5)
        assert pipe.score_answers([image], [question], [answer], path)[0].nats == pytest.approx(
            likelihood.nats, abs=1e-5
        )


@pytest.mark.parametrize("context", [2, 3, 7, 50])
def test_windows_predict_every_token_once(pipe, context):
    ids = list(range(5, 25))
    windows = rolling_windows(ids, 1, context, pipe.processor.special_tokens)
    predicted = [label for window in windows for label in window.layout.labels if label != -100]
    assert predicted == ids
    assert all(len(window) <= context for window in windows)
    line = [1, *ids]
    for window in windows:
        start = line.index(window.layout.input_ids[0])
        assert window.layout.input_ids == line[start : start + len(window)]


def test_a_text_longer_than_the_context_is_read_in_windows(pipe, monkeypatch):
    text = "a red circle above a blue square, and a green circle below it"
    whole = pipe.score_texts(text)[0]
    ids = pipe.processor.text_ids(text)
    assert whole.tokens == len(ids)
    monkeypatch.setattr(type(pipe), "context", 6)
    cut = pipe.score_texts([text, "a red circle"])
    assert [one.tokens for one in cut] == [len(ids), len(pipe.processor.text_ids("a red circle"))]
    assert abs(cut[0].nats - whole.nats) > 1e-3  # what stands before a window is not seen
    first, nats = pipe.processor.begin_of_text(), 0.0
    for start in range(0, len(ids), 5):
        window = [first, *ids][start : start + 6]
        with torch.no_grad():
            logits = pipe.model(input_ids=torch.tensor([window])).logits[0].log_softmax(-1)
        nats += sum(float(logits[i, token]) for i, token in enumerate(window[1:]))
    assert cut[0].nats == pytest.approx(nats, abs=1e-4)


def test_what_a_text_spells_are_words(pipe):
    ids = pipe.processor.text_ids("<|assistant|>")
    assert len(ids) > 1
    assert pipe.processor.tokenizer.convert_tokens_to_ids("<|assistant|>") not in ids


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda pipe: pipe.score_answers(PICTURE, ["a?", "b?"], ["c"]),
            "2 questions have 1 answers; give one for each",
        ),
        (lambda pipe: pipe.score_answers(PICTURE, "a?", [3]), "answers is"),
        (lambda pipe: pipe.score_answers(PICTURE, "a?", ["b"], path="sound"), "no path 'sound' here"),
        (lambda pipe: pipe.score_answers(PICTURE, "a?", ["b " * 4000]), "context is 512"),
        (lambda pipe: pipe.score_texts([]), "text is \\[\\]; give a text or a list of at least one text"),
        (lambda pipe: pipe.score_texts("a", max_batch=0), "max_batch is 0"),
    ],
)
def test_refuses(pipe, call, message):
    with pytest.raises(ValueError, match=message):
        call(pipe)
