"""A stand-in for a pipeline that does all right, or all wrong: it draws what a prompt of `shapes` says, and answers by
reading the picture exactly. So a suite's own arithmetic is tested, not a model. Not a test itself."""

import math
from types import SimpleNamespace

import numpy as np

from hybridgen.data.synthetic import shapes
from hybridgen.evaluation.work import Work
from hybridgen.sampling.likelihood import Likelihood
from hybridgen.sampling.settings import settings_of


class Painter:
    """Draws `prompt` as it says, or (`wrong`) one heart more; with `size` pixels a side."""

    device = "cpu"
    processor = SimpleNamespace(default_size=(32, 32))
    model = SimpleNamespace(config=SimpleNamespace(paths=("understanding", "diffusion")))

    def __init__(self, wrong: bool = False):
        self.wrong, self.calls = wrong, []

    def __call__(self, prompts, seed, height=None, width=None, **how):
        self.calls += list(zip(prompts, seed, strict=True))
        return SimpleNamespace(images=[self.draw(*one, height or 32) for one in zip(prompts, seed, strict=True)])

    def check_call(self, prompts, path, height, width, **how):
        """It draws whatever it is asked to."""

    def sampling_settings(self, path, **overrides):
        return settings_of(path, {}, overrides)

    def draw(self, prompt: str, seed: int, size: int):
        asked = shapes.parse_caption("one heart" if self.wrong else prompt)
        return shapes.render(shapes.complete(asked, np.random.default_rng(seed)), size)

    def answer(self, images, questions, **how):
        return [
            "yes" if self.knows(image, question) else "no" for image, question in zip(images, questions, strict=True)
        ]

    def score_answers(self, images, questions, answers, path):
        """Sure to 3/4 of the right word, as "yes" or "Yes" in equal parts."""
        weighed = []
        for image, question, answer in zip(images, questions, answers, strict=True):
            right = ("yes" if self.knows(image, question) else "no") == answer.lower()
            weighed.append(Likelihood(math.log(0.375 if right else 0.125), 2))
        return weighed

    @staticmethod
    def knows(image, question: str) -> bool:
        """Whether a picture shows what "Is there a red circle?" asks."""
        (seen,) = shapes.nearest_specs(np.asarray(image)[None])
        words = question.lower().split("?")[0].removeprefix("is there ")
        return shapes.judge_pictures(np.asarray(image)[None], [shapes.parse_caption(words)])[0]["pictures"] and bool(
            seen.things
        )


def work_of(painter: Painter, suite: str, out=None, **how) -> Work:
    """What the suite is handed when this painter is evaluated."""
    return Work(painter, suite, ("diffusion",), ("understanding",), options=how.pop("options", {}), out=out, **how)
