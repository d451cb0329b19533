"""Which decoders of transformers can be a backbone: those that do what our mask says in every layer, and nothing else.

A decoder may do more than its config's name tells: see the last 4,096 tokens only (windows, chunks), carry a state from
token to token past the ends of documents (Mamba, linear attention), or scale its logits behind the head. Here every
layer sees what the mask shows, and a plain head writes the logits; so such a decoder would become another model without
a word. Windows are told by the config, as only texts longer than them show a difference; the rest is tried out.

Shapes: N tokens, V rows of the vocabulary.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from hybridgen.modeling_hybridgen import HybridGenForConditionalGeneration

_ATTENTION = {"full_attention", "attention", "sliding_attention", "chunked_attention"}  # layers that heed a mask
_LENGTH = 8  # tokens of a document that is tried
_TOLERANCE = 1e-4  # of the largest logit, in float32


def check_config(config: PreTrainedConfig, what: str) -> None:
    """Raises ValueError for a decoder that cannot be a backbone, as far as its config tells.

    Args:
        what: begins the error, such as `backbone folder`.
    """
    what = f"{what} is a {config.model_type!r}"
    kinds = set(getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None) or ())
    if other := sorted(kinds - _ATTENTION):
        raise ValueError(
            f"{what} with layers of {other[0]!r}, which carry words past the end of a document; give a decoder whose "
            "layers all attend, such as llama or qwen3"
        )
    longest = getattr(config, "max_position_embeddings", None) or float("inf")
    for name, kind in (("sliding_window", "sliding_attention"), ("attention_chunk_size", "chunked_attention")):
        window = getattr(config, name, None)
        is_used = kind in kinds if kinds else getattr(config, "use_sliding_window", True)
        if window and is_used and window < longest:
            raise ValueError(
                f"{what} whose layers see {window} tokens at most ({name}), but here they would see all {longest} of "
                "max_position_embeddings; give another decoder, or lower that to the window"
            )
    if getattr(config, "output_router_logits", False):
        raise ValueError(
            f"{what} with output_router_logits, whose loss balances experts; there is no such loss here, so say false"
        )


@torch.no_grad()
def check_attention(model: HybridGenForConditionalGeneration) -> None:
    """Raises ValueError if what the backbone makes of a token depends on what the mask hides from it, or does not on
    what the mask shows."""
    ids, other = _words(model, 3 * _LENGTH)[None].split([2 * _LENGTH, _LENGTH], dim=1)
    first, second = slice(None, _LENGTH), slice(_LENGTH, None)
    documents = torch.arange(2).repeat_interleave(_LENGTH)[None]
    places = torch.arange(_LENGTH).repeat(2)[None]
    tokens, block = torch.arange(2 * _LENGTH)[None], torch.arange(2 * _LENGTH)[None].clamp(max=_LENGTH)
    of_another_document, at_the_end = ids.clone(), ids.clone()
    of_another_document[:, first] = other
    at_the_end[:, -1] = other[:, 0]

    def logits(ids: Tensor, blocks: Tensor) -> Tensor:
        return model(ids, document_ids=documents, block_ids=blocks, position_ids=places).logits  # 1, N, V

    what = f"the backbone is a {model.config.text_config.model_type!r}"
    try:
        with _evaluated(model):
            plain, image = logits(ids, tokens), logits(ids, block)
            leaks = _differ(plain[:, second], logits(of_another_document, tokens)[:, second])
            foresees = _differ(plain[:, :-1], logits(at_the_end, tokens)[:, :-1])
            is_blind = torch.equal(image[:, _LENGTH], logits(at_the_end, block)[:, _LENGTH])
    except (AttributeError, TypeError) as error:  # a model of another form: no cache, other arguments
        raise ValueError(f"{what}, which takes no mask ({error}); give one of Llama's or Qwen's form") from error
    if leaks or foresees or is_blind:
        sees = "other documents of a row" if leaks else "later tokens" if foresees else "nothing of an image's rest"
        raise ValueError(f"{what}, whose tokens see {sees} whatever the mask says; give one of Llama's or Qwen's form")


@torch.no_grad()
def check_text(model: HybridGenForConditionalGeneration, reference: PreTrainedModel) -> None:
    """Raises ValueError if the model's text logits are not the backbone's: some decoders scale or cap their logits
    after the head (Granite and Cohere scale, Gemma 2 caps)."""
    # the rows of these two tokens may have been unused before
    begin_and_end = (model.config.begin_image_token_id, model.config.end_image_token_id)
    old = torch.tensor([i for i in range(reference.get_input_embeddings().num_embeddings) if i not in begin_and_end])
    ids = old[:: max(1, len(old) // 12)][None, :12]
    with _evaluated(model), _evaluated(reference):
        expected = reference(ids).logits[..., old]
        ours = model(ids).logits[..., old]
    if _differ(ours, expected):
        difference = (ours - expected).abs().max() / expected.abs().max()
        raise ValueError(
            f"the backbone is a {reference.config.model_type!r}, which does more to its logits than a plain head: ours "
            f"differ by {difference:.1%}; give a decoder of Llama's or Qwen's form"
        )


def _words(model: HybridGenForConditionalGeneration, count: int) -> Tensor:
    """So many token ids that stand for no image, spread over the vocabulary and repeated where there are fewer."""
    config = model.config
    names = ("image", "diffusion", "vq", "begin_image", "end_image")
    reserved = {getattr(config, f"{name}_token_id") for name in names}
    end = config.vocab_size
    if config.vq_config is not None and config.vq_config.first_token_id is not None:
        end = config.vq_config.first_token_id
    words = torch.tensor([token for token in range(end) if token not in reserved])
    return words[torch.linspace(0, len(words) - 1, count).long()]


def _differ(ours: Tensor, expected: Tensor) -> bool:
    return not bool((ours - expected).abs().max() < _TOLERANCE * expected.abs().max())


@contextmanager
def _evaluated(model: torch.nn.Module) -> Iterator[None]:
    """Inside, the model drops nothing out."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
