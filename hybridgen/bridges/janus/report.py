"""What a conversion would do, before it does it: tensors compared with the model that the config describes, in a table;
and what the new layout cannot carry.

It reads headers, not weights. A dtype that differs is no error (it is kept, tensor by tensor); a shape that differs, or
a tensor too many or too few, is one.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from hybridgen.bridges.janus.checkpoint import GUIDANCE, LAYOUT_GENERATION_KEYS, JanusCheckpoint, generation_settings
from hybridgen.bridges.janus.configs import expected_shapes, lost_settings, unsupported_by_deepseek
from hybridgen.bridges.janus.prompts import begins_texts, chat_template, template_of, transformers_template
from hybridgen.bridges.weights import common_dtype
from hybridgen.core.files import read_json


@dataclass(frozen=True)
class Comparison:
    """Tensors of a checkpoint beside those that its config makes, by transformers' names.

    Args:
        mapped: tensors that fit.
        missing: name -> shape.
        shapes, dtypes: of tensors that differ, name -> (the checkpoint's, the config's).
    """

    mapped: list[str]
    missing: dict[str, tuple[int, ...]]
    unexpected: list[str]
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    dtypes: dict[str, tuple[torch.dtype, torch.dtype]]


def compare(janus: JanusCheckpoint) -> Comparison:
    """Compare a checkpoint's tensors with those that its config makes."""
    expected, tensors, dtype = expected_shapes(janus.config), janus.tensors, janus.dtype
    both = [name for name in tensors if name in expected]
    return Comparison(
        mapped=[name for name in both if tensors[name].shape == expected[name]],
        missing={name: shape for name, shape in expected.items() if name not in tensors},
        unexpected=[name for name in tensors if name not in expected],
        shapes={name: (tensors[name].shape, expected[name]) for name in both if tensors[name].shape != expected[name]},
        dtypes={name: (tensors[name].dtype, dtype) for name in both if tensors[name].dtype != dtype},
    )


def check_weights(janus: JanusCheckpoint) -> None:
    """Raises ValueError, in one sentence, when the tensors are not those of the config."""
    compared = compare(janus)
    more = "; hybridgen convert --dry-run shows all"
    for name in compared.missing:
        raise ValueError(f"{janus.folder} lacks {len(compared.missing)} of its tensors, such as {name}{more}")
    for name in compared.unexpected:
        raise ValueError(
            f"{janus.folder} has {len(compared.unexpected)} tensors that no Janus has, such as {name}{more}"
        )
    for name, (shape, expected) in compared.shapes.items():
        raise ValueError(f"{janus.folder} has {name} of shape {shape}, but its config makes it {expected}{more}")


def report_lines(janus: JanusCheckpoint, to: str) -> Iterator[str]:
    """The table that `--dry-run` prints."""
    compared = compare(janus)
    yield f"{janus.folder}: {janus.layout} -> {to}"
    yield ""
    yield from _parts(janus)
    yield ""
    yield f"mapped       {len(compared.mapped)}"
    yield from _listed("missing", {name: f"expected {shape}" for name, shape in compared.missing.items()})
    yield from _listed("unexpected", {name: str(janus.tensors[name].shape) for name in compared.unexpected})
    yield from _listed("other shape", {name: f"{a}, expected {b}" for name, (a, b) in compared.shapes.items()})
    yield from _listed(
        "other dtype", {name: f"{_short(a)}, most {_short(b)}" for name, (a, b) in compared.dtypes.items()}
    )
    yield from _listed("left out", janus.dropped)
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
    yield from _listed("lost", losses)


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
        yield from _only_in_hybridgen(janus)


def _lost_dtypes(janus: JanusCheckpoint, to: str) -> Iterator[str]:
    """Parts whose config says another dtype than that of the whole; every tensor keeps its own."""
    kept = {"janus-hf": ("text_config", "vision_config", "vq_config"), "hybridgen": ("vq_config",)}.get(to, ())
    whole = janus.said_dtype()
    for part in ("text_config", "vision_config", "vq_config"):
        if part not in kept and (said := janus.said_dtype(part)) != whole:
            yield f"config.json cannot say {part}.dtype {_short(said)!r}: it will be read as {_short(whole)!r}"


def _lost_generation(janus: JanusCheckpoint, to: str) -> Iterator[str]:
    settings = generation_settings(janus.folder / "model" if janus.layout == "hybridgen" else janus.folder)
    if settings.get("guidance_scale") not in (None, GUIDANCE):
        yield f"generation_config.json: guidance_scale {settings['guidance_scale']}; a Janus is drawn with {GUIDANCE}"
    not_lost = (*LAYOUT_GENERATION_KEYS, "use_cache", "bos_token_id", "eos_token_id", "pad_token_id")
    for name, value in settings.items():
        changes = to == "janus-official" or getattr(janus.generation_config, name, None) != value
        if changes and name not in not_lost and value not in (None, False):
            yield f"generation_config.json: {name} {value}"


def _only_in_hybridgen(janus: JanusCheckpoint) -> Iterator[str]:
    """Folders beside the model that only hybridgen's layout has."""
    index = read_json(janus.folder / "model_index.json")
    for part in ("vae", "scheduler"):
        if isinstance(index.get(part), list) and index[part][0] is not None:
            yield f"{part}/, which belongs to the diffusion path"
    for path, settings in (index.get("sampling_defaults") or {}).items():
        for name, value in settings.items():
            if (path, name, value) != ("vq", "guidance_scale", GUIDANCE):
                yield f"model_index.json: {name} {value} as the default of the {path} path"


def _parts(janus: JanusCheckpoint) -> Iterator[str]:
    """One line for each part of the model."""
    parts: dict[str, list] = {}
    for name, tensor in janus.tensors.items():
        parts.setdefault(name.removeprefix("model.").split(".")[0], []).append(tensor)
    yield f"{'part':<24}{'tensors':>8}{'parameters':>16}  dtype"
    for part, tensors in [*parts.items(), ("all", list(janus.tensors.values()))]:
        dtypes = {_short(tensor.dtype) for tensor in tensors}
        kind = _short(common_dtype(tensors)) + (" and others" if len(dtypes) > 1 else "")
        yield f"{part:<24}{len(tensors):>8}{sum(tensor.size for tensor in tensors):>16,}  {kind}"


def _listed(what: str, names: dict[str, str]) -> Iterator[str]:
    yield f"{what:<12} {len(names)}"
    for name, note in names.items():
        yield f"  {name}  {note}".rstrip()


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
