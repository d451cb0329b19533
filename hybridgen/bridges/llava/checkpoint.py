"""A LLaVA checkpoint on disk, in either layout: recognised, checked, and described in one way.

No weight is read, except to compare head and embeddings; `conversion` makes pipelines and other layouts of it.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import GenerationConfig, LlavaConfig, PreTrainedTokenizerBase

from hybridgen.bridges.folders import (
    VERSION_KEYS,
    config_of,
    friendly_config_errors,
    generation_of,
    kind_of,
    open_tokenizer,
    said_dtype,
    settle_tied_head,
    template_of,
)
from hybridgen.bridges.llava.configs import EMBEDDINGS, HEAD, hybrid_config, llava_config
from hybridgen.bridges.llava.prompts import chat_template, image_token, open_images
from hybridgen.bridges.llava.tensor_names import from_transformers, is_dropped
from hybridgen.bridges.weights import StoredTensor, common_dtype, open_weights
from hybridgen.checkpoints.loading import check_checkpoint
from hybridgen.configuration_hybridgen import HybridGenConfig
from hybridgen.core.files import read_json
from hybridgen.core.recognition import user_path
from hybridgen.image_processing_hybridgen import HybridGenImageProcessor
from hybridgen.processing_hybridgen import HybridGenProcessor

UNREAD = "not read by any computation"  # why a tensor is left out


@dataclass
class LlavaCheckpoint:
    """A LLaVA checkpoint of either layout. No weight is in memory.

    Args:
        layout: that of the folder.
        tensors: by our names.
        dropped: tensors that are left out, by their names in the folder, and why.
        template: the chat template of our processor.
    """

    folder: Path
    layout: str
    config: LlavaConfig
    hybrid: HybridGenConfig
    tensors: dict[str, StoredTensor]
    dropped: dict[str, str]
    tokenizer: PreTrainedTokenizerBase
    template: str
    images: HybridGenImageProcessor
    generation_config: GenerationConfig

    @property
    def said_dtype(self) -> torch.dtype:
        """The dtype that the config says, by which libraries load a folder; where it says none, that of most
        numbers."""
        return said_dtype(self.folder, self.config.dtype, common_dtype(self.tensors.values()))


def is_llava(config: dict) -> bool:
    """Whether a config.json is that of a LLaVA 1.5 in transformers' layout."""
    return config.get("model_type") == LlavaConfig.model_type


def open_llava(folder: str | Path) -> LlavaCheckpoint:
    """Open and check a checkpoint of either layout, without reading its weights.

    Raises:
        ValueError: in one sentence, what the folder is or lacks. Shapes of weights are compared in `report`.
    """
    folder = user_path(folder)
    if (settings := config_of(folder)) is None:
        opened = _open_hybridgen(folder)
    elif is_llava(settings):
        opened = _open_transformers(folder, settings)
    else:
        raise ValueError(
            f"{folder} holds a {kind_of(settings)}, not a LLaVA; this converts LLaVA 1.5 in transformers' layout, and "
            "checkpoints of hybridgen"
        )
    name = image_token(opened.tokenizer)
    said, image = opened.config.image_token_id, opened.tokenizer.convert_tokens_to_ids(name)
    if said != image:
        raise ValueError(
            f"{folder}: config.json says {said} for the token of images, but the tokenizer says {image} for {name}; "
            "take the tokenizer that belongs to the checkpoint"
        )
    return opened


def _open_transformers(folder: Path, settings: dict) -> LlavaCheckpoint:
    tensors = open_weights(folder)
    dropped = {name: UNREAD for name in tensors if is_dropped(name)}
    tensors = from_transformers({name: tensor for name, tensor in tensors.items() if name not in dropped})
    with friendly_config_errors(folder / "config.json", "LLaVA"):
        config = LlavaConfig.from_dict(settings)
        settle_tied_head(config, tensors, dropped, HEAD, EMBEDDINGS)
        hybrid = hybrid_config(config)
    tokenizer = _tokenizer(folder)
    template = chat_template(template_of(folder), tokenizer)
    images = open_images(folder, hybrid.tower_size)
    parts = tensors, dropped, tokenizer, template, images, generation_of(folder, VERSION_KEYS)
    return LlavaCheckpoint(folder, "llava-hf", config, hybrid, *parts)


def _open_hybridgen(folder: Path) -> LlavaCheckpoint:
    check_checkpoint(folder)
    with friendly_config_errors(folder / "model" / "config.json", "LLaVA"):
        hybrid = HybridGenConfig.from_dict(read_json(folder / "model" / "config.json"))
        config = llava_config(hybrid)
        config.dtype = hybrid.dtype
    processor = HybridGenProcessor.from_pretrained(folder / "processor")
    tokenizer, template = (
        _tokenizer(folder / "processor"),
        template_of(folder / "processor"),
    )
    parts = tokenizer, template, processor.image_processor, generation_of(folder / "model", VERSION_KEYS)
    return LlavaCheckpoint(folder, "hybridgen", config, hybrid, open_weights(folder / "model"), {}, *parts)


def _tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    return open_tokenizer(folder, lambda one: [image_token(one)], "LLaVA")
