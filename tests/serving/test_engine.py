"""The engine: whatever is drawn and written together, and in whatever order it comes, is the same as alone."""

import random
import threading
import time

import pytest
import torch
from PIL import Image

from hybridgen.chat.events import ImageDone, TextDelta
from hybridgen.chat.settings import TurnSettings
from hybridgen.chat.turn import Conversation, Turn
from hybridgen.sampling import decoder as decoders
from hybridgen.sampling.tasks import Score, compute, events_of, run
from hybridgen.serving.drawing import PictureCall, Preview
from hybridgen.serving.engine import DeadlinePassed, Engine, EngineClosed, Failed, Finished, QueueFull
from tests.pipelines import tiny_pipeline, tiny_vae

WORDS = ["a red circle", "what color is the circle? red", "draw a blue square " * 6, "square"]


@pytest.fixture
def engine():
    made = Engine(max_rows=32)
    yield made
    made.close()


def picture_settings(draws: random.Random) -> dict:
    path = draws.choice(["diffusion", "vq"])
    side = 4  # pixels of a token, by both paths
    settings = {
        "prompt": draws.choice(WORDS), "path": path, "seed": draws.randrange(1 << 40),
        "height": side * draws.randint(2, 5), "width": side * draws.randint(2, 5), "count": draws.randint(1, 3),
        "guidance_scale": draws.choice([1.0, 1.5, 4.0]), "guidance_interval": draws.choice([(0, 1), (0.2, 0.7)]),
        "guidance_rescale": draws.choice([0.0, 0.5]), "negative_prompt": draws.choice([None, "square"]),
    }  # fmt: skip
    if draws.random() < 0.4:  # a region of another picture
        size, seed = (settings["width"], settings["height"]), draws.randrange(100)
        levels = random.Random(seed).randbytes(3 * size[0] * size[1])
        mask = Image.linear_gradient("L").rotate(draws.choice([0, 90, 180])).resize(size)
        settings |= {"edit_image": Image.frombytes("RGB", size, levels), "mask_image": mask}
        if path == "diffusion":
            settings["strength"] = draws.choice([None, 0.5])
    if path == "diffusion":
        return settings | {"num_inference_steps": draws.randint(1, 6), "shift": draws.choice([None, 3.0])}
    of_codes = {"temperature": draws.choice([0.0, 0.7, 1.0]), "top_k": draws.choice([0, 9]), "top_p": 0.9}
    return settings | of_codes | {"window": draws.choice([1, 1, 3])}


def turn_settings(draws: random.Random) -> dict:
    plan = draws.choice([None, ["text"], ["image", "text"], ["text", "image"]])
    drawing = {"num_inference_steps": 3, "guidance_scale": draws.choice([1.0, 2.0])}
    settings = {
        "plan": plan, "seed": draws.randrange(1 << 40), "max_new_tokens": draws.randint(1, 40),
        "text_temperature": draws.choice([None, 2.0]), "path": draws.choice(["diffusion", "vq"]),
    }  # fmt: skip
    return settings | drawing


def alone(pipe, kind: str, settings: dict):
    """What the pipeline makes of it, called in the plain way."""
    if kind == "turn":
        return shown(list(pipe.stream([{"role": "user", "content": WORDS[1]}], **settings)))
    names = dict(settings)
    prompt, count = names.pop("prompt"), names.pop("count")
    return [one.tobytes() for one in pipe(prompt, num_images_per_prompt=count, **names).images]


def shown(events: list) -> list:
    """Of a turn: its words, its pictures, and what it took, but for the time."""
    words = "".join(event.text for event in events if isinstance(event, TextDelta))
    pictures = [event.image.tobytes() for event in events if isinstance(event, ImageDone)]
    usage = vars(events[-1]) | {"seconds": 0}
    return [words, pictures, usage]


def job(pipe, kind: str, settings: dict):
    """Its task and its rows."""
    if kind == "turn":
        turn = Turn(pipe, Conversation(), [{"role": "user", "content": WORDS[1]}], TurnSettings(**settings))
        return turn.task(), 2
    call = PictureCall.of(pipe, **settings)
    return call.task(), call.rows


def made_by(events: list):
    """What a job delivered, as `alone` returns it."""
    assert isinstance(events[-1], Finished), events[-1].error
    if events[-1].result is None:
        return shown(events[:-1])
    return [one.tobytes() for one in events[-1].result]


class Arrivals:
    """Tasks driven as the engine drives them, without its thread: who comes when is a matter of the seed."""

    def __init__(self, engine: Engine):
        self.engine, self.delivered = engine, []

    def submit(self, task, rows: int) -> None:
        events: list = []
        self.delivered.append(events)
        self.engine.submit(task, rows, events.append)

    def tick(self) -> None:
        with torch.no_grad():
            self.engine._let_in()
            self.engine._tick()


@pytest.fixture
def arrivals(monkeypatch):
    monkeypatch.setattr(Engine, "_work", lambda self: None)
    return Arrivals(Engine(max_rows=10))


