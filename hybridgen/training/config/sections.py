"""Sections of a config that become configs of transformers' kind, and whose errors name the key that they are about."""

from collections.abc import Iterator, Set
from contextlib import contextmanager
from dataclasses import fields

from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig

from hybridgen.configuration_hybridgen import HybridGenDiffusionConfig, HybridGenVQConfig, check_sizes
from hybridgen.training.config.renamed import new_name
from hybridgen.training.config.strict import unknown_key

PATH_CONFIGS = {"diffusion_config": HybridGenDiffusionConfig, "vq_config": HybridGenVQConfig}  # whose classes are ours
EXTRA_KEYS = {"model_type", "vision_use_head"}  # SigLIP reads the second; not every version declares it


def sub_config(
    content: dict, kind: type[PreTrainedConfig], where: str, more: Set[str] = frozenset()
) -> PreTrainedConfig:
    """A config of a known class, its keys and types checked (transformers takes unknown keys without a word).

    Args:
        more: keys that are read, and that the class does not declare.
    """
    known = {field.name for field in fields(kind)} | set(getattr(kind, "attribute_map", {})) | EXTRA_KEYS | more
    for key, value in content.items():
        if key not in known or new_name(f"{where}.{key}") is not None:  # an old name that checkpoints may still have
            raise unknown_key(f"{where}.{key}", value, sorted(known))
    check_sizes(content, where)
    try:
        return kind(**{key: value for key, value in content.items() if key != "model_type"})
    except (StrictDataclassError, TypeError) as error:
        raise ValueError(f"{where}: {' '.join(str(error.__cause__ or error).split())}") from None


@contextmanager
def said_of(key: str) -> Iterator[None]:
    """Inside, errors of ours begin with the key of the config that they are about."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error
