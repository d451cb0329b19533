"""A Chameleon checkpoint on disk, in either layout: recognised, checked, and described in one way.

No weight is read, except to compare head and embeddings, and the codebook of a decoder that is given beside it;
`conversion` makes pipelines and other layouts of it.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import ChameleonConfig, GenerationConfig, PreTrainedTokenizerFast

from hybridgen.bridges.chameleon.configs import chameleon_config, check_config
from hybridgen.bridges.chameleon.prompts import OURS, framing_of, side_of, token_names
from hybridgen.bridges.chameleon.tensor_names import DECODER, EMBEDDINGS, HEAD, VQ_PREFIX, is_dropped, joined
from hybridgen.bridges.folders import (
    VERSION_KEYS,
    config_of,
    friendly_config_errors,
    generation_of,
    kind_of,
    open_tokenizer,
    picture_settings,
    read_if_there,
    said_dtype,
    settle_tied_head,
    template_of,
)
from hybridgen.bridges.weight_names import is_of_path
from hybridgen.bridges.weights import StoredTensor, common_dtype, open_file, open_weights
from hybridgen.checkpoints.loading import check_checkpoint
from hybridgen.codecs.chameleon_vq import ChameleonVQConfig
from hybridgen.codecs.frozen import vq_downsample_factor
from hybridgen.configuration_hybridgen import HybridGenConfig
from hybridgen.core.files import read_json
from hybridgen.core.recognition import require_file, user_path

UNREAD, NO_PATH = "not read by any computation", "of a path that no Chameleon has"  # why a tensor is left out
_CODEBOOK = "quantize.embedding.weight"


@dataclass
class ChameleonCheckpoint:
    """A Chameleon checkpoint of either layout, described in transformers' terms. No weight is in memory.

    Args:
        layout: that of the folder.
        tensors: by transformers' names; those of the VQ tokenizer's decoder, which transformers does not know, as
            taming-transformers counts them.
        dropped: tensors that are left out, by their names in the folder, and why.
        template: the chat template; None = the folder has none.
        side: of a picture, in pixels.
        framing: how pictures are made values, one of `image_processing_hybridgen.FRAMINGS`.
    """

    folder: Path
    layout: str
    config: ChameleonConfig
    tensors: dict[str, StoredTensor]
    dropped: dict[str, str]
    tokenizer: PreTrainedTokenizerFast
    template: str | None
    side: int
    framing: str
    generation_config: GenerationConfig

    @property
    def has_decoder(self) -> bool:
        """Whether the VQ tokenizer can draw."""
        return any(name.startswith(DECODER) for name in self.tensors)

    def said_dtype(self, part: str | None = None) -> torch.dtype:
        """The dtype that the config says (of `vq_config`, or of the whole); where none, that of most numbers."""
        whole = said_dtype(self.folder, self.config.dtype, common_dtype(self.tensors.values()))
        return whole if part is None else said_dtype(self.folder, getattr(self.config, part).dtype, whole)

    @property
    def token_ids(self) -> dict[str, tuple[str, int]]:
        """The tokens of pictures, what pads, and what ends a prompt: kind -> (the token, its id)."""
        names = {"pad": self.tokenizer.pad_token, **token_names(self.tokenizer), "separator": self.tokenizer.sep_token}
        return {
            kind: (name, self.tokenizer.convert_tokens_to_ids(name)) for kind, name in names.items() if name is not None
        }


def is_chameleon(config: dict) -> bool:
    """Whether a config.json is that of a Chameleon in transformers' layout."""
    return config.get("model_type") == ChameleonConfig.model_type


def open_chameleon(folder: str | Path, vq_decoder: str | Path | None = None) -> ChameleonCheckpoint:
    """Open and check a checkpoint of either layout, without reading its weights.

    Args:
        vq_decoder: a file with the weights of the VQ tokenizer's decoder, which transformers' layout mostly lacks:
            `vqgan.ckpt` of Meta's release, or safetensors.

    Raises:
        ValueError: in one sentence, what the folder is or lacks. Shapes of weights are compared in `report`.
    """
    folder = user_path(folder)
    if (settings := config_of(folder)) is None:
        opened = _open_hybridgen(folder)
    elif is_chameleon(settings):
        opened = _open_transformers(folder, settings)
    else:
        raise ValueError(
            f"{folder} holds a {kind_of(settings)}, not a Chameleon; this converts Chameleons in transformers' layout, "
            "and checkpoints of hybridgen"
        )
    if vq_decoder is not None:
        _add_decoder(opened, user_path(vq_decoder))
    _check_tokens(opened)
    return opened


