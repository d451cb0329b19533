"""Which decoders of transformers can be a backbone: those that do what our mask says in every layer, and nothing else.

A decoder may do more than its config's name tells: carry a state from token to token past the ends of documents (Mamba,
linear attention), count positions along the row instead of the document, choose by itself what to attend to, or change
its logits behind the head. Such a decoder would become another model without a word. So each one is tried out before
anything large is made of it (`check_config`): a tiny decoder with the same settings, on texts longer than any of its
windows, where each layer's gradients must be those of our mask and the logits those of the decoder itself.

Shapes: N tokens, V rows of the vocabulary.
"""

import functools
import json
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from hybridgen.checkpoints.loading import quiet
from hybridgen.configuration_hybridgen import HybridGenConfig
from hybridgen.core.layout import dense_mask, find_reach
from hybridgen.core.values import one_line
from hybridgen.modeling_hybridgen import HybridGenForConditionalGeneration
from hybridgen.paths.decoders import check_kind

_LENGTH = 8  # tokens of a document that is tried
_TOLERANCE = 1e-4  # of the largest logit, in float32
_FORM = "; give a decoder of Llama's or Qwen's form"

_TINY = {  # settings of a tiny decoder, where a config has them; of its heads see `tiny_settings`
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "intermediate_size_mlp": 48,
    "moe_intermediate_size": 24, "shared_expert_intermediate_size": 24, "shared_intermediate_size": 24,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 2,
    "topk_group": 1, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8,
    "v_head_dim": 8, "first_k_dense_replace": 1, "sliding_window": 8, "attention_chunk_size": 8, "floor_scale": 4,
    "index_topk": 4, "max_position_embeddings": 512, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_SWITCHES = ("attention_dropout", "attn_dropout", "hidden_dropout", "residual_dropout", "embedding_dropout")
_LONGEST_PATTERN = 16  # layers


def check_config(config: PreTrainedConfig, what: str) -> None:
    """Raises ValueError for a decoder that cannot be a backbone: by its name or the kinds of its layers, or because a
    tiny one with its settings does not do what a backbone has to (module docstring). Takes less than a second.

    Args:
        what: begins the error, such as `backbone folder`.
    """
    check_kind(config, f"{what} is a {config.model_type!r}")
    _check_experts(config, what)
    if (cause := _try_out(json.dumps(tiny_settings(config), default=str, sort_keys=True))) is not None:
        raise ValueError(f"{what} is a {config.model_type!r}, {cause}")


def _check_experts(config: PreTrainedConfig, what: str) -> None:
    """Raises ValueError for a mixture whose tokens go to more experts than there are, or to none."""
    settings = config.to_dict()
    chosen, there = getattr(config, "num_experts_per_tok", None), _experts(settings)
    if chosen is not None and there is not None and not 1 <= chosen <= there:
        raise ValueError(
            f"{what} is a {config.model_type!r} whose num_experts_per_tok is {chosen}; it must be from 1 to {there}, "
            "its experts"
        )


# ------------------------------------------------------------------------------------------------ the tiny decoder


def tiny_settings(config: PreTrainedConfig) -> dict:
    """The settings of a decoder like this one, but of a few layers and heads: as many layers as show all their kinds,
    windows of 8 tokens."""
    settings = config.to_dict()
    layers = config.num_hidden_layers
    count = min(layers, _LONGEST_PATTERN, max(2, _layers_of_all_kinds(settings, layers)))
    names = getattr(type(config), "attribute_map", {})
    tiny = dict(_TINY, num_hidden_layers=count, num_attention_heads=4, head_dim=8)
    groups = getattr(config, "num_key_value_heads", None)
    if groups is not None:  # of latent attention, each head has keys of its own
        latent = getattr(config, "kv_lora_rank", None) is not None
        tiny["num_key_value_heads"] = 4 if latent or groups >= config.num_attention_heads else min(groups, 2)
    for name, value in tiny.items():
        name = names.get(name, name)
        none = settings.get(name) == 0 and name.endswith("experts")  # which makes some dense, and others nothing
        if isinstance(settings.get(name), int) and not isinstance(settings[name], bool) and not none:
            settings[name] = value
    for name, value in settings.items():
        if isinstance(value, list) and len(value) == layers:
            settings[name] = value[:count]
        elif name in ("moe_layers", "mlp_only_layers") and value:
            settings[name] = [number for number in value if number < count]
        elif name in _SWITCHES:
            settings[name] = 0.0
    if (experts := settings.get("num_experts_per_tok")) and (most := _experts(settings)):
        settings["num_experts_per_tok"] = min(experts, most)
    settings["rope_parameters"] = _shortened(settings.get("rope_parameters"))
    return {name: value for name, value in settings.items() if name not in ("dtype", "quantization_config")}


def _layers_of_all_kinds(settings: dict, layers: int) -> int:
    """How many of the first layers show all that there are, by the lists with an entry a layer."""
    lists = [value for value in settings.values() if isinstance(value, list) and len(value) == layers]
    kinds = [repr(kind) for kind in zip(*lists, strict=True)]
    return max((kinds.index(kind) + 1 for kind in set(kinds)), default=2)


def _experts(settings: dict) -> int | None:
    names = ("num_experts", "num_local_experts", "n_routed_experts")
    return next((settings[name] for name in names if settings.get(name)), None)


def _shortened(rope: dict | None):
    """Settings of rotary positions with one factor a pair of numbers, for heads of 8 numbers."""
    if not isinstance(rope, dict):
        return rope
    pairs = max(1, int(8 * (rope.get("partial_rotary_factor") or 1)) // 2)
    return {name: value[:pairs] if isinstance(value, list) else _shortened(value) for name, value in rope.items()}


# --------------------------------------------------------------------------------------------------- trying it out


@functools.lru_cache(maxsize=64)
def _try_out(settings: str) -> str | None:
    """What a decoder with these settings (JSON) does wrong, to go on ", ..."; None = nothing."""
    settings = json.loads(settings)
    with torch.random.fork_rng(), torch.device("cpu"), torch.inference_mode(False), torch.enable_grad(), quiet():
        torch.manual_seed(0)
        try:
            config = AutoConfig.for_model(**settings)
            reference = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
            reference(torch.zeros(1, 2, dtype=torch.long))
        except Exception as error:  # of any kind: what transformers itself does not run, we know nothing of
            return f"which cannot be tried out ({_one_line(error)}){_FORM}"
        with torch.no_grad():
            for parameter in reference.parameters():  # none is left at one or zero, where it would show nothing
                parameter += 0.05 * torch.randn_like(parameter)
        if (cause := _other_form(reference)) is not None:
            return cause
        model = HybridGenForConditionalGeneration(HybridGenConfig(text_config=config)).eval()
        model.model.language_model.load_state_dict(decoder_of(reference).state_dict())
        model.lm_head.load_state_dict(reference.get_output_embeddings().state_dict())
        try:
            return _other_text(model, reference) or _other_attention(model)
        except (AttributeError, TypeError, RuntimeError, ValueError, KeyError) as error:
            return f"which takes no mask ({_one_line(error)}){_FORM}"


def decoder_of(model: PreTrainedModel) -> PreTrainedModel:
    """The decoder of a model with a head: what `AutoModel` builds. Llama 4's names another part its base."""
    return model.model if model.base_model is model else model.base_model


def _one_line(error: Exception) -> str:
    return one_line(error)[:200]


def _other_form(reference: PreTrainedModel) -> str | None:
    """What parts a decoder lacks that a backbone has."""
    base, head = decoder_of(reference), reference.get_output_embeddings()
    if not hasattr(base, "layers"):
        return f"which has no list of layers{_FORM}"
    if reference.config.tie_word_embeddings and not hasattr(base, "embed_tokens"):
        return f"which has no embed_tokens to tie its head to{_FORM}"
    if head is None or getattr(head, "bias", None) is not None:
        return f"whose head is no plain matrix{_FORM}"
    return None


@torch.no_grad()
def _other_text(model: HybridGenForConditionalGeneration, reference: PreTrainedModel) -> str | None:
    """What of text becomes another: alone, and behind another document of the row."""
    ids = torch.randint(3, model.config.vocab_size, (1, 5 * _LENGTH))
    first, second = ids.split([2 * _LENGTH, 3 * _LENGTH], dim=1)
    expected = reference(ids).logits
    if _differ(ours := model(ids).logits, expected):
        return f"which does more to its logits than a plain head: ours differ by {_share(ours, expected):.2%}{_FORM}"
    if hasattr(model.model.language_model, "rotary_emb") and _moves(model.model.language_model.rotary_emb):
        return None  # its frequencies follow the longest document of a row, here as in transformers
    positions = torch.cat([torch.arange(part.shape[1]) for part in (first, second)])[None]
    packed = model(ids, position_ids=positions).logits[:, 2 * _LENGTH :]
    if _differ(packed, expected := reference(second).logits):
        share = _share(packed, expected)
        return (
            f"whose documents depend on their place in a row: behind another one, logits differ by {share:.2%}{_FORM}"
        )
    return None


def _moves(rotary) -> bool:
    return getattr(rotary, "rope_type", None) in ("dynamic", "longrope")


def _share(ours: Tensor, expected: Tensor) -> float:
    return float((ours - expected).abs().max() / expected.abs().max())


def _other_attention(model: HybridGenForConditionalGeneration) -> str | None:
    """Which of its layers see something else than the mask shows, by the gradients of its outputs.

    A row of two documents with words and an image; for some tokens, the gradient of a layer's output there must be zero
    exactly at the inputs of the tokens that the mask hides.
    """
    documents = torch.arange(2).repeat_interleave(torch.tensor([_LENGTH, 4 * _LENGTH]))[None]
    places = torch.cat([torch.arange(_LENGTH), torch.arange(4 * _LENGTH)])[None]
    blocks = torch.arange(5 * _LENGTH)[None]
    image = (blocks >= 2 * _LENGTH) & (blocks < 3 * _LENGTH)
    blocks = blocks.masked_fill(image, 2 * _LENGTH)
    ids = torch.randint(3, model.config.vocab_size, blocks.shape)
    seen = {}
    with recorded(model.model.language_model.layers) as records:
        model(ids, document_ids=documents, block_ids=blocks, position_ids=places, image_mask=image)
    kinds = getattr(model.config.text_config, "layer_types", None) or [next(iter(model.model.windows))] * len(records)
    for number, (kind, (given, made)) in enumerate(zip(kinds, records, strict=True)):
        if kind not in seen:
            window = model.model.windows[kind]
            reach = None if window is None else find_reach(window, documents, image.long(), None)
            seen[kind] = dense_mask(documents, blocks, reach=reach)[0, 0]
        for token in (_LENGTH, 2 * _LENGTH - 1, 2 * _LENGTH, 3 * _LENGTH, 5 * _LENGTH - 1):
            (gradient,) = torch.autograd.grad(made[0, token].square().sum(), given, retain_graph=True)
            reached = gradient[0].abs().amax(-1) > 0
            if (reached & ~seen[kind][token]).any():
                return (
                    f"whose layer {number} lets tokens see what the mask hides, such as other documents of a row{_FORM}"
                )
            if (seen[kind][token] & ~reached).any():
                return f"whose layer {number} does not let tokens see all that the mask shows{_FORM}"
    return None


@contextmanager
def recorded(layers: torch.nn.ModuleList) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Inside, the list fills with the input and the output (B, N, H) of each layer, in order."""
    records, handles = [], []

    def keep(module, positional, named, output) -> None:
        given = positional[0] if positional else named["hidden_states"]
        records.append((given, output if isinstance(output, Tensor) else output[0]))

    try:
        for layer in layers:
            handles.append(layer.register_forward_hook(keep, with_kwargs=True))
        yield records
    finally:
        for handle in handles:
            handle.remove()


# ------------------------------------------------------------------------------------------------- the model itself


@torch.no_grad()
def check_text(model: HybridGenForConditionalGeneration, reference: PreTrainedModel) -> None:
    """Raises ValueError if the model's text logits are not the backbone's."""
    # the rows of these two tokens may have been unused before
    begin_and_end = (model.config.begin_image_token_id, model.config.end_image_token_id)
    old = torch.tensor([i for i in range(reference.get_input_embeddings().num_embeddings) if i not in begin_and_end])
    ids = old[:: max(1, len(old) // 12)][None, :12]
    with _evaluated(model), _evaluated(reference):
        expected = reference(ids).logits[..., old]
        ours = model(ids).logits[..., old]
    if _differ(ours, expected):
        raise ValueError(
            f"the backbone is a {reference.config.model_type!r}, which does more to its logits than a plain head: ours "
            f"differ by {_share(ours, expected):.2%}; give a decoder of Llama's or Qwen's form"
        )


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