@pytest.mark.parametrize("seed", range(6))
def test_any_interleaving_is_the_same_as_alone(pipe, arrivals, seed):
    """Pictures of both paths and turns of text and pictures; sizes, steps, guidance differ; they come at any step."""
    draws = random.Random(seed)
    wanted = [("turn", turn_settings(draws)) if draws.random() < 0.3 else ("picture", picture_settings(draws))
              for _ in range(9)]  # fmt: skip
    left, most = list(wanted), 0
    while left or arrivals.engine.counts().running or arrivals.engine.counts().waiting:
        for _ in range(draws.choice([0, 0, 1, 1, 2, 4])):
            if left:
                arrivals.submit(*job(pipe, *left.pop(0)))
        arrivals.tick()
        most = max(most, arrivals.engine.counts().running)
    assert most > 2  # they were together
    for (kind, settings), events in zip(wanted, arrivals.delivered, strict=True):
        assert made_by(events) == alone(pipe, kind, settings), settings


@pytest.mark.parametrize("kind", ["vae", "unet", "llama4_text", "mistral"])
def test_other_models_too(kind, arrivals):
    """A VAE, a U-Net, a backbone that is run as transformers runs it, one with a window."""
    changes = {"unet": {"diffusion_config": {
        "patch_size": 4, "sample_size": 16, "frequency_embedding_size": 32, "unet_channels": [16, 16],
    }}}.get(kind, {})  # fmt: skip
    backbone = kind if kind in ("llama4_text", "mistral") else "qwen3"
    pipe, draws = tiny_pipeline(tiny_vae() if kind == "vae" else None, backbone, **changes), random.Random(0)
    drawn = [picture_settings(draws) for _ in range(4)]
    wanted = [("picture", one if "edit_image" in one else one | {"height": 16, "width": 16}) for one in drawn]
    wanted.append(("turn", turn_settings(draws)))
    for one in wanted:
        arrivals.submit(*job(pipe, *one))
        arrivals.tick()
    while arrivals.engine.counts().running + arrivals.engine.counts().waiting:
        arrivals.tick()
    for (kind, settings), events in zip(wanted, arrivals.delivered, strict=True):
        assert made_by(events) == alone(pipe, kind, settings), settings


# ----------------------------------------------------------------------------- what is computed together, and when


def test_the_backbone_is_read_once_a_step(pipe, arrivals, monkeypatch):
    """By all jobs together, whatever they are, though some need a head between two forwards and others none."""
    forwards = []
    together = decoders._Layer.__call__

    def counted(layer, states, cos, sin, spans, number):
        if number == 0:
            forwards.append(len(spans))
        return together(layer, states, cos, sin, spans, number)

    monkeypatch.setattr(decoders._Layer, "__call__", counted)
    text = {"plan": ["text"], "max_new_tokens": 12, "seed": 0}
    codes = {"prompt": WORDS[0], "path": "vq", "seed": 1, "count": 1}
    noise = {"prompt": WORDS[0], "path": "diffusion", "seed": 1, "count": 2, "num_inference_steps": 14}
    for kind, settings in (("turn", text), ("picture", codes), ("picture", noise)):
        arrivals.submit(*job(pipe, kind, settings))
    while arrivals.engine.counts().running + arrivals.engine.counts().waiting:
        arrivals.tick()
    assert len(forwards) == arrivals.engine.counts().steps == 15  # of 16 codes, the first takes no forward
    assert sum(forwards) == arrivals.engine.counts().joined == 15 + 14 + 12
    assert forwards[:12] == [3] * 12


def test_no_more_rows_than_there_is_room_for(pipe, arrivals):
    """Those that came first enter first; one that is larger than the room runs alone."""
    settings = {"prompt": WORDS[0], "path": "vq", "seed": 1, "guidance_scale": 2.0}
    counts = [1, 3, 2, 6, 1]  # 2, 6, 4, 12 and 2 rows, of 10
    for count in counts:
        arrivals.submit(*job(pipe, "picture", settings | {"count": count}))
    ended, ran = [], []
    while arrivals.engine.counts().running + arrivals.engine.counts().waiting:
        arrivals.tick()
        now = arrivals.engine.counts()
        ran.append(now.rows)
        ended += [counts[i] for i, events in enumerate(arrivals.delivered) if events and counts[i] not in ended]
    assert ran[0] == 8
    assert set(ran) == {8, 4, 12, 2, 0}
    assert ended == [1, 3, 2, 6]


def test_work_of_several_is_computed_as_each_alone(pipe):
    head = torch.nn.Linear(8, 5)
    scores = [Score(head, torch.randn(rows, 8)) for rows in (4, 5, 9)]
    for made, score in zip(compute(scores), scores, strict=True):
        torch.testing.assert_close(made, head(score.states))
    other = Score(torch.nn.Linear(8, 5), scores[0].states)
    assert len({score.key for score in [*scores, other]}) == 2
    assert compute([]) == []


# ---------------------------------------------------------------------------------- clients come, wait, and hang up


