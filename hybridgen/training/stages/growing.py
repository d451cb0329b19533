"""The weights of a model that outgrows a checkpoint (`model.grow_from`); its config is `config.growth`'s.

What the checkpoint has is taken over, to the bit. Layers that are added copy those before them and add nothing at first
(`bridges.block_expansion`), rows of the vocabulary are the mean of the others (`bridges.assemble`), modality experts
copy what they are experts of. All else starts as in a model from scratch, from the same random numbers.
"""

import copy

import torch
from accelerate import init_empty_weights
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from hybridgen.bridges.assemble import grow
from hybridgen.bridges.block_expansion import is_output, source_of
from hybridgen.bridges.chat_templates import add_role_tokens
from hybridgen.bridges.weight_names import BACKBONE, EMBEDDINGS, HEAD
from hybridgen.checkpoints.loading import friendly_errors, load_model, model_settings
from hybridgen.configuration_hybridgen import HybridGenConfig
from hybridgen.core.recognition import checkpoint_path
from hybridgen.modeling_hybridgen import HybridGenForConditionalGeneration
from hybridgen.paths.modality_experts import EXPERT
from hybridgen.processing_hybridgen import HybridGenProcessor, add_image_tokens
from hybridgen.training.distributed.fsdp import drop_weights


def empty_model(config: HybridGenConfig) -> HybridGenForConditionalGeneration:
    """A model whose parameters are on the meta device: shapes without memory. Its buffers are real."""
    with init_empty_weights(include_buffers=False):
        model = HybridGenForConditionalGeneration(config)
    model.tie_weights()
    return model


def saved_config(checkpoint: str) -> HybridGenConfig:
    """The config of the model in a pipeline's folder."""
    return HybridGenConfig.from_dict(model_settings(checkpoint_path(checkpoint) / "model"))


def grown_tokenizer(checkpoint: str, roles: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint, with the tokens of images that it lacks, and those of `roles` if asked.

    Raises:
        ValueError: it lacks some, and codes stand where they would.
    """
    tokenizer, vq = HybridGenProcessor.from_pretrained(checkpoint).tokenizer, saved_config(checkpoint).vq_config
    added = add_image_tokens(tokenizer) + (add_role_tokens(tokenizer) if roles else 0)
    if added and vq is not None and vq.first_token_id is not None:
        raise ValueError(
            f"model.grow_from is {checkpoint!r}, whose tokenizer lacks {added} tokens of images or roles, and codes "
            "stand behind its words; name a checkpoint whose tokenizer has them, or whose codes are no words"
        )
    return tokenizer


def take_checkpoint(
    model: HybridGenForConditionalGeneration, checkpoint: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Let the weights of a checkpoint be those of a model that is larger, in place of random ones, which go before the
    checkpoint is read.

    Args:
        tokenizer: the model's; what it has more than the checkpoint's are new rows of the vocabulary.
    """
    folder = checkpoint_path(checkpoint)
    before = saved_config(checkpoint)
    factor = model.config.text_config.num_hidden_layers // before.text_config.num_hidden_layers
    sources = _sources(model, set(empty_model(before).state_dict()), factor)
    parts = {"lm_head": model.lm_head} | {f"model.{name}": part for name, part in model.model.named_children()}
    for prefix, part in parts.items():
        if all(f"{prefix}.{name}" in sources for name, _ in part.named_parameters()):
            drop_weights(part)
    with friendly_errors(folder):
        start = load_model(folder / "model").float()
    known = HybridGenProcessor.from_pretrained(checkpoint).tokenizer.get_vocab()
    new_ids = [token for name, token in tokenizer.get_vocab().items() if name not in known]
    weights = _weights(sources, start.state_dict())
    for name in (EMBEDDINGS, HEAD):
        if new_ids:
            weights[name] = grow(weights[name], model.config.vocab_size, new_ids)
    model.load_state_dict(weights, strict=False, assign=True)
    model.tie_weights()
    model.generation_config = copy.deepcopy(start.generation_config)


def _sources(model: HybridGenForConditionalGeneration, saved: set[str], factor: int) -> dict[str, tuple[str, bool]]:
    """For each weight that is not new, the one of the checkpoint that it starts as, and whether it is to be silent."""
    sources = {}
    for name in model.state_dict():
        source, is_copy = name, False
        if name.startswith(BACKBONE):
            source, is_copy = source_of(name.removeprefix(BACKBONE), factor)
            source = BACKBONE + source
        source = source if source in saved else source.replace(f".{EXPERT}.", ".")  # a new modality expert
        if source in saved:
            sources[name] = source, is_copy and is_output(name)
    return sources


def _weights(sources: dict[str, tuple[str, bool]], saved: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights that are not new: those of the checkpoint, and copies where one is needed again."""
    weights, used = {}, set()
    for name, (source, is_silent) in sources.items():
        value = saved[source]
        if is_silent:
            value = torch.zeros_like(value)
        elif source in used:
            value = value.clone()
        else:
            used.add(source)
        weights[name] = value
    return weights
