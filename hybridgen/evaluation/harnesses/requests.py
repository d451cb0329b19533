"""What a harness asks, as the pipeline is asked: settings of a reply, and what a harness' words for them mean.

Harnesses name the same things differently, and most of their settings are of one library or another. A setting that
changes what is written is obeyed or refused; one that says nothing here is named.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from hybridgen.core.values import listed, shown

LIMIT = 256  # new tokens of a reply where a task does not say: lm-eval's own default
NOTHING_SAID = {  # settings of `transformers.generate` -> the values that mean nothing here
    "num_beams": (None, 1),
    "num_return_sequences": (None, 1),
    "repetition_penalty": (None, 1),
    "length_penalty": (None, 0, 1),
    "use_cache": (None, True),
    "visual_cot": (None, False, True),  # the kind of request says it
}


class ReplySettings(NamedTuple):
    """How a reply is written.

    Args:
        until: the texts that end it; they and what follows are cut off.
        sampling: `temperature`, `top_k`, `top_p`, `do_sample` of the pipeline's `reply`; empty = the likeliest words.
    """

    max_new_tokens: int
    until: tuple[str, ...]
    sampling: tuple[tuple[str, Any], ...]


def reply_settings(given: dict, task: str, tell: Callable[[str], None]) -> ReplySettings:
    """A harness' `generation_kwargs` of a task.

    Args:
        tell: is given what is ignored, in a sentence each.

    Words are drawn where the temperature is above 0 and `do_sample` does not forbid it, or where `do_sample` alone asks
    for it.

    Raises:
        ValueError: a setting asks for what is not done here.
    """
    given = dict(given or {})
    limits = [given.pop(name, None) for name in ("max_new_tokens", "max_gen_toks")]
    until, do_sample = given.pop("until", None), given.pop("do_sample", None)
    until = [until] if isinstance(until, str) else listed(until) or []
    if not all(isinstance(one, str) for one in until):
        raise ValueError(f"task {task} asks to write until {shown(until)}; give a text or a list of texts")
    drawn = {name: value for name in ("temperature", "top_k", "top_p") if (value := given.pop(name, None)) is not None}
    samples = bool(drawn.get("temperature")) if do_sample is None else bool(do_sample) and drawn.get("temperature") != 0
    for name, meaningless in NOTHING_SAID.items():
        if (value := given.pop(name, None)) not in meaningless:
            raise ValueError(
                f"task {task} asks for {name} {shown(value)}, which is not done here; to go without, add "
                f"--gen_kwargs {name}={meaningless[-1]}"
            )
    for name in sorted(given):
        tell(f"{name} of task {task}'s generation_kwargs says nothing to hybridgen; ignored")
    sampling = {**drawn, "do_sample": True} if samples else {}
    limit = next((limit for limit in limits if limit is not None), LIMIT)
    return ReplySettings(limit, tuple(one for one in until if one), tuple(sorted(sampling.items())))


def cut(text: str, until: tuple[str, ...]) -> str:
    """A text up to the first of those that end it."""
    return text[: min((place for one in until if (place := text.find(one)) >= 0), default=len(text))]
