"""What a conversion would do, before it does it: tensors compared with the model that the config describes, in a table;
and what the new layout cannot carry.

It reads headers, not weights. The fact a newcomer gets wrong: a dtype that differs is no error (it is kept, tensor by
tensor), while a shape that differs, or a tensor too many or too few, is one.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from hybridgen.bridges.janus.checkpoint import GUIDANCE, OWN_GENERATION, Janus, generation_settings
from hybridgen.bridges.janus.configs import expected_shapes, not_deepseeks, unsaid
from hybridgen.bridges.janus.prompts import begins_texts, chat_template, template_of, transformers_template
from hybridgen.bridges.weights import common_dtype, read_json


@dataclass(frozen=True)
class Comparison:
    """Tensors by transformers' names. `shapes` and `dtypes` hold (found, expected)."""

    mapped: list[str]
    missing: dict[str, tuple[int, ...]]
    unexpected: list[str]
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    dtypes: dict[str, tuple[torch.dtype, torch.dtype]]


def compare(janus: Janus) -> Comparison:
    """A checkpoint's tensors against those that its config makes."""
    expected, found, dtype = expected_shapes(janus.config), janus.tensors, janus.dtype
    both = [name for name in found if name in expected]
    return Comparison(
        mapped=[name for name in both if found[name].shape == expected[name]],
        missing={name: shape for name, shape in expected.items() if name not in found},
        unexpected=[name for name in found if name not in expected],
        shapes={name: (found[name].shape, expected[name]) for name in both if found[name].shape != expected[name]},
        dtypes={name: (found[name].dtype, dtype) for name in both if found[name].dtype != dtype},
    )


def check_weights(janus: Janus) -> None:
    """Raises ValueError, in one sentence, when the tensors are not those of the config."""
    found = compare(janus)
    more = "; hybridgen convert --dry-run shows all"
    for name in found.missing:
        raise ValueError(f"{janus.folder} lacks {len(found.missing)} of its tensors, such as {name}{more}")
    for name in found.unexpected:
        raise ValueError(f"{janus.folder} has {len(found.unexpected)} tensors that no Janus has, such as {name}{more}")
    for name, (shape, expected) in found.shapes.items():
        raise ValueError(f"{janus.folder} has {name} of shape {shape}, but its config makes it {expected}{more}")


def in_table(janus: Janus, to: str) -> Iterator[str]:
    """The table that `--dry-run` prints."""
    found = compare(janus)
    yield f"{janus.folder}: {janus.layout} -> {to}"
    yield ""
    yield from _parts(janus)
    yield ""
    yield f"mapped       {len(found.mapped)}"
    yield from _listed("missing", {name: f"expected {shape}" for name, shape in found.missing.items()})
    yield from _listed("unexpected", {name: str(janus.tensors[name].shape) for name in found.unexpected})
    yield from _listed("other shape", {name: f"{a}, expected {b}" for name, (a, b) in found.shapes.items()})
    yield from _listed("other dtype", {name: f"{_short(a)}, most {_short(b)}" for name, (a, b) in found.dtypes.items()})
    yield from _listed("left out", janus.dropped)
    yield ""
    yield f"head         {'tied to the embeddings' if janus.config.tie_word_embeddings else 'untied'}"
    for kind, (name, token_id) in janus.token_ids.items():
        yield f"{kind:<12} {token_id}  {name}"
    yield f"prompts      {janus.style} ({janus.style_told_by})"
    images = janus.image_processor
    size, mean, std = images.image_size, images.image_mean, images.image_std
    yield f"images       {size} pixels, mean {mean}, std {std}, pad {images.pad_value}"
    yield ""
    losses = dict.fromkeys(lost(janus, to), "")  # last, for it needs a config that is sound
    yield from _listed("lost", losses)


def lost(janus: Janus, to: str) -> Iterator[str]:
    """What else than tensors the new layout cannot carry, or the new model's library cannot open, one thing each."""
    for name, (here, there) in unsaid(janus.config, to, janus.tensors, janus.dtype).items():
        yield f"config.json cannot say {name} {here!r}: it will be read as {there!r}"
    if to == "janus-official":
        yield from (f"DeepSeek's own code cannot open {part}; hybridgen can" for part in not_deepseeks(janus.config))
    yield from _lost_generation(janus, to)
    ours = janus.layout == "hybridgen"
    template = template_of(janus.folder / "processor" if ours else janus.folder)
    usual = chat_template(janus.style, begins_texts(janus.tokenizer)) if ours else transformers_template(janus.style)
    if template not in (None, usual):
        yield f"the chat template: that of {janus.style} takes its place, which may write prompts otherwise"
    if ours and to != "hybridgen":
        yield from _only_ours(janus)


def _lost_generation(janus: Janus, to: str) -> Iterator[str]:
    said = generation_settings(janus.folder / "model" if janus.layout == "hybridgen" else janus.folder)
    if said.get("guidance_scale") not in (None, GUIDANCE):
        yield f"generation_config.json: guidance_scale {said['guidance_scale']}; a Janus is drawn with {GUIDANCE}"
    usual = (*OWN_GENERATION, "use_cache", "bos_token_id", "eos_token_id", "pad_token_id")
    for name, value in said.items():
        gone = to == "janus-official" or getattr(janus.generation, name, None) != value
        if gone and name not in usual and value not in (None, False):
            yield f"generation_config.json: {name} {value}"


def _only_ours(janus: Janus) -> Iterator[str]:
    """What stands beside the model in our layout, and in no other."""
    index = read_json(janus.folder / "model_index.json")
    for part in ("vae", "scheduler"):
        if isinstance(index.get(part), list) and index[part][0] is not None:
            yield f"{part}/, which belongs to the diffusion path"


def _parts(janus: Janus) -> Iterator[str]:
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
