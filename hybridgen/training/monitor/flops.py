"""The floating-point operations of a training step, and what the device could do in that time: their ratio is MFU.

Model FLOPs (PaLM, arXiv 2204.02311, appendix B): what is computed twice (gradient checkpointing) or for nothing
(padding, blank images) does not count, nor do frozen codecs, norms and activations.

The rule of thumb "6 N" holds only where all weights are trained. Per token and weight, a matrix costs 2 forward, 2 for
its own gradient if it is trained, and 2 for its input's if something before it is trained: a frozen backbone over a
trained aligner 4, a frozen tower 2. Heads cost only where there is a label, and attention only the pairs that the mask
allows.

Shapes: B rows, N tokens of a row.
"""

import time
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from hybridgen.configuration_understanding import prefix_tokens
from hybridgen.core.layout import IGNORE, PADDING_DOCUMENT, number_noised_images
from hybridgen.paths.connectors.mlp import Aligner
from hybridgen.paths.flop_sites import PER_IMAGE
from hybridgen.paths.modality_experts import EXPERT


class FlopCount:
    """Counts the FLOPs of batches: the cost of each unit is found once, so a batch takes a few sums over integers.

    Args:
        model: with its parameters frozen as they will be trained.
        cached: features of a frozen tower come from a cache, so that it does not run.
    """

    def __init__(self, model: nn.Module, cached: bool = False):
        self._ids = model.model.placeholders()
        self._cost = costs(model, cached)

    def of(self, batch: dict[str, Tensor]) -> float:
        """FLOPs of a forward and a backward of a batch, as the loader made it."""
        counts = units(batch, self._ids)
        return sum(cost * counts[unit] for unit, cost in self._cost.items())


def units(batch: dict[str, Tensor], placeholders: dict[str, int]) -> dict[str, int]:
    """The number of units that cost: tokens, pairs that attend, image tokens by path, images, labels."""
    ids, documents = batch["input_ids"], batch["document_ids"]
    counts = {"tokens": int((documents != PADDING_DOCUMENT).sum())}
    counts["pairs"] = pairs(documents, batch["block_ids"], batch["noised_mask"])
    for path in ("understanding", "diffusion", "vq"):
        counts[path] = int((ids == placeholders[path]).sum()) if path in placeholders else 0
    counts["images"] = len(batch.get("diffusion_noised", ()))
    for kind in ("labels", "code_labels"):
        counts[kind] = int((batch[kind][:, 1:] != IGNORE).sum())
    return counts


def pairs(documents: Tensor, blocks: Tensor, noised_mask: Tensor) -> int:
    """How many (query, key) pairs the layout's rule lets attend, padding left out; all arguments (B, N).

    A query attends to its own block, and to the tokens of earlier blocks of its document that are not masked as noised,
    or are of its own noised image.

    Example: one document of a word (block 0) and two tokens of a noised image (block 1). The word attends to itself,
    each image token to both of them and to the word: 1 * 1 + 2 * 3 = 7 pairs.

        visible_before    0 1 1    tokens before each token that are not masked
        sizes             1 2      tokens of each block
        before_block      0 1      tokens before each block that are not masked,
        before_document   0 0      and before its document
        of_its_image      0 0      masked tokens before each block, of the image that it is a part of (causal images)
    """
    rows, length = documents.shape
    real, row = documents != PADDING_DOCUMENT, torch.arange(rows, device=documents.device)[:, None]
    span = int(documents.max()) + 2
    document = (row * span + documents)[real]  # a number for each document of the batch, growing along it
    block = torch.unique_consecutive(document * length + blocks[real], return_inverse=True)[1]
    if not len(block):
        return 0
    visible = (~noised_mask[real]).long()
    visible_before = visible.cumsum(0) - visible  # tokens before each that are not masked
    sizes = torch.bincount(block)
    first = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)[:-1]])  # first token of each block
    before_block, of_block = visible_before[first], document[first]
    new = torch.ones_like(of_block, dtype=torch.bool)
    new[1:] = of_block[1:] != of_block[:-1]
    before_document = before_block[new][new.long().cumsum(0) - 1]
    image = number_noised_images(noised_mask, documents)
    image = (row * (length + 1) + image).masked_fill(image == 0, -1)[real]  # a number for each noised image
    at = torch.arange(len(image), device=image.device)
    _, of_image, count = torch.unique_consecutive(image, return_inverse=True, return_counts=True)
    of_its_image = (at - (count.cumsum(0) - count)[of_image])[first].masked_fill(image[first] < 0, 0)
    return int((sizes * (before_block - before_document + of_its_image + sizes)).sum())


