"""What a conversion would do, before it does it: tensors compared with the model that the config describes, in a table
(`bridges.comparison`); and what the new layout cannot carry.
"""

from collections.abc import Iterator

from hybridgen.bridges.comparison import (
    Comparison,
    check_compared,
    compare_tensors,
    comparison_lines,
    listed,
    short,
)
from hybridgen.bridges.folders import begins_texts, generation_settings, only_in_hybridgen, template_of
from hybridgen.bridges.janus.checkpoint import GUIDANCE, LAYOUT_GENERATION_KEYS, SAMPLING, JanusCheckpoint
from hybridgen.bridges.janus.configs import expected_shapes, lost_settings, unsupported_by_deepseek
from hybridgen.bridges.janus.prompts import chat_template, transformers_template


def compare(janus: JanusCheckpoint) -> Comparison:
    """Compare a checkpoint's tensors with those that its config makes, by transformers' names."""
    return compare_tensors(janus.tensors, expected_shapes(janus.config))


def check_weights(janus: JanusCheckpoint) -> None:
    """Raises ValueError, in one sentence, when the tensors are not those of the config."""
    check_compared(janus.folder, compare(janus), "Janus")


def report_lines(janus: JanusCheckpoint, to: str) -> Iterator[str]:
    """The table that `--dry-run` prints."""
    yield f"{janus.folder}: {janus.layout} -> {to}"
    yield ""
    yield from comparison_lines(janus.tensors, compare(janus), janus.dropped)
    yield ""
    yield f"head         {'tied to the embeddings' if janus.config.tie_word_embeddings else 'untied'}"
    for kind, (name, token_id) in janus.token_ids.items():
        yield f"{kind:<12} {token_id}  {name}"
    yield f"prompts      {janus.style} ({janus.style_found_by})"
    images = janus.image_processor
    size, mean, std = images.image_size, images.image_mean, images.image_std
    yield f"images       {size} pixels, mean {mean}, std {std}, pad {images.pad_value}"
    yield ""
    losses = dict.fromkeys(lost(janus, to), "")  # last, as it fails if the config is not sound
    yield from listed("lost", losses)


def lost(janus: JanusCheckpoint, to: str) -> Iterator[str]:
    """Settings that the new layout cannot hold, and parts that the new model's library cannot open, one per line."""
    for name, (here, there) in lost_settings(janus.config, to, janus.tensors, janus.dtype).items():
        yield f"config.json cannot say {name} {here!r}: it will be read as {there!r}"
    yield from _lost_dtypes(janus, to)
    if to == "janus-official":
        yield from (
            f"DeepSeek's own code cannot open {part}; hybridgen can" for part in unsupported_by_deepseek(janus.config)
        )
    yield from _lost_generation(janus, to)
    is_ours = janus.layout == "hybridgen"
    if is_ours:
        template = template_of(janus.folder / "processor")
        default = chat_template(janus.style, begins_texts(janus.tokenizer))
    else:
        template, default = template_of(janus.folder), transformers_template(janus.style)
    if template not in (None, default):
        yield f"the chat template: that of {janus.style} takes its place, which may write prompts otherwise"
    if is_ours and to != "hybridgen":
        yield from only_in_hybridgen(janus.folder, SAMPLING)


def _lost_dtypes(janus: JanusCheckpoint, to: str) -> Iterator[str]:
    """Parts whose config says another dtype than that of the whole; every tensor keeps its own."""
    kept = {"janus-hf": ("text_config", "vision_config", "vq_config"), "hybridgen": ("vq_config",)}.get(to, ())
    whole = janus.said_dtype()
    for part in ("text_config", "vision_config", "vq_config"):
        if part not in kept and (said := janus.said_dtype(part)) != whole:
            yield f"config.json cannot say {part}.dtype {short(said)!r}: it will be read as {short(whole)!r}"


def _lost_generation(janus: JanusCheckpoint, to: str) -> Iterator[str]:
    settings = generation_settings(janus.folder / "model" if janus.layout == "hybridgen" else janus.folder)
    if settings.get("guidance_scale") not in (None, GUIDANCE):
        yield f"generation_config.json: guidance_scale {settings['guidance_scale']}; a Janus is drawn with {GUIDANCE}"
    not_lost = (*LAYOUT_GENERATION_KEYS, "use_cache", "bos_token_id", "eos_token_id", "pad_token_id")
    for name, value in settings.items():
        changes = to == "janus-official" or getattr(janus.generation_config, name, None) != value
        if changes and name not in not_lost and value not in (None, False):
            yield f"generation_config.json: {name} {value}"