def _open_transformers(folder: Path, settings: dict) -> ChameleonCheckpoint:
    tensors = open_weights(folder)
    dropped = {name: UNREAD for name in tensors if is_dropped(name)}
    tensors = {name: tensor for name, tensor in tensors.items() if name not in dropped}
    with friendly_config_errors(folder / "config.json", "Chameleon"):
        config = ChameleonConfig.from_dict(settings)
        check_config(config)
        side, factor = side_of(folder, config.vq_config.resolution), vq_downsample_factor(config.vq_config.to_dict())
    settle_tied_head(config, tensors, dropped, HEAD, EMBEDDINGS)
    length = read_if_there(folder / "processor_config.json").get("image_seq_length", (side // factor) ** 2)
    if length != (side // factor) ** 2:
        raise ValueError(
            f"the processor in {folder} gives a picture {length} tokens, but one of {side} pixels has "
            f"{(side // factor) ** 2} codes"
        )
    parts = _tokenizer(folder), template_of(folder), side, framing_of(folder), generation_of(folder, VERSION_KEYS)
    return ChameleonCheckpoint(folder, "chameleon-hf", config, tensors, dropped, *parts)


def _open_hybridgen(folder: Path) -> ChameleonCheckpoint:
    check_checkpoint(folder)
    with friendly_config_errors(folder / "model" / "config.json", "Chameleon"):
        hybrid = HybridGenConfig.from_dict(read_json(folder / "model" / "config.json"))
        content = read_if_there(folder / "vq_model" / "config.json")
        is_ours = content.get("model_type") == ChameleonVQConfig.model_type
        vq = ChameleonVQConfig.from_dict(content) if is_ours else None
        config = chameleon_config(hybrid, vq)
        config.dtype = hybrid.dtype
        config.vq_config.dtype = None if vq.dtype == hybrid.dtype else vq.dtype
    model = open_weights(folder / "model")
    dropped = {name: NO_PATH for name in model if is_of_path(name)}
    model = {name: tensor for name, tensor in model.items() if name not in dropped}
    tensors = joined(model, open_weights(folder / "vq_model"), len(vq.channel_multiplier))
    processor = folder / "processor"
    side = hybrid.vq_config.sample_size * vq_downsample_factor(vq.to_dict())
    framing = picture_settings(processor).get("framing", OURS)
    generation = generation_of(folder / "model", VERSION_KEYS)
    parts = _tokenizer(processor), template_of(processor), side, framing, generation
    return ChameleonCheckpoint(folder, "hybridgen", config, tensors, dropped, *parts)


def _tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    tokenizer = open_tokenizer(folder, lambda one: [*token_names(one).values()], "Chameleon")
    if tokenizer.pad_token is None:
        raise ValueError(f"the tokenizer in {folder} names no pad_token; say it in tokenizer_config.json")
    return tokenizer


def _add_decoder(opened: ChameleonCheckpoint, file: Path) -> None:
    """Take the tensors of the VQ tokenizer's decoder from a file. Raises ValueError where it is another tokenizer's."""
    require_file("the file of the VQ tokenizer's decoder", file, "give vqgan.ckpt of Meta's release")
    if opened.has_decoder:
        raise ValueError(f"{opened.folder} has a decoder of its VQ tokenizer already; leave out {file}")
    tensors = {name.removeprefix(VQ_PREFIX): tensor for name, tensor in open_file(file).items()}
    decoder = {VQ_PREFIX + name: tensor for name, tensor in tensors.items() if name.startswith("decoder.")}
    if not decoder:
        raise ValueError(f"{file} has no tensors called decoder.*; give vqgan.ckpt of Meta's release")
    ours, theirs = opened.tensors.get(VQ_PREFIX + _CODEBOOK), tensors.get(_CODEBOOK)
    if ours is not None and theirs is not None:
        same = ours.shape == theirs.shape and torch.equal(ours.read(), theirs.read().to(ours.dtype))
        if not same:
            raise ValueError(f"{file} has another codebook than {opened.folder}: it is another VQ tokenizer's decoder")
    opened.tensors |= decoder


def _check_tokens(opened: ChameleonCheckpoint) -> None:
    """Raises ValueError when the tokenizer is another model's."""
    name, image = opened.token_ids["image"]
    said, rows = (opened.config.vocabulary_map or {}).get(name), opened.config.vocab_size
    if said is not None and said != image:
        raise ValueError(
            f"{opened.folder}: vocabulary_map says {said} for the token of images, but the tokenizer says {image}; "
            "take the tokenizer that belongs to the checkpoint"
        )
    for kind, (_, token_id) in opened.token_ids.items():
        if kind != "image" and token_id >= rows:  # the placeholder's embedding is never looked up
            raise ValueError(
                f"{opened.folder}: the tokenizer's {kind} token has id {token_id}, but the model has {rows} "
                "embeddings; take the tokenizer that belongs to the checkpoint"
            )