# ----------------------------------------------------------------------------------------------------------- a model


def costs(model: nn.Module, cached: bool = False) -> dict[str, float]:
    """FLOPs for one of each of `units`, from the sizes of the weights and from which of them are trained."""
    inner, config = model.model, model.config
    cost_of = dict.fromkeys(
        ("tokens", "pairs", "understanding", "diffusion", "vq", "images", "labels", "code_labels"), 0
    )
    embedding = trained(inner.get_input_embeddings().parameters())
    if config.vision_config is not None:
        vision, tower = config.vision_config, inner.vision_model
        of_patch, of_state, needs_grad = tower_flops(tower)
        of_aligner, needs_grad = connector_flops(inner.aligner, needs_grad)
        rows, columns = config.feature_grid
        patches, made = rows * columns, config.connector.tokens(config.feature_grid)  # of a (square) picture
        states = patches + prefix_tokens(vision)  # in each of the tower's layers
        layers = vision.num_hidden_layers * attention(vision.hidden_size, 1 + 2 * trained(tower.parameters()))
        runs = trained(tower.parameters()) or not cached
        of_tower = of_patch * (patches / made) + (of_state + layers * states) * (states / made)
        cost_of["understanding"] = of_aligner + runs * of_tower
        embedding |= needs_grad
    shared = config.vq_config is not None and config.vq_config.code_tokens is not None  # codes are tokens
    if config.vq_config is not None and not shared:
        needs_grad = trained(inner.generation_embeddings.parameters())
        cost_of["vq"], needs_grad = matrix_flops(inner.generation_aligner, needs_grad)
        embedding |= needs_grad
    conditioning = False
    if config.diffusion_config is not None:
        cost_of["images"], conditioning = matrix_flops(inner.timestep_embedder, False)
        of_image, cost_of["diffusion"], needs_grad = diffusion_layers(inner.patch_embed, False, conditioning)
        cost_of["images"] += of_image - cost_of["diffusion"] * config.diffusion_config.time_token  # which is no patch
        embedding |= needs_grad

    text, needs_grad = config.text_config, embedding
    width = text.num_attention_heads * (getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)
    active = share_of_experts(text)
    for layer in inner.language_model.layers:
        norms = (parameter for parameter in layer.parameters() if parameter.ndim == 1)  # stand before the matrices
        (cost, of_experts), needs_grad = split_by_expert(layer, needs_grad or trained(norms), active)
        cost_of["tokens"] += cost
        cost_of["diffusion"] += of_experts - cost if of_experts else 0  # a token passes through the one or the other
        cost_of["pairs"] += attention(width, 1 + 2 * needs_grad)
    needs_grad |= trained(inner.language_model.norm.parameters())
    cost_of["labels"] = matrix_flops(model.lm_head, needs_grad)[0]
    if config.vq_config is not None:
        cost_of["code_labels"] = cost_of["labels"] if shared else matrix_flops(inner.generation_head, needs_grad)[0]
    if config.diffusion_config is not None:
        of_image, of_token, _ = diffusion_layers(inner.final_layer, needs_grad, conditioning)
        cost_of["images"] += of_image - of_token * config.diffusion_config.time_token
        cost_of["diffusion"] += of_token
    return cost_of


def tower_flops(tower: nn.Module) -> tuple[float, float, bool]:
    """FLOPs of a vision tower's matrices for a patch of the picture, which has no gradient, and for each of its states,
    and whether gradients flow back into them."""
    reader = next(each for kind in (nn.Conv2d, nn.Linear) for each in tower.modules() if isinstance(each, kind))
    of_patch, _ = matrix_flops(reader, False)
    added = [each for each in tower.parameters() if each.ndim == 3 or len(each) == 1]  # tokens, tables of positions
    (cost, of_experts), needs_grad = split_by_expert(tower, False, apart=[*reader.parameters(), *added])
    return of_patch, cost + of_experts, needs_grad


