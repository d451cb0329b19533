"""Names of Chameleon's tensors: transformers' <-> those of our model and of its VQ tokenizer.

transformers has the tokenizer inside of the decoder (`model.vqmodel.*`); here it is a component of the pipeline. Its
decoder, where a checkpoint has one, counts levels from the finest to the coarsest there, as taming-transformers does,
and from the coarsest to the finest here, as transformers' Janus does (`codecs.chameleon_vq`).
"""

import re

from hybridgen.bridges.weight_names import BACKBONE
from hybridgen.bridges.weights import StoredTensor

VQ_PREFIX = "model.vqmodel."
DECODER = f"{VQ_PREFIX}decoder."
HEAD, EMBEDDINGS = "lm_head.weight", "model.embed_tokens.weight"
_UNREAD = re.compile(r".*rotary_emb\.inv_freq")  # a table that old versions saved and new ones compute


def is_dropped(name: str) -> bool:
    """Whether no computation reads a tensor of this name."""
    return _UNREAD.fullmatch(name) is not None


def split(tensors: dict[str, StoredTensor], levels: int) -> tuple[dict[str, StoredTensor], dict[str, StoredTensor]]:
    """transformers' tensors -> our model's, and its VQ tokenizer's, which has so many levels."""
    model, vq = {}, {}
    for name, tensor in tensors.items():
        if name.startswith(VQ_PREFIX):
            vq[turned(name.removeprefix(VQ_PREFIX), levels)] = tensor
        elif name.startswith("model."):
            model[BACKBONE + name.removeprefix("model.")] = tensor
        else:
            model[name] = tensor
    return model, vq


def joined(model: dict[str, StoredTensor], vq: dict[str, StoredTensor], levels: int) -> dict[str, StoredTensor]:
    """The reverse of `split`; our model's names that are none of its backbone's stay."""
    tensors = {
        f"model.{name.removeprefix(BACKBONE)}" if name.startswith(BACKBONE) else name: tensor
        for name, tensor in model.items()
    }
    return tensors | {VQ_PREFIX + turned(name, levels): tensor for name, tensor in vq.items()}


def turned(name: str, levels: int) -> str:
    """`decoder.up.0...` of three levels -> `decoder.up.2...`, and back; other names stay."""
    return re.sub(r"^decoder\.up\.(\d+)\.", lambda match: f"decoder.up.{levels - 1 - int(match[1])}.", name)
