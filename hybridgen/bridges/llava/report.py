"""What a conversion would do, before it does it: tensors compared with the model that the config describes, in a table
(`bridges.comparison`); and what the new layout cannot carry, or does otherwise.
"""

from collections.abc import Iterator

from hybridgen.bridges.comparison import Comparison, check_compared, compare_tensors, comparison_lines, listed
from hybridgen.bridges.folders import LIBRARY_KEYS, generation_settings, only_in_hybridgen, other_tokens
from hybridgen.bridges.llava.checkpoint import LlavaCheckpoint
from hybridgen.bridges.llava.configs import expected_shapes
from hybridgen.bridges.llava.prompts import differences, image_token


def compare(opened: LlavaCheckpoint) -> Comparison:
    """Compare a checkpoint's tensors with those that its config makes, by our names."""
    return compare_tensors(opened.tensors, expected_shapes(opened.hybrid))


def check_weights(opened: LlavaCheckpoint) -> None:
    """Raises ValueError, in one sentence, when the tensors are not those of the config."""
    check_compared(opened.folder, compare(opened), "LLaVA")


def report_lines(opened: LlavaCheckpoint, to: str) -> Iterator[str]:
    """The table that `--dry-run` prints."""
    yield f"{opened.folder}: {opened.layout} -> {to}"
    yield ""
    yield from comparison_lines(opened.tensors, compare(opened), opened.dropped)
    yield ""
    hybrid, images, name = opened.hybrid, opened.images, image_token(opened.tokenizer)
    yield f"head         {'tied to the embeddings' if hybrid.tie_word_embeddings else 'untied'}"
    yield f"backbone     {hybrid.text_config.model_type}"
    layers = hybrid.vision_feature_layer
    yield f"tower        {hybrid.vision_config.model_type}, layer {layers}, {hybrid.image_tokens} features of a picture"
    yield f"image        {hybrid.image_token_id}  {name}"
    yield f"images       {images.image_size} pixels, mean {images.image_mean}, std {images.image_std}"
    yield ""
    yield from listed("lost", dict.fromkeys(lost(opened, to), ""))


def lost(opened: LlavaCheckpoint, to: str) -> Iterator[str]:
    """What the new layout cannot hold, or does otherwise, one per line."""
    is_ours = opened.layout == "hybridgen"
    if to == "hybridgen" and not is_ours:
        yield from differences(opened.folder)
        yield from other_tokens(opened.tokenizer, image_token(opened.tokenizer))
    for name, value in generation_settings(opened.folder / "model" if is_ours else opened.folder).items():
        if name not in LIBRARY_KEYS and getattr(opened.generation_config, name, None) != value:
            yield f"generation_config.json: {name} {value}"
    if is_ours and to != "hybridgen":
        yield from only_in_hybridgen(opened.folder, {})