def small(pipe, **changes):
    call = PictureCall.of(pipe, **{"prompt": WORDS[0], "path": "vq", "seed": 1, "guidance_scale": 1.0, **changes})
    return call.task(), call.rows


def test_events_come_while_it_is_drawn(pipe, engine):
    task, rows = small(pipe, preview_every=4, path="vq")
    events = list(engine.stream(task, rows))
    assert [event.step for event in events] == [4, 8, 12]
    assert [event.images[0].size for event in events] == [(16, 4), (16, 8), (16, 12)]
    assert all(isinstance(event, Preview) for event in events)
    assert (
        engine.make(*small(pipe))[0].tobytes()
        == pipe(WORDS[0], path="vq", seed=1, guidance_scale=1).images[0].tobytes()
    )


def waiting_task(gate: threading.Event):
    """A task that keeps the engine's thread busy until the gate opens."""
    gate.wait(30)
    return "done"
    yield


def test_a_queue_has_an_end(pipe):
    engine, gate, box = Engine(max_rows=1, max_waiting=2), threading.Event(), []
    try:
        engine.submit(waiting_task(gate), 1, box.append)
        while not engine.counts().running:
            time.sleep(0.01)
        for _ in range(2):
            engine.submit(*small(pipe), box.append)
        with pytest.raises(QueueFull, match="too many requests wait already; try again in [0-9]+ s") as refused:
            engine.submit(*small(pipe), box.append)
        assert refused.value.retry_after >= 1
        assert engine.counts().waiting == 2
        assert engine.counts().refused == 1
    finally:
        gate.set()
        engine.close(grace=30)
    assert [type(item) for item in box] == [Finished] * 3  # those that wait end, too
    with pytest.raises(EngineClosed, match="shutting down"):
        engine.submit(*small(pipe), box.append)


def test_nobody_waits_for_what_was_cancelled_or_is_late(pipe):
    engine, gate, box = Engine(max_rows=8), threading.Event(), []
    try:
        engine.submit(waiting_task(gate), 1, box.append)
        cancelled, late, in_time = [], [], []
        job = engine.submit(*small(pipe), cancelled.append)
        engine.submit(*small(pipe), late.append, deadline=time.monotonic() - 1)
        engine.submit(*small(pipe), in_time.append, deadline=time.monotonic() + 60)
        job.cancel()
        gate.set()
    finally:
        engine.close(grace=30)
    assert cancelled == []
    assert isinstance(late[0].error, DeadlinePassed)
    assert isinstance(in_time[0], Finished)
    counts = engine.counts()
    assert (counts.cancelled, counts.late, counts.finished, counts.failed) == (1, 1, 2, 0)


def test_what_fails_fails_alone(pipe, engine):
    """A task of ours that raises, in the middle of the others."""

    def broken():
        task, _ = small(pipe)
        work = next(task)
        for _ in range(3):
            work = task.send((yield work))
        raise ValueError("the picture is wrong")

    boxes = [[], [], []]
    for task, rows, box in ((*small(pipe), boxes[0]), (broken(), 1, boxes[1]), (*small(pipe, seed=9), boxes[2])):
        engine.submit(task, rows, box.append)
    engine.close(grace=60)
    assert str(boxes[1][0].error) == "the picture is wrong"
    for box, seed in ((boxes[0], 1), (boxes[2], 9)):
        expected = pipe(WORDS[0], path="vq", seed=seed, guidance_scale=1).images[0]
        assert box[0].result[0].tobytes() == expected.tobytes()


def test_the_end_ends_everything(pipe):
    """What runs longer than the grace is told so, and nothing is left behind."""
    engine, boxes = Engine(max_rows=1), [[], []]
    before = threading.active_count()
    started = threading.Event()

    def busy():
        task, _ = small(pipe)
        work = next(task)
        started.set()
        work = task.send((yield work))
        while True:  # never ends: the backbone reads the same for it again and again
            yield work

    engine.submit(busy(), 1, boxes[0].append)
    engine.submit(*small(pipe), boxes[1].append)
    assert started.wait(30)
    engine.close(grace=0.05)
    for box in boxes:
        assert isinstance(box[0], Failed)
        assert isinstance(box[0].error, EngineClosed)
    assert threading.active_count() < before
    assert not engine.is_alive


def test_a_client_that_cannot_be_told_has_hung_up(pipe, engine):
    def gone(item) -> None:
        raise RuntimeError("Event loop is closed")

    engine.submit(*small(pipe, preview_every=2), gone)
    assert len(engine.make(*small(pipe))) == 1  # the engine goes on
    assert engine.counts().cancelled == 1


def test_a_turn_by_itself_ends_when_nobody_asks(pipe):
    """`events_of` closes its task, and `run` leaves events out."""
    closed = []

    def task():
        try:
            yield "one"
            yield "two"
            return 3
        finally:
            closed.append(True)

    events = events_of(task())
    assert next(events) == "one"
    events.close()
    assert closed == [True]
    assert run(task()) == 3
