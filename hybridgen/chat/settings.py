"""The settings of a turn of a conversation, and from them how its pictures are drawn.

A setting that is None is not off: it is as the checkpoint's folder or the package says (`sampling.settings`).
"""

from dataclasses import dataclass, replace

from hybridgen.core.names import REREAD, WRITING_PATHS
from hybridgen.core.values import choice, listed, shown, text, whole_number
from hybridgen.sampling.codes import CodeSampling
from hybridgen.sampling.seeds import check_seed
from hybridgen.sampling.settings import (
    OF_PATH,
    DrawingSetup,
    check_values,
    guidance_of,
    scales_of,
    text_sampling,
)

PLAN_ITEMS = ("text", "image")
DEFAULT_MAX_TOKENS, DEFAULT_MAX_IMAGES = 256, 4  # where a turn sets no other limit


@dataclass(frozen=True)
class TurnSettings:
    """How a turn is made. What it shares with a call of the pipeline means the same there.

    Args:
        plan: such as ["image", "text"], one picture and then a caption; None = the model decides: it writes until its
            end of text, and draws where it writes the token that begins an image. A text of a plan before a picture
            ends there too.
        read: path by which the user's pictures are read; None = the first that the model has.
        reread: path by which the assistant's pictures are read in what follows, as Janus' understanding is apart from
            its drawing; `drawn` = their tokens stay as they were drawn, so that nothing is computed again; None = as
            the checkpoint's folder says (`sampling_defaults`, under `chat`), else `drawn`.
        path: by which pictures are drawn; None = the first that the model has.
        max_new_tokens: of text in the turn, or in each text of a plan; None = up to 256, as many as there is room for.
        max_images: where the model decides; None = up to 4, as many as there is room for.
        text_temperature, text_top_k, text_top_p: of the words, which are the likeliest where all are None, or the
            temperature is 0.
        seed: of words and pictures; the turn's i-th picture is drawn with `seed + i`. None = another each time.
        preview_every: steps (or codes) from one preview to the next; None = no previews.
        precision: that the turn is read, written and drawn in. What was read in another is read again.
    """

    plan: list[str] | tuple[str, ...] | None = None
    read: str | None = None
    reread: str | None = None
    path: str | None = None
    max_new_tokens: int | None = None
    max_images: int | None = None
    text_temperature: float | None = None
    text_top_k: int | None = None
    text_top_p: float | None = None
    seed: int | None = None
    preview_every: int | None = None
    height: int | None = None
    width: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    guidance_rescale: float | None = None
    guidance_interval: list[float] | tuple[float, float] | None = None
    negative_prompt: str | None = None
    guider: object | None = None
    shift: float | None = None
    forecast: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    precision: str | None = None
    window: int | None = None

    @property
    def text_sampling(self) -> CodeSampling:
        """How the tokens of a text are drawn."""
        try:
            return text_sampling(None, self.text_temperature, self.text_top_k, self.text_top_p)
        except ValueError as error:
            raise ValueError(f"text_{error}") from error

    def __post_init__(self):
        """Everything as plain Python. Raises ValueError for what means nothing, whatever the model."""
        plan = self.plan if self.plan is None else listed(self.plan)
        if self.plan is not None and (
            not plan or not all(isinstance(item, str) and item in PLAN_ITEMS for item in plan)
        ):
            raise ValueError(
                f"plan is {shown(self.plan)}; give a list of {' and '.join(map(repr, PLAN_ITEMS))}, or None"
            )
        if plan is not None and self.max_images is not None:
            raise ValueError("a plan says how many images there are; leave max_images out")
        checked = {"plan": plan, **check_values(vars(self))}
        for name in ("max_new_tokens", "max_images", "preview_every", "height", "width"):
            if (count := getattr(self, name)) is not None:
                checked[name] = whole_number(name, count)
        if self.seed is not None:
            checked["seed"] = check_seed(self.seed)
        if self.reread is not None:
            choice("reread", self.reread, REREAD)
        if self.negative_prompt is not None:
            text("negative_prompt", self.negative_prompt)
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        self.text_sampling  # noqa: B018  (refuses what means nothing)


@dataclass(frozen=True)
class TurnImages:
    """How the pictures of a turn are drawn: everything filled in, and checked.

    Args:
        setup: what they share with those of a call of the pipeline.
        size: height and width in pixels.
        tokens: of each, its frame not counted.
    """

    setup: DrawingSetup
    size: tuple[int, int]
    tokens: int

    @classmethod
    def of(cls, pipe, request: TurnSettings) -> "TurnImages | None":
        """None where nothing is to be drawn: by the plan, or as the model has no path that draws. Raises ValueError for
        what could not be drawn."""
        planned = "image" in (request.plan or ())
        if request.path is None and not planned and not set(WRITING_PATHS) & set(pipe.model.config.paths):
            return None
        path = pipe.writing_path(request.path)
        guidance_of(request.guider)  # refused also where no picture is planned
        if request.plan is not None and not planned:
            return None
        overrides = {name: getattr(request, name, None) for name in OF_PATH[path]}
        setup = pipe.drawing_setup(path, request.guider, **overrides)
        settings = setup.settings
        scale = scales_of("guidance_scale", settings["guidance_scale"], 1)[0]
        pipe.check_conditions(None, None, scales_of("image_guidance_scale", settings["image_guidance_scale"], 1), 1)
        size = pipe.check_sizes([request.height], [request.width], path)[0]
        setup = replace(setup, guidance=replace(setup.guidance, scale=scale, image_scale=1.0))
        return cls(setup, size, pipe.processor.count_tokens(path, *size))

    @property
    def path(self) -> str:
        return self.setup.path

    @property
    def guided(self) -> bool:
        return self.setup.guidance.scale != 1
