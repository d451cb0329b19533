"""What a conversion would do, before it does it: tensors compared with the model that the config describes, in a table
(`bridges.comparison`); and what the new layout cannot carry, or does otherwise.
"""

from collections.abc import Iterator

from hybridgen.bridges.chameleon.checkpoint import ChameleonCheckpoint
from hybridgen.bridges.chameleon.configs import code_tokens, expected_shapes
from hybridgen.bridges.chameleon.prompts import differences
from hybridgen.bridges.comparison import Comparison, check_compared, compare_tensors, comparison_lines, listed
from hybridgen.bridges.folders import LIBRARY_KEYS, generation_settings, only_in_hybridgen, other_tokens

# as Meta's code draws (facebookresearch/chameleon, chameleon/inference/chameleon.py, Options.Image and Options)
SAMPLING = {"vq": {"guidance_scale": 3.0, "temperature": 0.7, "top_p": 0.9}}


def compare(opened: ChameleonCheckpoint) -> Comparison:
    """Compare a checkpoint's tensors with those that its config makes, by transformers' names."""
    return compare_tensors(opened.tensors, expected_shapes(opened.config, opened.has_decoder))


def check_weights(opened: ChameleonCheckpoint) -> None:
    """Raises ValueError, in one sentence, when the tensors are not those of the config."""
    check_compared(opened.folder, compare(opened), "Chameleon")


def report_lines(opened: ChameleonCheckpoint, to: str) -> Iterator[str]:
    """The table that `--dry-run` prints."""
    yield f"{opened.folder}: {opened.layout} -> {to}"
    yield ""
    yield from comparison_lines(opened.tensors, compare(opened), opened.dropped)
    yield ""
    config, ids = opened.config, code_tokens(opened.config)
    yield f"head         {'tied to the embeddings' if config.tie_word_embeddings else 'untied'}"
    yield f"norms        {'behind attention and feed-forward (swin_norm)' if config.swin_norm else 'before them'}"
    in_a_row = ids == list(range(ids[0], ids[0] + len(ids)))
    yield f"codes        {len(ids)}, tokens {min(ids)} to {max(ids)}{'' if in_a_row else ', not in the order of codes'}"
    for kind, (name, token_id) in opened.token_ids.items():
        yield f"{kind:<12} {token_id}  {name}"
    yield f"images       {opened.side} pixels, {'read and drawn' if opened.has_decoder else 'read only: no decoder'}"
    yield ""
    yield from listed("lost", dict.fromkeys(lost(opened, to), ""))


def lost(opened: ChameleonCheckpoint, to: str) -> Iterator[str]:
    """What the new layout cannot hold, or does otherwise, one per line."""
    is_ours = opened.layout == "hybridgen"
    if to == "hybridgen" and not is_ours:
        yield from differences(opened.folder)
        yield from other_tokens(opened.tokenizer, opened.token_ids["image"][0])
    if to == "hybridgen" and not opened.has_decoder:
        yield "pictures cannot be drawn: the checkpoint has no decoder of its VQ tokenizer; give it as --vq-decoder"
    if to == "chameleon-hf" and opened.has_decoder:
        yield "transformers' Chameleon does not read the decoder of the VQ tokenizer, which is written all the same"
    for name, value in generation_settings(opened.folder / "model" if is_ours else opened.folder).items():
        if name not in LIBRARY_KEYS and getattr(opened.generation_config, name, None) != value:
            yield f"generation_config.json: {name} {value}"
    if is_ours and to != "hybridgen":
        yield from only_in_hybridgen(opened.folder, SAMPLING)