def connector_flops(connector: Aligner, needs_grad: bool) -> tuple[float, bool]:
    """FLOPs for one of the tokens that a connector makes, and whether gradients flow back into them."""
    cost, trained_before = 0.0, needs_grad
    for site in connector.flop_sites():
        of_site, passed = matrix_flops(site.module, needs_grad)
        cost, needs_grad = cost + of_site * site.uses_per_token, needs_grad or passed
    passes = 1 + 2 * (trained_before or trained(connector.parameters()))
    return cost + sum(keys * attention(width, passes) for keys, width in connector.attention_sites()), needs_grad


def diffusion_layers(module: nn.Module, needs_grad: bool, conditioning: bool) -> tuple[float, float, bool]:
    """FLOPs of the diffusion path's layers before or behind the backbone: for one image, for one of its tokens, and
    whether gradients flow back into their output.

    Args:
        needs_grad, conditioning: gradients flow back into the image (or its states), and into the timestep's vector.
    """
    of_image = of_token = 0.0
    for site in module.flop_sites():
        if site.uses_per_token == PER_IMAGE:
            cost, timed = matrix_flops(site.module, conditioning)
            of_image, needs_grad = of_image + cost, needs_grad or timed
        else:
            cost, passed = matrix_flops(site.module, needs_grad and not site.sees_image)
            of_token, needs_grad = of_token + cost * site.uses_per_token, needs_grad or passed
    return of_image, of_token, needs_grad or conditioning


def matrix_flops(module: nn.Module, needs_grad: bool, active: float = 1.0) -> tuple[float, bool]:
    """FLOPs for one token of all matrices in a module, and whether gradients flow back into its output.

    Parameters stand in the order of the computation.

    Args:
        needs_grad: gradients flow back into the input.
        active: share of the experts that process a token; their weights are tensors of three axes.
    """
    (cost, of_experts), needs_grad = split_by_expert(module, needs_grad, active)
    return cost + of_experts, needs_grad


def split_by_expert(
    module: nn.Module, needs_grad: bool, active: float = 1.0, apart: Iterable[nn.Parameter] = ()
) -> tuple[list[float], bool]:
    """As `matrix_flops`, with the FLOPs [of ordinary weights, of the modality experts]; what is `apart` is left out."""
    tables = {id(each.weight) for each in module.modules() if isinstance(each, nn.Embedding)}
    tables |= {id(each) for each in apart}
    costs = [0.0, 0.0]
    for name, parameter in module.named_parameters():
        if parameter.ndim > 1 and id(parameter) not in tables:
            share = active if parameter.ndim == 3 else 1.0
            cost = 2 * parameter.numel() * share * (1 + parameter.requires_grad + needs_grad)
            costs[EXPERT in name.split(".")] += cost
        needs_grad |= parameter.requires_grad
    return costs, needs_grad


def attention(width: int, passes: float) -> float:
    """FLOPs of a layer for one (query, key) pair: a product with the key, one with the value; twice that backward."""
    return 4 * width * passes


def trained(parameters: Iterable[nn.Parameter]) -> bool:
    return any(parameter.requires_grad for parameter in parameters)


def share_of_experts(config) -> float:
    """The share of the experts that process a token; 1 for a model without experts."""
    names = ("num_experts", "num_local_experts", "n_routed_experts")
    experts = next((getattr(config, name) for name in names if getattr(config, name, None)), None)
    return config.num_experts_per_tok / experts if experts else 1.0


# ---------------------------------------------------------------------------------------------------------- a device


def measured_peak(device: torch.device, dtype: torch.dtype, seconds: float = 0.1) -> float:
    """FLOP/s of the fastest of a few square matrix products: the peak for MFU where the config gives none. It is below
    what a vendor states, so MFU by it is higher."""
    side = 1024 if device.type == "cpu" else 8192
    wait = torch.accelerator.synchronize if device.type != "cpu" else lambda: None
    a, b = (torch.full((side, side), value, dtype=dtype, device=device) for value in (0.5, 0.25))
    best, until = float("inf"), time.perf_counter() + seconds
    while best == float("inf") or time.perf_counter() < until:
        wait()
        start = time.perf_counter()
        torch.mm(a, b)
        wait()
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best
