"""Tables over the vocabulary of which only some rows learn: those of the tokens of pictures (`groups.N.rows`).

A model that keeps its words to the bit still has to learn when to draw, and what the token that begins a picture means
(LMFusion, arXiv 2412.15188). The table learns as a whole tensor, sharded or not; before each step the gradient of every
other row is set to zero. Such rows have moments of zero and no decay, so an update leaves their bits alone.
"""

import torch
from torch import Tensor, nn

from hybridgen.training.config.schema import GroupConfig
from hybridgen.training.distributed.sharding import local, local_part
from hybridgen.training.optim.optimization import group_of

IMAGE_TOKENS = (
    "begin_image_token_id", "end_image_token_id", "image_token_id", "diffusion_token_id", "vq_token_id",
)  # fmt: skip


class HeldRows:
    """
    Args:
        model: as accelerate prepared it, unwrapped.

    Raises:
        ValueError: a group holds rows of something that is no table over the vocabulary, or that does not learn at all.
    """

    def __init__(self, model: nn.Module, groups: list[GroupConfig]):
        self._held: list[tuple[Tensor, Tensor]] = []  # parameter, and which of the rows here are held (rows, 1)
        for name, parameter in model.named_parameters():
            group = group_of(name, groups)
            if group is None or group.rows == "all":
                continue
            held = held_rows(f"groups.{groups.index(group)}.rows", name, parameter, model.config)
            self._held.append((parameter, local_part(held.to(local(parameter).device), parameter)))

    @torch.no_grad()
    def drop_gradients(self) -> None:
        """Set the gradients of held rows to zero, whatever they are."""
        for parameter, held in self._held:
            if parameter.grad is not None:
                local(parameter.grad).masked_fill_(held, 0.0)


def held_rows(key: str, name: str, parameter: Tensor, config) -> Tensor:
    """(V, 1) true on rows of a table that are not of image tokens. See `HeldRows` for what is refused."""
    vocabulary = config.text_config.vocab_size
    if parameter.ndim != 2 or len(parameter) != vocabulary:
        raise ValueError(
            f"{key} is 'image_tokens', but {name} has the shape {tuple(parameter.shape)} and is no table over the "
            f"{vocabulary} tokens; match the embeddings or lm_head alone"
        )
    if not parameter.requires_grad:
        raise ValueError(f"{key} is 'image_tokens', but {name} is frozen; leave rows out, or let it learn")
    ids = [getattr(config, field) for field in IMAGE_TOKENS]
    held = torch.ones(vocabulary, 1, dtype=torch.bool)
    held[[token for token in ids if token is not None and token < vocabulary]] = False
    return held
